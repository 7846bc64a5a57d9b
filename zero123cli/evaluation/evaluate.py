"""Runs models over objects by a named protocol: object by object, each object once for all models.

A protocol is a function from an answer and the truth to figures; the tables at the foot name them.
Letters: N objects, F triangles, P points.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cameras import Viewpoint
from ..errors import UsageError, Zero123Error
from ..scenes.raycast import prepare, render_views
from ..scenes.surface import Surface, normalise
from ..watch import silent
from ..workers import Result, run_jobs
from . import metrics, rig, sets, shapes, views
from .metrics import Estimate, Shot, Solid
from .rig import PHOTO, Case, Plan, seed_of, to_shot, true_views

MEMORY = 64 * 10**9  # bytes of address space of a worker
GLANCES = tuple(Viewpoint(azimuth, PHOTO.elevation_deg, PHOTO.distance) for azimuth in (0, 90, 180, 270))
GLANCE_SIDE = 128  # px

Figures = dict[str, float]


@dataclass(frozen=True)
class Metric:
    label: str
    digits: int
    rises: bool  # whether more is better


@dataclass(frozen=True)
class Protocol:
    name: str
    says: str  # how it is measured, in one line, to be printed beside every number
    metrics: tuple[str, ...]
    measure: Callable[[Any, Any], Figures]  # answer, truth


@dataclass(frozen=True)
class Job:
    """One object for some models."""

    name: str
    path: Path
    models: tuple[str, ...]  # of SHAPES or VIEWS
    protocol: str
    plan: Plan
    lpips: Path | None = None  # weights, if there are any
    pictures: bool = False  # whether to bring pictures for a page
    mean: np.ndarray | None = None  # uint8 (S, S, 4): the mean cutout of all objects


@dataclass(frozen=True)
class Row:
    """What came of one model and one object."""

    model: str
    name: str
    seconds: float = 0.0  # of the model, without what measuring takes
    figures: Figures = field(default_factory=dict)
    pictures: tuple[np.ndarray, ...] = ()  # uint8, the answer
    failure: str = ""
    code: int = 0  # of the failure


@dataclass(frozen=True)
class Sheet:
    """An object's rows, and what all models were shown and held against."""

    rows: tuple[Row, ...]
    photo: np.ndarray | None = None  # uint8 (S, S, 4)
    truth: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Score:
    """A model over all objects."""

    model: str
    protocol: str
    rows: tuple[Row, ...]
    seconds: float
    metrics: dict[str, Estimate]


# Objects --------------------------------------------------------------------------------------------------------------


def judge(job: Job) -> Sheet:
    """Shows the object to each model and measures what it answers. A model that fails costs its own row only."""
    if "volume" in job.models:  # before the clock runs
        shapes.load_net(job.plan)
    elif {"views", "reconstruct"} & {*job.models}:
        shapes.load_prior(job.plan).load(silent)
    case = set_up(job.name, job.path, job.plan, job.mean)
    return judge_views(job, case) if job.plan.views else judge_shapes(job, case)


def set_up(name: str, path: Path, plan: Plan, mean: np.ndarray | None = None) -> Case:
    """The case of a mesh or of a view set."""
    kind = sets if path.suffix == sets.SUFFIX else rig
    return kind.set_up(name, path, plan, silent, mean)


def judge_shapes(job: Job, case: Case) -> Sheet:
    protocol = SHAPE_PROTOCOLS[job.protocol]
    truth = solid(case.truth, case.name, 0)
    rows = []
    for model in job.models:
        started = time.monotonic()
        try:
            answer = shapes.SHAPES[model](case, job.plan, silent)
        except Zero123Error as error:
            rows.append(Row(model, job.name, failure=str(error), code=error.exit_code))
            continue
        seconds = time.monotonic() - started
        figures = protocol.measure(solid(answer.shape, case.name, 1), truth) | answer.facts
        rows.append(Row(model, job.name, seconds, figures, glance(answer.shape) if job.pictures else ()))
    return Sheet(tuple(rows), case.cutout.rgba, glance(case.truth)) if job.pictures else Sheet(tuple(rows))


def solid(surface: Surface, name: str, which: int) -> Solid:
    """In the unit cube by its box; the points of answer and truth are drawn apart."""
    unit = normalise(surface)
    return Solid(unit.vertices[unit.faces], (seed_of(name), which))


def glance(surface: Surface) -> tuple[np.ndarray, ...]:
    """The object from four sides."""
    return tuple(picture.rgba for picture in render_views(prepare(normalise(surface)), GLANCES, size=GLANCE_SIDE))


def judge_views(job: Job, case: Case) -> Sheet:
    protocol = VIEW_PROTOCOLS[job.protocol]
    truth = true_views(case, job.plan.size)
    shots = [to_shot(picture, job.plan.size) for picture in truth]
    rows = []
    for model in job.models:
        started = time.monotonic()
        try:
            pictures = views.VIEWS[model](case, job.plan, silent)
        except Zero123Error as error:
            rows.append(Row(model, job.name, failure=str(error), code=error.exit_code))
            continue
        seconds = time.monotonic() - started
        answers = [to_shot(picture, job.plan.size) for picture in pictures]
        figures = protocol.measure(answers, shots)
        if job.lpips:
            measure = functools.partial(metrics.lpips, metrics.read_lpips(job.lpips))
            figures["lpips"] = mean_of(measure, answers, shots)
        rows.append(Row(model, job.name, seconds, figures, tuple(pictures) if job.pictures else ()))
    return Sheet(tuple(rows), case.cutout.rgba, tuple(truth)) if job.pictures else Sheet(tuple(rows))


def run(jobs: Sequence[Job], count: int, seconds: float) -> Iterator[Result]:
    """The sheet of each job as it comes, in this process or in `count` others."""
    if count > 1:
        on_cpu = all(job.plan.backend.device == "cpu" for job in jobs)  # a card's addresses count too, and are more
        yield from run_jobs(judge, jobs, count=count, seconds=seconds, memory=MEMORY if on_cpu else 0)
        return
    for job in jobs:
        try:
            yield Result(job, judge(job))
        except Zero123Error as error:
            yield Result(job, failure=str(error), code=error.exit_code)


def mean_cutout(found: Mapping[str, Path], plan: Plan) -> np.ndarray:  # uint8 (S, S, 4)
    """The mean of all objects' cutouts; those that cannot be read are told of when their turn comes."""
    total = np.zeros((plan.size, plan.size, 4))
    count = 0
    for name, path in found.items():
        try:
            shot = to_shot(set_up(name, path, plan).cutout.rgba, plan.size)
        except Zero123Error:
            continue
        total += np.concatenate([shot.rgb - 1 + shot.mask[..., None], shot.mask[..., None]], -1)
        count += 1
    colour, share = total[..., :3], total[..., 3:]
    straight = np.clip(colour / np.maximum(share, 1e-6), 0, 1)
    return np.round(np.concatenate([straight, share / max(1, count)], -1) * 255).astype(np.uint8)


# Means and comparisons ------------------------------------------------------------------------------------------------


def score(model: str, protocol: str, rows: Sequence[Row]) -> Score:
    """A model's means over the objects that it answered."""
    good = [row for row in rows if not row.failure]
    names = list(good[0].figures) if good else []
    means = {name: metrics.estimate([row.figures[name] for row in good]) for name in names}
    return Score(model, protocol, tuple(rows), sum(row.seconds for row in rows), means)


def compare(one: Mapping[str, Figures], other: Mapping[str, Figures]) -> dict[str, Estimate]:
    """By how much `one` is higher, metric by metric, over the objects that both answered: paired differences."""
    common = [name for name in one if name in other]
    if not common:
        raise UsageError("the two have no object in common", where="--compare")
    shared = [key for key in one[common[0]] if all(key in found for n in common for found in (one[n], other[n]))]
    return {key: metrics.estimate([one[name][key] - other[name][key] for name in common]) for key in shared}


def figures_of(rows: Sequence[Row]) -> dict[str, Figures]:
    return {row.name: row.figures for row in rows if not row.failure}


# Protocols ------------------------------------------------------------------------------------------------------------


def measure_paper(answer: Solid, truth: Solid) -> Figures:
    """P; CD(S) is half of CD(P), which comes near SyncDreamer's without their choice of visible points."""
    far = metrics.chamfer(answer.points, truth.points)
    return {"iou": metrics.overlap(answer.cells, truth.cells), "cd": far, "cd_s": far / 2}


LIMITS = (0.05, 0.1, 0.2, 0.5)  # of F-scores, in halves of the longest side


def measure_fscores(answer: Solid, truth: Solid) -> Figures:
    """F, with the longest side 2."""
    goal = 2 * truth.points
    moved = metrics.align(2 * answer.points, goal)
    return {f"f_{limit}": metrics.fscore(moved, goal, limit) for limit in LIMITS}


def measure_views(answers: Sequence[Shot], truth: Sequence[Shot]) -> Figures:
    return {key: mean_of(measure, answers, truth) for key, measure in PICTURE_METRICS.items()}


def mean_of(measure: Callable[[Shot, Shot], float], answers: Sequence[Shot], truth: Sequence[Shot]) -> float:
    return float(np.mean([measure(a, b) for a, b in zip(answers, truth, strict=True)]))


PICTURE_METRICS = {
    "psnr": metrics.psnr,
    "psnr_object": metrics.psnr_object,
    "ssim": metrics.ssim,
    "mask_iou": metrics.mask_overlap,
}
METRICS = {
    "iou": Metric("IoU", 3, True),
    "cd": Metric("CD", 4, False),
    "cd_s": Metric("CD(S)~", 4, False),
    "elevation_error": Metric("elevation error", 1, False),
    **{f"f_{limit}": Metric(f"F@{limit:g}", 3, True) for limit in LIMITS},
    "psnr": Metric("PSNR", 2, True),
    "psnr_object": Metric("PSNR in masks", 2, True),
    "ssim": Metric("SSIM", 3, True),
    "lpips": Metric("LPIPS", 3, False),
    "mask_iou": Metric("mask IoU", 3, True),
}
SET_PHOTO = "the photo is the view set's picture nearest to elevation 20, the first of equals"
ON_SETS = "-viewsets"  # ends the names of protocols whose truth is a view set

SHAPE_PROTOCOLS = {
    "P": Protocol(
        "P",
        "both in a unit cube by their boxes; IoU of 64^3 cell centres by winding number; CD of 2,000 points, both ways "
        "added, not squared; CD(S) = CD/2, near SyncDreamer's",
        ("iou", "cd", "cd_s"),
        measure_paper,
    ),
    "F": Protocol(
        "F",
        "F-scores of 2,000 points at limits in halves of the longest side, after a search for scale and ICP",
        tuple(f"f_{limit}" for limit in LIMITS),
        measure_fscores,
    ),
}
SHAPE_PROTOCOLS |= {
    name + ON_SETS: replace(
        one,
        name=name + ON_SETS,
        says=f"{SET_PHOTO}; the truth is marching cubes of its occupancy, turned to face that photo; {one.says}",
    )
    for name, one in SHAPE_PROTOCOLS.items()
}
METRICS_OF_VIEWS = ("psnr", "psnr_object", "ssim", "lpips", "mask_iou")
WHITE_AND_MASKS = "on white; masks: alpha of at least a half, or what is not white"
VIEW_PROTOCOLS = {
    "zero123": Protocol(
        "zero123",
        "12 poses an object drawn by its name, elevation -10 to 45, around the middle of the photo's cutout and at its "
        f"scale, {WHITE_AND_MASKS}",
        METRICS_OF_VIEWS,
        measure_views,
    ),
    "zero123" + ON_SETS: Protocol(
        "zero123" + ON_SETS,
        f"{SET_PHOTO}; the truth is its other pictures, cropped to the middle and scale of that photo's cutout, their "
        f"perspective as it is; told are azimuth and elevation around that middle, not the distance; {WHITE_AND_MASKS}",
        METRICS_OF_VIEWS,
        measure_views,
    ),
}
