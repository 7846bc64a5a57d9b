"""Pictures of a surface by casting rays on a CPU.

Embree finds what a ray hits (`embreex`); shading, textures and the rest are plain numpy on the hit samples of many
views at once. Shading happens in linear light; pictures are sRGB with straight alpha. Row 0 is at the top.
Letters: N views, S pixels of a side, R rays, H hits, F triangles, T texels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cameras import TRAINING_FOV_DEG, Viewpoint
from ..errors import UnavailableError
from .surface import Material, Surface, to_linear, to_srgb

Colour = tuple[float, float, float]  # linear light
Point = tuple[float, float, float]

CREASE_DEG = 40.0  # faces that meet at a smaller angle are shaded as one smooth surface
OPAQUE = 0.5  # alpha below which a ray goes on
PASSES = 4  # how many cut-out layers a ray goes through at most
LIFT = 1e-4  # by which a ray starts off the surface that it leaves
BATCH = 1 << 20  # rays of one embree call, which bounds the memory


@dataclass(frozen=True)
class Lamp:
    """A distant light."""

    direction: Point  # towards it, of length 1
    colour: Colour  # what a white surface facing it sends back
    shadow: bool = False


@dataclass(frozen=True)
class Lighting:
    above: Colour  # ambient light on a surface that faces up
    below: Colour  # and on one that faces down
    lamps: tuple[Lamp, ...] = ()


@dataclass(frozen=True)
class Picture:
    rgba: np.ndarray  # uint8 (S, S, 4), sRGB, straight alpha
    depth: np.ndarray  # float32 (S, S), along the view axis to the nearest sample; inf where nothing is
    normal: np.ndarray  # float32 (S, S, 3), of that sample, towards the camera, world axes; 0 where nothing is


@dataclass(frozen=True)
class Texels:
    """All textures and their smaller versions in one row, linear, colours multiplied by alpha."""

    values: np.ndarray  # float32 (T, 4)
    start: np.ndarray  # int64 (materials, levels): where each begins
    size: np.ndarray  # int64 (materials, levels, 2): its height and width
    top: np.ndarray  # int64 (materials,): the smallest level


@dataclass(frozen=True)
class Prepared:
    """A surface ready to be rendered."""

    scene: Any  # embreex's, committed
    corners: np.ndarray  # float32 (F, 3, 3): place of each corner
    normals: np.ndarray  # float32 (F, 3, 3): smoothed up to creases
    material: np.ndarray  # int32 (F,)
    uv: np.ndarray  # float32 (F, 3, 2)
    colours: np.ndarray | None  # float32 (F, 3, 4)
    density: np.ndarray  # float32 (F,): texels in a unit of length
    texels: Texels
    factor: np.ndarray  # float32 (materials, 4)
    roughness: np.ndarray  # float32 (materials,)
    metallic: np.ndarray  # float32 (materials,)
    has_holes: bool  # whether some of it may be see-through


@dataclass(frozen=True)
class Hits:
    """What rays met, one row for each ray that met something."""

    ray: np.ndarray  # int64 (H,)
    face: np.ndarray  # int32 (H,)
    weights: np.ndarray  # float32 (H, 3) of the face's corners
    distance: np.ndarray  # float32 (H,) in lengths of the ray's direction


# Preparation ----------------------------------------------------------------------------------------------------------


def prepare(surface: Surface) -> Prepared:
    """Everything that is computed once for an object."""
    corners = np.ascontiguousarray(surface.vertices[surface.faces], np.float32)
    uv = surface.uv if surface.uv is not None else np.zeros((len(corners), 3, 2), np.float32)
    texels = pack_textures(surface.materials)
    factor = np.array([material.colour for material in surface.materials], np.float32)
    area = length(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    flat = uv[:, 1:] - uv[:, :1]
    spread = np.abs(flat[:, 0, 0] * flat[:, 1, 1] - flat[:, 0, 1] * flat[:, 1, 0])
    counts = texels.size[:, 0].prod(-1)[surface.material]
    see_through = [
        material.colour[3] < OPAQUE or (material.texture is not None and bool((material.texture[..., 3] < 255).any()))
        for material in surface.materials
    ]
    return Prepared(
        scene=build_scene(surface),
        corners=corners,
        normals=corner_normals(corners),
        material=surface.material.astype(np.int32),
        uv=uv.astype(np.float32),
        colours=None if surface.colours is None else surface.colours.astype(np.float32),
        density=np.sqrt(counts * spread / np.maximum(area, 1e-12)).astype(np.float32),
        texels=texels,
        factor=factor,
        roughness=np.array([material.roughness for material in surface.materials], np.float32),
        metallic=np.array([material.metallic for material in surface.materials], np.float32),
        has_holes=any(see_through) or (surface.colours is not None and bool((surface.colours[..., 3] < 1).any())),
    )


def build_scene(surface: Surface) -> Any:
    """Embree's search tree."""
    try:
        scene = importlib.import_module("embreex.rtcore_scene").EmbreeScene(robust=True)
        mesh = importlib.import_module("embreex.mesh_construction").TriangleMesh
    except ImportError as error:
        raise UnavailableError(f"embreex does not load ({error})", remedy="run: pip install embreex") from error
    mesh(scene, surface.vertices.astype(np.float32), surface.faces.astype(np.int32))
    return scene


def weld(points: np.ndarray) -> np.ndarray:  # float (P, 3) -> int64 (P,)
    """A number for each place: what lies within a millionth of the size has the same."""
    low = points.min(0).astype(np.float64)
    step = max(float((points.max(0) - low).max()), 1e-30) / (1 << 20)
    cell = np.round((points - low) / step).astype(np.int64)
    return np.unique((cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2], return_inverse=True)[1]


def corner_normals(corners: np.ndarray) -> np.ndarray:  # (F, 3, 3) -> float32 (F, 3, 3)
    """The normal at each corner: faces count together where a walk around it meets no crease."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(corners)
    ids = weld(corners.reshape(-1, 3)).reshape(count, 3)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float64)
    flat = unit(cross)
    begin, end = ids.T.ravel(), np.roll(ids, -1, 1).T.ravel()  # of the edges: all first ones, all second ones, ...
    face, side = np.tile(np.arange(count), 3), np.repeat(np.arange(3), count)
    first, second = face * 3 + side, face * 3 + (side + 1) % 3  # the corners at their ends
    low = np.where(begin < end, first, second)
    high = np.where(begin < end, second, first)
    key = np.minimum(begin, end) * (ids.max() + 1) + np.maximum(begin, end)
    order = np.argsort(key, kind="stable")
    one, other = order[:-1], order[1:]
    meet = key[one] == key[other]
    smooth = meet & ((flat[face[one]] * flat[face[other]]).sum(-1) > math.cos(math.radians(CREASE_DEG)))
    one, other = one[smooth], other[smooth]
    rows, columns = np.concatenate([low[one], high[one]]), np.concatenate([low[other], high[other]])
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(3 * count, 3 * count))
    groups, group = connected_components(graph, directed=False)
    weighted = np.repeat(cross, 3, 0)  # by area
    total = np.stack([np.bincount(group, weighted[:, axis], groups) for axis in range(3)], -1)
    return unit(total[group].reshape(count, 3, 3)).astype(np.float32)


def pack_textures(materials: Sequence[Material]) -> Texels:
    """Linear copies of all textures, each halved until it is one texel high or wide."""
    curve = to_linear(np.arange(256) / 255).astype(np.float32)
    parts: list[np.ndarray] = []
    sizes: list[list[tuple[int, int]]] = []
    known: dict[int, int] = {}
    which = []
    for material in materials:
        texture = material.texture
        if id(texture) not in known:
            known[id(texture)] = len(sizes)
            level: np.ndarray = np.ones((1, 1, 4), np.float32)
            if texture is not None:
                level = np.empty(texture.shape, np.float32)
                level[..., 3] = texture[..., 3] / np.float32(255)
                level[..., :3] = curve[texture[..., :3]] * level[..., 3:]
            sizes.append([])
            while True:
                parts.append(level.reshape(-1, 4))
                sizes[-1].append(level.shape[:2])
                if min(level.shape[:2]) < 2:
                    break
                even = level[: level.shape[0] // 2 * 2, : level.shape[1] // 2 * 2]
                level = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
        which.append(known[id(texture)])
    ends = np.cumsum([0] + [len(part) for part in parts])
    depth = max(len(levels) for levels in sizes)
    start, size = np.zeros((len(sizes), depth), np.int64), np.ones((len(sizes), depth, 2), np.int64)
    passed = 0
    for row, levels in enumerate(sizes):
        start[row, : len(levels)] = ends[passed : passed + len(levels)]
        size[row, : len(levels)] = levels
        passed += len(levels)
    top = np.array([len(levels) - 1 for levels in sizes])
    return Texels(np.concatenate(parts), start[which], size[which], top[which])


def length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors * vectors).sum(-1))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(length(vectors), 1e-20)[..., None]


# Light ----------------------------------------------------------------------------------------------------------------

SOFT = Lighting(
    above=(0.6, 0.6, 0.6), below=(0.4, 0.4, 0.4), lamps=(Lamp((0.35921, 0.71842, 0.59569), (0.45, 0.45, 0.45)),)
)
"""Of the evaluation's input rig: soft ambient light and one lamp over the photo's camera's right shoulder."""


def draw_lighting(rng: np.random.Generator) -> Lighting:
    """A room or a sky: ambient light, a key light mostly from above and up to three weaker ones, warm and cool."""
    above = rng.uniform(0.4, 0.9) * tint(rng)
    below = above * rng.uniform(0.35, 0.95) * tint(rng)
    lamps = []
    for number in range(int(rng.integers(1, 5))):
        direction = unit(rng.normal(size=3))
        if number == 0:
            direction = unit(np.array([direction[0], abs(direction[1]) + 0.15, direction[2]]))
        power = rng.uniform(0.4, 0.9) if number == 0 else rng.uniform(0.05, 0.35)
        lamps.append((direction, power * tint(rng), bool(number == 0 and rng.random() < 0.5)))
    # The exposure: a white ball is bright, but not burnt out where it is brightest.
    ball = unit(rng.normal(size=(256, 3)))
    bright = below + (above - below) * (ball[:, 1:2] / 2 + 0.5)
    for direction, colour, _ in lamps:
        bright = bright + np.maximum(ball @ direction, 0)[:, None] * colour
    peak = float(np.quantile(bright.max(-1), 0.97))
    exposure = min(rng.uniform(0.45, 0.75) / float(bright.mean()), 1.03 / peak)
    return Lighting(
        as_colour(above * exposure),
        as_colour(below * exposure),
        tuple(Lamp(as_colour(way), as_colour(colour * exposure), shadow) for way, colour, shadow in lamps),
    )


def tint(rng: np.random.Generator) -> np.ndarray:
    """A light's colour between warm and cool."""
    warm = float(np.clip(rng.normal(0, 0.5), -1, 1))
    return np.array([1 + 0.12 * warm, 1.0, 1 - 0.2 * warm])


def as_colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# Rendering ------------------------------------------------------------------------------------------------------------


def render(
    prepared: Prepared,
    viewpoint: Viewpoint,
    *,
    size: int,
    fov_deg: float = TRAINING_FOV_DEG,
    light: Lighting = SOFT,
    samples: int = 2,
) -> Picture:
    """One view."""
    return render_views(prepared, [viewpoint], size=size, fov_deg=fov_deg, light=light, samples=samples)[0]


def render_views(
    prepared: Prepared,
    viewpoints: Sequence[Viewpoint],
    *,
    size: int,
    fov_deg: float = TRAINING_FOV_DEG,
    light: Lighting = SOFT,
    samples: int = 2,
) -> list[Picture]:
    """Views of `size` pixels a side, each the mean of `samples` x `samples` rays."""
    side = size * samples
    share = max(1, BATCH // side**2)
    pictures: list[Picture] = []
    for begin in range(0, len(viewpoints), share):
        part = viewpoints[begin : begin + share]
        origins, ways = cast_from(part, side, fov_deg)
        hits = trace(prepared, origins, ways)
        colour, normal = shade(prepared, origins, ways, hits, light, pixel_width(side, fov_deg))
        pictures += develop(hits, colour, normal, len(part), size, samples)
    return pictures


def silhouette(
    prepared: Prepared, viewpoints: Sequence[Viewpoint], size: int, fov_deg: float = TRAINING_FOV_DEG
) -> np.ndarray:  # bool (N, S, S)
    """Which pixels' centres are covered."""
    origins, ways = cast_from(viewpoints, size, fov_deg)
    covered = np.zeros(len(ways), bool)
    if prepared.has_holes:
        covered[trace(prepared, origins, ways).ray] = True
    else:
        covered = prepared.scene.run(origins, ways, query="OCCLUDED") >= 0
    return covered.reshape(len(viewpoints), size, size)


def pixel_width(side: int, fov_deg: float) -> float:
    """Of one ray's share of the picture, at a distance of 1."""
    return 2 * math.tan(math.radians(fov_deg) / 2) / side


def camera_axes(viewpoint: Viewpoint) -> np.ndarray:  # float64 (3, 3)
    """Rows: the picture's right, its up, and forward."""
    forward = unit(-np.array(viewpoint.position()))
    right = np.cross(forward, (0.0, 1.0, 0.0))
    if length(right) < 1e-9:  # straight up or down: the limit of what the azimuth's other elevations have
        azimuth = math.radians(viewpoint.azimuth_deg)
        right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
    right = unit(right)
    return np.stack([right, np.cross(right, forward), forward])


def cast_from(
    viewpoints: Sequence[Viewpoint], side: int, fov_deg: float
) -> tuple[np.ndarray, np.ndarray]:  # float32 (R, 3), both
    """A ray through the middle of each of `side` x `side` squares; lengths are 1 along the view axis."""
    axes = np.stack([camera_axes(viewpoint) for viewpoint in viewpoints])
    offset = (np.arange(side) + 0.5 - side / 2) * pixel_width(side, fov_deg)
    plane = np.stack([*np.meshgrid(offset, -offset), np.ones((side, side))], -1).reshape(-1, 3)
    ways = (plane @ axes).astype(np.float32).reshape(-1, 3)
    origins = np.array([viewpoint.position() for viewpoint in viewpoints], np.float32)
    return np.repeat(origins, side * side, 0), ways


def trace(prepared: Prepared, origins: np.ndarray, ways: np.ndarray) -> Hits:
    """The first opaque thing on each ray."""
    found: list[Hits] = []
    rays, passed = np.arange(len(ways)), np.zeros(len(ways), np.float32)
    for _ in range(PASSES + 1):
        answer = prepared.scene.run(origins, ways, output=True)
        met = np.flatnonzero(answer["primID"] >= 0)
        second, third = answer["u"][met], answer["v"][met]
        hits = Hits(
            ray=rays[met],
            face=answer["primID"][met],
            weights=np.stack([1 - second - third, second, third], -1),
            distance=answer["tfar"][met] + passed[met],
        )
        if not prepared.has_holes:
            return hits
        solid = sample_colour(prepared, hits.face, hits.weights, None)[:, 3] >= OPAQUE
        found.append(Hits(hits.ray[solid], hits.face[solid], hits.weights[solid], hits.distance[solid]))
        going = met[~solid]
        if not len(going):
            break
        step = answer["tfar"][going] + np.float32(LIFT)
        rays, ways, passed = rays[going], ways[going], passed[going] + step
        origins = origins[going] + ways * step[:, None]
    return Hits(*(np.concatenate([getattr(hits, name) for hits in found]) for name in Hits.__dataclass_fields__))


def sample_colour(
    prepared: Prepared, face: np.ndarray, weights: np.ndarray, footprint: np.ndarray | None
) -> np.ndarray:  # int (H,), (H, 3), (H,) -> float32 (H, 4)
    """Linear colour and alpha; `footprint` is what a sample covers of the surface, so that textures don't flicker."""
    texels, material = prepared.texels, prepared.material[face]
    colour = prepared.factor[material]
    if len(texels.values) > 1:
        level = np.zeros(len(face), np.int64)
        if footprint is not None:
            fine = np.fmin(
                np.log2(np.maximum(prepared.density[face] * footprint, 1.0)), 64
            )  # also where it is no number
            level = np.minimum(np.rint(fine).astype(np.int64), texels.top[material])
        uv = np.einsum("hc,hcd->hd", weights, prepared.uv[face])
        colour = colour * read_texture(texels, material, level, uv)
    if prepared.colours is not None:
        colour = colour * np.einsum("hc,hcd->hd", weights, prepared.colours[face])
    return colour


def read_texture(
    texels: Texels, material: np.ndarray, level: np.ndarray, uv: np.ndarray
) -> np.ndarray:  # (H,), (H,), (H, 2) -> float32 (H, 4)
    """Bilinear, repeated without end; v = 1 is the top of row 0."""
    start = texels.start[material, level]
    height, width = texels.size[material, level].T
    x = (uv[:, 0] - np.floor(uv[:, 0])) * width - 0.5
    y = (np.ceil(uv[:, 1]) - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
    columns = (left % width, (left + 1) % width)
    rows = (start + top % height * width, start + (top + 1) % height * width)
    upper = texels.values[rows[0] + columns[0]] * (1 - right) + texels.values[rows[0] + columns[1]] * right
    lower = texels.values[rows[1] + columns[0]] * (1 - right) + texels.values[rows[1] + columns[1]] * right
    value = upper * (1 - down) + lower * down
    value[:, :3] /= np.maximum(value[:, 3:], 1e-6)
    return value


def shade(
    prepared: Prepared,
    origins: np.ndarray,
    ways: np.ndarray,
    hits: Hits,
    light: Lighting,
    width: float,
) -> tuple[np.ndarray, np.ndarray]:  # float32 (H, 3), both
    """The light that each hit sends to the camera, and its normal: Lambert on both sides, and Blinn-Phong."""
    way = unit(ways[hits.ray])
    corners = prepared.corners[hits.face]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = np.where((flat * way).sum(-1, keepdims=True) > 0, np.float32(-1), np.float32(1))
    normal = unit(np.einsum("hc,hcd->hd", hits.weights, prepared.normals[hits.face])) * facing
    albedo = sample_colour(prepared, hits.face, hits.weights, hits.distance * np.float32(width))[:, :3]
    material = prepared.material[hits.face]
    metal = prepared.metallic[material][:, None]
    gloss = (1 - prepared.roughness[material]) ** 2
    mirror = 0.04 * (1 - metal) + albedo * metal
    matte = albedo * (1 - metal)
    place = origins[hits.ray] + ways[hits.ray] * hits.distance[:, None] + flat * (facing * LIFT / length(flat)[:, None])

    def ambient(up: np.ndarray) -> np.ndarray:  # the direction's y
        below, above = np.array(light.below, np.float32), np.array(light.above, np.float32)
        return below + (above - below) * (up[:, None] / 2 + np.float32(0.5))

    colour = matte * ambient(normal[:, 1])
    if prepared.metallic.any():
        back = way - 2 * (way * normal).sum(-1, keepdims=True) * normal
        colour = colour + albedo * metal * ambient(back[:, 1])
    for lamp in light.lamps:
        towards = np.array(lamp.direction, np.float32)
        lambert = np.maximum(normal @ towards, 0)
        if lamp.shadow:
            lit = np.flatnonzero(lambert > 0)
            dark = prepared.scene.run(place[lit], np.broadcast_to(towards, (len(lit), 3)).copy(), query="OCCLUDED") >= 0
            lambert[lit[dark]] = 0
        power = np.clip(2 / np.maximum(prepared.roughness[material], 0.1) ** 4 - 2, 1, 300)
        half = np.maximum((normal * unit(towards - way)).sum(-1), 0)
        shine = (gloss * (power + 8) / 8 * half**power)[:, None] * mirror
        colour = colour + (matte + shine) * lambert[:, None] * np.array(lamp.colour, np.float32)
    return colour.astype(np.float32), normal


def develop(
    hits: Hits, colour: np.ndarray, normal: np.ndarray, count: int, size: int, samples: int
) -> list[Picture]:  # (H, 3), (H, 3)
    """Samples to pixels: the mean of the light where something is, its share as alpha."""
    side = size * samples
    view, row, column = hits.ray // side**2, hits.ray // side % side // samples, hits.ray % side // samples
    pixel = (view * size + row) * size + column
    cells = count * size * size
    covered = np.bincount(pixel, minlength=cells)
    light = np.stack([np.bincount(pixel, colour[:, channel], cells) for channel in range(3)], -1)
    rgba = np.zeros((cells, 4), np.uint8)
    some = covered > 0
    rgba[some, :3] = np.rint(to_srgb(light[some] / covered[some, None]) * 255)
    rgba[:, 3] = np.rint(covered * (255 / samples**2))
    far_first = np.argsort(-hits.distance, kind="stable")  # of several writes to a place the last one stays
    depth, normals = np.full(cells, np.inf, np.float32), np.zeros((cells, 3), np.float32)
    depth[pixel[far_first]] = hits.distance[far_first]
    normals[pixel[far_first]] = normal[far_first]
    shape = (count, size, size)
    return [
        Picture(*each)
        for each in zip(
            rgba.reshape(*shape, 4),
            depth.reshape(shape),
            normals.reshape(*shape, 3),
            strict=True,
        )
    ]
