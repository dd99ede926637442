"""The protocol of TECO: 144 true frames, then 156 dreamt ones under true actions.

Owns: the protocol and the published figures beside it.

Source: Yan et al. 2023 (arXiv:2210.02396), Sec. 4.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from train.data.rollouts import dream_on, in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.reports.plots import markdown_row
from worldmodel.analysis.bootstrap import mean_interval
from worldmodel.analysis.metrics import squared_error, ssim, to_psnr
from worldmodel.errors import ConfigError

TECO_CONTEXT, TECO_FRAMES = 144, 300
# DMLab at 64 px, trained on the 40,000 recorded trajectories of TECO (Yan et al. 2023; FAR: Gu et al. 2025). Another
# recording of other scenes than ours: stated for scale, not as a comparison of methods.
PUBLISHED = {
    "TECO": {"psnr": 21.9, "ssim": 0.703, "lpips": 0.157},
    "FAR-Long": {"psnr": 22.3, "ssim": 0.687, "lpips": 0.104},
}


@dataclass(frozen=True)
class TecoOptions:
    """Settings of the protocol.

    Attributes:
        cases: dreams.
    """

    cases: int = 64

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise ConfigError(f"cases must be at least 1; got {self.cases}")


class Teco(Measure):
    """PSNR and SSIM by the protocol of TECO."""

    name = "teco"
    Options = TecoOptions
    quick: ClassVar[dict[str, int]] = {"cases": 4}

    def num_frames(self, bench: Bench, options: TecoOptions) -> int:
        """Return the frames to dream."""
        return options.cases * (TECO_FRAMES - TECO_CONTEXT)

    def run(self, bench: Bench, options: TecoOptions) -> dict[str, Any]:
        """Measure; PSNR and SSIM are means over all dreamt frames.

        Raises:
            DataError: no episode has 300 frames.
        """
        return measure_teco(bench, options.cases)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table beside published figures."""
        rows = {"dream": found} | {f"{name}, of another recording": values for name, values in PUBLISHED.items()}
        low, high = found["psnr_interval"]
        return [
            markdown_row("", "PSNR, dB", "SSIM"),
            markdown_row("---", "---", "---"),
            *(markdown_row(name, f"{row['psnr']:.2f}", f"{row['ssim']:.3f}") for name, row in rows.items()),
            "",
            f"{found['cases']} dreams; PSNR from {low:.2f} to {high:.2f} (95%). {found['means']}.",
        ]


def measure_teco(bench: Bench, cases: int) -> dict[str, Any]:
    """Return what `Teco.run` does."""
    model = bench.model
    pieces = spread_over(bench.episodes, TECO_FRAMES, cases, np.random.default_rng([bench.seed, 7]))
    parts: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": [], "copy_psnr": [], "codec_psnr": []}

    first = 0
    for batch in in_batches(pieces, bench.batch_size):
        given = read_pieces(batch)
        seeds = [bench.seed + first + i for i in range(len(batch))]
        dream = dream_on(model, given["frames"][:, :TECO_CONTEXT], given["actions"], seeds, bench.on_frames)

        truth = given["frames"][:, TECO_CONTEXT:]
        last = given["frames"][:, TECO_CONTEXT - 1 : TECO_CONTEXT].expand_as(truth)
        sample = truth[:, ::12]

        parts["psnr"].append(to_psnr(squared_error(dream.frames, truth)))
        parts["ssim"].append(ssim(dream.frames, truth))
        parts["copy_psnr"].append(to_psnr(squared_error(last, truth)))
        parts["codec_psnr"].append(to_psnr(squared_error(model.decode(model.encode(sample)).cpu(), sample)))
        first += len(batch)

    found = {name: torch.cat(values) for name, values in parts.items()}
    spans = [(1, 12), (13, 52), (53, 104), (105, 156)]
    return {
        **{name: round(float(values.mean()), 3) for name, values in found.items()},
        "psnr_interval": mean_interval(found["psnr"].mean(1), bench.seed),
        "psnr_by_frames": {f"{a}-{b}": round(float(found["psnr"][:, a - 1 : b].mean()), 2) for a, b in spans},
        "cases": len(pieces),
        "published": PUBLISHED,
        "means": "144 true frames, 156 dreamt; PSNR of each frame, cut at 50 dB, and SSIM, averaged over all",
    }
