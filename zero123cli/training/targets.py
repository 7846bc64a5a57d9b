"""What a volume should have been: the object's inside, looked up along the rays of one of its pictures.

The torch version is the definition; the numba twin does the same on a CPU many times faster (tests hold them together).
Letters: B pictures, R resolution of the known occupancy, D depth bins, S side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.volume import REACH, Framing


def look_up(inside: Tensor, framing: Framing, depth: int, side: int) -> Tensor:
    """How much of each cell's middle is inside (B, D, S, S), `inside` being (B, R, R, R) over x, y, z."""
    if inside.device.type == "cpu":
        axes = framing.axes().numpy()
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


@numba.njit(parallel=True, cache=True, fastmath=True)
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
