"""What the parts of `train.finetune` share: the world, its bundle in --out, the loss, and the folders.

Owns: that --out holds a bundle that loads, from the beginning on. Knows no part.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs.worlds.registry import find_displacements
from train.core.loop import step_generator
from train.core.machine import Machine, send
from train.data.prepared import PreparedData
from train.denoiser import DenoiserOptions, build_denoiser, make_sampler
from train.finetuning.deadline import Clock
from train.finetuning.options import FineTuneOptions
from train.finetuning.report import Report
from train.finetuning.sessions import take_sessions
from worldmodel.checkpoint import (
    has_part,
    load_codec,
    load_denoiser,
    load_depth,
    load_info,
    load_openings,
    resolve,
    save_bundle,
)
from worldmodel.codec import Codec
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.distortions import LatentDistortions
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.folded import NUM_FOLDED
from worldmodel.memory.depth import DepthNet
from worldmodel.objective import DenoiserLoss


class BundleKeeper:
    """The bundle in --out: replaced whole, never by weights that are not finite, never cut by a signal of ours."""

    def __init__(
        self, options: FineTuneOptions, clock: Clock, codec: Codec, denoiser: Denoiser, depth: DepthNet
    ) -> None:
        """Write the world as it is given.

        Raises:
            StorageError: it cannot be written.
        """
        self.out, self.clock = options.out, clock
        self.info = load_info(options.world)
        self.written = 0
        parts: dict[str, Any] = {"codec": codec, "denoiser": denoiser, "depth": depth}
        if options.openings and has_part(options.world, "openings"):
            parts["openings"] = load_openings(options.world)
        self._write(**parts, info=self.info)

    def keep(self, **parts: nn.Module) -> bool:
        """Replace parts of the bundle, by `save_bundle`'s names; return whether that was done."""
        for module in parts.values():
            values = torch.stack([value.isfinite().all() for value in module.state_dict().values()])
            if not values.all():
                print("not kept: weights that are not finite", flush=True)
                return False
        self._write(**parts)
        return True

    def _write(self, **parts: Any) -> None:
        with self.clock.writing:
            save_bundle(self.out, **parts)
            self.written += 1
        self.clock.raise_if_terminated()


def load_world(options: FineTuneOptions) -> tuple[Codec, Denoiser, DepthNet, DenoiserConfig]:
    """Return the world's networks, and the config of the denoiser to train: another one where it is grafted.

    Raises:
        CheckpointError: there is no depth network. ConfigError: the displacements of its actions are not known.
    """
    codec, denoiser = load_codec(options.world), load_denoiser(options.world)
    try:
        depth = load_depth(options.world if options.depth is None else options.depth)
    except CheckpointError as error:
        raise CheckpointError(f"a memory of pixels needs a depth network: give --depth ({error})") from error
    config = denoiser.config
    if not config.warp_channels:
        info = load_info(options.world)
        displacements = config.displacements or find_displacements(str(info.get("world")), info.get("action_names", ()))
        if not displacements:
            raise ConfigError(
                f"a memory of pixels needs actions with known displacements; those of {options.world} are not"
            )
        config = dataclasses.replace(config, displacements=displacements, warp_channels=NUM_FOLDED)
    return codec, denoiser, depth, config


class Work:
    """What is shared by the parts of the work."""

    def __init__(self, options: FineTuneOptions, machine: Machine, clock: Clock, folder: Path) -> None:
        """Load the world and write it to --out.

        Raises:
            CheckpointError, ConfigError: it cannot be fine-tuned. StorageError: --out cannot be written.
        """
        self.options, self.machine, self.clock, self.folder = options, machine, clock, folder
        if options.out.exists() and options.out.resolve() == resolve(options.world).resolve():
            raise ConfigError(f"--out {options.out} is the world that is fine-tuned: choose another")
        self.codec, self.given, self.depth, self.config = load_world(options)
        self.is_grafted = self.config != self.given.config
        self.keeper = BundleKeeper(options, clock, self.codec, self.given, self.depth)
        self.report = Report(options, clock, machine)
        self.recording = options.data or folder / "recording"
        self.prepared = options.warps or folder / "prepared"
        if options.sessions is not None:
            self.take_sessions(options.sessions)

        torch.manual_seed(options.seed)
        denoiser = build_denoiser(
            self.config, None if self.is_grafted else options.world, options.world if self.is_grafted else None
        )
        distortions = LatentDistortions(self.config.latent_channels) if options.objective.distort_share > 0 else None
        self.loss = DenoiserLoss(denoiser.train(), options.objective, options.chunk, distortions).to(machine.device)

        self.runner: nn.Module = self.loss
        self.batch_size = options.batch_size or (4 if machine.device.type == "cpu" else 64)

    def take_sessions(self, folder: Path) -> None:
        """Put what was played into the place of a recording, and say what was taken.

        Raises:
            DataError: there is nothing to learn from.
        """
        info = self.keeper.info
        facts = take_sessions(
            folder,
            self.recording,
            world=str(info.get("world")),
            action_names=tuple(info.get("action_names", ())),
            image_size=self.codec.config.image_size,
            least_frames=self.options.clip_frames,
            dreams=self.options.take_dreams,
        )
        self.report.content["sessions"] = facts
        print(f"from {folder}: {facts}", flush=True)

    def training_options(self) -> DenoiserOptions:
        """Return the options of `train.denoiser` that stand for the training."""
        options = self.options
        return DenoiserOptions(
            data=self.recording,
            out=self.folder / "training",
            minutes=max(1e-6, (self.clock.train_end - time.monotonic()) / 60),
            steps=options.steps,
            batch_size=self.batch_size,
            clip_frames=options.clip_frames,
            chunk=options.chunk,
            learning_rate=options.learning_rate,
            decay_share=options.decay_share,
            ema=options.ema,
            memory_dropout=options.memory_dropout,
            objective=options.objective,
            compile=options.compile,
            seed=options.seed,
            save_minutes=1e9,
        )

    def step_on_noise(self, runner: nn.Module, number: int) -> float:
        """Run forward and backward over a batch of noise, weights unchanged; return the loss."""
        source = PreparedData(self.folder / "noise", device=self.machine.device)
        sample = make_sampler(self.training_options(), self.config, source, self.machine.device)
        batch = sample(step_generator(self.options.seed, number, 0))
        with self.machine.autocast():
            loss, _ = runner(**{name: send(value, self.machine.device) for name, value in batch.items()})
        loss.backward()
        self.loss.zero_grad(set_to_none=True)
        return float(loss.detach())
