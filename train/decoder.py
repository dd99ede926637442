"""Program: train the decoder to draw what is not known. `python -m train.decoder --checkpoint DIR --data DIR ...`.

Owns: the examples, the options and the optimizer. The loss is `train.losses.adversary`'s, the loop is
`train.core.loop`'s.

Latents are decoded with what memory knows of their frames: those of recorded frames, those that the denoiser predicts
for recorded frames, those of its own dreams, of which there is no truth, and, where shards were prepared with a
generator in the loop, those of anchored dreams. The encoder stays, so that latents and denoisers stay valid.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import ShardInfo, open_shards, read_episode
from train.core.loop import TrainOptions, train_model
from train.core.machine import Machine, start_machine
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import draw_clips
from train.data.prepared import DREAMT as DREAMT_LATENTS
from train.data.prepared import (
    PACKED,
    PreparedData,
    drop_memory,
    is_anchored,
    is_dreamt,
    pack_folded,
    unpack_folded,
)
from train.losses.adversary import ANCHORED, DREAMT, PREDICTED, TRUE, AdversaryConfig, DecoderLoss
from train.measures.drift import random_actions
from worldmodel.checkpoint import load_codec, load_denoiser, load_depth, load_info, save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.frames import to_pixels
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.world import WorldModel

CLIP_FRAMES, CLIP_CHUNK = 48, 8
OPENING_FRAMES = 32  # of a dream
SECOND_LEVEL = 0.7  # where the second of two denoising steps begins, as in play


@dataclass(frozen=True)
class DecoderOptions(TrainOptions):
    """Train the decoder of a world with a memory of pixels: true pictures where known, real ones where not."""

    checkpoint: Path = field(default_factory=lambda: Path("runs/denoiser"))
    """Bundle of codec and denoiser."""
    warps: Path = field(default_factory=lambda: Path("warps"))
    """Folder of prepared shards of --data (train.warps)."""
    depth: str | None = None
    """Bundle of the depth network; default --checkpoint."""
    initial: Path | None = None
    """Bundle of a decoder to begin with; default that of --checkpoint."""
    batch_size: int = 12
    """Pictures a step: a third true, the others predicted, dreamt or dreamt along what was recorded."""
    learning_rate: float = 2e-4
    """Peak learning rate of the decoder; the discriminator gets four times that."""
    shards: int = 12
    """Prepared shards held in memory, and as many that a generator dreamt along; other anchored ones are left out."""
    clips: int = 96
    """Clips of 48 frames whose latents the denoiser predicts."""
    dreams: int = 12
    """Dreams to learn from; 0: none."""
    dream_frames: int = 120
    """Frames of each."""
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    """Weights of the loss."""


@dataclass
class Examples:
    """Latents with what is remembered of their frames, on the CPU.

    Attributes:
        latents: float16 (N, C, h, w).
        truth: uint8 (N, H, W, 3); for dreamt latents the picture means nothing.
        kinds: int64 (N,).
        pixels, mask, facts: packed folded pictures (`train.data.prepared`).
    """

    latents: torch.Tensor
    truth: torch.Tensor
    kinds: torch.Tensor
    pixels: torch.Tensor
    mask: torch.Tensor
    facts: torch.Tensor

    def pick(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the examples of an index as `DecoderLoss` takes them."""
        return {
            "latents": self.latents[index].float(),
            "truth": to_pixels(self.truth[index]),
            "kinds": self.kinds[index],
            "warped": unpack_folded(*(getattr(self, name)[index] for name in PACKED)),
        }

    @staticmethod
    def join(parts: list["Examples"]) -> "Examples":
        """Return all of them."""
        names = [part.name for part in dataclasses.fields(Examples)]
        return Examples(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def read_frames(shard: ShardInfo) -> torch.Tensor:
    """Return the frames of all episodes of a shard, uint8 (N, H, W, 3), as prepared shards have them."""
    return torch.from_numpy(np.concatenate([read_episode(e, fields=("frames",))["frames"] for e in shard.episodes]))


def true_examples(prepared: dict[str, torch.Tensor], frames: torch.Tensor) -> Examples:
    """Return the examples of recorded frames."""
    kinds = torch.full((len(frames),), TRUE)
    return Examples(prepared["latents"], frames, kinds, *(prepared[name] for name in PACKED))


def anchored_examples(prepared: dict[str, torch.Tensor], frames: torch.Tensor) -> Examples:
    """Return the examples of a shard that a generator dreamt along, of frames that remember something."""
    used = (prepared["mask"] != 0).any(1) & (prepared[DREAMT_LATENTS] != prepared["latents"]).flatten(1).any(1)
    kinds = torch.full((int(used.sum()),), ANCHORED)
    return Examples(prepared[DREAMT_LATENTS][used], frames[used], kinds, *(prepared[name][used] for name in PACKED))


@torch.inference_mode()
def predicted_examples(
    denoiser: Denoiser, prepared: dict[str, torch.Tensor], frames: torch.Tensor, generator: torch.Generator, count: int
) -> Iterator[Examples]:
    """Yield examples of clips whose every frame the denoiser makes from noise, the frames before it true.

    Half of the clips remember nothing, or little, so that much is invented.

    Args:
        denoiser: trained.
        prepared: a prepared shard.
        frames: its frames.
        generator: chance.
        count: clips.
    """
    device = denoiser.to_clean.weight.device

    def noise() -> torch.Tensor:
        return torch.randn(latents.shape, generator=generator).to(device)

    for _ in range(count):
        index = draw_clips(prepared["lengths"], 1, CLIP_FRAMES, generator)[0]
        latents = prepared["latents"][index].float()[None].to(device)
        warped = unpack_folded(*(prepared[name][index] for name in PACKED))[None].to(device)
        warped = drop_memory(warped, 0.25, generator)
        actions = prepared["actions"][index].long()[None].to(device)
        actions[:, 0] = denoiser.config.num_actions
        shown = add_noise(latents, noise(), latents.new_full(latents.shape[:2], 0.05))
        made = noise()
        for level in (1.0, SECOND_LEVEL):
            levels = latents.new_full(latents.shape[:2], level)
            noisy = add_noise(made, noise(), levels) if level < 1 else made
            given = FrameInputs.stack(shown, levels * 0 + 0.05, actions, denoiser.config.num_previous, warped)
            given = dataclasses.replace(given, latents=noisy, levels=levels)
            made = denoiser(given, chunk=CLIP_CHUNK)[0].clean
        kinds = torch.full((CLIP_FRAMES,), PREDICTED)
        yield Examples(made[0].half().cpu(), frames[index], kinds, *pack_folded(warped[0].cpu()))


@torch.inference_mode()
def dreamt_examples(model: WorldModel, frames: torch.Tensor, actions: torch.Tensor, seed: int, count: int) -> Examples:
    """Return the latents of dreams under random actions, and what their memory knew.

    Args:
        model: the world.
        frames: uint8 (B, T, H, W, 3), to begin with.
        actions: integer (B, T - 1).
        seed: of the dreams and their actions.
        count: frames to dream.
    """
    state = model.reset(frames, actions, [seed + i for i in range(len(frames))])
    to_come = random_actions((len(frames), count), model.num_actions, np.random.default_rng([seed, 5]))
    latents, warped = [], []
    decode = model.codec.decode

    def keep(made: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        latents.append(made.float().cpu())
        if known is not None:
            warped.append(known.float().cpu())
        return decode(made, known)

    model.codec.decode = keep
    shown = []
    try:
        for column in to_come.unbind(1):
            shown.append(model.step(state, column).frames.cpu())
    finally:
        model.codec.decode = decode
    kinds = torch.full((len(frames) * count,), DREAMT)
    return Examples(torch.cat(latents).half(), torch.cat(shown), kinds, *pack_folded(torch.cat(warped)))


def make_examples(
    options: DecoderOptions, codec: Codec, denoiser: Denoiser, device: torch.device
) -> tuple[Examples, dict[int, torch.Tensor], torch.Tensor]:
    """Return all examples, the places of each kind among them, and recorded frames.

    Raises:
        DataError: a prepared shard has no recording, or another number of frames; or all of them are anchored.
    """
    prepared = PreparedData(options.warps)
    denoiser = denoiser.to(device)
    recorded = {shard.path.stem: shard for shard in open_shards(options.data) if shard.split == "train"}
    generator = torch.Generator().manual_seed(options.seed)
    whole, dreamt = choose_shards(options, prepared)

    parts: list[Examples] = []
    openings = []
    for name in tqdm([*whole, *dreamt], desc="predicting", unit="shard", mininterval=5.0):
        shard = prepared.shards[prepared.names.index(name)]
        frames = read_frames_of(name, len(shard["latents"]), recorded, options)
        if name in dreamt:
            parts.append(anchored_examples(shard, frames))
            continue
        parts.append(true_examples(shard, frames))
        parts += predicted_examples(denoiser, shard, frames, generator, -(-options.clips // len(whole)))
        index = draw_clips(shard["lengths"], 1, OPENING_FRAMES, generator)[0]
        openings.append((frames[index], shard["actions"][index[1:]].long()))

    if options.dreams:
        depth = load_depth(options.checkpoint if options.depth is None else options.depth)
        model = WorldModel(codec, denoiser, depth=depth, info=load_info(options.checkpoint), device=device)
        chosen = [openings[i % len(openings)] for i in range(options.dreams)]
        given = torch.stack([frames for frames, _ in chosen]), torch.stack([actions for _, actions in chosen])
        parts.append(dreamt_examples(model, *given, options.seed, options.dream_frames))

    examples = Examples.join(parts)
    places = {kind: (examples.kinds == kind).nonzero()[:, 0] for kind in (TRUE, PREDICTED, DREAMT, ANCHORED)}
    return examples, places, examples.truth[places[TRUE]]


def choose_shards(options: DecoderOptions, prepared: PreparedData) -> tuple[list[str], list[str]]:
    """Return the names of the shards to take, spread over all: whole ones, and those that a generator dreamt along.

    Raises:
        DataError: all of them are anchored.
    """
    # Of torn memories a decoder learns to forget: it keeps a fifteenth of what it keeps otherwise (dev/LOG.md).
    files = {name: options.warps / f"{name}.safetensors" for name in prepared.names}
    whole = [name for name, path in files.items() if not is_anchored(path)]
    dreamt = [name for name, path in files.items() if is_dreamt(path)]
    if not whole:
        raise DataError(f"all shards of {options.warps} are anchored; prepare some with train.warps --anchored 0")

    def spread(names: list[str]) -> list[str]:
        return names[:: max(1, len(names) // options.shards)][: options.shards]

    return spread(whole), spread(dreamt)


def read_frames_of(name: str, num_frames: int, recorded: dict[str, ShardInfo], options: DecoderOptions) -> torch.Tensor:
    """Return the recorded frames that a shard of so many frames was prepared from, uint8 (N, H, W, 3).

    Raises:
        DataError: they are not there, or others.
    """
    if name not in recorded:
        raise DataError(f"{options.data} has no shard {name}, which {options.warps} was prepared from")
    frames = read_frames(recorded[name])
    if len(frames) != num_frames:
        raise DataError(f"{name} of {options.warps} has {num_frames} frames, the recording {len(frames)}")
    return frames


def make_sampler(
    batch_size: int, image_size: int, examples: Examples, places: dict[int, torch.Tensor], real: torch.Tensor
) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    """Return what draws the batch of a step: a third true examples, the other kinds in equal shares, and real pictures.

    Args:
        batch_size: examples a step.
        image_size: height and width of a picture.
        examples, places, real: from `make_examples`.
    """
    third = batch_size // 3
    others = [kind for kind in (DREAMT, ANCHORED, PREDICTED) if len(places[kind])]

    def draw(kind: int, count: int, generator: torch.Generator) -> torch.Tensor:
        return places[kind][torch.randint(len(places[kind]), (count,), generator=generator)]

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        drawn, left = [draw(TRUE, third, generator)], batch_size - third
        for number, kind in enumerate(others):
            share = left // (len(others) - number)
            drawn.append(draw(kind, share, generator))
            left -= share
        batch = examples.pick(torch.cat(drawn))

        more = to_pixels(real[torch.randint(len(real), (2 * third,), generator=generator)])
        if torch.rand((), generator=generator) < 0.5:
            more = more.flip(-1)
        shown = torch.rand(batch_size + len(more), generator=generator) < 0.5
        corner = torch.randint(image_size // 4 + 1, (2,), generator=generator)
        jitter = torch.randn(batch["latents"].shape, generator=generator)
        return batch | {"real": more, "is_coarse_shown": shown, "corner": corner, "jitter": jitter}

    return sample


def train_decoder(
    options: DecoderOptions, machine: Machine, deadline: float | Callable[[], float] | None = None
) -> dict[str, Any]:
    """Make examples, train, save the codec beside what the bundle holds; return the summary.

    Args:
        options: of the program.
        machine: from `start_machine`.
        deadline: as `train_model` takes it.

    Raises:
        DataError, CheckpointError: what is given cannot be used. StorageError: a full disk.
    """
    denoiser = load_denoiser(options.checkpoint)
    if not denoiser.config.warp_channels:
        raise CheckpointError(f"the denoiser of {options.checkpoint} has no memory of pixels: train.denoiser --warps")
    if options.batch_size < 3:
        raise ConfigError(f"batch_size must be at least 3; got {options.batch_size}")

    torch.manual_seed(options.seed)
    codec = keep_pixels(load_codec(options.initial or options.checkpoint))
    examples, places, real = make_examples(options, codec, denoiser, machine.device)
    sample = make_sampler(options.batch_size, codec.config.image_size, examples, places, real)

    codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    loss = DecoderLoss(codec, options.adversary)
    trained = [p for p in codec.parameters() if p.requires_grad]
    betas = (0.5, 0.99)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(trained, lr=options.learning_rate, betas=betas),
        torch.optim.Adam(loss.discriminator.parameters(), lr=4 * options.learning_rate, betas=betas),
    ]

    averaged, summary = train_model(options, machine, loss, optimizers, sample, options.batch_size, deadline=deadline)
    if machine.is_main:
        best = averaged.codec.eval()
        best.requires_grad_(True)
        save_bundle(options.out, codec=best)
        content = {"options": options_to_json(options), "summary": summary, "examples": len(examples.kinds)}
        save_json(options.out / "decoder_training.json", content)
    return summary


def keep_pixels(codec: Codec) -> Codec:
    """Return the codec with a decoder that keeps remembered pixels, as it is if it has one already."""
    if codec.config.keeps_pixels:
        return codec
    made = Codec(dataclasses.replace(codec.config, keeps_pixels=True))
    made.load_state_dict(codec.state_dict() | {k: v for k, v in made.state_dict().items() if k.startswith("keeper.")})
    return made


def main() -> None:
    """Parse options, train, print the summary."""
    options = parse_options(DecoderOptions, "python -m train.decoder")
    summary = train_decoder(options, start_machine(options.device))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()})


if __name__ == "__main__":
    run_program(main)
