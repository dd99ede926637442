"""Tables of scores: figures by kind, way and distance with intervals over tests, and when a row passes.

Owns: the figures there are, the bins of the distance, and the verdict. Does not know pictures (`train.memory.scores`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from train.memory.cases import MemoryTest
from train.memory.scores import Row
from worldmodel.analysis.bootstrap import draw_weights, find_interval
from worldmodel.analysis.recall import BINS, bin_name

LEAST_MARGIN_DB = 1.0  # above unrelated pairs
LEAST_ACCURACY = 0.6  # a guess is right half the time
FAR = 300  # frames; the last bin has no end
DISTANCES = (*(bin_name(span) for span in BINS), f"over {FAR}")


class Metric(NamedTuple):
    """A figure of a report.

    Attributes:
        title: for people.
        meaning: what it is.
        is_better_high: whether more is better.
        digits: after the point.
    """

    title: str
    meaning: str
    is_better_high: bool = True
    digits: int = 3


METRICS: dict[str, Metric] = {
    "psnr": Metric(
        "PSNR, dB", "of what is shown at the second frame to what was shown at the first, 50 at most", digits=1
    ),
    "ssim": Metric("SSIM", "likewise, structural similarity"),
    "perceptual": Metric("perceptual", "likewise, distance by features of EfficientNet-Lite0; less is better", False),
    "truth_psnr": Metric(
        "PSNR to the truth, dB", "of what is shown at the second frame to the real frame there", digits=1
    ),
    "truth_ssim": Metric("SSIM to the truth", "likewise, structural similarity"),
    "truth_perceptual": Metric("perceptual to the truth", "likewise, distance by features; less is better", False),
    "places": Metric("places right", "the share of second frames in which a classifier names the place that is there"),
    "margin": Metric(
        "margin, dB", "PSNR of a pair above that of the same second frame and the first of another test", digits=1
    ),
    "action_accuracy": Metric("actions obeyed", "how often the picture moves as its actions say"),
}


def summarize(row: Row, tests: Sequence[MemoryTest], seed: int) -> dict[str, Any]:
    """Return the tables of a row: `overall`, `by_way`, `by_kind` (kind -> distance -> cell) and `by_first`.

    A cell has `pairs`, `tests`, and for each metric that is known `mean`, and `low` and `high`, the 95% interval over
    tests; those are None for one test.
    """
    pairs = [tests[t].pairs[p] for t, p in zip(row.tests, row.pairs, strict=True)]
    kinds, ways = np.array([pair.kind for pair in pairs]), np.array([pair.way for pair in pairs])
    bins = np.array([find_distance(pair.distance) for pair in pairs])
    was_given = np.array([pair.first < tests[t].context for t, pair in zip(row.tests, pairs, strict=True)])

    def cell(chosen: np.ndarray) -> dict[str, Any]:
        return _cell(row, chosen, seed)

    everything = np.ones(len(pairs), bool)
    overall = cell(everything)
    if row.accuracy:
        shares = torch.tensor(list(row.accuracy.values()))
        overall["action_accuracy"] = _figure(shares, np.arange(len(shares)), seed)
    by_kind: dict[str, dict[str, Any]] = {}
    for kind in sorted({*kinds}):
        found = {name: (kinds == kind) & (bins == name) for name in DISTANCES}
        by_kind[kind] = {name: cell(chosen) for name, chosen in found.items() if chosen.any()}
    by_first = {"given": was_given, "dreamt": ~was_given}
    return {
        "overall": overall,
        "by_way": {way: cell(ways == way) for way in sorted({*ways})},
        "by_kind": by_kind,
        "by_first": {name: cell(chosen) for name, chosen in by_first.items() if chosen.any()},
    }


def find_distance(distance: int) -> str:
    """Return the name of the bin of a distance in frames, of `DISTANCES`."""
    return next((bin_name(span) for span in BINS if span[0] < distance <= span[1]), DISTANCES[-1])


def _cell(row: Row, chosen: np.ndarray, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": int(chosen.sum()), "tests": len({*row.tests[chosen]})}
    for name, values in row.values.items():
        known = chosen & ~values.isnan().numpy()
        if known.any():
            found[name] = _figure(values[torch.from_numpy(known)], row.tests[known], seed)
    return found


def _figure(values: torch.Tensor, groups: np.ndarray, seed: int) -> dict[str, Any]:
    """Return mean and 95% interval of values (N,), drawing their groups again."""
    figure: dict[str, Any] = {"mean": round(float(values.mean()), 4), "low": None, "high": None}
    if len({*groups}) > 1:
        weights = draw_weights(groups, np.random.default_rng([seed, 14]))
        low, high = find_interval(weights.double() @ values.double()).tolist()
        figure |= {"low": round(low, 4), "high": round(high, 4)}
    return figure


def judge_row(tables: Mapping[str, Any], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Return whether a row passes, and why not.

    It passes where what comes back is clearly more alike than unrelated frames, where its picture obeys, and where no
    threshold is missed: a picture that stands still, and noise, do not.

    Args:
        tables: of `summarize`.
        thresholds: METRIC or WAY.METRIC to the least (perceptual: the most) that is accepted.

    Returns:
        `passes`, `why_not` (reasons), `missed` (thresholds).
    """
    overall, reasons = tables["overall"], []
    margin, accuracy = overall.get("margin"), overall.get("action_accuracy")
    if margin is None or margin["low"] is None:
        reasons.append("one test tells no difference from unrelated frames: give at least two")
    elif margin["low"] <= LEAST_MARGIN_DB:
        reasons.append(
            f"what comes back is not clearly more alike than unrelated frames: {margin['mean']:.1f} dB "
            f"({margin['low']:.1f} to {margin['high']:.1f}), {LEAST_MARGIN_DB:g} is asked for"
        )
    if accuracy is None:
        reasons.append("no step tells whether actions are obeyed")
    elif accuracy["mean"] < LEAST_ACCURACY:
        reasons.append(f"actions are obeyed {accuracy['mean']:.2f} of the time, {LEAST_ACCURACY:g} is asked for")

    missed = []
    for name, limit in thresholds.items():
        way, _, metric = name.rpartition(".")
        cell = tables["by_way"].get(way, {}) if way else overall
        figure = cell.get(metric)
        if figure is None:
            missed.append(f"{name} is not known")
        elif (figure["mean"] < limit) if METRICS[metric].is_better_high else (figure["mean"] > limit):
            missed.append(f"{name} is {figure['mean']:.3f}, {limit:g} is asked for")
    return {"passes": not reasons and not missed, "why_not": [*reasons, *missed], "missed": missed}
