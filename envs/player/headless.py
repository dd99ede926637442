"""Play without a screen: a text of actions in, a report of speed out.

Owns: the language of action texts, and how speed is reported. Does not know windows, pacing or options.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from envs.actions import ActionSet
from envs.player.interrupts import held
from envs.player.session import PlaySession
from worldmodel.errors import ActionError, ConfigError

MAX_COUNT = 1_000_000
MAX_RANDOM_HOLD = 15


def parse_actions(text: str, action_set: ActionSet, seed: int = 0) -> Iterator[int]:
    """Read an action text; the actions never end.

    "random" draws an action and holds it for 1 to 15 steps, again and again, by `seed`. Otherwise the text is made of
    parts set apart by blanks and repeats from its start when it is used up. A part without a count is one step a letter
    ("wwad"); a part with a count holds its letters together ("wd*10": w and d for ten steps). "." is no key.

    Args:
        text: "random" or an action text such as "wwwwaaad" or "w*30 a*15 wd*10 .*5".
        action_set: whose one-letter keys are accepted.
        seed: seed of "random", at least 0.

    Returns:
        An endless iterator of action indices.

    Raises:
        ActionError: the text is empty, holds an unknown letter, or a count is not from 1 to 1,000,000.
    """
    if text.strip().lower() == "random":
        return _random_actions(action_set.num_actions, seed)
    letters = sorted({key for key, _ in action_set.keys if len(key) == 1})
    held = [step for part in text.split() for step in _read_part(part, text, letters)]
    if not held:
        raise _text_error(text, "it is empty", letters)
    plan = [(action_set.from_keys(set(keys)), count) for keys, count in held]
    return itertools.chain.from_iterable(itertools.repeat(action, count) for action, count in itertools.cycle(plan))


@contextlib.contextmanager
def loading_bar() -> Iterator[Callable[[float, str], None]]:
    """Show a bar at a terminal while a world loads; what is yielded takes how far it is, 0 to 1, and what is next."""
    layout = "{desc} |{bar}| {elapsed}"
    with tqdm(total=1.0, bar_format=layout, leave=False, disable=None) as bar:

        def report(share: float, text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update(share - bar.n)
            bar.refresh()

        yield report


def run_headless(session: PlaySession, actions: Iterator[int], num_frames: int) -> dict[str, object]:
    """Step as fast as it goes, and measure.

    Args:
        session: a session that has been reset.
        actions: at least `num_frames` actions.
        num_frames: steps to take, at least 1.

    Returns:
        frames; fps (steps a second of the whole loop, video encoding included); median_ms and p95_ms (of the
        environment's step alone); denoising_steps, memory_frames and device (None for a world without a model); seed;
        reward (its sum); ending ("", "terminated" or "truncated": the first that was seen).

    Raises:
        ConfigError: `num_frames` is below 1.
        StorageError: the open video cannot be written.
    """
    if num_frames < 1:
        raise ConfigError(f"--frames must be at least 1; got {num_frames}")
    steps_ms = np.empty(num_frames)
    start_s = time.perf_counter()
    # disable=None: a bar for people at a terminal only, so that logs and pipes stay clean.
    for index in tqdm(range(num_frames), unit="frame", disable=None):
        with held():
            steps_ms[index] = session.step(next(actions)).step_ms
    elapsed_s = time.perf_counter() - start_s
    view = session.view
    return {
        "frames": num_frames,
        "fps": round(num_frames / elapsed_s, 2),
        "median_ms": round(float(np.median(steps_ms)), 2),
        "p95_ms": round(float(np.percentile(steps_ms, 95)), 2),
        "denoising_steps": view.num_steps,
        "engine": view.engine,
        "memory_frames": view.memory_frames,
        "device": session.device,
        "seed": view.seed,
        "reward": round(view.reward_total, 3),
        "ending": view.ending,
    }


def _random_actions(num_actions: int, seed: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while True:
        action = int(generator.integers(num_actions))
        yield from itertools.repeat(action, int(generator.integers(1, MAX_RANDOM_HOLD + 1)))


def _read_part(part: str, text: str, letters: list[str]) -> list[tuple[str, int]]:
    """Return (keys held together, steps) pairs of one part; keys "" is no key."""
    keys, star, count_text = part.partition("*")
    unknown = [letter for letter in keys if letter != "." and letter not in letters]
    if unknown:
        raise _text_error(text, f"{unknown[0]!r} in {part!r} is not known", letters)
    if not star:
        return [("" if letter == "." else letter, 1) for letter in keys]
    is_number = count_text.isascii() and count_text.isdecimal() and len(count_text) <= len(str(MAX_COUNT))
    if not keys or not is_number or not 1 <= int(count_text) <= MAX_COUNT:
        raise _text_error(text, f"{part!r} is not letters*count with a count from 1 to {MAX_COUNT}", letters)
    if "." in keys and keys != ".":
        raise _text_error(text, f"'.' in {part!r} means no key and cannot be held with others", letters)
    return [("" if keys == "." else keys, int(count_text))]


def _text_error(text: str, reason: str, letters: list[str]) -> ActionError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ActionError(
        f"cannot read actions {shown!r}: {reason}; use 'random', or letters of {' '.join(letters)} and . (no key), "
        "one step each, with counts for held keys: 'wwwwaaad' or 'w*30 a*15 wd*10 .*5'"
    )
