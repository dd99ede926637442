"""Walks through a dream: straight on where it is free, never into what the dream takes for a wall."""

from typing import Any

import numpy as np
import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from train.measures.wander import FREE, Wanderer, find_plain, wander
from worldmodel.errors import ConfigError
from worldmodel.state import Step

AHEAD, LEFT, RIGHT = 1, 3, 4


class Corridor:
    """Has the face of a `WorldModel`: a wall at the end of a corridor; turned aside by 60 degrees, the way is free."""

    def __init__(self, length: float) -> None:
        self.length = length
        self.taken: list[list[int]] = []

    def reckon(self, state: dict[str, Any], actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert actions.tolist() == [AHEAD] * len(actions)
        free = torch.tensor([0.2 if x >= self.length and abs(h) < 60 else 1.0 for x, h in state["walkers"]])
        return state["last"], free

    def step(self, state: dict[str, Any], actions: torch.Tensor) -> Step:
        _, free = self.reckon(state, torch.full_like(actions, AHEAD))
        state["last"] = torch.where(actions == AHEAD, free, 1.0)
        for walker, action in zip(state["walkers"], actions.tolist(), strict=True):
            turn, walk = LABMAZE_ACTIONS.displacements[action]
            walker[1] += turn
            walker[0] += walk * (abs(walker[1]) < 60)
        self.taken.append(actions.tolist())
        nothing = torch.zeros(len(actions))
        return Step(torch.zeros(len(actions), 4, 4, 3, dtype=torch.uint8), nothing, nothing.bool(), nothing, nothing)


def walk(length: float, seeds: list[int], steps: int = 200) -> tuple[Corridor, torch.Tensor, float]:
    world: Any = Corridor(length)
    state: Any = {"walkers": [[0.0, 0.0] for _ in seeds], "last": torch.ones(len(seeds))}
    counted: list[int] = []
    frames, actions, stopped = wander(world, state, steps, LABMAZE_ACTIONS.displacements, seeds, counted.append)
    assert frames.shape == (len(seeds), steps, 4, 4, 3) and sum(counted) == steps * len(seeds)
    return world, actions, stopped


def test_a_walk_stops_at_no_wall_and_goes_on() -> None:
    world, actions, stopped = walk(0.5, [0, 1, 2, 3])
    assert stopped == 0.0
    assert actions.T.tolist() == world.taken
    assert set(actions.unique().tolist()) == {AHEAD, LEFT, RIGHT}
    assert (actions == AHEAD).float().mean() > 0.3
    again = walk(0.5, [0, 1, 2, 3])[1]
    assert torch.equal(actions, again)
    assert not torch.equal(actions[0], actions[1])


def test_at_a_wall_it_turns_to_one_side_until_it_is_free() -> None:
    walker = Wanderer(AHEAD, LEFT, RIGHT, np.random.default_rng(0))
    taken = [walker.next(0.5) for _ in range(30)]
    assert len(set(taken)) == 1 and taken[0] in (LEFT, RIGHT)
    assert walker.next(1.0) == AHEAD
    assert walker.next(FREE - 0.01) == taken[0]


def test_steps_that_were_stopped_all_the_same_are_counted() -> None:
    class Surprise(Corridor):
        def reckon(self, state: dict[str, Any], actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((len(actions),), 0.5), torch.ones(len(actions))

    world: Any = Surprise(1.0)
    state: Any = {"walkers": [[0.0, 0.0]], "last": torch.ones(1)}
    *_, stopped = wander(world, state, 50, LABMAZE_ACTIONS.displacements, [0], lambda count: None)
    assert stopped == 1.0


def test_actions_that_do_not_walk_or_turn_alone_are_refused() -> None:
    assert find_plain(LABMAZE_ACTIONS.displacements) == (AHEAD, LEFT, RIGHT)
    with pytest.raises(ConfigError, match="walk ahead, turn left and turn right"):
        find_plain(((0.0, 0.0), (6.0, 0.12)))
