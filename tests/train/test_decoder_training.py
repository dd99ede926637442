"""Training with a memory of pixels, rehearsed: the denoiser, then the decoder, whose two losses keep to themselves."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.data.anchored
from envs.data.episodes import open_shards
from tests.box_room import write_walks
from train.core.machine import Machine
from train.decoder import CLIP_FRAMES, DecoderOptions, keep_pixels, train_decoder
from train.denoiser import DenoiserOptions, train_denoiser
from train.losses.adversary import ANCHORED, DREAMT, PREDICTED, TRUE, AdversaryConfig, DecoderLoss, judge_gate
from train.warps import WarpOptions, prepare
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, load_depth, save_bundle, save_depth
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.folded import NUM_FACTS, NUM_FOLDED, fold
from worldmodel.memory.depth import DepthNet
from worldmodel.world import WorldModel

CPU = Machine(torch.device("cpu"))
QUICK: dict[str, Any] = {"steps": 2, "device": "cpu", "compile": False, "preset": "tiny"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, codec_folder: Path, make_depth: Callable[..., DepthNet]) -> Path:
    """A recording of 64 pixels (`walks`), the prepared one (`warps`), a depth network, a trained denoiser."""
    made = tmp_path_factory.mktemp("pixels")
    write_walks(made / "walks", "train", size=64, num_steps=CLIP_FRAMES)
    save_depth(made / "depth", make_depth(image_size=64))
    words = {"checkpoint": str(codec_folder), "depth": str(made / "depth"), "device": "cpu"}
    prepare(WarpOptions(data=made / "walks", out=made / "warps", **words))
    summary = train_denoiser(denoiser_options(made, codec_folder, made / "denoiser"), CPU)
    assert summary["steps"] == 2
    return made


def denoiser_options(folder: Path, codec: Path, out: Path, **changes: Any) -> DenoiserOptions:
    given = {"batch_size": 2, "clip_frames": 8, "warps": folder / "warps", "odometry": True} | changes
    return DenoiserOptions(data=folder / "walks", out=out, codec=codec, **QUICK, **given)


def decoder_options(folder: Path, out: Path, **changes: Any) -> DecoderOptions:
    given = {"batch_size": 6, "clips": 1, "dreams": 1, "dream_frames": 2, "depth": str(folder / "depth")}
    given |= {"warps": folder / "warps"} | changes
    return DecoderOptions(data=folder / "walks", out=out, checkpoint=folder / "denoiser", **QUICK, **given)


def batch(size: int = 32, kinds: tuple[int, ...] = (TRUE, PREDICTED, DREAMT)) -> dict[str, torch.Tensor]:
    """One example of each kind, the right half of each remembered, and two real pictures."""
    generator, count = torch.Generator().manual_seed(0), len(kinds)
    mask = torch.zeros(count, 1, size, size)
    mask[..., size // 2 :] = 1.0
    pixels = torch.rand(count + 2, 3, size, size, generator=generator) * 2 - 1
    return {
        "latents": torch.randn(count, 4, size // 8, size // 8, generator=generator),
        "truth": pixels[:count],
        "kinds": torch.tensor(kinds),
        "warped": fold(pixels[:count], mask, torch.zeros(count, NUM_FACTS, size, size)),
        "real": pixels[count:],
        "is_coarse_shown": torch.arange(count + 2) % 2 == 0,
        "corner": torch.tensor([3, 0]),
        "jitter": torch.randn(count, 4, size // 8, size // 8, generator=generator),
    }


def gradients(codec: Codec, weight: float, seed: int) -> DecoderLoss:
    """Return the loss after a backward pass; `weight` of the discriminator in the decoder's loss, `seed` of its own."""
    torch.manual_seed(seed)
    loss = DecoderLoss(copy.deepcopy(codec), AdversaryConfig(width=4, adversary_weight=weight)).train()
    value, scalars = loss(**batch())
    assert value.isfinite() and all(part.isfinite() for part in scalars.values())
    value.backward()
    return loss


def test_decoder_and_discriminator_learn_from_their_own_loss_alone(make_codec: Callable[..., Codec]) -> None:
    codec = keep_pixels(make_codec())
    without, given, other = gradients(codec, 0.0, 1), gradients(codec, 1.0, 1), gradients(codec, 0.0, 2)
    judges = [dict(loss.discriminator.named_parameters()) for loss in (without, given, other)]
    for name, part in judges[0].items():
        torch.testing.assert_close(judges[1][name].grad, part.grad)  # the decoder's wish to please does not train it
    assert any(not torch.equal(judges[2][name].grad, part.grad) for name, part in judges[0].items())
    drawn = [{n: p.grad for n, p in loss.codec.named_parameters() if p.grad is not None} for loss in (without, given)]
    theirs = dict(other.codec.named_parameters())
    for name, grad in drawn[0].items():
        torch.testing.assert_close(theirs[name].grad, grad)  # what trains the judge does not train the decoder
    assert any(not torch.allclose(drawn[1][name], grad) for name, grad in drawn[0].items())
    assert all("decoder" in name or name.startswith("keeper.") for name in drawn[1])
    assert all(parameter.grad is None for parameter in given.before.parameters())


def gate_loss(memory: float, drawn: float, kept: float, *, counts: float = 1.0, magnified: float = 0.0) -> float:
    """Return the loss of a gate that keeps so much everywhere; memory and drawing are so far from the truth, gray."""
    picture = torch.zeros(1, 3, 16, 16)
    facts = torch.zeros(1, NUM_FACTS, 2, 2)
    facts[:, 0] = magnified
    share = torch.full((1, 1, 16, 16), kept)
    every = counts * torch.ones_like(share)
    return float(judge_gate(share, picture + memory, picture + drawn, picture, every, facts))


@pytest.mark.parametrize(
    ("memory", "drawn", "is_kept"), [(0.0, 0.5, True), (0.3, 0.3, True), (0.4, 0.3, True), (0.5, 0.3, False)]
)
def test_what_is_remembered_is_kept_unless_it_is_clearly_worse(memory: float, drawn: float, is_kept: bool) -> None:
    much, little = (gate_loss(memory, drawn, kept) for kept in (0.95, 0.05))
    assert (much < little) == is_kept


def test_nothing_says_what_to_keep_of_dreams_or_of_what_is_seen_magnified() -> None:
    assert gate_loss(0.5, 0.0, 0.9) > 0
    assert gate_loss(0.5, 0.0, 0.9, counts=0.0) == gate_loss(0.5, 0.0, 0.9, magnified=1.0) == 0


def gate_gradient(codec: Codec, kinds: tuple[int, ...], **weights: float) -> torch.Tensor:
    """Return the gradient of the gate's bias, after a backward pass over one example of each kind."""
    torch.manual_seed(0)
    loss = DecoderLoss(copy.deepcopy(codec), AdversaryConfig(width=4, **weights)).train()
    loss(**batch(kinds=kinds))[0].backward()
    keeper = loss.codec.keeper
    assert keeper is not None and keeper.gate.bias is not None
    return torch.zeros(4) if keeper.gate.bias.grad is None else keeper.gate.bias.grad


def test_the_gate_learns_from_its_own_loss_alone(make_codec: Callable[..., Codec]) -> None:
    codec = keep_pixels(make_codec())
    for kinds in ((TRUE,), (PREDICTED,), (ANCHORED,)):
        assert gate_gradient(codec, kinds, gate_weight=1.0).any(), kinds
    every = (TRUE, PREDICTED, DREAMT, ANCHORED)
    assert not gate_gradient(codec, (DREAMT, DREAMT), gate_weight=1.0).any()
    assert not gate_gradient(codec, every, gate_weight=0.0, adversary_weight=10.0, low_weight=10.0).any()


def test_a_denoiser_trained_with_warps_loads_and_plays(folder: Path, codec_folder: Path) -> None:
    denoiser = load_denoiser(folder / "denoiser")
    assert denoiser.config.warp_channels == NUM_FOLDED and denoiser.config.displacements
    assert codec_hash(folder / "denoiser") == codec_hash(codec_folder)
    content = json.loads((folder / "denoiser" / "denoiser_training.json").read_text())
    assert (content["recorded_frames"], content["mazes_or_episodes"]) == (2 * (CLIP_FRAMES + 1), 2)


def test_a_decoder_learns_from_no_anchored_shard(folder: Path, tmp_path: Path, codec_folder: Path) -> None:
    words = {"checkpoint": str(codec_folder), "depth": str(folder / "depth"), "device": "cpu"}
    prepare(WarpOptions(data=folder / "walks", out=tmp_path / "warps", anchored=1.0, **words))
    with pytest.raises(DataError, match=r"all shards of .* are anchored.*--anchored 0"):
        train_decoder(decoder_options(folder, tmp_path / "out", warps=tmp_path / "warps"), CPU)


def test_a_decoder_learns_from_what_a_generator_dreamt_along(
    folder: Path, tmp_path: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.data.anchored, "MOST_TRUE", 5)
    write_walks(tmp_path / "walks", "train", size=64, num_steps=CLIP_FRAMES)
    shutil.copy(tmp_path / "walks" / "train-00000.h5", tmp_path / "walks" / "train-00001.h5")
    words = {"checkpoint": str(codec_folder), "depth": str(folder / "depth"), "device": "cpu"}
    prepare(
        WarpOptions(
            data=tmp_path / "walks", out=tmp_path / "warps", anchored=0.5, generator=str(folder / "denoiser"), **words
        )
    )
    given = decoder_options(folder, tmp_path / "out", warps=tmp_path / "warps")
    train_decoder(DecoderOptions(**{**vars(given), "data": tmp_path / "walks"}), CPU)
    content = json.loads((tmp_path / "out" / "decoder_training.json").read_text())
    without_dreams = 2 * (CLIP_FRAMES + 1) + CLIP_FRAMES + 2  # true, predicted, dreamt
    assert without_dreams < content["examples"] <= without_dreams + 2 * CLIP_FRAMES


def test_warps_that_do_not_fit_are_refused(folder: Path, codec_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--warps needs --odometry"):
        train_denoiser(denoiser_options(folder, codec_folder, tmp_path, odometry=False), CPU)


def test_a_decoder_is_rehearsed_and_its_encoder_stays(folder: Path, tmp_path: Path) -> None:
    summary = train_decoder(decoder_options(folder, tmp_path / "decoder"), CPU)
    assert summary["steps"] == 2 and summary["rebuilt"] > 0 and summary["judged"] > 0
    before, after = load_codec(folder / "denoiser"), load_codec(tmp_path / "decoder")
    assert after.config.keeps_pixels and not before.config.keeps_pixels
    assert codec_hash(tmp_path / "decoder") == codec_hash(folder / "denoiser")
    own, new = before.state_dict(), after.state_dict()
    assert any(not torch.equal(part, new[name]) for name, part in own.items() if "decoder" in name)
    content = json.loads((tmp_path / "decoder" / "decoder_training.json").read_text())
    assert content["examples"] == 2 * (CLIP_FRAMES + 1) + CLIP_FRAMES + 2  # true, predicted, dreamt
    save_bundle(tmp_path / "decoder", denoiser=load_denoiser(folder / "denoiser"))
    assert WorldModel.load(tmp_path / "decoder", device="cpu", depth=load_depth(folder / "depth")).pixels is not None


def test_refusals(folder: Path, codec_folder: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 3; got 2"):
        train_decoder(decoder_options(folder, tmp_path, batch_size=2), CPU)
    plain = DecoderOptions(data=folder / "walks", out=tmp_path, checkpoint=bundle, warps=folder / "warps", **QUICK)
    with pytest.raises(CheckpointError, match="has no memory of pixels"):
        train_decoder(plain, CPU)
    other = write_walks(tmp_path / "other", "train", size=64, num_steps=5)
    assert open_shards(other)
    shorter = decoder_options(folder, tmp_path)
    with pytest.raises(DataError, match="has 98 frames, the recording 12"):
        train_decoder(DecoderOptions(**{**vars(shorter), "data": other}), CPU)


@torch.no_grad()
@pytest.mark.parametrize("name", ["low_weight", "tint_weight", "texture_weight", "drawn_weight"])
def test_each_weight_of_the_loss_counts(name: str, make_codec: Callable[..., Codec]) -> None:
    """The latents are jittered, so that what is drawn differs from what was drawn before."""
    found = []
    for weight in (0.0, 1e4):
        torch.manual_seed(0)
        loss = DecoderLoss(make_codec(keeps_pixels=True), AdversaryConfig(width=4, **{name: weight})).train()
        found.append(float(loss(**batch())[1]["rebuilt"]))
    assert found[1] > found[0] + 1e-3
