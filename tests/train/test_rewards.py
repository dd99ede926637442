"""Rewards in closed loop: real play passes its own judgement; ghosts, gifts and noise do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.data.episodes import EpisodeInfo
from envs.worlds.labmaze.targets import Seeker, find_views
from envs.worlds.registry import get_world
from tests.train.test_in_sight import record_real
from tests.train.test_targets import LEFT, PINK, SIZE, Disc, RealStandIn, bench, paint
from train.measures.rewards import Play, Rewards, RewardsOptions, judge, measure_rewards
from worldmodel.errors import ConfigError

OPTIONS = RewardsOptions(cases=3, context=4, frames=50)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeInfo]:
    """Turns in place in real mazes."""
    return record_real(tmp_path_factory.mktemp("rewards"), [[LEFT] * 75 for _ in range(5)])


def measure(episodes: list[EpisodeInfo], way: str, tmp_path: Path) -> dict[str, Any]:
    model: Any = RealStandIn(episodes, way)
    try:
        return measure_rewards(bench(model, episodes, tmp_path), OPTIONS)
    finally:
        model.close()


@pytest.mark.slow
def test_the_real_world_dreamt_is_paid_as_the_real_world(episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    found = measure(episodes, "real", tmp_path)["seeker"]
    assert found["real"]["rewards"] >= 2 and found["real"]["false"] == 0
    assert found["real"]["gone"]["count"] == found["real"]["gone"]["of"] == found["real"]["rewards"]
    assert found["dream"]["rewards"] == found["real"]["rewards"] and found["dream"]["false"] == 0
    assert "".join(Rewards().lines(measure(episodes, "real", tmp_path))).count("rewards per 1,000") == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ghosts", "generous", "noise", "frozen"])
def test_what_pays_wrongly_is_found(episodes: list[EpisodeInfo], tmp_path: Path, way: str) -> None:
    found = measure(episodes, way, tmp_path)["seeker"]["dream"]
    if way in ("noise", "frozen"):
        assert found["rewards"] == 0
        return
    assert found["false_per_1000"] > 20
    if way == "ghosts":
        assert found["most_in_one"] > 4 and found["gone"]["count"] < found["gone"]["of"]
    else:
        assert found["most_in_one"] == OPTIONS.frames


def test_a_reward_is_true_once_where_its_target_was_near(episodes: list[EpisodeInfo]) -> None:
    with get_world("LabMaze").targets(episodes[0], SIZE) as targets:
        color = np.array([255.0, 0.0, 222.0])
        large, small, empty = (
            paint(Disc(20, 20, 9, 1), color),
            paint(Disc(20, 20, 2, 1), color),
            paint(Disc(20, 20, 0, 1), PINK * 0),
        )
        for before, after, true, gone in (
            (large, empty, [True], [True]),
            (large, large, [True], [False]),
            (small, empty, [False], []),
            (empty, empty, [False], []),
        ):
            play = Play(np.stack([before, after, after]), np.array([0, 1, 0]), np.zeros(3, bool))
            assert judge(targets, before, play) == {"true": true, "gone": gone}
        twice = Play(np.stack([large, large, large]), np.array([0, 1, 1]), np.zeros(3, bool))
        assert judge(targets, large, twice)["true"] == [True, False]


def test_a_seeker_turns_to_what_it_sees_and_looks_round_where_it_is_stuck() -> None:
    seeker = Seeker(PINK[None], np.random.default_rng(0))
    assert [seeker.act(paint(Disc(column, 20, 4, 1), back=back)) for column, back in ((3, 10), (60, 60))] == [3, 4]
    view = find_views(paint(Disc(20, 30, 6, 1)), PINK[None])[0]
    assert view.kind == 0 and view.size * SIZE / 64 == pytest.approx(12, abs=1) and abs(view.column - 20) < 0.6
    stuck = [seeker.act(paint(Disc(20, 20, 0, 1), PINK * 0)) for _ in range(60)]
    assert {3, 4} & {*stuck} and len({*stuck}) > 1


@pytest.mark.parametrize("name", ["cases", "context", "frames"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        RewardsOptions(**{name: 0})
