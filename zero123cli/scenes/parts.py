"""What the readers of mesh files share: the parts they return, the files beside a mesh, and limits for both.

Files come from strangers. Nothing is allocated before the numbers that ask for it are checked, nothing outside the
file's own folder is opened, and only the decoders of PNG, JPEG and WebP run.
Letters: V vertices, F triangles, N entries, h and w of a picture.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .. import durable
from ..errors import MeshError
from .surface import to_linear

MAX_BYTES = 256_000_000  # of the file and all it names, together
MAX_FACES = 5_000_000
MAX_VERTICES = 10_000_000
MAX_VISITS = 20_000  # nodes of the scene, and parts in them
MAX_PIXELS = 8192**2  # of one picture: the largest texture that is written here
MAX_ALL_PIXELS = 512_000_000  # of all pictures
MAX_KEPT = 134_217_728  # of all textures as kept
MAX_SCANS = 500  # of a JPEG, each of which costs a pass over all pixels
TEXTURE_SIDE = 1024  # pixels of a texture's longer side at most


class Part(NamedTuple):
    """Triangles of one material."""

    positions: np.ndarray  # float64 (V, 3)
    faces: np.ndarray  # int64 (F, 3)
    material: np.ndarray | int  # (F,) or one for all
    uv: np.ndarray | None = None  # (F, 3, 2)
    colours: np.ndarray | None = None  # (F, 3, 4)


def check_size(faces: int, vertices: int = 0) -> None:
    if faces > MAX_FACES or vertices > MAX_VERTICES:
        what = f"over {MAX_FACES // 10**6} million triangles or {MAX_VERTICES // 10**6} million vertices"
        raise MeshError(what, remedy="simplify it first")


def check_parts(parts: int) -> None:
    if parts > MAX_VISITS:
        raise MeshError(f"over {MAX_VISITS} parts", remedy="join its parts first")


def place_part(part: Part, matrix: np.ndarray) -> Part:
    """The part where a node puts it."""
    positions, faces, _, uv, colours = part
    if 3 * len(faces) < len(positions):  # many parts may share one long list of positions
        used, corners = np.unique(faces, return_inverse=True)
        positions, faces = positions[used], corners.reshape(-1, 3)
    if np.linalg.det(matrix[:3, :3]) < 0:  # a mirror turns the triangles' order round
        faces = faces[:, ::-1]
        uv, colours = (None if values is None else values[:, ::-1] for values in (uv, colours))
    placed = positions.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return Part(placed, faces, part.material, uv, colours)


def paint(colours: np.ndarray) -> np.ndarray:
    """Opaque linear colours (N, 4) of sRGB colours (N, 3 or more) in [0, 1]."""
    whole = np.ones((len(colours), 4), np.float32)
    whole[:, :3] = to_linear(np.clip(colours[:, :3], 0, 1))
    return whole


def fan_out(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F, 3) into the corners of polygons that lie one after another, and whose polygon each is (F,)."""
    each = np.maximum(lengths - 2, 0)
    check_size(int(each.sum()))
    rows = np.repeat(np.arange(len(lengths)), each)
    first = (np.cumsum(lengths) - lengths)[rows]
    step = np.arange(len(rows)) - (np.cumsum(each) - each)[rows]
    return np.stack([first, first + step + 1, first + step + 2], 1), rows


def as_count(table: dict[str, Any], key: str, default: int | None = None) -> int:
    value = table.get(key, default)
    if type(value) is not int or not 0 <= value < 2**53:
        raise MeshError(f"{key} {str(value)[:20]!r} is not a count")
    return value


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    with open(durable.open_regular(path, follow=follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise MeshError(f"more than {MAX_BYTES // 10**6} MB")
        return file.read(size)


class Shelf:
    """The files beside a mesh and the pictures it shows, within limits."""

    def __init__(self, folder: Path, used: int, side: int = TEXTURE_SIDE) -> None:
        self.folder = folder
        self.side = side  # pixels of a picture's longer side at most
        self.bytes_left = MAX_BYTES - used
        self.pixels_left = MAX_ALL_PIXELS
        self.kept_left = max(MAX_KEPT, 4 * side * side)
        self.pictures: dict[str, np.ndarray] = {}

    def read(self, name: object) -> bytes:
        """A neighbour of the mesh. Only a plain relative name that stays inside the folder is one."""
        shown = repr(name)[:80]
        if not isinstance(name, str) or not name.strip():
            raise MeshError(f"names a file {shown}")
        plain = name.isprintable() and not set(name) & set(":%\\") and not name.startswith("/")
        if not plain or ".." in name.split("/"):
            raise MeshError(
                f"names the file {shown}", remedy="files beside it need plain names, without .., % or a scheme"
            )
        try:
            place = (self.folder / name).resolve()
            if not place.is_relative_to(self.folder):
                raise MeshError(f"the file {shown} leads out of its folder", remedy="put a copy in its place")
            data = read_regular(place, self.bytes_left, follow=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            remedy = "put it beside the mesh or take its mention out"
            raise MeshError(f"the file {shown} that it names cannot be read", remedy=remedy) from error
        self.bytes_left -= len(data)
        return data

    def picture(self, name: str) -> np.ndarray:
        """The picture in a neighbour of the mesh."""
        if name not in self.pictures:
            self.pictures[name] = self.decode(self.read(name))
        return self.pictures[name]

    def keep(self, texture: np.ndarray) -> np.ndarray:
        self.kept_left -= texture.shape[0] * texture.shape[1]
        if self.kept_left < 0:
            raise MeshError("too many textures", remedy="join them into fewer")
        return texture

    def decode(self, data: bytes | memoryview, *, opaque: bool = True) -> np.ndarray:
        """The picture as uint8 (h, w, 4), at most that large; `opaque`: its alpha means nothing."""
        try:
            return self.keep(self._decode(bytes(data), opaque))
        except (MeshError, MemoryError):
            raise
        except Exception as error:
            raise MeshError("a texture is damaged, or no PNG, JPEG or WebP picture") from error

    def _decode(self, data: bytes, opaque: bool) -> np.ndarray:
        if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:
            raise MeshError(f"a texture is a JPEG of more than {MAX_SCANS} scans")
        with Image.open(BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            width, height = image.size
            self.pixels_left -= width * height
            if width * height > MAX_PIXELS or self.pixels_left < 0:
                raise MeshError(f"a texture of {width} x {height} pixels is too large", remedy="scale it down")
            scale = min(1.0, self.side / max(width, height))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            image.draft("RGB", size)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion turns white
                grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
                plain: Image.Image = Image.fromarray(grey).convert("RGB")
            else:
                plain = image.convert("RGB" if opaque or not image.has_transparency_data else "RGBA")
            if plain.size != size:
                plain = plain.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
            return np.array(plain.convert("RGBA"))
