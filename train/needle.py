"""Program: find needles again. `python -m train.needle --checkpoint NAME_OR_DIR --data DIR --out DIR`.

Owns: the options, the report and the contact sheet of the needle-in-a-haystack test (arXiv:2503.10704): does a dream
that comes back to a place show what was seen there long ago? Does not know how a case is found, dreamt or judged
(`train.measures.recall_cases`, `train.measures.recall_dreams`, `train.measures.place_classifier`).
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.actions import ActionSet
from envs.data.episodes import EpisodeInfo, open_shards
from envs.worlds.registry import get_world
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.measures.place_classifier import LEAST_ACCURACY, PlaceClassifier, load_or_train
from train.measures.recall_cases import DREAMT, RecallCase, find_cases
from train.measures.recall_dreams import CONTROLS, dream_cases, measure_recall, read_frames
from train.measures.response import RULE, measure_dreams
from train.reports.sheets import caption_frame, save_picture, tile_frames
from worldmodel.analysis.recall import BINS, Verdict, bin_name
from worldmodel.errors import ConfigError, SeedError
from worldmodel.world import WorldModel

__all__ = [
    "NeedleOptions",
    "dream_cases",
    "find_cases",
    "load_or_train",
    "measure_recall",
    "run_needle",
    "save_needles",
]

HELD_FRAMES = 6  # dreamt frames under one held action, of the answer to actions
_SHEET_PIXELS = 128
_SHEET_CASES = 3  # successes and failures shown of each bin


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """Test whether a world remembers places: dreams that come back to what left the view long ago."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with pose and layout and with held-out ("test") shards."""
    out: Path
    """Folder of the report; made if missing."""
    cases: int = 300
    """Cases of each bin; fewer where the recording has fewer, which the report says."""
    context_frames: int | None = None
    """Most context frames given, for a world whose memory is that long; default enough to hold the needle."""
    controls: bool = True
    """Measure the controls too: short and shuffled memory take as long as the test itself."""
    train_data: Path | None = None
    """Recording whose training mazes teach the texture classifier; default `data`. It must have the same textures."""
    openings: int = 24
    """Openings for each action of the answer to actions, without which a memory score means nothing; 0: none."""
    batch_size: int = 64
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
        for name, least in (("cases", 1), ("batch_size", 1), ("openings", 0), ("context_frames", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def save_needles(
    path: Path, cases: Sequence[RecallCase], frames: torch.Tensor, verdicts: Sequence[Verdict], seed: int = 0
) -> None:
    """Write a contact sheet: for each bin successes on the left and failures on the right.

    Each is four pictures: the needle, the last context frame, the dream, the truth.

    Args:
        path: a `.png` file.
        cases: all cases.
        frames: uint8 (len(cases), H, W, 3), their dreams.
        verdicts: of each case.
        seed: which cases are shown.

    Raises:
        StorageError: the file cannot be written.
    """
    order = np.random.default_rng([seed, 6]).permutation(len(cases))
    scale = max(1, _SHEET_PIXELS // frames.shape[2])
    blank = caption_frame(np.zeros(tuple(frames.shape[1:]), np.uint8), "", scale)
    rows = []
    for low, high in BINS:
        inside = [i for i in order if low < cases[i].distance <= high]
        columns = [[i for i in inside if verdicts[i].is_success == is_success] for is_success in (True, False)]
        for number in range(min(_SHEET_CASES, max(map(len, columns)))):
            row: list[np.ndarray] = []
            for column, word in zip(columns, ("right", "wrong"), strict=True):
                if number >= len(column):
                    row += [blank] * 4
                    continue
                i, case = column[number], cases[column[number]]
                pictures = read_frames([case] * 3, [case.seen, case.start - 1, case.frame])
                shown = (pictures[0], pictures[1], frames[i], pictures[2])
                words = (f"D {case.distance}", "last given", f"dream: {word}", "truth")
                row += [caption_frame(p.numpy(), w, scale) for p, w in zip(shown, words, strict=True)]
            rows.append(row)
    save_picture(path, tile_frames(rows))


def _measure_response(
    model: WorldModel,
    episodes: list[EpisodeInfo],
    actions: ActionSet,
    options: NeedleOptions,
    progress: "tqdm[Any]",
) -> dict[str, Any]:
    context = min(32, options.context_frames or 32, max(e.num_frames for e in episodes) - 1)
    settings: dict[str, Any] = {"held": HELD_FRAMES, "batch_size": options.batch_size, "seed": options.seed}
    settings |= {"openings": options.openings, "context": context, "on_frames": progress.update}
    return {**measure_dreams(model, episodes, actions, **settings), "rule": RULE}


def _shortfall(report: dict[str, Any], classifier: PlaceClassifier, wanted: int) -> list[str]:
    """Return what a reader must know before believing the report."""
    found = {name: table["cases"] for name, table in report["bins"].items()}
    notes = [f"bin {name}: {count} of {wanted} cases found" for name, count in found.items() if count < wanted]
    if classifier.facts["accuracy"] < LEAST_ACCURACY:
        notes.append(f"the classifier names {classifier.facts['accuracy']:.3f} of real frames, below {LEAST_ACCURACY}")
    return notes


def run_needle(model: WorldModel, options: NeedleOptions, command: str = "") -> dict[str, Any]:
    """Find the cases, dream them, judge them, and write `report.json`, `needles.png` and the classifier.

    Args:
        model: the world.
        options: how much is measured, and on what.
        command: command line to keep in the report.

    Returns:
        the content of `report.json`: what `measure_recall` returns, `classifier` (its accuracy on real held-out
        frames), `action_response`, `notes` (too few cases, a poor classifier), `settings`, `command`, `seconds`.

    Raises:
        DataError: no held-out shard that fits the world, a recording without pose or layout, or without any case.
        StorageError: a result cannot be written.
    """
    started = time.monotonic()
    shards = open_shards(options.data, "test", model.codec.config.image_size, model.num_actions)
    episodes, world = list_episodes(shards), get_world(shards[0].world)
    cases = find_cases(world, episodes, cases_per_bin=options.cases, seed=options.seed)
    teacher = options.train_data or options.data
    classifier = load_or_train(teacher, options.out / "places.safetensors", held_out=options.data)
    controls = CONTROLS if options.controls else ()
    total = (3 if options.controls else 1) * len(cases) * DREAMT + 4 * options.openings * HELD_FRAMES
    with tqdm(total=total, desc="dreaming", unit="frame", mininterval=2.0) as progress:
        report = measure_recall(
            model,
            cases,
            classifier,
            context_frames=options.context_frames,
            batch_size=options.batch_size,
            controls=controls,
            seed=options.seed,
            on_frames=progress.update,
            on_verdicts=lambda frames, verdicts: save_needles(options.out / "needles.png", cases, frames, verdicts),
        )
        if options.openings:
            report["action_response"] = _measure_response(model, episodes, world.actions, options, progress)
    report["classifier"] = classifier.facts
    report["notes"] = _shortfall(report, classifier, options.cases)
    report["settings"] = {
        **options_to_json(options),
        "denoising_steps": model.config.num_steps,
        "level_shift": model.config.level_shift,
        "context_level": model.config.context_level,
        "memory_frames": model.memory_frames,
        "device": str(model.device),
        "torch": torch.__version__,
    }
    report["command"], report["seconds"] = command, round(time.monotonic() - started, 1)
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, test, print the rates."""
    options = parse_options(NeedleOptions, "python -m train.needle")
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    report = run_needle(model, options, f"python -m train.needle {shlex.join(sys.argv[1:])}")
    for title, table in {"dream": report["bins"], **report["controls"]}.items():
        shown = {
            name: "no case"
            if found["rate"] is None
            else f"{found['rate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            for name, found in ((bin_name(span), table[bin_name(span)]) for span in BINS)
        }
        print(f"{title}: " + ", ".join(f"{name}: {text}" for name, text in shown.items()))
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"report: {options.out / 'report.json'}")


if __name__ == "__main__":
    run_program(main)
