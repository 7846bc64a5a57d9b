"""What a volume should have been, the object's inside along the rays of one of its pictures, and how far one is off.

The torch versions are the definition; their numba twins do the same on a CPU many times faster (tests hold them
together).
Letters: B pictures, R resolution of the known occupancy, D depth bins, S side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiled import compiled
from ..diffusion.rays import start_threads
from ..diffusion.volume import REACH, Framing


def look_up(inside: Tensor, framing: Framing, depth: int, side: int) -> Tensor:
    """How much of each cell's middle is inside (B, D, S, S), `inside` being (B, R, R, R) over x, y, z."""
    if inside.device.type == "cpu":
        axes = framing.axes().numpy()
        start_threads()
        return torch.from_numpy(
            look_up_numba(inside.numpy(), axes, framing.poses.numpy(), framing.squares.numpy(), depth, side)
        )
    return look_up_torch(inside, framing, depth, side)


def look_up_torch(inside: Tensor, framing: Framing, depth: int, side: int) -> Tensor:
    device = inside.device
    across = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    along = ((torch.arange(depth, device=device) + 0.5) / depth * 2 - 1) * REACH
    w, row, column = torch.meshgrid(along, across, across, indexing="ij")
    half, distance = framing.squares[:, 2, None, None, None], framing.poses[:, 2, None, None, None]
    deep = distance * (1 + w * half)
    world = framing.to_world(column.expand_as(deep), -row.expand_as(deep), deep)
    places = world.flip(-1) * 2  # grid_sample names the last axis first
    return F.grid_sample(inside[:, None].float(), places, padding_mode="zeros", align_corners=False)[:, 0]


@compiled(parallel=True, fastmath=True)
def look_up_numba(inside: Any, axes: Any, poses: Any, squares: Any, depth: int, side: int) -> Any:
    count, cells = inside.shape[0], inside.shape[1]
    found = np.empty((count, depth, side, side), np.float32)
    for job in numba.prange(count * depth):
        b, d = job // depth, job % depth
        middle_x, middle_y, half = squares[b, 0], squares[b, 1], squares[b, 2]
        distance = poses[b, 2]
        deep = distance * (1 + ((d + 0.5) / depth * 2 - 1) * REACH * half)
        back = distance - deep
        for i in range(side):
            y = (middle_y + (1 - (i + 0.5) / side * 2) * half) * deep
            for j in range(side):
                x = (middle_x + ((j + 0.5) / side * 2 - 1) * half) * deep
                total = np.float32(0)
                p = (x * axes[b, 0, 0] + y * axes[b, 1, 0] + back * axes[b, 2, 0] + 0.5) * cells - 0.5
                q = (x * axes[b, 0, 1] + y * axes[b, 1, 1] + back * axes[b, 2, 1] + 0.5) * cells - 0.5
                r = (x * axes[b, 0, 2] + y * axes[b, 1, 2] + back * axes[b, 2, 2] + 0.5) * cells - 0.5
                p0, q0, r0 = int(np.floor(p)), int(np.floor(q)), int(np.floor(r))
                if p0 >= -1 and q0 >= -1 and r0 >= -1 and p0 < cells and q0 < cells and r0 < cells:
                    for corner in range(8):
                        a, o, e = p0 + (corner & 1), q0 + (corner >> 1 & 1), r0 + (corner >> 2)
                        known = a >= 0 and o >= 0 and e >= 0 and a < cells and o < cells and e < cells
                        if known and inside[b, a, o, e]:
                            total += np.float32((1 - abs(p - a)) * (1 - abs(q - o)) * (1 - abs(r - e)))
                found[b, d, i, j] = total
    return found


# How far off ----------------------------------------------------------------------------------------------------------


def compare(
    logits: Tensor,  # (B, D, S, S)
    wanted: Tensor,  # (B, D, S, S), in [0, 1]
    where: Tensor,  # bool (B, S, S)
) -> tuple[Tensor, Tensor]:
    """Cross entropy and one minus the soft overlap, means over pictures.

    Pixels outside `where` count for the overlap as empty and for the cross entropy not at all.
    """
    if logits.device.type == "cpu":
        found: tuple[Tensor, Tensor] = Compared.apply(logits, wanted, where)  # type: ignore[no-untyped-call]
        return found
    return compare_torch(logits, wanted, where)


def compare_torch(logits: Tensor, wanted: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    weights = where[:, None].float()
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weights
    entropy = each.sum((1, 2, 3)) / (weights.sum((1, 2, 3)) * logits.shape[1]).clamp_min(1)
    share = torch.sigmoid(logits) * weights
    both, either = (share * wanted).sum((1, 2, 3)), (share + wanted - share * wanted).sum((1, 2, 3))
    return entropy.mean(), (1 - (both + 1) / (either + 1)).mean()


class Compared(torch.autograd.Function):
    """`compare_torch` in two passes over what is covered."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        start_threads()
        sums = sum_up(logits.detach().numpy(), wanted.numpy(), where.numpy())
        ctx.save_for_backward(logits, wanted, where, torch.from_numpy(sums))
        entropy = sums[:, 0] / np.maximum(sums[:, 3] * logits.shape[1], 1)
        lost = 1 - (sums[:, 1] + 1) / (sums[:, 2] + 1)
        return torch.tensor(entropy.mean(), dtype=torch.float32), torch.tensor(lost.mean(), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, wanted, where, sums = (saved.detach().numpy() for saved in ctx.saved_tensors)
        weights = np.array([float(grad) for grad in grads]) / len(logits)
        return torch.from_numpy(slopes(logits, wanted, where, sums, weights)), None, None


@compiled(parallel=True, fastmath=True)
def sum_up(logits: Any, wanted: Any, where: Any) -> Any:
    """Of each picture: cross entropy, soft intersection, soft union, covered pixels."""
    count, depth, side = logits.shape[0], logits.shape[1], logits.shape[2]
    parts = np.zeros((count, depth, 3))
    sums = np.zeros((count, 4))
    for job in numba.prange(count * depth):
        b, d = job // depth, job % depth
        entropy, both, either = 0.0, 0.0, 0.0
        for i in range(side):
            for j in range(side):
                t = wanted[b, d, i, j]
                if where[b, i, j]:
                    x = logits[b, d, i, j]
                    e = np.exp(-abs(x))
                    s = 1 / (1 + e) if x >= 0 else e / (1 + e)
                    entropy += max(x, np.float32(0)) - x * t + np.log(1 + e)
                    both += s * t
                    either += s + t - s * t
                else:
                    either += t
        parts[b, d, 0], parts[b, d, 1], parts[b, d, 2] = entropy, both, either
    for b in range(count):
        for d in range(depth):
            for k in range(3):
                sums[b, k] += parts[b, d, k]
        for i in range(side):
            for j in range(side):
                sums[b, 3] += where[b, i, j]
    return sums


@compiled(parallel=True, fastmath=True)
def slopes(logits: Any, wanted: Any, where: Any, sums: Any, weights: Any) -> Any:
    """The gradient of both means, weighted, to the logits."""
    count, depth, side = logits.shape[0], logits.shape[1], logits.shape[2]
    found = np.zeros(logits.shape, np.float32)
    for job in numba.prange(count * depth):
        b, d = job // depth, job % depth
        both, either = sums[b, 1] + 1, sums[b, 2] + 1
        unit = np.float32(weights[0] / max(sums[b, 3] * depth, 1.0))
        gain, loss = np.float32(weights[1] / either), np.float32(weights[1] * both / either**2)
        for i in range(side):
            for j in range(side):
                if where[b, i, j]:
                    x, t = logits[b, d, i, j], wanted[b, d, i, j]
                    e = np.exp(-abs(x))
                    s = 1 / (1 + e) if x >= 0 else e / (1 + e)
                    found[b, d, i, j] = unit * (s - t) + s * (1 - s) * (loss * (1 - t) - gain * t)
    return found
