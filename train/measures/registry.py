"""Which measures there are, by name; each is imported when it is asked for."""

from train.measures.base import Measure
from worldmodel.errors import ConfigError
from worldmodel.imports import import_class

MEASURES: dict[str, str] = {
    "fidelity": "train.measures.fidelity:Fidelity",
    "action_accuracy": "train.measures.action_accuracy:ActionAccuracy",
    "drift": "train.measures.drift:Drift",
    "heads": "train.measures.heads:Heads",
    "teco": "train.measures.teco:Teco",
    "revisit": "train.measures.revisit:Revisit",
    "long_rollout": "train.measures.long_rollout:LongRollout",
    "place_recall": "train.measures.place_recall:PlaceRecall",
    "targets": "train.measures.targets:TargetsMeasure",
    "rewards": "train.measures.rewards:Rewards",
    "calibration": "train.measures.calibration:Calibration",
    "bold_play": "train.measures.bold_play:BoldPlayMeasure",
    "accumulation": "train.measures.accumulation:Accumulation",
    "bottleneck": "train.measures.bottleneck:Bottleneck",
    "speed": "train.measures.speed:Speed",
    "vector": "train.measures.vector:Vector",
    "memory_costs": "train.measures.memory_costs:MemoryCosts",
    "tradeoff": "train.measures.tradeoff:Tradeoff",
}


def get_measure(name: str) -> Measure:
    """Return a measure.

    Args:
        name: as in `MEASURES`, or "module:class" of one of your own, to be found on the import path.

    Raises:
        ConfigError: no such measure, or what is named is none.
    """
    place = MEASURES.get(name, name)
    if ":" not in place:
        raise ConfigError(
            f"unknown measure {name!r}; there are {', '.join(MEASURES)}, or give module:class of one of your own"
        )
    return import_class(place, Measure, f"measure {name!r}")()
