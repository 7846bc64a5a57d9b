"""A mesh whose outline is the photo's: what the field blurred and smoothing shaved off is put back.

Where the mesh's outline lies as the photo's camera sees it, and where the photo's own does, are matched both ways. The
matches pull at the mesh, parallel to the picture, and the rest of it follows as a membrane would. Nothing is cut or
joined: what is watertight stays so.
Letters: V vertices, F triangles, S side of the picture, E and O pixels of the mesh's and the photo's outline.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cleanup import join
from .isosurface import overlap
from .shot import Raster, Shot, look_at, look_axes, project

ROUNDS = 8
ENOUGH = 2e-4  # of overlap, that a round has to bring for another
PULL = 5.0  # of a pixel of the outline, against an edge of the mesh
REST = 1e-4  # of a vertex to where it was
FAR = 0.04  # share of the picture's side beyond which an outline's parts are not each other's
SOFT = 1.5  # px, of the blur that tells which way an outline faces
RELAXED = 10  # times that what would turn over is moved as its neighbours are, and then not at all


def fit_outline(vertices: np.ndarray, faces: np.ndarray, shot: Shot) -> np.ndarray:  # float64 (V, 3), int (F, 3)
    """The vertices moved so that the mesh covers what the photo's mask covers; at least not worse than before."""
    mask = shot.rgba[..., 3] >= 128
    wanted = trace(mask, FAR * shot.side)
    if not len(wanted) or not len(faces):
        return vertices
    joined = join(faces, len(vertices))
    best, reached = vertices, -1.0
    places = vertices
    for made in range(ROUNDS + 1):
        raster = look_at(shot, places, faces, shot.side)
        now = overlap(raster.face >= 0, mask)
        if now > reached:
            best = places
        if now < reached + ENOUGH or made == ROUNDS:
            break
        reached = now
        moved = pull(places, faces, joined, shot, raster, wanted)
        places = keep_upright(vertices, places, moved, faces, joined)
    return best


def pull(
    vertices: np.ndarray, faces: np.ndarray, joined: Any, shot: Shot, raster: Raster, wanted: np.ndarray
) -> np.ndarray:  # float64 (V, 3)
    """How the matches move the vertices."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import factorized

    far = FAR * shot.side
    found = trace(raster.face >= 0, far)
    ways = match(found, wanted, far)
    held = np.isfinite(ways[:, 0])
    if not held.any():
        return np.zeros_like(vertices)
    seen = tuple(found[held, :2].astype(np.int64).T)
    corners = (np.repeat(np.arange(held.sum()), 3), faces[raster.face[seen]].ravel())
    weights = raster.weights[seen].ravel().astype(np.float64)
    anchors = coo_matrix((weights, corners), (held.sum(), len(vertices))).tocsr()
    degree = np.asarray(joined.sum(1)).ravel()
    solve = factorized((diags(degree + REST) - joined + PULL * anchors.T @ anchors).tocsc())
    pixel = shot.pixel * project(shot, vertices)[:, 2:]
    flat = np.stack([solve(PULL * anchors.T @ ways[held, axis]) for axis in (1, 0)], 1) * (1, -1)  # right and up
    moved: np.ndarray = flat * pixel @ look_axes(shot.viewpoint)[:2]
    return moved


def keep_upright(
    first: np.ndarray, places: np.ndarray, moved: np.ndarray, faces: np.ndarray, joined: Any
) -> np.ndarray:  # float64 (V, 3), all
    """Where the vertices are after a move; where a face would look the other way than at first, moved with care."""
    degree = np.maximum(np.asarray(joined.sum(1)), 1)
    moved = moved.copy()
    for time in range(2 * RELAXED):
        turned = np.unique(faces[turns_over(first, places + moved, faces)])
        if not len(turned):
            break
        moved[turned] = (joined[turned] @ moved) / degree[turned] if time < RELAXED else 0
    return places + moved


def turns_over(before: np.ndarray, after: np.ndarray, faces: np.ndarray) -> np.ndarray:  # bool (F,)
    """Which triangles look the other way than they did."""
    one, other = (np.cross(v[faces[:, 1]] - v[faces[:, 0]], v[faces[:, 2]] - v[faces[:, 0]]) for v in (before, after))
    turned: np.ndarray = (one * other).sum(1) < 0
    return turned


def trace(mask: np.ndarray, far: float) -> np.ndarray:  # bool (S, S) -> float64 (E, 4)
    """Rows and columns of the pixels at a mask's edge, and which way each faces, `far` long.

    So the far sides of a hole or of a thin part are out of each other's reach.
    """
    from scipy.ndimage import binary_erosion, gaussian_filter

    edge = np.argwhere(mask & ~binary_erosion(mask))
    soft = gaussian_filter(mask.astype(np.float64), SOFT, mode="constant")
    slope = np.stack([step[tuple(edge.T)] for step in np.gradient(soft)], 1)
    length = np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
    return np.concatenate([edge, slope / length * far], 1)


def match(found: np.ndarray, wanted: np.ndarray, far: float) -> np.ndarray:  # (E, 4), (O, 4) -> float64 (E, 2)
    """How each pixel of an outline has to move: to the mean of those it is the nearest to, else to its own nearest.

    NaN where that is farther than `far`.
    """
    from scipy.spatial import cKDTree

    if not len(found):
        return np.zeros((0, 2))
    away, nearest = cKDTree(wanted).query(found)
    ways = np.where((away <= far)[:, None], wanted[nearest, :2] - found[:, :2], np.nan)
    away, whose = cKDTree(found).query(wanted)
    near = away <= far
    counts = np.bincount(whose[near], minlength=len(found))
    sums = np.stack([np.bincount(whose[near], wanted[near, axis], len(found)) for axis in (0, 1)], 1)
    chosen = counts > 0
    ways[chosen] = sums[chosen] / counts[chosen, None] - found[chosen, :2]
    return ways
