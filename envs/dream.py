"""The dream as a Gymnasium environment: the spaces of the real world, frames made by diffusion.

Owns: openings drawn by seed, seeds, truncation, and numpy at the border. The dreaming is `worldmodel.world`'s.
"""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.compile_clock import CompileClock
from envs.dreamer import (
    SEED_LIMIT,
    DreamTask,
    check_option,
    check_seed,
    draw_opening,
    load_dreamer,
    refuse_unknown,
    to_info_pose,
)
from worldmodel.counts import check_whole
from worldmodel.errors import CheckpointError, ConfigError, StateError

if TYPE_CHECKING:
    import torch

    from worldmodel.compiled import BackgroundCompiler
    from worldmodel.state import Step, WorldState

COMPILE_MODES = ("off", "wait", "background")


@dataclass(frozen=True, eq=False)
class DreamSnapshot:
    """A moment of a dream, which can be pickled: from `DreamEnv.snapshot`, for `DreamEnv.restore`.

    Attributes:
        state: the dream.
        frame: uint8 (H, W, 3), what was shown.
        steps: steps since the reset.
        of: what dreams it (`envs.dreamer.Dreamer.identity`).
        np_random: state of the generator that later resets draw from; None: it is left as it is.
    """

    state: "WorldState"
    frame: np.ndarray
    steps: int
    of: dict[str, str]
    np_random: dict[str, Any] | None = None


def _fixed_layout(state: "WorldState") -> list[tuple[str, tuple[int, ...], Any]]:
    """Return name, shape and format of a dream's tensors, but for the shapes of `pending`, which grow at first."""
    return [(name, () if name.startswith("pending") else shape, kind) for name, shape, kind in state.dream.layout]


class DreamEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A world dreamt by a video-diffusion model.

    | what | value |
    |---|---|
    | observation | `Box(0, 255, (H, W, 3), uint8)`, as in the real world |
    | action | `Discrete(n)`, as in the real world: `action_set.names` |
    | time | the steps a second of the world |
    | start | a real opening of the bundle, drawn by the seed; the first observation is its last frame |
    | reward | what the reward head says of the step |
    | terminated | what the termination head says; the dream can be stepped on |
    | truncated | after `max_episode_steps` |

    Equal seeds and actions give equal frames on one machine.

    Args:
        world: name of a bundle in the package, used when `checkpoint` is None.
        checkpoint: folder or name of a bundle.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        num_steps: denoising steps a frame; None: what the schedule says, else what the world was released with.
        memory_frames: past frames remembered; None: what the world was trained with.
        render_mode: None or "rgb_array".
        max_episode_steps: steps until truncation; None: never.
        schedule: as `worldmodel.windows.parse_schedule` reads it: next, fifo:W, rolling:W:SUBSTEPS, FILE.json. One that
            looks ahead answers `input_lag` frames later; the frames before follow action 0.
        compile: "off"; "wait": compile the step before the first dream, two minutes the first time, and kept for later
            ones; "background": play on uncompiled meanwhile. Compiled frames differ from uncompiled ones in rounding.
        task: what dreams are for (`envs.tasks`): chooses the openings, and may end dreams at a reward.

    Raises:
        WindowError: the schedule is not understood, breaks a requirement, or makes more than one frame a step.
        CheckpointError: no such bundle, or it is damaged or incomplete.
        ConfigError: a setting is not accepted. DeviceError: no such device.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        world: str = "labmaze",
        checkpoint: str | None = None,
        device: str = "auto",
        num_steps: int | None = None,
        memory_frames: int | None = None,
        render_mode: str | None = "rgb_array",
        max_episode_steps: int | None = None,
        schedule: str = "next",
        compile: str = "off",
        task: DreamTask | None = None,
    ) -> None:
        if compile not in COMPILE_MODES:
            raise ConfigError(f"compile {compile!r} is not accepted; use one of {', '.join(COMPILE_MODES)}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"render_mode {render_mode!r} is not accepted; use None or 'rgb_array'")
        if max_episode_steps is not None:
            max_episode_steps = check_whole("max_episode_steps", max_episode_steps, 1, beside=" or None")
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps

        name = world.lower() if checkpoint is None else checkpoint
        self._dreamer = load_dreamer(name, schedule, device, num_steps, memory_frames).prepare(task)
        self._model, self.world = self._dreamer.model, self._dreamer.world
        self.action_set = self.world.actions
        self.metadata = {**self.metadata, "render_fps": self.fps}
        self.action_space = self.action_set.space
        size = self.frame_size = self._dreamer.frame_size
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)

        self._state: WorldState | None = None
        self._frame: np.ndarray | None = None
        self._context: tuple[np.ndarray, np.ndarray] | None = None
        self._steps = 0
        self._is_closed = False
        self._compiler: BackgroundCompiler | None = None
        self._compile_clock: CompileClock | None = None
        if compile != "off":
            self.compile(wait=compile == "wait")

    def compile(
        self, *, wait: bool, cached_only: bool = False, on_wait: Callable[[CompileClock], object] = lambda clock: None
    ) -> None:
        """Compile the step, see the argument `compile`; with `cached_only` take one that was compiled before, or none.

        Args:
            wait: return when it is done.
            cached_only: compile nothing.
            on_wait: with `wait`, told a few times a second how far it is; what it raises ends compiling.

        Raises:
            CompileError: with `wait`, if it cannot be compiled here.
        """
        from worldmodel.compiled import cache_folder

        clock = CompileClock(cache_folder())
        waits = 0

        def count() -> None:
            nonlocal waits
            waits += 1
            on_wait(clock)

        def keep_time() -> None:
            if compiler.wait():
                clock.finish()

        self._compiler = compiler = self._model.compile(wait=wait, cached_only=cached_only, on_wait=count)
        if waits:  # else it was compiled before
            clock.finish()
        elif not compiler.is_over:
            self._compile_clock = clock
            threading.Thread(target=keep_time, name="compile clock", daemon=True).start()

    def tune_threads(self, rounds: int = 5) -> int:
        """Time a few steps with one, two, four ... CPU threads; keep the fastest for torch in this process.

        Returns:
            the number of threads.
        """
        from worldmodel.devices import tune_threads

        if self.device.type != "cpu":
            return 0
        state = self._begin_shortest()
        import torch

        action = torch.zeros(1, dtype=torch.int64)
        return tune_threads(lambda: self._model.step(state, action), rounds)

    @property
    def is_compiled(self) -> bool:
        """Whether steps run compiled now."""
        return self._model.compiled is not None

    @property
    def compile_note(self) -> str:
        """Why steps do not run compiled, once that is known; else ""."""
        return "" if self._compiler is None else self._compiler.note

    @property
    def compile_progress(self) -> str | None:
        """How far compiling in the background is, in words; None when it is over, or there is none."""
        is_compiling = self._compiler is not None and not self._compiler.is_over
        return self._compile_clock.describe() if is_compiling and self._compile_clock is not None else None

    @property
    def engine(self) -> str:
        """How steps run now, for the eyes of a player: compiled, uncompiled and why, or being compiled."""
        if self.is_compiled:
            return "compiled"
        if self._compiler is None:
            return "uncompiled"
        return f"uncompiled: {self.compile_note}" if self._compiler.is_over else "uncompiled, compiling"

    def close(self) -> None:
        """End what still runs in the background; the dream is over. Calling it again does nothing."""
        self._is_closed = True
        if self._compiler is not None:
            self._compiler.stop()

    @property
    def faults(self) -> tuple[str, ...]:
        """What its own report has against the world, a sentence each; empty for a good one."""
        return tuple(self._model.info.get("faults", ()))

    @property
    def fps(self) -> float:
        """Steps a second of world time."""
        return float(self._model.info.get("fps", self.world.fps))

    @property
    def num_steps(self) -> int:
        """Denoising steps a frame."""
        return self._model.config.num_steps

    @property
    def input_lag(self) -> int:
        """Frames shown before the one that answers an action; 0 for next-frame play."""
        return self._model.window.input_lag

    @property
    def memory_frames(self) -> int:
        """Past frames that can be remembered."""
        return self._model.memory_frames

    @property
    def memory_used(self) -> int:
        """Past frames remembered now."""
        return 0 if self._state is None else self._model.memory_used(self._state)[0]

    @property
    def device(self) -> Any:
        """The torch.device of the model."""
        return self._model.device

    @property
    def identity(self) -> dict[str, Any]:
        """What dreams here: name and hash of the weights, and the settings that its frames depend on."""
        import torch

        of = self._dreamer
        settings = {"num_steps": self.num_steps, "memory_frames": self.memory_frames, "schedule": of.schedule}
        settings |= {"dtype": of.identity["dtype"], "device": str(self.device), "threads": torch.get_num_threads()}
        return {"checkpoint": of.name, "checkpoint_hash": of.identity["weights"], "settings": settings}

    @property
    def num_openings(self) -> int:
        """Openings that a reset can draw from."""
        return self._dreamer.num_openings

    @property
    def opening_frames(self) -> int:
        """Frames that an opening gives a dream."""
        return int(self._dreamer.frames.shape[1])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a dream from an opening, or from frames given.

        Args:
            seed: non-negative; None goes on with the random stream.
            options: {"opening": int} chooses the opening instead of drawing it; or {"frames": uint8 (T, H, W, 3),
                "actions": integers (T - 1,)} gives the frames to dream on from and the actions between them. Either
                may say {"dream_seed": int}, the seed of the dream's chance, instead of drawing it; and
                {"context_seed": int}, that of the noise on the frames given, where it is to be apart from the dream's
                (`envs.vector.CONTEXT_SEED` gives the dream that a vector of dreams has).

        Returns:
            Frame uint8 (H, W, 3), the last one given, and info: int64 "opening" (not for frames given) and
            "dream_seed", and "pose" as `step`.

        Raises:
            SeedError: the seed is negative or not an integer. ConfigError: an option is unknown or out of range.
            ShapeError: frames or actions of another size. ActionError: an action that does not exist.
            StateError: the environment is closed.
        """
        self._require_open("reset")
        super().reset(seed=check_seed(seed))
        options = dict(options or {})
        drawn, drawn_seed = draw_opening(self.np_random, self.num_openings)
        dream_seed = check_option("dream_seed", options.pop("dream_seed", drawn_seed), SEED_LIMIT)
        apart = options.pop("context_seed", None)
        context_seeds = None if apart is None else [check_option("context_seed", apart, SEED_LIMIT)]
        info: dict[str, Any] = {"dream_seed": np.int64(dream_seed)}
        if "frames" in options or "actions" in options:
            context = self._dreamer.check_context(options.pop("frames", None), options.pop("actions", None))
        else:
            index = check_option("opening", options.pop("opening", drawn), self.num_openings)
            info["opening"] = np.int64(index)
            context = self._dreamer.frames[index].numpy(), self._dreamer.actions[index].numpy()
        refuse_unknown(list(options), "opening, frames, actions, dream_seed, context_seed")

        import torch

        frames, actions = (torch.from_numpy(np.array(part)[None]) for part in context)
        self._state = self._model.reset(frames, actions.long(), [dream_seed], context_seeds=context_seeds)
        self._context = context
        self._frame = frames[0, -1].numpy().copy()
        self._steps = 0
        return self._frame.copy(), info | self._pose_info()

    def _pose_info(self) -> dict[str, Any]:
        """Return what info says of the pose, where the world reckons."""
        if self._state is None or not self._model.can_reckon:
            return {}
        return {"pose": to_info_pose(self._state.dream.pending_poses[0, -1]).cpu().numpy().copy()}

    def _require_open(self, call: str) -> None:
        if self._is_closed:
            raise StateError(f"{call} was called after close; make the environment again")

    def _begin_shortest(self) -> "WorldState":
        """Return a dream of the end of an opening, for trying."""
        shortest = self._dreamer.frames[:1, -2:], self._dreamer.actions[:1, -1:].long()
        return self._model.reset(*shortest, [0])

    @property
    def context(self) -> tuple[np.ndarray, np.ndarray]:
        """What the dream was begun from: frames uint8 (T, H, W, 3), the actions between them uint8 (T - 1,).

        Raises:
            StateError: reset was not called.
        """
        if self._context is None:
            raise StateError("context was asked for before the first reset; call reset(seed=...) first")
        return self._context

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Dream one frame.

        Args:
            action: index into `action_set.names`.

        Returns:
            Frame uint8 (H, W, 3), reward, terminated, truncated, info: float32 "reward_probability", that of any reward
            other than zero, and "end_probability"; where the world reckons (`WorldModel.can_reckon`) "pose", float32
            (3,): x, y in cells, heading in degrees from 0 to below 360, counted from where the dream began.

        Raises:
            StateError: reset was not called, or the environment is closed.
            ActionError: not an integer, or out of range.
        """
        import torch

        index = self.action_set.check(action)
        self._require_open("step")
        if self._state is None:
            raise StateError("step was called before the first reset; call reset(seed=...) first")
        result = self._dreamer.judge(self._advance(self._state, torch.tensor([index])))
        self._frame = result.frames[0].cpu().numpy().copy()
        self._steps += 1
        truncated = self.max_episode_steps is not None and self._steps >= self.max_episode_steps
        info: dict[str, Any] = {
            "reward_probability": np.float32(result.reward_probability[0].item()),
            "end_probability": np.float32(result.end_probability[0].item()),
        }
        info |= self._pose_info()
        return self._frame.copy(), float(result.rewards[0]), bool(result.terminated[0]), truncated, info

    def _advance(self, state: "WorldState", actions: "torch.Tensor") -> "Step":
        """Take one step of the world in place; where a class derived from this one can watch it."""
        return self._model.step(state, actions)

    def render(self) -> np.ndarray | None:
        """Return the present frame, uint8 (H, W, 3), or None when render_mode is None.

        Raises:
            StateError: reset was not called, or the environment is closed.
        """
        self._require_open("render")
        if self.render_mode is None:
            return None
        if self._frame is None:
            raise StateError("render was called before the first reset; call reset(seed=...) first")
        return self._frame.copy()

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """Return key bindings for `gymnasium.utils.play.play`."""
        return self.action_set.keys_to_action

    def snapshot(self) -> DreamSnapshot:
        """Return a copy of the dream's state, for `restore`.

        The generator that later resets draw from goes with it. The step count does too, and so does the truncation
        after this class' own `max_episode_steps`; that of `gymnasium.make(..., max_episode_steps=N)` is counted by a
        wrapper, which goes on counting.

        Raises:
            StateError: reset was not called, or the environment is closed.
        """
        self._require_open("snapshot")
        if self._state is None or self._frame is None:
            raise StateError("snapshot was called before the first reset; call reset(seed=...) first")
        chance = dict(copy.deepcopy(self.np_random.bit_generator.state))
        return DreamSnapshot(self._state.clone(), self._frame.copy(), self._steps, self._dreamer.identity, chance)

    @property
    def pose(self) -> np.ndarray | None:
        """Where the dream takes itself to be, float32 (5,): x, y, z in cells, yaw and pitch in degrees.

        None before the first reset, and for worlds that do not reckon.
        """
        if self._state is None or not self._model.can_reckon:
            return None
        pose = self._state.dream.pending_poses[0, -1].cpu().numpy().copy()
        pose[3:] = np.degrees(pose[3:])
        return np.asarray(pose, np.float32)

    def pack_state(self) -> bytes:
        """Return the dream as it is now, for `worldmodel.state.WorldState.from_bytes`.

        Raises:
            StateError: reset was not called.
        """
        return self.snapshot().state.to_bytes()

    def unpack_state(self, content: bytes, frame: np.ndarray) -> np.ndarray:
        """Go to a dream of which `pack_state` made these bytes, in an environment alike; return its frame.

        Args:
            content: of `pack_state`.
            frame: uint8 (H, W, 3), what it showed.

        Raises:
            CheckpointError: the bytes are damaged, or of a dream with other weights or another memory or schedule.
        """
        from worldmodel.state import WorldState

        state = WorldState.from_bytes(content, str(self.device))
        mine, theirs = (_fixed_layout(s) for s in (self._begin_shortest(), state))
        if mine != theirs:
            raise CheckpointError(
                "this dream has other tensors than those dreamt here: take the weights, the memory and the schedule "
                "that it was dreamt with"
            )
        self._state, self._frame, self._steps = state, frame.copy(), 0
        return self._frame.copy()

    def restore(self, snapshot: DreamSnapshot) -> np.ndarray:
        """Go back to a snapshot, or across to that of an environment alike; return its frame uint8 (H, W, 3).

        The snapshot stays usable, and what is drawn by later resets is drawn again. Denoising steps, compiling and
        device may differ.

        Raises:
            StateError: the environment is closed; or it is no snapshot, or of another bundle, memory, schedule or
                format of numbers.
        """
        if not isinstance(snapshot, DreamSnapshot):
            raise StateError(f"restore takes what snapshot returned; got {type(snapshot).__name__}")
        self._require_open("restore")
        self._dreamer.check_snapshot(snapshot.of)
        self._state, self._steps = snapshot.state.to(self.device), snapshot.steps
        self._frame = snapshot.frame.copy()
        if snapshot.np_random is not None:
            self.np_random.bit_generator.state = copy.deepcopy(snapshot.np_random)
        return self._frame.copy()
