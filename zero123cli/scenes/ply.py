"""Reads PLY and STL, text and binary; they say no axis and are taken as y up.

Letters: V vertices, F triangles, N entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import MeshError
from .parts import Part, Shelf, as_count, check_size, fan_out, paint
from .surface import Material

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


def read_ply(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    head = re.match(rb"ply.*?\nend_header[ \t]*\r?\n", data[:PLY_HEAD], re.DOTALL)
    if not head:
        raise MeshError("a PLY without a header")
    lines = [line.split() for line in head[0].decode("ascii", "replace").splitlines()]
    order = PLY_ORDERS[next(line[1] for line in lines if line[:1] == ["format"])]
    elements: list[Element] = []
    pictures = []
    for words in lines:
        if words[:1] == ["element"]:
            elements.append(Element(words[1], as_count({words[1]: int(words[2])}, words[1])))
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
                length = as_count({"a list": int(words[start])}, "a list") if found.length else 1
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
    return as_count({"a list": int(np.frombuffer(body, dtype, 1, at)[0])}, "a list")


def _surface_of_ply(read: dict[str, Columns], pictures: list[str], shelf: Shelf) -> tuple[list[Part], list[Material]]:
    vertex, face = read.get("vertex", {}), read.get("face", {})
    listed = face.get("vertex_indices", face.get("vertex_index"))
    if not isinstance(listed, tuple):
        raise MeshError("holds no triangles")
    check_size(0, len(vertex["x"]))
    positions = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], 1)
    corners, rows = fan_out(listed[0])
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


def _tint(columns: Columns) -> np.ndarray | None:
    """Linear colours (N, 4) where the element has them; integers are parts of 255 or 65535."""
    for prefix in ("", "diffuse_"):
        if all(prefix + colour in columns for colour in ("red", "green", "blue")):
            given = np.stack([np.asarray(columns[prefix + colour]) for colour in ("red", "green", "blue")], 1)
            fraction = given.dtype.kind == "f" and given.max(initial=0) <= 1
            return paint(given / (1 if fraction else 65535 if given.dtype.itemsize == 2 else 255))
    return None


def read_stl(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + 50 * count:
        check_size(count)
        corners = np.ndarray((count, 3, 3), "<f4", data, 84 + 12, (50, 12, 4)).astype(np.float64)
    elif re.match(rb"\s*solid", data) and b"endsolid" in data[-1000:]:
        check_size(data.count(b"vertex") // 3)
        found = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
        if len(found) != 3 * len(re.findall(rb"\bendfacet\b", data)):
            raise MeshError("facets without three corners")
        corners = np.array(found, np.float64).reshape(-1, 3, 3)
    else:
        raise MeshError("not as long as its number of triangles needs")
    return [Part(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), 0)], [Material((1, 1, 1, 1))]
