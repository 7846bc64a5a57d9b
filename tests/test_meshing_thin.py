"""Sticks that a photo shows and a field hardly has."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from test_meshing_isosurface import LEVEL, Field, solid

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.cleanup import label_components
from zero123cli.meshing.isosurface import extract, look_over, march
from zero123cli.meshing.shot import Shot
from zero123cli.meshing.thin import measure_widths, round_thin

SOFT = 1.2 / 128
THICK = 0.03  # the stick's radius

first_look = functools.cache(look_over)


def ball(points: np.ndarray) -> np.ndarray:
    return solid(0.2 - np.linalg.norm(points, axis=1))


def stick(points: np.ndarray, top: float) -> np.ndarray:
    x, y, z = points.T
    return solid(np.minimum(THICK - np.hypot(x, z), 0.2 - np.abs(y - 0.3)), top=top)


def faint(points: np.ndarray) -> np.ndarray:
    """A ball, and a stick on it that is a tenth as dense as the surface's level asks."""
    return np.maximum(ball(points), stick(points, 2 * LEVEL / 10))


def crumbled(points: np.ndarray) -> np.ndarray:
    """The same with grains on the stick's axis that are dense enough."""
    x, y, z = points.T
    wave = 0.02 * np.sin(60 * y)
    grain = solid(np.minimum(0.008 - np.hypot(x, z - wave), 0.2 - np.abs(y - 0.3)), top=4 * LEVEL)
    return np.maximum(faint(points), grain * (np.sin(90 * y) > 0)).astype(np.float32)


def picture_of(field: Field, level: float) -> Shot:
    """A photo of what of a field is denser than the level."""
    shot = Shot(np.zeros((200, 200, 4), np.uint8), Viewpoint(20, 10), half=0.4)
    seen = march(first_look(field), shot, 200).top > level
    rgba = np.zeros((200, 200, 4), np.uint8)
    rgba[seen, 3] = 255
    return Shot(rgba, shot.viewpoint, half=shot.half)


def surface(field: Field, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    return extract(*round_thin(field, first_look(field), shot, LEVEL, SOFT), LEVEL, 128)


@pytest.mark.parametrize(
    "field", [faint, pytest.param(crumbled, marks=pytest.mark.slow), ball], ids=["faint", "crumbled", "unknown"]
)
def test_what_the_photo_shows_of_a_stick_is_a_rod_on_the_ball(field: Field) -> None:
    shot = picture_of(faint, LEVEL / 12)
    assert extract(field, first_look(field), LEVEL, 128)[0][:, 1].max() < 0.22 or field is crumbled
    vertices, faces = surface(field, shot)
    assert vertices[:, 1].max() > 0.45
    assert label_components(faces, len(vertices)).max() == 0, "in one piece"
    along = vertices[(vertices[:, 1] > 0.27) & (vertices[:, 1] < 0.44)]
    for low in np.arange(0.27, 0.43, 0.04):
        part = along[(along[:, 1] >= low) & (along[:, 1] < low + 0.04)]
        away = np.linalg.norm((part - part.mean(0))[:, ::2], axis=1)
        assert THICK * 0.7 < away.mean() < THICK * 1.6 and away.std() < THICK * 0.35, "round"
    middle = along.mean(0)
    assert np.abs(middle[[0, 2]]).max() < (0.1 if field is ball else 0.025)


@pytest.mark.slow
def test_the_coarse_look_misses_nothing_of_the_field() -> None:
    field, volume = round_thin(faint, first_look(faint), picture_of(faint, LEVEL / 12), LEVEL, SOFT)
    assert (volume.values >= first_look(field).values * 0.999).all()


@pytest.mark.slow
@pytest.mark.parametrize("slant", [0.0, 0.5])
def test_a_hair_is_whole(slant: float) -> None:
    """Thinner than the cells of the first look."""

    def hair(points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        along = solid(np.minimum(0.006 - np.hypot(x - slant * y, z), 0.2 - np.abs(y - 0.3)), top=2 * LEVEL / 5)
        return np.maximum(ball(points), along)

    shot = picture_of(faint, LEVEL)
    rows, columns = np.indices((200, 200))
    height = (100 - rows) / 200 * 0.8 * 2
    beside = np.abs((columns - 100) / 200 * 0.8 * 2 - slant * height) < 0.009
    shot.rgba[beside & (height > 0) & (height < 0.45), 3] = 255
    seen = Shot(shot.rgba, Viewpoint(0, 0), half=0.4)
    vertices, faces = extract(*round_thin(hair, first_look(hair), seen, LEVEL, SOFT / 2), LEVEL, 256)
    labels = label_components(faces, len(vertices))
    largest = np.bincount(labels).argmax()
    assert vertices[faces[labels == largest]].reshape(-1, 3)[:, 1].max() > 0.38


@pytest.mark.slow
def test_nothing_grows_beside_the_mask_nor_where_a_wide_part_of_it_is_empty() -> None:
    shot = picture_of(faint, LEVEL)
    assert surface(faint, shot)[0][:, 1].max() < 0.24  # but for a pixel at the outline it stays as faint as it was
    full = Shot(np.full((200, 200, 4), 255, np.uint8), shot.viewpoint, half=0.4)
    assert np.abs(surface(ball, full)[0]).max() < 0.3


def test_what_is_as_thick_as_it_is_wide_stays_as_it_is() -> None:
    def sound(points: np.ndarray) -> np.ndarray:
        return np.maximum(ball(points), stick(points, 4 * LEVEL))

    plain, _ = extract(sound, first_look(sound), LEVEL, 128)
    vertices, _ = surface(sound, picture_of(sound, LEVEL))
    above, before = (places[places[:, 1] > 0.25] for places in (vertices, plain))
    for axis in (0, 2):
        assert np.ptp(above[:, axis]) == pytest.approx(np.ptp(before[:, axis]), abs=0.02)


@pytest.mark.parametrize("half_width", [0.04, 0.25], ids=["blade", "card"])
def test_what_is_flat_stays_flat(half_width: float) -> None:
    """Its rim is fainter, as where a field ends at the photo's outline."""

    def flat(points: np.ndarray) -> np.ndarray:
        x, y, z = np.abs(points).T
        edge = np.minimum(half_width - x, 0.35 - y)
        rim = np.clip(edge / 0.03, 0.1, 1) * (edge > -0.012)
        return (solid(0.012 - z, top=3 * LEVEL, sharpness=200) * rim).astype(np.float32)

    shot = Shot(picture_of(flat, LEVEL).rgba * 0, Viewpoint(0, 0), half=0.4)
    height, across = np.indices((200, 200)) / 200 * 1.6 - 0.8
    shot.rgba[(np.abs(across) < half_width + 0.008) & (np.abs(height) < 0.358), 3] = 255  # and shown a pixel wider
    plain = extract(flat, first_look(flat), LEVEL, 128)[0]
    assert np.ptp(surface(flat, shot)[0][:, 2]) < np.ptp(plain[:, 2]) + 0.01


def test_an_empty_mask_changes_nothing() -> None:
    nothing = Shot(np.zeros((64, 64, 4), np.uint8), Viewpoint(0, 0))
    volume = first_look(ball)
    assert round_thin(ball, volume, nothing, LEVEL, SOFT) == (ball, volume)


def test_widths_are_those_of_discs() -> None:
    mask = np.zeros((60, 60), bool)
    mask[10:16, 5:55] = True  # a bar six pixels wide
    mask[30:58, 10:50] = True
    away, radius = measure_widths(mask, 8.0)
    assert radius[13, 20:40] == pytest.approx(3, abs=0.6)
    assert away[10, 30] == 0.5 and away[12, 30] == 2.5
    assert (radius[44, 20:40] == 8).all() and (radius[~mask] == 0).all()
