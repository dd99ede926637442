"""The sampler: what it does in folded, cached calls equals what the definition says, computed the slow way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError, ShapeError, WindowError
from worldmodel.noise import add_noise, move_level
from worldmodel.objective import stack_previous
from worldmodel.sampler import DreamState, Sampler, SamplerConfig
from worldmodel.windows import Window, next_frame_window

PAIRS = Window((1.0, 1.0), (0.0, 0.0), 2)
FIFO = Window((0.25, 0.5, 1.0), (0.0, 0.25, 0.5), 1)


def draw(denoiser: Denoiser, batch: int, frames: int, seed: int) -> torch.Tensor:
    config = denoiser.config
    shape = (batch, frames, config.latent_channels, config.latent_size, config.latent_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_actions(denoiser: Denoiser, batch: int, frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(denoiser.config.num_actions, (batch, frames), generator=generator)


class SlowDream:
    """The definition: no cache, no folding; every call sees the whole dream, every shown frame at the context level."""

    def __init__(self, denoiser: Denoiser, window: Window, config: SamplerConfig) -> None:
        self.denoiser, self.window, self.config = denoiser, window, config

    def show(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return add_noise(clean, noise, torch.full(clean.shape[:2], self.config.context_level))

    def begin(self, latents: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> None:
        self.shown, self.actions = self.show(latents, noise), actions
        self.flight = latents[:, :0]
        self.flight_actions = actions[:, :0]

    def step(self, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor) -> torch.Tensor:
        flight = torch.cat([self.flight, noise], 1)
        flight_actions = torch.cat([self.flight_actions, actions], 1)
        past, stride = self.shown.shape[1], self.window.stride
        grid = self.window.grid(self.config.num_steps)
        for before, after in zip(grid[:-1], grid[1:], strict=True):
            frames = torch.cat([self.shown, flight], 1)
            context = torch.full((len(frames), past), self.config.context_level)
            levels = torch.cat([context, before.expand(len(frames), -1)], 1)
            previous, previous_levels = stack_previous(frames, levels, self.denoiser.config.num_previous)
            every_action = torch.cat([self.actions, flight_actions], 1)
            clean = self.denoiser(frames, levels, every_action, previous, previous_levels).clean[:, past:]
            flight = move_level(flight, clean, *(g.expand(len(frames), -1) for g in (before, after)))
        done, self.flight = flight[:, :stride], flight[:, stride:]
        self.shown = torch.cat([self.shown, self.show(done, shown_noise)], 1)
        self.actions = torch.cat([self.actions, flight_actions[:, :stride]], 1)
        self.flight_actions = flight_actions[:, stride:]
        return done


def assert_same_dream(
    denoiser: Denoiser, slow: SlowDream, sampler: Sampler, state: DreamState, num_steps: int, tolerance: float = 1e-4
) -> None:
    stride, batch = slow.window.stride, state.pending.shape[0]
    for k in range(num_steps):
        actions = draw_actions(denoiser, batch, stride, 100 + k)
        noise, shown_noise = (draw(denoiser, batch, stride, seed + k) for seed in (1_000, 2_000))
        expected = slow.step(actions, noise, shown_noise)
        found, prediction = sampler.step(state, actions, noise, shown_noise)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, k=k: f"step {k}: {m}")
        assert prediction.reward_logits.shape[:2] == (batch, stride)


@pytest.mark.parametrize(("num_steps", "opening"), [(1, 1), (2, 2), (4, 5), (1, 9), (8, 4)])
@torch.inference_mode()
def test_a_dream_equals_its_definition(num_steps: int, opening: int, make_denoiser: Callable[..., Denoiser]) -> None:
    """Long enough that both rings (3 and 6) turn over; openings shorter and longer than the rings."""
    denoiser = make_denoiser()
    config = SamplerConfig(num_steps=num_steps, context_level=0.05)
    slow, sampler = (kind(denoiser, next_frame_window(), config) for kind in (SlowDream, Sampler))
    start = draw(denoiser, 2, opening, 1), draw_actions(denoiser, 2, opening, 2), draw(denoiser, 2, opening, 3)
    slow.begin(*start)
    assert_same_dream(denoiser, slow, sampler, sampler.begin(*start), 9)


@pytest.mark.parametrize(
    "settings",
    [{"context_level": 0.0}, {"changes": {"num_previous": 4}}, {"changes": {"depth": 1}}, {"window": PAIRS}],
    ids=str,
)
@torch.inference_mode()
def test_a_dream_equals_its_definition_with_other_settings(
    settings: dict[str, Any], make_denoiser: Callable[..., Denoiser]
) -> None:
    denoiser = make_denoiser(**settings.get("changes", {}))
    config = SamplerConfig(num_steps=2, context_level=settings.get("context_level", 0.1))
    window = settings.get("window", next_frame_window())
    slow, sampler = (kind(denoiser, window, config) for kind in (SlowDream, Sampler))
    start = draw(denoiser, 1, 4, 1), draw_actions(denoiser, 1, 4, 2), draw(denoiser, 1, 4, 3)
    slow.begin(*start)
    assert_same_dream(denoiser, slow, sampler, sampler.begin(*start), 8)


@torch.inference_mode()
def test_frames_in_flight_equal_the_definition(make_denoiser: Callable[..., Denoiser]) -> None:
    """A FIFO window, begun by hand: the step already serves schedules with an input lag."""
    denoiser = make_denoiser()
    config = SamplerConfig(num_steps=2, context_level=0.1)
    slow, sampler = (kind(denoiser, FIFO, config) for kind in (SlowDream, Sampler))
    start = draw(denoiser, 1, 4, 1), draw_actions(denoiser, 1, 4, 2), draw(denoiser, 1, 4, 3)
    slow.begin(*start)
    state = Sampler(denoiser, next_frame_window(), config).begin(*start)
    flight, flight_actions = draw(denoiser, 1, 2, 4), draw_actions(denoiser, 1, 2, 5)
    slow.flight, slow.flight_actions = flight, flight_actions
    state.flight, state.flight_actions = flight.clone(), flight_actions.clone()
    assert_same_dream(denoiser, slow, sampler, state, 8)
    with pytest.raises(WindowError, match="leaves 2 frames in flight"):
        sampler.begin(*start)


@pytest.mark.parametrize("memory_frames", [None, 2, 1])
@torch.inference_mode()
def test_a_folded_commit_equals_one_by_its_own_call(
    memory_frames: int | None, make_denoiser: Callable[..., Denoiser]
) -> None:
    denoiser = make_denoiser()
    config = SamplerConfig(num_steps=3, context_level=0.05)
    sampler = Sampler(denoiser, next_frame_window(), config, memory_frames)
    state = sampler.begin(draw(denoiser, 2, 3, 1), draw_actions(denoiser, 2, 3, 2), draw(denoiser, 2, 3, 3))
    own = state.clone()
    level = torch.full((2, 1), config.context_level)
    for k in range(10):
        actions = draw_actions(denoiser, 2, 1, 10 + k)
        noise, shown_noise = draw(denoiser, 2, 1, 20 + k), draw(denoiser, 2, 1, 40 + k)

        def call(frame: torch.Tensor, frame_level: torch.Tensor, action: torch.Tensor) -> Any:
            frames = torch.cat([own.recent, frame], 1)
            levels = torch.cat([own.recent_levels, frame_level], 1)
            previous, previous_levels = (p[:, -1:] for p in stack_previous(frames, levels, 2))
            return denoiser.forward_cached(frame, frame_level, action, previous, previous_levels, own.cache)

        _, written = call(own.pending, level, own.pending_actions)
        own.cache.commit(*written, num_frames=1)
        own.recent = torch.cat([own.recent, own.pending], 1)[:, -2:]
        own.recent_levels = torch.cat([own.recent_levels, level], 1)[:, -2:]
        frame = noise
        for before, after in zip(sampler.grid[:-1], sampler.grid[1:], strict=True):
            clean = call(frame, before.expand(2, 1), actions)[0].clean
            frame = move_level(frame, clean, before.expand(2, 1), after.expand(2, 1))
        own.pending, own.pending_actions = add_noise(frame, shown_noise, level), actions

        found, _ = sampler.step(state, actions, noise, shown_noise)
        torch.testing.assert_close(found, frame, rtol=1e-4, atol=1e-4, msg=lambda m, k=k: f"step {k}: {m}")
    torch.testing.assert_close(state.cache.memory_k, own.cache.memory_k, rtol=1e-4, atol=1e-4)
    assert state.cache.memory_k.shape[3] == (memory_frames or 6)


@torch.inference_mode()
def test_one_step_from_noise_is_the_clean_prediction(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1))
    state = sampler.begin(draw(denoiser, 1, 3, 1), draw_actions(denoiser, 1, 3, 2), draw(denoiser, 1, 3, 3))
    found, prediction = sampler.step(
        state, *(draw_actions(denoiser, 1, 1, 4), *(draw(denoiser, 1, 1, s) for s in (5, 6)))
    )
    torch.testing.assert_close(found, prediction.clean)


@torch.inference_mode()
def test_the_result_of_a_step_is_not_part_of_the_state(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1, context_level=0.0))
    latents = draw(denoiser, 1, 3, 1)
    state = sampler.begin(latents, draw_actions(denoiser, 1, 3, 2), draw(denoiser, 1, 3, 3))
    before = state.pending.clone()
    latents.zero_()
    assert torch.equal(state.pending, before)
    found, _ = sampler.step(state, draw_actions(denoiser, 1, 1, 4), draw(denoiser, 1, 1, 5), draw(denoiser, 1, 1, 6))
    before = state.pending.clone()
    found.zero_()
    assert torch.equal(state.pending, before)


@torch.inference_mode()
def test_a_state_takes_the_same_bytes_forever(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(depth=2)
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1))
    state = sampler.begin(draw(denoiser, 1, 4, 1), draw_actions(denoiser, 1, 4, 2), draw(denoiser, 1, 4, 3))

    def held() -> int:
        tensors = [state.pending, state.recent, state.flight, state.pending_actions, state.flight_actions]
        return state.cache.num_bytes + sum(t.untyped_storage().nbytes() for t in tensors)

    sizes = set()
    for k in range(25):
        actions = draw_actions(denoiser, 1, 1, k)
        sampler.step(state, actions, draw(denoiser, 1, 1, 2 * k), draw(denoiser, 1, 1, 2 * k + 1))
        sizes.add(held())
    assert len(sizes) == 1
    assert state.cache.count.item() == 4 + 25 - 1


@pytest.mark.parametrize(
    ("latents", "actions", "noise"), [((1, 0), (1, 0), (1, 0)), ((1, 3), (1, 2), (1, 3)), ((1, 3), (1, 3), (1, 2))]
)
def test_begin_names_shapes_that_do_not_agree(
    latents: tuple[int, int], actions: tuple[int, int], noise: tuple[int, int], make_denoiser: Callable[..., Denoiser]
) -> None:
    denoiser = make_denoiser()
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig())
    with pytest.raises(ShapeError, match="begin takes at least 1 frames with one action and noise each"):
        sampler.begin(draw(denoiser, *latents, 0), draw_actions(denoiser, *actions, 0), draw(denoiser, *noise, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number from 1 to 1000; got 0"),
        ({"num_steps": 1001}, "got 1001"),
        ({"num_steps": 2.5}, "whole number from 1 to 1000; got 2.5"),
        ({"context_level": -0.1}, "got -0.1"),
        ({"context_level": 1.0}, r"context_level must be in \[0, 1\); got 1.0"),
        ({"context_level": float("nan")}, "got nan"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**settings)


def test_memory_longer_than_the_denoiser_sees_is_refused(make_denoiser: Callable[..., Denoiser]) -> None:
    with pytest.raises(ConfigError, match="memory_frames must be from 1 to 6, .*; got 100"):
        Sampler(make_denoiser(), next_frame_window(), SamplerConfig(), 100)
