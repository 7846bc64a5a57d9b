"""Where cameras stand. The axis convention is stated here and nowhere else.

World: right-handed, y up, in units in which the object's longest box side is 1; the axes of glTF. The photo's camera
stands on +Z at azimuth 0, raised by the photo's elevation. Azimuth +90 puts a camera on +X: it has walked to its own
right and shows what lay on the right-hand side of the picture. Elevation is positive upwards. The published checkpoints
were trained z up: (x, y, z) z-up = (z, x, y) y-up; their polar angle is 90 degrees minus the elevation.
Angles are in degrees in names ending `_deg` and in radians elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PoseKind = Literal["original", "stable"]

TRAINING_FOV_DEG = 49.134  # a lens of 35 mm on a sensor of 32 mm, as the published renderings
TRAINING_DISTANCE = 1.85  # the middle of U(1.5, 2.2)


@dataclass(frozen=True)
class Viewpoint:
    """A camera on an orbit around the origin, looking at it."""

    azimuth_deg: float = 0.0  # from the photo's
    elevation_deg: float = 0.0  # above the horizon
    distance: float = TRAINING_DISTANCE

    def position(self) -> tuple[float, float, float]:
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        flat = self.distance * math.cos(elevation)
        return flat * math.sin(azimuth), self.distance * math.sin(elevation), flat * math.cos(azimuth)


def relative_pose(kind: PoseKind, photo: Viewpoint, target: Viewpoint) -> tuple[float, float, float, float]:
    """The four numbers that a view model is told: how the target camera stands to the photo's.

    The first three are the polar angle's difference (positive when the camera goes down) and the sine and cosine of the
    azimuth's. The fourth is the distance's difference in the original models, and in the Stable ones the photo's
    absolute polar angle.
    """
    turn = math.radians((target.azimuth_deg - photo.azimuth_deg) % 360.0)
    polar = math.radians(photo.elevation_deg - target.elevation_deg)
    fourth = {
        "original": target.distance - photo.distance,
        "stable": math.radians(90.0 - photo.elevation_deg),
    }[kind]
    return polar, math.sin(turn), math.cos(turn), fourth


def within_a_turn(azimuth_deg: float) -> float:
    """One spelling for one direction, so that it is one picture in the cache: from 0 to 360, to a millionth."""
    return round(azimuth_deg % 360.0, 6) % 360.0


def ring(count: int, elevation_deg: float = 0.0, distance: float = TRAINING_DISTANCE) -> list[Viewpoint]:
    """`count` cameras around the object, evenly, the photo's azimuth first."""
    return [Viewpoint(360.0 * k / count, elevation_deg, distance) for k in range(count)]
