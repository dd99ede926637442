"""Program: recording play is killed with kill -9 at random moments; what is left is compared with what was played.

`python -m tests.kill_sessions --kills 100 --seed 0`. Play is that of `tests.stub_play`, with marks, revisits and
rewinds, as fast as it goes. Its own words say how far it was: a step is told of when it has been taken.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from envs.data.episodes import read_episode
from envs.data.sessions import read_session
from envs.player.session import PlaySession
from tests.stub_play import RewindableEnv
from worldmodel.errors import DataError, StateError

ROOT = Path(__file__).parents[1]
MOST_PLAY_S = 0.5
RARELY = {"mark": 0.05, "come_back": 0.03, "rewind": 0.01}
"""How often a step is followed by what else is done."""


class Found(NamedTuple):
    """What was left of one play.

    Attributes:
        told: steps that the player had told of.
        lost: those of them that are not in the session.
        is_equal: whether frames, actions, marks and revisits are those that were played.
    """

    told: int
    lost: int
    is_equal: bool


def play_on(path: Path, seed: int) -> Iterator[PlaySession]:
    """Play for ever, and record it; yield the session after each step, and what else is done there."""
    session = PlaySession(RewindableEnv())
    rng = np.random.default_rng(seed)
    session.start_session(path)
    while True:
        session.step(int(rng.integers(session.action_set.num_actions)))
        draws = dict(zip(RARELY, rng.random(len(RARELY)), strict=True))
        if draws["mark"] < RARELY["mark"]:
            session.mark()
        if draws["come_back"] < RARELY["come_back"]:
            with contextlib.suppress(StateError):  # there is no mark yet, or this is the mark
                session.come_back()
        if draws["rewind"] < RARELY["rewind"]:
            session.rewind(int(rng.integers(1, 20)))
        yield session


def kill_after(play_s: float, path: Path, seed: int) -> Found:
    """Let a process play so long, kill it, and compare what it left with what it played.

    Args:
        play_s: seconds from when it is ready to begin.
        path: of the session; another beside it is made to compare with.
        seed: of the play.
    """
    command = [sys.executable, "-m", "tests.kill_sessions", "--play", str(path), "--seed", str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(play_s)
        os.kill(process.pid, signal.SIGKILL)
        # The last line may be cut off.
        told = len(process.stdout.read().split("\n")[:-1])
    if not told:
        return Found(0, 0, True)
    try:
        session = read_session(path.with_suffix(".journal"))
    except DataError:  # nothing can be read
        return Found(told, told, False)
    kept = sum(episode.num_steps for episode in session.episodes.values())
    return Found(told, max(0, told - kept), is_as_played(path, kept, seed))


def is_as_played(path: Path, num_steps: int, seed: int) -> bool:
    """Return whether a session holds the first steps of a play; the last marks and the like may be missing."""
    other = path.with_name(f"{path.stem}-whole.h5")
    played = play_on(other, seed)
    for _ in range(num_steps):
        session = next(played)
    session.close()
    left, whole = read_session(path), read_session(other)
    for number, episode in left.episodes.items():
        mine, theirs = (read_episode(info, fields=("frames", "actions")) for info in (episode, whole.episodes[number]))
        if not all(np.array_equal(mine[name], theirs[name]) for name in mine):
            return False
    marks = list(whole.marks.items())[: len(left.marks)]
    return (
        list(left.marks.items()) == marks
        and left.revisits == whole.revisits[: len(left.revisits)]
        and len(whole.marks) - len(left.marks) <= 1
        and len(whole.revisits) - len(left.revisits) <= 1
    )


def main() -> None:
    """Kill so many plays, and print what was lost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--play", type=Path, help="play and record to this file for ever, telling each step")
    options = parser.parse_args()
    if options.play is not None:
        steps = play_on(options.play, options.seed)
        print("begun", flush=True)
        for number, _ in enumerate(steps, 1):
            print(number, flush=True)

    rng = np.random.default_rng(options.seed)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(options.kills), disable=None):
            path, seed = Path(folder) / f"{number}.h5", int(rng.integers(2**31))
            found.append(kill_after(float(rng.uniform(0, MOST_PLAY_S)), path, seed))
    steps_a_second = RewindableEnv.fps
    report = {
        "kills": len(found),
        "steps_told": sum(each.told for each in found),
        "kills_that_lost_a_step": sum(each.lost > 0 for each in found),
        "kills_that_lost_more_than_a_second": sum(each.lost > steps_a_second for each in found),
        "kills_that_left_something_else": sum(not each.is_equal for each in found),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
