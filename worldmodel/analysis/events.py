"""Whether predicted events, such as rewards and endings, are those that happen: precision, recall and F1.

Owns: the scores. Does not know who predicts.
"""

import torch
from torch.nn import functional as F

EVENT_SLACK = 2  # steps by which a predicted event may miss the true one


def score_events(
    predicted: torch.Tensor, true: torch.Tensor, slack: int = EVENT_SLACK
) -> dict[str, float | int | None]:
    """Return precision, recall and F1 of predicted events; one may miss a true one by `slack` steps.

    Args:
        predicted: bool (B, N).
        true: bool (B, N).
        slack: steps.

    Returns:
        with the counts; None where nothing was predicted, nothing was there, or both.
    """

    def widen(events: torch.Tensor) -> torch.Tensor:
        return F.max_pool1d(events[:, None].float(), 2 * slack + 1, 1, slack)[:, 0] > 0

    num_predicted, num_true = int(predicted.sum()), int(true.sum())
    precision = int((predicted & widen(true)).sum()) / num_predicted if num_predicted else None
    recall = int((true & widen(predicted)).sum()) / num_true if num_true else None

    f1: float | None = None
    if precision is not None and recall is not None:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "predicted": num_predicted, "true": num_true}
