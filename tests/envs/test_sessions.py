"""Sessions on disk: what is played is what is read, whatever happens to who plays."""

import os
from pathlib import Path

import numpy as np
import pytest

from envs.data.episodes import open_shards, read_episode
from envs.data.journal import Journal, is_being_written, read_journal
from envs.data.session_files import finish
from envs.data.session_writer import SessionWriter
from envs.data.sessions import Place, Revisit, SessionInfo, read_session, read_sessions
from envs.fields import Field
from tests.kill_sessions import kill_after
from worldmodel.errors import ConfigError, DataError, StorageError

SIZE = 16
INFO = SessionInfo("LabMaze", ("noop", "go"), SIZE, 15.0, "dream", "labmaze", "abc", {"num_steps": 2}, "2026-01-01")


def make_frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def play(writer: SessionWriter, frames: np.ndarray, parent: Place | None = None) -> None:
    """Play an episode whose actions are 0 1 0 1 ... and whose rewards are the numbers of the steps."""
    writer.begin(frames[0], start={"seed": 3, "opening": 2}, parent=parent)
    for i, frame in enumerate(frames[1:]):
        writer.add(i % 2, frame, float(i), i == 7, False)


def test_what_is_played_is_read(tmp_path: Path) -> None:
    frames, context = make_frames(21), make_frames(4, 1)
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    start = {"seed": 3, "opening": 2}
    writer.begin(frames[0], start=start, context_frames=context, context_actions=np.array([1, 0, 1], np.uint8))
    for i, frame in enumerate(frames[1:]):
        writer.add(i % 2, frame, i / 3, i == 7, i == 9)
    writer.note("compiled from here on")
    assert writer.close() == tmp_path / "a.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]

    session = read_session(tmp_path / "a.h5")
    assert session.info == INFO
    assert session.origins[0].start == start
    assert [text for _, text in session.notes] == ["compiled from here on"]
    names = ("frames", "actions", "rewards", "terminated", "truncated", "time_s", "context_frames", "context_actions")
    found = read_episode(session.episodes[0], fields=names)
    assert np.array_equal(found["frames"], frames)
    assert np.array_equal(found["actions"], np.arange(20) % 2)
    assert np.array_equal(found["rewards"], np.float32(np.arange(20) / 3))
    assert np.flatnonzero(found["terminated"]).tolist() == [7]
    assert np.flatnonzero(found["truncated"]).tolist() == [9]
    assert np.all(np.diff(found["time_s"]) >= 0)
    assert np.array_equal(found["context_frames"], context)
    assert found["context_actions"].tolist() == [1, 0, 1]


def test_making_a_long_session_tells_how_far_it_is(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    play(writer, make_frames(500))
    shares: list[float] = []
    assert writer.close(shares.append) == tmp_path / "a.h5"
    assert len(shares) > 5 and shares == sorted(shares) and shares[-1] == 1
    assert sum(0.2 < share < 0.8 for share in shares) >= 3


def test_a_session_is_a_recording(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    play(writer, make_frames(9))
    writer.close()
    (shard,) = open_shards(tmp_path, "train", SIZE, 2)
    assert shard.world == "LabMaze"
    assert shard.settings["source"] == "dream"
    assert [(episode.num_frames, episode.seed) for episode in shard.episodes] == [(9, 3)]


def test_marks_revisits_and_forks(tmp_path: Path) -> None:
    first, second = make_frames(11), make_frames(6, 1)
    second[0] = first[4]
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    writer.begin(first[0], start={"seed": 1})
    for i, frame in enumerate(first[1:], 1):
        writer.add(0, frame, 0.0, False, False)
        if i == 2:
            early = writer.mark()
        if i == 7:
            late = writer.mark()
    writer.revisit(late)
    play(writer, second, Place(0, 4))
    writer.revisit(early, "loop")
    writer.close()

    session = read_session(tmp_path / "a.h5")
    assert {n: mark.place for n, mark in session.marks.items()} == {1: Place(0, 2), 2: Place(0, 7)}
    there, fork = Revisit(Place(0, 7), Place(0, 10)), Revisit(Place(0, 2), Place(1, 5), "loop")
    assert session.revisits == (there, fork)
    assert session.line(Place(1, 5)) == [Place(0, 4), Place(1, 5)]
    assert session.depth(Place(1, 5)) == 9
    assert session.is_before(Place(0, 4), Place(1, 5))
    assert not session.is_before(Place(0, 7), Place(1, 5))
    line = session.read_line(Place(1, 5), ("frames", "actions", "rewards"))
    assert np.array_equal(line["frames"], np.concatenate([first[:5], second[1:]]))
    assert line["actions"].tolist() == [0] * 4 + [0, 1, 0, 1, 0]
    assert len(line["rewards"]) == 9


def test_fields_of_the_world_are_kept(tmp_path: Path) -> None:
    fields = {"pose": Field("float32", "frame", 2), "blocked": Field("bool", "step", 1)}
    fields["layout"] = Field("uint8", "episode", 2)
    writer = SessionWriter(tmp_path / "a.h5", INFO, fields)
    frames, poses, layout = (
        make_frames(3),
        np.float32([[1, 2, 3], [0.1, 0.2, 0.3], [4, 5, 6]]),
        np.eye(3, dtype=np.uint8),
    )
    writer.begin(frames[0], start={}, values={"pose": poses[0], "layout": layout})
    for i in (1, 2):
        writer.add(1, frames[i], 0.0, False, False, {"pose": poses[i], "blocked": i == 2})
    writer.close()
    found = read_episode(read_session(tmp_path / "a.h5").episodes[0], fields=("pose", "blocked", "layout"))
    assert np.array_equal(found["pose"], poses)
    assert found["blocked"].tolist() == [False, True]
    assert np.array_equal(found["layout"], layout)


def test_an_episode_without_a_step_is_left_out_and_a_session_without_one_is_no_file(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    writer.begin(make_frames(1)[0], start={})
    play(writer, make_frames(3))
    writer.mark()
    writer.close()
    session = read_session(tmp_path / "a.h5")
    assert list(session.episodes) == [1]
    assert session.marks[1].place == Place(1, 2)

    writer = SessionWriter(tmp_path / "b.h5", INFO)
    writer.begin(make_frames(1)[0], start={})
    writer.mark()
    assert writer.close() is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.slow
def test_what_was_played_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    """A few kills; `python -m tests.kill_sessions` does many."""
    found = [kill_after(0.03 * turn, tmp_path / f"{turn}.h5", seed=turn) for turn in range(5)]
    assert sum(each.told > 0 for each in found) >= 2
    assert all(each.lost == 0 and each.is_equal for each in found)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 40, 300])
def test_a_damaged_end_is_cut_off(cut: int, tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    frames = make_frames(9)
    play(writer, frames)
    content = (tmp_path / "a.journal").read_bytes()
    (tmp_path / "b.journal").write_bytes(content[:-cut])
    found = read_episode(read_session(tmp_path / "b.journal").episodes[0])
    assert np.array_equal(found["frames"], frames[: len(found["frames"])])
    assert len(found["frames"]) >= 8 - cut // 300

    flipped = bytearray(content)
    flipped[-cut] ^= 1
    (tmp_path / "c.journal").write_bytes(flipped)
    assert read_session(tmp_path / "c.journal").episodes[0].num_frames >= 8 - cut // 300


def test_a_session_that_is_being_played_is_left_alone(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    play(writer, make_frames(3))
    assert is_being_written(tmp_path / "a.journal")
    with pytest.raises(DataError, match="is being written: close the player first"):
        finish(tmp_path / "a.journal")
    with pytest.raises(DataError, match="holds no session"):
        read_sessions(tmp_path)
    writer.close()
    assert len(read_sessions(tmp_path)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_session_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SessionWriter(tmp_path / "a.h5", INFO)
    frames = make_frames(5)
    play(writer, frames[:4])

    def write(descriptor: int, content: bytes) -> int:
        with open("/dev/full", "wb", buffering=0) as full:
            return full.write(content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(
            StorageError, match=r"disk full while writing .*a\.journal: what was written stays readable"
        ):
            writer.add(0, frames[4], 0.0, False, False)
    found = read_episode(read_session(tmp_path / "a.journal").episodes[0])
    assert np.array_equal(found["frames"], frames[:4])


def test_what_is_no_session_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"session file 'a\.mp4' must end in \.h5"):
        SessionWriter(Path("a.mp4"), INFO)
    with pytest.raises(DataError, match="no session"):
        read_session(tmp_path / "none.h5")
    with pytest.raises(DataError, match="no folder"):
        read_sessions(tmp_path / "none")
    (tmp_path / "a.h5").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="is damaged or truncated"):
        read_session(tmp_path / "a.h5")
    (tmp_path / "a.journal").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="is no journal"):
        finish(tmp_path / "a.journal")
    with pytest.raises(StorageError, match="is there already: give another name"):
        SessionWriter(tmp_path / "a.h5", INFO)
    with pytest.raises(ConfigError, match="source must be dream or real; got 'film'"):
        SessionInfo("LabMaze", ("noop",), SIZE, 15.0, "film")


def test_revisits_that_point_outside_are_refused(tmp_path: Path) -> None:
    for name, second in (("a", Place(0, 99)), ("b", Place(3, 0)), ("c", Place(0, 1))):
        journal = Journal(tmp_path / f"{name}.journal")
        writer = SessionWriter(tmp_path / f"_{name}.h5", INFO)
        play(writer, make_frames(5))
        for header, payload in read_journal(tmp_path / f"_{name}.journal"):
            journal.append(header, payload)
        journal.append({"kind": "revisit", "revisit": [Place(0, 2), second, "player"], "time_s": 0.0})
        journal.close()
        with pytest.raises(DataError, match="has no frame|does not lie on the way|has no episode"):
            read_session(tmp_path / f"{name}.journal")


def test_a_session_of_a_test_scene_is_kept_from_training_and_the_clock_is_given(tmp_path: Path) -> None:
    def record(path: Path) -> bytes:
        frame, frames = 0, make_frames(9)
        writer = SessionWriter(path, INFO, split="test", policy="loop", clock=lambda: frame / 10)
        writer.begin(frames[0], start={})
        for frame in range(1, 9):
            writer.add(0, frames[frame], 0.0, False, False)
        writer.close()
        return path.read_bytes()

    assert record(tmp_path / "a.h5") == record(tmp_path / "b.h5")
    session = read_session(tmp_path / "a.h5")
    assert session.episodes[0].policy == "loop" and [s.split for s in open_shards(tmp_path)] == ["test", "test"]
    times = read_episode(session.episodes[0], fields=("time_s",))["time_s"]
    np.testing.assert_allclose(times, np.arange(9) / 10)
    with pytest.raises(ConfigError, match="split must be one of"):
        SessionWriter(tmp_path / "c.h5", INFO, split="held")
