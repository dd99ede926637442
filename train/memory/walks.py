"""Kinds of scripted walks that come back: what each needs of a world, and which a world allows.

Owns: the table of kinds. Does not know how one is planned (`train.memory.plans`) or played.
"""

from collections.abc import Callable
from dataclasses import dataclass

from envs.worlds.base import World
from train.memory.moves import find_invertible, find_motions
from train.memory.plans import Plan, Start, plan_aba, plan_abca, plan_loop, plan_mirror, plan_out_and_back, plan_spin
from train.memory.ways import LOOP, OPEN_RETURN, REPLAY
from worldmodel.errors import ConfigError, DataError


@dataclass(frozen=True)
class Kind:
    """A kind of walk.

    Attributes:
        way: how it comes back, of `train.memory.ways.WAYS`.
        meaning: what it does, in a line.
        why_not: says what it lacks in a world; None where it can be walked.
        plan: makes one; None where a start allows none.
    """

    way: str
    meaning: str
    why_not: Callable[[World], str | None]
    plan: Callable[[Start], Plan | None]


def _lacks_inverses(world: World) -> str | None:
    actions = world.actions
    if not actions.displacements and not actions.opposites:
        return f"{actions.name} declares neither displacements nor opposites (ActionSet), so nothing can be undone"
    return None if find_invertible(actions) else f"no action of {actions.name} undoes another"


def _lacks_turns(angle_deg: float) -> Callable[[World], str | None]:
    """Return what says why a world's turns do not make an angle."""

    def why_not(world: World) -> str | None:
        if not world.actions.displacements:
            return f"{world.actions.name} declares no displacements (ActionSet), so its turns and steps are not known"
        try:
            motions = find_motions(world.actions)
        except ConfigError as error:
            return str(error)
        if not motions.can_turn(angle_deg):
            return f"turns of {motions.turn_deg:g} degrees do not make {angle_deg:g}"
        return None

    return why_not


def _lacks_floor(world: World) -> str | None:
    if "pose" not in world.fields or type(world).floor is World.floor:
        return f"{world.name} has no pose, or does not tell where a walker can go (World.floor)"
    return _lacks_turns(90.0)(world)


KINDS: dict[str, Kind] = {
    "spin": Kind(REPLAY, "two full turns on the spot, to one side", _lacks_turns(360.0), plan_spin),
    "mirror": Kind(OPEN_RETURN, "held actions, then their inverses, last first", _lacks_inverses, plan_mirror),
    "loop": Kind(LOOP, "once round a triangle, square or hexagon, and on", _lacks_turns(90.0), plan_loop),
    "out_and_back": Kind(
        OPEN_RETURN, "straight on, about turn, back, about turn, and out again", _lacks_turns(180.0), plan_out_and_back
    ),
    "aba": Kind(OPEN_RETURN, "look round, a shortest way from A to B and back, look round", _lacks_floor, plan_aba),
    "abca": Kind(LOOP, "look round, from A over B and C by other places to A, look round", _lacks_floor, plan_abca),
}


def choose_kinds(world: World, names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the kinds to make in a world, and why others are left out.

    Args:
        world: where.
        names: of kinds; empty: all that can be walked there.

    Raises:
        ConfigError: no such kind. DataError: one that was asked for, or all, cannot be walked in this world.
    """
    if unknown := [name for name in names if name not in KINDS]:
        raise ConfigError(f"unknown kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    chosen = list(dict.fromkeys(names or KINDS))
    lacking = {name: reason for name in chosen if (reason := KINDS[name].why_not(world)) is not None}
    able = [name for name in chosen if name not in lacking]
    if (names and lacking) or not able:
        raise DataError(
            f"cannot make {', '.join(lacking)} in {world.name}: {'; '.join(dict.fromkeys(lacking.values()))}"
        )
    return able, lacking
