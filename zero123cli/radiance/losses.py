"""What a rendering is held to besides the pictures: each a small function of what was rendered, to one number.

The definitions are those of the published recipes: depth smoothness and the near view of Zero-1-to-3's SJC, emptiness
of SJC, the others of Stable Zero123's 600 steps.
Letters: B pictures, H and W their sides, R rays, S samples along a ray, P points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def differ(rendered: Tensor, wanted: Tensor) -> Tensor:
    """Mean square."""
    return (rendered - wanted).square().mean()


def depth_smoothness(depth: Tensor) -> Tensor:  # (B, H, W)
    """Half the sum of the mean absolute steps along each axis."""
    across = (depth[:, :, 1:] - depth[:, :, :-1]).abs().mean()
    down = (depth[:, 1:] - depth[:, :-1]).abs().mean()
    return (across + down) / 2


def near_view(colour: Tensor, near_colour: Tensor, depth: Tensor, near_depth: Tensor) -> Tensor:
    """A step aside changes little, in colour and in depth; both renderings feel it."""
    return (near_colour - colour).abs().mean() + (near_depth - depth).abs().mean()


def emptiness(weights: Tensor, scale: float = 10.0) -> Tensor:  # any shape, weights of samples
    """Many small weights cost more than few large ones."""
    return torch.log1p(scale * weights).mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Little should be there at all."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Each ray hits or misses: the entropy of its opacity."""
    held = opacity.clamp(1e-3, 1 - 1e-3)
    return F.binary_cross_entropy(held, held)


def orientation(weights: Tensor, normals: Tensor, directions: Tensor, opacity: Tensor) -> Tensor:
    """Surfaces that are seen face the camera: weights (P,), normals and directions (P, 3), opacity of each ray (R,)."""
    away = (normals * directions).sum(-1).clamp_min(0).square()
    return (weights.detach() * away).sum() / (opacity > 0).sum().clamp_min(1)


def normal_smoothness(normals: Tensor) -> Tensor:  # (B, H, W, 3), a picture of normals
    """Neighbours in the picture of normals are alike."""
    across = (normals[:, :, 1:] - normals[:, :, :-1]).square().mean()
    down = (normals[:, 1:] - normals[:, :-1]).square().mean()
    return across + down


def normal_change(normals: Tensor, beside: Tensor) -> Tensor:  # (P, 3), both
    """Normals at points and a small random step beside them are alike."""
    return (normals - beside).abs().mean()


def total_variation(cells: Tensor) -> Tensor:  # (..., D, H, W)
    """Mean absolute steps between neighbouring cells of a grid, over its three axes."""
    steps = [cells.diff(dim=axis).abs().mean() for axis in (-1, -2, -3)]
    return torch.stack(steps).mean()
