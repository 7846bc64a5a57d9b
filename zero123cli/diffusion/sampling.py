"""From noise to pictures: samplers as generators that yield the latents after each step.

`ddim-original` is the walk of the published code, which drops the noisiest of its timesteps; the others are diffusers'
schedulers on the same noise schedule. Every item draws from a generator of its own, so that a view does not depend on
which others are sampled beside it.
Letters: B items, C channels, h and w of a latent; a is alpha-bar, x the latents.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cameras import Viewpoint, within_a_turn
from .viewmodel import STEPS, Condition, ViewModel

Denoiser = Callable[[Tensor, int], Tensor]  # noisy latents and their timestep -> the noise in them
Noise = Callable[[], Tensor]  # fresh noise of the latents' shape


@torch.inference_mode()
def sample(
    model: ViewModel,
    condition: Condition,
    poses: Sequence[Viewpoint],
    seeds: Sequence[int],  # one for each pose
    *,
    sampler: str,
    steps: int,
    guidance: float,
    eta: float,
) -> Iterator[Tensor]:  # (B, C, h, w) after each step
    """Views of the photo's object at `poses`."""
    if model.certain:
        yield model.picture_at(condition, poses)
        return
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = tuple(condition.concat.shape)

    def noise() -> Tensor:
        # Drawn on the CPU: the same numbers for the same seed on every device.
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(model.device)

    def denoise(latents: Tensor, timestep: int) -> Tensor:
        times = torch.full((len(latents),), timestep, dtype=torch.long)
        return model.predict(condition, latents, times, poses, guidance)

    yield from SAMPLERS[sampler](denoise, noise(), noise, model.alphas, steps, eta)


def seed_of(seed: int, pose: Viewpoint, number: int) -> int:
    """The seed of one sample at one pose: the same whatever else is asked for."""
    azimuth, elevation = within_a_turn(pose.azimuth_deg), round(pose.elevation_deg, 6) + 0.0  # no minus zero
    text = f"{seed} {azimuth:.6f} {elevation:.6f} {pose.distance:.6f} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


# The original's walk --------------------------------------------------------------------------------------------------


def original_timesteps(steps: int) -> list[int]:
    """The timesteps that the published sampler really visits, the noisiest first: one fewer than it lists."""
    stride = STEPS // steps
    listed = [t + 1 for t in range(0, STEPS, stride)]
    return listed[:-1][::-1]


def walk_ddim_original(
    denoise: Denoiser, latents: Tensor, noise: Noise, alphas: Tensor, steps: int, eta: float
) -> Iterator[Tensor]:
    times = original_timesteps(steps)
    for k, time in enumerate(times):
        a = float(alphas[time])
        a_next = float(alphas[times[k + 1]] if k + 1 < len(times) else alphas[0])  # alpha-bar of 0, not 1
        predicted = denoise(latents, time)
        clean = (latents - (1 - a) ** 0.5 * predicted) / a**0.5
        sigma = eta * ((1 - a_next) / (1 - a)) ** 0.5 * (1 - a / a_next) ** 0.5
        latents = a_next**0.5 * clean + (1 - a_next - sigma**2) ** 0.5 * predicted
        if sigma:
            latents = latents + sigma * noise()
        yield latents


# diffusers' schedulers ------------------------------------------------------------------------------------------------

SCHEDULE = {
    "num_train_timesteps": STEPS,
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def walk_ddim(
    denoise: Denoiser, latents: Tensor, noise: Noise, alphas: Tensor, steps: int, eta: float
) -> Iterator[Tensor]:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps.tolist():
        fresh = noise() if eta else None
        latents = scheduler.step(denoise(latents, time), time, latents, eta=eta, variance_noise=fresh).prev_sample
        yield latents


def walk_scheduler(scheduler: Any, denoise: Denoiser, latents: Tensor, steps: int) -> Iterator[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, of how diffusers hands it tensors
        scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        latents = scheduler.step(denoise(latents, int(time)), time, latents).prev_sample
        yield latents


def walk_dpm(
    denoise: Denoiser, latents: Tensor, noise: Noise, alphas: Tensor, steps: int, eta: float
) -> Iterator[Tensor]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", steps_offset=1)
    return walk_scheduler(scheduler, denoise, latents, steps)


def walk_unipc(
    denoise: Denoiser, latents: Tensor, noise: Noise, alphas: Tensor, steps: int, eta: float
) -> Iterator[Tensor]:
    from diffusers import UniPCMultistepScheduler

    return walk_scheduler(UniPCMultistepScheduler(**SCHEDULE, steps_offset=1), denoise, latents, steps)


SAMPLERS = {
    "ddim-original": walk_ddim_original,
    "ddim": walk_ddim,
    "dpm++": walk_dpm,
    "unipc": walk_unipc,
}


def count_steps(sampler: str, steps: int) -> int:
    """How often a sampler that is asked for `steps` really steps."""
    return len(original_timesteps(steps)) if sampler == "ddim-original" else steps
