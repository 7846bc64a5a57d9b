"""Tells an object from its background: networks through rembg's sessions, our own small one, or a graph cut.

Each cutter is a function from a picture to a mask. Our own network ships with the program and is run by onnxruntime.
The graph cut needs no weights; it follows GrabCut (Rother, Kolmogorov and Blake, 2004):
two colour mixtures and a contrast-sensitive grid, with the picture's border as the known background. Its hard mask is
softened by a guided filter (He, Sun and Tang, 2010).
Letters: H height, W width, N pixels or samples, K components of a mixture.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import machine
from .errors import UnavailableError, WeightsError
from .models import POCKET_CUTTER
from .watch import Caution

CUT_SIDE = 160  # px of the longer side in the graph cut: 25,600 nodes, 20 ms a cut
CPU = ["CPUExecutionProvider"]
UNSURE = 0.5  # a network whose surest pixel is below this has seen no object
SPECK = 0.001  # share of the picture below which what our own network sees is nothing
AGREED = 0.7  # IoU of two masks that speak of the same object


@dataclass(frozen=True)
class Cutter:
    name: str
    digest: str  # of its weights; part of the cache key
    find_mask: Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> float32 (H, W) in [0, 1]
    caution: Caution | None = None  # what to say when it is used


def rembg_cutter(name: str, weights: Path, digest: str) -> Cutter:
    """One of rembg's sessions, loaded when the first mask is asked for and kept."""

    @functools.cache
    def session() -> Any:
        return open_session(name, weights)

    def find_mask(rgb: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3)
        network = session()
        surest = Surest(network.inner_session)
        network.inner_session = surest
        try:
            mask = network.predict(Image.fromarray(rgb))[0]
        finally:
            network.inner_session = surest.session
        # rembg stretches every answer to the full range, also that for an empty picture.
        if surest.value < UNSURE:
            return np.zeros(rgb.shape[:2], np.float32)
        return np.asarray(mask.convert("L"), np.float32) / 255

    return Cutter(name, digest, find_mask)


class Surest:
    """An onnxruntime session that remembers how sure its last answer was at its surest pixel."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.value = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        answers = self.session.run(*args, **kwargs)
        low, high = float(answers[0].min()), float(answers[0].max())
        is_probability = low >= 0 and high <= 1  # BiRefNet answers in logits
        self.value = high if is_probability else 1 / (1 + np.exp(-high))
        return answers


def open_session(name: str, weights: Path) -> Any:
    """The rembg session `name`, on the CPU, from these weights and no others."""
    try:
        known = import_sessions()
    except ImportError as error:
        raise UnavailableError(f"rembg does not load ({error})", remedy='run: pip install "rembg[cpu]"') from error
    # A session fetches weights that it does not find. This one is told which file we have checked.
    local = type(name, (known[name],), {"download_models": classmethod(lambda *_, **__: str(weights))})
    return load(weights, lambda options: local(name, options, providers=CPU), "delete the file and fetch it again")


def load(weights: Path, make: Callable[[Any], Any], remedy: str) -> Any:
    """What `make` makes of these weights with onnxruntime's options."""
    try:
        import onnxruntime
    except ImportError as error:
        way_out = "run: pip install onnxruntime; or take --cutter classical"
        raise UnavailableError(f"onnxruntime does not load ({error})", remedy=way_out) from error
    onnxruntime.set_default_logger_severity(3)  # as rembg does: a note for each odd node is no use to anyone
    options = onnxruntime.SessionOptions()
    if threads := machine.asked_threads():
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return make(options)
    except Exception as error:  # onnxruntime's exceptions have no common root
        raise WeightsError(
            f"onnxruntime cannot load it ({type(error).__name__})",
            where=str(weights),
            remedy=remedy,
        ) from error


def import_sessions() -> dict[str, type]:
    """rembg's session classes by name, without rembg's front door.

    The front door imports pymatting, which compiles for 45 s on first use (measured, 2 cores); sessions don't need it.
    """
    if "rembg" in sys.modules:
        return dict(importlib.import_module("rembg.sessions").sessions)
    found = importlib.util.find_spec("rembg")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("rembg is not installed")
    stand_in = types.ModuleType("rembg")
    stand_in.__path__ = list(found.submodule_search_locations)
    sys.modules["rembg"] = stand_in
    try:
        return dict(importlib.import_module("rembg.sessions").sessions)
    finally:
        del sys.modules["rembg"]  # whoever imports rembg later gets the whole of it


# The cutter that is always there --------------------------------------------------------------------------------------


def embedded_cutter(weights: Path, digest: str) -> Cutter:
    """Our own network, which is shown the whole photo squeezed into a small square, and the picture's colours."""

    @functools.cache
    def session() -> Any:
        remedy = "install zero123 again, or take --cutter classical"

        def make(options: Any) -> Any:
            return importlib.import_module("onnxruntime").InferenceSession(weights, options, providers=CPU)

        return load(weights, make, remedy)

    def find_mask(rgb: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3)
        network = session()
        side = network.get_inputs()[0].shape[-1]
        small = np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
        return settle(rgb, network.run(None, {"picture": small.transpose(2, 0, 1)[None]})[0][0, 0])

    return Cutter(POCKET_CUTTER.name, digest, find_mask)


def settle(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3), float32 (s, s) -> float32 (H, W)
    """The mask that our network and the picture's colours find together.

    Where both see the same object the colours know its edge better. Where they differ the network decides and the
    colours only mend its edge. Where it sees nothing the colours are believed.
    """
    by_colour = cut_by_colour(rgb)
    seen = guided_filter(np.asarray(rgb, np.float32) / 255, mask, radius=2)
    inside, other = seen > UNSURE, by_colour > UNSURE
    if inside.mean() < SPECK or (inside & other).sum() / (inside | other).sum() >= AGREED:
        return by_colour
    return cut_by_colour(rgb, belief=seen)


# The cutter that needs no weights -------------------------------------------------------------------------------------


def cut_by_colour(
    rgb: np.ndarray,  # uint8 (H, W, 3)
    belief: np.ndarray | None = None,  # float32 (H, W): a mask that somebody else found
) -> np.ndarray:  # float32 (H, W) in [0, 1]
    """GrabCut from the border, or from a belief, softened along the picture's edges."""
    height, width = rgb.shape[:2]
    scale = min(1.0, CUT_SIDE / max(height, width))
    small = Image.fromarray(rgb).resize(
        (max(2, round(width * scale)), max(2, round(height * scale))), Image.Resampling.BOX
    )
    colour = opponent(np.asarray(small, np.float64) / 255)
    if belief is None:
        hard = grab_cut(colour)
    else:
        hard = mend(colour, np.asarray(Image.fromarray(belief).resize(small.size, Image.Resampling.BOX), np.float64))
    if not hard.any():
        return np.zeros((height, width), np.float32)
    return guided_filter(np.asarray(rgb, np.float32) / 255, hard.astype(np.float32))


def opponent(rgb: np.ndarray) -> np.ndarray:  # float (..., 3) in [0, 1]
    """Lightness and two opponent colours; colour counts double, since shadows change lightness."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return np.stack([(red + green + blue) / 3, 2 * (red - green) / 2, 2 * (red + green - 2 * blue) / 4], -1)


def grab_cut(colour: np.ndarray, rounds: int = 8) -> np.ndarray:  # float (H, W, 3) -> bool (H, W)
    """Alternates between fitting two colour mixtures and cutting the graph between them."""
    height, width = colour.shape[:2]
    rim = max(1, round(0.03 * min(height, width)))
    border = np.ones((height, width), bool)
    border[rim:-rim, rim:-rim] = False
    # To begin with, the object is what the border explains worse than nearly all of itself. The lower edge does not
    # count, for there an object may leave the picture; the ground it stands on reaches the lower corners.
    crown = border.copy()
    crown[-rim:, rim:-rim] = False
    cost = Mixture.fit(colour[crown], components=5).cost(colour)
    inside = (cost > np.quantile(cost[crown], 0.95) + 1.0) & ~crown
    prior = np.where(border, -6.0, 2.0 * middle(colour.shape[:2]))  # nats; an object may leave the picture
    edges = grid_edges(colour)
    for _ in range(rounds):
        outside = joined_to(~inside, border)  # what is enclosed may be the object's: a cup's white inside
        if inside.sum() < 8 or outside.sum() < 8:
            return np.zeros_like(inside)
        front, behind = Mixture.fit(colour[inside], components=5), Mixture.fit(colour[outside], components=5)
        balance = np.clip(behind.cost(colour) - front.cost(colour), -10, 10) + prior  # > 0 speaks for the object
        cut = min_cut(balance, edges)
        if (cut == inside).all():
            break
        inside = cut
    return inside


def mend(colour: np.ndarray, belief: np.ndarray, rounds: int = 4) -> np.ndarray:  # (H, W, 3), (H, W) -> bool (H, W)
    """The same from a belief: colours may say a little more or less of what is inside than it does."""
    sure = belief.clip(1e-3, 1 - 1e-3)
    prior, inside, edges = 0.5 * np.log(sure / (1 - sure)), belief > 0.5, grid_edges(colour)
    for _ in range(rounds):
        if min(inside.sum(), (~inside).sum()) < 8:
            return belief > 0.5
        front, behind = (Mixture.fit(colour[part], components=5) for part in (inside, ~inside))
        cut = min_cut(np.clip(behind.cost(colour) - front.cost(colour), -2, 2) + prior, edges)
        if (cut == inside).all():
            break
        inside = cut
    return inside


def middle(shape: tuple[int, ...]) -> np.ndarray:
    """1 in the middle of the picture, 0 on an ellipse of three quarters of it, below beyond."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    return 1 - (x**2 + y**2) / 0.75**2


def joined_to(mask: np.ndarray, place: np.ndarray) -> np.ndarray:  # bool (H, W), all
    """The parts of `mask` that reach `place`."""
    from scipy.ndimage import label

    parts, _ = label(mask)
    reached = np.unique(parts[place & mask])
    return np.isin(parts, reached[reached > 0])


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians over colours, fitted with hard assignments as in GrabCut."""

    shares: np.ndarray  # (K,)
    means: np.ndarray  # (K, 3)
    whiteners: np.ndarray  # (K, 3, 3): maps a difference to unit covariance
    log_volumes: np.ndarray  # (K,): half the logarithm of the covariance's determinant

    @staticmethod
    def fit(samples: np.ndarray, components: int) -> Mixture:  # (N, 3)
        labels = cluster(samples, components)
        shares, centres, whiteners, volumes = [], [], [], []
        for k in range(components):
            own = samples[labels == k]
            if len(own) < 2:
                continue
            covariance = np.cov(own.T) + np.eye(3) * 4e-4  # a fiftieth of the colour range: noise and JPEG
            values, vectors = np.linalg.eigh(covariance)
            shares.append(len(own) / len(samples))
            centres.append(own.mean(0))
            whiteners.append(vectors / np.sqrt(values))
            volumes.append(0.5 * np.log(values).sum())
        return Mixture(np.array(shares), np.array(centres), np.array(whiteners), np.array(volumes))

    def cost(self, colour: np.ndarray) -> np.ndarray:  # (..., 3) -> (...)
        """Minus the logarithm of the likelihood, without the constant."""
        offset = colour[..., None, :] - self.means  # (..., K, 3)
        white = np.einsum("...ki,kij->...kj", offset, self.whiteners)
        return np.asarray((0.5 * (white**2).sum(-1) + self.log_volumes - np.log(self.shares)).min(-1))


def cluster(samples: np.ndarray, count: int, rounds: int = 10) -> np.ndarray:  # (N, 3) -> int (N,)
    """k-means, begun at even steps of lightness: the same picture gives the same clusters."""
    order = np.argsort(samples[:, 0], kind="stable")
    means = samples[order[np.linspace(0, len(order) - 1, count).astype(int)]]
    for _ in range(rounds):
        labels = ((samples[:, None] - means) ** 2).sum(-1).argmin(1)
        for k in np.unique(labels):
            means[k] = samples[labels == k].mean(0)
    return labels


Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # from pixel, to pixel, weight; each (N,)


def grid_edges(colour: np.ndarray, strength: float = 8.0) -> Edges:
    """Eight neighbours a pixel; cutting costs less where the colour changes."""
    height, width = colour.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    pairs, gaps, lengths = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width + min(0, right)))
        pairs.append((index[here].ravel(), index[there].ravel()))
        gaps.append(((colour[here] - colour[there]) ** 2).sum(-1).ravel())
        lengths.append(np.full(gaps[-1].size, np.hypot(down, right)))
    gap = np.concatenate(gaps)
    weight = strength * np.exp(-gap / (2 * gap.mean() + 1e-12)) / np.concatenate(lengths)
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs]), weight


def min_cut(balance: np.ndarray, edges: Edges) -> np.ndarray:  # (H, W) -> bool (H, W)
    """The cheapest division of the grid, by maximum flow from the object to the background."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    count = balance.size
    source, sink = count, count + 1
    pixels = np.arange(count)
    left, right, weight = edges
    rows = np.concatenate([left, right, np.full(count, source), pixels])
    columns = np.concatenate([right, left, pixels, np.full(count, sink)])
    flat = balance.ravel()
    capacity = np.concatenate([weight, weight, np.maximum(flat, 0), np.maximum(-flat, 0)])
    whole = np.round(capacity * 1000).astype(np.int32)  # the solver counts in integers
    graph = csr_matrix((whole, (rows, columns)), shape=(count + 2, count + 2))
    left_over = graph - maximum_flow(graph, source, sink).flow
    left_over.data[left_over.data < 0] = 0
    left_over.eliminate_zeros()
    reached = np.zeros(count + 2, bool)
    reached[breadth_first_order(left_over, source, return_predecessors=False)] = True
    return reached[:count].reshape(balance.shape)


def guided_filter(guide: np.ndarray, mask: np.ndarray, radius: int = 3, smooth: float = 1e-3) -> np.ndarray:
    """Brings a small mask to the guide's size, its edge drawn to the guide's edges.

    `guide` is float32 (H, W, 3) in [0, 1], `mask` float32 of a smaller size; `radius` is in the mask's pixels and
    `smooth` the variance under which a patch of the guide counts as flat.
    """
    from scipy.ndimage import uniform_filter

    height, width = guide.shape[:2]
    grey = guide.mean(-1)
    small = np.asarray(Image.fromarray(grey).resize((mask.shape[1], mask.shape[0]), Image.Resampling.BOX))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(values, 2 * radius + 1, mode="nearest"))

    slope = (mean(small * mask) - mean(small) * mean(mask)) / (mean(small**2) - mean(small) ** 2 + smooth)
    offset = mean(mask) - slope * mean(small)

    def enlarge(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))

    fine = enlarge(mean(slope)) * grey + enlarge(mean(offset))
    return np.clip((fine - 0.2) / 0.6, 0, 1)  # without the haze that the filter leaves


CLASSICAL = Cutter("classical", "", cut_by_colour)
