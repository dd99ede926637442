"""Scripted walks come back where they say, the same for equal seeds, and go on where they stopped."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.actions import ActionSet
from envs.data.episodes import read_episode, read_shard
from envs.data.sessions import Session, read_session, read_sessions
from envs.worlds.base import TEST_SCENE_DIVISOR, World
from envs.worlds.labmaze.floor import MazeFloor
from envs.worlds.labmaze.spec import LabMaze
from train.memory.making import MakeOptions, make_tests
from train.memory.poses import Poses
from train.memory.walks import KINDS, choose_kinds
from train.memory.ways import find_way
from worldmodel.errors import ConfigError, DataError, SeedError

STUB = "tests.stub_maze:Stub"
MOTIONS = LabMaze.actions.displacements
NOOP, FORWARD, BACK, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(7)


class LineEnv(gymnasium.Env[np.ndarray, int]):
    """A dot on an endless line: its brightness tells where it is."""

    def __init__(self, image_size: int, max_episode_steps: int | None) -> None:
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.size = image_size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        self.place = (seed or 0) % 100
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.place += (0, 1, -1)[action]
        return self._frame(), 0.0, False, False, {}

    def _frame(self) -> np.ndarray:
        return np.full((self.size, self.size, 3), self.place % 256, np.uint8)


class Line(World):
    """A world without poses, whose actions have opposites."""

    name, fps = "Line", 10.0
    keys = (("a", "left"), ("d", "right"))
    actions = ActionSet("Line", ("stay", "left", "right"), keys, ((), ("left",), ("right",)), (("left", "right"),))

    def make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        return LineEnv(**settings)


class Mute(Line):
    """A world of whose actions nothing is known."""

    name = "Mute"
    actions = ActionSet("Mute", ("stay", "left", "right"), Line.keys, ((), ("left",), ("right",)))


class Sevenths(LabMaze):
    """A maze whose turns make no full turn."""

    name = "Sevenths"
    actions = ActionSet("Sevenths", ("go", "left", "right"), (), ((), (), ()), (), ((0, 0.1), (7, 0), (-7, 0)))


HERE = "tests.train.test_memory_making"


def make(out: Path, **options: Any) -> dict[str, Any]:
    return make_tests(MakeOptions(out=out, **{"world": STUB, "count": 2, "image_size": 16, **options}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tests")
    found = make(folder)
    assert found == {"made": dict.fromkeys(KINDS, 2), "there": dict.fromkeys(KINDS, 2), "left_out": {}}
    return folder


def poses_of(session: Session) -> np.ndarray:
    return read_episode(session.episodes[0], fields=("pose",))["pose"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_walk_comes_back(kind: str, made: Path) -> None:
    for number in range(2):
        session = read_session(made / f"{kind}-{number:05d}.h5")
        assert session.info.source == "real" and session.info.world == STUB
        assert read_shard(session.path).split == "test" and session.episodes[0].scene_seed % TEST_SCENE_DIVISOR == 0
        assert session.episodes[0].policy == kind and len(session.revisits) >= 2
        arrays = read_episode(session.episodes[0], fields=("frames", "pose", "rewards", "actions"))
        for revisit in session.revisits:
            first, second = revisit.first.frame, revisit.second.frame
            assert revisit.kind == kind and second - first >= 8
            np.testing.assert_array_equal(arrays["frames"][first], arrays["frames"][second])
            np.testing.assert_allclose(arrays["pose"][first, :2], arrays["pose"][second, :2], atol=1e-4)
            assert not arrays["rewards"][first:second].any()


def test_kinds_are_what_they_are_called(made: Path) -> None:
    spin = poses_of(read_session(made / "spin-00000.h5"))
    np.testing.assert_array_equal(np.ptp(spin[:, :2], axis=0), 0)

    aba = poses_of(read_session(made / "aba-00000.h5"))[:, :2]
    there = int(np.argmax(np.linalg.norm(aba - aba[0], axis=1)))
    way_out = aba[60 : there + 1]
    for place in aba[there:]:
        assert np.linalg.norm(way_out - place, axis=1).min() < 1e-3  # back over the same places
    assert np.linalg.norm(aba[there] - aba[0]) > 1

    abca = poses_of(read_session(made / "abca-00000.h5"))[:, :2]
    moving = np.flatnonzero(np.linalg.norm(np.diff(abca, axis=0), axis=1) > 1e-3)
    half = (moving[0] + moving[-1]) // 2
    out, home = abca[moving[0] : half], abca[half : moving[-1]]
    far = home[np.linalg.norm(home - abca[0], axis=1) > 1.2]
    apart = np.linalg.norm(far[:, None] - out[None], axis=2).min(1)
    assert (apart > 0.5).mean() > 0.5  # home by other places

    mirror = read_episode(read_session(made / "mirror-00000.h5").episodes[0], fields=("actions",))["actions"]
    assert len({*mirror.tolist()}) >= 3
    out_and_back = poses_of(read_session(made / "out_and_back-00000.h5"))
    assert 1 < len({round(float(h)) % 180 for h in out_and_back[:, 2]}) <= 30


def test_equal_seeds_make_equal_files_and_an_interrupted_run_goes_on(made: Path, tmp_path: Path) -> None:
    make(tmp_path / "a", kinds=("spin", "mirror"), count=1)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "a").iterdir())}
    assert sorted(files) == ["mirror-00000.h5", "spin-00000.h5", "tests.json"]
    for name in ("mirror-00000.h5", "spin-00000.h5"):
        assert files[name] == (made / name).read_bytes()  # whatever else is made

    (tmp_path / "a" / "mirror-00000.h5").unlink()
    (tmp_path / "a" / "spin-00000.h5").write_bytes(files["spin-00000.h5"][:5000])
    (tmp_path / "a" / ".making").mkdir()
    (tmp_path / "a" / ".making" / "mirror-00000.journal").write_bytes(b"half a test")
    with pytest.warns(UserWarning, match="making it again: .*damaged"):
        found = make(tmp_path / "a", kinds=("spin", "mirror"), count=1)
    assert found["made"] == {"spin": 1, "mirror": 1}
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "a").iterdir())} == files
    assert make(tmp_path / "a", kinds=("spin",), count=1)["made"] == {"spin": 0}

    make(tmp_path / "b", kinds=("mirror",), count=1, seed=1)
    assert (tmp_path / "b" / "mirror-00000.h5").read_bytes() != files["mirror-00000.h5"]
    with pytest.raises(DataError, match="holds tests made with seed=0: give the same options to go on, or another"):
        make(tmp_path / "a", kinds=("spin",), seed=1)
    (tmp_path / "a" / "tests.json").write_text("rubbish")
    with pytest.raises(DataError, match=r"tests\.json is damaged: delete it"):
        make(tmp_path / "a", kinds=("spin",))


def test_a_world_without_poses_is_walked_by_actions_alone(tmp_path: Path) -> None:
    found = make(tmp_path, world=f"{HERE}:Line")
    assert list(found["made"]) == ["mirror"] and "no displacements" in found["left_out"]["spin"]
    assert "has no pose" in found["left_out"]["aba"]
    for session in read_sessions(tmp_path):
        frames = read_episode(session.episodes[0])["frames"]
        assert session.revisits[-1].first.frame == 0
        for revisit in session.revisits:
            np.testing.assert_array_equal(frames[revisit.first.frame], frames[revisit.second.frame])


def test_what_a_world_lacks_is_said_in_one_error(tmp_path: Path) -> None:
    message = r"cannot make mirror in Mute: Mute declares neither displacements nor opposites \(ActionSet\)"
    with pytest.raises(DataError, match=message):
        make(tmp_path, world=f"{HERE}:Mute", kinds=("mirror",))
    with pytest.raises(DataError, match="cannot make spin, mirror, loop, .* in Mute"):
        make(tmp_path, world=f"{HERE}:Mute")
    with pytest.raises(DataError, match="turns of 7 degrees do not make 360"):
        choose_kinds(Sevenths(), ("spin",))
    with pytest.raises(ConfigError, match="unknown kind 'walk'; there are spin, mirror, loop, out_and_back, aba, abca"):
        make(tmp_path, kinds=("spin", "walk"))
    with pytest.raises(DataError, match="no walk of kind spin found in 240 starts of Stub: raise --longest above 100"):
        make(tmp_path, kinds=("spin",), longest=100)
    with pytest.raises(ConfigError, match="count must be at least 1; got 0"):
        make(tmp_path, count=0)
    with pytest.raises(SeedError, match="seed must be 0 or more; got -1"):
        make(tmp_path, seed=-1)
    with pytest.raises(ConfigError, match="'size=big'"):
        make(tmp_path, set=("size=big",))


def test_a_floor_leaves_out_walls_and_spheres_that_would_be_taken() -> None:
    layout = np.ones((5, 6), np.uint8)
    layout[1:4, 1:5] = 0
    info = {"pose": np.array([1.5, 1.5, 0]), "layout": layout, "targets": np.array([[2.5, 1.5], [3.5, 2.5]])}
    info["targets_reached"] = np.array([False, True])
    floor = MazeFloor(info)
    rng = np.random.default_rng(0)
    goal = int(np.flatnonzero((floor.places == [4.5, 1.5]).all(1))[0])
    np.testing.assert_array_equal(floor.places[floor.here], [1.5, 1.5])
    way = floor.places[floor.find_way(floor.here, goal, (), rng)].tolist()
    assert way[0] == [1.5, 1.5] and way[-1] == [4.5, 1.5] and len(way) == 6 and [2.5, 1.5] not in way
    assert floor.find_way(floor.here, 0, (), rng) == [] and floor.find_way(goal, goal, (), rng) == []
    with pytest.raises(DataError, match="info has no layout"):
        MazeFloor({"pose": np.zeros(3)})


def test_how_a_walk_comes_back_is_told_by_its_actions() -> None:
    look = [LEFT] * 15 + [RIGHT] * 15
    square = ([FORWARD] * 10 + [LEFT] * 15) * 4
    there_and_back = [FORWARD] * 20 + [LEFT] * 30 + [FORWARD] * 20 + [LEFT] * 30
    assert find_way(np.array([LEFT] * 120), 60, 120, MOTIONS) == "replay"
    assert find_way(np.array([LEFT] * 60), 0, 60, MOTIONS) == "loop"  # once round: nothing was there before
    assert find_way(np.array(look), 0, 30, MOTIONS) == "open return"
    assert find_way(np.array(square), 0, 100, MOTIONS) == "loop"
    assert find_way(np.array(square * 2), 100, 200, MOTIONS) == "replay"
    assert find_way(np.array(there_and_back), 0, 100, MOTIONS) == "open return"
    assert find_way(np.array([FORWARD] * 9 + [BACK] * 9), 0, 18, MOTIONS) == "open return"
    assert find_way(np.array([FORWARD] * 9 + [BACK] * 9), 0, 18, ()) == "unknown"


def test_returns_are_found_by_poses() -> None:
    there = np.stack([np.arange(40) * 0.1, np.zeros(40), np.zeros(40)], 1)
    poses = Poses(np.concatenate([there, there[::-1]]))
    found = poses.find_returns(0, 0.5)
    assert found and all(first + second == 79 for first, second in found) and found[-1] == (0, 79)
    assert all(second >= 50 for _, second in poses.find_returns(50, 0.5))
    still = Poses(np.concatenate([np.zeros((60, 3)), there]))
    assert still.find_returns(0, 0.5) == []  # who stands still does not come back
    turned = Poses(np.array([[0.0, 0, 0, 350, 0], [0, 0, 0, 356, 0], [0, 0, 0, 350.5, 0], [0, 0, 0, 350, 4]]))
    assert turned.is_same(np.array([0, 0, 0]), np.array([1, 2, 3])).tolist() == [False, True, False]


@pytest.mark.slow
def test_walks_through_the_real_maze_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    make(tmp_path, world="labmaze", kinds=("spin", "mirror", "abca"), count=1, image_size=32)
    sessions = read_sessions(tmp_path)
    assert [session.path.stem for session in sessions] == ["abca-00000", "mirror-00000", "spin-00000"]
    for session in sessions:
        assert {"pose", "layout", "wall_textures", "blocked"} <= set(session.episodes[0].fields)
        frames = read_episode(session.episodes[0])["frames"].astype(int)
        for revisit in session.revisits:
            error = frames[revisit.first.frame] - frames[revisit.second.frame]
            assert np.abs(error).mean() < 0.5
        assert frames.std(0).mean() > 5  # and it was elsewhere
    assert json.loads((tmp_path / "tests.json").read_text())["options"]["world"] == "LabMaze"
