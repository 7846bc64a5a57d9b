"""Where cameras stand and what view models are told of it, against the tables of the published code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from zero123cli.cameras import TRAINING_DISTANCE, TRAINING_FOV_DEG, PoseKind, Viewpoint, relative_pose, ring

HALF = math.pi / 2
GRID = [Viewpoint(a, e, d) for a, e, d in itertools.product((-170, 0, 45, 359), (-80, 0, 35), (1.5, 2.2))]


def published_position(view: Viewpoint) -> np.ndarray:
    """In the axes of the published renderings: z up, polar angle from +z, azimuth counter-clockwise from +x."""
    polar, azimuth = math.radians(90 - view.elevation_deg), math.radians(view.azimuth_deg)
    across = math.sin(polar)
    return view.distance * np.array([across * math.cos(azimuth), across * math.sin(azimuth), math.cos(polar)])


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [(0, 0, (0, 0, 2)), (90, 0, (2, 0, 0)), (180, 0, (0, 0, -2)), (-90, 0, (-2, 0, 0)), (0, 90, (0, 2, 0))],
    ids=["the photo's", "to its right", "behind", "to its left", "above"],
)
def test_axes(azimuth: float, elevation: float, position: tuple[float, float, float]) -> None:
    assert Viewpoint(azimuth, elevation, 2).position() == pytest.approx(position, abs=1e-12)


def test_the_right_of_the_picture_comes_into_sight_when_the_camera_walks_to_its_right() -> None:
    # The photo's camera looks along -z with y up: its right is +x, where azimuth 90 stands.
    forward, up = np.array([0.0, 0, -1]), np.array([0.0, 1, 0])
    assert np.dot(np.cross(forward, up), Viewpoint(10).position()) > 0
    assert np.dot(np.cross(forward, up), Viewpoint(90).position()) == pytest.approx(TRAINING_DISTANCE)


@pytest.mark.parametrize("view", GRID, ids=str)
def test_published_axes_are_ours_in_another_order(view: Viewpoint) -> None:
    # The published ones have the photo on +x; (x, y, z) there is (z, x, y) here.
    z, x, y = published_position(view)
    assert view.position() == pytest.approx((x, y, z), abs=1e-12)
    assert math.hypot(*view.position()) == pytest.approx(view.distance)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Viewpoint(0, 0), (0, 0, 1, 0)),
        (Viewpoint(90, 0), (0, 1, 0, 0)),
        (Viewpoint(-90, 0), (0, -1, 0, 0)),
        (Viewpoint(180, 0), (0, 0, -1, 0)),
        (Viewpoint(0, 90), (-HALF, 0, 1, 0)),
        (Viewpoint(0, -90), (HALF, 0, 1, 0)),
        (Viewpoint(0, 0, TRAINING_DISTANCE + 0.25), (0, 0, 1, 0.25)),
    ],
    ids=["same", "right", "left", "behind", "from above", "from below", "farther"],
)
def test_presets_of_the_published_demo(target: Viewpoint, expected: tuple[float, ...]) -> None:
    assert relative_pose("original", Viewpoint(), target) == pytest.approx(expected, abs=1e-12)
    stable = (*expected[:3], HALF)
    assert relative_pose("stable", Viewpoint(), target) == pytest.approx(stable, abs=1e-12)


@pytest.mark.parametrize(("photo", "target"), list(itertools.product(GRID[::5], GRID[::3])), ids=str)
def test_poses_are_those_of_the_published_code(photo: Viewpoint, target: Viewpoint) -> None:
    def spherical(view: Viewpoint) -> tuple[float, float, float]:
        x, y, z = published_position(view)
        return math.atan2(math.hypot(x, y), z), math.atan2(y, x), math.hypot(x, y, z)

    (polar, azimuth, distance), (polar_t, azimuth_t, distance_t) = spherical(photo), spherical(target)
    turn = (azimuth_t - azimuth) % (2 * math.pi)
    expected = (polar_t - polar, math.sin(turn), math.cos(turn), distance_t - distance)
    assert relative_pose("original", photo, target) == pytest.approx(expected, abs=1e-9)
    assert relative_pose("stable", photo, target) == pytest.approx((*expected[:3], polar), abs=1e-9)


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 20.0])
def test_the_fourth_number_of_stable_is_the_photos_polar_angle_whatever_the_target(elevation: float) -> None:
    fourths = {relative_pose("stable", Viewpoint(5, elevation, 1.5), target)[3] for target in GRID}
    assert fourths == {math.radians(90 - elevation)}


@pytest.mark.parametrize("kind", ["original", "stable"])
def test_a_full_turn_more_is_the_same_pose(kind: PoseKind) -> None:
    for view in GRID:
        again = Viewpoint(view.azimuth_deg - 360, view.elevation_deg, view.distance)
        assert relative_pose(kind, Viewpoint(20), view) == pytest.approx(relative_pose(kind, Viewpoint(20), again))


def test_the_lens_is_that_of_the_renderings() -> None:
    assert pytest.approx(2 * math.degrees(math.atan(32 / 2 / 35)), abs=1e-3) == TRAINING_FOV_DEG
    assert pytest.approx((1.5 + 2.2) / 2) == TRAINING_DISTANCE


@pytest.mark.parametrize("count", [1, 2, 7, 8, 360])
def test_a_ring_is_even_and_begins_at_the_photo(count: int) -> None:
    views = ring(count, 15, 2.0)
    assert len(views) == count and views[0] == Viewpoint(0, 15, 2.0)
    assert {(view.elevation_deg, view.distance) for view in views} == {(15, 2.0)}
    steps = np.diff([view.azimuth_deg for view in views] + [360])
    assert steps == pytest.approx(360 / count)
