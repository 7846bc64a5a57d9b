"""Where the field is not empty, and the samples that rays take there (Müller et al., 2022, section E.1).

The box [-bound, bound]^3 is cut into G^3 cells, index order x, y, z; a cell has its lower sides and not its upper ones,
except at the end of the box. Its state is tensors alone, so that a saved run goes on to the bit.
Letters: G cells of a side, R rays, S samples of all rays together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels_cpu
from .rays import Rays, Samples, enter_box


@dataclass(frozen=True)
class Marching:
    """How samples are laid on rays."""

    step: float = 0.0135  # size of the object = 1
    limit: int = 64  # samples of a ray: one that would have more takes longer steps
    stratified: bool = True  # each ray's samples are shifted by a random part of a step; else by a half


class Occupancy(nn.Module):
    """The highest opacity over a step seen lately in each cell, and which cells count for occupied."""

    opacity: Tensor  # float32 (G, G, G); in fact density times step, which may exceed 1
    occupied: Tensor  # bool (G, G, G)

    def __init__(self, bound: float, cells: int = 32, decay: float = 0.95, threshold: float = 0.01) -> None:
        super().__init__()
        self.bound, self.decay, self.threshold = bound, decay, threshold
        self.register_buffer("opacity", torch.zeros(cells, cells, cells))
        self.register_buffer("occupied", torch.ones(cells, cells, cells, dtype=torch.bool))

    @property
    def cells(self) -> int:
        return len(self.occupied)

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Tensor], Tensor],
        step: float,
        generator: torch.Generator | None = None,
        *,
        everywhere: bool = True,
    ) -> None:
        """Asks the density at a random place of each cell, or of a quarter of them and as many occupied ones."""
        number = self.cells**3
        device = self.opacity.device
        if everywhere:
            which = torch.arange(number, device=device)
        else:
            free = torch.randint(number, (number // 4,), generator=generator).to(device)
            taken = self.occupied.flatten().nonzero()[:, 0]
            if len(taken) > number // 4:
                taken = taken[torch.randint(len(taken), (number // 4,), generator=generator).to(device)]
            asked = torch.zeros(number, dtype=torch.bool, device=device)
            asked[free] = asked[taken] = True
            which = asked.nonzero()[:, 0]
        corner = torch.stack([which // self.cells**2, which // self.cells % self.cells, which % self.cells], -1)
        places = corner + torch.rand(len(which), 3, generator=generator).to(device)
        found = density(places * (2 * self.bound / self.cells) - self.bound).float() * step
        faded = self.opacity.flatten() * self.decay
        faded[which] = torch.maximum(faded[which], found)
        self.opacity.copy_(faded.view_as(self.opacity))
        self.settle()

    def settle(self) -> None:
        """A cell is occupied if its opacity exceeds the threshold or, in a thin field, the mean.

        A field that is the same everywhere does, however its mean is rounded; an empty one does nowhere.
        """
        self.occupied.copy_(self.opacity > self.opacity.mean().clamp(max=self.threshold) * (1 - 1e-4))

    def is_occupied(self, points: Tensor) -> Tensor:  # (..., 3) -> bool (...)
        """Outside the box nothing is."""
        cell = ((points + self.bound) * (self.cells / (2 * self.bound))).long().clamp(0, self.cells - 1)
        return self.occupied[cell.unbind(-1)] & (points.abs() <= self.bound).all(-1)


def march(
    rays: Rays, occupancy: Occupancy, marching: Marching | None = None, generator: torch.Generator | None = None
) -> Samples:
    """Samples in occupied cells, a step apart. Rays that miss the box or all occupied cells have none."""
    marching = marching or Marching()
    assert marching.step > 0 and marching.limit > 0, marching
    spans = enter_box(rays, occupancy.bound)
    shifts = torch.rand(len(rays), generator=generator) if marching.stratified else torch.full((len(rays),), 0.5)
    return MARCHERS.get(spans.device.type, march_torch)(rays, spans, shifts.to(spans.device), occupancy, marching)


def march_torch(rays: Rays, spans: Tensor, shifts: Tensor, occupancy: Occupancy, marching: Marching) -> Samples:
    """The definition, and what runs on GPUs."""

    def walk(strides: Tensor, count: int) -> tuple[Tensor, Tensor]:  # (R, count), both
        number = torch.arange(count, device=spans.device)
        distances = spans[:, :1] + (number + shifts[:, None]) * (marching.step * strides)[:, None]
        points = rays.origins[:, None] + distances[..., None] * rays.ways[:, None]
        cells, bound = occupancy.cells, occupancy.bound
        cell = ((points + bound) * (cells / (2 * bound))).long().clamp(0, cells - 1)
        return occupancy.occupied[cell.unbind(-1)] & (distances < spans[:, 1:]), distances

    longest = float((spans[:, 1] - spans[:, 0]).max()) if len(spans) else 0.0
    steps = int(longest / marching.step) + 2
    ones = torch.ones(len(spans), dtype=torch.int64, device=spans.device)
    kept, distances = walk(ones, steps)
    counts = kept.sum(1)
    strides = torch.where(counts > marching.limit, (counts + marching.limit - 1) // marching.limit, ones)
    if bool((strides > 1).any()):
        kept, distances = walk(strides, steps)
        kept &= kept.cumsum(1) <= marching.limit
    counts = kept.sum(1)
    distance = distances[kept]
    ray = torch.arange(len(spans), device=spans.device).repeat_interleave(counts)
    points = rays.origins[ray] + distance[:, None] * rays.ways[ray]
    return Samples(points, distance, marching.step * strides[ray].float(), F.pad(counts.cumsum(0), (1, 0)))


def march_numba(rays: Rays, spans: Tensor, shifts: Tensor, occupancy: Occupancy, marching: Marching) -> Samples:
    counts, strides = np.empty(len(rays), np.int64), np.empty(len(rays), np.int64)
    lines = (rays.origins, rays.ways, spans, shifts)
    box = (occupancy.occupied.numpy(), np.float32(occupancy.bound), np.float32(marching.step))
    fixed = (*(line.float().contiguous().numpy() for line in lines), *box)
    jobs = list(kernels_cpu.blocks(len(rays)))
    kernels_cpu.share(kernels_cpu.count_steps, [(*fixed, marching.limit, counts, strides, *job) for job in jobs])
    ends = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    distances, points = np.empty(ends[-1], np.float32), np.empty((ends[-1], 3), np.float32)
    kernels_cpu.share(kernels_cpu.put_samples, [(*fixed, ends, strides, distances, points, *job) for job in jobs])
    lengths = np.repeat(strides.astype(np.float32) * np.float32(marching.step), counts)
    return Samples(*(torch.from_numpy(part) for part in (points, distances, lengths, ends)))


MARCHERS: dict[str, Callable[[Rays, Tensor, Tensor, Occupancy, Marching], Samples]] = {
    "cpu": march_numba,
    "cuda": march_torch,
}
