"""Reads OBJ with its MTL; it says no axis and is taken as y up."""

from __future__ import annotations

import re

import numpy as np

from ..errors import MeshError
from .parts import Part, Shelf, check_size, paint
from .surface import Material, to_linear


def read_obj(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
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
            check_size(len(material))
        elif key == b"usemtl":
            current = names.setdefault(_name(line), len(names))
        elif key == b"mtllib" and _name(line) not in libraries:
            libraries.add(_name(line))
            known |= _parse_mtl(shelf.read(_name(line)))
    check_size(len(material), max(len(positions), len(uvs)))
    faces, uv_faces = np.array(corners, np.int64).reshape(-1, 3), np.array(spots, np.int64).reshape(-1, 3)
    if uv_faces.max(initial=-1) >= len(uvs):
        raise MeshError("a triangle names a texture coordinate that is not there")
    places = np.array(positions, np.float64).reshape(-1, 3)
    if faces.max(initial=-1) >= len(places):
        raise MeshError("a triangle names a vertex that is not there")
    materials = [_make_material(known.get(name, {}), shelf) for name in names]
    uv = np.array([*uvs, [b"0", b"0"]], np.float64)[uv_faces] if uvs else None
    colours = paint(np.array(tints, np.float64))[faces] if tints and len(tints) == len(positions) else None
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
