"""The bundle: what was saved is what is loaded, and anything else is an error that names the file."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from worldmodel import checkpoint
from worldmodel.checkpoint import (
    codec_hash,
    load_codec,
    load_denoiser,
    load_info,
    load_openings,
    resolve,
    save_bundle,
)
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, StorageError
from worldmodel.world import WorldModel

LOADERS: dict[str, Callable[[Path], Any]] = {
    "codec": load_codec,
    "denoiser": load_denoiser,
    "openings": load_openings,
}


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a file and sign it anew, as a bundle of another version would come."""
    path = folder / f"{name}.safetensors"
    tensors = load(path.read_bytes())
    change(tensors)
    save_file(tensors, path)
    edit_config(folder, lambda c: c["files"].update({name: hashlib.sha256(path.read_bytes()).hexdigest()}))


def test_a_round_trip_keeps_every_weight(
    bundle: Path,
    make_codec: Callable[..., Codec],
    make_denoiser: Callable[..., Denoiser],
    openings: dict[str, torch.Tensor],
) -> None:
    for loaded, saved in ((load_codec(bundle), make_codec()), (load_denoiser(str(bundle)), make_denoiser())):
        assert loaded.config == saved.config
        assert not loaded.training
        weights = saved.state_dict()
        assert loaded.state_dict().keys() == weights.keys()
        for name, value in loaded.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, weights[name].to(torch.bfloat16).float()), name
    assert torch.equal(load_openings(bundle)["frames"], openings["frames"])
    assert torch.equal(load_openings(bundle)["actions"], openings["actions"])
    assert load_info(bundle)["num_steps"] == 2


OLD_STARTS = {
    "memories.slots.": "",
    "memories.channel.": "",
}
"""What names of weights began with before memories were modules of their own."""


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": "prepend", "compression": "joint", "budget": 2},
        {"memory": "channel", "compression": "modulated", "budget": 2},
        {"memory": "cross"},
    ],
    ids=str,
)
def test_a_bundle_with_the_names_of_before_loads_and_is_saved_with_those_of_now(
    changes: dict[str, Any], tmp_path: Path, make_denoiser: Callable[..., Denoiser]
) -> None:
    denoiser = make_denoiser(**changes)
    save_bundle(tmp_path, denoiser=denoiser, dtype=torch.float32)
    path = tmp_path / "denoiser.safetensors"
    old = {}
    for name, value in load_file(path).items():
        start = next((start for start in OLD_STARTS if name.startswith(start)), "")
        old[OLD_STARTS.get(start, "") + name.removeprefix(start)] = value
    assert not any(name.startswith("memories.") for name in old)
    save_file(old, path)

    config = json.loads((tmp_path / "config.json").read_text())
    config["files"]["denoiser"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(config))

    loaded = load_denoiser(tmp_path)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    save_bundle(tmp_path, denoiser=loaded, dtype=torch.float32)
    assert load_file(path).keys() == denoiser.state_dict().keys()


def test_float32_is_kept_when_asked_for(tmp_path: Path, make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser()
    save_bundle(tmp_path, denoiser=denoiser, dtype=torch.float32)
    for name, value in load_denoiser(tmp_path).state_dict().items():
        assert torch.equal(value, denoiser.state_dict()[name])


def test_a_loaded_bundle_saves_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    save_bundle(
        tmp_path,
        codec=load_codec(bundle),
        denoiser=load_denoiser(bundle),
        openings=load_openings(bundle),
        info=load_info(bundle),
    )
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((bundle / "config.json").read_text())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_identity_of_latents_follows_the_encoder_alone(copy: Path, part: str) -> None:
    before = codec_hash(copy)
    codec = load_codec(copy)
    with torch.no_grad():
        next(getattr(codec.autoencoder, part).parameters()).add_(1.0)
    save_bundle(copy, codec=codec)
    assert (codec_hash(copy) == before) == (part == "decoder")


def test_parts_can_be_replaced_one_by_one(copy: Path, make_denoiser: Callable[..., Denoiser]) -> None:
    before = codec_hash(copy)
    save_bundle(copy, denoiser=make_denoiser(seed=1, depth=2))
    assert load_denoiser(copy).config.depth == 2
    assert codec_hash(copy) == before
    assert load_info(copy)["world"] == "LabMaze"
    assert not [path for path in copy.iterdir() if path.name.startswith(".")]


def test_a_bundle_is_found_by_folder_or_by_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path)
    shutil.copytree(bundle, tmp_path / "someworld")
    assert resolve(str(bundle)) == bundle
    assert resolve("SomeWorld") == tmp_path / "someworld"
    with pytest.raises(CheckpointError, match=r"no checkpoint 'nowhere': .*\['someworld'\]"):
        resolve("nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_denoiser(tmp_path / "empty")


@pytest.mark.parametrize("name", ["codec", "denoiser"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(min(tensors)), "1 missing weights, first '"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "1 extra weights, first 'extra'"),
        (lambda tensors: tensors.update({min(tensors): torch.zeros(3, 3)}), r"is \(3, 3\); expected \("),
        (lambda tensors: tensors[min(tensors)].view(-1)[0].fill_(float("nan")), "not finite"),
        (lambda tensors: tensors[max(tensors)].view(-1)[0].fill_(float("inf")), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name: str, change: Callable[[dict[str, torch.Tensor]], None], message: str, copy: Path
) -> None:
    edit_tensors(copy, name, change)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors.*{message}"):
        LOADERS[name](copy)


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_named(name: str, copy: Path) -> None:
    path = copy / f"{name}.safetensors"
    whole = path.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for content in (whole[: len(whole) // 2], flipped, b"", whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is damaged: SHA-256"):
            LOADERS[name](copy)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors cannot be read"):
        LOADERS[name](copy)
    edit_config(copy, lambda config: config["files"].pop(name))
    with pytest.raises(CheckpointError, match=rf"holds no {name}; it has"):
        LOADERS[name](copy)


@pytest.mark.parametrize("name", LOADERS)
def test_a_signed_file_that_is_no_safetensors_is_named(name: str, copy: Path) -> None:
    (copy / f"{name}.safetensors").write_bytes(b"not tensors")
    digest = hashlib.sha256(b"not tensors").hexdigest()
    edit_config(copy, lambda config: config["files"].update({name: digest}))
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is not a safetensors file"):
        LOADERS[name](copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[]", "is not a worldmodel-bundle of version 1"),
        (b'{"format": "worldmodel-bundle", "version": 99}', "is not a worldmodel-bundle of version 1"),
        (b'{"format": "worldmodel-bundle", "version": 1, "files": []}', "files"),
        (b'{"format": "worldmodel-bundle", "version": 1, "files": {}, "info": 3}', "info"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(content: bytes, message: str, copy: Path) -> None:
    (copy / "config.json").write_bytes(content)
    for loader in (*LOADERS.values(), load_info, codec_hash):
        with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
            loader(copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("denoiser", {"unknown": 1}),
        ("denoiser", {"width": 30}),
        ("denoiser", {"width": 24.5}),
        ("denoiser", {"depth": "four"}),
        ("denoiser", {"depth": 0}),
        ("denoiser", {"heads": 3}),
        ("denoiser", {"reward_values": 1}),
        ("codec", {"image_size": 33}),
        ("codec", {"encoder_blocks": [1]}),
        ("codec", {"width": None}),
        ("codec", {"width": 2.5}),
    ],
)
def test_a_config_that_makes_no_model_is_named(name: str, change: dict[str, Any], copy: Path) -> None:
    edit_config(copy, lambda config: config[name].update(change))
    with pytest.raises(CheckpointError, match=rf"config\.json: .* makes no {name.title()}Config"):
        LOADERS[name](copy)
    edit_config(copy, lambda config: config.pop(name))
    with pytest.raises(CheckpointError, match=rf"config\.json: None makes no {name.title()}Config"):
        LOADERS[name](copy)


GONE = {"view_heads": 0, "view_points": 0, "view_frames": 304}


def test_options_of_memories_that_are_gone_may_be_there_at_rest(copy: Path, bundle: Path) -> None:
    edit_config(copy, lambda config: config["denoiser"].update(GONE))
    assert load_denoiser(copy).config == load_denoiser(bundle).config
    with pytest.raises(CheckpointError, match="makes no CodecConfig"):
        edit_config(copy, lambda config: config["codec"].update(GONE))
        load_codec(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["denoiser"].update(GONE, view_points=12),
        lambda config: config["denoiser"].update(GONE, view_heads=2),
        lambda config: config.update(spatial={"points": 12}),
        lambda config: config["files"].update(spatial="0" * 64),
    ],
)
def test_a_world_of_an_older_version_says_what_to_do(change: Callable[[dict[str, Any]], Any], copy: Path) -> None:
    edit_config(copy, change)
    for load_world in (load_denoiser, lambda folder: WorldModel.load(folder, device="cpu")):
        with pytest.raises(CheckpointError, match=r"older version.*python -m train\.recipe.*tag study-1") as caught:
            load_world(copy)
        assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("actions"),
        lambda t: t.update(frames=t["frames"].float()),
        lambda t: t.update(frames=t["frames"][..., :2].contiguous()),
        lambda t: t.update(actions=t["actions"][:, :3].contiguous()),
        lambda t: t.update(actions=t["actions"].float()),
        lambda t: t.update(frames=t["frames"][:0], actions=t["actions"][:0]),
    ],
)
def test_openings_that_do_not_fit_are_named(change: Callable[[dict[str, torch.Tensor]], Any], copy: Path) -> None:
    edit_tensors(copy, "openings", change)
    with pytest.raises(CheckpointError, match=r"openings\.safetensors: frames and actions do not fit"):
        load_openings(copy)


def test_nothing_is_written_when_the_disk_is_full(
    tmp_path: Path, make_denoiser: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="disk full while writing .*denoiser.safetensors"):
        save_bundle(tmp_path / "full", denoiser=make_denoiser())
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_bundle_is_replaced_whole_or_not_at_all(
    fails_at: int, tmp_path: Path, make_denoiser: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gets full at the weights, or at the config after them."""
    save_bundle(tmp_path, denoiser=make_denoiser(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="disk full"):
        save_bundle(tmp_path, denoiser=make_denoiser(1), info={"world": "other"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    load_denoiser(tmp_path)


def test_options_of_older_denoisers_are_read_by_their_names_of_then(
    tmp_path: Path, make_denoiser: Callable[..., Denoiser]
) -> None:
    motions = ((0.0, 0.0), (6.0, 0.12)) * 3 + ((0.0, 0.1),)
    save_bundle(tmp_path, denoiser=make_denoiser(displacements=motions))
    config = json.loads((tmp_path / "config.json").read_text())
    given = config["denoiser"]
    given["motions"] = given.pop("displacements")
    for prediction in ("clean", "velocity"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"denoiser": given | {"prediction": prediction}}))
        if prediction == "clean":
            assert load_denoiser(tmp_path).config.displacements == motions
        else:
            with pytest.raises(CheckpointError, match="prediction 'velocity' is gone; the git tag study-1 plays it"):
                load_denoiser(tmp_path)
