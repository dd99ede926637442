"""Where targets stand in frames: by true pose and depth in the real maze, by their color in any picture.

Owns: projection of targets, starts of dreams that have one in view, the detector that says whether a picture shows a
target at its place, the walker that steers to one by its color alone, and all that as `World.targets`. Does not dream.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from envs.data.episodes import EpisodeInfo, read_episode
from envs.worlds.base import TargetView, Walker
from envs.worlds.labmaze.constants import ACTIONS, VIEW_DEG
from envs.worlds.labmaze.revisit import RealMaze
from envs.worlds.labmaze.scene import EYE_HEIGHT, TARGET_COLORS, TARGET_HEIGHT, TARGET_RADIUS
from worldmodel.errors import DataError

BINS = ((3.0, 8.0), (8.0, 16.0), (16.0, 48.0))  # of a target's diameter in pixels, at 64 pixels a frame
SAME_COLOR = 90.0  # distance of two colors in levels, from which on they are not that of one target
SEEN_SHARE = 0.5  # of the inner disc that must have the color
INNER = 0.7  # of the radius: the rim is mixed with what is behind
CANDIDATES = 12  # frames tried for each target and bin
_TANGENT = math.tan(math.radians(VIEW_DEG / 2))
FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = (
    ACTIONS.names.index(name) for name in ("forward", "turn_left", "turn_right", "forward_left", "forward_right")
)


@dataclass(frozen=True)
class Disc:
    """A target in a picture, pixels: column and row of its middle (0 is the middle of the first pixel), its radius."""

    column: float
    row: float
    radius: float
    depth: float


@dataclass(frozen=True)
class Start:
    """A frame with a target in view.

    Attributes:
        episode: where.
        frame: its number.
        target: number of the target.
        disc: where it is.
        color: its median color in this frame, levels (3,).
    """

    episode: EpisodeInfo
    frame: int
    target: int
    disc: Disc
    color: np.ndarray


def project(pose: np.ndarray, target: np.ndarray, image_size: int) -> Disc | None:
    """Return where a target (2,) would be seen from a pose (3,), were nothing before it; None where it is not ahead."""
    heading = math.radians(pose[2])
    east, north = float(target[0] - pose[0]), float(target[1] - pose[1])
    ahead = east * math.cos(heading) + north * math.sin(heading)
    left = north * math.cos(heading) - east * math.sin(heading)
    if ahead < 2 * TARGET_RADIUS:
        return None
    half = image_size / 2
    column = half * (1 - left / (ahead * _TANGENT)) - 0.5
    row = half * (1 - (TARGET_HEIGHT - EYE_HEIGHT) / (ahead * _TANGENT)) - 0.5
    return Disc(column, row, half * TARGET_RADIUS / (ahead * _TANGENT), ahead)


def disc_mask(disc: Disc, image_size: int, share: float = 1.0) -> np.ndarray:
    """Return bool (H, W): pixels within `share` of the radius, and always that of the middle."""
    rows, columns = np.mgrid[:image_size, :image_size]
    apart = np.hypot(columns - disc.column, rows - disc.row)
    reach = max(share * disc.radius, 0.75)
    mask: np.ndarray = apart <= reach
    return mask


def disc_is_in_sight(depth: np.ndarray, disc: Disc) -> bool:
    """Return whether at least nine tenths of the inner disc of a target are as far away, by depths (H, W) in cells."""
    inner = disc_mask(disc, len(depth), INNER)
    apart = np.abs(depth[inner] - (disc.depth - TARGET_RADIUS / 2))
    return bool(inner.any()) and float((apart < TARGET_RADIUS).mean()) >= 0.9


def find_in_view(maze: RealMaze, episode: EpisodeInfo, frame: int, target: int, image_size: int) -> Disc | None:
    """Return where a recorded frame shows a target, at least nine tenths of its inner disc; None where it does not."""
    pose, reached = maze.open(episode)
    disc = None if reached[frame, target] else project(pose[frame], maze.targets[target], image_size)
    if disc is None or not disc.radius <= disc.column <= image_size - 1 - disc.radius:
        return None
    return disc if disc_is_in_sight(maze.depth(episode, frame), disc) else None


def find_bin(disc: Disc, image_size: int) -> int | None:
    """Return the number of the bin of a disc's diameter, scaled to frames of 64 pixels; None where none is."""
    diameter = 2 * disc.radius * 64 / image_size
    return next((i for i, (low, high) in enumerate(BINS) if low <= diameter < high), None)


def find_color(frame: np.ndarray, disc: Disc) -> np.ndarray:
    """Return the median color of the inner disc of a frame uint8 (H, W, 3): float64 (3,)."""
    color: np.ndarray = np.median(frame[disc_mask(disc, len(frame), INNER)].astype(np.float64), axis=0)
    return color


def color_mask(frame: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return bool (H, W): which pixels of a frame uint8 (H, W, 3) have a target's color."""
    mask: np.ndarray = np.linalg.norm(frame.astype(np.float64) - color, axis=-1) < SAME_COLOR
    return mask


def shows_target(frame: np.ndarray, disc: Disc, color: np.ndarray) -> bool:
    """Return whether a frame shows a target at its place.

    The inner disc, or one moved by up to half its radius and two pixels, must have the color to `SEEN_SHARE`, and a
    ring about it must have it less: a picture that has the color all over shows no target.

    Args:
        frame: uint8 (H, W, 3).
        disc: where the target is in the true frame.
        color: (3,) that it had before.
    """
    size, has_color = len(frame), color_mask(frame, color).astype(np.float64)
    reach = int(round(2 + disc.radius / 2))
    best = 0.0
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            moved = Disc(disc.column + right, disc.row + down, disc.radius, disc.depth)
            inner = disc_mask(moved, size, INNER)
            if not inner.any():
                continue
            share = float(has_color[inner].mean())
            if share >= SEEN_SHARE and share > best:
                ring = disc_mask(moved, size, 2.2) & ~disc_mask(moved, size, 1.4)
                best = max(best, share) if not ring.any() or has_color[ring].mean() < share / 2 else best
    return best >= SEEN_SHARE


class TargetWalker:
    """Walks to a target by the pixels of its color: sees frames, knows nothing else, the same in a maze and in a dream.

    Args:
        color: (3,) of the target.
        column: where it is in the first frame, pixels.
        row: likewise.
    """

    def __init__(self, color: np.ndarray, column: float, row: float) -> None:
        self._color, self._at = color, (column, row)
        self._lost = 0

    def act(self, frame: np.ndarray) -> int:
        """Return the next action, after a frame uint8 (H, W, 3): towards the blob of that color nearest to the last.

        Without a blob it goes on for a few steps, then looks round to the side where it was last.
        """
        size = len(frame)
        number, _, stats, centers = cv2.connectedComponentsWithStats(color_mask(frame, self._color).astype(np.uint8))
        blobs = [
            (float(np.hypot(*(centers[i] - self._at))), centers[i])
            for i in range(1, number)
            if stats[i, cv2.CC_STAT_AREA] >= 3
        ]
        middle = (size - 1) / 2
        if blobs and min(blobs, key=lambda blob: blob[0])[0] < size / 3:
            center = min(blobs, key=lambda blob: blob[0])[1]
            self._at, self._lost = (float(center[0]), float(center[1])), 0
        else:
            self._lost += 1
            if self._lost > 5:
                return LEFT if self._at[0] < middle else RIGHT
        off = (self._at[0] - middle) / size * 70.0  # degrees, about; a turn is 6
        if abs(off) > 14:
            return LEFT if off < 0 else RIGHT
        if abs(off) > 3.5 and not self._lost:
            return FORWARD_LEFT if off < 0 else FORWARD_RIGHT
        return FORWARD


def find_views(frame: np.ndarray, colors: np.ndarray) -> list[TargetView]:
    """Return the blobs of targets' colors in a frame uint8 (H, W, 3), the largest first.

    Args:
        frame: any picture.
        colors: float (n, 3), levels; the kind of a view is its number here.
    """
    found = []
    for kind, color in enumerate(colors):
        number, _, stats, centers = cv2.connectedComponentsWithStats(color_mask(frame, color).astype(np.uint8))
        for blob in range(1, number):
            diameter = 2 * math.sqrt(stats[blob, cv2.CC_STAT_AREA] / math.pi) * 64 / len(frame)
            if diameter >= BINS[0][0]:
                found.append(TargetView(kind, diameter, float(centers[blob][0]), float(centers[blob][1])))
    return sorted(found, key=lambda view: -view.size)


class Seeker:
    """Collects target after target by their colors alone: sees frames, knows nothing else, as `TargetWalker` does.

    Args:
        colors: float (n, 3) of the targets there are.
        rng: where to look for one.
    """

    def __init__(self, colors: np.ndarray, rng: np.random.Generator) -> None:
        self._colors, self._rng = colors, rng
        self._last: np.ndarray | None = None
        self._held, self._left = FORWARD, 0

    def act(self, frame: np.ndarray) -> int:
        """Return the next action, after a frame uint8 (H, W, 3)."""
        is_stuck = self._last is not None and np.abs(frame.astype(np.int16) - self._last).mean() < 2
        self._last = frame.astype(np.int16)
        if self._left > 0 and self._held in (LEFT, RIGHT):  # what was begun is done first
            self._left -= 1
            return self._held
        if is_stuck:
            self._held, self._left = int(self._rng.choice((LEFT, RIGHT))), int(self._rng.integers(4, 16))
            return self._held

        if views := find_views(frame, self._colors):
            self._left = 0
            off = (views[0].column - (len(frame) - 1) / 2) / len(frame) * VIEW_DEG
            if abs(off) > 14:
                return LEFT if off < 0 else RIGHT
            return FORWARD if abs(off) < 3.5 else FORWARD_LEFT if off < 0 else FORWARD_RIGHT

        if self._left <= 0:
            turns = self._held == FORWARD
            self._held = int(self._rng.choice((LEFT, RIGHT))) if turns else FORWARD
            self._left = int(self._rng.integers(5, 15) if turns else self._rng.integers(8, 25))
        self._left -= 1
        return self._held


def find_starts(
    maze: RealMaze,
    episodes: list[EpisodeInfo],
    known: int,
    ahead: int,
    count: int,
    rng: np.random.Generator,
    image_size: int,
) -> list[Start]:
    """Choose frames with a target in view, about equally many of each of `BINS`, at most one a target.

    Args:
        maze: the real world.
        episodes: to choose from.
        known: frames of context that must lie before, the frame itself the last of them.
        ahead: recorded frames later, the target must be in view again, the walker having moved.
        count: wanted.
        rng: chance.
        image_size: height and width of a frame.
    """
    found: list[list[Start]] = [[] for _ in BINS]
    wanted = [count // len(BINS) + (i < count % len(BINS)) for i in range(len(BINS))]
    taken: set[tuple[EpisodeInfo, int]] = set()

    order = [episodes[int(i)] for i in rng.permutation(len(episodes))]
    candidates: list[list[tuple[EpisodeInfo, int, int]]] = [[] for _ in BINS]

    for episode in order:
        pose, reached = maze.open(episode)
        for target in range(len(maze.targets)):
            frames = rng.permutation(np.arange(known - 1, episode.num_frames - ahead))
            kept = [0] * len(BINS)
            for frame in map(int, frames):
                disc = (
                    None if reached[frame + ahead, target] else project(pose[frame], maze.targets[target], image_size)
                )
                number = None if disc is None else find_bin(disc, image_size)
                if disc is None or number is None or kept[number] >= CANDIDATES or not 0 <= disc.column < image_size:
                    continue
                kept[number] += 1
                candidates[number].append((episode, frame, target))

    # The rarest size first: it chooses its targets before the others do.
    for number in sorted(range(len(BINS)), key=lambda i: len(candidates[i])):
        for episode, frame, target in candidates[number]:
            if len(found[number]) == wanted[number]:
                break
            if (episode, target) in taken or not _has_moved(maze, episode, frame, ahead):
                continue

            disc = find_in_view(maze, episode, frame, target, image_size)
            if disc is None or find_in_view(maze, episode, frame + ahead, target, image_size) is None:
                continue

            picture = read_episode(episode, frame, frame + 1, ("frames",))["frames"][0]
            taken.add((episode, target))
            found[number].append(Start(episode, frame, target, disc, find_color(picture, disc)))
    return [start for part in found for start in part]


def _has_moved(maze: RealMaze, episode: EpisodeInfo, frame: int, ahead: int) -> bool:
    pose, _ = maze.open(episode)
    turned = abs((pose[frame + ahead, 2] - pose[frame, 2] + 180) % 360 - 180)
    return bool(math.dist(pose[frame, :2], pose[frame + ahead, :2]) >= 0.2 or turned >= 12)


class Spheres:
    """The targets of recorded mazes, as `envs.worlds.base.Targets` has them.

    Raises:
        DataError: recorded without poses, or the maze made again is another one.
        MissingPackageError: a package of the world is not installed.
    """

    sizes = tuple(f"{low:g} to {high:g} pixels" for low, high in BINS)

    def __init__(self, episode: EpisodeInfo, image_size: int) -> None:
        self.maze, self._size = RealMaze.of(episode), image_size

    def __enter__(self) -> "Spheres":
        return self

    def __exit__(self, *_: object) -> None:
        self.maze.close()

    def find(
        self, episodes: list[EpisodeInfo], known: int, ahead: int, count: int, rng: np.random.Generator
    ) -> list[Start]:
        """As `find_starts`."""
        return find_starts(self.maze, episodes, known, ahead, count, rng, self._size)

    def size_of(self, start: Start) -> int:
        """Return the number of the bin of its diameter."""
        number = find_bin(start.disc, self._size)
        if number is None:
            raise DataError(f"sphere {start.target} of {start.episode.key} is of no size that is measured")
        return number

    def _disc(self, start: Start, frame: int) -> Disc:
        pose, _ = self.maze.open(start.episode)
        disc = project(pose[frame], self.maze.targets[start.target], self._size)
        if disc is None:
            raise DataError(f"sphere {start.target} is not ahead in frame {frame} of {start.episode.key}")
        return disc

    def is_shown(self, start: Start, frame: int, picture: np.ndarray) -> bool:
        """Whether a picture has the sphere's color at its place."""
        return shows_target(picture, self._disc(start, frame), start.color)

    def without(self, start: Start, frame: int) -> np.ndarray:
        """Return a recorded frame without the sphere."""
        pose, reached = self.maze.open(start.episode)
        gone = reached[frame].copy()
        gone[start.target] = True
        self.maze.env.set_targets_reached(gone)
        picture: np.ndarray = self.maze.env.render_pose(*map(float, pose[frame]))
        return picture

    def walker(self, start: Start) -> TargetWalker:
        """Return one that is told the color of the sphere and where it is in the first frame."""
        return TargetWalker(start.color, start.disc.column, start.disc.row)

    @property
    def _colors(self) -> np.ndarray:
        """Colors of the spheres as they are lit, levels (n, 3)."""
        number = len(self.maze.targets)
        names = [TARGET_COLORS[i % len(TARGET_COLORS)] for i in range(number)]
        return np.array([[int(name[i : i + 2], 16) for i in (0, 2, 4)] for name in names], np.float64)

    def views(self, picture: np.ndarray) -> list[TargetView]:
        """Return the blobs of spheres' colors."""
        return find_views(picture, self._colors)

    def seeker(self, rng: np.random.Generator) -> Seeker:
        """Return one that walks to whatever has the color of a sphere."""
        return Seeker(self._colors, rng)

    def play(
        self, episode: EpisodeInfo, frame: int, walker: Walker, first: np.ndarray, num_steps: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Walk on in the real maze from a recorded frame."""
        self.maze.put(episode, frame)
        steps, picture = [], first
        for _ in range(num_steps):
            picture, reward, terminated, *_ = self.maze.env.step(walker.act(picture))
            steps.append((picture, reward, terminated))
            if terminated:
                break
        frames, rewards, ends = zip(*steps, strict=True)
        return np.stack(frames), np.array(rewards, np.float32), np.array(ends, bool)

    def reaches(self, start: Start, first: np.ndarray, num_steps: int) -> bool:
        """Walk to the sphere in the real maze; return whether a reward came."""
        self.maze.put(start.episode, start.frame)
        walker, frame = self.walker(start), first
        for _ in range(num_steps):
            frame, reward, *_ = self.maze.env.step(walker.act(frame))
            if reward > 0:
                return True
        return False
