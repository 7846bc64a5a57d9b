"""A field made to look like a volume of colours and opacities.

Letters: G cells of a side, C channels of colour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .field import Field


def fit_volume(
    field: Field,
    volume: Tensor,  # (C + 1, G, G, G) over x, y, z of the field's box: colour as the field gives it, opacity in [0, 1]
    *,
    solid: float = 50.0,  # density of what is opaque
    steps: int = 150,
    points: int = 1 << 14,
    rate: float = 0.02,
    generator: torch.Generator | None = None,
) -> None:
    """Density and colour are drawn to the volume's, at random places, half of them where something is."""
    bound, channels = field.description.bound, field.description.channels
    assert volume.shape[0] == channels + 1, volume.shape
    cells = volume.to(field.device, torch.float32)[None].transpose(2, 4)  # grid_sample names the last axis first
    taken = (F.max_pool3d(volume[None, None, channels], 3, 1, 1)[0, 0] > 0.01).nonzero()
    side = volume.shape[1]
    cell = 2 * bound / side
    optimiser = torch.optim.Adam(field.parameters(), rate, (0.9, 0.99), eps=1e-15, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for _ in range(steps):
        places = torch.rand(points, 3, generator=generator) * 2 - 1
        if len(taken):
            half = points // 2
            near = taken[torch.randint(len(taken), (half,), generator=generator)].cpu()
            places[:half] = (near + torch.rand(half, 3, generator=generator)) * (2 / side) - 1
        places = places.to(field.device)
        wanted = F.grid_sample(cells, places[None, None, None], padding_mode="border", align_corners=False)
        known = wanted[0, :, 0, 0].T
        density, colour = field.look_up(places * bound)
        # Opacities of a cell, not densities: there is no telling solid from more solid.
        opacity, asked = -torch.expm1(-density * cell), -torch.expm1(-known[:, channels] * solid * cell)
        loss = F.mse_loss(opacity, asked) + (known[:, channels:] * (colour - known[:, :channels]).square()).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimiser.step()
        schedule.step()
