"""Simple closed bodies that things are put together from, all around the origin; y is up.

Letters: P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from manifold3d import CrossSection, Manifold, OpType  # type: ignore[import-not-found, unused-ignore]

from .raycast import Point

Part = tuple[Manifold, int]  # and the number of its paint


def point(values: np.ndarray | Sequence[float]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def box(width: float, height: float, depth: float) -> Manifold:
    return Manifold.cube((width, height, depth), True)


def soft_box(width: float, height: float, depth: float, radius: float) -> Manifold:
    """With round edges."""
    ball = Manifold.sphere(radius, 16)
    inner = np.maximum(np.array([width, height, depth]) / 2 - radius, 1e-3)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
    return Manifold.batch_hull([ball.translate(point(inner * sign)) for sign in signs])


def rod(height: float, radius: float, top: float | None = None, sides: int = 32) -> Manifold:
    """A cylinder, cone or pyramid along y."""
    return upright(Manifold.cylinder(height, radius, radius if top is None else top, sides, True))


def bar(
    start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray, radius: float, top: float | None = None
) -> Manifold:
    """A rod between two places."""
    way = np.subtract(end, start)
    size = float(np.linalg.norm(way))
    polar = math.degrees(math.acos(np.clip(way[1] / size, -1, 1)))
    solid = rod(size, radius, top, 20).rotate((polar, 0, 0))
    middle = (np.array(start) + np.array(end)) / 2
    return solid.rotate((0, math.degrees(math.atan2(way[0], way[2])), 0)).translate(point(middle))


def ball(radius: float, sides: int = 40) -> Manifold:
    return Manifold.sphere(radius, sides)


def egg(width: float, height: float, depth: float) -> Manifold:
    return Manifold.sphere(0.5, 40).scale((width, height, depth))


def ring(radius: float, thickness: float, sides: int = 40) -> Manifold:
    """A torus around y."""
    circle = CrossSection.circle(thickness, 16).translate((radius, 0))
    return upright(Manifold.revolve(circle, sides))


def wedge(width: float, height: float, depth: float, ridge: float = 0.0) -> Manifold:
    """A gable roof along x; `ridge` moves its top from the middle (0) to the front (1)."""
    outline = CrossSection([[(-depth / 2, -height / 2), (depth / 2, -height / 2), (ridge * depth / 2, height / 2)]])
    return Manifold.extrude(outline, width).translate((0, 0, -width / 2)).rotate((0, -90, 0))


def upright(solid: Manifold) -> Manifold:
    """What stands along z, along y."""
    return solid.rotate((-90, 0, 0))


def lathe(radii: np.ndarray, heights: np.ndarray, wall: float = 0.0, sides: int = 48) -> Manifold:  # (P,), (P,)
    """A turned piece, bottom first; with a wall it is hollow and open at the top."""
    outline = list(zip(np.maximum(radii, 1e-3).tolist(), heights.tolist(), strict=True))
    top = float(heights[-1])
    if wall:
        top = float(heights[0]) + wall
        levels = np.concatenate([[top], heights[heights > top]])[::-1]
        inside = np.maximum(np.interp(levels, heights, radii) - wall, wall / 2)
        outline += zip(inside.tolist(), levels.tolist(), strict=True)
    outline.append((0.0, top))
    outline.append((0.0, float(heights[0])))
    return upright(Manifold.revolve(CrossSection([outline]), sides))


def curve(rng: np.random.Generator, count: int, swing: float) -> np.ndarray:  # (P,)
    """A smooth profile around 1."""
    t = np.linspace(0, 1, count)
    waves = [rng.normal(0, swing / k) * np.cos(k * math.pi * t + rng.uniform(0, 2 * math.pi)) for k in (1, 2, 3)]
    return np.clip(1 + np.sum(waves, 0), 0.25, 2.2)


def outline(rng: np.random.Generator) -> CrossSection:
    """A smooth closed curve, a star, a gear or a polygon, about 1 across."""
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    kind = rng.choice(["smooth", "star", "gear", "polygon"])
    lobes = int(rng.integers(3, 10))
    if kind == "smooth":
        radius = 1 + sum(rng.normal(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(1, 5))
    elif kind == "star":
        radius = 1 + rng.uniform(0.1, 0.45) * np.cos(lobes * angle)
    elif kind == "gear":
        radius = 1 + 0.12 * np.sign(np.cos(2 * lobes * angle)) * rng.uniform(0.5, 1.5)
    else:
        radius = math.cos(math.pi / lobes) / np.cos((angle % (2 * math.pi / lobes)) - math.pi / lobes)
    radius = np.clip(radius, 0.3, 2.0) / 2
    return CrossSection([np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)])


def column(rng: np.random.Generator, shape: CrossSection, height: float, *, plain: bool = False) -> Manifold:
    """The outline drawn up along y, with bevelled ends, and perhaps tapered, bulging, twisted or bent."""
    twist = 0.0 if plain else float(rng.choice([0.0, rng.uniform(-2.5, 2.5)], p=[0.6, 0.4]))
    taper = 0.0 if plain else float(rng.choice([0.0, rng.uniform(-0.6, 0.5)]))
    bulge = 0.0 if plain else float(rng.choice([0.0, rng.uniform(-0.35, 0.5)]))
    bend = 0.0 if plain else float(rng.choice([0.0, rng.uniform(-0.5, 0.5)], p=[0.7, 0.3]))
    bevel = rng.uniform(0.0, 0.12)

    def warp(points: np.ndarray) -> np.ndarray:  # (P, 3)
        t = points[:, 2]
        scale = (1 + taper * (t - 0.5)) * (1 + bulge * np.sin(math.pi * t))
        scale = scale * (1 - bevel * np.maximum(np.abs(2 * t - 1) * 8 - 7, 0) ** 2)
        cos, sin = np.cos(twist * t), np.sin(twist * t)
        x = scale * (cos * points[:, 0] - sin * points[:, 1]) + bend * (t - 0.5) ** 2
        y = scale * (sin * points[:, 0] + cos * points[:, 1])
        return np.stack([x, y, (t - 0.5) * height], -1)

    return upright(Manifold.extrude(shape, 1.0, 15).warp_batch(warp))


def bumpy(rng: np.random.Generator, sides: int = 96) -> Manifold:
    """A ball, or something between ball and block, with relief: lumps, fractal bumps, ribs or dents."""
    power = float(rng.choice([2.0, rng.uniform(2.5, 8)]))
    kind = rng.choice(["lumps", "fractal", "ribs", "dents"])
    waves = rng.normal(size=(24, 3))
    rates = {"lumps": np.full(24, 2.5), "fractal": 1.5 * 1.16 ** np.arange(24.0), "dents": np.full(24, 5.0)}
    rate = rates.get(str(kind), np.zeros(24))
    phases, depth, ribs = rng.uniform(0, 6.3, 24), rng.uniform(0.04, 0.14), int(rng.integers(4, 14))

    def warp(points: np.ndarray) -> np.ndarray:  # (P, 3)
        way = points / np.linalg.norm(points, axis=1, keepdims=True)
        radius = (np.abs(way) ** power).sum(1) ** (-1 / power)
        if kind == "ribs":
            level = np.cos(ribs * np.arctan2(way[:, 2], way[:, 0])) * (1 - way[:, 1] ** 2)
        else:
            each = np.sin((way @ waves.T) * rate + phases)
            level = (each / np.maximum(rate, 1)).sum(1) / np.sqrt((1 / np.maximum(rate, 1) ** 2).sum())
            if kind == "dents":
                level = -np.maximum(level, 0)
        return way * (radius * np.clip(1 + depth * level, 0.4, 1.8))[:, None] * 0.5

    return Manifold.sphere(1.0, sides).warp_batch(warp)


def around(solid: Manifold, count: int) -> Manifold:
    """Copies around y."""
    return Manifold.batch_boolean([solid.rotate((0, 360 * k / count, 0)) for k in range(count)], OpType.Add)


def mirrored(solid: Manifold) -> Manifold:
    """With its twin across x."""
    return solid + solid.mirror((1, 0, 0))


def bounds(parts: Sequence[Part]) -> np.ndarray:  # (2, 3): the lowest and the highest corner
    boxes = np.array([solid.bounding_box() for solid, _ in parts if not solid.is_empty()])
    return np.stack([boxes[:, :3].min(0), boxes[:, 3:].max(0)])


def primitive(rng: np.random.Generator) -> Manifold:
    """A body about 1 across."""
    kind = rng.integers(8)
    if kind == 0:
        return box(1, 1, 1)
    if kind == 1:
        return soft_box(1, 1, 1, rng.uniform(0.05, 0.4))
    if kind == 2:
        return rod(1, 0.5, rng.uniform(0.0, 0.5), int(rng.choice([3, 5, 6, 40])))
    if kind == 3:
        return ball(0.5)
    if kind == 4:
        return ring(0.35, rng.uniform(0.08, 0.15))
    if kind == 5:
        return wedge(1, 1, 1, rng.uniform(-1, 1))
    if kind == 6:
        return rod(1, 0.5) - rod(1.2, rng.uniform(0.2, 0.4))
    return column(rng, outline(rng), 1)
