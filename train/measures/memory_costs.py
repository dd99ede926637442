"""What memory costs: parameters, operations and bytes of each memory structure, by memory length.

Owns: the structures that are compared and how their cost is counted. Nothing is trained and nothing is timed:
operations are counted by torch while an untrained network denoises one frame with a full memory. Needs no recording.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.measures.base import Bench, Measure, read_numbers
from train.reports.plots import markdown_row
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.inputs import FrameInputs

BUDGET = 16  # slots of the compressed structures
COLUMNS = ("structure", "memory_frames", "slots", "parameters", "flops_a_call", "cache_bytes", "bytes_a_frame")


@dataclass(frozen=True)
class MemoryCostsOptions:
    """Settings of the comparison.

    Attributes:
        lengths: frames remembered, with commas.
    """

    lengths: str = "16,48,112,304"

    def __post_init__(self) -> None:
        read_numbers("lengths", self.lengths)


class MemoryCosts(Measure):
    """What each memory structure costs, for a network of the world's shape."""

    name = "memory_costs"
    Options = MemoryCostsOptions
    needs = ()

    def num_frames(self, bench: Bench, options: MemoryCostsOptions) -> int:
        """Return the frames to denoise: one for each structure and length."""
        return sum(len(structures(length)) for length in read_numbers("lengths", options.lengths))

    def run(self, bench: Bench, options: MemoryCostsOptions) -> dict[str, Any]:
        """Count; `rows` are those of `memory_costs`."""
        lengths = read_numbers("lengths", options.lengths)
        return {"rows": memory_costs(bench.model.denoiser.config, lengths, bench.on_frames)}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table, a row for each structure and length."""
        titles = ("structure", "memory, frames", "slots", "parameters", "MFLOP a call", "cache, KiB", "bytes a frame")
        lines = [markdown_row(*titles), markdown_row(*["---"] * len(titles))]
        for row in found["rows"]:
            size, flops = f"{row['parameters'] / 1e6:.2f} M", f"{row['flops_a_call'] / 1e6:.1f}"
            cells = (row["structure"], row["memory_frames"], row["slots"], size, flops)
            lines.append(markdown_row(*cells, f"{row['cache_bytes'] / 1024:.0f}", row["bytes_a_frame"]))
        return lines


def structures(length: int) -> list[dict[str, Any]]:
    """Return the settings of every memory structure with a memory of `length` frames."""
    frames = {"memory_frames": length}
    return [
        {"memory": "summary", **frames},
        {"memory": "prepend", **frames},
        {"memory": "prepend", "compression": "joint", "budget": min(BUDGET, length), **frames},
        {"memory": "channel", **frames},
        {"memory": "channel", "compression": "modulated", "budget": min(BUDGET, length), **frames},
        {"memory": "cross", **frames},
    ]


@torch.enable_grad()  # so that attention is written out: torch does not count its fused form on a CPU
def count_flops(denoiser: Denoiser, frames: int = 1, memory_frames: int | None = None) -> int:
    """Return the floating-point operations of one call for `frames` new frames, every slot of the memory filled.

    Matrix products, convolutions and attention count, a multiplication and an addition as two.
    """
    config, device = denoiser.config, denoiser.to_clean.weight.device
    cache = denoiser.new_cache(1, memory_frames)
    cache.count += 2 * config.memory_frames + config.recent_frames
    latent = (config.latent_channels, config.latent_size, config.latent_size)
    with FlopCounterMode(display=False) as counter:
        latents, levels = torch.zeros(1, frames, *latent, device=device), torch.ones(1, frames, device=device)
        actions = torch.zeros(1, frames, dtype=torch.int64, device=device)
        denoiser(FrameInputs.stack(latents, levels, actions, config.num_previous), cache=cache)
    return int(counter.get_total_flops())


def memory_costs(
    config: DenoiserConfig, lengths: Sequence[int], on_frames: Callable[[int], object] = lambda count: None
) -> list[dict[str, Any]]:
    """Count the cost of every structure at every length, in a network of otherwise the given shape.

    Args:
        config: of a denoiser.
        lengths: frames remembered.
        on_frames: told 1 after every structure.

    Returns:
        a row for each, keys `COLUMNS`: `slots` kept; `parameters` of the denoiser; `flops_a_call`: of one network call
        for one frame (a dreamt frame takes one for each denoising step); `cache_bytes` of one dream in float32, which
        do not grow with its age; `bytes_a_frame`: cache over remembered frames.
    """
    rows = []
    for length in lengths:
        for changes in structures(length):
            own = {"compression": "none", "budget": 0, "displacements": (), **changes}
            denoiser = Denoiser(dataclasses.replace(config, **own)).eval()
            held = denoiser.new_cache(1).num_bytes
            setting = denoiser.config.setting
            name = setting.structure if setting.compression == "none" else f"{setting.structure}, {setting.compression}"
            parameters = sum(p.numel() for p in denoiser.parameters())
            values = (name, length, setting.budget, parameters, count_flops(denoiser), held, held // length)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            on_frames(1)
    return rows
