"""Real/LabMaze-v0: mazes, walking, rewards, frames and the errors of bad input."""

import gc
import itertools
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mujoco")
pytest.importorskip("labmaze")

from envs.data.episodes import open_shards, read_episode
from envs.data.sessions import read_session
from envs.player.session import PlaySession
from envs.worlds.labmaze import scene as labmaze_scene
from envs.worlds.labmaze.env import TURN_DEG, WALK_CELLS, LabMazeEnv
from envs.worlds.labmaze.maze import NO_TEXTURE, WALKER_RADIUS, Maze, make_maze
from envs.worlds.labmaze.revisit import RealMaze
from envs.worlds.labmaze.sight import look
from envs.worlds.labmaze.spec import LabMaze
from envs.worlds.registry import try_revisit
from tests.memory_sessions import write_session
from train.data.recording import RecordOptions
from train.record import record
from worldmodel.errors import ActionError, ConfigError, MissingPackageError, SeedError, StateError

NOOP, FORWARD, BACK, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(7)


def draw_maze(seed: int, size: int = 9, num_targets: int = 4) -> Maze:
    return make_maze(
        seed,
        size=size,
        max_rooms=4,
        room_min_size=3,
        room_max_size=5,
        extra_connection_probability=0.3,
        num_targets=num_targets,
        num_wall_textures=8,
        num_floor_textures=3,
    )


def wall_distance(maze: Maze, x: float, y: float) -> float:
    """Distance from a point to the nearest wall block, by looking at every block."""
    rows = maze.layout.shape[0]
    best = math.inf
    for row, column in np.argwhere(maze.layout == 1):
        low_x, low_y = column, rows - 1 - row
        best = min(best, math.hypot(x - min(max(x, low_x), low_x + 1), y - min(max(y, low_y), low_y + 1)))
    return best


@pytest.fixture(scope="module")
def env() -> Iterator[LabMazeEnv]:
    env = LabMazeEnv()
    yield env
    env.close()


def room_to_walk(env: LabMazeEnv, num_cells: int = 2) -> tuple[float, float, dict[str, Any]]:
    """Reset until a straight run of floor heads east with no target on it; returns the center of its west end."""
    for seed in itertools.count():
        _, info = env.reset(seed=seed)
        rows = info["layout"].shape[0]
        for row, column in np.argwhere(info["layout"] == 0):
            run = info["layout"][row, column : column + num_cells + 1]
            y = rows - 1 - row + 0.5
            is_on_row = np.abs(info["targets"][:, 1] - y) < 0.1
            if len(run) == num_cells + 1 and not run.any() and not is_on_row.any():
                return column + 0.5, y, info
    raise AssertionError("seeds are endless")


def test_gymnasium_accepts_it() -> None:
    env = gymnasium.make("envs:Real/LabMaze-v0")
    check_env(env.unwrapped)
    assert env.observation_space.shape == (64, 64, 3)
    assert env.action_space == gymnasium.spaces.Discrete(7)
    assert env.metadata["render_fps"] == 15
    env.close()


def test_equal_seeds_give_equal_episodes_and_others_do_not() -> None:
    actions = np.random.default_rng(0).integers(7, size=60)

    def play(env: LabMazeEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame, info = env.reset(seed=seed)
        frames, poses = [frame], [info["pose"]]
        for action in actions:
            frame, _, _, _, info = env.step(action)
            frames.append(frame)
            poses.append(info["pose"])
        return np.stack(frames), np.stack(poses)

    first, second = LabMazeEnv(), LabMazeEnv()
    frames, poses = play(first, 11)
    play(first, 12)
    # The second environment has drawn another maze before, and another renderer lives beside it.
    other, _ = play(second, 12)
    again, again_poses = play(second, 11)
    first.close()
    assert np.array_equal(frames, again)
    assert np.array_equal(poses, again_poses)
    assert not np.array_equal(frames, other)
    assert np.array_equal(play(second, 11)[0], frames)
    second.close()


def test_scene_seed_fixes_the_maze_and_the_seed_the_start(env: LabMazeEnv) -> None:
    _, first = env.reset(seed=1, options={"scene_seed": 77})
    _, second = env.reset(seed=2, options={"scene_seed": 77})
    for key in ("layout", "wall_textures", "floor_textures", "targets"):
        assert np.array_equal(first[key], second[key])
    assert first["scene_seed"] == second["scene_seed"] == 77
    assert not np.array_equal(first["pose"], second["pose"])
    _, drawn = env.reset(seed=1)
    _, chosen = env.reset(seed=1, options={"scene_seed": drawn["scene_seed"]})
    assert np.array_equal(drawn["pose"], chosen["pose"])


@given(seed=st.integers(0, 2**40), size=st.sampled_from([5, 7, 9, 15]))
@settings(max_examples=40, deadline=None)
def test_mazes_are_closed_connected_and_dressed(seed: int, size: int) -> None:
    maze = draw_maze(seed, size)
    assert maze.layout.shape == (size, size)
    assert maze.layout[[0, -1]].all() and maze.layout[:, [0, -1]].all()
    floor = {(int(row), int(column)) for row, column in maze.floor_cells}
    reached, front = set(), [next(iter(floor))]
    while front:
        row, column = front.pop()
        if (row, column) in floor - reached:
            reached.add((row, column))
            front += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    assert reached == floor
    assert ((maze.wall_textures == NO_TEXTURE) == (maze.layout == 0)).all()
    assert ((maze.floor_textures == NO_TEXTURE) == (maze.layout == 1)).all()
    assert maze.wall_textures[maze.layout == 1].max() < 8
    assert maze.floor_textures[maze.layout == 0].max() < 3
    assert len({tuple(target) for target in maze.targets}) == 4
    assert not any(maze.is_wall(float(x), float(y)) for x, y in maze.targets)


def test_mazes_differ_and_use_the_whole_palette() -> None:
    mazes = [draw_maze(seed) for seed in range(30)]
    assert len({maze.layout.tobytes() for maze in mazes}) > 25
    used = np.concatenate([maze.wall_textures[maze.layout == 1] for maze in mazes])
    counts = np.bincount(used, minlength=8)
    assert counts.min() > 0.5 * counts.mean()
    changes = np.mean([(m.wall_textures[0, 1:] != m.wall_textures[0, :-1]).mean() for m in mazes])
    assert 0.4 < changes < 0.9


def test_a_walk_moves_along_the_heading(env: LabMazeEnv) -> None:
    x, y, _ = room_to_walk(env)
    env.set_pose(x, y, 0)
    info = env.step(FORWARD)[4]
    assert info["pose"] == pytest.approx([x + WALK_CELLS, y, 0])
    assert not info["is_blocked"]
    assert env.step(BACK)[4]["pose"] == pytest.approx([x, y, 0])
    assert env.step(LEFT)[4]["pose"] == pytest.approx([x, y, TURN_DEG])
    assert env.step(RIGHT)[4]["pose"] == pytest.approx([x, y, 0])
    assert env.step(RIGHT)[4]["pose"] == pytest.approx([x, y, 360 - TURN_DEG])
    env.set_pose(x, y, 0)
    turn = math.radians(TURN_DEG)
    walked = [x + WALK_CELLS * math.cos(turn), y + WALK_CELLS * math.sin(turn), TURN_DEG]
    assert env.step(FORWARD_LEFT)[4]["pose"] == pytest.approx(walked)
    env.set_pose(x, y, 0)
    walked = [walked[0], y - WALK_CELLS * math.sin(turn), 360 - TURN_DEG]
    assert env.step(FORWARD_RIGHT)[4]["pose"] == pytest.approx(walked)
    before = env.step(NOOP)[4]["pose"]
    assert np.array_equal(env.step(NOOP)[4]["pose"], before)


def test_a_full_turn_comes_back_to_the_same_frame(env: LabMazeEnv) -> None:
    frame, _ = env.reset(seed=4)
    frames = [env.step(LEFT)[0] for _ in range(60)]
    assert np.array_equal(frames[-1], frame)
    assert len({one.tobytes() for one in frames}) == 60


def test_a_turn_to_the_left_moves_the_picture_to_the_right(env: LabMazeEnv) -> None:
    num_right = 0
    for seed in range(10):
        before = env.reset(seed=seed)[0].astype(float)
        after = env.step(LEFT)[0].astype(float)
        # 6 of 70 degrees of view are about five of 64 pixels.
        moved_right = np.abs(after[:, 5:] - before[:, :-5]).mean()
        moved_left = np.abs(after[:, :-5] - before[:, 5:]).mean()
        num_right += moved_right < moved_left
    assert num_right >= 9


@given(
    seed=st.integers(0, 1000), heading=st.floats(0, 360), actions=st.lists(st.integers(0, 6), min_size=30, max_size=60)
)
@settings(max_examples=40, deadline=None)
def test_walking_never_enters_a_wall_nor_jumps(seed: int, heading: float, actions: list[int]) -> None:
    maze = draw_maze(seed)
    x, y = maze.center(*maze.floor_cells[seed % len(maze.floor_cells)])
    for action in actions:
        heading += 25.0 * (action - 3)
        wanted = (x + WALK_CELLS * math.cos(heading), y + WALK_CELLS * math.sin(heading))
        moved = maze.push_out(*wanted)
        assert wall_distance(maze, *moved) >= WALKER_RADIUS - 1e-3
        assert math.dist(moved, (x, y)) <= 2 * WALK_CELLS
        x, y = moved


def test_a_wall_stops_a_walk_or_lets_it_slide(env: LabMazeEnv) -> None:
    _, info = env.reset(seed=0)
    rows = info["layout"].shape[0]
    # Two floor cells side by side with walls above both: walk into the walls, straight and at a slant.
    is_floor, is_wall = info["layout"] == 0, info["layout"] == 1
    places = is_floor[1:, :-1] & is_floor[1:, 1:] & is_wall[:-1, :-1] & is_wall[:-1, 1:]
    row, column = np.argwhere(places)[0] + [1, 0]
    x, y = column + 0.5, rows - 1 - row + 0.5
    env.set_pose(x, y, 90)
    poses = [env.step(FORWARD)[4] for _ in range(6)]
    assert not poses[0]["is_blocked"]
    assert poses[-1]["is_blocked"]
    assert poses[-1]["pose"] == pytest.approx([x, y + 0.5 - WALKER_RADIUS, 90], abs=1e-3)
    env.set_pose(x, y + 0.5 - WALKER_RADIUS, 30)
    info = env.step(FORWARD)[4]
    assert info["is_blocked"]
    slid = [x + WALK_CELLS * math.cos(math.radians(30)), y + 0.5 - WALKER_RADIUS, 30]
    assert info["pose"] == pytest.approx(slid, abs=1e-3)
    assert not env.step(LEFT)[4]["is_blocked"]


def test_targets_pay_once_vanish_and_end_the_episode(env: LabMazeEnv) -> None:
    _, info = env.reset(seed=6)
    rewards, reached = [], []
    for index, (x, y) in enumerate(info["targets"]):
        env.set_pose(float(x), float(y), 0)
        frame, reward, terminated, truncated, info = env.step(NOOP)
        rewards.append(reward)
        reached.append(info["targets_reached"].sum())
        assert terminated == (index == 3)
        assert not truncated
        assert env.step(NOOP)[1] == 0.0
    assert rewards == [1.0] * 4
    assert reached == [1, 2, 3, 4]


def test_a_target_is_seen_until_it_is_reached(env: LabMazeEnv) -> None:
    x, y, info = room_to_walk(env)
    target = info["targets"][0]
    heading = math.degrees(math.atan2(target[1] - y, target[0] - x))
    is_seen = []
    for spot in ((-0.45, 0.0), (0.0, -0.45), (0.45, 0.0), (0.0, 0.45)):
        place = (float(target[0] + spot[0] * 0.55), float(target[1] + spot[1] * 0.55))
        heading = math.degrees(math.atan2(-spot[1], -spot[0]))
        before = env.render_pose(*place, heading)
        # The first target is magenta; where it fills the middle of the picture, red and blue stand far above green.
        is_seen.append(before[30:50, 24:40, 0].mean() > before[30:50, 24:40, 1].mean() + 100)
    assert all(is_seen)
    env.set_pose(float(target[0]), float(target[1]), 0)
    env.step(NOOP)
    after = env.render_pose(*place, heading)
    assert after[30:50, 24:40, 0].mean() < after[30:50, 24:40, 1].mean() + 100


def test_no_targets_no_end_but_truncation() -> None:
    env = LabMazeEnv(num_targets=0, max_episode_steps=3, size=5, image_size=16)
    _, info = env.reset(seed=0)
    assert info["targets"].shape == (0, 2)
    assert [env.step(NOOP)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env.reset()
    assert env.step(NOOP)[3] is False
    env.close()


@pytest.mark.parametrize(("asked", "most"), [({}, 1800), ({"max_episode_steps": 1805}, 1805)])
def test_gymnasium_make_truncates_when_asked(asked: dict[str, int], most: int) -> None:
    env = gymnasium.make("envs:Real/LabMaze-v0", num_targets=0, size=5, image_size=16, **asked)
    env.reset(seed=0)
    assert [step for step in range(1, most + 1) if env.step(NOOP)[3]] == [most]
    env.close()


def test_a_closed_environment_says_so() -> None:
    env = LabMazeEnv(size=5, num_targets=0, image_size=16)
    env.reset(seed=0)
    env.close()
    for call in (lambda: env.step(0), env.reset, env.render):
        with pytest.raises(StateError, match="closed"):
            call()


def test_dropping_an_environment_leaves_the_others_their_pictures() -> None:
    """Whether it is closed or not, and whatever draws at the time."""
    kept = LabMazeEnv(size=5, image_size=16)
    expected = kept.reset(seed=3)[0]
    dropped = LabMazeEnv(size=5, image_size=16)
    dropped.reset(seed=4)
    for _ in range(3):
        newer = LabMazeEnv(size=5, image_size=16)
        dropped = newer  # the one before dies unclosed, while the context of the newer one is current
        del newer
        gc.collect()
        assert np.array_equal(dropped.reset(seed=3)[0], expected)
        assert np.array_equal(kept.reset(seed=3)[0], expected)
    dropped.reset(seed=4)
    del dropped  # its own context is current
    gc.collect()
    assert np.array_equal(kept.reset(seed=3)[0], expected) and expected.std() > 10
    kept.close()


def test_an_environment_belongs_to_the_thread_that_made_it() -> None:
    env = LabMazeEnv(size=5, image_size=16)
    expected = env.reset(seed=3)[0]
    with ThreadPoolExecutor(1) as other:
        for call in (lambda: env.step(0), lambda: env.reset(seed=3), env.close):
            with pytest.raises(StateError, match="in one thread"):
                other.submit(call).result()
        theirs = other.submit(LabMazeEnv, size=5, image_size=16).result()
        assert np.array_equal(other.submit(theirs.reset, seed=3).result()[0], expected)
        del theirs  # here, where its context is not current
        gc.collect()
        newer = other.submit(LabMazeEnv, size=5, image_size=16).result()
        assert np.array_equal(other.submit(newer.reset, seed=3).result()[0], expected)
        other.submit(newer.close).result()
    assert np.array_equal(env.reset(seed=3)[0], expected)
    env.close()


@pytest.mark.parametrize("palette", labmaze_scene.PALETTE_NAMES)
@pytest.mark.parametrize("image_size", [64, 128])
def test_every_palette_draws_floor_below_and_different_places(palette: str, image_size: int) -> None:
    env = LabMazeEnv(palette=palette, image_size=image_size)
    frames = np.stack([env.reset(seed=seed)[0] for seed in range(6)])
    assert frames.shape == (6, image_size, image_size, 3)
    assert frames.dtype == np.uint8
    assert len({frame.tobytes() for frame in frames}) == 6
    assert frames.std() > 20
    is_sharp = np.abs(np.diff(frames.astype(float), axis=2)).mean()
    assert (is_sharp > 2) == (palette != "plain")
    env.close()


def test_frame_shows_the_texture_that_info_names() -> None:
    env = LabMazeEnv(palette="plain", num_targets=0)
    colors = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in labmaze_scene.find_palette("plain").walls]
    num_checked = 0
    for seed in range(8):
        _, info = env.reset(seed=seed)
        rows = info["layout"].shape[0]
        for row, column in np.argwhere(info["layout"] == 0):
            for heading, (row_step, column_step) in {0: (0, 1), 90: (-1, 0), 180: (0, -1), 270: (1, 0)}.items():
                texture = info["wall_textures"][row + row_step, column + column_step]
                if texture != NO_TEXTURE:
                    frame = env.render_pose(column + 0.5, rows - 1 - row + 0.5, heading)
                    seen = frame[24:40, 24:40].reshape(-1, 3).mean(axis=0)
                    # Shading scales a color, so compare directions.
                    cosines = [seen @ color / np.linalg.norm(seen) / np.linalg.norm(color) for color in colors]
                    assert int(np.argmax(cosines)) == texture
                    num_checked += 1
    assert num_checked > 50
    env.close()


def test_info_and_frames_are_copies(env: LabMazeEnv) -> None:
    frame, info = env.reset(seed=3)
    kept = frame.copy()
    info["layout"][:] = 1
    info["targets"][:] = 0
    after, _, _, _, later = env.step(FORWARD)
    assert np.array_equal(frame, kept)
    assert not np.shares_memory(frame, after)
    assert later["layout"].min() == 0
    assert later["targets"].any()


def test_render_and_poses(env: LabMazeEnv) -> None:
    frame, info = env.reset(seed=5)
    assert np.array_equal(env.render(), frame)
    x, y, heading = map(float, info["pose"])
    assert np.array_equal(env.render_pose(x, y, heading - 360), frame)
    assert not np.array_equal(env.render_pose(x, y, heading + 90), frame)
    env.set_pose(x, y, heading + 90)
    assert env.step(NOOP)[4]["pose"] == pytest.approx([x, y, (heading + 90) % 360])
    with pytest.raises(ConfigError, match="free floor"):
        env.set_pose(0.5, 0.5, 0)
    with pytest.raises(ConfigError, match="free floor"):
        env.set_pose(x, y, math.nan)


def test_depth_is_the_distance_along_the_heading_of_what_the_frame_shows() -> None:
    env = LabMazeEnv(num_targets=0)
    for seed in range(4):
        frame, info = env.reset(seed=seed)
        x, y, heading = map(float, info["pose"])
        depth = env.render_depth(x, y, heading)
        assert depth.shape == (64, 64) and depth.dtype == np.float32
        assert np.array_equal(env.render_depth(), depth)
        assert np.array_equal(env.render(), frame)  # reading depths leaves frames as they are
        walls = look(info["layout"], info["pose"][None], 64).distances[0]
        rise = math.tan(math.radians(labmaze_scene.VIEW_DEG / 2)) * (1 - (2 * np.arange(64)[:, None] + 1) / 64)
        height = labmaze_scene.EYE_HEIGHT + walls * rise
        with np.errstate(divide="ignore"):
            wanted = np.where(height < 0, labmaze_scene.EYE_HEIGHT / -rise, walls)
        wanted = np.where(height > 1, labmaze_scene.SKY_DEPTH, wanted)
        # Edges may fall into the next pixel.
        assert np.mean(np.abs(depth / wanted - 1) < 5e-3) > 0.97
    env.close()
    with pytest.raises(StateError):
        env.render_depth(x, y, heading)


def test_depth_shows_targets_until_they_are_reached() -> None:
    env = LabMazeEnv(num_targets=1)
    _, info = env.reset(seed=0)
    x, y = map(float, info["targets"][0])
    pose = (x - 0.25, y, 0.0)  # of the cell's middle, where the target stands
    before = env.render_depth(*pose)
    env.set_pose(*pose)
    assert env.step(NOOP)[1] == 1
    after = env.render_depth(*pose)
    assert (after - before)[40:44, 28:36].min() > 0.1  # the sphere fills the view a little below the middle
    assert np.array_equal(after[:8], before[:8])
    env.close()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7"])
def test_bad_seeds(env: LabMazeEnv, seed: Any) -> None:
    with pytest.raises(SeedError, match=str(seed)):
        env.reset(seed=seed)
    with pytest.raises(SeedError, match="scene_seed"):
        env.reset(seed=0, options={"scene_seed": seed})


def test_bad_actions_options_and_order() -> None:
    env = LabMazeEnv(image_size=16)
    for call in (lambda: env.step(0), env.render, lambda: env.set_pose(1, 1, 0)):
        with pytest.raises(StateError, match="reset"):
            call()
    env.reset(seed=0)
    for action in (7, -1, math.nan, 0.0, None):
        with pytest.raises(ActionError):
            env.step(action)
    with pytest.raises(ConfigError, match="level"):
        env.reset(options={"level": 3})
    env.close()
    env.close()


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 8},
        {"size": 3},
        {"size": 9.0},
        {"image_size": 8},
        {"image_size": 64.5},
        {"palette": "neon"},
        {"num_targets": -1},
        {"max_episode_steps": 0},
        {"room_min_size": 6},
        {"max_rooms": 0},
        {"extra_connection_probability": math.nan},
        {"render_mode": "human"},
    ],
)
def test_bad_settings_are_named(setting: dict[str, Any]) -> None:
    (name, value), *_ = setting.items()
    with pytest.raises(ConfigError, match=name) as caught:
        LabMazeEnv(**setting)
    assert str(value) in str(caught.value)


def test_a_maze_without_room_for_its_targets() -> None:
    with pytest.raises(ConfigError, match="size 5 with 9 targets"):
        make_maze(
            0,
            size=5,
            max_rooms=1,
            room_min_size=3,
            room_max_size=3,
            extra_connection_probability=0.0,
            num_targets=9,
            num_wall_textures=8,
            num_floor_textures=3,
        )


@pytest.mark.parametrize("package", ["mujoco", "labmaze"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match="pip install mujoco labmaze"):
        LabMazeEnv().reset(seed=0)


def test_missing_gl_names_the_system_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    def fail(width: int, height: int) -> None:
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(mujoco, "GLContext", fail)
    with pytest.raises(MissingPackageError, match="EGL device.*libegl1 libgl1-mesa-dri.*osmesa.*libosmesa6"):
        LabMazeEnv()


def test_depth_is_recorded_beside_frames(tmp_path: Path) -> None:
    options = RecordOptions(
        out=tmp_path, world="LabMaze", episodes=1, length=6, workers=1, episodes_per_shard=1, depth=True
    )
    record(options)
    [shard] = open_shards(tmp_path)
    [episode] = shard.episodes
    arrays = read_episode(episode, fields=("frames", "pose", "depth"))
    assert arrays["depth"].shape == arrays["frames"].shape[:3]
    env = LabMazeEnv()
    env.reset(seed=episode.seed, options={"scene_seed": episode.scene_seed})
    env.set_pose(*map(float, arrays["pose"][-1]))
    assert np.array_equal(arrays["depth"][-1], env.render_depth().astype(np.float16))
    env.close()


def test_a_session_of_real_play_can_be_visited_again(tmp_path: Path) -> None:
    """From its start and from the middle of play; its settings also say where it comes from."""
    world = LabMaze()
    play = PlaySession(world.make(image_size=32), 3, world.fps, world.actions, world)
    play.start_session(tmp_path / "start.h5")
    for step in range(12):
        play.step((FORWARD, LEFT, BACK)[step % 3])
    play.start_session(tmp_path / "middle.h5")
    for step in range(12):
        play.step((FORWARD, RIGHT)[step % 2])
    play.close()
    for name in ("start", "middle"):
        (episode,) = read_session(tmp_path / f"{name}.h5").episodes.values()
        frames = read_episode(episode, fields=("frames",))["frames"]
        scene, why = try_revisit(episode)
        assert isinstance(scene, RealMaze), why
        with scene:
            for frame in (0, 5, 12):
                scene.put(episode, frame)
                apart = np.abs(scene.env.render().astype(int) - frames[frame])
                assert apart.mean() < 0.05  # poses are recorded in 32 bits
        with world.targets(episode, 32) as targets:
            assert targets is not None
        assert len(world.places(episode).labels) > 0


def test_of_a_session_of_a_dream_there_is_no_real_maze(tmp_path: Path) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    scene = {"layout": np.eye(9, dtype=np.uint8), "targets": np.zeros((4, 2), np.float32)}
    path = write_session(
        tmp_path / "a.h5", frames, [FORWARD] * 3, [(0, 3)], poses=np.zeros((4, 3)), scene=scene, source="dream"
    )
    scene_or_none, why = try_revisit(read_session(path).episodes[0])
    assert scene_or_none is None and why is not None and "a.h5 shows a dream" in why
