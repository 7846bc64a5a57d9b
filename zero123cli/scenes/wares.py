"""Made-up things from a shop's shelf: shoes, packages, bags, dishes, pans and meals; z is ahead, y is up.

Letters: P points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from manifold3d import Manifold  # type: ignore[import-not-found, unused-ignore]

from .forms import Part, around, ball, bar, box, egg, lathe, mirrored, point, ring, rod, soft_box

RIM = 20  # points around half a slice of a shoe


def make_shoe(rng: np.random.Generator) -> list[Part]:
    """A sneaker, boot, slipper or court shoe; or a pair."""
    heel_height = float(rng.choice([0.0, rng.uniform(0.03, 0.3)], p=[0.75, 0.25]))
    wide, toe = rng.uniform(0.3, 0.42), rng.uniform(0.45, 0.9)
    ankle, instep, low = rng.uniform(0.22, 0.42), rng.uniform(0.16, 0.32), rng.uniform(0.08, 0.18)
    swing = rng.uniform(-0.05, 0.05)
    z = np.linspace(-0.5, 0.5, 15)
    half = np.interp(
        z,
        [-0.5, -0.4, -0.1, 0.2, 0.42, 0.5],
        np.array([0.45, 0.72, 0.75, 1.0, 0.85 * toe + 0.1, 0.35 * toe]) * wide / 2,
    )
    tall = np.interp(
        z, [-0.5, -0.35, -0.15, 0.1, 0.35, 0.5], [ankle * 0.95, ankle, ankle * 0.92, instep, low, low * 0.6]
    )
    rise = heel_height * np.clip(0.6 - z, 0, 1) ** 1.5
    shift = swing * np.sin(math.pi * (z + 0.5))
    upper = loft(z, half, tall, rise, shift)
    sole = rng.uniform(0.025, 0.1)
    under = loft(z, half * 1.06, np.full(15, sole), rise - sole, shift, flat=True)
    parts: list[Part] = [(under, 1)]
    if heel_height:
        parts.append((box(wide * 0.55, heel_height, 0.2).translate((0, heel_height / 2 - sole, -0.38)), 1))
    if rng.random() < 0.25:  # a boot
        shaft = rng.uniform(0.2, 0.7)
        leg = rod(shaft, wide * 0.42, wide * rng.uniform(0.4, 0.52)).scale((1, 1, 1.2))
        upper += leg.translate((0, ankle * 0.6 + shaft / 2 + rise[2], -0.27))
        parts.append((upper, 0))
    else:
        opening = egg(wide * 0.72, ankle * rng.uniform(1.0, 1.5), rng.uniform(0.35, 0.55))
        parts.append((upper - opening.translate((0, ankle * 1.05 + rise[3], -0.24)), 0))
    if rng.random() < 0.6:
        for place in np.linspace(0.0, 0.22, int(rng.integers(2, 6))):
            level = float(np.interp(place, z, tall + rise))
            reach = float(np.interp(place, z, half)) * 0.5
            parts.append((bar((-reach, level * 0.97, place), (reach, level * 0.97, place), 0.014), 2))
    skin = loft(z, half * 1.03, tall * 1.03, rise, shift)  # what is laid on it
    if rng.random() < 0.4:
        parts.append((skin.trim_by_plane((0, 0, 1), rng.uniform(0.28, 0.4)), 3))
    if rng.random() < 0.4:
        stripe = box(wide * 1.2, 0.04, 0.3).rotate((rng.uniform(-40, 40), 0, 0)).translate((0, low, -0.05))
        parts.append((stripe ^ skin, 4))
    if rng.random() < 0.15:
        parts += [
            (part.mirror((1, 0, 0)).translate((wide * 1.2, 0, rng.normal(0, 0.1))), paint) for part, paint in parts
        ]
    return parts


def loft(
    z: np.ndarray, half: np.ndarray, tall: np.ndarray, rise: np.ndarray, shift: np.ndarray, *, flat: bool = False
) -> Manifold:  # (P,), all
    """Slices along z that are rounded above and flat below, or flat on both sides, joined one after the other."""
    angle = np.linspace(0, math.pi, RIM)
    power = 0.2 if flat else 0.7
    across = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    above = np.sin(angle) ** power
    slices = [
        np.concatenate(
            [
                np.stack([across * half[k] + shift[k], above * tall[k] + rise[k], np.full(RIM, z[k])], -1),
                np.stack([across * half[k] * 0.9 + shift[k], np.full(RIM, rise[k]), np.full(RIM, z[k])], -1),
            ]
        )
        for k in range(len(z))
    ]
    pieces = [Manifold.hull_points(np.concatenate(pair)) for pair in itertools.pairwise(slices)]
    return sum(pieces[1:], pieces[0])


def make_package(rng: np.random.Generator) -> list[Part]:
    """A box, carton, case, pouch or bag of any proportion, standing or lying."""
    width, height, depth = np.exp(rng.uniform(math.log(0.15), 0, 3))
    kind = rng.integers(5)
    if kind <= 1:
        body = soft_box(width, height, depth, 0.5 * min(width, height, depth) * rng.uniform(0.02, 0.3))
        parts: list[Part] = [(body, 0)]
        for axis in range(3):
            if rng.random() < 0.6:
                size = np.array([width, height, depth]) * rng.uniform(0.3, 0.85, 3)
                size[axis] = (width, height, depth)[axis] + 0.006
                parts.append(
                    (box(*size).translate(point(rng.uniform(-0.06, 0.06, 3) * (np.arange(3) != axis))), 1 + axis)
                )
        if rng.random() < 0.15:
            top = rod(height * 0.25, min(width, depth) * 0.2).translate((0, height * 0.6, 0))
            parts.append((top, 4))
        return parts
    if kind == 2:  # a pouch or cushion: thick in the middle, thin at its seams
        power = rng.uniform(1.5, 4)

        def swell(points: np.ndarray) -> np.ndarray:  # (P, 3)
            inside = np.clip(1 - np.abs(points[:, :2] * 2) ** power, 0, 1).prod(1)
            return np.stack(
                [points[:, 0] * width * 2, points[:, 1] * height * 2, points[:, 2] * (0.06 + depth * inside**0.5)], -1
            )

        body = Manifold.cube((1, 1, 1), True).refine(24).warp_batch(swell)
        return [(body if rng.random() < 0.5 else body.rotate((90, 0, 0)), 0)]
    if kind == 3:  # a case with a zip and a loop
        long_, girth = max(width, depth), min(width, depth, 0.5)
        body = soft_box(long_, girth * rng.uniform(0.5, 1.2), girth, girth * rng.uniform(0.1, 0.24))
        zip_ = soft_box(long_ * 0.9, 0.02, girth * 1.02, 0.005)
        loop = ring(girth * 0.3, 0.02).rotate((90, 0, 0)).translate((long_ / 2, 0, 0))
        parts = [(body, 0), (zip_, 1)]
        return [*parts, (loop, 2)] if rng.random() < 0.5 else parts
    body = soft_box(width, height, depth, 0.5 * min(width, height, depth) * rng.uniform(0.1, 0.6))  # a bag with handles
    handle = ring(width * 0.25, rng.uniform(0.015, 0.04)).rotate((90, 0, 0)).scale((1, rng.uniform(1, 2), 1))
    handle = handle.translate((0, height / 2, depth * 0.35))
    parts = [(body, 0), (handle + handle.mirror((0, 0, 1)), 1)]
    if rng.random() < 0.5:
        parts.append((soft_box(width * 0.7, height * 0.5, 0.12, 0.03).translate((0, -height * 0.15, depth / 2)), 2))
    return parts


def make_dish(rng: np.random.Generator) -> list[Part]:
    """A plate, tray, dish or lying pan; sometimes with something on it."""
    foot, height, wall = rng.uniform(0.2, 0.48), rng.uniform(0.03, 0.25), rng.uniform(0.012, 0.035)
    t = np.linspace(0, 1, 10)
    radii = foot + (0.5 - foot) * t ** rng.uniform(0.3, 1.5)
    body = lathe(radii, t * height, wall)
    sides = rng.random()
    if sides < 0.2:
        body = body.scale((1, 1, rng.uniform(0.5, 0.8)))
    parts: list[Part] = [(body, 0)]
    if rng.random() < 0.45:
        long_, level = rng.uniform(0.3, 0.75), height * 0.85
        end = np.array([0, level + rng.uniform(-0.02, 0.15), 0.47 + long_])
        parts.append((bar((0, level, 0.46), end, rng.uniform(0.02, 0.04)).scale((rng.uniform(1, 1.8), 1, 1)), 1))
    elif rng.random() < 0.25:
        grip = ring(0.1, 0.02).translate((0.5, height * 0.9, 0))
        parts.append((mirrored(grip), 1))
    if rng.random() < 0.3:
        inner = rod(wall, foot * rng.uniform(0.5, 0.95), sides=48).translate((0, wall * 1.0, 0))
        parts.append((inner, 2))
    if rng.random() < 0.15:
        lid = egg(0.96, rng.uniform(0.1, 0.4), 0.96).trim_by_plane((0, 1, 0), 0.0)
        parts += [(lid.translate((0, height, 0)), 3), (ball(0.05).translate((0, height + 0.15, 0)), 1)]
    if rng.random() < 0.15:
        parts.append((around(ball(0.09).translate((foot * 0.5, wall + 0.06, 0)), int(rng.integers(2, 6))), 4))
    return parts


def make_meal(rng: np.random.Generator) -> list[Part]:
    """A cup, a bowl, a cake or burger, most of them on a saucer, plate or board."""
    under, level = serve(rng) if rng.random() < 0.75 else ([], 0.0)
    make = (make_cup, make_layers, make_bowl)[rng.integers(3)]
    return [*under, *((part.translate((0, level * 0.9, 0)), paint) for part, paint in make(rng, rng.uniform(0.5, 0.8)))]


def make_cup(rng: np.random.Generator, wide: float) -> list[Part]:
    """With a handle and something in it; on its foot."""
    height, wall = wide * rng.uniform(0.55, 1.2), rng.uniform(0.015, 0.03)
    t = np.linspace(0, 1, 14)
    foot = rng.uniform(0.45, 0.95)
    radii = wide / 2 * (foot + (1 - foot) * t ** rng.uniform(0.3, 1.2))
    body, inner = lathe(radii, t * height, wall), lathe(radii - wall / 2, t * height)
    parts: list[Part] = [(body, 0)]
    full = rng.uniform(0.5, 0.95)
    if rng.random() < 0.8:
        drink = rod(0.01, float(np.interp(full, t, radii)) - wall * 0.6, sides=48)
        parts.append((drink.translate((0, full * height, 0)), 1))
    if rng.random() < 0.85:
        size, place = height * rng.uniform(0.2, 0.32), rng.uniform(0.45, 0.6)
        grip = ring(size, rng.uniform(0.02, 0.04)).rotate((90, 0, 0)).scale((rng.uniform(0.7, 1.1), 1, 1))
        grip = grip.translate((float(np.interp(place, t, radii)) + size * 0.1, place * height, 0)) - inner
        parts.append((grip.rotate((0, rng.uniform(0, 360), 0)), 0))
    return parts


def make_layers(rng: np.random.Generator, wide: float) -> list[Part]:
    """A cake, burger, sandwich or pancakes; whole, cut into, or a slice."""
    parts: list[Part] = []
    height, square = 0.0, rng.random() < 0.25
    for number in range(int(rng.integers(2, 6))):
        across, tall = wide * rng.uniform(0.85, 1.05), rng.uniform(0.03, 0.16)
        if square:
            layer = soft_box(across, tall, across * 0.8, tall * 0.3).translate((0, tall / 2, 0))
        else:
            edge = 1 - rng.uniform(0.02, 0.24) * np.linspace(-1, 1, 9) ** 4
            layer = lathe(across / 2 * edge, np.linspace(0, tall, 9))
        parts.append((layer.rotate((0, rng.uniform(0, 30), 0)).translate((0, height, 0)), number % 4))
        height += tall * 0.96
    if rng.random() < 0.5:
        dome = egg(wide, rng.uniform(0.2, 0.6), wide).trim_by_plane((0, 1, 0), 0.0)
        parts.append((dome.translate((0, height - 0.01, 0)), 0))
    elif rng.random() < 0.4:
        parts.append((around(ball(0.05).translate((wide * 0.35, height + 0.03, 0)), int(rng.integers(4, 9))), 4))
    if rng.random() < 0.25:
        corner = box(2, 4, 2).translate((1, 0, 1)).rotate((0, rng.uniform(0, 360), 0))
        alone = rng.random() < 0.5
        return [(part ^ corner if alone else part - corner, paint) for part, paint in parts]
    return parts


def make_bowl(rng: np.random.Generator, wide: float) -> list[Part]:
    """With something in it."""
    deep, t = rng.uniform(0.15, 0.4), np.linspace(0, 1, 10)
    bowl = lathe(wide / 2 * (0.45 + 0.55 * t ** rng.uniform(0.3, 0.9)), t * deep, rng.uniform(0.02, 0.04))
    parts: list[Part] = [(bowl, 0)]
    for number in range(int(rng.integers(1, 7))):
        away, angle, size = wide * 0.28 * rng.random() ** 0.5, rng.uniform(0, 2 * math.pi), rng.uniform(0.08, 0.15)
        lump = egg(size * 2, size * rng.uniform(1.4, 2.2), size * 2)
        parts.append((lump.translate((away * math.cos(angle), deep * 0.75, away * math.sin(angle))), 1 + number % 4))
    return parts


def serve(rng: np.random.Generator) -> tuple[list[Part], float]:
    """A saucer, plate or board, perhaps with a spoon on it, and how high things stand on it."""
    wall = rng.uniform(0.015, 0.035)
    if rng.random() < 0.2:
        board = soft_box(1.0, wall * 2, rng.uniform(0.6, 1.0), wall * 0.8)
        return [(board.translate((0, wall, 0)), 3)], wall * 2
    t = np.linspace(0, 1, 10)
    rise = rng.uniform(0.03, 0.14)
    radii = rng.uniform(0.2, 0.35) * (1 - t) + 0.5 * t
    parts: list[Part] = [(lathe(radii, rise * t ** rng.uniform(1, 2.5), wall), int(rng.choice([0, 3])))]
    if rng.random() < 0.4:
        start, end = np.array([-0.25, rise, 0.38]), np.array([0.35, rise * 1.2, 0.4])
        spoon = bar(start, end, 0.016) + egg(0.16, 0.03, 0.1).translate(point(start))
        parts.append((spoon.rotate((0, rng.uniform(0, 360), 0)), 4))
    return parts, wall


WARES: dict[str, tuple[Callable[[np.random.Generator], list[Part]], float]] = {
    "shoe": (make_shoe, 1.5),
    "package": (make_package, 2.0),
    "dish": (make_dish, 0.8),
    "meal": (make_meal, 1.2),
}
