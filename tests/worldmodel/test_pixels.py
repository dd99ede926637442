"""The memory of pixels: what is remembered is seen again, nothing is seen of nothing, and a dream stays small."""

from collections.abc import Callable

import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from tests.box_room import see, walk
from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError
from worldmodel.folded import NUM_FOLDED, unfold
from worldmodel.frames import to_pixels
from worldmodel.memory.camera import complete_poses
from worldmodel.memory.depth import DepthConfig, DepthNet
from worldmodel.memory.pixels import NUM_KEYFRAMES, PixelConfig, PixelMemory, PixelState
from worldmodel.presets import get_preset

MOTIONS = LABMAZE_ACTIONS.displacements


@pytest.fixture(scope="module")
def memory(make_depth: Callable[..., DepthNet]) -> PixelMemory:
    return PixelMemory(make_depth(), MOTIONS, PixelConfig(keyframes=16, sources=4))


def walked(num_frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames uint8 (T, 32, 32, 3) of a walk and poses (T, 5)."""
    _, places = walk(num_frames - 1, seed)
    return see(places, 32)[0], complete_poses(places)


def fill(memory: PixelMemory, frames: torch.Tensor, poses: torch.Tensor) -> PixelState:
    """Return the state of dreams that have seen frames (B, T, H, W, 3) from poses (B, T, 5)."""
    state = memory.empty(len(frames))
    with torch.inference_mode():
        for frame, pose in zip(frames.unbind(1), poses.unbind(1), strict=True):
            memory.remember(state, frame, pose)
    return state


@torch.inference_mode()
def test_a_remembered_frame_is_seen_again_from_its_pose(memory: PixelMemory) -> None:
    frames, poses = walked(3)
    state = fill(memory, frames[None, :1], poses[None, :1])
    folded = memory.look(state, poses[None, :2])
    assert folded.shape == (1, 2, NUM_FOLDED, 4, 4)
    same, later = (unfold(folded[:, t]) for t in range(2))
    assert float(same.mask.mean()) > 0.95
    error = (same.pixels - to_pixels(frames[:1])) * same.mask
    assert float(error.abs().max()) < 0.02
    magnification, _, _, invented = same.facts[0]
    assert float(magnification.abs().max()) < 0.01 and not invented.any()
    assert 0.3 < float(later.mask.mean()) <= 1
    assert not torch.equal(later.pixels, same.pixels)


@torch.inference_mode()
def test_behind_one_nothing_is_known_yet(memory: PixelMemory) -> None:
    frames, poses = walked(1)
    state = fill(memory, frames[None], poses[None])
    behind = poses.clone()
    behind[:, 3] += torch.pi
    assert not memory.look(state, behind[None]).any()


@torch.inference_mode()
def test_an_empty_memory_shows_nothing(memory: PixelMemory) -> None:
    folded = memory.look(memory.empty(2), torch.zeros(2, 3, 5))
    assert folded.shape == (2, 3, NUM_FOLDED, 4, 4) and not folded.any()


@torch.inference_mode()
def test_what_was_made_up_is_remembered_as_that(memory: PixelMemory) -> None:
    frames, poses = walked(1)
    state = memory.empty(1)
    half = torch.zeros(1, NUM_FOLDED, 4, 4)
    half[:, 192:256, :2] = 1.0  # the upper half was known, and is true
    memory.remember(state, frames, poses, half)
    slot = int(state.keyframes.order.argmax())
    invented = state.keyframes.invented[0, slot]
    assert not invented[:8].any() and bool((invented[8:] == 255).all())
    assert not state.keyframes.is_true[0, slot]
    facts = unfold(memory.look(state, poses[None])[:, 0]).facts[0, 3]
    assert float(facts[:2].max()) < 0.3 < 0.7 < float(facts[2:].min())


@torch.inference_mode()
def test_steps_walk_and_turn_where_nothing_is_in_the_way(memory: PixelMemory) -> None:
    names = LABMAZE_ACTIONS.names
    turn, forward = names.index("turn_left"), names.index("forward")
    poses = memory.walk(memory.empty(1), torch.zeros(1, 5), torch.tensor([[7, forward, turn, forward]]))
    length, angle = MOTIONS[forward][1], torch.tensor(MOTIONS[turn][0]).deg2rad()
    expected = torch.zeros(4, 5)
    expected[1:, 0], expected[2:, 3] = length, angle
    expected[3, :2] += length * torch.stack([angle.cos(), angle.sin()])
    torch.testing.assert_close(poses[0], expected)


def test_tensors_clone_and_put(memory: PixelMemory) -> None:
    frames, poses = walked(8)
    state = fill(memory, frames.unflatten(0, (2, 4)), poses.unflatten(0, (2, 4)))
    named = state.tensors()
    again = PixelState.from_tensors(named)
    assert all(part is named[name] for name, part in again.tensors().items())
    copy = state.clone()
    other = fill(memory, frames[None, 4:6], poses[None, 4:6])
    with torch.inference_mode():
        state.put(torch.tensor([0]), other)
    for name, part in state.tensors().items():
        assert torch.equal(part[1], copy.tensors()[name][1]) and torch.equal(part[0], other.tensors()[name][0])
        assert part is named[name], "changed in place"
    assert not torch.equal(state.keyframes.order[0], copy.keyframes.order[0])


def test_a_dream_stays_below_8_megabytes() -> None:
    memory = PixelMemory(DepthNet(DepthConfig()), MOTIONS)
    config = get_preset("small").denoiser
    denoiser = Denoiser(
        type(config)(**{**vars(config), "memory_frames": 304, "displacements": MOTIONS, "warp_channels": NUM_FOLDED})
    )
    assert memory.config.keyframes == NUM_KEYFRAMES
    beside = 4 * config.latent_size**2 * (NUM_FOLDED + 4 * config.latent_channels)  # what is shown of the last frames
    assert memory.empty(1).num_bytes + denoiser.new_cache(1).num_bytes + beside <= 8e6
    assert memory.empty(3).num_bytes == 3 * memory.empty(1).num_bytes


@torch.inference_mode()
def test_a_long_dream_grows_nothing_and_keeps_what_was_true(memory: PixelMemory) -> None:
    frames, poses = walked(400)
    state = memory.empty(1)
    shapes = {name: part.shape for name, part in state.tensors().items()}
    size = state.num_bytes
    for number, (frame, pose) in enumerate(zip(frames, poses, strict=True)):
        known = None if number < 4 else torch.zeros(1, NUM_FOLDED, 4, 4)
        memory.remember(state, frame[None], pose[None], known)
    assert state.num_bytes == size and {name: part.shape for name, part in state.tensors().items()} == shapes
    order = state.keyframes.order[0].sort().values
    assert int(order[-1]) == 399 and order.unique().numel() == 16, "every slot holds another frame"
    assert bool(state.keyframes.is_true[state.keyframes.order == 0]), "the first true frame stays"
    assert int(order[0]) == 0 and int(order[-2]) == 398
    assert bool(memory.look(state, poses[None, :1]).isfinite().all())


@torch.inference_mode()
def test_dreams_of_a_batch_are_strangers(memory: PixelMemory) -> None:
    frames, poses = walked(10)
    frames, poses = frames.unflatten(0, (2, 5)), poses.unflatten(0, (2, 5))
    together = fill(memory, frames, poses)
    where = poses[:, -2:] + torch.tensor([0.1, 0.05, 0.0, 0.1, 0.0])
    seen = memory.look(together, where)
    for row in range(2):
        alone = fill(memory, frames[row : row + 1], poses[row : row + 1])
        torch.testing.assert_close(memory.look(alone, where[row : row + 1])[0], seen[row], atol=1e-3, rtol=0)
    for row, part in enumerate(seen):
        views = [memory.look(together, where[:, t : t + 1])[row, 0] for t in range(2)]
        torch.testing.assert_close(torch.stack(views), part, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"sources": 1}, {"sources": 9}, {"keyframes": 3, "sources": 4}])
def test_a_memory_that_cannot_be_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="takes 2 to 8 sources"):
        PixelConfig(**settings)
