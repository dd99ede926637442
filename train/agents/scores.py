"""Scores of agents: means with intervals over seeds and episodes, and the share of a gap that is closed.

Owns: the drawing anew of seeds, and of episodes within each. Knows no world and no agent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from worldmodel.analysis.bootstrap import find_interval

NUM_DRAWS = 2000
ROLES = ("trained", "control", "random")
"""Who is compared: learned in the world in question, learned in the judge's world, and acts by chance."""


def draw_means(rows: Mapping[str, np.ndarray], seed: int = 0, num_draws: int = NUM_DRAWS) -> dict[str, np.ndarray]:
    """Draw seeds, and episodes within each, with replacement, and return the means of each agent.

    Agents share the draws: those of one seed have played the same episodes.

    Args:
        rows: by agent, (seeds, episodes), all of one shape.
        seed: of the draws.
        num_draws: how many.

    Returns:
        by agent, (num_draws,).
    """
    count, num_episodes = next(iter(rows.values())).shape
    rng = np.random.default_rng([seed, 14])
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(num_draws):
        seeds = rng.integers(count, size=(count, 1))
        episodes = rng.integers(num_episodes, size=(count, num_episodes))
        for name, values in rows.items():
            found[name].append(float(values[seeds, episodes].mean()))
    return {name: np.array(means) for name, means in found.items()}


def find_bounds(draws: np.ndarray) -> list[float]:
    """Return the 2.5 and 97.5 percentiles of figures (num_draws,)."""
    return [round(float(bound), 3) for bound in find_interval(torch.from_numpy(draws))]


def summarize(returns: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Return mean returns with 95% intervals, and how much of the gap from random to real the dream has closed.

    Args:
        returns: by agent, a row a seed with a value an episode; "trained", "control" and "random" make the share.

    Returns:
        ready for JSON: `agents` (name -> mean, interval, seeds: the mean of each), and `gap_closed` (share, interval),
        None where an agent is missing or the gap is not above 0; the interval is None where a draw has no gap.
    """
    rows = {name: np.array(values, float) for name, values in returns.items()}
    draws = draw_means(rows)
    agents = {
        name: {
            "mean": round(float(values.mean()), 4),
            "interval": find_bounds(draws[name]),
            "seeds": [round(float(mean), 4) for mean in values.mean(1)],
        }
        for name, values in rows.items()
    }
    if not set(ROLES) <= set(rows):
        return {"agents": agents, "gap_closed": None}

    gap = rows["control"].mean() - rows["random"].mean()
    gaps = draws["control"] - draws["random"]
    if gap <= 0:
        return {"agents": agents, "gap_closed": None}
    share = (rows["trained"].mean() - rows["random"].mean()) / gap
    interval = find_bounds((draws["trained"] - draws["random"]) / gaps) if (gaps > 0).all() else None
    return {"agents": agents, "gap_closed": {"share": round(float(share), 3), "interval": interval}}
