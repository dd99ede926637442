"""The world: equal seeds dream alike, forks and rewinds go on exactly, dreams of a batch are strangers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser, Prediction, Written
from worldmodel.errors import ActionError, ConfigError, DeviceError, ShapeError, WindowError
from worldmodel.inputs import FrameInputs
from worldmodel.state import WorldState
from worldmodel.windows import Window, fifo_window, next_frame_window, outpainting_window, parse_schedule
from worldmodel.world import WorldModel

Openings = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world(bundle: Path) -> WorldModel:
    return WorldModel.load(bundle, device="cpu", dtype=torch.float32)


def start(world: WorldModel, openings: Openings, rows: list[int], seeds: list[int]) -> WorldState:
    return world.reset(openings["frames"][rows], openings["actions"][rows], seeds)


def dream(world: WorldModel, state: WorldState, num_frames: int, first_action: int = 0) -> torch.Tensor:
    """Return frames uint8 (B, T, H, W, 3) under a fixed course of actions that differs between the dreams."""
    rows = torch.arange(state.num_dreams)
    return torch.stack(
        [world.step(state, (rows + first_action + k) % world.num_actions).frames for k in range(num_frames)], 1
    )


def test_equal_seeds_give_equal_frames_and_others_do_not(world: WorldModel, openings: Openings) -> None:
    first, again, other = (dream(world, start(world, openings, [0], [seed]), 9) for seed in (5, 5, 6))
    assert first.shape == (1, 9, 32, 32, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first[:, 0], other[:, 0])
    assert not torch.equal(first[:, 0], first[:, 1])


def test_actions_change_the_dream(world: WorldModel, openings: Openings) -> None:
    frames = []
    for action in range(world.num_actions):
        state = start(world, openings, [0], [5])
        frames.append(world.step(state, torch.tensor([action])).frames)
    assert len({f.numpy().tobytes() for f in frames}) == world.num_actions


def test_the_opening_and_its_actions_matter(world: WorldModel, openings: Openings) -> None:
    frames, actions = openings["frames"][:1], openings["actions"][:1]
    plain = dream(world, world.reset(frames, actions, [1]), 1)
    for other_frames, other_actions in (
        (frames.flip(3), actions),
        (frames, (actions + 1) % 7),
        (frames[:, 1:], actions[:, 1:]),
    ):
        assert not torch.equal(dream(world, world.reset(other_frames, other_actions, [1]), 1), plain)


def test_actions_stand_beside_the_frame_they_lead_to(world: WorldModel, openings: Openings) -> None:
    """The network hears "none" for the first frame of the opening, and each action with the frame after it."""
    heard: list[list[int]] = []
    handle = world.denoiser.embed_action.register_forward_pre_hook(
        lambda _, inputs: heard.append(inputs[0].tolist()[0])
    )
    state = world.reset(openings["frames"][:1, :3], torch.tensor([[5, 3]]), [1])
    world.step(state, torch.tensor([1]))
    world.step(state, torch.tensor([2]))
    handle.remove()
    # The opening but its last frame; then two denoising steps a frame, the first with the frame before it.
    assert heard == [[7, 5], [3, 1], [1], [1, 2], [2]]


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_an_opening_may_have_any_length(num_frames: int, world: WorldModel, openings: Openings) -> None:
    frames, actions = openings["frames"][:2, :num_frames], openings["actions"][:2, : num_frames - 1]
    state = world.reset(frames, actions, [1, 2])
    assert world.memory_used(state) == [min(num_frames, 6)] * 2
    assert dream(world, state, 3).shape == (2, 3, 32, 32, 3)


def test_a_fork_goes_on_alike_and_on_its_own(world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0, 1], [1, 2])
    dream(world, state, 4)
    fork, kept = state.clone(), state.clone()
    ahead = dream(world, state, 8)
    assert torch.equal(dream(world, fork, 8), ahead)
    assert not torch.equal(dream(world, kept.clone(), 8, first_action=3), ahead)
    assert torch.equal(dream(world, kept, 8), ahead), "rewound to a kept state"


def test_equal_frames_and_equal_states_after_a_rewind(world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0], [1])
    kept = [state.clone()]
    frames = []
    for k in range(10):
        frames.append(world.step(state, torch.tensor([k % 7])).frames)
        kept.append(state.clone())
    for back in (9, 4, 0):
        again = kept[back].clone()
        for k in range(back, 10):
            assert torch.equal(world.step(again, torch.tensor([k % 7])).frames, frames[k])


def test_put_replaces_rows_and_only_those(world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0, 1, 2], [1, 2, 3])
    dream(world, state, 5)
    untouched = state.clone()
    fresh = start(world, openings, [2, 0], [8, 9])
    world.put(state, [2, 0], fresh)
    found, expected = dream(world, state, 6), dream(world, untouched, 6)
    assert (found[1].int() - expected[1].int()).abs().max() <= 1
    assert (found[2].int() - expected[2].int()).abs().max() > 1

    # The new dreams are those that the fresh batch dreams, at their own age, whoever sits beside them.
    actions = [torch.arange(3) + k for k in range(6)]
    alone = torch.stack([world.step(fresh, (a[[2, 0]]) % 7).frames for a in actions], 1)
    assert (found[[2, 0]].int() - alone.int()).abs().max() <= 1


def test_put_takes_a_copy(world: WorldModel, openings: Openings) -> None:
    """What was put in goes on alike whether or not the state it came from is stepped in between."""
    state, fresh = start(world, openings, [0], [1]), start(world, openings, [2], [8])
    kept = fresh.clone()
    world.put(state, [0], fresh)
    dream(world, fresh, 3)
    assert torch.equal(dream(world, state, 4), dream(world, kept, 4))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [0, 3], [-1, 0], [1, 1]])
def test_put_of_rows_that_do_not_fit_changes_nothing(rows: list[int], world: WorldModel, openings: Openings) -> None:
    state, fresh = start(world, openings, [0, 1, 2], [1, 2, 3]), start(world, openings, [2, 0], [8, 9])
    before = state.clone()
    with pytest.raises(ShapeError, match="put takes"):
        world.put(state, rows, fresh)
    assert torch.equal(dream(world, state, 2), dream(world, before, 2))


def test_a_batch_dreams_what_each_would_alone(world: WorldModel, openings: Openings) -> None:
    together = dream(world, start(world, openings, [0, 1, 2], [4, 5, 6]), 8)
    for row in range(3):
        alone = dream(world, start(world, openings, [row], [4 + row]), 8, first_action=row)
        assert (together[row].int() - alone[0].int()).abs().max() <= 1


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_any_number_of_denoising_steps(num_steps: int, bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", num_steps=num_steps, dtype=torch.float32)
    calls = []
    world.denoiser.register_forward_pre_hook(lambda *given: calls.append(1))
    state = start(world, openings, [0], [1])
    calls.clear()
    frames = dream(world, state, 3)
    assert len(calls) == 3 * num_steps, "the clean write must ride in the first denoising call"
    assert frames.float().std() > 1


def test_memory_is_bounded_and_counted(world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0], [1])
    size = state.dream.cache.num_bytes
    used = []
    for k in range(12):
        used.append(world.memory_used(state)[0])
        world.step(state, torch.tensor([k % 7]))
    assert used == [6] * 12  # the opening has 8 frames
    short = world.reset(openings["frames"][:1, :2], openings["actions"][:1, :1], [1])
    counted = []
    for k in range(6):
        counted.append(world.memory_used(short)[0])
        world.step(short, torch.tensor([k]))
    assert counted == [2, 3, 4, 5, 6, 6]
    assert state.dream.cache.num_bytes == short.dream.cache.num_bytes == size


@pytest.mark.parametrize("memory_frames", [1, 3])
def test_a_shorter_memory_can_be_asked_for(memory_frames: int, bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", memory_frames=memory_frames, dtype=torch.float32)
    state = start(world, openings, [0], [1])
    assert world.memory_used(state) == [memory_frames]
    assert state.dream.cache.rings["memory_k"].shape[3] == memory_frames
    dream(world, state, 8)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"memory_frames": 0}, ConfigError, "memory_frames must be from 1 to 6"),
        ({"memory_frames": 1_000}, ConfigError, "memory_frames must be from 1 to 6, .*; got 1000"),
        ({"num_steps": 0}, ConfigError, "num_steps must be a whole number from 1 to 1000; got 0"),
        ({"context_level": 2.0}, ConfigError, "context_level"),
        ({"device": "tpu"}, DeviceError, "unknown device 'tpu'"),
    ],
)
def test_bad_settings_are_refused_on_loading(
    settings: dict[str, Any], error: type[Exception], message: str, bundle: Path
) -> None:
    with pytest.raises(error, match=message):
        WorldModel.load(bundle, **{"device": "cpu", **settings})


def test_a_codec_of_other_latents_is_refused(
    make_codec: Callable[..., Codec], make_denoiser: Callable[..., Denoiser]
) -> None:
    with pytest.raises(ShapeError, match="disagree on latents"):
        WorldModel(make_codec(), make_denoiser(latent_size=8), device="cpu")


@pytest.mark.parametrize(
    "actions",
    [
        torch.tensor([7, 0]),
        torch.tensor([-1, 0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([float("nan"), 0]),
        torch.tensor([True, False]),
    ],
    ids=str,
)
def test_an_action_that_does_not_exist_changes_nothing(
    actions: torch.Tensor, world: WorldModel, openings: Openings
) -> None:
    state = start(world, openings, [0, 1], [1, 2])
    before = state.clone()
    with pytest.raises(ActionError, match="from 0 to 6; got"):
        world.step(state, actions)
    with pytest.raises(ActionError, match="from 0 to 6; got"):
        world.reset(openings["frames"][:1, :3], actions[None], [1])
    assert torch.equal(dream(world, state, 2), dream(world, before, 2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_format_of_actions(dtype: torch.dtype, world: WorldModel, openings: Openings) -> None:
    expected = world.step(start(world, openings, [0], [1]), torch.tensor([3])).frames
    found = world.step(start(world, openings, [0], [1]), torch.tensor([3], dtype=dtype)).frames
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_one_action_a_dream(shape: tuple[int, ...], world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0, 1], [1, 2])
    with pytest.raises(ShapeError, match=r"step takes one action a dream, \(2,\); got"):
        world.step(state, torch.zeros(shape, dtype=torch.int64))


def test_reset_names_shapes_that_do_not_agree(world: WorldModel, openings: Openings) -> None:
    frames, actions = openings["frames"][:2], openings["actions"][:2]
    with pytest.raises(ShapeError, match=r"actions \(B, T - 1\); got \(2, 8, 32, 32, 3\) and \(2, 8\)"):
        world.reset(frames, torch.zeros(2, 8, dtype=torch.int64), [1, 2])
    with pytest.raises(ShapeError, match="got 1 seeds for 2 dreams"):
        world.reset(frames, actions, [1])
    with pytest.raises(ShapeError, match="frames must be uint8"):
        world.reset(frames.float(), actions, [1, 2])
    with pytest.raises(ShapeError, match=r"codec takes pixels \(B, 3, 32, 32\)"):
        world.reset(frames[:, :, :16, :16], actions, [1, 2])
    with pytest.raises(ShapeError, match="reset takes frames"):
        world.reset(frames[0], actions[0], [1])


def test_rewards_and_ends_come_from_the_heads(
    make_codec: Callable[..., Codec], make_denoiser: Callable[..., Denoiser], openings: Openings
) -> None:
    denoiser = make_denoiser(reward_values=(0.0, 0.5, 1.0))
    for bias, reward, ends in (((0.0, 9.0, 0.0), 0.5, True), ((9.0, 0.0, 0.0), 0.0, False)):
        with torch.no_grad():
            denoiser.reward_head.weight.zero_()
            denoiser.terminated_head.weight.zero_()
            denoiser.reward_head.bias.copy_(torch.tensor(bias))
            denoiser.terminated_head.bias.fill_(1.0 if ends else -1.0)
        world = WorldModel(make_codec(), denoiser, device="cpu")
        result = world.step(start(world, openings, [0, 1], [1, 2]), torch.tensor([0, 1]))
        assert result.rewards.tolist() == [reward] * 2
        assert result.terminated.tolist() == [ends] * 2
        assert (result.rewards.dtype, result.terminated.dtype) == (torch.float32, torch.bool)


def test_frames_do_not_share_memory_between_calls(world: WorldModel, openings: Openings) -> None:
    state = start(world, openings, [0], [1])
    first = world.step(state, torch.tensor([1])).frames
    kept = first.clone()
    world.step(state, torch.tensor([2]))
    assert torch.equal(first, kept)


def test_encode_and_decode_keep_the_leading_axes(world: WorldModel, openings: Openings) -> None:
    frames = openings["frames"]
    latents = world.encode(frames)
    assert latents.shape == (3, 8, 4, 4, 4)
    assert world.decode(latents).shape == frames.shape
    torch.testing.assert_close(world.encode(frames[1, 2:4]), latents[1, 2:4], rtol=1e-4, atol=1e-4)


def test_a_world_in_bfloat16_dreams_nearly_the_same(bundle: Path, world: WorldModel, openings: Openings) -> None:
    half = WorldModel.load(bundle, device="cpu", dtype=torch.bfloat16)
    exact, found = (w.step(start(w, openings, [0], [1]), torch.tensor([1])).frames.float() for w in (world, half))
    assert (exact - found).abs().mean() < 0.05 * exact.std()


def test_a_window_of_two_frames_a_step_is_refused(bundle: Path) -> None:
    with pytest.raises(WindowError, match="one frame a step; got a window of stride 2"):
        WorldModel.load(bundle, device="cpu", window=Window((1.0, 1.0), (0.0, 0.0), 2))


SCHEDULES = ["next", "outpaint:5:0", "outpaint:5:2", "outpaint:4:3", "fifo:1", "fifo:4", "rolling:3:2", "pyramid:6:2"]
AHEAD = {"fifo": fifo_window(4), "overlap": outpainting_window(3, 2), "both": Window((0, 0.5, 1), (0, 0, 0.5), 1)}


class ActionWriter(Denoiser):
    """A stub whose clean prediction of a frame is the action into it, so that a frame shows what it was given."""

    def forward(self, frames: FrameInputs, **settings: Any) -> tuple[Prediction, Written]:
        prediction, written = super().forward(frames, **settings)
        clean = frames.actions[:, :, None, None, None].float().expand_as(frames.latents)
        return prediction._replace(clean=clean), written


@pytest.fixture(scope="module")
def writer(make_codec: Callable[..., Codec], make_denoiser: Callable[..., Denoiser]) -> Callable[..., WorldModel]:
    """Make a world of one-pixel frames whose value is the action that led to them."""

    def make(**settings: Any) -> WorldModel:
        world = WorldModel(make_codec(), ActionWriter(make_denoiser().config), device="cpu", num_steps=2, **settings)

        def paint(latents: torch.Tensor, warped: torch.Tensor | None = None) -> torch.Tensor:
            return (latents.mean((1, 2, 3)).round() / 127.5 - 1)[:, None, None, None].expand(-1, 3, 1, 1)

        world.codec.decode = paint  # type: ignore[method-assign]
        return world

    return make


@pytest.mark.parametrize("num_frames", [6, 7, 11])
@pytest.mark.parametrize("text", SCHEDULES)
def test_every_frame_of_a_rollout_gets_its_action(
    text: str, num_frames: int, writer: Callable[..., WorldModel], openings: Openings
) -> None:
    schedule, frames = parse_schedule(text), openings["frames"][:2, :5]
    actions = torch.randint(7, (2, 4 + num_frames), generator=torch.Generator().manual_seed(3))
    found = writer().rollout(frames, actions, [1, 2], schedule.window, schedule.num_steps)
    assert torch.equal(found.flatten(2)[..., :1].long(), actions[:, 4:, None])


@pytest.mark.parametrize("name", AHEAD)
def test_a_step_shows_the_action_of_the_input_lag_before(
    name: str, writer: Callable[..., WorldModel], openings: Openings
) -> None:
    world = writer(window=AHEAD[name])
    lag = world.window.input_lag
    assert lag == {"fifo": 3, "overlap": 0, "both": 1}[name]
    frames, given = openings["frames"][:1], openings["actions"][:1]
    for ahead in (None, torch.tensor([[2, 5, 3][:lag]], dtype=torch.int64)):
        state = world.reset(frames, given, [1], ahead)
        shown = [int(world.step(state, torch.tensor([1 + k])).frames.flatten()[0]) for k in range(6)]
        assert shown == ([0] * lag if ahead is None else ahead[0].tolist()) + [1, 2, 3, 4, 5, 6][: 6 - lag]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_rollout_of_next_frames_equals_steps_bit_for_bit(
    num_steps: int, world: WorldModel, bundle: Path, openings: Openings
) -> None:
    frames, given = openings["frames"][:2], openings["actions"][:2].long()
    actions = torch.cat([given, torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(3))], 1)
    stepped = WorldModel.load(bundle, device="cpu", dtype=torch.float32, num_steps=num_steps)
    state = stepped.reset(frames, given, [1, 2])
    expected = torch.stack([stepped.step(state, actions[:, 7 + k]).frames for k in range(9)], 1)
    dreamt: list[int] = []
    found = world.rollout(frames, actions, [1, 2], next_frame_window(), num_steps, dreamt.append)
    assert torch.equal(found, expected)
    assert dreamt == [2] * 9
    if num_steps == 1:
        assert torch.equal(world.rollout(frames, actions, [1, 2], fifo_window(1), 1), expected), "one frame in flight"
    else:
        assert not torch.equal(world.rollout(frames, actions, [1, 2]), expected), "the world's own two steps"


@pytest.mark.parametrize("text", SCHEDULES)
def test_a_longer_rollout_begins_like_a_shorter_one(text: str, world: WorldModel, openings: Openings) -> None:
    """Frames past the end, in flight under action 0, change nothing; the count of frames need not fit the stride."""
    schedule, frames = parse_schedule(text), openings["frames"][:1]
    actions = torch.randint(7, (1, 7 + 13), generator=torch.Generator().manual_seed(3))
    counts: list[int] = []
    long = world.rollout(frames, actions, [1], schedule.window, schedule.num_steps, counts.append)
    short = world.rollout(frames, actions[:, :-6], [1], schedule.window, schedule.num_steps)
    assert (long.shape[1], short.shape[1], sum(counts)) == (13, 7, 13)
    assert torch.equal(long[:, :7], short)
    assert not torch.equal(world.rollout(frames, actions[:, :-6], [2], schedule.window, schedule.num_steps), short)


@pytest.mark.parametrize("text", ["fifo:4", "rolling:4:3", "pyramid:6:2", "outpaint:5:2"])
def test_calls_of_the_network_are_those_of_the_schedule(text: str, bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", dtype=torch.float32, num_init_steps=5)
    schedule, calls = parse_schedule(text), []
    world.denoiser.register_forward_pre_hook(lambda *given: calls.append(1))
    frames = openings["frames"][:1, :2]
    world.rollout(frames, torch.zeros(1, 1 + 12, dtype=torch.int64), [1], schedule.window, schedule.num_steps)
    num_steps = schedule.num_steps or 2  # the bundle's
    init = 5 if schedule.window.input_lag else 0
    context = 1 if text in ("fifo:4", "rolling:4:3") else 0  # one frame to write before the last, which is folded in
    assert len(calls) == context + init + num_steps * 12 // schedule.window.stride


@pytest.mark.parametrize("name", AHEAD)
def test_forks_and_rewinds_with_frames_in_flight(name: str, bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", dtype=torch.float32, window=AHEAD[name])
    state = start(world, openings, [0, 1], [1, 2])
    dream(world, state, 3)
    fork, kept = state.clone(), state.clone()
    ahead = dream(world, state, 6)
    assert torch.equal(dream(world, fork, 6), ahead)
    assert not torch.equal(dream(world, kept.clone(), 6, first_action=3), ahead)
    assert torch.equal(dream(world, kept, 6), ahead), "rewound to a kept state"


@pytest.mark.parametrize("name", AHEAD)
def test_put_with_frames_in_flight(name: str, bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", dtype=torch.float32, window=AHEAD[name])
    state, fresh = start(world, openings, [0, 1], [1, 2]), start(world, openings, [2], [8])
    dream(world, state, 5)
    untouched = state.clone()
    world.put(state, [1], fresh)
    found, expected, alone = dream(world, state, 6), dream(world, untouched, 6), dream(world, fresh, 6, first_action=1)
    assert (found[0].int() - expected[0].int()).abs().max() <= 1
    assert (found[1].int() - alone[0].int()).abs().max() <= 1
    assert (found[1].int() - expected[1].int()).abs().max() > 1


def test_dreams_of_other_schedules_are_not_put_together(bundle: Path, openings: Openings) -> None:
    plain, ahead = (WorldModel.load(bundle, device="cpu", window=w) for w in (next_frame_window(), fifo_window(3)))
    state = start(plain, openings, [0, 1], [1, 2])
    with pytest.raises(ShapeError, match="use one schedule"):
        plain.put(state, [1], start(ahead, openings, [2], [8]))


def test_memory_counts_the_clean_overlap(bundle: Path, openings: Openings) -> None:
    world = WorldModel.load(bundle, device="cpu", window=outpainting_window(3, 2))
    state = world.reset(openings["frames"][:1, :4], openings["actions"][:1, :3], [1])
    used = []
    for k in range(4):
        used.append(world.memory_used(state)[0])
        world.step(state, torch.tensor([k]))
    assert used == [4, 5, 6, 6]


@pytest.mark.parametrize(
    ("text", "context", "num_frames", "error", "message"),
    [
        ("outpaint:6:4", 3, 9, ShapeError, "a context of 3 frames is shorter than the 4 clean frames"),
        ("fifo:8", 4, 7, ShapeError, "7 frames to dream are shorter than the window, which has 8"),
        ("outpaint:6:2", 4, 3, ShapeError, "3 frames to dream are shorter than the window, which has 4"),
        ("next", 4, 0, ShapeError, "for N of at least 1 frames to dream"),
    ],
)
def test_what_a_schedule_cannot_do_is_said(
    text: str,
    context: int,
    num_frames: int,
    error: type[Exception],
    message: str,
    world: WorldModel,
    openings: Openings,
) -> None:
    frames, actions = openings["frames"][:1, :context], torch.zeros(1, context - 1 + num_frames, dtype=torch.int64)
    with pytest.raises(error, match=message):
        world.rollout(frames, actions, [1], parse_schedule(text).window)


def test_bad_arguments_of_a_rollout(world: WorldModel, openings: Openings) -> None:
    frames, actions = openings["frames"][:1], torch.zeros(1, 12, dtype=torch.int64)
    with pytest.raises(ShapeError, match="rollout takes frames"):
        world.rollout(frames[0], actions, [1])
    with pytest.raises(ShapeError, match="rollout takes frames"):
        world.rollout(frames, actions[0], [1])
    with pytest.raises(ShapeError, match="got 2 seeds for 1 dreams"):
        world.rollout(frames, actions, [1, 2])
    with pytest.raises(ActionError, match="from 0 to 6; got"):
        world.rollout(frames, actions + 7, [1])
    with pytest.raises(ConfigError, match="num_steps must be a whole number from 1 to 1000; got 0"):
        world.rollout(frames, actions, [1], num_steps=0)
    ahead = WorldModel(world.codec, world.denoiser, device="cpu", window=fifo_window(3))
    with pytest.raises(ShapeError, match=r"ahead must be \(1, 2\).* got \(1, 3\)"):
        ahead.reset(frames, openings["actions"][:1], [1], torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ActionError, match="from 0 to 6; got"):
        ahead.reset(frames, openings["actions"][:1], [1], torch.full((1, 2), 7))


def test_other_settings_of_one_world_dream_as_worlds_loaded_with_them(
    world: WorldModel, bundle: Path, openings: Openings
) -> None:
    before = dream(world, start(world, openings, [0], [5]), 9)
    for settings in ({"num_steps": 3}, {"memory_frames": 2}, {"num_steps": 1, "memory_frames": 4}):
        other = world.with_settings(**settings)
        loaded = WorldModel.load(bundle, device="cpu", dtype=torch.float32, **settings)
        assert other.memory_frames == loaded.memory_frames and other.config == loaded.config
        frames = dream(other, start(other, openings, [0], [5]), 9)
        assert torch.equal(frames, dream(loaded, start(loaded, openings, [0], [5]), 9))
        assert not torch.equal(frames, before)
        assert other.denoiser is world.denoiser and other.source == world.source  # weights are not copied
    assert torch.equal(dream(world, start(world, openings, [0], [5]), 9), before)
    with pytest.raises(ConfigError, match="memory_frames must be from 1 to 6"):
        world.with_settings(memory_frames=7)


def test_another_number_format_is_a_copy(world: WorldModel, bundle: Path, openings: Openings) -> None:
    halved = world.with_settings(dtype=torch.bfloat16)
    assert next(halved.denoiser.parameters()).dtype == torch.bfloat16
    assert next(world.denoiser.parameters()).dtype == torch.float32 and halved.dtype != world.dtype
    again = halved.with_settings(dtype=torch.float32)  # a bundle keeps its weights in bfloat16
    frames, expected = (dream(each, start(each, openings, [0], [5]), 5) for each in (again, world))
    assert torch.equal(frames, expected)
    loaded = WorldModel.load(bundle, device="cpu", dtype=torch.bfloat16)
    frames, expected = (dream(each, start(each, openings, [0], [5]), 5) for each in (halved, loaded))
    assert torch.equal(frames, expected)
