"""Attention: three ways to compute it are one function, and who sees whom is as promised."""

import math

import numpy as np
import pytest
import torch

from worldmodel.attention import FrameAttention, Kind, LayerInputs, RotaryPosition
from worldmodel.cache import MemoryCache
from worldmodel.errors import ConfigError

WIDTH, HEADS, PATCHES, SUMMARY, FRAMES = 32, 2, 4, 2, 12
KINDS: tuple[Kind, ...] = ("recent", "memory")


def make_layer(kind: Kind, reach: int) -> tuple[FrameAttention, RotaryPosition]:
    torch.manual_seed(0)
    layer = FrameAttention(WIDTH, HEADS, kind, PATCHES, SUMMARY, reach)
    with torch.no_grad():
        layer.q_scale.add_(torch.rand_like(layer.q_scale))
        layer.k_scale.add_(torch.rand_like(layer.k_scale))
    return layer.eval(), RotaryPosition(WIDTH // HEADS, 2, SUMMARY)


def clip(seed: int = 1, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(2, frames, PATCHES + SUMMARY, WIDTH, generator=torch.Generator().manual_seed(seed))


def dense(layer: FrameAttention, rotary: RotaryPosition, x: torch.Tensor) -> torch.Tensor:
    attended: torch.Tensor = layer(x, LayerInputs(rotary(torch.arange(x.shape[1])[None])))[0]
    return attended


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", [1, 2, 3, 5, 12, 40])
@torch.inference_mode()
def test_chunked_equals_dense(kind: Kind, reach: int) -> None:
    layer, rotary = make_layer(kind, reach)
    x = clip()
    angles = rotary(torch.arange(FRAMES)[None])
    for chunk in (1, 2, 3, 4, 6, 12, 20):
        chunked = layer(x, LayerInputs(angles, chunk=chunk))[0]
        torch.testing.assert_close(chunked, dense(layer, rotary, x), rtol=1e-5, atol=1e-5)


def test_a_chunk_must_divide_the_clip() -> None:
    layer, rotary = make_layer("recent", 3)
    with pytest.raises(ConfigError, match="chunk 5 must divide the 12 frames"):
        layer(clip(), LayerInputs(rotary(torch.arange(FRAMES)[None]), chunk=5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", [1, 4, 30])
@torch.inference_mode()
def test_dense_is_softmax_over_what_a_frame_may_see(kind: Kind, reach: int) -> None:
    """One query written out by hand."""
    layer, rotary = make_layer(kind, reach)
    x = clip()
    q, k, v = layer.project(x, rotary(torch.arange(FRAMES)[None]))
    frame, token = 9, 1
    shared = range(PATCHES) if kind == "recent" else range(PATCHES, PATCHES + SUMMARY)
    seen = [(t, n) for t in range(max(0, frame - reach), frame) for n in shared]
    seen += [(frame, n) for n in range(PATCHES + SUMMARY)]
    heads = []
    for h in range(HEADS):
        keys = torch.stack([k[0, t, h, n] for t, n in seen])
        values = torch.stack([v[0, t, h, n] for t, n in seen])
        scores = keys @ q[0, frame, h, token] / math.sqrt(WIDTH // HEADS)
        heads.append(scores.softmax(0) @ values)
    expected = layer.to_out(torch.cat(heads))
    torch.testing.assert_close(dense(layer, rotary, x)[0, frame, token], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_who_sees_a_changed_token(kind: Kind) -> None:
    reach, changed = 3, 4
    layer, rotary = make_layer(kind, reach)
    x = clip()
    before = dense(layer, rotary, x)
    for name, tokens in (("patch", slice(0, 1)), ("summary", slice(PATCHES, PATCHES + 1))):
        other = x.clone()
        other[:, changed, tokens] += 1.0
        difference = (dense(layer, rotary, other) - before).abs().amax((0, 2, 3))
        reaches_far = (name == "patch") == (kind == "recent")
        last = changed + reach if reaches_far else changed
        seen = [t for t in range(FRAMES) if difference[t] > 0]
        assert seen == list(range(changed, last + 1)), f"{name} token in a {kind} layer"


@torch.inference_mode()
def test_fast_attention_is_the_softmax_written_out() -> None:
    """The kernel that CUDA uses and the form the CPU uses are one function."""
    from torch.nn.functional import scaled_dot_product_attention

    from worldmodel.attention import attend, to_bias

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, n, 16, generator=generator) for n in (5, 7, 7))
    bias = to_bias(torch.rand(5, 7, generator=generator) < 0.6)
    bias[:, 0] = 0
    expected = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(attend(q, k, v, bias), expected, rtol=1e-5, atol=1e-5)


def exact_angles(rotary: RotaryPosition, position: int) -> np.ndarray:
    return np.float64(position) * rotary.time.double().numpy()


@pytest.mark.parametrize("position", [0, 31, 10_000, 54_321, 1_000_000])
def test_positions_stay_exact_after_hours_of_play(position: int) -> None:
    rotary = RotaryPosition(16, 2, SUMMARY)
    cos, sin = rotary(torch.tensor([[position]]))
    exact = exact_angles(rotary, position)
    np.testing.assert_allclose(cos[0, 0, 0, 0, : len(exact)].numpy(), np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0, 0, 0, : len(exact)].numpy(), np.sin(exact), atol=1e-6)


def test_half_precision_weights_keep_exact_positions() -> None:
    """A world in bfloat16 would otherwise turn time by other frequencies than it was trained with."""
    rotary, half = RotaryPosition(64, 4, SUMMARY), RotaryPosition(64, 4, SUMMARY).to(torch.bfloat16)
    positions = torch.tensor([[0, 1, 127, 5_000]])
    for exact, found in zip(rotary(positions), half(positions), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_a_head_of_odd_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8; got 12"):
        RotaryPosition(12, 2, 2)
    with pytest.raises(ConfigError, match="width 30 must be a multiple of heads 4"):
        FrameAttention(30, 4, "recent", PATCHES, SUMMARY, 3)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_ring_slot_holds_the_newest_frame_that_fits(size: int) -> None:
    for count in range(3 * size + 2):
        expected = [max((p for p in range(count) if p % size == slot), default=-1) for slot in range(size)]
        held = MemoryCache.slot_positions(torch.tensor([count]), size)[0].tolist()
        assert [max(p, -1) for p in held] == expected
