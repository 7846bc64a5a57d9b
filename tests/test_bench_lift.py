"""What the lift makes of a perfect prior, of a noisy one, and what a step costs: `make bench` prints it."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from test_bench_viewmodel import random_model
from torch import Tensor

from zero123cli import machine
from zero123cli.artifacts import Cutout, PhotoCamera
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import guidance
from zero123cli.diffusion.checkpoints import DTYPES
from zero123cli.diffusion.viewmodel import Description, ViewModel, fold_cross_attention
from zero123cli.diffusion.volume import VolumeDescription
from zero123cli.evaluation import shapes
from zero123cli.evaluation.evaluate import SHAPE_PROTOCOLS, solid
from zero123cli.evaluation.oracle import as_views, know
from zero123cli.evaluation.rig import Case, Plan, set_up
from zero123cli.radiance.occupancy import Occupancy
from zero123cli.radiance.rays import cast_rays
from zero123cli.radiance.render import render_blocks
from zero123cli.settings import LiftSettings, Settings, load
from zero123cli.stages import lift as stage
from zero123cli.stages import views as views_stage
from zero123cli.stages.lift import Reference, lift, to_field
from zero123cli.stages.mesh import make_mesh
from zero123cli.training.denoisers import POCKET_CLIP, POCKET_UNET
from zero123cli.watch import silent

pytestmark = pytest.mark.bench

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


@needs_shared
@pytest.mark.parametrize("kind", ["clean", "sds", "sjc"])
def test_a_perfect_prior_brings_the_shapes_back(kind: str) -> None:
    rows = {name: make(name, kind=kind) for name in FAST}
    iou, psnr = report(f"{kind} with an oracle", rows)
    assert iou >= 0.80 and psnr >= 20
    assert max(row.seconds for row in rows.values()) < 120


@needs_shared
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


# What a step costs ----------------------------------------------------------------------------------------------------

NETWORK = ("view model", "codec", "codec, backward")  # what a step cannot do without
CARDS = {"stable-zero123": 7.5e9, "low-vram": 5.5e9}  # bytes for torch: CUDA itself takes half a GB of 8 and of 6


class Stopwatch:
    """Seconds of each part of a step: what is at work is switched where the lift passes from one part to the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.part, self.since = "the rest", self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def switch(self, part: str) -> str:
        """What was at work until now."""
        now, before = self.now(), self.part
        self.seconds[before] += now - self.since
        self.part, self.since = part, now
        return before

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def when_passed(self, tensor: Tensor | None, part: str) -> None:
        """On the way back `part` begins where the gradient of `tensor` is known."""

        def passed(_: Tensor) -> None:
            self.switch(part)

        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(passed)

    def wrap(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*given: Any, **options: Any) -> Any:
            with self.during(part):
                return work(*given, **options)

        return timed


class Timed:
    """A view model that says when it is at work."""

    def __init__(self, model: ViewModel, clock: Stopwatch) -> None:
        self.description, self.alphas, self.device, self.dtype = (
            model.description, model.alphas, model.device, model.dtype,
        )  # fmt: skip
        self.model, self.clock = model, clock

    def predict(self, *given: Any) -> Tensor:
        with self.clock.during("view model"):
            return self.model.predict(*given)

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.way("codec", lambda given: self.model.encode(given, noise), pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.way("codec", self.model.decode, latents)

    def way(self, part: str, work: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        given = given.view_as(given)  # of its own, so that its gradient comes after the codec's
        with self.clock.during(part):
            found = work(given).clone()
        self.clock.when_passed(found, f"{part}, backward")
        self.clock.when_passed(given, "losses")
        return found


def time_parts(monkeypatch: pytest.MonkeyPatch, clock: Stopwatch) -> None:
    """Has the lift's own functions timed."""
    true = stage.render

    def render(*given: Any, **options: Any) -> Any:
        with clock.during("rendering"):
            found = true(*given, **options)
        for tensor in (found.colour, found.opacity, found.depth, found.normal):
            clock.when_passed(tensor, "rendering and field, backward")
        return found

    monkeypatch.setattr(stage, "render", render)
    for name in ("judge", "regularise", "look_beside", "back"):
        monkeypatch.setattr(stage, name, clock.wrap(getattr(stage, name), "losses"))
    monkeypatch.setattr(stage.losses, "differ", clock.wrap(stage.losses.differ, "losses"))
    monkeypatch.setattr(stage, "move", clock.wrap(stage.move, "optimiser"))
    monkeypatch.setattr(Occupancy, "update", clock.wrap(Occupancy.update, "occupancy"))


@dataclass(frozen=True)
class Cost:
    step: float  # s, the median
    shares: dict[str, float]  # of all steps together

    @property
    def own(self) -> float:
        """The share that is not the network's."""
        return 1 - sum(self.shares.get(part, 0.0) for part in NETWORK)


def cost_of(
    title: str,
    model: ViewModel,
    reference: Reference,
    settings: LiftSettings,
    monkeypatch: pytest.MonkeyPatch,
    begins: Sequence[int],
    count: int,
) -> Cost:
    """Steps in a row from each of `begins`, where the recipe changes; the first two of a row are not counted."""
    with monkeypatch.context() as patch:
        clock = Stopwatch(model.device)
        time_parts(patch, clock)
        bench = stage.Bench([reference], Timed(model, clock), settings, 0)
        state = stage.begin(bench, silent)
        lengths, total = [], defaultdict[str, float](float)
        for begin in begins:
            state.step = begin
            for number in range(count + 2):
                clock.clear()
                stage.take_gradient(bench, state, silent)
                stage.move(state, bench)
                clock.switch("the rest")
                if number >= 2:
                    lengths.append(sum(clock.seconds.values()))
                    for part, seconds in clock.seconds.items():
                        total[part] += seconds
        began = clock.now()
        stage.portray(bench, state)
        picture = clock.now() - began
    shares = {part: seconds / sum(total.values()) for part, seconds in total.items()}
    print(f"\n{title}: a step {statistics.median(lengths):.3f} s, a preview {picture:.2f} s, {state.parts} parts")
    for part, share in sorted(shares.items(), key=lambda row: -row[1]):
        print(f"  {part:30} {share:6.1%}")
    return Cost(statistics.median(lengths), shares)


def photo_of(model: ViewModel) -> Reference:
    """A disc. Where the model is one that predicts volumes, it sees a ball: what chance predicts is fog."""
    y, x = np.mgrid[:512, :512] / 256 - 1
    rgba = np.full((512, 512, 4), 255, np.uint8)
    rgba[..., :3] = (200, 90, 40)
    rgba[..., 3] = (x**2 + y**2 < 0.64) * 255
    cutout = Cutout(rgba, 0, 0, 512, 512, 512, 0.8, "alpha")
    views = views_stage.condition(cutout, PhotoCamera(10.0), model)
    if not views.occupancy.size:
        return Reference(cutout, views)
    z, y, x = (np.indices(views.occupancy.shape[-3:]) + 0.5) / np.array(views.occupancy.shape[-3:])[:, None, None, None]
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 + (z - 0.5) ** 2 < 0.16
    return Reference(cutout, replace(views, occupancy=np.where(inside, 10, -10)[None].astype(np.float32)))


def embedded_size() -> ViewModel:
    """15 million parameters in its UNet and 4 GFLOP a forward, of random weights, as `load` leaves a model."""
    unet = {
        **POCKET_UNET,
        "block_out_channels": (64, 128, 240),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    described = Description(
        "bench", "original", unet, POCKET_CLIP, None, size=64, tokens="patches", predicts="correction",
        volume=asdict(VolumeDescription()), patch=2,
    )  # fmt: skip
    backend = machine.pick("cpu")
    print(f"\n{backend.name}, {backend.dtype}")
    model = ViewModel(described).to(DTYPES[backend.dtype]).to(memory_format=torch.channels_last)
    print(f"{sum(weight.numel() for weight in model.unet.parameters()) / 1e6:.1f} million parameters")
    return model.eval().requires_grad_(False)


def test_a_step_of_the_embedded_model_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedded_size()
    cost = cost_of("cpu", model, photo_of(model), SETTINGS.lift, monkeypatch, begins=(0, 20), count=12)
    assert cost.step < 0.35


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to measure on")


def full_size(lean: bool) -> ViewModel:
    model = random_model(machine.pick("cuda", "float16"))
    fold_cross_attention(model)
    model.lean = lean
    return model


@contextlib.contextmanager
def card_of(size: float) -> Iterator[None]:
    """A GPU of which torch gets so many bytes and no more."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@needs_cuda
@pytest.mark.parametrize("preset", CARDS)
def test_on_a_small_gpu_the_network_is_the_cost(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(preset=preset, preset_folders=[machine.shipped("presets")]).settings
    begins = (0, 210, 310, 580) if preset == "stable-zero123" else (0, 60)  # where pictures and losses change
    with card_of(CARDS[preset]):
        model = full_size(settings.model.lean)
        cost = cost_of(preset, model, photo_of(model), settings.lift, monkeypatch, begins, count=8)
        peak = torch.cuda.max_memory_allocated()
    print(f"  peak {peak / 1e9:.2f} GB of {CARDS[preset] / 1e9} GB; {cost.own:.0%} of a step is not the network's")
    assert preset == "low-vram" or cost.own < 0.25
