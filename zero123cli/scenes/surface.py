"""What a renderer needs of an object: triangles and what they look like.

Letters: V vertices, F triangles, h and w of a texture. y is up; a normalised object is centred on the origin with its
longest box side 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Material:
    colour: tuple[float, float, float, float]  # linear RGBA factor, multiplied with the texture
    texture: np.ndarray | None = None  # uint8 (h, w, 4), sRGB colours, row 0 at the top (v = 1)
    roughness: float = 0.9
    metallic: float = 0.0


@dataclass(frozen=True)
class Surface:
    vertices: np.ndarray  # float32 (V, 3)
    faces: np.ndarray  # int32 (F, 3)
    materials: tuple[Material, ...]
    material: np.ndarray  # int32 (F,), which of `materials`
    uv: np.ndarray | None = None  # float32 (F, 3, 2) at each corner; v goes up, as in OBJ and trimesh
    colours: np.ndarray | None = None  # float32 (F, 3, 4) linear RGBA at each corner, multiplied in


def normalise(surface: Surface) -> Surface:
    """The object centred by its box, its longest side 1."""
    used = surface.vertices[np.unique(surface.faces)].astype(np.float64)
    low, high = used.min(0), used.max(0)
    scale = 1.0 / float((high - low).max())
    moved = (surface.vertices.astype(np.float64) - (low + high) / 2) * scale
    return replace(surface, vertices=moved.astype(np.float32))


def to_linear(colour: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] to linear light."""
    return np.where(colour <= 0.04045, colour / 12.92, ((np.maximum(colour, 0) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light to sRGB values in [0, 1], what is brighter cut off."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
