"""Program: from nothing to a world. `python -m train.recipe --world LabMaze --preset small --minutes 25 --out DIR`.

Owns: the order of the stages and what each is told. Killed at any moment, the same command goes on: finished stages are
skipped, others resume. The stages are the other programs of this folder; how long each may take is `train.core.plans`',
and DIR/recipe.json, which tells what was done and how good it is, `train.core.journal`'s.

The world gets a memory of pixels: a depth network, a recording prepared with it, and a decoder that keeps pixels. Where
a recording cannot teach one, the recipe says why and trains on summaries alone.

Folders: DIR/recording, DIR/codec, DIR/depth, DIR/warps, DIR/denoiser, DIR/decoder, DIR/evaluation, and DIR/world, the
bundle to play.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from envs.data.episodes import ShardInfo, open_shards
from envs.worlds.registry import find_displacements, find_view_deg
from train.bundle import BundleOptions, make_bundle
from train.codec import CodecOptions, train_codec
from train.core.background import BackgroundProgram
from train.core.journal import Journal, RecipeOptions
from train.core.machine import start_machine
from train.core.options import parse_options, run_program
from train.core.state import STATE_FILE
from train.core.stopwatch import measure_matrix_speed, time_in_turn
from train.data.clips import encode_recording
from train.decoder import DecoderOptions, train_decoder
from train.denoiser import DenoiserOptions, train_denoiser
from train.depth import DepthOptions, train_depth
from train.evaluate import EvaluateOptions, evaluate_world, read_measures
from train.warps import WarpOptions, prepare
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, load_depth
from worldmodel.errors import StateError
from worldmodel.memory.registry import check_memory
from worldmodel.world import WorldModel

MIN_SHARDS = {"train": 8, "test": 1}
Stages = dict[str, Callable[[Journal], dict[str, Any]]]
BATCH_SIZE = 25  # dreams measured at once
SAMPLED_SHARDS = 2  # prepared first, to see how long one takes


def count_shards(folder: Path) -> dict[str, int]:
    """Return how many shards of each split lie in a folder; a shard appears when it is whole."""
    return {split: len(list(folder.glob(f"{split}-*.h5"))) for split in MIN_SHARDS}


class Recorder:
    """Records beside everything else until its time is over; finished at once where it was finished before."""

    def __init__(self, recipe: Journal) -> None:
        """Prepare to record; nothing starts yet."""
        self.recipe, self.folder = recipe, recipe.folder("recording")
        self.started = time.monotonic()
        plan, options = recipe.plan, recipe.options
        values = {
            "out": self.folder,
            "world": options.world,
            "episodes": plan.num_episodes(options.minutes),
            "length": plan.length,
            "workers": options.workers,
            "seed": options.seed,
            "image_size": recipe.image_size,
            "test_fraction": plan.test_fraction,
            "episodes_per_shard": plan.episodes_per_shard,
        }
        words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self.program = BackgroundProgram("train.record", words, options.out / "record.log")

    def wait(self, is_enough: Callable[[int], bool]) -> None:
        """Wait until the least shards are there and `is_enough(frames)` or everything planned is recorded.

        Raises:
            StateError: recording failed; gives its last words.
        """
        plan = self.recipe.plan
        while True:
            status = self.program.exit_status
            if status not in (None, 0):
                raise StateError(f"recording failed: {self.program.last_words} (see {self.program.log})")
            shards = count_shards(self.folder)
            has_least = all(shards[split] >= least for split, least in MIN_SHARDS.items())
            frames = sum(shards.values()) * plan.episodes_per_shard * plan.length
            if status == 0 or (has_least and is_enough(frames)):
                return
            time.sleep(0.1)

    def finish(self) -> dict[str, Any]:
        """Record until the time is over or all is recorded, end the program, and return the totals."""
        limit = self.recipe.plan.record_share * self.recipe.options.minutes
        self.wait(lambda _: self.recipe.used_minutes >= limit)
        is_all = self.program.exit_status == 0
        self.program.stop()
        for stale in self.folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        episodes = [(shard.split, episode) for shard in open_shards(self.folder) for episode in shard.episodes]
        return {
            "frames": sum(episode.num_frames for _, episode in episodes),
            "scenes": len({episode.scene_seed for _, episode in episodes}),
            "test_episodes": sum(split == "test" for split, _ in episodes),
            "minutes": (time.monotonic() - self.started) / 60,
            "is_all_that_was_planned": is_all,
        }


def train_options(recipe: Journal, stage: str, minutes: float) -> dict[str, Any]:
    """Return the options that all trainings share."""
    options, out = recipe.options, recipe.folder(stage)
    wants_compile = minutes >= recipe.plan.compile_minutes if options.compile == "auto" else options.compile == "on"
    return {
        "data": recipe.folder("recording"),
        "out": out,
        "preset": options.preset,
        "minutes": minutes,
        "compile": wants_compile,
        "seed": options.seed,
        "resume": (out / STATE_FILE).is_file(),
        "save_minutes": min(4.0, minutes / 4),
    }


def make_codec(recipe: Journal) -> dict[str, Any]:
    """Train the codec, or go on training it."""
    plan = recipe.plan
    shared = train_options(recipe, "codec", plan.codec_share * recipe.options.minutes)
    summary = train_codec(
        CodecOptions(**shared, batch_size=plan.codec_batch, learning_rate=plan.codec_rate, ema=plan.ema),
        recipe.machine,
    )
    return {name: summary[name] for name in ("test_psnr", "steps", "minutes", "frames_per_s") if name in summary}


def encode(recipe: Journal) -> dict[str, Any]:
    """Encode the shards that are there and not encoded yet."""
    codec, data = load_codec(recipe.folder("codec")).to(recipe.machine.device), recipe.folder("recording")
    identity = codec_hash(recipe.folder("codec"))
    return {"new_frames": encode_recording(codec, data, data / "latents", recipe.machine.device, identity)}


def why_no_pixels(shards: list[ShardInfo]) -> str | None:
    """Return why a recording cannot teach a memory of pixels; None where it can."""
    if not all("pose" in episode.fields for shard in shards for episode in shard.episodes):
        return "it was recorded without poses"
    if not find_displacements(shards[0].world, shards[0].action_names):
        return (
            f"what its actions {', '.join(shards[0].action_names)} do to a pose is not known (ActionSet.displacements)"
        )
    if find_view_deg(shards[0].world) is None:
        return f"the angle of view of {shards[0].world} is not known (World.view_deg)"
    return None


def make_depth(recipe: Journal) -> dict[str, Any]:
    """Train the depth network, or go on training it."""
    plan = recipe.plan
    shared = train_options(recipe, "depth", plan.depth_share * recipe.options.minutes)
    options = DepthOptions(
        **shared | {"compile": False},  # small, and compiling takes long
        max_frames=plan.depth_frames,
        test_frames=max(1, min(DepthOptions.test_frames, plan.depth_frames // 10)),
    )
    summary = train_depth(options, recipe.machine)
    names = ("steps", "minutes", "supervision", "test_photometric", "test_copied")
    return {name: summary[name] for name in names if name in summary}


def make_warps(recipe: Journal) -> dict[str, Any]:
    """Prepare as many shards for training with a memory of pixels as the time allows; those that are there stay."""
    out, started = recipe.folder("warps"), time.monotonic()
    options = WarpOptions(
        data=recipe.folder("recording"),
        out=out,
        checkpoint=str(recipe.folder("codec")),
        depth=str(recipe.folder("depth")),
        seed=recipe.options.seed,
        device=str(recipe.machine.device),
    )
    planned = recipe.content["stages"].get("warps", {}).get("planned_shards")
    if planned is None:
        # A few first: they tell how many fit into the time.
        planned = len(list(out.glob("train-*.safetensors"))) + SAMPLED_SHARDS
        found = prepare(dataclasses.replace(options, shards=planned))
        left = 60 * recipe.plan.warps_share * recipe.options.minutes - (time.monotonic() - started)
        per_second = found["frames_per_s"] * found["shards"] / max(1, found["frames"])
        planned += max(0, int(left * per_second))
        recipe.note("warps", planned_shards=planned)
    prepare(dataclasses.replace(options, shards=planned))
    shards = len(list(out.glob("train-*.safetensors")))
    return {"shards": shards, "minutes": (time.monotonic() - started) / 60}


def make_denoiser(recipe: Journal) -> dict[str, Any]:
    """Train the denoiser in the time that is left, or go on training it."""
    plan, machine = recipe.plan, recipe.machine
    has_pixels = recipe.is_done("warps")
    planned = recipe.content["stages"].get("denoiser", {}).get("planned_minutes")
    minutes = planned or plan.denoiser_minutes(recipe.options.minutes, recipe.used_minutes, has_pixels)
    recipe.note("denoiser", planned_minutes=minutes)
    options = DenoiserOptions(
        **train_options(recipe, "denoiser", minutes),
        codec=recipe.folder("codec"),
        memory=recipe.options.memory,
        odometry=has_pixels,
        warps=recipe.folder("warps") if has_pixels else None,
        objective=plan.objective,
        batch_size=plan.denoiser_batch,
        clip_frames=plan.clip_frames,
        learning_rate=plan.denoiser_rate,
        ema=plan.ema,
    )
    summary = train_denoiser(options, machine)
    names = ("error_at_noise", "steps", "minutes", "frames", "frames_per_s", "tflops")
    facts = {name: summary[name] for name in names if name in summary}
    if "tflops" in facts:
        speed = measure_matrix_speed(machine.device, machine.autocast_dtype or torch.float32)
        facts |= {"matrix_tflops": speed / 1000, "share_of_matrix_speed": 1000 * facts["tflops"] / speed}
    return facts


def make_decoder(recipe: Journal) -> dict[str, Any]:
    """Train the decoder to keep remembered pixels and to draw what is not known, or go on training it."""
    plan = recipe.plan
    shared = train_options(recipe, "decoder", plan.decoder_share * recipe.options.minutes)
    options = DecoderOptions(
        **shared | {"compile": False},  # short
        checkpoint=recipe.folder("denoiser"),
        warps=recipe.folder("warps"),
        depth=str(recipe.folder("depth")),
        clips=plan.decoder_clips,
        dreams=plan.decoder_dreams,
        dream_frames=plan.dream_frames,
    )
    summary = train_decoder(options, recipe.machine)
    return {name: summary[name] for name in ("rebuilt", "judged", "steps", "minutes") if name in summary}


def load_world(recipe: Journal) -> WorldModel:
    """Return the world as it is going to be bundled."""
    device = str(recipe.machine.device)
    if not recipe.is_done("decoder"):
        return WorldModel.load(recipe.folder("denoiser"), device=device)
    codec, denoiser = load_codec(recipe.folder("decoder")), load_denoiser(recipe.folder("denoiser"))
    return WorldModel(codec, denoiser, depth=load_depth(recipe.folder("depth")), device=device)


def choose_evaluation(seconds: float, seconds_per_frame: float) -> dict[str, Any]:
    """Return how much is measured in a time, settings by measure; the rehearsal if that is little.

    Args:
        seconds: the time.
        seconds_per_frame: of dreaming in batches.
    """
    full = read_measures(EvaluateOptions.measures, ())
    fidelity, accuracy, drift = (full[name] for name in ("fidelity", "action_accuracy", "drift"))
    frames = fidelity.cases * fidelity.horizon + 4 * accuracy.openings * accuracy.held_frames
    frames += drift.dreams * drift.frames

    # Half, and not the first 15 s: pictures, flow, the codec and loading what draws take time too.
    share = min(1.0, 0.5 * max(0.0, seconds - 15) / (frames * seconds_per_frame))
    if share < 0.1:
        return read_measures(EvaluateOptions.measures, (), quick=True)
    for name, field in {"fidelity": "cases", "action_accuracy": "openings", "drift": "dreams"}.items():
        full[name] = dataclasses.replace(full[name], **{field: max(1, round(share * getattr(full[name], field)))})
    return full


def evaluate(recipe: Journal) -> dict[str, Any]:
    """Measure the dream on held-out scenes, as much as the time allows."""
    data, out = recipe.folder("recording"), recipe.folder("evaluation")
    model = load_world(recipe)
    batch, size = BATCH_SIZE, model.codec.config.image_size
    gray = torch.full((batch, 1, size, size, 3), 128, dtype=torch.uint8)
    state = model.reset(gray, torch.zeros(batch, 0, dtype=torch.int64), list(range(batch)))
    actions = torch.zeros(batch, dtype=torch.int64)
    step_ms = time_in_turn({"step": lambda: model.step(state, actions).frames.cpu()}, 3, model.device)["step"]
    seconds = 60 * recipe.plan.evaluate_share * recipe.options.minutes

    measures = choose_evaluation(seconds, step_ms / 1000 / batch)
    batch = min(batch, measures["fidelity"].cases)
    found = evaluate_world(model, out, measures, data=data, batch_size=batch)["measures"]
    told = {"fidelity": ("cases", "psnr", "copy_last", "codec_ceiling"), "drift": ("sharpness_ratio",)}
    facts = {key: found[name][key] for name, keys in told.items() if name in found for key in keys}
    if "action_accuracy" in found:  # not where the world does not say what its actions do
        facts["action_accuracy"] = {name: found["action_accuracy"]["dream"][name] for name in ("turn", "walk")}
    return facts


def bundle(recipe: Journal) -> dict[str, Any]:
    """Put the world together."""
    has_pixels, notes = recipe.is_done("decoder"), ""
    if has_pixels:
        of = recipe.content["stages"]
        notes = (
            f"Memory of pixels: depth network {of['depth']['minutes']:.1f} minutes (train.depth), "
            f"{of['warps']['shards']} prepared shards (train.warps), decoder {of['decoder']['minutes']:.1f} minutes "
            "(train.decoder)."
        )
    return make_bundle(
        BundleOptions(
            denoiser=recipe.folder("denoiser"),
            data=recipe.folder("recording"),
            out=recipe.folder("world"),
            codec=recipe.folder("decoder") if has_pixels else None,
            depth=recipe.folder("depth") if has_pixels else None,
            report=recipe.folder("evaluation") / "report.json",
            notes=notes,
            openings=recipe.plan.openings,
            seed=recipe.options.seed,
        )
    )


def choose_stages(recipe: Journal) -> Stages:
    """Return what is done with the recording, in order; say so where it cannot teach a memory of pixels."""
    reason = why_no_pixels(open_shards(recipe.folder("recording")))
    if reason is None:
        return PIXEL_STAGES
    print(
        f"no memory of pixels: {reason}; the world learns from {recipe.options.memory or 'summaries'} alone, without "
        "depth, warps and decoder stages"
    )
    return SUMMARY_STAGES


def run_recipe(options: RecipeOptions) -> dict[str, Any]:
    """Do all stages that are not done yet; return the content of recipe.json.

    Raises:
        WorldModelError: one of its kinds; see the functions above.
    """
    if options.memory is not None:
        check_memory(options.memory)
    recipe = Journal(options, start_machine(options.device))
    recorder = Recorder(recipe)
    if not recipe.is_done("record"):
        with recorder.program:
            recorder.wait(lambda frames: frames >= recipe.plan.first_frames)
            if recipe.plan.is_beside:
                run_beside(recipe)
            recipe.run_stage("record", recorder.finish)
    stages = choose_stages(recipe)
    recipe.content["memory"] = "pixels" if stages is PIXEL_STAGES else f"{options.memory or 'summaries'} alone"
    for stage, work in stages.items():
        recipe.run_stage(stage, lambda work=work: work(recipe))  # type: ignore[misc]
    for fault in recipe.content["stages"]["bundle"].get("faults", ()):
        print(f"a poor world: {fault}; give it more --minutes")
    print(f"world: {recipe.folder('world')}    python play.py --checkpoint {recipe.folder('world')}")
    return recipe.content


def run_beside(recipe: Journal) -> None:
    """Do what can be done with the shards that are there, while the rest is being recorded."""
    recipe.run_stage("codec", lambda: make_codec(recipe))
    if why_no_pixels(open_shards(recipe.folder("recording"))) is None:
        recipe.run_stage("depth", lambda: make_depth(recipe))
    else:
        encode(recipe)


PIXEL_STAGES: Stages = {
    "codec": make_codec,
    "depth": make_depth,
    "warps": make_warps,
    "denoiser": make_denoiser,
    "decoder": make_decoder,
    "evaluate": evaluate,
    "bundle": bundle,
}
SUMMARY_STAGES: Stages = {
    "codec": make_codec,
    "encode": encode,
    "denoiser": make_denoiser,
    "evaluate": evaluate,
    "bundle": bundle,
}


def main() -> None:
    """Read the options and run the recipe."""
    run_recipe(parse_options(RecipeOptions, "python -m train.recipe"))


if __name__ == "__main__":
    run_program(main)
