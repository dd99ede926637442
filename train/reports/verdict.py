"""What a report says against a world, in plain words, so that nobody takes a rehearsal for a world to play in.

Owns: the bounds. Measures nothing; what was not measured is not held against a world.
"""

from typing import Any

LEAST_MARGIN_DB = 1.0
"""Of dreams over a copy of the last context frame, at `MARGIN_FRAME`: below it they have hardly learned to move."""
MARGIN_FRAME = "4"
LEAST_ACCURACY = 0.8
"""Share of openings where the picture turns, or walks, as it is told."""
LEAST_SHARPNESS = 0.15
"""Gradient energy over that of real play, late in long dreams."""


def find_faults(report: dict[str, Any]) -> list[str]:
    """Return what is wrong with a world by a report of `train.evaluate`, a sentence each; empty: nothing found.

    Args:
        report: as in report.json; measures that it lacks are passed over.
    """
    measures = report.get("measures", {})
    faults = []
    margins = measures.get("fidelity", {}).get("margin_over_copy_last", {})
    margin = margins.get(MARGIN_FRAME)
    if margin is not None and margin < LEAST_MARGIN_DB:
        faults.append(
            f"its frames are hardly more like the truth than a copy of the last one ({margin:.1f} dB after "
            f"{MARGIN_FRAME} frames)"
        )
    accuracy = measures.get("action_accuracy", {}).get("dream", {})
    for name, words in (("turn", "turns"), ("walk", "walks")):
        share = accuracy.get(name)
        if share is not None and share < LEAST_ACCURACY:
            faults.append(f"the picture {words} as told in {share:.0%} of openings only")
    sharpness = measures.get("drift", {}).get("sharpness_ratio")
    if sharpness is not None and sharpness < LEAST_SHARPNESS:
        faults.append(f"long dreams blur ({sharpness:.0%} of the detail of real play)")
    return faults
