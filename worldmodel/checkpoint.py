"""The bundle a world is kept in: safetensors, config.json and a manifest of SHA-256 hashes.

Owns: strict saving and loading. A missing, extra or misshapen weight or a wrong hash is an error. No pickle. Knows no
training and no playing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from worldmodel.codec import Codec, CodecConfig
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.files import write_files
from worldmodel.memory.depth import DepthConfig, DepthNet
from worldmodel.memory.registry import find_memory

ASSETS = Path(__file__).parent / "assets"
FORMAT = "worldmodel-bundle"
VERSION = 1
# Beginnings of the names that weights of memories had before memories were modules of their own, and what they begin
# with now: the first that the denoiser knows.
OLD_NAMES: dict[str, tuple[str, ...]] = {
    "entries.": ("memories.slots.entries.", "memories.channel.entries."),
    "compressor.": ("memories.slots.compressor.", "memories.channel.compressor."),
    "channel.": ("memories.channel.channel.",),
}
# Options of denoisers that are gone; one that needs none of them can still be loaded.
GONE_OPTIONS = ("view_heads", "view_points", "view_frames", "prediction")
LOOKS_BACK = ("view_heads", "view_points")
RENAMED_OPTIONS = {"motions": "displacements"}
Model = TypeVar("Model", bound=nn.Module)


def resolve(name_or_folder: str | Path) -> Path:
    """Return the folder of a bundle: a folder as given, or the name of a world in the package.

    Raises:
        CheckpointError: neither exists.
    """
    folder = Path(name_or_folder)
    if (folder / "config.json").is_file():
        return folder
    shipped = ASSETS / str(name_or_folder).lower()
    if (shipped / "config.json").is_file():
        return shipped
    names = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    raise CheckpointError(f"no checkpoint {str(name_or_folder)!r}: give a folder with config.json, or one of {names}")


def save_bundle(
    folder: Path,
    *,
    codec: Codec | None = None,
    denoiser: Denoiser | None = None,
    depth: DepthNet | None = None,
    openings: dict[str, torch.Tensor] | None = None,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a bundle, or replace the parts given in one that exists.

    Args:
        folder: made if missing.
        codec: weights and config of the codec.
        denoiser: weights and config of the denoiser.
        depth: weights and config of a depth network.
        openings: `frames` uint8 (K, T, H, W, 3) and `actions` uint8 (K, T - 1), real play to start dreams from.
        info: what players need beside the model: world, action_names, fps.
        dtype: number format of the weights.

    Raises:
        StorageError: a file cannot be written; a bundle that was there before is as it was.
    """
    config: dict[str, Any] = {"format": FORMAT, "version": VERSION, "files": {}}
    if (folder / "config.json").is_file():
        config = _read_config(folder)
    parts: dict[str, nn.Module] = {}
    if codec is not None:
        config["codec"], parts["codec"] = dataclasses.asdict(codec.config), codec
    if denoiser is not None:
        config["denoiser"], parts["denoiser"] = dataclasses.asdict(denoiser.config), denoiser
    if depth is not None:
        config["depth"], parts["depth"] = dataclasses.asdict(depth.config), depth
    contents = {}
    for name, module in parts.items():
        state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
        contents[name] = save(state)
    if openings is not None:
        contents["openings"] = save({k: v.contiguous() for k, v in openings.items()})
    config["files"] |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if info is not None:
        config["info"] = info
    files = {folder / f"{name}.safetensors": content for name, content in contents.items()}
    write_files(files | {folder / "config.json": (json.dumps(config, indent=2) + "\n").encode()})


def weights_hash(name_or_folder: str | Path) -> str:
    """Return what tells a bundle's weights from others, 16 hexadecimal digits; copies of a bundle have the same.

    It is made from the hashes of the manifest and the shapes of the networks; openings and words about the world do
    not count.

    Raises:
        CheckpointError: the bundle is missing or unreadable.
    """
    config = _read_config(resolve(name_or_folder))
    files = {name: digest for name, digest in config.get("files", {}).items() if name != "openings"}
    networks = {name: config[name] for name in ("codec", "denoiser", "depth") if name in config}
    return hashlib.sha256(json.dumps([files, networks], sort_keys=True).encode()).hexdigest()[:16]


def has_part(name_or_folder: str | Path, name: str) -> bool:
    """Return whether a bundle holds a part: codec, denoiser, depth or openings.

    Raises:
        CheckpointError: the bundle is missing or unreadable.
    """
    return name in _read_config(resolve(name_or_folder)).get("files", {})


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or config.get("version") != VERSION:
        raise CheckpointError(
            f"{folder / 'config.json'} is not a {FORMAT} of version {VERSION}; train or fetch it again"
        )
    for name in ("files", "info"):
        if not isinstance(config.get(name, {}), dict):
            raise CheckpointError(
                f"{folder / 'config.json'}: {name} is {config[name]!r}, not a table; restore the bundle"
            )
    return config


def _read_tensors(folder: Path, config: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    path = folder / f"{name}.safetensors"
    want = config.get("files", {}).get(name)
    if want is None:
        raise CheckpointError(f"{folder} holds no {name}; it has {sorted(config.get('files', {}))}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; restore the bundle") from error
    found = hashlib.sha256(content).hexdigest()
    if found != want:
        raise CheckpointError(
            f"{path} is damaged: SHA-256 {found[:12]}..., config.json says {str(want)[:12]}...; restore it"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def load_weights(module: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: a weight is missing, extra, or of another shape; names the first.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    for kind, names in (("missing", missing), ("extra", extra)):
        if names:
            raise CheckpointError(
                f"{where}: {len(names)} {kind} weights, first {names[0]!r}: of another model or version"
            )
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise CheckpointError(f"{where}: {name} is {tuple(tensors[name].shape)}; expected {tuple(value.shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{where}: {name} holds values that are not finite; train it again or restore it")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})


def rename_weights(tensors: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights by the names that a denoiser has for them now, where they had others before."""
    own, renamed = module.state_dict().keys(), {}
    for name, value in tensors.items():
        old = next((start for start in OLD_NAMES if name.startswith(start)), "")
        candidates = [start + name.removeprefix(old) for start in OLD_NAMES.get(old, ())]
        found = (candidate for candidate in candidates if name not in own and candidate in own)
        renamed[next(found, name)] = value
    return renamed


def _build(model: Callable[[Any], Model], kind: Callable[..., Any], folder: Path, values: Any) -> Model:
    try:
        found = _upgrade(dict(values)) if kind is DenoiserConfig else dict(values)
        return model(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}))
    except (TypeError, ValueError, RuntimeError) as error:  # a ConfigError is a ValueError; torch raises all three
        name = getattr(kind, "__name__", "config")
        raise CheckpointError(f"{folder / 'config.json'}: {values} makes no {name}: {error}; restore it") from error


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a denoiser of an older version as they are called now.

    Raises:
        ConfigError: one that is gone was used.
    """
    if values.get("prediction", "clean") != "clean":
        raise ConfigError(f"prediction {values['prediction']!r} is gone; the git tag study-1 plays it")
    kept = {name: value for name, value in values.items() if name not in GONE_OPTIONS}
    return {RENAMED_OPTIONS.get(name, name): value for name, value in kept.items()}


def _check_memory(folder: Path, config: dict[str, Any], name: str) -> None:
    """Check that the memory of a part is there.

    Raises:
        CheckpointError: it is that of latent columns, which is gone, or one from outside of this package that may not
            or cannot be imported.
    """
    found = config.get("denoiser") if name == "denoiser" else None
    denoiser: dict[str, Any] = found if isinstance(found, dict) else {}
    memory, looks_back = denoiser.get("memory"), any(denoiser.get(option) for option in LOOKS_BACK)
    if isinstance(memory, str) and ":" in memory:
        try:
            find_memory(memory)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from error
    if looks_back or "spatial" in {*config, *config.get("files", {})}:
        raise CheckpointError(
            f"{folder} was made by an older version, with a memory of latent columns that this version does not have: "
            "train the world anew with `python -m train.recipe`, or check out the git tag study-1, which plays it"
        )


def _load_part(name_or_folder: str | Path, name: str, model: Callable[[Any], Model], kind: type) -> Model:
    """Return the named part of a bundle with its weights, float32 on the CPU, in evaluation mode."""
    folder = resolve(name_or_folder)
    config = _read_config(folder)
    _check_memory(folder, config, name)
    tensors = _read_tensors(folder, config, name)
    part = _build(model, kind, folder, config.get(name))
    load_weights(part, rename_weights(tensors, part), str(folder / f"{name}.safetensors"))
    return part.float().eval()  # whatever torch's default number format is


def load_codec(name_or_folder: str | Path) -> Codec:
    """Load the codec of a bundle, float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, or not fitting.
    """
    return _load_part(name_or_folder, "codec", Codec, CodecConfig)


def load_denoiser(name_or_folder: str | Path) -> Denoiser:
    """Load the denoiser of a bundle, float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, or not fitting; or its memory is from outside of this package, and may not
            or cannot be imported (`worldmodel.memory.registry`).
    """
    return _load_part(name_or_folder, "denoiser", Denoiser, DenoiserConfig)


def save_depth(folder: Path, depth: DepthNet) -> None:
    """Write a depth network to a bundle, or replace the one it has; the rest as `save_bundle`."""
    save_bundle(folder, depth=depth)


def load_depth(name_or_folder: str | Path) -> DepthNet:
    """Load the depth network of a bundle, float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, or not fitting.
    """
    return _load_part(name_or_folder, "depth", DepthNet, DepthConfig)


def load_openings(name_or_folder: str | Path) -> dict[str, torch.Tensor]:
    """Load the openings of a bundle: `frames` uint8 (K, T, H, W, 3) and `actions` uint8 (K, T - 1).

    Raises:
        CheckpointError: missing, damaged, or of wrong shape.
    """
    folder = resolve(name_or_folder)
    tensors = _read_tensors(folder, _read_config(folder), "openings")
    frames, actions = tensors.get("frames"), tensors.get("actions")
    if (
        frames is None
        or actions is None
        or (frames.dtype, actions.dtype) != (torch.uint8, torch.uint8)
        or (frames.ndim, frames.shape[-1]) != (5, 3)
        or min(frames.shape[:2]) < 1
        or actions.shape != (frames.shape[0], frames.shape[1] - 1)
    ):
        raise CheckpointError(f"{folder / 'openings.safetensors'}: frames and actions do not fit; restore the bundle")
    return tensors


def load_info(name_or_folder: str | Path) -> dict[str, Any]:
    """Load what the bundle says of its world: world, action_names, fps and the like; empty if it says nothing.

    Raises:
        CheckpointError: missing or unreadable.
    """
    return dict(_read_config(resolve(name_or_folder)).get("info", {}))


def codec_hash(name_or_folder: str | Path) -> str:
    """Return the SHA-256 of the encoder's weights and the latent scale: the identity of latents.

    Training the decoder further leaves it as it is, so latents and denoisers stay valid.
    """
    folder = resolve(name_or_folder)
    tensors = _read_tensors(folder, _read_config(folder), "codec")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(("autoencoder.encoder.", "latent_")):
            digest.update(name.encode())
            digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
