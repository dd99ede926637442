"""How a recipe spends its time: one row for each preset and kind of device.

Owns the numbers. The `tiny` row for a CPU is rehearsed in the tests, the `small` one follows the settings that trained
the shipped world on two cores; the rows for CUDA are meant for one H100 with 16 cores and have not run there yet.
"""

from dataclasses import dataclass

from worldmodel.errors import ConfigError
from worldmodel.objective import ObjectiveConfig

PLAY_OBJECTIVE = ObjectiveConfig(
    pure_noise_share=0.5,
    level_offset=0.5,
    blackout_share=0.25,
    distort_share=0.5,
    own_share=0.25,
    head_weight=0.05,
    reward_weight=5.0,
)


@dataclass(frozen=True)
class Plan:
    """One row. Shares are of the whole time; the denoiser gets what the other stages leave.

    Attributes:
        frames_per_minute: most frames to record for each minute of the whole time; the rest of the world stays unseen.
        max_frames: most frames to record at all.
        length: steps of an episode.
        episodes_per_shard: episodes in one file.
        test_fraction: share of the episodes in test scenes.
        first_frames: frames that are there before the codec is trained.
        is_beside: recording goes on beside codec training (many cores, and a GPU that trains).
        record_share: most time to record.
        codec_share: time to train the codec.
        depth_share: time to train the depth network. This and what follows up to the dreams is for a memory of pixels.
        depth_frames: most frames that it learns from.
        warps_share: time to prepare the recording.
        decoder_share: time to train the decoder that keeps pixels.
        decoder_clips: clips whose latents the denoiser predicts for it.
        decoder_dreams: dreams that it learns from.
        dream_frames: frames of each.
        evaluate_share: time kept for measuring and bundling.
        codec_batch: frames a step.
        codec_rate: peak learning rate.
        denoiser_batch: clips a step.
        clip_frames: frames of a clip.
        denoiser_rate: peak learning rate.
        ema: decay of the averages of the weights.
        compile_minutes: a training shorter than this is not compiled.
        openings: openings in the bundle.
        objective: of the denoiser.
    """

    frames_per_minute: int
    max_frames: int
    length: int = 480
    episodes_per_shard: int = 8
    test_fraction: float = 0.05
    first_frames: int = 0
    is_beside: bool = False

    record_share: float = 0.12
    codec_share: float = 0.15
    depth_share: float = 0.05
    depth_frames: int = 100_000

    warps_share: float = 0.1
    decoder_share: float = 0.08
    decoder_clips: int = 96
    decoder_dreams: int = 12
    dream_frames: int = 120
    evaluate_share: float = 0.07

    codec_batch: int = 64
    codec_rate: float = 1.5e-3
    denoiser_batch: int = 8
    clip_frames: int = 32
    denoiser_rate: float = 2e-3
    ema: float = 0.998

    compile_minutes: float = 8.0
    openings: int = 32
    objective: ObjectiveConfig = PLAY_OBJECTIVE

    def num_episodes(self, minutes: float) -> int:
        """Return how many episodes to plan for a whole time in minutes; never fewer than a dozen shards."""
        frames = min(self.max_frames, round(self.frames_per_minute * minutes))
        return max(frames // self.length, 12 * self.episodes_per_shard)

    def denoiser_minutes(self, minutes: float, used_minutes: float, has_pixels: bool) -> float:
        """Return the time left for the denoiser in a whole time of `minutes`, never less than a quarter of it."""
        after = self.evaluate_share + (self.decoder_share if has_pixels else 0.0)
        return max(0.25 * minutes, minutes - used_minutes - after * minutes)


TINY_CPU = Plan(
    frames_per_minute=8_000,
    max_frames=60_000,
    length=150,
    episodes_per_shard=1,
    test_fraction=0.15,
    evaluate_share=0.25,
    depth_frames=4_000,
    decoder_clips=4,
    decoder_dreams=2,
    dream_frames=16,
    codec_batch=32,
    denoiser_batch=4,
    clip_frames=16,
    ema=0.98,
    compile_minutes=1e9,
    openings=8,
)

TINY_CUDA = Plan(
    frames_per_minute=30_000,
    max_frames=200_000,
    length=150,
    episodes_per_shard=1,
    test_fraction=0.15,
    evaluate_share=0.25,
    depth_frames=20_000,
    denoiser_batch=32,
    ema=0.98,
    compile_minutes=1e9,
    openings=8,
)

SMALL_CPU = Plan(
    frames_per_minute=2_500,
    max_frames=400_000,
    codec_share=0.22,
    depth_frames=40_000,
    decoder_clips=48,
    decoder_dreams=6,
    dream_frames=80,
    denoiser_batch=6,
    clip_frames=24,
    ema=0.995,
)

SMALL_CUDA = Plan(
    frames_per_minute=48_000,
    max_frames=1_200_000,
    first_frames=100_000,
    is_beside=True,
    record_share=0.35,
    codec_share=0.25,
    codec_batch=512,
    codec_rate=2e-3,
    denoiser_batch=128,
    denoiser_rate=3e-3,
    ema=0.999,
    compile_minutes=4.0,
)

BASE_CPU = Plan(
    frames_per_minute=1_000,
    max_frames=400_000,
    codec_share=0.2,
    depth_frames=20_000,
    decoder_clips=24,
    decoder_dreams=4,
    dream_frames=60,
)

BASE_CUDA = Plan(
    frames_per_minute=20_000,
    max_frames=2_000_000,
    first_frames=60_000,
    is_beside=True,
    record_share=0.35,
    codec_share=0.25,
    codec_batch=256,
    codec_rate=1.5e-3,
    denoiser_batch=32,
    denoiser_rate=2e-3,
    ema=0.999,
    compile_minutes=4.0,
)

PLANS = {
    ("tiny", "cpu"): TINY_CPU,
    ("tiny", "cuda"): TINY_CUDA,
    ("small", "cpu"): SMALL_CPU,
    ("small", "cuda"): SMALL_CUDA,
    ("base", "cpu"): BASE_CPU,
    ("base", "cuda"): BASE_CUDA,
}


def get_plan(preset: str, device_type: str) -> Plan:
    """Return the plan of a preset on "cpu" or "cuda"; other devices follow the CPU's.

    Raises:
        ConfigError: no plan for this preset.
    """
    key = (preset, "cuda" if device_type == "cuda" else "cpu")
    if key not in PLANS:
        names = sorted({name for name, _ in PLANS})
        raise ConfigError(f"no plan for preset {preset!r}; accepted: {', '.join(names)}")
    return PLANS[key]
