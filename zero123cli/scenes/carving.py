"""What is inside an object, told by pictures of it alone: all that none of them sees.

It needs no closed surface. What a mesh models as a shell is full up to what can be looked into, and what is thinner
than a cell keeps the cell that it is in.
Letters: C cells, S side of a picture, G cells a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from ..cameras import Viewpoint
from .raycast import camera_axes

SEEN, BESIDE, BEHIND = 0, 1, 2  # how a view sees a cell: in the open, right before a surface, or not at all
NEAR = 0.6  # cells; a surface midway between two layers of them keeps both
FULL = 128  # alpha from which a pixel shows the object


@dataclass(frozen=True)
class Glimpse:
    """A picture of an object in [-0.5, 0.5]^3."""

    viewpoint: Viewpoint
    square: tuple[float, float, float]  # of the plane at distance 1: middle to the right and up, half side
    alpha: np.ndarray  # uint8 (S, S)
    depth: np.ndarray  # (S, S), along the camera's axis, inf where nothing is
    normal: np.ndarray  # (S, S, 3), towards the camera, world axes


def carve(glimpses: Sequence[Glimpse], resolution: int) -> np.ndarray:  # bool (G, G, G), index order x, y, z
    """The cells that are inside as far as these pictures tell.

    Measured against winding numbers at 64^3 on 1,500 made-up solids, which are closed, with 12 pictures of 64 px: IoU
    0.89, and 2 % of the cells inside are lost. Comparing depths alone, without normals, gave 0.83 and 12 %.
    """
    centres = ((np.indices((resolution,) * 3).reshape(3, -1).T + 0.5) / resolution - 0.5).astype(np.float32)
    states = np.full(len(centres), BEHIND, np.uint8)
    for glimpse in glimpses:
        left = np.flatnonzero(states)
        states[left] = np.minimum(states[left], look(glimpse, centres[left], NEAR / resolution))
    solid, thin = ((states == state).reshape((resolution,) * 3) for state in (BEHIND, BESIDE))
    return solid | (thin & ~binary_dilation(solid, np.ones((3, 3, 3), bool)))


def look(glimpse: Glimpse, centres: np.ndarray, near: float) -> np.ndarray:  # float32 (C, 3) -> uint8 (C,)
    """How the view sees cells: for each of the four pixels around it a cell is before or behind the plane of the
    surface there. Planes, because a surface seen at a flat angle is at many depths within a pixel."""
    middle_x, middle_y, half = glimpse.square
    side = len(glimpse.depth)
    right, up, forward = camera_axes(glimpse.viewpoint).astype(np.float32)
    away = centres - np.array(glimpse.viewpoint.position(), np.float32)
    far = np.maximum(away @ forward, 1e-6)
    column = ((away @ right / far - middle_x) / half + 1) / 2 * side - 0.5
    row = (1 - (away @ up / far - middle_y) / half) / 2 * side - 0.5

    across = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * half
    rays = (middle_x + across)[None, :, None] * right + (middle_y - across)[:, None, None] * up + forward
    shows = glimpse.alpha >= FULL
    met = shows & np.isfinite(glimpse.depth)
    depth = np.where(met, glimpse.depth, np.inf).astype(np.float32)
    normal = np.where(met[..., None], glimpse.normal, 0).astype(np.float32)
    # How far off the plane is. Before what shows nothing everything lies; before what is shown and not met, nothing.
    level = np.where(met, (normal * rays).sum(-1) * np.where(met, depth, 0), np.where(shows, 0, -1))
    frame = ((1, 1), (1, 1))
    depth, level = np.pad(depth, frame, constant_values=np.inf), np.pad(level, frame, constant_values=-1)
    normal = np.pad(normal, (*frame, (0, 0)))

    found = np.zeros(len(centres), np.uint8)
    for step_down in (0, 1):
        for step_right in (0, 1):
            rows, columns = (
                np.clip(np.floor(place).astype(np.int64) + 1 + step, 0, side + 1)
                for place, step in ((row, step_down), (column, step_right))
            )
            before = np.einsum("ck,ck->c", away, normal[rows, columns]) - level[rows, columns]
            found = np.maximum(found, np.where(before > near, SEEN, np.where(before > 0, BESIDE, BEHIND)))
    rows, columns = (np.clip(np.round(place).astype(np.int64) + 1, 0, side + 1) for place in (row, column))
    return np.where(far >= depth[rows, columns], BEHIND, found).astype(np.uint8)
