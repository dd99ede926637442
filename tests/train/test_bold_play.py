"""Bold play: who sees nothing new in a full turn is blind, and pictures that are no world do not pass."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from envs.dream import DreamEnv
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from train.evaluate import evaluate_world
from train.measures.bold_play import (
    BoldPlay,
    BoldPlayer,
    BoldPlayOptions,
    DreamPlayground,
    Playground,
    play_boldly,
    reduce_frames,
    summarize,
)
from worldmodel.checkpoint import load_openings
from worldmodel.errors import CheckpointError, ConfigError, DataError, SeedError
from worldmodel.world import WorldModel

MOTIONS = LABMAZE_ACTIONS.displacements
AHEAD, LEFT, RIGHT = 1, 3, 4
SIZE = 32


class Panorama(Playground):
    """A picture that turns with the player, and stands still while it walks."""

    def __init__(self) -> None:
        self.around = np.random.default_rng(0).integers(256, size=(60, 3), dtype=np.uint8)
        self.headings: list[int] = []
        self.actions: list[int] = []

    def show(self) -> np.ndarray:
        columns = np.arange(SIZE) // 4
        views = [self.around[(heading + columns) % 60] for heading in self.headings]
        return np.stack([np.broadcast_to(view, (SIZE, SIZE, 3)) for view in views])

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        self.headings = [0] * len(seeds)
        return self.show()

    def step(self, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        self.actions.append(actions[0])
        self.headings = [h + {LEFT: -1, RIGHT: 1}.get(a, 0) for h, a in zip(self.headings, actions, strict=True)]
        return self.show(), np.zeros(len(actions), bool)

    def restart(self, row: int, seed: int) -> np.ndarray:
        raise AssertionError("nothing ends here")


class Frozen(Panorama):
    """Shows the same whatever is done."""

    def show(self) -> np.ndarray:
        return np.full((len(self.headings), SIZE, SIZE, 3), 90, np.uint8)


class Noise(Panorama):
    """Shows other squares of other colors each time."""

    rng = np.random.default_rng(1)

    def show(self) -> np.ndarray:
        squares = self.rng.integers(256, size=(len(self.headings), 8, 8, 3), dtype=np.uint8)
        return squares.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


class Snow(Panorama):
    """Shows other pixels each time, of which no square stands out."""

    rng = np.random.default_rng(2)

    def show(self) -> np.ndarray:
        return self.rng.integers(256, size=(len(self.headings), 64, 64, 3), dtype=np.uint8)


class Ending(Panorama):
    """Ends after every tenth step."""

    def __init__(self) -> None:
        super().__init__()
        self.restarted: list[tuple[int, int]] = []

    def step(self, actions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        frames, ended = super().step(actions)
        ended[1:] = len(self.actions) % 10 == 0
        return frames, ended

    def restart(self, row: int, seed: int) -> np.ndarray:
        self.restarted.append((row, seed))
        self.headings[row] = 0
        return np.asarray(self.show()[row])


def play(playground: Playground, num_frames: int = 150, seeds: Sequence[int] = (1, 2)) -> BoldPlay:
    counted: list[int] = []
    found = play_boldly(playground, seeds, num_frames, MOTIONS, counted.append)
    assert sum(counted) == len(seeds) * (num_frames + 60 * (num_frames // 150))
    return found


def test_a_world_that_turns_with_the_player_passes() -> None:
    found = summarize(play(Panorama(), 300))
    assert found["full_turns"] == 4 and found["blind_turns"]["rate"] == 0
    assert found["mean_new_view"]["value"] > 0.9 and found["full_turn_psnr"]["value"] == 60
    low, high = found["blind_turns"]["interval"]
    assert low == 0 and 0.3 < high < 0.7  # four turns prove little


def test_a_frozen_picture_is_blind() -> None:
    found = summarize(play(Frozen()))
    assert found["blind_turns"]["rate"] == found["blind_at_end"]["rate"] == 1
    assert found["mean_new_view"]["value"] == 0
    assert found["full_turn_psnr"] == {"value": None, "interval": None, "turns": 0}  # no turn to be proud of


def test_noise_does_not_pass() -> None:
    found = summarize(play(Noise()))
    assert found["blind_turns"]["rate"] == 0 and found["full_turn_psnr"]["value"] < 12
    assert summarize(play(Snow()))["blind_turns"]["rate"] == 1


def test_a_player_walks_on_and_turns_aside_where_the_picture_stands_still() -> None:
    world = Frozen()
    play(world, seeds=[5])
    walked = world.actions[:150]
    assert walked[:3] == [AHEAD] * 3 and {AHEAD, LEFT} <= set(walked) <= {AHEAD, LEFT, RIGHT}
    runs = "".join("a" if action == AHEAD else "t" for action in walked).split("a")
    turns = [len(run) for run in runs if run][:-1]
    assert min(turns) >= 7 and len(turns) > 5
    player, frames = BoldPlayer(AHEAD, (LEFT, RIGHT), 3), np.random.default_rng(0)
    taken = []
    for _ in range(40):
        taken.append(player.next())
        player.see(frames.integers(256, size=(8, 8, 3), dtype=np.uint8))
    assert taken.count(AHEAD) > 15  # where all moves on only a whim turns it


def test_worlds_that_end_are_begun_anew() -> None:
    world = Ending()
    play(world)
    assert [row for row, _ in world.restarted] == [1] * 15
    assert [seed for _, seed in world.restarted][:2] == [2 + 100_010, 2 + 100_020]


def test_intervals_are_drawn_over_players() -> None:
    blank = np.zeros((4, 10, 8, 8, 3), np.uint8)
    news = np.array([[0.0, 0.5], [0.5, 0.9], [0.05, 0.0], [0.9, 0.9]])
    found = summarize(BoldPlay(news, np.full((4, 2), 0.01), blank, blank))
    assert found["blind_turns"]["rate"] == 0.375 and found["blind_at_end"]["rate"] == 0.25
    assert found["mean_new_view"]["value"] == pytest.approx(news.mean(), abs=1e-3)
    low, high = found["mean_new_view"]["interval"]
    assert low < news.mean() < high and high - low > 0.3
    assert found["full_turn_psnr"]["value"] == 20 and found["full_turn_psnr"]["turns"] == 5


def test_squares_are_means() -> None:
    frame = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    assert reduce_frames(frame)[2, 3] == pytest.approx(frame[4:6, 6:8].reshape(-1, 3).mean(0))
    with pytest.raises(ConfigError, match="squares"):
        reduce_frames(np.zeros((12, 12, 3), np.uint8))


def test_dreams_begin_as_those_of_the_environment(bundle: Path) -> None:
    model = WorldModel.load(bundle, device="cpu", num_steps=1)
    dreams = DreamPlayground(model, load_openings(bundle))
    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    frames = dreams.start([7, 8])
    assert np.array_equal(frames[1], env.reset(seed=8)[0])
    shown = [dreams.step([AHEAD, LEFT])[0][1] for _ in range(2)]
    again = [env.step(LEFT)[0] for _ in range(2)]
    assert np.abs(np.stack(shown).astype(int) - np.stack(again)).max() <= 2  # a batch rounds otherwise
    assert np.array_equal(dreams.restart(0, 8), frames[1])
    assert np.abs(dreams.step([LEFT, AHEAD])[0][0].astype(int) - again[0]).max() <= 2


@pytest.mark.slow
def test_it_is_measured_without_a_recording(bundle: Path, tmp_path: Path) -> None:
    model = WorldModel.load(bundle, device="cpu", num_steps=1)
    options = BoldPlayOptions(seeds=3, frames=150)
    report = evaluate_world(model, tmp_path, {"bold_play": options}, batch_size=2)
    found = report["measures"]["bold_play"]
    assert found["dream"]["full_turns"] == 3 and "real" not in found
    assert report["settings"]["measures"]["bold_play"]["seeds"] == 3
    assert {path.name for path in (tmp_path / "bold_play").iterdir()} == {"dream_walks.png", "dream_turns.png"}
    text = (tmp_path / "report.md").read_text()
    assert "| dream | " in text and "held-out" not in text


def test_options_that_cannot_be_are_refused() -> None:
    for changes in ({"frames": 149}, {"seeds": 0}):
        with pytest.raises(ConfigError, match="at least"):
            BoldPlayOptions(**changes)
    with pytest.raises(SeedError):
        BoldPlayOptions(first_seed=-1)


def test_a_model_without_openings_or_known_displacements_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = WorldModel.load(bundle, device="cpu")
    model.source = None
    with pytest.raises(CheckpointError, match="openings of a bundle"):
        evaluate_world(model, tmp_path, {"bold_play": BoldPlayOptions()})
    monkeypatch.setattr(LabMaze, "actions", dataclasses.replace(LABMAZE_ACTIONS, displacements=()))
    with pytest.raises(DataError, match="ActionSet.displacements"):
        evaluate_world(model, tmp_path, {"bold_play": BoldPlayOptions()})
