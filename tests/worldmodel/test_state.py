"""A state as a value: selecting, repeating, joining and bytes agree, and each dream goes on as it would have."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worldmodel.chance import DeviceChance, HostChance, mix
from worldmodel.counts import check_whole, read_whole
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.state import WorldState
from worldmodel.windows import fifo_window
from worldmodel.world import WorldModel

Openings = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["plain", "pixels", "ahead", "counted"])
def begin(request: pytest.FixtureRequest, bundle: Path, pixel_bundle: Path, openings: Openings) -> Callable[[], object]:
    """Return a world, and what begins three dreams of it that have gone on for some steps."""
    folder = pixel_bundle if request.param == "pixels" else bundle
    settings = {"window": fifo_window(3)} if request.param == "ahead" else {}
    world = WorldModel.load(folder, device="cpu", dtype=torch.float32, **settings)

    def make() -> tuple[WorldModel, WorldState]:
        seeds, on_device = [4, 5, 6], request.param == "counted"
        state = world.reset(openings["frames"], openings["actions"].long(), seeds, on_device=on_device)
        for action in (1, 3):
            world.step(state, torch.full((3,), action))
        return world, state

    return make


def assert_equal(a: WorldState, b: WorldState) -> None:
    assert a.dream.layout == b.dream.layout and a.num_dreams == b.num_dreams
    for mine, theirs in ((a.dream.tensors(), b.dream.tensors()), (a.chance.tensors(), b.chance.tensors())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_equalities_of_values(begin: Callable[[], tuple[WorldModel, WorldState]]) -> None:
    world, state = begin()
    parts = [state.select([row]) for row in range(3)]
    assert_equal(WorldState.cat(parts), state)
    assert_equal(state.select([2, 0]), WorldState.cat([parts[2], parts[0]]))
    assert_equal(state.repeat(2).select([0, 2, 4]), state)
    assert_equal(state.repeat(2), state.select([0, 0, 1, 1, 2, 2]))
    assert_equal(WorldState.from_bytes(state.to_bytes()), state)
    other = state.clone()
    world.put(other, [1, 2, 0], state.select([1, 2, 0]))
    assert_equal(other, state)

    # None of them shares memory with what it was made of.
    kept = state.clone()
    for copy in (state.select([0, 1, 2]), state.repeat(1), WorldState.cat([state])):
        world.step(copy, torch.tensor([1, 2, 3]))
    assert_equal(state, kept)


def test_a_step_after_each(begin: Callable[[], tuple[WorldModel, WorldState]]) -> None:
    world, state = begin()
    order, actions = [2, 0, 1], torch.tensor([1, 3, 5])
    moved = state.select(order)
    frames = world.step(state.clone(), actions).frames
    assert torch.equal(world.step(moved, actions[order]).frames, frames[order])
    twice = world.step(state.repeat(2), actions.repeat_interleave(2)).frames
    assert torch.equal(twice[::2], twice[1::2]) and (twice[::2].int() - frames.int()).abs().max() <= 1
    joined = WorldState.cat([state.select([1]), state.select([0, 2])])
    assert torch.equal(world.step(joined, actions[[1, 0, 2]]).frames, frames[[1, 0, 2]])
    assert torch.equal(world.step(WorldState.from_bytes(state.to_bytes()), actions).frames, frames)


def test_what_cannot_be_joined_or_selected(bundle: Path, pixel_bundle: Path, openings: Openings) -> None:
    frames, actions = openings["frames"][:1], openings["actions"][:1].long()
    plain, pixels = (WorldModel.load(folder, device="cpu") for folder in (bundle, pixel_bundle))
    state, counted = plain.reset(frames, actions, [1]), plain.reset(frames, actions, [1], on_device=True)
    with pytest.raises(ShapeError, match="at least one state"):
        WorldState.cat([])
    for other in (pixels.reset(frames, actions, [1]), counted):
        with pytest.raises(ShapeError, match="cannot be in one batch"):
            WorldState.cat([state, other])
    with pytest.raises(ShapeError, match="cannot be in one batch"):
        plain.put(state, [0], counted)
    for rows in ([1], [-1]):
        with pytest.raises(ShapeError, match=r"select takes rows from 0 to 0; got \["):
            state.select(rows)
    with pytest.raises(ConfigError, match="count must be a whole number of at least 1; got 0"):
        state.repeat(0)


def test_noise_of_the_device_is_normal_and_each_dreams_own() -> None:
    chance = DeviceChance.of_seeds([3, 4, 2**62 + 1], torch.device("cpu"))
    first, second = (chance.draw((40, 50, 50), torch.device("cpu")) for _ in range(2))
    assert first.shape == (3, 40, 50, 50) and first.dtype == torch.float32
    values = torch.cat([first.flatten(1), second.flatten(1)])
    assert values.mean(1).abs().max() < 0.02 and (values.std(1) - 1).abs().max() < 0.02
    assert (values.pow(4).mean(1) - 3).abs().max() < 0.15 and values.abs().max() < 6
    correlations = torch.corrcoef(values) - torch.eye(6)
    assert correlations.abs().max() < 0.015
    assert torch.corrcoef(torch.stack([values[0, 1:], values[0, :-1]]))[0, 1].abs() < 0.015

    again = DeviceChance.of_seeds([4], torch.device("cpu"))
    assert torch.equal(again.draw((40, 50, 50), torch.device("cpu"))[0], first[1])
    assert torch.equal(again.clone().draw((40, 50, 50), torch.device("cpu"))[0], second[1])
    bits = torch.arange(100_000)
    assert len(mix(bits).unique()) == len(bits)


def test_noise_of_the_host_is_that_of_a_generator_for_each_dream() -> None:
    chance = HostChance.of_seeds([3, 4])
    drawn = [chance.draw((2, 3), torch.device("cpu")) for _ in range(2)]
    for row, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        assert all(torch.equal(each[row], torch.randn(2, 3, generator=generator)) for each in drawn)


def test_noise_on_the_context_can_be_apart_from_the_dreams_own(bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", dtype=torch.float32)
    frames, actions = openings["frames"][:2], openings["actions"][:2].long()
    first, second = (world.reset(frames, actions, seeds, context_seeds=[0, 0]) for seeds in ([1, 2], [3, 4]))
    assert all(
        torch.equal(a, b) for a, b in zip(first.dream.tensors().values(), second.dream.tensors().values(), strict=True)
    )
    assert not torch.equal(world.step(first, actions[:, 0]).frames, world.step(second, actions[:, 0]).frames)
    with pytest.raises(ShapeError, match="got 1 context_seeds for 2 dreams"):
        world.reset(frames, actions, [1, 2], context_seeds=[0])


def test_whole_numbers() -> None:
    import numpy as np

    for value in (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        assert check_whole("it", value, 1) == 3 and type(read_whole(value)) is int
    for value in (True, np.bool_(True), 3.0, np.float32(3), "3", None):
        with pytest.raises(ConfigError, match="it must be a whole number from 1 to 9 or None; got"):
            check_whole("it", value, 1, 9, " or None")
