"""Program: record starts of the Reach task. `python -m train.starts --out starts.h5 --count 2000`.

Owns: the options. What a start is and the file are `envs.tasks.starts`'.
"""

from dataclasses import dataclass
from pathlib import Path

from envs.tasks.reach import find_sizes
from envs.tasks.starts import NUM_FRAMES, record_starts
from envs.worlds.registry import get_world
from train.core.options import parse_options, read_assignments, run_program


@dataclass(frozen=True, kw_only=True)
class StartsOptions:
    """Record a few real frames before each of many starts, for dreams of the Reach task to begin from."""

    out: Path
    """File to write, HDF5."""
    world: str = "LabMaze"
    """World to record: a name (a wrong one lists those there are), or module:class of your own."""
    count: int = 2000
    """How many starts."""
    seed: int = 0
    """Seed of the starts."""
    split: str = "train"
    """Scenes: train; test, which no recording for training shows and Real/NAMEReach-v0 judges in; or any."""
    start: str = "any"
    """How large what pays is in view: near, far or any."""
    frames: int = NUM_FRAMES
    """Frames before each dream, the start itself the last of them."""
    image_size: int = 64
    """Height and width of a frame in pixels."""
    set: tuple[str, ...] = ()
    """Settings of the world, such as size=9 num_targets=8; a wrong one lists those there are."""


def main() -> None:
    """Record starts and say where they are."""
    options = parse_options(StartsOptions, "python -m train.starts")
    world = get_world(options.world)
    settings = read_assignments(world.Settings, options.set, world.name)
    sizes_px = find_sizes(options.start, None, None)
    record_starts(
        world,
        options.count,
        options.out,
        seed=options.seed,
        split=options.split,
        sizes_px=sizes_px,
        num_frames=options.frames,
        image_size=options.image_size,
        **settings,
    )
    print(f"{options.count} starts in {options.out}")


if __name__ == "__main__":
    run_program(main)
