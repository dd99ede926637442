"""The examples of docs/extend.md: each is taken from the page, saved, and used from the command line as it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from envs.data.episodes import open_shards
from tests.box_room import write_walks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text()
MOST_LINES = 40


def block(language: str, title: str) -> str:
    """Return the code of one block of the page."""
    found = re.findall(rf"^```{language} {title}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks `{language} {title}`"
    return str(found[0])


def run(title: str, folder: Path, instead: dict[str, str] | None = None) -> list[str]:
    """Run the commands of a block in a folder, some words replaced; return what each prints."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    printed = []
    for line in block("bash", title).splitlines():
        words = [(instead or {}).get(word, word) for word in shlex.split(line)]
        assert words[0] == "python"
        command = [sys.executable, *(str(ROOT / word) if word == "play.py" else word for word in words[1:])]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def test_a_world_of_ones_own_is_recorded_and_played(tmp_path: Path) -> None:
    code = block("python", "world")
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "rooms.py").write_text(code)
    recorded, played = run("world", tmp_path)
    assert '"episodes": 40' in recorded and '"frames": 30' in played
    (shard, *_) = open_shards(tmp_path / "recordings" / "rooms")
    assert shard.world == "rooms:Rooms" and shard.action_names == ("stay", "left", "right")
    assert shard.episodes[0].fields == tuple(sorted(("frames", "actions", "rewards", "terminated", "truncated")))


def test_a_measure_of_ones_own_is_taken(tmp_path: Path, bundle: Path) -> None:
    code = block("python", "measure")
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "light.py").write_text(code)
    (printed,) = run(
        "measure",
        tmp_path,
        {"labmaze": str(bundle), "recordings/labmaze": str(write_walks(tmp_path / "walks", "test"))},
    )
    assert "## light:Light" in printed and "Mean brightness: " in printed
    found = json.loads((tmp_path / "runs" / "light" / "report.json").read_text())
    assert found["settings"]["measures"]["light:Light"] == {"dreams": 4, "frames": 16}
    assert found["measures"]["light:Light"]["real"] > 0


@pytest.mark.skipif(not (ROOT / "worldmodel" / "assets" / "labmaze" / "config.json").is_file(), reason="no weights")
def test_a_schedule_is_played(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text(block("json", "schedule"))
    (played,) = run("schedule", tmp_path)
    assert "input_lag_frames" in played and "3 frames" in played
