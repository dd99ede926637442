"""The shape of a denoiser, as data.

Owns: the fields, what they may be, and what follows from them. Knows no weights.
"""

from dataclasses import dataclass

from worldmodel.errors import ConfigError
from worldmodel.folded import NUM_FOLDED

STRUCTURES = ("summary", "prepend", "channel", "cross", "none")
COMPRESSIONS = {"summary": ("none",), "prepend": ("none", "joint"), "channel": ("none", "modulated")}


@dataclass(frozen=True)
class MemorySetting:
    """One memory structure.

    Attributes:
        structure: one of `STRUCTURES`, or "module:class" of a memory from outside of this package.
        length: past frames that the memory draws on.
        compression: "none"; "joint" with prepend; "modulated" with channel.
        budget: frame slots kept after compression, at most `length`; without compression it is `length`.
    """

    structure: str = "summary"
    length: int = 128
    compression: str = "none"
    budget: int = 128

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES and not self.is_own:
            raise ConfigError(
                f"unknown memory structure {self.structure!r}; accepted: {', '.join(STRUCTURES)}, or module:class of "
                "one of your own"
            )
        accepted = COMPRESSIONS.get(self.structure, ("none",))
        if self.compression not in accepted:
            raise ConfigError(
                f"memory structure {self.structure!r} takes compression {' or '.join(accepted)}; got "
                f"{self.compression!r}"
            )
        if self.length < 1 or not 1 <= self.budget <= self.length:
            raise ConfigError(
                f"a memory of {self.length} frames takes a budget from 1 to {self.length} frame slots; got "
                f"{self.budget}"
            )
        if self.compression == "none" and self.budget != self.length:
            raise ConfigError(
                f"without compression a memory of {self.length} frames fills {self.length} slots; got a budget of "
                f"{self.budget}: name a compression, or leave the budget out"
            )

    @property
    def is_own(self) -> bool:
        """Whether the memory comes from outside of this package."""
        return ":" in self.structure


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser.

    Attributes:
        latent_channels: channels of a latent.
        latent_size: height and width of a latent.
        patch: height and width of the square of latent pixels that makes one token.
        width: channels of a token.
        depth: transformer blocks; even ones see recent frames, odd ones the memory.
        heads: attention heads.
        num_actions: size of the discrete action set. Action `num_actions` means "none" (first frame of an episode).
        num_previous: past frames given on the channels of every frame, beside attention.
        recent_frames: past frames seen in full.
        memory_frames: past frames that the memory draws on.
        num_summary: summary tokens a frame; they feed the heads, and are the memory of structure "summary".
        mlp_ratio: hidden width of a feed-forward layer over `width`.
        reward_values: the rewards the reward head tells apart.
        memory: the memory structure, one of `STRUCTURES`, or "module:class" of a memory from outside of this package
            (`worldmodel.memory.registry`), which is built from this config.
        compression: "none", "joint" (with prepend) or "modulated" (with channel).
        budget: frame slots kept after compression; 0 means `memory_frames`.
        displacements: for each action its turn in degrees (counter-clockwise) and its walk in cells; given, the memory
            is found by direction and place too (odometry). Empty: by time alone.
        view_deg: horizontal angle of view in degrees, for odometry.
        warp_channels: those of a picture that a memory of pixels has warped into each frame
            (`worldmodel.folded`); 0: none.
    """

    latent_channels: int = 8
    latent_size: int = 8
    patch: int = 2
    width: int = 256
    depth: int = 6
    heads: int = 4
    num_actions: int = 7
    num_previous: int = 2
    recent_frames: int = 8
    memory_frames: int = 128
    num_summary: int = 2
    mlp_ratio: int = 4
    reward_values: tuple[float, ...] = (0.0, 1.0)
    memory: str = "summary"
    compression: str = "none"
    budget: int = 0
    displacements: tuple[tuple[float, float], ...] = ()
    view_deg: float = 70.0
    warp_channels: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_values", tuple(float(v) for v in self.reward_values))
        object.__setattr__(
            self, "displacements", tuple((float(turn), float(walk)) for turn, walk in self.displacements)
        )
        for name in ("latent_channels", "latent_size", "patch", "width", "heads", "num_actions", "recent_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"denoiser {name} must be at least 1; got {getattr(self, name)}")
        for name in ("memory_frames", "num_summary", "num_previous", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"denoiser {name} must be at least 1; got {getattr(self, name)}")
        if self.latent_size % self.patch:
            raise ConfigError(f"patch {self.patch} must divide latent_size {self.latent_size}")
        if len(self.reward_values) < 2:
            raise ConfigError(f"reward_values needs at least two rewards; got {self.reward_values}")
        if self.displacements and (len(self.displacements) != self.num_actions or not 0 < self.view_deg < 180):
            raise ConfigError(
                f"odometry takes a motion for each of the {self.num_actions} actions and a view_deg above 0 and below "
                f"180; got {len(self.displacements)} displacements and {self.view_deg}"
            )
        if self.warp_channels not in (0, NUM_FOLDED):
            raise ConfigError(
                f"warp_channels must be 0 or {NUM_FOLDED}, those of a folded picture; got {self.warp_channels}"
            )
        self.setting  # noqa: B018  raises what is wrong with it

    @property
    def setting(self) -> MemorySetting:
        """The memory structure."""
        return MemorySetting(self.memory, self.memory_frames, self.compression, self.budget or self.memory_frames)

    @property
    def is_grid_memory(self) -> bool:
        """Whether the odd blocks see a memory; else they see recent frames too."""
        return self.memory in ("summary", "prepend")

    @property
    def num_patches(self) -> int:
        """Patch tokens a frame."""
        return (self.latent_size // self.patch) ** 2

    @property
    def num_recent_layers(self) -> int:
        """Blocks that see recent frames in full."""
        return (self.depth + 1) // 2 if self.is_grid_memory else self.depth

    @property
    def num_memory_layers(self) -> int:
        """Blocks that see the memory."""
        return self.depth // 2 if self.memory in ("summary", "prepend", "cross") else 0

    @property
    def num_memory_tokens(self) -> int:
        """Tokens that the memory keeps of a frame or slot."""
        return self.num_summary if self.memory == "summary" else self.num_patches
