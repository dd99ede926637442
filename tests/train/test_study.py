"""The study of memory structures: every row trains, is measured and reported at tiny size; a study goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.painted_maze import ROOM, dress, turn_away, write_turns
from train.measures.place_classifier import load_or_train
from train.reports.study import margin, recall, write_report
from train.study import GRID, OURS, OWN_FRAMES, StudyOptions, run_study, take_few
from worldmodel.errors import ConfigError

PAPER_ROWS = 15


def test_the_grid_is_the_paper_s_and_ours() -> None:
    """PAPER.md, section 4: three plain and four compressed rows for each of two structures, and cross attention."""
    of_paper = [s for s in GRID if s.paper is not None]
    assert len(of_paper) == PAPER_ROWS
    assert {s.memory_frames for s in of_paper if s.compression != "none"} == {48}
    assert {s.budget for s in of_paper if s.compression == "joint"} == {8, 16, 32, 48}
    assert {s.budget for s in of_paper if s.compression == "modulated"} == {8, 16, 32, 48}
    assert [s.name for s in GRID if s.paper is None] == [OURS, "prepend-112-by-time"]
    assert len({s.name for s in GRID}) == len(GRID) and OWN_FRAMES >= 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": "prepend-16,lstm"}, "unknown structures .*lstm"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"minutes": float("nan")}, "minutes must be above 0"),
        ({"cases": 0}, "cases must be at least 1"),
        ({"clip_frames": 8}, "clip_frames must be at least 16"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudyOptions(**changes)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyOptions, Path]:
    """A study of two structures on painted rooms, a few steps each."""
    folder = tmp_path_factory.mktemp("study")
    data = folder / "data"
    rooms = [dress(ROOM, np.roll([1, 3, 5, 7], i).tolist(), 1 + i % 2) for i in range(4)]
    for split in ("train", "test"):
        write_turns(data, [turn_away(110)] * 4, rooms, split)
    work = folder / "work"
    load_or_train(data, work / "textures.safetensors", num_steps=60, batch_size=64)

    options = StudyOptions(
        out=folder / "report",
        work=work,
        data=data,
        needle_data=data,
        minutes=0.02,
        steps=2,
        clip_frames=48,
        own_clip_frames=96,
        batch_size=2,
        only=f"{OURS},prepend-16",
        cases=2,
        control_cases=1,
        decay_cases=2,
        schedule_cases=2,
        features=False,
        denoising_steps=1,
        compile=False,
        device="cpu",
    )
    run_study(options)
    return options, folder


@pytest.mark.slow
def test_every_structure_chosen_is_reported(studied: tuple[StudyOptions, Path]) -> None:
    options, folder = studied
    report = json.loads((folder / "report" / "results.json").read_text())
    assert [r["structure"]["name"] for r in report["results"]] == [OURS, "prepend-16"]
    assert {r["training"]["steps"] for r in report["results"]} == {options.steps}
    for result in report["results"]:
        assert {"short_memory", "shuffled_memory", "truth", "codec", "copy_last"} == set(result["needle"]["controls"])
        assert len(result["decay"]["segments"]) == 4
    tables = (folder / "report" / "tables.md").read_text()
    assert "| prepend-16 |" in tables and ".52 / 0.03 / 0.00" in tables
    assert (folder / "report" / "pareto.png").stat().st_size > 5000
    schedules = folder / "report" / "schedules"
    assert (schedules / "accumulation" / "prediction.png").stat().st_size > 5000
    settings = json.loads((schedules / "report.json").read_text())["settings"]["measures"]["accumulation"]
    assert settings["cases"] == options.schedule_cases and "fifo:8" in (schedules / "report.md").read_text()


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(studied: tuple[StudyOptions, Path]) -> None:
    options, folder = studied
    kept = {path: path.stat().st_mtime_ns for path in sorted(options.work.rglob("*.safetensors"))}
    (options.work / "prepend-16" / "result.json").unlink()
    run_study(options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was trained again
    assert (options.work / "prepend-16" / "result.json").is_file()


def result_of(name: str, rates: list[float], psnr: list[float], memory: str = "prepend") -> dict[str, Any]:
    bins = {
        span: {"rate": rate, "low": rate, "high": rate, "cases": 9, "ssim": 0.5}
        for span, rate in zip(("0-16", "16-48", "48-112", "112-300"), [*rates, 0.0], strict=True)
    }
    structure = {"name": name, "memory": memory, "paper": None}
    needle = {"bins": bins, "controls": {"short_memory": bins}, "scenes": 3, "classifier": {"accuracy": 0.99}}
    segments = [{"psnr": value} for value in psnr]
    return {
        "structure": structure,
        "needle": needle | {"constant_guess": dict.fromkeys(bins, 0.1)},
        "decay": {"segments": segments, "decay_db": psnr[0] - psnr[-1], "curves": {"psnr": [20.0, 19.0, 18.0, 17.0]}},
        "copy_last_psnr": [15.0, 14.0, 13.5, 12.0],
        "cost": {"parameters": 1_000_000, "bytes_a_dream": 2048, "flops_a_call": 10_500_000},
        "training": {"frames": 5000, "minutes": 1.0},
    }


def test_recall_margin_and_files_of_a_report(tmp_path: Path) -> None:
    results = [result_of("a", [0.5, 0.4, 0.3], [14.0, 12.0]), result_of("b", [0.1, 0.1, 0.1], [15.0, 14.5], "cross")]
    assert recall(results[0]) == pytest.approx(0.4)
    assert margin(results[0]) == pytest.approx(5.0)
    write_report(tmp_path, results, {"steps_of_each": 7})
    assert "| a | 14.0 / 12.0 | 2.0 | 5.0 | 1.00 M | 10.5 | 2 | 5,000 | 1.0 |" in (tmp_path / "tables.md").read_text()


def test_few_cases_of_every_bin() -> None:
    class Case:
        def __init__(self, distance: int) -> None:
            self.distance = distance

    cases: Any = [Case(d) for d in (1, 16, 17, 48, 49, 112, 113, 300)]
    assert [case.distance for case in take_few(cases, 1)] == [1, 17, 49, 113]
