"""The loop of docs/rl.md: it learns in dreams and is judged in the real world."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "rl.md").read_text()


@pytest.fixture(scope="module")
def loop() -> dict[str, Any]:
    """What the block `loop` of the page defines."""
    [code] = re.findall(r"^```python loop\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/rl.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_loop_learns_in_a_dream(loop: dict[str, Any]) -> None:
    settings = {"device": "cpu", "num_steps": 1, "max_episode_steps": 2}
    agents = [loop["learn"]("envs:Dream/LabMazeReach-v0", updates, 2, 3, **settings) for updates in (0, 1)]
    weights = [torch.cat([weight.flatten() for weight in agent.parameters()]) for agent in agents]
    assert not torch.equal(*weights) and all(part.isfinite().all() for part in weights)


@pytest.mark.slow
def test_the_loop_learns_and_is_judged_in_the_real_world(loop: dict[str, Any]) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("labmaze")
    agent = loop["learn"]("envs:Real/LabMazeReach-v0", 1, 2, 3, split="train")

    class Forward:
        """Walks on: it reaches what is near and straight ahead."""

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[-1e9, 1e9, *[-1e9] * 5, 0.0]]).expand(len(pixels), -1)

    shares = [loop["judge"](who, "envs:Real/LabMazeReach-v0", 4, start="near") for who in (agent, Forward())]
    assert np.isfinite(shares[0]) and 0 < shares[1] <= 1
