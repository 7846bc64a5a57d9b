"""The denoiser seam against slow references: plain networks, loops and formulas."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import small
import torch
from torch import Tensor

from zero123cli.cameras import Viewpoint, relative_pose
from zero123cli.diffusion.viewmodel import (
    CLIP_MEAN,
    CLIP_STD,
    Condition,
    ViewModel,
    alphas_cumprod,
    clip_input,
    fold_cross_attention,
    look_from,
)
from zero123cli.diffusion.volume import VolumeDescription, render, volume_grid

PHOTO = Viewpoint(0, 12, 1.7)
POSES = [Viewpoint(90, 0), Viewpoint(-30, 40, 2.0), Viewpoint(180, -10, 1.7)]
TIMES = torch.tensor([10, 500, 970])


@pytest.fixture(scope="module")
def plain() -> ViewModel:
    """The networks as the libraries compute them."""
    return small.make_model()


@pytest.fixture(scope="module")
def model(plain: ViewModel) -> ViewModel:
    folded = copy.deepcopy(plain)
    assert fold_cross_attention(folded) > 0
    return folded


@pytest.fixture(scope="module")
def seen(plain: ViewModel) -> Condition:
    return plain.condition(small.picture_of(), PHOTO)


@pytest.fixture(scope="module")
def noisy(plain: ViewModel) -> Tensor:
    return small.noise_of(len(POSES), 4, plain.description.latent_side, plain.description.latent_side)


@torch.no_grad()
def slow_predict(model: ViewModel, seen: Condition, noisy: Tensor, guidance: float, kind: Any = "original") -> Tensor:
    """One latent and one branch after the other, through diffusers' own UNet."""
    answers = []
    for latent, time, pose in zip(noisy, TIMES, POSES, strict=True):
        numbers = torch.tensor(relative_pose(kind, seen.viewpoint, pose))
        tokens = [torch.cat([token, numbers]) for token in seen.embedding]
        projected = [model.projection.weight @ token + model.projection.bias for token in tokens]
        branches = []
        for context, concat in (
            (torch.stack(projected), seen.concat),
            (torch.zeros(len(projected), len(projected[0])), torch.zeros_like(seen.concat)),
        ):
            stacked = torch.cat([latent, concat])[None]
            branches.append(model.unet(stacked, time, encoder_hidden_states=context[None]).sample[0])
        conditioned, without = branches
        answers.append(without + guidance * (conditioned - without))
    return torch.stack(answers)


# Guidance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0, 100.0])
def test_noise_is_what_the_plain_unet_says_branch_by_branch(
    plain: ViewModel, model: ViewModel, seen: Condition, noisy: Tensor, guidance: float
) -> None:
    expected = slow_predict(plain, seen, noisy, guidance)
    for either in (plain, model):
        assert small.error(either.predict(seen, noisy, TIMES, POSES, guidance), expected) < 1e-5


def test_the_pose_kind_is_that_of_the_description(plain: ViewModel, seen: Condition, noisy: Tensor) -> None:
    stable = copy.copy(plain)
    stable.description = replace(plain.description, pose_kind="stable")
    expected = slow_predict(plain, seen, noisy, 3.0, "stable")
    assert small.error(stable.predict(seen, noisy, TIMES, POSES, 3.0), expected) < 1e-5
    assert small.error(plain.predict(seen, noisy, TIMES, POSES, 3.0), expected) > 1e-3


@pytest.mark.parametrize(("guidance", "batches"), [(1.0, [3]), (0.0, [3]), (3.0, [6]), (0.5, [6])])
def test_one_pass_is_enough(
    model: ViewModel, seen: Condition, noisy: Tensor, guidance: float, batches: list[int]
) -> None:
    calls, stop = small.count_calls(model.unet)
    model.predict(seen, noisy, TIMES, POSES, guidance)
    stop()
    assert calls == batches


def test_the_branch_without_a_condition_comes_first_and_sees_neither_photo_nor_pose_nor_bias(
    model: ViewModel, seen: Condition, noisy: Tensor
) -> None:
    given: list[tuple[Any, ...]] = []
    hook = model.unet.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    model.predict(seen, noisy, TIMES, POSES, 3.0)
    hook.remove()
    ((stacked, times, context),) = given
    assert torch.equal(times, torch.cat([TIMES, TIMES]))
    assert torch.equal(stacked[:3, :4], noisy) and torch.equal(stacked[3:, :4], noisy), "noise first, then the photo"
    assert not stacked[:3, 4:].any() and not context[:3].any()
    assert torch.equal(stacked[3:, 4:], seen.concat.expand(3, -1, -1, -1))
    assert torch.equal(context[3:], model.context(seen, POSES)) and context[3:].any()
    assert context.shape == (6, 1, 16)


def test_a_prediction_does_not_depend_on_its_neighbours(model: ViewModel, seen: Condition, noisy: Tensor) -> None:
    together = model.predict(seen, noisy, TIMES, POSES, 3.0)
    for k in range(3):
        alone = model.predict(seen, noisy[k : k + 1], TIMES[k : k + 1], POSES[k : k + 1], 3.0)
        assert small.error(alone[0], together[k]) < 1e-5


def test_the_gradient_reaches_the_noisy_latents(model: ViewModel, seen: Condition, noisy: Tensor) -> None:
    latents = noisy.clone().requires_grad_()
    model.predict(seen, latents, TIMES, POSES, 3.0).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().min() > 0


# One context token ----------------------------------------------------------------------------------------------------


def test_folding_takes_queries_keys_and_their_norm_away(plain: ViewModel, model: ViewModel) -> None:
    gone = plain.state_dict().keys() - model.state_dict().keys()
    blocks = {name.rpartition(".attn2")[0] for name in plain.state_dict() if ".attn2.to_q." in name}
    expected = {f"{block}.{part}" for block in blocks for part in ("attn2.to_q.weight", "attn2.to_k.weight")}
    expected |= {f"{block}.norm2.{kind}" for block in blocks for kind in ("weight", "bias")}
    assert gone == expected
    assert len(blocks) == fold_cross_attention(copy.deepcopy(plain)) == 4


def test_folding_is_exact_whatever_the_queries_and_keys_are(
    plain: ViewModel, model: ViewModel, seen: Condition, noisy: Tensor
) -> None:
    wild = copy.deepcopy(plain)
    for name, weight in wild.unet.named_parameters():
        if ".attn2.to_q." in name or ".attn2.to_k." in name:
            weight *= -30
    expected = wild.predict(seen, noisy, TIMES, POSES, 3.0)
    assert small.error(model.predict(seen, noisy, TIMES, POSES, 3.0), expected) < 1e-5


def test_several_tokens_are_attended_to(seen: Condition, noisy: Tensor) -> None:
    patches = small.make_model(small.PATCHES)
    assert fold_cross_attention(patches) == 0
    seen = patches.condition(small.picture_of(), PHOTO)
    expected = slow_predict(patches, seen, noisy, 3.0)
    assert small.error(patches.predict(seen, noisy, TIMES, POSES, 3.0), expected) < 1e-5


# What a photo becomes -------------------------------------------------------------------------------------------------


@torch.no_grad()
def moments_of(model: ViewModel, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of a picture, before they are scaled."""
    assert model.vae is not None
    mean, logvar = model.vae.quant_conv(model.vae.encoder(picture[None])).chunk(2, 1)
    return mean, (0.5 * logvar.clamp(-30, 20)).exp()


def test_a_photo_is_its_embedding_and_its_unscaled_most_likely_latent(model: ViewModel, seen: Condition) -> None:
    mean, _ = moments_of(model, small.picture_of())
    assert seen.viewpoint == PHOTO
    assert small.error(seen.concat, mean[0]) < 1e-6
    again = model.condition(small.picture_of(), PHOTO)
    assert torch.equal(again.concat, seen.concat) and torch.equal(again.embedding, seen.embedding), "nothing is drawn"


def test_the_embedding_is_the_pooled_projected_token_as_it_is(model: ViewModel, seen: Condition) -> None:
    pixels = clip_input(small.picture_of()[None], 28)
    hidden = model.clip.vision_model(pixel_values=pixels).last_hidden_state
    norm = model.clip.vision_model.post_layernorm
    expected = norm(hidden[:, 0]) @ model.clip.visual_projection.weight.T
    assert seen.embedding.shape == (1, 12)
    assert small.error(seen.embedding, expected) < 1e-5
    assert abs(float(seen.embedding.norm()) - 1) > 0.1, "not normalised"


def test_patches_are_tokens_of_their_own() -> None:
    patches = small.make_model(small.PATCHES)
    seen = patches.condition(small.picture_of(), PHOTO)
    hidden = patches.clip.vision_model(pixel_values=clip_input(small.picture_of()[None], 28)).last_hidden_state
    assert seen.embedding.shape == (4, 12), "28 px in patches of 14"
    assert small.error(seen.embedding, patches.clip.visual_projection(hidden)[0, 1:]) < 1e-5
    context = patches.context(seen, POSES)
    assert context.shape == (3, 4, 16)
    assert not torch.allclose(context[:, 0], context[:, 1])


def test_latents_are_scaled_and_drawn_only_from_the_noise_that_is_given(model: ViewModel) -> None:
    picture, scale = small.picture_of(), 0.18215
    mean, deviation = moments_of(model, picture)
    noise = small.noise_of(*mean.shape)
    assert small.error(model.encode(picture[None]), scale * mean) < 1e-6
    assert small.error(model.encode(picture[None], noise), scale * (mean + deviation * noise)) < 1e-6


def test_decoding_takes_the_scale_off(model: ViewModel) -> None:
    assert model.vae is not None
    latents = small.noise_of(2, 4, 16, 16)
    expected = model.vae.decoder(model.vae.post_quant_conv(latents / 0.18215))
    decoded = model.decode(latents)
    assert decoded.shape == (2, 3, 32, 32) and decoded.dtype == torch.float32
    assert small.error(decoded, expected) < 1e-5


@pytest.mark.parametrize("drawn", [False, True], ids=["most likely", "drawn"])
def test_the_gradient_of_encoding_reaches_the_picture(plain: ViewModel, drawn: bool) -> None:
    model = copy.deepcopy(plain).double()
    noise = small.noise_of(1, 4, 16, 16).double() if drawn else None
    picture = small.picture_of()[None].double().requires_grad_()
    direction = small.noise_of(1, 3, 32, 32, seed=5).double()

    def loss(picture: Tensor) -> Tensor:
        return model.encode(picture, noise).square().sum()

    (gradient,) = torch.autograd.grad(loss(picture), picture)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(picture + step * direction) - loss(picture - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


# CLIP's resize --------------------------------------------------------------------------------------------------------


def cubic(x: float) -> float:
    """The kernel of torch's and kornia's bicubic resize."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_resize(rows: np.ndarray, side: int) -> np.ndarray:
    """Along the first axis: corners on corners, the edge repeated, no smoothing however much it shrinks."""
    out = np.zeros((side, *rows.shape[1:]))
    for k in range(side):
        place = k * (len(rows) - 1) / (side - 1)
        first = math.floor(place)
        for tap in range(first - 1, first + 3):
            out[k] += cubic(place - tap) * rows[min(max(tap, 0), len(rows) - 1)]
    return out


@pytest.mark.parametrize(("size", "side"), [(64, 28), (256, 224), (32, 56), (28, 28)])
def test_clip_sees_the_original_resize(size: int, side: int) -> None:
    picture = small.picture_of(3, size)
    rows = slow_resize(picture.double().permute(1, 2, 0).numpy(), side)
    resized = slow_resize(rows.swapaxes(0, 1), side).swapaxes(0, 1)
    expected = ((resized + 1) / 2 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    ours = clip_input(picture[None], side)[0].permute(1, 2, 0).double().numpy()
    assert ours.shape == (side, side, 3)
    assert np.abs(ours - expected).max() < 5e-4  # float32 coordinates
    assert tuple(CLIP_MEAN) == (0.48145466, 0.4578275, 0.40821073)
    assert tuple(CLIP_STD) == (0.26862954, 0.26130258, 0.27577711)


# Noise ----------------------------------------------------------------------------------------------------------------

TABLE = {  # timestep -> alpha-bar, sigma
    0: (0.9991500, 0.02917),
    1: (0.9982960, 0.04131),
    20: (0.9813144, 0.13799),
    100: (0.8942235, 0.34393),
    200: (0.7536920, 0.57167),
    300: (0.5905011, 0.83275),
    500: (0.2763327, 1.61828),
    700: (0.0825209, 3.33439),
    850: (0.0232991, 6.47458),
    961: (0.0072817, 11.67605),
    980: (0.0058438, 13.04308),
    999: (0.0046601, 14.61464),
}


def test_the_noise_schedule_is_the_published_one() -> None:
    alphas = alphas_cumprod()
    assert alphas.shape == (1000,) and alphas.dtype == torch.float64 and (alphas.diff() < 0).all()
    for time, (alpha, sigma) in TABLE.items():
        assert float(alphas[time]) == pytest.approx(alpha, abs=6e-8)
        assert float(((1 - alphas[time]) / alphas[time]).sqrt()) == pytest.approx(sigma, abs=6e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_added_with_a_variance_that_stays_one(model: ViewModel, dtype: torch.dtype) -> None:
    latents, noise = small.noise_of(3, 4, 16, 16, seed=3), small.noise_of(3, 4, 16, 16, seed=4)
    noisy = model.add_noise(latents.to(dtype), noise.to(dtype), TIMES)
    for k, time in enumerate(TIMES.tolist()):
        alpha = float(alphas_cumprod()[time])
        expected = alpha**0.5 * latents[k] + (1 - alpha) ** 0.5 * noise[k]
        assert small.error(noisy[k], expected) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_what_a_volume_shows_is_corrected_in_one_pass_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.make_model(replace(small.PIXELS, predicts="correction"))
    shown, context = small.noise_of(3, 4, 32, 32, seed=3), small.noise_of(3, 1, 1, seed=5)
    given = []

    def answer(latents: Tensor, times: Tensor, context: Tensor, concat: Tensor) -> Tensor:
        given.append((latents, times, context, concat))
        return 0.25 * concat

    monkeypatch.setattr(model, "answer", answer)
    assert small.error(model.mend(shown, context), 1.25 * shown) < 1e-5
    ((latents, times, told, concat),) = given
    assert small.error(latents, float(alphas_cumprod()[400]) ** 0.5 * shown) < 1e-6 and times.tolist() == [400] * 3
    assert told is context and concat is shown


def test_only_a_model_with_a_volume_is_certain() -> None:
    model = small.make_model()
    assert not model.certain
    model.volume = torch.nn.Identity()
    assert model.certain


def test_a_correction_is_turned_into_noise(seen: Condition, noisy: Tensor) -> None:
    model = small.make_model(replace(small.SMALL, predicts="correction"))
    answer = slow_predict(model, seen, noisy, 1.0)
    alpha = alphas_cumprod()[TIMES][:, None, None, None]
    expected = (noisy - alpha.sqrt() * (seen.concat + answer)) / (1 - alpha).sqrt()
    assert small.error(model.predict(seen, noisy, TIMES, POSES, 1.0), expected) < 1e-5


def test_a_perfect_correction_is_turned_into_the_true_noise(seen: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.make_model(replace(small.SMALL, predicts="correction"))
    clean, noise = small.noise_of(3, 4, 16, 16, seed=3), small.noise_of(3, 4, 16, 16, seed=4)
    monkeypatch.setattr(
        model.unet, "forward", lambda stacked, *_, **__: (clean.repeat(len(stacked) // 3, 1, 1, 1) - stacked[:, 4:],)
    )
    for guidance in (0.0, 1.0, 3.0):  # with nothing concatenated the whole picture is what is missing
        told = model.predict(seen, model.add_noise(clean, noise, TIMES), TIMES, POSES, guidance)
        assert small.error(told, noise) < 1e-3


# Without a codec ------------------------------------------------------------------------------------------------------


def test_latents_may_be_pictures_with_alpha() -> None:
    model = small.make_model(small.PIXELS)
    fold_cross_attention(model)
    picture = small.picture_of(4)
    assert model.vae is None and model.description.latent_side == 32 and model.description.picture_channels == 4
    seen = model.condition(picture, PHOTO)
    assert torch.equal(seen.concat, picture)
    for either in (model.encode(picture[None]), model.encode(picture[None], small.noise_of(1, 4, 32, 32))):
        assert torch.equal(either, picture[None])
    assert torch.equal(model.decode(picture[None]), picture[None])
    opaque = torch.cat([picture[:3], torch.ones(1, 32, 32)])
    assert torch.equal(model.condition(opaque, PHOTO).embedding, seen.embedding), "CLIP sees colours only"
    noisy = small.noise_of(3, 4, 32, 32)
    plain = small.make_model(small.PIXELS)
    expected = slow_predict(plain, seen, noisy, 3.0)
    assert small.error(model.predict(seen, noisy, TIMES, POSES, 3.0), expected) < 1e-5


@pytest.mark.parametrize("channels", [1, 4])
def test_a_picture_of_another_kind_is_a_mistake_of_ours(model: ViewModel, channels: int) -> None:
    with pytest.raises(AssertionError):
        model.condition(small.picture_of(channels), PHOTO)
    with pytest.raises(AssertionError):
        model.condition(small.picture_of(3, 64), PHOTO)


# Precision ------------------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32(plain: ViewModel, model: ViewModel) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours, theirs = small.answers(half), small.answers(plain)
    assert ours["noise"].dtype == ours["picture"].dtype == torch.float32
    assert ours["latents"].dtype == ours["embedding"].dtype == torch.bfloat16
    for name in theirs:
        difference = (ours[name].float() - theirs[name]).square().mean().sqrt()
        assert difference < 0.04 * theirs[name].square().mean().sqrt(), name
    assert half.alphas.dtype == torch.float64


def test_a_photo_is_kept_in_the_precision_of_the_model(model: ViewModel) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    seen = half.condition(small.picture_of(), PHOTO)
    assert seen.concat.dtype == seen.embedding.dtype == torch.bfloat16


def test_a_lean_model_answers_the_same_and_holds_one_network_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which network is sent where is all that can be seen without a second device."""
    model = small.make_model()
    expected = small.answers(model)
    moves: list[tuple[str, str]] = []
    for name in ("unet", "clip", "vae"):
        part = getattr(model, name)
        monkeypatch.setattr(part, "to", lambda where, name=name, part=part: moves.append((name, str(where))) or part)
    model.lean = True
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cpu", 0)))
    model.condition(small.picture_of(), Viewpoint())
    assert [move for move in moves if move[1] == "cpu:0"] == [("clip", "cpu:0"), ("vae", "cpu:0")]
    assert ("unet", "cpu") in moves
    moves.clear()
    small.agree(small.answers(model), expected)
    assert {("unet", "cpu:0"), ("clip", "cpu")} <= set(moves)
    assert ("vae", "cpu") not in moves, "a gradient through it may still be to come"


def test_cameras_are_wherever_the_volume_is() -> None:
    """Shapes alone are computed on the device `meta`, which mixes with no other any more than a card does."""
    net = VolumeDescription(size=32, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
    model = small.make_model(replace(small.PIXELS, tokens="patches", volume=asdict(net))).eval().to("meta")
    seen = model.condition(small.picture_of(channels=4).to("meta"), Viewpoint())
    assert seen.volume is not None and seen.volume.occupancy.device.type == "meta"
    assert volume_grid(seen.volume, look_from([Viewpoint(0, 20)]), 0.6, 8).shape == (4, 8, 8, 8)
    here, there = look_from([Viewpoint(0, 20)]), look_from([Viewpoint(90, 20)])
    assert render(seen.volume, here, there, 12).shape == (1, 4, 12, 12)
