"""Who answers with a shape: rows that need no model, the volume net alone, and the true renders as a ceiling.

A shape is a surface in the world frame of `cameras`, upright; its place and size don't matter. What is known of the
object as a field over the volume's frame (see diffusion.volume) becomes a surface by marching cubes there.
Letters: D depth bins, S side of the frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .. import pipeline
from ..artifacts import Cutout, PhotoCamera
from ..cameras import TRAINING_DISTANCE, Viewpoint
from ..diffusion.volume import REACH, USUAL_HALF, Framing, Volume, VolumeNet, guess_elevation
from ..errors import NothingFoundError, UsageError
from ..scenes.filling import hull
from ..scenes.raycast import prepare
from ..scenes.surface import Material, Surface, normalise
from ..watch import Watch, silent
from .rig import PHOTO, Case, Plan, cut

if TYPE_CHECKING:
    from ..diffusion.viewmodel import Description

CLAY = Material((0.5, 0.5, 0.5, 1.0))
SIDE = 64  # cells of the fields that are made up here
ISLAND = 0.01  # share of the largest piece below which another is a stray
EYES, EYE_SIDE, EYE_CELLS = 60, 192, 96  # the oracle's renders, their side in px, and its cells


@dataclass(frozen=True)
class Answer:
    shape: Surface
    facts: dict[str, float] = field(default_factory=dict)  # what else can be held against the truth


def clay(vertices: np.ndarray, faces: np.ndarray) -> Surface:  # (V, 3), (F, 3)
    return Surface(vertices.astype(np.float32), faces.astype(np.int32), (CLAY,), np.zeros(len(faces), np.int32))


def enclose(solid: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:  # (X, Y, Z) -> (V, 3), (F, 3)
    """The surface around what is above `level`, in cells, the first one's middle at 0; it is closed at the border."""
    from skimage.measure import marching_cubes

    padded = np.pad(solid.astype(np.float32), 1, constant_values=level - 1)
    if not (padded > level).any():
        raise NothingFoundError("nothing is inside")
    vertices, faces = marching_cubes(padded, level)[:2]  # type: ignore[no-untyped-call]  # it says no types
    return vertices - 1, faces


def drop_strays(solid: np.ndarray, level: float) -> np.ndarray:  # float (X, Y, Z)
    """Without small pieces that hang together with nothing: one far off would change the size of the whole."""
    from scipy import ndimage

    pieces, count = ndimage.label(solid > level)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= ISLAND * sizes.max()) & (sizes > 0)
    return np.where((pieces > 0) & ~kept[pieces], np.float32(level - 1), solid)


def stand_up(depths: np.ndarray, elevation_deg: float, level: float = 0.0) -> Surface:  # float (D, S, S)
    """The surface of a field over a photo's volume frame, in the world of a camera raised by the elevation."""
    places, faces = enclose(drop_strays(depths, level), level)
    w, v, u = torch.from_numpy((places + 0.5) / np.array(depths.shape) * 2 - 1).float().T
    camera = Framing(torch.tensor([[0.0, elevation_deg, TRAINING_DISTANCE]]), torch.tensor([[0.0, 0.0, USUAL_HALF]]))
    world = camera.to_world(u[None], -v[None], TRAINING_DISTANCE * (1 + w[None] * REACH * USUAL_HALF))
    return clay(world[0].numpy(), faces)


# Without a model ------------------------------------------------------------------------------------------------------


def make_sphere(case: Case, plan: Plan, watch: Watch) -> Answer:
    """A ball."""
    places = np.indices((SIDE,) * 3) / (SIDE - 1) * 2 - 1
    return Answer(clay(*enclose(0.95 - np.sqrt((places**2).sum(0)), 0.0)))


def extrude(case: Case, plan: Plan, watch: Watch) -> Answer:
    """The silhouette drawn out along the camera's axis, as deep as its box is small."""
    near, depth = silhouette_distance(case.cutout)
    rows, columns = (np.flatnonzero((near > 0).any(axis)) for axis in (1, 0))
    deep = min(len(rows), len(columns)) / SIDE  # half of it, in half sides of the frame
    return Answer(stand_up(np.minimum(near, deep - depth), plan.elevation_deg or 0.0))


def inflate(case: Case, plan: Plan, watch: Watch) -> Answer:
    """The silhouette blown up: as deep, before and behind, as its edge is far."""
    near, depth = silhouette_distance(case.cutout)
    return Answer(stand_up(near - depth, plan.elevation_deg or 0.0))


def silhouette_distance(cutout: Cutout) -> tuple[np.ndarray, np.ndarray]:  # (1, S, S), (D, 1, 1)
    """How far inside each pixel lies, and how far from the middle each depth bin, in half sides of the frame."""
    from scipy.ndimage import distance_transform_edt

    alpha = Image.fromarray(cutout.rgba[..., 3]).resize((SIDE, SIDE), Image.Resampling.BOX)
    mask = np.asarray(alpha) >= 128
    inside, outside = distance_transform_edt(np.pad(mask, 1)), distance_transform_edt(~np.pad(mask, 1))
    near = (np.maximum(inside - 0.5, 0) - np.maximum(outside - 0.5, 0))[1:-1, 1:-1] * 2 / SIDE
    bins = round(SIDE * REACH)
    return near[None], np.abs((np.arange(bins) + 0.5) / bins * 2 - 1)[:, None, None] * REACH


def carve(case: Case, plan: Plan, watch: Watch) -> Answer:
    """What true renders with depth from all around leave standing: as much as pictures can tell."""
    turns = math.pi * (3 - math.sqrt(5)) * np.arange(EYES)  # evenly over the sphere (Fibonacci)
    lifts = np.degrees(np.arcsin(1 - (2 * np.arange(EYES) + 1) / EYES))
    eyes = [Viewpoint(math.degrees(t), float(e), PHOTO.distance) for t, e in zip(turns, lifts, strict=True)]
    return Answer(clay(*enclose(hull(prepare(normalise(case.truth)), eyes, EYE_CELLS, EYE_SIDE), 0.5)))


# The volume alone -----------------------------------------------------------------------------------------------------


def show_volume(case: Case, plan: Plan, watch: Watch) -> Answer:
    """What the volume net takes for inside."""
    volume = predict(case.cutout, plan)
    found, _ = guess_elevation(volume)
    told = found if plan.elevation_deg is None else plan.elevation_deg
    shares = torch.sigmoid(volume.occupancy[0].float() - plan.threshold).cpu().numpy()
    shape = stand_up(shares, told, level=0.5)
    return Answer(shape, {"elevation_error": abs(found - case.camera.elevation_deg)})


def predict(cutout: Cutout, plan: Plan) -> Volume:
    """The net's answer to the cutout, seen as the view model sees it."""
    from ..stages.views import to_picture

    net, likeness = load_net(plan)
    weight = next(net.parameters())
    picture = to_picture(cutout, likeness)[None].to(weight.device, weight.dtype)
    with torch.inference_mode():
        volume: Volume = net(picture)
        if plan.mirrored:
            other: Volume = net(picture.flip(-1))
            pairs = zip(vars(volume).values(), vars(other).values(), (True, True, False), strict=True)
            volume = Volume(*((one + (two.flip(-1) if flips else two)) / 2 for one, two, flips in pairs))
    return volume


@functools.lru_cache(1)
def load_prior(plan: Plan) -> pipeline.Prior:
    return pipeline.pick_prior(plan.settings.model, plan.backend, plan.cache)


@functools.lru_cache(1)
def load_net(plan: Plan) -> tuple[VolumeNet, Description]:
    """The model's volume net, and how it is shown pictures."""
    model = load_prior(plan).load(silent)
    if model.volume is None:
        where = plan.settings.model.name
        raise UsageError("this view model carries no volume", where=where, remedy="name another with --model")
    model.at_work("volume")
    return model.volume, model.description


# The whole program ---------------------------------------------------------------------------------------------------


def reconstruct(case: Case, plan: Plan, watch: Watch) -> Answer:
    """What `zero123 reconstruct` makes of the photo."""
    prior = load_prior(plan)
    cut_out = cut(case.photo, plan, watch)
    views = pipeline.views(cut_out, PhotoCamera(plan.elevation_deg), prior, plan.cache, watch)
    posed = [pipeline.Posed(cut_out, views)]
    field = pipeline.lifted(posed, plan.settings.lift, plan.settings.seed, prior, plan.cache, watch)
    how = replace(plan.settings.mesh, texture="none")
    mesh = pipeline.meshed(posed, field, how, plan.settings.lift, plan.cache, watch).artifact
    error = abs(views.artifact.photo_elevation_deg - case.camera.elevation_deg)
    return Answer(clay(mesh.vertices, mesh.faces), {"elevation_error": error})


def lift_oracle(case: Case, plan: Plan, watch: Watch) -> Answer:
    """The same way with a view model that knows the object: the ceiling of all of them."""
    from ..stages.lift import Reference, lift
    from ..stages.mesh import make_mesh
    from .oracle import as_views, know

    oracle = know(case)
    references = [Reference(case.cutout, as_views(oracle, case))]
    field = lift(references, oracle, plan.settings.lift, plan.settings.seed, watch)
    mesh = make_mesh(field, references, replace(plan.settings.mesh, texture="none"), plan.settings.lift, watch)
    return Answer(clay(mesh.vertices, mesh.faces))


Shaper = Callable[[Case, Plan, Watch], Answer]

SHAPES: dict[str, Shaper] = {
    "sphere": make_sphere,
    "extrusion": extrude,
    "inflate": inflate,
    "oracle": carve,
    "volume": show_volume,
    "reconstruct": reconstruct,
    "lifted-oracle": lift_oracle,
}
BASELINES = ("sphere", "extrusion", "inflate")
