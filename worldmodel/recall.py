"""What a denoiser looks back with beside its attention: odometry, remembered views, entries and slots.

Owns: the parts of a memory structure that are not blocks, and how each is read in a clip and through a cache. The base
of `Denoiser`, which owns blocks, ends and the order of things. Never writes a cache: new frames are collected in
`written`.
"""

import math
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import Rotary, RotaryPosition, to_bias
from worldmodel.cache import MemoryCache, Rings
from worldmodel.config import DenoiserConfig
from worldmodel.exact import ExactBuffers
from worldmodel.geometry import SpatialMemory, Survey
from worldmodel.memory.collision import Walls
from worldmodel.memory.slots import ChannelMemory, Compressor, Entries, SlotAttention
from worldmodel.odometry import step_known_ways, step_poses, walk_poses
from worldmodel.views import NUM_FACTS, RememberedViews


class Remembered(NamedTuple):
    """What an entry-based memory gives the blocks of one call.

    Attributes:
        slots: (B, T, P, D), of the new frames.
        rotary: of the slots.
        is_seen: bool (B or 1, T, K), which slots each new frame sees: first those of the cache, then the new ones.
    """

    slots: torch.Tensor
    rotary: Rotary
    is_seen: torch.Tensor


class Reckoning(NamedTuple):
    """Where frames are seen from.

    Attributes:
        poses: float32 (B, T, 3) of the frames: x, y, heading.
        before: float32 (B, T, 3) of the frame before each.
        kept: float32 (B, T, 3), what a cache keeps of each for the frames to come.
        depths: float32 (B, T, w), log distances of what the frame before each shows; None without spatial memory.
    """

    poses: torch.Tensor
    before: torch.Tensor
    kept: torch.Tensor
    depths: torch.Tensor | None


class Seen(NamedTuple):
    """What frames look back at before the blocks run: it hangs on what came before them, not on what they show.

    Attributes:
        reckoning: where they are seen from.
        views: float (B, T, channels, h, w), remembered views laid over each; None for a structure without.
        rings: what the views of these frames leave in a cache; empty for clips.
    """

    reckoning: Reckoning
    views: torch.Tensor | None
    rings: Rings

    def last(self, num_frames: int) -> "Seen":
        """Return the same of the last frames alone."""
        parts = [None if part is None else part[:, -num_frames:] for part in self.reckoning]
        views = None if self.views is None else self.views[:, -num_frames:]
        rings = {name: [layer[:, -num_frames:] for layer in layers] for name, layers in self.rings.items()}
        return Seen(Reckoning(*parts), views, rings)  # type: ignore[arg-type]


class Recall(ExactBuffers):
    """Odometry, remembered views and the parts of an entry-based memory; see the module docstring."""

    motions: torch.Tensor

    def __init__(self, config: DenoiserConfig) -> None:
        """Build the parts that the config asks for."""
        super().__init__()
        self.config = config
        grid = config.latent_size // config.patch
        view_deg = config.view_deg if config.motions else None
        self.rotary = RotaryPosition(config.width // config.heads, grid, config.num_summary, view_deg)
        motions = (
            torch.tensor([*config.motions, (0.0, 0.0)]) if config.motions else torch.zeros(config.num_actions + 1, 2)
        )
        self.register_buffer("motions", motions * torch.tensor([math.pi / 180, 1.0]), persistent=False)
        self.views: RememberedViews | None = None
        self.spatial: SpatialMemory | None = None
        channels = 0
        if config.view_heads:
            self.views = RememberedViews(config.latent_size, config.view_deg, config.view_heads)
            channels = config.view_heads * (config.latent_channels + NUM_FACTS)
        if config.spatial is not None:
            self.spatial = SpatialMemory(config.spatial).requires_grad_(False)  # trained before, by train.geometry
            channels = self.spatial.num_channels
        if channels:
            self.embed_views = nn.Linear(channels * config.patch**2, config.width, bias=False)
            nn.init.zeros_(self.embed_views.weight)  # at first as if nothing were remembered
        self._add_memory(config)

    def _add_memory(self, config: DenoiserConfig) -> None:
        """Build what an entry-based memory needs beside the blocks."""
        setting, width = config.setting, config.width
        self.entries: Entries | None = None
        self.compressor: Compressor | None = None
        self.channel: ChannelMemory | None = None
        if not setting.is_entry_based:
            return
        patch_channels = config.latent_channels * config.patch**2
        is_raw = setting.structure == "channel" and setting.compression == "none"
        entry_width = patch_channels if is_raw else width
        self.entries = Entries(
            patch_channels, config.num_patches, config.num_actions, entry_width, setting.compression == "modulated"
        )
        if setting.compression != "none":
            self.compressor = Compressor(width, config.heads, setting.length)
        if setting.structure == "channel":
            self.channel = ChannelMemory(entry_width, setting.budget, width)

    # Remembered views --------------------------------------------------------------------------------------------

    def look_back(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        actions: torch.Tensor,
        cache: MemoryCache | None = None,
    ) -> Seen:
        """Return where frames are seen from and what is remembered there, for `Denoiser.forward` and `forward_cached`.

        Every denoising step of a frame may share it, as long as the frames before that frame stay as they are.

        Args:
            previous, previous_levels, actions: as `Denoiser.forward`.
            cache: of the frames before; None for clips.
        """
        reckoning = self.reckon(previous, previous_levels, actions, cache)
        if cache is None:
            views = self._views_of_clip(previous, previous_levels, reckoning) if self.config.has_views else None
            return Seen(reckoning, views, {})
        if not self.config.has_views:
            return Seen(reckoning, None, {})
        positions = cache.count[:, None] + torch.arange(actions.shape[1], device=actions.device)
        return Seen(reckoning, *self._look_at_views(previous, previous_levels, positions, reckoning, cache))

    def reckon(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        actions: torch.Tensor,
        cache: MemoryCache | None = None,
    ) -> Reckoning:
        """Return where the frames are, and where those before them were.

        In evaluation mode, with a spatial memory, no wall stops a step to where one has been: what is between was free
        then, whatever the last frames look like. Without it a way back ends short of where it began. Any other step
        ends at least a walker's radius away from remembered walls (`worldmodel.memory.collision`).

        Args:
            previous, previous_levels, actions: as `Denoiser.forward`.
            cache: of the frames before; None for clips.
        """
        if cache is None:
            start = torch.zeros(previous.shape[0], 3, device=previous.device)
            last_action = torch.full_like(actions[:, 0], self.config.num_actions)
        else:
            start, last_action = cache.pose, cache.last_action
        if self.spatial is None:
            if not self.config.motions:
                poses = start[:, None].expand(-1, actions.shape[1], -1)
            else:
                poses = walk_poses(self.motions, actions, start)
            return Reckoning(poses, torch.cat([start[:, None], poses[:, :-1]], 1), poses, None)
        past_actions = torch.cat([last_action[:, None], actions[:, :-1]], 1)
        with torch.no_grad():
            survey: Survey = self.spatial.geometry(previous[:, :, :2], previous_levels[:, :, :2], actions, past_actions)
            if self.training:
                before = walk_poses(self.motions, past_actions, start, survey.past_walks)
                poses = step_poses(self.motions, actions, before, survey.walks)
            else:
                before, poses = self._walk_where_one_has_been(survey, actions, past_actions, start, cache)
        return Reckoning(poses, before, before, survey.depths)

    def _walk_where_one_has_been(
        self,
        survey: Survey,
        actions: torch.Tensor,
        past_actions: torch.Tensor,
        start: torch.Tensor,
        cache: MemoryCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the poses before and of each frame; walls stop only steps that leave what is remembered."""
        spatial = cast("SpatialMemory", self.spatial)
        slopes, depths = spatial.views.slopes(actions.device), survey.depths.exp()
        first = torch.zeros_like(actions[:, :1]) if cache is None else cache.count[:, None]
        positions = first + torch.arange(actions.shape[1], device=actions.device)
        if cache is None:
            been, held, reach = start[:, None, :2], torch.zeros_like(first), self.config.view_reach
            facts = torch.zeros(*first.shape, 4 + depths.shape[-1], device=start.device)
        else:
            ring = cache.rings["view_poses"]
            facts = ring[0, :, 0, :, 0].float()
            been, held, reach = facts[..., :2], cache.positions("views"), ring.shape[3]
        walls = Walls.of_frames(facts[..., :3], facts[..., 4:].exp(), slopes)
        pose, before, poses = start, [], []
        for j in range(actions.shape[1]):
            now, age = positions[:, j : j + 1], positions[:, j : j + 1] - held
            is_known = self._may_look_back(age[:, None], held, min(self.config.view_reach, reach))[:, 0]
            action = past_actions[:, j]
            free, share = step_known_ways(self.motions, pose, action, survey.past_walks[:, j], been, is_known)
            pose = walls.push_out(pose, free, is_known, self.motions[action, 1].abs(), share)
            before.append(pose)
            been, held = torch.cat([been, pose[:, None, :2]], 1), torch.cat([held, now], 1)
            is_known = torch.cat([is_known, now >= 1], 1)
            walls = walls.and_those_of(Walls.of_frames(pose[:, None], depths[:, j, None], slopes))
            action = actions[:, j]
            free, share = step_known_ways(self.motions, pose, action, survey.walks[:, j], been, is_known)
            poses.append(walls.push_out(pose, free, is_known, self.motions[action, 1].abs(), share))
        return torch.stack(before, 1), torch.stack(poses, 1)

    def _may_look_back(self, age: torch.Tensor, held: torch.Tensor, reach: int) -> torch.Tensor:
        """Return which entries a frame may look back at: entry t holds frame t - 1.

        Views laid by direction alone leave out the newest frames, which are on the channels as they are.
        """
        least = self.config.num_previous if self.spatial is None else 0
        return (age >= least) & (age < reach) & (held >= 1)[:, None]

    def _lay_views(self, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        p = self.config.patch
        patches = rearrange(seen, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        return self._join(tokens, self.embed_views(patches.to(self.embed_views.weight.dtype)))

    def _project_views(
        self,
        poses: torch.Tensor,
        columns: torch.Tensor,
        facts: torch.Tensor,
        age: torch.Tensor,
        is_seen: torch.Tensor,
    ) -> torch.Tensor:
        """Lay old frames, (B, K, w, h, C), over the frames to come; facts: pose, level and distances of each."""
        laid: torch.Tensor
        if self.spatial is not None:
            with torch.no_grad():
                laid = self.spatial.views(
                    poses, columns, facts[..., :3], facts[..., 4:], facts[..., 3], age.clamp_min(0), is_seen
                )
            return laid
        views = cast("RememberedViews", self.views)
        laid = views(poses, columns.permute(0, 1, 4, 3, 2), facts[..., :3], facts[..., 3], age, is_seen)
        return laid

    @staticmethod
    def _view_facts(reckoning: Reckoning, levels: torch.Tensor) -> torch.Tensor:
        """Return what is kept beside a view, float32 (B, T, 4 or 4 + w): pose, level and distances."""
        parts = [reckoning.before, levels[:, :, :1].float()]
        return torch.cat(parts if reckoning.depths is None else [*parts, reckoning.depths], -1)

    def _views_of_clip(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        reckoning: Reckoning,
    ) -> torch.Tensor:
        """Lay the earlier frames of clips over each of their frames."""
        positions = torch.arange(previous.shape[1], device=previous.device)[None]
        age = positions[:, :, None] - positions[:, None, :]
        is_seen = self._may_look_back(age, positions, self.config.view_reach)
        columns = previous[:, :, 0].permute(0, 1, 4, 3, 2)
        return self._project_views(reckoning.poses, columns, self._view_facts(reckoning, previous_levels), age, is_seen)

    def _look_at_views(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        positions: torch.Tensor,
        reckoning: Reckoning,
        cache: MemoryCache,
    ) -> tuple[torch.Tensor, Rings]:
        """Look back at the views of the cache and of the new frames; return too what the cache keeps of these."""
        new = rearrange(previous[:, :, 0], "b t c h w -> b t 1 w (h c)")
        facts = self._view_facts(reckoning, previous_levels)
        held = torch.cat([cache.positions("views"), positions], 1)
        age = positions[:, :, None] - held[:, None]
        is_seen = self._may_look_back(age, held, min(self.config.view_reach, cache.rings["views"].shape[3]))
        every = torch.cat([cache.rings["view_poses"][0, :, 0, :, 0], facts], 1)
        old = cache.rings["views"][0, :, 0]  # (B, F, w, h C)
        columns = torch.cat([old, new[:, :, 0].to(old.dtype)], 1)
        columns = columns.unflatten(-1, (self.config.latent_size, self.config.latent_channels))
        laid = self._project_views(reckoning.poses, columns, every, age, is_seen)
        return laid, {"views": [new], "view_poses": [facts[:, :, None, None]]}

    # What an entry-based memory needs ---------------------------------------------------------------------------

    def _slot_rotary(self, positions: torch.Tensor, before: torch.Tensor) -> Rotary:
        """Return the rotary angles of entries: entry t holds frame t - 1, seen from `before`."""
        cos, sin = self.rotary(positions - 1, before)
        return cos[..., : self.config.num_patches, :], sin[..., : self.config.num_patches, :]

    @staticmethod
    def _see_slots(
        attention: SlotAttention, x: torch.Tensor, rotary: Rotary, memory: Remembered | None
    ) -> torch.Tensor:
        memory = cast("Remembered", memory)
        seen: torch.Tensor = attention(x, rotary, *attention.project_slots(memory.slots, memory.rotary), memory.is_seen)
        return seen

    def _make_entries(
        self, previous: torch.Tensor, previous_levels: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        p = self.config.patch
        patches = rearrange(previous[:, :, 0], "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        entries = cast("Entries", self.entries)
        made: torch.Tensor = entries(patches.to(entries.embed.weight.dtype), previous_levels[:, :, 0], actions)
        return made

    def _remember(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        actions: torch.Tensor,
        positions: torch.Tensor,
        before: torch.Tensor,
        cache: MemoryCache,
        written: Rings,
    ) -> tuple[torch.Tensor, Rotary]:
        """Return the slots of the new frames, (B, J, P, D), compressed with the cache, and their rotary angles."""
        slots = self._make_entries(previous, previous_levels, actions)
        rotary = self._slot_rotary(positions, before)
        if self.compressor is not None:
            x, q, k, v = self.compressor.prepare(slots, rotary)
            written["compressed_k"].append(k)
            written["compressed_v"].append(v)
            is_seen = see_slots(positions, cache, "compressed_k", self.compressor.length)
            every = (
                torch.cat(
                    [rearrange(cache.rings[f"compressed_{pair}"][0], "b h f p d -> b f h p d").to(new.dtype), new], 1
                )
                for pair, new in (("k", k), ("v", v))
            )
            every_k, every_v = every
            slots = self.compressor.finish(x, q, every_k, every_v, to_bias(is_seen)[:, None, None])
        return slots, rotary

    @staticmethod
    def _join(tokens: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """Add what the channel memory gives to the patch tokens."""
        return tokens + F.pad(entered, (0, 0, 0, tokens.shape[2] - entered.shape[2]))

    def _enter_channel(
        self, tokens: torch.Tensor, entries: torch.Tensor, positions: torch.Tensor, cache: MemoryCache, written: Rings
    ) -> torch.Tensor:
        channel = cast("ChannelMemory", self.channel)
        written["entries"].append(entries[:, :, None])
        ring = cache.rings["entries"][0, :, 0]  # (B, F, P, E)
        size = ring.shape[1]
        ages = torch.arange(channel.length - 1, 0, -1, device=tokens.device)
        wanted = cache.count[:, None] - ages
        rows = torch.arange(len(wanted), device=tokens.device)[:, None]
        known = (wanted >= 0) & (ages <= size)
        past = ring[rows, torch.remainder(wanted, size)] * known[..., None, None]
        every = torch.cat([past.to(entries.dtype), entries], 1)
        if size < channel.length:  # a shorter memory: every new frame forgets what is older than the ring
            parts = []
            for j in range(entries.shape[1]):
                part = every[:, j : j + channel.length].clone()
                part[:, : channel.length - size] = 0
                parts.append(channel(part))
            return self._join(tokens, torch.cat(parts, 1))
        return self._join(tokens, channel(every))

    @staticmethod
    def _look_back(
        attention: SlotAttention,
        x: torch.Tensor,
        rotary: Rotary,
        memory: Remembered | None,
        cache: MemoryCache,
        written: Rings,
    ) -> torch.Tensor:
        """Attend to the slots of the cache and of the new frames; keep the keys and values of the new ones."""
        memory = cast("Remembered", memory)
        k, v = attention.project_slots(memory.slots, memory.rotary)
        layer = len(written["memory_k"])
        written["memory_k"].append(k)
        written["memory_v"].append(v)
        every = (
            torch.cat([rearrange(cache.rings[f"memory_{pair}"][layer], "b h f p d -> b f h p d").to(new.dtype), new], 1)
            for pair, new in (("k", k), ("v", v))
        )
        seen: torch.Tensor = attention(x, rotary, *every, memory.is_seen)
        return seen


def see_slots(positions: torch.Tensor, cache: MemoryCache, ring: str, reach: int) -> torch.Tensor:
    """Return which slots each new frame sees, bool (B, J, F + J): those of the ring, then the new ones.

    A ring shorter than the reach shortens the reach, so that frames of one call see no further than single ones.
    """
    held = cache.positions(ring)
    reach = min(reach, held.shape[1])
    age = positions[:, :, None] - torch.cat([held, positions], 1)[:, None]
    exists = torch.cat([held >= 0, torch.ones_like(positions, dtype=torch.bool)], 1)[:, None]
    return (age >= 0) & (age < reach) & exists
