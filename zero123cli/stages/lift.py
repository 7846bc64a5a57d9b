"""Stage 3, views -> field: a radiance field is optimised until the view model finds nothing to object to.

Each step renders the field where the photo was taken and holds it to the photo, renders it from somewhere else and asks
the view model which way that picture ought to go (`diffusion.guidance`), adds what keeps a surface sane
(`radiance.losses`), and moves the field once. The recipes are presets: SJC as Zero-1-to-3 used it, the 600 steps of
Stable Zero123, and our own.
All chance is drawn from the seed and the number of the step, so that a continued run goes the way it would have gone.
Letters: B views, S their side, R rays, C channels of colour, h and w of a latent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifacts import Cutout, Field, Views, to_json
from ..cameras import Viewpoint
from ..diffusion.guidance import Levels, Ways, draw_times, guide, levels_between
from ..diffusion.viewmodel import Description, look_from
from ..diffusion.volume import volume_grid
from ..errors import DivergedError, OutOfMemoryError, UsageError, is_out_of_memory
from ..radiance import field as fields
from ..radiance import losses
from ..radiance.fit import fit_volume
from ..radiance.hashgrid import GridDescription, why_no_triton
from ..radiance.occupancy import Marching, Occupancy
from ..radiance.rays import Rays, cast_rays
from ..radiance.render import Rendering, in_pieces, render
from ..schedules import stage_at, value_at
from ..settings import LiftSettings
from ..watch import Caution, Progress, Watch
from .unfinished import Preview, State, resume, save, try_to_save
from .views import recall

SAVE_SECONDS = 30.0
LOOK = 16  # steps between two looks at which cells are empty
WARM = 256  # steps in which all cells are looked at
SKIPS = 10  # steps in a row without a finite gradient after which a run has diverged
FAR = 10.0  # the depth of what is not there, as published
NEAR = 0.05  # how far the eye of the near view is moved
FIRST_FEW = 30  # steps after which a field that shows nothing, or nothing but itself, is not going to change
MOST_PIECES = 64  # that a picture is rendered in
SMALLEST = 32  # px; no picture is made smaller to save memory
PREVIEW_SIDE = 128  # px

FIELDS = {
    "small": fields.FieldDescription(
        grid=GridDescription(levels=8, table_log2=16, base=16, growth=1.4), hidden=(32,), blob_radius=0.5
    ),
    "full": fields.THREESTUDIO,
    "voxels": fields.SJC,
}


class Prior(Protocol):
    """What the lift needs of a view model; an oracle that knows the answer is one too."""

    description: Description
    alphas: Tensor

    @property
    def device(self) -> torch.device: ...

    def predict(
        self, condition: Any, latents: Tensor, timesteps: Tensor, poses: Sequence[Viewpoint], guidance: float
    ) -> Tensor: ...

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Reference:
    """A photo of the object, and where it was taken from."""

    cutout: Cutout
    views: Views
    azimuth_deg: float = 0.0  # from the first photo's

    @property
    def viewpoint(self) -> Viewpoint:
        return Viewpoint(self.azimuth_deg, self.views.photo_elevation_deg, self.views.distance)


@dataclass(frozen=True)
class Seen:
    """Pictures of the field."""

    pictures: Tensor  # (B, 4, S, S): colour on white and opacity, in [0, 1]; or latents
    depth: Tensor  # (B, S, S), far behind the object where nothing is
    rays: Rays
    rendering: Rendering


def lift(
    references: Sequence[Reference],
    model: Prior,
    settings: LiftSettings,
    seed: int,
    watch: Watch,
    partial: Path | None = None,  # the folder in which an unfinished run is kept
) -> Field:
    """The field that the photos and the view model agree on."""
    with telling_of_memory(model.device, settings):
        bench = Bench(references, model, settings, seed)
        state = begin(bench, watch)
        optimise(bench, state, watch, partial)
        return to_artifact(state)


def optimise(bench: Bench, state: State, watch: Watch, partial: Path | None) -> None:
    """Step by step to the end of the recipe, from where an earlier run got to."""
    if partial is not None:
        resume(state, partial, watch, coarser=bench.settings.allow_degrade)
        if state.halved:
            watch(degraded(state))
    preview = Preview(partial)
    saved = time.monotonic()
    moving = False  # a step that is cut short while it moves the field leaves it torn
    try:
        while state.step < bench.steps:
            terms = take_gradient(bench, state, watch)
            moving = True
            move(state, bench)
            refresh(state, bench)
            moving = False
            watch(Progress("lift", state.step, bench.steps, told(terms), preview.shown))
            look_after(bench, state, terms)
            if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
                try_to_save(state, partial, watch)
                preview.renew(lambda: portray(bench, state))
                saved = time.monotonic()
    except BaseException as error:
        # From a field that has failed its check there is nothing to go on: it would pass without one.
        if partial is not None and not moving and state.step and not isinstance(error, DivergedError):
            with contextlib.suppress(OSError):  # what ended the run is what is told
                save(state, partial)
        raise


# What does not change -------------------------------------------------------------------------------------------------


class Bench:
    """The photos, the model and the settings of one run, ready for use."""

    def __init__(self, references: Sequence[Reference], model: Prior, settings: LiftSettings, seed: int) -> None:
        self.references, self.model, self.settings, self.seed = references, model, settings, seed
        self.device = model.device
        self.is_latent = settings.field == "voxels"
        if self.is_latent and model.description.vae is None:
            remedy = "name a published model with --model, or choose another preset"
            raise UsageError("this view model has no latents to lift", where="lift.field", remedy=remedy)
        dtype = getattr(model, "dtype", torch.float32)
        self.conditions = [recall(one.views, one.viewpoint, model.device, dtype) for one in references]
        self.white = white_of(model) if self.is_latent else torch.ones(3, device=self.device)
        self.ways = Ways(settings.scale, settings.weighting, settings.walk)
        self.scaled: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def from_volume(self) -> bool:
        """Whether the field starts from what the view model predicts."""
        return self.settings.start != "blob" and self.conditions[0].volume is not None and not self.is_latent

    @property
    def steps(self) -> int:
        return self.settings.refine_steps if self.from_volume else self.settings.steps

    @property
    def marching(self) -> Marching:
        settings = self.settings
        step = 2 * 3**0.5 * settings.bound / settings.fineness
        return Marching(step=step, limit=settings.samples, stratified=not self.is_latent)

    def faint(self, occupancy: Occupancy) -> float:
        """The opacity below which a sample is left out of a picture."""
        if self.settings.field == "full":  # as threestudio does
            return min(occupancy.threshold, float(occupancy.opacity.mean()))
        return 0.0 if self.is_latent else 1e-3

    def side(self, sides: tuple[float, ...], step: int, halved: int) -> int:
        """Of pictures at this step; latents have the model's own."""
        if self.is_latent:
            return self.model.description.latent_side
        whole = int(stage_at(sides, step))
        return max(whole >> halved, min(whole, SMALLEST))

    def chance(self, step: int, what: int) -> torch.Generator:
        """Fresh chance of a step: the same however the run came to it."""
        numbers = np.random.SeedSequence([self.seed, step, what]).generate_state(2)
        return torch.Generator().manual_seed(int(numbers[0]) << 31 ^ int(numbers[1]))

    def photo(self, number: int, size: int) -> tuple[Tensor, Tensor]:  # (1, 3, S, S) in [0, 1] on white, (1, 1, S, S)
        """A photo and its mask at a side."""
        if (number, size) in self.scaled:
            return self.scaled[number, size]
        rgba = torch.from_numpy(self.references[number].cutout.rgba.astype(np.float32) / 255).permute(2, 0, 1)[None]
        alpha = rgba[:, 3:]
        shown = torch.cat([rgba[:, :3] * alpha + 1 - alpha, alpha], 1)
        scaled = F.interpolate(shown, (size, size), mode="area" if shown.shape[-1] >= size else "bilinear")
        scaled = scaled.to(self.device)
        self.scaled[number, size] = scaled[:, :3], scaled[:, 3:]
        return self.scaled[number, size]

    def nearest(self, pose: Viewpoint) -> int:
        """The photo whose camera stands nearest to the pose's."""
        place = np.array(replace(pose, distance=1.0).position())
        near = [float(place @ replace(one.viewpoint, distance=1.0).position()) for one in self.references]
        return int(np.argmax(near))


@torch.no_grad()
def white_of(model: Prior) -> Tensor:  # (C,)
    """What a latent of a white picture is on average."""
    side = model.description.size
    latents = model.encode(torch.ones(1, model.description.picture_channels, side, side, device=model.device))
    return latents.float().mean((0, 2, 3))


# Beginning ------------------------------------------------------------------------------------------------------------


def begin(bench: Bench, watch: Watch) -> State:
    """A blob, or the volume that the view model predicts."""
    settings = bench.settings
    described = replace(FIELDS[settings.field], bound=settings.bound)
    volume = bench.conditions[0].volume
    if settings.start == "volume" and not bench.from_volume:
        watch(Caution("no-volume", "this view model predicts no volume: the field starts from a blob"))
    if bench.device.type == "cuda" and (reason := why_no_triton()):
        text = f"Triton's kernels cannot be used ({reason}): torch's own are slower and take more memory"
        watch(Caution("no-triton", text, "install triton and a C compiler", about_run=True))
    if bench.from_volume:
        described = replace(described, blob=0.0, density_shift=-1.0)
    field = fields.Field(described, generator=bench.chance(0, 0)).to(bench.device)
    if bench.from_volume:
        assert volume is not None
        cells = volume_grid(volume, look_from([bench.references[0].viewpoint]), settings.bound, 64)
        fit_volume(field, cells, solid=settings.solid, generator=bench.chance(0, 1))
    occupancy = Occupancy(settings.bound, cells=settings.cells).to(bench.device)
    if not bench.is_latent:  # fog is where a voxel field begins: none of it is passed over
        occupancy.update(field.density, bench.marching.step, bench.chance(0, 2))
    return State(field, occupancy, OPTIMISERS[settings.optimiser](field.parameters(), settings.rate))


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, betas=(0.9, 0.99)),  # threestudio's
    "adamax": torch.optim.Adamax,
}


# A step ---------------------------------------------------------------------------------------------------------------


def take_gradient(bench: Bench, state: State, watch: Watch) -> dict[str, float]:
    """The gradient of all losses at this step, left in the field; what memory does not hold is taken in parts."""
    while True:
        try:
            state.optimiser.zero_grad()
            terms = look_at_photos(bench, state, watch)
            terms |= look_around(bench, state, watch)
            return terms
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            less = back_off(bench, state)
            if less is None:
                raise
        torch.cuda.empty_cache()
        watch(less)


def move(state: State, bench: Bench) -> None:
    """One step of the optimiser; a gradient that is not a number moves nothing."""
    state.step += 1
    parameters = [parameter for parameter in state.field.parameters() if parameter.grad is not None]
    if not parameters:  # nothing was asked of the field at this step
        return
    norm = torch.stack([parameter.grad.norm() for parameter in parameters if parameter.grad is not None]).norm()
    if bool(torch.isfinite(norm)):
        state.skipped = 0
        state.optimiser.step()
        return
    state.skipped += 1
    if state.skipped >= SKIPS:
        raise DivergedError(
            f"no finite gradient in {SKIPS} steps in a row",
            where=f"step {state.step} of the lift",
            remedy="try another --seed, --dtype float32 or a lower lift.rate; the last good field is kept",
        )


def refresh(state: State, bench: Bench) -> None:
    """Where something is, looked up anew once in a while."""
    if state.step % LOOK == 0 and state.step < bench.steps and not bench.is_latent:
        state.occupancy.update(
            state.field.density, bench.marching.step, bench.chance(state.step, 2), everywhere=state.step < WARM
        )


def look_at_photos(bench: Bench, state: State, watch: Watch) -> dict[str, float]:
    """The field from where each photo was taken, held to it."""
    settings, step = bench.settings, state.step
    if step % settings.photo_every:
        return {}
    size = bench.side(settings.photo_size, step, state.halved)
    totals: dict[str, float] = {}
    for number, reference in enumerate(bench.references):
        wanted, mask = bench.photo(number, bench.model.description.size if bench.is_latent else size)
        pose = camera_at(bench, reference.viewpoint)
        seen = see(bench, state, [pose], size, bench.chance(step, 10 + number), watch)
        terms = regularise(bench, state, seen, "photo")
        if bench.is_latent:
            shown = bench.model.decode(seen.pictures) / 2 + 0.5
            terms["colour"] = value_at(settings.colour, step) * losses.differ(shown, wanted)
        else:
            terms["colour"] = value_at(settings.colour, step) * losses.differ(seen.pictures[:, :3], wanted)
            terms["mask"] = value_at(settings.mask, step) * losses.differ(seen.pictures[:, 3:], mask)
        add_up(totals, back(terms))
    return totals


def look_around(bench: Bench, state: State, watch: Watch) -> dict[str, float]:
    """The field from poses drawn at random, judged by the view model."""
    settings, step = bench.settings, state.step
    if not value_at(settings.guidance, step):
        return {}
    batch, size = int(stage_at(settings.batch, step)), bench.side(settings.size, step, state.halved)
    poses = draw_poses(settings, batch, bench.chance(step, 3), bench.references[0].viewpoint)
    times = draw_times(noise_levels(settings, step), batch, bench.chance(step, 4))
    side = bench.model.description.latent_side
    noise = torch.randn((batch, 4, side, side), generator=bench.chance(step, 5))
    totals: dict[str, float] = {}
    for number, some in enumerate(torch.arange(batch).chunk(state.parts)):
        few = [poses[k] for k in some]
        chance = bench.chance(step, 100 + number)
        seen = see(bench, state, [camera_at(bench, pose) for pose in few], size, chance, watch)
        terms = regularise(bench, state, seen, "around")
        if value_at(settings.near_view, step):
            terms["near"] = value_at(settings.near_view, step) * look_beside(bench, state, few, seen, size, watch)
        objection = judge(bench, seen.pictures, few, times[some], noise[some])
        terms["guidance"] = value_at(settings.guidance, step) * objection
        add_up(totals, back({name: term * (len(few) / batch) for name, term in terms.items()}))
    return totals


def judge(bench: Bench, seen: Tensor, poses: Sequence[Viewpoint], times: Tensor, noise: Tensor) -> Tensor:
    """The view model's objection to pictures, each told of the photo that is nearest."""
    latents = seen if bench.is_latent else to_latents(bench.model, seen, noise)
    nearest = torch.tensor([bench.nearest(pose) for pose in poses])
    total = latents.new_zeros(())
    ways = replace(bench.ways, clamp=bench.settings.clamp)
    for number in sorted(set(nearest.tolist())):
        which = (nearest == number).nonzero()[:, 0]
        asked = [poses[k] for k in which]
        found = guide(
            bench.settings.kind, bench.model, bench.conditions[number], latents[which.to(latents.device)], asked,
            times[which], noise[which], ways,
        )  # fmt: skip
        total = total + found * (len(which) / len(poses))
    return total


def to_latents(model: Prior, seen: Tensor, noise: Tensor) -> Tensor:  # (B, 4, S, S) in [0, 1] -> (B, C, h, w)
    described = model.description
    pictures = F.interpolate(seen, (described.size, described.size), mode="bilinear", antialias=True)
    pictures = pictures[:, : described.picture_channels] * 2 - 1
    return model.encode(pictures, None if described.vae is None else noise.to(pictures))


def noise_levels(settings: LiftSettings, step: int) -> Levels:
    return levels_between(value_at(settings.low_noise, step), value_at(settings.high_noise, step))


def look_beside(bench: Bench, state: State, poses: Sequence[Viewpoint], seen: Seen, size: int, watch: Watch) -> Tensor:
    """The same with the eye moved a little: both pictures should be alike."""
    step = state.step
    aside = [camera_at(bench, beside(pose, bench.chance(step, 200 + k))) for k, pose in enumerate(poses)]
    near = see(bench, state, aside, size, bench.chance(step, 300), watch)
    return losses.near_view(seen.pictures, near.pictures, seen.depth, near.depth)


def regularise(bench: Bench, state: State, seen: Seen, where: Literal["photo", "around"]) -> dict[str, Tensor]:
    """What a surface should be like, whatever the pictures say."""
    settings, step, found = bench.settings, state.step, seen.rendering
    side = seen.depth.shape[-1]
    smooth = settings.depth_photo if where == "photo" else settings.depth_around
    wanted: dict[str, tuple[tuple[float, ...], Callable[[], Tensor]]] = {
        "depth": (smooth, lambda: losses.depth_smoothness(seen.depth)),
        "opaque": (settings.opaqueness, lambda: losses.opaqueness(found.opacity)),
    }
    if where == "around":
        wanted["sparse"] = (settings.sparsity, lambda: losses.sparsity(found.opacity))
        wanted["empty"] = (settings.emptiness, lambda: losses.emptiness(found.weights))
        wanted["variation"] = (settings.variation, lambda: losses.total_variation(sample_densities(bench, state)))
    if found.normal is not None and found.normals is not None and len(found.samples):
        normal, normals, ways = found.normal, found.normals, seen.rays.ways[found.samples.ray()]
        wanted["orient"] = (
            settings.orientation,
            lambda: losses.orientation(found.weights, normals, ways, found.opacity),
        )
        wanted["normals"] = (
            settings.normal_smoothness,
            lambda: losses.normal_smoothness((normal / 2 + 0.5 * found.opacity[:, None]).view(-1, side, side, 3)),
        )
        wanted["bends"] = (settings.normal_change, lambda: bends(bench, state, found))
    return {name: value_at(weight, step) * term() for name, (weight, term) in wanted.items() if value_at(weight, step)}


def bends(bench: Bench, state: State, found: Rendering) -> Tensor:
    """How normals change beside the samples; of at most so many, since each costs a second derivative."""
    assert found.normals is not None
    chance = bench.chance(state.step, 400)
    which = torch.randperm(len(found.samples), generator=chance)[:8192].to(bench.device)
    aside = torch.randn((len(which), 3), generator=chance).to(bench.device) * 0.01
    return losses.normal_change(found.normals[which], state.field.normal(found.samples.points[which] + aside))


def sample_densities(bench: Bench, state: State, side: int = 16) -> Tensor:  # (16, 16, 16)
    """Opacities of a small cube of neighbouring points, anywhere in the box."""
    bound = bench.settings.bound
    step = 2 * bound / 64
    corner = (torch.rand(3, generator=bench.chance(state.step, 500)) * 2 - 1) * (bound - side * step / 2)
    along = (torch.arange(side) - side / 2) * step
    points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), -1) + corner
    density = state.field.density(points.view(-1, 3).to(bench.device))
    return (1 - torch.exp(-density * step)).view(side, side, side)


# Seeing ---------------------------------------------------------------------------------------------------------------


def see(
    bench: Bench, state: State, poses: Sequence[Viewpoint], size: int, chance: torch.Generator, watch: Watch
) -> Seen:
    """The field from these poses."""
    settings, step = bench.settings, state.step
    rays = cast_rays(poses, size, settings.fov_deg, device=bench.device)
    weights = (settings.orientation, settings.normal_smoothness, settings.normal_change)
    normals: fields.NormalKind | None = "analytic" if any(value_at(weight, step) for weight in weights) else None
    faint = bench.faint(state.occupancy)

    def draw(rays: Rays, generator: torch.Generator) -> Rendering:
        return render(
            state.field, rays, state.occupancy, marching=bench.marching, background=bench.white, normals=normals,
            faint=faint, generator=generator, watch=watch,
        )  # fmt: skip

    rendering = draw(rays, chance) if state.pieces == 1 else in_pieces(draw, rays, state.pieces, chance)
    shape = (len(poses), size, size)
    colour = rendering.colour.view(*shape, -1).permute(0, 3, 1, 2)
    depth = (rendering.depth + (1 - rendering.opacity) * FAR).view(shape)
    pictures = colour if bench.is_latent else torch.cat([colour, rendering.opacity.view(shape)[:, None]], 1)
    return Seen(pictures, depth, rays, rendering)


@torch.no_grad()
def portray(bench: Bench, state: State) -> np.ndarray:  # uint8 (S, 4 S, 3)
    """The field for people: from where the photo was taken, then a quarter turn further each. Takes no chance."""
    settings, photo = bench.settings, bench.references[0].viewpoint
    poses = [camera_at(bench, replace(photo, azimuth_deg=photo.azimuth_deg + turn)) for turn in (0, 90, 180, 270)]
    rays = cast_rays(poses, PREVIEW_SIDE, settings.fov_deg, device=bench.device)
    marching = replace(bench.marching, stratified=False)
    few = max(1, fields.BLOCK // settings.samples)  # rays at once, for the memory
    parts = [
        render(state.field, rays[k : k + few], state.occupancy, marching=marching, background=bench.white).colour
        for k in range(0, len(rays), few)
    ]
    shown = as_colours(torch.cat(parts).cpu().numpy()).reshape(4, PREVIEW_SIDE, PREVIEW_SIDE, 3)
    return (np.hstack(list(shown)).clip(0, 1) * 255).round().astype(np.uint8)


def camera_at(bench: Bench, pose: Viewpoint) -> Viewpoint:
    """The renderer's camera for a pose of the view model: same direction, the recipe's distance."""
    own = bench.references[0].viewpoint.distance
    return replace(pose, distance=bench.settings.distance * pose.distance / own)


def draw_poses(settings: LiftSettings, count: int, chance: torch.Generator, photo: Viewpoint) -> list[Viewpoint]:
    """Anywhere around: elevations evenly in degrees or evenly over the sphere's band, as often the one as the other; or
    the directions of the points of a cube."""
    low, high = (math.radians(angle) for angle in settings.elevations)
    poses = []
    for turn, share, kind, near in torch.rand((count, 4), generator=chance, dtype=torch.float64).tolist():
        even = low + share * (high - low)
        banded = math.asin(math.sin(low) + share * (math.sin(high) - math.sin(low)))
        distance = photo.distance * (1 + settings.distance_spread * (2 * near - 1))
        pose = Viewpoint(360.0 * turn, math.degrees(even if kind < 0.5 else banded), distance)
        poses.append(draw_in_cube(pose, settings.elevations, chance) if settings.directions == "cube" else pose)
    return poses


def draw_in_cube(otherwise: Viewpoint, elevations: tuple[float, ...], chance: torch.Generator) -> Viewpoint:
    """The first of some directions of a cube's points that is neither too low nor too high."""
    x, y, z = torch.rand((3, 64), generator=chance, dtype=torch.float64) * 2 - 1
    found = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    for number in ((found >= elevations[0]) & (found <= elevations[1])).nonzero()[:1, 0].tolist():
        azimuth = math.degrees(math.atan2(x[number], z[number])) % 360
        return replace(otherwise, azimuth_deg=azimuth, elevation_deg=float(found[number]))
    return otherwise


def beside(pose: Viewpoint, chance: torch.Generator) -> Viewpoint:
    """The eye moved by a random vector of a fixed length, still looking at the middle."""
    aside = F.normalize(torch.randn(3, generator=chance, dtype=torch.float64), dim=0).numpy() * NEAR
    x, y, z = np.array(pose.position()) + aside
    distance = float(np.sqrt(x * x + y * y + z * z))
    return Viewpoint(math.degrees(math.atan2(x, z)), math.degrees(math.asin(y / distance)), distance)


# Looking after a run --------------------------------------------------------------------------------------------------


def back(terms: dict[str, Tensor]) -> dict[str, float]:
    """Adds the gradient of the sum; the values."""
    total = torch.stack([term.float() for term in terms.values()]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]  # torch types it in part
    return {name: float(term.detach()) for name, term in terms.items()}


def add_up(totals: dict[str, float], terms: dict[str, float]) -> None:
    for name, value in terms.items():
        totals[name] = totals.get(name, 0.0) + value


def told(terms: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in terms.items())


def look_after(bench: Bench, state: State, terms: dict[str, float]) -> None:
    """Ends a run whose field went empty or solid, as soon as that is clear."""
    if state.step % FIRST_FEW:
        return
    with torch.no_grad():
        along = torch.linspace(-1, 1, 24) * bench.settings.bound * 0.97
        points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), -1).view(-1, 3)
        opacity = 1 - torch.exp(-state.field.density(points.to(bench.device)) * bench.marching.step * 4)
        share = float((opacity > 0.5).float().mean())
        most = float(opacity.max())
    where = f"step {state.step} of the lift"
    if most < 0.01:
        remedy = "raise lift.mask or lower lift.sparsity and lift.emptiness"
        raise DivergedError("the field went empty", where=where, remedy=remedy)
    if share > 0.97:
        remedy = "raise lift.mask or lift.sparsity, or lower lift.rate"
        raise DivergedError("the field went solid: it fills its whole box", where=where, remedy=remedy)


# Memory ---------------------------------------------------------------------------------------------------------------


def back_off(bench: Bench, state: State) -> Caution | None:
    """Asks less of the memory from here on, and says what; None when nothing is left to give up."""
    settings, step = bench.settings, state.step
    batch = int(stage_at(settings.batch, step))
    if state.parts < batch:
        state.parts = min(2 * state.parts, batch)
        text = f"memory is short: views are rendered in {state.parts} parts"
        return Caution("memory-backoff", text, "closing other programs could make room", about_run=True)
    if state.pieces < MOST_PIECES:
        state.pieces *= 4
        text = f"memory is short: pictures are rendered in {state.pieces} pieces, each of them twice"
        return Caution("memory-backoff", text, "closing other programs could make room", about_run=True)
    now, then = (
        [bench.side(sides, step, halved) for sides in (settings.size, settings.photo_size)]
        for halved in (state.halved, state.halved + 1)
    )
    if not settings.allow_degrade or now == then:
        return None
    state.halved += 1
    return degraded(state)


def degraded(state: State) -> Caution:
    text = f"memory is short: pictures are rendered at 1/{2**state.halved} of their side, or {SMALLEST} px"
    return Caution("degraded", text, "the mesh will be coarser than its settings say", about_run=True)


@contextlib.contextmanager
def telling_of_memory(device: torch.device, settings: LiftSettings) -> Iterator[None]:
    """Too little memory that nothing has helped, as people are told of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        whose = "machine" if device.type == "cpu" else "GPU"
        way_out = "" if settings.allow_degrade else ", or --allow-degrade"
        raise OutOfMemoryError(
            f"the {whose}'s memory does not suffice, not even for single views",
            where="the lift",
            remedy=f"try --set model.lean=true --set lift.batch=1, smaller lift.size and lift.samples{way_out}",
        ) from error


# The artifact ---------------------------------------------------------------------------------------------------------


def to_artifact(state: State) -> Field:
    """The field as inert values."""
    return Field(
        weights=torch.nn.utils.parameters_to_vector(state.field.parameters()).detach().cpu().numpy(),
        description=to_json(fields.describe(state.field)).decode(),
    )


def to_field(artifact: Field, device: torch.device | str = "cpu") -> fields.Field:
    """The field of an artifact, ready to be asked."""
    field = fields.Field(fields.read_description(json.loads(artifact.description)))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(artifact.weights.copy()), field.parameters())
    return field.requires_grad_(False).to(device)


# What a latent of Stable Diffusion's codec looks like, roughly: rows are its channels, columns red, green and blue.
LATENT_COLOURS = np.array(
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
)


def as_colours(values: np.ndarray) -> np.ndarray:  # (..., C) -> (..., 3)
    """What a field holds as colours, also where it holds latents."""
    return np.clip(values @ LATENT_COLOURS / 2 + 0.5, 0, 1) if values.shape[-1] == 4 else values
