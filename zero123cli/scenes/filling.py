"""Where a surface is solid: by winding numbers, and as the hull of what views see.

Letters: F triangles, G cells of a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..cameras import TRAINING_FOV_DEG, Viewpoint
from .raycast import Prepared, camera_axes, cast_from, pixel_width, trace, weld

AXES = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
EDGES = ((1, 1, 0), (1, -1, 0), (0, 1, 1), (0, 1, -1), (1, 0, 1), (-1, 0, 1))
DIAGONALS = ((1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))
NUDGE = (1.3e-5, 2.9e-5)  # cells: lines don't run along faces that lie on whole numbers


def occupancy(prepared: Prepared, resolution: int) -> np.ndarray:  # bool (G, G, G), index order x, y, z
    """Which cells of [-0.5, 0.5]^3 have their centre inside, by the winding number, whichever way the faces are turned.

    Measured against the exact winding number's 0.5 on 112 shared meshes of 14 collections at 64^3, mean IoU (and of the
    worst tenth): this 0.98 (0.80), the majority of three axes' counts of crossings 0.88 (0.11), `hull` from 26 views
    0.72 (0.03). Core-seconds: 0.14, 0.03 and 0.14. Counts lose parts that overlap, the hull what is thin. Of 400 meshes
    at 32^3 the hull has 30 % of its cells outside this one for 9 %: things modelled hollow, as cupboards and bottles,
    and thin ones, which it thickens.
    """
    return np.abs(winding(one_sided(prepared.corners), resolution)) >= 0.5


def one_sided(corners: np.ndarray) -> np.ndarray:  # (F, 3, 3), both
    """Without the second copies of faces that are there from both sides, which would cancel out."""
    ids = np.sort(weld(corners.reshape(-1, 3)).reshape(-1, 3), 1)
    places = int(ids.max()) + 1
    pairs = np.unique(ids[:, 0] * places + ids[:, 1], return_inverse=True)[1]
    return corners[np.sort(np.unique(pairs * places + ids[:, 2], return_index=True)[1])]


def winding(corners: np.ndarray, resolution: int) -> np.ndarray:  # (F, 3, 3) -> float32 (G, G, G)
    """The generalised winding number (Jacobson et al., 2013) at cell centres.

    It is the mean over all directions of the signed crossings on the way out. Taken here over the 26 directions to a
    cell's neighbours, weighted as in Lebedev's quadrature of order 7: each line through the grid serves all its cells.
    """
    total = np.zeros((resolution,) * 3, np.float32)
    for directions, weight in ((AXES, 1 / 21), (EDGES, 4 / 105), (DIAGONALS, 9 / 280)):
        for direction in directions:
            passed = cross_lines(corners, resolution, direction)
            for part, window, number in by_slice(total, direction):
                part += np.float32(weight) * (passed[-1][window] - 2 * passed[number][window])
    return total


def cross_lines(corners: np.ndarray, resolution: int, direction: tuple[int, int, int]) -> np.ndarray:
    """What each line of the grid has crossed before it reaches a cell: float32 (G + 1, lines, lines).

    The first index counts cells along `direction`'s first axis that isn't zero, the last of them all crossings: a
    face counts +1 on the way out, -1 on the way in. The lines are numbered by where they cross the plane of the other
    two axes.
    """
    along, first, second, slopes = shear(direction)
    bases = [(resolution - 1) * (slope > 0) for slope in slopes]
    widths = [resolution + (resolution - 1) * abs(slope) for slope in slopes]
    grid = (corners.astype(np.float64) + 0.5) * resolution - 0.5  # cell centres are whole numbers
    height = grid[..., along]
    flat = np.stack([grid[..., axis] - slope * height for axis, slope in zip((first, second), slopes, strict=True)], -1)
    flat += np.array(bases) + NUDGE
    low = np.maximum(np.ceil(flat.min(1)), 0).astype(np.int64)
    high = np.minimum(np.floor(flat.max(1)), np.array(widths) - 1).astype(np.int64)
    spans = np.maximum(high - low + 1, 0)
    counts = spans.prod(-1)
    face = np.repeat(np.arange(len(corners)), counts)
    local = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    across = spans[face, 1]
    x, y = low[face, 0] + local // across, low[face, 1] + local % across

    edge = np.roll(flat, -1, 1) - flat  # (F, 3, 2)
    opposite = edge[face]
    start = flat[face]
    sides = opposite[..., 0] * (y[:, None] - start[..., 1]) - opposite[..., 1] * (x[:, None] - start[..., 0])
    inside = (sides > 0).all(1) | (sides < 0).all(1)
    sides, face = sides[inside], face[inside]
    area = sides.sum(1)
    # Side 0 lies against corner 2, side 1 against corner 0, side 2 against corner 1.
    height = (sides * np.roll(height, 1, 1)[face]).sum(1) / area
    bin_ = np.clip(np.ceil(height), 0, resolution).astype(np.int64)
    place = (bin_ * widths[0] + x[inside]) * widths[1] + y[inside]
    crossed = np.bincount(place, np.sign(area), (resolution + 1) * widths[0] * widths[1])
    return np.cumsum(crossed.reshape(resolution + 1, *widths), 0, dtype=np.float32)


def by_slice(
    volume: np.ndarray, direction: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, tuple[slice, slice], int]]:
    """Each slice of the grid across the first axis, and the window of lines that go through its cells."""
    along, first, second, slopes = shear(direction)
    count = len(volume)
    for number, part in enumerate(np.transpose(volume, (along, first, second))):
        begins = [(count - 1) * (slope > 0) - slope * number for slope in slopes]
        yield part, (slice(begins[0], begins[0] + count), slice(begins[1], begins[1] + count)), number


def shear(direction: tuple[int, int, int]) -> tuple[int, int, int, tuple[int, int]]:
    """The axis that is walked along, the other two in cyclic order, and how fast they change meanwhile."""
    along = next(axis for axis in range(3) if direction[axis])
    first, second = (along + 1) % 3, (along + 2) % 3
    return along, first, second, (direction[first] * direction[along], direction[second] * direction[along])


def hull(
    prepared: Prepared, viewpoints: Sequence[Viewpoint], resolution: int, size: int = 128
) -> np.ndarray:  # bool (G, G, G), index order x, y, z
    """The cells whose centre no view sees: none looks past it or has it before the surface by half a cell."""
    centres = ((np.indices((resolution,) * 3).reshape(3, -1).T + 0.5) / resolution - 0.5).astype(np.float32)
    inside = np.ones(len(centres), bool)
    origins, ways = cast_from(viewpoints, size, TRAINING_FOV_DEG)
    hits = trace(prepared, origins, ways)
    depth = np.full(len(ways), np.inf, np.float32)
    depth[hits.ray] = hits.distance
    step = pixel_width(size, TRAINING_FOV_DEG)
    for viewpoint, map_ in zip(viewpoints, depth.reshape(len(viewpoints), size, size), strict=True):
        left = np.flatnonzero(inside)
        right, up, forward = camera_axes(viewpoint).astype(np.float32)
        seen = centres[left] - np.array(viewpoint.position(), np.float32)
        far = seen @ forward
        column = np.floor(seen @ right / far / step + size / 2).astype(np.int64)
        row = np.floor(size / 2 - seen @ up / far / step).astype(np.int64)
        framed = (far > 0) & (np.minimum(row, column) >= 0) & (np.maximum(row, column) < size)
        inside[left] = framed
        left = left[framed]
        inside[left] = far[framed] >= map_[row[framed], column[framed]] - 0.5 / resolution
    return inside.reshape((resolution,) * 3)
