"""The objective: chance as promised, the loss as written, and training sees what play shows."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from worldmodel.denoiser import Denoiser
from worldmodel.distortions import DISTORTIONS, LatentDistortions, LatentMap
from worldmodel.errors import ConfigError
from worldmodel.folded import NUM_FOLDED
from worldmodel.inputs import FrameInputs, stack_previous
from worldmodel.noise import add_noise
from worldmodel.objective import DenoiserLoss, ObjectiveConfig, sample_noise
from worldmodel.sampler import Sampler, SamplerConfig
from worldmodel.windows import next_frame_window

SHAPE = torch.Size((3, 8, 4, 4, 4))


def chance(config: ObjectiveConfig, seed: int = 0, shape: torch.Size = SHAPE) -> dict[str, torch.Tensor]:
    return sample_noise(config, shape, torch.Generator().manual_seed(seed))


def clips(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(SHAPE, generator=generator),
        "actions": torch.randint(8, SHAPE[:2], generator=generator),
        "rewards": (torch.rand(SHAPE[:2], generator=generator) < 0.3).float(),
        "terminated": torch.rand(SHAPE[:2], generator=generator) < 0.3,
    }


def test_previous_frames_nearest_first() -> None:
    frames = torch.arange(5.0).reshape(1, 5, 1, 1, 1) + 1
    levels = torch.arange(5.0).reshape(1, 5) / 10
    past, past_levels = stack_previous(frames, levels, 3)
    assert past.shape == (1, 5, 3, 1, 1, 1)
    assert past.flatten(1).reshape(5, 3).tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 3, 2]]
    expected = torch.tensor([[1, 1, 1], [0, 1, 1], [0.1, 0, 1], [0.2, 0.1, 0], [0.3, 0.2, 0.1]])
    torch.testing.assert_close(past_levels[0], expected)


def test_chance_comes_from_the_generator_alone() -> None:
    config = ObjectiveConfig(own_share=0.5, distort_share=0.9)
    first, again, other = chance(config, 1), chance(config, 1), chance(config, 2)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]) or name == "is_forced"


def test_blackouts_are_spans_of_noise_between_context() -> None:
    config = ObjectiveConfig(context_noise=0.2, forcing_share=0.0, pure_noise_share=0.5, blackout_share=0.5)
    drawn = chance(config, shape=torch.Size((400, 64, 1, 1, 1)))
    black = drawn["is_forced"]  # no other clip shows its frames in flight on the channels
    assert black.float().mean() == pytest.approx(0.5, abs=0.08)
    levels = drawn["levels"][black]
    hidden = levels == 1
    assert (levels[~hidden] <= 0.2).all()
    assert not hidden[:, :8].any()
    changes = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert changes.max() <= 4 and hidden.any(1).all()  # one span or two
    assert hidden.sum(1).min() >= 4 and hidden.sum(1).max() <= 48
    assert not chance(ObjectiveConfig(forcing_share=0.0))["is_forced"].any()


def test_distortions_set_in_at_some_frame_of_some_clips() -> None:
    config = ObjectiveConfig(distort_share=0.5)
    drawn = chance(config, shape=torch.Size((4_000, 32, 1, 1, 1)))["distortions"]
    is_hit = drawn != 0
    assert is_hit[:, -1].float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)
    assert is_hit[:, -1].all(1).float().mean() == pytest.approx(0.25, abs=0.04)  # independent of each other
    assert is_hit.float().mean() == pytest.approx(0.25, abs=0.04)
    assert (is_hit[:, 1:] >= is_hit[:, :-1]).all()  # from some frame to the end ...
    assert (~is_hit | (drawn == drawn[:, -1:])).all()  # ... by one strength
    for i, distortion in enumerate(DISTORTIONS):
        met = drawn[:, -1, i][is_hit[:, -1, i]]
        assert met.min() == pytest.approx(distortion.least, abs=0.05)
        assert met.max() == pytest.approx(distortion.most, abs=0.05)
    plain, distorted = chance(ObjectiveConfig()), chance(ObjectiveConfig(distort_share=1.0))
    assert not plain["distortions"].any()
    assert all(torch.equal(plain[name], distorted[name]) for name in plain if name != "distortions")


@pytest.mark.parametrize("is_shown", [False, True])
@pytest.mark.parametrize("own_share", [0.0, 0.5])
def test_context_is_distorted_and_what_is_asked_for_is_not(
    own_share: float, is_shown: bool, make_denoiser: Callable[..., Denoiser]
) -> None:
    denoiser, config = make_denoiser(), ObjectiveConfig(distort_share=1.0, own_share=own_share, head_weight=0.0)
    batch, drawn = clips(), chance(config)
    drawn["is_forced"][:], drawn["is_own"][:] = False, False
    black = LatentDistortions(SHAPE[2])  # the first distortion makes zeros, the second nothing
    cast("LatentMap", black.maps[0]).convolution.weight.zero_()

    shown = clips(1)["latents"] if is_shown else batch["latents"]
    seen: list[Any] = []
    handle = denoiser.register_forward_hook(lambda module, given, output: seen.append((given[0], output[0])))
    with torch.no_grad():
        loss, _ = DenoiserLoss(denoiser, config, 4, black)(**batch, **drawn, shown=shown if is_shown else None)
    handle.remove()

    inputs, prediction = seen[-1]
    noisy, levels = inputs.latents, inputs.levels
    given = shown * (1 - drawn["distortions"][:, :, 0])[:, :, None, None, None]
    is_context = (levels <= config.context_noise)[:, :, None, None, None]
    expected = torch.where(is_context, given, batch["latents"])
    torch.testing.assert_close(noisy, add_noise(expected, drawn["noise"], levels))

    context = add_noise(given, drawn["context_noise"], drawn["context_levels"])
    expected_past = stack_previous(context, drawn["context_levels"], denoiser.config.num_previous)
    torch.testing.assert_close(inputs.previous, expected_past[0])
    torch.testing.assert_close(inputs.previous_levels, expected_past[1])

    errors = (prediction.clean - batch["latents"]).square().mean((2, 3, 4)) / (levels + config.level_offset)
    assert float(loss) == pytest.approx(float(errors.mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="needs the distortions"):
        DenoiserLoss(denoiser, config)


def test_what_was_shown_is_context_without_distortions_too(make_denoiser: Callable[..., Denoiser]) -> None:
    config, batch = ObjectiveConfig(), clips()
    drawn, losses, asked = chance(config), [], []
    for shown in (None, batch["latents"], clips(1)["latents"]):
        denoiser = make_denoiser()
        handle = denoiser.register_forward_hook(lambda module, given, output: asked.append(given[0]))
        with torch.no_grad():
            losses.append(float(DenoiserLoss(denoiser, config, 4)(**batch, **drawn, shown=shown)[0]))
        handle.remove()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(losses[2], rel=1e-3)
    in_flight = (drawn["levels"] > config.context_noise)[:, :, None, None, None].expand(SHAPE)
    assert torch.equal(asked[2].latents[in_flight], asked[0].latents[in_flight])
    assert not torch.isclose(asked[2].latents, asked[0].latents)[~in_flight].any()


def test_levels_are_independent_and_as_configured() -> None:
    config = ObjectiveConfig(context_noise=0.2, forcing_share=0.25, pure_noise_share=0.4, own_share=0.3)
    drawn = chance(config, shape=torch.Size((2_000, 16, 1, 1, 1)))
    levels, forced = drawn["levels"], drawn["is_forced"]
    assert levels.min() >= 0
    assert levels.max() == 1
    assert drawn["context_levels"].max() <= 0.2
    assert forced.float().mean() == pytest.approx(0.25, abs=0.03)
    assert (levels[forced] == 1).float().mean() == pytest.approx(0.4, abs=0.03)
    rest = levels[forced]
    assert rest[rest < 1].mean() == pytest.approx(0.5, abs=0.03)
    # Half of the frames of the other clips are context.
    assert (levels[~forced] <= 0.2).float().mean() == pytest.approx(0.5 + 0.5 * 0.6 * 0.2, abs=0.04)
    assert drawn["is_own"].float().mean() == pytest.approx(0.3 * 0.75, abs=0.03)
    assert torch.corrcoef(levels[forced].T)[0, 1:].abs().max() < 0.2
    assert drawn["noise"].std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(drawn["noise"], drawn["context_noise"])


@pytest.mark.parametrize("forced", [True, False])
def test_the_loss_is_what_it_says(forced: bool, make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(reward_values=(0.0, 1.0))
    config = ObjectiveConfig(head_weight=0.5, level_offset=0.2)
    batch, drawn = clips(), chance(config)
    drawn["is_forced"] = torch.full((3,), forced)
    loss, scalars = DenoiserLoss(denoiser, config, chunk=4)(**batch, **drawn)

    levels, latents = drawn["levels"], batch["latents"]
    noisy = add_noise(latents, drawn["noise"], levels)
    shown_levels = levels if forced else drawn["context_levels"]
    shown = noisy if forced else add_noise(latents, drawn["context_noise"], shown_levels)
    prediction, _ = denoiser(FrameInputs(noisy, levels, batch["actions"], *stack_previous(shown, shown_levels, 2)))
    expected = 0.0
    for b in range(3):
        for t in range(8):
            error = (prediction.clean[b, t] - latents[b, t]).square().mean() / (levels[b, t] + 0.2)
            heads = -prediction.reward_logits[b, t].log_softmax(-1)[int(batch["rewards"][b, t])]
            ended = prediction.terminated_logit[b, t].sigmoid()
            heads = heads - (ended if batch["terminated"][b, t] else 1 - ended).log()
            expected += float((error + 0.5 * heads).detach()) / 24
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    is_first = levels > 0.98
    errors = (prediction.clean - latents).square().mean((2, 3, 4))
    assert float(scalars["error_at_noise"]) == pytest.approx(float(errors[is_first].mean().detach()), rel=1e-4)


def test_rewards_find_the_nearest_class(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(reward_values=(-1.0, 0.0, 0.5))
    config = ObjectiveConfig()
    with torch.no_grad():
        denoiser.reward_head.weight.zero_()
        denoiser.reward_head.bias.copy_(torch.tensor([0.0, 2.0, 5.0]))
        shares = denoiser.reward_head.bias.log_softmax(-1)
        for reward, index in ((-1.0, 0), (0.0, 1), (0.5, 2), (0.49, 2)):
            batch = {**clips(), "rewards": torch.full(SHAPE[:2], reward)}
            _, scalars = DenoiserLoss(denoiser, config, chunk=None)(**batch, **chance(config))
            assert float(scalars["reward_loss"]) == pytest.approx(-float(shares[index]), rel=1e-4)


def test_own_frames_replace_the_context_and_nothing_else(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser, config = make_denoiser(), ObjectiveConfig(own_share=0.5)
    batch, drawn = clips(), chance(config)
    drawn["is_forced"][:] = False
    with torch.no_grad():
        plain, _ = DenoiserLoss(denoiser, ObjectiveConfig(own_share=0.0), 4)(**batch, **drawn)
        none_own, _ = DenoiserLoss(denoiser, config, 4)(**batch, **{**drawn, "is_own": torch.zeros(3, 8, dtype=bool)})
        some_own, _ = DenoiserLoss(denoiser, config, 4)(**batch, **drawn)
    assert float(none_own) == pytest.approx(float(plain), rel=1e-6)
    assert abs(float(some_own) - float(plain)) > 1e-4


@pytest.mark.parametrize("share", ["own_share", "distort_share"])
def test_memory_stays_true_where_the_frames_before_are_not(share: str, make_denoiser: Callable[..., Denoiser]) -> None:
    """What is warped into frames, and where they are, is the same, whatever became of the frames before.

    Slots are made of the frames before, so they follow them.
    """
    displacements = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))
    moving = {"displacements": displacements, "width": 64, "heads": 4, "memory": "cross"}
    denoiser = make_denoiser(**moving, warp_channels=NUM_FOLDED)
    config = ObjectiveConfig(**{share: 0.5})
    warped = torch.randn(*SHAPE[:2], NUM_FOLDED, *SHAPE[3:], generator=torch.Generator().manual_seed(5))
    batch, drawn, seen = clips() | {"warped": warped}, chance(config), []
    black = LatentDistortions(SHAPE[2])
    cast("LatentMap", black.maps[0]).convolution.weight.zero_()
    handle = denoiser.register_forward_hook(
        lambda module, given, settings, output: seen.append((given[0], settings["context"])), with_kwargs=True
    )
    with torch.no_grad():
        DenoiserLoss(denoiser, ObjectiveConfig(), 4)(**batch, **drawn)
        DenoiserLoss(denoiser, config, 4, black)(**batch, **drawn)
    handle.remove()
    (true, _), (other, context) = seen[0], seen[-1]
    assert not torch.equal(true.previous, other.previous)
    expected = denoiser.read(true)
    torch.testing.assert_close(context.readings["warped"].added, expected.readings["warped"].added)
    torch.testing.assert_close(context.estimate.poses, expected.estimate.poses)
    assert context.readings.keys() == {"odometry", "warped"}
    slots = [denoiser.read(frames).slots for frames in (other, true)]
    assert slots[0] is not None and slots[1] is not None and not torch.equal(slots[0].tokens, slots[1].tokens)


def test_every_weight_learns(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser, config = make_denoiser(), ObjectiveConfig()
    loss, _ = DenoiserLoss(denoiser, config, 4)(**clips(), **chance(config))
    loss.backward()
    for name, weight in denoiser.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


@torch.inference_mode()
def test_training_and_play_ask_the_network_the_same_question(make_denoiser: Callable[..., Denoiser]) -> None:
    """A clip whose last frame is pure noise after context at one level is the sampler's first call."""
    denoiser = make_denoiser()
    level, frames = 0.1, SHAPE[1]
    batch = clips()
    noise, start = chance(ObjectiveConfig(), 3)["noise"], frames - 1
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1, context_level=level))
    state = sampler.begin(batch["latents"][:, :start], batch["actions"][:, :start], noise[:, :start])
    found, _ = sampler.step(state, batch["actions"][:, start:], noise[:, start:], noise[:, start:])

    levels = torch.full((3, frames), level)
    levels[:, -1] = 1.0
    drawn = {"levels": levels, "noise": noise, "context_noise": noise, "context_levels": torch.full((3, frames), level)}
    drawn["distortions"] = torch.zeros(3, frames, len(DISTORTIONS))
    seen: dict[str, Any] = {}
    handle = denoiser.register_forward_hook(lambda module, inputs, output: seen.update(clean=output[0].clean))
    no = torch.zeros(3, frames, dtype=torch.bool)
    DenoiserLoss(denoiser, ObjectiveConfig(), chunk=4)(**batch, **drawn, is_forced=no[:, 0], is_own=no)
    handle.remove()
    torch.testing.assert_close(found[:, 0], seen["clean"][:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["context_noise", "forcing_share", "pure_noise_share", "distort_share", "own_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_shares_outside_0_to_1_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"objective {name} must be in \[0, 1\]; got {value}"):
        ObjectiveConfig(**{name: value})
