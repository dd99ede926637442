"""The player in a browser: a server with one page, to which pictures go and from which keys come.

Owns: access, the sockets of pages and their bounds, and how serving begins and ends. Does not know models or options:
a `WorldWorker` loads and steps the world in its own thread, and `envs.player.remote` knows the messages.

Each page acknowledges what it has drawn, and no more than `IN_FLIGHT` messages are under way to it: a slow one gets
fewer pictures and always the newest; nothing queues up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import html
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from envs.player.address import host_name, is_loopback, listen, page_address
from envs.player.interrupts import Wish, noted
from envs.player.remote import (
    MessageBudget,
    MessageError,
    Order,
    Seat,
    describe,
    encode_picture,
    pack_message,
    read_order,
)
from envs.player.view import View
from envs.player.worker import WorldWorker
from worldmodel.errors import MissingPackageError

if TYPE_CHECKING:
    from aiohttp import web

MAX_CLIENTS = 16
MAX_READ_BYTES = 4096
"""A larger message is not even read: its sender is closed without a text."""

IN_FLIGHT = 4
"""Messages sent and not yet drawn: at 15 frames a second enough for a way there and back of 260 ms."""

REPEAT_S = 1.0
"""After so long without a change a page is told again how things are: whether the player is idle by now."""

SHORTEST_PERIOD_S = 1 / 60
PING_S = 10.0
CLOSE_S = 2.0
KEEP_ALIVE_S = 15.0
POLICY_VIOLATION, GOING_AWAY, TRY_AGAIN_LATER, SERVER_FAILED = 1008, 1001, 1013, 1011
PAGE_FOLDER = Path(__file__).with_name("page")


def serve(worker: WorldWorker, title: str, host: str, port: int, name_file: Callable[[str], Path]) -> None:
    """Play in browsers until Ctrl-C, TERM or HUP; then all recordings are finished.

    Args:
        worker: not yet started.
        title: of the page.
        host: address to listen on; from any but a loopback one a token is asked for, which the printed address holds.
        port: to listen on; 0 takes a free one.
        name_file: returns a new name for a file each time, of a "session" or a "video".

    Raises:
        MissingPackageError: aiohttp is not installed.
        ConfigError: this address cannot be listened on.
        WorldModelError: what loading or dreaming raised.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"--serve needs aiohttp ({error}); run: pip install aiohttp") from error

    token = None if is_loopback(host) else secrets.token_urlsafe(16)
    server = BrowserServer(worker, title, name_file, token)
    with noted() as stop:
        try:
            asyncio.run(_serve(server, host, port, stop))
        finally:
            worker.stop()
    if worker.error is not None:
        raise worker.error


async def _serve(server: BrowserServer, host: str, port: int, stop: Wish) -> None:
    from aiohttp import web

    runner = web.AppRunner(server.make_app(), access_log=None, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        assert runner.server is not None
        listener = await listen(runner.server, host, port)
        port = listener.sockets[0].getsockname()[1]
        print(f"open {page_address(host, port, server.token)} in a browser; Ctrl-C ends", flush=True)
        try:
            await server.run(stop)
        finally:
            listener.close()
    finally:
        await runner.cleanup()


class Client:
    """A page that is open: what it was sent, and what it has drawn of that.

    Args:
        socket: to the page.
    """

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.budget = MessageBudget()
        self.num_sent = 0
        self.link_ms: float | None = None
        self.shown: np.ndarray | None = None
        self.has_news = asyncio.Event()
        self.has_room = asyncio.Event()
        self.has_news.set()
        self.has_room.set()
        self._sent_s: dict[int, float] = {}

    def count_sent(self) -> None:
        """Count a message that goes out now."""
        self.num_sent += 1
        self._sent_s[self.num_sent] = time.perf_counter()
        if len(self._sent_s) >= IN_FLIGHT:
            self.has_room.clear()

    def acknowledge(self, number: int) -> None:
        """Count a message as drawn, and all before it.

        Raises:
            MessageError: it is not under way.
        """
        if number not in self._sent_s:
            raise MessageError(f"message {number} was acknowledged, which is not under way")
        self.link_ms = (time.perf_counter() - self._sent_s[number]) * 1000
        self._sent_s = {other: sent_s for other, sent_s in self._sent_s.items() if other > number}
        self.has_room.set()


class BrowserServer:
    """One page over one `WorldWorker`, for one player and some who watch.

    Args:
        worker: not yet started.
        title: of the page.
        name_file: returns a new name for a file each time, of a "session" or a "video".
        token: what an address must hold to be answered; None: only addresses of this machine are answered.
    """

    def __init__(
        self, worker: WorldWorker, title: str, name_file: Callable[[str], Path], token: str | None = None
    ) -> None:
        self.worker = worker
        self.token = token
        self.seat = Seat(worker, name_file)
        self.clients: set[Client] = set()
        self._page, self._page_policy = make_page(title)
        self._encoded: tuple[np.ndarray | None, bytes] = (None, b"")

    def make_app(self) -> web.Application:
        """Return the application: the page, its socket, and the session and the video that were finished last."""
        from aiohttp import web

        @web.middleware
        async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
            self._check_access(request)
            return await handler(request)

        app = web.Application(middlewares=[guard])
        app.router.add_get("/", self._send_page)
        app.router.add_get("/socket", self._talk)
        app.router.add_get("/session", self._send_session)
        app.router.add_get("/video", self._send_video)
        app.on_response_prepare.append(_add_headers)
        return app

    async def run(self, stop: Wish) -> None:
        """Load and play until it is to stop or the world fails; then say good-bye to every page."""
        loop, has_ended = asyncio.get_running_loop(), asyncio.Event()

        def show() -> None:
            self.show()
            if self.worker.error is not None:
                has_ended.set()

        def call_soon(do: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(do)

        stop.on_come = functools.partial(call_soon, has_ended.set)
        self.worker.on_change = functools.partial(call_soon, show)
        if not stop.number:
            self.worker.start()
            await has_ended.wait()
        failed = self.worker.error is not None
        code, reason = (SERVER_FAILED, "the world has failed") if failed else (GOING_AWAY, "the game was ended")
        await asyncio.gather(*(close(client.socket, code, reason) for client in self.clients))

    def show(self) -> None:
        """Tell every page what is new, as soon as it has drawn what it was told before."""
        for client in self.clients:
            client.has_news.set()

    def _check_access(self, request: web.Request) -> None:
        """Answer only who knows the token; without one only an address of this machine.

        Another site can let its own name lead to this machine; its pages then ask us under that name.
        """
        from aiohttp import web

        if self.token is None:
            if not is_loopback(host_name(request.host)):
                raise web.HTTPForbidden(text="this server answers under localhost and 127.0.0.1 only")
        elif not hmac.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
            raise web.HTTPForbidden(text="the token is missing or wrong: open the whole address that play.py printed")

    async def _send_page(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        headers = {"Content-Security-Policy": self._page_policy}
        return web.Response(text=self._page, content_type="text/html", headers=headers)

    async def _send_session(self, request: web.Request) -> web.StreamResponse:
        return _attach(self.worker.finished_session, "session")

    async def _send_video(self, request: web.Request) -> web.StreamResponse:
        return _attach(self.worker.finished_video, "video")

    async def _talk(self, request: web.Request) -> web.StreamResponse:
        """Open the socket of a page, and serve it until it closes."""
        from aiohttp import web

        if request.headers.get("Origin") not in (f"http://{request.host}", f"https://{request.host}"):
            raise web.HTTPForbidden(text="only this server's own page may connect")
        # Pings are answered here, so that they count as messages; compressed ones could be far larger than they look.
        opened = web.WebSocketResponse(
            timeout=CLOSE_S, heartbeat=PING_S, autoping=False, compress=False, max_msg_size=MAX_READ_BYTES
        )
        await opened.prepare(request)
        if len(self.clients) >= MAX_CLIENTS:
            await close(opened, TRY_AGAIN_LATER, f"{MAX_CLIENTS} pages are open already: close one")
            return opened

        client = Client(opened)
        self.clients.add(client)
        sending = asyncio.create_task(self._send_news(client))
        try:
            await self._receive(client)
        finally:
            self.clients.discard(client)
            self.seat.leave(client)
            self.show()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return opened

    async def _receive(self, client: Client) -> None:
        """Take messages until the page closes; who sends what no page of ours sends is closed with the reason."""
        from aiohttp import WSMsgType

        async for message in client.socket:
            if message.type is WSMsgType.ERROR:  # too large, or no text: closed already, with the reason
                return
            try:
                client.budget.spend()
                if message.type is WSMsgType.TEXT:
                    self._do(client, read_order(message.data))
                elif message.type is WSMsgType.PING:
                    await client.socket.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    raise MessageError("a message was no text")
            except MessageError as error:
                await close(client.socket, POLICY_VIOLATION, str(error))
                return

    def _do(self, client: Client, order: Order) -> None:
        if order.do == "seen":
            client.acknowledge(order.number)
        elif order.do == "play":
            self.seat.take(client)
            self.show()
        else:
            self.seat.apply(client, order)

    async def _send_news(self, client: Client) -> None:
        """Send the newest there is, whenever there is something new and the page has drawn enough of the old."""
        while not client.socket.closed:
            await client.has_room.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPEAT_S):
                    await client.has_news.wait()
            client.has_news.clear()
            message = self._make_message(client)
            client.count_sent()
            await client.socket.send_bytes(message)
            await asyncio.sleep(SHORTEST_PERIOD_S)

    def _make_message(self, client: Client) -> bytes:
        view, plays = self.worker.view, self.seat.player is client
        state = {
            "number": client.num_sent + 1,
            "link_ms": None if client.link_ms is None else round(client.link_ms, 1),
            "plays": plays,
            "can_play": not plays and self.seat.is_open_to(client),
            "num_watching": len(self.clients) - (self.seat.player is not None),
            **describe(self.worker, view),
        }
        if view is None or view.frame is client.shown:
            return pack_message(state, b"")
        client.shown = view.frame
        return pack_message(state, self._picture(view))

    def _picture(self, view: View) -> bytes:
        """Return the picture of a view, encoded once for all pages."""
        if self._encoded[0] is not view.frame:
            self._encoded = view.frame, encode_picture(view.frame)
        return self._encoded[1]


def _attach(path: Path | None, kind: str) -> web.FileResponse:
    """Return the answer that is a file to save; which one it is no request says."""
    from aiohttp import web

    if path is None or not path.is_file():
        raise web.HTTPNotFound(text=f"no {kind} has been finished")
    return web.FileResponse(path, headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name)}"})


async def close(opened: web.WebSocketResponse, code: int, reason: str) -> None:
    """Close a socket with a reason, also one at whose other end nobody reads."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * CLOSE_S):
            await opened.close(code=code, message=reason.encode()[:120])


def make_page(title: str) -> tuple[str, str]:
    """Return the page, whole in one document, and the Content-Security-Policy under which it may do what it does."""
    style, script = ((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = (PAGE_FOLDER / "page.html").read_text(encoding="utf-8")
    parts = {
        "<!-- title -->": html.escape(title),
        "<!-- style -->": f"<style>{style}</style>",
        "<!-- script -->": f"<script>{script}</script>",
    }
    for place, part in parts.items():
        page = page.replace(place, part)
    policy = (
        f"default-src 'none'; script-src {_hash_source(script)}; style-src {_hash_source(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = {
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    for name, value in headers.items():
        response.headers.setdefault(name, value)
