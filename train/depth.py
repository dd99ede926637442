"""Program: train the depth network. `python -m train.depth --data DIR --out DIR --minutes 10`.

Owns: its options, its two losses (frames predict each other; recorded depth), and the report. The loop is
`train.core.loop`'s, the photometric loss `train.losses.photometric`'s.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from envs.data.episodes import ShardInfo, open_shards
from envs.worlds import registry
from train.core.loop import TrainOptions, train_model
from train.core.machine import Machine, start_machine
from train.core.options import options_to_json, parse_options, run_program
from train.data.depth import DepthData, distort
from train.losses.photometric import PosedFrames, photometric_loss
from train.reports.depth import measure_depth, measure_speed, write_report
from worldmodel.checkpoint import save_depth
from worldmodel.errors import ConfigError, DataError
from worldmodel.memory.depth import DepthConfig, DepthNet


@dataclass(frozen=True)
class DepthOptions(TrainOptions):
    """Train what tells how far away things are, from frames and the poses they were seen from."""

    batch_size: int = 12
    """Frames a step and process."""
    learning_rate: float = 2.5e-3
    """Peak learning rate."""
    decay_share: float = 0.5
    """Share of the run at its end over which the learning rate falls to zero."""
    compile: bool = False
    """Compile the model (torch.compile) where a compiler is found; a short run is over before it pays."""
    supervision: Literal["auto", "photometric", "depth"] = "auto"
    """What to learn from: how frames predict each other, or recorded depth; auto: depth where all episodes have it."""
    view_deg: float | None = None
    """Angle of view of the camera in degrees; default that of the world, where it is known."""
    min_walk: float = 0.1
    """Least distance between frames that are compared, in the unit of poses (cells)."""
    horizon: float = 20.0
    """Depth beyond which everything counts as sky, in the unit of poses."""
    max_frames: int = 100_000
    """Frames held in memory to train on."""
    test_frames: int = 4_000
    """Held-out frames to measure on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_walk > 0 or self.max_frames < 1 or self.test_frames < 1:
            raise ConfigError(
                f"min_walk must be above 0, max_frames and test_frames at least 1; got {self.min_walk}, "
                f"{self.max_frames}, {self.test_frames}"
            )


class DepthLoss(nn.Module):
    """The loss of a depth network over frames with known poses, or with known depths."""

    def __init__(self, net: DepthNet) -> None:
        """Train `net`."""
        super().__init__()
        self.net = net

    def forward(
        self, shown: torch.Tensor, is_mirrored: torch.Tensor, **known: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and scalars to log.

        Args:
            shown: float (B, 3, H, W), frames as the network sees them.
            is_mirrored: bool (B,), show it the mirrored frame.
            known: what `PosedFrames` holds, or `depths`.
        """
        flipped = is_mirrored[:, None, None]
        codes = self.net.codes(torch.where(flipped[:, None], shown.flip(-1), shown))
        codes = torch.where(flipped, codes.flip(-1), codes)
        with torch.autocast(codes.device.type, enabled=False):
            if "depths" in known:
                return labeled_loss(self.net.config, codes, known["depths"])
            return photometric_loss(self.net.config, codes, PosedFrames(**known))


def labeled_loss(
    config: DepthConfig, codes: torch.Tensor, depths: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the error of codes (B, h, w), a log L1, and of their differences to neighbors; depths float (B, h, w)."""
    error = codes - config.to_code(depths)
    size = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return size + 0.5 * edges, {"code_error": size.detach()}


def find_view_deg(options: DepthOptions, shard: ShardInfo) -> float:
    """Return the angle of view of the recording's camera, degrees.

    Raises:
        ConfigError: neither the options nor the world tell it.
    """
    found = options.view_deg if options.view_deg is not None else registry.find_view_deg(shard.world)
    if found is None:
        raise ConfigError(f"the angle of view of {shard.world!r} is not known: give --view-deg")
    return found


def train_depth(options: DepthOptions, machine: Machine) -> dict[str, Any]:
    """Train, measure and save a depth network; return the summary.

    Raises:
        DataError: the recording cannot be used. ConfigError: the camera is not known. StorageError: a full disk.
    """
    shards = open_shards(options.data)
    config = DepthConfig(shards[0].image_size, find_view_deg(options, shards[0]), horizon=options.horizon)
    split = {name: [shard for shard in shards if shard.split == name] for name in ("train", "test")}
    train = DepthData.load(split["train"] or shards, options.max_frames, options.min_walk)
    test = DepthData.load(split["test"] or shards, options.test_frames, options.min_walk)
    if options.supervision == "depth" and train.depths is None:
        raise DataError(f"{options.data} has no field depth in every training episode: record it with --depth")
    is_labeled = options.supervision == "depth" or (options.supervision == "auto" and train.depths is not None)
    if not is_labeled and not len(train.centers):
        raise DataError(f"no frames of {options.data} lie {options.min_walk} apart: lower --min-walk")
    torch.manual_seed(options.seed)
    loss = DepthLoss(DepthNet(config))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        draw = train.sample_labeled if is_labeled else train.sample
        batch = draw(options.batch_size, generator)
        shown = distort(batch["pixels"], generator)
        if is_labeled:
            del batch["pixels"]
        return batch | {"shown": shown, "is_mirrored": torch.rand(len(shown), generator=generator) < 0.5}

    averaged, summary = train_model(options, machine, loss, [optimizer], sample, options.batch_size)
    if machine.is_main:
        # What ships is bfloat16: measure that.
        best = averaged.net.cpu().eval().to(torch.bfloat16).to(torch.float32)
        summary["supervision"] = "depth" if is_labeled else "photometric"
        summary["weights"] = sum(weight.numel() for weight in best.parameters())
        summary |= {f"test_{name}": value for name, value in measure_depth(best, test).items()}
        summary |= measure_speed(best)
        save_depth(options.out, best)
        content = {"options": options_to_json(options), "config": dataclasses.asdict(config), "summary": summary}
        write_report(options.out, content, best, test)
    return summary


def main() -> None:
    """Parse options, train, print the summary."""
    options = parse_options(DepthOptions, "python -m train.depth")
    summary = train_depth(options, start_machine(options.device))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()})


if __name__ == "__main__":
    run_program(main)
