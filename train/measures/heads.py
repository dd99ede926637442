"""Heads: do the reward and end heads of the network see what happens in real play?

Owns: the clips of held-out play that the network watches, and the scores of what its heads say of them. Nothing is
dreamt: what the heads say of dreams is scored by `train.measures.fidelity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo
from train.data.rollouts import Piece, in_batches, read_pieces
from train.measures.base import Bench, Measure
from train.reports.plots import events_table
from worldmodel.analysis.events import score_events
from worldmodel.errors import ConfigError, DataError
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.world import WorldModel

CLIPS_AT_ONCE = 8  # each as long as many steps of a dream, so fewer than dreams
CHUNK = 8  # frames a chunk of attention, where it divides the clips
SLACK = 1  # steps by which an event may be missed


@dataclass(frozen=True)
class HeadsOptions:
    """Settings of what is watched.

    Attributes:
        clips: at most so many, evenly chosen.
        frames: of a clip; shorter ends of episodes are left out, but for one clip that ends each episode.
    """

    clips: int = 400
    frames: int = 96

    def __post_init__(self) -> None:
        for name, least in (("clips", 1), ("frames", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")


class Heads(Measure):
    """Precision, recall and F1 of predicted rewards and endings on held-out real play."""

    name = "heads"
    Options = HeadsOptions
    quick: ClassVar[dict[str, int]] = {"clips": 16}

    def num_frames(self, bench: Bench, options: HeadsOptions) -> int:
        """Return 0: it dreams none."""
        return 0

    def run(self, bench: Bench, options: HeadsOptions) -> dict[str, Any]:
        """Measure. Errors as `measure_heads`."""
        return measure_heads(bench.model, bench.episodes, options)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of scores."""
        return [
            *events_table({name: found[name] for name in ("reward", "terminated")}),
            "",
            f"{found['frames']} frames of real play; an event may be missed by {found['slack']} step.",
        ]


def choose_clips(episodes: Sequence[EpisodeInfo], options: HeadsOptions) -> list[Piece]:
    """Return clips side by side, the last of each episode at its end.

    Raises:
        DataError: no episode is as long as a clip.
    """
    length = options.frames
    pieces = []
    for episode in episodes:
        if episode.num_frames >= length:
            last = episode.num_frames - length
            pieces += [Piece(episode, start, length) for start in sorted({*range(0, last + 1, length), last})]
    if not pieces:
        longest = max(episode.num_frames for episode in episodes)
        raise DataError(
            f"the longest held-out episode has {longest} frames and {length} are watched at once: lower "
            "heads.frames (--set), or record longer episodes"
        )
    return [pieces[int(i)] for i in np.linspace(0, len(pieces) - 1, min(options.clips, len(pieces)))]


@torch.inference_mode()
def measure_heads(model: WorldModel, episodes: Sequence[EpisodeInfo], options: HeadsOptions) -> dict[str, Any]:
    """Let the heads watch held-out real play: recorded frames, shown as finished frames are.

    Args:
        model: the world.
        episodes: held-out episodes.
        options: how much is watched.

    Returns:
        precision, recall and F1 of rewards and endings (`score_events`), the number of frames, and the slack.

    Raises:
        DataError: as `choose_clips`, or a file is damaged or gone.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for batch in in_batches(choose_clips(episodes, options), CLIPS_AT_ONCE):
        given = read_pieces(batch, ("frames", "actions", "rewards", "terminated"))
        found = watch(model, given["frames"], given["actions"], generator)
        found |= {"true_rewards": given["rewards"] != 0, "true_terminated": given["terminated"]}
        for name, values in found.items():
            parts.setdefault(name, []).append(values)

    all_of = {name: torch.cat(part) for name, part in parts.items()}
    return {
        "reward": score_events(all_of["rewards"], all_of["true_rewards"], SLACK),
        "terminated": score_events(all_of["terminated"], all_of["true_terminated"], SLACK),
        "frames": int(all_of["rewards"].numel()),
        "slack": SLACK,
    }


def watch(
    model: WorldModel, frames: torch.Tensor, actions: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return what the heads say of every frame of clips but the first.

    Args:
        model: the world.
        frames: uint8 (B, T, H, W, 3), real ones.
        actions: integer (B, T - 1), those between them.
        generator: of the noise that finished frames are shown with, on the CPU.

    Returns:
        bool (B, T - 1) each: `rewards`, whether the most likely reward is not zero, and `terminated`.
    """
    config, level = model.denoiser.config, model.config.context_level
    latents = model.encode(frames)
    noise = torch.randn(latents.shape, generator=generator).to(model.device)
    levels = latents.new_full(latents.shape[:2], level)
    shown = add_noise(latents, noise, levels)

    # The first frame follows no action that is known.
    taken = torch.nn.functional.pad(actions.long(), (1, 0), value=config.num_actions).to(model.device)
    inputs = FrameInputs.stack(shown, levels, taken, config.num_previous)
    found, _ = model.denoiser(inputs, chunk=CHUNK if frames.shape[1] % CHUNK == 0 else None)
    values = torch.tensor(config.reward_values)
    return {
        "rewards": values[found.reward_logits.argmax(-1).cpu()][:, 1:] != 0,
        "terminated": found.terminated_logit.cpu()[:, 1:] > 0,
    }
