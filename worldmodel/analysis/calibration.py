"""Whether probabilities can be believed: log-loss, how often what is predicted happens, and what would mend it.

Owns: scores of predicted probabilities and Platt's fit. Does not know who predicts, or what.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

EDGES = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_TINY = 1e-6


@dataclass(frozen=True)
class Predicted:
    """Probabilities of N events, and what became of them.

    Attributes:
        probability: float (N,), in [0, 1].
        happened: bool (N,).
        weight: float (N,), what each counts for.
    """

    probability: torch.Tensor
    happened: torch.Tensor
    weight: torch.Tensor

    @property
    def logits(self) -> torch.Tensor:
        """The logits of the probabilities, float64 (N,), kept finite."""
        return torch.logit(self.probability.double(), eps=_TINY)


def log_loss(predicted: Predicted, logits: torch.Tensor | None = None) -> float:
    """Return the mean negative log-likelihood of what happened, in nats; `logits` (N,) in place of those predicted."""
    found = predicted.logits if logits is None else logits.double()
    losses = F.binary_cross_entropy_with_logits(found, predicted.happened.double(), reduction="none")
    weight = predicted.weight.double()
    return float((losses * weight).sum() / weight.sum())


def score_probabilities(predicted: Predicted) -> dict[str, Any]:
    """Return the log-loss beside that of always predicting the rate, and what happened by what was predicted.

    Returns:
        `log_loss`, `log_loss_of_rate`, `rate`, `count` and `bins`: for each of `EDGES` with something in it `low`,
        `high`, `predicted` and `happened` (weighted means), and `count`.
    """
    weight = predicted.weight.double()
    happened, probability = predicted.happened.double(), predicted.probability.double()
    rate = float((happened * weight).sum() / weight.sum())
    always = torch.logit(torch.full_like(probability, rate), eps=_TINY)
    bins = []
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        is_in = (probability >= low) & ((probability < high) | (high == 1.0))
        if is_in.any():
            mean = {
                name: float((values * weight)[is_in].sum() / weight[is_in].sum())
                for name, values in (("predicted", probability), ("happened", happened))
            }
            bins.append({"low": low, "high": high, **mean, "count": int(is_in.sum())})
    return {
        "log_loss": log_loss(predicted),
        "log_loss_of_rate": log_loss(predicted, always),
        "rate": rate,
        "count": int(predicted.happened.sum()),
        "bins": bins,
    }


def fit_platt(predicted: Predicted, steps: int = 100) -> tuple[float, float]:
    """Return the scale, above 0, and the shift of the logits that make what happened likeliest (Platt, 1999).

    Args:
        predicted: with at least one event that happened and one that did not, else (1, 0) is returned.
        steps: of L-BFGS.
    """
    if predicted.happened.all() or not predicted.happened.any():
        return 1.0, 0.0
    logits, target = predicted.logits, predicted.happened.double()
    weight = predicted.weight.double() / predicted.weight.double().sum()
    log_scale, shift = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(log_scale.exp() * logits + shift, target, weight, reduction="sum")
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_scale.detach().exp()), float(shift.detach())
