"""What guidance says of a rendering, with a denoiser that knows the answer and with one that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import small
import torch
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import guidance
from zero123cli.diffusion.guidance import GUIDANCE, WEIGHTINGS, Levels, Ways, draw_times, guide, levels_between
from zero123cli.diffusion.viewmodel import ViewModel, alphas_cumprod

SHAPE = (3, 4, 5, 6)
POSES = [Viewpoint(10.0 * k) for k in range(SHAPE[0])]


class Knows:
    """Answers with the exact noise that leads to one picture."""

    def __init__(self, answer: Tensor) -> None:
        self.answer, self.alphas, self.scales = answer, alphas_cumprod(), []  # type: ignore[var-annotated]

    def predict(self, condition: Any, latents: Tensor, timesteps: Tensor, poses: Any, guidance: float) -> Tensor:
        a = self.alphas[timesteps].float()[:, None, None, None]
        self.scales.append(guidance)
        return (latents - a.sqrt() * self.answer) / (1 - a).sqrt()


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    latents = torch.randn(SHAPE, requires_grad=True)
    return latents, torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([50, 400, 900])


def gradient_of(kind: str, model: Any, given: Sequence[Tensor], ways: Ways) -> Tensor:
    latents, _, noise, times = given
    latents.grad = None
    guide(kind, model, None, latents, POSES, times, noise, ways).backward()
    assert latents.grad is not None
    return latents.grad * len(latents)  # of the sum over an item, as the papers write it


def test_sds_is_the_weighted_difference_of_noises(given: Any) -> None:
    latents, answer, noise, times = given
    a = alphas_cumprod()[times].float()[:, None, None, None]
    noisy = a.sqrt() * latents.detach() + (1 - a).sqrt() * noise
    predicted = (noisy - a.sqrt() * answer) / (1 - a).sqrt()
    for name, weight in {"published": 1 - a, "dreamfusion": 1 - a.sqrt(), "uniform": torch.ones_like(a)}.items():
        found = gradient_of("sds", Knows(answer), given, Ways(weighting=name))
        torch.testing.assert_close(found, weight * (predicted - noise), atol=1e-5, rtol=1e-4)
    assert set(WEIGHTINGS) == {"published", "dreamfusion", "uniform"}


def test_sjc_is_sds_without_a_weight(given: Any) -> None:
    """In units in which noise has variance 1, the score of SJC and the uniformly weighted one are the same."""
    model = Knows(given[1])
    sjc = gradient_of("sjc", model, given, Ways())
    sds = gradient_of("sds", model, given, Ways(weighting="uniform"))
    torch.testing.assert_close(sjc, sds, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_a_denoiser_that_knows_the_answer_draws_straight_to_it(given: Any, kind: str) -> None:
    latents, answer, _, _ = given
    found = gradient_of(kind, Knows(answer), given, Ways())
    away = latents.detach() - answer
    cosine = torch.cosine_similarity(found.flatten(1), away.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(len(cosine)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("walk", [1, 3, 7])
def test_the_clean_estimate_of_one_that_knows_is_the_answer(given: Any, walk: int) -> None:
    latents, answer, _, _ = given
    model = Knows(answer)
    found = gradient_of("clean", model, given, Ways(walk=walk))
    torch.testing.assert_close(found, latents.detach() - answer, atol=1e-4, rtol=1e-3)
    assert model.scales == [3.0] * walk


@pytest.mark.parametrize("kind", GUIDANCE)
def test_the_gradient_runs_through_what_made_the_latents(given: Any, kind: str) -> None:
    _, answer, noise, times = given
    image = torch.randn(SHAPE, requires_grad=True)
    guide(kind, Knows(answer), None, image * 3 + 1, POSES, times, noise, Ways()).backward()
    assert image.grad is not None
    own = image.grad.clone()
    inner = (image.detach() * 3 + 1).requires_grad_(True)
    guide(kind, Knows(answer), None, inner, POSES, times, noise, Ways()).backward()
    assert inner.grad is not None
    torch.testing.assert_close(own, 3 * inner.grad)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_answers_that_are_no_numbers_leave_the_item_alone(given: Any, kind: str) -> None:
    _, answer, _, _ = given
    broken = answer.clone()
    broken[1] = float("nan")
    found = gradient_of(kind, Knows(broken), given, Ways())
    assert torch.isfinite(found).all()
    assert not found[1].any()
    assert found[0].any()


def test_a_clamp_holds_each_value(given: Any) -> None:
    free = gradient_of("sds", Knows(given[1]), given, Ways())
    held = gradient_of("sds", Knows(given[1]), given, Ways(clamp=0.1))
    assert float(free.abs().max()) > 0.1
    torch.testing.assert_close(held, free.clamp(-0.1, 0.1))


def test_shares_of_the_schedule_are_the_published_timesteps() -> None:
    assert levels_between(0.02, 0.98) == Levels(20, 980)
    assert levels_between(0.0, 1.0) == Levels(0, 999)
    assert guidance.original_levels() == Levels(10, 969)


def test_times_cover_both_ends_and_follow_the_generator() -> None:
    levels = Levels(10, 13)
    drawn = [draw_times(levels, 200, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert set(drawn[0].tolist()) == {10, 11, 12, 13}
    assert torch.equal(*drawn)


def test_sigmas_of_the_original_list_lie_where_they_are_published() -> None:
    levels, alphas = guidance.original_levels(), alphas_cumprod()
    sigmas = ((1 - alphas) / alphas).sqrt()
    assert float(sigmas[levels.low]) == pytest.approx(0.0983, abs=5e-5)
    assert float(sigmas[levels.high]) == pytest.approx(12.229, abs=5e-4)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_a_real_view_model_guides(kind: str) -> None:
    model: ViewModel = small.make_model()
    seen = model.condition(small.picture_of(), Viewpoint())
    side = model.description.latent_side
    latents = torch.randn(2, 4, side, side, requires_grad=True)
    times = torch.tensor([200, 700])
    loss = guide(kind, model, seen, latents, POSES[:2], times, torch.randn(2, 4, side, side), Ways(walk=2))
    loss.backward()
    assert latents.grad is not None
    assert torch.isfinite(latents.grad).all()
    assert float(latents.grad.abs().max()) > 0
    assert not any(parameter.grad is not None for parameter in model.parameters())
