"""Samplers on denoisers whose answer is known, and on a small model: what depends on what."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import small
import torch
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.diffusion.sampling import SAMPLERS, original_timesteps, sample, seed_of
from zero123cli.diffusion.viewmodel import Condition, ViewModel, alphas_cumprod, fold_cross_attention
from zero123cli.settings import ViewsSettings, describe

NOISY = ("ddim-original", "ddim")  # those in which eta counts

ALPHAS = alphas_cumprod()
MEAN, DEVIATION = 0.7, 0.4
OTHERS = [name for name in SAMPLERS if name not in NOISY]


# The walk of the published code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "run", "first"), [(50, 49, 961), (75, 76, 976), (100, 99, 981), (200, 199, 991)])
def test_the_original_drops_the_noisiest_of_its_timesteps(steps: int, run: int, first: int) -> None:
    times = original_timesteps(steps)
    assert (len(times), times[0], times[-1]) == (run, first, 1)
    assert times == sorted(set(times), reverse=True)


def test_the_original_timesteps_of_ten() -> None:
    assert original_timesteps(10) == [801, 701, 601, 501, 401, 301, 201, 101, 1]


@pytest.mark.parametrize("steps", [*range(2, 60), 334, 499, 500, 501, 999])
def test_every_number_of_steps_makes_a_walk_within_the_schedule(steps: int) -> None:
    times = original_timesteps(steps)
    assert len(times) >= 1
    assert all(0 < time < 1000 for time in times)


# Known answers --------------------------------------------------------------------------------------------------------


def exact_noise(deviation: float) -> Callable[[Tensor, int], Tensor]:
    """The best guess of the noise in a latent whose true distribution is a Gaussian around MEAN."""

    def denoise(latents: Tensor, time: int) -> Tensor:
        a = float(ALPHAS[time])
        return (1 - a) ** 0.5 * (latents - a**0.5 * MEAN) / (a * deviation**2 + 1 - a)

    return denoise


def run(
    name: str, denoise: Callable[[Tensor, int], Tensor], steps: int, eta: float = 0.0, shape: tuple[int, ...] = (500,)
) -> tuple[Tensor, list[Tensor], list[int]]:
    """The first noise, what each step gave, and the timesteps asked about."""
    generator = torch.Generator().manual_seed(0)
    drawn: list[Tensor] = []
    times: list[int] = []

    def noise() -> Tensor:
        drawn.append(torch.randn(1, *shape, generator=generator, dtype=torch.float64))
        return drawn[-1]

    def ask(latents: Tensor, time: int) -> Tensor:
        times.append(time)
        return denoise(latents, time)

    walked = [latents.clone() for latents in SAMPLERS[name](ask, noise(), noise, ALPHAS, steps, eta)]
    return drawn[0], walked, times


def spread(a: float, deviation: float) -> float:
    """The standard deviation of latents at the noise level `a`."""
    return (a * deviation**2 + 1 - a) ** 0.5


@pytest.mark.parametrize("steps", [3, 10, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_possible_picture_is_found(name: str, steps: int) -> None:
    start, walked, times = run(name, exact_noise(0.0), steps)
    a = float(ALPHAS[times[0]])
    noise = (start - a**0.5 * MEAN) / (1 - a) ** 0.5  # what the first answer says; it is right for good
    if name in NOISY:  # they end at the least noisy level, not at none
        a = float(ALPHAS[0])
        assert small.error(walked[-1], a**0.5 * MEAN + (1 - a) ** 0.5 * noise) < 1e-4
    else:
        assert (walked[-1] - MEAN).abs().max() < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gaussian_is_reached_the_closer_the_more_steps(name: str) -> None:
    errors = []
    for steps in (10, 40, 160):
        start, walked, times = run(name, exact_noise(DEVIATION), steps)
        first, last = float(ALPHAS[times[0]]), float(ALPHAS[0]) if name in NOISY else 1.0
        # The exact flow carries each latent along at its place in the distribution.
        place = (start - first**0.5 * MEAN) / spread(first, DEVIATION)
        expected = last**0.5 * MEAN + spread(last, DEVIATION) * place
        errors.append(float((walked[-1] - expected).abs().max()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.03, errors


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", NOISY)
def test_fresh_noise_in_each_step_keeps_the_distribution(name: str, eta: float) -> None:
    _, walked, _ = run(name, exact_noise(DEVIATION), 200, eta, shape=(40_000,))
    assert float(walked[-1].mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(walked[-1].std()) == pytest.approx(DEVIATION, abs=0.02)


def test_the_originals_step_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, 50, generator=generator, dtype=torch.float64) for _ in range(20)]
    left = iter(draws)
    guess = exact_noise(DEVIATION)
    ours = list(SAMPLERS["ddim-original"](guess, next(left), lambda: next(left), ALPHAS, 10, 0.6))
    latents, kept = draws[0], iter(draws[1:])
    listed = [*range(1, 1000, 100)]
    before = [float(ALPHAS[0]), *(float(ALPHAS[time]) for time in listed)]
    for k, time in reversed(list(enumerate(listed[:-1]))):
        a, a_prev = float(ALPHAS[time]), before[k]
        noise = guess(latents, time)
        clean = (latents - (1 - a) ** 0.5 * noise) / a**0.5
        sigma = 0.6 * ((1 - a_prev) / (1 - a)) ** 0.5 * (1 - a / a_prev) ** 0.5
        latents = a_prev**0.5 * clean + (1 - a_prev - sigma**2) ** 0.5 * noise + sigma * next(kept)
        assert small.error(ours[len(listed) - 2 - k], latents) < 1e-12


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999])
def test_a_step_is_told_of_when_it_is_done(name: str, steps: int) -> None:
    if name == "ddim-original" and steps == 1:
        pytest.skip("its only step is the one that it drops: the program refuses it")
    _, walked, times = run(name, exact_noise(DEVIATION), steps, shape=(2, 3))
    assert len(walked) == len(times) >= 1, "a network call a step"
    if name != "ddim-original":
        assert len(walked) == steps
    assert times == sorted(times, reverse=True) and all(0 <= time < 1000 for time in times)
    assert all(latents.shape == (1, 2, 3) and torch.isfinite(latents).all() for latents in walked)


def test_the_usual_walk_visits_the_usual_timesteps() -> None:
    assert run("ddim", exact_noise(DEVIATION), 50)[2] == list(range(981, 0, -20))


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_happens_before_the_first_step_is_asked_for(name: str) -> None:
    start = torch.zeros(1, 4)
    walk = SAMPLERS[name](lambda *_: pytest.fail("asked"), start, lambda: pytest.fail("drawn"), ALPHAS, 5, 1.0)
    assert isinstance(walk, Iterator)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_drawn_only_where_it_counts(name: str, eta: float) -> None:
    count = 0

    def noise() -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros(1, 4)

    steps = len(list(SAMPLERS[name](exact_noise(DEVIATION), torch.zeros(1, 4), noise, ALPHAS, 10, eta)))
    if name in NOISY and eta:
        assert count in (steps - 1, steps)
    else:
        assert count == 0


def test_the_settings_offer_these_samplers() -> None:
    (row,) = (row for row in describe(ViewsSettings) if row.key == "sampler")
    assert set(row.choices) == set(SAMPLERS)


# On a model -----------------------------------------------------------------------------------------------------------

POSES = [Viewpoint(azimuth, elevation) for azimuth, elevation in ((90, 0), (180, 20), (270, -20), (0, 0), (30, 5))]
SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def model() -> ViewModel:
    model = small.make_model()
    fold_cross_attention(model)
    return model


@pytest.fixture(scope="module")
def seen(model: ViewModel) -> Condition:
    return model.condition(small.picture_of(), Viewpoint())


def last(model: ViewModel, seen: Condition, poses: list[Viewpoint], seeds: list[int], **how: Any) -> Tensor:
    settings = {"sampler": "ddim-original", "steps": 6, "guidance": 3.0, "eta": 1.0} | how
    *_, latents = sample(model, seen, poses, seeds, **settings)
    return latents


@pytest.mark.parametrize(
    "name", [name if name == "ddim" else pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS]
)
def test_a_view_is_the_same_whatever_is_sampled_beside_it_and_in_whatever_order(
    model: ViewModel, seen: Condition, name: str
) -> None:
    together = last(model, seen, POSES, SEEDS, sampler=name)
    for order in ([4, 2, 0], [1], [3, 4], [0, 1, 2, 3, 4]):
        again = last(model, seen, [POSES[k] for k in order], [SEEDS[k] for k in order], sampler=name)
        assert small.error(again, together[order]) < 1e-4
    assert torch.equal(last(model, seen, POSES, SEEDS, sampler=name), together), "the same call, bit by bit"


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_seed_is_another_view(model: ViewModel, seen: Condition, name: str) -> None:
    views = last(model, seen, [POSES[0]] * 3, [1, 2, 1], sampler=name)
    assert small.error(views[2], views[0]) < 1e-4
    assert small.error(views[1], views[0]) > 0.1


def test_the_global_generator_is_neither_used_nor_moved(model: ViewModel, seen: Condition) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = last(model, seen, POSES[:1], [3])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(last(model, seen, POSES[:1], [3]), first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_counts_in_the_ddim_samplers_only(model: ViewModel, seen: Condition, name: str) -> None:
    still, stirred = (last(model, seen, POSES[:1], [3], sampler=name, eta=eta) for eta in (0.0, 1.0))
    assert (small.error(stirred, still) > 0.05) == (name in NOISY)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_gives_latents_that_need_no_gradient(model: ViewModel, seen: Condition, name: str) -> None:
    walked = list(sample(model, seen, POSES[:2], SEEDS[:2], sampler=name, steps=5, guidance=3.0, eta=1.0))
    assert len(walked) == (4 if name == "ddim-original" else 5)
    assert {latents.shape for latents in walked} == {(2, 4, 16, 16)}
    assert not any(latents.requires_grad for latents in walked)


def test_guidance_reaches_the_model(model: ViewModel, seen: Condition) -> None:
    calls, stop = small.count_calls(model.unet)
    last(model, seen, POSES[:2], SEEDS[:2], guidance=1.0)
    last(model, seen, POSES[:2], SEEDS[:2], guidance=3.0)
    stop()
    assert calls == [2] * 6 + [4] * 6


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_every_picture_has_a_seed_of_its_own() -> None:
    grid = itertools.product((0, 1, 2**53), (0, 45, 359.9), (-10, 0, 10), (1.5, 1.85), range(5))
    asked = [(seed, Viewpoint(a, e, d), number) for seed, a, e, d, number in grid]
    seeds = {seed_of(*which) for which in asked}
    assert len(seeds) == len(asked)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("azimuth", "same"), [(-90, 270), (360, 0), (-0.0, 0.0), (720.5, 0.5), (-1e-13, 0)])
def test_one_azimuth_has_one_seed_however_it_is_spelled(azimuth: float, same: float) -> None:
    assert seed_of(7, Viewpoint(azimuth, 5), 2) == seed_of(7, Viewpoint(same, 5), 2)


def test_a_level_view_has_one_seed_whatever_the_sign_of_its_zero() -> None:
    assert seed_of(7, Viewpoint(0, -0.0), 2) == seed_of(7, Viewpoint(0, 0.0), 2)


def test_seeds_stay_what_they_are() -> None:
    # Pictures that were made with an earlier version must come out again.
    assert seed_of(0, Viewpoint(90, 0), 0) == 16_253_686_519_140_846
