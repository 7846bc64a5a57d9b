"""The surface of a field: marching cubes where the surface is, at a level that is chosen and not guessed.

A coarse look at the whole cube finds the object and serves the choice of the level; the fine lattice is then evaluated
only in coarse cells that the surface passes, a slab at a time, and meshed block by block. Corners on block borders
have one number each, so that the blocks are welded exactly. What touches the cube's sides is closed there.
Values are squashed to d / (d + level) before meshing: the surface lies at 1/2 whatever the level, and between an empty
and a very dense place it lies half-way instead of hugging the empty one (no stairs).
Marching cubes: Lorensen and Cline, 1987 (PyMCubes; scikit-image where that is not installed).
Letters: P points, N coarse cells a side, R fine cells a side, V vertices, F triangles, L levels.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cameras import Viewpoint
from ..errors import DivergedError, NothingFoundError
from .shot import Shot, cast

Density = Callable[[np.ndarray], np.ndarray]  # float32 (P, 3) -> (P,), not negative, per unit of length

REACH = 0.6  # half the side of the cube that is searched, in sizes of the object
COARSE = 128  # cells a side of the first look
BLOCK = 16  # cells a side that are meshed together
BATCH = 1 << 17  # points of one call of the field
NUDGE = 1e-3  # by which squashed values stay off 1/2, so that no vertex falls on a lattice point
LEVELS = 32  # that are tried
LOOK_SIDE = 96  # px of the pictures in which levels are compared
PINHOLE = 1  # coarse cells to each side by which walls are thickened before they are tried for holes
FAINT = 1e-3  # share of a ray's picture that does not matter
ORBIT = tuple(Viewpoint(azimuth, elevation) for azimuth, elevation in ((45, 20), (135, -10), (225, 20), (315, 50)))
SPECK = 0.01  # share of the largest piece below which a piece is a speck
PHOTO, HELD = 4.0, 0.75  # how much more the photo, and how much less what is held, count than the field's own opacity
BLEMISH = 0.005  # what a further piece, handle or cavity costs, in agreement
MOST_BLEMISHES = 20  # that are counted
NEAR_BEST = 0.01  # levels that score this much less are as good


@dataclass(frozen=True)
class Volume:
    """The field as a first look sees it: densities at lattice points of the cube [-reach, reach]^3."""

    values: np.ndarray  # float32 (N + 1, N + 1, N + 1), index order x, y, z
    reach: float

    @property
    def cells(self) -> int:
        return len(self.values) - 1


@dataclass(frozen=True)
class Level:
    """The density at which the surface is taken, and how sure that is."""

    value: float
    margin: float  # by what factor it may be off, up or down, until the score falls by NEAR_BEST; at least 1
    agreement: float  # IoU of the surface's outline with the photo's mask; without a photo with the field's opacity
    opacity: float  # mean IoU of the outline with the field's own opacity from other sides
    pieces: int  # without specks, in the coarse volume
    blemishes: int  # specks, handles and cavities there


def look_over(density: Density, *, reach: float = REACH, cells: int = COARSE) -> Volume:
    """The first look at the whole cube."""
    values = np.empty((cells + 1,) * 3, np.float32)
    steps = np.arange(cells + 1)
    per_call = max(1, BATCH // (cells + 1) ** 2)
    for start in range(0, cells + 1, per_call):
        layers = steps[start : start + per_call]
        lattice = np.stack(np.meshgrid(layers, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        part = evaluate(density, place(lattice, cells, reach))
        values[start : start + len(layers)] = part.reshape(len(layers), cells + 1, cells + 1)
    return Volume(values, reach)


def place(lattice: np.ndarray, cells: int, reach: float) -> np.ndarray:
    """Lattice points in the world."""
    return (lattice * (2 * reach / cells) - reach).astype(np.float32)


def evaluate(density: Density, points: np.ndarray) -> np.ndarray:  # (P, 3) -> float32 (P,)
    """The field at these points, a batch at a time."""
    values = np.empty(len(points), np.float32)
    for start in range(0, len(points), BATCH):
        values[start : start + BATCH] = density(points[start : start + BATCH])
    if not np.isfinite(values).all():
        raise DivergedError("the field is not finite everywhere", remedy="try another --seed or fewer steps")
    return np.maximum(values, 0)


# The level ------------------------------------------------------------------------------------------------------------


def choose_level(volume: Volume, shots: Sequence[Shot] = ()) -> Level:
    """The level whose outline agrees best with the photos' masks and the field's opacity, with the fewest blemishes.

    A surface's outline at a level is where the largest density on a ray is above it: one march of the rays serves all
    levels. Outlines alone would let a high level hollow the object out, since a ray needs a single dense place to be
    covered; so it also counts how much of what the field shows the surface still holds.
    """
    from scipy.ndimage import zoom

    around = [Shot(np.zeros((1, 1, 4), np.uint8), viewpoint, half=0.5) for viewpoint in ORBIT]
    looks = [march(volume, shot) for shot in around]
    solid = [look.opacity > 0.5 for look in looks]
    tops = np.concatenate([look.top[mask] for look, mask in zip(looks, solid, strict=True)])
    if not len(tops):
        raise NothingFoundError(
            "the field is empty: no ray meets anything solid",
            remedy="check the cutout (`zero123 cutout`), try another --seed or more steps",
        )
    peak = float(np.quantile(tops, 0.95))
    levels = np.geomspace(peak / 300, peak * 0.95, LEVELS)
    opacity = np.array([np.mean([overlap(look.top > level, mask) for look, mask in zip(looks, solid, strict=True)])
                        for level in levels])  # fmt: skip
    held = np.mean([look.held(levels) for look in looks], 0)
    agreement = opacity
    if shots:
        tops_seen = [march(volume, shot).top for shot in shots]
        masks = [zoom(shot.rgba[..., 3] / 255, LOOK_SIDE / shot.side, order=1, grid_mode=True, mode="nearest") > 0.5
                 for shot in shots]  # fmt: skip
        agreement = np.array([np.mean([overlap(top > level, mask) for top, mask in zip(tops_seen, masks, strict=True)])
                              for level in levels])  # fmt: skip
    merit = (PHOTO * agreement + opacity + HELD * held) / (PHOTO + 1 + HELD)
    inside = crop(volume.values, levels[0])
    counts = [(0, MOST_BLEMISHES)] * LEVELS
    score = merit - BLEMISH * MOST_BLEMISHES
    for k in np.argsort(-merit, kind="stable"):  # none after the first that cannot come near the best
        if merit[k] < score.max() - NEAR_BEST:
            break
        counts[k] = count_blemishes(inside > levels[k])
        score[k] = merit[k] - BLEMISH * min(counts[k][1], MOST_BLEMISHES)
    best, low, high = find_plateau(levels, score)
    return Level(
        value=float(levels[best]),
        margin=float(min(levels[best] / low, high / levels[best])),
        agreement=float(agreement[best]),
        opacity=float(opacity[best]),
        pieces=counts[best][0],
        blemishes=counts[best][1],
    )


def find_plateau(levels: np.ndarray, score: np.ndarray) -> tuple[int, float, float]:
    """The middle of the levels around the best that are nearly as good, and the levels at which that ends."""
    least = score.max() - NEAR_BEST
    low = high = int(score.argmax())
    while low > 0 and score[low - 1] >= least:
        low -= 1
    while high + 1 < len(levels) and score[high + 1] >= least:
        high += 1
    ends = []
    for end, beyond in ((low, max(low - 1, 0)), (high, min(high + 1, len(levels) - 1))):
        fall = score[end] - score[beyond]
        share = (score[end] - least) / fall if fall > 0 else 0.0
        ends.append(float(levels[end] * (levels[beyond] / levels[end]) ** share))
    return (low + high) // 2, ends[0], ends[1]


def crop(values: np.ndarray, level: float) -> np.ndarray:
    """The box of what is above `level`."""
    low, high = box_of(values > level)
    return values[tuple(slice(first + 1, last) for first, last in zip(low, high, strict=True))]


def box_of(solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # bool (N, N, N) -> int (3,), int (3,)
    """The lattice points between which it lies, none of them in it; of nothing a box without an inside."""
    spans = [np.flatnonzero(solid.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low, high = np.array([[span[0] - 1, span[-1] + 1] if len(span) else [0, 0] for span in spans]).T
    return low, high


@dataclass(frozen=True)
class Look:
    """A volume from one side."""

    top: np.ndarray  # float (side, side): the largest density on each ray
    opacity: np.ndarray  # float (side, side): how much of what lies behind the field hides
    densities: np.ndarray  # float (P,), of the places that make up the picture
    weights: np.ndarray  # float (P,), their shares of it

    def held(self, levels: np.ndarray) -> np.ndarray:  # (L,), rising -> (L,)
        """The share of the picture that lies above each level."""
        shares = np.histogram(self.densities, [*levels, np.inf], weights=self.weights)[0]
        return np.cumsum(shares[::-1])[::-1] / max(float(self.weights.sum()), 1e-12)


def march(volume: Volume, shot: Shot, side: int = LOOK_SIDE) -> Look:
    top, clear = np.zeros((side, side), np.float32), np.ones((side, side), np.float32)
    densities, weights = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for _, lengths, values in slices(volume, shot, side):
        np.maximum(top, values, out=top)
        passed = (clear * np.exp(-values * lengths)).astype(np.float32)
        seen = clear - passed > FAINT
        densities.append(values[seen])
        weights.append((clear - passed)[seen])
        clear = passed
    return Look(top, 1 - clear, np.concatenate(densities), np.concatenate(weights))


def slices(volume: Volume, shot: Shot, side: int) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """What the rays of a picture meet, from the camera on: depths, the lengths of a step (S, S), densities (S, S)."""
    from scipy.ndimage import map_coordinates

    origin, ways = cast(shot, side)
    span = math.sqrt(3) * volume.reach
    step = 2 * volume.reach / volume.cells
    lengths = step * np.linalg.norm(ways, axis=-1)
    depths = shot.viewpoint.distance + np.arange(-span, span, step)
    # Most rays miss what there is for most of their way.
    low, high = (place(end, volume.cells, volume.reach) for end in box_of(volume.values > FAINT**2 / span))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort(np.stack([low - origin, high - origin])[:, None, None] / ways, 0)
    enters, leaves = ends[0].max(-1), ends[1].min(-1)
    for depth in depths[(depths > max(0, enters.min())) & (depths < leaves.max())]:
        met = (enters < depth) & (depth < leaves)
        lattice = (origin + ways[met] * depth + volume.reach) / step
        values = np.zeros((side, side), np.float32)
        values[met] = map_coordinates(volume.values, lattice.T, order=1, cval=0.0, prefilter=False)
        yield depth, lengths, values


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 0.0


def count_blemishes(solid: np.ndarray) -> tuple[int, int]:
    """The pieces of some size, and how many specks, handles and cavities there are besides."""
    from scipy.ndimage import generate_binary_structure, label

    pieces, count = label(solid)
    if not count:
        return 0, MOST_BLEMISHES
    sizes = np.bincount(pieces.ravel())[1:]
    large = int((sizes >= SPECK * sizes.max()).sum())
    outside = label(np.pad(~solid, 1, constant_values=True), generate_binary_structure(3, 3))[1]
    cavities = outside - 1
    handles = count + cavities - euler_number(solid)
    return large, (count - 1) + cavities + max(0, handles)


def euler_number(solid: np.ndarray) -> int:
    """Of cells that are joined by faces: corners - edges + faces - cells of the dual complex, alternating."""
    total = 0
    for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        both = solid
        for axis in axes:
            one = [slice(None)] * 3
            other = [slice(None)] * 3
            one[axis], other[axis] = slice(1, None), slice(None, -1)
            both = both[tuple(one)] & both[tuple(other)]
        total += (-1) ** len(axes) * int(np.count_nonzero(both))
    return total


# The inside ----------------------------------------------------------------------------------------------------------


def fill_inside(density: Density, volume: Volume, level: float) -> tuple[Density, Volume]:
    """What no way leads to from outside is solid, also where the wall around it has pinholes.

    Pictures say nothing of it, so that a field is there whatever it was in the beginning: the surface would be a sieve.
    """
    from scipy.ndimage import binary_dilation, label

    solid = volume.values > level
    walls = binary_dilation(solid, iterations=PINHOLE)
    rooms = label(np.pad(~walls, 1, constant_values=True))[0]
    outside = (rooms == rooms[0, 0, 0])[1:-1, 1:-1, 1:-1]
    outside = binary_dilation(outside, iterations=PINHOLE + 1, mask=~solid)
    inside = ~outside & ~solid
    full = np.float32(max(float(volume.values.max()), 2 * level))

    def filled(points: np.ndarray) -> np.ndarray:
        places = np.rint((points + volume.reach) * (volume.cells / (2 * volume.reach))).astype(np.int64)
        x, y, z = np.clip(places, 0, volume.cells).T
        return np.where(inside[x, y, z], full, density(points))

    return filled, Volume(np.where(inside, full, volume.values), volume.reach)


# The surface ----------------------------------------------------------------------------------------------------------


def extract(
    density: Density, volume: Volume, level: float, resolution: int
) -> tuple[np.ndarray, np.ndarray]:  # float64 (V, 3), int64 (F, 3)
    """The surface at `level`, seen from outside its triangles turn left; closed where it touches the cube's sides."""
    assert resolution % volume.cells == 0 and resolution % BLOCK == 0, (resolution, volume.cells)
    assert level > 0, level
    numbers, points, faces = [np.zeros(0, np.int64)], [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)]
    passed = 0
    for corner, values in walk_blocks(density, volume, level, resolution):
        vertices, triangles = march_cubes(values)
        key, exact = number_vertices(vertices + corner, resolution)
        numbers.append(key)
        points.append(exact)
        faces.append(triangles + passed)
        passed += len(vertices)
    _, first, which = np.unique(np.concatenate(numbers), return_index=True, return_inverse=True)
    if not len(first):
        raise NothingFoundError(
            f"the field is nowhere denser than {level:g}", remedy="give a lower --level, or none to have it chosen"
        )
    step = 2 * volume.reach / resolution
    return np.concatenate(points)[first] * step - volume.reach, which[np.concatenate(faces)]


def walk_blocks(
    density: Density, volume: Volume, level: float, resolution: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first corner of each block that the surface may pass, and its squashed values, a slab of blocks at a time."""
    stride, count = resolution // volume.cells, resolution // BLOCK
    coarse = close_sides(volume.values)
    cells = find_passed(coarse > level)
    for x in range(count):
        low, high = x * BLOCK, (x + 1) * BLOCK
        # One layer of cells more on both sides: a point is wanted by the cells around it, also in the next slab.
        layers = np.arange(low - 1, high + 1)
        inside = (layers >= 0) & (layers < resolution)
        rows = cells[np.clip(layers // stride, 0, volume.cells - 1)] & inside[:, None, None]
        wanted = around(rows.repeat(stride, 1).repeat(stride, 2))
        near = np.arange(resolution + 1) // stride
        values = coarse[near[low : high + 1]][:, near][:, :, near]
        if stride > 1:
            lattice = np.argwhere(wanted) + np.array([low, 0, 0])
            values[wanted] = evaluate(density, place(lattice, resolution, volume.reach))
        values = close_sides(values, first=x == 0, last=x == count - 1)
        squashed = values / (values + np.float32(level))
        close = np.abs(squashed - 0.5) < NUDGE
        squashed[close] = np.where(squashed[close] > 0.5, 0.5 + NUDGE, 0.5 - NUDGE)
        for y in range(count):
            for z in range(count):
                block = squashed[:, y * BLOCK : (y + 1) * BLOCK + 1, z * BLOCK : (z + 1) * BLOCK + 1]
                if block.min() < 0.5 < block.max():
                    yield np.array([x, y, z]) * BLOCK, np.ascontiguousarray(block)


def close_sides(values: np.ndarray, first: bool = True, last: bool = True) -> np.ndarray:
    """A copy that is empty on the cube's sides; along axis 0 only where the values reach them."""
    values = values.copy()
    values[:, [0, -1]] = 0
    values[:, :, [0, -1]] = 0
    values[[0] * first + [-1] * last] = 0
    return values


def find_passed(solid: np.ndarray) -> np.ndarray:  # bool (N + 1, ...) -> bool (N, N, N)
    """The cells with corners of both kinds, and their neighbours."""
    from scipy.ndimage import maximum_filter

    some, all_ = solid, solid
    for axis in range(3):
        low, high = (np.moveaxis(values, axis, 0) for values in (some, all_))
        some, all_ = np.moveaxis(low[1:] | low[:-1], 0, axis), np.moveaxis(high[1:] & high[:-1], 0, axis)
    passed: np.ndarray = maximum_filter(some & ~all_, 3, mode="constant")
    return passed


def around(cells: np.ndarray) -> np.ndarray:  # bool (b + 2, R, R) -> bool (b + 1, R + 1, R + 1)
    """The points with a marked cell beside them; along axis 0 the cells reach one further."""
    points = cells[1:] | cells[:-1]
    for axis in (1, 2):
        widths = [(0, 0)] * 3
        widths[axis] = (1, 1)
        padded = np.moveaxis(np.pad(points, widths), axis, 0)
        points = np.moveaxis(padded[1:] | padded[:-1], 0, axis)
    return points


def march_cubes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # float64 (V, 3), int64 (F, 3)
    """The surface at 1/2 inside a block, in cells, outwards."""
    return MARCHERS[pick_marcher()](values)


def pick_marcher() -> str:
    return "PyMCubes" if importlib.util.find_spec("mcubes") else "scikit-image"


def march_mcubes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = importlib.import_module("mcubes").marching_cubes(values, 0.5)
    return vertices, faces.astype(np.int64)


def march_skimage(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    measure: Any = importlib.import_module("skimage.measure")
    vertices, faces, _, _ = measure.marching_cubes(values, 0.5, gradient_direction="ascent")
    return vertices.astype(np.float64), faces.astype(np.int64)


def number_vertices(vertices: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """A number for the lattice edge that each vertex lies on, the same in all blocks, and its place made exact.

    The Lewiner variant of scikit-image also puts vertices inside cells, one in a cell at most.
    """
    whole = np.rint(vertices)
    off = np.abs(vertices - whole)
    axis = off.argmax(1)
    inner = np.sort(off, 1)[:, 1] > 1e-5
    on_edge = np.arange(3) == axis[:, None]
    exact = np.where(on_edge | inner[:, None], vertices, whole)
    corner = np.where(on_edge | inner[:, None], np.floor(vertices), whole).astype(np.int64)
    side = resolution + 1
    number = ((corner[:, 0] * side + corner[:, 1]) * side + corner[:, 2]) * 4 + np.where(inner, 3, axis)
    return number, exact


MARCHERS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "PyMCubes": march_mcubes,
    "scikit-image": march_skimage,
}
