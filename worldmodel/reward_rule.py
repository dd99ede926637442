"""When a world pays and ends by its own words, beside what the heads of a network say of it.

Owns: the rule, and reading it from a bundle. Applying it is `worldmodel.rewards`'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldmodel.errors import CheckpointError


@dataclass(frozen=True)
class RewardRule:
    """What a world says of its rewards.

    Attributes:
        apart: what pays is gone then, so that nothing pays twice: a reward nearer than this to the place of an earlier
            one is none, in the unit of poses; 0 where the world does not say so.
        ends_after: rewards after which an episode ends; 0 where it does not.
    """

    apart: float = 0.0
    ends_after: int = 0

    @staticmethod
    def of(info: Mapping[str, Any]) -> "RewardRule":
        """Return the rule that a bundle carries; one without says nothing.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            rule = RewardRule(**info.get("reward_rule", {}))
            is_fine = rule.apart >= 0 and rule.ends_after >= 0
        except TypeError:
            is_fine = False
        if not is_fine:
            raise CheckpointError(f"the bundle's reward_rule {info['reward_rule']!r} cannot be read: make it again")
        return rule
