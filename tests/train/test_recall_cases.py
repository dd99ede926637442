"""What frames show, and the cases of place recall cut from it: mazes small enough to know the answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.worlds.labmaze.sight import MIDDLE, NUM_COLUMNS, column_slopes, find_places, join_blocks, judge_middle, look
from envs.worlds.registry import get_world
from tests.painted_maze import ROOM, dress, episodes_of, turn_away, write_turns
from train.measures.recall_cases import (
    DREAMT,
    MARGIN,
    MIN_ABSENT,
    MIN_APART,
    RecallCase,
    cases_of_episode,
    find_cases,
)
from worldmodel.analysis.recall import BINS, find_bin
from worldmodel.errors import DataError

WORLD = get_world("LabMaze")
FOUR = dress(ROOM, (0, 1, 2, 3))  # each wall has a texture of its own; 3 is in the east


def poses(*places: tuple[float, float, float]) -> np.ndarray:
    return np.array(places, np.float32)


@pytest.mark.parametrize(
    ("heading", "block", "side"), [(0, (2, 4), 0), (90, (0, 2), 2), (180, (2, 0), 1), (270, (4, 2), 3)]
)
def test_the_middle_column_shows_the_block_ahead(heading: float, block: tuple[int, int], side: int) -> None:
    sight = look(ROOM, poses((2.5, 2.5, heading)))
    assert sight.blocks[0, MIDDLE] == block[0] * 5 + block[1]
    assert sight.faces[0, MIDDLE] == 4 * sight.blocks[0, MIDDLE] + side
    assert sight.distances[0, MIDDLE] == pytest.approx(1.5)


def test_left_columns_look_left() -> None:
    sight = look(ROOM, poses((2.5, 2.5, 0.0)))
    assert sight.blocks[0, 0] == 1 * 5 + 4 and sight.blocks[0, -1] == 3 * 5 + 4  # north of the block ahead, south of it
    assert np.allclose(sight.distances[0], 1.5)  # along the heading a flat wall is equally far in every column
    assert column_slopes()[0] == pytest.approx(np.tan(np.radians(35)) * (1 - 1 / NUM_COLUMNS))


def test_rays_hit_what_a_fine_walk_hits() -> None:
    rng = np.random.default_rng(0)
    layout = np.ones((7, 7), np.uint8)
    layout[1:-1, 1:-1] = rng.random((5, 5)) < 0.3
    rows, columns = np.nonzero(layout == 0)
    picks = rng.integers(len(rows), size=20)
    offsets = rng.uniform(0.25, 0.75, (20, 2))
    pose = np.stack([columns[picks] + offsets[:, 0], 6 - rows[picks] + offsets[:, 1], rng.uniform(0, 360, 20)], 1)
    sight = look(layout, pose)
    for frame, (x, y, heading) in enumerate(pose):
        angle = np.radians(heading)
        for column in (0, 7, MIDDLE, 28, NUM_COLUMNS - 1):
            left = column_slopes()[column]
            way = np.cos(angle) - left * np.sin(angle), np.sin(angle) + left * np.cos(angle)
            walked = np.arange(0, 9, 0.001)
            cells = 6 - np.floor(y + walked * way[1]).astype(int), np.floor(x + walked * way[0]).astype(int)
            inside = cells[0].clip(0, 6), cells[1].clip(0, 6)
            first = int(np.argmax(layout[inside] == 1))
            assert abs(walked[first] - sight.distances[frame, column]) < 0.002


def test_middle_is_not_clear_near_a_seam_a_target_or_a_wall_too_near() -> None:
    arrays = dress(ROOM) | {"pose": poses((2.5, 2.5, 0), (2.5, 2.9, 0), (3.4, 2.5, 0)), "targets": np.zeros((0, 2))}
    limits: dict[str, Any] = {"half_width": 3, "nearest": 0.8, "farthest": 3.2}
    sight = look(ROOM, arrays["pose"])
    middle = judge_middle(arrays, sight, **limits)
    assert middle.is_clear.tolist() == [True, False, False]
    assert middle.walls[0] == 0 and middle.floors[0] == 2
    arrays["targets"] = np.array([[3.5, 2.5]], np.float32)
    assert not judge_middle(arrays, sight, **limits).is_clear[0]
    arrays["targets"] = np.array([[1.5, 2.5]], np.float32)  # behind
    assert judge_middle(arrays, sight, **limits).is_clear[0]


def test_two_floors_before_the_wall_are_not_clear() -> None:
    arrays = dress(ROOM) | {"pose": poses((1.5, 2.5, 0))}
    sight = look(ROOM, arrays["pose"])
    assert judge_middle(arrays, sight, half_width=1, nearest=0.8, farthest=3.2).is_clear[0]
    arrays["floor_textures"][:, 3] = 1
    assert not judge_middle(arrays, sight, half_width=1, nearest=0.8, farthest=3.2).is_clear[0]


def test_join_blocks_joins_equal_neighbors_only() -> None:
    places = join_blocks(np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]], np.uint8))
    assert places[0, 0] == places[0, 1] == places[1, 1]
    assert places[0, 2] == places[1, 2] == places[2, 2] == places[2, 1]
    assert len({int(places[0, 0]), int(places[0, 2]), int(places[1, 0]), int(places[2, 0])}) == 4


@pytest.mark.parametrize("rest", [6, 30, 80])
def test_a_walker_that_turns_back_gives_cases_of_the_right_distance(tmp_path: Path, rest: int) -> None:
    headings = turn_away(rest)
    (episode,) = episodes_of(write_turns(tmp_path, [headings], [FOUR]))
    cases = [case for case in cases_of_episode(episode, find_places(episode)) if case.labels[0] == 3]
    assert cases, "the wall in the east comes back"
    sight = look(ROOM, poses(*[(2.5, 2.5, h) for h in headings]))
    shows_east = (FOUR["wall_textures"].reshape(-1)[sight.blocks] == 3).any(1)
    for case in cases:
        given = case.start - 1
        assert case.start == case.frame - DREAMT + 1 and case.distance == case.start - case.seen > 0
        assert shows_east[case.seen] and shows_east[case.frame]
        assert case.absent >= MIN_ABSENT and not shows_east[given - case.absent + 1 : given + 1].any()
        assert shows_east[given - case.absent]
        assert case.distance + MARGIN <= case.context <= case.start
        span = find_bin(case.distance)
        assert span is not None and case.absent >= span[0]  # a memory as short as the bin below has seen nothing
        assert 0 <= case.columns[0] < 0.5 < case.columns[1] <= 1 and case.labels[1] == 2


def test_a_place_whose_texture_stays_in_sight_is_no_case(tmp_path: Path) -> None:
    west = {t for t, heading in enumerate(turn_away(30)) if heading == 180.0}

    def last_looks_west(folder: Path, west_texture: int) -> list[RecallCase]:
        room = dress(ROOM, (0, 1, west_texture, 3))
        (episode,) = episodes_of(write_turns(folder, [turn_away(30)], [room]))
        found = cases_of_episode(episode, find_places(episode))
        return [case for case in found if case.labels[0] == 3 and case.start - 1 in west]

    assert last_looks_west(tmp_path / "a", 2)
    assert not last_looks_west(tmp_path / "b", 3)


def test_a_place_never_seen_before_is_no_case(tmp_path: Path) -> None:
    headings = np.concatenate([np.full(60, 180.0), np.arange(180, -1, -12.0), np.zeros(12)])
    (episode,) = episodes_of(write_turns(tmp_path, [headings], [FOUR]))
    assert not [case for case in cases_of_episode(episode, find_places(episode)) if case.labels[0] == 3]


def test_cases_are_spread_apart_and_repeatable(tmp_path: Path) -> None:
    episodes = episodes_of(write_turns(tmp_path, [turn_away(rest) for rest in (28, 30, 32, 34)], [FOUR] * 4))
    every = [len(cases_of_episode(episode, find_places(episode))) for episode in episodes]
    cases = find_cases(WORLD, episodes, cases_per_bin=4, seed=1)
    by_bin: dict[Any, list[RecallCase]] = {}
    for case in cases:
        by_bin.setdefault(find_bin(case.distance), []).append(case)
    assert min(every) > 4 and all(len(inside) <= 4 for inside in by_bin.values())
    middle = by_bin[(16, 48)]
    assert len({case.episode.key for case in middle}) == 4  # one of each episode before a second of any
    many = [case for case in find_cases(WORLD, episodes, cases_per_bin=100) if find_bin(case.distance) == (16, 48)]
    for case in many:
        near = [o for o in many if o.episode == case.episode and o is not case]
        assert all(abs(o.frame - case.frame) >= MIN_APART for o in near)
    assert find_cases(WORLD, episodes, cases_per_bin=4, seed=1) == cases
    assert find_cases(WORLD, episodes, cases_per_bin=4, seed=2) != cases


def test_recording_without_pose_or_without_needles_is_refused(tmp_path: Path) -> None:
    episodes = episodes_of(write_turns(tmp_path / "a", [turn_away(30)], [FOUR], drop=("pose", "layout")))
    with pytest.raises(DataError, match="has no pose, layout.*train.record"):
        find_cases(WORLD, episodes, BINS, 4)
    still = episodes_of(write_turns(tmp_path / "b", [np.zeros(60)], [FOUR]))
    with pytest.raises(DataError, match="comes back to a place"):
        find_cases(WORLD, still, BINS, 4)
