"""Reads GLB and glTF by the glTF 2.0 specification; skins, morphs and animation are left out: the shape at rest.

Letters: V vertices, F triangles, N entries.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import MeshError
from .parts import MAX_VISITS, Part, Shelf, as_count, check_parts, check_size, place_part
from .surface import Material

MAX_NUMBERS = 100_000_000  # read from the accessors, which may share bytes
MAX_VALUES = 2_000_000  # of a JSON document
MAX_DEPTH = 64  # of JSON in JSON
MAX_DIGITS = 40  # of a number in JSON
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


def read_glb(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
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


def read_gltf(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
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
                check_size(faces, vertices)
                drawn.append((primitive, matrix))
            check_parts(len(drawn))
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
                yield as_count(node, "mesh"), matrix
            waiting += [(child, matrix) for child in reversed(_list(node, "children"))]
            if len(waiting) > MAX_VALUES:
                raise MeshError("a node has two parents or is its own")

    def plan(self, mesh: int) -> Iterator[Primitive]:
        """The primitives of a mesh that hold triangles, with upper bounds for what they take."""
        for table in _list(self.pick("meshes", mesh), "primitives"):
            mode = as_count(_table({"": table}, ""), "mode", TRIANGLES)
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
        count = as_count(table, "count")
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
        return place_part(Part(positions, faces, number, uv, colours), matrix)

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
        count, width = as_count(table, "count"), WIDTHS.get(table.get("type", ""), 0)
        dtype = NUMBERS.get(as_count(table, "componentType"))
        if not width or dtype is None:
            raise MeshError("an accessor of a type that is not read")
        if "bufferView" in table:
            values = self.view(table, count, width, dtype).copy()
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in table:
            sparse = _table(table, "sparse")
            some = as_count(sparse, "count")
            kind = NUMBERS.get(as_count(_table(sparse, "indices"), "componentType"))
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
        stride, offset = as_count(view, "byteStride", size), as_count(table, "byteOffset", 0)
        if stride < size:
            raise MeshError("a stride shorter than an entry")
        if count and offset + stride * (count - 1) + size > len(body):
            raise MeshError("an accessor reaches past its buffer view")
        if not count:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, body, offset, (stride, np.dtype(dtype).itemsize))

    def span(self, view: dict[str, Any]) -> memoryview:
        """The bytes of a buffer view."""
        which = as_count(view, "buffer")
        if which not in self.buffers:
            table = self.pick("buffers", which)
            inside = self.body is not None and which == 0 and "uri" not in table
            data = self.body if self.body is not None and inside else self.fetch(table.get("uri"))
            if as_count(table, "byteLength") > len(data):
                raise MeshError("a buffer is shorter than it should be")
            self.buffers[which] = data[: as_count(table, "byteLength")]
        body = self.buffers[which]
        start = as_count(view, "byteOffset", 0)
        end = start + as_count(view, "byteLength")
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
            uv_set = as_count(change if "texCoord" in change else spot, "texCoord", 0)
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
