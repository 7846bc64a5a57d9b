"""What a denoiser thinks of a rendering, as a gradient on its latents.

Each kind adds noise to the rendering, has it predicted, and says which way the latents ought to go: `sds` is score
distillation (DreamFusion, arXiv 2209.14988), `sjc` the perturb-and-average score in its variance-reduced form (SJC,
arXiv 2212.00774), `clean` walks a few deterministic steps to a clean estimate and pulls towards it (as iterative
dataset updates do), which takes the fewest renderings.
Letters: B latents, C channels, h and w of a latent; a is alpha-bar of a timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cameras import Viewpoint
from .viewmodel import STEPS

SIGMA_SKIPS = (30, 10)  # of the original's list of sigmas, noisiest first: this many at each end are never drawn


class Denoiser(Protocol):
    """What guidance needs of a view model."""

    alphas: Tensor  # float64 (STEPS,)

    def predict(
        self, condition: Any, latents: Tensor, timesteps: Tensor, poses: Sequence[Viewpoint], guidance: float
    ) -> Tensor: ...


@dataclass(frozen=True)
class Ways:
    """How guidance is taken."""

    scale: float = 3.0  # classifier-free
    weighting: str = "published"  # a name of WEIGHTINGS; SDS only
    walk: int = 4  # steps to a clean estimate; `clean` only
    clamp: float = 0.0  # largest absolute value of a gradient; 0 for none


@dataclass(frozen=True)
class Levels:
    """The timesteps that are drawn, both ends included."""

    low: int
    high: int


def draw_times(levels: Levels, count: int, generator: torch.Generator) -> Tensor:  # int64 (count,)
    """A timestep for each item."""
    return torch.randint(levels.low, levels.high + 1, (count,), generator=generator)


def levels_between(low: float, high: float) -> Levels:
    """Timesteps of shares of the schedule: 0.02 and 0.98 are 20 and 980, as published."""
    return Levels(min(int(STEPS * low), STEPS - 1), min(int(STEPS * high), STEPS - 1))


def original_levels() -> Levels:
    """What SJC draws from: its list of sigmas without the ends."""
    first, last = SIGMA_SKIPS
    return Levels(last, STEPS - 1 - first)


def guide(
    kind: str,
    model: Denoiser,
    condition: Any,
    latents: Tensor,  # (B, C, h, w), with the graph that made them
    poses: Sequence[Viewpoint],
    timesteps: Tensor,  # int (B,)
    noise: Tensor,  # like latents
    ways: Ways,
) -> Tensor:
    """A loss whose gradient on the latents is the guidance, summed over an item and averaged over the items.

    What is not a number in the gradient is zero, so that one bad item does not end a run.
    """
    with torch.no_grad():
        asked = latents.detach().float()
        gradient = GUIDANCE[kind](model, condition, asked, poses, timesteps, noise.to(asked), ways)
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        if ways.clamp:
            gradient = gradient.clamp(-ways.clamp, ways.clamp)
    # The square's own value tells how far the latents are from where the model wants them.
    target = asked - gradient
    return 0.5 * (latents.float() - target).square().sum() / len(latents)


def share_of(model: Denoiser, timesteps: Tensor, like: Tensor) -> Tensor:  # -> float32 (B, 1, 1, 1)
    return model.alphas[timesteps.cpu()].to(like.device, torch.float32)[:, None, None, None]


def distil(
    model: Denoiser,
    condition: Any,
    latents: Tensor,
    poses: Sequence[Viewpoint],
    timesteps: Tensor,
    noise: Tensor,
    ways: Ways,
) -> Tensor:
    """w(t) (eps - n), DreamFusion equation 3."""
    a = share_of(model, timesteps, latents)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    predicted = model.predict(condition, noisy, timesteps, poses, ways.scale)
    return WEIGHTINGS[ways.weighting](a) * (predicted - noise)


def chain(
    model: Denoiser,
    condition: Any,
    latents: Tensor,
    poses: Sequence[Viewpoint],
    timesteps: Tensor,
    noise: Tensor,
    ways: Ways,
) -> Tensor:
    """-(D(y + sigma n; sigma) - y) / sigma, SJC equation 11 and its variance reduction: in these units eps - n."""
    a = share_of(model, timesteps, latents)
    sigma = ((1 - a) / a).sqrt()
    perturbed = latents + sigma * noise
    predicted = model.predict(condition, perturbed / (1 + sigma**2).sqrt(), timesteps, poses, ways.scale)
    denoised = perturbed - sigma * predicted
    return -(denoised - latents) / sigma


def restore(
    model: Denoiser,
    condition: Any,
    latents: Tensor,
    poses: Sequence[Viewpoint],
    timesteps: Tensor,
    noise: Tensor,
    ways: Ways,
) -> Tensor:
    """Latents minus the clean estimate of a few deterministic steps (DDIM with eta 0) from the noisy latents."""
    a = share_of(model, timesteps, latents)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    clean = latents
    for step in range(ways.walk):
        now = (timesteps * (ways.walk - step)) // ways.walk
        after = (timesteps * (ways.walk - step - 1)) // ways.walk
        a, b = share_of(model, now, latents), share_of(model, after, latents)
        predicted = model.predict(condition, noisy, now, poses, ways.scale)
        clean = (noisy - (1 - a).sqrt() * predicted) / a.sqrt()
        noisy = b.sqrt() * clean + (1 - b).sqrt() * predicted
    return latents - clean


GUIDANCE: dict[str, Callable[..., Tensor]] = {"sds": distil, "sjc": chain, "clean": restore}

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "published": lambda a: 1 - a,  # of Zero-1-to-3 and Stable Zero123
    "dreamfusion": lambda a: 1 - a.sqrt(),
    "uniform": torch.ones_like,
}
