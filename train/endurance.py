"""Program: long tests of a world. `python -m train.endurance --checkpoint NAME_OR_DIR --data DIR --out DIR`.

Owns: three tests that a few seconds of dreaming do not show, and their report: the protocol of TECO (144 true frames,
then 156 dreamt ones), out and back (walk, turn all the way round, undo every step: the same places again), and long
dreams against real play by FD-lite0. Does not know how frames are compared (`worldmodel.analysis`) or dreamt.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import EpisodeInfo, open_shards, read_episode
from envs.worlds.registry import find_displacements
from train.core.options import parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.data.rollouts import dream_on, in_batches, read_pieces, spread, spread_over, step_on
from train.measures.features import load_feature_extractor
from train.measures.wander import wander
from train.reports.plots import save_sheet
from worldmodel.analysis.distances import frechet_distance
from worldmodel.analysis.metrics import squared_error, ssim, to_psnr
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

TECO_CONTEXT, TECO_FRAMES = 144, 300
# DMLab at 64 px, trained on the 40,000 recorded trajectories of TECO (Yan et al. 2023; FAR: Gu et al. 2025). Another
# recording of other mazes than ours: stated for scale, not as a comparison of methods.
PUBLISHED = {
    "TECO": {"psnr": 21.9, "ssim": 0.703, "lpips": 0.157},
    "FAR-Long": {"psnr": 22.3, "ssim": 0.687, "lpips": 0.104},
}
MOST_LEFT_OUT = 16  # groups of dreams that are left out in turn for the interval of a distance
ROUND = 60  # steps of 6 degrees to look all the way round


@dataclass(frozen=True, kw_only=True)
class EnduranceOptions:
    """Dream long: TECO's protocol, out and back, and a thousand frames."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards."""
    out: Path
    """Folder of the report; made if missing."""
    cases: int = 64
    """Dreams of TECO's protocol; 0: none."""
    walks: int = 32
    """Dreams that go out and come back; 0: none."""
    walk_frames: int = 200
    """Steps out."""
    dreams: int = 32
    """Long dreams; 0: none."""
    dream_frames: int = 1000
    """Frames of a long dream, at least 200."""
    context: int = 32
    """Real frames before the walks out and the long dreams."""
    batch_size: int = 32
    """Dreams at once."""
    steps: int | None = None
    """Denoising steps a frame; default what the world says."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the choice of cases and of the dreams."""

    def __post_init__(self) -> None:
        for name, least in (("cases", 0), ("walks", 0), ("walk_frames", 1), ("dreams", 0), ("dream_frames", 200)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("context", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def measure_teco(
    model: WorldModel, episodes: Sequence[EpisodeInfo], options: EnduranceOptions, on_frames: Callable[[int], object]
) -> dict[str, Any]:
    """Dream 156 frames after 144 true ones under true actions; PSNR and SSIM are means over all dreamt frames.

    Raises:
        DataError: no episode has 300 frames.

    Source: Yan et al. 2023 (arXiv:2210.02396), Sec. 4.
    """
    pieces = spread_over(episodes, TECO_FRAMES, options.cases, np.random.default_rng([options.seed, 7]))
    parts: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": [], "copy_psnr": [], "codec_psnr": []}
    first = 0
    for batch in in_batches(pieces, options.batch_size):
        given = read_pieces(batch)
        seeds = [options.seed + first + i for i in range(len(batch))]
        dream = dream_on(model, given["frames"][:, :TECO_CONTEXT], given["actions"], seeds, on_frames)
        truth = given["frames"][:, TECO_CONTEXT:]
        last = given["frames"][:, TECO_CONTEXT - 1 : TECO_CONTEXT].expand_as(truth)
        sample = truth[:, ::12]
        parts["psnr"].append(to_psnr(squared_error(dream.frames, truth)))
        parts["ssim"].append(ssim(dream.frames, truth))
        parts["copy_psnr"].append(to_psnr(squared_error(last, truth)))
        parts["codec_psnr"].append(to_psnr(squared_error(model.decode(model.encode(sample)).cpu(), sample)))
        first += len(batch)
    found = {name: torch.cat(values) for name, values in parts.items()}
    spans = [(1, 12), (13, 52), (53, 104), (105, 156)]
    return {
        **{name: round(float(values.mean()), 3) for name, values in found.items()},
        "psnr_interval": interval(found["psnr"].mean(1), options.seed),
        "psnr_by_frames": {f"{a}-{b}": round(float(found["psnr"][:, a - 1 : b].mean()), 2) for a, b in spans},
        "cases": len(pieces),
        "published": PUBLISHED,
        "means": "144 true frames, 156 dreamt; PSNR of each frame, cut at 50 dB, and SSIM, averaged over all",
    }


def interval(values: torch.Tensor, seed: int) -> list[float]:
    """Return the 95% interval of the mean of `values` (N,), by drawing them again 1000 times."""
    rng = np.random.default_rng([seed, 8])
    draws = values.numpy()[rng.integers(0, len(values), (1000, len(values)))].mean(1)
    return [round(float(v), 3) for v in np.quantile(draws, [0.025, 0.975])]


def undo(actions: Sequence[int], displacements: Sequence[tuple[float, float]]) -> tuple[list[int], list[int]]:
    """Return the actions that undo a walk, last step first, and which step is undone after each of them.

    A step turns, then walks; it is undone by walking back, then turning back.

    Args:
        actions: the walk.
        displacements: turn and walk of each action.

    Returns:
        actions, and for each the number of steps of the walk that are left when it is done; -1 where it stops between
        two places of the walk.

    Raises:
        ConfigError: no action walks or turns the other way.
    """
    plain = {(turn, walk): i for i, (turn, walk) in reversed(list(enumerate(displacements)))}
    found: list[int] = []
    left: list[int] = []
    for number in range(len(actions) - 1, -1, -1):
        turn, walk = displacements[actions[number]]
        steps = [(0.0, -walk)] * (walk != 0) + [(-turn, 0.0)] * (turn != 0) or [(0.0, 0.0)]
        for step in steps:
            if step not in plain:
                raise ConfigError(f"no action undoes {step[0]} degrees and {step[1]} cells")
            found.append(plain[step])
            left.append(-1)
        left[-1] = number
    return found, left


def open_stretches(episode: EpisodeInfo, length: int, displacements: np.ndarray) -> np.ndarray:
    """Return where an episode walks `length` steps without being stopped by a wall: the numbers of their first frames.

    Raises:
        DataError: recorded without poses.
    """
    if "pose" not in episode.fields:
        raise DataError(f"{episode.key} of {episode.path} has no pose: record it with `python -m train.record`")
    arrays = read_episode(episode, fields=("pose", "actions"))
    pose = arrays["pose"].astype(np.float64)
    gone = np.hypot(*np.diff(pose[:, :2], axis=0).T)
    is_stopped = np.abs(gone - np.abs(displacements[arrays["actions"].astype(np.int64), 1])) > 1e-3
    stops = np.concatenate([[0], np.cumsum(is_stopped)])
    starts = np.arange(max(0, len(stops) - length))
    return starts[stops[starts + length] == stops[starts]]


def walk_out(
    model: WorldModel,
    episodes: Sequence[EpisodeInfo],
    displacements: Sequence[tuple[float, float]],
    options: EnduranceOptions,
    on_frames: Callable[[int], object],
) -> Iterator[tuple[WorldState, torch.Tensor, torch.Tensor, float | None]]:
    """Dream walks out, a batch at a time.

    With a memory of pixels the walks go where the dream itself shows no wall (`train.measures.wander`). Without one
    they are recorded walks that no wall stopped in the real maze; the dream may have put one elsewhere, and that counts
    against it.

    Yields:
        the dreams, their frames uint8 (B, N, H, W, 3), their actions (B, N), and the share of walking steps that were
        stopped all the same (None: not known).

    Raises:
        DataError: too few such walks.
    """
    length, known = options.walk_frames, options.context
    rng = np.random.default_rng([options.seed, 9])
    if model.can_reckon:
        pieces = spread_over(episodes, known, options.walks, rng)
    else:
        starts = [open_stretches(e, length, np.array(displacements)) for e in episodes]
        starts = [s[s >= known - 1] - (known - 1) for s in starts]
        pieces = spread(episodes, starts, known + length, options.walks, rng)
    if not pieces:
        raise DataError(f"no held-out episode walks {length} steps without meeting a wall: lower --walk-frames")
    number = 0
    for batch in in_batches(pieces, options.batch_size):
        given = read_pieces(batch)
        seeds = [options.seed + number + i for i in range(len(batch))]
        actions = given["actions"].long()
        state = model.reset(given["frames"][:, :known], actions[:, : known - 1], seeds)
        if model.can_reckon:
            yield state, *wander(model, state, length, displacements, seeds, on_frames)
        else:
            yield state, step_on(model, state, actions[:, known - 1 :], on_frames).frames, actions[:, known - 1 :], None
        number += len(batch)


def measure_out_and_back(
    model: WorldModel,
    episodes: Sequence[EpisodeInfo],
    names: tuple[str, ...],
    options: EnduranceOptions,
    on_frames: Callable[[int], object],
) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Dream a walk, look all the way round, and undo every step; compare each place with its first dream.

    Returns:
        PSNR between the frames first dreamt and those dreamt on the way back, of all and by how long ago; for
        comparison that of frames of other places of the same dream. And rows of pictures.

    Raises:
        DataError: too few walks. ConfigError: displacements are not known.
    """
    displacements = find_displacements(str(model.info.get("world")), names)
    if not displacements:
        raise ConfigError(f"out and back needs actions with known displacements; of {list(names)} none are known")
    length = options.walk_frames
    turn_left = displacements.index((6.0, 0.0)) if (6.0, 0.0) in displacements else 0
    errors: list[np.ndarray] = []
    others: list[np.ndarray] = []
    ages: list[np.ndarray] = []
    stopped: list[float] = []
    walking: list[bool] = []
    rows: list[tuple[str, torch.Tensor]] = []
    for state, first_frames, walked, share in walk_out(model, episodes, displacements, options, on_frames):
        stopped += [] if share is None else [share] * len(walked)
        walking += [displacements[action][1] != 0 for action in walked.flatten().tolist()]
        ways = [undo(row.tolist(), displacements) for row in walked]
        longest = max(len(back) for back, _ in ways)
        rest = [[turn_left] * ROUND + back + [0] * (longest - len(back)) for back, _ in ways]  # 0 stays there
        dream = step_on(model, state, torch.tensor(rest), on_frames)
        for first, again, (_, left) in zip(first_frames, dream.frames[:, ROUND:], ways, strict=True):
            arrived = [(j, steps - 1) for j, steps in enumerate(left) if steps >= 1]
            then = torch.tensor([step for _, step in arrived])
            now = torch.tensor([j for j, _ in arrived])
            errors.append(squared_error(again[now], first[then]).numpy())
            others.append(squared_error(again[now], first[then.flip(0)]).numpy())
            ages.append((length + ROUND + now - then).numpy())
            if len(rows) < 8:
                picks = torch.linspace(0, len(arrived) - 1, 10).long()
                rows += [("first", first[then[picks]]), ("again", again[now[picks]])]
    error, other, age = (np.concatenate(parts) for parts in (errors, others, ages))
    each = torch.tensor([float(to_psnr(torch.tensor(part.mean()))) for part in errors])
    spans = [(0, 100), (100, 200), (200, 300), (300, 1000)]
    return {
        "psnr": round(float(to_psnr(torch.tensor(error.mean()))), 3),
        "psnr_of_each_walk": round(float(each.mean()), 3),
        "interval_of_each_walk": interval(each, options.seed),
        "psnr_of_each_frame": round(float(to_psnr(torch.from_numpy(error)).mean()), 3),
        "psnr_by_age": {
            f"{a}-{b}": round(float(to_psnr(torch.tensor(error[(age > a) & (age <= b)].mean()))), 2)
            for a, b in spans
            if ((age > a) & (age <= b)).any()
        },
        "psnr_of_other_places": round(float(to_psnr(torch.tensor(other.mean()))), 3),
        "walks": len(errors),
        "steps_out": length,
        "walks_are": "where the dream shows no wall" if stopped else "recorded, where no wall stopped them",
        "share_of_steps_that_walk": round(float(np.mean(walking)), 4),
        "share_stopped": round(float(np.mean(stopped)), 4) if stopped else None,
    }, rows


def measure_long(
    model: WorldModel, episodes: Sequence[EpisodeInfo], options: EnduranceOptions, on_frames: Callable[[int], object]
) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Dream on for long under recorded actions; compare the frames of the first and the last hundred with real play.

    The actions of an episode are followed by those of others until the dream is long enough.

    Returns:
        FD-lite0 of the first hundred frames, the last hundred, of as many real stretches of a hundred frames, and of
        real frames from all over in the same number, each against one set of real frames; and rows of pictures.

    Raises:
        MissingPackageError: the features are not installed. DataError: episodes are too short.
    """
    extractor = load_feature_extractor(model.device)
    known, length = options.context, options.dream_frames
    rng = np.random.default_rng([options.seed, 10])
    pieces = spread_over(episodes, known, options.dreams, rng)
    steps = [read_episode(e, fields=("actions",))["actions"] for e in rng.permutation(np.array(episodes, object))]
    parts: dict[str, list[torch.Tensor]] = {"first": [], "last": []}  # each (dreams, 100, features)
    rows: list[tuple[str, torch.Tensor]] = []
    shown = [1, *range(100, length + 1, 100)]
    number = 0
    for batch in in_batches(pieces, options.batch_size):
        given = read_pieces(batch)
        actions = np.empty((len(batch), known - 1 + length), np.uint8)
        for row in range(len(batch)):
            actions[row, : known - 1] = given["actions"][row].numpy()
            follow = np.concatenate([steps[int(i)] for i in rng.permutation(len(steps))[: 2 + length // 100]])
            actions[row, known - 1 :] = np.resize(follow, length)
        seeds = [options.seed + number + i for i in range(len(batch))]
        state = model.reset(given["frames"], torch.from_numpy(actions[:, : known - 1]).long(), seeds)
        pictures: dict[int, torch.Tensor] = {}
        steps_of: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
        for t in range(1, length + 1):
            frames = model.step(state, torch.from_numpy(actions[:, known - 2 + t]).long()).frames.cpu()
            on_frames(len(batch))
            if t <= 100 or t > length - 100:
                steps_of["first" if t <= 100 else "last"].append(extractor(frames).pooled.cpu())
            if t in shown:
                pictures[t] = frames
        for name, steps_in in steps_of.items():
            parts[name].append(torch.stack(steps_in, 1))
        rows += [("dream", torch.stack([pictures[t][i] for t in shown])) for i in range(len(batch))]
        number += len(batch)
    count = 100 * len(pieces)
    real = [extractor(torch.cat(read_real(episodes, count, rng))).pooled.cpu() for _ in range(2)]
    stretch = min(100, max(episode.num_frames for episode in episodes))
    stretches = [read_pieces([p], ("frames",))["frames"][0] for p in spread_over(episodes, stretch, len(pieces), rng)]
    found = {name: frechet_with_interval(list(torch.cat(values)), real[0]) for name, values in parts.items()}
    found["real_stretches"] = frechet_with_interval([extractor(frames).pooled.cpu() for frames in stretches], real[0])
    return {
        "fd_first_100": found["first"][0],
        "fd_first_100_interval": found["first"][1],
        "fd_last_100": found["last"][0],
        "fd_last_100_interval": found["last"][1],
        "fd_real_100": found["real_stretches"][0],
        "fd_real_100_interval": found["real_stretches"][1],
        "ratio": round(found["last"][0] / found["first"][0], 3),
        "fd_real": round(frechet_distance(real[1], real[0]), 4),
        "means": (
            "FD-lite0 to one set of real frames; first, last: of each dream; real_100: as many real stretches of "
            f"{stretch} frames, the floor of either; real: real frames in runs of 8; intervals: 95%, jackknife"
        ),
        "frames_a_set": count,
        "dreams": len(pieces),
        "dream_frames": length,
    }, rows


def frechet_with_interval(parts: Sequence[torch.Tensor], theirs: torch.Tensor) -> tuple[float, list[float] | None]:
    """Return the Frechet distance of stretches of frames to a set, and its 95% interval by leaving stretches out.

    Drawn again with replacement, frames would be there twice, which raises the distance by itself; hence the jackknife.

    Args:
        parts: float (n, D) each, features of one stretch.
        theirs: float (m, D).

    Returns:
        the distance; and [low, high], or None where there are fewer than two stretches.
    """
    value = frechet_distance(torch.cat(list(parts)), theirs)
    if len(parts) < 2:
        return round(value, 4), None
    count = min(len(parts), MOST_LEFT_OUT)
    groups = np.array_split(np.arange(len(parts)), count)
    without = [
        frechet_distance(torch.cat([parts[i] for i in range(len(parts)) if i not in group]), theirs) for group in groups
    ]
    half = 1.96 * float(np.sqrt((count - 1) * np.var(without)))
    return round(value, 4), [round(max(0.0, value - half), 4), round(value + half, 4)]


def read_real(episodes: Sequence[EpisodeInfo], count: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Read about `count` frames spread over episodes, in runs of 8."""
    found = []
    for _ in range(-(-count // 8)):
        episode = episodes[int(rng.integers(len(episodes)))]
        start = int(rng.integers(max(1, episode.num_frames - 8)))
        stop = min(start + 8, episode.num_frames)
        found.append(torch.from_numpy(read_episode(episode, start, stop, ("frames",))["frames"]))
    return found


def run_endurance(model: WorldModel, options: EnduranceOptions, command: str = "") -> dict[str, Any]:
    """Run the tests and write `report.json`, `out_and_back.png` and `thousand.png`; return the report.

    Raises:
        DataError: the recording cannot be used. StorageError: a result cannot be written.
    """
    started = time.monotonic()
    shards = open_shards(options.data, "test", model.codec.config.image_size, model.num_actions)
    episodes, names = list_episodes(shards), shards[0].action_names
    report: dict[str, Any] = {"command": command, "denoising_steps": model.config.num_steps}
    report["level_shift"] = model.config.level_shift
    report |= {"memory_frames": model.memory_frames, "held_out_mazes": len({e.scene_seed for e in episodes})}
    with tqdm(desc="dreaming", unit="frame", mininterval=2.0) as progress:
        if options.cases:
            report["teco"] = measure_teco(model, episodes, options, progress.update)
        if options.walks:
            found, rows = measure_out_and_back(model, episodes, names, options, progress.update)
            report["out_and_back"] = found
            save_sheet(options.out / "out_and_back.png", rows, list(range(10, 0, -1)))
        if options.dreams:
            found, rows = measure_long(model, episodes, options, progress.update)
            report["long"] = found
            save_sheet(options.out / "thousand.png", rows[:8], [1, *range(100, options.dream_frames + 1, 100)])
    report["seconds"] = round(time.monotonic() - started, 1)
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the report."""
    options = parse_options(EnduranceOptions, "python -m train.endurance")
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    report = run_endurance(model, options, f"python -m train.endurance {shlex.join(sys.argv[1:])}")
    print({name: report[name] for name in ("teco", "out_and_back", "long") if name in report})


if __name__ == "__main__":
    run_program(main)
