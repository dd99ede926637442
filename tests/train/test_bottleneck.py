"""Mutual information from denoising errors: exact values on Gaussian processes, then a denoiser's own path."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from gaussian_process import gaussian_process_denoise, gaussian_process_errors, gaussian_process_information

from envs.data.episodes import open_shards
from envs.worlds.labmaze.spec import LabMaze
from train.data.clips import list_episodes
from train.evaluate import evaluate_world, read_measures
from train.measures.base import Bench
from train.measures.bottleneck import Bottleneck, BottleneckOptions, measure_bottleneck
from worldmodel.analysis.bottleneck import information_gap, information_weights, level_path, memory_errors
from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.errors import ConfigError, DataError, ShapeError, WindowError
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.windows import Window, fifo_window, next_frame_window, outpainting_window, rolling_window
from worldmodel.world import WorldModel

T = 40
EYE = torch.eye(T, dtype=torch.float64)
NOTHING = EYE[:0]
OUTPUT, PAST = EYE[-1:], EYE[:-1]


def smooth_process() -> torch.Tensor:
    """Squared exponential of 6 steps, with a little white noise."""
    time = torch.arange(T, dtype=torch.float64)
    return torch.exp(-(time[:, None] - time).square() / (2 * 6.0**2)) + 0.05 * EYE


def autoregressive_process() -> torch.Tensor:
    """AR(2) at rest: x_t = 1.6 x_(t-1) - 0.7 x_(t-2) + noise, scaled to variance 1."""
    total = 400
    matrix = torch.eye(total, dtype=torch.float64)
    matrix[range(1, total), range(total - 1)] = -1.6
    matrix[range(2, total), range(total - 2)] = 0.7
    inverse = torch.linalg.inv(matrix)
    covariance = (inverse @ inverse.mT)[-T:, -T:]
    return covariance / covariance[-1, -1]


PROCESSES = {"smooth": smooth_process(), "autoregressive": autoregressive_process()}


def estimate(
    covariance: torch.Tensor, past: torch.Tensor, given: torch.Tensor = NOTHING, lowest: float = 0.002
) -> float:
    levels = level_path(next_frame_window(), lowest=lowest)
    without = gaussian_process_errors(covariance, OUTPUT, given, levels)
    with_past = gaussian_process_errors(covariance, OUTPUT, torch.cat([given, past]), levels)
    return information_gap(levels, without, with_past).nats


@pytest.mark.parametrize("name", PROCESSES)
def test_the_integral_of_exact_errors_is_the_exact_information(name: str) -> None:
    covariance = PROCESSES[name]
    exact = gaussian_process_information(covariance, OUTPUT, PAST, NOTHING)
    assert exact > 1.0
    assert estimate(covariance, PAST) == pytest.approx(exact, rel=2e-3)
    given = EYE[-2:-1]  # the last frame is the input: what do the frames before it add?
    exact = gaussian_process_information(covariance, OUTPUT, EYE[:-2], given)
    assert exact > 0.05
    assert estimate(covariance, EYE[:-2], given) == pytest.approx(exact, rel=1e-2)


def test_the_determinants_give_the_known_information_of_two_correlated_numbers() -> None:
    pair = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    first, second = torch.eye(2, dtype=torch.float64).split(1)
    exact = gaussian_process_information(pair, first, second, first[:0])
    assert exact == pytest.approx(-0.5 * math.log(1 - 0.8**2))


def test_the_truncated_integral_is_the_information_on_the_noisy_output() -> None:
    covariance, lowest = PROCESSES["smooth"], 0.3
    noisy = covariance.clone()
    noisy[-1, -1] += (lowest / (1 - lowest)) ** 2
    exact = gaussian_process_information(noisy, OUTPUT, PAST, NOTHING)
    assert exact < 0.7 * gaussian_process_information(covariance, OUTPUT, PAST, NOTHING)
    assert estimate(covariance, PAST, lowest=lowest) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    "window",
    [
        rolling_window(4),
        fifo_window(3),
        outpainting_window(4, 2),
        Window((0.4, 0.5, 1.0, 1.0), (0.0, 0.0, 0.4, 0.5), 2),
    ],
)
def test_frames_in_flight_at_levels_of_their_own(window: Window) -> None:
    covariance, lowest = PROCESSES["smooth"], 0.01
    clean = sum(level == 0 for level in window.before)
    size = window.size - clean
    levels = level_path(window, 32, lowest=lowest)[:, clean:]
    output, reference, past = EYE[T - size :], EYE[T - window.size : T - size], EYE[: T - window.size]
    errors = [
        gaussian_process_errors(covariance, output, given, levels)
        for given in (reference, torch.cat([reference, past]))
    ]

    def told(at: torch.Tensor) -> float:  # I(noisy frames; past | clean reference), from determinants alone
        root = torch.diag((1 - at) / at)
        apart = []
        for given in (reference, torch.cat([reference, past])):
            joint = torch.cat([output, given]) @ covariance @ torch.cat([output, given]).mT
            own, cross, known = joint[:size, :size], joint[:size, size:], joint[size:, size:]
            left = own - cross @ torch.linalg.solve(known, cross.mT) if len(given) else own
            apart.append(torch.logdet(torch.eye(size).double() + root @ left @ root))
        return float(apart[0] - apart[1]) / 2

    exact = told(levels[-1]) - told(levels[0])
    assert exact > 0.03
    assert information_gap(levels, *errors).nats == pytest.approx(exact, rel=5e-3)
    whole = level_path(window, 32, lowest=lowest)
    assert (information_weights(whole)[:, :clean] == 0).all()  # a clean reference is input, not output
    assert torch.equal(information_weights(whole)[:, clean:], information_weights(levels))


@pytest.mark.parametrize("name", PROCESSES)
def test_data_processing_more_past_never_hurts_and_a_function_of_it_lies_between(name: str) -> None:
    covariance = PROCESSES[name]
    lengths = [0, 1, 2, 3, 4, 8, 16, 39]
    values = [estimate(covariance, EYE[T - 1 - m : T - 1]) for m in lengths]
    assert values[0] == 0.0
    for shorter, longer in zip(values[:-1], values[1:], strict=True):
        assert longer >= shorter - 1e-9
    slots = torch.stack([PAST[i : i + 3].mean(0) for i in range(0, 39, 3)])  # means over three frames
    few = slots[-4:]
    ordered = [estimate(covariance, x) for x in (few[-1:], few, slots, PAST)]
    assert 0.01 < ordered[0] < ordered[1] + 1e-9 and ordered[1] <= ordered[2] + 1e-9 and ordered[2] < ordered[3] - 0.01
    rest = PAST[[i for i in range(39) if i % 3]]  # with the means it is the whole past
    lost = estimate(covariance, rest, slots)  # the chain rule: what compression loses is what the past still adds to it
    assert lost == pytest.approx(ordered[3] - ordered[2], abs=5e-3)


def test_monte_carlo_errors_give_the_exact_information_within_their_error() -> None:
    covariance, cases = PROCESSES["smooth"], 4000
    generator = torch.Generator().manual_seed(0)
    paths = torch.randn(cases, T, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    levels = level_path(next_frame_window(), 16, lowest=0.02)
    clean = paths @ OUTPUT.mT
    errors: list[list[torch.Tensor]] = [[], []]
    for level in levels:
        noise = torch.randn(cases, 1, generator=generator, dtype=torch.float64)
        noisy = add_noise(clean, noise, level.expand(cases, 1))
        for kept, given in zip(errors, (NOTHING, PAST), strict=True):
            guess = gaussian_process_denoise(covariance, OUTPUT, given, paths @ given.mT, noisy, level)
            kept.append((guess - clean).square())
    without, with_past = (torch.stack(kept, 1) for kept in errors)
    nats, error = information_gap(levels, without, with_past)
    exact = gaussian_process_information(covariance, OUTPUT, PAST, NOTHING)
    assert error < 0.05 * exact
    assert abs(nats - exact) < 3 * error + 0.01 * exact
    assert information_gap(levels, without, without).nats == 0.0
    twice = information_gap(levels, without.repeat(2, 1, 1), with_past.repeat(2, 1, 1), list(range(cases)) * 2)
    assert twice.error == pytest.approx(error, rel=1e-6)  # copies in one group add no certainty
    assert math.isnan(information_gap(levels, without, with_past, ["one"] * cases).error)


class Left(NamedTuple):
    frames: torch.Tensor
    nothing: None


class Cache:
    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []

    def commit(self, frames: torch.Tensor, nothing: None, num_frames: int) -> None:
        self.frames += list(frames[:, :num_frames].unbind(1))


class PerfectDenoiser:
    """Stands in for a `Denoiser`: the exact posterior mean of a Gaussian process moved by each frame's action."""

    def __init__(self, covariance: torch.Tensor) -> None:
        self.covariance, self.shifts = covariance, torch.linspace(-40, 40, 8)
        self.config = SimpleNamespace(num_previous=2, recent_frames=3)
        self.to_clean = SimpleNamespace(weight=torch.zeros(1))
        self.seen_levels: set[float] = set()

    def new_cache(self, batch: int, memory_frames: int | None = None) -> Cache:
        return Cache()

    def __call__(self, frames: FrameInputs, *, cache: Cache) -> tuple[Prediction, Left]:
        latents, levels, actions = frames.latents, frames.levels, frames.actions
        previous, previous_levels = frames.previous, frames.previous_levels
        assert latents.shape[1] <= self.config.recent_frames
        shift = self.shifts[actions][..., None, None, None]
        level = levels[..., None, None, None]
        centered = latents - (1 - level) * shift
        if cache.frames:
            assert torch.equal(previous_levels[:, 0, 0], torch.zeros(len(latents)))
            assert not (previous[:, 0, 0] == 0).any()
        else:
            assert (previous_levels[:, 0] == 1).all() and (previous[:, 0] == 0).all()
        clean = centered
        if (level > 0).all():
            known, new = len(cache.frames), latents.shape[1]
            eye = torch.eye(known + new, dtype=torch.float64)
            rows = centered.flatten(2).permute(0, 2, 1).reshape(-1, new).double()
            seen = torch.stack([f.flatten() for f in cache.frames], 1) if known else rows[:, :0]
            part = self.covariance[: known + new, : known + new]
            guess = gaussian_process_denoise(part, eye[known:], eye[:known], seen.double(), rows, levels[0])
            clean = guess.reshape(len(latents), -1, new).permute(0, 2, 1).reshape(latents.shape).float()
        empty = latents.new_zeros(latents.shape[:2])
        return Prediction(clean + shift, empty[..., None], empty), Left(centered, None)


@pytest.mark.parametrize("window", [next_frame_window(), rolling_window(3)])
def test_the_errors_of_a_perfect_denoiser_on_clips_give_the_exact_information(window: Window) -> None:
    covariance, cases, size = PROCESSES["smooth"], 1500, window.size
    generator = torch.Generator().manual_seed(1)
    total = 8 + size
    root = torch.linalg.cholesky(covariance)[:total, :total]
    noise = torch.randn(cases, 2, total, generator=generator, dtype=torch.float64)
    actions = torch.randint(8, (cases, total), generator=generator)
    denoiser: Any = PerfectDenoiser(covariance)
    latents = (noise @ root.mT).permute(0, 2, 1)[..., None, None].float()
    latents = latents + denoiser.shifts[actions][..., None, None, None]
    levels, memory = level_path(window, 14, lowest=0.05), [0, 1, 4, 8]
    errors = memory_errors(
        denoiser, latents, actions, levels, memory, generator=torch.Generator().manual_seed(2), context_level=0.0
    )
    assert errors.shape == (4, cases, 14, size)
    eye = torch.eye(total, dtype=torch.float64)
    for m, length in enumerate(memory[1:], 1):
        nats, error = information_gap(levels, errors[0], errors[m])
        past = eye[8 - length : 8]
        exact_errors = [
            gaussian_process_errors(covariance[:total, :total], eye[8:], given, levels) for given in (eye[:0], past)
        ]
        exact = 2 * information_gap(levels, *exact_errors).nats  # two dimensions a frame
        assert error < 0.1 * exact
        assert abs(nats - exact) < 4 * error


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": "cross"},
        {"memory": "channel", "compression": "modulated", "budget": 3},
        {"memory": "prepend", "compression": "joint", "budget": 3},
    ],
)
def test_equal_chance_gives_equal_errors_and_the_cut_is_real(
    changes: dict[str, Any],
    make_denoiser: Callable[..., Denoiser],
    make_inputs: Callable[..., FrameInputs],
) -> None:
    denoiser = make_denoiser(**changes)
    inputs = make_inputs(denoiser.config, 2, 9)
    latents, actions = inputs.latents, inputs.actions
    levels = level_path(next_frame_window(), 4)

    def run(latents: torch.Tensor, seed: int = 0, memory: tuple[int, ...] = (0, 2, 8)) -> torch.Tensor:
        chance = torch.Generator().manual_seed(seed)
        return memory_errors(denoiser, latents, actions, levels, memory, generator=chance)

    first = run(latents)
    assert torch.equal(first, run(latents)) and not torch.equal(first, run(latents, 1))
    assert torch.equal(first[1:2], run(latents, memory=(2,)))  # the other lengths do not matter
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    changed = latents.clone()
    changed[:, 5] += 3.0  # three frames before the last: older than a memory of 2
    again = run(changed)
    assert torch.equal(again[:2], first[:2]) and not torch.equal(again[2], first[2])


def test_the_action_into_the_first_frame_can_be_left_out(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser()
    inputs, levels = make_inputs(denoiser.config, 2, 6), level_path(next_frame_window(), 4)

    def run(actions: torch.Tensor, first_action: int | None) -> torch.Tensor:
        settings: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "first_action": first_action}
        return memory_errors(denoiser, inputs.latents, actions, levels, [0, 2], **settings)

    known = inputs.actions.clamp_max(6)
    without = known.clone()
    without[:, 3] = 7  # the cut of a memory of 2 frames is before frame 3
    assert torch.equal(run(known, 7)[1], run(without, None)[1])
    without[:, 5] = 7  # the cut of a memory of 0 frames is before the last
    assert torch.equal(run(known, 7)[0], run(without, None)[0])
    assert not torch.equal(run(known, 7), run(known, None))


def test_it_measures_and_plots(bundle: Path, tmp_path: Path, shard_writer: Callable[..., None]) -> None:
    shard_writer(tmp_path / "data" / "test-00000.h5", [18, 14], "test", image_size=32)
    model, counted = WorldModel.load(bundle, device="cpu"), list[int]()
    options = BottleneckOptions(memory="1,4,12", cases=6, num_levels=4)
    episodes = list_episodes(open_shards(tmp_path / "data", "test"))
    bench = Bench(model, LabMaze(), episodes, tmp_path / "data", tmp_path / "out", 4, on_frames=counted.append)
    found = Bottleneck().run(bench, options)
    assert json.loads(json.dumps(found)) == found
    assert found["cases"] == 6 and list(found["memory"]) == ["0", "1", "4", "12"]
    assert found["memory"]["0"]["gained"] == 0.0 == found["memory"]["12"]["lost"]
    for entry in found["memory"].values():
        assert entry["gained"] + entry["lost"] == pytest.approx(found["memory"]["12"]["gained"], abs=1e-3)
        assert len(entry["error_per_dimension"]) == 4
    assert (tmp_path / "out" / "bottleneck.png").read_bytes().startswith(b"\x89PNG")
    assert sum(counted) == Bottleneck().num_frames(bench, options) == 6 * 4 * 4
    halved = dataclasses.replace(bench, model=WorldModel.load(bundle, device="cpu", dtype=torch.bfloat16))
    assert Bottleneck().run(halved, options) == found  # a bundle's weights lose nothing, and float32 measures


def test_it_is_taken_in_a_rehearsal(bundle: Path, tmp_path: Path, shard_writer: Callable[..., None]) -> None:
    shard_writer(tmp_path / "data" / "test-00000.h5", [18, 22], "test", image_size=32)
    measures = read_measures(("bottleneck",), (), quick=True)
    report = evaluate_world(WorldModel.load(bundle, device="cpu"), tmp_path, measures, data=tmp_path / "data")
    assert list(report["measures"]["bottleneck"]["memory"]) == ["0", "1", "4", "16"]
    assert report["measures"]["bottleneck"]["cases"] == 4
    assert "| 16 | " in (tmp_path / "report.md").read_text()


def bench_of(bundle: Path, data: Path) -> Bench:
    episodes = list_episodes(open_shards(data, "test"))
    return Bench(WorldModel.load(bundle, device="cpu"), LabMaze(), episodes, data, data / "out")


def test_another_schedule_can_be_measured(bundle: Path, tmp_path: Path, shard_writer: Callable[..., None]) -> None:
    shard_writer(tmp_path / "test-00000.h5", [18], "test", image_size=32)
    options = BottleneckOptions(memory="2,4", cases=3, schedule="rolling:3:3", num_levels=4)
    found = measure_bottleneck(bench_of(bundle, tmp_path), options)
    assert found["window"]["before"] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert math.isfinite(found["memory"]["4"]["gained"])
    assert "| 4 | " in "\n".join(Bottleneck().lines(found))  # of one episode: without intervals


def test_bad_input_is_one_clear_error(
    bundle: Path, tmp_path: Path, shard_writer: Callable[..., None], make_denoiser: Callable[..., Denoiser]
) -> None:
    shard_writer(tmp_path / "data" / "test-00000.h5", [18], "test", image_size=32)
    with pytest.raises(DataError, match=r"19 frames.*a memory of 48 frames needs 50"):
        Bottleneck().check(bench_of(bundle, tmp_path / "data"), BottleneckOptions(memory="1,48"))
    for memory in ("-1", "1,1"):
        with pytest.raises(ConfigError, match="memory must be different numbers of at least 0"):
            BottleneckOptions(memory=memory)
    for memory in ("1,two", ""):
        with pytest.raises(ConfigError, match="memory must be whole numbers"):
            BottleneckOptions(memory=memory)
    with pytest.raises(ConfigError, match="cases must be at least 1; got 0"):
        BottleneckOptions(cases=0)
    with pytest.raises(WindowError, match="sideways"):
        BottleneckOptions(schedule="sideways")
    with pytest.raises(ConfigError, match="num_levels of at least 3"):
        BottleneckOptions(num_levels=2)
    denoiser, levels = make_denoiser(), level_path(next_frame_window(), 3)
    latents, actions = torch.zeros(1, 5, 4, 4, 4), torch.zeros(1, 5, dtype=torch.int64)
    for length in (-1, 5):
        with pytest.raises(ConfigError, match=f"from 0 to 4.*got {length}"):
            memory_errors(denoiser, latents, actions, levels, [length], generator=torch.Generator())
    with pytest.raises(ShapeError, match="a window of 6 frames takes clips of at least 6; got 5"):
        memory_errors(denoiser, latents, actions, level_path(fifo_window(6)), [0], generator=torch.Generator())
    with pytest.raises(ShapeError, match="one into each frame"):
        memory_errors(denoiser, latents, actions[:, 1:], levels, [1], generator=torch.Generator())
    for change in ({"num_levels": 2}, {"lowest": 0.0}, {"lowest": 0.98}, {"highest": 1.0}):
        with pytest.raises(ConfigError, match="level_path takes"):
            level_path(next_frame_window(), **change)
    for wrong in ([1.0], [0.5, 0.6], [1.0, 0.0], [1.2, 0.5]):
        with pytest.raises(ConfigError, match="fall from at most 1"):
            information_weights(torch.tensor(wrong))
    error = torch.ones(5, 2)
    with pytest.raises(ShapeError, match=r"got \(5, 2\) without and \(4, 2\) with"):
        information_gap(torch.tensor([1.0, 0.5]), error, error[1:])
    with pytest.raises(ShapeError, match="groups must name each of the 5"):
        information_gap(torch.tensor([1.0, 0.5]), error, error, ["a"])
