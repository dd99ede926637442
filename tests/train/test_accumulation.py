"""Error accumulation: distances on distributions whose distance is known, segments that add up, and the measure."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.data.episodes import open_shards
from envs.worlds.labmaze.spec import LabMaze
from train.data.clips import list_episodes
from train.evaluate import evaluate_world, read_measures
from train.measures.accumulation import Accumulation, AccumulationOptions, measure_accumulation, read_schedule
from train.measures.base import Bench
from train.reports.accumulation import UNRELATED
from worldmodel.analysis.accumulation import compare_frames, measure_decay, segments
from worldmodel.analysis.distances import (
    FrameFeatures,
    frechet_distance,
    gaussian_distance,
    perceptual_distance,
    random_projection,
)
from worldmodel.analysis.metrics import MAX_PSNR, squared_error
from worldmodel.errors import ConfigError, DataError, MissingPackageError, ShapeError, WindowError
from worldmodel.windows import parse_schedule
from worldmodel.world import WorldModel


def clip(batch: int = 4, num_frames: int = 20, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, num_frames, size, size, 3), generator=generator, dtype=torch.uint8)


def extractor(frames: torch.Tensor) -> FrameFeatures:
    """Stand in for a network: pictures of 4 x 4 as one stage, mean colors and their squares as the vector."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    colors = pixels.mean((2, 3))
    return FrameFeatures([torch.nn.functional.adaptive_avg_pool2d(pixels, 4)], torch.cat([colors, colors**2], 1))


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    def diagonal(*deviations: float) -> torch.Tensor:
        return torch.diag(torch.tensor(deviations, dtype=torch.float64) ** 2)

    zero, there = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    found = gaussian_distance(zero, diagonal(1, 2, 0), there, diagonal(3, 2, 0.5))
    assert found == pytest.approx(5 + 4 + 0 + 0.25)
    generator = torch.Generator().manual_seed(0)
    a, b = (x @ x.T for x in torch.randn(2, 2, 2, generator=generator, dtype=torch.float64))  # they do not commute
    cross = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()  # tr sqrt(M) of a 2 x 2 matrix
    expected = a.trace() + b.trace() - 2 * cross
    assert gaussian_distance(zero[:2], a, zero[:2], b) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_of_samples_is_biased_upwards_and_the_bias_shrinks() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(2, count, 8, generator=generator) for count in (32, 2048))
    assert frechet_distance(*few) > 5 * frechet_distance(*many) > 0
    assert frechet_distance(many[0], many[0]) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(many[0], many[0] + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)
    with pytest.raises(ShapeError, match="at least two"):
        frechet_distance(few[0][:1], few[1])
    with pytest.raises(ShapeError, match="two samples"):
        frechet_distance(few[0], few[1][:, :4])


def test_projection_keeps_the_mean_square_and_is_fixed() -> None:
    project = random_projection(600, 40)
    vectors = torch.randn(200, 600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float((vectors @ project).square().sum() / vectors.square().sum()) == pytest.approx(1.0, rel=0.05)
    assert torch.equal(project, random_projection(600, 40))


def test_perceptual_distance_compares_directions() -> None:
    stages = [torch.randn(5, 3, 4, 4), torch.randn(5, 6, 2, 2)]
    assert torch.allclose(perceptual_distance(stages, [3 * s for s in stages]), torch.zeros(5), atol=1e-6)
    assert torch.allclose(perceptual_distance(stages, [-s for s in stages]), torch.full((5,), 4.0))
    turned = [stages[0], torch.stack([-stages[1][:, 1], stages[1][:, 0]], 1)]
    flat = [stages[0], stages[1][:, :2]]
    assert torch.allclose(perceptual_distance(flat, turned), torch.full((5,), 1.0), atol=1e-5)  # 2 in one of two stages


def test_segments_cover_every_frame_once_and_add_up() -> None:
    assert segments(40) == [(0, 16), (16, 32), (32, 40)]
    frames, truth = clip(seed=1), clip(seed=2)
    found = compare_frames(frames, truth, extractor=extractor, feature_dims=4)
    spans = [row["frames"] for row in found["segments"]]
    assert spans == [[1, 16], [17, 20]]
    total = sum(row["mse"] * (stop - start + 1) for row, (start, stop) in zip(found["segments"], spans, strict=True))
    assert total / 20 == pytest.approx(float(squared_error(frames, truth).mean()), rel=1e-5)
    by_case = torch.tensor(found["cases"]["mse"])
    assert by_case.shape == (4, 2)
    assert by_case.mean(0).tolist() == pytest.approx([row["mse"] for row in found["segments"]], rel=1e-5)
    assert [row["fd_frames"] for row in found["segments"]] == [4 * 8, 4 * 2]
    assert {row["fd_dims"] for row in found["segments"]} == {4}
    assert len(found["curves"]["psnr"]) == len(found["curves"]["ssim"]) == 20


@pytest.mark.parametrize("every", [1, 3, 5])
def test_features_of_every_nth_frame_fall_into_their_segments(every: int) -> None:
    frames, truth = clip(), clip().clone()
    truth[:, 16:] = clip(seed=3)[:, 16:]
    found = compare_frames(frames, truth, extractor=extractor, feature_every=every, feature_dims=2)
    assert found["segments"][0]["perceptual"] == 0 < found["segments"][1]["perceptual"]
    assert found["segments"][0]["fd_lite0"] < 1e-6 < found["segments"][1]["fd_lite0"]
    assert [row["fd_frames"] for row in found["segments"]] == [4 * len(range(0, n, every)) for n in (16, 4)]


def test_without_a_ruler_its_columns_are_left_out_and_bad_settings_are_refused() -> None:
    found = compare_frames(clip(), clip(seed=1))
    assert {*found["segments"][0]} == {"frames", "mse", "psnr", "ssim"}
    assert {*found["cases"]} == {"mse"}
    for settings in ({"feature_every": 17}, {"feature_every": 0}, {"feature_dims": 0}):
        with pytest.raises(ConfigError, match="feature_every must be from 1 to the 16"):
            compare_frames(clip(), clip(), **settings)


class Fading:
    """Has the face of a world: dreams the truth it was given, darker by `step` levels each frame."""

    def __init__(self, truth: torch.Tensor, step: int) -> None:
        self.truth, self.step, self.calls = truth, step, 0
        self.asked: list[Any] = []

    def rollout(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int], **settings: Any) -> torch.Tensor:
        self.asked.append((tuple(frames.shape[:2]), tuple(actions.shape), seeds, settings))
        first = self.calls
        self.calls += len(frames)
        real = self.truth[first : self.calls, frames.shape[1] :].int()
        darker = self.step * torch.arange(1, real.shape[1] + 1)
        return (real - darker[:, None, None, None]).clamp(0, 255).to(torch.uint8)


def test_decay_of_a_rollout_that_fades_as_known() -> None:
    frames = clip(3, 4 + 32) // 2 + 100
    model: Any = Fading(frames, 2)
    schedule = parse_schedule("fifo:3")
    actions = torch.zeros(3, 35, dtype=torch.int64)
    found = measure_decay(model, frames, actions, schedule, context=4, seeds=[5, 6, 7], batch_size=2)
    assert [call[:3] for call in model.asked] == [((2, 4), (2, 35), [5, 6]), ((1, 4), (1, 35), [7])]
    assert model.asked[0][3]["window"] == schedule.window
    assert model.asked[0][3]["num_steps"] == 1
    first, last = (sum((2 * n / 255) ** 2 for n in range(start, start + 16)) / 16 for start in (1, 17))
    assert [row["mse"] for row in found["segments"]] == pytest.approx([first, last], rel=1e-4)
    assert found["decay_db"] == pytest.approx(10 * float(torch.tensor(last / first).log10()), abs=1e-3)
    steady: Any = Fading(frames, 0)
    kept = measure_decay(steady, frames, actions, schedule, context=4, seeds=[5, 6, 7])
    assert kept["decay_db"] == 0
    assert kept["curves"]["psnr"] == [MAX_PSNR] * 32
    with pytest.raises(ShapeError, match="decay is measured on"):
        measure_decay(model, frames, actions[:, 1:], schedule, context=4, seeds=[5, 6, 7])
    with pytest.raises(ShapeError, match="36 given frames"):
        measure_decay(model, frames, actions, schedule, context=36, seeds=[5, 6, 7])


def test_a_number_of_steps_stands_behind_the_schedule() -> None:
    assert (read_schedule("next@4").name, read_schedule("next@4").num_steps) == ("next@4", 4)
    assert read_schedule("rolling:4:3").num_steps == 3
    assert read_schedule("outpaint:8:4").num_steps is None
    assert len(AccumulationOptions().read_schedules()) >= 8
    for text in ("next@0", "next@", "next@x", "next@1001", "next@2@3"):
        with pytest.raises(WindowError, match="denoising steps, 1 to 1000"):
            read_schedule(text)


def test_options_are_checked() -> None:
    wrong = {"cases": 1, "context": 1, "clips": 0, "long_cases": 1, "frames": 0, "feature_size": 8, "feature_dims": 0}
    for name, value in [*wrong.items(), ("feature_every", 0), ("feature_every", 17)]:
        with pytest.raises(ConfigError, match=name):
            AccumulationOptions(**{name: value})
    with pytest.raises(ConfigError, match="different ones; got next, next"):
        AccumulationOptions(schedules="next,next")
    for text in ("next,sideways", ""):
        with pytest.raises(WindowError, match="is not understood"):
            AccumulationOptions(schedules=text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shard_writer: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("accumulation") / "recording"
    shard_writer(folder / "test-00000.h5", [40, 36], "test", image_size=32, seed=3)
    return folder


@pytest.fixture
def bench(bundle: Path, data: Path, tmp_path: Path) -> Bench:
    episodes = list_episodes(open_shards(data, "test"))
    return Bench(WorldModel.load(bundle, device="cpu"), LabMaze(), episodes, data, tmp_path, batch_size=16)


OPTIONS = AccumulationOptions(
    schedules="next@1,fifo:2,outpaint:4:2",
    cases=2,
    clips=3,
    context=4,
    frames=18,
    long_cases=2,
    features=False,
    feature_dims=3,
)


def test_it_measures_predicts_and_reports(bench: Bench) -> None:
    counted: list[int] = []
    found = measure_accumulation(dataclasses.replace(bench, on_frames=counted.append), OPTIONS, extractor)
    names = [schedule.name for schedule in OPTIONS.read_schedules()]
    assert {*names, UNRELATED, "last frame held", "codec alone"} == {*found["measured"]}
    assert names == list(found["predicted"])
    assert found["measured_long"]["next@1"]["segments"][-1]["frames"] == [33, 37]  # the longest less the context
    assert found["correlation"]["headline"]["schedules"] == 3
    assert -1 <= found["correlation"]["headline"]["rho"] <= 1
    assert found["correlation"]["parts"]["distance"].keys() >= {"mse 1-16", "fd_lite0 17-18", "decay_db"}
    assert all(entry["noise_initialization"] == 0 for entry in found["predicted"].values())
    assert json.loads(json.dumps(found)) == found
    text = "\n".join(Accumulation().lines(found))
    assert "outpaint:4:2" in text and "not LPIPS" in text and "16 frames in 3 dimensions" in text
    for name in ("segments.png", "prediction.png"):
        assert (bench.out / name).read_bytes().startswith(b"\x89PNG")
    assert sum(counted) == 3 * (3 + 2 * 18 + 37)  # clips, frames, and the only piece that is as long as asked
    assert Accumulation().num_frames(bench, OPTIONS) == 3 * (3 + 2 * 18 + 2 * 37)


def test_it_is_taken_without_features_and_in_a_rehearsal(bundle: Path, data: Path, tmp_path: Path) -> None:
    texts = ("accumulation.features=false", "accumulation.context=8")
    measures = read_measures(("accumulation",), texts, quick=True)
    assert measures["accumulation"].schedules == "next@1,fifo:4,outpaint:8:4"
    report = evaluate_world(WorldModel.load(bundle, device="cpu"), tmp_path, measures, data=data)
    found = report["measures"]["accumulation"]
    assert "perceptual" not in found["measured"]["next@1"]["segments"][0] and "measured_long" not in found
    assert found["measured"]["fifo:4"]["num_cases"] == 2 and found["correlation"]["headline"]["schedules"] == 3
    assert "### 2 rollouts of 16 frames" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "accumulation" / "segments.png").is_file()


def test_one_schedule_is_not_correlated(bench: Bench) -> None:
    found = measure_accumulation(bench, dataclasses.replace(OPTIONS, schedules="next", long_cases=0, frames=4))
    assert found["correlation"]["headline"] is None
    assert "- saturated segments: " in "\n".join(Accumulation().lines(found))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"schedules": "next,fifo:20"}, ConfigError, "fifo:20 dreams 20 frames at once; got frames 18"),
        ({"schedules": "fifo:60", "frames": 60}, DataError, "longest held-out episode has 41 frames"),
        ({"schedules": "outpaint:8:5"}, ConfigError, "outpaint:8:5 takes 5 clean frames from the context.* at least 6"),
        ({"frames": 60}, DataError, "64 are needed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_dreamt(
    bench: Bench, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    Accumulation().check(bench, OPTIONS)
    plan = dataclasses.replace(OPTIONS, long_cases=0, **changes)
    with pytest.raises(error, match=says):
        Accumulation().check(bench, plan)


def test_missing_features_are_said_before_anything_is_dreamt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"accumulation\.features=false"):
        Accumulation().check(bench, dataclasses.replace(OPTIONS, features=True))
