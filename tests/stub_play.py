"""Stand-ins for what is played, and keys pressed in an invisible window."""

import time
from typing import Any

import numpy as np

from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS

NAMES = LABMAZE_ACTIONS.names


class StubEnv:
    """Stands for DreamEnv: remembers the actions, draws the seed and the step, ends at step 5."""

    action_set = LABMAZE_ACTIONS
    fps = 100
    num_steps = 2
    memory_frames = 4
    device = "cpu"
    faults: tuple[str, ...] = ()

    def __init__(self, step_s: float = 0.0) -> None:
        self.metadata: dict[str, Any] = {}
        self.actions: list[str] = []
        self.seeds: list[int] = []
        self.memory_used = 0
        self.is_closed = False
        self._step_s = step_s
        self._step = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.seeds.append(seed)
        self._step = self.memory_used = 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self._step_s)
        self._step += 1
        self.memory_used = min(self._step, 4)
        self.actions.append(NAMES[action])
        return self._frame(), 0.5, self._step == 5, self._step == 8, {}

    def close(self) -> None:
        self.is_closed = True

    def _frame(self) -> np.ndarray:
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, :32] = (200, 30 * self.seeds[-1] % 256, self._step % 256)
        return frame


class RewindableEnv(StubEnv):
    """Its frame shows the number of its step and the sum of its actions."""

    fps = 10

    def __init__(self) -> None:
        super().__init__()
        self.sum = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.sum = 0
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.sum += action
        return super().step(action)

    def snapshot(self) -> Any:
        return self._step, self.sum, self.seeds[-1]

    def restore(self, snapshot: Any) -> None:
        self._step, self.sum = snapshot[:2]
        self.seeds.append(snapshot[2])

    def _frame(self) -> np.ndarray:
        frame = super()._frame()
        frame[:, 32:] = (self.sum % 256, self.sum // 256, self._step // 256)
        return frame


def key(name: str, is_down: bool = True) -> None:
    """Press or release a key."""
    import pygame

    kind = pygame.KEYDOWN if is_down else pygame.KEYUP
    pygame.event.post(pygame.event.Event(kind, key=pygame.key.key_code(name)))
