"""The first part of `train.finetune`: does the device train, and can the real world be drawn?"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from envs.data.episodes import open_shards, read_episode
from train.data.clips import list_episodes
from train.data.prepared import write_prepared
from train.finetuning.gathering import record_words, spell
from train.finetuning.work import Work
from worldmodel.config import DenoiserConfig
from worldmodel.errors import DeviceError, StateError
from worldmodel.folded import FOLD, NUM_FACTS


def write_noise(folder: Path, config: DenoiserConfig, image_size: int, num_frames: int) -> None:
    """Write a prepared shard of two episodes of noise."""
    frames, generator = 2 * num_frames, torch.Generator().manual_seed(0)
    size, grid = config.latent_size, image_size // FOLD
    content = {
        "latents": torch.randn(frames, config.latent_channels, size, size, generator=generator).half(),
        "actions": torch.randint(config.num_actions, (frames,), generator=generator, dtype=torch.uint8),
        "rewards": torch.zeros(frames),
        "terminated": torch.zeros(frames, dtype=torch.bool),
        "poses": torch.zeros(frames, 5),
        "pixels": torch.randint(256, (frames, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        "mask": torch.randint(256, (frames, image_size**2 // 8), generator=generator, dtype=torch.uint8),
        "facts": torch.zeros(frames, NUM_FACTS, grid, grid).half(),
    }
    halves = (slice(num_frames), slice(num_frames, None))
    episodes = [{name: part[half] for name, part in content.items()} for half in halves]
    write_prepared(folder / "train-00000.safetensors", episodes)


def preflight(work: Work, facts: dict[str, Any]) -> None:
    """See one frame of the real world and three steps of training, or give up.

    Raises:
        StateError: the real world cannot be drawn. DeviceError: the steps fail or give no numbers.
    """
    options, started = work.options, time.monotonic()
    write_noise(work.folder / "noise", work.config, work.codec.config.image_size, options.clip_frames)
    probe = work.folder / "probe"
    recorder = None if options.is_recorded else _start_recorder(work, probe)
    try:
        losses = _try_steps(work)
        facts |= {"device": str(work.machine.device), "batch_size": work.batch_size, "losses": losses}
        facts["three_steps_s"] = round(time.monotonic() - started, 1)
        if recorder is not None:
            facts["frame_contrast"] = _check_recording(recorder, probe, options.preflight_s, work.clock.now)
    finally:
        if recorder is not None and recorder.poll() is None:
            recorder.kill()
            recorder.wait()


def _start_recorder(work: Work, out: Path) -> subprocess.Popen[str]:
    """Start recording one short episode."""
    words = record_words(work, out) | {"--episodes": 1, "--length": 2, "--workers": 1}
    return subprocess.Popen(
        [sys.executable, "-m", "train.record", *spell(words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _try_steps(work: Work) -> list[float]:
    """Return the losses of three steps on noise; the batch is halved until they fit into memory.

    Raises:
        DeviceError: one clip does not fit, or a loss is no number.
    """
    while True:
        try:
            losses = [work.step_on_noise(work.loss, number) for number in range(3)]
            break
        except torch.OutOfMemoryError as error:
            if work.batch_size == 1:
                raise DeviceError(f"one clip of {work.options.clip_frames} frames does not fit into memory") from error
            work.batch_size //= 2
            torch.cuda.empty_cache()
    if not all(torch.isfinite(torch.tensor(losses))):
        raise DeviceError(f"three steps on noise gave the losses {losses}: the device or the world is broken")
    return losses


def _check_recording(recorder: subprocess.Popen[str], folder: Path, seconds: float, now: float) -> float:
    """Wait for a recording until `seconds` of the work are over; return the standard deviation of its frames.

    Raises:
        StateError: it came too late, it failed, or its frames are blank.
    """
    try:
        said = recorder.communicate(timeout=max(1.0, seconds - now))[0]
    except subprocess.TimeoutExpired:
        raise StateError(f"no frame of the real world within {seconds:g} s") from None
    if recorder.returncode:
        raise StateError(f"no frame of the real world: {(said.strip().splitlines() or ['no reason given'])[-1]}")

    episode = list_episodes(open_shards(folder))[0]
    contrast = float(read_episode(episode, fields=("frames",))["frames"].std())
    if contrast < 1:
        raise StateError(f"frames of the real world are blank (standard deviation {contrast:.2f} of 255)")
    return contrast
