"""The rasteriser against a look at every pixel, and the camera against the ray caster's."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import trimesh

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.shot import BATCH, Shot, cast, look_at, outline, project, rasterise
from zero123cli.scenes.raycast import prepare, silhouette
from zero123cli.scenes.surface import Material, Surface

NOTHING = np.zeros((64, 64, 4), np.uint8)
VIEWS = [Viewpoint(), Viewpoint(70, 35, 1.6), Viewpoint(200, -50, 2.2), Viewpoint(10, 90, 2.0)]


def rasterise_slowly(corners: np.ndarray, height: int, width: int, depth: np.ndarray) -> np.ndarray:
    """For each pixel every triangle is asked."""
    face = np.full((height, width), -1)
    for row in range(height):
        for column in range(width):
            best = 0.0
            for number, triangle in enumerate(corners):
                edges = np.vstack([triangle.T, np.ones(3)])
                weights = np.linalg.solve(edges, [column + 0.5, row + 0.5, 1.0])
                nearness = weights @ (1 / depth[number])
                if weights.min() >= 0 and nearness > best:
                    best, face[row, column] = nearness, number
    return face


def test_raster_is_what_asking_every_triangle_gives() -> None:
    rng = np.random.default_rng(0)
    middles = rng.uniform(-3, 18, (30, 1, 2))
    corners, depth = middles + rng.uniform(-9, 9, (30, 3, 2)), rng.uniform(1, 3, (30, 3))
    raster = rasterise(corners, 12, 15, depth)
    assert np.array_equal(raster.face, rasterise_slowly(corners, 12, 15, depth))
    assert (raster.face >= 0).any() and (raster.face < 0).any()


def test_weights_give_back_the_place_in_space() -> None:
    shot = Shot(NOTHING, Viewpoint(30, 20, 1.7), half=0.3, middle=(0.05, -0.08))
    sphere = trimesh.creation.icosphere(2, 0.5)
    raster = look_at(shot, sphere.vertices, sphere.faces, 80)
    hit = raster.face >= 0
    points = np.einsum("pk,pkc->pc", raster.weights[hit], sphere.vertices[sphere.faces[raster.face[hit]]])
    origin, ways = cast(shot, 80)
    seen = (points - origin) / (1 / raster.nearness[hit])[:, None]
    assert np.allclose(seen, ways[hit], atol=1e-5)


def test_projection_undoes_casting() -> None:
    for viewpoint in VIEWS:
        shot = Shot(NOTHING, viewpoint, half=0.4, middle=(0.1, 0.2))
        origin, ways = cast(shot, 16)
        place = project(shot, origin + 1.3 * ways, 16)
        row, column = np.mgrid[:16, :16] + 0.5
        assert np.allclose(place, np.stack([column, row, np.full_like(row, 1.3)], -1), atol=1e-9)


@pytest.mark.skipif(importlib.util.find_spec("embreex") is None, reason="embreex is not installed here")
@pytest.mark.parametrize("viewpoint", VIEWS, ids=str)
def test_outline_is_that_of_the_ray_caster(viewpoint: Viewpoint) -> None:
    mesh = trimesh.creation.torus(0.35, 0.1)
    surface = Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), (Material((1, 1, 1, 1)),),
                      np.zeros(len(mesh.faces), np.int32))  # fmt: skip
    theirs = silhouette(prepare(surface), [viewpoint], 64)[0]
    ours = look_at(Shot(NOTHING, viewpoint), surface.vertices, surface.faces, 64).face >= 0
    assert (theirs != ours).sum() <= 2 and theirs.sum() > 200


def test_neighbours_leave_no_gap() -> None:
    """A square in 2 x 2 x 2 triangles whose borders run through pixel centres is covered to the last pixel."""
    cuts = np.array([0.0, 7.5, 16.0])
    corners = []
    for x in (0, 1):
        for y in (0, 1):
            a, b, c, d = [(cuts[x + i], cuts[y + j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
            corners += [[a, b, c], [a, c, d]]
    assert (rasterise(np.array(corners), 16, 16).face >= 0).all()


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    corners, depth = rng.uniform(0, 40, (200, 3, 2)), rng.uniform(1, 3, (200, 3))
    whole = rasterise(corners, 40, 40, depth)
    assert BATCH > 1000
    monkeypatch.setattr("zero123cli.meshing.shot.BATCH", 1000)
    parts = rasterise(corners, 40, 40, depth)
    assert np.array_equal(whole.face, parts.face) and np.array_equal(whole.weights, parts.weights)


def test_nothing_to_see_is_an_empty_raster() -> None:
    for corners in (np.zeros((0, 3, 2)), np.full((1, 3, 2), 3.0), np.full((2, 3, 2), -50.0) + np.eye(3)[:, :2]):
        assert (rasterise(corners, 8, 8).face == -1).all()


def test_outline_tells_how_far_within_it_a_point_is() -> None:
    """A disc of 30 px in a picture of 100, seen from aside."""
    rows, columns = np.indices((100, 100)) + 0.5
    away = np.hypot(rows - 40, columns - 60)
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[away < 30, 3] = 255
    shot = Shot(rgba, Viewpoint(70, 15, 1.7), half=0.4, middle=(0.1, 0.2))
    origin, ways = cast(shot, 100)
    for depth in (1.2, 2.0):
        found = outline(shot)((origin + depth * ways).reshape(-1, 3)).reshape(100, 100)
        expected = (30 - away) * 0.8 / 100 * depth
        assert np.abs(found - expected)[away < 60].max() < 0.01 * depth
    assert outline(shot)(origin[None] + 2 * (ways[0, :1] * 3 - 2 * ways[50, 50])).item() < -0.1  # out of the frame


def test_an_empty_or_full_picture_has_no_outline_within_it() -> None:
    for alpha, sign in ((0, -1), (255, 1)):
        shot = Shot(np.full((20, 20, 4), alpha, np.uint8), Viewpoint())
        assert sign * outline(shot)(np.zeros((1, 3))).item() > 0
