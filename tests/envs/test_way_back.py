"""Marks, revisits, rewinding and kept moments: by a stub whose frames tell all it is, and by a real small dream."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.data.sessions import Place, read_session
from envs.dream import DreamEnv
from envs.player.session import PlaySession
from envs.player.timeline import KEPT_S, Timeline
from envs.player.view import psnr
from tests.stub_play import RewindableEnv, StubEnv, key
from worldmodel.errors import StateError, StorageError


def test_the_timeline_goes_back_to_moments_and_forgets_what_is_too_old() -> None:
    class Counter:
        value = 0

        def snapshot(self) -> int:
            return self.value

        def restore(self, snapshot: int) -> None:
            self.value = snapshot

    env = Counter()
    line: Timeline[int] = Timeline(env, 10.0)
    most = round(10 * KEPT_S)
    for number in range(3 * most):
        env.value = number
        line.add(number)
        assert len(line) == min(number, most)
    newest = 3 * most - 1
    assert [line.look(steps) for steps in (0, 1, most, 9 * most)] == [newest, newest - 1, newest - most, newest - most]
    for steps in (25, 3, 0):
        before = line.look(0)
        assert line.look(steps) == before - steps
        shown = line.go_back(steps)
        assert env.value == shown == line.look(0)
        assert before - steps - 10 < shown <= before - steps
    assert line.go_back(10 * most) >= newest - most
    line.clear()
    assert len(line) == 0


def test_what_follows_a_rewind_is_what_would_have_followed() -> None:
    env, straight = RewindableEnv(), RewindableEnv()
    session, other = PlaySession(env), PlaySession(straight)
    for action in range(60):
        session.step(action % 3)
    view = session.rewind(17)
    assert 33 <= view.step <= 43
    for action in range(view.step):
        other.step(action % 3)
    assert np.array_equal(view.frame, other.view.frame)
    assert view.reward_total == other.view.reward_total
    assert np.array_equal(session.step(2).frame, other.step(2).frame)
    assert session.look_back(1).step == view.step


def test_a_kept_moment_can_be_returned_to_again_and_again() -> None:
    session = PlaySession(RewindableEnv(), seed=4)
    with pytest.raises(StateError, match="no moment was kept: F5 keeps one"):
        session.return_to_kept()
    for _ in range(5):
        session.step(1)
    kept = session.keep()
    session.step(2)
    session.reset(9)
    for _ in range(2):
        view = session.return_to_kept()
        assert (view.seed, view.step) == (4, 5)
        assert np.array_equal(view.frame, kept.frame)
        assert session.step(1).step == 6


def test_a_world_without_snapshots_says_that_it_cannot_go_back() -> None:
    session = PlaySession(StubEnv())
    assert not session.can_rewind
    assert session.steps_back == 0
    for call in (lambda: session.rewind(1), lambda: session.look_back(1), session.keep, session.return_to_kept):
        with pytest.raises(StateError, match="this world cannot go back"):
            call()


def test_where_nobody_rewinds_no_moment_is_kept() -> None:
    class Env(RewindableEnv):
        def snapshot(self) -> Any:
            raise AssertionError("a moment was kept")

    session = PlaySession(Env(), keeps_way_back=False)
    for _ in range(40):
        session.step(1)
    assert not session.can_rewind


def test_marks_are_chosen_and_come_back_to() -> None:
    session = PlaySession(RewindableEnv())
    with pytest.raises(StateError, match="there is no mark 0; there are none: M makes one"):
        session.come_back()
    session.step(1)
    assert session.mark().number == 1
    with pytest.raises(StateError, match="this is mark 1 itself"):
        session.come_back()
    assert session.view.likeness == 60
    session.step(3)
    assert session.view.marks == (1,)
    assert session.view.likeness is not None and session.view.likeness < 60
    session.mark()
    session.step(0)
    assert session.view.chosen_mark == 2
    session.choose_mark(1)
    mark, likeness = session.come_back()
    assert mark.number == 1
    assert likeness == session.view.likeness == psnr(mark.frame, session.view.frame)
    with pytest.raises(StateError, match="there is no mark 7; there are 1, 2"):
        session.choose_mark(7)
    session.reset(3)
    assert session.view.marks == () and session.view.likeness is None


def test_marks_ahead_of_a_rewind_are_gone() -> None:
    session = PlaySession(RewindableEnv())
    for step in range(40):
        session.step(1)
        if step in (5, 35):
            session.mark()
    assert session.rewind(10).marks == (1,)
    assert session.view.chosen_mark == 1


def test_a_session_holds_what_was_seen_through_resets_rewinds_and_kept_moments(tmp_path: Path) -> None:
    session = PlaySession(RewindableEnv(), seed=2)
    session.start_session(tmp_path / "a.h5")
    seen = [session.view.frame]
    for step in range(40):
        seen.append(session.step(step % 4).frame)
        if step == 9:
            session.mark()
        if step == 30:
            session.keep()
    view = session.rewind(5)
    seen = [*seen[: view.step + 1], *(session.step(2).frame for _ in range(6))]
    session.come_back()
    session.return_to_kept()
    last = session.step(3).frame
    session.reset(8)
    fresh = [session.view.frame, session.step(1).frame]
    made = session.stop_session()

    assert made == tmp_path / "a.h5"
    found = read_session(made)
    assert len(found.episodes) == 4
    (revisit,) = found.revisits
    assert revisit.first == Place(0, 10)
    assert np.array_equal(found.read_line(revisit.second)["frames"], np.stack(seen))
    assert np.array_equal(found.read_line(Place(2, 1))["frames"][-1], last)
    assert found.depth(Place(2, 1)) == 32
    assert np.array_equal(found.read_line(Place(3, 1))["frames"], np.stack(fresh))
    assert found.origins[3].start["seed"] == 8


def test_a_session_that_cannot_be_written_ends_and_play_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PlaySession(RewindableEnv())
    session.start_session(tmp_path / "a.h5")
    session.step(1)
    from envs.data.session_writer import SessionWriter

    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(SessionWriter, "add", fail)
    with pytest.raises(StorageError, match="disk full"):
        session.step(1)
    assert session.view.step == 2
    assert not session.is_session_open
    assert session.step(1).step == 3


def test_a_dream_recorded_from_its_middle_begins_with_its_state(bundle: Path, tmp_path: Path) -> None:
    """What was recorded can be dreamt again, also from a session begun with a key in the middle of play."""
    from envs.data.episodes import read_episode
    from worldmodel.state import WorldState

    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    session = PlaySession(env, seed=1)
    for _ in range(3):
        session.step(1)
    session.start_session(tmp_path / "a.h5")
    frames = [session.step(action).frame for action in (1, 3, 2)]
    session.stop_session()
    found = read_session(tmp_path / "a.h5")
    assert found.info.source == "dream"
    assert found.info.checkpoint_hash == env.identity["checkpoint_hash"]
    state = read_episode(found.episodes[0], fields=("start_state",))["start_state"]
    env.restore(dataclasses.replace(env.snapshot(), state=WorldState.from_bytes(state.tobytes(), "cpu")))
    assert all(np.array_equal(env.step(action)[0], frame) for action, frame in zip((1, 3, 2), frames, strict=True))


def test_keys_of_the_way_back(window: Callable[..., Any], tmp_path: Path) -> None:
    env = RewindableEnv()

    def script(player: Any, worker: Any) -> Any:
        yield lambda: worker.view is not None and worker.view.step > 3
        key("b")
        yield lambda: worker.is_session_open
        key("m")
        yield lambda: worker.view.marks == (1,)
        key("f5")
        yield lambda: "kept step" in worker.notice.text
        step = worker.view.step
        yield lambda: worker.view.step > step + 25
        key("n")
        yield lambda: "back at mark 1" in worker.notice.text
        here = worker.view.step
        key("backspace")
        yield lambda: worker.is_rewinding and worker.view.step < here - 4
        key("backspace", is_down=False)
        yield lambda: not worker.is_rewinding
        yield lambda: "on from step" in worker.notice.text and worker.view.step < here
        step = worker.view.step
        yield lambda: worker.view.step > step + 2
        key("f9")
        yield lambda: "back at step" in worker.notice.text
        key("=")
        yield lambda: worker.speed == 2
        key("-")
        key("-")
        yield lambda: worker.speed == 0.5
        step = worker.view.step
        yield lambda: worker.view.step > step
        key("b")
        yield lambda: not worker.is_session_open

    window(script, env)
    (session,) = [read_session(path) for path in tmp_path.glob("*.h5")]
    assert len(session.episodes) >= 3
    assert session.revisits[0].first == session.marks[1].place


def test_a_row_of_presses_is_one_new_dream_and_keys_pressed_while_loading_are_dropped(
    window: Callable[..., Any],
) -> None:
    env = StubEnv(step_s=0.2)

    def make(report: Any) -> PlaySession:
        time.sleep(0.5)
        return PlaySession(env)

    def script(player: Any, worker: Any) -> Any:
        for name in ("r", "r", "m", "p", "v"):
            key(name)
        yield lambda: worker.view is not None and worker.view.step > 0
        assert env.seeds == [0] and not worker.is_paused and not worker.is_recording
        for _ in range(5):
            key("r")
        yield lambda: len(env.seeds) > 1
        step = worker.view.step
        yield lambda: worker.view.step > step

    window(script, make=make)
    assert env.seeds == [0, 1]


class QuickEnv(RewindableEnv):
    """Steps 40 times a second, so that a quarter of that is not slow for a test."""

    fps = 40


@pytest.mark.parametrize(("name", "presses"), [("p", 1), ("-", 2), ("=", 2)], ids=["paused", "slow", "fast"])
def test_the_keys_of_the_way_back_work_at_every_pace(window: Callable[..., Any], name: str, presses: int) -> None:
    env = QuickEnv()

    def told(worker: Any, text: str) -> int:
        """Return the number of the step in a notice of these words, -1 where there is another one."""
        found = re.match(rf"{text} step (\d+)", worker.notice.text)
        return int(found.group(1)) if found else -1

    def script(player: Any, worker: Any) -> Any:
        yield lambda: worker.view is not None and worker.view.step > 50
        for _ in range(presses):
            key(name)
        yield lambda: worker.is_paused if name == "p" else worker.speed != 1
        if name == "-":
            yield lambda: worker.speed == 0.25
        assert not worker.is_rewinding

        # A tap, then a key that is held, each of which shows the way back.
        for is_held in (False, True):
            worker.say("")
            here, shown = worker.view.step, []
            key("backspace")
            if is_held:
                yield lambda here=here, shown=shown: shown.append(worker.view.step) or worker.view.step < here - 5
                assert worker.is_rewinding and shown == sorted(shown, reverse=True)
            key("backspace", is_down=False)
            yield lambda: told(worker, "on from") >= 0
            assert told(worker, "on from") < here and not worker.is_rewinding
            assert worker.is_paused is (name == "p")

        key("f5")
        yield lambda: told(worker, "kept") >= 0
        kept, count = told(worker, "kept"), len(env.actions)
        if name == "p":
            assert worker.view.step == kept
            key("p")
        yield lambda: len(env.actions) > count + 5
        if name == "p":
            key("p")
            yield lambda: worker.is_paused
        key("f9")
        yield lambda: told(worker, "back at") == kept
        count = len(env.actions)
        if name == "p":
            until_s = time.monotonic() + 0.2
            yield lambda: time.monotonic() > until_s
            assert worker.view.step == kept and len(env.actions) == count
            key("p")
        yield lambda: kept < worker.view.step <= kept + 20

    assert window(script, env).error is None
