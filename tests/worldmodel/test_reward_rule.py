"""The rule of a world about its rewards: nothing pays twice, and the last reward ends a dream."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError
from worldmodel.reward_rule import RewardRule
from worldmodel.rewards import NUM_PLACES, RewardLog, settle
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

RULE = RewardRule(apart=0.9, ends_after=3)


def at(*places: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[x, y, 0.0, 0.0, 0.0] for x, y in places])


def test_nothing_pays_twice_and_the_last_reward_ends_a_dream() -> None:
    log = RewardLog.empty(2)
    # Dream 0 walks on and is paid at each place, dream 1 stands and is paid again and again.
    for step, (x, repeated, over) in enumerate(
        (
            (0.0, [False, False], [False, False]),
            (1.0, [False, True], [False, False]),
            (2.0, [False, True], [True, False]),
        )
    ):
        log, is_repeated, is_over = settle(RULE, log, torch.ones(2), at((x, 0), (5, 0)))
        assert is_repeated.tolist() == repeated and is_over.tolist() == over and int(log.count[0]) == step + 1
    assert log.count.tolist() == [3, 1]
    log, is_repeated, is_over = settle(RULE, log, torch.zeros(2), at((0, 0), (5, 0)))  # without a reward
    assert not is_repeated.any() and is_over.tolist() == [True, False]
    assert settle(RULE, log, torch.ones(2), at((0, 0.85), (5, 0.95)))[1].tolist() == [True, False]
    # Who walks on about what did not go away is not paid on its other side.
    for y in (0.6, 1.2, 1.8, 2.4, 3.0, 1.5):
        log, is_repeated, _ = settle(RULE, log, torch.ones(2), at((7, 0), (5, y)))
        assert is_repeated.tolist() == [y > 0.6, True]


def test_without_poses_rewards_are_counted_and_without_a_rule_all_is_as_the_heads_say() -> None:
    log = RewardLog.empty(1)
    for number in range(1, 4):
        log, is_repeated, is_over = settle(RULE, log, torch.ones(1), None)
        assert not is_repeated.any() and bool(is_over) == (number == 3)
    log = RewardLog.empty(1)
    for _ in range(5):
        log, is_repeated, is_over = settle(RewardRule(), log, torch.ones(1), at((0, 0)))
        assert not is_repeated.any() and not is_over.any()


def test_the_newest_places_are_kept() -> None:
    log = RewardLog.empty(1)
    for number in range(NUM_PLACES + 5):
        log, is_repeated, _ = settle(RewardRule(apart=0.9), log, torch.ones(1), at((2.0 * number, 0)))
        assert not is_repeated.any()
    assert settle(RewardRule(apart=0.9), log, torch.ones(1), at((2.0 * (NUM_PLACES + 4), 0)))[1].all()
    assert not settle(RewardRule(apart=0.9), log, torch.ones(1), at((0, 0)))[1].any()  # overwritten


@pytest.mark.parametrize("rule", [{"apart": -1}, {"near": 1}, {"ends_after": -2}])
def test_a_rule_that_is_none_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="reward_rule"):
        RewardRule.of({"reward_rule": rule})


@pytest.fixture
def paying(make_denoiser: Callable[..., Denoiser], make_codec: Callable[..., Any]) -> WorldModel:
    """Whose head pays in every step, and whose end head never fires."""
    denoiser = make_denoiser()
    with torch.no_grad():
        denoiser.reward_head.bias.copy_(torch.tensor([-50.0, 50.0]))
        denoiser.terminated_head.bias.fill_(-50.0)
    return WorldModel(make_codec(), denoiser, device="cpu", info={"reward_rule": {"ends_after": 3}})


def begin(world: WorldModel, batch: int = 2) -> WorldState:
    size = world.codec.config.image_size
    return world.reset(
        torch.zeros(batch, 4, size, size, 3, dtype=torch.uint8), torch.zeros(batch, 3).long(), [*range(batch)]
    )


def test_a_dream_ends_with_its_last_reward_and_a_state_keeps_the_count(paying: WorldModel) -> None:
    state, stand = begin(paying), torch.zeros(2, dtype=torch.int64)
    ends = [paying.step(state, stand).terminated.tolist() for _ in range(2)]
    kept = [
        state.clone(),
        WorldState.from_bytes(state.to_bytes()),
        state.select([1, 0]),
        WorldState.cat([state.select([0]), state.select([1])]),
    ]
    assert ends == [[False, False], [False, False]]
    for copy in kept:
        step = paying.step(copy, stand)
        assert step.terminated.all() and (step.end_probability == 1).all() and step.rewards.all()
    paying.put(state, [0], begin(paying, 1))
    assert paying.step(state, stand).terminated.tolist() == [False, True]
    for decode in (True, False):
        imagined = paying.imagine(begin(paying), lambda frames: stand, 4, decode=decode)
        assert imagined.terminated.tolist() == [[False, False, True, True]] * 2
