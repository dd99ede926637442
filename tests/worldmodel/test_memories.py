"""What a denoiser holds: memories of one face, read once, in a mode that is an argument."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from worldmodel.checkpoint import load_denoiser, save_bundle
from worldmodel.config import STRUCTURES, DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError
from worldmodel.folded import NUM_FOLDED
from worldmodel.inputs import FrameInputs, stack_previous
from worldmodel.memory.registry import MEMORIES, check_memory
from worldmodel.memory.warped import WarpedView
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_noise

Make = Callable[..., Denoiser]
MakeInputs = Callable[..., FrameInputs]
MOVING: dict[str, Any] = {"displacements": LABMAZE_ACTIONS.displacements, "width": 64, "heads": 4}
BUILT: list[tuple[dict[str, Any], list[str]]] = [
    ({"memory": "none"}, []),
    ({}, ["tokens"]),
    ({"memory": "prepend"}, ["tokens"]),
    ({"memory": "prepend", "compression": "joint", "budget": 2}, ["slots"]),
    ({"memory": "cross", **MOVING}, ["odometry", "slots"]),
    ({"memory": "channel"}, ["channel"]),
    ({"warp_channels": NUM_FOLDED, **MOVING}, ["odometry", "warped", "tokens"]),
]


@pytest.mark.parametrize(("changes", "names"), BUILT, ids=str)
def test_a_config_names_its_memories(changes: dict[str, Any], names: list[str], make_denoiser: Make) -> None:
    denoiser = make_denoiser(**changes)
    assert list(denoiser.named_memories()) == names and set(names) <= set(MEMORIES)
    rings = denoiser.new_cache(2).rings
    for name, memory in denoiser.named_memories().items():
        assert memory.cache_shapes(6).keys() <= rings.keys(), name


@torch.inference_mode()
def test_train_and_eval_mean_the_same(make_denoiser: Make, make_inputs: MakeInputs) -> None:
    denoiser = make_denoiser(warp_channels=NUM_FOLDED, **MOVING)
    frames = make_inputs(denoiser.config, 2, 12)
    calls: list[dict[str, Any]] = [{}, {"cache": denoiser.new_cache(2)}]
    for call in calls:
        trained, evaluated = (denoiser.train(mode)(frames, **call)[0] for mode in (True, False))
        assert torch.equal(trained.clean, evaluated.clean)


def test_a_slice_of_inputs_is_that_of_every_tensor(make_inputs: MakeInputs) -> None:
    config = DenoiserConfig(latent_channels=4, latent_size=4, warp_channels=NUM_FOLDED)
    frames = dataclasses.replace(make_inputs(config, 2, 9), poses=torch.randn(2, 9, 5))
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
    denoiser = make_denoiser(warp_channels=NUM_FOLDED)
    frames = make_inputs(denoiser.config, 2, 6)
    without, zeros = (
        dataclasses.replace(frames, warped=warped)
        for warped in (None, torch.zeros(2, 6, NUM_FOLDED, *frames.latents.shape[3:]))
    )
    assert torch.equal(denoiser(without)[0].clean, denoiser(zeros)[0].clean)
    assert not torch.allclose(denoiser(frames)[0].clean, denoiser(zeros)[0].clean, atol=1e-3)


def test_what_is_warped_counts_for_nothing_before_training_and_learns(make_inputs: MakeInputs) -> None:
    config = DenoiserConfig(latent_channels=4, latent_size=4, width=32, depth=2, heads=2, warp_channels=NUM_FOLDED)
    torch.manual_seed(0)
    denoiser = Denoiser(config)
    warped = denoiser.named_memories()["warped"]
    assert isinstance(warped, WarpedView) and warped.embed.bias is None and not warped.embed.weight.any()
    torch.nn.init.normal_(denoiser.to_clean.weight)
    loss_of, shape = DenoiserLoss(denoiser, ObjectiveConfig(), 4), torch.Size((2, 8, 4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(7, (2, 8), generator=generator)
    batch = {"latents": torch.randn(shape, generator=generator), "actions": actions, "rewards": 0.0 * actions}
    batch |= {"terminated": actions == 9, **sample_noise(ObjectiveConfig(), shape, generator)}
    plain, _ = loss_of(**batch)
    given, _ = loss_of(**batch, warped=torch.randn(2, 8, NUM_FOLDED, 4, 4, generator=generator))
    assert float(plain.detach()) == float(given.detach())
    given.backward()
    assert warped.embed.weight.grad is not None and warped.embed.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lstm", f"unknown memory structure 'lstm'; accepted: {', '.join(STRUCTURES)}, or module:class of one"),
        ("nowhere:Memory", "memory 'nowhere:Memory' cannot be imported .*PYTHONPATH"),
        ("worldmodel.memory.base:Nothing", "module worldmodel.memory.base has no 'Nothing'"),
        ("worldmodel.config:DenoiserConfig", "is no Memory: derive it from worldmodel.memory.base.Memory"),
        (":", "cannot be imported"),
    ],
)
def test_memories_that_there_are_not_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_memory(name)


def test_a_memory_from_outside_is_one_piece() -> None:
    with pytest.raises(ConfigError, match="takes compression none; got 'joint'"):
        DenoiserConfig(memory="worldmodel.memory.warped:WarpedView", compression="joint", budget=2)


def test_a_memory_named_by_its_module_is_read_last_and_keeps_its_weights(
    make_denoiser: Make, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Any memory of a module that is imported may be named so; here one that is there under its own name too."""
    name = "worldmodel.memory.warped:WarpedView"
    denoiser = make_denoiser(memory=name, warp_channels=NUM_FOLDED)
    assert list(denoiser.named_memories()) == ["warped", "worldmodel/memory/warped:WarpedView"]
    save_bundle(tmp_path, denoiser=denoiser, dtype=torch.float32)
    frames = make_inputs(denoiser.config, 1, 5)
    assert torch.equal(load_denoiser(tmp_path)(frames)[0].clean, denoiser(frames)[0].clean)


@pytest.mark.parametrize("channels", [-1, 3])
def test_channels_of_something_else_are_refused(channels: int) -> None:
    with pytest.raises(ConfigError, match=f"warp_channels must be 0 or {NUM_FOLDED}, .*; got {channels}"):
        DenoiserConfig(warp_channels=channels)
