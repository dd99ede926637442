"""Measuring a world: on a toy world that a stand-in model dreams perfectly, or wrongly in a known way."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch

import train.evaluate
from envs.actions import ActionSet
from envs.data.episodes import ShardWriter, open_shards
from envs.worlds.base import World
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.sight import gets_on
from envs.worlds.labmaze.spec import LabMaze
from train.data.clips import list_episodes
from train.data.rollouts import spread, spread_over
from train.evaluate import EvaluateOptions, evaluate_world, read_measures
from train.measures.action_accuracy import ActionAccuracyOptions, find_moves, held_starts, opening_starts
from train.measures.base import NEEDS, Bench, Measure
from train.measures.drift import DriftOptions
from train.measures.fidelity import FidelityOptions, margin_interval
from train.measures.heads import HeadsOptions, measure_heads
from train.measures.registry import MEASURES, get_measure
from train.measures.sharpness import make_controls, measure_detail, summarize_sharpness
from worldmodel.analysis.events import score_events
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.inputs import FrameInputs
from worldmodel.presets import get_preset
from worldmodel.state import Step
from worldmodel.world import WorldModel

SIZE = 64
NAMES = LABMAZE_ACTIONS.names
TURN, WALK = 5.0, 0.06
PLAN: dict[str, Any] = {
    "fidelity": FidelityOptions(cases=6, context=4, horizon=8),
    "action_accuracy": ActionAccuracyOptions(openings=4, context=4, held_frames=4),
    "drift": DriftOptions(dreams=2, frames=60, context=4),
}
FEW = FidelityOptions(cases=1, context=4, horizon=2)
ROOM = np.ones((9, 9), np.uint8)
ROOM[1:-1, 1:-1] = 0


class Toy:
    """A textured plane: turning slides it, walking makes it grow or shrink. Every frame tells its place."""

    def __init__(self) -> None:
        noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(512, 512, 3)), (0, 0), 3.0)
        self.plane = (128 + 45 * noise / noise.std()).clip(0, 255).astype(np.uint8)
        self.places: dict[bytes, tuple[float, float]] = {}

    def look(self, place: tuple[float, float]) -> np.ndarray:
        heading, nearness = place
        zoom, center = (1 + WALK) ** nearness, (SIZE - 1) / 2
        matrix = np.array([[zoom, 0, center - zoom * 256 + TURN * heading], [0, zoom, center - zoom * 256]])
        frame = cv2.warpAffine(self.plane, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        self.places[frame.tobytes()] = place
        return frame

    @staticmethod
    def move(place: tuple[float, float], action: int) -> tuple[float, float]:
        name = NAMES[action]
        turn = name.endswith("left") - name.endswith("right")
        return place[0] + turn, place[1] + name.startswith("forward") - (name == "back")


TOY = Toy()


class StandIn:
    """Has the face of a `WorldModel` and dreams the toy world; `obeys` -1 turns every action around, 0 stands still."""

    def __init__(self, obeys: int = 1, blur: float = 0.0) -> None:
        self.obeys, self.blur, self.info = obeys, blur, dict[str, Any]()
        self.codec = SimpleNamespace(config=SimpleNamespace(image_size=SIZE))
        self.config = SimpleNamespace(num_steps=1, context_level=0.0, level_shift=1.0)
        self.num_actions, self.memory_frames = len(NAMES), 8
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def reset(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int]) -> list[tuple[float, float]]:
        assert tuple(actions.shape) == (len(seeds), frames.shape[1] - 1)
        return [TOY.places[frame.tobytes()] for frame in frames[:, -1].numpy()]

    def step(self, state: list[tuple[float, float]], actions: torch.Tensor) -> Step:
        mirror = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5}
        frames = []
        for i, action in enumerate(actions.tolist()):
            chosen = action if self.obeys == 1 else mirror.get(action, 0) if self.obeys == -1 else 0
            state[i] = TOY.move(state[i], chosen)
            frame = TOY.look(state[i])
            frames.append(cv2.GaussianBlur(frame, (0, 0), self.blur) if self.blur else frame)
        rewards = torch.tensor([float(action == 2) for action in actions.tolist()])  # as recorded below
        nothing = torch.zeros(len(state))
        return Step(torch.from_numpy(np.stack(frames)), rewards, nothing.bool(), nothing, nothing)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return frames

    decode = encode


def record(folder: Path, split: str = "test", num_episodes: int = 3, num_steps: int = 80, seed: int = 0) -> Path:
    """Write toy episodes: held random actions, a reward for every step back."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"world": "LabMaze", "action_names": NAMES, "image_size": SIZE, "settings": {}}
    with ShardWriter(folder / f"{split}-00000.h5", fields=LabMaze.fields, split=split, **settings) as shard:
        for episode in range(num_episodes):
            actions = np.repeat(rng.integers(0, len(NAMES), num_steps), rng.integers(1, 9, num_steps))[:num_steps]
            places = [(0.0, 0.0)]
            for t in range(num_steps):
                if abs(TOY.move(places[-1], int(actions[t]))[1]) > 8:
                    actions[t] = 0  # stay near the middle
                places.append(TOY.move(places[-1], int(actions[t])))
            arrays = {
                "frames": np.stack([TOY.look(place) for place in places]),
                "actions": actions.astype(np.uint8),
                "rewards": (actions == 2).astype(np.float32),
                "terminated": np.zeros(num_steps, bool),
                "truncated": np.zeros(num_steps, bool),
                "blocked": np.zeros(num_steps, bool),
                "pose": np.tile(np.array([4.5, 4.5, 0.0], np.float32), (num_steps + 1, 1)),
                "layout": ROOM,
            }
            shard.write(arrays, seed=episode, scene_seed=100 * seed + episode, policy="toy")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("toy"))


def evaluate(model: Any, data: Path, out: Path, measures: dict[str, Any] = PLAN, batch_size: int = 4) -> dict[str, Any]:
    return evaluate_world(model, out, measures, data=data, batch_size=batch_size)


def measured(model: Any, data: Path, out: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Take one measure of `PLAN`, some settings changed."""
    found = evaluate(model, data, out, {name: dataclasses.replace(PLAN[name], **changes)})
    return dict(found["measures"][name])


@pytest.fixture(scope="module")
def perfect(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("perfect")
    return evaluate(StandIn(), data, out), out


def test_a_perfect_dream_scores_perfectly(perfect: tuple[dict[str, Any], Path]) -> None:
    report = perfect[0]["measures"]["fidelity"]
    assert list(report["psnr"]) == ["1", "2", "4", "8"]
    assert set(report["psnr"].values()) == {50.0} == set(report["codec_ceiling"].values())
    assert min(report["ssim"].values()) == pytest.approx(1.0, abs=1e-4)
    assert max(report["copy_last"].values()) < 40
    for horizon, margin in report["margin_over_copy_last"].items():
        assert margin == pytest.approx(report["psnr"][horizon] - report["copy_last"][horizon], abs=1e-3)
    assert report["reward"]["true"] > 0 and report["reward"]["f1"] == 1.0
    assert report["terminated"] == {"precision": None, "recall": None, "f1": None, "predicted": 0, "true": 0}
    assert report["cases"] == 6


def test_a_perfect_dream_does_not_drift(perfect: tuple[dict[str, Any], Path]) -> None:
    report = perfect[0]["measures"]["drift"]
    assert report["sharpness_ratio"] == report["sharpness_ratio_codec"] == 1.0
    assert [part["frames"] for part in report["segments"]] == [[1, 50], [51, 60]]
    assert all(part["psnr"] == 50 and part["color_distance"] == 0 for part in report["segments"])


def test_a_perfect_dream_obeys(perfect: tuple[dict[str, Any], Path]) -> None:
    report = perfect[0]["measures"]["action_accuracy"]
    for found in (report["dream"], report["real"]):
        assert found["turn"] == found["walk"] == 1.0
        assert all(found[action] == 1.0 for action in ("turn_left", "turn_right", "forward", "back"))
    assert set(report["dream"]["counts"].values()) == {4}


def test_a_dream_that_turns_the_wrong_way_or_stands_still_does_not_obey(data: Path, tmp_path: Path) -> None:
    for obeys in (-1, 0):
        report = measured(StandIn(obeys), data, tmp_path, "action_accuracy", openings=2)
        assert report["dream"]["turn"] == report["dream"]["walk"] == 0.0
        assert report["real"]["turn"] == 1.0


def test_standing_still_is_copying_the_last_frame(data: Path, tmp_path: Path) -> None:
    report = measured(StandIn(0), data, tmp_path, "fidelity")
    assert report["psnr"] == report["copy_last"]
    assert report["margin_over_copy_last"]["8"] == 0


def test_blur_lowers_sharpness_and_likeness(data: Path, tmp_path: Path) -> None:
    assert max(measured(StandIn(blur=4.0), data, tmp_path, "fidelity")["psnr"].values()) < 40
    drift = measured(StandIn(blur=4.0), data, tmp_path, "drift")
    assert drift["sharpness_ratio"] < 0.5
    assert all(part["color_distance"] > 1 for part in drift["segments"])


def test_long_dreams_are_no_longer_than_the_recording_and_random_actions_have_no_truth(
    data: Path, tmp_path: Path
) -> None:
    report = measured(StandIn(), data, tmp_path, "drift", frames=300, actions="random")
    assert report["segments"][-1]["frames"] == [51, 77]
    assert [part["psnr"] for part in report["segments"]] == [None, None]
    assert report["sharpness_ratio"] > 0 and "without targets" in report["sharpness"]["reference"]


class Heads:
    """A denoiser whose heads see a reward `late` frames after action 2, which recorded play pays, and never an end."""

    config = SimpleNamespace(num_actions=len(NAMES), num_previous=2, reward_values=(0.0, 1.0))

    def __init__(self, late: int) -> None:
        self.late = late

    def __call__(self, frames: FrameInputs, chunk: int | None) -> tuple[Prediction, None]:
        is_paid = (frames.actions == 2).roll(self.late, 1)
        logits = torch.stack([~is_paid, is_paid], -1).float()
        return Prediction(frames.latents, logits, -torch.ones(is_paid.shape)), None


@pytest.mark.parametrize(("late", "least", "most"), [(0, 1, 1), (1, 0.95, 1), (12, 0, 0.9)])
def test_heads_that_see_what_happens_score_and_late_ones_do_not(
    late: int, least: float, most: float, data: Path
) -> None:
    model: Any = StandIn()
    model.denoiser, model.encode = Heads(late), torch.Tensor.float
    episodes = list_episodes(open_shards(data, "test"))
    found = measure_heads(model, episodes, HeadsOptions(frames=20))
    assert found["frames"] == 3 * 5 * 19 and found["reward"]["true"] > 0  # 81 frames: four clips, and one at the end
    assert least <= found["reward"]["f1"] <= most
    assert found["terminated"]["predicted"] == found["terminated"]["true"] == 0
    assert measure_heads(model, episodes, HeadsOptions(frames=20, clips=2))["frames"] == 2 * 19
    with pytest.raises(DataError, match=r"longest held-out episode has 81 frames and 96 are watched.*heads\.frames"):
        measure_heads(model, episodes, HeadsOptions())


def test_results_are_written(perfect: tuple[dict[str, Any], Path]) -> None:
    report, out = perfect
    assert json.loads((out / "report.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "fidelity", "drift"}
    assert {path.name for path in (out / "fidelity").iterdir()} == {"psnr.png", "truth_and_dream.png"}
    assert {path.name for path in (out / "drift").iterdir()} == {"drift.png", "long_dreams.png"}
    sheet = cv2.imread(str(out / "fidelity" / "truth_and_dream.png"))
    assert sheet.shape == (12 * (128 + 14 + 2), 5 * 130, 3)
    block, width = 128 + 14 + 2, 5 * 130
    assert (sheet[:128, :width] == sheet[block : block + 128, :width]).all()  # dream below truth, and equal to it
    assert "| dream PSNR, dB | 50.00 |" in (out / "report.md").read_text()


@pytest.mark.slow
def test_the_real_model_goes_through_and_equal_seeds_give_equal_reports(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    preset = get_preset("tiny")
    model = WorldModel(Codec(preset.codec), Denoiser(preset.denoiser), device="cpu", num_steps=1)
    small = {
        "fidelity": FidelityOptions(cases=3, context=4, horizon=2),
        "action_accuracy": ActionAccuracyOptions(openings=1, context=4, held_frames=4),
        "heads": HeadsOptions(clips=2, frames=40),
    }
    first, again = (evaluate(model, data, tmp_path, small, batch_size=2) for _ in range(2))
    assert first["settings"]["denoising_steps"] == 1 and list(first["measures"]) == list(small)
    for report in (first, again):
        report.pop("seconds")
    assert first == again
    assert max(first["measures"]["fidelity"]["psnr"].values()) < 30  # untrained


def test_settings_of_measures_are_read_and_quick_only_ever_lowers_numbers() -> None:
    names = ("fidelity", "drift", "fidelity")
    texts = ("fidelity.cases=3", "drift.dreams=1", "drift.actions=random")
    found = read_measures(names, texts, quick=True)
    assert list(found) == ["fidelity", "drift"] and (found["fidelity"].cases, found["fidelity"].horizon) == (3, 16)
    assert (found["drift"].actions, found["drift"].dreams, found["drift"].frames) == ("random", 1, 60)
    assert read_measures(("fidelity",), ()) == {"fidelity": FidelityOptions()}
    assert list(read_measures(EvaluateOptions.measures, ())) == ["fidelity", "action_accuracy", "drift", "heads"]
    assert list(read_measures(("all",), ())) == list(MEASURES)
    assert read_measures(("bottleneck",), (), quick=True)["bottleneck"].memory == "1,4,16"
    assert read_measures(("bottleneck",), ("bottleneck.memory=1,2",), quick=True)["bottleneck"].memory == "1,2"


@pytest.mark.parametrize(
    ("names", "texts", "message"),
    [
        (("beauty",), (), f"unknown measure 'beauty'; there are {', '.join(MEASURES)}"),
        (("train.evaluate:main",), (), "is no Measure"),
        (("nowhere:Beauty",), (), "cannot be imported"),
        (("fidelity",), ("revisit.walks=2",), "names no measure asked for"),
        (("fidelity",), ("fidelity.beauty=2",), "settings of the measure fidelity .*: cases"),
        (("fidelity",), ("fidelity.cases=many",), "invalid literal"),
        (("fidelity",), ("fidelity.cases=0",), "cases must be at least 1; got 0"),
        (("drift",), ("drift.actions=none",), "give one of recorded, random"),
        (("place_recall",), ("place_recall.controls=maybe",), "give true or false"),
    ],
)
def test_measures_and_settings_that_there_are_not_are_refused(
    names: tuple[str, ...], texts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_measures(names, texts)


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_is_whole(name: str) -> None:
    measure = get_measure(name)
    assert measure.name == name and {*measure.needs} <= {*NEEDS}
    options = measure.Options()
    numbers = {field: most for field, most in measure.quick.items() if not isinstance(most, str)}
    assert all(getattr(options, field) >= most for field, most in numbers.items())
    quick = read_measures((name,), (), quick=True)[name]
    assert all(getattr(quick, field) == value for field, value in measure.quick.items())


def test_what_cannot_be_measured_is_left_out_and_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = {"place_recall": get_measure("place_recall").Options(), "fidelity": FEW}
    report = evaluate_world(cast("WorldModel", StandIn()), tmp_path, measures, data=data)
    assert list(report["measures"]) == ["fidelity"] and "wall_textures" in report["skipped"]["place_recall"]
    assert "place_recall is left out" in capsys.readouterr().err
    assert "Left out: " in (tmp_path / "report.md").read_text()
    with pytest.raises(DataError, match=r"nothing to measure: place_recall: .*wall_textures"):
        evaluate_world(cast("WorldModel", StandIn()), tmp_path, {"place_recall": measures["place_recall"]}, data=data)
    named = StandIn()
    named.info["world"] = "LabMaze"
    with pytest.raises(DataError, match="fidelity: it needs a recording: give --data"):
        evaluate_world(cast("WorldModel", named), tmp_path, {"fidelity": FEW})


class Broken(Measure):
    """Fails, after others have been taken."""

    name, Options, needs = "broken", FidelityOptions, ()

    def num_frames(self, bench: Bench, options: FidelityOptions) -> int:
        return 1

    def run(self, bench: Bench, options: FidelityOptions) -> dict[str, Any]:
        raise DataError("no such frame")


def test_a_measure_that_fails_does_not_take_the_others_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.evaluate, "get_measure", lambda name: Broken() if "broken" in name else get_measure(name))
    model = cast("WorldModel", StandIn())
    for names in (("broken", "fidelity"), ("fidelity", "broken")):
        report = evaluate_world(model, tmp_path, dict.fromkeys(names, FEW), data=data)
        assert list(report["measures"]) == ["fidelity"] and report["skipped"] == {"broken": "it failed: no such frame"}
        assert json.loads((tmp_path / "report.json").read_text()) == report
        assert "Left out: it failed: no such frame." in (tmp_path / "report.md").read_text()
    with pytest.raises(DataError, match="^no such frame"):
        evaluate_world(model, tmp_path, {"broken": FEW}, data=data)
    with pytest.raises(DataError, match="nothing was measured: broken: it failed: no such frame; broken2: it failed"):
        evaluate_world(model, tmp_path, {"broken": FEW, "broken2": FEW}, data=data)


class Picky(Broken):
    """Has an objection to its settings."""

    def check(self, bench: Bench, options: FidelityOptions) -> None:
        raise ConfigError("settings that do not fit")


def test_a_measure_whose_settings_do_not_fit_is_left_out_before_any_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train.evaluate, "get_measure", {"picky": Picky(), "broken": Broken()}.__getitem__)
    with pytest.raises(DataError, match="^no such frame"):
        evaluate_world(cast("WorldModel", StandIn()), tmp_path, {"broken": FEW, "picky": FEW}, data=data)
    assert "picky is left out: settings that do not fit" in capsys.readouterr().err
    with pytest.raises(DataError, match="nothing to measure: picky: settings that do not fit"):
        evaluate_world(cast("WorldModel", StandIn()), tmp_path, {"picky": FEW}, data=data)


def test_each_need_says_what_is_lacking(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(World):
        name, fps = "Plain", 10.0
        actions = ActionSet("Plain", ("stay",), (), ((),))

    model = cast("WorldModel", StandIn())
    episodes = list_episodes(open_shards(data, "test"))
    bare = [dataclasses.replace(episode, fields=("frames", "actions")) for episode in episodes]
    benches = {
        "recording": Bench(model, Plain(), [], None, tmp_path),
        **dict.fromkeys(set(NEEDS) - {"recording"}, Bench(model, Plain(), bare, data, tmp_path)),
    }
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # of the features' package
    reasons = {name: lacks(benches[name]) for name, lacks in NEEDS.items()}
    assert {name: type(reason) for name, reason in reasons.items()} == dict.fromkeys(NEEDS, str)
    assert "--data" in str(reasons["recording"]) and "no poses" in str(reasons["poses"])
    for name, place in {"displacements": "ActionSet.displacements", "places": "World.places"}.items():
        assert place in str(reasons[name])
    whole = Bench(model, LabMaze(), episodes, data, tmp_path)
    assert NEEDS["recording"](whole) is NEEDS["poses"](whole) is NEEDS["displacements"](whole) is None
    assert "without targets" in str(NEEDS["revisit"](whole)) and "without targets" in str(NEEDS["targets"](whole))


@pytest.mark.parametrize(
    ("program", "measures"),
    [
        ("needle", "place_recall"),
        ("endurance", "teco revisit long_rollout"),
        ("bold_play", "bold_play"),
        ("spheres", "targets"),
        ("accumulation", "accumulation"),
        ("bottleneck", "bottleneck"),
        ("dial", "tradeoff"),
        ("benchmark", "speed memory_costs"),
    ],
)
def test_programs_that_are_gone_say_what_took_their_place(program: str, measures: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"train.{program}", "--out", "d"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: train.{program} is gone: python -m train.evaluate --measures {measures}\n"
    assert {*measures.split()} <= {*MEASURES}


def test_pieces_are_spread_over_episodes_and_within_them(data: Path) -> None:
    episodes = list_episodes(open_shards(data, "test"))
    pieces = spread_over(episodes, 21, 12, np.random.default_rng(0))
    for episode in episodes:
        starts = [piece.start for piece in pieces if piece.episode == episode]
        assert len(starts) == 4
        assert [max(start - 1, 0) // 15 for start in sorted(starts)] == [0, 1, 2, 3]  # 61 starts in four parts
    few = spread(episodes, [np.array([5]), np.array([], int), np.array([1, 2, 3])], 21, 10, np.random.default_rng(0))
    assert sorted((piece.episode.key[-1], piece.start) for piece in few) == [("0", 5), ("2", 1), ("2", 2), ("2", 3)]


def test_a_way_is_free_only_up_to_the_wall() -> None:
    pose = np.array([4.5, 4.5, 0.0], np.float32)  # the room's floor ends at 8, the walker's body at 7.75
    assert gets_on(ROOM, pose, 3.2) and not gets_on(ROOM, pose, 3.3)
    assert gets_on(ROOM, pose, -3.2) and not gets_on(ROOM, pose, -3.3)
    pillar = ROOM.copy()
    pillar[2, 4] = 1  # north of the walker, y from 6 to 7
    north = np.array([4.5, 4.5, 90.0], np.float32)
    assert gets_on(pillar, north, 1.2) and not gets_on(pillar, north, 1.3)
    assert gets_on(pillar, north, -1.3)


def test_walks_start_only_where_the_way_is_free(tmp_path: Path) -> None:
    frames = np.zeros((41, SIZE, SIZE, 3), np.uint8)
    pose = np.tile(np.array([1.5, 4.5, 180.0], np.float32), (41, 1))  # nose to the west wall
    pose[20:, 2] = 0.0
    steps = {"rewards": np.zeros(40, np.float32), "terminated": np.zeros(40, bool), "truncated": np.zeros(40, bool)}
    blocked = np.zeros(40, bool)
    blocked[3] = True
    arrays = {"frames": frames, "actions": np.ones(40, np.uint8), "pose": pose, "layout": ROOM, "blocked": blocked}
    settings: dict[str, Any] = {"world": "LabMaze", "action_names": NAMES, "image_size": SIZE, "settings": {}}
    with ShardWriter(tmp_path / "test-00000.h5", fields=LabMaze.fields, split="test", **settings) as shard:
        shard.write(arrays | steps, seed=0, scene_seed=0, policy="toy")
    (episode,) = list_episodes(open_shards(tmp_path))
    moves = find_moves(LABMAZE_ACTIONS)
    assert {name: move.sign for name, move in moves.items() if move.is_turn} == {"turn_left": 1, "turn_right": -1}
    assert {name: move.sign for name, move in moves.items() if not move.is_turn} == {"forward": 1, "back": -1}
    forward, back = (opening_starts(LabMaze(), episode, moves[name], 5, 6) + 4 for name in ("forward", "back"))
    assert min(forward) >= 20 and max(back) < 20 and len(forward) and len(back)
    assert len(opening_starts(LabMaze(), episode, moves["turn_left"], 5, 6)) == 37
    held = held_starts(episode, 1, 4)
    assert list(held[:2]) == [5, 6]  # steps 4 to 7 are the first four free ones; frame 5 follows step 4
    assert held[-1] == 37 and len(held_starts(episode, 2, 4)) == 0


def test_events_may_miss_by_two_steps() -> None:
    true, predicted = torch.zeros(2, 20, dtype=torch.bool), torch.zeros(2, 20, dtype=torch.bool)
    true[0, 5] = true[0, 15] = predicted[0, 7] = predicted[1, 5] = True
    scores = score_events(predicted, true)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, 0.5, 0.5)
    predicted[0, 7], predicted[0, 8] = False, True
    assert score_events(predicted, true)["f1"] == 0.0
    assert score_events(torch.zeros_like(true), true) == {
        "precision": None,
        "recall": 0.0,
        "f1": None,
        "predicted": 0,
        "true": 2,
    }


def test_the_interval_draws_episodes_not_cases() -> None:
    copy = torch.full((40, 1), 0.1)
    dream = torch.tensor([0.01] * 20 + [0.001] * 20)[:, None]
    by_case = margin_interval(dream, copy, np.arange(40), 0)
    by_episode = margin_interval(dream, copy, np.repeat(["a", "b"], 20), 0)
    margin = 10 * np.log10(0.1 / 0.0055)
    assert by_case[0] < margin < by_case[1]
    assert float(by_episode[1] - by_episode[0]) > 3 * float(by_case[1] - by_case[0])
    assert torch.allclose(by_episode[:, 0], torch.tensor([10.0, 20.0]), atol=1e-3)


def test_bad_input_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="record some first"):
        evaluate(StandIn(), tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DataError, match="no 'test' shards"):
        evaluate(StandIn(), record(tmp_path / "train", split="train", num_episodes=1, num_steps=20), tmp_path / "out")
    with pytest.raises(DataError, match=r"longest held-out episode has 81 frames and 204 are needed"):
        evaluate(StandIn(), data, tmp_path / "out", {"fidelity": FidelityOptions(cases=1, context=4, horizon=200)})
    other = StandIn()
    other.codec.config.image_size = 128
    with pytest.raises(DataError, match="frames of 64 x 64; expected 128 x 128"):
        evaluate(other, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for kind, changes in (
        (FidelityOptions, {"cases": 0}),
        (ActionAccuracyOptions, {"held_frames": 1}),
        (DriftOptions, {"frames": 0}),
        (HeadsOptions, {"frames": 1}),
    ):
        with pytest.raises(ConfigError, match="at least"):
            kind(**changes)
    with pytest.raises(ConfigError, match="batch_size"):
        EvaluateOptions(checkpoint="", out=tmp_path, batch_size=0)
    with pytest.raises(SeedError, match="-1"):
        EvaluateOptions(checkpoint="", out=tmp_path, seed=-1)


def textured(count: int, seed: int = 0) -> torch.Tensor:
    """Clips of the toy world, uint8 (count, 60, H, W, 3)."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-6, 6, (count, 60, 2))
    return torch.from_numpy(np.stack([[TOY.look((float(a), float(b))) for a, b in clip] for clip in places]))


def sharpness_of(frames: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    found = {"detail": measure_detail(frames), "true_detail": measure_detail(truth)}
    found["control_detail"] = measure_detail(truth[:, ::10])
    for name, control in make_controls(truth[:, ::10], 0).items():
        found[f"{name}_detail"] = measure_detail(control)
    return summarize_sharpness(found, "real play", 0)


def test_real_play_matches_itself_and_blur_noise_and_flat_frames_do_not() -> None:
    real, other = textured(6), textured(6, seed=1)
    same = sharpness_of(real, real)
    assert [part["frames"] for part in same["segments"]] == [[1, 50], [51, 60]]
    for part in same["segments"]:
        assert part["ratio"] == part["match"] == 1 and part["flat_share"] == part["flat_share_real"] == 0
        assert part["ratio_interval"] == [1, 1]
    assert sharpness_of(other, real)["segments"][0]["match"] > 0.9
    controls = same["controls"]
    assert controls["blurred"]["ratio"] < 0.7 and controls["blurred"]["match"] < 0.7
    assert controls["noise"]["ratio"] > 3 and controls["noise"]["match"] < 0.4  # the ratio alone would let it pass
    flat = sharpness_of(torch.full_like(real, 90), real)["segments"][0]
    assert flat["ratio"] == flat["match"] == 0 and flat["flat_share"] == 1


def test_half_flat_is_half_and_the_interval_is_over_dreams() -> None:
    real = textured(6)
    half = real.clone()
    half[:3] = 90
    part = sharpness_of(half, real)["segments"][0]
    assert part["flat_share"] == 0.5 and part["ratio"] == pytest.approx(0.5, abs=0.1)
    low, high = part["ratio_interval"]
    assert low < 0.3 and high > 0.7


def test_what_cannot_be_made_again_is_left_out_and_said(perfect: tuple[dict[str, Any], Path]) -> None:
    report, out = perfect[0]["measures"]["fidelity"], perfect[1]
    assert "without targets" in report["in_sight"]["left_out"]
    assert "Left out: test-00000.h5 was recorded without targets." in (out / "report.md").read_text()
    for horizon, (low, high) in report["copy_last_interval"].items():
        assert low <= report["copy_last"][horizon] <= high
