"""Signals that end play: what is recorded is whole, and the exit status is that of the signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.data.sessions import read_session
from envs.player.interrupts import Interrupted, held, raised

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals")

# Whatever runs the tests may ignore signals, and hand that down.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
if {ignored!r}:
    signal.signal(getattr(signal, {ignored!r}), signal.SIG_IGN)
import play
from envs.player.session import PlaySession
from tests.stub_play import StubEnv
play.make_session = lambda options, report: PlaySession(StubEnv(0.002))
sys.exit(play.main({arguments!r}))
"""


def start(folder: Path, *arguments: str, ignored: str = "") -> subprocess.Popen[str]:
    """Start play with a stub, recording a video and a session."""
    given = ["--real", "--video", str(folder / "a.mp4"), "--record", str(folder / "a.h5"), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(arguments=given, ignored=ignored)],
        cwd=ROOT,
        env={**os.environ, "SDL_VIDEODRIVER": "dummy"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], file: Path, size: int) -> None:
    deadline_s = time.monotonic() + 60
    while not file.is_file() or file.stat().st_size < size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def check_files(folder: Path) -> int:
    """Check that the video and the session are whole and nothing else is left; return the steps of the session."""
    import av

    assert sorted(path.name for path in folder.iterdir()) == ["a.h5", "a.mp4"]
    num_steps = read_session(folder / "a.h5").episodes[0].num_steps
    with av.open(str(folder / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == num_steps + 1
    return num_steps


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("arguments", [["--headless", "--frames", "1000000"], []], ids=["headless", "window"])
def test_a_signal_ends_play_and_the_files_are_whole(tmp_path: Path, name: str, arguments: list[str]) -> None:
    number = getattr(signal, name)
    process = start(tmp_path, *arguments)
    wait_for(process, tmp_path / "a.journal", 10_000)
    process.send_signal(number)
    if name != "SIGINT":  # asked again while it closes
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    saved = [] if arguments else [f"saved {tmp_path / name}" for name in ("a.mp4", "a.h5")]
    assert out.splitlines() == saved
    assert check_files(tmp_path) > 10


def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As HUP under nohup."""
    process = start(tmp_path, "--headless", "--frames", "300", ignored="SIGHUP")
    wait_for(process, tmp_path / "a.journal", 10_000)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and '"frames": 300' in out, err
    assert check_files(tmp_path) == 300


def test_a_step_is_taken_whole() -> None:
    done = []
    with pytest.raises(Interrupted) as found, raised():
        for step in range(10):
            with held():
                done.append(step)
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.01)
                done.append(step)
    assert found.value.number == signal.SIGTERM
    assert done == [0, 0, 1, 1, 2, 2, 3, 3]


def test_closing_is_not_disturbed_but_by_a_second_interrupt() -> None:
    closed = []
    with pytest.raises(Interrupted), raised():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        finally:
            with held():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                closed.append(True)
                with pytest.raises(Interrupted):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(1)
    assert closed == [True]


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with raised():
        assert signal.getsignal(signal.SIGINT) != before[0] or before[0] == signal.SIG_IGN
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
