"""Program: dream one rollout by any schedule. `python -m train.rollout --checkpoint NAME_OR_DIR --schedule S`.

Owns: the options, where the dream starts, what is printed of the schedule and the result, and the video. Does not know
how a schedule is walked.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import open_shards
from envs.data.video import VideoWriter
from envs.dreamer import find_world
from envs.player.headless import parse_actions
from train.core.options import parse_options, run_program
from train.data.clips import list_episodes
from train.data.rollouts import read_pieces, spread_over
from worldmodel.analysis.metrics import squared_error, to_psnr
from worldmodel.checkpoint import load_openings
from worldmodel.errors import ConfigError, SeedError
from worldmodel.windows import Schedule, Window, parse_schedule
from worldmodel.world import WorldModel

SEGMENT = 16  # frames whose PSNR is printed as one number
VIDEO_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Dream one rollout by any schedule: from a held-out recording, or from an opening of the world."""

    checkpoint: str = "labmaze"
    """Name of a shipped world, or folder of a bundle."""
    data: Path | None = None
    """Folder of a recording: start from a held-out piece, under its actions, and compare with the truth. Without it,
    start from an opening that comes with the world."""
    schedule: str = "next"
    """next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA, or FILE.json with
    {"before": [...], "after": [...], "stride": n, "num_steps": n}."""
    frames: int = 64
    """Frames to dream."""
    seed: int = 0
    """Seed of the start, of random actions and of the dream."""
    video: Path | None = None
    """MP4 to write; with --data, the truth is on the left and the dream on the right."""
    actions: str | None = None
    """Without --data: random, or keys such as "w*30 a*15 wd*10 .*5", repeated, as in play.py."""
    context: int | None = None
    """Real frames given before the dream; default 32 with --data, else the whole opening."""
    steps: int | None = None
    """Denoising steps in an auto-regressive step; default what the schedule says, else what the world says."""
    init_steps: int | None = None
    """Denoising steps that fill the window at the start; default 8."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name in ("frames", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1; got {value}")
        if self.seed < 0:
            raise SeedError(f"--seed must be 0 or more; got {self.seed}")
        if self.data is not None and self.actions is not None:
            raise ConfigError(
                "--actions does not go with --data, whose recorded actions are taken; leave one of them out"
            )
        if self.video is not None and self.video.suffix.lower() != ".mp4":
            raise ConfigError(f"--video {str(self.video)!r} must end in .mp4; give a name such as rollout.mp4")


def describe_schedule(name: str, window: Window, num_steps: int, num_init_steps: int, fps: float) -> list[str]:
    """Return lines of text: the window, its levels, the input lag, and what it costs in network calls."""
    calls = num_steps / window.stride
    lines = [
        f"schedule {name}: {window.size} frame{'s' * (window.size > 1)} in the window, stride {window.stride}, "
        f"{num_steps} denoising step{'s' * (num_steps > 1)} each; network calls a frame: {calls:.3g}",
        f"  before {' '.join(f'{level:5.3f}' for level in window.before)}",
        f"  after  {' '.join(f'{level:5.3f}' for level in window.after)}",
        f"  {window.describe_lag(fps)}",
    ]
    if window.num_clean:
        lines.append(f"  clean overlap: the {window.num_clean} newest finished frames stay in the window")
    if window.input_lag:
        lines.append(f"  initialization: {num_init_steps} network calls fill the window, once a dream")
    return lines


def choose_start(model: WorldModel, options: RolloutOptions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the context uint8 (1, C, H, W, 3), the actions (1, C - 1 + N), and the truth (1, N, H, W, 3) or None.

    Raises:
        DataError: no recording, or no held-out episode long enough. ActionError: the action text cannot be read.
        ConfigError: the context asked for is longer than the openings. CheckpointError: a world of unknown actions.
    """
    rng = np.random.default_rng(options.seed)
    if options.data is not None:
        known = 32 if options.context is None else options.context
        shards = open_shards(options.data, "test", model.codec.config.image_size, model.num_actions)
        given = read_pieces(spread_over(list_episodes(shards), known + options.frames, 1, rng))
        return given["frames"][:, :known], given["actions"].long(), given["frames"][:, known:]
    openings = load_openings(options.checkpoint)
    row, longest = int(rng.integers(len(openings["frames"]))), openings["frames"].shape[1]
    known = longest if options.context is None else options.context
    if known > longest:
        raise ConfigError(f"--context {known} is longer than the world's openings, {longest} frames; give --data")
    world = find_world(model.info, options.checkpoint)
    chosen: Iterator[int] = parse_actions(options.actions or "random", world.actions, options.seed)
    actions = openings["actions"][row : row + 1, longest - known :].long()
    to_come = torch.tensor([list(islice(chosen, options.frames))])
    return openings["frames"][row : row + 1, longest - known :], torch.cat([actions, to_come], 1), None


def describe_likeness(frames: torch.Tensor, truth: torch.Tensor, context: torch.Tensor) -> list[str]:
    """Return lines of text: PSNR against the truth by segments of 16 frames, beside that of the last real frame."""
    copied = context[:, -1:].expand_as(truth)
    lines = ["PSNR against the truth, of the mean squared error of each segment (holding the last real frame):"]
    parts = [
        to_psnr(torch.stack([e[0, k : k + SEGMENT].mean() for k in range(0, truth.shape[1], SEGMENT)]))
        for e in (squared_error(frames, truth), squared_error(copied, truth))
    ]
    for k, (mine, held) in enumerate(zip(*(part.tolist() for part in parts), strict=True)):
        last = min((k + 1) * SEGMENT, truth.shape[1])
        lines.append(f"  frames {k * SEGMENT + 1}-{last}: {mine:.2f} dB ({held:.2f} dB)")
    return lines


def write_video(path: Path, frames: torch.Tensor, truth: torch.Tensor | None, fps: float) -> None:
    """Write the dream uint8 (1, N, H, W, 3), to the right of the truth if there is one.

    Raises:
        StorageError: the file cannot be written. MissingPackageError: there is no encoder.
    """
    pictures = frames[0] if truth is None else torch.cat([truth[0], frames[0]], 2)
    with VideoWriter(path, fps, max(1, VIDEO_SIDE // frames.shape[2])) as video:
        for picture in pictures.numpy():
            video.add(np.ascontiguousarray(picture))


def run_rollout(options: RolloutOptions) -> torch.Tensor:
    """Dream, print and write what was asked for; return the frames uint8 (1, N, H, W, 3).

    Raises:
        WindowError: the schedule is not understood or breaks a requirement.
        ShapeError: the rollout is shorter than the window, or the context than its clean overlap.
        WorldModelError: as `choose_start` and `write_video`, or the checkpoint cannot be loaded.
    """
    schedule: Schedule = parse_schedule(options.schedule)  # first: it costs nothing
    window = schedule.window
    asked = schedule.num_steps if options.steps is None else options.steps
    model = WorldModel.load(
        options.checkpoint,
        device=options.device,
        num_steps=asked,
        num_init_steps=options.init_steps,
        memory_frames=options.memory,
    )
    fps = float(model.info.get("fps") or find_world(model.info, options.checkpoint).fps)
    lines = describe_schedule(schedule.name, window, model.config.num_steps, model.config.num_init_steps, fps)
    print("\n".join(lines), flush=True)
    context, actions, truth = choose_start(model, options)
    with tqdm(total=options.frames, desc="dreaming", unit="frame", disable=None) as progress:
        start_s = time.perf_counter()
        frames = model.rollout(context, actions, [options.seed], window, on_frames=progress.update)
        elapsed_s = time.perf_counter() - start_s
    print(f"{frames.shape[1]} frames in {elapsed_s:.2f} s: {frames.shape[1] / elapsed_s:.1f} frames/s")
    if truth is not None:
        print("\n".join(describe_likeness(frames, truth, context)))
    if options.video is not None:
        write_video(options.video, frames, truth, fps)
        print(f"video: {options.video}")
    return frames


def main() -> None:
    """Parse options and dream."""
    run_rollout(parse_options(RolloutOptions, "python -m train.rollout"))


if __name__ == "__main__":
    run_program(main)
