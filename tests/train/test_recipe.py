"""The recipe: killed and run again it ends in a world that plays; its plans, its clock, its background programs."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.recipe
from envs.data.episodes import open_shards
from envs.dream import DreamEnv
from envs.worlds.registry import get_world
from tests.box_room import write_walks
from train.core.background import BackgroundProgram
from train.core.journal import Journal, RecipeOptions
from train.core.machine import Machine
from train.core.plans import PLANS, get_plan
from train.core.state import STATE_FILE
from train.data.recording import RecordOptions, plan_shards
from train.denoiser import DenoiserOptions
from train.evaluate import EvaluateOptions, read_measures
from train.recipe import (
    MIN_SHARDS,
    PIXEL_STAGES,
    SAMPLED_SHARDS,
    SUMMARY_STAGES,
    choose_evaluation,
    count_shards,
    make_denoiser,
    make_warps,
    run_recipe,
    why_no_pixels,
)
from train.warps import WarpOptions
from worldmodel.checkpoint import load_codec, load_denoiser
from worldmodel.errors import ConfigError, DataError, StateError
from worldmodel.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
CPU = Machine(torch.device("cpu"))


def wait_until(is_true: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_true():
            return True
        time.sleep(0.1)
    return False


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, by their parents in /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found, fresh = set(), {pid}
    while fresh := {child for child, parent in parents.items() if parent in fresh} - found:
        found |= fresh
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# The whole recipe -----------------------------------------------------------------------------------------------------


def kill_in_recording(command: list[str], folder: Path) -> None:
    """Start a recipe and kill it when something is recorded; nothing that it started lives on."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert wait_until(lambda: sum(count_shards(folder).values()) or process.poll(), 60)
    children = descendants(process.pid)
    process.kill()
    said = process.communicate()[0].decode()
    assert len(children) >= 3, said  # the recorder and its two workers
    assert wait_until(lambda: not any(map(is_alive, children)), 10), "recorders outlived the recipe"


def check_that_it_plays(world: Path) -> None:
    env = DreamEnv(checkpoint=str(world), device="cpu")
    first, _ = env.reset(seed=0)
    frames = [env.step(action)[0] for action in (1, 3, 3, 4, 1)]
    assert all(frame.shape == (64, 64, 3) for frame in frames) and not (frames[-1] == first).all()
    card = (world / "README.md").read_text()
    assert "PSNR" in card and "Memory of pixels: depth network" in card


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc for processes left behind")
def test_killed_and_run_again_it_ends_in_a_world_that_plays(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    out = tmp_path / "maze"
    words = ["--preset", "tiny", "--minutes", "0.3", "--out", str(out), "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "train.recipe", *words]
    kill_in_recording(command, out / "recording")
    early = {path.name: path.read_bytes() for path in (out / "recording").glob("*.h5")}

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((out / "recipe.json").read_text())
    stages = content["stages"]
    assert all(stages[name]["is_done"] for name in ("record", *PIXEL_STAGES))
    assert content["memory"] == "pixels" and stages["warps"]["shards"] >= SAMPLED_SHARDS
    assert all(f"] {name}: " in done.stdout for name in stages)

    assert {name: (out / "recording" / name).read_bytes() for name in early} == early
    shards = open_shards(out / "recording", strict=True)
    assert all(sum(s.split == split for s in shards) >= least for split, least in MIN_SHARDS.items())
    assert stages["record"]["frames"] == sum(e.num_frames for s in shards for e in s.episodes)
    assert stages["codec"]["test_psnr"] > 5 and stages["denoiser"]["steps"] >= 1
    assert stages["denoiser"].get("share_of_matrix_speed", 1) > 0  # not known of a training of a few steps
    assert stages["evaluate"]["psnr"].keys() >= {"1", "16"} and stages["evaluate"]["sharpness_ratio"] > 0
    assert stages["evaluate"]["action_accuracy"].keys() == {"turn", "walk"}
    assert load_denoiser(out / "world").config.warp_channels and load_codec(out / "world").config.keeps_pixels
    check_that_it_plays(out / "world")

    # Once more: everything is skipped, nothing changes but the clock.
    options = RecipeOptions(out, preset="tiny", minutes=0.3, workers=2, device="cpu")
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert run_recipe(options)["stages"] == stages
    assert {path: path.stat().st_mtime_ns for path in written} == written
    with pytest.raises(DataError, match=r"holds a recipe with minutes=0\.3"):
        run_recipe(dataclasses.replace(options, minutes=1.0))


class StubRecorder:
    """Stands for the program that records: a shard of 150 frames whenever it is asked how it is."""

    last_words, log = "", Path("log")

    def __init__(self, folder: Path, events: list[str]) -> None:
        self.folder, self.events = folder, events

    def start(self, module: str, words: list[str], log: Path) -> "StubRecorder":
        assert module == "train.record" and words[:2] == ["--out", str(self.folder)]
        self.folder.mkdir()
        return self

    def __enter__(self) -> None:
        self.events.append("start")

    def __exit__(self, *_: object) -> None:
        self.events.append("end")

    def stop(self) -> None:
        self.events.append("stop")

    @property
    def exit_status(self) -> None:
        counts = count_shards(self.folder)
        split = "test" if counts["train"] > 12 and not counts["test"] else "train"
        (self.folder / f"{split}-{counts[split]:05d}.h5").touch()


def stub_stages(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage note that it was run, and that there was enough to learn from."""

    def stage(name: str) -> Callable[[Journal], dict[str, Any]]:
        def work(recipe: Journal) -> dict[str, Any]:
            shards = count_shards(recipe.folder("recording"))
            assert shards["test"] >= 1 and 150 * sum(shards.values()) >= 2_000
            events.append(name)
            return {"note": name}

        return work

    for stages in (PIXEL_STAGES, SUMMARY_STAGES):
        for name in stages:
            monkeypatch.setitem(stages, name, stage(name))
    for name, event in (("make_codec", "codec"), ("make_depth", "depth"), ("encode", "encode early")):
        monkeypatch.setattr(train.recipe, name, stage(event))


@pytest.mark.parametrize("reason", [None, "it was recorded without poses"])
def test_recording_goes_on_beside_the_first_trainings(
    reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []
    plan = dataclasses.replace(get_plan("tiny", "cpu"), is_beside=True, first_frames=2_000, record_share=0.001)
    stub_stages(events, monkeypatch)
    monkeypatch.setattr(train.recipe, "BackgroundProgram", StubRecorder(tmp_path / "recording", events).start)
    monkeypatch.setattr(train.recipe, "open_shards", lambda folder: [])
    monkeypatch.setattr(train.recipe.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("train.core.journal.get_plan", lambda preset, device: plan)
    monkeypatch.setattr(train.recipe, "why_no_pixels", lambda shards: reason)

    content = run_recipe(RecipeOptions(tmp_path, preset="tiny", minutes=1.0, device="cpu"))
    early = ["start", "codec", "depth" if reason is None else "encode early", "stop", "end"]
    rest = ["warps", "denoiser", "decoder"] if reason is None else ["encode", "denoiser"]
    assert events == [*early, *rest, "evaluate", "bundle"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no memory of pixels")]
    assert content["memory"] == ("pixels" if reason is None else "summaries alone")
    assert len(said) == (reason is not None) and all(f": {reason}; " in line for line in said)


def test_what_a_memory_of_pixels_lacks_is_named(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = write_walks(tmp_path / "walks", "train", num_steps=4)
    strange = write_walks(tmp_path / "strange", "train", num_steps=4, action_names=("stay", *"abcdef"))
    assert why_no_pixels(open_shards(walks)) is None
    assert why_no_pixels(open_shards(recording)) == "it was recorded without poses"
    assert "stay, a, b, c, d, e, f do to a pose is not known" in str(why_no_pixels(open_shards(strange)))
    other = [dataclasses.replace(shard, world="Elsewhere") for shard in open_shards(walks)]
    assert "do to a pose is not known" in str(why_no_pixels(other))
    monkeypatch.setattr(type(get_world("LabMaze")), "view_deg", None)
    assert "angle of view of LabMaze is not known" in str(why_no_pixels(open_shards(walks)))


def test_a_failed_recording_says_why(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"recording failed: error: unknown world 'Atlantis'"):
        run_recipe(RecipeOptions(tmp_path, world="Atlantis", preset="tiny", minutes=0.1, workers=1, device="cpu"))


# Clock, journal and plans ---------------------------------------------------------------------------------------------


def test_a_stage_is_done_once_and_time_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = RecipeOptions(tmp_path, preset="tiny", minutes=2.0)
    journal, calls = Journal(options, CPU), []

    def work() -> dict[str, Any]:
        calls.append(time.sleep(0.3))
        return {"psnr": {"1": 20.123456}, "steps": 1234567}

    journal.run_stage("codec", work)
    again = Journal(options, CPU)
    again.run_stage("codec", work)
    assert len(calls) == 1 and again.used_minutes * 60 >= 0.3
    printed = capsys.readouterr().out
    assert "codec: psnr (1: 20.12), steps 1,234,567" in printed and "codec: done before" in printed


def test_a_training_resumes_with_the_time_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[DenoiserOptions] = []

    def interrupted(options: DenoiserOptions, machine: Machine) -> dict[str, Any]:
        told.append(options)
        options.out.mkdir()
        (options.out / STATE_FILE).touch()
        raise KeyboardInterrupt

    def finished(options: DenoiserOptions, machine: Machine) -> dict[str, Any]:
        told.append(options)
        return {"steps": 9, "tflops": 0.001}

    options = RecipeOptions(tmp_path, preset="tiny", minutes=2.0, seed=3)
    for train_denoiser in (interrupted, finished):
        monkeypatch.setattr(train.recipe, "train_denoiser", train_denoiser)
        recipe = Journal(options, CPU)
        with contextlib.suppress(KeyboardInterrupt):
            recipe.run_stage("denoiser", lambda recipe=recipe: make_denoiser(recipe))
        time.sleep(0.2)
    first, second = told
    assert not first.resume and first.minutes == pytest.approx(1.5, abs=0.01)
    assert second == dataclasses.replace(first, resume=True)
    assert first.seed == 3 and first.preset == "tiny" and not first.compile and first.save_minutes < first.minutes
    assert recipe.is_done("denoiser") and recipe.content["stages"]["denoiser"]["share_of_matrix_speed"] > 0


def test_as_many_shards_are_prepared_as_fit_into_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 10 frames takes a second: those that fit into a tenth of the time, and no others after a kill."""
    told: list[int | None] = []

    def stub(options: WarpOptions) -> dict[str, Any]:
        told.append(options.shards)
        options.out.mkdir(exist_ok=True)
        there = len(list(options.out.iterdir()))
        for number in range(there, options.shards or 0):
            (options.out / f"train-{number:05d}.safetensors").touch()
        new = (options.shards or 0) - there
        if len(told) == 2:
            raise KeyboardInterrupt
        return {"shards": new, "frames": 10 * new, "frames_per_s": 10.0}

    monkeypatch.setattr(train.recipe, "prepare", stub)
    options = RecipeOptions(tmp_path, preset="tiny", minutes=2.0)
    for _ in range(2):
        recipe = Journal(options, CPU)
        with contextlib.suppress(KeyboardInterrupt):
            recipe.run_stage("warps", lambda recipe=recipe: make_warps(recipe))
    fitting = SAMPLED_SHARDS + int(0.1 * 120)
    assert told[0] == SAMPLED_SHARDS and len(told) == 3 and told[1] == told[2]
    assert fitting - 1 <= recipe.content["stages"]["warps"]["shards"] <= fitting


def test_a_denoiser_takes_the_prepared_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[DenoiserOptions] = []
    monkeypatch.setattr(train.recipe, "train_denoiser", lambda options, machine: told.append(options) or {})
    recipe = Journal(RecipeOptions(tmp_path, preset="tiny", minutes=2.0), CPU)
    make_denoiser(recipe)
    recipe.content["stages"] = {"warps": {"is_done": True}}
    make_denoiser(recipe)
    without, with_pixels = told
    assert without.warps is None and not without.odometry
    assert with_pixels.warps == tmp_path / "warps" and with_pixels.odometry
    assert with_pixels.minutes == pytest.approx(without.minutes - recipe.plan.decoder_share * 2.0, abs=0.01)


def test_a_damaged_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"options": ')
    with pytest.raises(DataError, match=r"recipe\.json is damaged"):
        Journal(RecipeOptions(tmp_path), CPU)


@pytest.mark.parametrize("changes", [{"minutes": 0.0}, {"minutes": float("nan")}, {"workers": 0}])
def test_bad_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="minutes must be above 0 and workers at least 1; got"):
        RecipeOptions(tmp_path, **changes)


@pytest.mark.parametrize("key", PLANS)
def test_plans_fit_into_their_time(key: tuple[str, str]) -> None:
    plan = get_plan(*key)
    shares = (plan.record_share, plan.codec_share + plan.depth_share)
    before = (max(shares) if plan.is_beside else sum(shares)) + plan.warps_share
    denoiser = plan.denoiser_minutes(25.0, 25.0 * before, has_pixels=True) / 25.0
    assert denoiser >= 0.25 and before + denoiser + plan.decoder_share + plan.evaluate_share == pytest.approx(1.0)
    alone = plan.denoiser_minutes(25.0, 25.0 * before, has_pixels=False) / 25.0
    assert alone == pytest.approx(denoiser + plan.decoder_share)
    assert plan.length + 1 >= 32 + 64 and plan.clip_frames % 8 == 0  # what evaluation and the attention's chunks need


def test_every_preset_has_plans_and_an_unknown_one_is_refused() -> None:
    assert {name for name, _ in PLANS} == set(PRESETS) - {"study"}  # which has a program of its own
    assert get_plan("small", "mps") == get_plan("small", "cpu")
    with pytest.raises(ConfigError, match="no plan for preset 'huge'"):
        get_plan("huge", "cpu")


@pytest.mark.parametrize("key", PLANS)
def test_the_first_shards_of_a_plan_hold_test_mazes(key: tuple[str, str]) -> None:
    plan = get_plan(*key)
    for minutes in (0.5, 25.0, 600.0):
        options = RecordOptions(
            Path("none"),
            episodes=plan.num_episodes(minutes),
            episodes_per_shard=plan.episodes_per_shard,
            test_fraction=plan.test_fraction,
        )
        splits = [job.split for job in plan_shards(options)]
        assert "test" in splits[:12] and splits[:12].count("train") >= MIN_SHARDS["train"]


def test_a_memory_that_there_is_not_ends_the_recipe_before_it_records(tmp_path: Path) -> None:
    for name, message in {"lstm": "unknown memory structure 'lstm'", "nowhere:Memory": "cannot be imported"}.items():
        with pytest.raises(ConfigError, match=message):
            run_recipe(RecipeOptions(tmp_path / "out", memory=name, preset="tiny", device="cpu"))
    assert not (tmp_path / "out").exists()


def test_measuring_fits_the_time() -> None:
    assert choose_evaluation(1000.0, 0.001) == read_measures(EvaluateOptions.measures, ())
    assert choose_evaluation(20.0, 0.01) == read_measures(EvaluateOptions.measures, (), quick=True)
    some = choose_evaluation(115.0, 0.005)
    assert 50 < some["fidelity"].cases < 150 and some["drift"].dreams >= 4


# Background programs --------------------------------------------------------------------------------------------------


def test_a_background_program_ends_with_its_block_and_keeps_its_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with BackgroundProgram("json.tool", ["--help"], log) as program:
        assert wait_until(lambda: program.exit_status is not None, 20)
    assert program.exit_status == 0 and "usage" in log.read_text()
    with BackgroundProgram("http.server", ["0", "--bind", "127.0.0.1"], log) as program:
        assert wait_until(lambda: "Serving" in log.read_text(), 20) or program.exit_status is None
        assert program.exit_status is None
    assert program.exit_status == -signal.SIGTERM


def test_a_background_program_ends_when_its_caller_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from train.core.background import BackgroundProgram
with BackgroundProgram("http.server", ["0", "--bind", "127.0.0.1"], Path({str(tmp_path / "log")!r})) as program:
    print(program.pid, flush=True)
    time.sleep(60)
"""
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    os.kill(pid, 0)  # it runs
    caller.kill()
    caller.communicate()
    assert wait_until(lambda: not is_alive(pid), 20)
