"""Memory structures: what a setting may be, what each forgets and costs; odometry; weights of another structure."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.registry import find_displacements
from train.denoiser import DenoiserOptions, build_denoiser, memory_changes
from train.measures.memory_costs import MemoryCosts, memory_costs
from worldmodel.attention import RotaryPosition, rotate
from worldmodel.checkpoint import save_bundle
from worldmodel.config import DenoiserConfig, MemorySetting
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.inputs import FrameInputs
from worldmodel.memory.camera import complete_poses
from worldmodel.memory.odometry import Odometry
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_noise
from worldmodel.odometry import YAW, look_angles, walk_poses

STRUCTURES: list[dict[str, Any]] = [
    {"memory": "summary", "memory_frames": 6},
    {"memory": "prepend", "memory_frames": 6},
    {"memory": "prepend", "memory_frames": 6, "compression": "joint", "budget": 2},
    {"memory": "channel", "memory_frames": 6},
    {"memory": "channel", "memory_frames": 6, "compression": "modulated", "budget": 2},
    {"memory": "cross", "memory_frames": 6},
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "lstm"}, "unknown memory structure 'lstm'"),
        ({"structure": "cross", "compression": "joint"}, "takes compression none; got 'joint'"),
        ({"structure": "prepend", "compression": "modulated"}, "none or joint"),
        (
            {"structure": "prepend", "length": 48, "compression": "joint", "budget": 49},
            "budget from 1 to 48 frame slots",
        ),
        ({"structure": "prepend", "length": 48, "compression": "joint", "budget": 0}, "got 0"),
        ({"structure": "prepend", "length": 0, "budget": 0}, "memory of 0 frames"),
        ({"structure": "prepend", "length": 48, "budget": 8}, "name a compression"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemorySetting(**changes)


def test_a_denoiser_of_such_a_memory_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="budget from 1 to 48"):
        DenoiserConfig(memory="prepend", memory_frames=48, compression="joint", budget=64)


def shift(inputs: FrameInputs, frame: int, size: float) -> FrameInputs:
    """Return the inputs with a frame shifted, also as the next one is shown it."""
    latents, previous = inputs.latents.clone(), inputs.previous.clone()
    latents[:, frame] += size
    previous[:, frame + 1, 0] += size
    return dataclasses.replace(inputs, latents=latents, previous=previous)


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
@torch.inference_mode()
def test_old_frames_matter_through_the_memory_and_no_further(
    changes: dict[str, Any], make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    """One recent frame, two blocks: frame 15 sees frame 11 through a memory of 6 frames only, and frame 0 not at all.

    (A slot holds 6 frames and two slots are kept, so a compressed memory reaches a frame further back than it is long.)
    """
    denoiser = make_denoiser(depth=2, recent_frames=1, num_previous=1, **changes)
    without = make_denoiser(depth=2, recent_frames=1, num_previous=1, memory="none", memory_frames=1)
    inputs = make_inputs(denoiser.config, 1, 16)

    def difference(network: Denoiser, frame: int) -> float:
        changed = shift(inputs, frame, 1.0)
        return float((network(changed)[0].clean - network(inputs)[0].clean)[:, -1].abs().max())

    assert difference(denoiser, 11) > 1e-4
    assert difference(without, 11) == 0.0
    assert difference(denoiser, 0) == 0.0


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
@torch.inference_mode()
def test_a_shorter_memory_forgets_what_a_longer_one_keeps(
    changes: dict[str, Any], make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    denoiser = make_denoiser(depth=2, recent_frames=1, num_previous=1, **changes)
    inputs = make_inputs(denoiser.config, 1, 10)
    found = []
    for size in (0.0, 1.0):
        cache = denoiser.new_cache(1, memory_frames=1)
        changed = shift(inputs, 5, size)
        for t in range(10):
            prediction, written = denoiser(changed[t : t + 1], cache=cache)
            cache.commit(*written, num_frames=1)
        found.append(prediction.clean)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
def test_every_structure_learns(changes: dict[str, Any], make_denoiser: Callable[..., Denoiser]) -> None:
    """A few steps on one batch lower the loss, and every weight gets a gradient."""
    denoiser = make_denoiser(depth=2, width=64, heads=4, displacements=LABMAZE_ACTIONS.displacements, **changes).train()
    config = ObjectiveConfig(blackout_share=0.5)
    loss_of = DenoiserLoss(denoiser, config, chunk=4)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 4, 4, 4, generator=generator)
    actions = torch.randint(7, (2, 16), generator=generator)
    batch = {"latents": latents, "actions": actions, "rewards": (actions == 1).float(), "terminated": actions == 2}
    batch |= sample_noise(config, latents.shape, generator)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, _ = loss_of(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    without = [name for name, p in denoiser.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


def test_walks_add_up_to_poses() -> None:
    """A square of four walks and four left turns comes home; noop and "none" stay."""
    turn, walk = math.pi / 2, 2.0
    displacements = torch.tensor([[0.0, 0.0], [0.0, walk], [turn, 0.0], [0.0, 0.0]])
    actions = torch.tensor([[1, 2, 1, 2, 1, 2, 1, 2, 0, 3]])
    poses = walk_poses(displacements, actions, torch.tensor([[5.0, -1.0, 0.5, 0.0, 0.1]]))[0]
    assert torch.allclose(poses[0], torch.tensor([7.0, -1.0, 0.5, 0.0, 0.1]), atol=1e-5)
    assert torch.allclose(poses[2, :2], torch.tensor([7.0, 1.0]), atol=1e-5)
    assert torch.allclose(poses[-1, :2], torch.tensor([5.0, -1.0]), atol=1e-5)
    assert float(torch.remainder(poses[-1, YAW] + 0.1, 2 * math.pi)) == pytest.approx(0.1, abs=1e-5)


def test_reckoning_is_exact_in_sixteen_bits(make_denoiser: Callable[..., Denoiser]) -> None:
    """300 left turns of 6 degrees are five full turns, in bfloat16 as well."""
    denoiser = make_denoiser(width=64, heads=4, displacements=LABMAZE_ACTIONS.displacements).to(torch.bfloat16)
    latents, levels, actions = torch.zeros(1, 300, 4, 4, 4), torch.zeros(1, 300), torch.full((1, 300), 3)
    poses = denoiser.read(FrameInputs.stack(latents, levels, actions, 2)).estimate.poses
    assert poses.dtype == torch.float32
    assert float(torch.remainder(poses[0, -1, YAW] + 0.5, 2 * math.pi)) == pytest.approx(0.5, abs=1e-3)
    odometry = denoiser.named_memories()["odometry"]
    assert isinstance(odometry, Odometry) and odometry.displacements.dtype == torch.float32


def test_the_left_column_looks_to_the_left() -> None:
    angles = look_angles(4, 90.0)
    assert torch.allclose(angles, -angles.flip(0)) and float(angles[0]) == pytest.approx(math.atan(0.75))


@torch.inference_mode()
def test_directions_match_across_columns_and_turns() -> None:
    """With equal content, a token agrees most with the token that looked in its direction, whatever the heading was."""
    rotary = RotaryPosition(64, 2, 1, view_deg=70.0)
    left, right = look_angles(2, 70.0).tolist()
    headings = torch.tensor(
        [[0.0, left - right]]
    )  # turned so far that the right column looks where the left one looked
    poses = complete_poses(torch.cat([torch.zeros(1, 2, 2), headings[..., None]], -1))
    cos, sin = rotary(torch.zeros(1, 2, dtype=torch.int64), poses)
    turning = slice(16, 24)  # the pairs that turn with the direction
    same = rotate(torch.ones(1, 2, 1, 5, 16), (cos[..., turning], sin[..., turning]))[0, :, 0]
    agreement = same[0, :2] @ same[1, :2].T  # columns of frame 0 against columns of frame 1, in row 0
    assert agreement[0, 1] == pytest.approx(16.0, abs=1e-3)
    assert agreement[0, 0] < 12 and agreement[1, 1] < 12


def test_odometry_needs_known_displacements() -> None:
    options = DenoiserOptions(data=Path("d"), out=Path("o"), odometry=True)
    assert find_displacements("LabMaze", LABMAZE_ACTIONS.names)[3] == (6.0, 0.0)
    changes = memory_changes(DenoiserConfig(), options, "LabMaze", LABMAZE_ACTIONS.names)
    assert len(changes["displacements"]) == 7
    with pytest.raises(ConfigError, match="declares none for"):
        memory_changes(DenoiserConfig(), options, "LabMaze", ("jump", "duck"))
    with pytest.raises(ConfigError, match="got 2 displacements"):
        DenoiserConfig(num_actions=7, displacements=((0.0, 0.0), (6.0, 0.0)))


def test_weights_of_another_structure_are_refused_or_grafted(
    tmp_path: Path, make_denoiser: Callable[..., Denoiser]
) -> None:
    trunk = make_denoiser(memory="none", memory_frames=1)
    save_bundle(tmp_path, denoiser=trunk)
    wanted = dataclasses.replace(trunk.config, memory="cross", memory_frames=6)
    with pytest.raises(CheckpointError, match="another memory structure"):
        build_denoiser(wanted, str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be given together"):
        build_denoiser(wanted, str(tmp_path), str(tmp_path))
    grown = build_denoiser(wanted, None, str(tmp_path))
    torch.testing.assert_close(grown.embed.weight, trunk.embed.weight, rtol=0.01, atol=1e-3)  # saved in 16 bits
    narrow = dataclasses.replace(trunk.config, width=48, heads=2, mlp_ratio=3)
    with pytest.raises(CheckpointError, match="weights of .* fit"):
        build_denoiser(narrow, None, str(tmp_path))


def test_costs_grow_as_they_must(make_denoiser: Callable[..., Denoiser]) -> None:
    config = make_denoiser().config
    rows = {(row["structure"], row["memory_frames"]): row for row in memory_costs(config, (8, 32))}
    assert rows["summary", 8]["parameters"] == rows["summary", 32]["parameters"]
    assert rows["channel", 8]["parameters"] < rows["channel", 32]["parameters"]
    heads, head_width, layers = config.heads, config.width // config.heads, config.num_memory_layers
    more = rows["prepend", 32]["cache_bytes"] - rows["prepend", 8]["cache_bytes"]
    assert more == 24 * config.num_patches * heads * head_width * layers * 2 * 4  # keys and values, 4 bytes each
    for name in ("prepend", "summary", "cross"):  # every token sees 24 frames more: two products of 2 d operations
        shared = config.num_summary if name == "summary" else config.num_patches
        tokens = config.num_patches + config.num_summary
        expected = 24 * shared * tokens * 4 * config.width * layers
        assert rows[name, 32]["flops_a_call"] - rows[name, 8]["flops_a_call"] == expected
    assert len(MemoryCosts().lines({"rows": list(rows.values())})) == 2 + len(rows)
