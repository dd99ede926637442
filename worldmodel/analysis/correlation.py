"""Rank correlation of what was predicted with what was measured, with an interval.

Owns ranks with ties, Spearman's coefficient and its bootstrap. Knows no schedules and no frames.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.errors import ConfigError, SeedError, ShapeError

LEAST = 3


def rank(values: np.ndarray) -> np.ndarray:
    """Return the ranks (..., S) of values (..., S) from 0; equal values share the mean of their ranks."""
    smaller = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return smaller + (equal - 1) / 2


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of a and b (..., S), (...); nan where all values of one are equal."""
    x, y = (r - r.mean(-1, keepdims=True) for r in (rank(a), rank(b)))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(scale > 0, (x * y).sum(-1) / np.where(scale > 0, scale, 1.0), np.nan)


def rank_correlation(
    predicted: Sequence[Any] | np.ndarray,
    measured: Sequence[Any] | np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return Spearman's rank correlation over schedules with a 95% bootstrap interval over schedules and cases.

    In each draw schedules are drawn with replacement, and cases too where there are any: the same cases for every
    schedule, which share them. Draws in which a side has one value only have no correlation and are left out; repeated
    schedules are ties on both sides, so few schedules make the interval somewhat too narrow.

    Args:
        predicted: (S,) a value a schedule, or (S, cases), averaged over cases.
        measured: (S,) or (S, cases); its cases need not be those of `predicted` and are drawn apart from them.
        draws: bootstrap draws.
        seed: chance.

    Returns:
        rho, low, high (None where there is no correlation to give), schedules.

    Raises:
        ShapeError: not one row a schedule on both sides, or fewer than 3 schedules. ConfigError: values that are not
            finite, or no draws. SeedError: a negative seed.
    """
    sides = [np.asarray(side, np.float64) for side in (predicted, measured)]
    sides = [side[:, None] if side.ndim == 1 else side for side in sides]
    schedules = len(sides[0])
    if any(side.ndim != 2 or len(side) != schedules or not side.shape[1] for side in sides) or schedules < LEAST:
        raise ShapeError(
            f"a rank correlation takes a row for each of at least {LEAST} schedules on both sides; got "
            f"{[side.shape for side in sides]}"
        )
    if not all(np.isfinite(side).all() for side in sides) or draws < 1:
        raise ConfigError(f"a rank correlation takes finite values and at least 1 draw; got {draws} draws of {sides}")
    if seed < 0:
        raise SeedError(f"seed must be 0 or more; got {seed}")

    rng = np.random.default_rng(seed)
    picked = rng.integers(schedules, size=(draws, schedules))
    means = []
    for side in sides:
        cases = side.shape[1]
        weights = rng.multinomial(cases, np.full(cases, 1 / cases), size=draws) / cases
        means.append(np.take_along_axis(weights @ side.T, picked, 1))

    found = spearman(*means)
    found = found[np.isfinite(found)]
    rho = float(spearman(*(side.mean(1) for side in sides)))
    if not np.isfinite(rho) or not len(found):
        return {"rho": None, "low": None, "high": None, "schedules": schedules}

    low, high = np.quantile(found, [0.025, 0.975])
    values = {"rho": rho, "low": float(low), "high": float(high)}
    return {name: round(value, 4) for name, value in values.items()} | {"schedules": schedules}
