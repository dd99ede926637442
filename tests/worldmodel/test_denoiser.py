"""The denoiser: one function, clip or cache; levels, actions and the past matter; the future does not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.cache import MemoryCache
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.errors import ActionError, ConfigError, ShapeError
from worldmodel.folded import NUM_FOLDED
from worldmodel.inputs import FrameInputs
from worldmodel.presets import PRESETS, get_preset

SETTINGS: list[dict[str, Any]] = [
    {},
    {"depth": 1, "num_previous": 1},
    {"depth": 2, "recent_frames": 1, "memory_frames": 1, "num_summary": 1},
    {"depth": 3, "recent_frames": 5, "memory_frames": 2, "num_previous": 3},
    {"depth": 2, "recent_frames": 30, "memory_frames": 30, "heads": 4},
    {"depth": 2, "patch": 1, "num_actions": 3, "reward_values": (0.0, 0.5, 1.0)},
]
MOTIONS = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))
STRUCTURES: list[dict[str, Any]] = [
    {"memory": "none"},
    {"memory": "prepend", "memory_frames": 5},
    {"memory": "prepend", "memory_frames": 6, "compression": "joint", "budget": 2},
    {"memory": "prepend", "memory_frames": 4, "compression": "joint", "budget": 4},
    {"memory": "channel", "memory_frames": 5},
    {"memory": "channel", "memory_frames": 6, "compression": "modulated", "budget": 3},
    {"memory": "cross", "memory_frames": 5},
]
SETTINGS += [{"warp_channels": NUM_FOLDED}]
SETTINGS += STRUCTURES + [
    {**changes, "displacements": MOTIONS, "width": 64, "heads": 4} for changes in [{}, *STRUCTURES]
]


def changed(inputs: FrameInputs, name: str, frame: int, change: Callable[[torch.Tensor], torch.Tensor]) -> FrameInputs:
    """Return the inputs with one tensor changed at one frame."""
    value = getattr(inputs, name).clone()
    value[:, frame] = change(value[:, frame])
    return dataclasses.replace(inputs, **{name: value})


def walk(denoiser: Denoiser, inputs: FrameInputs, splits: list[int], cache: MemoryCache) -> Prediction:
    """Run frames through the cache in calls of the given sizes, the rest in one; return the joined predictions."""
    frames, start, found = inputs.num_frames, 0, []
    for size in [*splits, frames]:
        stop = min(start + size, frames)
        if stop > start:
            prediction, written = denoiser(inputs[start:stop], cache=cache)
            cache.commit(*written, num_frames=stop - start)
            found.append(prediction)
        start = stop
    return Prediction(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))


def assert_equal(found: Prediction, expected: Prediction, tolerance: float = 2e-5) -> None:
    for name, a, b in zip(Prediction._fields, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
@torch.inference_mode()
def test_frame_by_frame_through_the_cache_equals_the_whole_clip(
    changes: dict[str, Any], make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser(**changes)
    inputs = make_inputs(denoiser.config, 2, 16)
    expected, written = denoiser(inputs)
    assert not written.rings
    assert_equal(walk(denoiser, inputs, [1] * 16, denoiser.new_cache(2)), expected)
    for chunk in (2, 4, 8):
        assert_equal(denoiser(inputs, chunk=chunk)[0], expected)


@given(splits=st.lists(st.integers(1, 9), max_size=8), seed=st.integers(0, 3))
@torch.inference_mode()
def test_any_split_into_calls_gives_the_same(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs], splits: list[int], seed: int
) -> None:
    """More frames than the rings hold (3 and 6), in calls shorter and longer than the rings."""
    denoiser = make_denoiser(depth=2)
    inputs = make_inputs(denoiser.config, 1, 20, seed)
    assert_equal(walk(denoiser, inputs, splits, denoiser.new_cache(1)), denoiser(inputs)[0])


@pytest.mark.parametrize("memory_frames", [1, 2, 4])
@torch.inference_mode()
def test_shorter_memory_forgets_sooner_and_alike_for_every_split(
    memory_frames: int, make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser, short = make_denoiser(), make_denoiser(memory_frames=memory_frames)
    inputs = make_inputs(denoiser.config, 1, 14)
    expected, _ = short(inputs)
    for splits in ([1] * 14, [14], [3, 5]):
        assert_equal(walk(denoiser, inputs, splits, denoiser.new_cache(1, memory_frames)), expected)
    with pytest.raises(AssertionError):
        assert_equal(denoiser(inputs)[0], expected)


@pytest.mark.parametrize("memory_frames", [0, -3, 7])
def test_memory_of_another_length_than_trained_is_refused(
    memory_frames: int, make_denoiser: Callable[..., Denoiser]
) -> None:
    with pytest.raises(ConfigError, match=f"memory_frames must be from 1 to 6.*got {memory_frames}"):
        make_denoiser().new_cache(1, memory_frames)


@pytest.mark.parametrize("name", ["latents", "levels", "actions", "previous", "previous_levels", "warped"])
@torch.inference_mode()
def test_every_input_matters_from_its_frame_on_and_never_before(
    name: str, make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser(warp_channels=NUM_FOLDED)
    inputs = make_inputs(denoiser.config, 2, 10)
    before, _ = denoiser(inputs)
    moved = (lambda x: (x + 1) % denoiser.config.num_actions) if name == "actions" else (lambda x: 0.5 * x + 0.1)
    after, _ = denoiser(changed(inputs, name, 5, moved))
    for field, a, b in zip(Prediction._fields, after, before, strict=True):
        difference = (a - b).abs().flatten(2).amax((0, 2)) if a.ndim > 2 else (a - b).abs().amax(0)
        assert difference[:5].max() == 0, f"{name} of frame 5 reached an earlier {field}"
        assert difference[5] > 1e-4, f"{name} did not reach {field} of its own frame"
        assert difference[6:9].min() > 0, f"{name} did not reach later {field}"


@torch.inference_mode()
def test_levels_are_per_frame(make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]) -> None:
    """Two clips in one batch, with levels swapped between frames, are not one clip-wide level."""
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 1, 4)
    levels = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    results = [denoiser(dataclasses.replace(inputs, levels=levels.roll(k, 1)))[0].clean for k in range(4)]
    for k in range(1, 4):
        assert (results[k] - results[0]).abs().amax((0, 2, 3, 4)).max() > 1e-3


@torch.inference_mode()
def test_old_frames_reach_the_present_only_through_summaries(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    """Without a memory layer a frame is gone after the recent window; with one it is not; beyond both it is."""
    for depth, last in ((1, 2 + 3), (2, 2 + 3 + 6)):
        denoiser = make_denoiser(depth=depth)
        inputs = make_inputs(denoiser.config, 1, 16)
        other = changed(inputs, "latents", 2, lambda x: x + 1.0)
        difference = (denoiser(other)[0].clean - denoiser(inputs)[0].clean).abs().amax((0, 2, 3, 4))
        assert [t for t in range(16) if difference[t] > 0] == list(range(2, last + 1))


@torch.inference_mode()
def test_summaries_alone_carry_the_memory(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    """In the cache: patches of old frames are not kept at all; what old frames leave behind are memory keys."""
    denoiser = make_denoiser(depth=2)
    inputs = make_inputs(denoiser.config, 1, 8)
    cache = denoiser.new_cache(1)
    walk(denoiser, inputs[:7], [], cache)
    assert cache.rings["recent_k"].shape[3] == denoiser.config.recent_frames
    before, _ = denoiser(inputs[7:8], cache=cache)
    wiped = cache.clone()
    old = (cache.positions("memory_k")[0] < 7 - denoiser.config.recent_frames).nonzero().flatten()
    assert len(old) == 3
    wiped.rings["memory_v"][:, :, :, old] = 0
    after, _ = denoiser(inputs[7:8], cache=wiped)
    assert (after.clean - before.clean).abs().max() > 1e-4


@torch.inference_mode()
def test_dreams_of_a_batch_at_different_ages_do_not_touch_one_another(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 3, 20)
    tensors: dict[str, torch.Tensor] = {n: part for n, part in vars(inputs).items() if part is not None}
    ages, cache, alone = [2, 11, 7], denoiser.new_cache(3), []
    for row, age in enumerate(ages):
        own = denoiser.new_cache(1)
        row_inputs = FrameInputs(**{name: value[row : row + 1] for name, value in tensors.items()})
        walk(denoiser, row_inputs[:age], [], own)
        cache.put(torch.tensor([row]), own)
        alone.append(walk(denoiser, row_inputs[age : age + 9], [1] * 9, own))
    assert cache.count.tolist() == ages
    together = {
        name: torch.stack([value[row, age : age + 9] for row, age in enumerate(ages)])
        for name, value in tensors.items()
    }
    found = walk(denoiser, FrameInputs(**together), [1] * 9, cache)
    for row, expected in enumerate(alone):
        assert_equal(Prediction(*(field[row : row + 1] for field in found)), expected)


@pytest.mark.parametrize("position", [10_000, 200_003])
@torch.inference_mode()
def test_a_dream_of_many_frames_is_as_exact_as_a_young_one(
    position: int, make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    """Only ages count: the same frames late in a dream give the same pictures."""
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 1, 24)
    late = denoiser.new_cache(1)
    late.count += position
    # Both dreams see all frames twice; what was before the first time is out of sight the second time.
    walk(denoiser, inputs, [1] * 24, late)
    young = denoiser.new_cache(1)
    walk(denoiser, inputs, [1] * 24, young)
    assert_equal(walk(denoiser, inputs, [1] * 24, late), walk(denoiser, inputs, [1] * 24, young), 2e-5)


@torch.inference_mode()
def test_bfloat16_weights_stay_close(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 1, 12)
    expected = denoiser(inputs)[0].clean
    found = denoiser.to(torch.bfloat16)(inputs)[0].clean
    assert found.dtype == torch.float32
    assert (found - expected).square().mean() < 2e-3 * expected.square().mean()


@torch.inference_mode()
def test_reading_never_writes(make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]) -> None:
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 2, 9)
    cache = denoiser.new_cache(2)
    walk(denoiser, inputs[:5], [], cache)
    copy = cache.clone()
    denoiser(inputs[5:9], cache=cache)
    assert torch.equal(cache.count, copy.count) and torch.equal(cache.pose, copy.pose)
    for name, ring in cache.rings.items():
        assert torch.equal(ring, copy.rings[name]), name


@torch.inference_mode()
def test_the_cache_never_grows(make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]) -> None:
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 1, 30)
    cache = denoiser.new_cache(1)
    empty = cache.num_bytes
    assert empty > 4 * 2 * (2 * 3 * 4 + 2 * 6 * 2) * 32
    walk(denoiser, inputs, [1] * 30, cache)
    assert cache.num_bytes == empty
    assert cache.count.item() == 30


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("latents", (2, 5, 4, 4, 5)),
        ("latents", (2, 5, 3, 4, 4)),
        ("latents", (5, 4, 4, 4)),
        ("levels", (2, 4)),
        ("levels", (2, 5, 1)),
        ("actions", (2, 1)),
        ("previous", (2, 5, 1, 4, 4, 4)),
        ("previous_levels", (2, 5, 3)),
        ("warped", (2, 5, 1, 4, 4)),
    ],
)
def test_a_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser()
    inputs = dataclasses.replace(make_inputs(denoiser.config, 2, 5), **{name: torch.zeros(shape)})
    with pytest.raises(ShapeError, match=rf"{name} must be .*got \({', '.join(map(str, shape))}\)"):
        denoiser(inputs)
    with pytest.raises(ShapeError, match=name):
        denoiser(inputs, cache=denoiser.new_cache(2))


def test_actions_must_be_integers(
    make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser()
    inputs = make_inputs(denoiser.config, 1, 2)
    with pytest.raises(ActionError, match="integers in 0..7; got torch.float32"):
        denoiser(dataclasses.replace(inputs, actions=inputs.actions.float()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"num_summary": 0}, "num_summary must be at least 1; got 0"),
        ({"memory_frames": -1}, "memory_frames must be at least 1; got -1"),
        ({"patch": 3}, "patch 3 must divide latent_size 8"),
        ({"reward_values": (1.0,)}, "at least two rewards"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DenoiserConfig(**changes)


def test_presets_fit_together_and_an_unknown_one_is_named() -> None:
    for preset in PRESETS.values():
        assert preset.codec.latent_channels == preset.denoiser.latent_channels
        assert preset.codec.latent_size == preset.denoiser.latent_size
        assert preset.denoiser.memory_frames >= 100
    with pytest.raises(ConfigError, match="unknown preset 'huge'; accepted: tiny, study, small, base"):
        get_preset("huge")
