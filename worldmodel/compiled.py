"""A whole step of a dream as one compiled call: denoising, the write to memory, and the picture.

Owns: the step as a function of tensors, compiling it ahead of time (AOTInductor), the cache of compiled steps, and
compiling in the background while the world plays on uncompiled. Knows a step, and no world: a world hands in its step,
dreams to try it on, and the bundle that it came from.

On a CPU a step of a small world is mostly the cost of calling some thousand small operations one by one; compiled, they
are one call. The digits differ a little from the uncompiled step, as sums are ordered otherwise. A compiled step is
kept in a cache folder under a name that holds everything it depends on: the weights, the settings, this package's
source, torch, the processor and the number of threads. The background runs `worldmodel.compile_world`, a program.
"""

import contextlib
import hashlib
import importlib
import inspect
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldmodel.errors import CompileError, WorldModelError
from worldmodel.files import write_file
from worldmodel.state import DreamState, Layout
from worldmodel.step import Stepper
from worldmodel.windows import next_frame_window

PROGRAM = "worldmodel.compile_world"
VERSION = "5"


def cache_folder() -> Path:
    """Return the folder of compiled steps: WORLDMODEL_CACHE, else `worldmodel` in the user's cache folder."""
    if own := os.environ.get("WORLDMODEL_CACHE"):
        return Path(own)
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "worldmodel"


def has_compiler() -> bool:
    """Whether there is a C++ compiler to compile with."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    return any(name and shutil.which(name) for name in names)


class WholeStep(nn.Module):
    """One auto-regressive step as a function of tensors; those of the memories are changed in place."""

    def __init__(self, stepper: Stepper) -> None:
        """Take what a world steps with."""
        super().__init__()
        self.stepper = stepper

    def forward(
        self,
        tensors: dict[str, torch.Tensor],
        actions: torch.Tensor,
        noise: torch.Tensor,
        shown_noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Take one step.

        Args:
            tensors: of a `DreamState`, in the order of its `tensors`: compiled code knows them by their places.
            actions, noise, shown_noise: as `Sampler.step`.

        Returns:
            frames uint8 (B, S, H, W, 3), reward logits (B, S, R), termination logits (B, S), the new tensors beside
            those of the memories.
        """
        state = DreamState.from_tensors(tensors)
        frames, prediction = self.stepper(state, actions, noise, shown_noise)
        rest = {name: part for name, part in state.tensors().items() if not _is_of_memory(name)}
        return frames, prediction.reward_logits, prediction.terminated_logit, rest


def compile_step(stepper: Stepper, dreams: DreamState, file: Path) -> None:
    """Compile a step and write it to `file` (.pt2), whole or not at all.

    Args:
        stepper: what a world steps with.
        dreams: just begun, of a context long enough to fill all parts of a state; as many as it is to step. Changed.
        file: where to.

    Raises:
        CompileError: no compiler, or it failed.
    """
    if not has_compiler():
        raise CompileError("no C++ compiler was found (g++, clang++ or CXX): install one, or play uncompiled")
    step = WholeStep(stepper).eval()
    try:
        example = _example(stepper, dreams)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            exported = torch.export.export(step, tuple(_detach(part) for part in example), strict=False)
            made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / "step.pt2"))
            write_file(file, Path(made).read_bytes())
    except WorldModelError:
        raise
    except Exception as error:  # export, lowering and the compiler raise whatever they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompileError(f"the step cannot be compiled here ({reason}): play uncompiled") from error


def _chance(stepper: Stepper, dreams: DreamState) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return actions, noise and shown noise of a step, as `Sampler.step` takes them."""
    batch, _, *shape = dreams.pending.shape
    noise = torch.randn(batch, 2, *shape, dtype=torch.float32, device=stepper.device)
    return torch.zeros(batch, 1, dtype=torch.int64, device=stepper.device), noise[:, :1], noise[:, 1:]


@torch.inference_mode()
def _example(stepper: Stepper, dreams: DreamState) -> tuple[Any, ...]:
    """Return arguments of `WholeStep.forward` in the middle of a dream."""
    for _ in range(2):
        stepper(dreams, *_chance(stepper, dreams))
    return dreams.tensors(), *_chance(stepper, dreams)


def _detach(value: Any) -> Any:
    """Return contiguous tensors that are not in inference mode."""
    if isinstance(value, dict):
        return {name: _detach(part) for name, part in value.items()}
    return value.clone(memory_format=torch.contiguous_format)


def _is_of_memory(name: str) -> bool:
    """Whether a step changes a tensor of a state in place: those of the cache and of the memory of pixels."""
    return "." in name


def import_setuptools() -> None:
    """Import setuptools, which torch's loader and compiler use.

    It refuses where another module has taken distutils from the standard library before; asked not to insist on its
    own copy, it does without.
    """
    try:
        importlib.import_module("setuptools")
    except AssertionError:
        os.environ["SETUPTOOLS_USE_DISTUTILS"] = "stdlib"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("setuptools")


class CompiledStep:
    """A compiled step, loaded."""

    def __init__(self, file: Path, layout: Layout) -> None:
        """Load a step for states of a `DreamState.layout`.

        Raises:
            CompileError: the file is damaged, or of another machine.
        """
        self.layout = layout
        try:
            import_setuptools()
            self._run: Callable[..., Any] = torch._inductor.aoti_load_package(str(file))
        except Exception as error:  # the loader raises plain RuntimeErrors and worse
            raise CompileError(f"{file} cannot be loaded ({error}): delete it") from error

    def fits(self, state: DreamState) -> bool:
        """Whether it was compiled for such a state; with any other it would write where it must not."""
        kept = [part for name, part in state.tensors().items() if _is_of_memory(name)]
        return state.layout == self.layout and all(part.is_contiguous() for part in kept)

    def __call__(
        self, state: DreamState, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take one step in place; return frames, reward logits and termination logits as `WholeStep`."""
        # compiled code trusts the strides it was made for: copies for what it reads; what it writes is never copied
        named = {name: part if _is_of_memory(name) else part.contiguous() for name, part in state.tensors().items()}
        given = [part.contiguous() for part in (actions, noise, shown_noise)]
        frames, rewards, terminated, parts = self._run(named, *given)
        for name, value in parts.items():
            setattr(state, name, value)
        return frames, rewards, terminated


def step_key(stepper: Stepper, batch: int) -> str:
    """Return the name of a step compiled for `batch` dreams: a hash of all it depends on."""
    digest = hashlib.sha256()
    for module in (stepper.denoiser, stepper.codec, stepper.pixels):
        if module is None:
            continue
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    own = {Path(inspect.getfile(type(memory))) for memory in stepper.denoiser.named_memories().values()}
    for path in sorted({*Path(__file__).parent.rglob("*.py"), *own}):
        digest.update(path.read_bytes())

    sampler, pixels = stepper.sampler, stepper.pixels
    memory = None if pixels is None else (pixels.config, pixels.depth.config)
    processor = (platform.machine(), torch.backends.cpu.get_cpu_capability(), str(stepper.device))
    settings = (sampler.config, sampler.window, sampler.memory_frames, str(stepper.dtype), batch)
    networks = (stepper.denoiser.config, stepper.codec.config, memory)
    facts = (VERSION, torch.__version__, torch.get_num_threads(), processor, settings, networks)
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:24]


@torch.inference_mode()
def time_steps(
    stepper: Stepper, compiled: Callable[..., Any], dreams: DreamState, rounds: int = 8
) -> tuple[float, float]:
    """Return the median milliseconds of a compiled and of an uncompiled step, taken in turns on `dreams` and a copy."""
    seconds: tuple[list[float], list[float]] = [], []
    actions, noise, shown_noise = _chance(stepper, dreams)
    steps: tuple[Callable[..., Any], Callable[..., Any]] = compiled, stepper
    copies = dreams, dreams.clone()
    for _ in range(rounds + 2):
        for run, dream, spent in zip(steps, copies, seconds, strict=True):
            started = time.perf_counter()
            run(dream, actions, noise, shown_noise)
            if stepper.device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
    ours, theirs = (1000 * statistics.median(spent[2:]) for spent in seconds)  # the first ones warm up
    return ours, theirs


class BackgroundCompiler:
    """Compiles the step of a world in a process of low priority, beside the world that plays on uncompiled."""

    def __init__(
        self,
        stepper: Stepper,
        batch: int,
        source: Path | None,
        begin: Callable[[int], DreamState],
        on_compiled: Callable[[CompiledStep], object],
    ) -> None:
        """Prepare for a world that was loaded from a bundle.

        Args:
            stepper: what it steps with.
            batch: dreams to step at once.
            source: the bundle; None: there is none, and nothing is compiled.
            begin: begins that many dreams, to try a step on.
            on_compiled: given the step when it is there, perhaps on another thread.
        """
        self._stepper, self._batch, self._source = stepper, batch, source
        self._begin, self._on_compiled = begin, on_compiled
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.note = ""  # why there is no compiled step, once that is known
        self.is_over = False
        self._is_wanted = False
        self._is_stopped = False
        self._has_compiled = False

    def start(self, *, cached_only: bool = False, is_wanted: bool = False) -> None:
        """Load the step from the cache at once, or start compiling it; the world takes it up when it is there.

        It takes it only where it is faster than the uncompiled step, which depends on the processor: with AMX tiles it
        is three times as fast, without them sometimes slower, as libraries of single operations are tuned better.

        Args:
            cached_only: compile nothing.
            is_wanted: take it even if it is slower.
        """
        self._is_wanted = is_wanted
        file = cache_folder() / f"step-{step_key(self._stepper, self._batch)}.pt2"
        if self._source is not None and file.is_file():
            self._work(file)
            return
        if cached_only:
            self.note, self.is_over = "not compiled yet", True
            return
        self._thread = threading.Thread(target=self._work, args=(file,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is over; return whether the world has got a compiled step."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._has_compiled

    def stop(self) -> None:
        """End compiling, if it goes on."""
        self._is_stopped = True
        if self._process is not None and self._process.poll() is None:
            end_group(self._process.pid)
            self._process.kill()

    def _work(self, file: Path) -> None:
        try:
            self._check()
            if not file.is_file():
                self._compile(file)
            compiled = CompiledStep(file, self._begin(self._batch).layout)
            if self._is_wanted or self._is_faster(compiled):
                self._on_compiled(compiled)
                self._has_compiled = True
        except WorldModelError as error:
            self.note = str(error)
        except Exception as error:  # a player must not lose the dream over this
            self.note = f"{type(error).__name__}: {error}"
        self.is_over = True

    def _check(self) -> None:
        """Raise CompileError where there is nothing to compile."""
        if self._source is None:
            raise CompileError("only a world loaded from a bundle can be compiled: use WorldModel.load")
        if self._stepper.sampler.window != next_frame_window():
            raise CompileError("only the next-frame schedule is compiled: playing uncompiled")

    def _is_faster(self, compiled: CompiledStep) -> bool:
        """Whether the compiled step is the faster one of the two; if not, the note says so."""
        ours, theirs = time_steps(self._stepper, compiled, self._begin(self._batch))
        if ours > theirs:
            self.note = f"faster here ({theirs:.0f} ms, compiled {ours:.0f} ms)"
        return ours <= theirs

    def _words(self, file: Path) -> list[str]:
        """Return the options of `PROGRAM` that make the same step."""
        sampler = self._stepper.sampler
        words = ["--source", str(self._source), "--file", str(file), "--batch", str(self._batch)]
        words += ["--steps", str(sampler.config.num_steps), "--memory", str(sampler.memory_frames)]
        words += ["--context-level", str(sampler.config.context_level)]
        words += ["--level-shift", str(sampler.config.level_shift)]
        words += ["--device", str(self._stepper.device), "--dtype", str(self._stepper.dtype).removeprefix("torch.")]
        return [*words, "--threads", str(torch.get_num_threads())]

    def _compile(self, file: Path) -> None:
        """Compile in another process, and wait for it.

        Raises:
            CompileError: there is no compiler, it failed, or `stop` ended it.
        """
        if not has_compiler():
            raise CompileError("no C++ compiler was found: playing uncompiled")
        with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, *self._words(file)],
                stdin=subprocess.PIPE,  # closes when this process is gone, and ends the other
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, "TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder},  # what it leaves goes too
                start_new_session=True,  # a group of its own, so that its compilers can be ended with it
            )
            if self._is_stopped:  # meanwhile
                self.stop()
            status = self._process.wait()
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()

        if self._is_stopped:
            raise CompileError("compiling was ended")
        if status != 0 or not file.is_file():
            raise CompileError((lines or ["compiling was ended"])[-1])


def end_group(pid: int) -> None:
    """End the process group that a process leads, where there are such groups."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
