"""Many dreams as one vector environment of Gymnasium: one step of the world is a step of all of them.

Owns: autoreset, truncation, masks, snapshots and forks of single dreams, and the border to numpy or torch. Starting is
`envs.starts`', drawing `envs.draws`', dreaming `worldmodel.world`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.draws import DeviceDraws, HostDraws
from envs.dreamer import SEED_LIMIT, DreamTask, check_option, check_seed, load_dreamer, refuse_unknown, to_info_pose
from envs.starts import CONTEXT_SEED, Starts
from envs.worlds.vector import read_mode
from worldmodel.counts import check_whole
from worldmodel.errors import ActionError, ConfigError, DeviceError, SeedError, ShapeError, StateError
from worldmodel.state import Step, WorldState

OUTPUTS, CHANCES = ("numpy", "torch"), ("auto", "host", "device")
OPTIONS = "reset_mask, opening, frames, actions, dream_seed"


@dataclass(frozen=True, eq=False)
class VectorSnapshot:
    """A moment of some dreams, which can be pickled: from `DreamVectorEnv.snapshot`, for `DreamVectorEnv.restore`.

    Attributes:
        rows: which dreams of the vector they were.
        state: the dreams.
        frames: uint8 (n, H, W, 3), what they showed.
        steps: int64 (n,), since their resets.
        is_over: bool (n,), whether they had ended.
        draws: what later resets of them draw from.
        of: what dreams them (`envs.dreamer.Dreamer.identity`).
    """

    rows: tuple[int, ...]
    state: WorldState
    frames: np.ndarray
    steps: np.ndarray
    is_over: np.ndarray
    draws: list[Any]
    of: dict[str, str]


@dataclass
class _Moment:
    """Where B dreams are; tensors on the device.

    Attributes:
        state: the dreams.
        frames: uint8 (B, H, W, 3), what they show.
        steps: int64 (B,), since their resets.
        is_over: bool (B,), whether the last step ended them.
    """

    state: WorldState
    frames: torch.Tensor
    steps: torch.Tensor
    is_over: torch.Tensor


@dataclass(frozen=True)
class _Begun:
    """Dreams that began anew within a step; tensors on the device.

    Attributes:
        is_new: bool (B,), which.
        frames: uint8 (B, H, W, 3), their first frames.
        told: what info says of each beginning, int64 (B,) by name.
    """

    is_new: torch.Tensor
    frames: torch.Tensor
    told: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Start:
    """How one dream begins: from an opening, or from frames given and the actions between them."""

    seed: int
    opening: int | None = None
    context: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class _Info:
    """Info of a vector: values by name, each with a mask of the dreams that have one."""

    found: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any, is_there: torch.Tensor) -> None:
        """Add a value of the dreams where bool (B,) holds; a tensor (B, ...) is 0 elsewhere, a table stays."""
        if isinstance(value, torch.Tensor):
            value = value * is_there.view(-1, *[1] * (value.ndim - 1))
        self.found[name], self.found[f"_{name}"] = value, is_there


class DreamVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Many worlds dreamt by one video-diffusion model: what `gymnasium.make_vec("envs:Dream/...")` makes.

    Spaces, rewards, ends and info of each dream are those of `envs.dream.DreamEnv`; info has the form of Gymnasium's
    vectors, `name` (B, ...) beside `_name`, bool (B,). Every step gives arrays of its own.

    Equal seeds and actions give equal dreams on one machine, in a batch of one size. A dream is what it would be alone
    but for the rounding of larger products: within one level of a pixel for a dozen steps or more; then, as every dream
    drifts away from one that differs in rounding, it may differ. In another order of the same dreams each is
    exactly the same.

    An opening is begun once and kept (two megabytes), so that a new dream of it costs a copy. Therefore the noise on
    its frames is the same for all dreams of it, apart from the chance of each. With `chance="host"` a dream is the one
    of `DreamEnv.reset(seed=..., options={"context_seed": CONTEXT_SEED})`, seeds as Gymnasium counts them.

    Args:
        num_envs: dreams.
        world, checkpoint, device, num_steps, memory_frames, schedule: as `DreamEnv`.
        render_mode: None or "rgb_array".
        max_episode_steps: steps until truncation; None: never. `gymnasium.make_vec` gives the real world's.
        autoreset_mode: NEXT_STEP, SAME_STEP (with `final_obs` and `final_info`) or DISABLED (with
            `options={"reset_mask": ...}`).
        output: "numpy"; or "torch": observations, rewards, ends and info stay on the device.
        chance: "host": noise and openings are drawn on the CPU, as `DreamEnv` draws them; "device": where the network
            computes, so that with output "torch" no step waits for it; "auto": that of the device, on a GPU with
            output "torch", else that of the host.
        validate: whether to look at the values of actions that are tensors on the device, which waits for it; None: on
            a CPU. Those of arrays are always looked at.
        compile: "off", or "wait": compile the step for so many dreams first.
        task: as `DreamEnv`.

    Raises:
        WindowError, CheckpointError, ConfigError, DeviceError: as `DreamEnv`. CompileError: it cannot be compiled.
    """

    def __init__(
        self,
        num_envs: int = 1,
        world: str = "labmaze",
        checkpoint: str | None = None,
        device: str = "auto",
        num_steps: int | None = None,
        memory_frames: int | None = None,
        render_mode: str | None = "rgb_array",
        max_episode_steps: int | None = None,
        schedule: str = "next",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        chance: str = "auto",
        validate: bool | None = None,
        compile: str = "off",
        task: DreamTask | None = None,
    ) -> None:
        self.num_envs = check_whole("num_envs", num_envs, 1)
        for name, value, accepted in (
            ("render_mode", render_mode, (None, "rgb_array")),
            ("output", output, OUTPUTS),
            ("chance", chance, CHANCES),
            ("compile", compile, ("off", "wait")),
        ):
            if value not in accepted:
                raise ConfigError(f"{name} {value!r} is not accepted; use one of {', '.join(map(repr, accepted))}")
        if max_episode_steps is not None:
            max_episode_steps = check_whole("max_episode_steps", max_episode_steps, 1, beside=" or None")
        self.render_mode, self.max_episode_steps, self.output = render_mode, max_episode_steps, output
        self.autoreset_mode = read_mode(autoreset_mode)

        name = world.lower() if checkpoint is None else checkpoint
        self._dreamer = load_dreamer(name, schedule, device, num_steps, memory_frames).prepare(task)
        self._model, self.world, self.action_set = self._dreamer.model, self._dreamer.world, self._dreamer.world.actions
        self._set_spaces()
        self.device, is_gpu = self._model.device, self._model.device.type != "cpu"
        self._on_device = chance == "device" or (chance == "auto" and is_gpu and output == "torch")
        self._validate = not is_gpu if validate is None else validate

        self.draws: HostDraws | DeviceDraws = (
            DeviceDraws(self.num_envs, self._dreamer.num_openings, self.device)
            if self._on_device
            else HostDraws(self.num_envs, self._dreamer.num_openings)
        )
        self.starts = Starts(self._dreamer, self._on_device)
        self._moment: _Moment | None = None
        self._firsts: torch.Tensor | None = None
        if compile == "wait":
            self._model.compile(self.num_envs)

    def _set_spaces(self) -> None:
        size, fps = self._dreamer.frame_size, float(self._model.info.get("fps", self.world.fps))
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.single_action_space = self.action_set.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def num_openings(self) -> int:
        """Openings that a reset can draw from."""
        return self._dreamer.num_openings

    @property
    def num_bytes(self) -> int:
        """Memory that the dreams hold, in bytes, without the kept openings (`starts.num_bytes`); 0 before a reset."""
        parts = {} if self._moment is None else self._moment.state.dream.tensors()
        return sum(part.nbytes for part in parts.values())

    @property  # type: ignore[misc]  # as SyncVectorEnv: nothing sets it
    def np_random(self) -> Any:
        """The generators that resets draw from, one a dream, with chance on the host; else none."""
        return tuple(self.draws.generators) if isinstance(self.draws, HostDraws) else ()

    @property
    def np_random_seed(self) -> Any:
        """The seeds of `np_random`."""
        return tuple(self.draws.seeds) if isinstance(self.draws, HostDraws) else ()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all dreams, or some.

        Args:
            seed: of the first dream, the next one has the next; or one for each, None among them goes on with its
                random stream; None: all go on.
            options: {"reset_mask": bool (B,)} starts only those. "opening" and "dream_seed" as `DreamEnv.reset`, one
                for all or B of them (None: drawn); "frames" and "actions" likewise B of them, which may differ in
                length (None: an opening).

        Returns:
            Frames uint8 (B, H, W, 3), of all dreams, and info of those that started.

        Raises:
            SeedError, ConfigError, ActionError, ShapeError, StateError: as `DreamEnv.reset`; or not one a dream; or a
                mask before the first reset.
        """
        self._require_open("reset")
        options = dict(options or {})
        rows = self._read_mask("reset_mask", options.pop("reset_mask", None))
        seeds = self._read_seeds(seed)
        if self._moment is None and len(rows) < self.num_envs:
            raise StateError("reset with reset_mask was called before the first reset; call reset(seed=...) first")
        given = self._read_options(options)
        for row in rows:
            if (number := seeds[row]) is not None:
                self.draws.reseed(row, number)

        drawn = zip(*self.draws.draw(rows), strict=True)
        starts = [
            self._read_start(opening, drawn_seed, {name: values[row] for name, values in given.items()})
            for row, (opening, drawn_seed) in zip(rows, drawn, strict=True)
        ]
        moment = self._begin(rows, starts)
        return self._give(moment.frames), self._give_info(self._told_of(rows, starts, moment))

    def _told_of(self, rows: list[int], starts: list[_Start], moment: _Moment) -> _Info:
        """Return info of dreams that a reset has started."""
        info, is_new = _Info(), self._mask_of(rows)
        seeds, openings = torch.zeros(2, self.num_envs, dtype=torch.int64).unbind()
        has_opening = torch.zeros(self.num_envs, dtype=torch.bool)
        for row, start in zip(rows, starts, strict=True):
            seeds[row], openings[row] = start.seed, start.opening or 0
            has_opening[row] = start.opening is not None
        info.add("dream_seed", seeds.to(self.device), is_new)
        if has_opening.any():
            info.add("opening", openings.to(self.device), has_opening.to(self.device))
        if self._model.can_reckon:
            info.add("pose", to_info_pose(moment.state.dream.pending_poses[:, -1]), is_new)
        return info

    def _read_options(self, options: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the options of a reset but the mask, one value a dream each; None where there is none."""
        found = {}
        for name in ("opening", "dream_seed", "frames", "actions"):
            value = options.pop(name, None)
            is_many = _is_many(value)
            if not is_many and value is not None and name in ("frames", "actions"):
                raise ShapeError(f"option {name} must have one entry a dream, {self.num_envs}; got {value!r}")
            values = list(value) if is_many else [value] * self.num_envs
            if len(values) != self.num_envs:
                raise ShapeError(f"option {name} must have one entry a dream, {self.num_envs}; got {len(values)}")
            found[name] = values
        refuse_unknown(list(options), OPTIONS)
        return found

    def _read_start(self, opening: int, seed: int, given: dict[str, Any]) -> _Start:
        """Return how a dream begins: as drawn, but for what options of it say."""
        if given["dream_seed"] is not None:
            seed = check_option("dream_seed", given["dream_seed"], SEED_LIMIT)
        if given["frames"] is None and given["actions"] is None:
            chosen = opening if given["opening"] is None else given["opening"]
            return _Start(seed, check_option("opening", chosen, self.num_openings))
        if given["opening"] is not None:
            raise ConfigError("a dream begins from an opening or from frames: give one of them")
        return _Start(seed, None, self._dreamer.check_context(given["frames"], given["actions"]))

    def _begin(self, rows: list[int], starts: list[_Start]) -> _Moment:
        """Begin dreams in place; all of them the first time."""
        groups: dict[int, list[int]] = {}  # by the length of the context, 0 for openings
        for number, start in enumerate(starts):
            groups.setdefault(0 if start.context is None else len(start.context[0]), []).append(number)
        moment = self._moment
        for numbers in groups.values():
            chosen, places = [starts[number] for number in numbers], [rows[number] for number in numbers]
            openings, seeds = [start.opening for start in chosen], [start.seed for start in chosen]
            if openings[0] is None:
                begun = self._begin_given(chosen)
                moment = moment or self._spread_out(begun)
                self._model.put(moment.state, places, begun)
            else:
                known = [opening for opening in openings if opening is not None]
                moment = moment or self._spread_out(self.starts.begin(known[:1], seeds[:1]))
                self.starts.put(moment.state, places, known, seeds)
        assert moment is not None

        frames = torch.stack(
            [
                self._dreamer.frames[start.opening, -1] if start.context is None else torch.tensor(start.context[0][-1])
                for start in starts
            ]
        )
        is_new = self._mask_of(rows)
        shown = moment.frames.clone()
        shown[rows] = frames.to(self.device)
        self._moment = _Moment(
            moment.state, shown, moment.steps.masked_fill(is_new, 0), moment.is_over.masked_fill(is_new, False)
        )
        return self._moment

    def _begin_given(self, starts: list[_Start]) -> WorldState:
        """Return dreams begun from frames given, all of one length."""
        contexts = [start.context for start in starts if start.context is not None]
        frames, actions = (torch.from_numpy(np.stack(parts)) for parts in zip(*contexts, strict=True))
        seeds, apart = [start.seed for start in starts], [CONTEXT_SEED] * len(starts)
        return self._model.reset(frames, actions.long(), seeds, context_seeds=apart, on_device=self._on_device)

    def _spread_out(self, first: WorldState) -> _Moment:
        """Return a moment of `num_envs` dreams, to be replaced, given some."""
        size = self._dreamer.frame_size
        frames = torch.zeros(self.num_envs, size, size, 3, dtype=torch.uint8, device=self.device)
        steps = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        return _Moment(first.select([0]).repeat(self.num_envs), frames, steps, steps.bool())

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Dream one frame of every dream.

        Args:
            actions: integers (B,), an array, or a tensor on the device. Those of dreams that only begin anew, as they
                ended a step before, do not count.

        Returns:
            Frames uint8 (B, H, W, 3), rewards (B,), terminated and truncated bool (B,), and info: that of
            `DreamEnv.step`, and of `DreamEnv.reset` for dreams that began anew. With SAME_STEP "final_obs" and
            "final_info" are of those that ended.

        Raises:
            StateError: reset was not called, the environment is closed; or, with DISABLED and chance on the host, a
                dream that ended was not reset. ActionError: not integers, or outside the action set.
            ShapeError: not one action a dream. DeviceError: a tensor on another device.
        """
        given = self._read_actions(actions)
        moment = self._require("step")
        if self.autoreset_mode == AutoresetMode.DISABLED and not self._on_device and moment.is_over.any():
            over = moment.is_over.nonzero().flatten().tolist()
            raise StateError(f"dreams {over} have ended: reset them first, with options={{'reset_mask': ...}}")

        result = self._dreamer.judge(self._model.step(moment.state, given, check=False))
        steps = moment.steps + 1
        limit = self.max_episode_steps
        truncated = torch.zeros_like(moment.is_over) if limit is None else steps >= limit
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            return self._step_next(moment, result, steps, truncated)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            return self._step_same(moment, result, steps, truncated)
        self._moment = _Moment(moment.state, result.frames, steps, result.terminated | truncated)
        info = self._told_by(result, moment, ~torch.zeros_like(truncated))
        return self._give_step(result.frames, result.rewards, result.terminated, truncated, info)

    def _step_next(self, moment: _Moment, result: Step, steps: torch.Tensor, truncated: torch.Tensor) -> Any:
        """Finish a step in which dreams that were over begin anew instead."""
        was_over = moment.is_over
        begun = self._renew(moment.state, was_over)
        frames, rewards, terminated = result.frames, result.rewards, result.terminated
        info = self._told_by(result, moment, ~was_over)
        if begun is not None:
            frames = _where(was_over, begun.frames, frames)
            rewards, steps = rewards.masked_fill(was_over, 0), steps.masked_fill(was_over, 0)
            terminated, truncated = terminated & ~was_over, truncated & ~was_over
            self._tell_begun(info, begun, moment)
        self._moment = _Moment(moment.state, frames, steps, terminated | truncated)
        return self._give_step(frames, rewards, terminated, truncated, info)

    def _step_same(self, moment: _Moment, result: Step, steps: torch.Tensor, truncated: torch.Tensor) -> Any:
        """Finish a step in which dreams that are over begin anew at once."""
        is_over = result.terminated | truncated
        final = self._told_by(result, moment, is_over)
        info = self._told_by(result, moment, ~is_over)
        begun, frames = self._renew(moment.state, is_over), result.frames
        if begun is not None:
            frames = _where(is_over, begun.frames, frames)
            steps = steps.masked_fill(is_over, 0)
            info.add("final_obs", self._final_frames(result.frames, is_over), is_over)
            info.add("final_info", final.found, is_over)
            self._tell_begun(info, begun, moment)
        self._moment = _Moment(moment.state, frames, steps, torch.zeros_like(is_over))
        return self._give_step(frames, result.rewards, result.terminated, truncated, info)

    def _final_frames(self, frames: torch.Tensor, is_over: torch.Tensor) -> Any:
        """Return the last frames of dreams that ended: Gymnasium has them one by one, with None for the others."""
        if self.output == "torch":
            return frames
        found = np.full(self.num_envs, None, dtype=object)
        for row in is_over.nonzero().flatten().tolist():
            found[row] = frames[row].cpu().numpy().copy()
        return found

    def _renew(self, state: WorldState, is_new: torch.Tensor) -> _Begun | None:
        """Begin dreams anew in place where bool (B,) holds; None where the CPU can tell that there are none."""
        if isinstance(self.draws, DeviceDraws):
            openings, seeds = self.draws.draw_where(is_new)
            self.starts.renew(state, is_new, openings, seeds)
            firsts = self._first_frames().index_select(0, openings)
            return _Begun(is_new, firsts, {"dream_seed": seeds, "opening": openings})
        rows = is_new.nonzero().flatten().tolist()
        if not rows:
            return None
        openings_seeds = self.draws.draw(rows)
        self.starts.put(state, rows, *openings_seeds)
        openings, seeds = torch.zeros(2, self.num_envs, dtype=torch.int64).unbind()
        openings[rows], seeds[rows] = (torch.tensor(values) for values in openings_seeds)
        firsts = self._dreamer.frames[openings, -1].to(self.device)
        return _Begun(is_new, firsts, {"dream_seed": seeds.to(self.device), "opening": openings.to(self.device)})

    def _first_frames(self) -> torch.Tensor:
        """Return the frames that dreams of each opening begin with, uint8 (K, H, W, 3) on the device."""
        if self._firsts is None:
            self._firsts = self._dreamer.frames[:, -1].to(self.device)
        return self._firsts

    def _told_by(self, result: Step, moment: _Moment, is_there: torch.Tensor) -> _Info:
        """Return info of a step of the dreams where bool (B,) holds."""
        info = _Info()
        info.add("reward_probability", result.reward_probability, is_there)
        info.add("end_probability", result.end_probability, is_there)
        if self._model.can_reckon:
            info.add("pose", to_info_pose(moment.state.dream.pending_poses[:, -1]), is_there)
        return info

    def _tell_begun(self, info: _Info, begun: _Begun, moment: _Moment) -> None:
        """Add to info what it says of dreams that began anew within a step."""
        for name, values in begun.told.items():
            info.add(name, values, begun.is_new)
        if self._model.can_reckon:
            info.add("pose", to_info_pose(moment.state.dream.pending_poses[:, -1]), torch.ones_like(begun.is_new))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the present frames, each uint8 (H, W, 3), or None when render_mode is None.

        Raises:
            StateError: reset was not called, or the environment is closed.
        """
        if self.render_mode is None:
            return None
        return tuple(self._require("render").frames.cpu().numpy().copy())

    def snapshot(self, mask: Any = None) -> VectorSnapshot:
        """Return a copy of the dreams where bool (B,) `mask` holds, or of all, for `restore`.

        Raises:
            StateError: reset was not called, or the environment is closed. ShapeError: a mask of another kind.
        """
        moment, rows = self._require("snapshot"), self._read_mask("mask", mask)
        frames, steps, is_over = (
            part[rows].cpu().numpy().copy() for part in (moment.frames, moment.steps, moment.is_over)
        )
        state, draws = moment.state.select(rows), self.draws.keep(rows)
        return VectorSnapshot(tuple(rows), state, frames, steps, is_over, draws, self._dreamer.identity)

    def restore(self, snapshot: VectorSnapshot, rows: Sequence[int] | None = None) -> Any:
        """Go back to a snapshot, which stays usable; return the frames of all dreams.

        Args:
            snapshot: of this environment, or of one alike.
            rows: dreams that become those of the snapshot; None: the ones that it was taken of.

        Raises:
            StateError: it is no snapshot, or of another bundle, memory, schedule, format of numbers or kind of chance;
                or reset was not called, or the environment is closed.
            ShapeError: dreams that do not exist, or not one for each of the snapshot.
        """
        if not isinstance(snapshot, VectorSnapshot):
            raise StateError(f"restore takes what snapshot returned; got {type(snapshot).__name__}")
        self._dreamer.check_snapshot(snapshot.of)
        moment = self._require("restore")
        places = list(snapshot.rows) if rows is None else [check_row(row, self.num_envs) for row in rows]
        if type(moment.state.chance) is not type(snapshot.state.chance):
            raise StateError("this snapshot has its chance elsewhere, host or device: make the environments alike")
        self._model.put(moment.state, places, snapshot.state.to(self.device))
        self.draws.restore(places, snapshot.draws)
        parts = [part.clone() for part in (moment.frames, moment.steps, moment.is_over)]
        for part, kept in zip(parts, (snapshot.frames, snapshot.steps, snapshot.is_over), strict=True):
            part[places] = torch.from_numpy(kept.copy()).to(self.device)
        self._moment = _Moment(moment.state, *parts)
        return self._give(parts[0])

    def fork(self, source: int, targets: Sequence[int], seeds: Sequence[int] | None = None) -> Any:
        """Copy a dream over others; return the frames of all dreams.

        Equal actions dream the copies alike, as their chance is the same; `seeds` give them chance of their own. What
        later resets of the targets draw stays theirs.

        Args:
            source: the dream to copy.
            targets: the dreams that become it.
            seeds: one a target, or None.

        Raises:
            ShapeError: a dream that does not exist, or is named twice; or not one seed a target.
            SeedError: a seed is negative or not a whole number.
            StateError: reset was not called, or the environment is closed.
        """
        moment = self._require("fork")
        source, places = check_row(source, self.num_envs), [check_row(row, self.num_envs) for row in targets]
        copies = moment.state.select([source] * len(places))
        if seeds is not None:
            if len(seeds) != len(places):
                raise ShapeError(f"fork takes one seed a target, {len(places)}; got {len(seeds)}")
            checked = [check_seed(seed) for seed in seeds]
            if None in checked:
                raise SeedError("seeds of a fork must be whole numbers; got None")
            copies.chance = self._model.make_chance([seed for seed in checked if seed is not None], self._on_device)
        self._model.put(moment.state, places, copies)
        parts = [part.clone() for part in (moment.frames, moment.steps, moment.is_over)]
        for part in parts:
            part[places] = part[source].clone()
        self._moment = _Moment(moment.state, *parts)
        return self._give(parts[0])

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the dreams."""
        self._moment = None

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise StateError(f"{call} was called after close; make the environment again")

    def _require(self, call: str) -> _Moment:
        self._require_open(call)
        if self._moment is None:
            raise StateError(f"{call} was called before the first reset; call reset(seed=...) first")
        return self._moment

    def _mask_of(self, rows: list[int]) -> torch.Tensor:
        mask = torch.zeros(self.num_envs, dtype=torch.bool)
        mask[rows] = True
        return mask.to(self.device)

    def _read_mask(self, name: str, mask: Any) -> list[int]:
        """Return the dreams where a mask holds, all without one."""
        if mask is None:
            return list(range(self.num_envs))
        found = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        if found.dtype != np.bool_ or found.shape != (self.num_envs,) or not found.any():
            raise ShapeError(
                f"{name} must be bool ({self.num_envs},), true for at least one dream; got {found.dtype} {found.shape}"
                + (" without a true one" if found.dtype == np.bool_ and found.shape == (self.num_envs,) else "")
            )
        return [int(row) for row in np.flatnonzero(found)]

    def _read_seeds(self, seed: Any) -> list[int | None]:
        """Return a seed a dream."""
        if not _is_many(seed):
            first = check_seed(seed)
            return [None if first is None else first + number for number in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise SeedError(f"seed must be a whole number or one a dream, {self.num_envs}; got {len(seed)}")
        return [check_seed(each) for each in seed]

    def _read_actions(self, actions: Any) -> torch.Tensor:
        """Return actions int64 (B,) on the device."""
        accepted = f"integers ({self.num_envs},) from 0 to {self.action_set.num_actions - 1}"
        is_tensor = isinstance(actions, torch.Tensor)
        given = actions if is_tensor else torch.from_numpy(_read_array(actions, accepted))
        if is_tensor and given.device != self.device:
            raise DeviceError(f"actions are on {given.device}, dreams on {self.device}: move them, or give an array")
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ActionError(f"actions must be {accepted}; got {given.dtype}")
        if tuple(given.shape) != (self.num_envs,):
            raise ShapeError(f"actions must be {accepted}; got shape {tuple(given.shape)}")
        is_checked = self._validate or not is_tensor
        if is_checked and not 0 <= int(given.min()) <= int(given.max()) < self.action_set.num_actions:
            raise ActionError(f"actions must be {accepted}; got {given.tolist()}")
        return given.to(self.device, torch.int64)

    def _give_step(
        self,
        frames: torch.Tensor,
        rewards: torch.Tensor,
        terminated: torch.Tensor,
        truncated: torch.Tensor,
        info: _Info,
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        rewarded = self._give(rewards)
        if self.output == "numpy":
            rewarded = rewarded.astype(np.float64)
        return self._give(frames), rewarded, self._give(terminated), self._give(truncated), self._give_info(info)

    def _give(self, value: torch.Tensor) -> Any:
        """Return a tensor as the caller wants it, and the caller's own."""
        return value.clone() if self.output == "torch" else value.cpu().numpy().copy()

    def _give_info(self, info: _Info) -> dict[str, Any]:
        """Return info as the caller wants it; in arrays only what some dream has."""
        found = {name: self._give_value(value) for name, value in info.found.items()}
        if self.output == "torch":
            return found
        return {name: value for name, value in found.items() if found[f"_{name.removeprefix('_')}"].any()}

    def _give_value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._give_value(part) for name, part in value.items()}
        return self._give(value) if isinstance(value, torch.Tensor) else value


def check_row(row: Any, num_envs: int) -> int:
    """Return the number of a dream.

    Raises:
        ShapeError: there is no such dream.
    """
    try:
        return check_whole("dream", row, 0, num_envs - 1)
    except ConfigError as error:
        raise ShapeError(str(error)) from error


def _is_many(value: Any) -> bool:
    """Whether a value is one a dream, and not one for all."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _read_array(actions: Any, accepted: str) -> np.ndarray:
    """Return actions as an integer array.

    Raises:
        ActionError: they are no integers.
    """
    try:
        found = np.asarray(actions)
    except ValueError as error:
        raise ActionError(f"actions must be {accepted}; got {actions!r}") from error
    if found.dtype.kind not in "iu":
        raise ActionError(f"actions must be {accepted}; got {found.dtype}")
    return found.astype(np.int64)


def _where(mask: torch.Tensor, frames: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.where(mask[:, None, None, None], frames, others)
