"""The third part of `train.finetune`: training the denoiser, and the decoder if asked to."""

import shutil
import time
from typing import Any

from train.core.loop import train_model
from train.data.prepared import PreparedData
from train.decoder import DecoderOptions, train_decoder
from train.denoiser import fit_to_latents, make_optimizers, make_sampler
from train.finetuning.work import Work
from worldmodel.checkpoint import load_codec
from worldmodel.errors import ConfigError


def fine_tune_denoiser(work: Work, facts: dict[str, Any]) -> None:
    """Fine-tune the denoiser until its time is over, a bundle every minute.

    Raises:
        DataError: the clips are longer than the episodes.
    """
    options, device = work.options, work.machine.device
    training = work.training_options()
    shutil.rmtree(training.out, ignore_errors=True)  # of another run in the same folder
    data = PreparedData(work.prepared, device=device, refresh_s=20.0)
    if work.loss.distort is not None:
        fitted, _ = fit_to_latents(work.codec, data.some_latents(), device)
        work.loss.distort.load_state_dict(fitted.state_dict())

    denoiser = work.loss.denoiser
    frames = training.batch_size * training.clip_frames
    passes = 4.0 if options.objective.own_share > 0 else 3.0
    try:
        averaged, summary = train_model(
            training,
            work.machine,
            work.loss,
            make_optimizers(denoiser, training),
            make_sampler(training, work.config, data, device),
            frames,
            passes * frames * denoiser.flops_per_frame(training.clip_frames),
            on_save=lambda averaged: work.keeper.keep(denoiser=averaged.denoiser),
            on_save_s=options.bundle_s,
            deadline=work.clock.until_training_ends,
            runner=work.runner,
        )
    except ConfigError as error:  # it diverged: the bundle of the minute before is kept
        work.report.cut("training", str(error))
        return

    facts |= summary | {"prepared_frames": data.num_frames, "bundles": work.keeper.written}
    work.loss.denoiser.load_state_dict(averaged.denoiser.state_dict())


def fine_tune_decoder(work: Work, facts: dict[str, Any]) -> None:
    """Train the decoder of the bundle in --out in its share of the time, and put it there."""
    left = work.clock.decoder_end - time.monotonic()
    if left < 5:
        work.report.cut("decoder", f"{left:.0f} s were left")
        return
    out = work.folder / "decoder"
    shutil.rmtree(out, ignore_errors=True)
    options = DecoderOptions(
        data=work.recording,
        out=out,
        checkpoint=work.options.out,
        warps=work.prepared,
        batch_size=max(3, work.options.decoder_batch),
        shards=4,
        clips=32,
        dreams=8,
        dream_frames=60,
        minutes=left / 60,
        compile=False,
        seed=work.options.seed,
        save_minutes=1e9,
    )
    facts |= train_decoder(options, work.machine, work.clock.decoder_end)
    work.keeper.keep(codec=load_codec(out))
