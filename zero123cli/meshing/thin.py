"""What is thin in the photo: handles, legs, stalks, of which a field has next to nothing, or crumbs.

Where the photo's mask is narrow and the field is thinner than the mask is wide, or a ray through the mask meets no
surface at all, there is a rod instead: as thick as the mask is wide, around a depth that the field's faint densities
say and that varies smoothly along it, and into the solid parts that it touches.
Letters: P points, S side of the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .isosurface import Density, Volume, place, slices
from .shot import Shot, project

RAYS = 192  # px of the picture whose rays are looked along
FAINT = 1 / 30  # of the surface's density; where a wide part of the mask has less, it is empty
NARROW = 0.045  # sizes of the object: the radius up to which a part of the mask is thin
THIN = 1.0  # radii; what the field has of a thin part is crumbs below that thickness
GAPS = 0.15  # share of a narrow part that the field lacks from which it is crumbs, and not flat
STICKS_OUT = 0.6  # of the largest radius: how far a thin part reaches away from all that is not
BESIDE = np.ones((3, 3), bool)  # pixels that hang together
RING = 2  # px by which rods reach into what is solid
STIFF, ROUNDS = 4.0, 400  # how much neighbours' depths count for the field's own, and how often they are evened out
VAGUE = 0.05  # sizes of the object, over which a ray's densities spread when its depth counts half
SURE = 0.1  # what a depth counts from which others begin at it


@dataclass(frozen=True)
class Rays:
    """What a volume has along each ray of a picture."""

    top: np.ndarray  # float (S, S), the largest density
    thick: np.ndarray  # float (S, S), how much of it is above the level
    front: np.ndarray  # float (S, S), depth at which that begins; inf
    back: np.ndarray  # float (S, S), and ends; -inf
    depth: np.ndarray  # float (S, S), in the middle of what there is
    spread: np.ndarray  # float (S, S), around it


def look_along(volume: Volume, shot: Shot, level: float, side: int) -> Rays:
    top, thick = np.zeros((side, side)), np.zeros((side, side))
    front, back = np.full((side, side), np.inf), np.full((side, side), -np.inf)
    sums = np.zeros((3, side, side))
    for depth, step, values in slices(volume, shot, side):
        np.maximum(top, values, out=top)
        solid = values >= level
        thick += step * solid
        front = np.where(solid, np.minimum(front, depth), front)
        back = np.where(solid, depth, back)
        sums += np.square(values) * np.array([1, depth, depth * depth])[:, None, None]
    whole = np.maximum(sums[0], 1e-30)
    depth = sums[1] / whole
    spread = np.sqrt(np.maximum(sums[2] / whole - depth**2, 0))
    return Rays(top, thick, front, back, depth, spread)


def round_thin(density: Density, volume: Volume, shot: Shot, level: float, width: float) -> tuple[Density, Volume]:
    """The density with rods where the photo is thin; their border is as soft as `width`."""
    from scipy.ndimage import binary_dilation, distance_transform_edt, map_coordinates, maximum_filter

    side = min(RAYS, shot.side)
    alpha = Image.fromarray(shot.rgba[..., 3]).resize((side, side), Image.Resampling.BOX)
    mask = np.asarray(alpha) >= 128
    pixel = 2 * shot.half / side * shot.viewpoint.distance
    away, radius = measure_widths(mask, NARROW / pixel)
    rays = look_along(volume, shot, level, side)
    thin = pick_thin(mask, away, radius, rays, level, pixel)
    if not thin.any():
        return density, volume
    near = binary_dilation(thin, BESIDE, iterations=RING)
    ring, alone = near & mask & (rays.thick > 0) & ~thin, (thin | near & ~mask).astype(float)
    outside = ~(thin | ring)
    nearest = tuple(distance_transform_edt(outside, return_distances=False, return_indices=True))
    depth, radius = even_out(rays, thin, ring, level)[nearest], (radius * pixel)[nearest]
    inward = np.minimum(away * pixel, radius)
    squared = np.where(outside, -radius * pixel, inward * (2 * radius - inward))

    def rods(points: np.ndarray, squared: np.ndarray = squared) -> tuple[np.ndarray, np.ndarray]:
        """Their density, and how much of a point's ray is theirs alone."""
        seen = project(shot, points, side)
        places = seen[:, 1::-1].T - 0.5
        thickness, middle, size = (
            map_coordinates(one, places, order=1, mode="nearest") for one in (squared, depth, radius)
        )
        share = map_coordinates(alone, places, order=1)
        within = (thickness - (seen[:, 2] - middle) ** 2) / (2 * np.maximum(size, pixel))
        return level * np.exp(np.clip(within / width, -20, 3)), share

    def rounded(points: np.ndarray) -> np.ndarray:
        own, share = rods(points)
        return np.maximum(own, density(points) * (1 - share)).astype(np.float32)

    # The first look says where to look closer: what is thinner than its cells is a cell thick there.
    cell = 2 * volume.reach / volume.cells
    hair = np.where((squared > 0) & (radius < cell), cell**2, -np.inf)
    thick = np.maximum(squared, maximum_filter(hair, 2 * math.ceil(cell / pixel) + 1))
    values = volume.values.copy()
    for layer, known in enumerate(values):
        lattice = np.indices((1, *known.shape)).reshape(3, -1).T + np.array((layer, 0, 0))
        own, share = (part.reshape(known.shape) for part in rods(place(lattice, volume.cells, volume.reach), thick))
        np.maximum(own, known * (1 - share), out=known, casting="same_kind")
    return rounded, Volume(values, volume.reach)


def pick_thin(
    mask: np.ndarray, away: np.ndarray, radius: np.ndarray, rays: Rays, level: float, pixel: float
) -> np.ndarray:  # bool (S, S)
    """Pixels of parts of the mask that the field lacks, or has in crumbs, and that stick out of the rest.

    Rims and corners of what is wide stay as they are, and so does what is flat without gaps.
    """
    from scipy.ndimage import binary_dilation, binary_propagation, distance_transform_edt, uniform_filter

    widest = NARROW / pixel
    narrow, empty = mask & (radius < widest), mask & (rays.thick == 0)
    core = narrow & (away > 1)
    window = 2 * math.ceil(widest) + 1
    gaps, whole = (uniform_filter(part.astype(float), window) for part in (core & empty, core))
    broken = (gaps > GAPS * whole) | (whole < 0.5 / window**2)
    crumbs = empty | narrow & broken & (rays.thick < THIN * radius * pixel)
    thin = crumbs & (rays.top > FAINT * level)
    thin = binary_propagation(thin, BESIDE, mask=thin | crumbs & narrow)
    sound = mask & ~thin
    if not sound.any():
        return thin
    far = thin & (distance_transform_edt(~sound) > STICKS_OUT * widest)
    grown: np.ndarray = binary_dilation(far, BESIDE, iterations=math.ceil(widest), mask=thin)
    return grown


def measure_widths(mask: np.ndarray, widest: float) -> tuple[np.ndarray, np.ndarray]:  # bool (S, S) -> float, both
    """How far each pixel is from the outline, and the radius of the largest disc in the mask that holds it, px."""
    from scipy.ndimage import distance_transform_edt

    away = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] - 0.5
    radius = np.maximum(away, 0)
    for size in np.arange(1.0, widest + 1.0, 0.5):
        middles = away >= size
        if not middles.any():
            break
        held = mask & (distance_transform_edt(~middles) <= size)
        radius[held] = np.maximum(radius[held], size)
    return np.maximum(away, 0), np.minimum(radius, widest)


def even_out(rays: Rays, thin: np.ndarray, ring: np.ndarray, level: float) -> np.ndarray:  # float (S, S)
    """Depths that follow the field's where it is sure and their neighbours' else, and end within what is solid."""
    from scipy.ndimage import distance_transform_edt

    known = thin | ring
    own = np.where(rays.top >= level, 1.0, rays.top / level) / (1 + (rays.spread / VAGUE) ** 2)
    own = np.where(thin, own, 0.0)
    unsure = ~(ring | (own > SURE))
    if unsure.all():
        unsure = own < own.max()
    begun = rays.depth[tuple(distance_transform_edt(unsure, return_distances=False, return_indices=True))]
    depth = np.where(known, begun, 0.0)
    count = STIFF * add_neighbours(known.astype(float))
    low, high = np.where(ring, rays.front, -np.inf), np.where(ring, rays.back, np.inf)
    for _ in range(ROUNDS):
        around = STIFF * add_neighbours(depth)
        depth = np.where(known, (own * rays.depth + around) / np.maximum(own + count, 1e-9), 0.0)
        depth = np.clip(depth, low, high)
    return depth


def add_neighbours(values: np.ndarray) -> np.ndarray:
    """The sum of the eight around each."""
    from scipy.ndimage import uniform_filter

    total: np.ndarray = 9 * uniform_filter(values, 3, mode="constant") - values
    return total
