"""What pictures of an object leave inside, against what is known to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

pytest.importorskip("embreex", reason="no ray casting without embreex")

from zero123cli.cameras import Viewpoint, ring
from zero123cli.scenes.carving import Glimpse, carve
from zero123cli.scenes.filling import occupancy
from zero123cli.scenes.raycast import pixel_width, prepare, render
from zero123cli.scenes.surface import Material, Surface

AROUND = [*ring(8, 10, 2), *ring(8, 45, 2), *ring(8, -35, 2)]
FOV = 49.1
HALF = pixel_width(1, FOV) / 2


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    return Surface(vertices, faces, (Material((1, 1, 1, 1)),), np.zeros(len(faces), np.int32))


def look_at(surface: Surface, viewpoints: list[Viewpoint], size: int = 64) -> list[Glimpse]:
    prepared = prepare(surface)
    found = []
    for viewpoint in viewpoints:
        picture = render(prepared, viewpoint, size=size, fov_deg=FOV)
        found.append(Glimpse(viewpoint, (0.0, 0.0, HALF), picture.rgba[..., 3], picture.depth, picture.normal))
    return found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(
    "mesh",
    [
        trimesh.creation.icosphere(3, 0.45),
        trimesh.creation.box((0.9, 0.5, 0.3)),
        trimesh.creation.box((0.9, 0.06, 0.9)),  # two cells of 32 thick
        trimesh.creation.annulus(0.25, 0.45, 0.2),
    ],
    ids=["ball", "box", "plate", "ring"],
)
def test_solids_are_left_as_they_are(mesh: trimesh.Trimesh) -> None:
    truth = occupancy(prepare(surface_of(mesh)), 32)
    found = carve(look_at(surface_of(mesh), AROUND, 96), 32)
    assert overlap(found, truth) > 0.85
    assert (truth & ~found).sum() < 0.04 * truth.sum()


def test_a_sheet_is_one_cell_thick_and_has_no_holes() -> None:
    flat = trimesh.Trimesh(
        [[-0.5, 0.01, -0.4], [0.5, 0.01, -0.4], [0.5, 0.01, 0.4], [-0.5, 0.01, 0.4]], [[0, 1, 2], [0, 2, 3]]
    )
    found = carve(look_at(surface_of(flat), AROUND, 96), 32)
    thickness = found.sum(1)[2:30, 6:26]
    assert (thickness == 1).mean() > 0.97
    assert found.sum(1).max() <= 2
    assert not found[:, :14].any() and not found[:, 19:].any()


def test_a_shell_is_full_up_to_what_can_be_looked_into() -> None:
    ball = trimesh.creation.icosphere(4, 0.45)
    bowl = ball.copy()
    bowl.update_faces(bowl.triangles_center[:, 1] < 0.1)
    cup, closed = (carve(look_at(surface_of(mesh), [*AROUND, Viewpoint(0, 90, 2)]), 32) for mesh in (bowl, ball))
    assert closed[16, 16, 16] and not cup[16, 16, 16]  # the bowl's middle is seen from above
    side = ball.copy()
    side.update_faces(side.triangles_center[:, 1] > -0.1)  # a hole below, where nobody looks
    dome = carve(look_at(surface_of(side), [view for view in AROUND if view.elevation_deg > 0]), 32)
    assert dome[16, 16:24, 16].all()


def test_what_cropped_pictures_leave_is_what_whole_ones_do() -> None:
    whole = look_at(surface_of(trimesh.creation.icosphere(3, 0.45)), ring(8, 20, 2), 160)
    rows, columns = slice(20, 150), slice(30, 160)  # the middle, and a little to the right and down of it
    square = (15 / 80 * HALF, -5 / 80 * HALF, 130 / 160 * HALF)
    cropped = [crop(one, rows, columns, square) for one in whole]
    assert (carve(cropped, 32) == carve(whole, 32)).all()


def test_what_no_picture_shows_is_not_there() -> None:
    whole = look_at(surface_of(trimesh.creation.icosphere(3, 0.45)), ring(8, 20, 2), 160)
    right = [crop(one, slice(40, 120), slice(80, 160), (HALF / 2, 0, HALF / 2)) for one in whole]
    assert carve(right, 32).mean() < 0.01


def crop(one: Glimpse, rows: slice, columns: slice, square: tuple[float, float, float]) -> Glimpse:
    parts = {name: getattr(one, name)[rows, columns] for name in ("alpha", "depth", "normal")}
    return replace(one, square=square, **parts)
