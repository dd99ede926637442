"""Sessions as tests: what is come back to, what is given before, and whose tests they are."""

from pathlib import Path

import numpy as np
import pytest

from envs.data.session_writer import SessionWriter
from envs.data.sessions import SessionInfo, read_session
from envs.dream import DreamEnv
from envs.player.session import PlaySession
from envs.worlds.registry import get_world
from tests.memory_sessions import LAP, SIZE, TURN_LEFT, see_room, spin_poses, write_session, write_spins
from train.memory.cases import check_tests, cut_session, load_tests
from train.memory.replay import dream_short, dream_whole, replay
from worldmodel.errors import DataError
from worldmodel.world import WorldModel


def make_frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize(
    ("pairs", "least", "context"),
    [
        ([(40, 90)], 32, 41),  # up to the mark
        ([(40, 90), (10, 95)], 32, 32),  # up to the first mark, and 32 frames at least
        ([(3, 90)], 20, 20),
        ([(3, 12), (40, 90)], 32, 12),  # and never a frame that is to be dreamt
    ],
)
def test_what_is_given(pairs: list[tuple[int, int]], least: int, context: int, tmp_path: Path) -> None:
    frames, actions = make_frames(100), np.arange(99) % 7
    (test,) = load_tests(write_session(tmp_path / "a.h5", frames, actions, pairs), least)
    assert test.context == context and test.name == "a" and test.is_real
    assert [(pair.first, pair.second) for pair in test.pairs] == sorted(pairs, key=lambda pair: pair[1])
    given = test.read()
    last = max(second for _, second in pairs)
    np.testing.assert_array_equal(given.frames, frames[: last + 1])
    np.testing.assert_array_equal(given.actions, actions[:last])
    assert test.num_frames == last + 1


def test_settings_may_say_what_is_given(tmp_path: Path) -> None:
    frames, actions = make_frames(50), [0] * 49
    path = write_session(tmp_path / "a.h5", frames, actions, [(2, 45)], kind="mind", settings={"context": 37})
    (test,) = load_tests(path)
    assert test.context == 37 and test.pairs[0].kind == "mind" and test.pairs[0].way == "open return"


def test_a_dream_is_given_what_it_was_given(tmp_path: Path) -> None:
    lead, frames = make_frames(6, 1), make_frames(30)
    frames[0] = lead[-1]
    before, actions = np.array([1, 2, 3, 1, 2], np.uint8), np.arange(29) % 7
    path = write_session(tmp_path / "a.h5", frames, actions, [(0, 25)], source="dream", context=(lead, before))
    (test,) = load_tests(path)
    assert (test.context, test.lead, test.is_real) == (6, 5, False)
    assert [(pair.first, pair.second) for pair in test.pairs] == [(5, 30)]
    given = test.read()
    np.testing.assert_array_equal(given.frames, np.concatenate([lead, frames[1:26]]))
    np.testing.assert_array_equal(given.actions, [*before, *actions[:25]])


def test_each_line_of_play_is_a_test(tmp_path: Path) -> None:
    info = SessionInfo("LabMaze", get_world("LabMaze").actions.names, SIZE, 15.0, "real")
    writer, frames = SessionWriter(tmp_path / "a.h5", info), make_frames(31)
    writer.begin(frames[0], start={})
    for number in range(1, 31):
        writer.add(number % 7, frames[number], 0.0, False, False)
        if number == 5:
            early = writer.mark()
        if number == 20:
            writer.revisit(early)
            fork = writer.place
    writer.revisit(early)
    branch = np.concatenate([frames[20:21], make_frames(10, 2)])
    writer.begin(branch[0], start={}, parent=fork)
    for number in range(1, 11):
        writer.add(0, branch[number], 0.0, False, False)
    writer.revisit(early)
    writer.close()

    first, second = cut_session(read_session(tmp_path / "a.h5"), least=4)
    assert [(pair.first, pair.second) for pair in first.pairs] == [(5, 20), (5, 30)]
    assert [(pair.first, pair.second) for pair in second.pairs] == [(5, 30)]
    assert [test.name for test in (first, second)] == ["a-1", "a-2"]
    np.testing.assert_array_equal(first.read().frames, frames)
    np.testing.assert_array_equal(second.read().frames, np.concatenate([frames[:21], branch[1:]]))


def test_how_a_player_came_back_is_told_by_the_actions(tmp_path: Path) -> None:
    actions = [3] * 60 + [1] * 9 + [2] * 9 + [3] * 60
    frames = make_frames(len(actions) + 1)
    pairs = [(60, 78), (78, 138)]
    (test,) = load_tests(write_session(tmp_path / "a.h5", frames, actions, pairs, kind="player"))
    assert [pair.way for pair in test.pairs] == ["open return", "loop"]
    assert [pair.kind for pair in test.pairs] == ["player"] * 2


def test_what_is_no_test_is_refused(tmp_path: Path) -> None:
    write_session(tmp_path / "none" / "a.h5", make_frames(5), [0] * 4, [])
    with pytest.raises(DataError, match="holds 1 sessions and no frame that comes back: press M at a frame and N when"):
        load_tests(tmp_path / "none")
    with pytest.raises(DataError, match="no folder"):
        load_tests(tmp_path / "missing")
    path = write_session(tmp_path / "cut" / "a.h5", make_frames(60), [0] * 59, [(5, 50)])
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"a\.h5 is damaged"):
        load_tests(tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "Rooms"}, r"a\.h5 was played in Rooms; labmaze dreams of LabMaze: give tests of that world"),
        ({"action_names": ("noop", "go")}, r"a\.h5 has the actions noop, go; labmaze takes noop, forward, .*: record"),
    ],
)
def test_tests_of_something_else_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    tests = load_tests(write_session(tmp_path / "a.h5", make_frames(50), [1] * 49, [(5, 40)], **changes))
    with pytest.raises(DataError, match=message):
        check_tests(tests, get_world("LabMaze"), ("LabMaze",), SIZE, "labmaze")


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    tests = load_tests(write_session(tmp_path / "a.h5", make_frames(50), [1] * 49, [(5, 40)]))
    check_tests(tests, get_world("LabMaze"), ("LabMaze",), SIZE, "labmaze")
    with pytest.raises(DataError, match="has frames of 32 pixels; labmaze makes 64: make tests with --image-size 64"):
        check_tests(tests, get_world("LabMaze"), ("LabMaze",), 64, "labmaze")


def test_a_session_that_was_played_is_a_test_and_its_own_world_dreams_it_again(bundle: Path, tmp_path: Path) -> None:
    play = PlaySession(DreamEnv(checkpoint=str(bundle), device="cpu"), seed=4)  # type: ignore[arg-type]
    play.start_session(tmp_path / "walk.h5")
    for step in range(24):
        play.step((3, 1, 4)[step % 3])
        if step == 6:
            play.mark()
    play.come_back()
    play.close()

    tests = load_tests(tmp_path)
    (test,) = tests
    assert test.context == 8 and (test.pairs[0].first, test.pairs[0].second) == (14, 31)
    seed = test.session.origins[0].start["dream_seed"]
    model = WorldModel.load(bundle, device="cpu")
    (shown,) = replay(model, tests, dream_whole, batch_size=4, seed=int(seed))
    np.testing.assert_array_equal(shown.pictures, shown.given.frames)
    (other,) = replay(model, tests, dream_whole, batch_size=4, seed=int(seed) + 1)
    assert not np.array_equal(other.pictures, shown.pictures)


def test_tests_dreamt_together_are_dreamt_as_alone(bundle: Path, tmp_path: Path) -> None:
    write_spins(tmp_path, 3, pairs=((5, 45), (10, 50)))
    frames = see_room(spin_poses(7, 49))
    write_session(tmp_path / "z.h5", frames, [TURN_LEFT] * 24 + [0] * 24, [(5, 48)])
    tests, model = load_tests(tmp_path), WorldModel.load(bundle, device="cpu")
    counted: list[int] = []
    together = {
        each.number: each.pictures
        for each in replay(model, tests, dream_whole, batch_size=8, seed=3, on_frames=counted.append)
    }
    assert sorted(together) == [0, 1, 2, 3] and sum(counted) == 4 * (51 - 32)
    alone = {each.number: each.pictures for each in replay(model, tests, dream_whole, batch_size=1, seed=3)}
    for number, pictures in together.items():
        assert len(pictures) == tests[number].num_frames
        np.testing.assert_array_equal(pictures[:32], tests[number].read().frames[:32])
        assert np.abs(pictures.astype(int) - alone[number]).max() <= 2  # rounding differs by batch


def test_a_memory_cut_short_knows_nothing_older(bundle: Path, tmp_path: Path) -> None:
    poses = spin_poses(0)
    frames = see_room(poses)
    actions = [TURN_LEFT] * (2 * LAP)
    write_session(tmp_path / "a.h5", frames, actions, [(5, 45)])
    changed = frames.copy()
    changed[: 32 - 8] = make_frames(32 - 8, 5)
    write_session(tmp_path / "b.h5", changed, actions, [(5, 45)])
    tests, model = load_tests(tmp_path), WorldModel.load(bundle, device="cpu")
    for dream, is_same in ((dream_short, True), (dream_whole, False)):
        shown = [next(iter(replay(model, [test], dream, batch_size=1, seed=0))).pictures[32:] for test in tests]
        assert len(shown[0]) == 46 - 32
        assert np.array_equal(*shown) == is_same
