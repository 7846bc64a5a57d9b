"""Who answers with pictures: rows that need no model, the volume alone, a view model, and the truth as a ceiling.

The poses are told as a user tells them, relative to the photo.
Letters: S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .. import pipeline
from ..artifacts import Ask, PhotoCamera
from ..cameras import TRAINING_DISTANCE, Viewpoint, within_a_turn
from ..diffusion.volume import guess_elevation, render
from ..watch import Watch
from .rig import Case, Plan, cut, true_views
from .shapes import load_prior, predict

Pictures = list[np.ndarray]  # for each pose uint8 (S, S, 3) on white, or (S, S, 4)


def copy_input(case: Case, plan: Plan, watch: Watch) -> Pictures:
    """The photo's own cutout, whatever is asked for."""
    return [case.cutout.rgba] * len(case.poses)


def repeat_mean(case: Case, plan: Plan, watch: Watch) -> Pictures:
    """The mean of all objects' cutouts: what can be said without a look at either the photo or the pose."""
    assert case.mean is not None, case.name
    return [case.mean] * len(case.poses)


def leave_white(case: Case, plan: Plan, watch: Watch) -> Pictures:
    return [np.full((plan.size, plan.size, 4), (255, 255, 255, 0), np.uint8)] * len(case.poses)


def show_truth(case: Case, plan: Plan, watch: Watch) -> Pictures:
    return true_views(case, plan.size)


def render_volume(case: Case, plan: Plan, watch: Watch) -> Pictures:
    """The predicted volume as it looks from the poses, nothing refined."""
    from ..diffusion.viewmodel import look_from
    from ..stages.views import to_pixels

    volume = predict(case.cutout, plan)
    photo = guess_elevation(volume)[0] if plan.elevation_deg is None else plan.elevation_deg
    pictures = []
    with torch.inference_mode():
        for pose in case.poses:
            risen = photo + pose.elevation_deg - case.seat.elevation_deg
            here = look_from([Viewpoint(0.0, photo)])
            there = look_from([Viewpoint(pose.azimuth_deg - case.seat.azimuth_deg, risen)])
            seen = render(volume, here, there, plan.size)[0]
            pictures.append(to_pixels(torch.cat([seen[:3], seen[3:] * 2 - 1])))
    return pictures


def sample_model(case: Case, plan: Plan, watch: Watch) -> Pictures:
    """What `zero123 views` answers."""
    settings = plan.settings
    how = settings.views
    camera = PhotoCamera(plan.elevation_deg, TRAINING_DISTANCE)
    asks = [
        Ask(
            azimuth_deg=within_a_turn(pose.azimuth_deg - case.seat.azimuth_deg),
            elevation_deg=pose.elevation_deg - case.seat.elevation_deg,
            distance=0.0,
            number=0,
            seed=settings.seed,
            sampler=how.sampler,
            steps=how.steps,
            guidance=how.guidance,
            eta=how.eta,
        )
        for pose in case.poses
    ]
    prior = load_prior(plan)
    seen = pipeline.views(cut(case.photo, plan, watch), camera, prior, plan.cache, watch)
    return [kept.artifact.pixels for kept in pipeline.sampled(seen, asks, prior, plan.cache, how.batch, watch)]


Viewer = Callable[[Case, Plan, Watch], Pictures]

VIEWS: dict[str, Viewer] = {
    "white": leave_white,
    "input-copy": copy_input,
    "mean-picture": repeat_mean,
    "oracle": show_truth,
    "volume": render_volume,
    "views": sample_model,
}
BASELINES = ("white", "input-copy", "mean-picture")
