"""What a bundle says of rewards and ends beside its heads: the rule of its world, and how far to believe the heads.

Owns: both, and reading them from a bundle. Applying the rule is `worldmodel.rewards`'.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldmodel.errors import CheckpointError


@dataclass(frozen=True)
class RewardRule:
    """What a world says of its rewards.

    Attributes:
        apart: what pays is gone then, so that nothing pays twice: a reward nearer than this to where an earlier one was
            paid is none, in the unit of poses; 0 where the world does not say so.
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


@dataclass(frozen=True)
class HeadCalibration:
    """Scale and shift of the logits of the heads that make their probabilities those of what happens (Platt, 1999).

    What the heads decide stays as it is: a reward that comes a step too early is no false one, though a probability
    that is right of every step must be low there.

    Attributes:
        reward: scale and shift of the logit of any reward other than zero.
        terminated: likewise, of an end.
    """

    reward: tuple[float, float] = (1.0, 0.0)
    terminated: tuple[float, float] = (1.0, 0.0)

    @staticmethod
    def of(info: Mapping[str, Any]) -> "HeadCalibration":
        """Return what a bundle carries; one without leaves the probabilities as they are.

        Raises:
            CheckpointError: it is damaged.
        """
        found = info.get("calibration", {})
        try:
            pairs = {name: (float(scale), float(shift)) for name, (scale, shift) in found.items()}
            calibration = HeadCalibration(**pairs)
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the bundle's calibration {found!r} cannot be read: run train.calibrate") from error
        if not all(scale > 0 and math.isfinite(scale) and math.isfinite(shift) for scale, shift in pairs.values()):
            raise CheckpointError(
                f"the bundle's calibration {found!r} has a scale that is not above 0: run train.calibrate"
            )
        return calibration
