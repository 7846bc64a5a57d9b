"""Solids with known insides, their pictures, and how well a field has learned them: for tests and for `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.radiance.field import Field, density_at
from zero123cli.radiance.occupancy import Marching, Occupancy
from zero123cli.radiance.rays import Rays, cast_rays
from zero123cli.radiance.render import render_blocks
from zero123cli.scenes import raycast
from zero123cli.scenes.surface import Material, Surface, normalise

LEVEL = 7.0  # density: half opaque over a tenth of the object
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


def psnr(field: Field, occupancy: Occupancy, shown: Shown) -> float:
    """On white."""
    marching = Marching(stratified=False)
    seen, _, _ = render_blocks(field, shown.rays, occupancy, background=torch.ones(3), marching=marching)
    alpha = shown.pixels[:, 3:]
    wanted = shown.pixels[:, :3] * alpha + 1 - alpha
    return float(-10 * (seen - wanted).square().mean().log10())


def overlap(field: Field, prepared: raycast.Prepared, cells: int = 96) -> float:
    """IoU of what marching cubes encloses with what is known to be inside."""
    import mcubes  # type: ignore[import-not-found, unused-ignore]

    line = (np.arange(cells) + 0.5) / cells - 0.5
    places = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).astype(np.float32)
    density = np.pad(density_at(field, places), 1)  # closed at the sides
    vertices, faces = mcubes.marching_cubes(density, LEVEL)
    mesh = trimesh.Trimesh((vertices - 0.5) / cells - 0.5, faces[:, ::-1])
    ours = raycast.occupancy(raycast.prepare(plain(mesh)), 64)
    theirs = raycast.occupancy(prepared, 64)
    return float((ours & theirs).sum() / (ours | theirs).sum())


def plain(mesh: trimesh.Trimesh) -> Surface:
    faces = mesh.faces.astype(np.int32)
    return Surface(mesh.vertices.astype(np.float32), faces, (Material((1, 1, 1, 1)),), np.zeros(len(faces), np.int32))
