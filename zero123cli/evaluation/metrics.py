"""How near an answer is to the truth: solids, surfaces and pictures, and how sure a mean is.

Solids and surfaces as in the appendix of Zero-1-to-3 (Liu et al., 2023), F-scores after a search for scale and ICP as
in One-2-3-45++ (Liu et al., 2023), SSIM by Wang et al. (2004), LPIPS v0.1 by Zhang et al. (2018).
Letters: F triangles, P points, G cells of a side, S pixels of a side, C channels, h and w of features, N objects.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingInputError, WeightsError
from ..scenes.filling import one_sided, winding

CELLS = 64  # of a side of the grid that solids are compared on
POINTS = 2000  # on each surface
NOISE = 1 / 12 / 255**2  # mean square of what rounding to 8 bits changes: PSNR says no more than its 58.9 dB
DRAWS = 10_000  # of the bootstrap

# Solids and surfaces --------------------------------------------------------------------------------------------------


def fill(corners: np.ndarray, cells: int = CELLS) -> np.ndarray:  # (F, 3, 3) -> bool (G, G, G)
    """The cells of [-0.5, 0.5]^3 whose centre the surface winds around, be it open or several that overlap."""
    return np.abs(winding(one_sided(corners.astype(np.float32)), cells)) >= 0.5


@dataclass(frozen=True)
class Solid:
    """A surface as it is measured: in the unit cube, its cells and points taken once."""

    corners: np.ndarray  # (F, 3, 3)
    seed: tuple[int, ...]

    @functools.cached_property
    def cells(self) -> np.ndarray:
        return fill(self.corners)

    @functools.cached_property
    def points(self) -> np.ndarray:
        return scatter(self.corners, POINTS, np.random.default_rng(self.seed))


def overlap(a: np.ndarray, b: np.ndarray) -> float:  # bool, both of one shape
    """Intersection over union; two that are empty agree."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def scatter(corners: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:  # (F, 3, 3) -> (P, 3)
    """Points on the surface, uniform by area."""
    first = corners[:, 0].astype(np.float64)
    sides = corners[:, 1:].astype(np.float64) - first[:, None]
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    face = chance.choice(len(corners), count, p=areas / areas.sum())
    share = chance.random((count, 2))
    share = np.where(share.sum(1, keepdims=True) > 1, 1 - share, share)  # the far half of the parallelogram, folded in
    points: np.ndarray = first[face] + (sides[face] * share[..., None]).sum(1)
    return points


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (P, 3), (P', 3) -> (P,)
    """From each point of `a` to the nearest of `b`."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(b).query(a)[0])


def chamfer(a: np.ndarray, b: np.ndarray) -> float:  # (P, 3), (P', 3)
    """The mean distance there plus the mean distance back, not squared."""
    return float(distances(a, b).mean() + distances(b, a).mean())


def fscore(a: np.ndarray, b: np.ndarray, limit: float) -> float:  # (P, 3), (P', 3)
    """The harmonic mean of the shares of points, either way, that have the other surface within `limit`."""
    precise, complete = float((distances(a, b) < limit).mean()), float((distances(b, a) < limit).mean())
    return 2 * precise * complete / (precise + complete) if precise + complete else 0.0


SCALES = np.linspace(0.7, 1.3, 13)
TURNS = 20  # of ICP


def align(points: np.ndarray, truth: np.ndarray) -> np.ndarray:  # (P, 3), (P', 3) -> (P, 3)
    """`points` scaled, turned and moved onto `truth`: ICP from each of several scales, the nearest result."""
    from scipy.spatial import cKDTree

    tree, middle = cKDTree(truth), points.mean(0)
    best, least = points, np.inf
    for scale in SCALES:
        moved = (points - middle) * scale + truth.mean(0)
        for _ in range(TURNS):
            moved = fit(moved, truth[tree.query(moved)[1]])
        found = chamfer(moved, truth)
        if found < least:
            best, least = moved, found
    return best


def fit(points: np.ndarray, goals: np.ndarray) -> np.ndarray:  # (P, 3), both
    """The points turned and moved so that they are nearest to their goals (Kabsch, 1976)."""
    middle, goal = points.mean(0), goals.mean(0)
    left, _, right = np.linalg.svd((points - middle).T @ (goals - goal))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    moved: np.ndarray = (points - middle) @ (left @ flip @ right) + goal
    return moved


# Pictures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A picture as it is measured."""

    rgb: np.ndarray  # float32 (S, S, 3) in [0, 1], on white
    mask: np.ndarray  # bool (S, S)


def psnr(a: Shot, b: Shot) -> float:
    return decibels((a.rgb - b.rgb).reshape(-1, 3))


def psnr_object(a: Shot, b: Shot) -> float:
    """Over the pixels that belong to the object in either picture; the white around it is easily right."""
    both = a.mask | b.mask
    return decibels((a.rgb - b.rgb)[both if both.any() else ~both])


def decibels(error: np.ndarray) -> float:
    return float(-10 * np.log10(max(float(np.square(error, dtype=np.float64).mean()), NOISE)))


def ssim(a: Shot, b: Shot) -> float:
    from skimage.metrics import structural_similarity as measure

    how: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(measure(a.rgb, b.rgb, channel_axis=-1, data_range=1.0, **how))  # type: ignore[no-untyped-call]


def mask_overlap(a: Shot, b: Shot) -> float:
    return overlap(a.mask, b.mask)


STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
POOLED = (1, 2)  # convolutions with a pool before them
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]
Arrays = Mapping[str, Any]


@functools.lru_cache(1)
def read_lpips(path: Path) -> Arrays:
    """Tensors conv0..4.weight/.bias and lin0..4 of an .npz file."""
    import torch

    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise MissingInputError(reason, where=str(path), remedy="check --lpips") from error
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]).float() for name in file.files}
    except Exception as error:  # a damaged archive raises what it likes
        raise WeightsError("not an .npz of plain arrays", where=str(path), remedy="check --lpips") from error
    wanted = [f"conv{k}.{part}" for k in range(5) for part in ("weight", "bias")] + [f"lin{k}" for k in range(5)]
    if lost := sorted(set(wanted) - set(arrays)):
        raise WeightsError(f"not weights of LPIPS (no {lost[0]})", where=str(path), remedy="check --lpips")
    try:
        layers = enumerate(features(arrays, torch.zeros(1, 3, 64, 64)))
        fits = all(arrays[f"lin{number}"].numel() == layer.shape[1] for number, layer in layers)
    except RuntimeError:
        fits = False
    if not fits:
        raise WeightsError("not weights of LPIPS (other shapes)", where=str(path), remedy="check --lpips")
    return arrays


def lpips(arrays: Arrays, a: Shot, b: Shot) -> float:
    """How far apart AlexNet's features of the two lie, by calibrated channels."""
    import torch

    with torch.inference_mode():
        pictures = torch.from_numpy(np.stack([a.rgb, b.rgb])).permute(0, 3, 1, 2) * 2 - 1
        shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        total = 0.0
        for number, layer in enumerate(features(arrays, (pictures - shift) / scale)):
            one, other = layer / (layer.square().sum(1, keepdim=True).sqrt() + 1e-10)
            total += float(((one - other).square() * arrays[f"lin{number}"].view(-1, 1, 1)).sum(0).mean())
    return total


def features(arrays: Arrays, x: Any) -> Iterator[Any]:  # (2, 3, S, S) -> five of (2, C, h, w)
    """AlexNet's, after each ReLU."""
    import torch.nn.functional as F

    for k in range(5):
        x = F.max_pool2d(x, 3, 2) if k in POOLED else x
        x = F.conv2d(x, arrays[f"conv{k}.weight"], arrays[f"conv{k}.bias"], STRIDES[k], PADDINGS[k]).relu()
        yield x


# Means ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float  # the 95 % interval's ends
    high: float


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:  # (N,)
    """The mean over objects and where it would lie with other objects like these (bootstrap, percentiles).

    For a comparison hand over the differences, object by object.
    """
    found = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(found), (DRAWS, len(found)))
    low, high = np.quantile(found[drawn].mean(1), (0.025, 0.975))
    return Estimate(float(found.mean()), float(low), float(high))
