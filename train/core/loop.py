"""The training loop that all training programs share.

Owns: the options of every training, the learning-rate course, EMA, progress, TensorBoard, and that a run goes on where
it was cut. Does not know what is trained: a program hands in a loss over batches. All chance of step k on process r
comes from (seed, k, r), so that a resumed run sees the data and the noise that the unbroken run would have seen.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from train.core.interrupts import Stopped, command_to_go_on, put_off_signals
from train.core.machine import Machine, compile_model, send
from train.core.state import STATE_FILE, load_state, save_state
from worldmodel.errors import CheckpointError, ConfigError, MissingPackageError, SeedError

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


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the CPU generator that all chance of one step on one process comes from."""
    entropy = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)


def rate_at(progress: float, decay_share: float, step: int, warmup_steps: int = 100) -> float:
    """Return the learning-rate factor: warm-up by steps, then flat, then linear to zero over the last share."""
    fall = 1.0 if decay_share == 0 else min(1.0, max(0.0, 1.0 - progress) / decay_share)
    return min(1.0, (step + 1) / warmup_steps) * fall


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


class _Run(Generic[Model]):
    """A training under way: what is trained, how far it has come, and how it is saved and taken up again."""

    def __init__(
        self,
        options: TrainOptions,
        machine: Machine,
        model: Model,
        optimizers: list[torch.optim.Optimizer],
        frames_of_step: int,
    ) -> None:
        """Begin a training, or take up the last state in --out where the options ask for it.

        Raises:
            CheckpointError: as `train_model`.
        """
        self.options, self.machine, self.model, self.optimizers = options, machine, model, optimizers
        self.frames_of_step = frames_of_step  # of all processes
        self.average = AveragedModel(model, use_buffers=True)
        self.step, self._seconds_before, self._frames_before = 0, 0.0, 0
        self._loss, self._norm = torch.zeros(()), torch.zeros(())

        if options.resume:
            self._restore()
        elif (options.out / STATE_FILE).is_file():
            raise CheckpointError(
                f"{options.out / STATE_FILE} holds a training already: add --resume to go on, choose another --out, "
                "or delete it"
            )
        self.first_step = self.step
        self._started = time.monotonic()

        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["peak_lr"] = group.get("peak_lr", group["lr"])

    def _restore(self) -> None:
        """Take up the last state.

        Raises:
            CheckpointError: there is none, or it is of another model.
        """
        state = load_state(self.options.out)
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self._seconds_before = int(state["step"]), float(state["seconds"])
            self._frames_before = int(state.get("frames", self.step * self.frames_of_step))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.options.out / STATE_FILE} is of another model ({reason}): resume with the options of the run "
                "that wrote it, or choose another --out"
            ) from error

    def start_clock(self) -> float:
        """Let the time count from now on; return now, `time.monotonic()`."""
        self._started = time.monotonic()
        return self._started

    @property
    def seconds(self) -> float:
        """Time trained, that of the runs before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def frames(self) -> int:
        """Frames seen by all processes, before a resume too."""
        return self._frames_before + (self.step - self.first_step) * self.frames_of_step

    def take_step(self, runner: nn.Module, batch: dict[str, torch.Tensor], factor: float) -> dict[str, Any]:
        """Learn from a batch at this share of the peak learning rates; return the numbers to log."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

        with self.machine.autocast():
            self._loss, scalars = runner(**{k: send(v, self.machine.device) for k, v in batch.items()})
        self._loss.backward()
        self._norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(self.average, self.model, self.options.ema)
        self.step += 1
        logs = {"loss": self._loss.detach(), "gradient_norm": self._norm, "learning_rate_factor": factor}
        return {**logs, **scalars}

    def save(self) -> None:
        """Save the state, on the main process.

        Raises:
            ConfigError: the training diverged; the last state is kept. StorageError: it cannot be written.
        """
        seconds = self.seconds
        if not math.isfinite(health := float(self._loss.detach() + self._norm)):
            raise ConfigError(
                f"training diverged before step {self.step} (loss + gradient norm is {health}); the state saved before "
                "is kept: go on from it with --resume, or start again with a learning rate below "
                f"{self.options.learning_rate}"
            )
        if self.machine.is_main:
            saved = {"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step}
            saved |= {"optimizers": [o.state_dict() for o in self.optimizers], "seconds": seconds}
            save_state(self.options.out, saved | {"frames": self.frames})


class _Monitor:
    """What is shown of a training: a bar with numbers, and TensorBoard, on the main process."""

    EVERY = 20  # steps

    def __init__(self, options: TrainOptions, machine: Machine, step: int, frames: int, flops: float) -> None:
        """Show a training that begins at a step; `frames` and `flops` are those of a step of all processes.

        Raises:
            MissingPackageError: tensorboard is not there.
        """
        self.last: dict[str, float] = {}  # the last numbers shown
        self._total, self._frames, self._flops = options.steps, frames, flops
        self._writer = _open_tensorboard(options.out) if machine.is_main else None
        self._bar = tqdm(total=options.steps, initial=step, disable=not machine.is_main, unit="step", mininterval=2.0)
        self._compiled_at = step + 3
        self._fast_from = (step, time.monotonic())

    def note(self, step: int, logs: dict[str, Any]) -> None:
        """Take note of a step that has been done."""
        if step == self._compiled_at:
            self._fast_from = (step, time.monotonic())
        if step % self.EVERY == 0 or step == self._total:
            self._show(step, logs)
        self._bar.update()

    def _show(self, step: int, logs: dict[str, Any]) -> None:
        rate = (step - self._fast_from[0]) / max(1e-9, time.monotonic() - self._fast_from[1])
        self.last = {name: float(value) for name, value in logs.items()}
        self.last["frames_per_s"] = rate * self._frames
        if self._flops:
            self.last["tflops"] = rate * self._flops / 1e12

        self._bar.set_postfix({k: f"{v:.4g}" for k, v in self.last.items()}, refresh=False)
        if self._writer is not None:
            for name, value in self.last.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _open_tensorboard(folder: Path) -> Any:
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
        Stopped: Ctrl-C or TERM; the step under way was finished, and the state is saved.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(machine.device)
    run = _Run(options, machine, model, optimizers, frames_per_step * machine.world_size)
    runner = _prepare_runner(runner, options, machine, model)
    monitor = _Monitor(options, machine, run.step, run.frames_of_step, flops_per_step * machine.world_size)

    def show_average() -> None:
        if on_save is not None and machine.is_main:
            on_save(cast(Model, run.average.module))

    last_saved = last_shown = run.start_clock()
    with put_off_signals() as wish:

        def end() -> float:
            """Return when to stop: at once where that is wished for."""
            planned = deadline() if callable(deadline) else deadline
            return 0.0 if wish.number else math.inf if planned is None else planned

        for step, progress in iterate_steps(run.step, options, machine, lambda: run.seconds, end):
            batch = sample_batch(step_generator(options.seed, step, machine.rank))
            logs = run.take_step(runner, batch, rate_at(progress, options.decay_share, step))
            monitor.note(run.step, logs)

            if time.monotonic() - last_saved > 60 * options.save_minutes:
                run.save()
                show_average()
                last_saved = last_shown = time.monotonic()
            elif on_save_s is not None and time.monotonic() - last_shown > on_save_s:
                show_average()
                last_shown = time.monotonic()

    seconds = run.seconds
    monitor.close()
    run.save()
    show_average()
    if machine.owns_group:
        torch.distributed.barrier()  # nobody leaves while the state is being saved
        torch.distributed.destroy_process_group()
    if wish.number:
        raise Stopped(wish.number, f"stopped at step {run.step}, state saved; to go on: {command_to_go_on()}")
    summary = {"steps": run.step, "minutes": seconds / 60, "frames": run.frames, **monitor.last}
    return cast(Model, run.average.module), summary


def _prepare_runner(compiled: nn.Module | None, options: TrainOptions, machine: Machine, model: nn.Module) -> nn.Module:
    """Return what is called in training: the model compiled, where that is asked for, and one of several processes."""
    runner = compiled
    if runner is None:
        runner = compile_model(model, machine.device) if options.compile else model
    if machine.world_size > 1:
        ids = [machine.device.index] if machine.device.type == "cuda" else None
        runner = nn.parallel.DistributedDataParallel(runner, device_ids=ids)
    return runner


def iterate_steps(
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
