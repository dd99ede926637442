"""Place recall, the needle in a haystack (arXiv:2503.10704): a dream comes back; does it show what was there long ago?

Owns: the settings, the table and the contact sheet. Does not know how a case is found, dreamt or judged
(`train.measures.recall_cases`, `train.measures.recall_dreams`, `train.measures.place_classifier`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from train.measures.base import Bench, Measure
from train.measures.place_classifier import LEAST_ACCURACY, PlaceClassifier, find_teacher, load_or_train
from train.measures.recall_cases import DREAMT, RecallCase, find_cases
from train.measures.recall_dreams import CONTROLS, measure_recall, read_frames
from train.reports.plots import markdown_row
from train.reports.sheets import caption_frame, save_picture, tile_frames
from worldmodel.analysis.recall import BINS, Verdict
from worldmodel.errors import ConfigError

_SHEET_PIXELS = 128
_SHEET_CASES = 3  # successes and failures shown of each bin


@dataclass(frozen=True)
class PlaceRecallOptions:
    """Settings of the test.

    Attributes:
        cases: of each bin; fewer where the recording has fewer, which the report says.
        context_frames: most context frames given, for a world whose memory is that long; None: enough for the place.
        controls: measure the controls too: short and shuffled memory take as long as the test itself.
        train_data: recording whose training scenes teach the classifier; None: the one that is measured on. It must
            show the same kinds of places.
    """

    cases: int = 300
    context_frames: int | None = None
    controls: bool = True
    train_data: str | None = None

    def __post_init__(self) -> None:
        for name in ("cases", "context_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")


class PlaceRecall(Measure):
    """How often a dream shows a place again as it was, by how long ago it was seen."""

    name = "place_recall"
    Options = PlaceRecallOptions
    needs = ("recording", "places")
    quick: ClassVar[dict[str, int]] = {"cases": 2}

    def num_frames(self, bench: Bench, options: PlaceRecallOptions) -> int:
        """Return the most frames to dream."""
        return (3 if options.controls else 1) * options.cases * len(BINS) * DREAMT

    def check(self, bench: Bench, options: PlaceRecallOptions) -> None:
        """Raise `DataError` where there is no training scene to teach the classifier."""
        assert bench.data is not None  # `needs` says so
        find_teacher(bench.data, options.train_data)

    def run(self, bench: Bench, options: PlaceRecallOptions) -> dict[str, Any]:
        """Find the cases, dream them, judge them, and write `places.png` and the classifier.

        Returns:
            what `measure_recall` returns, `classifier` (its accuracy on real held-out frames), `notes` (too few cases,
            a poor classifier).

        Raises:
            DataError: no training scene that teaches the classifier, or no case. StorageError: a file cannot be
                written.
        """
        assert bench.data is not None  # `needs` says so
        cases = find_cases(bench.world, bench.episodes, cases_per_bin=options.cases, seed=bench.seed)
        teacher = find_teacher(bench.data, options.train_data)
        classifier = load_or_train(teacher, bench.out / "places.safetensors", held_out=bench.data)
        found = measure_recall(
            bench.model,
            cases,
            classifier,
            context_frames=options.context_frames,
            batch_size=bench.batch_size,
            controls=CONTROLS if options.controls else (),
            seed=bench.seed,
            on_frames=bench.on_frames,
            on_verdicts=lambda frames, verdicts: save_cases(bench.out / "places.png", cases, frames, verdicts),
        )
        found["classifier"] = classifier.facts
        found["notes"] = _shortfall(found, classifier, options.cases)
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of rates."""
        tables = {"dream": found["bins"], **found["controls"]}
        lines = [markdown_row("frames ago", *found["bins"]), markdown_row(*["---"] * (len(found["bins"]) + 1))]
        for title, table in tables.items():
            cells = [
                None if cell["rate"] is None else f"{cell['rate']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"
                for cell in table.values()
            ]
            lines.append(markdown_row(title, *cells))
        notes = [f"- {note}" for note in found["notes"]]
        return [*lines, "", f"{found['cases']} cases of {found['scenes']} scenes.", *([""] if notes else []), *notes]


def save_cases(
    path: Path, cases: Sequence[RecallCase], frames: torch.Tensor, verdicts: Sequence[Verdict], seed: int = 0
) -> None:
    """Write a contact sheet: for each bin successes on the left and failures on the right.

    Each is four pictures: the place, the last context frame, the dream, the truth.

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


def _shortfall(report: dict[str, Any], classifier: PlaceClassifier, wanted: int) -> list[str]:
    """Return what a reader must know before believing the report."""
    found = {name: table["cases"] for name, table in report["bins"].items()}
    notes = [f"bin {name}: {count} of {wanted} cases found" for name, count in found.items() if count < wanted]
    if classifier.facts["accuracy"] < LEAST_ACCURACY:
        notes.append(f"the classifier names {classifier.facts['accuracy']:.3f} of real frames, below {LEAST_ACCURACY}")
    return notes
