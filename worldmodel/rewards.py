"""The rewards that dreams have had, and what the rule of their world makes of those to come.

Owns: what of earlier rewards a dream must keep. Knows no network and no world: a bundle carries the rule of its world.
"""

from dataclasses import dataclass

import torch

from worldmodel.reward_rule import RewardRule

NUM_PLACES = 64  # of the last rewards
_FAR = 1e4  # where no reward was, cells


@dataclass(frozen=True)
class RewardLog:
    """The rewards that B dreams have had; never changed, a step makes another one.

    Attributes:
        places: float32 (B, `NUM_PLACES`, 2), x, y where they were paid, or would have been again; far away where empty.
        written: int64 (B,), places written so far.
        count: int64 (B,), rewards.
    """

    places: torch.Tensor
    written: torch.Tensor
    count: torch.Tensor

    @staticmethod
    def empty(batch: int, device: torch.device | str | None = None) -> "RewardLog":
        """Return the log of dreams that have had none."""
        places = torch.full((batch, NUM_PLACES, 2), _FAR, dtype=torch.float32, device=device)
        written, count = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
        return RewardLog(places, written, count)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parts by name, not copied."""
        return {"places": self.places, "written": self.written, "count": self.count}

    def to(self, device: torch.device | str) -> "RewardLog":
        """Return it on a device."""
        return RewardLog(*(part.to(device) for part in self.tensors().values()))

    def select(self, rows: torch.Tensor) -> "RewardLog":
        """Return that of some dreams, int64 (n,)."""
        return RewardLog(*(part[rows] for part in self.tensors().values()))

    def put(self, rows: torch.Tensor, other: "RewardLog") -> "RewardLog":
        """Return it with that of the dreams of `rows`, int64 (n,), replaced."""
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        return RewardLog(*(mine.index_copy(0, rows, theirs) for mine, theirs in pairs))

    def renew(self, is_new: torch.Tensor) -> "RewardLog":
        """Return it with that of the dreams where bool (B,) holds empty."""
        places = self.places.masked_fill(is_new[:, None, None], _FAR)
        return RewardLog(places, self.written.masked_fill(is_new, 0), self.count.masked_fill(is_new, 0))


def settle(
    rule: RewardRule, log: RewardLog, rewards: torch.Tensor, poses: torch.Tensor | None
) -> tuple[RewardLog, torch.Tensor, torch.Tensor]:
    """Take the rewards of a step into the log.

    Args:
        rule: of the world.
        log: of B dreams.
        rewards: float32 (B,), as the head says; one other than 0 is a reward.
        poses: float32 (B, 5), where the dreams stand; None where they do not reckon, so that only the count is ruled.

    The place of a reward that is none is logged too: who goes on walking about a thing that does not go away is not
    paid again on its other side.

    Returns:
        the log after the step; bool (B,), where a reward is none as it was paid before; and bool (B,), where the
        episode is over.
    """
    pays = rewards != 0
    is_repeated = torch.zeros_like(pays)
    here = log.places.new_full((len(pays), 2), _FAR) if poses is None else poses[:, :2].float()
    if rule.apart > 0 and poses is not None:
        is_repeated = pays & ((log.places - here[:, None]).square().sum(-1) < rule.apart**2).any(1)
    slot = torch.arange(NUM_PLACES, device=pays.device) == (log.written % NUM_PLACES)[:, None]
    places = torch.where((slot & pays[:, None])[..., None], here[:, None], log.places)
    log = RewardLog(places, log.written + pays, log.count + (pays & ~is_repeated))
    is_over = log.count >= rule.ends_after if rule.ends_after else torch.zeros_like(pays)
    return log, is_repeated, is_over
