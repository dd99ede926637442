"""Bold play: is a player caught in front of something for good?

Owns: a bold player, who walks on; when the picture stands still it turns aside and walks on; from time to time it looks
all the way round. A turn that shows nothing new is blind. Needs no recording: dreams start from the openings of the
bundle, and the same player walks in the real world for comparison. Does not know how a frame is dreamt or drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.utils.seeding import np_random

from envs.dreamer import draw_opening
from train.measures.base import Bench, Measure
from train.measures.wander import find_plain
from train.reports.plots import markdown_row, save_sheet
from worldmodel.analysis.recall import wilson_interval
from worldmodel.checkpoint import load_openings
from worldmodel.errors import CheckpointError, ConfigError, SeedError
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

SPAN = 150  # steps of play before each full turn: ten seconds
SQUARES = 8  # the picture is compared by the means of 8 x 8 squares, as texture alone is not a view
STILL, STILL_STEPS = 2.0, 3  # levels of 255: a picture that changes by less in each of 3 steps ahead stands still
ASIDE = (7, 23)  # steps of a turn aside: 42 to 132 degrees at 6 a step
WHIM = 0.03  # chance a step to turn aside where nothing is in the way
OTHER = 20.0  # levels of 255 from which on a picture shows something else
BLIND, OPEN = 0.1, 0.3  # shares of a full turn that show something else: below the first blind, from the second on open
LEAST_ERROR = 1e-6  # squared error of a picture that came back as it was: a PSNR of 60 dB
SHEET_ROWS, SHEET_COLUMNS = 12, 10


@dataclass(frozen=True)
class BoldPlayOptions:
    """Settings of the play.

    Attributes:
        world: dream, or real: measure the real world beside its dream.
        seeds: players, each in a dream of its own.
        frames: steps of each player beside its full turns, at least 150: a full turn follows after each 150.
        first_seed: of the first player; the others have those that follow.
    """

    world: Literal["dream", "real"] = "dream"
    seeds: int = 24
    frames: int = 450
    first_seed: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("frames", SPAN)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.first_seed < 0:
            raise SeedError(f"first_seed must be 0 or more; got {self.first_seed}")


class Playground(Protocol):
    """Worlds that are played side by side."""

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin one world a seed; return what they show, uint8 (B, H, W, 3)."""
        ...

    def step(self, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Take one action in each; return what they show, uint8 (B, H, W, 3), and which ended, bool (B,)."""
        ...

    def restart(self, row: int, seed: int) -> np.ndarray:
        """Begin a world anew in place of one that ended; return what it shows, uint8 (H, W, 3)."""
        ...


class DreamPlayground:
    """Dreams, stepped as one batch. Seeds draw openings and chance as those of `envs.dream.DreamEnv.reset`."""

    def __init__(self, model: WorldModel, openings: dict[str, torch.Tensor]) -> None:
        """Play a world from the openings of its bundle, as `worldmodel.checkpoint.load_openings` gives them."""
        self._model, self._openings = model, openings
        self._state: WorldState | None = None

    def _begin(self, seeds: Sequence[int]) -> tuple[WorldState, np.ndarray]:
        num_openings = len(self._openings["frames"])
        openings, chances = zip(*(draw_opening(np_random(seed)[0], num_openings) for seed in seeds), strict=True)
        frames = self._openings["frames"][list(openings)]
        actions = self._openings["actions"][list(openings)].long()
        return self._model.reset(frames, actions, list(chances)), frames[:, -1].numpy()

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin dreams; see `Playground`."""
        self._state, frames = self._begin(seeds)
        return frames

    def step(self, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Dream one frame of each; see `Playground`."""
        assert self._state is not None
        shown = self._model.step(self._state, torch.tensor(actions))
        return shown.frames.cpu().numpy(), shown.terminated.cpu().numpy()

    def restart(self, row: int, seed: int) -> np.ndarray:
        """Put another dream in place of one; see `Playground`."""
        assert self._state is not None
        other, frames = self._begin([seed])
        self._model.put(self._state, [row], other)
        return np.asarray(frames[0])


class EnvPlayground:
    """One Gymnasium environment, played by one player at a time."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Play an environment without a limit of time."""
        self._env = env.unwrapped

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        """Reset it; see `Playground`.

        Raises:
            ConfigError: more than one seed.
        """
        if len(seeds) != 1:
            raise ConfigError(f"an environment is played by one player at a time; got {len(seeds)} seeds")
        return self.restart(0, seeds[0])[None]

    def step(self, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Take a step; see `Playground`."""
        frame, _, terminated, truncated, _ = self._env.step(actions[0])
        return np.asarray(frame)[None], np.array([terminated or truncated])

    def restart(self, row: int, seed: int) -> np.ndarray:
        """Reset it; see `Playground`."""
        return np.array(self._env.reset(seed=seed)[0])


def reduce_frames(frames: np.ndarray) -> np.ndarray:
    """Return the means of squares of frames, uint8 (..., H, W, 3) -> float32 (..., SQUARES, SQUARES, 3).

    Raises:
        ConfigError: the squares do not divide the frames.
    """
    height, width = frames.shape[-3:-1]
    if height % SQUARES or width % SQUARES:
        raise ConfigError(f"frames must divide into {SQUARES} x {SQUARES} squares; got {height} x {width} pixels")
    parts = (*frames.shape[:-3], SQUARES, height // SQUARES, SQUARES, width // SQUARES, 3)
    return frames.reshape(parts).astype(np.float32).mean((-4, -2))


class BoldPlayer:
    """Chooses the steps of one player: ahead; aside where the picture stands still, or by a whim."""

    def __init__(self, ahead: int, sides: tuple[int, int], seed: int) -> None:
        """Play with the action that walks ahead and those that turn left and right."""
        self._ahead, self._sides, self._rng = ahead, sides, np.random.default_rng(seed)
        self._side, self._turns, self._still = sides[0], 0, 0
        self._action = ahead
        self._last: np.ndarray | None = None

    def look(self, frame: np.ndarray) -> None:
        """See a frame, uint8 (H, W, 3), that no step of the player led to."""
        self._last = reduce_frames(frame)

    def next(self) -> int:
        """Return the next action."""
        self._action = self._side if self._turns else self._ahead
        self._turns = max(0, self._turns - 1)
        return self._action

    def see(self, frame: np.ndarray) -> None:
        """See the frame, uint8 (H, W, 3), that the action led to."""
        now = reduce_frames(frame)
        is_still = self._last is not None and float(np.abs(now - self._last).mean()) < STILL
        self._still = self._still + 1 if is_still and self._action == self._ahead else 0
        self._last = now
        if self._still >= STILL_STEPS or (not self._turns and self._rng.random() < WHIM):
            self._turns, self._side, self._still = int(self._rng.integers(*ASIDE)), self.choose_side(), 0

    def choose_side(self) -> int:
        """Draw the action of a turn."""
        return int(self._rng.choice(self._sides))


@dataclass(frozen=True)
class BoldPlay:
    """What players saw.

    Attributes:
        news: float (B, N), for each full turn the share of its frames that show something else than its start.
        errors: float (B, N), squared error of the frame after a full turn to that before it, of the range 0 to 1.
        walks: uint8 (B, SHEET_COLUMNS, H, W, 3), frames spread over the steps beside the turns.
        turns: uint8 (B, SHEET_COLUMNS, H, W, 3), frames spread over the last full turn; first and last should agree.
    """

    news: np.ndarray
    errors: np.ndarray
    walks: np.ndarray
    turns: np.ndarray

    @staticmethod
    def join(parts: Sequence["BoldPlay"]) -> "BoldPlay":
        """Return the players of several as one."""
        names = ("news", "errors", "walks", "turns")
        return BoldPlay(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def play_boldly(
    playground: Playground,
    seeds: Sequence[int],
    num_frames: int,
    displacements: Sequence[tuple[float, float]],
    on_frames: Callable[[int], object],
) -> BoldPlay:
    """Play one world for each seed.

    Args:
        playground: the worlds.
        seeds: of worlds and players.
        num_frames: steps of each player beside the full turns.
        displacements: turn in degrees and walk of each action.
        on_frames: told the number of frames shown after every step.

    Raises:
        ConfigError: no actions that walk and turn alone, or turns that do not divide a full one.
    """
    ahead, left, right = find_plain(displacements)
    num_turns = round(360 / abs(displacements[left][0]))
    if any(abs(abs(displacements[side][0]) * num_turns - 360) > 1e-6 for side in (left, right)):
        raise ConfigError(
            f"a full turn takes steps that divide 360 degrees; got {displacements[left]} and {displacements[right]}"
        )

    frames = playground.start(seeds)
    players = [BoldPlayer(ahead, (left, right), seed) for seed in seeds]
    for player, frame in zip(players, frames, strict=True):
        player.look(frame)

    shown = np.linspace(1, num_frames, SHEET_COLUMNS).round().astype(int)
    walks, turns, news, errors = [], [], [], []

    for t in range(1, num_frames + 1):
        frames, ended = playground.step([player.next() for player in players])
        frames = frames.copy()
        on_frames(len(seeds))
        for row in np.flatnonzero(ended):
            frames[row] = playground.restart(int(row), seeds[int(row)] + 100_000 + t)

        for player, frame in zip(players, frames, strict=True):
            player.see(frame)
        walks += [frames] * int((shown == t).sum())
        if t % SPAN:
            continue

        sides, start, turned = [player.choose_side() for player in players], frames, []
        for _ in range(num_turns):  # an end in between does not count: the turn is of the place where one is
            turned.append(playground.step(sides)[0].copy())
            on_frames(len(seeds))

        frames = turned[-1]
        others = np.stack([np.abs(reduce_frames(f) - reduce_frames(start)).mean((1, 2, 3)) > OTHER for f in turned])
        news.append(others.mean(0))
        errors.append((((frames.astype(np.float32) - start) / 255) ** 2).mean((1, 2, 3)))

        kept = np.linspace(0, num_turns, SHEET_COLUMNS).round().astype(int)
        turns = [[start, *turned][i] for i in kept]
        for player, frame in zip(players, frames, strict=True):
            player.look(frame)
    return BoldPlay(*(np.stack(part, 1) for part in (news, errors, walks, turns)))


def summarize(play: BoldPlay, seed: int = 0) -> dict[str, Any]:
    """Return what a report says of bold play: shares with Wilson's 95% interval, means with one drawn over players.

    Args:
        play: what players saw.
        seed: of the draws.
    """
    is_blind, is_open = play.news < BLIND, play.news >= OPEN

    def rate(values: np.ndarray) -> dict[str, Any]:
        low, high = wilson_interval(int(values.sum()), values.size)
        return {"rate": round(float(values.mean()), 4), "interval": [round(low, 4), round(high, 4)]}

    def full_turn_psnr(rows: np.ndarray) -> float:
        counted = is_open[rows]
        if not counted.any():
            return float("nan")
        return float(-10 * np.log10(max(play.errors[rows][counted].mean(), LEAST_ERROR)))

    rng, every = np.random.default_rng([seed, 12]), np.arange(len(play.news))
    draws = rng.integers(0, len(every), (1000, len(every)))

    def spread(measure: Callable[[np.ndarray], float]) -> dict[str, Any]:
        found = np.array([measure(rows) for rows in draws])
        if np.isnan(measure(every)):
            return {"value": None, "interval": None}
        interval = [round(float(v), 3) for v in np.nanquantile(found, [0.025, 0.975])]
        return {"value": round(measure(every), 3), "interval": interval}

    return {
        "players": len(play.news),
        "full_turns": play.news.size,
        "blind_turns": rate(is_blind),
        "blind_at_end": rate(is_blind[:, -1]),
        "mean_new_view": spread(lambda rows: float(play.news[rows].mean())),
        "full_turn_psnr": {**spread(full_turn_psnr), "turns": int(is_open.sum())},
        "new_view_of_each_turn": play.news.round(3).tolist(),
        "means": f"blind: a full turn of which less than {BLIND} shows something new; full_turn_psnr: of the squared "
        f"error after turns that show {OPEN} or more, averaged over them, cut at 60 dB",
    }


def save_play(out: Path, name: str, play: BoldPlay, num_frames: int) -> None:
    """Write `NAME_walks.png` and `NAME_turns.png`: a row for each of the first players.

    Raises:
        StorageError: a picture cannot be written.
    """
    labels = np.linspace(1, num_frames, SHEET_COLUMNS).round().astype(int).tolist()
    degrees = np.linspace(0, 360, SHEET_COLUMNS).round().astype(int).tolist()
    for kind, pictures, marks in (("walks", play.walks, labels), ("turns", play.turns, degrees)):
        rows = [(name, torch.from_numpy(row)) for row in pictures[:SHEET_ROWS]]
        save_sheet(out / f"{name}_{kind}.png", rows, marks)


class BoldPlayMeasure(Measure):
    """Share of full turns that show nothing new, and how a full turn comes back to where it began."""

    name = "bold_play"
    Options = BoldPlayOptions
    needs = ("displacements",)
    quick: ClassVar[dict[str, int]] = {"seeds": 2, "frames": SPAN}

    def num_frames(self, bench: Bench, options: BoldPlayOptions) -> int:
        """Return the frames to show, real ones too."""
        displacements = bench.world.actions.displacements
        turn = round(360 / abs(displacements[find_plain(displacements)[1]][0]))
        worlds = 2 if options.world == "real" else 1
        return options.seeds * (options.frames + options.frames // SPAN * turn) * worlds

    def run(self, bench: Bench, options: BoldPlayOptions) -> dict[str, Any]:
        """Play, and write contact sheets; the dream begins with the openings of the bundle.

        Raises:
            CheckpointError: the model was not loaded from a bundle with openings. StorageError: a picture cannot be
                written.
        """
        if bench.model.source is None:
            raise CheckpointError("bold play begins with the openings of a bundle: give --checkpoint a bundle's folder")
        return run_bold_play(bench, load_openings(bench.model.source), options)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table."""
        lines = [
            markdown_row("", "blind turns", "new view of a turn", "full turn PSNR, dB", "turns"),
            markdown_row(*["---"] * 5),
        ]
        for name in ("dream", "real"):
            if name not in found:
                continue
            of = found[name]
            blind, new, psnr = of["blind_turns"], of["mean_new_view"], of["full_turn_psnr"]
            cells = [
                _with_interval(blind["rate"], blind["interval"], 3),
                _with_interval(new["value"], new["interval"], 2),
            ]
            lines.append(
                markdown_row(name, *cells, _with_interval(psnr["value"], psnr["interval"], 1), of["full_turns"])
            )
        return [*lines, "", f"{found['dream']['players']} players. {found['dream']['means']}."]


def _with_interval(value: float | None, interval: list[float] | None, digits: int) -> str | None:
    if value is None or interval is None:
        return None
    return f"{value:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def run_bold_play(bench: Bench, openings: dict[str, torch.Tensor], options: BoldPlayOptions) -> dict[str, Any]:
    """Play from openings as `load_openings` gives them; the rest as `BoldPlayMeasure.run`."""
    displacements = bench.world.actions.displacements
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    dreams = DreamPlayground(bench.model, openings)
    groups = [seeds[first : first + bench.batch_size] for first in range(0, len(seeds), bench.batch_size)]
    parts = [play_boldly(dreams, group, options.frames, displacements, bench.on_frames) for group in groups]
    plays = {"dream": BoldPlay.join(parts)}
    if options.world == "real":
        env = bench.world.make()
        real = EnvPlayground(env)
        parts = [play_boldly(real, [seed], options.frames, displacements, bench.on_frames) for seed in seeds]
        env.close()
        plays["real"] = BoldPlay.join(parts)
    found: dict[str, Any] = {}
    for name, play in plays.items():
        found[name] = summarize(play)
        save_play(bench.out, name, play, options.frames)
    return found
