"""Plain surfaces for tests: a mesh in one colour, a textured square, several as one."""

from __future__ import annotations

import numpy as np
import trimesh

from zero123cli.scenes.raycast import Lighting
from zero123cli.scenes.surface import Material, Surface

EVEN = Lighting((1, 1, 1), (1, 1, 1))  # colours as they are


def surface_of(mesh: trimesh.Trimesh, colour: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Surface:
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    return Surface(vertices, faces, (Material(colour, roughness=1.0),), np.zeros(len(faces), np.int32))


def quad(size: float = 1.0, z: float = 0.0, texture: np.ndarray | None = None, **options: np.ndarray) -> Surface:
    """Upright, facing +Z, its texture once on it."""
    half = size / 2
    vertices = np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)[faces]
    material = Material((1, 1, 1, 1), texture, roughness=1.0)
    return Surface(vertices, faces, (material,), np.zeros(2, np.int32), uv, **options)


def together(*surfaces: Surface) -> Surface:
    """Several surfaces with textures as one."""
    starts = np.cumsum([0] + [len(each.vertices) for each in surfaces])
    return Surface(
        np.concatenate([each.vertices for each in surfaces]),
        np.concatenate([each.faces + start for each, start in zip(surfaces, starts[:-1], strict=True)]).astype(
            np.int32
        ),
        tuple(each.materials[0] for each in surfaces),
        np.repeat(np.arange(len(surfaces)), [len(each.faces) for each in surfaces]).astype(np.int32),
        np.concatenate([each.uv if each.uv is not None else np.zeros((len(each.faces), 3, 2)) for each in surfaces]),
    )


def plain(colour: tuple[int, int, int, int]) -> np.ndarray:
    return np.full((4, 4, 4), colour, np.uint8)
