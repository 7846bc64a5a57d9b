"""A mesh pulled to the photo's outline covers what the mask covers, moves along the picture only, and stays whole."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.cleanup import join
from zero123cli.meshing.isosurface import overlap
from zero123cli.meshing.shot import Shot, look_at, look_axes
from zero123cli.meshing.silhouette import fit_outline, keep_upright, match, trace, turns_over

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
    assert not turns_over(vertices, fitted, faces).any()


def test_what_fits_already_stays() -> None:
    vertices, faces = ball()
    shot = shot_from(Viewpoint(20, 10, 1.9))
    shot.rgba[covers(shot, vertices, faces), 3] = 255
    assert np.array_equal(fit_outline(vertices, faces, shot), vertices)


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
    assert moved.max() < 0.05 and (moved > 0.01).mean() < 0.02


def test_matches_go_both_ways() -> None:
    """Three pixels against a line above them, and one that is far from all."""
    found = facing([[10, 4], [10, 5], [10, 6], [40, 40]])
    wanted = facing([[7, column] for column in range(2, 9)])
    ways = match(found, wanted, far=8.0)
    assert np.allclose(ways[1], (-3, 0)) and np.allclose(ways[0], (-3, -1)) and np.allclose(ways[2], (-3, 1))
    assert np.isnan(ways[3]).all()
    assert np.isnan(match(found, wanted, far=2.0)).all()
    assert match(found[:0], wanted, far=8.0).shape == (0, 2)


def test_outlines_that_face_each_other_do_not_match() -> None:
    """A slit's upper side is no place for what looks up."""
    assert np.isnan(match(facing([[10, 5]]), facing([[12, 5]], turned=True), far=8.0)).all()


def facing(places: list[list[int]], far: float = 8.0, turned: bool = False) -> np.ndarray:
    """Pixels of an outline that face up, or down."""
    return np.array([[*place, -far if turned else far, 0] for place in places], np.float64)


def test_an_outline_is_what_erosion_takes_and_faces_inwards() -> None:
    mask = np.zeros((12, 14), bool)
    mask[1:11, 1:13] = True
    found = trace(mask, 5.0)
    assert len(found) == 2 * 12 + 2 * 8 and not len(trace(mask & False, 5.0))
    assert np.allclose(np.linalg.norm(found[:, 2:], axis=1), 5)
    top = found[(found[:, 0] == 1) & (found[:, 1] == 7)][0]
    assert np.allclose(top[2:], (5, 0), atol=0.01)


def test_holes_that_the_mesh_lacks_do_not_pull_at_its_rim() -> None:
    vertices, faces = ball()
    shot = shot_from(Viewpoint(0, 0, 1.8))
    mask = covers(shot, vertices, faces)
    right = int(np.flatnonzero(mask[SIDE // 2])[-1])
    mask[SIDE // 2 - 30 : SIDE // 2 + 30, right - 9 : right - 7] = False  # a slit just inside
    shot.rgba[mask, 3] = 255
    fitted = fit_outline(vertices, faces, shot)
    assert overlap(covers(shot, fitted, faces), mask) >= overlap(covers(shot, vertices, faces), mask)


def test_two_pieces_that_cannot_become_one_are_not_turned_over() -> None:
    """Two bars against the mask of a wide one between them."""
    bars = [trimesh.creation.box((0.06, 0.6, 0.1)).subdivide().subdivide().subdivide() for _ in range(2)]
    places = np.concatenate([bar.vertices + np.array([x, 0, 0]) for bar, x in zip(bars, (-0.07, 0.07), strict=True)])
    faces = np.concatenate([bars[0].faces, bars[1].faces + len(bars[0].vertices)])
    shot = shot_from(Viewpoint(0, 0, 1.8))
    wide = trimesh.creation.box((0.2, 0.6, 0.1))
    mask = covers(shot, np.asarray(wide.vertices), np.asarray(wide.faces))
    shot.rgba[mask, 3] = 255
    fitted = fit_outline(places, faces, shot)
    assert not turns_over(places, fitted, faces).any()
    assert overlap(covers(shot, fitted, faces), mask) > overlap(covers(shot, places, faces), mask)


def test_a_move_that_turns_faces_over_is_softened() -> None:
    vertices, faces = ball()
    joined = join(faces, len(vertices))
    moved = np.zeros_like(vertices)
    moved[700] = 0.5 * np.cross(vertices[700], (0, 1, 0))  # sideways, beyond its neighbours
    assert turns_over(vertices, vertices + moved, faces).any()
    kept = keep_upright(vertices, vertices, moved, faces, joined)
    assert not turns_over(vertices, kept, faces).any()
    gentle = np.full_like(vertices, 0.001)
    assert np.allclose(keep_upright(vertices, vertices, gentle, faces, joined), vertices + gentle, atol=1e-15)
