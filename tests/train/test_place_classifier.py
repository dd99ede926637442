"""The judge of place recall on painted rooms: it learns, keeps what it learned, and refuses what it was not taught."""

from pathlib import Path

import numpy as np
import pytest
import torch

import train.measures.place_classifier
from envs.data.episodes import open_shards
from tests.painted_maze import FLOOR_STEP, ROOM, WALL_STEP, dress, turn_away, write_turns
from train.measures.place_classifier import (
    PlaceClassifier,
    PlaceNet,
    label_frames,
    load_or_train,
    measure_accuracy,
    shrink,
)
from worldmodel.errors import CheckpointError, DataError

QUICK = {"num_steps": 120, "batch_size": 64}
ROOMS = [dress(ROOM, (0, 1, 2, 3), 0), dress(ROOM, (4, 5, 6, 7), 1), dress(ROOM, (3, 7, 0, 5), 2)]
LOOK_ROUND = np.arange(0, 720, 4.0)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    write_turns(folder, [LOOK_ROUND] * 3, ROOMS, "train")
    return write_turns(folder, [turn_away(30)] * 3, ROOMS, "test")


@pytest.fixture(scope="module")
def classifier_file(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("classifier") / "places.safetensors"
    load_or_train(painted, file, **QUICK)
    return file


def test_it_names_real_frames_of_held_out_scenes(
    painted: Path, classifier_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(train.measures.place_classifier, "train_classifier", fail)
    classifier = load_or_train(painted, classifier_file)
    assert classifier.facts["labels"] == {"wall": 8, "floor": 3}
    assert classifier.facts["accuracy"] >= 0.95 and classifier.facts["held_out_frames"] > 50
    guess = PlaceClassifier(PlaceNet([8, 3]), classifier.labels, dict(classifier.facts))
    assert measure_accuracy(guess, open_shards(painted, "test"))["accuracy"] < 0.6  # the measure can fail


def test_labels_are_those_of_the_painted_walls(painted: Path) -> None:
    counts = []
    for is_judged in (True, False):
        frames, labels = label_frames(open_shards(painted, "test"), 500, 0, is_judged=is_judged)
        assert torch.equal(frames[:, 16, 16, 0].long(), WALL_STEP * labels[:, 0])
        assert torch.equal(frames[:, 30, 16, 1].long(), FLOOR_STEP * labels[:, 1])
        counts.append(len(frames))
    assert counts[0] < counts[1]  # labels are learned from more than is judged


def test_another_recording_is_learned_anew(painted: Path, classifier_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "places.safetensors"
    file.write_bytes(classifier_file.read_bytes())
    other = write_turns(tmp_path / "other", [LOOK_ROUND] * 2, ROOMS[:2], "train")
    write_turns(other, [LOOK_ROUND] * 2, ROOMS[:2], "test")
    assert load_or_train(other, file, num_steps=2).facts["steps"] == 2
    assert file.read_bytes() != classifier_file.read_bytes()


def test_a_damaged_file_is_named(painted: Path, classifier_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "places.safetensors"
    file.write_bytes(classifier_file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="places.safetensors is damaged.*delete it"):
        load_or_train(painted, file, **QUICK)


def test_labels_that_were_not_taught_are_refused(classifier_file: Path, painted: Path, tmp_path: Path) -> None:
    strange = write_turns(tmp_path, [LOOK_ROUND], [dress(ROOM, (9, 9, 9, 9))], "test")
    with pytest.raises(DataError, match="shows wall 9.*the classifier knows wall 0 to 7"):
        load_or_train(painted, classifier_file, held_out=strange)


def test_a_recording_without_training_scenes_or_pose_is_refused(tmp_path: Path) -> None:
    held_out = write_turns(tmp_path / "a", [LOOK_ROUND], ROOMS[:1], "test")
    with pytest.raises(DataError, match="no 'train' shards"):
        load_or_train(held_out, tmp_path / "places.safetensors")
    blind = write_turns(tmp_path / "b", [LOOK_ROUND], ROOMS[:1], "train", drop=("pose",))
    with pytest.raises(DataError, match="has no pose"):
        load_or_train(blind, tmp_path / "places.safetensors")


def test_frames_are_averaged_down() -> None:
    frames = torch.arange(2 * 64 * 64 * 3).reshape(2, 64, 64, 3).remainder(256).to(torch.uint8)
    small = shrink(frames)
    assert tuple(small.shape) == (2, 32, 32, 3)
    assert small[1, 3, 5, 2] == frames[1, 6:8, 10:12, 2].float().mean().round()
    assert shrink(small) is small
