"""Calibration: scores of probabilities, Platt's fit, dreams along a recording, and a world that carries the fit."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.data.episodes import open_shards
from train.calibrate import CalibrateOptions, calibrate
from train.data.clips import list_episodes
from train.measures.calibration import Calibration, CalibrationOptions, choose_pieces, predict_events
from worldmodel.analysis.calibration import Predicted, fit_platt, log_loss, score_probabilities
from worldmodel.checkpoint import load_info, save_bundle
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.reward_rule import HeadCalibration
from worldmodel.world import WorldModel

SMALL = CalibrationOptions(dreams=4, context=4, horizon=4)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, shard_writer: Callable[..., None]) -> Path:
    """A recording of frames as small as those of the tiny bundle."""
    folder = tmp_path_factory.mktemp("played") / "world"
    shard_writer(folder / "train-00000.h5", [24, 30], "train", image_size=32, seed=1)
    return folder


def draw(scale: float, shift: float, count: int = 20_000) -> Predicted:
    """Predictions whose logits must be scaled and shifted to be right."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, generator=generator)
    happened = torch.rand(count, generator=generator) < (scale * logits + shift).sigmoid()
    return Predicted(logits.sigmoid(), happened, torch.ones(count))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.4, -1.5), (2.0, 1.0)])
def test_platts_fit_finds_what_is_wrong_with_probabilities(scale: float, shift: float) -> None:
    predicted = draw(scale, shift)
    found = fit_platt(predicted)
    assert found == pytest.approx((scale, shift), abs=0.15)
    after = log_loss(predicted, found[0] * predicted.logits + found[1])
    assert after <= log_loss(predicted) + 1e-9
    if scale != 1:
        assert after < 0.97 * log_loss(predicted)


def test_right_probabilities_lie_on_the_line_and_wrong_ones_do_not() -> None:
    for scale, is_right in ((1.0, True), (0.3, False)):
        bins = score_probabilities(draw(scale, 0.0))["bins"]
        apart = max(abs(part["predicted"] - part["happened"]) for part in bins if part["count"] > 200)
        assert (apart < 0.06) == is_right


def test_the_loss_of_the_rate_is_the_entropy_of_the_rate_and_weights_count() -> None:
    happened = torch.tensor([True, False, False, False])
    predicted = Predicted(torch.full((4,), 0.25), happened, torch.ones(4))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    scores = score_probabilities(predicted)
    assert scores["log_loss"] == pytest.approx(entropy) == scores["log_loss_of_rate"]
    heavy = Predicted(torch.full((4,), 0.25), happened, torch.tensor([3.0, 1, 1, 1]))
    assert score_probabilities(heavy)["rate"] == 0.5 and score_probabilities(heavy)["bins"][0]["happened"] == 0.5


def test_nothing_to_fit_leaves_probabilities_as_they_are() -> None:
    for happened in (torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)):
        assert fit_platt(Predicted(torch.rand(5), happened, torch.ones(5))) == (1.0, 0.0)


def test_pieces_with_and_without_events_weigh_what_there_is_of_them(played: Path) -> None:
    episodes = list_episodes(open_shards(played))
    everything = CalibrationOptions(dreams=10_000, context=4, horizon=4)
    pieces, weights = choose_pieces(episodes, everything, np.random.default_rng(0))
    some, heavy = choose_pieces(episodes, SMALL, np.random.default_rng(0))
    assert len(some) == 4 and sum(heavy) == pytest.approx(sum(weights)) and {*weights} == {1.0}
    assert {(p.episode.path, p.episode.key, p.start) for p in some} <= {
        (p.episode.path, p.episode.key, p.start) for p in pieces
    }


def test_a_world_is_calibrated_and_only_its_probabilities_change(
    bundle: Path, played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "world"
    options = CalibrateOptions(checkpoint=str(bundle), data=played, out=out, dreams=SMALL, batch_size=3)
    found = calibrate(options)
    carried = HeadCalibration.of(load_info(out))
    assert carried.reward == pytest.approx((found["reward"]["scale"], found["reward"]["shift"]), abs=1e-3)
    with pytest.raises(ConfigError, match="there already"):
        calibrate(options)
    save_bundle(out, info=load_info(out) | {"calibration": {"reward": [0.5, -1.0], "terminated": [2.0, 0.5]}})
    monkeypatch.setattr("train.calibrate.fit_platt", lambda predicted: (2.0, 0.3))
    calibrate(dataclasses.replace(options, checkpoint=str(out), out=tmp_path / "again"))
    both = HeadCalibration.of(load_info(tmp_path / "again"))
    assert both.reward == pytest.approx((1.0, -1.7)) and both.terminated == pytest.approx((4.0, 1.3))
    assert sorted(path.name for path in out.parent.iterdir()) == ["world"]

    episodes = list_episodes(open_shards(played))
    changed = load_info(bundle) | {"calibration": {"reward": [0.5, -1.0], "terminated": [2.0, 0.5]}}
    worlds = [WorldModel.load(bundle, device="cpu"), WorldModel.load(bundle, device="cpu")]
    worlds[1] = WorldModel(worlds[0].codec, worlds[0].denoiser, device="cpu", info=changed)
    raw, mended = (predict_events(world, episodes, SMALL, 4, 0) for world in worlds)
    for name, (scale, shift) in changed["calibration"].items():
        want = (scale * raw[name].logits + shift).sigmoid()
        assert torch.allclose(mended[name].probability.double(), want, atol=1e-4)
        assert torch.equal(mended[name].happened, raw[name].happened)


@pytest.mark.parametrize("found", [{"reward": [0, 1]}, {"reward": 3}, {"other": [1, 0]}, {"reward": [1, math.inf]}, 7])
def test_a_damaged_calibration_is_refused(found: Any) -> None:
    with pytest.raises(CheckpointError, match=r"train\.calibrate"):
        HeadCalibration.of({"calibration": found})


def test_the_report_has_both_heads(bundle: Path, played: Path) -> None:
    episodes = list_episodes(open_shards(played))
    found = predict_events(WorldModel.load(bundle, device="cpu"), episodes, SMALL, 4, 0)
    lines = Calibration().lines({name: score_probabilities(part) for name, part in found.items()})
    assert sum(line.startswith("| reward") for line in lines) >= 2 and json.dumps(lines)


def test_what_has_no_event_and_what_has_a_rule_is_predicted(played: Path, bundle: Path) -> None:
    """All pieces of one kind are no fault; the rule of a world does not touch what its heads are judged by."""
    episodes = list_episodes(open_shards(played))
    world = WorldModel.load(bundle, device="cpu")
    with torch.no_grad():
        world.denoiser.reward_head.bias.copy_(torch.tensor([-50.0, 50.0]))  # so that the rule has something to say
    plain = predict_events(world, episodes, SMALL, 4, 0)
    ruled = WorldModel(world.codec, world.denoiser, device="cpu", info={"reward_rule": {"ends_after": 1}})
    found = predict_events(ruled, episodes, SMALL, 4, 0)
    assert torch.equal(found["terminated"].probability, plain["terminated"].probability)
    assert ruled.reward_rule.ends_after == 1
    for options in (
        CalibrationOptions(dreams=2, context=20, horizon=9),
        CalibrationOptions(dreams=2, context=4, horizon=19),
    ):
        pieces, weights = choose_pieces(episodes, options, np.random.default_rng(0))
        assert len(pieces) == len(weights) > 0
