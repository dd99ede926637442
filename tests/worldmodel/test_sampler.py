"""The sampler: what it does in folded, cached calls equals what the definition says, computed the slow way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise, move_level
from worldmodel.sampler import Sampler, SamplerConfig
from worldmodel.state import DreamState
from worldmodel.windows import (
    Window,
    fifo_window,
    next_frame_window,
    outpainting_window,
    pyramid_window,
    rolling_window,
)

MOTIONS = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))
MOVING: dict[str, Any] = {"displacements": MOTIONS, "num_actions": 7, "width": 64, "heads": 4}
PAIRS = Window((1.0, 1.0), (0.0, 0.0), 2)
WINDOWS = {
    "next": next_frame_window(),
    "outpaint:4:0": outpainting_window(4, 0),
    "outpaint:4:1": outpainting_window(4, 1),
    "outpaint:4:3": outpainting_window(4, 3),
    "fifo:3": fifo_window(3),
    "rolling:5": rolling_window(5),
    "pyramid:6:2": pyramid_window(6, 2),
    "uneven": Window((0.25, 0.25, 0.5, 1.0, 1.0), (0.0, 0.0, 0.25, 0.25, 0.5), 2),
    "clean and begun": Window((0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.0, 0.5), 1),
}


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

    def begin(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        noise: torch.Tensor,
        flight_actions: torch.Tensor | None = None,
        flight_noise: torch.Tensor | None = None,
    ) -> None:
        past = latents.shape[1] - self.window.before.count(0.0)
        self.shown, self.actions = self.show(latents[:, :past], noise[:, :past]), actions[:, :past]
        self.flight, self.flight_actions = latents[:, past:], actions[:, past:]
        if flight_actions is not None and flight_noise is not None:
            overlap, lag = self.flight.shape[1], flight_actions.shape[1]
            self.flight_actions = torch.cat([self.flight_actions, flight_actions], 1)
            falling = torch.linspace(1, 0, self.config.num_init_steps + 1)[:, None].expand(-1, lag)
            grid = torch.cat([torch.zeros(len(falling), overlap), falling], 1)
            flight = self.denoise(torch.cat([self.flight, flight_noise[:, :lag]], 1), self.flight_actions, grid)
            levels = torch.tensor(self.window.before[overlap : overlap + lag]).expand(len(flight), -1)
            self.flight = torch.cat([self.flight, add_noise(flight[:, overlap:], flight_noise[:, lag:], levels)], 1)

    def denoise(self, flight: torch.Tensor, flight_actions: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        past = self.shown.shape[1]
        for before, after in zip(grid[:-1], grid[1:], strict=True):
            frames = torch.cat([self.shown, flight], 1)
            context = torch.full((len(frames), past), self.config.context_level)
            levels = torch.cat([context, before.expand(len(frames), -1)], 1)
            every_action = torch.cat([self.actions, flight_actions], 1)
            inputs = FrameInputs.stack(frames, levels, every_action, self.denoiser.config.num_previous)
            clean = self.denoiser(inputs)[0].clean[:, past:]
            flight = move_level(flight, clean, *(g.expand(len(frames), -1) for g in (before, after)))
        return flight

    def step(self, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor) -> torch.Tensor:
        flight_actions = torch.cat([self.flight_actions, actions], 1)
        grid, stride = self.window.grid(self.config.num_steps), self.window.stride
        flight = self.denoise(torch.cat([self.flight, noise], 1), flight_actions, grid)
        self.shown = torch.cat([self.shown, self.show(flight[:, :stride], shown_noise)], 1)
        self.actions = torch.cat([self.actions, flight_actions[:, :stride]], 1)
        self.flight, self.flight_actions = flight[:, stride:], flight_actions[:, stride:]
        overlap = self.window.before.count(0.0)
        return flight[:, overlap : overlap + stride]


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


def opening(denoiser: Denoiser, window: Window, batch: int, frames: int) -> tuple[torch.Tensor, ...]:
    """Return the arguments of `begin`."""
    given = draw(denoiser, batch, frames, 1), draw_actions(denoiser, batch, frames, 2), draw(denoiser, batch, frames, 3)
    lag = window.input_lag
    return given + ((draw_actions(denoiser, batch, lag, 5), draw(denoiser, batch, 2 * lag, 4)) if lag else ())


@pytest.mark.parametrize(("num_steps", "frames", "memory"), [(1, 5, {}), (2, 9, {}), (2, 5, MOVING)])
@pytest.mark.parametrize("name", WINDOWS)
@torch.inference_mode()
def test_every_schedule_equals_its_definition(
    name: str, num_steps: int, frames: int, memory: dict[str, Any], make_denoiser: Callable[..., Denoiser]
) -> None:
    """Both stages; rings (3 and 6 frames) shorter than windows and contexts; summaries alone, and with odometry."""
    denoiser, window = make_denoiser(**memory), WINDOWS[name]
    config = SamplerConfig(num_steps=num_steps, context_level=0.1, num_init_steps=3)
    slow, sampler = (kind(denoiser, window, config) for kind in (SlowDream, Sampler))
    given = opening(denoiser, window, 2, frames)
    slow.begin(*given)
    state = sampler.begin(*given)
    torch.testing.assert_close(state.flight, slow.flight, rtol=1e-4, atol=1e-4)
    assert_same_dream(denoiser, slow, sampler, state, 4)


@pytest.mark.parametrize("name", ["outpaint:4:1", "outpaint:4:3", "clean and begun"])
@torch.inference_mode()
def test_a_context_may_be_no_longer_than_the_overlap(name: str, make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser, window = make_denoiser(), WINDOWS[name]
    config = SamplerConfig(num_steps=2, num_init_steps=2)
    slow, sampler = (kind(denoiser, window, config) for kind in (SlowDream, Sampler))
    given = opening(denoiser, window, 1, window.num_clean)
    slow.begin(*given)
    assert_same_dream(denoiser, slow, sampler, sampler.begin(*given), 5)
    if window.num_clean > 1:
        with pytest.raises(ShapeError, match=f"at least {window.num_clean} frames .* longer context or a smaller over"):
            sampler.begin(*opening(denoiser, window, 1, window.num_clean - 1))


@torch.inference_mode()
def test_the_step_of_the_next_frame_bit_for_bit(make_denoiser: Callable[..., Denoiser]) -> None:
    """The general sampler makes the very calls that next-frame play needs: the frame before, folded in, and the new."""
    denoiser, config = make_denoiser(), SamplerConfig(num_steps=3, context_level=0.05)
    sampler = Sampler(denoiser, next_frame_window(), config)
    state = sampler.begin(*opening(denoiser, next_frame_window(), 2, 5))
    own, level, falling = state.clone(), torch.full((2, 1), 0.05), 1 - torch.linspace(0, 1, 4)
    for k in range(8):
        actions, noise, shown_noise = draw_actions(denoiser, 2, 1, k), draw(denoiser, 2, 1, k), draw(denoiser, 2, 1, -k)
        frame = noise
        for step in range(3):
            before, after = (level.expand(2, 1) for level in falling[step : step + 2])
            frames = torch.cat([own.recent, own.pending, frame], 1)
            levels = torch.cat([own.recent_levels, level, before], 1)
            into = torch.cat([own.pending_actions, actions], 1)[:, -(2 if step == 0 else 1) :]
            found, written = denoiser(FrameInputs.stack(frames, levels, into, 2), cache=own.cache)
            if step == 0:
                own.cache.commit(*written, num_frames=1)
            frame = move_level(frame, found.clean[:, -1:], before, after)
        own.recent = torch.cat([own.recent, own.pending], 1)[:, -2:]
        own.recent_levels = torch.cat([own.recent_levels, level], 1)[:, -2:]
        own.pending, own.pending_actions = add_noise(frame, shown_noise, level), actions
        assert torch.equal(sampler.step(state, actions, noise, shown_noise)[0], frame)


@torch.inference_mode()
def test_clean_frames_stay_as_they_are(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser, window = make_denoiser(), outpainting_window(4, 3)
    sampler = Sampler(denoiser, window, SamplerConfig(num_steps=3))
    given = opening(denoiser, window, 1, 5)
    state = sampler.begin(*given)
    found, _ = sampler.step(state, draw_actions(denoiser, 1, 1, 6), draw(denoiser, 1, 1, 7), draw(denoiser, 1, 1, 8))
    assert torch.equal(state.flight, torch.cat([given[0][:, -2:], found], 1))


@torch.inference_mode()
def test_the_window_is_filled_from_noise_at_the_levels_before(make_denoiser: Callable[..., Denoiser]) -> None:
    """One initialization step gives the clean prediction, noised forward to the levels that a step takes in."""
    denoiser, window = make_denoiser(), rolling_window(4)
    given = opening(denoiser, window, 1, 1)
    state = Sampler(denoiser, window, SamplerConfig(num_init_steps=1, context_level=0.0)).begin(*given)
    latents, actions, _, flight_actions, flight_noise = given
    frames = torch.cat([latents, flight_noise[:, :3]], 1)
    levels = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    inputs = FrameInputs.stack(frames, levels, torch.cat([actions, flight_actions], 1), 2)
    clean = denoiser(inputs)[0].clean[:, 1:]
    share = torch.tensor([0.25, 0.5, 0.75])[None, :, None, None, None]
    torch.testing.assert_close(state.flight, (1 - share) * clean + share * flight_noise[:, 3:], rtol=1e-4, atol=1e-4)
    assert torch.equal(state.flight_actions, flight_actions)
    assert state.cache.count.item() == 0, "filling the window writes no memory"


@torch.inference_mode()
def test_begin_asks_for_what_fills_the_window(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    given = opening(denoiser, fifo_window(3), 1, 4)
    sampler = Sampler(denoiser, fifo_window(3), SamplerConfig())
    for bad in (given[:3], (*given[:3], given[3][:, :1], given[4]), (*given[:4], given[4][:, :3])):
        with pytest.raises(ShapeError, match=r"flight_actions \(1, 2\) and flight_noise \(1, 4, ...\) for the 2 unfin"):
            sampler.begin(*bad)
    with pytest.raises(ShapeError, match="for the 0 unfinished frames"):
        Sampler(denoiser, next_frame_window(), SamplerConfig()).begin(*given)


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
            return denoiser(FrameInputs.stack(frames, levels, action, 2), cache=own.cache)

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
    torch.testing.assert_close(state.cache.rings["memory_k"], own.cache.rings["memory_k"], rtol=1e-4, atol=1e-4)
    assert state.cache.rings["memory_k"].shape[3] == (memory_frames or 6)


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
@pytest.mark.parametrize("window", [next_frame_window(), outpainting_window(3, 2)], ids=["next", "outpaint"])
def test_the_result_of_a_step_is_not_part_of_the_state(window: Window, make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    sampler = Sampler(denoiser, window, SamplerConfig(num_steps=1, context_level=0.0))
    latents = draw(denoiser, 1, 3, 1)
    state = sampler.begin(latents, draw_actions(denoiser, 1, 3, 2), draw(denoiser, 1, 3, 3))
    before = state.pending.clone(), state.flight.clone()
    latents.zero_()
    assert all(map(torch.equal, (state.pending, state.flight), before))
    found, _ = sampler.step(state, draw_actions(denoiser, 1, 1, 4), draw(denoiser, 1, 1, 5), draw(denoiser, 1, 1, 6))
    before = state.pending.clone(), state.flight.clone()
    found.zero_()
    assert all(map(torch.equal, (state.pending, state.flight), before))


@pytest.mark.parametrize("name", ["next", "fifo:3", "clean and begun"])
@torch.inference_mode()
def test_a_state_takes_the_same_bytes_forever(name: str, make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser, window = make_denoiser(depth=2), WINDOWS[name]
    sampler = Sampler(denoiser, window, SamplerConfig(num_steps=1))
    state = sampler.begin(*opening(denoiser, window, 1, 4))

    def held() -> int:
        tensors = [state.pending, state.recent, state.flight, state.pending_actions, state.flight_actions]
        return state.cache.num_bytes + sum(t.untyped_storage().nbytes() for t in tensors)

    sizes = set()
    for k in range(25):
        actions = draw_actions(denoiser, 1, 1, k)
        sampler.step(state, actions, draw(denoiser, 1, 1, 2 * k), draw(denoiser, 1, 1, 2 * k + 1))
        sizes.add(held())
    assert len(sizes) == 1
    assert state.cache.count.item() == 4 + 25 - 1 - window.num_clean


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
        ({"num_init_steps": 0}, "num_init_steps must be a whole number from 1 to 1000; got 0"),
        ({"num_steps": True}, "whole number from 1 to 1000; got True"),
        ({"num_steps": 2.5}, "whole number from 1 to 1000; got 2.5"),
        ({"context_level": -0.1}, "got -0.1"),
        ({"level_shift": 0.0}, "level_shift must be above 0; got 0.0"),
        ({"level_shift": float("nan")}, "got nan"),
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
