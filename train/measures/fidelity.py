"""Fidelity: how near dreams come to recorded play, whether they obey, what becomes of long ones, what the heads see.

Owns: the order of what is measured (`train.measures.likeness`, `train.measures.response`, `train.measures.drift`) and
its tables. Does not know how each is measured.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from train.data.rollouts import EvaluationPlan, FidelityOptions
from train.measures.base import Bench, Measure
from train.measures.drift import measure_drift
from train.measures.likeness import measure_heads, measure_likeness
from train.measures.response import RULE, find_moves, measure_dreams, measure_real
from train.reports.plots import markdown_row, plot_drift, plot_likeness
from worldmodel.analysis.metrics import MAX_PSNR
from worldmodel.world import WorldModel


class Fidelity(Measure):
    """PSNR and SSIM by horizon, in sight and over all; action accuracy; drift and sharpness; reward and end heads."""

    name = "fidelity"
    Options = FidelityOptions
    quick: ClassVar[dict[str, int]] = {"cases": 8, "horizon": 16, "openings": 8, "long_dreams": 2, "long_frames": 60}

    def num_frames(self, bench: Bench, options: FidelityOptions) -> int:
        """Return the frames to dream."""
        num_held = len(find_moves(bench.world.actions)) * options.openings * options.held_frames
        long_frames = self._long_frames(bench, options)
        return options.cases * options.horizon + num_held + options.long_dreams * long_frames

    @staticmethod
    def _long_frames(bench: Bench, options: FidelityOptions) -> int:
        longest = max(episode.num_frames for episode in bench.episodes) - options.context
        return max(1, min(options.long_frames, longest))

    def run(self, bench: Bench, options: FidelityOptions) -> dict[str, Any]:
        """Measure, and write `psnr.png`, `drift.png`, `truth_and_dream.png` and `long_dreams.png`.

        Raises:
            DataError: episodes too short. StorageError: a picture cannot be written.
        """
        given = dataclasses.asdict(options) | {"long_frames": self._long_frames(bench, options)}
        plan = EvaluationPlan(**given, batch_size=bench.batch_size, seed=bench.seed)
        model, episodes = bench.model, bench.episodes
        found = measure_likeness(model, episodes, plan, bench.out, bench.on_frames)
        if isinstance(model, WorldModel):  # what only dreams, as a stand-in may, has no heads
            found["heads_on_real_play"] = measure_heads(model, episodes)

        held = {"held": plan.held_frames, "seed": plan.seed}
        found["action_response_real"] = measure_real(episodes, bench.world.actions, count=plan.openings, **held)
        found["action_response"] = measure_dreams(
            model,
            episodes,
            bench.world,
            openings=plan.openings,
            context=plan.context,
            batch_size=plan.batch_size,
            on_frames=bench.on_frames,
            **held,
        )
        found["action_response"]["rule"] = RULE
        if plan.long_dreams:
            found |= measure_drift(model, episodes, plan, bench.out, bench.on_frames)
            plot_drift(bench.out / "drift.png", found["drift"])

        plot_likeness(bench.out / "psnr.png", found)
        found["context"] = plan.context
        found["psnr_means"] = (
            "psnr, copy_last, codec_ceiling: PSNR of the squared error averaged over cases; psnr_of_each_case: PSNR of "
            f"each case, cut at {MAX_PSNR:g} dB, then averaged (a noop leaves equal frames, whose PSNR has no limit)"
        )
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return the tables."""
        return fidelity_lines(found)


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _in_sight_lines(found: dict[str, Any], horizons: Sequence[str]) -> list[str]:
    lines = ["### Likeness in sight", ""]
    if "left_out" in found:
        return [*lines, f"Left out: {found['left_out']}."]
    lines += [markdown_row("frame", *horizons), markdown_row(*["---"] * (len(horizons) + 1))]
    titles = {
        "share": "share of pixels in sight",
        "dream": "dream PSNR, dB",
        "copy": "last context frame PSNR, dB",
        "oracle": "oracle PSNR, dB",
        "codec": "codec alone PSNR, dB",
    }
    for name, title in titles.items():
        digits = 2 if name == "share" else 1
        cells = [
            f"{found[name]['at'][h]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            for h, (low, high) in ((h, found[name]["interval"][h]) for h in horizons)
        ]
        lines.append(markdown_row(title, *cells))
    return [*lines, "", f"In sight: {found['means']}."]


def _sharpness_lines(found: dict[str, Any]) -> list[str]:
    names = {
        "ratio": "gradient energy ratio",
        "match": "match of detail",
        "flat_share": "flat frames",
        "flat_share_real": "flat frames of real play",
    }
    lines = [
        f"Sharpness; real play: {found['reference']}.",
        "",
        markdown_row("frames", *names.values()),
        markdown_row(*["---"] * 5),
    ]
    rows = [(f"{part['frames'][0]} to {part['frames'][1]}", part) for part in found["segments"]]
    rows += [(f"control: {name}", part) for name, part in found["controls"].items()]
    for title, part in rows:
        spans = [(part[name], *part[f"{name}_interval"]) for name in names]
        lines.append(markdown_row(title, *(f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in spans)))
    return [*lines, "", f"{found['means']}."]


def fidelity_lines(found: dict[str, Any]) -> list[str]:
    """Return what `Fidelity` found as lines of markdown."""
    horizons = list(found["psnr"])
    lines = [f"{found['cases']} cases, {found['context']} real context frames, then true actions."]
    lines += ["", markdown_row("frame", *horizons), markdown_row(*["---"] * (len(horizons) + 1))]
    for title, key, digits in (
        ("dream PSNR, dB", "psnr", 2),
        ("last context frame PSNR, dB", "copy_last", 2),
        ("codec alone PSNR, dB", "codec_ceiling", 2),
        ("margin over last frame, dB", "margin_over_copy_last", 2),
        ("dream SSIM", "ssim", 3),
        ("last context frame SSIM", "copy_last_ssim", 3),
        ("codec alone SSIM", "codec_ceiling_ssim", 3),
    ):
        lines.append(markdown_row(title, *(_number(found[key][h], digits) for h in horizons)))
    for title, key in (
        ("dream PSNR, 95% interval over episodes", "psnr_interval"),
        ("last context frame PSNR, 95% interval", "copy_last_interval"),
        ("margin, 95% interval over episodes", "margin_interval"),
    ):
        lines.append(markdown_row(title, *(f"{low:.1f} to {high:.1f}" for low, high in found[key].values())))
    lines += ["", found["psnr_means"] + ".", "", *_in_sight_lines(found["in_sight"], horizons)]
    lines += ["", "### Action accuracy", ""]
    names = ("turn", "walk", *found["action_response"]["counts"])
    lines += [markdown_row("share right", *names), markdown_row(*["---"] * (len(names) + 1))]
    for title, key in (("dream", "action_response"), ("real frames, same measure", "action_response_real")):
        response = found[key]
        counts = [response["counts"].get(name) for name in names]
        cells = (
            None if response[name] is None else f"{response[name]:.3f}" + (f" (n={count})" if count else "")
            for name, count in zip(names, counts, strict=True)
        )
        lines.append(markdown_row(title, *cells))
    lines += ["", found["action_response"]["rule"] + "."]
    if "drift" in found:
        (first, last), actions = found["sharpness_frames"], found["long_actions"]
        lines += ["", "### Long dreams", ""]
        lines.append(
            f"{found['long_dreams']} dreams, {actions} actions. Gradient energy over that of real play, "
            f"frames {first} to {last}: **{found['sharpness_ratio']:.2f}** (codec alone "
            f"{found['sharpness_ratio_codec']:.2f})."
        )
        lines += [
            "",
            markdown_row("frames", "sharpness ratio", "color distance, levels", "PSNR, dB"),
            markdown_row(*["---"] * 4),
        ]
        for part in found["drift"]:
            values = _number(part["sharpness_ratio"]), _number(part["color_distance"], 1), _number(part["psnr"])
            lines.append(markdown_row(f"{part['frames'][0]} to {part['frames'][1]}", *values))
        lines += ["", *_sharpness_lines(found["sharpness"])]
    lines += [
        "",
        "### Heads",
        "",
        markdown_row("head", "precision", "recall", "F1", "predicted", "true"),
        markdown_row(*["---"] * 6),
    ]
    for name in ("reward", "terminated"):
        scores = found[name]
        shares = (_number(scores[key]) for key in ("precision", "recall", "f1"))
        lines.append(markdown_row(name, *shares, scores["predicted"], scores["true"]))
    return lines
