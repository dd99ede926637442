"""Program: measure a world. `python -m train.evaluate --checkpoint NAME_OR_DIR --data DIR --out DIR`.

Owns: the options, the order of what is measured on held-out mazes (`train.measures.likeness`,
`train.measures.response`, `train.measures.drift`) and the report. Does not know how a measure is taken or drawn.
"""

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from envs.data.episodes import open_shards
from envs.worlds.registry import get_world
from train.core.options import parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.data.rollouts import EvaluationPlan
from train.measures.drift import measure_drift
from train.measures.likeness import measure_heads, measure_likeness
from train.measures.response import RULE, find_moves, measure_dreams, measure_real
from train.reports.plots import plot_drift, plot_likeness, write_summary
from worldmodel.analysis.metrics import MAX_PSNR
from worldmodel.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EvaluationPlan):
    """Measure a world against held-out recorded play."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards."""
    out: Path
    """Folder of the report; made if missing."""
    steps: int | None = None
    """Denoising steps a frame; default what the world says."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def evaluate_world(
    model: WorldModel, data: Path, out: Path, options: EvaluationPlan | None = None, command: str = ""
) -> dict[str, Any]:
    """Measure a world on the held-out mazes of a recording and write report, plots and contact sheets.

    Args:
        model: the world, with the denoising steps and the memory to measure.
        data: folder of a recording.
        out: folder of `report.json` (written last), `report.md`, `psnr.png`, `drift.png`, `truth_and_dream.png`,
            `long_dreams.png`.
        options: how much to measure.
        command: command line to keep in the report.

    Returns:
        the content of `report.json`.

    Raises:
        DataError: no held-out shard of the world's frame size and actions, or episodes too short.
        StorageError: a result cannot be written.
    """
    started = time.monotonic()
    plan = (options or EvaluationPlan()).settled()
    shards = open_shards(data, "test", model.codec.config.image_size, model.num_actions)
    episodes, actions = list_episodes(shards), get_world(shards[0].world).actions
    longest = max(episode.num_frames for episode in episodes) - plan.context
    plan = dataclasses.replace(plan, long_frames=max(1, min(plan.long_frames, longest)))
    num_held = len(find_moves(actions)) * plan.openings * plan.held_frames
    total = plan.cases * plan.horizon + num_held + plan.long_dreams * plan.long_frames
    with tqdm(total=total, desc="dreaming", unit="frame", mininterval=2.0) as progress:
        report = measure_likeness(model, episodes, plan, out, progress.update)
        held = {"held": plan.held_frames, "seed": plan.seed}
        if isinstance(model, WorldModel):  # what only dreams, as a stand-in may, has no heads
            report["heads_on_real_play"] = measure_heads(model, episodes)
        report["action_response_real"] = measure_real(episodes, actions, count=plan.openings, **held)
        report["action_response"] = measure_dreams(
            model,
            episodes,
            actions,
            openings=plan.openings,
            context=plan.context,
            batch_size=plan.batch_size,
            on_frames=progress.update,
            **held,
        )
        report["action_response"]["rule"] = RULE
        if plan.long_dreams:
            report |= measure_drift(model, episodes, plan, out, progress.update)
            plot_drift(out / "drift.png", report["drift"])
    plot_likeness(out / "psnr.png", report)
    report["psnr_means"] = (
        "psnr, copy_last, codec_ceiling: PSNR of the squared error averaged over cases; psnr_of_each_case: PSNR of "
        f"each case, cut at {MAX_PSNR:g} dB, then averaged (a noop leaves equal frames, whose PSNR has no limit)"
    )
    report["held_out"] = {"episodes": len(episodes), "scenes": len({e.scene_seed for e in episodes})}
    report["settings"] = {
        **{f.name: getattr(plan, f.name) for f in dataclasses.fields(EvaluationPlan)},
        "denoising_steps": model.config.num_steps,
        "level_shift": model.config.level_shift,
        "context_level": model.config.context_level,
        "memory_frames": model.memory_frames,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "data": str(data),
    }
    report["command"], report["seconds"] = command, round(time.monotonic() - started, 1)
    write_summary(out / "report.md", report)
    save_json(out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the main figures."""
    options = parse_options(EvaluateOptions, "python -m train.evaluate")
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    command = f"python -m train.evaluate {shlex.join(sys.argv[1:])}"
    report = evaluate_world(model, options.data, options.out, options, command)
    response = {name: report["action_response"][name] for name in ("turn", "walk")}
    shown = {name: report[name] for name in ("psnr", "copy_last", "codec_ceiling")}
    print(shown | {"action_response": response, "sharpness_ratio": report.get("sharpness_ratio")})
    print(f"report: {options.out / 'report.md'}")


if __name__ == "__main__":
    run_program(main)
