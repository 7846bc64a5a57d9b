"""What a surface looks like: unwrapped, and each texel coloured by the field or, where it sees it, by the photo.

Unwrapping is xatlas's. What a photo shows is taken from the photo at its full resolution, up to its outline; what it
shows at a grazing angle fades. Beyond, the nearest colours go on for a while: those of what it shows plainly for long,
those that it shows at an outline only for a little, since they may be a shadow or a seam. The field has the rest.
Letters: P points, V vertices, F triangles, T side of the texture, S side of a photo.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .cleanup import Solid, measure_areas
from .mesh import NO_COLOURS, NO_TEXTURE, NO_UV, Mesh, unit, vertex_normals
from .shot import Shot, look_at, project, rasterise

Colour = Callable[[np.ndarray], np.ndarray]  # float32 (P, 3) -> (P, 3), sRGB in [0, 1]

BATCH = 1 << 17  # points of one call of the field
PART = 2500  # faces that are unwrapped together: xatlas takes more than twice the time for twice the faces
PADDING = 256  # sides of the texture over the texels between charts
STEEP, PLAIN = 0.02, 0.2  # cosines of the view angle at which a photo counts not at all and fully
RATHER = 4  # power of the cosine by which one photo is preferred to another
MIXED, PURE = 1.5, 4  # px around from which a pixel that is not opaque has its colour, by that power of their alpha
SURE = 0.9  # weight from which a colour is a photo's
FRONT, FIRM = 0.4, 0.008  # cosine from which, and share of its side from outlines at which, a photo shows plainly
SPREAD = 0.25, 0.04  # sizes of the object over which its colours fade into the field's: those shown plainly, and all
NEIGHBOURS, MOST = 6, 20_000  # places from which a colour goes on, of so many in all
ROUGHLY = 0.3  # by which share others may be nearer
CELL = 1 / 160  # sizes of the object, within which it is the same
OPAQUE = 250  # alpha from which a pixel is the object's alone
BEYOND = 2  # px beyond its mask to which a photo is trusted
CLIFF = 16.0  # pixel widths by which neighbouring depths differ at an inner outline
VEIL = 1  # px beside a nearer part over which its colours may have run into those of what is behind
BEHIND = 0.02  # how far behind what the photo sees a point may lie and still be it


@dataclass(frozen=True)
class Chart:
    """A surface cut open and laid flat."""

    source: np.ndarray  # int64 (V,), the surface's vertex that each comes from
    faces: np.ndarray  # int64 (F, 3)
    uv: np.ndarray  # float32 (V, 2), v up


def paint(
    solid: Solid,
    colour: Colour,
    shots: Sequence[Shot] = (),
    *,
    mode: str = "uv",
    size: int = 1024,  # T
    known: np.ndarray | None = None,  # (V, 3): where the field has the vertices, if they have been moved since
) -> Mesh:
    """The surface in colour, by one of MODES."""
    return MODES[mode](solid, colour, shots, size, solid.vertices if known is None else known)


def paint_nothing(solid: Solid, colour: Colour, shots: Sequence[Shot], size: int, known: np.ndarray) -> Mesh:
    normals = vertex_normals(solid.vertices, solid.faces)
    return assemble(solid, normals, np.arange(len(normals)), solid.faces)


def paint_vertices(solid: Solid, colour: Colour, shots: Sequence[Shot], size: int, known: np.ndarray) -> Mesh:
    """A colour for each vertex, from photos averaged over what lies between vertices."""
    normals = vertex_normals(solid.vertices, solid.faces)
    areas = measure_areas(solid.vertices, solid.faces)
    eyes = [open_eye(shot, solid, float(np.sqrt(2 * areas.mean()))) for shot in shots]
    values = see(solid.vertices, normals, ask(colour, known), eyes)
    return assemble(solid, normals, np.arange(len(normals)), solid.faces, colours=to_bytes(values))


def paint_texture(solid: Solid, colour: Colour, shots: Sequence[Shot], size: int, known: np.ndarray) -> Mesh:
    """A texture of `size` px a side; what lies between charts is filled with the nearest colour."""
    from scipy.ndimage import distance_transform_edt

    normals = vertex_normals(solid.vertices, solid.faces)
    chart = unwrap(solid, size)
    flat = np.stack([chart.uv[:, 0], 1 - chart.uv[:, 1]], -1).astype(np.float64) * size
    raster = rasterise(flat[chart.faces], size, size)
    covered = raster.face >= 0
    corners = chart.source[chart.faces[raster.face[covered]]]
    weights = raster.weights[covered]
    texel = np.sqrt(measure_areas(solid.vertices, solid.faces).sum() / max(1, np.count_nonzero(covered)))
    eyes = [open_eye(shot, solid, float(texel)) for shot in shots]
    texture = np.full((size, size, 3), 128, np.uint8)
    own = ask(colour, mix(weights, known[corners]))
    texture[covered] = to_bytes(see(mix(weights, solid.vertices[corners]), mix(weights, normals[corners]), own, eyes))
    if covered.any():
        rows, columns = distance_transform_edt(~covered, return_distances=False, return_indices=True)
        texture = texture[rows, columns]
    return assemble(solid, normals, chart.source, chart.faces, uv=chart.uv, texture=texture)


def assemble(
    solid: Solid,
    normals: np.ndarray,
    source: np.ndarray,
    faces: np.ndarray,
    *,
    uv: np.ndarray = NO_UV,
    texture: np.ndarray = NO_TEXTURE,
    colours: np.ndarray = NO_COLOURS,
) -> Mesh:
    vertices = solid.vertices[source].astype(np.float32)
    return Mesh(vertices, normals[source].astype(np.float32), faces.astype(np.int32), uv, texture, colours)


def mix(weights: np.ndarray, values: np.ndarray) -> np.ndarray:  # (P, 3), (P, 3, c) -> (P, c)
    return np.einsum("pk,pkc->pc", weights, values)


def to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


# Unwrapping -----------------------------------------------------------------------------------------------------------


def unwrap(solid: Solid, size: int) -> Chart:
    """Charts packed into a square, with a few texels between them at `size` px a side."""
    library = importlib.import_module("xatlas")
    vertices = np.ascontiguousarray(solid.vertices, np.float32)
    atlas = library.Atlas()
    parts = split(vertices[solid.faces].mean(1), np.arange(len(solid.faces)))
    used = []
    for part in parts:
        own, corners = np.unique(solid.faces[part], return_inverse=True)
        used.append(own)
        atlas.add_mesh(vertices[own], corners.reshape(-1, 3).astype(np.uint32))
    packing = library.PackOptions()
    packing.resolution = size
    packing.padding = max(2, size // PADDING)
    atlas.generate(library.ChartOptions(), packing)
    faces = np.empty_like(solid.faces)
    source, uv, passed = [], [], 0
    for number, part in enumerate(parts):
        which, corners, flat = atlas.get_mesh(number)
        faces[part] = corners.astype(np.int64) + passed
        source.append(used[number][which])
        uv.append(flat)
        passed += len(which)
    return Chart(np.concatenate(source), faces, np.concatenate(uv).astype(np.float32))


def split(middles: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:  # (F, 3), int
    """The faces in parts of PART at most, halved along the longest side."""
    if len(faces) <= PART:
        return [faces]
    own = middles[faces]
    order = faces[np.argsort(own[:, np.ptp(own, axis=0).argmax()], kind="stable")]
    half = len(order) // 2
    return [*split(middles, np.sort(order[:half])), *split(middles, np.sort(order[half:]))]


# Colours --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eye:
    """A photo, and where it may be trusted."""

    shot: Shot
    colours: np.ndarray  # float32 (s, s, 3) in [0, 1]
    factor: int  # pixels a side of the photo that are one of `colours`, where it is finer than needed
    shows: np.ndarray  # bool (S, S): the object, or next to it
    away: np.ndarray  # float32 (S, S), from outlines, in shares of the side
    depth: np.ndarray  # float32 (S, S) to which it sees the surface, and not what lies just beside a nearer part


def open_eye(shot: Shot, solid: Solid, footprint: float) -> Eye:
    """The photo made ready for samples that each stand for `footprint` of the surface."""
    from scipy.ndimage import distance_transform_edt, minimum_filter

    raster = look_at(shot, solid.vertices, solid.faces, shot.side)
    pixel = shot.pixel * shot.viewpoint.distance
    colours, known = unmix(shot.rgba)
    factor = max(1, min(round(footprint / pixel), shot.side))
    with np.errstate(invalid="ignore"):
        averaged = average(colours * known, factor) / average(known, factor)
    blank = ~np.isfinite(averaged[..., 0])
    if not blank.all():  # tiles without the object have the nearest one's colour
        averaged = averaged[tuple(distance_transform_edt(blank, return_distances=False, return_indices=True))]
    depth = 1 / np.maximum(raster.nearness, 1e-6)
    reach = VEIL + factor // 2
    veil = minimum_filter(depth, 2 * reach + 1) + CLIFF * reach * pixel
    shows = distance_transform_edt(shot.rgba[..., 3] < 128) <= BEYOND
    away = find_outlines(shot, depth, raster.face >= 0, pixel)
    return Eye(shot, np.nan_to_num(averaged), factor, shows, away, np.minimum(depth + BEHIND, veil))


def unmix(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # uint8 (S, S, 4) -> float32 (S, S, 3), (S, S, 1)
    """The object's own colours, a little beyond its outline too, and where they are known."""
    from scipy.ndimage import gaussian_filter

    colours = rgba[..., :3].astype(np.float32) / 255
    weights = (rgba[..., 3:].astype(np.float32) / 255) ** PURE
    blur = (MIXED, MIXED, 0)
    total = gaussian_filter(weights, blur)
    around = gaussian_filter(colours * weights, blur) / np.maximum(total, 1e-9)
    share = smoothstep((rgba[..., 3:] - np.float32(128)) / (OPAQUE - 128))
    return share * colours + (1 - share) * around, (total > 1e-6).astype(np.float32)


def average(values: np.ndarray, factor: int) -> np.ndarray:  # (S, S, c) -> (s, s, c)
    """The mean of `factor` x `factor` pixels each; the last ones may be of fewer."""
    if factor == 1:
        return values
    starts = np.arange(0, len(values), factor)
    counts = np.diff(np.r_[starts, len(values)]).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(values, starts, 0), starts, 1)
    return sums / counts[:, None, None] / counts[None, :, None]


def find_outlines(shot: Shot, depth: np.ndarray, hit: np.ndarray, pixel: float) -> np.ndarray:  # float32 (S, S)
    """How far each pixel is from outlines, in shares of the side: the mask's, the surface's, and where depth leaps."""
    from scipy.ndimage import distance_transform_edt

    whole = (shot.rgba[..., 3] >= 128) & hit
    for axis in (0, 1):
        leap = np.abs(np.diff(depth, axis=axis)) > CLIFF * pixel
        before, after = ((0, 1), (0, 0)), ((1, 0), (0, 0))
        for side in (before, after):
            whole &= ~np.pad(leap, side if axis == 0 else side[::-1])
    away = distance_transform_edt(np.pad(whole, 1))[1:-1, 1:-1] - 1
    return (away / shot.side).astype(np.float32)


def smoothstep(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def ask(colour: Colour, points: np.ndarray) -> np.ndarray:  # (P, 3) -> float32 (P, 3)
    """The field's colours, a batch at a time."""
    own = np.empty((len(points), 3), np.float32)
    for start in range(0, len(points), BATCH):
        own[start : start + BATCH] = colour(points[start : start + BATCH].astype(np.float32))
    return own


def see(
    points: np.ndarray, normals: np.ndarray, own: np.ndarray, eyes: Sequence[Eye]
) -> np.ndarray:  # (P, 3), all -> float32 (P, 3)
    """The colours at points of the surface, the field's own given."""
    shown = np.zeros((len(points), 3), np.float32)
    most, firm = np.zeros((len(points), 1), np.float32), np.zeros(len(points), bool)
    for start in range(0, len(points), BATCH):
        part = slice(start, start + BATCH)
        total, blend = np.zeros((len(own[part]), 1)), np.zeros((len(own[part]), 3))
        for eye in eyes:
            seen = glance(eye, points[part], normals[part])
            total += seen.liking
            blend += seen.liking * seen.colours
            most[part] = np.maximum(most[part], seen.weight)
            firm[part] |= seen.plain
        shown[part] = blend / np.maximum(total, 1e-30)
    beyond = go_on(points, own, shown, (firm, most[:, 0] >= SURE), np.flatnonzero(most < 1))
    return (beyond * (1 - most) + most * shown).astype(np.float32)


def go_on(
    points: np.ndarray, own: np.ndarray, shown: np.ndarray, kinds: Sequence[np.ndarray], rest: np.ndarray
) -> np.ndarray:
    """The rest's own colours, with those that photos show of some points continued, of each kind as far as SPREAD says.

    A place takes its cell's colour, which is that of the nearest points of a kind.
    """
    from scipy.spatial import cKDTree

    if not len(rest):
        return own
    corner = points.min(0)
    places = np.floor((points[rest] - corner) / CELL).astype(np.int64)
    _, first, which = np.unique(places @ (1 << 40, 1 << 20, 1), return_index=True, return_inverse=True)
    middles = (places[first] + 0.5) * CELL + corner
    values = own.copy()
    for kind, spread in zip(kinds, SPREAD, strict=True):
        sources = np.flatnonzero(kind)
        if not len(sources):
            continue
        sources = sources[:: -(-len(sources) // MOST)]
        few = range(1, 1 + min(NEIGHBOURS, len(sources)))
        away, found = cKDTree(points[sources]).query(middles, few, eps=ROUGHLY, distance_upper_bound=3 * spread)
        weights = 1 / (away**2 + CELL**2)  # 0 for what is farther
        colours = shown[sources[np.minimum(found, len(sources) - 1)]]
        near = (weights[..., None] * colours).sum(1) / np.maximum(weights.sum(1)[:, None], 1e-12)
        share = np.exp(-((away.min(1) / spread) ** 2))[:, None]
        values[rest] += (share[which] * (near[which] - values[rest])).astype(np.float32)
    return values


@dataclass(frozen=True)
class Glance:
    """What a photo says of points of the surface."""

    weight: np.ndarray  # float64 (P, 1): how much it is to be believed, in [0, 1]
    liking: np.ndarray  # float64 (P, 1): how much rather than another photo
    colours: np.ndarray  # float64 (P, 3)
    plain: np.ndarray  # bool (P,): from the front, and away from outlines


def glance(eye: Eye, points: np.ndarray, normals: np.ndarray) -> Glance:
    from scipy.ndimage import map_coordinates

    side = eye.shot.side
    seen = project(eye.shot, points)
    place = seen[:, 1::-1].T  # row, column
    pixel = tuple(np.clip(np.floor(place).astype(np.int64), 0, side - 1))
    visible = ((place >= 0) & (place < side)).all(0) & (seen[:, 2] <= eye.depth[pixel])
    towards = unit(np.array(eye.shot.viewpoint.position()) - points)
    cosine = (towards * unit(normals)).sum(1)
    weight = eye.shows[pixel] * visible * smoothstep((cosine - STEEP) / (PLAIN - STEEP))
    own = place / eye.factor - 0.5
    colours = [map_coordinates(eye.colours[..., k], own, order=1, mode="nearest") for k in range(3)]
    plain = (weight >= SURE) & (cosine >= FRONT) & (eye.away[pixel] >= FIRM)
    liking = weight * np.maximum(cosine, 0) ** RATHER * (1e-3 + smoothstep(eye.away[pixel] / FIRM))
    return Glance(weight[:, None], liking[:, None], np.stack(colours, -1).astype(np.float64), plain)


MODES: dict[str, Callable[[Solid, Colour, Sequence[Shot], int, np.ndarray], Mesh]] = {
    "none": paint_nothing,
    "vertex": paint_vertices,
    "uv": paint_texture,
}
