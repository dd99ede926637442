"""Playing a planned walk in a real world, and checking that it came back.

Owns: the seeds of a test (scenes that no training sees), how many starts are tried, and which pairs of a plan came
true. Does not know which walks there are (`train.memory.plans`) or how one is kept.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from envs.fields import AXES
from envs.worlds.base import World
from train.data.recording import episode_seeds
from train.memory.plans import Plan, Start
from train.memory.poses import Poses
from train.memory.walks import KINDS
from worldmodel.errors import DataError

MOST_TRIES = 240  # starts of a test, the later ones with shorter walks; a scene is tried with `TRIES_A_SCENE` of them
TRIES_A_SCENE = 12
STOPPED = 1e-3  # a step that goes so much less far than it should was stopped
LEAST_SHARE = 0.5  # of the pairs of a plan must come true


@dataclass(frozen=True)
class Walk:
    """A walk that was played.

    Attributes:
        frames: uint8 (H, W, 3) each, one more than actions.
        actions: taken.
        rewards, terminated: of each step.
        values: fields of the world at each frame, those of the step into it and, at the first, of the episode included.
        pairs: numbers of frames that show the same view.
        seeds: of the environment, the scene and the walk.
    """

    frames: list[np.ndarray]
    actions: list[int]
    rewards: list[float]
    terminated: list[bool]
    values: list[dict[str, Any]]
    pairs: list[tuple[int, int]]
    seeds: tuple[int, int, int]


def find_walk(world: World, env: gymnasium.Env[Any, Any], kind: str, number: int, *, longest: int, seed: int) -> Walk:
    """Play starts of a test until one comes back as planned.

    Args:
        world: of the environment.
        env: plays.
        kind: of the walk, of `train.memory.walks.KINDS`.
        number: of the test.
        longest: most steps.
        seed: of all tests.

    Raises:
        DataError: none of them does.
    """
    first = zlib.crc32(kind.encode()) * 10**6 + number * MOST_TRIES
    # How long the test shall be is drawn once: long walks are stopped more often, and must not be the rarer for it.
    size = float(np.random.default_rng([seed, first]).random())
    for attempt in range(MOST_TRIES):
        env_seed, _, walk_seed = episode_seeds(seed, first + attempt, "test")
        scene_seed = episode_seeds(seed, first + attempt - attempt % TRIES_A_SCENE, "test")[1]
        frame, info = env.reset(seed=env_seed, options={"scene_seed": scene_seed})
        rng = np.random.default_rng(walk_seed)
        start = Start(world, info, rng, size * (1 - attempt / MOST_TRIES), longest)
        plan = KINDS[kind].plan(start)
        if plan is None or len(plan.actions) > longest:
            continue
        walk = play_walk(world, env, frame, info, plan, (env_seed, scene_seed, walk_seed))
        if walk is not None:
            return walk
    raise DataError(
        f"no walk of kind {kind} found in {MOST_TRIES} starts of {world.name}: raise --longest above "
        f"{longest}, choose a roomier world with --set, or leave the kind out"
    )


def play_walk(
    world: World,
    env: gymnasium.Env[Any, Any],
    frame: np.ndarray,
    info: dict[str, Any],
    plan: Plan,
    seeds: tuple[int, int, int],
) -> Walk | None:
    """Play a plan; None where it is stopped, ends, or does not come back.

    Args:
        world: of the environment.
        env: was reset.
        frame: of the reset.
        info: of the reset.
        plan: what to play.
        seeds: of the environment, the scene and the walk.
    """
    fields = {name: field for name, field in world.fields.items() if name != "depth"}
    names = {axis: [name for name, field in fields.items() if field.axis == axis] for axis in AXES}
    walk = Walk([frame], plan.actions, [], [], [], [], seeds)
    walk.values.append(world.observe(env, info, [*names["frame"], *names["episode"]]))

    for action in plan.actions:
        frame, reward, is_terminated, _, info = env.step(action)
        walk.frames.append(frame)
        walk.rewards.append(float(reward))
        walk.terminated.append(bool(is_terminated))
        walk.values.append(world.observe(env, info, [*names["frame"], *names["step"]]))
        if is_terminated or _was_stopped(world, action, walk.values):
            return None
    walk.pairs.extend(_true_pairs(plan, walk))
    return walk if len(walk.pairs) >= LEAST_SHARE * len(plan.pairs) else None


def _was_stopped(world: World, action: int, values: list[dict[str, Any]]) -> bool:
    """Return whether the last step went less far than it should; False where poses or displacements are not known."""
    if "pose" not in values[-1] or not world.actions.displacements:
        return False
    before, after = (np.asarray(each["pose"], np.float64) for each in values[-2:])
    num_places = 2 if len(after) == 3 else 3
    gone = float(np.linalg.norm(after[:num_places] - before[:num_places]))
    return gone < abs(world.actions.displacements[action][1]) - STOPPED


def _true_pairs(plan: Plan, walk: Walk) -> list[tuple[int, int]]:
    """Return the pairs of a plan that came true: the same pose where poses are known, and no reward between them.

    What pays may be gone afterwards, so that the place looks different.
    """
    paid = np.concatenate([[0.0], np.cumsum(np.abs(walk.rewards))])
    pairs = [(first, second) for first, second in plan.pairs if paid[first] == paid[second]]
    if "pose" not in walk.values[0] or not pairs:
        return pairs
    poses = Poses(np.stack([np.asarray(values["pose"]) for values in walk.values]))
    is_same = poses.is_same(*np.array(pairs).T)
    return [pair for pair, same in zip(pairs, is_same, strict=True) if same]
