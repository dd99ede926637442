"""The dial: a row for every setting, with what it costs and gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.painted_maze import ROOM, dress, turn_away, write_turns
from train.dial import DialOptions, as_table, plot_trade, run_dial
from worldmodel.errors import ConfigError


def test_every_setting_has_a_row(bundle: Path, tmp_path: Path) -> None:
    write_turns(tmp_path / "data", [turn_away(60)] * 2, [dress(ROOM, (0, 1, 2, 3))] * 2)
    options = DialOptions(
        checkpoint=str(bundle),
        data=tmp_path / "data",
        out=tmp_path / "out",
        steps=(1, 2),
        memory=(2, 6),
        cases=2,
        context=8,
        needles=0,
        device="cpu",
    )
    report = run_dial(options)
    assert [(row["steps"], row["memory"]) for row in report["rows"]] == [(1, 2), (2, 2), (1, 6), (2, 6)]
    assert report["rows"][0]["dream_bytes"] < report["rows"][2]["dream_bytes"]
    assert all(row["step_ms"] > 0 and row["psnr"].keys() == {"1", "4", "16", "64"} for row in report["rows"])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"] == report["rows"]
    assert len((tmp_path / "out" / "dial.md").read_text().splitlines()) == 6


def test_the_table_and_the_plot_show_recall(tmp_path: Path) -> None:
    row: dict[str, Any] = {"steps": 2, "memory": 16, "step_ms": 20.0, "dream_bytes": 2048, "decay_db": 3.0}
    row |= {"sharpness": 0.5, "psnr": {"1": 25.0, "4": 20.0, "16": 15.0, "64": 12.0}}
    rows = [{**row, "recall": {"0-16": 0.9, "16-48": None}}, {**row, "memory": 99, "recall": {"0-16": 1, "16-48": 0.5}}]
    line = as_table(rows).splitlines()[2]
    assert line == "| 2 | 16 | 50 | 2 | 25.0 / 20.0 / 15.0 / 12.0 | 3.0 | 0.50 | 0.90 | - |"
    plot_trade(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        DialOptions(checkpoint="", data=tmp_path, out=tmp_path, steps=())
    for setting in ("2", "2:x", "0:5"):
        with pytest.raises(ConfigError, match="settings"):
            DialOptions(checkpoint="", data=tmp_path, out=tmp_path, settings=("1:9", setting))
    pairs = DialOptions(checkpoint="", data=tmp_path, out=tmp_path, settings=("1:9", "2:7")).pairs()
    assert pairs == [(1, 9), (2, 7)]
    with pytest.raises(ConfigError, match="needles"):
        DialOptions(checkpoint="", data=tmp_path, out=tmp_path, needles=-1)
