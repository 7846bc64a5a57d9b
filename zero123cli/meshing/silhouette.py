"""A mesh whose outline is the photo's: what the field blurred and smoothing shaved off is put back.

Where the mesh's outline lies as the photo's camera sees it, and where the photo's own does, are matched both ways. The
matches pull at the mesh, parallel to the picture, and the rest of it follows as a membrane would. Nothing is cut or
joined: what is watertight stays so.
Letters: V vertices, F triangles, S side of the picture, E and O pixels of the mesh's and the photo's outline.
"""

from __future__ import annotations

import numpy as np

from .shot import Shot, look_at, look_axes, project

ROUNDS = 5
PULL = 2.0  # of a pixel of the outline, against an edge of the mesh
REST = 1e-4  # of a vertex to where it was
FAR = 0.04  # share of the picture's side beyond which an outline's parts are not each other's
RELAXED = 10  # times that what would turn over is moved as its neighbours are, instead


def fit_outline(vertices: np.ndarray, faces: np.ndarray, shot: Shot) -> np.ndarray:  # float64 (V, 3), int (F, 3)
    """The vertices moved so that the mesh covers what the photo's mask covers."""
    wanted = trace(shot.rgba[..., 3] >= 128)
    for _ in range(ROUNDS if len(wanted) else 0):
        vertices = pull(vertices, faces, shot, wanted)
    return vertices


def pull(vertices: np.ndarray, faces: np.ndarray, shot: Shot, wanted: np.ndarray) -> np.ndarray:
    """One round."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import factorized

    raster = look_at(shot, vertices, faces, shot.side)
    found = trace(raster.face >= 0)
    ways = match(found, wanted, FAR * shot.side)
    held = np.isfinite(ways[:, 0])
    if not held.any():
        return vertices
    seen = tuple(found[held].T)
    count = len(vertices)
    corners = (np.repeat(np.arange(held.sum()), 3), faces[raster.face[seen]].ravel())
    anchors = coo_matrix((raster.weights[seen].ravel().astype(np.float64), corners), (held.sum(), count)).tocsr()
    begin, end = np.concatenate([faces, faces[:, ::-1]]), np.roll(np.concatenate([faces, faces[:, ::-1]]), -1, 1)
    joined = coo_matrix((np.ones(begin.size), (begin.ravel(), end.ravel())), (count, count)).tocsr()
    joined.data[:] = 1.0  # an edge between two faces counts once
    degree = np.asarray(joined.sum(1)).ravel()
    solve = factorized((diags(degree + REST) - joined + PULL * anchors.T @ anchors).tocsc())
    pixel = 2 * shot.half / shot.side * project(shot, vertices)[:, 2:]
    flat = np.stack([solve(PULL * anchors.T @ ways[held, axis]) for axis in (1, 0)], 1) * (1, -1)  # right and up
    moved = flat * pixel @ look_axes(shot.viewpoint)[:2]
    for _ in range(RELAXED):
        turned = np.unique(faces[turns_over(vertices, vertices + moved, faces)])
        if not len(turned):
            return vertices + moved
        moved[turned] = (joined[turned] @ moved) / degree[turned, None]
    return vertices + moved


def turns_over(before: np.ndarray, after: np.ndarray, faces: np.ndarray) -> np.ndarray:  # bool (F,)
    """Which triangles look the other way than they did."""
    one, other = (np.cross(v[faces[:, 1]] - v[faces[:, 0]], v[faces[:, 2]] - v[faces[:, 0]]) for v in (before, after))
    turned: np.ndarray = (one * other).sum(1) < 0
    return turned


def trace(mask: np.ndarray) -> np.ndarray:  # bool (S, S) -> int (E, 2)
    """Rows and columns of the pixels of a mask that lie at its edge."""
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))


def match(found: np.ndarray, wanted: np.ndarray, far: float) -> np.ndarray:  # (E, 2), (O, 2) -> float64 (E, 2)
    """How each pixel of an outline has to move: to the mean of those it is the nearest to, else to its own nearest.

    NaN where that is farther than `far`.
    """
    from scipy.spatial import cKDTree

    if not len(found):
        return np.zeros((0, 2))
    away, nearest = cKDTree(wanted).query(found)
    ways = np.where((away <= far)[:, None], wanted[nearest] - found, np.nan)
    away, whose = cKDTree(found).query(wanted)
    near = away <= far
    counts = np.bincount(whose[near], minlength=len(found))
    sums = np.stack([np.bincount(whose[near], wanted[near, axis], len(found)) for axis in (0, 1)], 1)
    chosen = counts > 0
    ways[chosen] = sums[chosen] / counts[chosen, None] - found[chosen]
    return ways
