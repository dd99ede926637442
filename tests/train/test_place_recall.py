"""Place recall on painted rooms: a stand-in that remembers all it was given, and a tiny untrained world."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.worlds.registry import get_world
from tests.painted_maze import FLOOR_STEP, ROOM, SIZE, WALL_STEP, dress, episodes_of, paint, turn_away, write_turns
from train.evaluate import evaluate_world
from train.measures.place_classifier import load_or_train
from train.measures.place_recall import PlaceRecallOptions
from train.measures.recall_cases import RecallCase, find_cases
from train.measures.recall_dreams import CONTROLS, dream_cases, guess_constant, measure_recall, read_frames
from worldmodel.analysis.recall import BINS, Verdict, bin_name, find_bin, summarize, wilson_interval
from worldmodel.errors import ConfigError, DataError
from worldmodel.state import Step
from worldmodel.world import WorldModel

TURNS = [turn_away(25), turn_away(25), turn_away(70), turn_away(70)]
ROOMS = [dress(ROOM, (4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), i % 3) for i in range(4)]
FILMS = [
    paint(room | {"pose": np.stack([np.full_like(headings, 2.5), np.full_like(headings, 2.5), headings], 1)})
    for room, headings in zip(ROOMS, TURNS, strict=True)
]


class StandIn:
    """Has the face of a `WorldModel`: dreams the truth, but for walls that its context does not show."""

    def __init__(self) -> None:
        self.contexts: list[int] = []

    def reset(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int]) -> list[dict[str, Any]]:
        assert tuple(actions.shape) == (len(seeds), frames.shape[1] - 1)
        self.contexts.append(frames.shape[1])
        dreams = []
        for clip in frames.numpy():
            at = int(clip[-1, 0, 0, 2])
            film = next(i for i, film in enumerate(FILMS) if np.array_equal(film[min(at, len(film) - 1)], clip[-1]))
            dreams.append({"film": film, "at": at, "known": set(clip[:, 12, :, 0].ravel().tolist())})
        return dreams

    def step(self, state: list[dict[str, Any]], actions: torch.Tensor) -> Step:
        frames = []
        for dream, action in zip(state, actions.tolist(), strict=True):
            assert action == dream["at"] % 7  # as recorded
            dream["at"] += 1
            frame = FILMS[dream["film"]][dream["at"]].copy()
            for column in range(SIZE):
                if frame[12, column, 0] not in dream["known"]:
                    frame[6:24, column, 0] = 250
            frames.append(frame)
        nothing = torch.zeros(len(state))
        return Step(torch.from_numpy(np.stack(frames)), nothing, nothing.bool(), nothing, nothing)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return frames

    decode = encode


class PaintReader:
    """Names the textures of painted frames."""

    labels = ("wall", "floor")

    @staticmethod
    def name(frames: torch.Tensor) -> torch.Tensor:
        return torch.stack([frames[:, 12, 16, 0].long() // WALL_STEP, frames[:, 30, 16, 1].long() // FLOOR_STEP], 1)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    write_turns(folder, TURNS, ROOMS, "train")
    return write_turns(folder, TURNS, ROOMS, "test")


@pytest.fixture(scope="module")
def cases(painted: Path) -> list[RecallCase]:
    return find_cases(get_world("LabMaze"), episodes_of(painted), cases_per_bin=6)


def measure(cases: list[RecallCase], model: Any = None, **settings: Any) -> dict[str, Any]:
    reader: Any = PaintReader()
    return measure_recall(model or StandIn(), cases, reader, batch_size=4, **settings)


def rates(table: dict[str, Any]) -> set[float]:
    return {found["rate"] for found in table.values() if found["cases"]}


def test_bins_are_open_below_and_closed_above() -> None:
    assert [find_bin(d) for d in (0, 1, 16, 17, 112, 113, 300, 301)] == [
        *(None, (0, 16), (0, 16), (16, 48), (48, 112), (112, 300), (112, 300), None)
    ]
    assert [bin_name(span) for span in BINS] == ["0-16", "16-48", "48-112", "112-300"]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (150, 300, 0.4437, 0.5563), (0, 0, 0, 1)],
)
def test_wilson_interval_is_that_of_the_books(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="from 0 to trials"):
        wilson_interval(*counts)


def test_summary_counts_a_success_only_where_wall_and_floor_are_right() -> None:
    verdicts = [
        Verdict((True, True), 0.9),
        Verdict((True, False), 0.5),
        Verdict((False, True), 0.4),
        Verdict((True, True), 1.0),
    ]
    table = summarize([16, 1, 5, 17], verdicts, ("wall", "floor"))
    first = table["0-16"]
    assert (first["cases"], first["successes"]) == (3, 1)
    assert first["rate"] == pytest.approx(1 / 3) and first["ssim"] == pytest.approx(0.6)
    assert first["wall_rate"] == first["floor_rate"] == pytest.approx(2 / 3)
    assert (first["low"], first["high"]) == wilson_interval(1, 3)
    assert table["16-48"]["rate"] == 1.0 and table["48-112"]["rate"] is None and table["48-112"]["cases"] == 0
    with pytest.raises(ConfigError, match="4 verdicts"):
        summarize([1, 2], verdicts, ("wall", "floor"))


def test_a_world_that_remembers_passes_and_its_controls_fall(cases: list[RecallCase]) -> None:
    assert {find_bin(case.distance) for case in cases} >= {(16, 48), (48, 112)}
    report = measure(cases)
    assert rates(report["bins"]) == {1.0}
    for name, expected in {"short_memory": 0.0, "shuffled_memory": 0.0, "copy_last": 0.0, "truth": 1.0}.items():
        assert rates(report["controls"][name]) == {expected}, name
    assert rates(report["controls"]["codec"]) == {1.0}
    assert report["controls"]["truth"]["48-112"]["ssim"] > 0.999
    assert report["controls"]["short_memory"]["48-112"]["ssim"] < 0.95
    assert report["controls"]["short_memory"]["48-112"]["floor_rate"] == 1.0
    assert (report["cases"], report["scenes"]) == (len(cases), 4) and {*report["meanings"]} >= {*CONTROLS}


def test_context_is_cut_to_what_was_asked_for(cases: list[RecallCase]) -> None:
    far = [case for case in cases if case.distance > 16]
    model: Any = StandIn()
    assert rates(measure(far, model, controls=(), context_frames=16)["bins"]) == {0.0}
    assert set(model.contexts) == {16}
    full: Any = StandIn()
    assert rates(measure(far, full, controls=())["bins"]) == {1.0} and min(full.contexts) > 16


def test_short_memory_is_shorter_than_the_distance(cases: list[RecallCase]) -> None:
    for case in cases:
        model: Any = StandIn()
        dream_cases(model, [case], memory="short")
        assert model.contexts[0] <= case.absent < case.distance


def test_a_shuffled_memory_needs_another_maze(cases: list[RecallCase]) -> None:
    alone = [case for case in cases if case.episode.scene_seed == 0]
    with pytest.raises(DataError, match="cases of another scene.*place_recall.controls=false"):
        measure(alone, controls=("shuffled_memory",))


def test_bad_settings_are_refused(cases: list[RecallCase]) -> None:
    with pytest.raises(ConfigError, match="accepted: short_memory"):
        measure(cases, controls=("luck",))
    with pytest.raises(ConfigError, match="context_frames must be at least 1"):
        measure(cases, controls=(), context_frames=0)
    for name in ("cases", "context_frames"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1; got 0"):
            PlaceRecallOptions(**{name: 0})


def test_the_constant_guess_is_the_share_of_the_most_frequent_look(cases: list[RecallCase]) -> None:
    inside = [case for case in cases if find_bin(case.distance) == (48, 112)]
    looks = [case.labels for case in inside]
    assert guess_constant(cases)["48-112"] == max(map(looks.count, looks)) / len(looks)
    assert guess_constant(inside)["0-16"] is None


def test_frames_read_are_those_asked_for(cases: list[RecallCase]) -> None:
    assert read_frames(cases, [case.seen for case in cases])[:, 0, 0, 2].tolist() == [case.seen for case in cases]


def test_without_a_training_scene_it_is_left_out(bundle: Path, tmp_path: Path) -> None:
    data = write_turns(tmp_path / "data", TURNS, ROOMS, "test")
    model, options = WorldModel.load(bundle, device="cpu", num_steps=1), PlaceRecallOptions(cases=1)
    with pytest.raises(DataError, match="nothing to measure: place_recall: .*no 'train' shards"):
        evaluate_world(model, tmp_path / "out", {"place_recall": options}, data=data)
    assert not (tmp_path / "out").exists()


def test_a_tiny_world_gives_a_whole_report(painted: Path, bundle: Path, tmp_path: Path) -> None:
    load_or_train(painted, tmp_path / "place_recall" / "places.safetensors", num_steps=60, batch_size=64)
    model = WorldModel.load(bundle, device="cpu", num_steps=1)
    report = evaluate_world(model, tmp_path, {"place_recall": PlaceRecallOptions(cases=1)}, data=painted)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    found = report["measures"]["place_recall"]
    assert {*found["bins"]} == {bin_name(span) for span in BINS} and {*found["controls"]} == {*CONTROLS}
    assert found["classifier"]["held_out_frames"] > 0
    assert any(note.startswith("bin 112-300: 0 of 1 cases found") for note in found["notes"])
    assert (tmp_path / "place_recall" / "places.png").read_bytes().startswith(b"\x89PNG")
    assert "| short_memory | " in (tmp_path / "report.md").read_text()
    alone = PlaceRecallOptions(cases=1, controls=False)
    again = evaluate_world(model, tmp_path, {"place_recall": alone}, data=painted)["measures"]["place_recall"]
    assert again["bins"] == found["bins"] and again["controls"] == {}
