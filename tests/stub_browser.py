"""Stands for a browser: says what the page says, to a server that plays a stub."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientWebSocketResponse, WSMsgType
from aiohttp.test_utils import TestClient, TestServer

from envs.player.browser import BrowserServer
from envs.player.interrupts import Wish
from envs.player.session import PlaySession
from envs.player.worker import Report, WorldWorker
from tests.stub_play import RewindableEnv

WAIT_S = 20
SUFFIXES = {"session": ".h5", "video": ".mp4"}


class SteadyEnv(RewindableEnv):
    """Steps 50 times a second."""

    fps = 50


class Page:
    """Says what a page says: acknowledges each message, and keeps what it was told."""

    def __init__(self, opened: ClientWebSocketResponse) -> None:
        self.socket = opened
        self.state: dict[str, Any] = {}
        self.picture = b""
        self.actions: list[str] = []

    async def take(self, is_acknowledged: bool = True) -> dict[str, Any]:
        """Take one message."""
        message = await self.socket.receive(WAIT_S)
        assert message.type is WSMsgType.BINARY, message
        end = 4 + int.from_bytes(message.data[:4], "big")
        self.state = json.loads(message.data[4:end])
        self.picture = message.data[end:] or self.picture
        self.actions.append(self.state.get("hud", {}).get("action", ""))
        if is_acknowledged:
            await self.ask("seen", number=self.state["number"])
        return self.state

    async def ask(self, do: str, **more: Any) -> None:
        """Ask for something."""
        await self.socket.send_str(json.dumps({"do": do, **more}))

    async def until(self, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Take messages until one fulfils a condition, and return it."""
        async with asyncio.timeout(WAIT_S):
            while not is_so(await self.take()):
                pass
        return self.state

    async def hud(self, is_so: Callable[[dict[str, Any]], object] = lambda hud: True) -> dict[str, Any]:
        """Take messages until the counters fulfil a condition, and return them."""
        found: dict[str, Any] = (await self.until(lambda state: "hud" in state and is_so(state["hud"])))["hud"]
        return found

    async def closing(self) -> tuple[int | None, str]:
        """Take what comes until the server closes; return the code and the reason."""
        async with asyncio.timeout(WAIT_S):
            while (message := await self.socket.receive()).type is WSMsgType.BINARY:
                pass
        assert message.type is WSMsgType.CLOSE, message
        return message.data, message.extra or ""


class Place:
    """A server with a stub env, and how to reach it."""

    def __init__(self, server: BrowserServer, client: TestClient) -> None:
        self.server = server
        self.worker = server.worker
        self.client = client
        self.origin = str(client.make_url("/")).rstrip("/")

    async def open(self, query: str = "", **headers: str) -> Page:
        """Open a socket as a page does."""
        headers = {"Origin": self.origin, **headers}
        return Page(await self.client.ws_connect(f"/socket{query}", headers=headers, max_msg_size=0))

    async def play(self) -> Page:
        """Open a socket and take the seat."""
        page = await self.open()
        await page.ask("play")
        await page.until(lambda state: state["plays"] and "hud" in state)
        return page


def run(
    test: Callable[[Place], Awaitable[None]],
    tmp_path: Path,
    make: Callable[[Report], PlaySession] | None = None,
    token: str | None = None,
    record: Path | None = None,
) -> WorldWorker:
    """Run a test against a server that plays a stub; then stop it as Ctrl-C does."""
    worker = WorldWorker(make or (lambda report: PlaySession(SteadyEnv())), session_path=record)
    numbers = itertools.count()

    def name_file(kind: str) -> Path:
        return tmp_path / f"{kind}-{next(numbers)}{SUFFIXES[kind]}"

    async def main() -> None:
        server = BrowserServer(worker, "a <title>", name_file, token)
        async with TestClient(TestServer(server.make_app())) as client:
            stop = Wish()
            running = asyncio.create_task(server.run(stop))
            while not worker.is_alive:
                await asyncio.sleep(0.001)
            try:
                async with asyncio.timeout(2 * WAIT_S):
                    await test(Place(server, client))
            finally:
                stop.on_come()
                await running

    try:
        asyncio.run(main())
    finally:
        worker.stop()
    return worker
