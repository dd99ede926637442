"""What `train.finetune` can be asked for."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from worldmodel.errors import ConfigError
from worldmodel.objective import ObjectiveConfig


@dataclass(frozen=True)
class FineTuneOptions:
    """Fine-tune a world on play recorded for it, and stop in time."""

    world: Annotated[str, tyro.conf.arg(name="from")]
    """Name of a shipped world, or folder of a bundle."""
    out: Path
    """Folder of the bundle; made if missing."""
    deadline: float | None = None
    """Seconds from the start of the program to its end, whatever is done by then."""
    minutes: float | None = None
    """The same in minutes."""
    sessions: Path | None = None
    """Folder of what was played (play.py --record) and recorded, to learn from in place of a recording of its own."""
    take_dreams: bool = False
    """Take what was played in dreams as truth too."""
    openings: bool = True
    """Put the given world's openings into the bundle, so that it can be played as it is."""

    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that record."""
    preparers: int = 2
    """Processes that prepare what is recorded."""
    episodes: int = 4000
    """Most episodes to record; the time ends it before."""
    length: int = 480
    """Steps of an episode."""
    record_share: float = 0.2
    """Share of the time at whose end recording stops."""

    data: Path | None = None
    """A recording to take in place of one of its own."""
    warps: Path | None = None
    """Prepared shards (train.warps) of --data to take too."""
    depth: str | None = None
    """Bundle of the depth network; default that of the world."""

    batch_size: int | None = None
    """Clips a step; default 64 on a GPU, where they are halved until they fit into memory, and 4 on a CPU."""
    clip_frames: int = 96
    """Frames of a clip."""
    chunk: int = 8
    """Frames a chunk of attention; speed only."""
    learning_rate: float = 3e-4
    """Peak learning rate of the matrices (Muon); everything else (AdamW) gets half. First trainings take 1e-3."""
    decay_share: float = 0.6
    """Share of the training at its end over which the learning rate falls to zero."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights; the average is what is kept."""

    steps: int | None = None
    """Train at most this many steps."""
    memory_dropout: float = 0.1
    """Share of clips that remember nothing; twice that share forgets a span."""
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(
            pure_noise_share=0.5,
            level_offset=0.5,
            blackout_share=0.2,
            distort_share=0.4,
            head_weight=0.05,
            reward_weight=5.0,
        )
    )
    """Levels, contexts and weights of the loss."""

    bundle_s: float = 60.0
    """Seconds between bundles."""
    decoder_share: float = 0.0
    """Share of the training time that the decoder gets, after the denoiser."""
    decoder_batch: int = 48
    """Pictures a step of the decoder."""

    evaluate_s: float = 45.0
    """Seconds kept for measuring; at most a tenth of the time, 0: none."""
    evaluate_seeds: int = 24
    """Bold players."""

    preflight_s: float = 30.0
    """Most time until the device, the real world and three steps have been seen to work."""
    work: Path | None = None
    """Folder of what is made on the way; default a temporary one, deleted at the end."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = True
    """Compile the loss (torch.compile) where a compiler is found."""
    seed: int = 0
    """Seed of the training; the recording has one of its own, that no other recording has."""

    def __post_init__(self) -> None:
        least = {"workers": 1, "preparers": 1, "episodes": 2, "length": self.clip_frames, "batch_size": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}; got {value}")
        if (self.deadline is None) == (self.minutes is None):
            raise ConfigError("give --deadline in seconds or --minutes, one of them: how long the program may take")
        if not self.total_s > 0 or not 0 < self.record_share < 1 or not 0 <= self.decoder_share < 1:
            raise ConfigError(
                "deadline (or minutes) must be above 0, record_share in (0, 1), decoder_share in [0, 1); got "
                f"{self.deadline}, {self.minutes}, {self.record_share}, {self.decoder_share}"
            )
        if self.sessions is not None and self.data is not None:
            raise ConfigError("--sessions and --data both say what to learn from: give one of them")
        if self.take_dreams and self.sessions is None:
            raise ConfigError("--take-dreams is about what was played: give --sessions too")
        if self.clip_frames % self.chunk:
            raise ConfigError(f"clip_frames must be a multiple of chunk {self.chunk}; got {self.clip_frames}")
        if self.warps is not None and self.data is None:
            raise ConfigError("--warps are prepared shards of a recording: give --data too")

    @property
    def is_recorded(self) -> bool:
        """Whether what to learn from is there already."""
        return self.data is not None or self.sessions is not None

    @property
    def total_s(self) -> float:
        """Seconds that the program may take."""
        return 60 * self.minutes if self.minutes is not None else float(self.deadline or 0)
