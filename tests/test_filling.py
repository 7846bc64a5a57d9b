"""Where things are solid, against closed forms and the sum of solid angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh
from conftest import SHARED
from surfaces import quad, surface_of

from zero123cli.cameras import Viewpoint, ring
from zero123cli.scenes.filling import hull, occupancy, winding
from zero123cli.scenes.raycast import prepare
from zero123cli.scenes.surface import normalise

GSO = SHARED / "data" / "eval" / "gso"


def solid_angles(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The winding number by its definition: the sum of the solid angles of all faces over 4 pi."""
    total = np.zeros(len(points))
    for begin in range(0, len(triangles), 512):
        a, b, c = np.moveaxis(triangles[None, begin : begin + 512] - points[:, None, None], 2, 0)
        la, lb, lc = (np.linalg.norm(each, axis=-1) for each in (a, b, c))
        volume = (a * np.cross(b, c)).sum(-1)
        flat = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        total += np.arctan2(volume, flat).sum(-1)
    return total / (2 * math.pi)


def filled(*meshes: trimesh.Trimesh, resolution: int = 64) -> float:
    """The volume that is found inside."""
    whole = trimesh.util.concatenate(meshes)
    return float(occupancy(prepare(surface_of(whole)), resolution).mean())


def ball(radius: float, x: float = 0.0) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius).apply_translation((x, 0, 0))


def inverted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    turned = mesh.copy()
    turned.invert()
    return turned


def test_closed_bodies_have_their_volume() -> None:
    donut = trimesh.creation.torus(0.33, 0.15, major_sections=64, minor_sections=32)
    drilled = trimesh.creation.annulus(0.2, 0.45, 0.6, sections=64)
    box = trimesh.creation.box((0.9, 0.5, 0.7))
    for mesh in (ball(0.45), donut, drilled, box, inverted(box)):
        assert filled(mesh) == pytest.approx(abs(mesh.volume), rel=0.02)


def test_an_open_box_is_as_full_as_a_closed_one() -> None:
    box = trimesh.creation.box((0.7, 0.7, 0.7)).subdivide().subdivide()
    closed = box.volume
    box.update_faces(box.face_normals[:, 1] < 0.9)  # no lid
    found = occupancy(prepare(surface_of(box)), 64)
    reference = solid_angles(box.triangles, (np.indices(found.shape).reshape(3, -1).T[::97] + 0.5) / 64 - 0.5) >= 0.5
    assert (found.reshape(-1)[::97] != reference).mean() < 0.02
    assert 0.75 * closed < found.mean() < 1.05 * closed


def test_doubled_walls_are_one_body() -> None:
    box = trimesh.creation.box((0.8, 0.6, 0.7))
    assert filled(box, inverted(box)) == pytest.approx(box.volume, rel=0.02)  # each face from both sides
    assert filled(box, box) == pytest.approx(box.volume, rel=0.02)


def test_inner_shells_are_hollow_or_full_as_they_are_turned() -> None:
    outer, inner = ball(0.45), ball(0.3)
    assert filled(outer, inner) == pytest.approx(outer.volume, rel=0.02)
    assert filled(outer, inverted(inner)) == pytest.approx(outer.volume - inner.volume, rel=0.02)


def test_overlapping_balls_are_their_union() -> None:
    radius, apart = 0.3, 0.3
    lens = math.pi * (4 * radius + apart) * (2 * radius - apart) ** 2 / 12
    one, other = ball(radius, -apart / 2), ball(radius, apart / 2)
    assert filled(one, other) == pytest.approx(2 * one.volume - lens, rel=0.02)


def test_axes_come_in_the_order_x_y_z() -> None:
    box = trimesh.creation.box((0.9, 0.5, 0.25)).apply_translation((0.0, 0.2, -0.3))
    found = np.argwhere(occupancy(prepare(surface_of(box)), 40))
    low, high = (found.min(0)) / 40 - 0.5, (found.max(0) + 1) / 40 - 0.5
    assert np.abs(low - box.bounds[0]).max() < 0.03 and np.abs(high - box.bounds[1]).max() < 0.03


def test_the_winding_number_of_closed_bodies_is_whole() -> None:
    knot = trimesh.creation.torus(0.3, 0.12).apply_transform(trimesh.transformations.rotation_matrix(0.7, (1, 2, 0.5)))
    for mesh in (knot, ball(0.45), trimesh.creation.box((0.5, 0.5, 0.5))):
        corners = prepare(surface_of(mesh)).corners
        number = winding(corners, 48)
        assert np.abs(number - np.rint(number)).max() < 1e-5
        assert {*np.rint(number).ravel()} == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_winding_is_close_to_the_sum_of_solid_angles_on_torn_surfaces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mesh = trimesh.creation.icosphere(3, 0.45)
    mesh.vertices *= rng.uniform(0.5, 1, 3)
    mesh.update_faces(mesh.triangles_center @ rng.normal(size=3) > -0.1)
    cells = rng.integers(0, 32, (800, 3))
    exact = solid_angles(mesh.triangles, (cells + 0.5) / 32 - 0.5)
    found = winding(prepare(surface_of(mesh)).corners, 32)[tuple(cells.T)]
    assert np.abs(found - exact).mean() < 0.05
    assert ((found >= 0.5) == (exact >= 0.5))[np.abs(exact - 0.5) > 0.15].mean() > 0.98


def test_the_hull_of_a_ball_from_many_views_is_the_ball() -> None:
    sphere = prepare(surface_of(ball(0.5)))
    views = [*ring(8, 0, 2), *ring(8, 45, 2), *ring(8, -45, 2), Viewpoint(0, 90, 2), Viewpoint(0, -90, 2)]
    found = hull(sphere, views, 32)
    truth = occupancy(sphere, 32)
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert not hull(prepare(quad()), views, 32)[:, :, :8].any()


@pytest.mark.skipif(not GSO.is_dir(), reason="the folder shared/ is not beside this checkout")
@pytest.mark.parametrize("name", ["Android_Figure_Panda", "Crayola_Crayons_24_count"])
def test_scanned_objects_are_as_solid_as_their_winding_number_says(name: str) -> None:
    mesh = trimesh.load(GSO / f"{name}.glb", force="mesh")
    prepared = prepare(normalise(surface_of(mesh)))
    found = occupancy(prepared, 64)
    cells = np.random.default_rng(0).integers(8, 56, (150, 3))
    exact = np.abs(solid_angles(prepared.corners.astype(float), (cells + 0.5) / 64 - 0.5)) >= 0.5
    assert (found[tuple(cells.T)] == exact).mean() > 0.98
