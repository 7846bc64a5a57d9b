"""What the lift makes of a perfect prior, of a noisy one, and what a step costs: `make bench` prints it."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from torch import Tensor

from zero123cli import machine
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import guidance
from zero123cli.evaluation import shapes
from zero123cli.evaluation.evaluate import SHAPE_PROTOCOLS, solid
from zero123cli.evaluation.oracle import as_views, know
from zero123cli.evaluation.rig import Case, Plan, set_up
from zero123cli.radiance.occupancy import Occupancy
from zero123cli.radiance.rays import cast_rays
from zero123cli.radiance.render import render_blocks
from zero123cli.settings import Settings
from zero123cli.stages.lift import Reference, lift, to_field
from zero123cli.stages.mesh import make_mesh
from zero123cli.watch import silent

pytestmark = [pytest.mark.bench, needs_shared]

FAST = (
    "Android_Figure_Panda",
    "Crayola_Crayons_24_count",
    "Nintendo_Mario_Action_Figure",
    "Schleich_African_Black_Rhino",
    "Womens_Multi_13",
)
SETTINGS = Settings()  # the `cpu` preset
RATIO = 0.3  # RMS of the true gradient to that of the noise on it


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The bars are for two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@functools.cache
def case_of(name: str) -> Case:
    plan = Plan(SETTINGS, machine.pick("cpu", "float32"))
    return set_up(name, SHARED / "data" / "eval" / "gso" / f"{name}.glb", plan, silent)


@dataclass(frozen=True)
class Made:
    iou: float
    psnr: float  # on 16 poses that no step has seen
    seconds: float


def make(name: str, **changes: Any) -> Made:
    """The object as the `cpu` preset lifts it out of an oracle's answers."""
    case, settings = case_of(name), replace(SETTINGS.lift, **changes)
    oracle = know(case)
    references = [Reference(case.cutout, as_views(oracle, case))]
    started = time.perf_counter()
    field = lift(references, oracle, settings, 0, silent)
    seconds = time.perf_counter() - started
    mesh = make_mesh(field, references, replace(SETTINGS.mesh, texture="none"), settings, silent)
    answer = solid(shapes.clay(mesh.vertices, mesh.faces), name, 1)
    iou = SHAPE_PROTOCOLS["P"].measure(answer, solid(case.truth, name, 0))["iou"]
    return Made(iou, likeness(to_field(field), oracle, settings), seconds)


def likeness(field: Any, oracle: Any, settings: Any) -> float:
    """Mean PSNR, on white."""
    chance = np.random.default_rng(1)
    found = []
    for _ in range(16):
        pose = Viewpoint(float(chance.uniform(0, 360)), float(chance.uniform(-10, 45)), settings.distance)
        side = oracle.description.size
        rays = cast_rays([pose], side, settings.fov_deg)
        colour, _, _ = render_blocks(field, rays, Occupancy(settings.bound), background=torch.ones(3))
        truth = oracle.look(pose)[:3].permute(1, 2, 0).reshape(-1, 3) / 2 + 0.5
        found.append(float(-10 * (colour - truth).square().mean().log10()))
    return statistics.mean(found)


def report(title: str, rows: dict[str, Made]) -> tuple[float, float]:
    """Prints a table; mean IoU and mean PSNR."""
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:30} IoU {row.iou:.3f}  {row.psnr:.1f} dB  {row.seconds:.0f} s")
    means = statistics.mean(row.iou for row in rows.values()), statistics.mean(row.psnr for row in rows.values())
    print(f"  {'mean':30} IoU {means[0]:.3f}  {means[1]:.1f} dB")
    return means


@pytest.mark.parametrize("kind", ["clean", "sds", "sjc"])
def test_a_perfect_prior_brings_the_shapes_back(kind: str) -> None:
    rows = {name: make(name, kind=kind) for name in FAST}
    iou, psnr = report(f"{kind} with an oracle", rows)
    assert iou >= 0.80 and psnr >= 20
    assert max(row.seconds for row in rows.values()) < 120


@pytest.mark.parametrize("kind", ["sds", "sjc"])
def test_noise_on_the_gradient_is_averaged_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true, chance = guidance.GUIDANCE[kind], torch.Generator().manual_seed(0)

    def noisy(*args: Any) -> Tensor:
        gradient: Tensor = true(*args)
        strength = gradient.square().mean((1, 2, 3), keepdim=True).sqrt() / RATIO
        return gradient + strength * torch.randn(gradient.shape, generator=chance)

    monkeypatch.setitem(guidance.GUIDANCE, kind, noisy)
    iou, _ = report(f"{kind} with a noisy oracle", {name: make(name, kind=kind) for name in FAST})
    assert iou >= 0.70
