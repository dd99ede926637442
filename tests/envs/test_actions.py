"""Action sets: key bindings as data, and the check of actions from outside."""

import math

import numpy as np
import pytest
import torch

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from worldmodel.errors import ActionError


@pytest.mark.parametrize(
    ("held", "name"),
    [
        ("", "noop"),
        ("w", "forward"),
        ("up", "forward"),
        ("w up", "forward"),
        ("s", "back"),
        ("left", "turn_left"),
        ("d", "turn_right"),
        ("w a", "forward_left"),
        ("up d", "forward_right"),
        ("w s", "noop"),
        ("w down", "noop"),
        ("a right", "noop"),
        ("w a d", "forward"),
        ("w s a", "turn_left"),
        ("s left", "turn_left"),
        ("w s a d", "noop"),
        ("q w", "forward"),
    ],
)
def test_held_keys_select_an_action(held: str, name: str) -> None:
    assert LABMAZE_ACTIONS.names[LABMAZE_ACTIONS.from_keys(set(held.split()))] == name


def test_order_of_actions_is_fixed_as_recordings_store_indices() -> None:
    assert LABMAZE_ACTIONS.names == (
        "noop",
        "forward",
        "back",
        "turn_left",
        "turn_right",
        "forward_left",
        "forward_right",
    )
    assert LABMAZE_ACTIONS.space.n == LABMAZE_ACTIONS.num_actions == len(LABMAZE_ACTIONS.chords) == 7


def test_bindings_for_gymnasium_play_agree_with_held_keys() -> None:
    bindings = LABMAZE_ACTIONS.keys_to_action
    assert bindings[("w",)] == 1
    assert sorted(bindings.values()) == [1, 2, 3, 4, 5, 6]
    for keys, action in bindings.items():
        assert all(len(key) == 1 for key in keys)
        assert LABMAZE_ACTIONS.from_keys(set(keys)) == action


@pytest.mark.parametrize("action", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_of_every_kind_are_accepted(action: object) -> None:
    checked = LABMAZE_ACTIONS.check(action)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize(
    "action", [-1, 7, np.int64(100), math.nan, 1.0, np.float32(2), "forward", None, [1], np.ones(2)]
)
def test_other_actions_are_refused_with_value_and_names(action: object) -> None:
    with pytest.raises(ActionError, match=r"0 to 6 \(noop, forward") as caught:
        LABMAZE_ACTIONS.check(action)
    assert (str(action) if isinstance(action, np.integer) else repr(action)) in str(caught.value)


def test_action_by_name() -> None:
    assert LABMAZE_ACTIONS.index("turn_right") == 4
    with pytest.raises(ActionError, match="'jump'.*noop"):
        LABMAZE_ACTIONS.index("jump")
