"""The trade-off: a row for every setting, with what it costs and gives."""

from pathlib import Path
from typing import Any

import pytest

from envs.data.episodes import open_shards
from envs.worlds.labmaze.spec import LabMaze
from tests.painted_maze import ROOM, dress, turn_away, write_turns
from train.data.clips import list_episodes
from train.evaluate import evaluate_world, read_measures
from train.measures.base import Bench
from train.measures.place_classifier import load_or_train
from train.measures.tradeoff import Tradeoff, TradeoffOptions, plot_tradeoff
from worldmodel.errors import CompileError, ConfigError, DataError
from worldmodel.world import WorldModel

FEW: dict[str, Any] = {"steps": "1,2", "memory": "2,6", "cases": 2, "context": 8, "timed_frames": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two held-out episodes of painted rooms, and none to train on."""
    return write_turns(tmp_path_factory.mktemp("turns"), [turn_away(60)] * 2, [dress(ROOM, (0, 1, 2, 3))] * 2)


@pytest.fixture
def bench(bundle: Path, data: Path, tmp_path: Path) -> Bench:
    episodes = list_episodes(open_shards(data, "test"))
    return Bench(WorldModel.load(bundle, device="cpu"), LabMaze(), episodes, data, tmp_path)


def test_every_setting_has_a_row(bench: Bench) -> None:
    found = Tradeoff().run(bench, TradeoffOptions(**FEW, recall_cases=0))
    rows = found["rows"]
    assert [(row["steps"], row["memory"]) for row in rows] == [(1, 2), (2, 2), (1, 6), (2, 6)]
    assert rows[0]["dream_bytes"] < rows[2]["dream_bytes"]
    assert all(row["step_ms"] > 0 and row["psnr"].keys() == {"1", "4", "16", "64"} for row in rows)
    assert len(Tradeoff().lines(found)) == 2 + 4 + 2
    assert (bench.model.config.num_steps, bench.model.memory_frames) == (2, 6)  # as it was


@pytest.mark.slow
def test_it_is_taken_with_recall_in_a_rehearsal(bundle: Path, data: Path, tmp_path: Path) -> None:
    teacher = write_turns(tmp_path / "teacher", [turn_away(60)] * 2, [dress(ROOM, (0, 1, 2, 3))] * 2, "train")
    load_or_train(teacher, tmp_path / "tradeoff" / "places.safetensors", held_out=data, num_steps=60, batch_size=64)
    texts = (f"tradeoff.train_data={teacher}", "tradeoff.memory=6")
    measures = read_measures(("tradeoff",), texts, quick=True)
    report = evaluate_world(WorldModel.load(bundle, device="cpu"), tmp_path, measures, data=data)
    rows = report["measures"]["tradeoff"]["rows"]
    assert [(row["steps"], row["memory"]) for row in rows] == [(1, 6), (2, 6)]
    assert all(any(rate is not None for rate in row["recall"].values()) for row in rows)
    assert "recall D 0-16" in (tmp_path / "report.md").read_text()
    assert {path.name for path in (tmp_path / "tradeoff").iterdir()} == {"places.safetensors", "recall_and_decay.png"}


def test_the_table_and_the_plot_show_recall(tmp_path: Path) -> None:
    row: dict[str, Any] = {"steps": 2, "memory": 16, "step_ms": 20.0, "dream_bytes": 2048, "decay_db": 3.0}
    row |= {"sharpness": 0.5, "psnr": {"1": 25.0, "4": 20.0, "16": 15.0, "64": 12.0}}
    rows = [{**row, "recall": {"0-16": 0.9, "16-48": None}}, {**row, "memory": 99, "recall": {"0-16": 1, "16-48": 0.5}}]
    line = Tradeoff().lines({"rows": rows, "machine": "this one"})[2]
    assert line == "| 2 | 16 | 50 | 2 | 25.0 / 20.0 / 15.0 / 12.0 | 3.0 | 0.50 | 0.90 | - |"
    plot_tradeoff(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_what_is_missing_is_said_before_anything_is_dreamt(bench: Bench, shard_writer: Any, tmp_path: Path) -> None:
    def check(bench: Bench, **changes: Any) -> None:
        Tradeoff().check(bench, TradeoffOptions(**{**FEW, "recall_cases": 0, **changes}))

    check(bench)
    with pytest.raises(ConfigError, match="memory_frames must be from 1 to 6.*; got 7: change tradeoff"):
        check(bench, memory="2,7")
    with pytest.raises(ConfigError, match="num_steps must be a whole number from 1 to 1000; got 1001"):
        check(bench, settings="1001:2")
    with pytest.raises(DataError, match="are needed"):
        check(bench, context=128)
    with pytest.raises(DataError, match="no 'train' shards"):
        check(bench, recall_cases=1)
    with pytest.raises(DataError, match="is not a folder"):
        check(bench, recall_cases=1, train_data=str(tmp_path / "nowhere"))
    bench.model.source = None
    with pytest.raises(CompileError, match="loaded from a bundle"):
        check(bench, compile=True)
    shard_writer(tmp_path / "plain" / "test-00000.h5", [80], "test", image_size=32)
    plain = list_episodes(open_shards(tmp_path / "plain", "test"))
    with pytest.raises(DataError, match="tradeoff.recall_cases=0"):
        check(Bench(bench.model, bench.world, plain, tmp_path / "plain", tmp_path), recall_cases=1)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps must be different numbers of at least 1; got '0,2'"):
        TradeoffOptions(steps="0,2")
    for setting in ("2", "2:x", "0:5"):
        with pytest.raises(ConfigError, match="settings"):
            TradeoffOptions(settings=f"1:9,{setting}")
    assert TradeoffOptions(settings="1:9,2:7").pairs() == [(1, 9), (2, 7)]
    with pytest.raises(ConfigError, match="recall_cases"):
        TradeoffOptions(recall_cases=-1)
