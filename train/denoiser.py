"""Program: train the denoiser. `python -m train.denoiser --data DIR --codec DIR --out DIR --preset P --minutes M`.

Owns the denoiser's options and optimizers. The loss is `worldmodel.objective`'s, the loop is `train.core.loop`'s.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from envs.data.episodes import ShardInfo, open_shards
from envs.worlds.registry import find_displacements
from train.core.loop import TrainOptions, train_model
from train.core.machine import Machine, start_machine
from train.core.muon import StackedMuon
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import LatentData, encode_recording
from train.data.prepared import PreparedData, drop_memory
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, save_bundle
from worldmodel.codec import Codec
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.distortions import LatentDistortions, fit_distortions
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.folded import NUM_FOLDED
from worldmodel.memory.registry import check_memory
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_noise
from worldmodel.presets import get_preset

FITTED_LATENTS = 512  # to fit distortions to


@dataclass(frozen=True)
class DenoiserOptions(TrainOptions):
    """Train the denoiser on the latents of a recording."""

    codec: Path = field(default_factory=lambda: Path("runs/codec"))
    """Folder of the trained codec (train.codec)."""
    batch_size: int = 8
    """Clips a step and process."""
    clip_frames: int = 32
    """Frames of a clip. Memory is learned only over clips longer than the recent window."""
    chunk: int = 8
    """Frames a chunk of attention; speed only."""
    learning_rate: float = 2e-3
    """Peak learning rate of the matrices (Muon); everything else (AdamW) gets half."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    initial: str | None = None
    """A bundle of the same shape to take the first weights from, instead of chance."""
    graft: str | None = None
    """A bundle of another memory structure to take from whatever weights fit; the rest starts by chance."""
    memory: str | None = None
    """Memory structure: summary (ours), prepend, channel, cross, none, or module:class of one of your own; default the
    preset's."""
    memory_frames: int | None = None
    """Past frames that the memory draws on; default the preset's."""
    compression: str = "none"
    """Compression of the memory: none, joint (with prepend) or modulated (with channel)."""
    budget: int | None = None
    """Frame slots kept after compression; default all."""
    warps: Path | None = None
    """Folder of prepared shards (train.warps), in place of --data's own latents: the denoiser learns what a memory of
    pixels shows of coming frames; needs --odometry. New shards are taken up while it trains."""
    memory_dropout: float = 0.1
    """With --warps: share of clips that remember nothing; twice that share forgets a span."""
    odometry: bool = False
    """Find memories by direction and place too, reckoned from the actions; for action sets with known displacements."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Levels, contexts and weights of the loss."""


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon trains a parameter: the matrices of blocks and compressor."""
    return name.startswith(("blocks.", "compressor.")) and name.endswith("weight") and parameter.ndim == 2


def make_optimizers(denoiser: Denoiser, options: DenoiserOptions) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the rest."""
    trained = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if is_matrix(name, p)]
    rest = [p for name, p in trained.items() if not is_matrix(name, p)]
    rate, decay = options.learning_rate, options.weight_decay
    return [
        StackedMuon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.5 * rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_denoiser(options: DenoiserOptions, machine: Machine) -> dict[str, Any]:
    """Encode the recording if needed, train a denoiser, save it beside the codec; return the summary.

    Raises:
        DataError: the recording cannot be used. CheckpointError: no codec, or resume without a state.
        StorageError: a full disk.
    """
    codec = load_codec(options.codec)
    check_preset(options, codec)
    shard = open_shards(options.data)[0]
    source = open_source(options, codec, machine)
    config = make_config(options, source, shard)

    torch.manual_seed(options.seed)
    denoiser = build_denoiser(config, options.initial, options.graft)
    distortions = fit_to_source(codec, source, machine) if options.objective.distort_share > 0 else None
    loss = DenoiserLoss(denoiser, options.objective, options.chunk, distortions)

    sample = make_sampler(options, config, source, machine.device)
    frames = options.batch_size * options.clip_frames
    passes = 4.0 if options.objective.own_share > 0 else 3.0
    flops = passes * frames * denoiser.flops_per_frame(options.clip_frames)

    def keep(averaged: DenoiserLoss) -> None:
        save_bundle(options.out, codec=codec, denoiser=averaged.denoiser)

    optimizers = make_optimizers(denoiser, options)
    averaged, summary = train_model(options, machine, loss, optimizers, sample, frames, flops, on_save=keep)
    if machine.is_main:
        save_bundle(options.out, codec=codec.cpu(), denoiser=averaged.denoiser)
        content = {"options": options_to_json(options), "summary": summary, "recorded_frames": source.num_frames}
        save_json(options.out / "denoiser_training.json", content | {"mazes_or_episodes": source.num_episodes})
    return summary


def check_preset(options: DenoiserOptions, codec: Codec) -> None:
    """Check that the options go together, and with the codec.

    Raises:
        ConfigError: a clip cannot be cut into chunks. CheckpointError: the preset takes other latents.
    """
    config = get_preset(options.preset).denoiser
    if options.clip_frames < 2 or options.clip_frames % options.chunk:
        raise ConfigError(f"clip_frames must be a multiple of chunk {options.chunk}; got {options.clip_frames}")
    if (config.latent_channels, config.latent_size) != (codec.config.latent_channels, codec.config.latent_size):
        raise CheckpointError(
            f"the codec in {options.codec} makes latents of {codec.config.latent_channels} x {codec.config.latent_size}"
            f"^2; preset {options.preset!r} takes {config.latent_channels} x {config.latent_size}^2: train its codec"
        )


def open_source(options: DenoiserOptions, codec: Codec, machine: Machine) -> LatentData | PreparedData:
    """Return what clips are cut from: prepared shards, or the latents of the recording, which are made if missing.

    Raises:
        DataError: it cannot be read, or is of another codec. StorageError: a full disk.
    """
    if options.warps is not None:
        prepared = PreparedData(options.warps, device=machine.device)
        found = tuple(prepared.shards[0]["latents"].shape[1:])
        if found != (codec.config.latent_channels, codec.config.latent_size, codec.config.latent_size):
            raise DataError(
                f"{options.warps} holds latents {found}, of another codec than {options.codec}: run train.warps again"
            )
        return prepared

    identity, folder = codec_hash(options.codec), options.data / "latents"
    if machine.is_main:
        encode_recording(codec.to(machine.device), options.data, folder, machine.device, identity)
    if machine.world_size > 1:
        torch.distributed.barrier()
    data = LatentData.load(folder, "train", identity)
    return data.to(machine.device) if machine.device.type == "cuda" else data


def make_config(options: DenoiserOptions, source: LatentData | PreparedData, shard: ShardInfo) -> DenoiserConfig:
    """Return the preset's shape with the actions and rewards of a recording, and the memory asked for.

    Raises:
        ConfigError: as `reward_values` and `memory_changes`.
    """
    config = get_preset(options.preset).denoiser
    return dataclasses.replace(
        config,
        num_actions=len(shard.action_names),
        reward_values=reward_values(source.all_rewards(), config.reward_values),
        **memory_changes(config, options, shard.world, shard.action_names),
    )


def fit_to_source(codec: Codec, source: LatentData | PreparedData, machine: Machine) -> LatentDistortions:
    """Return distortions fitted to the latents of a recording; says how well they fit."""
    distortions, unexplained = fit_to_latents(codec, source.some_latents(), machine.device)
    if machine.is_main:
        shares = ", ".join(f"{name} {1 - share:.0%}" for name, share in unexplained.items())
        print(f"distorted context: the fit explains {shares} of what happens to latents")
    return distortions


def make_sampler(
    options: DenoiserOptions, config: DenoiserConfig, source: LatentData | PreparedData, device: torch.device
) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    """Return what draws the batch of a step: clips, and all chance that the objective needs."""

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        clips = source.sample_clips(options.batch_size, options.clip_frames, generator)
        if "warped" in clips:
            clips["warped"] = drop_memory(clips["warped"], options.memory_dropout, generator)
        clips["actions"][:, 0] = config.num_actions  # nobody knows what led to the first frame
        seed = int(torch.randint(2**62, (1,), generator=generator))
        on_device = torch.Generator(device).manual_seed(seed)
        return clips | sample_noise(options.objective, clips["latents"].shape, on_device)

    return sample


def fit_to_latents(
    codec: Codec, latents: torch.Tensor, device: torch.device
) -> tuple[LatentDistortions, dict[str, float]]:
    """Fit distortions to some of the latents of a recording; return them and what each leaves unexplained."""
    some = latents[:: max(1, len(latents) // FITTED_LATENTS)].float()
    codec = codec.to(device).eval()
    return fit_distortions(codec.encode, codec.decode, some.to(device))


def reward_values(rewards: torch.Tensor, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the rewards that occur (at most 16, in order); the default if there is only one.

    Raises:
        ConfigError: more than 16 different rewards.
    """
    found = tuple(sorted({round(float(v), 6) for v in torch.unique(rewards)}))
    if len(found) > 16:
        raise ConfigError(f"the recording has {len(found)} different rewards; the reward head takes at most 16")
    return found if len(found) > 1 else default


def memory_changes(
    config: DenoiserConfig, options: DenoiserOptions, world: str, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return the fields of a denoiser's config that the options of the memory set.

    Raises:
        ConfigError: odometry is asked for and the displacements of the actions are not known, or the memory cannot be.
    """
    if options.warps is not None and not options.odometry:
        raise ConfigError(
            "--warps needs --odometry: a memory of pixels is played with the displacements of the actions"
        )
    if options.memory is not None:
        check_memory(options.memory)
    displacements = find_displacements(world, names) if options.odometry else ()
    if options.odometry and not displacements:
        raise ConfigError(f"--odometry needs actions with known displacements; {world} declares none for {list(names)}")
    return {
        "memory": options.memory or config.memory,
        "memory_frames": options.memory_frames or config.memory_frames,
        "compression": options.compression,
        "budget": options.budget or 0,
        "displacements": displacements,
        "warp_channels": 0 if options.warps is None else NUM_FOLDED,
    }


def build_denoiser(config: DenoiserConfig, initial: str | None, graft: str | None = None) -> Denoiser:
    """Return a denoiser of this shape.

    Args:
        config: the shape.
        initial: bundle of a denoiser of the same shape to take the weights from.
        graft: bundle of a denoiser from which the weights are taken that have the same name and shape.

    Raises:
        CheckpointError: the denoiser of `initial` has another shape, or nothing of `graft` fits.
        ConfigError: both are given.
    """
    if initial is not None and graft is not None:
        raise ConfigError("--initial and --graft cannot be given together: weights come from one bundle")
    if initial is not None:
        return _load_same(initial, config).train()

    denoiser = Denoiser(config)
    if graft is not None:
        own = denoiser.state_dict()
        given = load_denoiser(graft).state_dict()
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if len(fitting) < len(own) / 2:
            raise CheckpointError(
                f"only {len(fitting)} of {len(own)} weights of {graft} fit: of another width or depth"
            )
        denoiser.load_state_dict({**own, **fitting})
    return denoiser


def _load_same(bundle: str, config: DenoiserConfig) -> Denoiser:
    """Return the denoiser of a bundle.

    Raises:
        CheckpointError: it has another shape than `config`.
    """
    denoiser = load_denoiser(bundle)
    theirs, ours = denoiser.config.setting, config.setting
    if theirs != ours:
        raise CheckpointError(
            f"the denoiser of {bundle} has another memory structure ({theirs}); this training makes {ours}: give "
            "the same memory options, or take what fits with --graft"
        )
    if denoiser.config != config:
        raise CheckpointError(f"the denoiser of {bundle} is {denoiser.config}; this training makes {config}")
    return denoiser


def main() -> None:
    """Parse options, train, print the summary."""
    options = parse_options(DenoiserOptions, "python -m train.denoiser")
    summary = train_denoiser(options, start_machine(options.device))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()})


if __name__ == "__main__":
    run_program(main)
