"""Program: fine-tune a world in a fixed time. `python -m train.finetune --from labmaze --out DIR --deadline 580`.

Owns: the order of what is done, how the time is shared, and that --out holds a bundle that loads at any moment: first
the world as it was given, then its average every minute, then the last one. The parts are the other programs: it
records (`train.record`) and prepares (`train.warps`) beside compiling the loss, trains as `train.denoiser --warps
--initial` does, then the decoder (`train.decoder`) if asked to, and measures with the time that is left.
OUT/report.json tells what was done, how long it took, and what was cut.

A world without a memory of pixels is grafted: what weights of it fit are taken, the layers that read the memory start
by chance. It needs --depth, as its bundle has no depth network.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import save
from torch import nn

from envs.data.episodes import open_shards, read_episode
from envs.dream import find_world
from envs.worlds.registry import find_displacements, get_world
from train.bundle import choose_openings
from train.core.background import BackgroundProgram
from train.core.loop import Machine, compile_model, send, start_machine, step_generator, train_model
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.decoder import DecoderOptions, train_decoder
from train.denoiser import DenoiserOptions, build_denoiser, fit_to_latents, make_optimizers, make_sampler
from train.measures.base import Bench
from train.measures.bold_play import BoldPlayOptions, run_bold_play
from train.measures.fidelity import FidelityOptions, measure_fidelity
from train.reports.card import describe_machine
from train.warps import PreparedData
from worldmodel.checkpoint import (
    load_codec,
    load_denoiser,
    load_depth,
    load_info,
    load_openings,
    resolve,
    save_bundle,
)
from worldmodel.codec import Codec
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.distortions import LatentDistortions
from worldmodel.errors import CheckpointError, ConfigError, DeviceError, StateError, WorldModelError
from worldmodel.files import write_file
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.folded import FOLD, NUM_FACTS, NUM_FOLDED
from worldmodel.objective import DenoiserLoss, ObjectiveConfig
from worldmodel.world import WorldModel

BOLD_FRAMES, BOLD_TURN = 150, 60  # steps of bold play, and of the full turn after them
LIKENESS = FidelityOptions(cases=16, context=32, horizon=32)


@dataclass(frozen=True)
class FineTuneOptions:
    """Fine-tune a world on play recorded for it, and stop in time."""

    world: Annotated[str, tyro.conf.arg(name="from")]
    """Name of a shipped world, or folder of a bundle."""
    out: Path
    """Folder of the bundle; made if missing."""
    deadline: float
    """Seconds from the start of the program to its end, whatever is done by then."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that record."""
    preparers: int = 2
    """Processes that prepare what is recorded."""
    episodes: int = 4000
    """Most episodes to record; the time ends it before."""
    length: int = 480
    """Steps of an episode."""
    record_share: float = 0.2
    """Share of the time at whose end recording stops."""
    data: Path | None = None
    """A recording to take in place of one of its own."""
    warps: Path | None = None
    """Prepared shards (train.warps) of --data to take too."""
    depth: str | None = None
    """Bundle of the depth network; default that of the world."""
    batch_size: int = 64
    """Clips a step; halved until they fit into memory."""
    clip_frames: int = 96
    """Frames of a clip."""
    chunk: int = 8
    """Frames a chunk of attention; speed only."""
    learning_rate: float = 3e-4
    """Peak learning rate of the matrices (Muon); everything else (AdamW) gets half. First trainings take 1e-3."""
    decay_share: float = 0.6
    """Share of the training at its end over which the learning rate falls to zero."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights; the average is what is kept."""
    steps: int | None = None
    """Train at most this many steps."""
    memory_dropout: float = 0.1
    """Share of clips that remember nothing; twice that share forgets a span."""
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(
            pure_noise_share=0.5,
            level_offset=0.5,
            blackout_share=0.2,
            distort_share=0.4,
            head_weight=0.05,
            reward_weight=5.0,
        )
    )
    """Levels, contexts and weights of the loss."""
    bundle_s: float = 60.0
    """Seconds between bundles."""
    decoder_share: float = 0.0
    """Share of the training time that the decoder gets, after the denoiser."""
    decoder_batch: int = 48
    """Pictures a step of the decoder."""
    evaluate_s: float = 45.0
    """Seconds kept for measuring; at most a tenth of the time, 0: none."""
    evaluate_seeds: int = 24
    """Bold players."""
    preflight_s: float = 30.0
    """Most time until the device, the real world and three steps have been seen to work."""
    work: Path | None = None
    """Folder of what is made on the way; default a temporary one, deleted at the end."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = True
    """Compile the loss (torch.compile) where a compiler is found."""
    seed: int = 0
    """Seed of the training; the recording has one of its own, that no other recording has."""

    def __post_init__(self) -> None:
        least = {"workers": 1, "preparers": 1, "episodes": 2, "length": self.clip_frames, "batch_size": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}")
        if not self.deadline > 0 or not 0 < self.record_share < 1 or not 0 <= self.decoder_share < 1:
            raise ConfigError(
                "deadline must be above 0, record_share in (0, 1), decoder_share in [0, 1); got "
                f"{self.deadline}, {self.record_share}, {self.decoder_share}"
            )
        if self.clip_frames % self.chunk:
            raise ConfigError(f"clip_frames must be a multiple of chunk {self.chunk}; got {self.clip_frames}")
        if self.warps is not None and self.data is None:
            raise ConfigError("--warps are prepared shards of a recording: give --data too")


class Terminated(BaseException):
    """SIGTERM, raised where nothing needs to be finished first."""


def process_age() -> float:
    """Return how long this process has been running, seconds; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


class Clock:
    """When each part of the work must end, in `time.monotonic()`, and what SIGTERM may interrupt."""

    def __init__(self, options: FineTuneOptions, started: float) -> None:
        """Share the time; `started` is the moment that the deadline counts from."""
        total = options.deadline
        margin = min(15.0, max(5.0, 0.03 * total))
        evaluate = min(options.evaluate_s, 0.1 * total)
        self.started, self.end = started, started + total
        self.hard_end = self.end - margin / 3
        self.evaluate_end = self.end - margin
        self.decoder_end = self.evaluate_end - evaluate
        is_recorded = options.warps is not None
        self.record_end = started + (0.0 if options.data is not None else options.record_share * total)
        self.prepare_end = started + (0.0 if is_recorded else (options.record_share + 0.08) * total)
        self.train_end = self.decoder_end - options.decoder_share * (self.decoder_end - self.prepare_end)
        self.part = "start"
        self.is_terminated = False
        self.writing = threading.Lock()  # held while a bundle is replaced

    def end_well(self, number: int, frame: Any) -> None:
        """Handle SIGTERM: training ends after the step under way, with a bundle; a bundle that is written is finished.

        Raises:
            Terminated: anywhere else.
        """
        self.is_terminated = True
        if self.part != "training" and not self.writing.locked():
            raise Terminated

    def raise_if_terminated(self) -> None:
        """Raise what `end_well` put off.

        Raises:
            Terminated: it did.
        """
        if self.is_terminated and self.part != "training":
            raise Terminated

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def until_training_ends(self) -> float:
        """Return when training must end; at once after SIGTERM."""
        return 0.0 if self.is_terminated else self.train_end


class BundleKeeper:
    """The bundle in --out: replaced whole, never by weights that are not finite, never cut by a signal of ours."""

    def __init__(
        self, options: FineTuneOptions, clock: Clock, codec: Codec, denoiser: Denoiser, depth: DepthNet
    ) -> None:
        """Write the world as it is given.

        Raises:
            StorageError: it cannot be written.
        """
        self.out, self.clock = options.out, clock
        self.info = load_info(options.world)
        self.written = 0
        self._write(codec=codec, denoiser=denoiser, depth=depth, info=self.info)

    def keep(self, **parts: nn.Module) -> bool:
        """Replace parts of the bundle, by `save_bundle`'s names; return whether that was done."""
        for module in parts.values():
            values = torch.stack([value.isfinite().all() for value in module.state_dict().values()])
            if not values.all():
                print("not kept: weights that are not finite", flush=True)
                return False
        self._write(**parts)
        return True

    def _write(self, **parts: Any) -> None:
        with self.clock.writing:
            save_bundle(self.out, **parts)
            self.written += 1
        self.clock.raise_if_terminated()


class Report:
    """OUT/report.json, and the lines that are printed of each part."""

    def __init__(self, options: FineTuneOptions, clock: Clock, machine: Machine) -> None:
        """Begin one."""
        self.path, self.clock = options.out / "report.json", clock
        self.content: dict[str, Any] = {
            "options": options_to_json(options),
            "machine": describe_machine(machine.device),
            "parts": {},
            "cut": {},
            "is_complete": False,
        }

    @contextmanager
    def timed(self, part: str) -> Iterator[dict[str, Any]]:
        """Run a part of the work; what the block puts into the yielded dict is kept and printed."""
        facts: dict[str, Any] = {}
        started, self.clock.part = self.clock.now, part
        self.clock.raise_if_terminated()
        try:
            yield facts
        finally:
            facts["seconds"] = round(self.clock.now - started, 1)
            self.content["parts"][part] = facts
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
            print(f"[{self.clock.now:.0f} s] {part}: {shown}", flush=True)
            self.save()

    def cut(self, part: str, what: str) -> None:
        """Note and print what was left out for lack of time, and what it would have taken."""
        self.content["cut"][part] = what
        print(f"[{self.clock.now:.0f} s] cut: {part}: {what}", flush=True)

    def save(self) -> None:
        """Write it whole."""
        self.content["seconds"] = round(self.clock.now, 1)
        save_json(self.path, self.content)


@contextmanager
def guarded(clock: Clock, reports: list[Report]) -> Iterator[None]:
    """End the process in time whatever hangs, and end well at SIGTERM; only the main thread may use it.

    Args:
        clock: of the work.
        reports: the report, once there is one.
    """

    def end_now() -> None:
        clock.writing.acquire(timeout=3.0)  # a bundle that is being written is finished first
        try:
            for report in reports:
                report.cut(clock.part, f"the deadline of {clock.end - clock.started:g} s came first")
                report.save()
        finally:
            os._exit(1)

    watchdog = threading.Timer(max(0.0, clock.hard_end - time.monotonic()), end_now)
    watchdog.daemon = True
    watchdog.start()
    before = signal.signal(signal.SIGTERM, clock.end_well)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        watchdog.cancel()


def load_world(options: FineTuneOptions) -> tuple[Codec, Denoiser, DepthNet, DenoiserConfig]:
    """Return the world's networks, and the config of the denoiser to train: another one where it is grafted.

    Raises:
        CheckpointError: there is no depth network. ConfigError: the displacements of its actions are not known.
    """
    codec, denoiser = load_codec(options.world), load_denoiser(options.world)
    try:
        depth = load_depth(options.world if options.depth is None else options.depth)
    except CheckpointError as error:
        raise CheckpointError(f"a memory of pixels needs a depth network: give --depth ({error})") from error
    config = denoiser.config
    if not config.warp_channels:
        info = load_info(options.world)
        displacements = config.displacements or find_displacements(str(info.get("world")), info.get("action_names", ()))
        if not displacements:
            raise ConfigError(
                f"a memory of pixels needs actions with known displacements; those of {options.world} are not"
            )
        config = dataclasses.replace(config, displacements=displacements, warp_channels=NUM_FOLDED)
    return codec, denoiser, depth, config


def write_dummy(folder: Path, config: DenoiserConfig, image_size: int, num_frames: int) -> None:
    """Write a prepared shard of two episodes of noise, as `train.warps` lays one out."""
    frames, generator = 2 * num_frames, torch.Generator().manual_seed(0)
    size, grid = config.latent_size, image_size // FOLD
    bytes_ = (frames, 3, image_size, image_size), (frames, image_size**2 // 8)
    content = {
        "latents": torch.randn(frames, config.latent_channels, size, size, generator=generator).half(),
        "actions": torch.randint(config.num_actions, (frames,), generator=generator, dtype=torch.uint8),
        "rewards": torch.zeros(frames),
        "terminated": torch.zeros(frames, dtype=torch.bool),
        "poses": torch.zeros(frames, 5),
        "pixels": torch.randint(256, bytes_[0], generator=generator, dtype=torch.uint8),
        "mask": torch.randint(256, bytes_[1], generator=generator, dtype=torch.uint8),
        "facts": torch.zeros(frames, NUM_FACTS, grid, grid).half(),
        "lengths": torch.tensor([num_frames, num_frames]),
    }
    write_file(folder / "train-00000.safetensors", save(content))


class Work:
    """What is shared by the parts of the work."""

    def __init__(self, options: FineTuneOptions, machine: Machine, clock: Clock, folder: Path) -> None:
        """Load the world and write it to --out.

        Raises:
            CheckpointError, ConfigError: it cannot be fine-tuned. StorageError: --out cannot be written.
        """
        self.options, self.machine, self.clock, self.folder = options, machine, clock, folder
        if options.out.exists() and options.out.resolve() == resolve(options.world).resolve():
            raise ConfigError(f"--out {options.out} is the world that is fine-tuned: choose another")
        self.codec, self.given, self.depth, self.config = load_world(options)
        self.is_grafted = self.config != self.given.config
        self.keeper = BundleKeeper(options, clock, self.codec, self.given, self.depth)
        self.report = Report(options, clock, machine)
        self.recording = options.data or folder / "recording"
        self.prepared = options.warps or folder / "prepared"
        torch.manual_seed(options.seed)
        denoiser = build_denoiser(
            self.config, None if self.is_grafted else options.world, options.world if self.is_grafted else None
        )
        distortions = LatentDistortions(self.config.latent_channels) if options.objective.distort_share > 0 else None
        self.loss = DenoiserLoss(denoiser.train(), options.objective, options.chunk, distortions).to(machine.device)
        self.runner: nn.Module = self.loss
        self.batch_size = options.batch_size

    def training_options(self) -> DenoiserOptions:
        """Return the options of `train.denoiser` that stand for the training."""
        options = self.options
        return DenoiserOptions(
            data=self.recording,
            out=self.folder / "training",
            minutes=max(1e-6, (self.clock.train_end - time.monotonic()) / 60),
            steps=options.steps,
            batch_size=self.batch_size,
            clip_frames=options.clip_frames,
            chunk=options.chunk,
            learning_rate=options.learning_rate,
            decay_share=options.decay_share,
            ema=options.ema,
            memory_dropout=options.memory_dropout,
            objective=options.objective,
            compile=options.compile,
            seed=options.seed,
            save_minutes=1e9,
        )

    def step_on_noise(self, runner: nn.Module, number: int) -> float:
        """Run forward and backward over a batch of noise, weights unchanged; return the loss."""
        source = PreparedData(self.folder / "noise", device=self.machine.device)
        sample = make_sampler(self.training_options(), self.config, source, self.machine.device)
        batch = sample(step_generator(self.options.seed, number, 0))
        with self.machine.autocast():
            loss, _ = runner(**{name: send(value, self.machine.device) for name, value in batch.items()})
        loss.backward()
        self.loss.zero_grad(set_to_none=True)
        return float(loss.detach())


# Preflight ------------------------------------------------------------------------------------------------------------


def preflight(work: Work, facts: dict[str, Any]) -> None:
    """See one frame of the real world and three steps of training, or give up.

    Raises:
        StateError: the real world cannot be drawn. DeviceError: the steps fail or give no numbers.
    """
    options, started = work.options, time.monotonic()
    write_dummy(work.folder / "noise", work.config, work.codec.config.image_size, options.clip_frames)
    recorder: subprocess.Popen[str] | None = None
    probe = work.folder / "probe"
    if options.data is None:
        words = record_words(work, probe) | {"--episodes": 1, "--length": 2, "--workers": 1}
        recorder = subprocess.Popen(
            [sys.executable, "-m", "train.record", *spell(words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        while True:
            try:
                losses = [work.step_on_noise(work.loss, number) for number in range(3)]
                break
            except torch.OutOfMemoryError as error:
                if work.batch_size == 1:
                    raise DeviceError(f"one clip of {options.clip_frames} frames does not fit into memory") from error
                work.batch_size //= 2
                torch.cuda.empty_cache()
        if not all(torch.isfinite(torch.tensor(losses))):
            raise DeviceError(f"three steps on noise gave the losses {losses}: the device or the world is broken")
        facts |= {"device": str(work.machine.device), "batch_size": work.batch_size, "losses": losses}
        facts["three_steps_s"] = round(time.monotonic() - started, 1)
        if recorder is not None:
            try:
                said = recorder.communicate(timeout=max(1.0, options.preflight_s - work.clock.now))[0]
            except subprocess.TimeoutExpired:
                raise StateError(f"no frame of the real world within {options.preflight_s:g} s") from None
            if recorder.returncode:
                raise StateError(
                    f"no frame of the real world: {(said.strip().splitlines() or ['no reason given'])[-1]}"
                )
            episode = list_episodes(open_shards(probe))[0]
            contrast = float(read_episode(episode, fields=("frames",))["frames"].std())
            if contrast < 1:
                raise StateError(f"frames of the real world are blank (standard deviation {contrast:.2f} of 255)")
            facts["frame_contrast"] = contrast
    finally:
        if recorder is not None and recorder.poll() is None:
            recorder.kill()
            recorder.wait()


# Recording and preparing, beside compiling ----------------------------------------------------------------------------


def record_words(work: Work, out: Path) -> dict[str, Any]:
    """Return the options of `train.record` for this world."""
    options, settings = work.options, work.keeper.info.get("settings", {})
    words: dict[str, Any] = {
        "--out": out,
        "--world": work.keeper.info.get("world", "LabMaze"),
        "--episodes": options.episodes,
        "--length": options.length,
        "--workers": options.workers,
        "--seed": 7_000_000 + options.seed,
        "--image-size": work.codec.config.image_size,
        "--episodes-per-shard": max(1, min(4, options.episodes // (2 * options.workers))),
        "--test-fraction": 0.02,
    }
    known = {field.name for field in dataclasses.fields(get_world(words["--world"]).Settings)}
    chosen = [f"{name}={value}" for name, value in settings.items() if name in known and value is not None]
    return words | ({"--set": chosen} if chosen else {})


def prepare_words(work: Work, part: int) -> dict[str, Any]:
    """Return the options of `train.warps` for one of the preparers."""
    options = work.options
    return {
        "--data": work.recording,
        "--out": work.prepared,
        "--checkpoint": resolve(options.world),
        "--depth": resolve(options.world if options.depth is None else options.depth),
        "--seed": options.seed,
        "--parts": options.preparers,
        "--part": part,
        "--follow-s": 0 if options.data else 1e5,
        "--device": options.device,
    }


def spell(words: dict[str, Any]) -> list[str]:
    """Return options as words of a command line; a list gives several values."""
    values = {name: value if isinstance(value, list) else [value] for name, value in words.items()}
    return [str(part) for name, several in values.items() for part in (name, *several)]


def program(module: str, words: dict[str, Any], log: Path) -> BackgroundProgram:
    """Return a program of this project to run beside."""
    return BackgroundProgram(module, spell(words), log)


def check(*programs: BackgroundProgram) -> None:
    """Raise what ended one of them.

    Raises:
        StateError: one failed; gives its last words.
    """
    for one in programs:
        if one.exit_status not in (None, 0, -signal.SIGTERM, -signal.SIGKILL):  # stopped here
            raise StateError(f"{one.command[4]} failed: {one.last_words}")


def compile_loss(work: Work, facts: dict[str, Any]) -> None:
    """Compile the loss on noise; where that fails, training goes on as it is."""
    started = time.monotonic()
    runner = compile_model(work.loss, work.machine.device)
    try:
        if runner is not work.loss:
            work.step_on_noise(runner, 3)
            work.step_on_noise(runner, 4)  # where a second compilation is due, it is done now
        work.runner = runner
    except WorldModelError:
        raise
    except Exception as error:  # a compiler's own
        work.report.cut("compile", f"failed, training goes on uncompiled: {first_fatal_line(str(error))}")
    work.loss.zero_grad(set_to_none=True)
    facts["compile_s"] = round(time.monotonic() - started, 1)


def first_fatal_line(text: str) -> str:
    """Return the line of a compiler's message that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no reason given")


def gather(work: Work, stack: ExitStack, facts: dict[str, Any]) -> None:
    """Record and prepare beside compiling the loss, until the time for it is over.

    Preparers with work left go on until `stack` is left, beside the training, which takes up what they make.

    Raises:
        StateError: recording or preparing failed, or there is nothing to train on.
    """
    options, clock = work.options, work.clock
    recorder = program("train.record", record_words(work, work.recording), work.folder / "record.log")
    preparers = [
        program("train.warps", prepare_words(work, part), work.folder / f"prepare_{part}.log")
        for part in range(0 if options.warps else options.preparers)
    ]
    stop = threading.Timer(max(0.0, clock.record_end - time.monotonic()), recorder.stop)
    stop.daemon = True
    if options.data is None:
        stack.enter_context(recorder)
        stop.start()
        stack.callback(stop.cancel)
    for one in preparers:
        stack.enter_context(one)
    if options.compile:
        compile_loss(work, facts)

    def backlog() -> int:
        return len(list(work.recording.glob("train-*.h5"))) - len(list(work.prepared.glob("train-*.safetensors")))

    while preparers and time.monotonic() < clock.prepare_end:
        check(recorder, *preparers)
        is_over = options.data is not None or recorder.exit_status is not None
        if is_over and backlog() <= 0 and list(work.prepared.glob("train-*.safetensors")):
            break
        time.sleep(0.2)
    recorder.stop()
    check(recorder, *preparers)
    if not list(work.prepared.glob("train-*.safetensors")):
        said = "; ".join(one.last_words for one in (recorder, *preparers) if one.log.is_file())
        raise StateError(f"nothing to train on after {clock.now:.0f} s: {said}")
    if backlog() > 0:
        facts["not_prepared_yet"] = backlog()
    else:
        for one in preparers:
            one.stop()
    if options.data is None:
        episodes = list_episodes(open_shards(work.recording))
        facts |= {"episodes": len(episodes), "frames": sum(episode.num_frames for episode in episodes)}
        taken = clock.record_end - clock.started - work.report.content["parts"]["preflight"]["seconds"]
        if len(episodes) < options.episodes:
            more = taken * (options.episodes / max(1, len(episodes)) - 1)
            work.report.cut(
                "recording", f"{len(episodes)} of {options.episodes} episodes; all would have taken {more:.0f} s more"
            )


# Training -------------------------------------------------------------------------------------------------------------


def train(work: Work, facts: dict[str, Any]) -> None:
    """Fine-tune the denoiser until its time is over, a bundle every minute.

    Raises:
        DataError: the clips are longer than the episodes.
    """
    options, device = work.options, work.machine.device
    training = work.training_options()
    shutil.rmtree(training.out, ignore_errors=True)  # of another run in the same folder
    data = PreparedData(work.prepared, device=device, refresh_s=20.0)
    if work.loss.distort is not None:
        fitted, _ = fit_to_latents(work.codec, data.some_latents(), device)
        work.loss.distort.load_state_dict(fitted.state_dict())
    denoiser = work.loss.denoiser
    frames = training.batch_size * training.clip_frames
    passes = 4.0 if options.objective.own_share > 0 else 3.0
    try:
        averaged, summary = train_model(
            training,
            work.machine,
            work.loss,
            make_optimizers(denoiser, training),
            make_sampler(training, work.config, data, device),
            frames,
            passes * frames * denoiser.flops_per_frame(training.clip_frames),
            on_save=lambda averaged: work.keeper.keep(denoiser=averaged.denoiser),
            on_save_s=options.bundle_s,
            deadline=work.clock.until_training_ends,
            runner=work.runner,
        )
    except ConfigError as error:  # it diverged: the bundle of the minute before is kept
        work.report.cut("training", str(error))
        return
    facts |= summary | {"prepared_frames": data.num_frames, "bundles": work.keeper.written}
    work.loss.denoiser.load_state_dict(averaged.denoiser.state_dict())


def train_the_decoder(work: Work, facts: dict[str, Any]) -> None:
    """Train the decoder of the bundle in --out in its share of the time, and put it there."""
    left = work.clock.decoder_end - time.monotonic()
    if left < 5:
        work.report.cut("decoder", f"{left:.0f} s were left")
        return
    out = work.folder / "decoder"
    shutil.rmtree(out, ignore_errors=True)
    options = DecoderOptions(
        data=work.recording,
        out=out,
        checkpoint=work.options.out,
        warps=work.prepared,
        batch_size=max(3, work.options.decoder_batch),
        shards=4,
        clips=32,
        dreams=8,
        dream_frames=60,
        minutes=left / 60,
        compile=False,
        seed=work.options.seed,
        save_minutes=1e9,
    )
    facts |= train_decoder(options, work.machine, work.clock.decoder_end)
    work.keeper.keep(codec=load_codec(out))


# Measuring ------------------------------------------------------------------------------------------------------------


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


# All of it ------------------------------------------------------------------------------------------------------------


def fine_tune(options: FineTuneOptions, started: float | None = None) -> dict[str, Any]:
    """Do all of it; return the report.

    Args:
        options: of the program.
        started: moment that the deadline counts from, `time.monotonic()`; default now.

    Raises:
        WorldModelError: one of its kinds, when something is missing; --out holds the world as given, or as far as it
            came.
        Terminated: SIGTERM.
    """
    clock = Clock(options, time.monotonic() if started is None else started)
    folder = options.work or Path(tempfile.mkdtemp(prefix="finetune-"))
    folder.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    try:
        with guarded(clock, reports):
            work = Work(options, start_machine(options.device), clock, folder)
            report = work.report
            reports.append(report)
            parts: list[tuple[str, Callable[[Work, dict[str, Any]], None]]] = []
            with report.timed("preflight") as facts:
                preflight(work, facts)
            with ExitStack() as stack:
                with report.timed("gathering") as facts:
                    gather(work, stack, facts)
                with report.timed("training") as facts:
                    train(work, facts)
            if clock.is_terminated:
                raise Terminated
            if options.decoder_share:
                parts.append(("decoder", train_the_decoder))
            if options.evaluate_s:
                parts.append(("evaluation", measure))
            for name, do in parts:
                try:
                    with report.timed(name) as facts:
                        do(work, facts)
                except (WorldModelError, RuntimeError) as error:  # what was trained is kept: the rest may fail
                    report.cut(name, f"failed: {error}")
            report.content["is_complete"] = True
            report.save()
            return report.content
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the options and do it; exit status 143 after SIGTERM, 1 where the deadline cut it."""
    started = time.monotonic() - process_age()
    options = parse_options(FineTuneOptions, "python -m train.finetune")
    try:
        fine_tune(options, started)
    except Terminated:
        print(f"terminated; {options.out} holds the last bundle", flush=True)
        sys.exit(128 + signal.SIGTERM)
    print(f"world: {options.out}    report: {options.out / 'report.json'}", flush=True)


if __name__ == "__main__":
    run_program(main)
