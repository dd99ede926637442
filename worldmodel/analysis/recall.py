"""Place recall, the needle in a haystack: how often a dream shows again what it saw long ago.

Owns: the bins of the distance, the Wilson interval, and the table of rates made of verdicts (arXiv:2503.10704, the
retrieval rate of its table of memory structures). Does not know models, frames, scenes or files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worldmodel.errors import ConfigError

BINS = ((0, 16), (16, 48), (48, 112), (112, 300))  # the last is ours, the others are the paper's
Z_95 = 1.959964  # of a two-sided 95% interval


@dataclass(frozen=True)
class Verdict:
    """What became of one place.

    Attributes:
        is_right: of each label of the place, whether the picture shows it.
        ssim: structural similarity of the columns that show the place.
    """

    is_right: tuple[bool, ...]
    ssim: float

    @property
    def is_success(self) -> bool:
        """All of it is right."""
        return all(self.is_right)


def bin_name(span: tuple[int, int]) -> str:
    """Return the name of a bin as reports carry it, such as "16-48"."""
    return f"{span[0]}-{span[1]}"


def find_bin(distance: int, bins: Sequence[tuple[int, int]] = BINS) -> tuple[int, int] | None:
    """Return the bin (low, high] that holds a distance in frames; None where none does."""
    return next((span for span in bins if span[0] < distance <= span[1]), None)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% interval of Wilson for a rate.

    Args:
        successes: from 0 to `trials`.
        trials: 0 or more; (0, 1) for none.

    Raises:
        ConfigError: counts that cannot be.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= successes <= trials:
        raise ConfigError(f"successes must be from 0 to trials; got {successes} of {trials}: count them again")
    if not trials:
        return 0.0, 1.0
    rate, spread = successes / trials, Z_95**2 / trials
    center = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def summarize(
    distances: Sequence[int],
    verdicts: Sequence[Verdict],
    labels: Sequence[str],
    bins: Sequence[tuple[int, int]] = BINS,
) -> dict[str, dict[str, Any]]:
    """Return the table of one way to dream: for each bin the retrieval rate with its interval.

    Args:
        distances: frames between the place and the dream, D, of each case.
        verdicts: of each case, as many.
        labels: names of what a verdict judges.
        bins: (low, high], in frames.

    Returns:
        bin name -> `rate`, `low`, `high` (95%), `cases`, `successes`, LABEL_rate of each label, `ssim`; rates and SSIM
        are None for a bin without cases.

    Raises:
        ConfigError: not one verdict a distance.
    """
    if len(distances) != len(verdicts):
        raise ConfigError(f"every distance needs a verdict; got {len(distances)} distances, {len(verdicts)} verdicts")
    table: dict[str, dict[str, Any]] = {}
    for span in bins:
        found = [v for distance, v in zip(distances, verdicts, strict=True) if span[0] < distance <= span[1]]
        count, successes = len(found), sum(v.is_success for v in found)
        low, high = wilson_interval(successes, count)
        table[bin_name(span)] = {
            "rate": successes / count if count else None,
            "low": low,
            "high": high,
            "cases": count,
            "successes": successes,
            **{
                f"{label}_rate": sum(v.is_right[i] for v in found) / count if count else None
                for i, label in enumerate(labels)
            },
            "ssim": sum(v.ssim for v in found) / count if count else None,
        }
    return table
