"""Made-up objects: closed, sane, all different, repeatable and quick."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from zero123cli.cameras import Viewpoint
from zero123cli.scenes.creatures import CREATURES, limb, make_beast, melt, sprout
from zero123cli.scenes.filling import winding
from zero123cli.scenes.forms import bounds, lathe, rod, wedge
from zero123cli.scenes.raycast import draw_lighting, prepare, render
from zero123cli.scenes.solids import FEWEST, MAKERS, MOST, join, make_solid
from zero123cli.scenes.surface import Surface
from zero123cli.scenes.wares import loft, make_shoe

COUNT = 60


@pytest.fixture(scope="module")
def made() -> tuple[list[Surface], float]:
    """The objects, and the core-seconds that one took."""
    make_solid(np.random.default_rng(999))  # imports
    begin = time.process_time()
    solids = [make_solid(np.random.default_rng(seed)) for seed in range(COUNT)]
    return solids, (time.process_time() - begin) / COUNT


def is_closed(faces: np.ndarray) -> bool:
    """Whether each edge is there exactly once in each direction."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    span = int(edges.max()) + 1
    there, back = np.sort(edges[:, 0] * span + edges[:, 1]), np.sort(edges[:, 1] * span + edges[:, 0])
    return bool((np.diff(there) > 0).all() and np.array_equal(there, back))


def volume(surface: Surface) -> float:
    a, b, c = np.moveaxis(surface.vertices[surface.faces].astype(np.float64), 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def test_all_are_closed_with_their_faces_outwards(made: tuple[list[Surface], float]) -> None:
    for seed, surface in enumerate(made[0]):
        assert is_closed(surface.faces), seed
        assert 1e-4 < volume(surface) < 1, seed
        assert FEWEST <= len(surface.faces) <= MOST, seed
    for surface in made[0][::6]:
        assert set(np.unique(np.rint(winding(surface.vertices[surface.faces], 24)))) <= {0.0, 1.0}


def test_all_are_finite_and_normalised(made: tuple[list[Surface], float]) -> None:
    for surface in made[0]:
        assert surface.vertices.dtype == np.float32 and surface.faces.dtype == np.int32
        low, high = surface.vertices.min(0), surface.vertices.max(0)
        assert np.isfinite(surface.vertices).all()
        assert (high - low).max() == pytest.approx(1, abs=1e-4) and np.abs(low + high).max() < 1e-4
        assert surface.faces.min() == 0 and surface.faces.max() == len(surface.vertices) - 1
        assert surface.material.shape == (len(surface.faces),) and surface.material.max() < len(surface.materials)
        for values in (surface.uv, surface.colours):
            assert values is None or (np.isfinite(values).all() and values.shape[:2] == surface.faces.shape)


def test_no_two_are_alike(made: tuple[list[Surface], float]) -> None:
    assert len({(len(surface.faces), round(volume(surface), 6)) for surface in made[0]}) == COUNT


def test_most_have_several_colours(made: tuple[list[Surface], float]) -> None:
    tones = []
    for surface in made[0][:20]:
        light = draw_lighting(np.random.default_rng(0))
        rgba = render(prepare(surface), Viewpoint(30, 20, 1.8), size=32, light=light).rgba
        inside = rgba[rgba[..., 3] == 255][:, :3] // 16
        assert len(inside) > 5
        tones.append(len(np.unique(inside, axis=0)))
    assert np.median(tones) > 10


def test_the_same_seed_makes_the_same_object(made: tuple[list[Surface], float]) -> None:
    for seed in range(0, COUNT, 5):
        one, other = made[0][seed], make_solid(np.random.default_rng(seed))
        for name in ("vertices", "faces", "material", "uv", "colours"):
            left, right = getattr(one, name), getattr(other, name)
            assert (left is None) == (right is None) and (left is None or np.array_equal(left, right)), (seed, name)
        for left, right in zip(one.materials, other.materials, strict=True):
            assert left.colour == right.colour and left.roughness == right.roughness
            assert (left.texture is None) == (right.texture is None)
            assert left.texture is None or np.array_equal(left.texture, right.texture)


@pytest.mark.parametrize("name", MAKERS)
def test_every_maker_makes_closed_things(name: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        surface = join(MAKERS[name][0](rng), rng)
        assert is_closed(surface.faces) and volume(surface) > 0, seed


def test_parts_keep_their_paint() -> None:
    surface = join([(rod(1, 0.2), 0), (rod(0.2, 0.6).translate((0, 0.5, 0)), 3)], np.random.default_rng(0))
    wide = np.linalg.norm(surface.vertices[surface.faces].mean(1)[:, [0, 2]], axis=-1) > 0.3
    assert set(surface.material[wide]) == {3} and set(surface.material) == {0, 3}


def test_shapes_stand_along_y() -> None:
    assert np.reshape(rod(2, 0.5, 0.1).bounding_box(), (2, 3)) == pytest.approx(
        np.array([[-0.5, -1, -0.5], [0.5, 1, 0.5]]), abs=1e-6
    )
    cup = lathe(np.array([0.4, 0.5]), np.array([0.0, 1.0]), 0.05)
    assert cup.bounding_box()[4] == pytest.approx(1) and 0 < cup.volume() < 0.5 * 3.14 * 0.45**2
    roof = np.reshape(wedge(1, 0.4, 0.6).bounding_box(), (2, 3))
    assert roof == pytest.approx(np.array([[-0.5, -0.2, -0.3], [0.5, 0.2, 0.3]]), abs=1e-6)


def test_limbs_melt_into_one_closed_body() -> None:
    one = limb((0, 0, 0, 0.2), (0, 0, 1, 0.2))
    rod_alone = melt([one], 0.02)
    assert rod_alone.volume() == pytest.approx(np.pi * 0.2**2 * (1 + 0.8 / 3), rel=0.03)
    assert np.array(rod_alone.bounding_box()) == pytest.approx([-0.2, -0.2, -0.2, 0.2, 0.2, 1.2], abs=0.01)
    crossed = melt([one, limb((-0.6, 0, 0.5, 0.2), (0.6, 0, 0.5, 0.2))], 0.02)
    soft = melt([one, limb((-0.6, 0, 0.5, 0.2), (0.6, 0, 0.5, 0.2))], 0.3)
    assert len(crossed.decompose()) == 1 and rod_alone.volume() < crossed.volume() < soft.volume()
    assert len(melt([one, limb((2, 0, 0, 0.2), (2, 0, 1, 0.2))], 0.05).decompose()) == 2


def test_a_chain_goes_where_its_links_point() -> None:
    chain = sprout(np.array([1.0, 0, 0]), np.array([[0.0, 0], [90, 0], [0, 90]]), 0.5, np.full(4, 0.1))
    assert chain[:, :3] == pytest.approx(np.array([[1, 0, 0], [1, 0, 0.5], [1.5, 0, 0.5], [1.5, 0.5, 0.5]]))


def test_beasts_are_long_and_stand_on_the_ground() -> None:
    boxes = [bounds(make_beast(np.random.default_rng(seed))) for seed in range(40)]
    sizes = np.array([high - low for low, high in boxes])
    assert np.median(sizes[:, 2] / sizes[:, 0]) > 2  # from head to tail, against their width
    assert np.median([abs(low[1]) for low, _ in boxes]) < 0.1


@pytest.mark.slow
def test_every_creature_is_in_one_piece() -> None:
    for name, (make, _) in CREATURES.items():
        for seed in range(6):
            surface = join(make(np.random.default_rng(seed)), np.random.default_rng(seed))
            fills = np.rint(winding(surface.vertices[surface.faces], 40)).astype(bool)
            pieces, count = ndimage.label(fills, np.ones((3, 3, 3)))
            assert np.bincount(pieces.ravel())[1:].max() > 0.85 * fills.sum(), (name, seed, count)


@pytest.mark.slow
def test_shoes_are_about_twice_as_long_as_wide() -> None:
    z = np.linspace(-0.5, 0.5, 15)
    block = loft(z, np.full(15, 0.2), np.full(15, 0.3), np.zeros(15), np.zeros(15), flat=True)
    assert np.array(block.bounding_box()) == pytest.approx([-0.2, 0, -0.5, 0.2, 0.3, 0.5], abs=1e-3)
    ratios = []
    for seed in range(30):
        low, high = bounds(make_shoe(np.random.default_rng(seed)))
        ratios.append((high - low)[2] / (high - low)[0])
    assert np.median(ratios) > 2


def test_one_takes_a_small_part_of_a_second(made: tuple[list[Surface], float]) -> None:
    assert made[1] < 0.15  # 0.03 measured
