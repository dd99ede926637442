"""Sessions shown again and dreamt again: what was recorded is what is shown, and the comparison finds what differs."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import play
from envs.data.session_writer import SessionWriter
from envs.data.sessions import Place, SessionInfo, read_session
from envs.dream import DreamEnv
from envs.player.line import BLOCK_FRAMES, NUM_BLOCKS, Line, parse_place
from envs.player.redream import Redream
from envs.player.replay import ReplaySession
from envs.player.replay_worker import ReplayWorker
from envs.player.session import PlaySession
from envs.player.side_by_side import GUTTER, compose, split
from envs.worlds.labmaze.spec import ACTIONS as LABMAZE_ACTIONS
from tests.conftest import moving_frames
from tests.stub_play import RewindableEnv, key
from worldmodel.checkpoint import load_codec, load_info, load_openings, save_bundle
from worldmodel.errors import ConfigError, DataError


@pytest.fixture
def played(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A session with marks, a revisit and a fork; and the frames on the way to its last one."""
    session = PlaySession(RewindableEnv(), seed=2)
    session.start_session(tmp_path / "a.h5")
    frames = [session.view.frame]
    for step in range(40):
        frames.append(session.step(step % 4).frame)
        if step == 9:
            session.mark()
    view = session.rewind(5)
    frames = [*frames[: view.step + 1], *(session.step(2).frame for _ in range(6))]
    session.come_back()
    session.stop_session()
    return tmp_path / "a.h5", frames


def record_dream(bundle: Path, file: Path, before: int = 0, num_steps: int = 12) -> None:
    """Play a small dream, and record it after `before` steps."""
    session = PlaySession(DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1), seed=1)
    for _ in range(before):
        session.step(1)
    session.start_session(file)
    for step in range(num_steps):
        session.step(step % 7)
    session.close()


@pytest.fixture
def dreamt(bundle: Path, tmp_path: Path) -> Path:
    """A session of a small dream: twelve steps."""
    record_dream(bundle, tmp_path / "dream.h5")
    return tmp_path / "dream.h5"


def record_real(file: Path, num_frames: int = 20, **changes: Any) -> None:
    """Write a session of a real world of 32 x 32 pixels."""
    info = {"world": "LabMaze", "action_names": LABMAZE_ACTIONS.names, "image_size": 32, "fps": 15.0, "source": "real"}
    writer = SessionWriter(file, SessionInfo(**{**info, **changes}))
    frames = moving_frames(num_frames, changes.get("image_size", 32), 0)
    writer.begin(frames[0], start={"seed": 5})
    for number, frame in enumerate(frames[1:]):
        writer.add(number % 2, frame, 0.0, False, False)
    writer.close()


def run_main(*arguments: str) -> int:
    is_dreamt = {"--checkpoint", "--redream"} & {*arguments}
    return play.main(
        ["--headless", "--device", "cpu", *(["--threads", "1"] if is_dreamt else []), "--replay", *arguments]
    )


def replay(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_main(*arguments) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def say_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_main(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


# --- the line ---


def test_a_line_follows_forks_and_knows_its_marks(played: tuple[Path, list[np.ndarray]]) -> None:
    path, frames = played
    line = Line(read_session(path))
    assert len(line) == len(frames)
    assert all(np.array_equal(line.frame(number), frame) for number, frame in enumerate(frames))
    fork = line.stops[0].frame
    assert line.place(fork) == Place(0, fork) and line.place(fork + 1) == Place(1, 1)
    assert [line.number(line.place(number)) for number in range(len(line))] == list(range(len(line)))
    assert line.number(Place(0, fork + 1)) is None
    assert line.marks == [(10, 1)] and line.revisits == [(10, len(frames) - 1)]


def test_another_line_is_chosen_by_its_last_frame(played: tuple[Path, list[np.ndarray]]) -> None:
    path, _ = played
    line = Line(read_session(path), Place(0, 40))
    assert len(line) == 41 and line.revisits == []
    with pytest.raises(DataError, match=r"has no frame 0:41; its episodes end at 0:40, 1:6"):
        Line(read_session(path), Place(0, 41))


def test_pictures_of_long_lines_are_read_in_pieces(tmp_path: Path) -> None:
    num_frames = (NUM_BLOCKS + 2) * BLOCK_FRAMES
    record_real(tmp_path / "a.h5", num_frames)
    line, frames = Line(read_session(tmp_path / "a.h5")), moving_frames(num_frames, 32, 0)
    for number in (0, num_frames - 1, BLOCK_FRAMES - 1, BLOCK_FRAMES, *range(0, num_frames, 50), 1):
        assert np.array_equal(line.frame(number), frames[number])


@pytest.mark.parametrize("text", ["", "3", "1:x", "-1:2", "1:2:3", "1:", "1:²"])
def test_bad_place(text: str) -> None:
    with pytest.raises(ConfigError, match="EPISODE:FRAME"):
        parse_place(text)


# --- showing it ---


def test_headless_shows_the_line(
    played: tuple[Path, list[np.ndarray]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import av

    path, frames = played
    report = replay(capsys, str(path), "--video", str(tmp_path / "a.mp4"), "--fps", "20")
    assert report["frames"] == len(frames) and report["line"][-1] == [1, 6]
    assert (report["marks"], report["revisits"], report["episodes"]) == (1, 1, 2)
    assert "first_difference" not in report
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (len(frames), 20)
        for number, picture in enumerate(container.decode(video=0)):
            shown = picture.to_ndarray(format="rgb24")[2::4, 2::4].astype(int)
            assert np.abs(shown - frames[number]).mean() < 8
    assert replay(capsys, str(path), "--line", "0:3")["frames"] == 4
    assert replay(capsys, str(path), "--frames", "5")["frames"] == 6


def test_what_is_said_of_a_frame(played: tuple[Path, list[np.ndarray]]) -> None:
    path, frames = played
    session = ReplaySession(Line(read_session(path)))
    view = session.go_to(11)
    assert (view.step, view.action_name, view.reward_total) == (11, LABMAZE_ACTIONS.names[10 % 4], 5.5)
    assert view.ending == "terminated" and view.marks == (1,)
    assert "mark 1 at frame 10" in view.caption
    assert any(line.endswith("episode 0 frame 11") for line in view.caption)
    assert not any("mark" in line for line in session.go_to(9).caption)
    last = len(frames) - 1
    assert any(line.startswith(f"frame {last} shows frame 10 again") for line in session.go_to(10**9).caption)
    assert session.view.step == last and session.go_to(-5).step == 0


def test_keys_of_the_replay_window(
    played: tuple[Path, list[np.ndarray]], show: Callable[..., Any], tmp_path: Path
) -> None:
    from envs.player.replay_window import ReplayPlayer

    path, frames = played
    last = len(frames) - 1

    def script(player: Any, worker: ReplayWorker) -> Any:
        def at(number: int) -> Callable[[], bool]:
            return lambda: worker.view is not None and worker.view.step == number

        yield lambda: worker.view is not None and worker.view.step > 1
        key("p")
        yield lambda: worker.is_paused
        for name, number in (("home", 0), ("]", 10), ("left", 9), ("right", 10), ("end", last), ("right", last)):
            key(name)
            key(name, is_down=False)
            yield at(number)
            assert worker.view is not None and np.array_equal(worker.view.frame, frames[number])
        key("page up")
        yield at(0)  # 50 frames are five seconds
        key("page down")
        yield at(last)
        key("[")
        yield at(10)
        key("v")
        yield lambda: worker.is_recording
        key("=")
        yield lambda: worker.speed == 2
        key("space")
        yield lambda: not worker.is_paused
        yield at(last)
        yield lambda: worker.is_paused and worker.notice.text == "the end"
        key("v", is_down=False)
        key("v")
        yield lambda: not worker.is_recording

    worker = ReplayWorker(lambda report: ReplaySession(Line(read_session(path))))
    show(ReplayPlayer(worker, "test", folder=tmp_path), worker, script)
    import av

    (video,) = tmp_path.glob("*.mp4")
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames == last - 10 + 1


# --- dreaming it again ---


@pytest.mark.parametrize("before", [0, 3])
def test_a_dream_dreamt_again_is_equal(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: int
) -> None:
    """From its first frame on, and recorded from the middle on."""
    record_dream(bundle, tmp_path / "a.h5", before)
    report = replay(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(bundle))
    assert report["first_difference"] is None
    assert (report["frames_compared"], report["is_same_dreamer"]) == (12, True)
    assert report["begun_from"] == ("state" if before else "context")
    assert report["psnr_mean"] == 60


def test_its_own_checkpoint_is_found_by_name(
    bundle: Path, dreamt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"was dreamt by '{bundle.name}', which is not found" in say_error(capsys, str(dreamt), "--redream")
    monkeypatch.chdir(bundle.parent)
    assert replay(capsys, str(dreamt), "--redream")["first_difference"] is None
    # A setting that is asked for goes before the recorded one.
    report = replay(capsys, str(dreamt), "--redream", "--steps", "2")
    assert not report["is_same_dreamer"] and report["first_difference"] is not None


def test_the_first_frame_that_differs_is_found(
    bundle: Path, dreamt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    line = Line(read_session(dreamt))
    changed = line.frame(7).copy()
    changed[3, 4, 1] ^= 1
    with h5py.File(dreamt, "r+") as file:
        file["episode_00000"]["frames"][7] = changed
    arguments = ["--checkpoint", str(bundle), "--video", str(tmp_path / "a.mp4")]
    report = replay(capsys, str(dreamt), *arguments)
    assert report["first_difference"] == 7 and report["first_difference_place"] == [0, 7]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.width) == (13, 8 * (2 * 32 + GUTTER))


def test_forks_are_dreamt_again(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = PlaySession(DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1), seed=1)
    session.start_session(tmp_path / "a.h5")
    for step in range(30):
        session.step(step % 7)
    session.rewind(5)
    for _ in range(4):
        session.step(2)
    session.close()
    report = replay(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(bundle))
    assert [stop[0] for stop in report["line"]] == [0, 1]
    assert report["first_difference"] is None and report["frames_compared"] == report["frames"] - 1


def test_a_kept_first_moment_is_dreamt_again(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The context that is recorded is that of the dream, not of the one begun meanwhile."""
    session = PlaySession(DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1), seed=1)
    session.keep()
    session.reset(2)
    session.return_to_kept()
    session.start_session(tmp_path / "a.h5")
    for _ in range(3):
        session.step(1)
    session.close()
    report = replay(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(bundle))
    assert report["first_difference"] is None and report["begun_from"] == "state"


@pytest.fixture
def other_bundle(bundle: Path, make_denoiser: Callable[..., Any], tmp_path: Path) -> Path:
    """The same world, with other weights."""
    parts = {"codec": load_codec(bundle), "denoiser": make_denoiser(seed=5), "openings": load_openings(bundle)}
    save_bundle(tmp_path / "other", **parts, info=load_info(bundle))
    return tmp_path / "other"


@pytest.mark.parametrize("before", [0, 3])
def test_another_checkpoint_dreams_it_in_its_own_way(
    bundle: Path, other_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: int
) -> None:
    """From the context where there is one, else from the first frames: the packed dream is not its own."""
    record_dream(bundle, tmp_path / "a.h5", before)
    report = replay(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(other_bundle))
    given = 8 if before else 1
    assert report["begun_from"] == ("frames" if before else "context")
    assert report["first_difference"] == given and report["frames_compared"] == 13 - given
    assert not report["is_same_dreamer"] and report["psnr_mean"] < 60


def test_a_real_session_is_dreamt_from_its_first_frames(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_real(tmp_path / "a.h5", 20)
    arguments = [str(tmp_path / "a.h5"), "--checkpoint", str(bundle)]
    report = replay(capsys, *arguments)
    assert (report["source"], report["begun_from"], report["frames_compared"]) == ("real", "frames", 12)
    assert report["first_difference"] == 8
    assert replay(capsys, *arguments, "--context", "3")["first_difference"] == 3
    assert "this line has 20 frames, and 20 of them are given" in say_error(capsys, *arguments, "--context", "20")
    line = Line(read_session(tmp_path / "a.h5"))
    redream = Redream(line, DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1), 4)
    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    given = {"frames": np.stack([line.frame(i) for i in range(4)]), "actions": line.actions[:3], "dream_seed": 0}
    env.reset(seed=0, options=given)
    for number in range(4, 8):
        redream.dream_on()
        assert np.array_equal(redream.frame(number), env.step(int(line.actions[number - 1]))[0])


def test_the_window_dreams_up_to_where_it_jumps(dreamt: Path, bundle: Path, show: Callable[..., Any]) -> None:
    from envs.player.replay_window import ReplayPlayer

    texts = set()

    class SlowDream(DreamEnv):
        def step(self, action: Any) -> Any:
            time.sleep(0.05)
            return super().step(action)

    def make(report: Any) -> ReplaySession:
        env = SlowDream(checkpoint=str(bundle), device="cpu", num_steps=1)
        return ReplaySession(Line(read_session(dreamt)), Redream(Line(read_session(dreamt)), env))

    def script(player: Any, worker: ReplayWorker) -> Any:
        yield lambda: worker.view is not None
        key("p")
        yield lambda: worker.is_paused and worker.view is not None and worker.view.step < 12
        key("end")
        yield lambda: texts.add(worker.notice.text) or worker.view is not None and worker.view.step == 12
        assert worker.view is not None
        assert any(text.startswith("dreaming frame ") and text.endswith(" of 12") for text in texts)
        left, right = split(worker.view.frame)
        assert np.array_equal(left, right)
        assert "dreamt again: equal up to frame 12" in worker.view.caption
        key("home")
        yield lambda: worker.view is not None and worker.view.step == 0
        key("p", is_down=False)
        key("p")
        yield lambda: worker.notice.text == "the end; dreamt again: equal up to frame 12"

    worker = ReplayWorker(make)
    show(ReplayPlayer(worker, "test"), worker, script)


def test_side_by_side() -> None:
    left, right = moving_frames(2, 32, 0)
    empty = compose(left, right, 0.0)[:, 32 + GUTTER // 2]
    for likeness, rows in ((-3.0, 0), (0.0, 0), (20.0, 16), (40.0, 32), (60.0, 32)):
        picture = compose(left, right, likeness)
        found = split(picture)
        assert np.array_equal(found[0], left) and np.array_equal(found[1], right)
        is_full = (picture[:, 32 + GUTTER // 2] != empty).any(1)
        assert is_full.tolist() == [False] * (32 - rows) + [True] * rows


# --- what is refused ---


def test_what_cannot_be_shown(played: tuple[Path, list[np.ndarray]], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = played
    assert "no session" in say_error(capsys, str(path.parent / "none.h5"))
    assert "its episodes end at 0:40, 1:6" in say_error(capsys, str(path), "--line", "3:0")
    assert "EPISODE:FRAME" in say_error(capsys, str(path), "--line", "x")
    damaged = path.parent / "damaged.h5"
    damaged.write_bytes(path.read_bytes()[:3000])
    assert "is damaged or truncated" in say_error(capsys, str(damaged))
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["episode_00001"]["frames"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 255
    damaged.write_bytes(content)
    assert "cannot read" in say_error(capsys, str(damaged))


def test_a_recording_is_no_session(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a recording and no session" in say_error(capsys, str(recording / "test-00000.h5"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"world": "Rooms"}, "shows the world Rooms, and world dreams LabMaze"),
        ({"action_names": ("noop", "go")}, "shows the actions noop, go"),
        ({"image_size": 16}, "shows frames of a size of 16, and world dreams 32"),
    ],
)
def test_a_session_of_something_else(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], text: str
) -> None:
    record_real(tmp_path / "a.h5", **changes)
    err = say_error(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(bundle))
    assert text in err and "give a checkpoint of its own world" in err


def test_a_real_session_has_no_checkpoint_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_real(tmp_path / "a.h5")
    assert "shows the real world" in say_error(capsys, str(tmp_path / "a.h5"), "--redream")


def test_weights_that_have_changed_since(
    bundle: Path, other_bundle: Path, dreamt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (other_bundle.parent / "moved").mkdir()
    shutil.copytree(other_bundle, other_bundle.parent / "moved" / bundle.name)
    monkeypatch.chdir(other_bundle.parent / "moved")
    assert "give --checkpoint to dream it with others" in say_error(capsys, str(dreamt), "--redream")


def test_a_packed_dream_that_is_damaged(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_dream(bundle, tmp_path / "a.h5", before=2)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["episode_00000"]["start_state"][:100] = 0
    assert "not a dream" in say_error(capsys, str(tmp_path / "a.h5"), "--checkpoint", str(bundle))


@pytest.mark.parametrize(
    "arguments",
    [["--real"], ["--record", "x.h5"], ["--actions", "w"], ["--steps", "2"], ["--redream", "--context", "0"]],
    ids=" ".join,
)
def test_options_that_do_not_go_with_a_replay(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    name = next(word for word in reversed(arguments) if word.startswith("--"))
    assert name in say_error(capsys, "a.h5", *arguments)


@pytest.mark.parametrize("arguments", [["--line", "0:1"], ["--redream"]], ids=" ".join)
def test_options_of_a_replay_alone(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert play.main(["--headless", *arguments]) == 2
    assert "goes only with --replay" in capsys.readouterr().err
