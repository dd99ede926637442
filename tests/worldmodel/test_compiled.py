"""Compiled steps: the same dream in other rounding, kept between runs, never in the way of play."""

import os
import queue
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import worldmodel.compiled
from worldmodel.compiled import (
    CompiledStep,
    WholeStep,
    cache_folder,
    compile_step,
    has_compiler,
    step_key,
    time_steps,
)
from worldmodel.devices import tune_threads
from worldmodel.errors import CompileError
from worldmodel.state import WorldState
from worldmodel.windows import Window
from worldmodel.world import WorldModel

Openings = dict[str, torch.Tensor]


def start(world: WorldModel, openings: Openings, dreams: int = 1) -> WorldState:
    return world.reset(openings["frames"][:dreams], openings["actions"][:dreams].long(), list(range(dreams)))


def dream(world: WorldModel, openings: Openings, steps: int, dreams: int = 1) -> torch.Tensor:
    state = start(world, openings, dreams)
    actions = torch.arange(steps) % world.num_actions
    return torch.stack([world.step(state, action.expand(dreams)).frames for action in actions], 1)


@pytest.fixture
def world(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    monkeypatch.setenv("WORLDMODEL_CACHE", str(tmp_path / "cache"))
    return WorldModel.load(bundle, device="cpu", num_steps=1, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_compiled_step_dreams_the_same_and_is_kept(world: WorldModel, bundle: Path, openings: Openings) -> None:
    expected, single = dream(world, openings, 12, dreams=2), dream(world, openings, 3)
    compiler = world.compile(2, wait=True)
    assert compiler.note == "" and world.compiled is not None
    found = dream(world, openings, 12, dreams=2)
    assert (found.int() - expected.int()).abs().max() <= 2  # levels of 255; rounding may tip one over
    assert torch.equal(dream(world, openings, 12, dreams=2), found)
    assert torch.equal(dream(world, openings, 3), single)  # another batch goes uncompiled
    state, other = start(world, openings, 2), start(world, openings, 2)
    world.put(other, [0], start(world, openings))
    action = torch.tensor([1, 2])
    copies = [
        state,
        state.clone(),
        WorldState.from_bytes(state.to_bytes()),
        other,
    ]  # all of them other memory, and strides
    all_frames = [torch.stack([world.step(s, action).frames for _ in range(3)]) for s in copies]
    assert all(torch.equal(frames, all_frames[0]) for frames in all_frames)
    assert not torch.equal(all_frames[0][0], all_frames[0][2])

    short = WorldModel.load(bundle, device="cpu", num_steps=1, memory_frames=2, dtype=torch.float32)
    foreign, same = start(short, openings, 2), start(short, openings, 2)
    for _ in range(3):  # a state with a smaller memory goes uncompiled: compiled code would write past its end
        assert torch.equal(world.step(foreign, action).frames, short.step(same, action).frames)

    again = WorldModel.load(bundle, device="cpu", num_steps=1, dtype=torch.float32)
    again.compile(2, wait=False)  # found in the cache: there at once
    assert again.compiled is not None and torch.equal(dream(again, openings, 12, dreams=2), found)
    file = next(cache_folder().glob("step-*.pt2"))
    assert [p.name for p in cache_folder().iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CompileError, match="delete it"):
        CompiledStep(file, ())


def test_setuptools_is_had_where_distutils_came_first() -> None:
    """Where its own copy of distutils cannot be had, setuptools raises an AssertionError."""
    program = (
        "import sys\n"
        "sys.modules['setuptools._distutils'] = None\n"
        "from worldmodel.compiled import import_setuptools\n"
        "import_setuptools()\n"
        "assert 'setuptools' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_compiled_step_with_a_memory_of_pixels_dreams_the_same(
    pixel_bundle: Path, openings: Openings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDMODEL_CACHE", str(tmp_path / "cache"))
    world = WorldModel.load(pixel_bundle, device="cpu", num_steps=1, dtype=torch.float32)
    expected = dream(world, openings, 4)
    assert world.compile(1, wait=True).note == "" and world.compiled is not None
    state = start(world, openings)
    kept = {name: part for name, part in state.dream.tensors().items() if name.startswith("pixels.")}
    copies = [state, state.clone(), WorldState.from_bytes(state.to_bytes())]
    frames = [torch.stack([world.step(s, torch.tensor([k])).frames for k in range(4)], 1) for s in copies]
    # Rounding may turn a choice between two sources; few pixels are of another.
    away = (frames[0].int() - expected.int()).abs()
    assert float((away <= 2).float().mean()) > 0.99
    assert all(torch.equal(other, frames[0]) for other in frames)
    after = state.dream.tensors()
    assert all(after[name] is part for name, part in kept.items()), "changed in place"
    newest = int(state.dream.pixels.keyframes.order.argmax()) if state.dream.pixels is not None else -1
    assert torch.equal(after["pixels.keyframes_pixels"][0, newest], frames[0][0, -1].permute(2, 0, 1))


@pytest.mark.slow
def test_a_step_with_a_memory_of_pixels_can_be_exported(pixel_bundle: Path, openings: Openings) -> None:
    """Shapes are fixed and nothing depends on data: what is traced on one state steps another alike, in place."""
    world = WorldModel.load(pixel_bundle, device="cpu", num_steps=1, dtype=torch.float32)
    noise = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).split(1, 1)

    def arguments(num_steps: int, action: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        state = start(world, openings)
        for _ in range(num_steps):
            world.step(state, torch.tensor([1]))
        return {name: part.clone() for name, part in state.dream.tensors().items()}, torch.tensor([[action]])

    step = WholeStep(world.stepper).eval()
    with torch.no_grad():
        exported = torch.export.export(step, (*arguments(2, 0), *noise), strict=False).module()
        (found, action), (expected, _) = arguments(4, 3), arguments(4, 3)
        frames, *_, made = exported(found, action, *noise)
        true_frames, *_, true_made = step(expected, action, *noise)
    assert (frames.int() - true_frames.int()).abs().max() <= 1
    for name, part in (expected | true_made).items():
        torch.testing.assert_close((found | made)[name], part, atol=1e-4, rtol=1e-4)


def test_without_a_compiler_play_goes_on(
    world: WorldModel, openings: Openings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worldmodel.compiled, "has_compiler", lambda: False)
    compiler = world.compile(wait=False)
    assert not compiler.wait(30) and compiler.is_over and "no C++ compiler" in compiler.note
    dream(world, openings, 2)
    assert world.compile(wait=False, cached_only=True).note == "not compiled yet"
    with pytest.raises(CompileError, match="no C.. compiler"):
        world.compile(wait=True)
    with pytest.raises(CompileError, match="no C.. compiler"):
        compile_step(world.stepper, world.begin_gray(1), cache_folder() / "step.pt2")


def test_a_world_without_a_bundle_or_of_another_schedule_is_not_compiled(world: WorldModel) -> None:
    with pytest.raises(CompileError, match="WorldModel.load"):
        WorldModel(world.codec, world.denoiser, device="cpu").compile()
    assert world.source is not None
    ahead = WorldModel.load(world.source, device="cpu", window=Window((0.5, 1.0), (0.0, 0.5), 1))
    with pytest.raises(CompileError, match="next-frame"):
        ahead.compile()


def test_a_name_depends_on_what_the_step_depends_on(bundle: Path, tmp_path: Path) -> None:
    def key(source: Path, batch: int = 1, **changes: Any) -> str:
        settings = {"num_steps": 1, "dtype": torch.float32, **changes}
        return step_key(WorldModel.load(source, device="cpu", **settings).stepper, batch)

    names = {key(bundle), key(bundle, 2)}
    for change in ({"num_steps": 2}, {"dtype": torch.bfloat16}, {"memory_frames": 2}, {"level_shift": 2.0}):
        names.add(key(bundle, **change))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    names.add(key(bundle))
    torch.set_num_threads(threads)
    assert len(names) == 7

    shutil.copytree(bundle, tmp_path / "copy")
    assert key(tmp_path / "copy") == key(bundle)


def test_the_shipped_world_has_a_name() -> None:
    """Single numbers among its weights, in 16 bits, can be hashed as well."""
    assert len(step_key(WorldModel.load("labmaze", device="cpu", dtype=torch.bfloat16).stepper, 1)) == 24


def test_the_compiler_gets_a_group_and_a_folder_of_its_own(world: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class NoProcess:
        def __init__(self, words: list[str], **settings: Any) -> None:
            given.update(settings, words=words)

        def wait(self) -> int:
            given["folder_is_there"] = Path(given["env"]["TMPDIR"]).is_dir()
            return 1

        def poll(self) -> int:
            return 1

    monkeypatch.setattr(worldmodel.compiled, "has_compiler", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", NoProcess)
    compiler = world.compile(wait=False)
    assert not compiler.wait(30) and "ended" in compiler.note
    assert given["start_new_session"] and given["folder_is_there"]
    assert given["env"]["TORCHINDUCTOR_CACHE_DIR"] == given["env"]["TMPDIR"]
    assert not Path(given["env"]["TMPDIR"]).exists()
    assert given["words"][given["words"].index("--level-shift") + 1] == str(world.config.level_shift)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_stopping_ends_the_compilers_too(world: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: queue.SimpleQueue[int] = queue.SimpleQueue()

    class Shell(subprocess.Popen[bytes]):
        """Takes the place of the process that compiles: a shell whose child sleeps on."""

        def __init__(self, words: list[str], **settings: Any) -> None:
            super().__init__(["sh", "-c", "sleep 60 & echo $!; wait"], **settings | {"stdout": subprocess.PIPE})
            assert self.stdout is not None
            begun.put(int(self.stdout.readline()))

    monkeypatch.setattr(worldmodel.compiled, "has_compiler", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", Shell)
    compiler = world.compile(wait=False)
    child = begun.get(timeout=60)
    compiler.stop()
    assert not compiler.wait(30) and "ended" in compiler.note
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{child}/stat")
        if stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return  # dead, and nobody has asked for its end yet
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_threads_are_chosen_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    clock = [0.0]
    costs = {1: 3.0, 2: 2.0, 4: 1.95}
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def run() -> None:
        clock[0] += costs.get(torch.get_num_threads(), 9.0)

    try:
        assert tune_threads(run, 3) == 2  # four threads win by too little
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("milliseconds", "is_taken"), [((5.0, 9.0), True), ((9.0, 5.0), False)])
def test_a_step_is_taken_up_where_it_is_the_faster_one(
    world: WorldModel, milliseconds: tuple[float, float], is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = object()
    monkeypatch.setattr(worldmodel.compiled, "time_steps", lambda *_: milliseconds)
    monkeypatch.setattr(worldmodel.compiled, "CompiledStep", lambda *_: step)
    cache_folder().mkdir(parents=True)
    (cache_folder() / f"step-{step_key(world.stepper, 1)}.pt2").touch()
    compiler = world.compile(wait=False)
    assert compiler.is_over and compiler.wait() == is_taken
    assert world.compiled is (step if is_taken else None)
    assert compiler.note == ("" if is_taken else "faster here (5 ms, compiled 9 ms)")


def test_both_steps_are_timed_on_dreams_of_their_own(world: WorldModel) -> None:
    ours, theirs = time_steps(world.stepper, world.stepper, world.begin_gray(2), rounds=2)
    assert ours > 0 and theirs > 0
