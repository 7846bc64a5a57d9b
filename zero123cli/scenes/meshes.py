"""Reads a mesh file into one surface: the whole scene as triangles, with colours and textures, y up.

Files come from strangers, and every failure is one MeshError.
Letters: V vertices, F triangles.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import MeshError, MissingInputError, Zero123Error
from .dae import read_dae
from .gltf import read_glb, read_gltf
from .obj import read_obj
from .parts import MAX_BYTES, TEXTURE_SIDE, Part, Shelf, check_size, read_regular
from .ply import read_ply, read_stl
from .surface import Material, Surface

MAX_PLACE = 1e6  # the largest coordinate: float32 keeps six figures
LEAST_AREA = 1e-12  # twice a triangle's area over the square of the longest box side; below it counts as a line

READABLE = "give a GLB, glTF, OBJ, PLY, STL or DAE file"
AGAIN = "export or download it again"

READERS: dict[str, Callable[[bytes, Shelf], tuple[list[Part], list[Material]]]] = {
    ".glb": read_glb,
    ".gltf": read_gltf,
    ".obj": read_obj,
    ".ply": read_ply,
    ".stl": read_stl,
    ".dae": read_dae,
}


def read_surface(path: Path, side: int = TEXTURE_SIDE) -> Surface:
    """The mesh at `path` with node transforms applied; STL, PLY and OBJ say no axis and are taken as y up.

    Textures are read at `side` pixels at most.
    """
    name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
    data = _read_file(path, name)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what Pillow grumbles about is either harmless or refused here
            return _join(*_read_parts(path, data, side))
    except Zero123Error as error:
        raise MeshError(error.what, where=name, remedy=error.remedy or AGAIN) from error
    except MemoryError as error:
        raise MeshError("too large for this machine's memory", where=name, remedy="simplify it first") from error
    except Exception as error:
        raise MeshError(f"malformed or damaged ({type(error).__name__})", where=name, remedy=AGAIN) from error


def _read_parts(path: Path, data: bytes, side: int) -> tuple[list[Part], list[Material]]:
    shelf = Shelf(path.parent.resolve(), len(data), side)
    kind = path.suffix.lower()
    if data[:4] == b"glTF" or re.match(rb"\s*{", data):
        kind = ".glb" if data[:1] == b"g" else ".gltf"
    elif re.match(rb"ply\s", data):
        kind = ".ply"
    if not data:
        raise MeshError("empty")
    if data.startswith(b"version https://git-lfs"):
        raise MeshError("a git-lfs pointer, not a mesh", remedy="fetch the mesh with `git lfs pull`")
    if kind not in READERS:
        raise MeshError("not a mesh of a kind that is read", remedy=READABLE)
    return READERS[kind](data, shelf)


def _read_file(path: Path, name: str) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise MissingInputError(reason, where=name, remedy="check the path and its permissions") from error
    except ValueError as error:  # a NUL in the path
        raise MissingInputError("not a path", where=name, remedy="check the path") from error
    except MeshError as error:
        raise MeshError(error.what, where=name, remedy="give a smaller file") from error
    except MemoryError as error:
        raise MeshError("too large for this machine's memory", where=name, remedy="simplify it first") from error


# Joining and checking -------------------------------------------------------------------------------------------------


def _join(parts: list[Part], materials: list[Material]) -> Surface:
    """One checked surface of all parts; triangles without area are left out."""
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise MeshError("holds no triangles")
    check_size(sum(len(part.faces) for part in parts), sum(len(part.positions) for part in parts))
    for part in parts:
        if part.faces.min() < 0 or part.faces.max() >= len(part.positions):
            raise MeshError("a triangle names a vertex that is not there")
        farthest = max(part.positions.max(), -part.positions.min())
        if not np.isfinite(farthest):  # also for NaN
            raise MeshError("a position is not a finite number")
        if farthest >= MAX_PLACE:
            raise MeshError(f"a position is beyond {MAX_PLACE:g}", remedy="move it to the origin or scale it down")
    starts = np.cumsum([0, *(len(part.positions) for part in parts)])
    vertices = np.concatenate([part.positions.astype(np.float32) for part in parts])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    keep = _find_areas(vertices, faces)
    material = np.concatenate([np.broadcast_to(part.material, len(part.faces)) for part in parts])
    return Surface(
        vertices,
        faces[keep].astype(np.int32),
        tuple(materials),
        material[keep].astype(np.int32),
        _gather(parts, [part.uv for part in parts], keep, np.zeros(2, np.float32)),
        _gather(parts, [part.colours for part in parts], keep, np.ones(4, np.float32)),
    )


def _find_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Which triangles have an area."""
    low = np.min([vertices[faces[:, k]].min(0) for k in range(3)], 0)
    high = np.max([vertices[faces[:, k]].max(0) for k in range(3)], 0)
    longest = float((high - low).max())
    if longest < 1e-30:
        raise MeshError("all its corners are in one place")
    keep = np.empty(len(faces), bool)
    for start in range(0, len(faces), 1 << 20):  # a million at a time spares memory
        corners = vertices[faces[start : start + (1 << 20)]].astype(np.float64) / longest
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        keep[start : start + len(corners)] = np.linalg.norm(normals, axis=1) > LEAST_AREA
    if not keep.any():
        raise MeshError("no triangle has an area")
    return keep


def _gather(
    parts: list[Part], given: list[np.ndarray | None], keep: np.ndarray, default: np.ndarray
) -> np.ndarray | None:
    """What the parts give at each corner, `default` where a part gives nothing; None where none does."""
    if all(values is None for values in given):
        return None
    shape = (3, len(default))
    whole = np.empty((len(keep), *shape), np.float32)
    start = 0
    for part, values in zip(parts, given, strict=True):
        end = start + len(part.faces)
        whole[start:end] = default if values is None else values
        start = end
    if not np.isfinite(whole).all():
        raise MeshError("a texture coordinate or colour is not a finite number")
    return whole if keep.all() else whole[keep]
