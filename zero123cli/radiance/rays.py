"""Rays of cameras, and samples on them, each ray's in a row.

Ways have length 1, so that depths are distances from the camera. Rays go through pixels' centres: view after view, rows
from the top. Letters: N views, R rays, S samples of all rays together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import TRAINING_FOV_DEG, Viewpoint

Square = tuple[float, float, float]  # middle to the right and up, half side, in the plane at distance 1


@dataclass(frozen=True)
class Rays:
    origins: Tensor  # (R, 3)
    ways: Tensor  # (R, 3), of length 1

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, which: Tensor | slice) -> Rays:
        return Rays(self.origins[which], self.ways[which])

    def to(self, device: torch.device | str) -> Rays:
        return Rays(self.origins.to(device), self.ways.to(device))


@dataclass(frozen=True)
class Samples:
    points: Tensor  # (S, 3)
    distances: Tensor  # (S,) of their middles from the rays' origins
    lengths: Tensor  # (S,) of the rays that they stand for
    ends: Tensor  # int64 (R + 1,): ray r has the samples from ends[r] to ends[r + 1]

    def __len__(self) -> int:
        return len(self.points)

    def ray(self) -> Tensor:  # int64 (S,)
        """The ray of each sample."""
        counts = self.ends.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def keep(self, kept: Tensor) -> Samples:  # bool (S,)
        passed = F.pad(kept.cumsum(0), (1, 0))
        return Samples(self.points[kept], self.distances[kept], self.lengths[kept], passed[self.ends])


def cast_rays(
    viewpoints: Sequence[Viewpoint],
    size: int,
    fov_deg: float = TRAINING_FOV_DEG,
    squares: Sequence[Square] | None = None,
    device: torch.device | str = "cpu",
) -> Rays:
    """A ray for each of the size x size pixels of each view; `squares` frame the views in place of `fov_deg`."""
    usual = (0.0, 0.0, math.tan(math.radians(fov_deg) / 2))
    across = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    down, right = torch.meshgrid(-across, across, indexing="ij")
    origins, ways = [], []
    for number, viewpoint in enumerate(viewpoints):
        x, y, half = usual if squares is None else squares[number]
        plane = torch.stack([x + right * half, y + down * half, -torch.ones_like(right)], -1)
        ways.append(plane.view(-1, 3) @ axes(viewpoint))
        origins.append(torch.tensor([viewpoint.position()], dtype=torch.float64).expand(size * size, 3))
    return Rays(torch.cat(origins).float(), F.normalize(torch.cat(ways), dim=-1).float()).to(device)


def axes(viewpoint: Viewpoint) -> Tensor:  # float64 (3, 3)
    """Rows: the picture's right, its up, and back towards the camera; straight from above as from just beside."""
    azimuth, elevation = math.radians(viewpoint.azimuth_deg), math.radians(viewpoint.elevation_deg)
    back = [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    right = torch.tensor([math.cos(azimuth), 0.0, -math.sin(azimuth)], dtype=torch.float64)
    behind = torch.tensor(back, dtype=torch.float64)
    return torch.stack([right, torch.linalg.cross(behind, right), behind])


def enter_box(rays: Rays, bound: float) -> Tensor:  # (R, 2)
    """Distances at which rays enter and leave [-bound, bound]^3, from the origin on; where they miss it, 0 and 0."""
    still = rays.ways.abs() < 1e-12  # such a ray stays where it is along that axis
    ways = torch.where(still, torch.ones_like(rays.ways), rays.ways)
    first, second = (-bound - rays.origins) / ways, (bound - rays.origins) / ways
    within = rays.origins.abs() <= bound
    endless = torch.full_like(first, torch.inf)
    low = torch.where(still, torch.where(within, -endless, endless), torch.minimum(first, second))
    high = torch.where(still, endless, torch.maximum(first, second))
    near, far = low.amax(-1).clamp_min(0), high.amin(-1)
    hits = (near < far)[:, None]
    return torch.where(hits, torch.stack([near, far], -1), 0.0)
