"""What becomes of a long dream: sharpness, colors and likeness to the truth, segment by segment.

Owns: long rollouts and their summary. Under random actions the truth is the real scene stepped with the same ones,
where it can be made again; elsewhere it is what was recorded. Does not know files of results other than its contact
sheet.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo
from envs.worlds.registry import try_revisit
from train.data.rollouts import EvaluationPlan, dream_on, in_batches, read_pieces, spread_over
from train.measures.sharpness import CONTROL_EVERY, make_controls, measure_detail, summarize_sharpness
from train.reports.plots import save_sheet
from worldmodel.analysis.metrics import color_statistics, gradient_energy, squared_error, to_psnr
from worldmodel.world import WorldModel

SEGMENT = 50  # frames of a long dream that are summed up in one row of `drift`
SHEET_DREAMS = 8


def random_actions(shape: tuple[int, int], num_actions: int, rng: np.random.Generator) -> torch.Tensor:
    """Return random actions uint8 (B, N), each held for 1 to 20 steps."""
    rows = []
    for _ in range(shape[0]):
        holds = rng.integers(1, 21, shape[1])
        rows.append(np.repeat(rng.integers(0, num_actions, shape[1]), holds)[: shape[1]])
    return torch.from_numpy(np.stack(rows).astype(np.uint8))


def measure_drift(
    model: WorldModel, episodes: list[EpisodeInfo], plan: EvaluationPlan, out: Path, on_frames: Callable[[int], object]
) -> dict[str, Any]:
    """Dream long and follow sharpness, colors and likeness to the truth.

    Raises:
        DataError: no episode reaches beyond the context, or a file is damaged. StorageError: as `measure_likeness`.
    """
    known = plan.context
    num_frames = plan.long_frames
    rng = np.random.default_rng([plan.seed, 4])
    pieces = spread_over(episodes, known + num_frames, plan.long_dreams, rng)
    shown_at = [1, *range(25, num_frames + 1, 25)]
    rows: list[tuple[str, torch.Tensor]] = []
    parts: dict[str, list[torch.Tensor]] = {}
    first = 0
    is_random = plan.long_actions == "random"
    scene, left_out = try_revisit(pieces[0].episode) if is_random else (None, None)
    with contextlib.ExitStack() as stack:
        if scene is not None:
            stack.enter_context(scene)
        for batch in in_batches(pieces, plan.batch_size):
            given = read_pieces(batch)
            actions, truth = given["actions"], given["frames"][:, known:]
            if is_random:
                actions[:, known - 1 :] = random_actions((len(batch), num_frames), model.num_actions, rng)
            if scene is not None:
                played = [
                    scene.play(piece.episode, piece.start + known - 1, row[known - 1 :].numpy())
                    for piece, row in zip(batch, actions, strict=True)
                ]
                truth = torch.from_numpy(np.stack(played))
            seeds = [plan.seed + 10_000 + first + i for i in range(len(batch))]
            dream = dream_on(model, given["frames"][:, :known], actions, seeds, on_frames)
            found = {
                "energy": gradient_energy(dream.frames),
                "true_energy": gradient_energy(truth),
                "detail": measure_detail(dream.frames),
                "true_detail": measure_detail(truth),
                "control_detail": measure_detail(truth[:, ::CONTROL_EVERY]),
                "colors": color_statistics(dream.frames),
                "true_colors": color_statistics(truth),
                "error": squared_error(dream.frames, truth),
            }
            for name, frames in make_controls(truth[:, ::CONTROL_EVERY], plan.seed).items():
                found[f"{name}_detail"] = measure_detail(frames)
            last = slice(2 * num_frames // 3, None, 10)
            found["codec_energy"] = gradient_energy(model.decode(model.encode(truth[:, last])).cpu())
            found["codec_true_energy"] = gradient_energy(truth[:, last])
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
            rows += [("dream", frames[[t - 1 for t in shown_at]]) for frames in dream.frames]
            first += len(batch)
    save_sheet(out / "long_dreams.png", rows[:SHEET_DREAMS], shown_at)
    all_of = {name: torch.cat(values) for name, values in parts.items()}
    reference = "the real scene under the same actions"
    if is_random and scene is None:
        reference = f"recorded play under other actions ({left_out})"
    report = summarize_drift(all_of, num_frames, plan.long_actions, has_truth=not is_random or scene is not None)
    report["sharpness"] = summarize_sharpness(all_of, reference, plan.seed)
    return report | {"long_dreams": len(pieces)}


def summarize_drift(found: dict[str, torch.Tensor], num_frames: int, actions: str, has_truth: bool) -> dict[str, Any]:
    """Return the part of the report on long dreams; `found` holds (dreams, N, ...).

    The sharpness ratio is that of the last third (frames 201 to 300 of 300).
    """

    def ratio(part: slice) -> float:
        truth = float(found["true_energy"][:, part].mean())
        return round(float(found["energy"][:, part].mean()) / max(truth, 1e-12), 4)

    def drift(part: slice, first: int, last: int) -> dict[str, Any]:
        apart = (found["colors"][:, part].mean((0, 1)) - found["true_colors"][:, part].mean((0, 1))).square().mean()
        psnr = round(float(to_psnr(found["error"][:, part].mean())), 4) if has_truth else None
        distance = round(float(apart.sqrt()), 3)
        return {"frames": [first, last], "sharpness_ratio": ratio(part), "color_distance": distance, "psnr": psnr}

    codec = float(found["codec_energy"].mean()) / max(float(found["codec_true_energy"].mean()), 1e-12)
    starts = range(0, num_frames, SEGMENT)
    return {
        "sharpness_ratio": ratio(slice(2 * num_frames // 3, None)),
        "sharpness_ratio_codec": round(codec, 4),
        "sharpness_frames": [2 * num_frames // 3 + 1, num_frames],
        "long_actions": actions,
        "drift": [drift(slice(s, s + SEGMENT), s + 1, min(s + SEGMENT, num_frames)) for s in starts],
    }
