"""Program: fine-tune a world in a fixed time. `python -m train.finetune --from labmaze --out DIR --deadline 580`.

Owns: the order of what is done, how the time is shared, and that --out holds a bundle that loads at any moment: first
the world as it was given, then its average every minute, then the last one. The parts are the other programs: it
records (`train.record`) and prepares (`train.warps`) beside compiling the loss, trains as `train.denoiser --warps
--initial` does, then the decoder (`train.decoder`) if asked to, and measures with the time that is left.
OUT/report.json tells what was done, how long it took, and what was cut.

With --sessions it learns from what was played (`play.py --record`) in place of a recording of its own:

    python play.py --real --record plays
    python -m train.finetune --from labmaze --sessions plays --minutes 30 --out runs/mine
    python play.py --checkpoint runs/mine

A world without a memory of pixels is grafted: what weights of it fit are taken, the layers that read the memory start
by chance. It needs --depth, as its bundle has no depth network.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from train.core.machine import start_machine
from train.core.options import parse_options, run_program
from train.finetuning.deadline import Clock, Terminated, guarded, process_age
from train.finetuning.gathering import gather
from train.finetuning.measuring import measure
from train.finetuning.options import FineTuneOptions
from train.finetuning.preflight import preflight
from train.finetuning.report import Report
from train.finetuning.training import fine_tune_decoder, fine_tune_denoiser
from train.finetuning.work import Work
from worldmodel.errors import WorldModelError


def fine_tune(options: FineTuneOptions, started: float | None = None) -> dict[str, Any]:
    """Do all of it; return the report.

    Args:
        options: of the program.
        started: moment that the deadline counts from, `time.monotonic()`; default now.

    Raises:
        WorldModelError: one of its kinds, when something is missing; --out holds the world as given, or as far as it
            came.
        Terminated: SIGTERM.
    """
    clock = Clock(options, time.monotonic() if started is None else started)
    folder = options.work or Path(tempfile.mkdtemp(prefix="finetune-"))
    folder.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []  # none before the world is loaded

    def note_deadline() -> None:
        for report in reports:
            report.cut(clock.part, f"the deadline of {options.total_s:g} s came first")
            report.save()

    try:
        with guarded(clock, note_deadline):
            work = Work(options, start_machine(options.device), clock, folder)
            reports.append(work.report)
            _run_parts(work)
            work.report.content["is_complete"] = True
            work.report.save()
            return work.report.content
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)


def _run_parts(work: Work) -> None:
    """Run all parts of the work; what was trained is kept, whatever fails after it."""
    report = work.report
    with report.timed("preflight") as facts:
        preflight(work, facts)
    with ExitStack() as stack:
        with report.timed("gathering") as facts:
            gather(work, stack, facts)
        with report.timed("training") as facts:
            fine_tune_denoiser(work, facts)
    if work.clock.is_terminated:
        raise Terminated

    parts: list[tuple[str, Callable[[Work, dict[str, Any]], None]]] = []
    if work.options.decoder_share:
        parts.append(("decoder", fine_tune_decoder))
    if work.options.evaluate_s:
        parts.append(("evaluation", measure))
    for name, do in parts:
        try:
            with report.timed(name) as facts:
                do(work, facts)
        except (WorldModelError, RuntimeError) as error:  # what was trained is kept: the rest may fail
            report.cut(name, f"failed: {error}")


def main() -> None:
    """Read the options and do it; exit status 143 after SIGTERM, 1 where the deadline cut it."""
    started = time.monotonic() - process_age()
    options = parse_options(FineTuneOptions, "python -m train.finetune")
    try:
        fine_tune(options, started)
    except Terminated:
        print(f"terminated; {options.out} holds the last bundle", flush=True)
        sys.exit(128 + signal.SIGTERM)
    print(f"world: {options.out}    report: {options.out / 'report.json'}", flush=True)


if __name__ == "__main__":
    run_program(main)
