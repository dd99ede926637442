"""Fine-tuning on what was played: which files are learned from, and a bundle that can be played comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.data.episodes import open_shards
from envs.data.session_writer import SessionWriter
from envs.data.sessions import SessionInfo
from envs.fields import POSE, Field
from envs.worlds.labmaze.constants import ACTIONS
from train.finetuning.options import FineTuneOptions
from train.finetuning.sessions import take_sessions
from worldmodel.errors import ConfigError, DataError

SIZE = 16
WANTED: dict[str, Any] = {"world": "LabMaze", "action_names": ACTIONS.names, "image_size": SIZE, "least_frames": 8}


def play(folder: Path, name: str, steps: int = 12, source: str = "real", **changes: Any) -> None:
    """Write a session; `fields` None leaves poses out."""
    settings = {"world": "LabMaze", "action_names": ACTIONS.names, "image_size": SIZE, "fps": 15.0, "source": source}
    has_pose = changes.pop("has_pose", True)
    info = SessionInfo(**{**settings, **changes})
    fields: dict[str, Field] = {"pose": POSE} if has_pose else {}
    writer = SessionWriter(folder / f"{name}.h5", info, fields)
    frame = np.zeros((info.image_size, info.image_size, 3), np.uint8)
    values = {"pose": [0.0, 0.0, 0.0]} if has_pose else {}
    writer.begin(frame, start={"seed": 0}, values=values)
    for _ in range(steps):
        writer.add(1, frame, 0.0, False, False, values)
    writer.close()


def test_dreams_are_taken_as_truth_only_where_that_is_asked_for(tmp_path: Path) -> None:
    play(tmp_path / "plays", "a")
    play(tmp_path / "plays", "b", source="dream")
    facts = take_sessions(tmp_path / "plays", tmp_path / "out", **WANTED, dreams=False)
    assert facts == {"files": 1, "frames": 13, "dreams_left_out": 1}
    assert [shard.settings["source"] for shard in open_shards(tmp_path / "out")] == ["real"]
    facts = take_sessions(tmp_path / "plays", tmp_path / "out", **WANTED, dreams=True)
    assert facts == {"files": 2, "frames": 26, "dreams_left_out": 0}
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["train-00000.h5", "train-00001.h5"]


def test_what_a_killed_player_left_behind_is_taken_too(tmp_path: Path) -> None:
    play(tmp_path / "plays", "a")
    (tmp_path / "plays" / "a.h5").rename(tmp_path / "a.h5")
    info = SessionInfo("LabMaze", ACTIONS.names, SIZE, 15.0, "real")
    writer = SessionWriter(tmp_path / "plays" / "b.h5", info, {"pose": POSE})
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    writer.begin(frame, start={}, values={"pose": [0.0, 0.0, 0.0]})
    for _ in range(9):
        writer.add(1, frame, 0.0, False, False, {"pose": [0.0, 0.0, 0.0]})
    content = (tmp_path / "plays" / "b.journal").read_bytes()
    writer.close()
    (tmp_path / "plays" / "b.h5").unlink()
    (tmp_path / "plays" / "b.journal").write_bytes(content[:-5])
    assert take_sessions(tmp_path / "plays", tmp_path / "out", **WANTED, dreams=False)["frames"] == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "dream"}, "holds no session to learn from .all 1 are dreams.* --take-dreams"),
        ({"world": "Other"}, "has world Other; the world has LabMaze"),
        ({"action_names": ("stay", "go")}, "has actions .'stay', 'go'."),
        ({"image_size": 32}, "has frames 32; the world has 16"),
        ({"has_pose": False}, "has no poses"),
        ({"steps": 3}, "has 4 frames, a clip 8: play longer without a reset, or give a smaller --clip-frames"),
    ],
)
def test_what_cannot_be_learned_from_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    play(tmp_path / "plays", "a", **changes)
    with pytest.raises(DataError, match=message):
        take_sessions(tmp_path / "plays", tmp_path / "out", **WANTED, dreams=False)


def test_a_folder_without_sessions_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder .*: play with --record"):
        take_sessions(tmp_path / "none", tmp_path / "out", **WANTED, dreams=False)
    with pytest.raises(DataError, match="it has none"):
        take_sessions(tmp_path, tmp_path / "out", **WANTED, dreams=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give --deadline in seconds or --minutes, one of them"),
        ({"deadline": 5.0, "minutes": 1.0}, "one of them"),
        ({"minutes": 1.0, "sessions": Path("a"), "data": Path("b")}, "--sessions and --data both"),
        ({"minutes": 1.0, "take_dreams": True}, "give --sessions too"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        FineTuneOptions(world="labmaze", out=tmp_path, **changes)
    assert FineTuneOptions(world="labmaze", out=tmp_path, minutes=2.0).total_s == 120
