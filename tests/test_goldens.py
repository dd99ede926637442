"""What the shipped world did before the code was cut anew: frames of a dream, losses, and the keys of a report.

Owns: `goldens.npz` beside it, and how it was made (`python -m tests.test_goldens` writes it again: only where a change
of what is dreamt is wanted). Digits differ from processor to processor, so frames are compared by their 8 x 8 means.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.test_evaluate import PLAN, record
from train.evaluate import evaluate_world
from worldmodel.checkpoint import load_openings
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_noise
from worldmodel.presets import get_preset
from worldmodel.world import WorldModel

FILE = Path(__file__).with_suffix("").with_name("goldens.npz")
OPENING, CONTEXT = 3, 24
ACTIONS = (
    [3] * 16 + [1] * 12 + [4] * 20 + [5] * 8 + [2] * 4 + [0] * 4
)  # around, ahead, back around, aslant, back, still
WHOLE_FRAMES = [0, 15, 31, 63]
OBJECTIVES = {
    "plain": ObjectiveConfig(blackout_share=0.5),
    "own": ObjectiveConfig(own_share=0.5),
}


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return load_world()


def load_world() -> WorldModel:
    """Return the shipped world in the number format that all processors share."""
    return WorldModel.load("labmaze", device="cpu", dtype=torch.float32)


def dream(world: WorldModel) -> np.ndarray:
    """Return 64 dreamt frames, uint8 (64, H, W, 3)."""
    openings = load_openings("labmaze")
    frames = openings["frames"][OPENING : OPENING + 1, :CONTEXT]
    actions = openings["actions"][OPENING : OPENING + 1, : CONTEXT - 1].long()
    state = world.reset(frames, actions, [5])
    return np.concatenate([world.step(state, torch.tensor([action])).frames.numpy() for action in ACTIONS])


def shrink(frames: np.ndarray) -> np.ndarray:
    """Return the means of 8 x 8 pixels, uint8 (T, H / 8, W / 8, 3)."""
    length, height, width, _ = frames.shape
    means = frames.reshape(length, height // 8, 8, width // 8, 8, 3).mean((2, 4))
    return means.round().astype(np.uint8)


def losses(world: WorldModel) -> dict[str, float]:
    """Return the loss of the shipped denoiser over two clips of 16 real frames, by objective, with fixed chance."""
    openings = load_openings("labmaze")
    latents = world.encode(openings["frames"][:2, :16]).clone()
    none = torch.full((2, 1), world.num_actions)
    actions = torch.cat([none, openings["actions"][:2, :15].long()], 1)
    given = {"latents": latents, "actions": actions, "rewards": (actions == 1).float(), "terminated": actions == 2}
    found = {}
    for name, config in OBJECTIVES.items():
        chance = sample_noise(config, latents.shape, torch.Generator().manual_seed(0))
        loss_of = DenoiserLoss(world.denoiser, config, chunk=8)
        with torch.no_grad():
            found[name] = float(loss_of(**given, **chance)[0])
    return found


def report_keys(folder: Path) -> list[str]:
    """Return the paths of all keys in the report of an untrained world."""
    preset = get_preset("tiny")
    torch.manual_seed(0)
    model = WorldModel(Codec(preset.codec), Denoiser(preset.denoiser), device="cpu", num_steps=1, dtype=torch.float32)
    return sorted(walk(evaluate_world(model, folder / "out", PLAN, data=record(folder / "toy"), batch_size=4)))


def walk(found: Any, path: str = "") -> Iterator[str]:
    """Name what a table holds, tables within it too."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from walk(value, f"{path}/{key}")
    else:
        yield path


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(FILE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.slow
def test_the_shipped_world_dreams_what_it_dreamt(world: WorldModel, golden: dict[str, np.ndarray]) -> None:
    frames = dream(world)
    apart = np.abs(shrink(frames).astype(int) - golden["thumbnails"])
    assert apart.max() <= 4 and apart.mean() < 0.1
    for frame, expected in zip(frames[WHOLE_FRAMES], golden["frames"], strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 0.5


def test_the_loss_is_what_it_was(world: WorldModel, golden: dict[str, np.ndarray]) -> None:
    for name, loss in losses(world).items():
        assert loss == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-4)


@pytest.mark.slow
def test_the_report_has_the_keys_it_had(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Where a key moves, docs/results.md says where to, and the goldens are written again."""
    assert report_keys(tmp_path) == golden["report_keys"].tolist()


def main() -> None:
    """Write the file again."""
    import tempfile

    world = load_world()
    frames = dream(world)
    with tempfile.TemporaryDirectory() as folder:
        keys = report_keys(Path(folder))
    found = {f"loss_{name}": np.float64(loss) for name, loss in losses(world).items()}
    np.savez_compressed(
        FILE, thumbnails=shrink(frames), frames=frames[WHOLE_FRAMES], report_keys=np.array(keys), **found
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
