"""A mesh pulled to the photo's outline covers what the mask covers, moves along the picture only, and stays whole."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.shot import Shot, look_at, look_axes
from zero123cli.meshing.silhouette import FAR, fit_outline, match, trace

SIDE = 192


def ball(radius: float = 0.38) -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(4, radius)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def bumpy(vertices: np.ndarray, shot: Shot, depth: float = 0.05) -> np.ndarray:
    """A flower as the shot's camera sees it."""
    right, up, _ = look_axes(shot.viewpoint) @ vertices.T
    return vertices * (1.02 + depth * np.cos(5 * np.arctan2(up, right)))[:, None]


def shot_from(viewpoint: Viewpoint, half: float = 0.3, middle: tuple[float, float] = (0.0, 0.0)) -> Shot:
    return Shot(np.zeros((SIDE, SIDE, 4), np.uint8), viewpoint, half, middle)


def covers(shot: Shot, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return look_at(shot, vertices, faces, SIDE).face >= 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("shot", [
    shot_from(Viewpoint(0, 0, 1.8)),
    shot_from(Viewpoint(130, 35, 2.1), 0.28, (0.02, -0.03)),
])  # fmt: skip
def test_outline_becomes_the_masks(shot: Shot) -> None:
    vertices, faces = ball()
    mask = covers(shot, bumpy(vertices, shot), faces)
    shot.rgba[mask, 3] = 255
    fitted = fit_outline(vertices, faces, shot)
    assert overlap(covers(shot, vertices, faces), mask) < 0.94
    assert overlap(covers(shot, fitted, faces), mask) > 0.992
    moved = (fitted - vertices) @ look_axes(shot.viewpoint).T
    assert np.abs(moved[:, 2]).max() < 1e-12 and np.abs(moved[:, :2]).max() > 0.01  # along the picture only
    normals = [trimesh.Trimesh(places, faces, process=False).face_normals for places in (vertices, fitted)]
    assert (normals[0] * normals[1]).sum(1).min() > 0.2  # nothing turned over
    assert trimesh.Trimesh(fitted, faces, process=False).is_watertight


def test_what_fits_already_stays() -> None:
    vertices, faces = ball()
    shot = shot_from(Viewpoint(20, 10, 1.9))
    shot.rgba[covers(shot, vertices, faces), 3] = 255
    assert np.abs(fit_outline(vertices, faces, shot) - vertices).max() < 1e-9


@pytest.mark.parametrize("case", ["empty mask", "mask elsewhere", "mesh elsewhere"])
def test_outlines_that_have_nothing_to_do_with_each_other_are_left_alone(case: str) -> None:
    vertices, faces = ball(0.1)
    shot = shot_from(Viewpoint(0, 0, 1.8))
    if case == "mask elsewhere":
        shot.rgba[:20, :20, 3] = 255
    if case == "mesh elsewhere":
        shot.rgba[80:110, 80:110, 3] = 255
        vertices = vertices + np.array([5.0, 0, 0])
    assert np.array_equal(fit_outline(vertices, faces, shot), vertices)


def test_a_part_that_the_mesh_lacks_does_not_tear_it() -> None:
    """A pole far beyond the ball: its foot may rise a little, and the rest is as round as before."""
    vertices, faces = ball(0.25)
    shot = shot_from(Viewpoint(0, 0, 1.8))
    mask = covers(shot, vertices, faces)
    shot.rgba[mask, 3] = 255
    top = int(np.flatnonzero(mask.any(1))[0])
    shot.rgba[top - 40 : top, SIDE // 2 - 2 : SIDE // 2 + 2, 3] = 255
    moved = np.linalg.norm(fit_outline(vertices, faces, shot) - vertices, axis=1)
    assert moved.max() < 5 * FAR * 2 * shot.half * 1.8  # at most so far in each round
    assert (moved > 0.01).mean() < 0.02


def test_matches_go_both_ways() -> None:
    """Three pixels against a line above them and one that is far from all."""
    found = np.array([[10, 4], [10, 5], [10, 6], [40, 40]])
    wanted = np.array([[7, column] for column in range(2, 9)])
    ways = match(found, wanted, far=8.0)
    assert np.allclose(ways[1], (-3, 0)) and np.allclose(ways[0], (-3, -1)) and np.allclose(ways[2], (-3, 1))
    assert np.isnan(ways[3]).all()
    assert np.isnan(match(found, wanted, far=2.0)).all()
    assert match(found[:0], wanted, far=8.0).shape == (0, 2)


def test_an_edge_is_what_erosion_takes() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:6] = True
    assert len(trace(mask)) == 14 and not len(trace(mask & False))
