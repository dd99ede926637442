"""Prepared recordings: nothing of the future, clips as training takes them, files that stay, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import train.data.anchored
import train.warps
from envs.data.episodes import open_shards, read_episode
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from tests.box_room import see, walk, write_walks
from train.data.anchored import LEAST_KNOWN
from train.data.depth import read_poses
from train.data.prepared import (
    PreparedData,
    drop_memory,
    is_anchored,
    is_dreamt,
    pack_folded,
    unpack_folded,
)
from train.data.remembered import draw_remembered, warp_episode
from train.decoder import keep_pixels
from train.warps import READ_FIELDS, WarpOptions, prepare
from worldmodel.checkpoint import load_codec, load_denoiser, save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.folded import NUM_FACTS, NUM_FOLDED, fold, share_known, unfold
from worldmodel.memory.camera import Camera, complete_poses
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pose import relative_poses

STEPS = 20


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory, make_codec: Callable[..., Codec], make_depth: Callable[..., DepthNet]
) -> Path:
    """The folder of a bundle with codec and depth network."""
    folder = tmp_path_factory.mktemp("parts")
    save_bundle(folder, codec=make_codec(), depth=make_depth())
    return folder


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_walks(tmp_path_factory.mktemp("walks"), "train", num_steps=STEPS)


def options(walks: Path, parts: Path, out: Path, **changes: Any) -> WarpOptions:
    return WarpOptions(data=walks, out=out, checkpoint=str(parts), device="cpu", **changes)


@pytest.fixture(scope="module")
def prepared(walks: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prepared recording of one shard with two walks. Tests only read it."""
    out = tmp_path_factory.mktemp("prepared")
    found = prepare(options(walks, parts, out))
    assert (found["shards"], found["frames"]) == (1, 2 * (STEPS + 1))
    return out


def episode(num_frames: int) -> dict[str, torch.Tensor]:
    """What `warp_episode` takes of a walk, at true depth."""
    _, places = walk(num_frames - 1, 0)
    frames, depth = see(places, 32)
    inverse = depth.reciprocal()[:, ::2, ::2]
    return {"pixels": frames.permute(0, 3, 1, 2), "inverse_depth": inverse, "poses": complete_poses(places)}


@pytest.mark.parametrize("anchored", [0.0, 0.5, 1.0])
def test_a_shard_holds_its_episodes_in_order(
    walks: Path, parts: Path, tmp_path: Path, anchored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [shard for shard in open_shards(walks) if shard.split == "train"][0]
    read = train.warps.read_episode
    cut = iter([5, 3] * len(given.episodes))

    def read_part(*args: Any, **kwargs: Any) -> dict[str, np.ndarray]:  # episodes end early, or late
        arrays, length = read(*args, **kwargs), next(cut)
        return {name: part[: length - (name not in ("frames", "pose"))] for name, part in arrays.items()}

    monkeypatch.setattr(train.warps, "read_episode", read_part)
    made = [tmp_path / name for name in ("a", "b")]
    for out in made:
        cut = iter([5, 3] * len(given.episodes))
        prepare(options(walks, parts, out, anchored=anchored, shards=1))
    files = [next(out.glob("*.safetensors")) for out in made]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert is_anchored(files[0]) == (anchored == 1)  # of half of them, the first is not
    shard = load_file(files[0])
    lengths = ([5, 3] * len(given.episodes))[: len(given.episodes)]
    assert shard["lengths"].tolist() == lengths
    for row, (first, episode) in enumerate(zip(np.cumsum([0, *lengths]), given.episodes, strict=False)):
        arrays = read(episode, fields=("actions", "pose"))
        last = lengths[row] - 1
        assert torch.allclose(shard["poses"][first + last], read_poses(arrays["pose"], "")[last], atol=0.05)
        told = shard["actions"][first : first + lengths[row]]
        assert told[1:].tolist() == arrays["actions"][: lengths[row] - 1].tolist() and told[0] == 0
        assert not shard["mask"][first].any()
        others = [o for o in np.cumsum([0, *lengths])[:-1] if o != first]
        if anchored == 1:  # nobody is shown what another remembers
            assert not any(torch.equal(shard["pixels"][first + 1], shard["pixels"][o + 1]) for o in others)
        # Of those that are not anchored, chance may have hidden all that came before.
        assert anchored < 1 or shard["mask"][first + 1 : first + lengths[row]].any()


@pytest.mark.parametrize("seed", range(6))
def test_no_frame_draws_on_itself_or_later_ones(seed: int) -> None:
    allowed = draw_remembered(300, np.random.default_rng(seed))
    assert allowed.shape == (300, 300) and allowed.dtype == torch.bool
    assert not allowed.triu().any() and allowed.any()
    assert not torch.equal(allowed, torch.ones(300, 300, dtype=torch.bool).tril(-1)), "now more, now less"


def test_a_warp_takes_nothing_from_frames_to_come() -> None:
    given, length, now = episode(12), 12, 7
    allowed = torch.ones(length, length, dtype=torch.bool).tril(-1)
    other = {name: part.clone() for name, part in given.items()}
    other["pixels"][now:] = 255 - other["pixels"][now:]
    other["inverse_depth"][now:] = 0.1
    warped, changed = (
        warp_episode(**parts, allowed=allowed, camera=Camera(70.0), rng=np.random.default_rng(0))
        for parts in (given, other)
    )
    for name, part in warped.items():
        assert torch.equal(part[: now + 1], changed[name][: now + 1]), name
    assert not torch.equal(warped["pixels"][now + 1 :], changed["pixels"][now + 1 :])
    assert not unpack_folded(**{name: part[:1] for name, part in warped.items()}).any(), "nothing came before the first"
    found = unfold(unpack_folded(**warped))
    error = (found.pixels - (given["pixels"].float() / 127.5 - 1)).abs() * found.mask
    assert float(found.mask[2:].mean()) > 0.7 and float(error.sum() / found.mask.sum() / 3) < 0.05


def test_what_is_not_allowed_is_not_used() -> None:
    given, length = episode(10), 10
    allowed = torch.ones(length, length, dtype=torch.bool).tril(-1)
    allowed[6:, 3:] = False  # later frames remember the first three alone
    allowed[8] = False
    other = {name: part.clone() for name, part in given.items()}
    other["pixels"][3:] = 255 - other["pixels"][3:]
    warped, changed = (
        warp_episode(**parts, allowed=allowed, camera=Camera(70.0), rng=np.random.default_rng(0))
        for parts in (given, other)
    )
    for name, part in warped.items():
        assert torch.equal(part[6:], changed[name][6:]), name
    assert not torch.equal(warped["pixels"][4:6], changed["pixels"][4:6])
    assert not warped["mask"][8].any() and warped["mask"][7].any()


def test_folded_pictures_survive_packing() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 1, 32, 32, generator=generator) < 0.5).float()
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    folded = fold(pixels, mask, torch.rand(2, NUM_FACTS, 32, 32, generator=generator))
    packed = pack_folded(folded)
    assert [part.dtype for part in packed] == [torch.uint8, torch.uint8, torch.float16]
    found = unpack_folded(*packed)
    torch.testing.assert_close(found, folded, atol=1 / 127, rtol=1e-3)
    assert torch.equal(unfold(found).mask, mask)


def test_clips_are_what_training_takes(prepared: Path, walks: Path) -> None:
    data = PreparedData(prepared)
    assert (data.num_frames, data.num_episodes) == (2 * (STEPS + 1), 2)
    clips = data.sample_clips(3, 8, torch.Generator().manual_seed(0))
    shapes = {name: (part.dtype, tuple(part.shape)) for name, part in clips.items()}
    assert shapes == {
        "latents": (torch.float32, (3, 8, 4, 4, 4)),
        "shown": (torch.float32, (3, 8, 4, 4, 4)),
        "actions": (torch.int64, (3, 8)),
        "rewards": (torch.float32, (3, 8)),
        "terminated": (torch.bool, (3, 8)),
        "poses": (torch.float32, (3, 8, 5)),
        "warped": (torch.float32, (3, 8, NUM_FOLDED, 4, 4)),
    }
    assert torch.equal(clips["shown"], clips["latents"])  # nobody dreamt along
    assert not clips["poses"][:, 0].any() and clips["poses"][:, 1:, :2].any()
    whole = data.sample_clips(1, STEPS + 1, torch.Generator().manual_seed(0))["actions"][0, 1:]
    recorded = [read_episode(e, fields=READ_FIELDS)["actions"] for e in open_shards(walks)[0].episodes]
    assert any(np.array_equal(whole, actions) for actions in recorded), "the action into each frame"
    with pytest.raises(DataError, match=f"the longest episode has {STEPS + 1}"):
        data.sample_clips(1, STEPS + 2, torch.Generator())


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory, parts: Path, make_denoiser: Callable[..., Denoiser]) -> Path:
    """The folder of a world with a memory of pixels; its codec is that of `parts`, with a decoder that keeps pixels."""
    folder = tmp_path_factory.mktemp("generator")
    denoiser = make_denoiser(displacements=LABMAZE_ACTIONS.displacements, warp_channels=NUM_FOLDED)
    save_bundle(folder, codec=keep_pixels(load_codec(parts)), denoiser=denoiser)
    return folder


def test_clips_of_anchored_dreams_show_what_was_dreamt_where_it_was_remembered(
    walks: Path, parts: Path, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.data.anchored, "MOST_TRUE", 5)
    made = [tmp_path / name for name in ("a", "b")]
    for out in made:
        prepare(options(walks, parts, out, generator=str(generator), anchored=1.0, shards=1))
    files = [next(out.glob("*.safetensors")) for out in made]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert is_dreamt(files[0]) and is_anchored(files[0])
    shard = load_file(files[0])
    assert shard["dreamt"].shape == shard["latents"].shape and shard["dreamt"].isfinite().all()
    is_dream = (shard["dreamt"] != shard["latents"]).flatten(1).any(1).reshape(2, STEPS + 1)
    first = int(is_dream[0].int().argmax())
    assert 0 < first <= STEPS and is_dream[:, first:].all() and not is_dream[:, :first].any()
    clip = PreparedData(made[0]).sample_clips(1, STEPS + 1, torch.Generator().manual_seed(0))
    row = int(torch.equal(clip["latents"][0], shard["latents"][STEPS + 1 :].float()))
    dreamt = shard["dreamt"].float().reshape(2, STEPS + 1, 4, 4, 4)[row]
    is_known = (share_known(clip["warped"][0]) >= LEAST_KNOWN).expand_as(dreamt)
    assert is_known.any() and not is_known.all()
    assert torch.equal(clip["shown"][0], torch.where(is_known, dreamt, clip["latents"][0]))


def test_generators_that_cannot_dream_along_are_refused(
    walks: Path, parts: Path, generator: Path, tmp_path: Path, make_denoiser: Callable[..., Denoiser]
) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    save_bundle(plain, codec=load_codec(parts), denoiser=make_denoiser())
    moved = load_codec(generator)
    moved.latent_mean += 1
    save_bundle(other, codec=moved, denoiser=load_denoiser(generator))
    for folder, message in ((plain, "has no memory of pixels"), (other, "the latents of .*other are not those of")):
        with pytest.raises(CheckpointError, match=message):
            prepare(options(walks, parts, tmp_path / "out", generator=str(folder)))


def test_shards_without_an_episode_of_that_length_are_passed_over(prepared: Path, tmp_path: Path) -> None:
    shard = load_file(prepared / "train-00000.safetensors")
    short = {name: part[:10].clone() for name, part in shard.items()} | {"lengths": torch.tensor([5, 5])}
    save_file(shard, tmp_path / "train-00000.safetensors")
    save_file(short, tmp_path / "train-00001.safetensors")
    data = PreparedData(tmp_path)
    assert data.sample_clips(20, 8, torch.Generator().manual_seed(0))["actions"].shape == (20, 8)


def test_new_files_are_taken_up(prepared: Path, tmp_path: Path) -> None:
    shard = load_file(prepared / "train-00000.safetensors")
    save_file(shard, tmp_path / "train-00000.safetensors")
    data = PreparedData(tmp_path)
    save_file(shard, tmp_path / "train-00001.safetensors")
    save_file(shard, tmp_path / "test-00000.safetensors")
    data.refresh()
    assert data.names == ["train-00000", "train-00001"] and data.num_episodes == 4


def test_what_is_prepared_stays(prepared: Path, walks: Path, parts: Path) -> None:
    before = (prepared / "train-00000.safetensors").read_bytes()
    assert prepare(options(walks, parts, prepared))["shards"] == 0
    assert (prepared / "train-00000.safetensors").read_bytes() == before


def test_damaged_and_foreign_files_are_named(prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "train-00000.safetensors"
    content = (prepared / path.name).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train-00000\.safetensors is damaged.*run train\.warps again"):
        PreparedData(tmp_path)
    shard = load_file(prepared / path.name)
    for change in ({"poses": shard["poses"][1:].clone()}, {"more": shard["poses"].clone()}):
        save_file(shard | change, path)
        with pytest.raises(DataError, match="is damaged"):
            PreparedData(tmp_path)
    save_file(shard | {"facts": shard["facts"][:, 1:].contiguous()}, path)
    with pytest.raises(DataError, match="of another version"):
        PreparedData(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"no prepared shards of split 'train'; run python -m train\.warps"):
        PreparedData(tmp_path)


def test_refusals(walks: Path, parts: Path, tmp_path: Path) -> None:
    bare = write_walks(tmp_path / "bare", "train", num_steps=9, drop=("pose",))
    with pytest.raises(DataError, match="without poses"):
        prepare(options(bare, parts, tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(DataError, match="no 'test' shards"):
        prepare(options(walks, parts, tmp_path / "out", split="test"))
    for change in ({"split": "valid"}, {"shards": 0}, {"anchored": 1.5}, {"seed": -1}):
        with pytest.raises(ConfigError if "seed" not in change else ValueError, match=next(iter(change))):
            options(walks, parts, tmp_path, **change)


@pytest.mark.parametrize("anchored", [0.0, 1.0])
def test_poses_that_are_not_finite_are_refused(
    walks: Path, parts: Path, tmp_path: Path, anchored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = train.warps.read_episode

    def spoil(*args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        arrays = read(*args, **kwargs)
        arrays["pose"][3] = np.nan
        return arrays

    monkeypatch.setattr(train.warps, "read_episode", spoil)
    with pytest.raises(DataError, match=r"train-0.*pose must be finite.*record it again"):
        prepare(options(walks, parts, tmp_path / "out", anchored=anchored))
    assert not list((tmp_path / "out").iterdir())


def test_dropped_memory_is_zero_in_whole_clips_or_spans() -> None:
    warped = torch.ones(400, 60, 1, 1, 1)
    found = drop_memory(warped, 0.2, torch.Generator().manual_seed(0))[:, :, 0, 0, 0]
    assert 0.12 < float((found.sum(1) == 0).float().mean()) < 0.3
    partly = found[(found.sum(1) > 0) & (found.sum(1) < 60)]
    assert 0.15 < len(partly) / 400 < 0.5
    assert int(partly.diff(dim=1).abs().sum(1).max()) <= 2, "one span"
    assert torch.equal(drop_memory(warped, 0.0, torch.Generator().manual_seed(0)), warped)


def test_poses_count_from_the_first() -> None:
    poses = torch.tensor([[1.0, 2.0, 0.0, 0.5 * torch.pi, 0.0], [1.0, 3.0, 0.0, 0.75 * torch.pi, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.25 * torch.pi, 0.0]])
    torch.testing.assert_close(relative_poses(poses), expected, atol=1e-6, rtol=0)
