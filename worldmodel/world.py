"""The world: reset and step a batch of dreams, frames out; or a whole rollout of any schedule.

Owns the one entry that the single env, the vector env and the player share. Knows no game and no screen.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldmodel.chance import Chance, DeviceChance, HostChance
from worldmodel.checkpoint import has_part, load_codec, load_denoiser, load_depth, load_info, resolve
from worldmodel.codec import Codec
from worldmodel.compiled import BackgroundCompiler, CompiledStep
from worldmodel.counts import check_whole
from worldmodel.denoiser import Denoiser
from worldmodel.devices import has_fast_bfloat16, pick_device
from worldmodel.errors import ActionError, CheckpointError, CompileError, ConfigError, ShapeError, WindowError
from worldmodel.frames import to_frames, to_pixels
from worldmodel.imagination import Imagined, Policy, Shown, play
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pixels import PixelMemory, PixelState
from worldmodel.odometry import POSE_SIZE
from worldmodel.reward_rule import HeadCalibration, RewardRule
from worldmodel.rewards import RewardLog, settle
from worldmodel.sampler import Sampler, SamplerConfig, Sight
from worldmodel.state import DreamState, Step, WorldState
from worldmodel.step import Stepper
from worldmodel.windows import Window, next_frame_window

DEFAULT_STEPS, DEFAULT_SHIFT = 2, 2.33  # two steps that meet at level .7: nearly as sharp as 4 equal ones (dev/LOG.md)
WAIT_S = 0.2  # between two looks at whether compiling is over
CODEC_PART = 64  # frames the codec takes at once: what stays in a CPU's cache is 1.6 times faster


class WorldModel:
    """Codec, denoiser and sampler together: actions in, frames out."""

    def __init__(
        self,
        codec: Codec,
        denoiser: Denoiser,
        *,
        device: str | torch.device = "auto",
        num_steps: int | None = None,
        num_init_steps: int | None = None,
        memory_frames: int | None = None,
        context_level: float | None = None,
        level_shift: float | None = None,
        window: Window | None = None,
        info: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        depth: DepthNet | None = None,
    ) -> None:
        """Put a world together.

        Args:
            codec: trained codec.
            denoiser: trained denoiser of the codec's latents.
            device: where to compute.
            num_steps: denoising steps in an auto-regressive step; default what `info` says, else 2.
            num_init_steps: denoising steps that fill a window with frames in flight; default that of `SamplerConfig`.
            memory_frames: frames remembered through their summaries; default what the denoiser was trained with.
            context_level: noise on remembered frames; default what `info` says, else 0.05.
            level_shift: where denoising spends its steps (`SamplerConfig`); default what `info` says, else 2.33.
            window: schedule; default next-frame. A step makes one frame, so the stride must be 1.
            info: what the bundle says of its world.
            dtype: number format of the networks; default bfloat16 where the device is fast at it, else float32.
            depth: trained depth network; a denoiser that takes warped pictures needs it, others do not use it.

        Raises:
            ShapeError: codec and denoiser do not fit. DeviceError: no such device. ConfigError: a bad setting.
            WindowError: the window completes more than one frame a step; `rollout` takes such windows.
        """
        if (codec.config.latent_channels, codec.config.latent_size) != (
            denoiser.config.latent_channels,
            denoiser.config.latent_size,
        ):
            raise ShapeError(f"codec {codec.config} and denoiser {denoiser.config} disagree on latents")

        self.info = dict(info or {})
        self.reward_rule, self._calibration = RewardRule.of(self.info), HeadCalibration.of(self.info)
        self.device = pick_device(device) if isinstance(device, str) else device
        if dtype is None:
            dtype = torch.bfloat16 if has_fast_bfloat16(self.device) else torch.float32
        self.dtype = dtype

        own = copy.deepcopy(codec).to(self.device, dtype)
        self.codec = own.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
        self.denoiser = copy.deepcopy(denoiser).to(self.device, dtype).eval()

        config = SamplerConfig(
            num_steps=self.info.get("num_steps", DEFAULT_STEPS) if num_steps is None else num_steps,
            context_level=self.info.get("context_level", 0.05) if context_level is None else context_level,
            level_shift=self.info.get("level_shift", DEFAULT_SHIFT) if level_shift is None else level_shift,
            num_init_steps=SamplerConfig.num_init_steps if num_init_steps is None else num_init_steps,
        )

        self.window = next_frame_window() if window is None else window
        if self.window.stride != 1:
            raise WindowError(
                f"a world makes one frame a step; got a window of stride {self.window.stride}: use a schedule of "
                "stride 1, or WorldModel.rollout"
            )

        self.pixels = self._make_pixels(depth)
        self.source: Path | None = None  # the bundle it was loaded from
        self._set_up(config, memory_frames)

    def _set_up(self, config: SamplerConfig, memory_frames: int | None) -> None:
        """Make what samples, with the networks that are there, uncompiled.

        Raises:
            ConfigError: `memory_frames` is below 1 or more than the denoiser can see.
        """
        self.config = config
        self.sampler = Sampler(self.denoiser, self.window, config, memory_frames)
        self.stepper = Stepper(self.codec, self.sampler, self.pixels, self.dtype)
        self.memory_frames = self.sampler.memory_frames
        self.compiled: CompiledStep | None = None  # takes the steps it fits, see `compile`
        values = self.denoiser.config.reward_values
        self._reward_values = torch.tensor(values, dtype=torch.float32, device=self.device)

    def with_settings(
        self,
        *,
        num_steps: int | None = None,
        memory_frames: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> "WorldModel":
        """Return the same world with other settings, uncompiled; this one stays as it is.

        The weights are shared; only another number format takes copies of them.

        Args:
            num_steps: denoising steps in an auto-regressive step; None: as here.
            memory_frames: frames remembered through their summaries; None: as here.
            dtype: number format of the networks; None: as here.

        Raises:
            ConfigError: a setting is out of range.
        """
        other = copy.copy(self)
        if dtype is not None and dtype != self.dtype:
            other.dtype = dtype
            other.codec, other.denoiser = (copy.deepcopy(part).to(dtype) for part in (self.codec, self.denoiser))
        config = self.config if num_steps is None else dataclasses.replace(self.config, num_steps=num_steps)
        other._set_up(config, self.memory_frames if memory_frames is None else memory_frames)
        return other

    def _make_pixels(self, depth: DepthNet | None) -> PixelMemory | None:
        """Return the memory of pixels that the denoiser was trained with, if it was.

        Raises:
            ConfigError: it was, and the depth network or the displacements of the actions are missing.
            ShapeError: the depth network takes frames of another size.
        """
        config = self.denoiser.config
        if not config.warp_channels:
            return None
        if depth is None or not config.displacements:
            raise ConfigError(
                "this denoiser takes what a memory of pixels shows, which needs a depth network (train.depth) and the "
                "displacements of the actions (train.denoiser --odometry)"
            )
        if depth.config.image_size != self.codec.config.image_size:
            raise ShapeError(
                f"the codec makes frames of {self.codec.config.image_size} pixels, the depth network takes "
                f"{depth.config.image_size}"
            )
        return PixelMemory(copy.deepcopy(depth), config.displacements).to(self.device)

    @classmethod
    def load(cls, name_or_folder: str | Path, **settings: Any) -> "WorldModel":
        """Load a bundle by name or folder; settings as in the constructor.

        Raises:
            CheckpointError: the bundle is missing, damaged or does not fit.
        """
        codec, denoiser = load_codec(name_or_folder), load_denoiser(name_or_folder)
        has_own_depth = "depth" not in settings
        if has_own_depth and denoiser.config.warp_channels:
            if not has_part(name_or_folder, "depth"):
                raise CheckpointError(
                    f"{name_or_folder} takes what a memory of pixels shows and holds no depth network: make it with "
                    "train.bundle --depth"
                )
            settings = settings | {"depth": load_depth(name_or_folder)}
        model = cls(codec, denoiser, info=load_info(name_or_folder), **settings)
        model.source = resolve(name_or_folder) if has_own_depth else None  # None: the bundle is not all of it
        return model

    def compile(
        self,
        batch: int = 1,
        *,
        wait: bool = True,
        cached_only: bool = False,
        on_wait: Callable[[], object] | None = None,
    ) -> BackgroundCompiler:
        """Compile the step for `batch` dreams; two minutes the first time, then it is found in the cache folder.

        Compiled frames are the same for the same seed and actions; they differ from uncompiled ones in rounding.

        Args:
            batch: dreams stepped at once. Batches of other sizes go on uncompiled.
            wait: return when it is done, and step compiled; else the world plays on, and from some step on runs
                whichever of the two is faster here.
            cached_only: take a step that was compiled before, and compile nothing.
            on_wait: with `wait`, called a few times a second; what it raises ends compiling.

        Returns:
            what compiles; its `note` says why there is nothing compiled, where that is so.

        Raises:
            CompileError: with `wait`, if the step cannot be compiled.
        """

        def take(compiled: CompiledStep) -> None:
            self.compiled = compiled

        compiler = BackgroundCompiler(self.stepper, batch, self.source, self.begin_gray, take)
        compiler.start(cached_only=cached_only, is_wanted=wait)
        try:
            while wait and on_wait is not None and not compiler.is_over:
                on_wait()
                compiler.wait(WAIT_S)
        except BaseException:
            compiler.stop()
            raise
        if wait and not compiler.wait():
            raise CompileError(compiler.note)
        return compiler

    def begin_gray(self, batch: int) -> DreamState:
        """Return gray dreams of a context long enough to fill all parts of a state: what a step is tried on."""
        size, overlap = self.codec.config.image_size, max(1, self.window.num_clean)
        context = overlap + 2 * self.window.stride + 2
        frames = torch.full((batch, context, size, size, 3), 128, dtype=torch.uint8)
        return self.reset(frames, torch.zeros(batch, context - 1, dtype=torch.int64), list(range(batch))).dream

    @property
    def num_actions(self) -> int:
        """Size of the action set."""
        return self.denoiser.config.num_actions

    def memory_used(self, state: WorldState) -> list[int]:
        """Return the frames that each dream remembers now."""
        uncommitted = state.dream.pending.shape[1] + self.window.num_clean
        return [min(int(count) + uncommitted, self.memory_frames) for count in state.dream.cache.count]

    def _noise(self, chance: Chance, frames: int) -> torch.Tensor:
        config = self.denoiser.config
        return chance.draw((frames, config.latent_channels, config.latent_size, config.latent_size), self.device)

    def _check_actions(self, actions: torch.Tensor, check: bool = True) -> torch.Tensor:
        if actions.is_floating_point() or actions.dtype == torch.bool:
            raise ActionError(f"actions must be integers from 0 to {self.num_actions - 1}; got {actions.dtype}")
        if check and actions.numel() and (int(actions.min()) < 0 or int(actions.max()) >= self.num_actions):
            raise ActionError(f"actions must be from 0 to {self.num_actions - 1}; got {actions.flatten().tolist()}")
        return actions.to(self.device, torch.int64)

    def _check_step(self, state: WorldState, actions: torch.Tensor, check: bool = True) -> torch.Tensor:
        if tuple(actions.shape) != (state.num_dreams,):
            raise ShapeError(f"step takes one action a dream, ({state.num_dreams},); got {tuple(actions.shape)}")
        return self._check_actions(actions, check)

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames uint8 (..., H, W, 3) to latents float32 (..., C, h, w) on the device."""
        flat = to_pixels(frames.reshape(-1, *frames.shape[-3:]).to(self.device)).to(self.dtype)
        latents = torch.cat([self.codec.encode(part) for part in flat.split(CODEC_PART)]).float()
        return latents.reshape(*frames.shape[:-3], *latents.shape[1:]).contiguous()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents float (..., C, h, w) to frames uint8 (..., H, W, 3) on the device."""
        flat = latents.reshape(-1, *latents.shape[-3:]).to(self.dtype)
        frames = to_frames(torch.cat([self.codec.decode(part) for part in flat.split(CODEC_PART)]).float())
        return frames.reshape(*latents.shape[:-3], *frames.shape[1:])

    @torch.inference_mode()
    def reset(
        self,
        frames: torch.Tensor,
        actions: torch.Tensor,
        seeds: list[int],
        ahead: torch.Tensor | None = None,
        *,
        context_seeds: list[int] | None = None,
        on_device: bool = False,
    ) -> WorldState:
        """Start dreams from real frames.

        Args:
            frames: uint8 (B, T, H, W, 3), T at least 1 and at least the window's clean overlap.
            actions: integer (B, T - 1), the actions between the frames.
            seeds: B seeds of the dreams' chance.
            ahead: integer (B, `window.input_lag`), the actions into the frames that a window looking ahead begins
                before the first step; default action 0. The first `input_lag` steps show those frames.
            context_seeds: B seeds of the noise on the given frames, and of that in which the frames ahead begin; the
                seeds of the dreams then are for the steps alone, so that one start serves dreams of any seed. None:
                the dreams' own chance begins with it.
            on_device: draw noise where the network computes (`worldmodel.chance`), so that no step waits for the CPU;
                the noise is other noise.

        Raises:
            ShapeError: shapes that do not agree, or a context shorter than the overlap.
            ActionError: an action that does not exist.
        """
        if frames.ndim != 5 or tuple(actions.shape) != (frames.shape[0], frames.shape[1] - 1):
            raise ShapeError(
                f"reset takes frames (B, T, H, W, 3) and actions (B, T - 1); got {tuple(frames.shape)} and "
                f"{tuple(actions.shape)}"
            )
        if ahead is None:
            ahead = torch.zeros(frames.shape[0], self.window.input_lag, dtype=torch.int64)
        for name, given in (("seeds", seeds), ("context_seeds", seeds if context_seeds is None else context_seeds)):
            if len(given) != len(frames):
                raise ShapeError(f"reset takes one seed a dream; got {len(given)} {name} for {len(frames)} dreams")
        chance = self.make_chance(seeds, on_device)
        drawn = chance if context_seeds is None else self.make_chance(context_seeds, on_device)
        log = RewardLog.empty(len(frames), self.device)
        return WorldState(self._begin(self.sampler, frames, actions, drawn, ahead), chance, log)

    def make_chance(self, seeds: list[int], on_device: bool = False) -> Chance:
        """Return the chance of new dreams with given seeds, as `reset` does."""
        return DeviceChance.of_seeds(seeds, self.device) if on_device else HostChance.of_seeds(seeds)

    def _begin(
        self,
        sampler: Sampler,
        frames: torch.Tensor,
        actions: torch.Tensor,
        chance: Chance,
        ahead: torch.Tensor,
    ) -> DreamState:
        """Run the initialization stage of a sampler with noise from `chance`; other arguments as `reset`."""
        batch, known, lag = frames.shape[0], frames.shape[1], sampler.window.input_lag
        if tuple(ahead.shape) != (batch, lag):
            raise ShapeError(
                f"ahead must be ({batch}, {lag}), an action into each frame begun before the first step; got "
                f"{tuple(ahead.shape)}"
            )

        overlap = sampler.window.num_clean
        if known < overlap:
            raise ShapeError(
                f"a context of {known} frames is shorter than the {overlap} clean frames that this schedule takes from "
                f"it: give at least {overlap} frames, or a schedule with a smaller overlap"
            )

        none = torch.full((batch, 1), self.num_actions, device=self.device, dtype=torch.int64)
        into = torch.cat([none, self._check_actions(actions)], 1)
        noise = self._noise(chance, known)
        flight_actions = self._check_actions(ahead) if lag else None
        flight_noise = self._noise(chance, 2 * lag) if lag else None

        latents = self.encode(frames)
        pixels = sight = None
        if self.pixels is not None:
            pixels = self.pixels.empty(batch)
            sight = self._watch(self.pixels, pixels, frames.to(self.device), torch.cat([into, ahead.to(into)], 1))
        dream = sampler.begin(latents, into, noise, flight_actions, flight_noise, sight)
        dream.pixels = pixels
        return dream

    @staticmethod
    def _watch(memory: PixelMemory, state: PixelState, frames: torch.Tensor, actions: torch.Tensor) -> Sight:
        """Write given frames to the memory of pixels one by one; return what it knew of each, and of those ahead.

        Args:
            memory: whose.
            state: of dreams that have seen nothing; changed.
            frames: uint8 (B, T, H, W, 3).
            actions: int64 (B, T + L), the action into each frame and into those ahead.
        """
        pose = torch.zeros(len(frames), POSE_SIZE, dtype=torch.float32, device=frames.device)
        poses, warped = [], []
        for number, action in enumerate(actions.unbind(1)):
            pose = memory.walk(state, pose, action[:, None])[:, 0]
            poses.append(pose)
            warped.append(memory.look(state, pose[:, None])[:, 0])
            if number < frames.shape[1]:
                memory.remember(state, frames[:, number], pose)
        return Sight(torch.stack(poses, 1), torch.stack(warped, 1))

    def _advance(
        self, sampler: Sampler, state: WorldState, actions: torch.Tensor, drawn: torch.Tensor | None = None
    ) -> Step:
        """Take one auto-regressive step under checked actions (B, S); every part of what it gives is (B, S, ...).

        Args:
            sampler: that of the world, or of another schedule.
            state: changed.
            actions: int64 (B, S).
            drawn: noise, float32 (B, 2 S, C, h, w); None: from the dreams' chance.
        """
        stride = sampler.window.stride
        drawn = self._noise(state.chance, 2 * stride) if drawn is None else drawn
        noise, shown_noise = drawn.split(stride, 1)
        compiled = self.compiled
        if compiled is not None and sampler is self.sampler and compiled.fits(state.dream):
            frames, rewards, terminated = compiled(state.dream, actions, noise, shown_noise)
        else:
            stepper = self.stepper
            if sampler is not self.sampler:
                stepper = Stepper(self.codec, sampler, self.pixels, self.dtype)
            frames, prediction = stepper(state.dream, actions, noise, shown_noise)
            rewards, terminated = prediction.reward_logits, prediction.terminated_logit
        return Step(frames, *self.read_heads(rewards, terminated))

    def read_heads(self, rewards: torch.Tensor, terminated: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what logits of a `Prediction` say: all but the frames of a `Step`.

        Args:
            rewards: float (..., R).
            terminated: float (...).
        """
        values = self._reward_values
        pays = (rewards.float().softmax(-1) * (values != 0)).sum(-1).logit(eps=1e-7)
        logits = (pays, self._calibration.reward), (terminated.float(), self._calibration.terminated)
        probabilities = [(scale * logit + shift).sigmoid() for logit, (scale, shift) in logits]
        return values[rewards.argmax(-1)], terminated > 0, *probabilities

    @torch.inference_mode()
    def step(self, state: WorldState, actions: torch.Tensor, *, check: bool = True) -> Step:
        """Dream the next frame of every dream, in place.

        What the heads say of rewards and ends is bounded by the rule of the world (`reward_rule`), where it has one.

        Args:
            state: from `reset`; changed.
            actions: integer (B,). Under a window that looks ahead they enter with the newest frame of noise, which is
                shown `window.input_lag` steps later; what is returned now was begun that many steps ago.
            check: look at the values of the actions. On a GPU that waits for it; unchecked, an action that does not
                exist ends in an error of CUDA.

        Raises:
            ActionError: not integers, or outside the action set. ShapeError: not one action a dream.
        """
        result = self._advance(self.sampler, state, self._check_step(state, actions, check)[:, None])
        return self._settle(state, Step(*(part[:, 0] for part in result)))

    def _settle(self, state: WorldState, step: Step) -> Step:
        """Return a step as the world's own rule has it, and take its rewards into the state."""
        poses = state.dream.pending_poses[:, -1] if self.can_reckon else None
        state.rewards, is_repeated, is_over = settle(self.reward_rule, state.rewards, step.rewards, poses)
        return step._replace(
            rewards=step.rewards.masked_fill(is_repeated, 0),
            reward_probability=step.reward_probability.masked_fill(is_repeated, 0),
            terminated=step.terminated | is_over,
            end_probability=step.end_probability.masked_fill(is_over, 1),
        )

    @torch.inference_mode()
    def observe(self, state: WorldState, actions: torch.Tensor, frames: torch.Tensor) -> None:
        """Take a step of every dream in place whose frames are given: the truth in the middle of a dream.

        The state then is as if the frames had been dreamt, but that a memory of pixels knows them as true, as it knows
        those of `reset`; what it pays is not counted. Chance moves on as in `step`.

        Args:
            state: from `reset`; changed.
            actions: integer (B,), taken before the frames.
            frames: uint8 (B, H, W, 3), what they led to.

        Raises:
            ActionError, ShapeError: as `step`; or frames of another size.
            ConfigError: the schedule keeps unfinished frames in flight, which were begun without these.
        """
        if self.window.input_lag:
            raise ConfigError(
                f"this schedule has {self.window.input_lag} frames in flight that were begun before the frames given: "
                "observe takes a schedule that does not look ahead, such as next"
            )
        actions, size = self._check_step(state, actions)[:, None], self.codec.config.image_size
        want = (state.num_dreams, size, size, 3)
        if frames.dtype != torch.uint8 or tuple(frames.shape) != want:
            raise ShapeError(f"observe takes frames uint8 {want}; got {frames.dtype} {tuple(frames.shape)}")
        _, shown_noise = self._noise(state.chance, 2).split(1, 1)
        given = frames[:, None].to(self.device)
        self.stepper.observe(state.dream, actions, given, self.encode(given), shown_noise)

    def imagine(
        self,
        state: WorldState,
        policy: Policy,
        horizon: int,
        *,
        decode: bool = True,
        in_place: bool = False,
        noise: torch.Tensor | None = None,
        grad: bool = False,
    ) -> Imagined:
        """Dream on under a policy, all dreams at once.

        Args:
            state: from `reset`.
            policy: given frames uint8 (B, H, W, 3), at first what the dream keeps of the last, returns actions (B,).
            horizon: steps.
            decode: draw the frames. Without, the policy is given latents float32 (B, C, h, w); a world with a memory
                of pixels has to draw, as it remembers frames.
            in_place: change `state`.
            noise: standard normal (B, T, 2, C, h, w), what frames are made from and what they are shown with to later
                ones; None: the dreams' chance.
            grad: keep the graph, for gradients of probabilities and latents by `noise` or by the weights. A step
                copies its memory then. Frames are whole numbers: through them, and what is remembered of their
                pixels, no gradient flows.

        Raises:
            ConfigError: a setting is out of range or does not go with another. ActionError, ShapeError: the policy
                gave something else, or the noise has another shape.
        """
        horizon = check_whole("horizon", horizon, 1)
        if not decode and self.pixels is not None:
            raise ConfigError("a world with a memory of pixels remembers the frames it draws: leave decode as it is")
        if in_place and grad:
            raise ConfigError("imagine with grad dreams on a copy: leave in_place out")
        latent = state.dream.recent.shape[2:]
        if noise is not None and noise.shape != (want := (state.num_dreams, horizon, 2, *latent)):
            raise ShapeError(f"noise must be {want}; got {tuple(noise.shape)}")

        with torch.inference_mode(not grad), torch.set_grad_enabled(grad):
            state = state if in_place else state.clone()

            def step(number: int, action: torch.Tensor) -> Shown:
                if grad:  # what later steps write must not be what earlier ones read
                    state.dream = state.dream.clone()
                drawn = None if noise is None else noise[:, number]
                return self._imagine_step(state, self._check_step(state, action), decode, drawn)

            pictures, actions, parts = play(policy, self._last_picture(state, decode), horizon, step)
        frames, latents = (pictures, None) if decode else (None, pictures)
        return Imagined(frames, latents, actions.to(self.device, torch.int64), **parts)

    def _imagine_step(
        self, state: WorldState, actions: torch.Tensor, decode: bool, drawn: torch.Tensor | None
    ) -> Shown:
        """Take one step in place under checked actions (B,), with `drawn` noise (B, 2, C, h, w) or the dreams' own."""
        if decode:
            result = self._advance(self.sampler, state, actions[:, None], drawn)
            return Shown(*self._settle(state, Step(*(part[:, 0] for part in result))))
        noise, shown_noise = (self._noise(state.chance, 2) if drawn is None else drawn).split(1, 1)
        latents, prediction = self.sampler.advance(state.dream, actions[:, None], noise, shown_noise)
        heads = self.read_heads(prediction.reward_logits, prediction.terminated_logit)
        return Shown(*self._settle(state, Step(*(part[:, 0] for part in (latents, *heads)))))

    def _last_picture(self, state: WorldState, decode: bool) -> torch.Tensor:
        """Return the last finished frame as the dream keeps it, with some noise; or its latents."""
        dream, num_clean = state.dream, self.window.num_clean
        latents = dream.flight[:, num_clean - 1] if num_clean else dream.pending[:, -1]
        if not decode:
            return latents
        known = dream.pending_warped[:, -1] if self.pixels is not None and not num_clean else None
        return to_frames(self.codec.decode(latents.to(self.dtype), known).float())

    @property
    def can_reckon(self) -> bool:
        """Whether `reckon` works: a memory of pixels, played with the next-frame schedule."""
        return self.pixels is not None and self.window == next_frame_window()

    def reckon(self, state: WorldState, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which share of its way the last step of each dream got, and which the next one will get.

        The memory of pixels judges it from what the dream shows: less than 1 where something is in the way.

        Args:
            state: from `reset`; not changed.
            actions: integer (B,), the next actions.

        Returns:
            two of float32 (B,), on the CPU; 1 where the action does not walk.

        Raises:
            ConfigError: `can_reckon` is false. ActionError, ShapeError: as `step`.
        """
        actions = self._check_step(state, actions)
        if self.pixels is None or not self.can_reckon:
            raise ConfigError(
                "only a world with a memory of pixels (train.warps), played with the next-frame schedule, can tell how "
                "far a step gets"
            )
        parts, displacements = self._reckon_pixels(self.pixels, state, actions), self.pixels.displacements[:, 0]
        shares = []
        for gone, taken in zip(parts, (state.dream.pending_actions[:, -1], actions), strict=True):
            walk = displacements[taken]
            shares.append(torch.where(walk == 0, 1.0, gone / torch.where(walk == 0, 1.0, walk)).cpu())
        return shares[0], shares[1]

    @staticmethod
    def _reckon_pixels(
        memory: PixelMemory, state: WorldState, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how far the last step got and the next one will, float32 (B,) each, cells along the heading."""
        if state.dream.pixels is None:
            raise ConfigError("this dream has no memory of pixels: begin it with the world that is to step it")
        now = state.dream.pending_poses[:, -1]
        coming = memory.walk(state.dream.pixels, now, actions[:, None])[:, 0]
        gone = []
        for before, after in ((state.dream.cache.pose, now), (now, coming)):
            x, y = (after - before)[:, :2].unbind(-1)
            gone.append(x * after[:, 3].cos() + y * after[:, 3].sin())
        return gone[0], gone[1]

    @torch.inference_mode()
    def rollout(
        self,
        frames: torch.Tensor,
        actions: torch.Tensor,
        seeds: list[int],
        window: Window | None = None,
        num_steps: int | None = None,
        on_frames: Callable[[int], object] | None = None,
    ) -> torch.Tensor:
        """Dream on from real frames under given actions, by any schedule, of any stride.

        Every frame gets its own action. With `next_frame_window()` the frames equal those of `reset` and `step` bit for
        bit. The window slides past the last frame asked for under action 0; later frames never change earlier ones.

        Args:
            frames: uint8 (B, C, H, W, 3), the context.
            actions: integer (B, C - 1 + N): those between the context frames, then those to dream under; frame C + i
                is led to by `actions[:, C - 1 + i]`.
            seeds: B seeds of the dreams' chance.
            window: schedule; default the world's.
            num_steps: denoising steps in an auto-regressive step; default the world's.
            on_frames: told the number of frames dreamt (of all dreams) after every step.

        Returns:
            uint8 (B, N, H, W, 3), on the CPU.

        Raises:
            ShapeError: shapes that do not agree, a context shorter than the window's clean overlap, or fewer frames
                asked for than a window dreams.
            ActionError: an action that does not exist. ConfigError: num_steps is out of range.
        """
        if frames.ndim != 5 or actions.ndim != 2 or len(actions) != len(frames) or actions.shape[1] < frames.shape[1]:
            raise ShapeError(
                "rollout takes frames (B, C, H, W, 3) and actions (B, C - 1 + N) for N of at least 1 frames to dream; "
                f"got {tuple(frames.shape)} and {tuple(actions.shape)}"
            )
        window = self.window if window is None else window
        config = self.config if num_steps is None else dataclasses.replace(self.config, num_steps=num_steps)
        sampler = Sampler(self.denoiser, window, config, self.memory_frames)
        known, lag, stride = frames.shape[1] - 1, window.input_lag, window.stride
        num_frames = actions.shape[1] - known
        if num_frames < lag + stride:
            raise ShapeError(
                f"{num_frames} frames to dream are shorter than the window, which has {lag + stride} to dream at once: "
                f"ask for at least {lag + stride}, or take a schedule with a smaller window"
            )
        to_come = self._check_actions(torch.nn.functional.pad(actions[:, known:], (0, lag + stride)))
        if len(seeds) != len(frames):
            raise ShapeError(f"rollout takes one seed a dream; got {len(seeds)} seeds for {len(frames)} dreams")
        chance = self.make_chance(seeds)
        dream = self._begin(sampler, frames, actions[:, :known], chance, to_come[:, :lag])
        state = WorldState(dream, chance, RewardLog.empty(len(frames), self.device))
        parts = []
        for first in range(0, num_frames, stride):
            part = self._advance(sampler, state, to_come[:, lag + first : lag + first + stride]).frames
            parts.append(part[:, : num_frames - first].cpu())
            if on_frames is not None:
                on_frames(parts[-1].shape[0] * parts[-1].shape[1])
        return torch.cat(parts, 1)

    @torch.inference_mode()
    def put(self, state: WorldState, rows: list[int], other: WorldState) -> None:
        """Replace the dreams of `rows` in `state` by copies of those of `other`, in place; one new dream a row.

        Raises:
            ShapeError: a row does not exist or is named twice, or `other` has not one dream a row.
        """
        is_known = all(0 <= row < state.num_dreams for row in rows) and len(set(rows)) == len(rows)
        if not is_known or len(rows) != other.num_dreams:
            raise ShapeError(
                f"put takes different rows from 0 to {state.num_dreams - 1}, one for each of the {other.num_dreams} "
                f"new dreams; got {rows}"
            )
        state.put(torch.tensor(rows, dtype=torch.int64, device=self.device), other)
