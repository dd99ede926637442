"""What a denoiser holds: memories of one face, read once, in a mode that is an argument."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from envs.actions import LABMAZE_ACTIONS
from worldmodel.cache import MemoryCache
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser, DenoiserConfig
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.inputs import FrameInputs, Prefer, stack_previous
from worldmodel.memory.base import Context, Memory, PoseEstimate, Reading
from worldmodel.memory.registry import MEMORIES, build_memories
from worldmodel.memory.slots import Entries
from worldmodel.memory.warped import WarpedView
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_chance
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

Make = Callable[..., Denoiser]
MakeInputs = Callable[..., FrameInputs]
MOVING: dict[str, Any] = {"motions": LABMAZE_ACTIONS.motions, "width": 64, "heads": 4}
BUILT: list[tuple[dict[str, Any], list[str]]] = [
    ({"memory": "none"}, []),
    ({}, ["tokens"]),
    ({"memory": "prepend"}, ["tokens"]),
    ({"memory": "prepend", "compression": "joint", "budget": 2}, ["slots"]),
    ({"memory": "cross", **MOVING}, ["odometry", "slots"]),
    ({"memory": "channel"}, ["channel"]),
    ({"view_heads": 1, **MOVING}, ["odometry", "kernels", "tokens"]),
    ({"view_points": 3, "warp_channels": 5, **MOVING}, ["columns", "warped", "tokens"]),
]


@pytest.mark.parametrize(("changes", "names"), BUILT, ids=str)
def test_a_config_names_its_memories(changes: dict[str, Any], names: list[str], make_denoiser: Make) -> None:
    denoiser = make_denoiser(**changes)
    assert list(denoiser.named_memories()) == names and set(names) <= set(MEMORIES)
    rings = denoiser.new_cache(2).rings
    for name, memory in denoiser.named_memories().items():
        assert memory.cache_shapes(6).keys() <= rings.keys(), name


@pytest.mark.parametrize("prefer", ["newest", "oldest"])
@torch.inference_mode()
def test_train_and_eval_mean_the_same_and_prefer_does_not(
    prefer: Prefer, make_denoiser: Make, make_inputs: MakeInputs
) -> None:
    denoiser = make_denoiser(view_points=3, view_frames=12, **MOVING)
    frames = make_inputs(denoiser.config, 2, 12)
    calls: list[dict[str, Any]] = [{}, {"cache": denoiser.new_cache(2)}]
    for call in calls:
        trained, evaluated = (denoiser.train(mode)(frames, prefer=prefer, **call)[0] for mode in (True, False))
        assert torch.equal(trained.clean, evaluated.clean)
        other: Prefer = "oldest" if prefer == "newest" else "newest"
        assert not torch.allclose(denoiser(frames, prefer=other, **call)[0].clean, trained.clean, atol=1e-3)


def test_a_slice_of_inputs_is_that_of_every_tensor(make_inputs: MakeInputs) -> None:
    config = DenoiserConfig(latent_channels=4, latent_size=4, warp_channels=2)
    frames = make_inputs(config, 2, 9)
    part = frames[3:7]
    assert part.num_frames == 4 and part.warped is not None and frames.warped is not None
    for name, value in vars(part).items():
        assert torch.equal(value, getattr(frames, name)[:, 3:7]), name
    assert dataclasses.replace(frames, warped=None)[3:7].warped is None


def test_frames_that_are_only_there_to_come_before_are_left_out() -> None:
    latents, levels = torch.randn(2, 6, 4, 4, 4), torch.rand(2, 6)
    actions = torch.randint(7, (2, 4))
    frames = FrameInputs.stack(latents, levels, actions, 3)
    past, past_levels = stack_previous(latents, levels, 3)
    assert torch.equal(frames.latents, latents[:, 2:]) and torch.equal(frames.levels, levels[:, 2:])
    assert torch.equal(frames.previous, past[:, 2:]) and torch.equal(frames.previous_levels, past_levels[:, 2:])
    assert torch.equal(frames.actions, actions)


@torch.inference_mode()
def test_what_is_warped_reaches_its_frame_and_nothing_is_zeros(make_denoiser: Make, make_inputs: MakeInputs) -> None:
    denoiser = make_denoiser(warp_channels=3)
    frames = make_inputs(denoiser.config, 2, 6)
    without, zeros = (
        dataclasses.replace(frames, warped=warped) for warped in (None, torch.zeros(2, 6, 3, *frames.latents.shape[3:]))
    )
    assert torch.equal(denoiser(without)[0].clean, denoiser(zeros)[0].clean)
    assert not torch.allclose(denoiser(frames)[0].clean, denoiser(zeros)[0].clean, atol=1e-3)


def test_what_is_warped_counts_for_nothing_before_training_and_learns(make_inputs: MakeInputs) -> None:
    config = DenoiserConfig(latent_channels=4, latent_size=4, width=32, depth=2, heads=2, warp_channels=3)
    torch.manual_seed(0)
    denoiser = Denoiser(config)
    warped = denoiser.find(WarpedView)
    assert warped is not None and warped.embed.bias is None and not warped.embed.weight.any()
    torch.nn.init.normal_(denoiser.to_clean.weight)
    loss_of, shape = DenoiserLoss(denoiser, ObjectiveConfig(), 4), torch.Size((2, 8, 4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(7, (2, 8), generator=generator)
    batch = {"latents": torch.randn(shape, generator=generator), "actions": actions, "rewards": 0.0 * actions}
    batch |= {"terminated": actions == 9, **sample_chance(ObjectiveConfig(), shape, generator)}
    plain, _ = loss_of(**batch)
    given, _ = loss_of(**batch, warped=torch.randn(2, 8, 3, 4, 4, generator=generator))
    assert float(plain.detach()) == float(given.detach())
    given.backward()
    assert warped.embed.weight.grad is not None and warped.embed.weight.grad.any()


def test_negative_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="warp_channels must be at least 0; got -1"):
        DenoiserConfig(warp_channels=-1)


class Lamp(Memory):
    """Adds the same to all tokens, twice as much where the oldest frames win."""

    def read(self, frames: FrameInputs, past: MemoryCache | None, prefer: Prefer, estimate: PoseEstimate) -> Reading:
        light = 1.0 if prefer == "newest" else 2.0
        return Reading(added=light * torch.linspace(0, 2, 32).expand(*frames.actions.shape, 4, -1))


@torch.inference_mode()
def test_a_denoiser_takes_memories_that_no_config_knows(make_denoiser: Make, make_inputs: MakeInputs) -> None:
    plain = make_denoiser()
    lit = Denoiser(plain.config, {**build_memories(plain.config), "lamp": Lamp()})
    lit.load_state_dict(plain.state_dict())
    frames = make_inputs(plain.config, 1, 5)
    assert lit.find(Lamp) is not None and plain.find(Lamp) is None
    context = lit.read(frames, prefer="oldest")
    assert [round(float(part.mean()), 3) for part in context.added] == [2.0]
    dark = Context(context.estimate, {"tokens": Reading(), "lamp": Reading()})
    assert torch.equal(lit(frames, context=dark)[0].clean, plain(frames)[0].clean)
    assert not torch.allclose(lit(frames)[0].clean, plain(frames)[0].clean, atol=1e-3)


@pytest.mark.parametrize("changes", [{"memory": "cross"}, {"memory": "channel"}], ids=str)
def test_entries_are_of_frames_as_shown_even_where_poses_and_views_stay_true(
    changes: dict[str, Any], make_denoiser: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model's own frames as context, entries are made anew from those."""
    denoiser = make_denoiser(**changes)
    seen: list[torch.Tensor] = []
    plain = Entries.forward

    def watched(self: Entries, patches: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        seen.append(patches)
        return plain(self, patches, levels, actions)

    monkeypatch.setattr(Entries, "forward", watched)
    config, generator = ObjectiveConfig(own_share=1.0), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 4, 4, 4, generator=generator)
    actions = torch.randint(7, (2, 8), generator=generator)
    batch = {"latents": latents, "actions": actions, "rewards": 0.0 * actions, "terminated": actions == 9}
    chance = sample_chance(config, latents.shape, generator)
    chance["is_forced"][:], chance["is_own"][:] = False, True
    with torch.no_grad():
        DenoiserLoss(denoiser, config, 4)(**batch, **chance)
    assert len(seen) == 2 and not torch.equal(*seen)


def test_attention_to_slots_needs_slots(make_denoiser: Make, make_inputs: MakeInputs) -> None:
    denoiser = make_denoiser(memory="cross")
    frames = make_inputs(denoiser.config, 1, 3)
    context = denoiser.read(frames)
    with pytest.raises(ConfigError, match="needs a memory that makes them"):
        denoiser(frames, context=Context(context.estimate, {"slots": Reading()}))


def test_a_dream_with_poses_of_before_is_one_clear_error(make_denoiser: Make, make_codec: Callable[..., Codec]) -> None:
    world = WorldModel(make_codec(), make_denoiser(), device="cpu", dtype=torch.float32)
    state = world.reset(torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64), [0])
    assert state.dream.cache.pose.shape == (1, 5)
    assert WorldState.unpack(state.pack()).dream.cache.pose.shape == (1, 5)
    cast("Any", state.dream.cache).pose = torch.zeros(1, 3)
    with pytest.raises(CheckpointError, match="older version, with poses of 3 numbers instead of 5"):
        WorldState.unpack(state.pack())
