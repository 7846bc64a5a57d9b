"""Broken surfaces come out whole: manifold, closed, outwards, within their budget, and still the same shape."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from zero123cli.errors import NothingFoundError
from zero123cli.meshing.cleanup import (
    Solid,
    clean,
    decimate,
    drop_degenerate,
    drop_specks,
    half_edges,
    is_closed,
    is_solid,
    label_components,
    measure_areas,
    measure_volume,
    mend,
    smooth,
)
from zero123cli.meshing.isosurface import extract, look_over

Arrays = tuple[np.ndarray, np.ndarray]


def ball(radius: float = 0.4, at: tuple[float, float, float] = (0, 0, 0), rounds: int = 3) -> Arrays:
    mesh = trimesh.creation.icosphere(rounds, radius)
    return np.asarray(mesh.vertices) + at, np.asarray(mesh.faces)


def cube(at: tuple[float, float, float] = (0, 0, 0)) -> Arrays:
    mesh = trimesh.creation.box((1, 1, 1))
    return np.asarray(mesh.vertices) + at, np.asarray(mesh.faces)


def join(*parts: Arrays, weld: bool = False) -> Arrays:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = np.concatenate([vertices for vertices, _ in parts])
    faces = np.concatenate([faces + start for (_, faces), start in zip(parts, starts, strict=False)])
    if weld:
        vertices, which = np.unique(vertices, axis=0, return_inverse=True)
        faces = which.ravel()[faces]
    return vertices, faces


def check_solid(solid: Solid) -> None:
    assert is_closed(solid.faces) and is_solid(solid.vertices, solid.faces)
    assert measure_volume(solid.vertices, solid.faces) > 0
    assert set(np.unique(solid.faces)) == set(range(len(solid.vertices)))
    # Also where vertices have no numbers, as in STL: no two are in one place.
    assert len(np.unique(solid.vertices.astype(np.float32), axis=0)) == len(solid.vertices)


def test_whole_is_left_as_it_is() -> None:
    vertices, faces = ball()
    solid = clean(vertices, faces)
    check_solid(solid)
    assert (solid.dropped, solid.closed, solid.parted) == (0, 0, 0)
    assert len(solid.faces) == len(faces)
    assert measure_volume(solid.vertices, solid.faces) == pytest.approx(measure_volume(vertices, faces))


def test_inside_out_is_turned() -> None:
    vertices, faces = ball()
    check_solid(clean(vertices, faces[:, ::-1]))


def test_specks_go_and_pieces_stay() -> None:
    vertices, faces = join(ball(), ball(0.1, (0.8, 0, 0), 1), ball(0.03, (0, 0.8, 0), 1))
    solid = clean(vertices, faces)
    assert solid.dropped == 1 and label_components(solid.faces, len(solid.vertices)).max() + 1 == 2
    kept = clean(vertices, faces, keep_components=True)
    assert kept.dropped == 0 and len(kept.faces) == len(faces)
    check_solid(kept)


def test_cavities_are_filled_unless_all_is_kept() -> None:
    inner, inner_faces = ball(0.2)
    vertices, faces = join(ball(), (inner, inner_faces[:, ::-1]))
    solid = clean(vertices, faces)
    assert solid.dropped == 1
    assert measure_volume(solid.vertices, solid.faces) == pytest.approx(measure_volume(*ball()))
    kept = clean(vertices, faces, keep_components=True)
    assert measure_volume(kept.vertices, kept.faces) < 0.9 * measure_volume(*ball())
    # All of it inside out is still one ball with a cavity.
    turned = clean(vertices, faces[:, ::-1])
    assert measure_volume(turned.vertices, turned.faces) == pytest.approx(measure_volume(*ball()))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_holes_are_closed(share: float) -> None:
    vertices, faces = ball()
    keep = np.random.default_rng(0).random(len(faces)) > share
    solid = clean(vertices, faces[keep], keep_components=True)
    check_solid(solid)
    assert solid.closed > 0
    if share < 0.2:
        assert measure_volume(solid.vertices, solid.faces) == pytest.approx(measure_volume(vertices, faces), rel=0.05)


def test_holes_stay_when_nothing_watertight_is_asked_for() -> None:
    vertices, faces = ball()
    solid = clean(vertices, faces[10:], watertight=False)
    assert solid.closed == 0 and not is_closed(solid.faces) and len(solid.faces) == len(faces) - 10


@pytest.mark.parametrize("at", [(1, 1, 0), (1, 1, 1)], ids=["an edge", "a corner"])
def test_cubes_that_touch_are_parted(at: tuple[float, float, float]) -> None:
    vertices, faces = join(cube(), cube(at), weld=True)
    solid = clean(vertices, faces)
    check_solid(solid)
    assert solid.parted > 0
    assert label_components(solid.faces, len(solid.vertices)).max() + 1 == 2
    assert measure_volume(solid.vertices, solid.faces) == pytest.approx(2, rel=0.02)


def test_a_ring_of_cubes_that_meet_in_edges_is_mended() -> None:
    """Faces at an edge are paired around the inside, also where both pairs hang together elsewhere."""
    places = [(0, 0, 0), (1, 1, 0), (1, 1, 1), (0, 0, 1), (1, 0, 1)]
    vertices, faces = join(*(cube(place) for place in places), weld=True)
    solid = clean(vertices, faces, keep_components=True)
    check_solid(solid)
    assert measure_volume(solid.vertices, solid.faces) == pytest.approx(5, rel=0.03)


def test_degenerate_and_doubled_faces_go() -> None:
    vertices, faces = ball(rounds=1)
    twice = np.concatenate([faces, faces[:3], [[5, 5, 7], [2, 2, 2]], [[0, 1, 2], [2, 1, 0]]])
    solid = drop_degenerate(Solid(vertices, twice))
    assert len(solid.faces) == len(faces)
    assert is_closed(solid.faces)


def test_fewer_faces_leave_no_two_vertices_in_one_place() -> None:
    """A box with flat sides, of which the simplifier leaves neighbours that differ in the last bit."""

    def box(points: np.ndarray) -> np.ndarray:
        return np.where((np.abs(points) < (0.5, 0.3, 0.2)).all(1), 50, 0).astype(np.float32)

    vertices, faces = extract(box, look_over(box, cells=64), 10.0, 64)
    for budget in (300, 1000, 3000):
        check_solid(clean(vertices, faces, budget=budget))


def test_budget_is_kept_and_the_shape_too() -> None:
    vertices, faces = ball(rounds=5)
    solid = clean(vertices, faces, budget=2000)
    check_solid(solid)
    assert 1900 <= len(solid.faces) <= 2000
    radius = np.linalg.norm(solid.vertices, axis=1)
    assert np.abs(radius - 0.4).max() < 0.0012
    assert measure_volume(solid.vertices, solid.faces) == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_welded_noise_is_mended_and_decimated() -> None:
    """The worst case: vertices of a rough surface snapped to a coarse lattice, so that all kinds of crowding occur."""
    from zero123cli.meshing.isosurface import Volume, extract

    values = np.random.default_rng(1).uniform(0, 40, (17, 17, 17)).astype(np.float32)
    vertices, faces = extract(lambda points: points[:, 0], Volume(values, 0.5), 20.0, 16)
    snapped, which = np.unique(np.rint(vertices * 24), axis=0, return_inverse=True)
    faces = which.ravel()[faces]
    assert not is_closed(faces)
    solid = clean(snapped / 24, faces, keep_components=True)
    assert is_closed(solid.faces) and is_solid(solid.vertices, solid.faces) and solid.parted > 0
    fewer = clean(snapped / 24, faces, budget=1500)
    assert is_closed(fewer.faces) and is_solid(fewer.vertices, fewer.faces) and len(fewer.faces) <= 1500


def test_smoothing_takes_noise_and_leaves_the_volume() -> None:
    vertices, faces = ball(rounds=4)
    noisy = vertices * (1 + np.random.default_rng(0).normal(0, 0.02, (len(vertices), 1)))
    solid = smooth(Solid(noisy, faces), 10)
    rough, even = (np.linalg.norm(places, axis=1).std() for places in (noisy, solid.vertices))
    assert even < 0.45 * rough
    assert measure_volume(solid.vertices, faces) == pytest.approx(measure_volume(vertices, faces), rel=0.01)


def test_one_triangle_has_nothing_inside() -> None:
    vertices, faces = np.eye(3), np.array([[0, 1, 2]])
    with pytest.raises(NothingFoundError) as told:
        clean(vertices, faces)
    assert told.value.exit_code == 82
    open_ = clean(vertices, faces, watertight=False)
    assert len(open_.faces) == 1


def test_nothing_stays_nothing() -> None:
    with pytest.raises(NothingFoundError):
        clean(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def test_same_in_same_out() -> None:
    vertices, faces = ball(rounds=4)
    one, other = (clean(vertices, faces, budget=1000, smoothing=2) for _ in range(2))
    assert one.vertices.tobytes() == other.vertices.tobytes() and one.faces.tobytes() == other.faces.tobytes()


def test_measures_are_those_of_trimesh() -> None:
    vertices, faces = join(cube(), ball(0.3, (2, 0, 0)))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert measure_volume(vertices, faces) == pytest.approx(mesh.volume)
    assert measure_areas(vertices, faces) == pytest.approx(mesh.area_faces)
    assert is_closed(faces) == mesh.is_watertight
    assert is_closed(faces[1:]) == trimesh.Trimesh(vertices, faces[1:], process=False).is_watertight
    assert not is_closed(np.concatenate([faces[1:], faces[:1, ::-1]]))  # one face turned
    begin, end = half_edges(faces)
    assert sorted(zip(begin, end, strict=True)) == sorted(zip(end, begin, strict=True))


def test_mending_is_done_once() -> None:
    vertices, faces = join(cube(), cube((1, 1, 0)), weld=True)
    once = mend(Solid(vertices, faces))
    twice = mend(once)
    assert np.array_equal(once.faces, twice.faces) and once.parted == twice.parted


def test_specks_are_measured_by_area_and_decimation_reaches_its_aim() -> None:
    vertices, faces = ball(rounds=4)
    assert len(decimate(Solid(vertices, faces), 600).faces) <= 600
    assert drop_specks(Solid(vertices, faces)).dropped == 0
