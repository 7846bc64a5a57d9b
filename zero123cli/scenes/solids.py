"""An endless source of made-up objects: closed, coloured solids that look like furniture, vessels, vehicles, toys.

Each maker draws sizes and puts parts together; manifold3d unites them into one watertight surface and remembers which
part each triangle came from, so that every part keeps its paint. y is up.
Letters: P points, F triangles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from manifold3d import CrossSection, Manifold, OpType  # type: ignore[import-not-found, unused-ignore]

from .creatures import CREATURES
from .forms import (
    Part,
    around,
    ball,
    bar,
    bounds,
    box,
    bumpy,
    column,
    curve,
    egg,
    lathe,
    mirrored,
    outline,
    point,
    primitive,
    ring,
    rod,
    soft_box,
    wedge,
)
from .looks import draw_palette, fade, retexture
from .raycast import as_colour
from .surface import Material, Surface, normalise, to_linear
from .wares import WARES

FEWEST, MOST = 500, 20_000  # triangles
PAINTS = 5
SPLINTER = 0.04  # of the largest piece's volume: smaller ones that hang loose are dropped


def make_solid(rng: np.random.Generator, kind: str = "") -> Surface:
    """A new object, normalised; the same one from a generator in the same state."""
    names = list(MAKERS)
    name = kind or names[int(rng.choice(len(names), p=np.array([MAKERS[name][1] for name in names]) / TOTAL))]
    surface = join(pose(MAKERS[name][0](rng), rng), rng)
    chance = rng.random()
    if chance < 0.5:
        surface = retexture(surface, rng)
    elif chance < 0.65:
        surface = Surface(**{**vars(surface), "colours": fade(surface, rng, None)})
    return surface


def pose(parts: list[Part], rng: np.random.Generator) -> list[Part]:
    """Most stand upright and face a wall of the room; some are turned or lie about."""
    chance = rng.random()
    turn = rng.uniform(0, 360, 3) if chance < 0.12 else np.array([0.0, rng.uniform(0, 360) * (chance < 0.3), 0.0])
    return [(solid.rotate(point(turn)), paint) for solid, paint in parts]


def join(parts: Sequence[Part], rng: np.random.Generator) -> Surface:
    """One watertight surface of all parts, each with its paint."""
    originals = [(solid.as_original(), paint) for solid, paint in parts if not solid.is_empty()]
    pieces = Manifold.batch_boolean([solid for solid, _ in originals], OpType.Add).decompose()
    least = SPLINTER * max(piece.volume() for piece in pieces)
    whole = Manifold.compose([piece for piece in pieces if piece.volume() > least])
    while whole.num_tri() < FEWEST:
        whole = whole.refine(2)
    low, high = np.reshape(whole.bounding_box(), (2, 3))
    tolerance = float((high - low).max()) * 1e-4
    while whole.num_tri() > MOST:
        whole, tolerance = whole.simplify(tolerance), tolerance * 2
    mesh = whole.to_mesh()
    paints = {solid.original_id(): paint for solid, paint in originals}
    lengths = np.diff(mesh.run_index) // 3
    material = np.repeat([paints[number] for number in mesh.run_original_id], lengths).astype(np.int32)
    faces = np.asarray(mesh.tri_verts, np.int32)
    materials = tuple(
        Material(
            (*as_colour(to_linear(colour)), 1.0),
            roughness=float(rng.uniform(0.25, 1)),
            metallic=float(rng.random() < 0.08),
        )
        for colour in draw_palette(rng, PAINTS)
    )
    return normalise(Surface(np.asarray(mesh.vert_properties[:, :3], np.float32), faces, materials, material))


# Things ---------------------------------------------------------------------------------------------------------------


def make_seat(rng: np.random.Generator) -> list[Part]:
    """A chair, stool, table or bench."""
    width, depth, height = rng.uniform(0.4, 1.3), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.9)
    thick, leg = rng.uniform(0.03, 0.12), rng.uniform(0.02, 0.06)
    is_round = rng.random() < 0.3
    if is_round:
        depth = width
        top = rod(thick, width / 2, width / 2 * rng.uniform(0.9, 1.0), 48)
    else:
        top = soft_box(width, thick, depth, thick * rng.uniform(0.1, 0.49))
    parts = [(top.translate((0, height, 0)), 0)]
    reach = 0.33 if is_round else 0.5
    x, z = width * reach - leg, depth * reach - leg
    splay = rng.choice([0.0, rng.uniform(0, 0.12)])
    if rng.random() < 0.25:
        foot = rng.uniform(0.3, 0.45) * min(width, depth)
        parts += [(rod(height, leg * 1.3).translate((0, height / 2, 0)), 1)]
        parts += [(rod(0.05, foot, foot * rng.uniform(0.5, 1), 40).translate((0, 0.025, 0)), 1)]
    else:
        square = rng.random() < 0.5
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            if square and not splay:
                limb = box(2 * leg, height, 2 * leg).translate((sx * x, height / 2, sz * z))
            else:
                low, high = (sx * (x + splay), 0.0, sz * (z + splay)), (sx * x, height, sz * z)
                limb = bar(low, high, leg * rng.uniform(0.5, 1) if not square else leg, leg)
            parts.append((limb, 1))
        if rng.random() < 0.4:
            level = height * rng.uniform(0.15, 0.5)
            parts += [(mirrored(box(leg, leg, 2 * z).translate((x, level, 0))), 1)]
            parts += [(box(2 * x, leg, leg).translate((0, level, 0)), 1)]
    if rng.random() < 0.5:
        rise = rng.uniform(0.3, 0.7)
        if rng.random() < 0.5:
            back = soft_box(width * 0.95, rise, thick, thick * 0.3)
            parts.append((back.rotate((rng.uniform(-12, 0), 0, 0)).translate((0, height + rise / 2, -z)), 2))
        else:
            posts = max(2, int(rng.integers(2, 7)))
            for place in np.linspace(-x, x, posts):
                parts.append((bar((place, height, -z), (place, height + rise, -z - 0.05), leg * 0.7), 1))
            parts.append((soft_box(2 * x + 3 * leg, 0.12, 0.05, 0.02).translate((0, height + rise, -z - 0.05)), 2))
        if rng.random() < 0.4:
            arm = soft_box(2 * leg + 0.02, 0.04, 2 * z, 0.015).translate((x, height + 0.22, 0))
            post = box(leg, 0.22, leg).translate((x, height + 0.11, z * 0.8))
            parts.append((mirrored(arm + post + post.translate((0, 0, -1.6 * z))), 2))
    return parts


def make_cabinet(rng: np.random.Generator) -> list[Part]:
    """A cupboard, shelf, chest or appliance."""
    width, height, depth = rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.4), rng.uniform(0.3, 0.6)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    body = soft_box(width, height, depth, rng.uniform(0.005, 0.05))
    parts: list[Part] = []
    cell_w, cell_h, rim = width / columns, height / rows, rng.uniform(0.015, 0.04)
    for row in range(rows):
        for column_ in range(columns):
            x, y = (column_ + 0.5) * cell_w - width / 2, (row + 0.5) * cell_h - height / 2
            kind = rng.random()
            face = box(cell_w - 2 * rim, cell_h - 2 * rim, depth * 0.8)
            if kind < 0.3:
                body -= face.translate((x, y, depth * 0.3))
            elif kind < 0.9:
                parts.append((box(cell_w - 2 * rim, cell_h - 2 * rim, 0.04).translate((x, y, depth / 2)), 1))
                knob = ball(0.025, 20) if kind < 0.6 else soft_box(cell_w * 0.4, 0.025, 0.04, 0.01)
                parts.append((knob.translate((x, y + cell_h * 0.2, depth / 2 + 0.035)), 2))
    parts.insert(0, (body, 0))
    if rng.random() < 0.6:
        leg = rod(0.12, 0.02, 0.035, 16).translate((width / 2 - 0.06, -height / 2 - 0.05, depth / 2 - 0.06))
        parts.append((mirrored(leg + leg.translate((0, 0, 0.12 - depth))), 3))
    if rng.random() < 0.4:
        parts.append((box(width * 1.06, 0.04, depth * 1.06).translate((0, height / 2, 0)), 3))
    return parts


def make_vessel(rng: np.random.Generator) -> list[Part]:
    """A vase, bowl, cup, jug or pot."""
    count = 20
    t = np.linspace(0, 1, count)
    height, wide = rng.uniform(0.35, 1.3), rng.uniform(0.25, 0.5)
    if rng.random() < 0.3:
        height, wide = rng.uniform(0.15, 0.4), rng.uniform(0.4, 0.6)
        radii = wide * (0.35 + 0.65 * t ** rng.uniform(0.3, 0.8))
    else:
        radii = wide * curve(rng, count, rng.choice([0.03, 0.3])) * (1 + rng.uniform(-0.3, 0.3) * (t - 0.5))
    wall = rng.uniform(0.02, 0.05)
    heights = t * height
    parts = [(lathe(radii, heights, wall), 0)]
    solid = lathe(radii - wall / 2, heights)
    if rng.random() < 0.5:
        size = height * rng.uniform(0.2, 0.33)
        level = height * rng.uniform(0.5, 0.65)
        there = float(np.interp(level, heights, radii))
        handle = ring(size, rng.uniform(0.025, 0.05)).rotate((90, 0, 0)).scale((rng.uniform(0.6, 1), 1, 1))
        handle = handle.translate((there, level, 0)) - solid
        parts.append((mirrored(handle) if rng.random() < 0.3 else handle, 1))
        if rng.random() < 0.4:
            low = (-float(np.interp(height * 0.45, heights, radii)) * 0.9, height * 0.45, 0.0)
            parts.append((bar(low, (low[0] - 0.3, height * 0.95, 0.0), 0.07, 0.035) - solid, 0))
    if rng.random() < 0.35:
        mouth, rise = float(radii[-1]), rng.uniform(0.1, 0.5) * float(radii[-1])
        lid = egg(2 * mouth, 2 * rise, 2 * mouth) + rod(wall, mouth * 1.03, sides=48)
        parts.append((lid.translate((0, height, 0)), 2))
        parts.append((ball(0.05).translate((0, height + rise + 0.03, 0)), 1))
    for _ in range(int(rng.integers(0, 3))):
        level = height * rng.uniform(0.1, 0.9)
        parts.append((ring(float(np.interp(level, heights, radii)), wall * 0.7).translate((0, level, 0)) - solid, 3))
    return parts


def make_turned(rng: np.random.Generator) -> list[Part]:
    """A bottle, lamp, chess piece, spindle or trophy: turned pieces on top of each other."""
    parts: list[Part] = []
    level, wide = 0.0, rng.uniform(0.2, 0.5)
    for number in range(int(rng.integers(2, 6))):
        tall = rng.uniform(0.06, 0.7)
        radii = wide * curve(rng, 14, rng.uniform(0.05, 0.35))
        flutes = rng.random() < 0.15
        sides = int(rng.choice([6, 8, 12])) if flutes else 48
        parts.append((lathe(radii, level + np.linspace(-0.01, 1, 14) * tall, sides=sides), number % PAINTS))
        level += tall * 0.98
        wide = float(radii[-1]) * rng.choice([1.0, rng.uniform(0.4, 1.4)])
    if rng.random() < 0.3:
        shade = lathe(np.linspace(0.45, rng.uniform(0.15, 0.45), 8), level + np.linspace(0, 0.45, 8), 0.02)
        parts.append((rod(0.3, 0.04).translate((0, level + 0.1, 0)), 0))
        parts.append((shade, 4))
    elif rng.random() < 0.4:
        parts.append((ball(wide * 0.8).translate((0, level + wide * 0.3, 0)), 4))
    return parts


def make_tool(rng: np.random.Generator) -> list[Part]:
    """A hammer, brush, spoon, screwdriver, fork, pan or racket: a handle with a head."""
    long_, grip = rng.uniform(0.6, 1.2), rng.uniform(0.03, 0.07)
    radii = grip * curve(rng, 16, 0.12)
    handle = lathe(radii, np.linspace(-long_, 0, 16), sides=24).scale((1, 1, rng.uniform(0.6, 1)))
    parts = [(handle, 0)]
    if rng.random() < 0.6:
        parts.append((rod(0.06, grip * 1.25).translate((0, -0.02, 0)), 1))
    kind = rng.integers(7)
    if kind == 0:
        head = rod(rng.uniform(0.3, 0.5), rng.uniform(0.07, 0.13)).rotate((0, 0, 90))
        claw = wedge(0.12, 0.3, 0.12).rotate((0, 0, 90)).translate((-0.25, 0, 0))
        parts.append(((head + claw).translate((0, 0.05, 0)), 1))
    elif kind == 1:
        parts.append((soft_box(rng.uniform(0.12, 0.5), rng.uniform(0.1, 0.3), 0.15, 0.03).translate((0, 0.1, 0)), 1))
        hairs = box(rng.uniform(0.1, 0.45), 0.3, 0.12)
        parts.append((hairs.translate((0, 0.3, 0)), 2))
    elif kind == 2:
        bowl = egg(0.36, 0.5, 0.2) - egg(0.32, 0.46, 0.2).translate((0, 0, 0.05))
        parts.append((bowl.translate((0, 0.22, 0.02)), 0))
    elif kind == 3:
        parts.append((rod(0.6, grip * 0.4).translate((0, 0.3, 0)), 1))
        parts.append((box(grip * 1.4, 0.1, grip * 0.3).translate((0, 0.62, 0)), 1))
    elif kind == 4:
        parts.append((box(0.3, 0.06, 0.05).translate((0, 0.03, 0)), 1))
        for place in np.linspace(-0.125, 0.125, int(rng.integers(2, 6))):
            parts.append((bar((place, 0, 0), (place, rng.uniform(0.35, 0.36), 0.03), 0.022, 0.012), 1))
    elif kind == 5:
        pan = lathe(np.array([0.3, 0.32, 0.36]), np.array([0, 0.03, 0.13]), 0.02).rotate((90, 0, 0))
        parts.append((pan.translate((0, 0.33, -0.05)), 1))
    else:
        frame = ring(0.27, 0.035).rotate((90, 0, 0)).scale((1, rng.uniform(1, 1.4), 1)).translate((0, 0.3, 0))
        parts += [(frame, 1), (egg(0.54, 0.62, 0.03).translate((0, 0.3, 0)), 2)]
    return parts


def make_car(rng: np.random.Generator) -> list[Part]:
    """A car, van, lorry, tractor or engine; it drives along x."""
    long_, wide, tall = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.35)
    radius = rng.uniform(0.09, 0.2)
    soft = rng.uniform(0.01, tall * 0.45)
    body = soft_box(long_, tall, wide, soft).translate((0, radius + tall / 2, 0))
    top = radius + tall
    parts: list[Part] = []
    start, end = sorted(rng.uniform(-0.48, 0.48, 2) * long_)
    if end - start < 0.3 * long_:
        start, end = -0.25 * long_, 0.25 * long_
    rise, lean = rng.uniform(0.15, 0.4), rng.uniform(0.0, 0.15)
    shape = CrossSection([[(start, 0), (end, 0), (end - lean, rise), (start + lean * rng.uniform(0, 1), rise)]])
    cabin = Manifold.extrude(shape, wide * 0.9).translate((0, top - 0.01, -wide * 0.45))
    inset = Manifold.extrude(shape.scale((0.85, 0.75)).translate(((start + end) * 0.075, rise * 0.12)), wide * 0.94)
    parts += [(cabin, int(rng.choice([0, 1]))), (inset.translate((0, top, -wide * 0.47)), 2)]
    if rng.random() < 0.3:
        bed = box(long_ * 0.4, rise * 0.9, wide * 0.95).translate((-long_ * 0.28, top + rise * 0.45, 0))
        if rng.random() < 0.5:
            bed -= box(long_ * 0.36, rise, wide * 0.86).translate((-long_ * 0.28, top + rise * 0.6, 0))
        parts.append((bed, 3))
    if rng.random() < 0.2:
        parts.append((rod(0.3, 0.05, 0.07).translate((long_ * 0.35, top + 0.14, 0)), 3))
    wheel = rod(rng.uniform(0.07, 0.14), radius, sides=40).rotate((90, 0, 0))
    hub = rod(0.17, radius * rng.uniform(0.3, 0.6), sides=20).rotate((90, 0, 0))
    axles = np.linspace(-0.34, 0.34, int(rng.choice([2, 2, 2, 3]))) * long_
    for x in axles:
        for z in (-wide / 2, wide / 2):
            arch = rod(0.2, radius * 1.15, sides=32).rotate((90, 0, 0)).translate((x, radius, z))
            body -= arch
            parts += [(wheel.translate((x, radius, z * 0.93)), 4), (hub.translate((x, radius, z * 0.93)), 3)]
        parts.append((bar((x, radius, -wide / 2), (x, radius, wide / 2), radius * 0.3), 4))
    for z in (-wide * 0.32, wide * 0.32):
        parts.append((ball(0.04, 20).translate((long_ / 2 - 0.01, radius + tall * 0.6, z)), 2))
    return [(body, 0), *parts]


def make_craft(rng: np.random.Generator) -> list[Part]:
    """A plane, rocket, boat or submarine along x."""
    thick = rng.uniform(0.08, 0.2)
    t = np.linspace(0, 1, 24)
    radii = thick * np.minimum(1, 4 * t) ** rng.uniform(0.3, 0.8) * np.minimum(1, 3 * (1 - t) + rng.uniform(0.02, 0.5))
    hull_ = lathe(radii, t * 1.3 - 0.65, sides=36).rotate((0, 0, 90))
    kind = rng.integers(3)
    if kind == 0:
        span, chord = rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.35)
        sweep = rng.uniform(0, 0.35)
        plan = CrossSection([[(0, 0), (chord, 0), (chord * 0.5 + sweep, span), (sweep, span)]])
        wing = Manifold.extrude(plan, 0.035).rotate((90, 0, 0)).translate((-0.15, rng.uniform(-0.05, 0.05), 0))
        wings = wing + wing.mirror((0, 0, 1))
        tail = wings.scale((0.5, 1, 0.4)).translate((0.5, 0.02, 0))
        fin = wing.rotate((90, 0, 0)).scale((0.5, 0.35, 1)).translate((0.5, 0, 0.017))
        parts = [(hull_, 0), (wings, 1), (tail, 1), (fin if fin.bounding_box()[4] > 0.1 else fin.mirror((0, 1, 0)), 2)]
        parts.append((egg(0.3, 0.16, 0.14).translate((-0.3, thick * 0.8, 0)), 3))
        for z in (-span * 0.45, span * 0.45):
            parts.append((rod(0.22, 0.05, 0.04).rotate((0, 0, 90)).translate((-0.02, -0.05, z)), 3))
        return parts
    if kind == 1:
        fin_plan = CrossSection([[(0, 0), (0.3, -0.1), (0.3, 0.15), (0, 0.35)]])
        fin = Manifold.extrude(fin_plan, 0.03).translate((thick * 0.6, -0.65, -0.015))
        rocket = hull_.rotate((0, 0, -90)).mirror((0, 1, 0))
        window = ball(0.06, 24).translate((0, 0.25, thick * 0.9))
        nozzle = rod(0.12, thick * 0.7, thick * 0.4).translate((0, -0.68, 0))
        return [(rocket, 0), (around(fin, int(rng.integers(3, 6))), 1), (window, 2), (nozzle, 3)]
    wide = rng.uniform(1.2, 2.2)
    boat = hull_.scale((1, 1.2, wide)).trim_by_plane((0, -1, 0), -0.02)
    hollow = hull_.scale((0.88, 0.9, wide * 0.85)).translate((0, 0.04, 0))
    parts = [(boat - hollow if rng.random() < 0.6 else boat, 0)]
    parts.append((soft_box(0.35, 0.2, thick * wide, 0.02).translate((rng.uniform(0, 0.2), 0.08, 0)), 1))
    if rng.random() < 0.6:
        height = rng.uniform(0.4, 0.9)
        parts.append((rod(height, 0.02).translate((-0.15, height / 2 - 0.1, 0)), 2))
        sail = Manifold.extrude(CrossSection([[(0, 0), (rng.uniform(0.25, 0.45), 0), (0, height * 0.75)]]), 0.02)
        parts.append((sail.translate((-0.14, 0.12, -0.01)), 3))
    else:
        parts.append((rod(0.25, 0.07).translate((0.15, 0.25, 0)), 3))
    return parts


def make_house(rng: np.random.Generator) -> list[Part]:
    """A house, tower, shed or castle."""
    width, height, depth = rng.uniform(0.5, 1.1), rng.uniform(0.35, 1.2), rng.uniform(0.4, 0.8)
    if rng.random() < 0.3:
        radius = width / 2
        body, sides = rod(height, radius, radius * rng.uniform(0.8, 1), 40), int(rng.choice([6, 40]))
        roof = rod(rng.uniform(0.2, 0.7), radius * 1.15, 0.0, sides)
        low, high = roof.bounding_box()[1], roof.bounding_box()[4]
        parts = [(roof.translate((0, height / 2 + (high - low) / 2, 0)), 1)]
        depth = width
    else:
        body = box(width, height, depth)
        tall = rng.uniform(0.15, 0.5)
        kind = rng.integers(3)
        if kind == 0:
            roof = wedge(width * 1.1, tall, depth * 1.15)
        elif kind == 1:
            roof = rod(tall, 0.75, rng.uniform(0, 0.3), 4).rotate((0, 45, 0)).scale((width, 1, depth))
        else:
            merlon = box(width * 0.12, tall * 0.5, depth * 1.04)
            roof = box(width * 1.04, tall * 0.5, depth * 1.04).translate((0, -tall * 0.25, 0))
            for x in np.linspace(-0.46, 0.46, 5):
                roof += merlon.translate((x * width, 0.0, 0))
        parts = [(roof.translate((0, height / 2 + tall / 2 - 0.001, 0)), 1)]
        if rng.random() < 0.5:
            chimney = box(0.09, 0.35, 0.09).translate((width * 0.25, height / 2 + tall * 0.7, depth * 0.12))
            parts.append((chimney, 3))
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    for row in range(rows):
        for column_ in range(columns):
            x = (column_ + 0.5) / columns * width * 0.8 - width * 0.4
            y = (row + 0.5) / rows * height * 0.8 - height * 0.35
            pane = box(width * 0.4 / columns, height * 0.4 / rows, depth * 1.03).translate((x, y, 0))
            body -= pane
            parts.append((box(width * 0.4 / columns, height * 0.4 / rows, depth * 0.92).translate((x, y, 0)), 2))
    parts.append((box(width * 0.2, height * 0.35, depth * 1.06).translate((width * 0.1, -height * 0.325, 0)), 4))
    return [(body, 0), *parts]


def make_plant(rng: np.random.Generator) -> list[Part]:
    """A tree, mushroom, cactus or potted plant."""
    height, trunk = rng.uniform(0.3, 0.9), rng.uniform(0.03, 0.1)
    parts = [(rod(height, trunk, trunk * rng.uniform(0.5, 1), 20).translate((0, height / 2, 0)), 0)]
    kind = rng.integers(4)
    if kind == 0:
        for number in range(int(rng.integers(2, 5))):
            radius = rng.uniform(0.25, 0.45) * (1 - 0.18 * number)
            cone = rod(rng.uniform(0.3, 0.5), radius, 0.0, int(rng.choice([7, 32])))
            parts.append((cone.translate((0, height + 0.22 * number, 0)), 1))
    elif kind == 1:
        for _ in range(int(rng.integers(1, 6))):
            crown = bumpy(rng, 40).scale(point(rng.uniform(0.4, 0.7, 3)))
            parts.append((crown.translate(point(rng.normal(0, 0.15, 3))).translate((0, height + 0.1, 0)), 1))
    elif kind == 2:
        rise = rng.uniform(0.4, 0.9)
        cap = egg(0.8, rise, 0.8).trim_by_plane((0, 1, 0), 0.0).translate((0, height, 0))
        spots = [ball(rng.uniform(0.03, 0.07), 16) for _ in range(6)]
        ways = rng.normal(size=(6, 3)) * (1, 0.5, 1) + (0, 0.8, 0)
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        parts += [(cap, 1)]
        parts += [
            (spot.translate(point(way * (0.4, rise / 2, 0.4) + (0, height, 0))), 2)
            for spot, way in zip(spots, ways, strict=True)
            if way[1] > 0.2
        ]
    else:
        for angle in rng.uniform(0, 360, int(rng.integers(3, 9))):
            leaf = egg(0.14, rng.uniform(0.4, 0.9), 0.03).translate((0, 0.25, 0)).rotate((rng.uniform(15, 75), 0, 0))
            parts.append((leaf.rotate((0, angle, 0)).translate((0, height * rng.uniform(0.7, 1), 0)), 1))
    if rng.random() < 0.5:
        radii = np.linspace(0.16, rng.uniform(0.2, 0.3), 6)
        parts.append((lathe(radii, np.linspace(-0.12, 0.22, 6)), 3))
    return parts


def make_lump(rng: np.random.Generator) -> list[Part]:
    """A stone, fruit, loaf, cushion or shell."""
    scale = rng.uniform(0.4, 1.0, 3)
    parts = [(bumpy(rng, 112).scale(point(scale)), 0)]
    if rng.random() < 0.35:
        parts.append((bar((0, scale[1] * 0.4, 0), (0.06, scale[1] * 0.5 + 0.15, 0), 0.03), 1))
        if rng.random() < 0.5:
            parts.append((egg(0.3, 0.03, 0.14).rotate((0, 0, 20)).translate((0.18, scale[1] * 0.5 + 0.1, 0)), 2))
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        other = bumpy(rng, 64).scale(point(rng.uniform(0.2, 0.6, 3)))
        parts.append((other.translate(point(rng.normal(0, 0.3, 3) * scale)), 3))
    return parts


def make_column(rng: np.random.Generator) -> list[Part]:
    """An extruded outline: sculpture, gear, box, letter-like sign; perhaps with a hole or a plinth."""
    shape = outline(rng)
    height = rng.uniform(0.1, 1.4)
    if rng.random() < 0.3:
        hole = rng.uniform(0.08, 0.2)
        shape = shape - CrossSection.circle(hole, 32)
    solid = column(rng, shape, height)
    parts = [(solid, 0)]
    if rng.random() < 0.3:
        tall = rng.uniform(0.05, 0.25)
        parts.append((column(rng, outline(rng).scale((1.2, 1.2)), tall, plain=True).translate((0, -height / 2, 0)), 1))
    if rng.random() < 0.3:
        parts.append((ball(rng.uniform(0.15, 0.35)).translate((0, height / 2, 0)), 2))
    if rng.random() < 0.25:
        parts = [(part.rotate((90, 0, 0)), paint) for part, paint in parts]
    return parts


def make_stack(rng: np.random.Generator) -> list[Part]:
    """A tower of toy blocks, rings and balls."""
    parts: list[Part] = []
    level, size = 0.0, rng.uniform(0.4, 0.7)
    for number in range(int(rng.integers(3, 8))):
        solid = primitive(rng).scale(point(size * rng.uniform(0.6, 1.1, 3)))
        low, high = solid.bounding_box()[1], solid.bounding_box()[4]
        drift = rng.normal(0, 0.04, 2)
        parts.append((solid.translate((drift[0], level - low, drift[1])), number % PAINTS))
        level += (high - low) * 0.96
        size *= rng.uniform(0.7, 1.05)
    return parts


def make_abstract(rng: np.random.Generator) -> list[Part]:
    """Two to six simple bodies united and cut, often symmetric, like a machine part or a gadget."""
    whole: list[Part] = []
    for number in range(int(rng.integers(2, 7))):
        solid = primitive(rng).scale(point(rng.uniform(0.25, 0.9, 3)))
        if rng.random() < 0.3:
            solid = solid.rotate(point(rng.choice([0, 45, 90], 3)))
        solid = solid.translate(point(rng.normal(0, 0.22, 3)))
        chance = rng.random()
        if chance < 0.4:
            solid = mirrored(solid)
        elif chance < 0.55:
            solid = around(solid.translate((0.3, 0, 0)), int(rng.integers(3, 7)))
        if number and rng.random() < 0.35:
            cut = [(part - solid, paint) for part, paint in whole]
            if sum(part.volume() for part, _ in cut) > 0.4 * sum(part.volume() for part, _ in whole):
                whole = cut
                continue
        whole.append((solid, number % PAINTS))
    return whole


def make_pair(rng: np.random.Generator) -> list[Part]:
    """Something on top of something else."""
    makers = [make_cabinet, make_vessel, make_turned, make_lump, make_column, make_stack, make_abstract]
    below, above = (makers[int(number)](rng) for number in rng.integers(0, len(makers), 2))
    low, high = bounds(below), bounds(above)
    factor = rng.uniform(0.4, 0.9) * float((low[1] - low[0])[[0, 2]].max() / (high[1] - high[0])[[0, 2]].max())
    shift = (low[0] + low[1]) / 2 - factor * (high[0] + high[1]) / 2
    shift[1] = low[1, 1] - factor * high[0, 1] - 0.01
    lifted = [(solid.scale((factor,) * 3).translate(point(shift)), (paint + 2) % PAINTS) for solid, paint in above]
    return [*below, *lifted]


MAKERS: dict[str, tuple[Callable[[np.random.Generator], list[Part]], float]] = {
    "seat": (make_seat, 1.2),
    "cabinet": (make_cabinet, 0.8),
    "vessel": (make_vessel, 1.2),
    "turned": (make_turned, 1.0),
    "tool": (make_tool, 1.0),
    "car": (make_car, 1.0),
    "craft": (make_craft, 1.0),
    "house": (make_house, 0.7),
    "plant": (make_plant, 0.8),
    "lump": (make_lump, 1.2),
    "column": (make_column, 1.0),
    "stack": (make_stack, 0.7),
    "abstract": (make_abstract, 1.2),
    "pair": (make_pair, 0.6),
    **CREATURES,
    **WARES,
}
TOTAL = sum(weight for _, weight in MAKERS.values())
