"""Reads a mesh file into one surface: the whole scene as triangles, with colours and textures, y up.

Files come from strangers. Nothing is allocated before the numbers that ask for it are checked, nothing outside the
file's own folder is opened, only the decoders of PNG, JPEG and WebP run, and every failure is one MeshError.
GLB and glTF follow the glTF 2.0 specification; skins, morphs and animation are left out: the shape at rest.
Letters: V vertices, F triangles, N entries, h and w of a picture.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .. import durable
from ..errors import MeshError, MissingInputError, Zero123Error
from ..scenes.surface import Material, Surface, to_linear

MAX_BYTES = 256_000_000  # of the file and all it names, together
MAX_FACES = 5_000_000
MAX_VERTICES = 10_000_000
MAX_VISITS = 20_000  # nodes of the scene, and parts in them
MAX_NUMBERS = 100_000_000  # read from the accessors, which may share bytes
MAX_VALUES = 2_000_000  # of a JSON document
MAX_DEPTH = 64  # of JSON in JSON
MAX_ELEMENTS = 500_000  # of an XML document
MAX_XML_DEPTH = 1000  # COLLADA nests its nodes
MAX_DIGITS = 40  # of a number in JSON
MAX_PIXELS = 64_500_000  # of one picture, as with photos
MAX_ALL_PIXELS = 512_000_000  # of all pictures
MAX_KEPT = 134_217_728  # of all textures as kept
MAX_SCANS = 500  # of a JPEG, each of which costs a pass over all pixels
MAX_PLACE = 1e6  # the largest coordinate: float32 keeps six figures
LEAST_AREA = 1e-12  # twice a triangle's area over the square of the longest box side; below it counts as a line
TEXTURE_SIDE = 1024  # pixels of a texture's longer side at most

READABLE = "give a GLB, glTF, OBJ, PLY, STL or DAE file"
AGAIN = "export or download it again"


class Part(NamedTuple):
    """Triangles of one material."""

    positions: np.ndarray  # float64 (V, 3)
    faces: np.ndarray  # int64 (F, 3)
    material: np.ndarray | int  # (F,) or one for all
    uv: np.ndarray | None = None  # (F, 3, 2)
    colours: np.ndarray | None = None  # (F, 3, 4)


def read_surface(path: Path) -> Surface:
    """The mesh at `path` with node transforms applied; STL, PLY and OBJ say no axis and are taken as y up."""
    name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
    data = _read_file(path, name)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what Pillow grumbles about is either harmless or refused here
            return _join(*_read_parts(path, data))
    except Zero123Error as error:
        raise MeshError(error.what, where=name, remedy=error.remedy or AGAIN) from error
    except MemoryError as error:
        raise MeshError("too large for this machine's memory", where=name, remedy="simplify it first") from error
    except Exception as error:
        raise MeshError(f"malformed or damaged ({type(error).__name__})", where=name, remedy=AGAIN) from error


def _read_parts(path: Path, data: bytes) -> tuple[list[Part], list[Material]]:
    shelf = Shelf(path.parent.resolve(), len(data))
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
        return _read_regular(path, MAX_BYTES)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise MissingInputError(reason, where=name, remedy="check the path and its permissions") from error
    except ValueError as error:  # a NUL in the path
        raise MissingInputError("not a path", where=name, remedy="check the path") from error
    except MeshError as error:
        raise MeshError(error.what, where=name, remedy="give a smaller file") from error
    except MemoryError as error:
        raise MeshError("too large for this machine's memory", where=name, remedy="simplify it first") from error


def _read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    with open(durable.open_regular(path, follow=follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise MeshError(f"more than {MAX_BYTES // 10**6} MB")
        return file.read(size)


# Joining and checking -------------------------------------------------------------------------------------------------


def _check_size(faces: int, vertices: int = 0) -> None:
    if faces > MAX_FACES or vertices > MAX_VERTICES:
        what = f"over {MAX_FACES // 10**6} million triangles or {MAX_VERTICES // 10**6} million vertices"
        raise MeshError(what, remedy="simplify it first")


def _check_parts(parts: int) -> None:
    if parts > MAX_VISITS:
        raise MeshError(f"over {MAX_VISITS} parts", remedy="join its parts first")


def _join(parts: list[Part], materials: list[Material]) -> Surface:
    """One checked surface of all parts; triangles without area are left out."""
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise MeshError("holds no triangles")
    _check_size(sum(len(part.faces) for part in parts), sum(len(part.positions) for part in parts))
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


def _place_part(part: Part, matrix: np.ndarray) -> Part:
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


# Files beside it and pictures -----------------------------------------------------------------------------------------


class Shelf:
    """The files beside a mesh and the pictures it shows, within limits."""

    def __init__(self, folder: Path, used: int) -> None:
        self.folder = folder
        self.bytes_left = MAX_BYTES - used
        self.pixels_left = MAX_ALL_PIXELS
        self.kept_left = MAX_KEPT
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
            data = _read_regular(place, self.bytes_left, follow=False)
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
        """The picture as uint8 (h, w, 4), at most TEXTURE_SIDE a side; `opaque`: its alpha means nothing."""
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
            scale = min(1.0, TEXTURE_SIDE / max(width, height))
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


# GLB and glTF ---------------------------------------------------------------------------------------------------------

NUMBERS: dict[int, type[Any]] = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
TRIANGLES, STRIP, FAN = 4, 5, 6  # modes; below are points and lines
KNOWN = (  # extensions that may be required: read, or without weight for shape and colour
    "KHR_texture_transform",
    "KHR_mesh_quantization",
    "KHR_lights_punctual",
    "EXT_texture_webp",
)


@dataclass(frozen=True)
class Look:
    """A glTF material, and where its texture lies."""

    material: Material
    opaque: bool = True
    uv_set: int = 0
    move: np.ndarray | None = None  # (2, 3): moves (u, v, 1)


class Primitive(NamedTuple):
    """What of a mesh is drawn with one material, checked against the sizes but not read."""

    table: dict[str, Any]
    mode: int
    faces: int
    vertices: int


def _read_glb(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    if len(data) < 20 or data[:4] != b"glTF" or int.from_bytes(data[4:8], "little") != 2:
        raise MeshError("not a GLB of version 2", remedy="export it as glTF 2.0")
    if int.from_bytes(data[8:12], "little") != len(data):
        raise MeshError("not as long as its header says")
    chunks, start = [], 12
    while start < len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "little")
        if start + 8 > len(data) or end > len(data):
            raise MeshError("a chunk reaches past the end")
        chunks.append((data[start + 4 : start + 8], memoryview(data)[start + 8 : end]))
        start = end
    if chunks[0][0] != b"JSON":
        raise MeshError("does not begin with its JSON")
    body = next((body for kind, body in chunks[1:2] if kind == b"BIN\0"), None)
    return Gltf(_parse_json(bytes(chunks[0][1])), shelf, body).read()


def _read_gltf(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    return Gltf(_parse_json(data), shelf, None).read()


def _parse_json(data: bytes) -> dict[str, Any]:
    """The document, its depth, its size and its numbers checked."""
    bare = np.frombuffer(re.sub(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)', b"", data, flags=re.DOTALL), np.uint8)
    opens, closes = np.isin(bare, list(b"[{")), np.isin(bare, list(b"]}"))
    if np.isin(bare, list(b"[{,:")).sum() > MAX_VALUES:
        raise MeshError(f"JSON of over {MAX_VALUES // 10**6} million values")
    if (np.cumsum(opens, dtype=np.int32) - np.cumsum(closes, dtype=np.int32)).max(initial=0) > MAX_DEPTH:
        raise MeshError(f"JSON nested deeper than {MAX_DEPTH}")
    try:
        document = json.loads(
            data.decode("utf-8-sig"), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_float
        )
    except ValueError as error:
        raise MeshError("its JSON is damaged") from error
    if not isinstance(document, dict):
        raise MeshError("its JSON is no table")
    return document


def _parse_int(text: str) -> int:
    return int(text) if len(text) <= MAX_DIGITS else int(_parse_float(text))


def _parse_float(text: str) -> float:
    if len(text) > MAX_DIGITS or not math.isfinite(value := float(text)):
        raise MeshError(f"a number {text[:20]} in its JSON")
    return value


def _count(table: dict[str, Any], key: str, default: int | None = None) -> int:
    value = table.get(key, default)
    if type(value) is not int or not 0 <= value < 2**53:
        raise MeshError(f"{key} {str(value)[:20]!r} is not a count")
    return value


def _numbers(table: dict[str, Any], key: str, default: Iterable[float]) -> np.ndarray:
    """As many numbers as the default has."""
    standard = list(default)
    values = table.get(key, standard)
    if not isinstance(values, list) or len(values) != len(standard) or {type(value) for value in values} - {int, float}:
        raise MeshError(f"{key} is not {len(standard)} numbers")
    return np.array(values, np.float64)


def _number(table: dict[str, Any], key: str, default: float) -> float:
    return float(np.clip(_numbers({key: [table.get(key, default)]}, key, [default])[0], 0, 1))


def _list(table: dict[str, Any], key: str) -> list[Any]:
    values = table.get(key, [])
    if not isinstance(values, list):
        raise MeshError(f"{key} is not a list")
    return values


def _table(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The table under a path of keys, empty if it is not there."""
    for key in keys:
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise MeshError(f"{key} is not a table")
    return table


class Gltf:
    def __init__(self, document: dict[str, Any], shelf: Shelf, body: memoryview | None) -> None:
        self.document = document
        self.shelf = shelf
        self.body = body
        self.claimed: set[int] = set()
        self.numbers = 0
        self.buffers: dict[int, memoryview] = {}
        self.accessors: dict[int, np.ndarray] = {}
        self.pictures: dict[tuple[int, bool], np.ndarray] = {}

    def pick(self, kind: str, index: object) -> dict[str, Any]:
        """One entry of a list of the document."""
        shelf = _list(self.document, kind)
        if type(index) is not int or not 0 <= index < len(shelf) or not isinstance(shelf[index], dict):
            raise MeshError(f"{kind} has no {str(index)[:20]!r}")
        return shelf[index]

    def read(self) -> tuple[list[Part], list[Material]]:
        version = str(_table(self.document, "asset").get("version"))
        if not version.startswith("2."):
            raise MeshError(f"glTF of version {version[:20]!r}", remedy="export it as glTF 2.0")
        for extension in _list(self.document, "extensionsRequired"):
            if extension not in KNOWN and not str(extension).startswith("KHR_materials_"):
                what = f"needs the extension {str(extension)[:60]!r}, which is not read"
                raise MeshError(what, remedy="export it without, e.g. uncompressed")
        drawn = []
        faces = vertices = 0
        planned: dict[int, list[Primitive]] = {}
        for mesh, matrix in self.walk():
            if mesh not in planned:
                planned[mesh] = [*self.plan(mesh)]
            for primitive in planned[mesh]:
                faces, vertices = faces + primitive.faces, vertices + primitive.vertices
                _check_size(faces, vertices)
                drawn.append((primitive, matrix))
            _check_parts(len(drawn))
        looks: dict[int, tuple[int, Look]] = {}
        parts = [self.place(primitive, matrix, looks) for primitive, matrix in drawn]
        return parts, [look.material for _, look in looks.values()]

    def walk(self) -> Iterator[tuple[int, np.ndarray]]:
        """The meshes of the scene, each with the matrix that puts it in place."""
        nodes = _list(self.document, "nodes")
        if _list(self.document, "scenes"):
            roots = _list(self.pick("scenes", self.document.get("scene", 0)), "nodes")
        else:
            held = {child for node in nodes if isinstance(node, dict) for child in _list(node, "children")}
            roots = [index for index in range(len(nodes)) if index not in held]
        seen: set[int] = set()
        waiting = [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            index, above = waiting.pop()
            node = self.pick("nodes", index)
            if index in seen:
                raise MeshError("a node has two parents or is its own")
            seen.add(index)
            if len(seen) > MAX_VISITS:
                raise MeshError(f"over {MAX_VISITS} nodes")
            matrix = above @ _place_node(node)
            if "mesh" in node:
                yield _count(node, "mesh"), matrix
            waiting += [(child, matrix) for child in reversed(_list(node, "children"))]
            if len(waiting) > MAX_VALUES:
                raise MeshError("a node has two parents or is its own")

    def plan(self, mesh: int) -> Iterator[Primitive]:
        """The primitives of a mesh that hold triangles, with upper bounds for what they take."""
        for table in _list(self.pick("meshes", mesh), "primitives"):
            mode = _count(_table({"": table}, ""), "mode", TRIANGLES)
            if mode > FAN:
                raise MeshError(f"a primitive of mode {mode}")
            if mode < TRIANGLES:
                continue
            attributes = _table(table, "attributes")
            if "POSITION" not in attributes:
                raise MeshError("a primitive without positions")
            vertices = self.claim(attributes["POSITION"])
            corners = self.claim(table["indices"]) if "indices" in table else vertices
            for name in attributes:
                if name.startswith(("COLOR_0", "TEXCOORD_")):
                    self.claim(attributes[name])
            if mode == TRIANGLES and corners % 3:
                raise MeshError("a number of corners that does not divide by 3")
            faces = corners // 3 if mode == TRIANGLES else max(0, corners - 2)
            yield Primitive(table, mode, faces, min(vertices, 3 * faces))

    def claim(self, index: object) -> int:
        """How many entries an accessor will give; before any is read, all together are held against the limit."""
        table = self.pick("accessors", index)
        assert isinstance(index, int)
        count = _count(table, "count")
        if index not in self.claimed:
            self.claimed.add(index)
            self.numbers += count * WIDTHS.get(table.get("type", ""), 1)
            if self.numbers > MAX_NUMBERS:
                raise MeshError(f"over {MAX_NUMBERS // 10**6} million numbers", remedy="simplify it first")
        return count

    def place(self, primitive: Primitive, matrix: np.ndarray, looks: dict[int, tuple[int, Look]]) -> Part:
        """The triangles of a primitive where a node puts them."""
        table = primitive.table
        attributes = _table(table, "attributes")
        positions = self.access(attributes["POSITION"], (3,))
        faces = self.index(primitive, len(positions))
        which = table.get("material", -1)
        if which not in looks:
            looks[which] = len(looks), self.look(which) if "material" in table else Look(Material((1, 1, 1, 1)))
        number, look = looks[which]
        uv = colours = None
        if look.material.texture is not None and f"TEXCOORD_{look.uv_set}" in attributes:
            flat = self.attribute(attributes[f"TEXCOORD_{look.uv_set}"], (2,), len(positions))
            uv = flat[faces].astype(np.float32)
            if look.move is not None:
                uv = uv @ look.move[:, :2].T + look.move[:, 2]
            uv = uv * np.array([1, -1], np.float32) + np.array([0, 1], np.float32)
        if "COLOR_0" in attributes:
            given = self.attribute(attributes["COLOR_0"], (3, 4), len(positions))
            width = 3 if look.opaque else given.shape[1]
            colours = np.ones((len(faces), 3, 4), np.float32)
            colours[..., :width] = given[:, :width][faces]
            if np.issubdtype(given.dtype, np.integer):  # the flag `normalized` was forgotten
                colours[..., :width] /= np.iinfo(given.dtype).max
            np.clip(colours, 0, 1, out=colours)
        return _place_part(Part(positions, faces, number, uv, colours), matrix)

    def index(self, primitive: Primitive, vertices: int) -> np.ndarray:
        """The corners of the triangles, int64 (F, 3)."""
        if "indices" in primitive.table:
            indices = self.access(primitive.table["indices"], (1,))[:, 0]
            if not np.issubdtype(indices.dtype, np.unsignedinteger):
                raise MeshError("indices of another kind than unsigned integers")
            if indices.max(initial=0) >= max(1, vertices):
                raise MeshError("a triangle names a vertex that is not there")
        else:
            indices = np.arange(vertices)
        corners = indices.astype(np.int64)
        if primitive.mode == TRIANGLES or len(corners) < 3:
            return corners[: 3 * primitive.faces].reshape(-1, 3)
        if primitive.mode == FAN:
            return np.stack([corners[1:-1], corners[2:], np.broadcast_to(corners[0], len(corners) - 2)], 1)
        faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], 1)
        faces[1::2] = faces[1::2][:, [0, 2, 1]]
        return faces

    def attribute(self, index: object, widths: tuple[int, ...], vertices: int) -> np.ndarray:
        values = self.access(index, widths)
        if len(values) != vertices:
            raise MeshError("an attribute has not one entry for each vertex")
        return values

    def access(self, index: object, widths: tuple[int, ...]) -> np.ndarray:
        """The entries of an accessor (N, one of `widths`); normalised integers become floats."""
        table = self.pick("accessors", index)
        assert isinstance(index, int)
        if index not in self.accessors:
            self.accessors[index] = self._access(table)
        if self.accessors[index].shape[1] not in widths:
            raise MeshError(f"an accessor of the type {str(table.get('type'))[:20]!r} in a place for another")
        return self.accessors[index]

    def _access(self, table: dict[str, Any]) -> np.ndarray:
        count, width = _count(table, "count"), WIDTHS.get(table.get("type", ""), 0)
        dtype = NUMBERS.get(_count(table, "componentType"))
        if not width or dtype is None:
            raise MeshError("an accessor of a type that is not read")
        if "bufferView" in table:
            values = self.view(table, count, width, dtype).copy()
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in table:
            sparse = _table(table, "sparse")
            some = _count(sparse, "count")
            kind = NUMBERS.get(_count(_table(sparse, "indices"), "componentType"))
            if some > count or kind not in (np.uint8, np.uint16, np.uint32):
                raise MeshError("a sparse accessor of more entries than it has, or of another kind")
            places = self.view(_table(sparse, "indices"), some, 1, kind)[:, 0]
            if places.max(initial=0) >= max(1, count):
                raise MeshError("a sparse accessor changes an entry that is not there")
            values[places] = self.view(_table(sparse, "values"), some, width, dtype)
        if table.get("normalized") is True and dtype is not np.float32:
            values = np.maximum(values / np.float32(np.iinfo(dtype).max), np.float32(-1))
        return values

    def view(self, table: dict[str, Any], count: int, width: int, dtype: type[Any]) -> np.ndarray:
        """Entries as they lie in a buffer view; nothing is read past its end."""
        view = self.pick("bufferViews", table.get("bufferView"))
        body = self.span(view)
        size = width * np.dtype(dtype).itemsize
        stride, offset = _count(view, "byteStride", size), _count(table, "byteOffset", 0)
        if stride < size:
            raise MeshError("a stride shorter than an entry")
        if count and offset + stride * (count - 1) + size > len(body):
            raise MeshError("an accessor reaches past its buffer view")
        if not count:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, body, offset, (stride, np.dtype(dtype).itemsize))

    def span(self, view: dict[str, Any]) -> memoryview:
        """The bytes of a buffer view."""
        which = _count(view, "buffer")
        if which not in self.buffers:
            table = self.pick("buffers", which)
            inside = self.body is not None and which == 0 and "uri" not in table
            data = self.body if self.body is not None and inside else self.fetch(table.get("uri"))
            if _count(table, "byteLength") > len(data):
                raise MeshError("a buffer is shorter than it should be")
            self.buffers[which] = data[: _count(table, "byteLength")]
        body = self.buffers[which]
        start = _count(view, "byteOffset", 0)
        end = start + _count(view, "byteLength")
        if end > len(body):
            raise MeshError("a buffer view reaches past its buffer")
        return body[start:end]

    def fetch(self, uri: object) -> memoryview:
        """What a URI names: itself, or a file beside the mesh."""
        if isinstance(uri, str) and uri.startswith("data:"):
            head, _, coded = uri.partition(",")
            if not head.endswith(";base64"):
                raise MeshError("a data URI that is not base64")
            return memoryview(base64.b64decode(coded, validate=True))
        return memoryview(self.shelf.read(uri))

    def look(self, which: object) -> Look:
        """A material: its base colour, and one roughness and metallicity for all of it."""
        table = self.pick("materials", which)
        gloss = _table(table, "extensions", "KHR_materials_pbrSpecularGlossiness")
        plain = _table(table, "pbrMetallicRoughness")
        mode = table.get("alphaMode", "OPAQUE")
        if gloss:
            colour, spot = _numbers(gloss, "diffuseFactor", [1] * 4), gloss.get("diffuseTexture")
            roughness, metallic = 1 - _number(gloss, "glossinessFactor", 1), 0.0
        else:
            colour, spot = _numbers(plain, "baseColorFactor", [1] * 4), plain.get("baseColorTexture")
            roughness, metallic = _number(plain, "roughnessFactor", 1), _number(plain, "metallicFactor", 1)
            if "metallicRoughnessTexture" in plain:
                mean = self.picture(plain["metallicRoughnessTexture"], True).mean((0, 1)) / 255
                roughness, metallic = roughness * float(mean[1]), metallic * float(mean[2])
        colour = np.clip(colour, 0, 1)
        texture, uv_set, move = None, 0, None
        if spot is not None:
            texture = self.picture(spot, mode == "OPAQUE")
            change = _table(spot, "extensions", "KHR_texture_transform")
            uv_set = _count(change if "texCoord" in change else spot, "texCoord", 0)
            move = _move_uv(change) if change else None
        if mode == "OPAQUE":
            colour[3] = 1
        if mode == "MASK":
            cut = float(_numbers({"alphaCutoff": [table.get("alphaCutoff", 0.5)]}, "alphaCutoff", [0.5])[0])
            if texture is not None:
                texture = self.shelf.keep(texture.copy())
                texture[..., 3] = np.where(texture[..., 3] * (colour[3] / 255) >= cut, 255, 0)
            colour[3] = 1 if texture is not None or colour[3] >= cut else 0
        red, green, blue, alpha = colour.tolist()
        material = Material((red, green, blue, alpha), texture, roughness, metallic)
        return Look(material, mode != "BLEND", uv_set, move)

    def picture(self, spot: object, opaque: bool) -> np.ndarray:
        """The picture that a material's texture shows."""
        texture = self.pick("textures", _table({"": spot}, "").get("index"))
        webp = _table(texture, "extensions", "EXT_texture_webp")
        which = webp.get("source", texture.get("source"))
        if which is None:
            raise MeshError("a texture without a picture that is read", remedy="export it with PNG or JPEG textures")
        image = self.pick("images", which)
        if (which, opaque) not in self.pictures:
            inside = "bufferView" in image
            data = self.span(self.pick("bufferViews", image["bufferView"])) if inside else self.fetch(image.get("uri"))
            self.pictures[which, opaque] = self.shelf.decode(data, opaque=opaque)
        return self.pictures[which, opaque]


def _place_node(node: dict[str, Any]) -> np.ndarray:
    """The matrix of a node alone, (4, 4)."""
    if "matrix" in node:
        return _numbers(node, "matrix", np.eye(4).ravel()).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = quaternion = _numbers(node, "rotation", [0, 0, 0, 1])
    length = float(quaternion @ quaternion)
    if not length > 0:
        raise MeshError("a rotation of length 0")
    turn = np.array([[-y * y - z * z, x * y - z * w, x * z + y * w],
                     [x * y + z * w, -x * x - z * z, y * z - x * w],
                     [x * z - y * w, y * z + x * w, -x * x - y * y]])  # fmt: skip
    matrix[:3, :3] = (np.eye(3) + 2 / length * turn) * _numbers(node, "scale", [1, 1, 1])
    matrix[:3, 3] = _numbers(node, "translation", [0, 0, 0])
    return matrix


def _move_uv(change: dict[str, Any]) -> np.ndarray:
    """KHR_texture_transform as (2, 3): scale, then turn, then shift, with v still going down."""
    angle = float(_numbers({"rotation": [change.get("rotation", 0)]}, "rotation", [0])[0])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.column_stack([turn * _numbers(change, "scale", [1, 1]), _numbers(change, "offset", [0, 0])])


# OBJ ------------------------------------------------------------------------------------------------------------------


def _read_obj(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    positions: list[list[bytes]] = []
    tints: list[list[bytes]] = []
    uvs: list[list[bytes]] = []
    corners: list[int] = []  # three a triangle
    spots: list[int] = []  # the same of `uvs`; -1 for none
    material: list[int] = []
    names: dict[str, int] = {"": 0}
    libraries: set[str] = set()
    known: dict[str, dict[str, str]] = {}
    current = 0
    for line in data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        key, *words = line.split() or [b""]
        if key == b"v":
            positions.append(words[:3])
            if len(words) >= 6:
                tints.append(words[3:6])
        elif key == b"vt":
            uvs.append([*words, b"0"][:2])
        elif key == b"f":
            pairs = [[*word.split(b"/", 2), b""][:2] for word in words]
            at = [_resolve(pair[0], len(positions)) for pair in pairs]
            spot = [_resolve(pair[1], len(uvs)) if pair[1] else -1 for pair in pairs]
            for k in range(1, len(pairs) - 1):
                corners += at[0], at[k], at[k + 1]
                spots += spot[0], spot[k], spot[k + 1]
                material.append(current)
            _check_size(len(material))
        elif key == b"usemtl":
            current = names.setdefault(_name(line), len(names))
        elif key == b"mtllib" and _name(line) not in libraries:
            libraries.add(_name(line))
            known |= _parse_mtl(shelf.read(_name(line)))
    _check_size(len(material), max(len(positions), len(uvs)))
    faces, uv_faces = np.array(corners, np.int64).reshape(-1, 3), np.array(spots, np.int64).reshape(-1, 3)
    if uv_faces.max(initial=-1) >= len(uvs):
        raise MeshError("a triangle names a texture coordinate that is not there")
    places = np.array(positions, np.float64).reshape(-1, 3)
    if faces.max(initial=-1) >= len(places):
        raise MeshError("a triangle names a vertex that is not there")
    materials = [_make_material(known.get(name, {}), shelf) for name in names]
    uv = np.array([*uvs, [b"0", b"0"]], np.float64)[uv_faces] if uvs else None
    colours = _paint(np.array(tints, np.float64))[faces] if tints and len(tints) == len(positions) else None
    return [Part(places, faces, np.array(material, np.int64), uv, colours)], materials


def _resolve(word: bytes, known: int) -> int:
    """An index from 0 for one of OBJ: from 1, or counted back from the last when negative."""
    number = int(word)
    index = number - 1 if number > 0 else known + number
    if number == 0 or index < 0:
        raise MeshError("a triangle names a vertex that is not there")
    return index


def _name(line: bytes) -> str:
    return b" ".join(line.split(None, 1)[1:]).strip().decode("utf-8", "surrogateescape")


def _parse_mtl(data: bytes) -> dict[str, dict[str, str]]:
    """Each material's lines, the first word as the key."""
    materials: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in data.splitlines():
        key = line.split()[0].lower() if line.strip() else b""
        if key == b"newmtl":
            current = materials.setdefault(_name(line), {})
        else:
            current[key.decode("ascii", "replace")] = _name(line)
    return materials


def _make_material(lines: dict[str, str], shelf: Shelf) -> Material:
    """Colours of MTL are taken as sRGB. Where there is a texture it is the colour: many files leave a grey Kd there."""
    if "map_kd" in lines:
        name = re.sub(r"^(-\w+\s+((on|off|[-+.\deE]+)\s+)+)*", "", lines["map_kd"])  # options
        return Material((1, 1, 1, 1), shelf.picture(name))
    red, green, blue = to_linear(np.clip(np.array((lines.get("kd") or "1 1 1").split()[:3], np.float64), 0, 1)).tolist()
    dissolve = float((lines.get("d") or "1").split()[-1])
    return Material((red, green, blue, dissolve if 0 < dissolve <= 1 else 1.0))


def _paint(colours: np.ndarray) -> np.ndarray:
    """Opaque linear colours (N, 4) of sRGB colours (N, 3 or more) in [0, 1]."""
    whole = np.ones((len(colours), 4), np.float32)
    whole[:, :3] = to_linear(np.clip(colours[:, :3], 0, 1))
    return whole


# PLY and STL ----------------------------------------------------------------------------------------------------------

PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
PLY_HEAD = 65536  # bytes of a header at most


class Property(NamedTuple):
    name: str
    dtype: str
    length: str = ""  # type of a list's length


@dataclass(frozen=True)
class Element:
    name: str
    count: int
    properties: tuple[Property, ...] = ()


Lists = tuple[np.ndarray, np.ndarray]  # lengths (N,) and all values in a row
Columns = dict[str, np.ndarray | Lists]


def _read_ply(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    head = re.match(rb"ply.*?\nend_header[ \t]*\r?\n", data[:PLY_HEAD], re.DOTALL)
    if not head:
        raise MeshError("a PLY without a header")
    lines = [line.split() for line in head[0].decode("ascii", "replace").splitlines()]
    order = PLY_ORDERS[next(line[1] for line in lines if line[:1] == ["format"])]
    elements: list[Element] = []
    pictures = []
    for words in lines:
        if words[:1] == ["element"]:
            elements.append(Element(words[1], _count({words[1]: int(words[2])}, words[1])))
        elif words[:1] == ["property"]:
            kinds = [PLY_TYPES[word] for word in words[1:-1] if word != "list"]
            found = Property(words[-1], kinds[-1], kinds[0] if words[1] == "list" else "")
            elements[-1] = replace(elements[-1], properties=(*elements[-1].properties, found))
        elif words[:2] == ["comment", "TextureFile"]:
            pictures.append(" ".join(words[2:]))
    body = data[head.end() :]
    read = (_ply_rows if order else _ply_words)(elements, body, order)
    return _surface_of_ply(dict(read), pictures, shelf)


def _check_ply(element: Element, least: int, left: int) -> None:
    """Before anything is allocated: `left` bytes or words must hold the element."""
    if not element.properties or len({found.name for found in element.properties}) != len(element.properties):
        raise MeshError(f"the element {element.name[:40]!r} has no properties, or one twice")
    if any(found.length.startswith("f") for found in element.properties):
        raise MeshError("a list with a fraction as its length")
    if element.count * least > left:
        raise MeshError(f"shorter than its {element.count} entries {element.name[:40]!r} need")


def _ply_words(elements: list[Element], body: bytes, order: str) -> Iterator[tuple[str, Columns]]:
    words = body.split()
    start = 0
    for element in elements:
        properties = element.properties
        _check_ply(element, len(properties), len(words) - start)
        if not any(found.length for found in properties):
            end = start + element.count * len(properties)
            block = np.array(words[start:end], np.float64).reshape(-1, len(properties))
            start = end
            yield element.name, {found.name: block[:, k].astype(found.dtype) for k, found in enumerate(properties)}
            continue
        values: dict[str, list[bytes]] = {found.name: [] for found in properties}
        lengths: dict[str, list[int]] = {found.name: [] for found in properties}
        for _ in range(element.count):
            for found in properties:
                length = _count({"a list": int(words[start])}, "a list") if found.length else 1
                start += bool(found.length)
                if start + length > len(words):
                    raise MeshError("a list reaches past the end")
                values[found.name] += words[start : start + length]
                lengths[found.name].append(length)
                start += length
        yield element.name, _columns(properties, values, lengths)


def _columns(properties: Iterable[Property], values: dict[str, list[Any]], lengths: dict[str, list[int]]) -> Columns:
    columns: Columns = {}
    for found in properties:
        flat = np.array(values[found.name], np.float64).astype(found.dtype)
        columns[found.name] = (np.array(lengths[found.name], np.int64), flat) if found.length else flat
    return columns


def _ply_rows(elements: list[Element], body: bytes, order: str) -> Iterator[tuple[str, Columns]]:
    start = 0
    for element in elements:
        properties = element.properties
        least = sum(np.dtype(found.length or found.dtype).itemsize for found in properties)
        _check_ply(element, least, len(body) - start)
        if not element.count:
            continue
        # Nearly always all lists are as long as the first row's, and the rows are then of one size.
        fields: list[tuple[Any, ...]] = []
        at = start
        for found in properties:
            if found.length:
                length = _ply_length(body, at, order + found.length)
                fields += (found.name + " n", order + found.length), (found.name, order + found.dtype, (length,))
            else:
                fields.append((found.name, order + found.dtype))
            at = start + np.dtype(fields).itemsize
            if at > len(body):
                raise MeshError("a list reaches past the end")
        if start + element.count * (at - start) <= len(body):
            rows = np.frombuffer(body, np.dtype(fields), element.count, start)
            if all(
                (rows[found.name + " n"] == rows[found.name + " n"][0]).all() for found in properties if found.length
            ):
                start += rows.nbytes
                yield (
                    element.name,
                    {
                        found.name: (rows[found.name + " n"].astype(np.int64), rows[found.name].reshape(-1))
                        if found.length
                        else rows[found.name]
                        for found in properties
                    },
                )
                continue
        values: dict[str, list[Any]] = {found.name: [] for found in properties}
        lengths: dict[str, list[int]] = {found.name: [] for found in properties}
        for _ in range(element.count):
            for found in properties:
                length = _ply_length(body, start, order + found.length) if found.length else 1
                start += np.dtype(found.length).itemsize if found.length else 0
                values[found.name] += np.frombuffer(body, order + found.dtype, length, start).tolist()
                lengths[found.name].append(length)
                start += length * np.dtype(found.dtype).itemsize
        yield element.name, _columns(properties, values, lengths)


def _ply_length(body: bytes, at: int, dtype: str) -> int:
    return _count({"a list": int(np.frombuffer(body, dtype, 1, at)[0])}, "a list")


def _surface_of_ply(read: dict[str, Columns], pictures: list[str], shelf: Shelf) -> tuple[list[Part], list[Material]]:
    vertex, face = read.get("vertex", {}), read.get("face", {})
    listed = face.get("vertex_indices", face.get("vertex_index"))
    if not isinstance(listed, tuple):
        raise MeshError("holds no triangles")
    _check_size(0, len(vertex["x"]))
    positions = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], 1)
    corners, rows = _fan(listed[0])
    faces = listed[1].astype(np.int64)[corners]
    if faces.min(initial=0) < 0 or faces.max(initial=-1) >= len(positions):
        raise MeshError("a triangle names a vertex that is not there")
    colours = uv = None
    if (tint := _tint(vertex)) is not None:
        colours = tint[faces]
    elif (tint := _tint(face)) is not None:
        colours = np.repeat(tint[rows][:, None], 3, 1)
    for first, second in (("s", "t"), ("u", "v"), ("texture_u", "texture_v")):
        if first in vertex and second in vertex:
            uv = np.stack([np.asarray(vertex[first]), np.asarray(vertex[second])], 1)[faces]
    wedge = face.get("texcoord")
    if isinstance(wedge, tuple) and (wedge[0] == 2 * listed[0]).all():
        uv = wedge[1].reshape(-1, 2)[corners]
    material = Material((1, 1, 1, 1))
    if pictures and uv is not None:
        material = replace(material, texture=shelf.picture(pictures[0]))
    return [Part(positions, faces, 0, uv if pictures else None, colours)], [material]


def _fan(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F, 3) into the corners of polygons that lie one after another, and whose polygon each is (F,)."""
    each = np.maximum(lengths - 2, 0)
    _check_size(int(each.sum()))
    rows = np.repeat(np.arange(len(lengths)), each)
    first = (np.cumsum(lengths) - lengths)[rows]
    step = np.arange(len(rows)) - (np.cumsum(each) - each)[rows]
    return np.stack([first, first + step + 1, first + step + 2], 1), rows


def _tint(columns: Columns) -> np.ndarray | None:
    """Linear colours (N, 4) where the element has them; integers are parts of 255 or 65535."""
    for prefix in ("", "diffuse_"):
        if all(prefix + colour in columns for colour in ("red", "green", "blue")):
            given = np.stack([np.asarray(columns[prefix + colour]) for colour in ("red", "green", "blue")], 1)
            fraction = given.dtype.kind == "f" and given.max(initial=0) <= 1
            return _paint(given / (1 if fraction else 65535 if given.dtype.itemsize == 2 else 255))
    return None


def _read_stl(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + 50 * count:
        _check_size(count)
        corners = np.ndarray((count, 3, 3), "<f4", data, 84 + 12, (50, 12, 4)).astype(np.float64)
    elif re.match(rb"\s*solid", data) and b"endsolid" in data[-1000:]:
        _check_size(data.count(b"vertex") // 3)
        found = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
        if len(found) != 3 * len(re.findall(rb"\bendfacet\b", data)):
            raise MeshError("facets without three corners")
        corners = np.array(found, np.float64).reshape(-1, 3, 3)
    else:
        raise MeshError("not as long as its number of triangles needs")
    return [Part(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), 0)], [Material((1, 1, 1, 1))]


# DAE (COLLADA) --------------------------------------------------------------------------------------------------------

UPRIGHT = {  # what turns the file's axes into ours
    "X_UP": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "Y_UP": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "Z_UP": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
}
MAX_INPUTS = 64  # of a list of polygons
Tag = ElementTree.Element
Picked = tuple[np.ndarray, np.ndarray]  # entries of a source, and which of them each corner takes


class Builder(ElementTree.TreeBuilder):
    """Builds the tree without name spaces; stops at a DOCTYPE, where entities would be declared."""

    depth = elements = 0

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise MeshError("XML with a DOCTYPE", remedy="take the DOCTYPE out")

    def start(self, tag: str, attributes: dict[str, str]) -> Tag:
        self.depth, self.elements = self.depth + 1, self.elements + 1
        if self.depth > MAX_XML_DEPTH or self.elements > MAX_ELEMENTS:
            raise MeshError(f"XML nested deeper than {MAX_XML_DEPTH}, or of over {MAX_ELEMENTS} elements")
        return super().start(tag.rpartition("}")[2], attributes)

    def end(self, tag: str) -> Tag:
        self.depth -= 1
        return super().end(tag.rpartition("}")[2])


def _read_dae(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    parser = ElementTree.XMLParser(target=Builder())
    parser.feed(data)
    return Dae(parser.close(), shelf).read()


class Dae:
    def __init__(self, root: Tag, shelf: Shelf) -> None:
        self.root = root
        self.shelf = shelf
        self.names = {tag.attrib["id"]: tag for tag in root.iter() if "id" in tag.attrib}
        self.sources: dict[str, np.ndarray] = {}
        self.materials: dict[str, tuple[int, Material]] = {"": (0, Material((1, 1, 1, 1)))}
        self.effects: dict[str, Material] = {}
        self.shapes: dict[str, list[tuple[str, Part]]] = {}
        self.bound: dict[Tag, dict[str, Tag]] = {}

    def follow(self, tag: Tag, key: str = "url") -> Tag:
        """What an attribute such as url="#id" means."""
        name = tag.attrib[key]
        if not name.startswith("#") or name[1:] not in self.names:
            raise MeshError(f"names {name[:60]!r}, which is not in it")
        return self.names[name[1:]]

    def read(self) -> tuple[list[Part], list[Material]]:
        upright = np.eye(4)
        upright[:3, :3] = UPRIGHT[self.root.findtext("asset/up_axis", "Y_UP").strip()]
        scene = self.root.find("scene/instance_visual_scene")
        if self.root.tag != "COLLADA" or scene is None:
            raise MeshError("no COLLADA scene")
        parts: list[Part] = []
        visits = steps = faces = vertices = 0
        waiting = [(node, upright) for node in reversed(self.follow(scene).findall("node"))]
        while waiting:
            node, matrix = waiting.pop()
            visits, steps = visits + 1, steps + len(node)
            if visits > MAX_VISITS or steps > 10 * MAX_VISITS:
                raise MeshError(f"over {MAX_VISITS} nodes, or a node within itself")
            below = []
            for tag in node:
                if tag.tag in MOVES:
                    matrix = matrix @ MOVES[tag.tag](np.array((tag.text or "").split(), np.float64))
                elif tag.tag in ("lookat", "skew"):
                    raise MeshError(f"a node moved by {tag.tag}")
                elif tag.tag in ("node", "instance_node"):
                    below.append(tag if tag.tag == "node" else self.follow(tag))
                elif tag.tag in ("instance_geometry", "instance_controller"):
                    for part in self.place(tag, matrix):
                        faces, vertices = faces + len(part.faces), vertices + len(part.positions)
                        _check_size(faces, vertices)
                        parts.append(part)
                        _check_parts(len(parts))
            waiting += [(tag, matrix) for tag in reversed(below)]
            if len(waiting) > MAX_ELEMENTS:
                raise MeshError(f"over {MAX_VISITS} nodes, or a node within itself")
        return parts, [material for _, material in self.materials.values()]

    def place(self, instance: Tag, matrix: np.ndarray) -> Iterator[Part]:
        target = self.follow(instance)
        if target.tag == "controller":  # the shape at rest of what a skin bends
            skin = target.find("skin")
            if skin is None:
                raise MeshError("a controller that is no skin")
            target = self.follow(skin, "source")
        if instance not in self.bound:
            self.bound[instance] = {tag.attrib["symbol"]: tag for tag in instance.iter("instance_material")}
        bound = self.bound[instance]
        key = target.attrib["id"]
        if key not in self.shapes:
            self.shapes[key] = [*self.shape(target)]
        for symbol, part in self.shapes[key]:
            number = self.material(self.follow(bound[symbol], "target")) if symbol in bound else 0
            yield _place_part(part._replace(material=number), matrix)

    def shape(self, geometry: Tag) -> Iterator[tuple[str, Part]]:
        """The parts of a geometry, each with the symbol of its material."""
        for tag in geometry.iterfind("mesh/*"):
            if tag.tag not in ("triangles", "polylist", "polygons"):
                if tag.tag in ("tristrips", "trifans"):
                    raise MeshError(f"triangles as {tag.tag}", remedy="export it with plain triangles")
                continue
            inputs = tag.findall("input")
            if len(inputs) > MAX_INPUTS:
                raise MeshError(f"over {MAX_INPUTS} inputs")
            width = 1 + max(_count({"offset": int(entry.attrib["offset"])}, "offset") for entry in inputs)
            lists = [np.array((found.text or "").split(), np.int64) for found in tag.findall("p")]
            corners = np.concatenate([np.zeros(0, np.int64), *lists]).reshape(-1, width)
            if tag.tag == "polygons":
                lengths = np.array([len(found) // width for found in lists], np.int64)
            elif tag.tag == "polylist":
                lengths = np.array(tag.findtext("vcount", "").split(), np.int64)
            else:
                lengths = np.full(len(corners) // 3, 3)
            if lengths.min(initial=0) < 0 or lengths.max(initial=0) > len(corners) or lengths.sum() != len(corners):
                raise MeshError("polygons that do not fit their corners")
            taken: dict[str, Picked] = {}
            for entry in inputs:
                column = corners[:, int(entry.attrib["offset"])]
                source = self.follow(entry, "source")
                inner = source.findall("input") if source.tag == "vertices" else [entry]
                for one in inner[:MAX_INPUTS]:
                    semantic = one.attrib["semantic"]
                    if semantic in ("POSITION", "TEXCOORD", "COLOR") and semantic not in taken:
                        taken[semantic] = self.source(self.follow(one, "source")), column
            fan, _ = _fan(lengths)
            for values, column in taken.values():
                if column.min(initial=0) < 0 or column.max(initial=-1) >= len(values):
                    raise MeshError("a triangle names a vertex that is not there")
            if not len(fan):
                continue
            values, column = taken["POSITION"]
            uv = colours = None
            if "TEXCOORD" in taken:
                entries, which = taken["TEXCOORD"]
                uv = entries[which[fan], :2]
            if "COLOR" in taken:
                entries, which = taken["COLOR"]
                colours = _paint(entries[which[fan.ravel()]]).reshape(-1, 3, 4)
            yield tag.get("material", ""), Part(values[:, :3], column[fan], 0, uv, colours)

    def source(self, tag: Tag) -> np.ndarray:
        """The entries of a source (N, stride)."""
        key = tag.attrib["id"]
        if key not in self.sources:
            values = np.array((tag.findtext("float_array") or "").split(), np.float64)
            accessor = tag.find("technique_common/accessor")
            stride = _count({"stride": int(accessor.get("stride", "1"))}, "stride") if accessor is not None else 3
            self.sources[key] = values[: len(values) // stride * stride].reshape(-1, stride)
        return self.sources[key]

    def material(self, tag: Tag) -> int:
        """Its number; made on first use."""
        key = tag.attrib["id"]
        if key not in self.materials:
            instance = tag.find("instance_effect")
            effect = self.follow(instance) if instance is not None else tag
            name = effect.attrib["id"]
            if name not in self.effects:
                self.effects[name] = self.effect(effect)
            self.materials[key] = len(self.materials), self.effects[name]
        return self.materials[key][0]

    def effect(self, effect: Tag) -> Material:
        texture, colour = effect.find(".//diffuse/texture"), effect.findtext(".//diffuse/color")
        if texture is not None:
            name = texture.attrib["texture"]
            named = {tag.attrib["sid"]: tag for tag in effect.iter("newparam")}
            for kind in ("sampler2D/source", "surface/init_from"):
                name = named[name].findtext(kind, name).strip() if name in named else name
            image = self.names[name]
            place = image.findtext("init_from/ref") or image.findtext("init_from") or ""
            return Material((1, 1, 1, 1), self.shelf.picture(place.strip()))
        rgb = np.array((colour or "1 1 1").split()[:3], np.float64)
        red, green, blue = to_linear(np.clip(rgb, 0, 1)).tolist()
        return Material((red, green, blue, 1))


def _shift(values: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = values.reshape(3)
    return matrix


def _stretch(values: np.ndarray) -> np.ndarray:
    return np.diag([*values.reshape(3), 1])


def _turn(values: np.ndarray) -> np.ndarray:
    """About an axis by an angle in degrees."""
    x, y, z, angle = values
    half = math.radians(angle) / 2
    axis = np.array([x, y, z]) / (np.linalg.norm([x, y, z]) or 1) * math.sin(half)
    return _place_node({"rotation": [*axis.tolist(), math.cos(half)]})


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "matrix": lambda values: values.reshape(4, 4),
    "translate": _shift,
    "rotate": _turn,
    "scale": _stretch,
}


READERS: dict[str, Callable[[bytes, Shelf], tuple[list[Part], list[Material]]]] = {
    ".glb": _read_glb,
    ".gltf": _read_gltf,
    ".obj": _read_obj,
    ".ply": _read_ply,
    ".stl": _read_stl,
    ".dae": _read_dae,
}
