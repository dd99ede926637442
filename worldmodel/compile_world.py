"""Program: compile the step of a world. `python -m worldmodel.compile_world --source DIR --file FILE --steps N ...`.

Runs in the background of a player (`worldmodel.compiled.BackgroundCompiler`): in low priority, and never longer than
its caller, which holds the other end of its standard input.
"""

import argparse
import os
import sys
import threading
from pathlib import Path

import torch

from worldmodel.compiled import compile_step, end_group
from worldmodel.errors import WorldModelError
from worldmodel.world import WorldModel


def read_words() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m worldmodel.compile_world", description="Compile the step of a world."
    )
    for name in ("source", "file", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "memory", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("context-level", "level-shift"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args()


def main() -> None:
    """Compile one step; exit status 1 and a line where that fails."""
    words = read_words()

    def end_with_caller() -> None:
        os.read(0, 1)
        end_group(os.getpid())
        os._exit(1)

    threading.Thread(target=end_with_caller, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(words.threads)

    model = WorldModel.load(
        words.source,
        num_steps=words.steps,
        memory_frames=words.memory,
        context_level=words.context_level,
        level_shift=words.level_shift,
        device=words.device,
        dtype=getattr(torch, words.dtype),
    )
    try:
        compile_step(model.stepper, model.begin_gray(words.batch), Path(words.file))
    except WorldModelError as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)  # the thread above still reads


if __name__ == "__main__":
    main()
