"""How near dreams under true actions come to the truth, frame by frame, and whether the heads see what happens.

Owns: the comparison with the truth, with the last context frame and with the codec alone, over all pixels and (by
`train.measures.in_sight`) over those that the context showed, and the scores of predicted rewards and endings. Does not
know long dreams, actions' meaning or files of results other than its contact sheet.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo
from envs.worlds.registry import try_revisit
from train.data.rollouts import EvaluationPlan, Piece, dream_on, in_batches, read_pieces, spread_over
from train.measures.in_sight import compare_in_sight, find_sources_of_piece, summarize_in_sight
from train.reports.plots import save_sheet
from worldmodel.analysis.bootstrap import draw_weights, find_interval
from worldmodel.analysis.metrics import squared_error, ssim, to_psnr
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.world import WorldModel

HORIZONS = (1, 2, 4, 8, 16, 32, 64)
EVENT_SLACK = 2  # steps by which a predicted event may miss the true one
SHEET_CASES = 6


def by_horizon(values: torch.Tensor, horizons: list[int]) -> dict[str, float]:
    """Return values (N,) of frames 1 to N at the horizons, as JSON keeps them."""
    return {str(h): round(float(values[h - 1]), 4) for h in horizons}


def pooled_psnr(errors: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of the mean squared error over cases: (cases, N) to (N,), dB."""
    return to_psnr(errors.mean(0))


def margin_interval(dream: torch.Tensor, copy: torch.Tensor, groups: np.ndarray, seed: int) -> torch.Tensor:
    """Return the 2.5 and 97.5 percentiles (2, N) of the margin over copy-last, by drawing episodes again 500 times.

    Args:
        dream: squared errors (cases, N) of the dreams.
        copy: the same for the last context frame.
        groups: (cases,) the episode of each case; cases of one episode are not independent.
        seed: chance.
    """
    weights = draw_weights(groups, np.random.default_rng([seed, 3]))
    return find_interval(to_psnr(weights @ dream) - to_psnr(weights @ copy))


def psnr_interval(errors: torch.Tensor, groups: np.ndarray, seed: int) -> torch.Tensor:
    """Return the 2.5 and 97.5 percentiles (2, N) of `pooled_psnr`, by drawing episodes again; the rest as above."""
    return find_interval(to_psnr(draw_weights(groups, np.random.default_rng([seed, 3])) @ errors))


def score_events(
    predicted: torch.Tensor, true: torch.Tensor, slack: int = EVENT_SLACK
) -> dict[str, float | int | None]:
    """Return precision, recall and F1 of predicted events; one may miss a true one by `slack` steps.

    Args:
        predicted: bool (B, N).
        true: bool (B, N).
        slack: steps.

    Returns:
        with the counts; None where nothing was predicted, nothing was there, or both.
    """

    def widen(events: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool1d(events[:, None].float(), 2 * slack + 1, 1, slack)[:, 0] > 0

    num_predicted, num_true = int(predicted.sum()), int(true.sum())
    precision = int((predicted & widen(true)).sum()) / num_predicted if num_predicted else None
    recall = int((true & widen(predicted)).sum()) / num_true if num_true else None
    f1: float | None = None
    if precision is not None and recall is not None:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "predicted": num_predicted, "true": num_true}


def measure_likeness(
    model: WorldModel, episodes: list[EpisodeInfo], plan: EvaluationPlan, out: Path, on_frames: Callable[[int], object]
) -> dict[str, Any]:
    """Dream under true actions and compare with the truth, with the last context frame, and with the codec's own error.

    Raises:
        DataError: no episode is long enough, or a file is damaged. StorageError: the sheet cannot be written.
    """
    known, frames_ahead = plan.context, plan.horizon
    horizons = [h for h in HORIZONS if h <= frames_ahead]
    at = [known + h - 1 for h in horizons]
    rng = np.random.default_rng([plan.seed, 0])
    pieces = spread_over(episodes, known + frames_ahead, plan.cases, rng)
    parts: dict[str, list[torch.Tensor]] = {}
    rows: list[tuple[str, torch.Tensor]] = []
    shown = {int(i) for i in np.linspace(0, len(pieces) - 1, min(SHEET_CASES, len(pieces)))}
    scene, left_out = try_revisit(pieces[0].episode)
    first = 0
    with contextlib.ExitStack() as stack:
        if scene is not None:
            stack.enter_context(scene)
        for batch in in_batches(pieces, plan.batch_size):
            given = read_pieces(batch, ("frames", "actions", "rewards", "terminated"))
            seeds = [plan.seed + first + i for i in range(len(batch))]
            dream = dream_on(model, given["frames"][:, :known], given["actions"], seeds, on_frames)
            truth, last = given["frames"][:, known:], given["frames"][:, known - 1 : known]
            decoded = model.decode(model.encode(given["frames"][:, at])).cpu()
            picked, true_picked = (x[:, [h - 1 for h in horizons]] for x in (dream.frames, truth))
            copied = last.expand_as(true_picked)
            found = {
                "dream": squared_error(dream.frames, truth),
                "copy": squared_error(last.expand_as(truth), truth),
                "codec": squared_error(decoded, true_picked),
                "dream_ssim": ssim(picked, true_picked),
                "copy_ssim": ssim(copied, true_picked),
                "codec_ssim": ssim(decoded, true_picked),
                "rewards": dream.rewards != 0,
                "true_rewards": given["rewards"][:, known - 1 :] != 0,
                "terminated": dream.terminated,
                "true_terminated": given["terminated"][:, known - 1 :],
            }
            if scene is not None:
                sources = np.stack([find_sources_of_piece(scene, piece, known, horizons) for piece in batch])
                shown_frames = {"dream": picked, "copy": copied, "codec": decoded}
                context = given["frames"][:, :known]
                found |= compare_in_sight(torch.from_numpy(sources), context, true_picked, shown_frames)
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
            for i in range(len(batch)):
                if first + i in shown:
                    rows.append(("truth", torch.cat([last[i], true_picked[i]])))
                    rows.append(("dream", torch.cat([last[i], picked[i]])))
            first += len(batch)
    save_sheet(out / "truth_and_dream.png", rows, [0, *horizons])
    all_of = {name: torch.cat(values) for name, values in parts.items()}
    groups = np.array([f"{p.episode.path}/{p.episode.key}" for p in pieces])
    report = {"horizons": horizons, **summarize_likeness(all_of, groups, horizons, plan.seed), "cases": len(pieces)}
    report["in_sight"] = {"left_out": left_out}
    if scene is not None:
        num_pixels = model.codec.config.image_size**2
        report["in_sight"] = summarize_in_sight(all_of, groups, horizons, num_pixels, plan.seed)
    return report


def summarize_likeness(
    found: dict[str, torch.Tensor], groups: np.ndarray, horizons: list[int], seed: int
) -> dict[str, Any]:
    """Return the part of the report that compares with the truth; `found` holds a row a case."""
    picks = [h - 1 for h in horizons]
    dream, copy = pooled_psnr(found["dream"]), pooled_psnr(found["copy"])
    codec = dict(zip(map(str, horizons), pooled_psnr(found["codec"]).tolist(), strict=True))
    low, high = margin_interval(found["dream"][:, picks], found["copy"][:, picks], groups, seed).tolist()
    spans = {name: psnr_interval(found[name][:, picks], groups, seed).tolist() for name in ("dream", "copy")}
    mean_dream, mean_copy = to_psnr(found["dream"]).mean(0), to_psnr(found["copy"]).mean(0)

    def named(values: torch.Tensor) -> dict[str, float]:
        return {str(h): round(float(v), 4) for h, v in zip(horizons, values, strict=True)}

    def between(span: list[list[float]]) -> dict[str, list[float]]:
        return {str(h): [round(a, 4), round(b, 4)] for h, a, b in zip(horizons, *span, strict=True)}

    return {
        "psnr": by_horizon(dream, horizons),
        "psnr_interval": between(spans["dream"]),
        "copy_last_interval": between(spans["copy"]),
        "ssim": named(found["dream_ssim"].mean(0)),
        "copy_last": by_horizon(copy, horizons),
        "copy_last_ssim": named(found["copy_ssim"].mean(0)),
        "codec_ceiling": {h: round(v, 4) for h, v in codec.items()},
        "codec_ceiling_ssim": named(found["codec_ssim"].mean(0)),
        "margin_over_copy_last": by_horizon(dream - copy, horizons),
        "margin_interval": between([low, high]),
        "psnr_of_each_case": {
            "psnr": by_horizon(mean_dream, horizons),
            "copy_last": by_horizon(mean_copy, horizons),
            "codec_ceiling": named(to_psnr(found["codec"]).mean(0)),
            "margin_over_copy_last": by_horizon(mean_dream - mean_copy, horizons),
        },
        "curves": {"psnr": dream.tolist(), "copy_last": copy.tolist()},
        "reward": score_events(found["rewards"], found["true_rewards"]),
        "terminated": score_events(found["terminated"], found["true_terminated"]),
    }


@torch.inference_mode()
def measure_heads(
    model: WorldModel, episodes: list[EpisodeInfo], num_frames: int = 96, most: int = 400, batch_size: int = 8
) -> dict[str, Any]:
    """Let the heads watch held-out real play: recorded frames, shown as finished frames are, in clips side by side.

    Args:
        model: the world.
        episodes: held-out episodes.
        num_frames: frames of a clip; shorter ends of episodes are left out, but for one clip that ends each episode.
        most: clips at most, evenly chosen.
        batch_size: clips at once.

    Returns:
        precision, recall and F1 of rewards and endings (`score_events`), and the number of frames.
    """
    config = model.denoiser.config
    pieces = []
    for episode in episodes:
        if episode.num_frames >= num_frames:
            starts = {*range(0, episode.num_frames - num_frames + 1, num_frames), episode.num_frames - num_frames}
            pieces += [Piece(episode, start, num_frames) for start in sorted(starts)]
    pieces = [pieces[int(i)] for i in np.linspace(0, len(pieces) - 1, min(most, len(pieces)))]
    if not pieces:
        return {}
    parts: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(config.reward_values)
    for batch in in_batches(pieces, batch_size):
        given = read_pieces(batch, ("frames", "actions", "rewards", "terminated"))
        latents = model.encode(given["frames"])
        level = model.config.context_level
        noise = torch.randn(latents.shape, generator=generator).to(model.device)
        levels = latents.new_full(latents.shape[:2], level)
        shown = add_noise(latents, noise, levels)
        actions = torch.nn.functional.pad(given["actions"].long(), (1, 0), value=config.num_actions).to(model.device)
        inputs = FrameInputs.stack(shown, levels, actions, config.num_previous)
        found, _ = model.denoiser(inputs, chunk=8 if num_frames % 8 == 0 else None)
        parts.setdefault("rewards", []).append(values[found.reward_logits.argmax(-1).cpu()][:, 1:] != 0)
        parts.setdefault("terminated", []).append(found.terminated_logit.cpu()[:, 1:] > 0)
        parts.setdefault("true_rewards", []).append(given["rewards"] != 0)
        parts.setdefault("true_terminated", []).append(given["terminated"])
    all_of = {name: torch.cat(part) for name, part in parts.items()}
    return {
        "reward": score_events(all_of["rewards"], all_of["true_rewards"], 1),
        "terminated": score_events(all_of["terminated"], all_of["true_terminated"], 1),
        "frames": int(all_of["rewards"].numel()),
        "slack": 1,
    }
