"""A bad world is called one when it is made, and when it is played."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from train.reports.verdict import find_faults
from worldmodel.checkpoint import load_info, save_bundle


def report(margin: float = 5.0, turn: float = 0.99, walk: float = 0.97, sharpness: float = 0.7) -> dict[str, Any]:
    fidelity = {"margin_over_copy_last": {"1": 9.0, "4": margin}}
    accuracy = {"dream": {"turn": turn, "walk": walk}}
    return {"measures": {"fidelity": fidelity, "action_accuracy": accuracy, "drift": {"sharpness_ratio": sharpness}}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"margin": 0.4},
            "its frames are hardly more like the truth than a copy of the last one (0.4 dB after 4 frames)",
        ),
        ({"turn": 0.5}, "the picture turns as told in 50% of openings only"),
        ({"walk": 0.79}, "the picture walks as told in 79% of openings only"),
        ({"sharpness": 0.1}, "long dreams blur (10% of the detail of real play)"),
    ],
)
def test_each_fault_is_said(changes: dict[str, float], fault: str) -> None:
    assert find_faults(report()) == []
    assert find_faults(report(**changes)) == [fault]


def test_what_was_not_measured_is_not_held_against_a_world() -> None:
    assert find_faults({}) == []
    found = report(margin=0.0, turn=0.0)
    del found["measures"]["fidelity"], found["measures"]["action_accuracy"]["dream"]["turn"]
    assert find_faults(found) == []


def test_a_poor_world_says_so_when_it_is_played(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import play

    poor = Path(shutil.copytree(bundle, tmp_path / "poor"))
    arguments = ["--checkpoint", str(poor), "--headless", "--frames", "1", "--threads", "1", "--compile", "off"]
    assert play.main([*arguments, "--device", "cpu"]) == 0
    assert "a poor world" not in capsys.readouterr().out
    save_bundle(poor, info={**load_info(poor), "faults": ["long dreams blur"]})
    assert play.main([*arguments, "--device", "cpu"]) == 0
    assert "a poor world: long dreams blur\n" in capsys.readouterr().out
