"""The training loop that all training programs share, as functions.

Owns: device, processes, learning-rate course, EMA, progress, TensorBoard, and a training state that survives kill -9.
Does not know what is trained: a program hands in a loss over batches. All chance of step k on process r comes from
(seed, k, r), so that a resumed run sees the data and the noise that the unbroken run would have seen.
"""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from worldmodel.devices import has_fast_bfloat16, pick_device
from worldmodel.errors import CheckpointError, ConfigError, MissingPackageError, SeedError
from worldmodel.files import write_file

STATE_FILE = "training.safetensors"
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class TrainOptions:
    """What every training program accepts."""

    data: Path
    """Folder of a recording (train.record)."""
    out: Path
    """Folder of the results; made if missing."""
    preset: str = "small"
    """Size of the model: tiny, small or base."""
    minutes: float = 10.0
    """Training time. Resumed time counts: a run of 10 minutes, resumed with 30, trains 20 more."""
    steps: int | None = None
    """Train this many steps instead of a time."""
    batch_size: int = 64
    """Examples a step and process."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    decay_share: float = 0.4
    """Share of the run at its end over which the learning rate falls to zero."""
    ema: float = 0.99
    """Decay of the exponential moving average of the weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = True
    """Compile the model (torch.compile) where a compiler is found."""
    seed: int = 0
    """Seed of weights, data order and noise."""
    resume: bool = False
    """Go on from the last state in --out."""
    save_minutes: float = 4.0
    """Time between saved states."""

    def __post_init__(self) -> None:
        if not self.minutes > 0 or (self.steps is not None and self.steps < 1):  # not: NaN must fail as well
            raise ConfigError(f"minutes must be above 0 and steps at least 1; got {self.minutes}, {self.steps}")
        is_fine = self.batch_size >= 1 and self.learning_rate > 0
        if not is_fine or not 0 <= self.ema < 1 or not 0 <= self.decay_share <= 1:
            raise ConfigError(
                "batch_size must be at least 1, learning_rate above 0, ema in [0, 1), decay_share in [0, 1]; got "
                f"{self.batch_size}, {self.learning_rate}, {self.ema}, {self.decay_share}"
            )
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


@dataclass
class Machine:
    """Where this process trains: its device, its place among the processes (torchrun), and its number format."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    autocast_dtype: torch.dtype | None = None
    owns_group: bool = field(default=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of a training step."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)


def start_machine(device_name: str) -> Machine:
    """Return this process' machine; under torchrun joins the other processes.

    Raises:
        DeviceError: no such device.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(device_name)
    if device.type == "cuda":
        # For masks such as ours cuDNN's attention is not the fast one; PyTorch asks for this once, at the first call.
        os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    owns_group = world_size > 1 and not torch.distributed.is_initialized()
    if owns_group:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The others wait while the main process encodes a recording, which may take an hour.
        torch.distributed.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    dtype = torch.bfloat16 if has_fast_bfloat16(device) else None
    return Machine(device, rank, world_size, dtype, owns_group)


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the CPU generator that all chance of one step on one process comes from."""
    entropy = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)


def rate_at(progress: float, decay_share: float, step: int, warmup_steps: int = 100) -> float:
    """Return the learning-rate factor: warm-up by steps, then flat, then linear to zero over the last share."""
    fall = 1.0 if decay_share == 0 else min(1.0, max(0.0, 1.0 - progress) / decay_share)
    return min(1.0, (step + 1) / warmup_steps) * fall


def _flatten(prefix: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of nested dicts and lists into `tensors`; return the JSON rest with their names in place."""
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": prefix}
    if isinstance(value, dict):
        keys = [("i", k) if isinstance(k, int) else ("s", k) for k in value]
        return {"__items__": [[kind, k, _flatten(f"{prefix}/{k}", value[k], tensors)] for kind, k in keys]}
    if isinstance(value, list | tuple):
        return [_flatten(f"{prefix}/{i}", item, tensors) for i, item in enumerate(value)]
    return value


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict) and "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if isinstance(value, dict):
        return {int(k) if kind == "i" else k: _restore(v, tensors) for kind, k, v in value["__items__"]}
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    return value


def save_state(folder: Path, content: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values to one safetensors file, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    rest = json.dumps(_flatten("", content, tensors))
    write_file(folder / STATE_FILE, save(tensors, metadata={"state": rest}))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            return _restore(json.loads(file.metadata()["state"]), tensors)
    except Exception as error:  # safetensors raises its own plain types for a damaged file
        raise CheckpointError(f"{path} is damaged ({error}); delete it and start without --resume") from error


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; the host does not wait for what the device still has to do."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Move the exponential moving average of parameters and buffers on by one step; the first copies them.

    As `AveragedModel.update_parameters` does, whose counter would make a GPU wait in every step.
    """
    pairs = [
        pair
        for kind in ("parameters", "buffers")
        for pair in zip(getattr(average.module, kind)(), getattr(model, kind)(), strict=True)
    ]
    exact = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]
    ours, theirs = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
    if int(average.n_averaged) == 0:  # on the CPU
        torch._foreach_copy_(list(ours), list(theirs))
    else:
        torch._foreach_lerp_(list(ours), list(theirs), 1 - decay)
    for counter, now in exact:
        counter.copy_(now)
    average.n_averaged += 1


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("training logs need tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))


def train_model(
    options: TrainOptions,
    machine: Machine,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    sample_batch: Callable[[torch.Generator], dict[str, torch.Tensor]],
    frames_per_step: int,
    flops_per_step: float = 0.0,
    *,
    on_save: Callable[[Model], object] | None = None,
    on_save_s: float | None = None,
    deadline: float | Callable[[], float] | None = None,
    runner: nn.Module | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Train until the time or the steps are over, saving states on the way.

    Args:
        options: the program's options.
        machine: from `start_machine`.
        model: called as model(**batch), returns (loss, dict of scalars to log). Its weights are trained in place.
        optimizers: of the model's parameters.
        sample_batch: generator -> batch of tensors on the CPU or the device.
        frames_per_step: frames a step and process, for the rate shown.
        flops_per_step: floating-point operations a step and process, for the rate shown; 0 leaves it out.
        on_save: called on the main process with the averaged model whenever a state is saved; it must not keep it.
        on_save_s: seconds between further calls of `on_save`, without a state.
        deadline: `time.monotonic()` at which to stop whatever the options say, after the step under way; or what
            returns it, where it may change meanwhile.
        runner: `model` compiled already; default compiled here, where the options ask for it.

    Returns:
        the model with averaged weights, and a summary: steps, minutes, frames, frames_per_s, and the last logged
        values.

    Raises:
        CheckpointError: a state and no --resume; --resume without a readable state, or with one of another model.
        ConfigError: the training diverged (a loss or gradient that is not finite); the last state is kept.
        StorageError: the state cannot be written.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(machine.device)
    average = AveragedModel(model, use_buffers=True)
    step, seconds_before, frames_before = 0, 0.0, 0
    frames_of_step = frames_per_step * machine.world_size
    if options.resume:
        state = load_state(options.out)
        try:
            model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            step, seconds_before = int(state["step"]), float(state["seconds"])
            frames_before = int(state.get("frames", step * frames_of_step))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{options.out / STATE_FILE} is of another model ({reason}): resume with the options of the run that "
                "wrote it, or choose another --out"
            ) from error
    elif (options.out / STATE_FILE).is_file():
        raise CheckpointError(
            f"{options.out / STATE_FILE} holds a training already: add --resume to go on, choose another --out, "
            "or delete it"
        )
    peaks = [[group.get("peak_lr", group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
    for optimizer, rates in zip(optimizers, peaks, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["peak_lr"] = rate
    if runner is None:
        runner = compile_model(model, machine.device) if options.compile else model
    if machine.world_size > 1:
        ids = [machine.device.index] if machine.device.type == "cuda" else None
        runner = nn.parallel.DistributedDataParallel(runner, device_ids=ids)
    writer = _writer(options.out) if machine.is_main else None
    bar = tqdm(total=options.steps, initial=step, disable=not machine.is_main, unit="step", mininterval=2.0)
    started = last_saved = last_shown = time.monotonic()
    first_step, logs, fast_from = step, {}, (step, started)

    def save_now() -> None:
        if not math.isfinite(health := float(loss.detach() + norm)):
            raise ConfigError(
                f"training diverged before step {step} (loss + gradient norm is {health}); the state saved before is "
                f"kept: go on from it with --resume, or start again with a learning rate below {options.learning_rate}"
            )
        if machine.is_main:
            saved = {"model": model.state_dict(), "average": average.state_dict(), "step": step}
            saved |= {"optimizers": [o.state_dict() for o in optimizers], "seconds": seconds_before + elapsed}
            saved |= {"frames": frames_before + (step - first_step) * frames_of_step}
            save_state(options.out, saved)
            show_average()

    def show_average() -> None:
        if on_save is not None and machine.is_main:
            on_save(cast(Model, average.module))

    elapsed, loss, norm = 0.0, torch.zeros(()), torch.zeros(())
    clock = lambda: seconds_before + time.monotonic() - started  # noqa: E731
    for step, progress in _steps(first_step, options, machine, clock, deadline):
        factor = rate_at(progress, options.decay_share, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        batch = sample_batch(step_generator(options.seed, step, machine.rank))
        with machine.autocast():
            loss, scalars = runner(**{k: send(v, machine.device) for k, v in batch.items()})
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(average, model, options.ema)
        step += 1
        if step == first_step + 3:
            fast_from = (step, time.monotonic())  # compilation is over
        if step % 20 == 0 or step == options.steps:
            rate = (step - fast_from[0]) / max(1e-9, time.monotonic() - fast_from[1])
            logs = {"loss": loss.item(), "gradient_norm": float(norm), "learning_rate_factor": factor}
            logs |= {k: float(v) for k, v in scalars.items()}
            logs["frames_per_s"] = rate * frames_of_step
            if flops_per_step:
                logs["tflops"] = rate * flops_per_step * machine.world_size / 1e12
            bar.set_postfix({k: f"{v:.4g}" for k, v in logs.items()}, refresh=False)
            if writer is not None:
                for name, value in logs.items():
                    writer.add_scalar(name, value, step)
        bar.update()
        if time.monotonic() - last_saved > 60 * options.save_minutes:
            elapsed = time.monotonic() - started
            save_now()
            last_saved = last_shown = time.monotonic()
        elif on_save_s is not None and time.monotonic() - last_shown > on_save_s:
            show_average()
            last_shown = time.monotonic()
    elapsed = time.monotonic() - started
    bar.close()
    save_now()
    if writer is not None:
        writer.close()
    if machine.owns_group:
        torch.distributed.destroy_process_group()
    minutes = (seconds_before + elapsed) / 60
    frames = frames_before + (step - first_step) * frames_of_step
    summary = {"steps": step, "minutes": minutes, "frames": frames, **logs}
    return cast(Model, average.module), summary


def _steps(
    step: int,
    options: TrainOptions,
    machine: Machine,
    seconds: Callable[[], float],
    deadline: float | Callable[[], float] | None = None,
) -> Iterator[tuple[int, float]]:
    """Yield step numbers and the share of the run that is over, until it is; the main process' clock counts for all."""
    while True:
        progress = step / options.steps if options.steps else seconds() / (60 * options.minutes)
        if deadline is not None and time.monotonic() >= (deadline() if callable(deadline) else deadline):
            progress = 1.0
        if machine.world_size > 1:  # processes with clocks of their own would train at rates of their own
            shared = torch.tensor(progress, device=machine.device, dtype=torch.float64)
            torch.distributed.broadcast(shared, 0)
            progress = shared.item()
        if progress >= 1:
            return
        yield step, progress
        step += 1


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model compiled for the device; the model itself, with a notice, where no compiler works."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))  # a missing compiler shows only in a call
    except Exception as error:  # every backend has its own errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"not compiled, training goes on slower: {reason}")
        return model
    return cast(nn.Module, torch.compile(model, dynamic=False))
