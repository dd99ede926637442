"""Intervals by drawing again: groups of cases are drawn with replacement, and a figure is made of each draw.

Owns the drawing, as weights of cases, and the percentiles. Knows no figure.
"""

import numpy as np
import torch

NUM_DRAWS = 500


def draw_weights(groups: np.ndarray, rng: np.random.Generator, num_draws: int = NUM_DRAWS) -> torch.Tensor:
    """Draw groups again, as often as there are groups, and return what weight that gives each case.

    Args:
        groups: (cases,) the group of each case, such as its episode; cases of one group are not independent.
        rng: chance.
        num_draws: how often.

    Returns:
        float32 (num_draws, cases), each row sums to 1.
    """
    names = np.unique(groups)
    members = torch.from_numpy(groups[None] == names[:, None]).float()
    chances = np.full(len(names), 1 / len(names))
    draws = torch.from_numpy(rng.multinomial(len(names), chances, size=num_draws)).float()
    weights = draws @ members
    return weights / weights.sum(1, keepdim=True)


def find_interval(values: torch.Tensor) -> torch.Tensor:
    """Return the 2.5 and 97.5 percentiles (2, ...) of the figures (num_draws, ...) of all draws."""
    return torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0)


def mean_interval(values: torch.Tensor, seed: int) -> list[float]:
    """Return the 95% interval of the mean of `values` (N,), by drawing them again 1000 times."""
    rng = np.random.default_rng([seed, 8])
    draws = values.numpy()[rng.integers(0, len(values), (1000, len(values)))].mean(1)
    return [round(float(v), 3) for v in np.quantile(draws, [0.025, 0.975])]
