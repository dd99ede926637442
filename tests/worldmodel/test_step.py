"""A step with a memory of pixels: every schedule dreams with it, and finished frames are remembered where they were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from worldmodel.checkpoint import load_codec, load_denoiser, load_depth, save_bundle
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, ConfigError, ShapeError
from worldmodel.folded import NUM_FOLDED
from worldmodel.memory.depth import DepthNet
from worldmodel.state import DreamState, WorldState
from worldmodel.windows import fifo_window, next_frame_window, outpainting_window, parse_schedule
from worldmodel.world import WorldModel

Openings = dict[str, torch.Tensor]
SCHEDULES = ["next", "outpaint:4:2", "fifo:3", "rolling:3:2", "pyramid:4:2"]
PLAYED = {"next": next_frame_window(), "fifo": fifo_window(3), "overlap": outpainting_window(3, 2)}
CONTEXT = 5
FORWARD, TURN = LABMAZE_ACTIONS.names.index("forward"), LABMAZE_ACTIONS.names.index("turn_left")


@pytest.fixture(scope="module")
def make_world(pixel_bundle: Path) -> Callable[[str], WorldModel]:
    """Load the world with one of the windows of `PLAYED`, once."""
    made: dict[str, WorldModel] = {}

    def make(name: str = "next") -> WorldModel:
        if name not in made:
            made[name] = WorldModel.load(pixel_bundle, device="cpu", dtype=torch.float32, window=PLAYED[name])
        return made[name]

    return make


def start(world: WorldModel, openings: Openings, rows: list[int], seeds: list[int]) -> WorldState:
    return world.reset(openings["frames"][rows, :CONTEXT], openings["actions"][rows, : CONTEXT - 1], seeds)


def dream(world: WorldModel, state: WorldState, num_frames: int, first_action: int = 0) -> torch.Tensor:
    rows = torch.arange(state.num_dreams)
    return torch.stack(
        [world.step(state, (rows + first_action + k) % world.num_actions).frames for k in range(num_frames)], 1
    )


def test_equal_seeds_give_equal_frames_and_memory_is_seen(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    first, again, other = (dream(world, start(world, openings, [0], [seed]), 5) for seed in (5, 5, 6))
    assert first.shape == (1, 5, 32, 32, 3) and torch.equal(first, again) and not torch.equal(first, other)
    state = start(world, openings, [0], [5])
    assert state.dream.pixels is not None
    state.dream.pixels = world.pixels.empty(1)
    assert not torch.equal(dream(world, state, 5), first), "a dream that has forgotten goes on otherwise"


@pytest.mark.parametrize("text", SCHEDULES)
def test_every_schedule_dreams(text: str, make_world: Callable, openings: Openings) -> None:
    """A rollout is the same for the same seed, and a longer one begins like a shorter one."""
    world, schedule = make_world(), parse_schedule(text)
    frames = openings["frames"][:1, :CONTEXT]
    actions = torch.randint(7, (1, CONTEXT - 1 + 7), generator=torch.Generator().manual_seed(3))
    long = world.rollout(frames, actions, [1], schedule.window, schedule.num_steps)
    short = world.rollout(frames, actions[:, :-2], [1], schedule.window, schedule.num_steps)
    assert long.shape == (1, 7, 32, 32, 3) and torch.equal(long[:, :5], short)


def test_a_rollout_equals_steps_bit_for_bit(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    frames, given = openings["frames"][:2, :CONTEXT], openings["actions"][:2, : CONTEXT - 1].long()
    actions = torch.cat([given, torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(3))], 1)
    state = world.reset(frames, given, [1, 2])
    expected = torch.stack([world.step(state, actions[:, CONTEXT - 1 + k]).frames for k in range(5)], 1)
    assert torch.equal(world.rollout(frames, actions, [1, 2]), expected)


@pytest.mark.parametrize("name", PLAYED)
def test_finished_frames_are_remembered_where_they_were_seen(
    name: str, make_world: Callable, openings: Openings
) -> None:
    world = make_world(name)
    state = start(world, openings, [0, 1], [1, 2])
    lag = world.window.input_lag
    for k in range(3):
        expected = torch.cat([state.dream.pending_poses, state.dream.flight_poses], 1)
        frames = world.step(state, torch.tensor([FORWARD, TURN])).frames
        kept = state.dream.pixels.keyframes
        newest = kept.order.argmax(1)
        rows = torch.arange(2)
        assert kept.order.amax(1).tolist() == [CONTEXT + k] * 2
        assert torch.equal(kept.pixels[rows, newest], frames.permute(0, 3, 1, 2))
        assert not kept.is_true[rows, newest].any()
        if lag:  # it was in flight: its pose was known before this step
            assert torch.equal(kept.poses[rows, newest], expected[:, -lag])
        else:
            poses = torch.cat([state.dream.pending_poses, state.dream.flight_poses], 1)
            assert torch.equal(kept.poses[rows, newest], poses[:, -1])
            assert not torch.equal(poses[:, -1], expected[:, -1])


@pytest.mark.parametrize("name", PLAYED)
def test_forks_and_snapshots_dream_on_alike(name: str, make_world: Callable, openings: Openings) -> None:
    world = make_world(name)
    state = start(world, openings, [0, 1], [1, 2])
    dream(world, state, 2)
    fork, kept = state.clone(), WorldState.from_bytes(state.to_bytes())
    assert kept.dream.layout == state.dream.layout
    ahead = dream(world, state, 4)
    assert torch.equal(dream(world, fork, 4), ahead) and torch.equal(dream(world, kept, 4), ahead)


def test_put_replaces_dreams_with_what_they_remember(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    state, fresh = start(world, openings, [0, 1], [1, 2]), start(world, openings, [2], [8])
    dream(world, state, 3)
    untouched = state.clone()
    world.put(state, [1], fresh)
    found, expected, alone = dream(world, state, 4), dream(world, untouched, 4), dream(world, fresh, 4, first_action=1)
    assert (found[0].int() - expected[0].int()).abs().max() <= 1
    assert (found[1].int() - alone[0].int()).abs().max() <= 2
    assert (found[1].int() - expected[1].int()).abs().max() > 2


def test_dreams_with_and_without_pixels_are_not_put_together(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    state, fresh = start(world, openings, [0], [1]), start(world, openings, [1], [2])
    bare = WorldState(dataclasses.replace(fresh.dream, pixels=None), fresh.chance, fresh.rewards)
    before = state.clone()
    for mine, theirs in ((state, bare), (bare, state)):
        with pytest.raises(ShapeError, match="memory of pixels"):
            world.put(mine, [0], theirs)
    assert torch.equal(dream(world, state, 1), dream(world, before, 1))


def test_memory_of_a_dream_does_not_grow(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    state = start(world, openings, [0], [1])
    layout = state.dream.layout
    named = state.dream.tensors()
    dream(world, state, 3)
    assert state.dream.layout == layout
    after = state.dream.tensors()
    assert all(after[name] is part for name, part in named.items() if name.startswith("pixels."))
    assert DreamState.from_tensors(after).layout == layout


def test_what_the_next_step_will_get_is_what_it_got(make_world: Callable, openings: Openings) -> None:
    world = make_world()
    assert world.can_reckon
    state = start(world, openings, [0, 1], [1, 2])
    for actions in (torch.tensor([FORWARD, TURN]), torch.tensor([FORWARD, FORWARD]), torch.tensor([0, FORWARD])):
        _, coming = world.reckon(state, actions)
        world.step(state, actions)
        gone, _ = world.reckon(state, actions)
        torch.testing.assert_close(gone, coming, atol=1e-4, rtol=0)
        assert bool(((coming > -0.01) & (coming < 1.01)).all())
        assert [float(share) for share, action in zip(coming, actions, strict=True) if action in (0, TURN)] == [
            1.0
        ] * int(((actions == 0) | (actions == TURN)).sum())


def test_only_next_frames_can_be_reckoned(make_world: Callable, openings: Openings) -> None:
    world = make_world("fifo")
    assert not world.can_reckon
    with pytest.raises(ConfigError, match="next-frame schedule"):
        world.reckon(start(world, openings, [0], [1]), torch.tensor([FORWARD]))


def test_a_world_that_lacks_something_says_what(
    pixel_bundle: Path,
    make_codec: Callable[..., Codec],
    make_depth: Callable[..., DepthNet],
    tmp_path: Path,
) -> None:
    codec, denoiser = load_codec(pixel_bundle), load_denoiser(pixel_bundle)
    with pytest.raises(ConfigError, match="needs a depth network"):
        WorldModel(codec, denoiser, device="cpu")
    with pytest.raises(ShapeError, match="frames of 32 pixels, the depth network takes 64"):
        WorldModel(codec, denoiser, device="cpu", depth=make_depth(image_size=64))
    save_bundle(tmp_path, codec=codec, denoiser=denoiser)
    with pytest.raises(CheckpointError, match="train.bundle --depth"):
        WorldModel.load(tmp_path, device="cpu")
    given = WorldModel.load(tmp_path, device="cpu", depth=load_depth(pixel_bundle))
    assert given.pixels is not None and given.source is None


def test_a_decoder_that_keeps_no_pixels_dreams_too(
    pixel_bundle: Path, make_codec: Callable[..., Codec], openings: Openings
) -> None:
    settings = {"device": "cpu", "dtype": torch.float32, "depth": load_depth(pixel_bundle)}
    world = WorldModel(make_codec(), load_denoiser(pixel_bundle), **settings)
    state = start(world, openings, [0], [1])
    assert dream(world, state, 2).shape == (1, 2, 32, 32, 3)
    assert state.dream.pending_warped.shape == (1, 1, NUM_FOLDED, 4, 4)
