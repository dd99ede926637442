"""The truth in the middle of a dream, and rollouts under a policy: each equals what steps would give."""

from pathlib import Path

import pytest
import torch

from worldmodel.errors import ActionError, ConfigError, ShapeError
from worldmodel.state import WorldState
from worldmodel.windows import fifo_window, outpainting_window
from worldmodel.world import WorldModel

Openings = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world(bundle: Path) -> WorldModel:
    return WorldModel.load(bundle, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def painter(pixel_bundle: Path) -> WorldModel:
    return WorldModel.load(pixel_bundle, device="cpu", dtype=torch.float32)


def begin(world: WorldModel, openings: Openings, known: int = 8) -> WorldState:
    frames, actions = openings["frames"][:2, :known], openings["actions"][:2, : known - 1].long()
    return world.reset(frames, actions, [1, 2])


@pytest.mark.parametrize("kind", ["plain", "pixels", "overlap"])
def test_frames_observed_are_as_frames_given_at_the_start(
    kind: str, bundle: Path, pixel_bundle: Path, openings: Openings
) -> None:
    """Without noise on what is shown, as both draw it otherwise."""
    folder = pixel_bundle if kind == "pixels" else bundle
    settings = {"window": outpainting_window(3, 2)} if kind == "overlap" else {}
    world = WorldModel.load(folder, device="cpu", dtype=torch.float32, context_level=0.0, **settings)
    state, whole = begin(world, openings, 4), begin(world, openings, 8)
    for number in range(4, 8):
        world.observe(state, openings["actions"][:2, number - 1], openings["frames"][:2, number])
    for name, part in state.dream.tensors().items():
        torch.testing.assert_close(part, whole.dream.tensors()[name], rtol=1e-3, atol=1e-3, msg=name)
    assert world.memory_used(state) == world.memory_used(whole)


@pytest.mark.parametrize("kind", ["plain", "pixels"])
def test_what_is_observed_stands_where_the_dreamt_frame_would(
    kind: str, world: WorldModel, painter: WorldModel, openings: Openings
) -> None:
    """Memory, poses and chance are those of a step; what it shows is the frame given, and the dream goes on from it."""
    model = painter if kind == "pixels" else world
    dreamt, observed, other = (begin(model, openings) for _ in range(3))
    actions, given = torch.tensor([1, 3]), openings["frames"][:2, 0]
    model.step(dreamt, actions)
    model.observe(observed, actions, given)
    model.observe(other, actions, 255 - given)
    mine, theirs = observed.dream.tensors(), dreamt.dream.tensors()
    assert observed.dream.layout == dreamt.dream.layout
    for name in mine:
        if name.startswith(("rings.", "cache.", "pending_poses", "pending_actions", "recent", "flight")):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-4, msg=name)
    assert all(
        torch.equal(a.get_state(), b.get_state())
        for a, b in zip(*(s.chance.generators for s in (observed, dreamt)), strict=True)
    )
    assert not torch.equal(mine["pending"], theirs["pending"])
    assert not torch.equal(model.step(observed, actions).frames, model.step(other, actions).frames)


def test_bad_observations(world: WorldModel, bundle: Path, openings: Openings) -> None:
    state, frames = begin(world, openings), openings["frames"][:2, 0]
    before = state.clone()
    with pytest.raises(
        ShapeError, match=r"observe takes frames uint8 \(2, 32, 32, 3\); got torch.uint8 \(2, 16, 16, 3\)"
    ):
        world.observe(state, torch.tensor([1, 1]), frames[:, :16, :16])
    with pytest.raises(ShapeError, match="got torch.float32"):
        world.observe(state, torch.tensor([1, 1]), frames.float())
    with pytest.raises(ActionError, match="from 0 to 6"):
        world.observe(state, torch.tensor([1, 7]), frames)
    assert torch.equal(state.dream.pending, before.dream.pending)
    ahead = WorldModel.load(bundle, device="cpu", window=fifo_window(3))
    with pytest.raises(ConfigError, match="2 frames in flight .* does not look ahead"):
        ahead.observe(begin(ahead, openings), torch.tensor([1, 1]), frames)


@pytest.mark.parametrize("kind", ["plain", "pixels"])
def test_a_rollout_under_a_policy_is_its_steps(
    kind: str, world: WorldModel, painter: WorldModel, openings: Openings
) -> None:
    model = painter if kind == "pixels" else world
    state, stepped = begin(model, openings), begin(model, openings)
    seen: list[torch.Tensor] = []

    def policy(frames: torch.Tensor) -> torch.Tensor:
        seen.append(frames)
        return (frames.flatten(1).sum(1) % 7).to(torch.int32)

    found = model.imagine(state, policy, 4)
    assert found.frames is not None and found.latents is None
    for number in range(4):
        step = model.step(stepped, found.actions[:, number])
        assert torch.equal(step.frames, found.frames[:, number])
        for name in ("rewards", "terminated", "reward_probability", "end_probability"):
            assert torch.equal(getattr(step, name), getattr(found, name)[:, number])
    assert torch.equal(torch.stack(seen[1:], 1), found.frames[:, :-1])
    assert seen[0].shape == (2, 32, 32, 3) and seen[0].dtype == torch.uint8

    fresh = begin(model, openings)  # the state was left as it is
    assert all(
        torch.equal(a, b) for a, b in zip(state.dream.tensors().values(), fresh.dream.tensors().values(), strict=True)
    )
    model.imagine(state, policy, 4, in_place=True)
    assert torch.equal(model.step(state, torch.tensor([1, 1])).frames, model.step(stepped, torch.tensor([1, 1])).frames)


def test_latents_alone(world: WorldModel, painter: WorldModel, openings: Openings) -> None:
    def policy(latents: torch.Tensor) -> torch.Tensor:
        assert latents.shape == (2, 4, 4, 4)
        return torch.tensor([1, 3])

    state = begin(world, openings)
    found = world.imagine(state, policy, 3, decode=False)
    drawn = world.imagine(state, lambda frames: torch.tensor([1, 3]), 3)
    assert found.frames is None and found.latents is not None and drawn.frames is not None
    assert torch.equal(world.decode(found.latents), drawn.frames)
    assert torch.equal(found.end_probability, drawn.end_probability)
    with pytest.raises(ConfigError, match="a memory of pixels remembers the frames it draws"):
        painter.imagine(begin(painter, openings), policy, 3, decode=False)


@pytest.mark.parametrize("decode", [False, True])
def test_gradients_by_the_noise_are_those_of_finite_differences(
    decode: bool, world: WorldModel, openings: Openings
) -> None:
    state, generator = begin(world, openings), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 2, 4, 4, 4, generator=generator)
    way = torch.randn(noise.shape, generator=generator)

    def chances(given: torch.Tensor, grad: bool) -> torch.Tensor:
        policy = lambda picture: torch.tensor([1, 3])  # noqa: E731
        found = world.imagine(state, policy, 3, decode=decode, noise=given, grad=grad)
        return (found.reward_probability + found.end_probability)[:, -1].sum()

    given = noise.clone().requires_grad_()
    chances(given, True).backward()
    assert given.grad is not None and given.grad[:, 0].abs().max() > 0, "the first frame's noise matters to the last"
    size = 1e-2
    expected = (chances(noise + size * way, False) - chances(noise - size * way, False)) / (2 * size)
    assert float((given.grad * way).sum()) == pytest.approx(float(expected), rel=0.05, abs=2e-5)


def test_bad_imaginations(world: WorldModel, openings: Openings) -> None:
    state = begin(world, openings)
    acts = lambda picture: torch.tensor([1, 3])  # noqa: E731
    with pytest.raises(ConfigError, match="horizon must be a whole number of at least 1; got 0"):
        world.imagine(state, acts, 0)
    with pytest.raises(ConfigError, match="leave in_place out"):
        world.imagine(state, acts, 1, in_place=True, grad=True)
    with pytest.raises(ShapeError, match=r"noise must be \(2, 3, 2, 4, 4, 4\); got \(2, 1"):
        world.imagine(state, acts, 3, noise=torch.zeros(2, 1, 2, 4, 4, 4))
    for policy in (lambda picture: torch.tensor([1]), lambda picture: [1, 3]):
        with pytest.raises(ShapeError, match="a policy gives one action a dream"):
            world.imagine(state, policy, 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(ActionError, match="from 0 to 6"):
        world.imagine(state, lambda picture: torch.tensor([1, 9]), 1)
