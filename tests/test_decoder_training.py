"""Training with a memory of pixels, rehearsed: the denoiser, then the decoder, whose two losses keep to themselves."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.episodes import open_shards
from tests.box_room import write_walks
from train.adversary import DREAMT, PREDICTED, TRUE, AdversaryConfig, DecoderLoss
from train.decoder import CLIP_FRAMES, DecoderOptions, keep_pixels, train_decoder
from train.denoiser import DenoiserOptions, train_denoiser
from train.loop import Machine
from train.warps import WarpOptions, prepare
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, save_bundle, save_depth
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.folded import NUM_FACTS, NUM_FOLDED, fold
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
    given = {"batch_size": 6, "clips": 1, "dreams": 1, "dream_frames": 2, "depth": str(folder / "depth")} | changes
    return DecoderOptions(
        data=folder / "walks", out=out, checkpoint=folder / "denoiser", warps=folder / "warps", **QUICK, **given
    )


def batch(size: int = 32) -> dict[str, torch.Tensor]:
    """One example of each kind, the right half of each remembered."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(3, 1, size, size)
    mask[..., size // 2 :] = 1.0
    pixels = torch.rand(5, 3, size, size, generator=generator) * 2 - 1
    return {
        "latents": torch.randn(3, 4, size // 8, size // 8, generator=generator),
        "truth": pixels[:3],
        "kinds": torch.tensor([TRUE, PREDICTED, DREAMT]),
        "warped": fold(pixels[:3], mask, torch.zeros(3, NUM_FACTS, size, size)),
        "real": pixels[3:],
        "is_coarse_shown": torch.tensor([True, False, True, False, True]),
        "corner": torch.tensor([3, 0]),
        "jitter": torch.randn(3, 4, size // 8, size // 8, generator=generator),
    }


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_decoder_and_discriminator_learn_from_their_own_loss_alone(make_codec: Callable[..., Codec]) -> None:
    torch.manual_seed(0)
    codec = keep_pixels(make_codec())
    found = {}
    for weight in (0.0, 1.0):  # of the discriminator in the decoder's loss
        torch.manual_seed(1)
        loss = DecoderLoss(copy.deepcopy(codec), AdversaryConfig(width=4, adversary_weight=weight)).train()
        value, scalars = loss(**batch())
        assert value.isfinite() and all(part.isfinite() for part in scalars.values())
        value.backward()
        found[weight] = loss
    without, given = found[0.0], found[1.0]
    judges = [gradients(loss.discriminator) for loss in (without, given)]
    assert judges[0].keys() == dict(without.discriminator.named_parameters()).keys()
    for name, part in judges[0].items():
        torch.testing.assert_close(judges[1][name], part)  # the decoder's wish to please does not train the judge
    drawn = [gradients(loss.codec) for loss in (without, given)]
    assert any(not torch.allclose(drawn[1][name], part) for name, part in drawn[0].items())
    assert all("decoder" in name or name.startswith("keeper.") for name in drawn[1])
    assert not gradients(given.before)


def test_the_judge_does_not_train_the_decoder(make_codec: Callable[..., Codec]) -> None:
    loss = DecoderLoss(keep_pixels(make_codec()), AdversaryConfig(width=4))
    made = torch.rand(3, 3, 32, 32, requires_grad=True)
    given = batch()
    rest = given["is_coarse_shown"], given["corner"], torch.ones(3)
    adversary, judged = loss._judge(made, torch.cat([made.detach(), given["real"]]), given["real"], *rest)
    assert torch.autograd.grad(judged, made, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(adversary, made, retain_graph=True)[0].any()
    judges = list(loss.discriminator.parameters())
    assert all(part is None for part in torch.autograd.grad(adversary, judges, allow_unused=True))


def test_a_denoiser_trained_with_warps_loads_and_plays(folder: Path, codec_folder: Path) -> None:
    denoiser = load_denoiser(folder / "denoiser")
    assert denoiser.config.warp_channels == NUM_FOLDED and denoiser.config.motions
    assert codec_hash(folder / "denoiser") == codec_hash(codec_folder)
    content = json.loads((folder / "denoiser" / "denoiser_training.json").read_text())
    assert (content["recorded_frames"], content["mazes_or_episodes"]) == (2 * (CLIP_FRAMES + 1), 2)


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
    assert WorldModel.load(tmp_path / "decoder", device="cpu", depth=make_like(folder)).pixels is not None


def make_like(folder: Path) -> DepthNet:
    from worldmodel.checkpoint import load_depth

    return load_depth(folder / "depth")


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
