"""Rollout-free prediction: known errors give known sums, a perfect network gives none; ranks and their interval."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.analysis.correlation import rank, rank_correlation
from worldmodel.analysis.prediction import noise_initialization, predict_decay, predicted_curve, unrelated_distance
from worldmodel.analysis.single_steps import RealPast, irreducible_errors, step_errors
from worldmodel.cache import MemoryCache
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser, Prediction, Written
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.sampler import SamplerConfig
from worldmodel.windows import Schedule, fifo_window, next_frame_window, outpainting_window, parse_schedule
from worldmodel.world import WorldModel

CONTEXT, FRAMES = 5, 12
CONFIG = SamplerConfig(num_steps=2, context_level=0.1, num_init_steps=3)


class Oracle:
    """A network that knows the truth and misses it by `offset + slope * level` in every number."""

    def __init__(self, denoiser: Denoiser, truth: torch.Tensor, offset: float = 0.0, slope: float = 0.0) -> None:
        self.denoiser, self.truth, self.offset, self.slope = denoiser, truth, offset, slope

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, frames: FrameInputs, *, cache: MemoryCache, **rest: Any) -> tuple[Prediction, Written]:
        prediction, written = self.denoiser(frames, cache=cache, **rest)
        first = int(cache.count[0])
        miss = (self.offset + self.slope * frames.levels)[..., None, None, None]
        return prediction._replace(clean=self.truth[:, first : first + frames.num_frames] + miss), written


@pytest.fixture
def denoiser(make_denoiser: Callable[..., Denoiser]) -> Denoiser:
    return make_denoiser()


@pytest.fixture
def clips(denoiser: Denoiser) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    config = denoiser.config
    latents = torch.randn(
        2, FRAMES, config.latent_channels, config.latent_size, config.latent_size, generator=generator
    )
    return latents, torch.randint(config.num_actions, (2, FRAMES), generator=generator)


def world(denoiser: Any, **changes: Any) -> Any:
    settings = {"denoiser": denoiser, "config": CONFIG, "memory_frames": None, "device": torch.device("cpu")}
    return SimpleNamespace(**settings | changes)


def predict(denoiser: Any, clips: tuple[torch.Tensor, torch.Tensor], text: str, steps: int | None = None) -> Any:
    schedule = parse_schedule(text)
    schedule = Schedule(schedule.name, schedule.window, schedule.num_steps if steps is None else steps)
    return predict_decay(world(denoiser), *clips, schedule, context=CONTEXT)


@pytest.mark.parametrize("text", ["next", "fifo:3", "rolling:3:2", "pyramid:4:2", "outpaint:4:2"])
def test_a_perfect_network_adds_no_error(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor], text: str
) -> None:
    found = predict(Oracle(denoiser, clips[0]), clips, text)
    for name in ("velocity", "irreducible", "score", "discretization", "noise_initialization", "divergence_rate"):
        assert found[name] == pytest.approx(0.0, abs=1e-9)
    assert all(value == pytest.approx(0.0, abs=1e-9) for value in found["initialization"].values())


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("next", 1, 1.0),
        ("next", 4, 0.25 * (1 + 16 / 9 + 4 + 16)),
        ("fifo:4", None, 0.25 * (1 + 16 / 9 + 4 + 16)),  # the levels of next-frame in 4 steps, one in each frame
        ("outpaint:4:2", 2, 0.5 * (1 + 4)),  # two frames in flight, divided by a stride of 2
        ("pyramid:4:2", 1, 0.5 * (1 + 4)),
    ],
)
def test_a_known_error_gives_the_known_sum(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor], text: str, steps: int | None, expected: float
) -> None:
    offset = 0.3
    found = predict(Oracle(denoiser, clips[0], offset), clips, text, steps)
    assert found["distance_rate"] == pytest.approx(offset**2 * expected, rel=1e-4)
    assert found["score"] == pytest.approx(0.0, abs=1e-5)  # the reference misses by as much
    assert found["discretization"] == pytest.approx(0.0, abs=1e-9)  # a fixed target is reached along a straight line

    better = predict_decay(
        world(Oracle(denoiser, clips[0], offset)),
        *clips,
        Schedule(text, parse_schedule(text).window, steps or 1),
        context=CONTEXT,
        reference=Oracle(denoiser, clips[0]),  # type: ignore[arg-type]  # has the face of a denoiser
    )
    assert better["score"] == pytest.approx(offset**2 * expected, rel=1e-4)


def test_discretization_of_a_target_that_moves_with_the_level(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    slope = 0.2
    found = predict(Oracle(denoiser, clips[0], slope=slope), clips, "next", 2)
    steps = ((1.0, 0.5), (0.5, 0.0))
    expected = sum((slope * (b - a) ** 2 / (2 * (a + b))) ** 2 / (b - a) for b, a in steps)
    assert found["discretization"] == pytest.approx(expected, rel=1e-4)


def test_the_initialization_stage_counts_what_is_kept_of_its_frames(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    offset = 0.3
    found = predict(Oracle(denoiser, clips[0], offset), clips, "fifo:3")
    kept = (2 / 3) ** 2 + (1 / 3) ** 2  # noised forward to levels 1/3 and 2/3
    per_frame = (1 + 9 / 4 + 9) / 3  # levels 1, 2/3, 1/3 of three steps
    assert found["initialization"]["velocity"] == pytest.approx(offset**2 * per_frame * kept, rel=1e-4)
    assert predict(Oracle(denoiser, clips[0], offset), clips, "next")["initialization"]["velocity"] == 0.0


def test_steps_with_a_memory_equal_the_network_on_whole_clips(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    latents, actions = clips
    chance = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    stop = CONTEXT + 3
    grid = fifo_window(3).grid(1)
    real, mixed, led = (x[:, CONTEXT:stop] for x in (latents, chance, actions))
    with torch.inference_mode():
        past = RealPast(denoiser, CONFIG, latents[:, :CONTEXT], actions[:, :CONTEXT], chance[:, :CONTEXT])
        found = step_errors(past, real, mixed, led, grid)["velocity"]
        levels = torch.cat([torch.full((CONTEXT,), CONFIG.context_level), grid[0]]).expand(2, -1)
        noisy = add_noise(latents[:, :stop], chance[:, :stop], levels)
        inputs = FrameInputs.stack(noisy, levels, actions[:, :stop], denoiser.config.num_previous)
        clean = denoiser(inputs)[0].clean[:, CONTEXT:]
    error = (clean - latents[:, CONTEXT:stop]).square().mean((2, 3, 4))
    assert torch.allclose(found, error / 3 / grid[0].square(), rtol=1e-3, atol=1e-5)


def test_irreducible_part_sees_earlier_frames_clean(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    latents, actions = clips
    chance = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    given = (CONFIG, latents[:, :CONTEXT], actions[:, :CONTEXT], chance[:, :CONTEXT])
    real, mixed, led = (x[:, CONTEXT : CONTEXT + 3] for x in (latents, chance, actions))
    grid = outpainting_window(3, 0).grid(2)
    with torch.inference_mode():
        ours = step_errors(RealPast(denoiser, *given), real, mixed, led, grid)["velocity"]
        fullest = irreducible_errors(RealPast(denoiser, *given), real, mixed, led, grid)
        longer = RealPast(denoiser, CONFIG, *(x[:, : CONTEXT + 2] for x in (latents, actions, chance)))
        alone = step_errors(longer, real[:, 2:], mixed[:, 2:], led[:, 2:], grid[:, 2:])["velocity"]
    assert torch.allclose(ours[:, 0], fullest[:, 0], rtol=1e-4)
    assert not torch.allclose(ours[:, 2], fullest[:, 2], rtol=1e-3)
    assert torch.allclose(alone[:, 0], fullest[:, 2], rtol=1e-3, atol=1e-5)


def test_noise_initialization_is_the_divergence_of_what_is_left_of_the_signal() -> None:
    latents = torch.randn(4, 50, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert noise_initialization(5 + 3 * latents, next_frame_window()) == 0.0
    half = SimpleNamespace(before=(0.5,))
    expected = 0.5 * (0.5 - 1 - np.log(0.5))
    assert noise_initialization(latents, half) == pytest.approx(expected, rel=0.02)  # type: ignore[arg-type]


def test_curve_is_the_cumulative_sum_and_ends_where_frames_are_unrelated() -> None:
    prediction = {"cases": {"distance": [0.1, 0.2]}, "initialization": {"velocity": 0.5}}
    plain = predicted_curve(prediction, 100)
    assert torch.allclose(plain[:, 9], torch.tensor([1.5, 2.5], dtype=torch.float64))
    curve = predicted_curve(prediction, 1000, saturation=2.0)
    assert bool((curve <= plain[:, :1] + curve.diff(dim=1).sum()).all())
    assert torch.allclose(curve[:, -1], torch.tensor(2.0, dtype=torch.float64))
    assert float(curve[0, 0]) == pytest.approx(2 * (1 - np.exp(-0.3)))
    latents = torch.randn(16, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert unrelated_distance(latents) == pytest.approx(2.0, rel=0.05)
    with pytest.raises(ShapeError, match="two clips"):
        unrelated_distance(latents[:1])


def test_schedules_share_the_noise_and_a_clip_too_short_is_an_error(
    make_denoiser: Callable[..., Denoiser], make_codec: Callable[..., Codec], clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = WorldModel(make_codec(), make_denoiser(), device="cpu", num_steps=2, dtype=torch.float32)
    two, one = (predict_decay(model, *clips, parse_schedule("next"), context=5, batch_size=n) for n in (2, 1))
    assert two["cases"]["distance"] == pytest.approx(one["cases"]["distance"], rel=1e-4)
    assert two["score"] == pytest.approx(0.0, abs=1e-6)
    assert two["distance_rate"] > 0
    with pytest.raises(ShapeError, match=r"fifo:9 .* needs clips of 14 frames; got clips of 12"):
        predict_decay(model, *clips, parse_schedule("fifo:9"), context=5)
    with pytest.raises(ConfigError, match="at least 6"):
        predict_decay(model, *clips, parse_schedule("outpaint:7:5"), context=5)
    with pytest.raises(ShapeError, match="action into each frame"):
        predict_decay(model, clips[0], clips[1][:, 1:], parse_schedule("next"), context=5)


def test_ranks_share_ties() -> None:
    assert rank(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_rank_correlation_of_known_orders() -> None:
    up = [1.0, 2.0, 3.0, 10.0, 11.0, 40.0, 41.0, 90.0]
    found = rank_correlation(up, [value**3 for value in up])
    assert (found["rho"], found["low"], found["high"]) == (1.0, 1.0, 1.0)
    assert rank_correlation(up, up[::-1])["rho"] == -1.0
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])["rho"] == pytest.approx(0.8)
    assert rank_correlation([1, 1, 2], [1, 2, 2])["rho"] == pytest.approx(0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3])["rho"] is None


def test_interval_widens_with_the_noise_of_cases() -> None:
    rng = np.random.default_rng(0)
    order = np.arange(12.0)[:, None]
    sure = rank_correlation(order + 0.01 * rng.normal(size=(12, 8)), order + 0.01 * rng.normal(size=(12, 20)))
    noisy = rank_correlation(order + 30 * rng.normal(size=(12, 8)), order + 30 * rng.normal(size=(12, 20)))
    assert sure["rho"] == sure["low"] == 1.0
    assert noisy["high"] - noisy["low"] > 0.5
    assert noisy["low"] <= noisy["rho"] <= noisy["high"]


def test_rank_correlation_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ShapeError, match="at least 3 schedules"):
        rank_correlation([1, 2], [1, 2])
    with pytest.raises(ShapeError, match="both sides"):
        rank_correlation([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ConfigError, match="finite"):
        rank_correlation([1, 2, float("nan")], [1, 2, 3])


def test_a_window_is_placed_on_the_frames_after_the_context(
    denoiser: Denoiser, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """A network that is wrong from frame CONTEXT on only: the clean overlap before it adds nothing."""
    latents, actions = clips
    miss = torch.zeros_like(latents)
    miss[:, CONTEXT:] = 0.5
    found = predict(Oracle(denoiser, latents + miss), (latents, actions), "outpaint:4:3", 1)
    assert found["distance_rate"] == pytest.approx(0.25, rel=1e-4)
