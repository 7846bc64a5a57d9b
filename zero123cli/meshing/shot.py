"""A picture of the object and the camera that took it: where a point lies in it, and what a mesh looks like from there.

The frame is a square cut out of the plane at distance 1, as in `diffusion.volume.Framing`; it need not be centred.
The rasteriser is plain numpy: each triangle is cut into pixel rows and each row into pixels, so that nothing outside a
triangle is touched.
Letters: P points, F triangles, E pixels of triangles, S side of the picture, h and w of a raster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..cameras import TRAINING_FOV_DEG, Viewpoint

BATCH = 1 << 20  # pixels of triangles that are looked at together, which bounds the memory


@dataclass(frozen=True)
class Shot:
    rgba: np.ndarray  # uint8 (S, S, 4), straight alpha
    viewpoint: Viewpoint
    half: float = math.tan(math.radians(TRAINING_FOV_DEG / 2))  # half the frame's side at distance 1
    middle: tuple[float, float] = (0.0, 0.0)  # of the frame, to the right and up, at distance 1

    @property
    def side(self) -> int:
        return int(self.rgba.shape[0])

    @property
    def pixel(self) -> float:
        """The width of one at distance 1."""
        return 2 * self.half / self.side


def shot_of(rgba: np.ndarray, azimuth_deg: float, elevation_deg: float, distance: float, fov_deg: float) -> Shot:
    """A cutout as a recipe's camera sees it: from the photo's direction, at the recipe's distance and field of view."""
    return Shot(rgba, Viewpoint(azimuth_deg, elevation_deg, distance), half=math.tan(math.radians(fov_deg) / 2))


@dataclass(frozen=True)
class Raster:
    """For each pixel the nearest triangle at its centre."""

    face: np.ndarray  # int32 (h, w), -1 where nothing is
    weights: np.ndarray  # float32 (h, w, 3) of the face's corners, in space
    nearness: np.ndarray  # float32 (h, w), one over the depth; 0 where nothing is


def look_axes(viewpoint: Viewpoint) -> np.ndarray:  # float64 (3, 3)
    """Rows: the picture's right, its up, and forward."""
    azimuth, elevation = math.radians(viewpoint.azimuth_deg), math.radians(viewpoint.elevation_deg)
    sin, cos = math.sin(azimuth), math.cos(azimuth)
    back = np.array([math.cos(elevation) * sin, math.sin(elevation), math.cos(elevation) * cos])
    right = np.array([cos, 0.0, -sin])
    return np.stack([right, np.cross(back, right), -back])


def project(shot: Shot, points: np.ndarray, side: int = 0) -> np.ndarray:  # (..., 3) -> float64 (..., 3)
    """Column and row in a picture of `side` px (pixel centres lie at halves), and the depth along the camera's axis."""
    seen = (points.astype(np.float64) - shot.viewpoint.position()) @ look_axes(shot.viewpoint).T
    depth = seen[..., 2]
    flat = (seen[..., :2] / np.maximum(depth, 1e-6)[..., None] - shot.middle) / shot.half
    return np.stack([*((flat * (1, -1) + 1) / 2 * (side or shot.side)).T, depth.T]).T


def outline(shot: Shot) -> Callable[[np.ndarray], np.ndarray]:  # float (P, 3) -> float64 (P,)
    """How far within the photo's outline points lie, as seen by its camera, in units of the world; outside negative."""
    from scipy.ndimage import distance_transform_edt, map_coordinates

    mask = np.pad(shot.rgba[..., 3] >= 128, 1)
    inside = distance_transform_edt(mask) - distance_transform_edt(~mask)
    inside -= np.sign(inside) / 2  # the outline runs between pixels

    def measure(points: np.ndarray) -> np.ndarray:
        seen = project(shot, points)
        found: np.ndarray = map_coordinates(inside, seen[:, 1::-1].T + 0.5, order=1, cval=-shot.side)
        return found * shot.pixel * seen[:, 2]

    return measure


def cast(shot: Shot, side: int) -> tuple[np.ndarray, np.ndarray]:  # float64 (3,) and (side, side, 3)
    """The camera's place and a ray through the middle of each pixel, of length 1 along the camera's axis."""
    across = ((np.arange(side) + 0.5) / side * 2 - 1) * shot.half
    x, y = np.meshgrid(across + shot.middle[0], -across + shot.middle[1])
    return np.array(shot.viewpoint.position()), np.stack([x, y, np.ones_like(x)], -1) @ look_axes(shot.viewpoint)


def rasterise(
    corners: np.ndarray,  # (F, 3, 2), column and row; pixel centres lie at halves
    height: int,
    width: int,
    depth: np.ndarray | None = None,  # (F, 3)
) -> Raster:
    """What covers the centre of each pixel, the nearest triangle first; without `depth` the later of two."""
    near = np.ones(corners.shape[:2]) if depth is None else 1 / np.maximum(depth.astype(np.float64), 1e-6)
    best = np.zeros(height * width)
    face = np.full(height * width, -1, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    for which, pixel, flat in cover(corners.astype(np.float64), height, width):
        share = flat * near[which]
        nearness = share.sum(1)
        np.maximum.at(best, pixel, nearness)
        won = nearness == best[pixel]
        face[pixel[won]] = which[won]
        weights[pixel[won]] = share[won] / nearness[won, None]
    shape = (height, width)
    return Raster(face.reshape(shape), weights.reshape(*shape, 3), best.reshape(shape).astype(np.float32))


def cover(
    corners: np.ndarray, height: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # int (E,), int (E,), float64 (E, 3)
    """Triangles, the pixels whose centres they cover, and the weights of the corners there, a batch at a time."""
    size = np.array([width, height])
    first = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(np.int64)
    last = np.clip(np.floor(corners.max(1) - 0.5), -1, size - 1).astype(np.int64)
    spans = np.maximum(last - first + 1, 0)
    edge = np.roll(corners, -1, 1) - corners
    area = edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]
    useful = np.flatnonzero((spans.prod(1) > 0) & (np.abs(area) > 1e-12))
    ends = np.cumsum(spans[useful].prod(1))
    for batch in np.split(useful, np.searchsorted(ends, np.arange(BATCH, ends[-1] if len(ends) else 0, BATCH))):
        which = np.repeat(batch, spans[batch, 1])
        if not len(which):
            continue
        row = count_up(spans[batch, 1]) + first[which, 1]
        start, way = corners[which], edge[which]
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (row[:, None] + 0.5 - start[..., 1]) / way[..., 1]
            x = start[..., 0] + along * way[..., 0]
        crosses = (along >= 0) & (along <= 1)  # false for level edges
        left = np.ceil(np.where(crosses, x, np.inf).min(1) - 0.5)
        right = np.floor(np.where(crosses, x, -np.inf).max(1) - 0.5)
        left, right = np.clip(left, 0, width).astype(np.int64), np.clip(right, -1, width - 1).astype(np.int64)
        counts = np.maximum(right - left + 1, 0)
        line = np.repeat(np.arange(len(which)), counts)
        column, row, which = count_up(counts) + left[line], row[line], which[line]
        place = np.stack([column, row], -1) + 0.5
        start, way = corners[which], edge[which]
        sides = way[..., 0] * (place[:, None, 1] - start[..., 1]) - way[..., 1] * (place[:, None, 0] - start[..., 0])
        # Side 0 lies against corner 2, side 1 against corner 0, side 2 against corner 1.
        flat = np.clip(np.roll(sides, -1, 1) / area[which, None], 0, 1)
        yield which, row * width + column, flat / flat.sum(1, keepdims=True)


def count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of `counts`, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def look_at(shot: Shot, vertices: np.ndarray, faces: np.ndarray, side: int) -> Raster:
    """What of a mesh the shot's camera sees."""
    seen = project(shot, vertices, side)
    return rasterise(seen[faces][..., :2], side, side, seen[faces][..., 2])
