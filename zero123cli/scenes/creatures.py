"""Made-up animals and figures: limbs of balls on a line, melted into one smooth body; z is ahead, y is up.

Proportions and poses are drawn from what is found in nature and on toy shelves, from hippopotamus to giraffe and from
soldier to doll, so that what is seen end-on can be learned to reach far behind.
Letters: K balls, X, Y, Z cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from manifold3d import Manifold, Mesh  # type: ignore[import-not-found, unused-ignore]

from .forms import Part, ball, bar, egg, lathe, mirrored, point, rod

CELLS, FEW = 56, 28  # along the longest side of a melted body, and of a single limb
Limb = np.ndarray  # (K, 4): places and radii, one ball after the other


def melt(limbs: Sequence[Limb], softness: float, cells: int = CELLS) -> Manifold:
    """One closed surface around all limbs, which run into each other over `softness`."""
    from skimage.measure import marching_cubes

    balls = np.concatenate(limbs)
    margin = balls[:, 3].max() * 0.2 + softness
    low = (balls[:, :3] - balls[:, 3:]).min(0) - margin
    high = (balls[:, :3] + balls[:, 3:]).max(0) + margin
    step = float((high - low).max()) / cells
    shape = np.ceil((high - low) / step).astype(int) + 1
    axes = [low[k] + step * np.arange(shape[k]) for k in range(3)]
    field = np.full(shape, 10 * step + softness, np.float32)
    for limb in limbs:
        for one, two in itertools.pairwise(limb):
            reach = max(one[3], two[3]) + softness + 2 * step
            first = np.maximum(np.floor((np.minimum(one, two)[:3] - reach - low) / step).astype(int), 0)
            last = np.minimum(np.ceil((np.maximum(one, two)[:3] + reach - low) / step).astype(int) + 1, shape)
            part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
            places = np.stack(np.meshgrid(*(axes[k][part[k]] for k in range(3)), indexing="ij"), -1)
            field[part] = smooth_least(field[part], distance(places, one, two), softness)
    places, faces = marching_cubes(field, 0.0)[:2]  # type: ignore[no-untyped-call]  # it says no types
    solid = Manifold(Mesh((places * step + low).astype(np.float32), faces.astype(np.uint32)))
    return solid.simplify(0.08 * step)


def distance(places: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:  # (X, Y, Z, 3), (4,) -> (X, Y, Z)
    """From the surface of the tapering rod between two balls."""
    way = two[:3] - one[:3]
    along = np.clip((places - one[:3]) @ way / max(float(way @ way), 1e-9), 0, 1)
    away = np.linalg.norm(places - one[:3] - along[..., None] * way, axis=-1)
    return away - (one[3] + along * (two[3] - one[3]))


def smooth_least(a: np.ndarray, b: np.ndarray, softness: float) -> np.ndarray:  # (X, Y, Z), all
    blend = np.clip(0.5 + 0.5 * (a - b) / softness, 0, 1)
    return a + blend * (b - a) - softness * blend * (1 - blend)


def limb(*balls: Sequence[float]) -> Limb:
    """Each ball as x, y, z, radius."""
    return np.array(balls, np.float64)


def sprout(start: np.ndarray, turns: np.ndarray, step: float, radii: np.ndarray) -> Limb:  # (3,), (K, 2), (K + 1,)
    """A chain from `start`; each link has its yaw and pitch, as `direction` takes them."""
    ways = direction(*turns.T)
    places = start + np.concatenate([np.zeros((1, 3)), np.cumsum(ways * step, 0)])
    return np.concatenate([places, radii[:, None]], 1)


def direction(yaw: float | np.ndarray, pitch: float | np.ndarray) -> np.ndarray:  # (..., 3)
    """Degrees: 0, 0 is ahead, pitch 90 is up."""
    a, b = np.radians(yaw), np.radians(pitch)
    return np.stack([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)], -1)


def off(place: np.ndarray, right: float, up: float, ahead: float) -> np.ndarray:  # (3,)
    """The place so far off another."""
    return place + np.array([right, up, ahead])


def both(one: Limb) -> list[Limb]:
    """It and its twin across x."""
    return [one, one * (-1, 1, 1, 1)]


def plate(way: np.ndarray, size: tuple[float, float, float], turn: Sequence[float]) -> Manifold:
    """A flat egg, turned and brought to its place: ears, fins, wings, sails."""
    return egg(*size).rotate(point(turn)).translate(point(way))


# Animals --------------------------------------------------------------------------------------------------------------


def make_beast(rng: np.random.Generator) -> list[Part]:
    """An animal on four legs: standing, walking, grazing, lying or sitting."""
    girth, leg = rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.75)
    slim = min(leg * 0.3, girth * rng.uniform(0.2, 0.5))
    pose = rng.choice(["stands", "lies", "sits"], p=[0.78, 0.1, 0.12])
    lift = math.radians(rng.uniform(30, 60)) if pose == "sits" else math.radians(rng.normal(0, 5))
    height = girth * 0.95 if pose == "lies" else leg + girth * 0.7
    hip = np.array([0.0, girth if pose == "sits" else height, 0.0])
    chest = off(hip, 0.0, math.sin(lift), math.cos(lift))
    heavy = rng.uniform(0.75, 1.15, 3) * girth
    middle = off((hip + chest) / 2, 0, rng.uniform(-0.25, 0.12) * girth, 0)
    body = [limb((*hip, heavy[0]), (*middle, heavy[1]), (*chest, heavy[2]))]
    body += four_legs(rng, hip, chest, leg, slim, girth, str(pose))
    neck, skull = grow_head(rng, off(chest, 0, girth * 0.35, girth * 0.2), girth)
    body += neck
    body.append(grow_tail(rng, off(hip, 0, girth * 0.3, -girth * 0.6), girth))
    parts = [(melt(body, girth * rng.uniform(0.15, 0.45)), 0), *skull]
    if rng.random() < 0.3:
        tips = [np.concatenate([one[-2:, :3], one[-2:, 3:] * 1.12], 1) for one in body[1:5]]
        parts.append((melt(tips, 0.01), 1))
    if rng.random() < 0.15:
        parts.append(make_ridge(rng, (hip + chest) / 2, girth))
    if rng.random() < 0.07:
        wing = plate(off(chest, girth + 0.25, 0.35, -0.3), (0.7, 0.05, 0.4), (0, 20, rng.uniform(10, 60)))
        parts.append((mirrored(wing + bar(chest, off(chest, girth + 0.2, 0.3, -0.3), girth * 0.25)), 2))
    return parts


def four_legs(
    rng: np.random.Generator, hip: np.ndarray, chest: np.ndarray, leg: float, slim: float, girth: float, pose: str
) -> list[Limb]:
    side, foot = girth * rng.uniform(0.5, 0.85), slim * rng.uniform(0.7, 1.3)
    knee_forward = rng.uniform(-0.15, 0.15, 2)
    walks = rng.random() < 0.5
    legs = []
    for number, (root, back) in enumerate(((hip, True), (hip, True), (chest, False), (chest, False))):
        x = side * (-1) ** number
        top = off(root, x, -girth * 0.15, 0)
        if pose == "lies" or (pose == "sits" and back):
            toe = np.array([x * 1.25, foot, root[2] + rng.uniform(0.25, 0.6) * max(leg, 0.4) * (-0.3 if back else 1)])
            bend = off((top + toe) / 2, x * 0.35, 0.1 * leg, 0.15)
        else:
            swing = rng.uniform(-0.3, 0.3) * leg if walks else rng.uniform(-0.04, 0.04)
            toe = np.array([x, foot * 0.8, top[2] + swing])
            bend = off((top + toe) / 2, 0, 0, knee_forward[int(back)] * leg * (-1 if back else 1))
        end = off(toe, 0, 0, foot * rng.uniform(0.4, 1.6))
        legs.append(limb((*top, slim * rng.uniform(1.3, 2.0)), (*bend, slim * 1.05), (*toe, slim * 0.85), (*end, foot)))
    return legs


def grow_head(rng: np.random.Generator, root: np.ndarray, girth: float) -> tuple[list[Limb], list[Part]]:
    """Neck, head and snout as limbs; eyes, ears, horns and a mane as parts."""
    length = float(rng.choice([rng.uniform(0.1, 0.35), rng.uniform(0.35, 0.9)], p=[0.7, 0.3]))
    pitch = rng.uniform(-35, 85)
    yaw = float(rng.choice([0.0, rng.uniform(-60, 60)], p=[0.55, 0.45]))
    thick = girth * rng.uniform(0.35, 0.75)
    size = max(rng.uniform(0.09, 0.2), thick * 0.8)
    turns = np.array([[yaw * 0.3, pitch], [yaw * 0.6, pitch * rng.uniform(0.6, 1.1)]])
    neck = sprout(
        root - (0, girth * 0.3, girth * 0.3), turns, length / 2 + girth * 0.2, thick * np.array([1.3, 1, 0.8])
    )
    head = neck[-1, :3]
    down = rng.uniform(-50, 10)
    ahead = direction(yaw, down)
    snout = size * rng.uniform(0.6, 2.2)
    nose = head + ahead * snout
    limbs = [
        neck,
        limb(
            (*head, size),
            (*(head + ahead * snout * 0.4), size * rng.uniform(0.6, 0.95)),
            (*nose, size * rng.uniform(0.3, 0.7)),
        ),
    ]
    across, up = direction(yaw + 90, 0), np.array([0.0, 1.0, 0.0])
    eyes = [
        ball(size * 0.16, 16).translate(point(head + ahead * size * 0.5 + up * size * 0.45 + across * s * size * 0.72))
        for s in (-1, 1)
    ]
    parts: list[Part] = [(eyes[0] + eyes[1], 4)]
    if rng.random() < 0.8:
        ear, spread = size * rng.uniform(0.5, 2.2), rng.uniform(10, 80)
        for s in (-1, 1):
            place = head + across * s * size * 0.7 + up * size * 0.75
            parts.append((plate(place, (size * 0.5, ear, size * 0.2), (0, yaw, -s * spread)), 3))
    if rng.random() < 0.3:
        horn, apart = size * rng.uniform(0.6, 2.2), rng.uniform(0.3, 1.5)
        for s in (-1, 1):
            place = head + across * s * size * 0.5 + up * size * 0.6
            bent = place + (across * s * apart + up * 0.5) * horn * 0.5
            tip = bent + (up + ahead * rng.uniform(-0.5, 0.5)) * horn * 0.5
            parts.append((bar(place, bent, size * 0.2, size * 0.14) + bar(bent, tip, size * 0.14, size * 0.03), 2))
    elif rng.random() < 0.12:
        parts.append((bar(nose, nose + up * size * rng.uniform(0.5, 1.5) + ahead * size * 0.3, size * 0.28, 0.01), 2))
    if rng.random() < 0.2:
        mane = size * rng.uniform(1.5, 2.2)
        parts.append((plate(head - ahead * size * 0.7, (mane * 2, mane * 2.2, mane * 1.2), (-down * 0.5, yaw, 0)), 3))
    return limbs, parts


def grow_tail(rng: np.random.Generator, root: np.ndarray, girth: float) -> Limb:
    long_ = float(rng.choice([rng.uniform(0.08, 0.3), rng.uniform(0.4, 1.4)], p=[0.4, 0.6]))
    base = girth * rng.uniform(0.12, 0.7)
    pitch = rng.uniform(-75, 40) + np.cumsum(rng.normal(0, 18, 5))
    yaw = 180 + np.cumsum(rng.normal(0, 14, 5))
    radii = base * np.linspace(1, rng.uniform(0.1, 0.8), 6)
    return sprout(root, np.stack([yaw, np.clip(pitch, -80, 80)], -1), long_ / 5, np.maximum(radii, 0.018))


def make_ridge(rng: np.random.Generator, middle: np.ndarray, girth: float) -> Part:
    """A sail, a hump or plates along the back."""
    top = off(middle, 0, girth * 0.9, 0)
    kind = rng.integers(3)
    if kind == 0:
        return plate(top, (girth * 0.3, rng.uniform(0.4, 1.1), rng.uniform(0.6, 1.2)), (0, 0, 0)), 1
    if kind == 1:
        return egg(girth, girth * 1.3, 0.4).translate(point(top)), 0
    plates = [
        plate(off(top, 0, 0, z), (0.05, rng.uniform(0.2, 0.4), 0.18), (0, 0, 0)) for z in np.linspace(-0.4, 0.4, 5)
    ]
    return sum(plates[1:], plates[0]), 1


def make_strider(rng: np.random.Generator) -> list[Part]:
    """An animal on two legs: dinosaur, bird, penguin or kangaroo."""
    girth, leg = rng.uniform(0.16, 0.4), rng.uniform(0.12, 0.8)
    pitch = rng.uniform(-5, 85)
    slim = min(girth * rng.uniform(0.15, 0.45), leg * 0.35)
    hip = np.array([0.0, leg + girth * 0.6, 0.0])
    chest = hip + direction(0, pitch) * rng.uniform(0.35, 0.9)
    heavy = girth * rng.uniform(0.7, 1.1, 2)
    body = [limb((*hip, heavy[0]), (*((hip + chest) / 2), girth), (*chest, heavy[1]))]
    side = girth * rng.uniform(0.4, 0.8)
    for s in (-1, 1):
        swing = rng.uniform(-0.3, 0.3) * leg
        knee = off(hip, s * side, -leg * 0.4, 0.15 * leg)
        toe = np.array([s * side, slim * 0.7, hip[2] + swing])
        tip = off(toe, 0, 0, rng.uniform(0.1, 0.3))
        body.append(
            limb((*off(hip, s * side, 0, 0), slim * 1.8), (*knee, slim * 1.1), (*toe, slim * 0.8), (*tip, slim * 0.7))
        )
    neck, skull = grow_head(rng, off(chest, 0, girth * 0.3, girth * 0.1), girth * 0.8)
    body += neck
    body.append(grow_tail(rng, off(hip, 0, 0, -girth * 0.5), girth * rng.uniform(0.6, 1.4)))
    parts = skull
    if rng.random() < 0.45:
        long_ = float(np.linalg.norm(chest - hip)) + girth
        wing = plate(
            off((hip + chest) / 2, girth * 0.95, 0, -0.1),
            (girth * 0.3, girth * 1.2, long_),
            (-pitch, 0, rng.uniform(0, 25)),
        )
        parts.append((mirrored(wing), 2))
    else:
        arm = rng.uniform(0.1, 0.35)
        start = off(chest, girth * 0.8, -girth * 0.2, girth * 0.2)
        body += both(
            limb(
                (*start, slim),
                (*off(start, 0.05, -arm * 0.5, arm * 0.7), slim * 0.7),
                (*off(start, 0, -arm * 0.4, arm * 1.2), slim * 0.7),
            )
        )
    if rng.random() < 0.12:
        parts.append(make_ridge(rng, (hip + chest) / 2, girth))
    return [(melt(body, girth * rng.uniform(0.1, 0.4)), 0), *parts]


def make_swimmer(rng: np.random.Generator) -> list[Part]:
    """A fish, shark, whale or dolphin."""
    deep, slim = rng.uniform(0.12, 0.32), rng.uniform(0.35, 1.1)
    where = np.linspace(0, 1, 7)
    radii = deep * np.sin(math.pi * (0.08 + 0.86 * where ** rng.uniform(0.6, 1.0)))
    bend = rng.uniform(-0.15, 0.15) * np.sin(math.pi * where * 1.5)
    spine = np.stack([bend, np.zeros(7), 0.5 - where, np.maximum(radii, 0.03)], -1)
    body = melt([spine], 0.05).scale((slim, 1, 1))
    lies = rng.random() < 0.3  # a whale's tail
    tail = plate(np.array([bend[-1] * slim, 0, -0.55]), (0.04, deep * rng.uniform(1.4, 2.6), 0.2), (0, 0, 90 * lies))
    back = plate(np.array([0, deep, -0.05]), (0.035, deep * rng.uniform(0.6, 1.8), rng.uniform(0.15, 0.5)), (20, 0, 0))
    side = plate(np.array([deep * slim, -deep * 0.3, 0.15]), (deep * 1.6, 0.03, 0.16), (0, 25, -rng.uniform(0, 60)))
    eye = ball(deep * 0.12, 16).translate((radii[1] * slim * 0.85, deep * 0.15, 0.5 - where[1]))
    return [(body, 0), (tail, 1), (back, 1), (mirrored(side), 2), (mirrored(eye), 4)]


# Figures --------------------------------------------------------------------------------------------------------------


def make_figure(rng: np.random.Generator) -> list[Part]:
    """A person, doll, robot or plush toy: standing, walking or sitting with its arms anywhere."""
    childlike = rng.uniform(0, 1)
    head = 0.12 + 0.22 * childlike * rng.uniform(0.3, 1.0)
    wide = rng.uniform(0.12, 0.26) + 0.08 * childlike
    torso, leg = rng.uniform(0.3, 0.5), rng.uniform(0.15, 0.65) * (1.2 - 0.5 * childlike)
    thick = rng.uniform(0.045, 0.1) + 0.03 * childlike
    sits = rng.random() < 0.18
    hip = np.array([0.0, thick * 1.2 if sits else leg + thick, 0.0])
    chest = off(hip, 0, torso, rng.normal(0, 0.03))
    flat = rng.uniform(0.55, 1.0)
    trunk = melt(
        [
            limb(
                (0, *hip[1:], wide * rng.uniform(0.7, 1.1)),
                (0, *((hip + chest) / 2)[1:], wide * rng.uniform(0.7, 1.1)),
                (0, *chest[1:], wide),
            )
        ],
        0.03,
    ).scale((1, 1, flat))
    parts: list[Part] = [(trunk, 1)]
    for s in (-1, 1):
        start = off(hip, s * wide * 0.5, 0, 0)
        if sits:
            knee = off(start, s * rng.uniform(0, 0.12), rng.uniform(-0.02, 0.1), leg * 0.5)
            toe = np.array([knee[0], thick * 0.8, knee[2] + leg * rng.uniform(0.1, 0.5)])
        else:
            toe = np.array([start[0] * rng.uniform(0.8, 1.8), thick * 0.8, rng.uniform(-0.15, 0.15) * leg])
            knee = off((start + toe) / 2, 0, 0, rng.uniform(0, 0.1) * leg)
        parts.append((melt([limb((*start, thick * 1.2), (*knee, thick), (*toe, thick * 0.85))], 0.02, FEW), 2))
        foot = egg(thick * 2.2, thick * 1.6, thick * 3.6)
        parts.append((foot.translate(point(off(toe, 0, 0, thick * 0.8))), 3))
        parts += make_arm(
            rng, s, off(chest, s * wide * 0.95, wide * 0.3, 0), torso * rng.uniform(0.7, 1.1), thick * 0.85
        )
    middle = off(chest, 0, wide * 0.7 + head * 0.9, rng.uniform(0, 0.05))
    parts.append((bar(chest, middle, thick * 1.1), 0))
    parts.append(
        (
            egg(2 * head * rng.uniform(0.8, 1.1), 2 * head, 2 * head * rng.uniform(0.85, 1.05)).translate(
                point(middle)
            ),
            0,
        )
    )
    eye = ball(head * rng.uniform(0.08, 0.22), 16).translate(point(off(middle, head * 0.38, head * 0.1, head * 0.82)))
    parts.append((mirrored(eye), 4))
    if rng.random() < 0.6:
        parts.append(
            (
                egg(head * 0.4, head * 0.35, head * rng.uniform(0.3, 1.0)).translate(
                    point(off(middle, 0, -head * 0.2, head * 0.9))
                ),
                0,
            )
        )
    return [*parts, *dress(rng, hip, middle, head, wide)]


def make_arm(rng: np.random.Generator, side: int, shoulder: np.ndarray, length: float, thick: float) -> list[Part]:
    """An arm that hangs, reaches or waves, with its hand, which may hold something."""
    yaw, pitch = rng.uniform(-20, 100) * side, rng.choice([rng.uniform(-88, -50), rng.uniform(-60, 80)])
    turns = np.array([[yaw, pitch], [yaw * rng.uniform(0, 1), pitch + rng.uniform(-20, 70)]])
    arm = sprout(shoulder, turns, length / 2, thick * np.array([1.15, 1.0, 0.85]))
    hand = arm[-1, :3]
    parts: list[Part] = [(melt([arm], 0.02, FEW), 1), (ball(thick * 1.3, 20).translate(point(hand)), 0)]
    if rng.random() < 0.1:
        tilt = direction(rng.uniform(-40, 40), rng.uniform(20, 100)) * rng.uniform(0.2, 0.6)
        parts.append((bar(hand - tilt * 0.3, hand + tilt, 0.025), 4))
    return parts


def dress(rng: np.random.Generator, hip: np.ndarray, middle: np.ndarray, head: float, wide: float) -> list[Part]:
    """Hair or a hat, round ears, a skirt or cape, a rucksack."""
    parts: list[Part] = []
    chance = rng.random()
    if chance < 0.4:
        hair = egg(2.25 * head, 2.15 * head, 2.25 * head).translate((0, head * 0.15, -head * 0.15))
        hair -= egg(1.7 * head, 2 * head, 2 * head).translate((0, -head * 0.25, head * 0.7))
        parts.append((hair.translate(point(middle)), 3))
    elif chance < 0.65:
        brim, tall = head * rng.uniform(1.0, 1.7), head * rng.uniform(0.4, 1.3)
        hat = rod(head * 0.15, brim) + rod(tall, head * 0.95, head * rng.uniform(0.1, 1)).translate((0, tall / 2, 0))
        parts.append((hat.translate(point(off(middle, 0, head * 0.55, 0))), 3))
    if rng.random() < 0.3:
        ear = ball(head * rng.uniform(0.25, 0.5), 20).translate(
            point(off(middle, head * 0.8, head * rng.uniform(0.1, 0.9), 0))
        )
        parts.append((mirrored(ear), 0))
    if rng.random() < 0.2:
        tall = hip[1] * rng.uniform(0.4, 0.95) + 0.1
        skirt = lathe(
            np.linspace(wide * rng.uniform(1.2, 2.2), wide * 0.8, 6), np.linspace(hip[1] - tall, hip[1] + 0.12, 6)
        )
        parts.append((skirt.translate((0, 0, hip[2])), 1))
    if rng.random() < 0.15:
        load = (
            egg(wide * 1.5, 0.4, wide) if rng.random() < 0.5 else plate(np.zeros(3), (wide * 2.4, 0.9, 0.06), (8, 0, 0))
        )
        parts.append((load.translate(point((hip + middle) / 2 - (0, 0, wide * 1.0))), 2))
    return parts


CREATURES: dict[str, tuple[Callable[[np.random.Generator], list[Part]], float]] = {
    "beast": (make_beast, 4.0),
    "strider": (make_strider, 1.8),
    "swimmer": (make_swimmer, 0.6),
    "figure": (make_figure, 2.0),
}
