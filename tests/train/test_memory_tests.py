"""The program: tests made, run on a checkpoint, and a report that says what there is; its exit status."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.memory_sessions import see_room, spin_poses, write_session, write_spins
from train.memory_tests import main, program
from worldmodel.errors import CheckpointError, ConfigError, DataError

QUICK = ["--device", "cpu", "--no-features"]


@pytest.fixture(scope="module")
def spins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_spins(tmp_path_factory.mktemp("spins"), 2, pairs=((0, 60), (2, 62), (4, 64)))
    frames = see_room(spin_poses(9, 51))
    write_session(folder / "walk.h5", frames, [3] * 50, [(12, 50)], kind="player", source="dream")
    return folder


@pytest.fixture(scope="module")
def out(spins: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a tiny untrained world, twice, by two names."""
    out = tmp_path_factory.mktemp("report")
    main(["run", "--tests", str(spins), "--checkpoint", str(bundle), "--out", str(out), *QUICK])
    return out


def test_the_report_has_what_is_asked_for(out: Path, bundle: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert list(report["rows"]) == [
        "real world",
        "as played",
        "world",
        "world, pairs of other tests",
        "world, memory of 16 frames",
        "a picture that stands still",
        "pictures of noise",
    ]
    rows = report["rows"]
    assert [rows[name]["role"] for name in ("real world", "pictures of noise", "world")] == [
        "ceiling",
        "control",
        "checkpoint",
    ]
    assert rows["real world"]["passes"] and rows["real world"]["overall"]["psnr"]["mean"] == 50
    assert rows["real world"]["overall"]["tests"] == 2 and rows["as played"]["overall"]["tests"] == 1
    for name in ("a picture that stands still", "pictures of noise"):
        assert rows[name]["passes"] is False and rows[name]["why_not"]
    assert "passes" not in rows["world, pairs of other tests"]
    assert rows["world"]["passes"] is report["passes"] is False
    assert {"psnr", "ssim", "truth_psnr", "truth_ssim", "margin", "action_accuracy"} <= set(rows["world"]["overall"])
    assert rows["world"]["by_kind"]["spin"]["48-112"]["pairs"] == 6
    assert rows["world"]["by_kind"]["player"]["16-48"]["tests"] == 1
    assert rows["world"]["by_way"]["replay"]["pairs"] == 7
    assert report["contexts"] == {"spin-00000": 32, "spin-00001": 32, "walk": 32}
    assert report["skipped"]["perceptual"] == "--no-features was given"
    assert report["skipped"]["places"] == "no recording teaches what places look like: give --teacher"
    assert (report["tests"], report["pairs"], report["real_tests"]) == (3, 7, 2)
    assert report["command"].startswith("python -m train.memory_tests run --tests")
    text = (out / "report.md").read_text()
    for word in ("# Tests of memory", "| real world | 50.0 (50.0 to 50.0)", "spin, 48-112", "replay (7 pairs)"):
        assert word in text
    assert "perceptual is left out: --no-features was given" in text and "- places right:" not in text
    truth = text[text.index("## PSNR to the truth") :].splitlines()[2]
    assert "| world |" in truth and "real world" not in truth and "pairs of other tests" not in truth


def test_the_page_needs_nothing_else(out: Path) -> None:
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) >= 3 * 2 * 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    for word in (
        "spin: two full turns",
        "player: as recorded",
        "given",
        "dreamt",
        "memory of 16 frames",
        "does not pass",
    ):
        assert word in page


def test_equal_seeds_give_equal_reports(out: Path, spins: Path, bundle: Path, tmp_path: Path) -> None:
    main(["run", "--tests", str(spins), "--checkpoint", str(bundle), "--out", str(tmp_path), *QUICK, "--no-floors"])
    rows, again = (json.loads((folder / "report.json").read_text())["rows"] for folder in (out, tmp_path))
    assert again == {name: found for name, found in rows.items() if name != "world, memory of 16 frames"}


def test_the_exit_status_says_what_was_missed(
    spins: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--tests", str(spins / "spin-00000.h5"), "--checkpoint", str(bundle), "--out", str(tmp_path)]
    words += [*QUICK, "--no-floors"]
    for threshold in ("psnr=49", "psnr=1"):  # the second is met; but a world that does not pass, does not
        monkeypatch.setattr(sys, "argv", ["memory_tests", *words, "--threshold", threshold])
        with pytest.raises(SystemExit) as ended:
            program()
        assert ended.value.code == 1
        report = json.loads((tmp_path / "report.json").read_text())
        assert bool(report["rows"]["world"]["missed"]) is (threshold == "psnr=49")
    for wrong, message in (
        (["--threshold", "sharpness=1"], "--threshold 'sharpness=1' is not accepted"),
        (["--tests", "nowhere"], "error: no folder nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["memory_tests", *words, *wrong])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            program()
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_bad_input_is_one_error(spins: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str, tests: Path = spins, checkpoint: str = str(bundle)) -> None:
        main(["run", "--tests", str(tests), "--checkpoint", checkpoint, "--out", str(tmp_path / "out"), *QUICK, *words])

    with pytest.raises(CheckpointError, match="atlantis"):
        run(checkpoint="atlantis")
    with pytest.raises(DataError, match="no folder"):
        run(tests=tmp_path / "none")
    with pytest.raises(SystemExit, match="2"):
        run("--batch-size", "0")
    assert "batch_size must be at least 1; got 0" in capsys.readouterr().err
    other = write_session(tmp_path / "other.h5", np.zeros((50, 16, 16, 3), np.uint8), [1] * 49, [(5, 40)])
    with pytest.raises(DataError, match="has frames of 16 pixels; .* makes 32"):
        run(tests=other)
    with pytest.raises(ConfigError, match="unknown command 'walk'; there are make, run, export, import, each with"):
        main(["walk"])
    with pytest.raises(ConfigError, match="unknown kind 'walk'; there are spin"):
        main(["make", "--out", str(tmp_path / "made"), "--kinds", "walk"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "made").exists()


@pytest.mark.slow
def test_the_real_maze_from_nothing_to_a_report(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    tests, out = tmp_path / "tests", tmp_path / "out"
    main(["make", "--out", str(tests), "--kinds", "spin", "loop", "--count", "2", "--image-size", "32"])
    main(["run", "--tests", str(tests), "--checkpoint", str(bundle), "--out", str(out), "--device", "cpu"])
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert rows["real world"]["passes"] and not rows["world"]["passes"]
    assert rows["real world"]["overall"]["psnr"]["mean"] > 45
    assert rows["world"]["overall"]["psnr"]["mean"] < 30
    main(["export", "--tests", str(tests), "--format", "memory_maze", "--out", str(tmp_path / "theirs")])
    assert len(list((tmp_path / "theirs").glob("*.npz"))) == 4
