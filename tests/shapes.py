"""Solids with known insides, their pictures, and how well a field has learned them: for tests and for `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.cleanup import clean
from zero123cli.meshing.isosurface import choose_level, extract, fill_inside, look_over
from zero123cli.radiance.field import Field, density_at
from zero123cli.radiance.occupancy import Marching, Occupancy
from zero123cli.radiance.rays import Rays, cast_rays
from zero123cli.radiance.render import render, render_blocks
from zero123cli.scenes import filling, raycast
from zero123cli.scenes.surface import Material, Surface, normalise

Painted = tuple[trimesh.Trimesh, tuple[float, float, float]]


def join(*parts: Painted) -> Surface:
    meshes = [mesh for mesh, _ in parts]
    begins = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + begin for mesh, begin in zip(meshes, begins, strict=False)]
    material = [np.full(len(mesh.faces), number) for number, mesh in enumerate(meshes)]
    return normalise(
        Surface(
            np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float32),
            np.concatenate(faces).astype(np.int32),
            tuple(Material((*colour, 1.0)) for _, colour in parts),
            np.concatenate(material).astype(np.int32),
        )
    )


def sphere() -> Surface:
    return join((trimesh.creation.icosphere(4, 0.5), (0.8, 0.3, 0.1)))


def box_with_hole() -> Surface:
    bar = trimesh.creation.box((0.35, 0.35, 1.2))
    return join((trimesh.creation.box((1.0, 0.7, 0.6)).difference(bar), (0.2, 0.5, 0.3)))


def two_spheres() -> Surface:
    other = trimesh.creation.icosphere(4, 0.2)
    other.apply_translation([0.55, 0.0, 0.0])
    return join((trimesh.creation.icosphere(4, 0.3), (0.8, 0.1, 0.1)), (other, (0.1, 0.2, 0.8)))


SOLIDS: dict[str, Callable[[], Surface]] = {
    "sphere": sphere,
    "box with a hole": box_with_hole,
    "two spheres": two_spheres,
}


@dataclass(frozen=True)
class Shown:
    rays: Rays
    pixels: Tensor  # (R, 4), straight alpha, in [0, 1]


def show(prepared: raycast.Prepared, count: int, size: int, seed: int) -> Shown:
    """Pictures from all around, most from above."""
    rng = np.random.default_rng(seed)
    rise = np.degrees(np.arcsin(rng.uniform(-0.6, 0.95, count)))
    views = [Viewpoint(float(rng.uniform(0, 360)), float(up), 1.85) for up in rise]
    pictures = raycast.render_views(prepared, views, size=size)
    pixels = np.stack([picture.rgba for picture in pictures]).reshape(-1, 4).astype(np.float32) / 255
    return Shown(cast_rays(views, size), torch.from_numpy(pixels))


def fit_views(
    field: Field,
    occupancy: Occupancy,
    rays: Rays,
    pixels: Tensor,  # (R, C + 1), straight alpha, in [0, 1]
    *,
    steps: int = 300,
    batch: int = 4096,
    rate: float = 0.01,
    marching: Marching | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """The usual photometric fit, in front of a background that changes, so that what is see-through is told apart."""
    marching = marching or Marching()
    channels = field.description.channels
    optimiser = torch.optim.Adam(field.parameters(), rate, (0.9, 0.99), eps=1e-15, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    for step in range(steps):
        if step % 16 == 0:
            occupancy.update(field.density, marching.step, generator, everywhere=step < 64)
        which = torch.randint(len(rays), (batch,), generator=generator).to(rays.origins.device)
        background = torch.rand(batch, channels, generator=generator).to(rays.origins.device)
        seen = render(
            field, rays[which], occupancy, marching=marching, background=background, faint=1e-3,
            generator=generator,
        )  # fmt: skip
        alpha = pixels[which, channels:]
        wanted = pixels[which, :channels] * alpha + background * (1 - alpha)
        loss = F.mse_loss(seen.colour, wanted) + F.mse_loss(seen.opacity, alpha[:, 0])
        if loss.requires_grad:
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
        schedule.step()


def psnr(field: Field, occupancy: Occupancy, shown: Shown) -> float:
    """On white."""
    marching = Marching(stratified=False)
    seen, _, _ = render_blocks(field, shown.rays, occupancy, background=torch.ones(3), marching=marching)
    alpha = shown.pixels[:, 3:]
    wanted = shown.pixels[:, :3] * alpha + 1 - alpha
    return float(-10 * (seen - wanted).square().mean().log10())


def overlap(field: Field, prepared: raycast.Prepared) -> float:
    """IoU of the program's own surface of a field with what is known to be inside."""

    def density(points: np.ndarray) -> np.ndarray:
        return density_at(field, points)

    volume = look_over(density, reach=field.description.bound)
    level = choose_level(volume).value
    found = clean(*extract(*fill_inside(density, volume, level), level, 128))
    ours = filling.occupancy(raycast.prepare(plain(found.vertices, found.faces)), 64)
    theirs = filling.occupancy(prepared, 64)
    return float((ours & theirs).sum() / (ours | theirs).sum())


def plain(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    return Surface(
        vertices.astype(np.float32), faces.astype(np.int32), (Material((1, 1, 1, 1)),), np.zeros(len(faces), np.int32)
    )
