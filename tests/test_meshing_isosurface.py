"""Fields whose volume and shape are known, blocks against the dense lattice, and the choice of the level."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from zero123cli.cameras import Viewpoint
from zero123cli.errors import DivergedError, NothingFoundError
from zero123cli.meshing.cleanup import is_closed, is_solid, label_components, measure_volume
from zero123cli.meshing.isosurface import (
    BLOCK,
    MARCHERS,
    NUDGE,
    Volume,
    choose_level,
    count_blemishes,
    euler_number,
    extract,
    fill_inside,
    look_over,
    march,
)
from zero123cli.meshing.shot import Shot, look_at

Field = Callable[[np.ndarray], np.ndarray]
LEVEL = 20.0


def solid(inside: np.ndarray, top: float = 40.0, sharpness: float = 50.0) -> np.ndarray:
    """A density that is `top` / 2 where the distance `inside` the surface is 0."""
    return (top / (1 + np.exp(-np.clip(inside * sharpness, -60, 60)))).astype(np.float32)


def sphere(points: np.ndarray) -> np.ndarray:
    return solid(0.4 - np.linalg.norm(points, axis=1))


def torus(points: np.ndarray) -> np.ndarray:
    ring = np.hypot(points[:, 0], points[:, 2]) - 0.35
    return solid(0.12 - np.hypot(ring, points[:, 1]))


def two_balls(points: np.ndarray) -> np.ndarray:
    return solid(np.maximum(*(r - np.linalg.norm(points - (x, 0, 0), axis=1) for x, r in ((-0.25, 0.2), (0.3, 0.15)))))


FIELDS = {
    "sphere": (sphere, 4 / 3 * np.pi * 0.4**3, 1, 0),
    "torus": (torus, 2 * np.pi**2 * 0.35 * 0.12**2, 1, 1),
    "two balls": (two_balls, 4 / 3 * np.pi * (0.2**3 + 0.15**3), 2, 0),
}


def genus(vertices: np.ndarray, faces: np.ndarray) -> int:
    components = int(label_components(faces, len(vertices)).max()) + 1
    return components - (len(vertices) - len(faces) // 2) // 2


@pytest.fixture(params=list(MARCHERS))
def marcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PyMCubes" and importlib.util.find_spec("mcubes") is None:
        pytest.skip("PyMCubes is not installed here")
    monkeypatch.setattr("zero123cli.meshing.isosurface.pick_marcher", lambda: request.param)
    return str(request.param)


@pytest.mark.parametrize("name", FIELDS)
def test_volume_pieces_genus_and_winding_are_right(name: str, marcher: str) -> None:
    field, volume, pieces, holes = FIELDS[name]
    vertices, faces = extract(field, look_over(field, cells=48), LEVEL, 96)
    assert measure_volume(vertices, faces) == pytest.approx(volume, rel=0.01)
    assert label_components(faces, len(vertices)).max() + 1 == pieces
    assert genus(vertices, faces) == holes
    assert is_closed(faces) and is_solid(vertices, faces)


def dense(field: Field, resolution: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The slow way: the whole lattice at once."""
    steps = np.linspace(-reach, reach, resolution + 1)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    values = field(lattice).reshape((resolution + 1,) * 3)
    for axis in range(3):
        np.moveaxis(values, axis, 0)[[0, -1]] = 0
    squashed = values / (values + np.float32(LEVEL))
    close = np.abs(squashed - 0.5) < NUDGE
    squashed[close] = np.where(squashed[close] > 0.5, 0.5 + NUDGE, 0.5 - NUDGE)
    vertices, faces = MARCHERS["scikit-image"](squashed)
    return vertices * (2 * reach / resolution) - reach, faces


def lumps(points: np.ndarray) -> np.ndarray:
    """Many bodies, some of which touch the cube's sides."""
    return solid(np.sin(9 * points[:, 0]) * np.sin(8 * points[:, 1] + 1) * np.sin(7 * points[:, 2]) - 0.1, sharpness=9)


@pytest.mark.parametrize("field", [sphere, torus, lumps])
def test_blocks_give_what_the_dense_lattice_gives(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zero123cli.meshing.isosurface.pick_marcher", lambda: "scikit-image")
    vertices, faces = extract(field, look_over(field, cells=32), LEVEL, 64)
    expected, whole = dense(field, 64, 0.6)
    assert len(vertices) == len(expected) and len(faces) == len(whole)
    one, other = (cKDTree(places[corners].mean(1)) for places, corners in ((vertices, faces), (expected, whole)))
    assert max(one.query(other.data)[0].max(), other.query(one.data)[0].max()) < 1e-5
    assert measure_volume(vertices, faces) == pytest.approx(measure_volume(expected, whole))


def test_far_fewer_points_are_asked_for_than_the_dense_lattice_has() -> None:
    asked = []

    def field(points: np.ndarray) -> np.ndarray:
        asked.append(len(points))
        return sphere(points)

    volume = look_over(sphere, cells=64)
    extract(field, volume, LEVEL, 192)
    assert sum(asked) < 0.14 * 193**3
    assert max(asked) < 200_000


def test_nothing_is_asked_again_at_the_first_looks_own_resolution() -> None:
    def field(points: np.ndarray) -> np.ndarray:
        raise AssertionError("asked again")

    vertices, faces = extract(field, look_over(sphere, cells=64), LEVEL, 64)
    assert measure_volume(vertices, faces) == pytest.approx(FIELDS["sphere"][1], rel=0.02)


def test_noise_is_closed_and_manifold(marcher: str) -> None:
    """Every case of the tables, and every way in which blocks meet."""
    values = np.random.default_rng(0).uniform(0, 2 * LEVEL, (2 * BLOCK + 1,) * 3).astype(np.float32)
    vertices, faces = extract(sphere, Volume(values, 0.5), LEVEL, 2 * BLOCK)
    assert len(faces) > 50_000 and is_closed(faces) and measure_volume(vertices, faces) > 0


def test_what_fills_everything_is_closed_at_the_sides() -> None:
    def full(points: np.ndarray) -> np.ndarray:
        return np.full(len(points), 100.0, np.float32)

    vertices, faces = extract(full, look_over(full, reach=0.5, cells=32), 50.0, 64)
    assert is_closed(faces) and genus(vertices, faces) == 0
    assert measure_volume(vertices, faces) == pytest.approx(1.0, rel=0.1)
    assert np.abs(vertices).max() <= 0.5


def test_a_body_that_touches_the_sides_is_closed_there() -> None:
    def half(points: np.ndarray) -> np.ndarray:
        return solid(0.4 - np.linalg.norm(points - (0.6, 0, 0), axis=1))

    vertices, faces = extract(half, look_over(half, cells=64), LEVEL, 128)
    assert is_closed(faces)
    assert measure_volume(vertices, faces) == pytest.approx(2 / 3 * np.pi * 0.4**3, rel=0.03)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_an_empty_field_is_said_to_be_empty(value: float) -> None:
    def nothing(points: np.ndarray) -> np.ndarray:
        return np.full(len(points), value, np.float32)

    volume = look_over(nothing, cells=32)
    with pytest.raises(NothingFoundError, match="empty") as told:
        choose_level(volume)
    assert told.value.exit_code == 82 and told.value.remedy
    with pytest.raises(NothingFoundError, match="nowhere denser"):
        extract(nothing, volume, LEVEL, 64)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_field_that_is_not_finite_has_diverged(poison: float) -> None:
    def field(points: np.ndarray) -> np.ndarray:
        values = sphere(points)
        values[np.linalg.norm(points, axis=1) < 0.05] = poison
        return values

    with pytest.raises(DivergedError) as told:
        look_over(field, cells=32)
    assert told.value.exit_code == 81


# The level ------------------------------------------------------------------------------------------------------------


def cone_ball(points: np.ndarray) -> np.ndarray:
    """Density falls off slowly, so that each level is another radius: 100 (1 - 2 r)."""
    return 100 * np.maximum(0, 1 - 2 * np.linalg.norm(points, axis=1)).astype(np.float32)


@pytest.mark.parametrize("radius", [0.2, 0.4])
def test_the_level_is_the_one_whose_outline_is_the_masks(radius: float) -> None:
    volume = look_over(cone_ball, cells=48)
    shot = Shot(np.zeros((128, 128, 4), np.uint8), Viewpoint(0, 10))
    ball = trimesh.creation.icosphere(3, radius)
    mask = (look_at(shot, ball.vertices, ball.faces, 128).face >= 0).astype(np.uint8) * 255
    level = choose_level(volume, [Shot(np.dstack([mask] * 4), shot.viewpoint)])
    assert level.value == pytest.approx(100 * (1 - 2 * radius), abs=6)
    assert 1 <= level.margin < 1.5 and level.agreement > 0.9
    assert choose_level(volume).opacity > level.opacity  # which without a photo would have been the better level


def test_dust_and_holes_move_the_level() -> None:
    """Below 10 the field is full of dust: the level chosen is above, though the outline would suit both."""
    rng = np.random.default_rng(3)
    dust = rng.uniform(-0.55, 0.55, (60, 3))

    def field(points: np.ndarray) -> np.ndarray:
        near = np.min([np.linalg.norm(points - speck, axis=1) for speck in dust], axis=0)
        return np.maximum(sphere(points), 9.0 * (near < 0.03))

    volume = look_over(field, cells=48)
    level = choose_level(volume)
    assert level.value > 9.0 and level.pieces == 1 and level.blemishes == 0


def test_outline_at_a_level_is_that_of_the_mesh() -> None:
    """One march of the rays says for every level what the meshes' outlines are."""
    volume = look_over(torus, cells=64)
    shot = Shot(np.zeros((1, 1, 4), np.uint8), Viewpoint(30, 40), half=0.4)
    top = march(volume, shot, 96).top
    for level in (5.0, 20.0, 35.0):
        vertices, faces = extract(torus, volume, level, 64)
        outline = look_at(shot, vertices, faces, 96).face >= 0
        assert (outline != (top > level)).mean() < 0.008


def test_opacity_is_that_of_the_integral() -> None:
    def slab(points: np.ndarray) -> np.ndarray:
        return 3.0 * (np.abs(points[:, 2]) < 0.2).astype(np.float32)

    look = march(look_over(slab, cells=120), Shot(np.zeros((1, 1, 4), np.uint8), Viewpoint(0, 0, 5), half=0.02), 8)
    assert look.opacity == pytest.approx(np.full((8, 8), 1 - np.exp(-3 * 0.4)), abs=0.02)


def test_a_shell_with_pinholes_is_filled() -> None:
    """Hollow by chance: no picture says so. The opening of a cup stays open."""

    def sieve(points: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm(points, axis=1)
        pricked = (np.abs(points[:, 1]) < 0.005) & (np.abs(points[:, 2]) < 0.005)
        return np.where((radius < 0.4) & (radius > 0.3) & ~pricked, 20.0, 0.0).astype(np.float32)

    def cup(points: np.ndarray) -> np.ndarray:
        return np.where((points[:, 1] > 0) & (np.linalg.norm(points[:, ::2], axis=1) < 0.2), 0, sieve(points))

    for field, volume in ((sieve, 0.4**3), (cup, 0.4**3 - 0.3**3)):
        seen = look_over(field)
        vertices, faces = extract(*fill_inside(field, seen, 10.0), 10.0, 128)
        hole = 0.01384 if field is cup else 0.0  # where the opening goes through the wall
        assert measure_volume(vertices, faces) == pytest.approx(4 / 3 * math.pi * volume - hole, rel=0.06)


def test_blemishes_are_counted() -> None:
    block = np.zeros((12, 12, 12), bool)
    block[2:10, 2:10, 2:10] = True
    assert count_blemishes(block) == (1, 0) and euler_number(block) == 1
    block[5, 5, :] = False  # a handle
    assert count_blemishes(block) == (1, 1)
    block[7:9, 7:9, 7:9] = False  # a cavity
    assert count_blemishes(block) == (1, 2)
    block[0, 0, 0] = True  # a speck
    assert count_blemishes(block) == (1, 3)
    assert count_blemishes(np.zeros((4, 4, 4), bool))[0] == 0


@pytest.mark.bench
def test_a_fine_surface_takes_seconds() -> None:
    volume = look_over(sphere)
    vertices, faces = extract(sphere, volume, LEVEL, 512)
    assert len(faces) > 10**6 and is_closed(faces)
    assert measure_volume(vertices, faces) == pytest.approx(FIELDS["sphere"][1], rel=1e-3)
