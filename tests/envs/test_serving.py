"""Where play.py --serve listens, what it refuses, and how it ends."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import play
from envs.data.sessions import read_session
from envs.player.address import is_loopback, listen, page_address
from envs.player.interrupts import noted
from tests.stub_browser import WAIT_S, Page
from tests.stub_play import StubEnv
from worldmodel.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import web

    monkeypatch.setattr("envs.player.address.MAX_CONNECTIONS", 3)

    async def main() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        assert runner.server is not None
        listener = await listen(runner.server, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]

        async def is_answered() -> tuple[bool, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                return (await reader.read(8)) == b"HTTP/1.1", writer
            return False, writer

        found = [await is_answered() for _ in range(5)]
        assert [is_open for is_open, _ in found] == [True, True, True, False, False]
        for _, writer in found:
            writer.close()
        await asyncio.sleep(0.2)
        assert (await is_answered())[0]
        listener.close()
        await runner.cleanup()

    asyncio.run(main())


def test_addresses() -> None:
    assert [is_loopback(name) for name in ("127.0.0.1", "::1", "LocalHost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(name) for name in ("0.0.0.0", "::", "192.168.0.3", "example.org", "", "1")] == [False] * 6
    assert page_address("127.0.0.1", 8765, None) == "http://127.0.0.1:8765/"
    assert page_address("::1", 80, None) == "http://[::1]:80/"
    assert page_address("10.0.0.7", 8765, "abc") == "http://10.0.0.7:8765/?token=abc"
    shown = page_address("0.0.0.0", 8765, "abc")
    assert "0.0.0.0" not in shown and shown.endswith(":8765/?token=abc")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "80"], "--port goes only with --serve"),
        (["--host", "0.0.0.0"], "--host goes only with --serve"),
        (["--serve", "--headless"], "--serve does not go with --headless"),
        (["--serve", "--port", "-1"], "from 0 (any that is free) to 65535; got -1"),
        (["--serve", "--port", "65536"], "from 0 (any that is free) to 65535; got 65536"),
        (["--serve", "--host", ""], "--host is empty"),
        (["--serve", "--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' cannot be listened on"),
        (["--serve", "--host", "192.0.2.7"], "--host '192.0.2.7' cannot be listened on"),
        (["--serve", "--host", "x" * 80], "cannot be listened on"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_served_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    made: list[StubEnv] = []
    monkeypatch.setattr(play, "make_real", lambda world, report: made.append(StubEnv()) or made[-1])
    assert play.main(["--real", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert made == []


def test_a_port_in_use_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert play.main(["--real", "--serve", "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"--port {port} is in use on 127.0.0.1: give another one, or 0" in err


def test_serving_without_aiohttp_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert play.main(["--real", "--serve"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install aiohttp" in err


def test_a_port_that_may_not_be_opened_is_told() -> None:
    class Unable:
        async def create_server(self, *_: Any) -> None:
            raise PermissionError(13, "Permission denied")

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("envs.player.address.asyncio.get_running_loop", Unable)
            await listen(None, "127.0.0.1", 80)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="--port 80 may not be opened by this user"):
        asyncio.run(main())


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """Run play.py with a stub env and yield its process and the address that it prints."""
    code = (
        "import signal, sys; sys.path[:0] = ['tests']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell in the background has it ignored
        "import play, stub_play\n"
        "play.make_dream = lambda options, report: stub_play.StubEnv()\n"
        "done = play.main(sys.argv[1:])\n"
        "assert not {'torch', 'pygame'} & sys.modules.keys()\n"
        "sys.exit(done)\n"
    )
    command = [sys.executable, "-c", code, "--serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line.startswith("open http://"), line + (process.stderr.read() if process.stderr else "")
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


def test_a_second_ctrl_c_breaks_off_and_what_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wanted = []
    try:
        with noted() as stop:
            stop.on_come = lambda: wanted.append(1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.number
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGINT and wanted == [1]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGHUP, ignored)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_with_whole_files(tmp_path: Path, name: str) -> None:
    import av
    from aiohttp import ClientSession

    async def main() -> None:
        arguments = ["--record", str(tmp_path / "a.h5"), "--video", str(tmp_path / "a.mp4")]
        async with program(*arguments) as (process, address), ClientSession() as client:
            opened = await client.ws_connect(address + "socket", headers={"Origin": address.rstrip("/")})
            page = Page(opened)
            await page.ask("play")
            await page.ask("press", key="w")
            await page.hud(lambda hud: hud["step"] > 20)
            os.kill(process.pid, getattr(signal, name))
            os.kill(process.pid, signal.SIGTERM)  # a second one, as of a terminal that closes, does no harm
            assert await page.closing() == (1001, "the game was ended")
            assert await asyncio.to_thread(process.wait, WAIT_S) == 0
            assert process.stderr is not None and process.stderr.read() == ""

    asyncio.run(main())
    with av.open(str(tmp_path / "a.mp4")) as container:
        num_frames = container.streams.video[0].frames
    assert num_frames == read_session(tmp_path / "a.h5").episodes[0].num_frames > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.mp4"]


def test_for_others_the_printed_address_holds_a_token(tmp_path: Path) -> None:
    from aiohttp import ClientSession

    async def main() -> None:
        async with program("--host", "0.0.0.0") as (_, address), ClientSession() as client:
            place, _, token = address.partition("?token=")
            assert len(token) >= 20
            port = place.rstrip("/").rpartition(":")[2]
            here = f"http://127.0.0.1:{port}/"
            async with client.get(here) as refused, client.get(f"{here}?token={token}") as answered:
                assert (refused.status, answered.status) == (403, 200)

    asyncio.run(main())
