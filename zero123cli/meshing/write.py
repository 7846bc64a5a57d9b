"""A mesh as files: GLB, OBJ, PLY, STL, 3MF, OFF and USDZ, written by hand so that the same mesh gives the same bytes.

GLB follows glTF 2.0, 3MF its core and materials specifications, USDZ the packaging rules (nothing compressed, each
file's bytes at a multiple of 64). A unit is a metre, but in what is printed: 3MF is written in millimetres and says so,
STL in the millimetres that every slicer takes it to be in; and both stand as slicers expect, with z up.
Letters: V vertices, W places (vertices without seams), F triangles.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..scenes.surface import to_linear
from .mesh import Mesh, sample_texture, weld

GENERATOR = "zero123"
ROUGHNESS = 0.9
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # of all files in archives: the earliest that ZIP can say
MILLIMETRES = 1000.0
AXES = {name: np.array(axis, np.float64) * sign for sign, mark in ((1, "+"), (-1, "-"))
        for name, axis in ((mark + "x", (1, 0, 0)), (mark + "y", (0, 1, 0)), (mark + "z", (0, 0, 1)))}  # fmt: skip
UPRIGHT = {".3mf": "z", ".stl": "z"}  # y in the others
FRONTS = {"y": "+z", "z": "-y"}  # where the front looks unless told otherwise: as in glTF, and as in Blender


@dataclass(frozen=True)
class Placement:
    """How the object stands in the file."""

    up: str = ""  # "y" or "z"; empty for the usual one of the format
    front: str = ""  # "+x" and so on; empty for the usual one of that `up`
    height: float = 0.0  # metres along `up`; 0 leaves the longest box side at about 1
    origin: str = "center"  # of the box, or "base": the middle of its underside


@dataclass(frozen=True)
class About:
    """What a file says of itself."""

    generator: str = GENERATOR
    extras: Mapping[str, Any] | None = None  # JSON values


def write(mesh: Mesh, name: str, placement: Placement = Placement(), about: About = About()) -> dict[str, bytes]:
    """The files of `name`, whose suffix says the format: itself first, then what it needs beside it."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in WRITERS:
        raise UsageError(f"{suffix or 'no suffix'!r} is not a mesh format", remedy=f"use one of {' '.join(WRITERS)}")
    standing = stand(placement, suffix)
    return WRITERS[suffix](place(mesh, placing(mesh.vertices, standing)), name, about, standing.up)


# Placing --------------------------------------------------------------------------------------------------------------


def stand(placement: Placement, suffix: str) -> Placement:
    """With the axis that is up, where that was left open: the format's usual one, unless the front lies along it."""
    usual = UPRIGHT.get(suffix, "y")
    other = "y" if usual == "z" else "z"
    return replace(placement, up=placement.up or (other if placement.front[-1:] == usual else usual))


def placing(vertices: np.ndarray, placement: Placement) -> np.ndarray:  # (V, 3) -> float64 (4, 4)
    """The matrix from the world to the file's axes, in metres."""
    placement = stand(placement, "")
    if placement.up not in FRONTS:
        raise UsageError(f"up is {placement.up!r}", remedy="use y or z")
    name = placement.front or FRONTS[placement.up]
    name = name if name[0] in "+-" else "+" + name
    if name not in AXES or name[1] == placement.up:
        raise UsageError(f"front is {placement.front!r}", remedy="use +x -x +y -y +z or -z, but not along up")
    if placement.origin not in ("center", "base"):
        raise UsageError(f"origin is {placement.origin!r}", remedy="use base or center")
    up, front = AXES["+" + placement.up], AXES[name]
    turn = np.stack([np.cross(up, front), up, front], 1)
    placed = vertices.astype(np.float64) @ turn.T
    low, high = placed.min(0), placed.max(0)
    tall = float((high - low) @ up)
    scale = placement.height / tall if placement.height and tall > 0 else 1.0
    anchor = (low + high) / 2 - (up * tall / 2 if placement.origin == "base" else 0.0)
    matrix = np.eye(4)
    matrix[:3, :3] = turn * scale
    matrix[:3, 3] = -anchor * scale
    return matrix


def place(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh moved by a matrix that turns, scales evenly and shifts."""
    turn = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    vertices = mesh.vertices.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    normals = mesh.normals.astype(np.float64) @ turn.T
    return replace(mesh, vertices=vertices.astype(np.float32), normals=normals.astype(np.float32))


# Parts that several formats need ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A mesh without seams: one vertex in a place."""

    vertices: np.ndarray  # float32 (W, 3)
    normals: np.ndarray  # float32 (W, 3)
    faces: np.ndarray  # int64 (F, 3)
    colours: np.ndarray  # uint8 (W or 0, 3), sRGB


def make_plain(mesh: Mesh) -> Plain:
    """Without seams; a texture becomes colours of vertices."""
    first, which = weld(mesh.vertices)
    colours = mesh.colours
    if len(mesh.texture):
        colours = np.rint(sample_texture(mesh.texture, mesh.uv)).astype(np.uint8)
    picked = colours[first] if len(colours) else colours
    return Plain(mesh.vertices[first], mesh.normals[first], which[mesh.faces], picked)


def encode_png(texture: np.ndarray) -> bytes:
    page = BytesIO()
    Image.fromarray(texture).save(page, "PNG", compress_level=6)
    return page.getvalue()


def as_lines(form: str, rows: np.ndarray) -> str:
    """One line for each row; nine digits bring a float32 back exactly."""
    line = form + "\n"
    return "".join([line % tuple(row) for row in rows.tolist()])


# GLB ------------------------------------------------------------------------------------------------------------------

FLOAT, UINT16, UINT32 = 5126, 5123, 5125
VERTICES, INDICES = 34962, 34963  # what a buffer view is for


def write_glb(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    body = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add_view(data: bytes, **more: Any) -> int:
        views.append({"buffer": 0, "byteLength": len(data), "byteOffset": len(body), **more})
        body.extend(data + bytes(-len(data) % 4))
        return len(views) - 1

    def add(values: np.ndarray, kind: int, shape: str, target: int = VERTICES, **more: Any) -> int:
        view = add_view(np.ascontiguousarray(values).tobytes(), target=target)
        accessors.append({"bufferView": view, "componentType": kind, "count": len(values), "type": shape, **more})
        return len(accessors) - 1

    bounds = {"min": mesh.vertices.min(0).tolist(), "max": mesh.vertices.max(0).tolist()}
    attributes = {
        "POSITION": add(mesh.vertices.astype("<f4"), FLOAT, "VEC3", **bounds),
        "NORMAL": add(mesh.normals.astype("<f4"), FLOAT, "VEC3"),
    }
    surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": ROUGHNESS}
    document: dict[str, Any] = {}
    if len(mesh.texture):
        attributes["TEXCOORD_0"] = add((mesh.uv * (1, -1) + (0, 1)).astype("<f4"), FLOAT, "VEC2")
        surface["baseColorTexture"] = {"index": 0}
        document["textures"] = [{"sampler": 0, "source": 0}]
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
    elif len(mesh.colours):
        light = np.ones((len(mesh.colours), 4))
        light[:, :3] = to_linear(mesh.colours / 255)
        attributes["COLOR_0"] = add(np.rint(light * 65535).astype("<u2"), UINT16, "VEC4", normalized=True)
    small = len(mesh.vertices) < 65535  # the last number has another meaning
    corners = mesh.faces.ravel().astype("<u2" if small else "<u4")
    indices = add(corners, UINT16 if small else UINT32, "SCALAR", INDICES)
    if len(mesh.texture):
        document["images"] = [{"bufferView": add_view(encode_png(mesh.texture)), "mimeType": "image/png"}]
    document |= {
        "asset": {"version": "2.0", "generator": about.generator}
        | ({"extras": dict(about.extras)} if about.extras else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [{"name": "surface", "doubleSided": False, "pbrMetallicRoughness": surface}],
        "bufferViews": views,
        "accessors": accessors,
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + bytes(body)
    return {name: struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks}


# OBJ, PLY, STL, OFF ---------------------------------------------------------------------------------------------------


def write_obj(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    """With a material beside it when there is a texture; colours of vertices stand in the lines of the vertices."""
    first, which = weld(mesh.vertices)
    parts = [f"# {one_line(about.generator)}\n"]
    files: dict[str, bytes] = {}
    places = mesh.vertices[first]
    if len(mesh.texture):
        material_name, texture_name = sidecars(name, textured=True)
        parts.append(f"mtllib {material_name}\n")
        material = [f"# {one_line(about.generator)}", "newmtl surface", "Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", "illum 1",
                    f"Pr {ROUGHNESS}", "Pm 0", f"map_Kd {texture_name}", ""]  # fmt: skip
        files = {material_name: "\n".join(material).encode(), texture_name: encode_png(mesh.texture)}
    if len(mesh.colours):
        coloured = np.concatenate([places.astype(np.float64), mesh.colours[first] / 255], 1)
        parts.append(as_lines("v %.9g %.9g %.9g %.6g %.6g %.6g", coloured))
    else:
        parts.append(as_lines("v %.9g %.9g %.9g", places))
    parts.append(as_lines("vn %.6g %.6g %.6g", mesh.normals[first]))
    corners = which[mesh.faces] + 1
    parts.append("o object\n")
    if len(mesh.texture):
        parts += [as_lines("vt %.9g %.9g", mesh.uv), "usemtl surface\n"]
        rows = np.stack([corners, mesh.faces + 1, corners], -1).reshape(-1, 9)
        parts.append(as_lines("f %d/%d/%d %d/%d/%d %d/%d/%d", rows))
    else:
        parts.append(as_lines("f %d//%d %d//%d %d//%d", np.repeat(corners, 2, 1)))
    return {name: "".join(parts).encode()} | files


def sidecars(name: str, *, textured: bool) -> tuple[str, ...]:
    """The files that are written beside one of this name. A photo has the same stem as its mesh, and stays."""
    if PurePath(name).suffix.lower() != ".obj" or not textured:
        return ()
    beside = name_beside(name)
    return f"{beside}.mtl", f"{beside}_texture.png"


def name_beside(name: str) -> str:
    """A stem for the files beside `name` that every reader takes, and that no other name shares."""
    stem = PurePath(name).stem
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:100]
    return stem if plain == stem else f"{plain}-{zlib.crc32(stem.encode('utf-8', 'surrogateescape')):08x}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def write_ply(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    """Binary, with colours of vertices."""
    plain = make_plain(mesh)
    fields = [(axis, "<f4", "float") for axis in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(axis, "u1", "uchar") for axis in ("red", "green", "blue") if len(plain.colours)]
    rows = np.empty(len(plain.vertices), [(field, kind) for field, kind, _ in fields])
    columns = [*plain.vertices.T, *plain.normals.T, *plain.colours.T] if len(plain.colours) else [
        *plain.vertices.T, *plain.normals.T]  # fmt: skip
    for (field, _, _), column in zip(fields, columns, strict=True):
        rows[field] = column
    faces = np.empty(len(plain.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, plain.faces
    head = ["ply", "format binary_little_endian 1.0", f"comment {one_line(about.generator)}",
            f"element vertex {len(rows)}", *(f"property {word} {field}" for field, _, word in fields),
            f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]  # fmt: skip
    return {name: "\n".join(head).encode("ascii", "replace") + rows.tobytes() + faces.tobytes()}


def write_stl(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    """Binary: the shape alone."""
    corners = mesh.vertices[mesh.faces] * np.float32(MILLIMETRES)
    cross = np.cross(*(corners[:, k].astype(np.float64) - corners[:, 0] for k in (1, 2)))
    rows = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    rows["normal"] = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
    rows["corners"] = corners
    head = f"binary STL by {one_line(about.generator)}".encode("ascii", "replace")[:80].ljust(80, b" ")
    return {name: head + struct.pack("<I", len(rows)) + rows.tobytes()}


def write_off(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    """The shape alone."""
    plain = make_plain(mesh)
    head = f"OFF\n{len(plain.vertices)} {len(plain.faces)} 0\n"
    text = head + as_lines("%.9g %.9g %.9g", plain.vertices) + as_lines("3 %d %d %d", plain.faces)
    return {name: text.encode()}


# 3MF and USDZ ---------------------------------------------------------------------------------------------------------


def write_3mf(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    """In millimetres, with colours of vertices."""
    plain = make_plain(mesh)
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<model unit="millimeter" xml:lang="en-US" '
        'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" '
        'xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02">\n'
        f'<metadata name="Application">{as_xml(one_line(about.generator))}</metadata>\n<resources>\n'
    ]
    head, form, rows = '<object id="1" type="model">\n', '<triangle v1="%d" v2="%d" v3="%d"/>', plain.faces
    if len(plain.colours):
        palette, which = np.unique(plain.colours, axis=0, return_inverse=True)
        parts += ['<m:colorgroup id="2">\n', as_lines('<m:color color="#%02X%02X%02X"/>', palette), "</m:colorgroup>\n"]
        head = '<object id="1" type="model" pid="2" pindex="0">\n'
        form = '<triangle v1="%d" v2="%d" v3="%d" pid="2" p1="%d" p2="%d" p3="%d"/>'
        rows = np.concatenate([plain.faces, which.ravel()[plain.faces]], 1)
    parts += [head, "<mesh>\n<vertices>\n"]
    parts += [as_lines('<vertex x="%.9g" y="%.9g" z="%.9g"/>', plain.vertices * np.float32(MILLIMETRES))]
    parts += ["</vertices>\n<triangles>\n", as_lines(form, rows), "</triangles>\n</mesh>\n</object>\n</resources>\n"]
    parts += ['<build>\n<item objectid="1"/>\n</build>\n</model>\n']
    types = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>\n'
    )
    links = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Target="/3D/3dmodel.model" Id="rel0" '
        'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>\n'
    )
    files = {"[Content_Types].xml": types, "_rels/.rels": links, "3D/3dmodel.model": "".join(parts)}
    page = BytesIO()
    with zipfile.ZipFile(page, "w") as archive:
        for inside, text in files.items():
            entry = zipfile.ZipInfo(inside, LONG_AGO)
            archive.writestr(entry, text.encode(), zipfile.ZIP_DEFLATED, 6)
    return {name: page.getvalue()}


def as_xml(text: str) -> str:
    """Control characters have no way to be said in XML."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in text))


def write_usdz(mesh: Mesh, name: str, about: About, up: str) -> dict[str, bytes]:
    files = {"object.usda": describe_usd(mesh, about, up).encode()}
    if len(mesh.texture):
        files["texture.png"] = encode_png(mesh.texture)
    page = BytesIO()
    with zipfile.ZipFile(page, "w", zipfile.ZIP_STORED) as archive:
        for inside, data in files.items():
            entry = zipfile.ZipInfo(inside, LONG_AGO)
            before = page.tell() + 30 + len(inside)  # the length of a file's head without its extra field
            gap = -before % 64
            gap += 64 * (0 < gap < 4)  # an extra field has four bytes at least
            if gap:
                entry.extra = struct.pack("<HH", 0x1986, gap - 4) + bytes(gap - 4)
            archive.writestr(entry, data)
    return {name: page.getvalue()}


def describe_usd(mesh: Mesh, about: About, up: str) -> str:
    """The scene as text, with a preview surface for its look."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    look, values, shaders = "color3f inputs:diffuseColor = (0.8, 0.8, 0.8)", "", ""
    if len(mesh.texture):
        look = "color3f inputs:diffuseColor.connect = </Object/Look/Texture.outputs:rgb>"
        values, shaders = f"texCoord2f[] primvars:st = {as_tuples(mesh.uv)}", USD_TEXTURE
    elif len(mesh.colours):
        look = "color3f inputs:diffuseColor.connect = </Object/Look/Colours.outputs:result>"
        values, shaders = f"color3f[] primvars:displayColor = {as_tuples(to_linear(mesh.colours / 255))}", USD_COLOURS
    return USD.format(
        creator=json.dumps(one_line(about.generator)),
        up=up.upper(),
        extent=as_tuples(np.stack([low, high])),
        counts="[" + ", ".join(["3"] * len(mesh.faces)) + "]",
        corners="[" + ", ".join(map(str, mesh.faces.ravel().tolist())) + "]",
        points=as_tuples(mesh.vertices),
        normals=as_tuples(mesh.normals),
        values=f'        {values} (\n            interpolation = "vertex"\n        )\n' if values else "",
        look=look,
        roughness=ROUGHNESS,
        shaders=shaders,
    )


def as_tuples(rows: np.ndarray) -> str:
    form = "(" + ", ".join(["%.9g"] * rows.shape[1]) + ")"
    return "[" + ", ".join([form % tuple(row) for row in rows.tolist()]) + "]"


USD = """#usda 1.0
(
    customLayerData = {{
        string creator = {creator}
    }}
    defaultPrim = "Object"
    metersPerUnit = 1
    upAxis = "{up}"
)

def Xform "Object" (
    kind = "component"
)
{{
    def Mesh "Surface" (
        prepend apiSchemas = ["MaterialBindingAPI"]
    )
    {{
        uniform bool doubleSided = 0
        float3[] extent = {extent}
        int[] faceVertexCounts = {counts}
        int[] faceVertexIndices = {corners}
        rel material:binding = </Object/Look>
        normal3f[] normals = {normals} (
            interpolation = "vertex"
        )
        point3f[] points = {points}
{values}        uniform token subdivisionScheme = "none"
    }}

    def Material "Look"
    {{
        token outputs:surface.connect = </Object/Look/Surface.outputs:surface>

        def Shader "Surface"
        {{
            uniform token info:id = "UsdPreviewSurface"
            {look}
            float inputs:metallic = 0
            float inputs:roughness = {roughness}
            token outputs:surface
        }}
{shaders}    }}
}}
"""

USD_TEXTURE = """
        def Shader "Coordinates"
        {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "st"
            float2 outputs:result
        }

        def Shader "Texture"
        {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @texture.png@
            token inputs:sourceColorSpace = "sRGB"
            float2 inputs:st.connect = </Object/Look/Coordinates.outputs:result>
            token inputs:wrapS = "clamp"
            token inputs:wrapT = "clamp"
            float3 outputs:rgb
        }
"""

USD_COLOURS = """
        def Shader "Colours"
        {
            uniform token info:id = "UsdPrimvarReader_float3"
            string inputs:varname = "displayColor"
            float3 outputs:result
        }
"""

Writer = Callable[[Mesh, str, About, str], dict[str, bytes]]

WRITERS: dict[str, Writer] = {
    ".glb": write_glb,
    ".obj": write_obj,
    ".ply": write_ply,
    ".stl": write_stl,
    ".3mf": write_3mf,
    ".off": write_off,
    ".usdz": write_usdz,
}
UNITS = {".3mf": MILLIMETRES, ".stl": MILLIMETRES}  # units in a metre, where it is not one
