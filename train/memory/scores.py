"""Scores of a replay: how alike the two frames of a pair are, and the second and the truth.

Owns: the scores of each pair, and the floor of unrelated pairs. Does not know how pictures come about
(`train.memory.replay`) or what is made of the scores (`train.memory.tables`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from train.memory.cases import MemoryTest
from train.memory.obedience import Judge
from train.memory.replay import Replay
from worldmodel.analysis.distances import Ruler, perceptual_distance
from worldmodel.analysis.metrics import psnr, ssim

SCORES = (
    *("psnr", "ssim", "perceptual"),  # of the second frame to the first
    *("truth_psnr", "truth_ssim", "truth_perceptual"),  # of the second frame to the real one
    *("places", "margin"),
)


@dataclass
class Row:
    """What one world, or stand-in, shows in the pairs of tests.

    Attributes:
        name: in reports.
        role: checkpoint, ceiling, floor or control.
        tests: int64 (P,), the test of each pair.
        pairs: int64 (P,), the number of each pair in its test.
        firsts, seconds, truths: uint8 (P, H, W, 3).
        accuracy: action accuracy by number of a test; those where nothing can be judged are not there.
        values: float32 (P,) of each metric; NaN where it is not known.
    """

    name: str
    role: str
    tests: np.ndarray
    pairs: np.ndarray
    firsts: torch.Tensor
    seconds: torch.Tensor
    truths: torch.Tensor
    accuracy: dict[int, float]
    values: dict[str, torch.Tensor] = field(default_factory=dict)


def collect(name: str, role: str, tests: Sequence[MemoryTest], replays: Iterable[Replay], judge: Judge) -> Row | None:
    """Keep of replays what is scored; None where there is none.

    Args:
        name: of the row.
        role: of the row.
        tests: all.
        replays: of some of them, in any order.
        judge: of what is obeyed.

    Raises:
        DataError: a file is damaged or gone.
    """
    kept: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]] = []
    accuracy: dict[int, float] = {}
    for test, given, pictures in replays:
        for number, pair in enumerate(tests[test].pairs):
            first, second, truth = pictures[pair.first], pictures[pair.second], given.frames[pair.second]
            kept.append((test, number, first.copy(), second.copy(), truth.copy()))
        share = judge.share_right(test, given, pictures)
        if share is not None:
            accuracy[test] = share
    if not kept:
        return None
    kept.sort(key=lambda each: each[:2])
    columns = list(zip(*kept, strict=True))
    firsts, seconds, truths = (torch.from_numpy(np.stack(column)) for column in columns[2:])
    return Row(name, role, np.array(columns[0]), np.array(columns[1]), firsts, seconds, truths, accuracy)


def pick_unrelated(row: Row, tests: Sequence[MemoryTest]) -> np.ndarray | None:
    """Return for each pair of a row another one, of another test, of the same kind where there is one: int64 (P,).

    None where there is one test. Each test lends its pairs to one other, so that all firsts count about alike.
    """
    kinds = np.array([tests[t].pairs[p].kind for t, p in zip(row.tests, row.pairs, strict=True)])
    groups = sorted({*zip(row.tests.tolist(), kinds.tolist(), strict=True)})
    members = [np.flatnonzero((row.tests == test) & (kinds == kind)) for test, kind in groups]
    lenders = np.zeros(len(row.tests), int)
    for group in members:
        test, kind = row.tests[group[0]], kinds[group[0]]
        others = [other for other in members if row.tests[other[0]] != test]
        if not others:
            return None
        alike = [other for other in others if kinds[other[0]] == kind] or others
        later = [other for other in alike if row.tests[other[0]] > test]
        lender = (later or alike)[0]
        lenders[group] = lender[np.arange(len(group)) % len(lender)]
    return lenders


def score(
    row: Row,
    tests: Sequence[MemoryTest],
    ruler: Ruler | None,
    name_places: Callable[[torch.Tensor], torch.Tensor] | None,
    labels: Mapping[tuple[int, int], tuple[int, ...]],
) -> None:
    """Fill the values of a row.

    Args:
        row: changed.
        tests: all.
        ruler: features of frames; None: no perceptual distances.
        name_places: frames uint8 (N, H, W, 3) to labels int64 (N, L); None: no places.
        labels: what the second frame of a pair truly shows, by numbers of test and pair, where it is clear.
    """
    is_real = torch.tensor([tests[test].is_real for test in row.tests])
    unknown = torch.full((len(row.tests),), torch.nan)
    row.values = {name: unknown.clone() for name in SCORES}
    for start, others, known in (("", row.firsts, torch.ones_like(is_real)), ("truth_", row.truths, is_real)):
        if row.role == "ceiling" and start or not known.any():
            continue
        ours, theirs = row.seconds[known], others[known]
        row.values[f"{start}psnr"][known] = psnr(ours, theirs)
        row.values[f"{start}ssim"][known] = ssim(ours, theirs)
        if ruler is not None:
            row.values[f"{start}perceptual"][known] = _apart(ruler, ours, theirs)
    lenders = pick_unrelated(row, tests)
    if lenders is not None:
        row.values["margin"] = row.values["psnr"] - psnr(row.seconds, row.firsts[torch.from_numpy(lenders)])

    clear = [i for i, key in enumerate(zip(row.tests.tolist(), row.pairs.tolist(), strict=True)) if key in labels]
    if name_places is not None and clear:
        named = name_places(row.seconds[clear])
        wanted = torch.tensor([labels[int(row.tests[i]), int(row.pairs[i])] for i in clear])
        row.values["places"][clear] = (named == wanted).all(1).float()


def _apart(ruler: Ruler, ours: torch.Tensor, theirs: torch.Tensor, part: int = 64) -> torch.Tensor:
    found = []
    for a, b in zip(ours.split(part), theirs.split(part), strict=True):
        found.append(perceptual_distance(ruler(a).stages, ruler(b).stages))
    return torch.cat(found)


def shuffled(row: Row, tests: Sequence[MemoryTest]) -> Row | None:
    """Return the floor of a row: its second frames beside firsts of other tests; None where there is one test."""
    lenders = pick_unrelated(row, tests)
    if lenders is None:
        return None
    firsts = row.firsts[torch.from_numpy(lenders)]
    parts = (row.tests, row.pairs, firsts, row.seconds, row.truths)
    return Row(f"{row.name}, pairs of other tests", "floor", *parts, {})
