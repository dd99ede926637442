"""The last part of `train.finetune`: the new world and the given one, as far as the time reaches."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from envs.data.episodes import open_shards
from envs.dreamer import find_world
from train.bundle import choose_openings
from train.data.clips import list_episodes
from train.finetuning.work import Work
from train.measures.base import Bench
from train.measures.bold_play import BoldPlayOptions, run_bold_play
from train.measures.fidelity import FidelityOptions, measure_fidelity
from worldmodel.checkpoint import load_openings, resolve
from worldmodel.errors import CheckpointError
from worldmodel.world import WorldModel

BOLD_FRAMES, BOLD_TURN = 150, 60  # steps of bold play, and of the full turn after them
LIKENESS = FidelityOptions(cases=16, context=32, horizon=32)


def measure(work: Work, facts: dict[str, Any]) -> None:
    """Measure the new world and the given one, on the same seeds and cases, as far as the time reaches."""
    options, clock = work.options, work.clock
    shards = [shard for shard in open_shards(work.recording) if shard.split == "test"] or open_shards(work.recording)
    try:
        openings = load_openings(options.world)
    except CheckpointError:
        openings = choose_openings(shards, options.evaluate_seeds, min(48, options.length // 2), 0)

    worlds: dict[str, Path] = {"new": options.out}
    if not work.is_grafted:
        worlds["given"] = resolve(options.world)

    for name, bundle in worlds.items():
        model = WorldModel.load(bundle, device=work.machine.device)
        out = work.folder / "evaluation" / name
        for measure_one in (measure_bold, measure_like):
            share = (clock.evaluate_end - time.monotonic()) / (2 * len(worlds) - len(facts))
            found = measure_one(work, model, {"openings": openings, "shards": shards}, out, share)
            facts[f"{name}_{measure_one.__name__.removeprefix('measure_')}"] = found
        if name == "new":
            for sheet in ("dream_walks.png", "truth_and_dream.png"):
                if (out / sheet).is_file():
                    shutil.copy(out / sheet, options.out / sheet)


def seconds_a_step(model: WorldModel, openings: dict[str, torch.Tensor], batch: int) -> float:
    """Return how long a step of `batch` dreams takes."""
    frames = openings["frames"][:1, :2].expand(batch, -1, -1, -1, -1)
    state = model.reset(frames, openings["actions"][:1, :1].long().expand(batch, -1), list(range(batch)))
    actions = torch.zeros(batch, dtype=torch.int64)
    model.step(state, actions).frames.cpu()
    started = time.monotonic()
    for _ in range(2):
        model.step(state, actions).frames.cpu()
    return (time.monotonic() - started) / 2


def fit_batch(
    work: Work, model: WorldModel, openings: dict[str, torch.Tensor], wanted: int, steps: int, seconds: float, what: str
) -> int:
    """Return how many of the wanted dreams of so many steps fit into a time; 0 if fewer than two do."""
    if seconds <= 0:
        work.report.cut(what, "no time was left")
        return 0
    batch = wanted
    while True:
        need = 1.3 * steps * seconds_a_step(model, openings, batch)
        if batch == wanted:
            whole = need
        if need <= seconds:
            break
        batch //= 2
        if batch < 2 or time.monotonic() > work.clock.evaluate_end:
            batch = 0
            break
    if batch < wanted:
        work.report.cut(what, f"{batch} of {wanted} dreams; all would have taken about {whole:.0f} s")
    return batch


def measure_bold(work: Work, model: WorldModel, given: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """Play boldly for one full turn."""
    openings = given["openings"]
    steps = BOLD_FRAMES + BOLD_TURN + openings["frames"].shape[1]
    seeds = fit_batch(work, model, openings, work.options.evaluate_seeds, steps, seconds, f"bold play of {out.name}")
    if not seeds:
        return {}
    bench = Bench(model, find_world(model.info, str(out)), [], None, out, batch_size=seeds)
    found = run_bold_play(bench, openings, BoldPlayOptions(seeds=seeds, frames=BOLD_FRAMES))["dream"]
    return {name: found[name] for name in ("players", "blind_turns", "mean_new_view", "full_turn_psnr")}


def measure_like(work: Work, model: WorldModel, given: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """Compare dreams under recorded actions with what was recorded."""
    steps = LIKENESS.context + LIKENESS.horizon
    cases = fit_batch(work, model, given["openings"], LIKENESS.cases, steps, seconds, f"likeness of {out.name}")
    if not cases:
        return {}
    episodes = list_episodes(given["shards"])
    bench = Bench(model, find_world(model.info, str(out)), episodes, None, out, batch_size=LIKENESS.cases)
    found = measure_fidelity(bench, dataclasses.replace(LIKENESS, cases=cases))
    return {name: found[name] for name in ("cases", "psnr", "copy_last", "codec_ceiling", "ssim")}
