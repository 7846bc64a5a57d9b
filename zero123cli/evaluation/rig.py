"""What every model is shown: objects turned by their name, photographed once, cut out as the program cuts out photos.

The rig is ../shared/design/eval.md's: azimuth 0, elevation 20, distance 2, a field of view of 49.1 degrees, 512 px.
Letters: S pixels of a side.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .. import pipeline
from ..artifacts import Cutout, Photo
from ..cache import Cache, Kept
from ..cameras import TRAINING_FOV_DEG, Viewpoint, within_a_turn
from ..cutters import CLASSICAL
from ..framing import Box, crop
from ..machine import Backend
from ..report import encode_png
from ..scenes.meshes import read_surface
from ..scenes.raycast import camera_axes, prepare, render, render_views
from ..scenes.surface import Surface, normalise
from ..settings import Settings
from ..watch import Watch

if TYPE_CHECKING:
    from .metrics import Shot

PHOTO = Viewpoint(azimuth_deg=0.0, elevation_deg=20.0, distance=2.0)
PHOTO_SIDE = 512  # px
WHOLE = (0.0, 0.0, math.tan(math.radians(TRAINING_FOV_DEG) / 2))  # what it shows, as a square
POSES = 12  # asked for of each mesh
LOWEST_DEG, HIGHEST_DEG = -10.0, 45.0  # their elevations
SOLID = 0.5  # alpha from which a pixel belongs to the object
WHITE = 0.95  # the darkest channel of a background without alpha

Square = tuple[float, float, float]  # in the plane at distance 1: its middle, right and up, and half its side


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
class Seen:
    """A picture of an object that is there already."""

    rgba: np.ndarray  # uint8 (S, S, 4)
    camera: Viewpoint
    square: Square


@dataclass(frozen=True)
class Case:
    """One object as it is known to us; a model sees the photo and what the program makes of it."""

    name: str
    truth: Surface  # turned so that the photo's azimuth is 0; its longest box side is 1, a view set's before the turn
    photo: Photo  # a PNG with alpha
    cutout: Cutout
    mean: np.ndarray | None = None  # uint8 (S, S, 4): the mean cutout of all objects, where it is asked for
    camera: Viewpoint = PHOTO  # the photo's
    frame: Square = WHOLE  # what the photo shows
    others: tuple[Seen, ...] = ()  # of a view set: its other pictures, which are the truth

    @property
    def poses(self) -> list[Viewpoint]:
        """What views are asked for, their azimuths from the photo's; of their distances nothing is told."""
        return [look_at(self.middle, other.camera) for other in self.others] or draw_poses(self.name)

    @property
    def seat(self) -> Viewpoint:
        """Where the photo was taken from, as `poses` tell it."""
        return look_at(self.middle, self.camera) if self.others else self.camera

    @property
    def square(self) -> Square:
        """The cutout."""
        x, y, half = self.frame
        cutout = self.cutout
        pixel, middle = 2 * half / cutout.photo_width, (cutout.photo_width - cutout.side) / 2
        return x + (cutout.left - middle) * pixel, y + (middle - cutout.top) * pixel, cutout.side / 2 * pixel

    @property
    def middle(self) -> np.ndarray:  # (3,)
        """What is in the middle of the cutout, at the object's depth."""
        x, y, _ = self.square
        right, up, _ = camera_axes(self.camera)
        return np.asarray((right * x + up * y) * self.camera.distance)

    @property
    def unit(self) -> float:
        """Half the cutout's side there."""
        return self.square[2] * self.camera.distance


def list_meshes(paths: Sequence[Path], limit: int = 0) -> dict[str, Path]:
    """Meshes by name, the first `limit` of them."""
    return list_files({path: path for path in paths}, limit)


def list_files(sources: Mapping[Path, Path], limit: int = 0) -> dict[str, Path]:
    """Files by the names of their sources; names that are not unique are told apart by more of the path, from the
    folder on that all of them are in."""
    whole = {path: Path(os.path.abspath(source)) for path, source in sources.items()}
    above = Path(os.path.commonpath([source.parent for source in whole.values()])) if whole else Path()
    spelt = {
        path: (source.stem, *(name.as_posix() for name in (inner.with_suffix(""), inner)), path.as_posix())
        for path, source in whole.items()
        for inner in [source.relative_to(above)]
    }
    known = [Counter(names) for names in zip(*spelt.values(), strict=True)]
    named = {
        next(name for name, count in zip(names, known, strict=True) if count[name] == 1): path
        for path, names in spelt.items()
    }
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


def true_views(case: Case, size: int) -> list[np.ndarray]:  # uint8 (S, S, 4) for each pose
    """The object from the poses asked for, at the scale of its photo's cutout.

    The cameras walk around what is in the middle of the cutout, at the object's depth: the pose of the photo shows it.
    """
    if case.others:
        return [bring_to_scale(other, case, size) for other in case.others]
    moved = replace(case.truth, vertices=(case.truth.vertices - case.middle).astype(np.float32))
    fov_deg = 2 * math.degrees(math.atan(case.square[2]))
    pictures = render_views(prepare(moved), case.poses, size=size, fov_deg=fov_deg)
    return [picture.rgba for picture in pictures]


def look_at(middle: np.ndarray, camera: Viewpoint) -> Viewpoint:  # (3,)
    """How a camera stands to what is in the middle of the cutout: views are asked for around that."""
    x, y, z = camera.position() - middle
    distance = math.hypot(x, y, z)
    azimuth_deg, elevation_deg = math.degrees(math.atan2(x, z)), math.degrees(math.asin(y / distance))
    return Viewpoint(within_a_turn(azimuth_deg), elevation_deg, distance)


def bring_to_scale(seen: Seen, case: Case, size: int) -> np.ndarray:  # uint8 (S, S, 4)
    """The part of a picture that the photo's cutout would be: around the same middle, as large there.

    Its camera stays where it stood, so that its perspective is its own.
    """
    right, up, forward = camera_axes(seen.camera)
    depth = seen.camera.distance + case.middle @ forward
    half = case.unit / depth
    x, y, own = seen.square
    pixels = len(seen.rgba) / (2 * own)
    left = (case.middle @ right / depth - half - x + own) * pixels
    top = (y + own - case.middle @ up / depth - half) * pixels
    side = 2 * half * pixels
    return np.asarray(crop(Image.fromarray(seen.rgba), Box(left, top, left + side, top + side), size))


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
