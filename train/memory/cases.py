"""Sessions as tests: the frames that come back, and the true frames that a dream is given before.

Owns: how a session is cut into tests, the rule of the context, and the check that a test fits a world. Does not know
models or scores.

The context of a test, true frames that are given, is
- what the dream was given, where a dream was recorded from its beginning;
- what the session's settings say as `context`, where they do (imported tests);
- else all up to the first mark that is come back to, and at least `least` frames;
- and never a frame that is the second of a pair, which is always dreamt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.data.episodes import read_episode
from envs.data.sessions import Place, Revisit, Session, read_sessions
from envs.worlds.base import World
from train.memory.walks import KINDS
from train.memory.ways import find_way
from worldmodel.errors import DataError

LEAST_CONTEXT = 32


class Pair(NamedTuple):
    """Two frames of a test that show the same view.

    Attributes:
        first, second: their numbers.
        kind: of the walk.
        way: how it came back, of `train.memory.ways.WAYS`.
        place: the second in the session.
    """

    first: int
    second: int
    kind: str
    way: str
    place: Place

    @property
    def distance(self) -> int:
        """Frames from one to the other."""
        return self.second - self.first


class Given(NamedTuple):
    """What a test holds: frames uint8 (T, H, W, 3), actions uint8 (T - 1,)."""

    frames: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class MemoryTest:
    """One stretch of a session to be dreamt again.

    Attributes:
        name: of the session's file, with the number of the stretch where it has several.
        session: where it comes from.
        end: its last frame, the second of a pair.
        pairs: in the order of the second; numbers count from the first frame of the test.
        context: frames given.
        lead: frames of the test that lie before the session's first.
    """

    name: str
    session: Session
    end: Place
    pairs: tuple[Pair, ...]
    context: int
    lead: int

    @property
    def is_real(self) -> bool:
        """Whether the frames are of the real world, and so the truth."""
        return self.session.info.source == "real"

    @property
    def num_frames(self) -> int:
        """Frames up to the last second."""
        return self.pairs[-1].second + 1

    def read(self) -> Given:
        """Read frames and actions.

        Raises:
            DataError: a file is damaged or gone.
        """
        line = self.session.read_line(self.end)
        frames, actions = line["frames"], line["actions"]
        if self.lead:
            root = self.session.episodes[self.session.line(self.end)[0].episode]
            given = read_episode(root, fields=("context_frames", "context_actions"))
            frames = np.concatenate([given["context_frames"][:-1], frames])
            actions = np.concatenate([given["context_actions"], actions])
        return Given(frames, actions)


def load_tests(path: Path, least: int = LEAST_CONTEXT) -> list[MemoryTest]:
    """Read the tests in a folder of sessions, or in one session.

    Args:
        path: folder or file.
        least: true frames that are given at least.

    Raises:
        DataError: no session, none with a pair, or a damaged file.
    """
    sessions = read_sessions(path)
    tests = [test for session in sessions for test in cut_session(session, least)]
    if not tests:
        raise DataError(
            f"{path} holds {len(sessions)} sessions and no frame that comes back: press M at a frame and N when you "
            "are back there (play.py --record), or make tests with train.memory_tests make"
        )
    return tests


def cut_session(session: Session, least: int = LEAST_CONTEXT) -> list[MemoryTest]:
    """Return the tests of a session: revisits on one line of play make one.

    Raises:
        DataError: a file is damaged or gone.
    """
    groups: list[list[Revisit]] = []
    for revisit in sorted(session.revisits, key=lambda each: session.depth(each.second), reverse=True):
        if revisit.first == revisit.second:
            continue
        group = next((g for g in groups if session.is_before(revisit.second, g[0].second)), None)
        if group is None:
            groups.append([revisit])
        else:
            group.append(revisit)
    groups.sort(key=lambda group: group[0].second)
    names = [session.path.stem + (f"-{number + 1}" if len(groups) > 1 else "") for number in range(len(groups))]
    return [_make_test(name, session, group, least) for name, group in zip(names, groups, strict=True)]


def _make_test(name: str, session: Session, revisits: Sequence[Revisit], least: int) -> MemoryTest:
    end = revisits[0].second
    root = session.episodes[session.line(end)[0].episode]
    lead = 0
    if "context_frames" in root.fields:
        lead = len(read_episode(root, 0, 1, ("context_actions",))["context_actions"])
    # Before its first frame nothing is known: the actions in sight are those recorded.
    actions = np.asarray(session.read_line(end, ("actions",))["actions"])
    pairs = [_make_pair(session, revisit, actions, lead) for revisit in revisits]
    pairs.sort(key=lambda pair: (pair.second, pair.first))

    said = session.info.settings.get("context")
    if "context_frames" in root.fields:
        context = lead + 1
    elif isinstance(said, int):
        context = said
    else:
        context = max(min(pair.first for pair in pairs) + 1, least)
    context = max(1, min(context, pairs[0].second))
    return MemoryTest(name, session, end, tuple(pairs), context, lead)


def _make_pair(session: Session, revisit: Revisit, actions: np.ndarray, lead: int) -> Pair:
    first, second = session.depth(revisit.first), session.depth(revisit.second)
    if revisit.kind in KINDS:
        way = KINDS[revisit.kind].way
    else:
        way = find_way(actions, first, second, _displacements(session))
    return Pair(lead + first, lead + second, revisit.kind, way, revisit.second)


def _displacements(session: Session) -> Sequence[tuple[float, float]]:
    from envs.worlds.registry import find_displacements

    return find_displacements(session.info.world, session.info.action_names)


def check_tests(
    tests: Sequence[MemoryTest], world: World, names: Sequence[str], image_size: int, checkpoint: str
) -> None:
    """Check that tests are of the world that a checkpoint dreams of.

    Args:
        tests: to be replayed.
        world: that is dreamt of.
        names: by which that world goes.
        image_size: height and width of its frames, pixels.
        checkpoint: its name, for messages.

    Raises:
        DataError: another world, action set or size of frames; names the session.
    """
    for test in tests:
        info, path = test.session.info, test.session.path
        if info.world not in names:
            raise DataError(
                f"{path} was played in {info.world}; {checkpoint} dreams of {world.name}: give tests of that world"
            )
        if tuple(info.action_names) != world.actions.names:
            raise DataError(
                f"{path} has the actions {', '.join(info.action_names)}; {checkpoint} takes "
                f"{', '.join(world.actions.names)}: record it again"
            )
        if info.image_size != image_size:
            raise DataError(
                f"{path} has frames of {info.image_size} pixels; {checkpoint} makes {image_size}: make tests with "
                f"--image-size {image_size}"
            )
