"""What every model is shown: objects turned by their name, photographed once, cut out as the program cuts out photos.

The rig is ../shared/design/eval.md's: azimuth 0, elevation 20, distance 2, a field of view of 49.1 degrees, 512 px.
Letters: S pixels of a side.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .. import pipeline
from ..artifacts import Cutout, Photo
from ..cache import Cache, Kept
from ..cameras import TRAINING_FOV_DEG, Viewpoint
from ..cutters import CLASSICAL
from ..machine import Backend
from ..report import encode_png
from ..scenes.meshes import read_surface
from ..scenes.raycast import Prepared, camera_axes, pixel_width, prepare, render, render_views
from ..scenes.surface import Surface, normalise
from ..settings import Settings
from ..watch import Watch

if TYPE_CHECKING:
    from .metrics import Shot

PHOTO = Viewpoint(azimuth_deg=0.0, elevation_deg=20.0, distance=2.0)
PHOTO_SIDE = 512  # px
POSES = 12  # asked for of each object
LOWEST_DEG, HIGHEST_DEG = -10.0, 45.0  # their elevations
SOLID = 0.5  # alpha from which a pixel belongs to the object
WHITE = 0.95  # the darkest channel of a background without alpha


@dataclass(frozen=True)
class Plan:
    """How a model is asked."""

    settings: Settings
    backend: Backend
    cache: Cache = field(default_factory=lambda: Cache(None))
    elevation_deg: float | None = None  # of the photo's camera; None: not told
    threshold: float = 0.0  # logit from which a cell of a volume is inside
    mirrored: bool = False  # volumes: the mean of the picture's and its mirror image's
    size: int = 64  # px of the pictures that are compared
    views: bool = False  # whether pictures are asked for, not shapes


@dataclass(frozen=True)
class Case:
    """One object as it is known to us; a model sees the photo and what the program makes of it."""

    name: str
    truth: Surface  # turned, its longest box side 1
    photo: Photo  # a PNG with alpha
    cutout: Cutout
    mean: np.ndarray | None = None  # uint8 (S, S, 4): the mean cutout of all objects, where it is asked for

    @property
    def prepared(self) -> Prepared:
        return prepare(self.truth)

    @property
    def half(self) -> float:
        """Half the cutout's side in the plane at distance 1."""
        return self.cutout.side / 2 * pixel_width(PHOTO_SIDE, TRAINING_FOV_DEG)

    @property
    def square(self) -> tuple[float, float, float]:
        """The cutout in the plane at distance 1: its middle, right and up, and half its side."""
        pixel, middle = pixel_width(PHOTO_SIDE, TRAINING_FOV_DEG), (PHOTO_SIDE - self.cutout.side) / 2
        return (self.cutout.left - middle) * pixel, (middle - self.cutout.top) * pixel, self.half


def list_meshes(paths: Sequence[Path], limit: int = 0) -> dict[str, Path]:
    """Meshes by name, the first `limit` of them; names that are not unique are told apart by their folders."""
    known = Counter(path.stem for path in paths)
    named = {path.stem if known[path.stem] == 1 else path.with_suffix("").as_posix(): path for path in paths}
    return dict(sorted(named.items())[: limit or None])


def set_up(name: str, path: Path, plan: Plan, watch: Watch, mean: np.ndarray | None = None) -> Case:
    """The object on its table and its photo."""
    angle = seed_of(path.stem) % 360  # an object's own front means nothing
    truth = normalise(turn(read_surface(path), angle))
    picture = render(prepare(truth), PHOTO, size=PHOTO_SIDE)
    photo = Photo(name, encode_png(picture.rgba))
    return Case(name, truth, photo, cut(photo, plan, watch).artifact, mean)


def cut(photo: Photo, plan: Plan, watch: Watch) -> Kept[Cutout]:
    """The photo through the program's own stage; its alpha is the mask, so that no cutter ever runs."""
    how = replace(plan.settings.cutout, cutter="auto", mask="alpha")
    return pipeline.cutout(photo, how, CLASSICAL, plan.cache, watch)


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def turn(surface: Surface, angle_deg: float) -> Surface:
    """The object turned about the up axis, counter-clockwise as seen from above."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    x, y, z = surface.vertices.astype(np.float64).T
    return replace(surface, vertices=np.stack([x * cos + z * sin, y, z * cos - x * sin], -1).astype(np.float32))


def draw_poses(name: str) -> list[Viewpoint]:
    """The same for the same name, on every machine."""
    chance = np.random.default_rng(seed_of(name))
    return [
        Viewpoint(float(chance.uniform(0, 360)), float(chance.uniform(LOWEST_DEG, HIGHEST_DEG)), PHOTO.distance)
        for _ in range(POSES)
    ]


def true_views(case: Case, size: int) -> list[np.ndarray]:  # POSES of uint8 (S, S, 4)
    """The object from the poses asked for, at the scale of its photo's cutout.

    The cameras walk around what is in the middle of the cutout, at the object's depth: the pose of the photo shows it.
    """
    x, y, half = case.square
    right, up, _ = camera_axes(PHOTO)
    middle = (right * x + up * y) * PHOTO.distance
    moved = replace(case.truth, vertices=(case.truth.vertices - middle).astype(np.float32))
    fov_deg = 2 * math.degrees(math.atan(half))
    pictures = render_views(prepare(moved), draw_poses(case.name), size=size, fov_deg=fov_deg)
    return [picture.rgba for picture in pictures]


def to_shot(picture: np.ndarray, size: int) -> Shot:  # uint8 (S, S, 3) on white, or (S, S, 4)
    """A picture at the size that is compared; without alpha what is not white is the object."""
    from .metrics import Shot

    layers = picture.astype(np.float32) / 255
    if layers.shape[-1] == 4:
        layers = np.concatenate([layers[..., :3] * layers[..., 3:] + 1 - layers[..., 3:], layers[..., 3:]], -1)
    if len(layers) != size:
        kind = Image.Resampling.BOX if len(layers) > size else Image.Resampling.BICUBIC
        resized = [
            Image.fromarray(np.ascontiguousarray(layer)).resize((size, size), kind)
            for layer in layers.transpose(2, 0, 1)
        ]
        layers = np.clip(np.stack([np.asarray(layer) for layer in resized], -1), 0, 1)
    mask = layers[..., 3] >= SOLID if layers.shape[-1] == 4 else layers.min(-1) < WHITE
    return Shot(np.ascontiguousarray(layers[..., :3]), mask)
