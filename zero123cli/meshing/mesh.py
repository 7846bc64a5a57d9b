"""The finished mesh: triangles with normals and a texture or colours, ready to be written.

World axes as in `cameras`: y up, the front towards +Z. A vertex stands for one corner of the texture, so that seams
have several in one place; `weld` undoes that.
Letters: V vertices, F triangles, T side of the texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """An artifact: what is not there has no rows."""

    vertices: np.ndarray  # float32 (V, 3)
    normals: np.ndarray  # float32 (V, 3), of length 1, outwards
    faces: np.ndarray  # int32 (F, 3), seen from outside they turn left
    uv: np.ndarray  # float32 (V or 0, 2); v goes up, as in OBJ
    texture: np.ndarray  # uint8 (T or 0, T or 0, 3), sRGB, row 0 at the top (v = 1)
    colours: np.ndarray  # uint8 (V or 0, 3), sRGB


@dataclass(frozen=True)
class Made(Mesh):
    """A mesh and how it was taken out of its field."""

    level: float  # the density at its surface
    margin: float  # the factor by which that may be off
    dropped: int  # components
    closed: int  # holes


NO_UV = np.zeros((0, 2), np.float32)
NO_TEXTURE = np.zeros((0, 0, 3), np.uint8)
NO_COLOURS = np.zeros((0, 3), np.uint8)


def weld(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (V, 3) -> int (W,), int (V,)
    """The first vertex of each place, and for each vertex which of the places it is at."""
    rows = np.ascontiguousarray(vertices + 0.0).view([("", vertices.dtype)] * 3).ravel()  # + 0.0: -0 is 0
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # in order of appearance
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[which]


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:  # (V, 3), (F, 3) -> float64 (V, 3)
    """The mean of the faces around each vertex, weighted by the angle that each has there."""
    corners = vertices[faces].astype(np.float64)
    flat = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    total = np.zeros((len(vertices), 3))
    for side in range(3):
        one, other = (unit(corners[:, (side + k) % 3] - corners[:, side]) for k in (1, 2))
        angle = np.arccos(np.clip((one * other).sum(1), -1, 1))
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, side], flat[:, axis] * angle, len(vertices))
    lost = (total**2).sum(1) < 1e-20  # only flaps and needles around it
    total[lost] = (0.0, 1.0, 0.0)
    return unit(total)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:  # (T, T, c), (P, 2) -> float64 (P, c)
    """Bilinear, the outermost texels continued."""
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0].astype(np.float64) * width - 0.5, 0, width - 1)
    y = np.clip((1 - uv[:, 1].astype(np.float64)) * height - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(np.int64), max(width - 2, 0)), np.minimum(y.astype(np.int64), max(height - 2, 0))
    right, low = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x - left)[:, None], (y - top)[:, None]
    upper = texture[top, left] * (1 - across) + texture[top, right] * across
    lower = texture[low, left] * (1 - across) + texture[low, right] * across
    return upper * (1 - down) + lower * down
