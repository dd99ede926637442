"""A whole step of a dream as one compiled call: denoising, the write to memory, and the picture.

Owns: the step as a function of tensors, compiling it ahead of time (AOTInductor), the cache of compiled steps, and
compiling in the background while the world plays on uncompiled. Knows no game and no screen.

On a CPU a step of a small world is mostly the cost of calling some thousand small operations one by one; compiled, they
are one call. The digits differ a little from the uncompiled step, as sums are ordered otherwise. A compiled step is
kept in a cache folder under a name that holds everything it depends on: the weights, the settings, this package's
source, torch, the processor and the number of threads.

`python -m worldmodel.compiled --source DIR --steps N ...` compiles one step; the background calls that.
"""

import argparse
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
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from worldmodel.errors import CompileError, WorldModelError
from worldmodel.files import write_file
from worldmodel.state import DreamState, Layout
from worldmodel.windows import next_frame_window

if TYPE_CHECKING:
    from worldmodel.state import WorldState
    from worldmodel.world import WorldModel

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

    def __init__(self, model: "WorldModel") -> None:
        """Take what a world steps with."""
        super().__init__()
        self.stepper = model.stepper

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


def _begin_example(model: "WorldModel", batch: int) -> "WorldState":
    """Return gray dreams of a context long enough to fill all parts of a state."""
    size, overlap = model.codec.config.image_size, max(1, model.window.num_clean)
    context = overlap + 2 * model.window.stride + 2
    frames = torch.full((batch, context, size, size, 3), 128, dtype=torch.uint8)
    return model.reset(frames, torch.zeros(batch, context - 1, dtype=torch.int64), list(range(batch)))


def _example(model: "WorldModel", batch: int) -> tuple[Any, ...]:
    """Return arguments of `WholeStep.forward` in the middle of a dream."""
    state = _begin_example(model, batch)
    actions = torch.zeros(batch, dtype=torch.int64)
    model.step(state, actions)
    model.step(state, actions)
    noise = torch.randn(batch, 2, *state.dream.pending.shape[2:], device=model.device)
    return state.dream.tensors(), actions[:, None].to(model.device), noise[:, :1], noise[:, 1:]


def compile_step(model: "WorldModel", batch: int, file: Path) -> None:
    """Compile the step of a world for `batch` dreams and write it to `file` (.pt2), whole or not at all.

    Raises:
        CompileError: no compiler, or it failed.
    """
    if not has_compiler():
        raise CompileError("no C++ compiler was found (g++, clang++ or CXX): install one, or play uncompiled")
    step = WholeStep(model).eval()
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            exported = torch.export.export(step, tuple(_detach(part) for part in _example(model, batch)), strict=False)
            made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / "step.pt2"))
            write_file(file, Path(made).read_bytes())
    except WorldModelError:
        raise
    except Exception as error:  # export, lowering and the compiler raise whatever they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompileError(f"the step cannot be compiled here ({reason}): play uncompiled") from error


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


def step_key(model: "WorldModel", batch: int) -> str:
    """Return the name of a compiled step: a hash of all it depends on."""
    digest = hashlib.sha256()
    for module in (model.denoiser, model.codec, model.pixels):
        if module is None:
            continue
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    own = {Path(inspect.getfile(type(memory))) for memory in model.denoiser.named_memories().values()}
    for path in sorted({*Path(__file__).parent.rglob("*.py"), *own}):
        digest.update(path.read_bytes())
    facts = (VERSION, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), str(model.device))
    settings = (model.config, model.window, model.memory_frames, str(model.dtype), batch, torch.get_num_threads())
    pixels = None if model.pixels is None else (model.pixels.config, model.pixels.depth.config)
    digest.update(repr((facts, settings, model.denoiser.config, model.codec.config, pixels)).encode())
    return digest.hexdigest()[:24]


def time_steps(model: "WorldModel", compiled: CompiledStep, batch: int, rounds: int = 8) -> tuple[float, float]:
    """Return the median milliseconds of a compiled and of an uncompiled step, taken in turns on gray dreams."""
    stepper, example = model.stepper, _begin_example(model, batch)
    seconds: tuple[list[float], list[float]] = [], []
    with torch.inference_mode():
        actions = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
        noise = torch.randn(batch, 2, *example.dream.pending.shape[2:], device=model.device)
        dreams = example.dream, example.clone().dream
        steps: tuple[Callable[..., Any], Callable[..., Any]] = compiled, stepper
        for _ in range(rounds + 2):
            for run, dream, spent in zip(steps, dreams, seconds, strict=True):
                started = time.perf_counter()
                run(dream, actions, noise[:, :1], noise[:, 1:])
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                spent.append(time.perf_counter() - started)
    ours, theirs = (1000 * statistics.median(spent[2:]) for spent in seconds)  # the first ones warm up
    return ours, theirs


class BackgroundCompiler:
    """Compiles the step of a world in a process of low priority, beside the world that plays on uncompiled."""

    def __init__(self, model: "WorldModel", batch: int = 1) -> None:
        """Prepare for a world that was loaded from a bundle."""
        self._model, self._batch = model, batch
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._file: Path | None = None
        self.note = ""  # why there is no compiled step, once that is known
        self.is_over = False
        self._is_wanted = False
        self._is_stopped = False

    def start(self, *, cached_only: bool = False, is_wanted: bool = False) -> None:
        """Load the step from the cache at once, or start compiling it; the world takes it up when it is there.

        It takes it only where it is faster than the uncompiled step, which depends on the processor: with AMX tiles it
        is three times as fast, without them sometimes slower, as libraries of single operations are tuned better.

        Args:
            cached_only: compile nothing.
            is_wanted: take it even if it is slower.
        """
        self._is_wanted = is_wanted
        self._file = cache_folder() / f"step-{step_key(self._model, self._batch)}.pt2"
        if self._model.source is not None and self._file.is_file():
            self._work()
            return
        if cached_only:
            self.note, self.is_over = "not compiled yet", True
            return
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is over; return whether the world has a compiled step."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._model.compiled is not None

    def stop(self) -> None:
        """End compiling, if it goes on."""
        self._is_stopped = True
        if self._process is not None and self._process.poll() is None:
            _end_group(self._process.pid)
            self._process.kill()

    def _work(self) -> None:
        try:
            compiled = self._find()
            if self._is_wanted:
                self._model.compiled = compiled
            else:
                self._take_if_faster(compiled)
        except WorldModelError as error:
            self.note = str(error)
        except Exception as error:  # a player must not lose the dream over this
            self.note = f"{type(error).__name__}: {error}"
        self.is_over = True

    def _take_if_faster(self, compiled: CompiledStep) -> None:
        """Let the world have the step if it is the faster one of the two, each timed in turns."""
        ours, theirs = time_steps(self._model, compiled, self._batch)
        if ours <= theirs:
            self._model.compiled = compiled
        else:
            self.note = f"faster here ({theirs:.0f} ms, compiled {ours:.0f} ms)"

    def _find(self) -> CompiledStep:
        model = self._model
        if model.source is None:
            raise CompileError("only a world loaded from a bundle can be compiled: use WorldModel.load")
        if model.window != next_frame_window():
            raise CompileError("only the next-frame schedule is compiled: playing uncompiled")
        file = cast("Path", self._file)
        if not file.is_file():
            if not has_compiler():
                raise CompileError("no C++ compiler was found: playing uncompiled")
            words = ["--source", str(model.source), "--steps", str(model.config.num_steps), "--file", str(file)]
            words += ["--memory", str(model.memory_frames), "--batch", str(self._batch)]
            words += ["--context-level", str(model.config.context_level), "--device", str(model.device)]
            words += ["--level-shift", str(model.config.level_shift)]
            words += ["--threads", str(torch.get_num_threads()), "--dtype", str(model.dtype).removeprefix("torch.")]
            with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "worldmodel.compiled", *words],
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
        return CompiledStep(file, _begin_example(model, self._batch).dream.layout)


def _end_group(pid: int) -> None:
    """End the process group that a process leads, where there are such groups."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Compile one step, for `BackgroundCompiler`."""
    parser = argparse.ArgumentParser(prog="python -m worldmodel.compiled", description="Compile the step of a world.")
    for name in ("source", "file", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "memory", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("context-level", "level-shift"):
        parser.add_argument(f"--{name}", type=float, required=True)
    words = parser.parse_args()

    def end_with_caller() -> None:
        os.read(0, 1)
        _end_group(os.getpid())
        os._exit(1)

    threading.Thread(target=end_with_caller, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    from worldmodel.world import WorldModel

    torch.set_num_threads(words.threads)
    model = WorldModel.load(
        words.source,
        num_steps=words.steps,
        memory_frames=words.memory,
        context_level=words.context_level,
        level_shift=words.level_shift,
        device=words.device,
        dtype=getattr(torch, words.dtype),
    )
    try:
        compile_step(model, words.batch, Path(words.file))
    except WorldModelError as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)  # the thread above still reads


if __name__ == "__main__":
    main()
