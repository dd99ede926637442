"""Scores of tests of memory: who remembers and obeys passes; a picture that stands still, and noise, do not."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.memory.scoreboard
from envs.actions import ActionSet
from envs.worlds.registry import get_world
from tests.memory_sessions import SIZE, see_room, spin_poses, write_session, write_spins
from tests.painted_maze import ROOM, dress, paint, turn_away, write_turns
from train.measures.place_classifier import load_or_train
from train.memory.cases import MemoryTest, load_tests
from train.memory.obedience import Judge
from train.memory.replay import Replay, replay_frozen, replay_noise, replay_recorded
from train.memory.running import read_thresholds
from train.memory.scoreboard import Scoreboard
from train.memory.scores import Row, collect, pick_unrelated, score, shuffled
from train.memory.tables import find_distance, judge_row, summarize
from worldmodel.analysis.metrics import psnr
from worldmodel.errors import ConfigError

ACTIONS = get_world("LabMaze").actions


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> list[MemoryTest]:
    """Three spins in a patterned room."""
    return load_tests(write_spins(tmp_path_factory.mktemp("spins"), 3))


@pytest.fixture(scope="module")
def judge(tests: list[MemoryTest]) -> Judge:
    return Judge(ACTIONS, tests)


@pytest.fixture(scope="module")
def real_row(tests: list[MemoryTest], judge: Judge) -> Row:
    return make_row(tests, replay_recorded(tests, is_real=True), judge)


@pytest.fixture(scope="module")
def forgetful_row(tests: list[MemoryTest], judge: Judge) -> Row:
    return make_row(tests, forget(tests), judge)


def make_row(tests: list[MemoryTest], replays: Iterator[Replay], judge: Judge | None = None) -> Row:
    row = collect("row", "checkpoint", tests, replays, judge or Judge(ACTIONS, tests))
    assert row is not None
    score(row, tests, None, None, {})
    return row


def forget(tests: list[MemoryTest]) -> Iterator[Replay]:
    """Turn as told, and come back to another place of the room: it obeys and remembers nothing."""
    for number, test in enumerate(tests):
        given = test.read()
        poses = spin_poses(100 + number)
        drift = np.linspace(0, 1, len(poses))[:, None] * [3.0, 0, 0]
        pictures = see_room(poses + drift)
        yield Replay(number, given, np.concatenate([given.frames[: test.context], pictures[test.context :]]))


def verdict(row: Row, tests: list[MemoryTest], **thresholds: float) -> dict[str, Any]:
    return judge_row(summarize(row, tests, 0), thresholds)


def test_the_real_world_passes(tests: list[MemoryTest], real_row: Row) -> None:
    tables = summarize(real_row, tests, 0)
    assert tables["overall"]["psnr"]["mean"] == 50 and tables["overall"]["ssim"]["mean"] == pytest.approx(1)
    assert tables["overall"]["action_accuracy"]["mean"] == 1
    assert tables["overall"]["margin"]["low"] > 10
    assert tables["overall"]["pairs"] == 9 and tables["overall"]["tests"] == 3
    assert verdict(real_row, tests) == {"passes": True, "why_not": [], "missed": []}


def test_a_picture_that_stands_still_does_not_pass(tests: list[MemoryTest], judge: Judge) -> None:
    row = make_row(tests, replay_frozen(tests), judge)
    tables = summarize(row, tests, 0)
    assert tables["by_first"]["dreamt"]["psnr"]["mean"] == 50  # it is like itself: that alone must not pass
    assert tables["overall"]["action_accuracy"]["mean"] == 0
    found = verdict(row, tests, psnr=5.0)
    assert not found["passes"] and found["missed"] == []
    assert "actions are obeyed 0.00 of the time, 0.6 is asked for" in found["why_not"]


def test_noise_does_not_pass(tests: list[MemoryTest], judge: Judge) -> None:
    for seed in range(2):
        row = make_row(tests, replay_noise(tests, seed), judge)
        found = verdict(row, tests)
        assert not found["passes"]
        assert found["why_not"][0].startswith("what comes back is not clearly more alike than unrelated frames")
        assert abs(float(row.values["margin"].mean())) < 0.5


def test_who_obeys_and_forgets_does_not_pass(tests: list[MemoryTest], forgetful_row: Row) -> None:
    tables = summarize(forgetful_row, tests, 0)
    assert tables["overall"]["action_accuracy"]["mean"] > 0.9
    found = verdict(forgetful_row, tests)
    assert not found["passes"] and len(found["why_not"]) == 1


def test_one_test_says_nothing(tests: list[MemoryTest]) -> None:
    row = make_row(tests[:1], replay_recorded(tests[:1], is_real=True))
    tables = summarize(row, tests[:1], 0)
    assert tables["overall"]["psnr"] == {"mean": 50.0, "low": None, "high": None}
    assert "margin" not in tables["overall"] and shuffled(row, tests[:1]) is None
    assert verdict(row, tests[:1])["why_not"] == [
        "one test tells no difference from unrelated frames: give at least two"
    ]


def test_figures_are_those_of_the_pairs(tests: list[MemoryTest], forgetful_row: Row) -> None:
    row = forgetful_row
    tables = summarize(row, tests, 0)
    values = psnr(row.seconds, row.firsts)
    assert tables["overall"]["psnr"]["mean"] == pytest.approx(float(values.mean()), abs=1e-3)
    figure = tables["overall"]["psnr"]
    assert figure["low"] < figure["mean"] < figure["high"]
    given = np.array([tests[t].pairs[p].first < 32 for t, p in zip(row.tests, row.pairs, strict=True)])
    assert tables["by_first"]["given"]["psnr"]["mean"] == pytest.approx(float(values[given].mean()), abs=1e-3)
    assert tables["by_kind"]["spin"]["48-112"]["pairs"] == 9 and list(tables["by_way"]) == ["replay"]
    truth = float(psnr(row.seconds, row.truths).mean())
    assert tables["overall"]["truth_psnr"]["mean"] == pytest.approx(truth, abs=1e-3)
    again = summarize(row, tests, 0)
    assert again == tables
    assert [find_distance(distance) for distance in (1, 16, 17, 300, 301)] == [
        *("0-16", "0-16", "16-48", "112-300", "over 300")
    ]


def test_unrelated_pairs_are_of_another_test_and_of_its_kind(tmp_path: Path) -> None:
    write_spins(tmp_path, 2)
    frames = see_room(spin_poses(5, 81))
    write_session(tmp_path / "walk.h5", frames, [3] * 80, [(10, 70), (20, 80)], kind="player")
    mixed = load_tests(tmp_path)
    row = make_row(mixed, replay_recorded(mixed, is_real=True))
    lenders = pick_unrelated(row, mixed)
    assert lenders is not None and (row.tests[lenders] != row.tests).all()
    assert sorted(row.tests[lenders[row.tests < 2]].tolist()) == [0, 0, 0, 1, 1, 1]
    floor = shuffled(row, mixed)
    assert floor is not None
    torch.testing.assert_close(floor.firsts, row.firsts[torch.from_numpy(lenders)])
    assert floor.seconds is row.seconds and floor.name == "row, pairs of other tests"


def test_the_dream_has_no_truth(tmp_path: Path) -> None:
    dreams = load_tests(write_spins(tmp_path, 2, source="dream"))
    assert collect("real", "ceiling", dreams, replay_recorded(dreams, is_real=True), Judge(ACTIONS, dreams)) is None
    row = make_row(dreams, replay_recorded(dreams, is_real=False))
    tables = summarize(row, dreams, 0)
    assert "truth_psnr" not in tables["overall"] and tables["overall"]["psnr"]["mean"] == 50


def test_places_are_judged_where_they_are_known(tests: list[MemoryTest], real_row: Row) -> None:
    row = dataclasses.replace(real_row)

    def name(frames: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.arange(len(frames)), torch.full((len(frames),), 2)], 1)

    score(row, tests, None, name, {(0, 0): (0, 2), (1, 1): (1, 2), (2, 2): (2, 1)})
    assert summarize(row, tests, 0)["overall"]["places"]["mean"] == pytest.approx(2 / 3, abs=1e-3)
    assert row.values["places"].isnan().sum() == 6


@pytest.mark.slow
def test_places_are_named_by_who_was_taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [dress(ROOM, (0, 1, 2, 3), 0), dress(ROOM, (4, 5, 6, 7), 1)]
    teacher = write_turns(tmp_path / "taught", [np.arange(0, 720, 4.0)] * 2, rooms, "train")
    write_turns(teacher, [turn_away(30)] * 2, rooms, "test")
    for number, room in enumerate(rooms):
        poses = spin_poses(0)
        poses[:, :2] = 2.5
        path = tmp_path / "tests" / f"spin-{number}.h5"
        pairs = tuple((first, first + 60) for first in range(0, 61, 3))
        write_session(path, paint(room | {"pose": poses}), [3] * 120, pairs, poses=poses, scene=room)
    rooms_tests = load_tests(tmp_path / "tests")

    quick = functools.partial(load_or_train, num_steps=150, batch_size=64)
    monkeypatch.setattr(train.memory.scoreboard, "load_or_train", quick)
    settings: dict[str, Any] = {"out": tmp_path / "out", "features": False, "seed": 0}
    board = Scoreboard(rooms_tests, get_world("LabMaze"), teacher=teacher, **settings)
    board.add("real world", "ceiling", replay_recorded(rooms_tests, is_real=True))
    board.add("noise", "control", replay_noise(rooms_tests, 0))
    report = board.report({})
    shares = {name: found["overall"]["places"]["mean"] for name, found in report["rows"].items()}
    assert shares["real world"] > 0.9 > 0.5 > shares["noise"]
    assert report["classifier"]["accuracy"] > 0.9 and "places" not in report["skipped"]

    untold = load_tests(write_spins(tmp_path / "untold", 2))
    board = Scoreboard(untold, get_world("LabMaze"), teacher=teacher, **settings)
    assert "what a frame shows is found by pose and layout" in board.report({})["skipped"]["places"]


def test_where_motions_are_not_known_a_picture_must_change_as_the_recorded_one() -> None:
    mute = ActionSet("Mute", ("stay", "go"), (), ((), ()))
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    frames[3:6] = np.arange(3)[:, None, None, None] * 50 + 50
    frames[6:] = frames[5]

    class Context:
        context = 1

    judge = Judge(mute, [Context()])  # type: ignore[list-item]
    given: Any = type("Given", (), {"frames": frames, "actions": np.zeros(8, int)})
    assert judge.share_right(0, given, frames) == 1
    assert judge.share_right(0, given, np.zeros_like(frames)) == 0.5
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    assert judge.share_right(0, given, noise) == 0.5
    assert "changes" in judge.rule


def test_thresholds_are_read_and_held(tests: list[MemoryTest], real_row: Row) -> None:
    read = read_thresholds(("psnr=20", "replay.ssim=0.5", "perceptual=0.3"))
    assert read == {"psnr": 20.0, "replay.ssim": 0.5, "perceptual": 0.3}
    for text in ("psnr", "psnr=high", "likeness=3", "circle.psnr=20", "loop.action_accuracy=1"):
        with pytest.raises(ConfigError, match=f"--threshold '{text}' is not accepted; give .* metrics: psnr, ssim"):
            read_thresholds((text,))

    perceptual = {"perceptual": torch.full((len(real_row.tests),), 0.2)}
    row = dataclasses.replace(real_row, values=real_row.values | perceptual)
    tables = summarize(row, tests, 0)
    assert judge_row(tables, {"psnr": 49.0, "perceptual": 0.3, "replay.psnr": 49.0})["passes"]
    found = judge_row(tables, {"psnr": 51.0, "perceptual": 0.1, "loop.psnr": 1.0})
    assert not found["passes"]
    assert found["missed"] == [
        "psnr is 50.000, 51 is asked for",
        "perceptual is 0.200, 0.1 is asked for",
        "loop.psnr is not known",
    ]
    assert row.firsts.shape[1:] == (SIZE, SIZE, 3)
