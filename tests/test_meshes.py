"""Meshes: every kind that is read, held against trimesh as the slow reference; every lie that is refused."""

from __future__ import annotations

import base64
import csv
import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from conftest import SHARED, needs_shared
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from zero123cli.errors import MeshError, MissingInputError
from zero123cli.scenes import meshes, parts
from zero123cli.scenes.meshes import LEAST_AREA, read_surface
from zero123cli.scenes.surface import Surface, to_linear

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
CORNERS = np.array([0, 1, 2, 0, 2, 3], np.uint16)


# The slow reference ---------------------------------------------------------------------------------------------------


def sort_triangles(triangles: np.ndarray) -> np.ndarray:
    """Triangles (F, 3, 3) in one order, each beginning at its smallest corner, winding kept."""
    triangles = np.round(triangles.astype(np.float64), 4) + 0.0
    turned = []
    for triangle in triangles.tolist():
        first = triangle.index(min(triangle))
        turned.append(triangle[first:] + triangle[:first])
    return np.array(sorted(turned))


def have_area(triangles: np.ndarray) -> np.ndarray:
    """Which triangles a reader must keep."""
    triangles = triangles.astype(np.float32).astype(np.float64)
    longest = np.ptp(triangles.reshape(-1, 3), axis=0).max()
    sides = (triangles[:, 1:] - triangles[:, :1]) / longest
    return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) > LEAST_AREA


def reference(path: Path) -> trimesh.Trimesh:
    return trimesh.load(path, force="mesh", process=False)


def check_same(path: Path) -> Surface:
    """The same triangles as trimesh reads."""
    surface, other = read_surface(path), reference(path)
    check_well(surface)
    triangles = other.triangles[have_area(other.triangles)]
    np.testing.assert_allclose(sort_triangles(surface.vertices[surface.faces]), sort_triangles(triangles), atol=2e-4)
    return surface


def check_well(surface: Surface) -> None:
    """What is promised of every surface."""
    faces = len(surface.faces)
    assert faces and surface.faces.dtype == np.int32 and surface.vertices.dtype == np.float32
    assert surface.faces.min() >= 0 and surface.faces.max() < len(surface.vertices)
    assert np.isfinite(surface.vertices).all() and np.ptp(surface.vertices[surface.faces].reshape(-1, 3), 0).max() > 0
    assert surface.material.shape == (faces,) and surface.material.dtype == np.int32
    assert surface.material.min() >= 0 and surface.material.max() < len(surface.materials)
    for values, width in ((surface.uv, 2), (surface.colours, 4)):
        if values is not None:
            assert values.shape == (faces, 3, width) and values.dtype == np.float32 and np.isfinite(values).all()
    for material in surface.materials:
        assert all(0 <= value <= 1 for value in (*material.colour, material.roughness, material.metallic))
        if material.texture is not None:
            assert material.texture.dtype == np.uint8 and material.texture.ndim == 3 and material.texture.shape[2] == 4
            assert max(material.texture.shape) <= parts.TEXTURE_SIDE


def pick_texels(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return texture[row, column].astype(int)


def check_same_texels(path: Path) -> None:
    """The same colour at random points of the surface as trimesh's texture coordinates and picture give."""
    surface, other = check_same(path), reference(path)
    material = other.visual.material
    picture = material.baseColorTexture if isinstance(material, PBRMaterial) else material.image
    other_texture = np.array(picture.convert("RGBA"))
    rng = np.random.default_rng(1)
    pick = rng.integers(len(surface.faces), size=300)
    weights = rng.dirichlet([1, 1, 1], size=300)[..., None]
    assert surface.uv is not None
    points = (surface.vertices[surface.faces[pick]] * weights).sum(1)
    texture = surface.materials[surface.material[pick[0]]].texture
    assert texture is not None
    ours = pick_texels(texture, (surface.uv[pick] * weights).sum(1))
    centres = other.triangles.mean(1)
    agree = 0
    for point, which, colour in zip(points, pick, ours, strict=True):
        centre = surface.vertices[surface.faces[which]].mean(0)
        k = int(np.argmin(np.linalg.norm(centres - centre, axis=1)))
        bary = trimesh.triangles.points_to_barycentric(other.triangles[k : k + 1], point[None])[0]
        uv = (other.visual.uv[other.faces[k]] * bary[:, None]).sum(0)
        agree += np.abs(pick_texels(other_texture, uv[None])[0] - colour)[:3].max() <= 2
    assert agree >= 295  # a point on a texel's edge may fall to either side


# Files to read --------------------------------------------------------------------------------------------------------


def paint(height: int = 32, width: int = 48) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5, y * 8, (x + y) * 3], -1).astype(np.uint8))


def save(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def textured(material: object) -> trimesh.Trimesh:
    """A lumpy ball whose texture coordinates are its own."""
    ball = trimesh.creation.icosphere(subdivisions=2)
    rng = np.random.default_rng(3)
    ball.vertices *= rng.uniform(0.8, 1.2, (len(ball.vertices), 1))
    ball.visual = trimesh.visual.TextureVisuals(uv=rng.uniform(0.05, 0.95, (len(ball.vertices), 2)), material=material)
    return ball


def tinted() -> trimesh.Trimesh:
    box = trimesh.creation.box(extents=(1, 2, 3))
    box.visual.vertex_colors = np.random.default_rng(4).integers(0, 256, (8, 4)).astype(np.uint8)
    return box


class Maker:
    """Builds glTF documents by hand."""

    def __init__(self) -> None:
        self.body = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}],
            "accessors": [],
            "bufferViews": [],
        }

    def view(self, data: bytes, **more: Any) -> int:
        self.body += b"\0" * (-len(self.body) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data), **more}
        )
        self.body += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, **more: Any) -> int:
        kinds = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
        types = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
        self.document["accessors"].append(
            {
                "bufferView": self.view(np.ascontiguousarray(values).tobytes()),
                "componentType": kinds[values.dtype.str[1:]],
                "count": len(values),
                "type": types[values.shape[1] if values.ndim > 1 else 1],
                **more,
            }
        )
        return len(self.document["accessors"]) - 1

    def square(self, indices: np.ndarray | None = CORNERS, positions: np.ndarray = SQUARE, **more: Any) -> Maker:
        primitive: dict[str, Any] = {"attributes": {"POSITION": self.accessor(positions)}, **more}
        if indices is not None:
            primitive["indices"] = self.accessor(indices)
        self.document["meshes"][0]["primitives"].append(primitive)
        return self

    def attribute(self, name: str, values: np.ndarray, **more: Any) -> Maker:
        self.document["meshes"][0]["primitives"][-1]["attributes"][name] = self.accessor(values, **more)
        return self

    def material(self, picture: bytes | None = None, **more: Any) -> Maker:
        if picture is not None:
            self.document.update(images=[{"bufferView": self.view(picture)}], textures=[{"source": 0}])
        self.document["materials"] = [more]
        self.document["meshes"][0]["primitives"][-1]["material"] = 0
        return self

    def glb(self, text: bytes | None = None) -> bytes:
        self.document["buffers"] = [{"byteLength": len(self.body)}]
        text = json.dumps(self.document).encode() if text is None else text
        text += b" " * (-len(text) % 4)
        body = self.body + b"\0" * (-len(self.body) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def gltf(self) -> bytes:
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.body).decode()
        self.document["buffers"] = [{"byteLength": len(self.body), "uri": uri}]
        return json.dumps(self.document).encode()


Keeper = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Keeper:
    def put(data: bytes | str, name: str = "mesh.glb") -> Path:
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(data.encode() if isinstance(data, str) else data)
        return place

    return put


@pytest.fixture
def refuse(put: Keeper) -> Callable[..., MeshError]:
    """Refused in one line that names the file, without much memory (to trace it makes small objects slow)."""

    def refuse(
        data: bytes | str | Maker, name: str = "mesh.glb", what: str | None = None, *, traced: bool = True
    ) -> MeshError:
        path = put(data.glb() if isinstance(data, Maker) else data, name)
        if traced:
            tracemalloc.start()
        try:
            with pytest.raises(MeshError, match=what) as caught:
                read_surface(path)
            assert not traced or tracemalloc.get_traced_memory()[1] < 300e6
        finally:
            tracemalloc.stop()
        text = str(caught.value)
        assert text.startswith(str(path)) and text.isprintable() and len(text) < 500 + len(str(path)), text
        return caught.value

    return refuse


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".stl", ".obj"])
def test_plain_meshes_read_as_trimesh_reads_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ball{suffix}"
    trimesh.creation.icosphere(subdivisions=2).export(path)
    assert len(check_same(path).faces) == 320


def test_textured_glb_reads_the_same_triangles_and_texels(tmp_path: Path) -> None:
    path = tmp_path / "ball.glb"
    material = PBRMaterial(baseColorTexture=paint(), baseColorFactor=[128, 255, 0, 255], roughnessFactor=0.25)
    textured(material).export(path)
    check_same_texels(path)
    (found,) = read_surface(path).materials
    np.testing.assert_allclose(found.colour, (128 / 255, 1, 0, 1), atol=1e-3)
    assert found.roughness == 0.25


def test_obj_with_its_material_and_picture_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ball.obj"
    textured(SimpleMaterial(image=paint())).export(path)
    check_same_texels(path)


def test_gltf_with_files_beside_it_reads_as_the_glb(tmp_path: Path) -> None:
    scene = trimesh.Scene(textured(PBRMaterial(baseColorTexture=paint())))
    for name, data in trimesh.exchange.gltf.export_gltf(scene).items():
        (tmp_path / name).write_bytes(data)
    check_same_texels(tmp_path / "model.gltf")


@pytest.mark.parametrize("suffix", [".glb", ".ply"])
def test_vertex_colours_survive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"box{suffix}"
    box = tinted()
    box.export(path)
    surface = check_same(path)
    assert surface.colours is not None
    for corner, colour in zip(
        surface.vertices[surface.faces].reshape(-1, 3), surface.colours.reshape(-1, 4), strict=True
    ):
        stored = box.visual.vertex_colors[np.argmin(np.linalg.norm(box.vertices - corner, axis=1))] / 255
        expected = stored[:3] if suffix == ".glb" else to_linear(stored[:3])  # glTF's are linear, PLY's are sRGB
        np.testing.assert_allclose(colour, [*expected, 1], atol=1e-6)


def test_nodes_put_meshes_in_place(tmp_path: Path) -> None:
    """Several nodes, one mesh used twice, turned, mirrored and stretched."""
    scene, ball = trimesh.Scene(), trimesh.creation.icosphere(subdivisions=1)
    turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])
    turn[:3, 3] = 4, 5, 6
    scene.add_geometry(ball, node_name="a", geom_name="ball", transform=turn)
    scene.add_geometry(ball, node_name="b", geom_name="ball", transform=np.diag([-1.0, 2, 3, 1]), parent_node_name="a")
    scene.add_geometry(tinted(), node_name="c", geom_name="box", transform=turn @ turn)
    scene.export(tmp_path / "scene.glb")
    surface = check_same(tmp_path / "scene.glb")
    assert len(surface.faces) == 80 + 80 + 12


def test_a_node_as_parts_and_as_matrix_is_the_same(put: Keeper) -> None:
    maker = Maker().square()
    parts = {"translation": [1, 2, 3], "rotation": [0.5, 0.5, -0.5, 0.5], "scale": [2, 3, -4]}
    maker.document["nodes"] = [{"mesh": 0, **parts}]
    first = check_same(put(maker.glb()))
    matrix = trimesh.transformations.quaternion_matrix([0.5, 0.5, 0.5, -0.5]) @ np.diag([2, 3, -4, 1])
    matrix[:3, 3] = 1, 2, 3
    maker.document["nodes"] = [{"mesh": 0, "matrix": matrix.T.ravel().tolist()}]
    second = check_same(put(maker.glb()))
    np.testing.assert_allclose(first.vertices, second.vertices, atol=1e-5)


# glTF by hand ---------------------------------------------------------------------------------------------------------


def triangles_of(path: Path) -> list[list[int]]:
    """Each triangle as the numbers of the square's corners."""
    surface = read_surface(path)
    check_well(surface)
    found = []
    for triangle in surface.vertices[surface.faces]:
        found.append([int(np.argmin(np.abs(SQUARE - corner).sum(1))) for corner in triangle])
    return found


@pytest.mark.parametrize(
    ("mode", "indices", "expected"),
    [
        (4, [0, 1, 2, 0, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (5, [0, 1, 3, 2], [[0, 1, 3], [1, 2, 3]]),
        (6, [0, 1, 2, 3], [[0, 1, 2], [0, 2, 3]]),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, None])
def test_lists_strips_and_fans(
    put: Keeper, mode: int, indices: list[int], expected: list[list[int]], kind: type | None
) -> None:
    if kind is None:
        maker = Maker().square(None, SQUARE[indices], mode=mode)
    else:
        maker = Maker().square(np.array(indices, kind), mode=mode)
    found = triangles_of(put(maker.glb()))
    assert [sorted(triangle) for triangle in found] == [sorted(triangle) for triangle in expected]
    assert all(trimesh.triangles.normals(SQUARE[None, triangle])[0][0][2] > 0 for triangle in found)  # same winding


def test_points_and_lines_are_skipped(put: Keeper, refuse: Callable[..., MeshError]) -> None:
    maker = Maker()
    for mode in (0, 1, 2, 3):
        maker.square(mode=mode)
    refuse(maker, what="no triangles")
    assert len(triangles_of(put(maker.square().glb()))) == 2


def test_embedded_buffers_read(put: Keeper) -> None:
    assert triangles_of(put(Maker().square().gltf(), "mesh.gltf")) == [[0, 1, 2], [0, 2, 3]]
    assert triangles_of(put(Maker().square().gltf(), "mesh.glb")) == [[0, 1, 2], [0, 2, 3]]  # by its content


def test_sparse_accessors_change_some_entries(put: Keeper) -> None:
    maker = Maker().square(positions=SQUARE * 0)
    sparse = {
        "count": 3,
        "indices": {"bufferView": maker.view(bytes([1, 2, 3])), "componentType": 5121},
        "values": {"bufferView": maker.view(SQUARE[1:].tobytes())},
    }
    maker.document["accessors"][0]["sparse"] = sparse
    np.testing.assert_array_equal(read_surface(put(maker.glb())).vertices, SQUARE)
    del maker.document["accessors"][0]["bufferView"]  # zeros, then
    np.testing.assert_array_equal(read_surface(put(maker.glb())).vertices, SQUARE)


@pytest.mark.parametrize(("kind", "top"), [(np.int8, 127), (np.uint8, 255), (np.int16, 32767), (np.uint16, 65535)])
def test_normalised_integers_are_fractions(put: Keeper, kind: type, top: int) -> None:
    maker = Maker().square().attribute("POSITION", (SQUARE * top).astype(kind), normalized=True)
    np.testing.assert_allclose(read_surface(put(maker.glb())).vertices, SQUARE, atol=1e-6)


def test_interleaved_entries_read(put: Keeper) -> None:
    rows = np.zeros(4, [("position", "<f4", 3), ("colour", "u1", 4)])
    rows["position"], rows["colour"] = SQUARE, [[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [51, 51, 51, 0]]
    maker = Maker().square()
    view = maker.view(rows.tobytes(), byteStride=16)
    maker.document["accessors"][0].update(bufferView=view)
    colours = {"bufferView": view, "byteOffset": 12, "componentType": 5121, "count": 4, "type": "VEC4"}
    maker.document["accessors"].append({**colours, "normalized": True})
    maker.document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = 2
    surface = check_same(put(maker.glb()))
    expected = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0.2, 0.2, 0.2, 1]])  # opaque: alpha says nothing
    assert surface.colours is not None
    np.testing.assert_allclose(surface.colours.reshape(-1, 4), expected[CORNERS], atol=1e-6)


def test_many_primitives_may_share_one_list_of_positions(put: Keeper) -> None:
    maker = Maker().square(CORNERS, np.tile(SQUARE, (1000, 1)))
    maker.document["meshes"][0]["primitives"] *= 100
    surface = read_surface(put(maker.glb()))
    assert len(surface.faces) == 200 and len(surface.vertices) == 400


def look_of(maker: Maker, put: Keeper) -> Surface:
    surface = read_surface(put(maker.glb()))
    check_well(surface)
    return surface


UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)


def test_uv_goes_up(put: Keeper) -> None:
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    maker.material(save(paint()), pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    surface = look_of(maker, put)
    assert surface.uv is not None
    np.testing.assert_allclose(surface.uv[0], [[0, 0], [1, 0], [1, 1]])
    assert (surface.materials[0].roughness, surface.materials[0].metallic) == (1, 1)  # what glTF says unless told


def test_the_second_uv_set_and_its_transform_are_used(put: Keeper) -> None:
    change = {"offset": [0.25, 0.5], "scale": [2, 3], "rotation": np.pi / 2, "texCoord": 1}
    spot = {"index": 0, "extensions": {"KHR_texture_transform": change}}
    maker = Maker().square().attribute("TEXCOORD_0", UV * 0).attribute("TEXCOORD_1", UV)
    maker.material(save(paint()), pbrMetallicRoughness={"baseColorTexture": spot})
    uv = look_of(maker, put).uv
    assert uv is not None
    for corner, (u, v) in zip(uv.reshape(-1, 2), UV[CORNERS], strict=True):
        moved = np.array([0.25 + 3 * v, 0.5 - 2 * u])  # scaled, a quarter turn counter-clockwise, shifted
        np.testing.assert_allclose(corner, [moved[0], 1 - moved[1]], atol=1e-5)


def test_gloss_materials_give_their_diffuse_colour(put: Keeper) -> None:
    gloss = {"diffuseFactor": [0.1, 0.2, 0.3, 1], "glossinessFactor": 0.25, "diffuseTexture": {"index": 0}}
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    maker.material(save(paint()), extensions={"KHR_materials_pbrSpecularGlossiness": gloss})
    (material,) = look_of(maker, put).materials
    assert (material.colour, material.roughness, material.metallic) == ((0.1, 0.2, 0.3, 1), 0.75, 0)
    np.testing.assert_array_equal(material.texture, paint().convert("RGBA"))


@pytest.mark.parametrize(("mode", "alphas"), [("OPAQUE", (255, 255)), ("MASK", (0, 255)), ("BLEND", (100, 200))])
def test_alpha_means_what_its_mode_says(put: Keeper, mode: str, alphas: tuple[int, int]) -> None:
    picture = np.full((4, 4, 4), 100, np.uint8)
    picture[2:, :, 3] = 200
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    plain = {"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 1, 1, 0.9]}
    maker.material(save(Image.fromarray(picture)), alphaMode=mode, alphaCutoff=0.6, pbrMetallicRoughness=plain)
    (material,) = look_of(maker, put).materials
    assert material.texture is not None
    assert (material.texture[0, 0, 3], material.texture[3, 0, 3]) == alphas
    assert (material.texture[..., :3] == 100).all()
    assert material.colour[3] == (0.9 if mode == "BLEND" else 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_large_textures_shrink(put: Keeper, kind: str) -> None:
    picture = paint().resize((3000, 1500))
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    maker.material(save(picture, kind), pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    (material,) = look_of(maker, put).materials
    assert material.texture is not None and material.texture.shape == (512, 1024, 4)
    assert np.abs(material.texture[256, 512, :3].astype(int) - picture.getpixel((1500, 750))).max() < 12


def test_deep_grey_textures_keep_their_shades(put: Keeper) -> None:
    picture = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    maker.material(save(picture), pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    texture = look_of(maker, put).materials[0].texture
    assert texture is not None and (texture[..., :3] == 128).all()


def test_a_roughness_picture_gives_its_mean(put: Keeper) -> None:
    maker = Maker().square()
    plain = {"metallicRoughnessTexture": {"index": 0}, "roughnessFactor": 0.5}
    maker.material(save(Image.new("RGB", (4, 4), (9, 204, 51))), pbrMetallicRoughness=plain)
    (material,) = look_of(maker, put).materials
    assert (round(material.roughness, 6), round(material.metallic, 6)) == (0.4, 0.2)


def test_triangles_without_area_are_left_out(put: Keeper) -> None:
    assert triangles_of(put(Maker().square(np.array([0, 1, 1, 0, 1, 2], np.uint16)).glb())) == [[0, 1, 2]]


@pytest.mark.parametrize("needed", ["KHR_materials_clearcoat", "KHR_texture_transform", "KHR_mesh_quantization"])
def test_harmless_extensions_may_be_required(put: Keeper, needed: str) -> None:
    maker = Maker().square()
    maker.document["extensionsRequired"] = [needed]
    assert len(triangles_of(put(maker.glb()))) == 2


@pytest.mark.parametrize(
    "needed", ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_texture_basisu", "KHR_of_tomorrow", 7]
)
def test_extensions_that_are_not_read_are_named(refuse: Callable[..., MeshError], needed: str) -> None:
    maker = Maker().square()
    maker.document["extensionsRequired"] = [needed]
    refuse(maker, what=str(needed))


# Other kinds ----------------------------------------------------------------------------------------------------------

OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def test_obj_polygons_and_backward_indices(put: Keeper) -> None:
    assert triangles_of(put(OBJ + "f 1 2 3 4\n", "mesh.obj")) == [[0, 1, 2], [0, 2, 3]]
    assert triangles_of(put(OBJ + "f -4 -3 -2\nv 5 5 5\nf -5// \\\n3 4//9\n", "mesh.obj"))[0] == [0, 1, 2]


def test_obj_colours_and_several_materials(put: Keeper) -> None:
    put("newmtl red\nKd 1 0 0\nnewmtl skin\nKd 0 0 0\nmap_Kd -s 1 1 1 a picture.png\n", "my colours.mtl")
    put(save(paint()), "a picture.png")
    text = "mtllib my colours.mtl\n" + OBJ + "vt 0 0\nvt 1 0\nvt 1 1\n"
    text += "usemtl red\nf 1 3 4\nusemtl skin\nf 1/1 2/2 3/-1\nusemtl unknown\nf 2 3 4\n"
    surface = read_surface(put(text, "mesh.obj"))
    red, skin, unknown = (surface.materials[k] for k in surface.material)
    assert red.colour == (1, 0, 0, 1) and red.texture is None and unknown.texture is None
    assert skin.colour == (1, 1, 1, 1)  # a grey Kd beside a picture is no tint
    np.testing.assert_array_equal(skin.texture, paint().convert("RGBA"))
    assert surface.uv is not None
    np.testing.assert_allclose(surface.uv, [np.zeros((3, 2)), [[0, 0], [1, 0], [1, 1]], np.zeros((3, 2))])
    tints = "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 1 0 0 0 0.5\nf 1 2 3\n"
    colours = read_surface(put(tints, "tints.obj")).colours
    assert colours is not None
    np.testing.assert_allclose(colours[0, :, :3], [[1, 0, 0], [0, 1, 0], [0, 0, to_linear(np.array(0.5))]], atol=1e-6)


PLY = """ply
format {order} 1.0
comment TextureFile skin.png
element vertex 4
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property float s
property float t
element face {faces}
property list uchar int vertex_indices
end_header
"""


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("mixed", [False, True])
def test_ply_in_every_order(put: Keeper, order: str, mixed: bool) -> None:
    put(save(paint()), "skin.png")
    polygons = [[0, 1, 2], [0, 1, 2, 3]] if mixed else [[0, 1, 2], [0, 2, 3]]
    head = PLY.format(order=order, faces=2).encode()
    sign = ">" if order.endswith("big_endian") else "<"
    rows = list(zip(SQUARE.tolist(), np.eye(4, 3, dtype=int).tolist(), UV.tolist(), strict=True))
    if order == "ascii":
        body = "".join(f"{x} {y} {z} {r} {g} {b} {s} {t}\n" for (x, y, z), (r, g, b), (s, t) in rows).encode()
        body += "".join(f"{len(polygon)} {' '.join(map(str, polygon))}\n" for polygon in polygons).encode()
    else:
        body = b"".join(struct.pack(sign + "3f3B2f", *place, *colour, *spot) for place, colour, spot in rows)
        body += b"".join(struct.pack(f"{sign}B{len(polygon)}i", len(polygon), *polygon) for polygon in polygons)
    surface = read_surface(put(head + body, "mesh.ply"))
    check_well(surface)
    corners = [0, 1, 2, 0, 1, 2, 0, 2, 3] if mixed else [0, 1, 2, 0, 2, 3]
    assert surface.uv is not None and surface.colours is not None
    np.testing.assert_array_equal(surface.vertices[surface.faces].reshape(-1, 3), SQUARE[corners])
    np.testing.assert_allclose(surface.uv.reshape(-1, 2), UV[corners])
    np.testing.assert_allclose(surface.colours.reshape(-1, 4)[:, :3], to_linear(np.eye(4, 3) / 255)[corners], atol=1e-6)
    np.testing.assert_array_equal(surface.materials[0].texture, paint().convert("RGBA"))


def test_stl_as_text(put: Keeper) -> None:
    ball = trimesh.creation.icosphere(subdivisions=1)
    check_same(put(trimesh.exchange.stl.export_stl_ascii(ball), "ball.stl"))


DAE = """<?xml version="1.0" encoding="utf-8"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><up_axis>{up}</up_axis></asset>
<library_images><image id="im"><init_from>skin.png</init_from></image></library_images>
<library_effects>
<effect id="painted"><profile_COMMON>
<newparam sid="su"><surface type="2D"><init_from>im</init_from></surface></newparam>
<newparam sid="sa"><sampler2D><source>su</source></sampler2D></newparam>
<technique sid="t"><lambert><diffuse><texture texture="sa" texcoord="UV"/></diffuse></lambert></technique>
</profile_COMMON></effect>
<effect id="red"><profile_COMMON><technique sid="t"><phong><diffuse><color>1 0 0 1</color></diffuse></phong></technique>
</profile_COMMON></effect></library_effects>
<library_materials><material id="m1"><instance_effect url="#painted"/></material>
<material id="m2"><instance_effect url="#red"/></material></library_materials>
<library_geometries><geometry id="g"><mesh>
<source id="p"><float_array id="pa" count="12">0 0 0 1 0 0 1 1 0 0 1 0</float_array>
<technique_common><accessor source="#pa" count="4" stride="3"/></technique_common></source>
<source id="t"><float_array id="ta" count="8">0 0 1 0 1 1 0 1</float_array>
<technique_common><accessor source="#ta" count="4" stride="2"/></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<polylist material="a" count="1"><input semantic="VERTEX" source="#v" offset="0"/>
<input semantic="TEXCOORD" source="#t" offset="1"/><vcount>4</vcount><p>0 0 1 1 2 2 3 3</p></polylist>
<triangles material="b" count="1"><input semantic="VERTEX" source="#v" offset="0"/><p>{triangle}</p></triangles>
</mesh></geometry></library_geometries>
<library_nodes>{nodes}</library_nodes>
<library_visual_scenes><visual_scene id="s"><node><translate>1 0 0</translate><rotate>0 0 1 90</rotate>
<scale>2 2 2</scale>{inside}<instance_geometry url="#g"><bind_material><technique_common>
<instance_material symbol="a" target="#m1"/><instance_material symbol="b" target="#m2"/>
</technique_common></bind_material></instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#s"/></scene></COLLADA>"""


def dae(*, up: str = "Y_UP", triangle: str = "0 2 3", nodes: str = "", inside: str = "") -> str:
    return DAE.format(up=up, triangle=triangle, nodes=nodes, inside=inside)


def test_dae_scenes_materials_and_axes(put: Keeper) -> None:
    put(save(paint()), "skin.png")
    surface = read_surface(put(dae(), "mesh.dae"))
    check_well(surface)
    places = np.stack([1 - 2 * SQUARE[:, 1], 2 * SQUARE[:, 0], 0 * SQUARE[:, 0]], 1)
    np.testing.assert_allclose(surface.vertices[surface.faces], places[[[0, 1, 2], [0, 2, 3], [0, 2, 3]]], atol=1e-6)
    painted, _, red = (surface.materials[k] for k in surface.material)
    assert red.colour == (1, 0, 0, 1)
    np.testing.assert_array_equal(painted.texture, paint().convert("RGBA"))
    assert surface.uv is not None
    np.testing.assert_allclose(surface.uv[:2], SQUARE[[[0, 1, 2], [0, 2, 3]], :2])
    upright = read_surface(put(dae(up="Z_UP"), "mesh.dae"))
    np.testing.assert_allclose(upright.vertices[:, [0, 2, 1]] * (1, -1, 1), surface.vertices, atol=1e-6)


# What is not a mesh ---------------------------------------------------------------------------------------------------


def test_a_path_that_is_no_file_is_a_missing_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.glb")
    for path in (tmp_path / "none.glb", tmp_path, tmp_path / "pipe.glb", Path("a\0b.glb")):
        with pytest.raises(MissingInputError):
            read_surface(path)


@pytest.mark.parametrize("name", ["m.glb", "m.gltf", "m.obj", "m.ply", "m.stl", "m.dae", "m.fbx", "m.3mf", "m"])
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 200, b"glTF", b"{", b"ply\n", b"solid x", b"<a/>", b"PK\x03\x04", b"\xff" * 999, b"f 1 2 3"]
)
def test_rubbish_is_refused(refuse: Callable[..., MeshError], name: str, data: bytes) -> None:
    refuse(data, name)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "big.glb", "wb") as file:
        file.truncate(parts.MAX_BYTES + 1)
    with pytest.raises(MeshError, match="256 MB"):
        read_surface(tmp_path / "big.glb")


def test_running_out_of_memory_is_an_error_of_the_mesh(put: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(meshes, "_join", run_out)
    with pytest.raises(MeshError, match="too large"):
        read_surface(put(Maker().square().glb()))


# F1: names of other files ---------------------------------------------------------------------------------------------

URIS = (
    "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd",
    "file:/etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", "http://127.0.0.1:9/a", "//127.0.0.1/a",
    "https://127.0.0.1:9/a", "ftp://127.0.0.1/a", "..\\..\\etc\\passwd", "\\\\127.0.0.1\\share\\a", "C:\\secret",
    "sub/../../outside.bin", "inside.bin\0.png", "./../outside.bin", "link.bin", "linked/outside.bin", "loop.bin",
    "..", "", "sub", "missing.bin", "/dev/zero", "/proc/self/environ", "data:text/plain,abc", "pipe.bin", "a\nb",
)  # fmt: skip

WATCHER = """
import json, sys
from pathlib import Path
from PIL import Image
from zero123cli.errors import MeshError
from zero123cli.scenes.meshes import read_surface
Image.init()
b"a".decode("utf-8-sig")  # loads what Python itself reads
opened, told = [], []
sys.addaudithook(lambda event, given: opened.append(f"{event} {given[0]}")
    if event.startswith(("open", "socket", "subprocess", "os.exec", "urllib")) and type(given[0]) is not int else None)
for path in map(Path, sys.argv[1:]):
    try:
        read_surface(path)
        told.append("")
    except MeshError as error:
        told.append(str(error))
print(json.dumps([opened, told]))
"""


def test_nothing_outside_the_folder_is_opened(tmp_path: Path) -> None:
    """As buffer and picture of glTF, library and picture of OBJ, and picture of PLY and DAE."""
    folder = tmp_path / "meshes"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(SQUARE.tobytes() + CORNERS.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(folder / "pipe.bin")
    paths = []

    def add(name: str, text: str) -> None:
        paths.append(folder / name)
        paths[-1].write_text(text, newline="")

    for k, uri in enumerate(URIS):
        maker = Maker().square()
        document = json.loads(maker.gltf())
        document["buffers"][0]["uri"] = uri
        add(f"buffer{k}.gltf", json.dumps(document))
        maker.attribute("TEXCOORD_0", UV).material(b"", pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
        document = json.loads(maker.gltf())
        document["images"] = [{"uri": uri}]
        add(f"picture{k}.gltf", json.dumps(document))
        if "\n" not in uri and not uri.startswith("data:"):
            (folder / f"lib{k}.mtl").write_text(f"newmtl a\nmap_Kd {uri}\n")
            add(f"library{k}.obj", f"mtllib {uri}\n{OBJ}f 1 2 3\n")
            add(f"picture{k}.obj", f"mtllib lib{k}.mtl\n{OBJ}usemtl a\nf 1 2 3\n")
            if uri:
                vertices = "".join(f"{x} {y} {z} 0 0 0 0 0\n" for x, y, z in SQUARE)
                head = PLY.format(order="ascii", faces=1).replace("skin.png", uri)
                add(f"picture{k}.ply", f"{head}{vertices}3 0 1 2\n")
        if uri.isprintable():
            add(f"picture{k}.dae", dae().replace("skin.png", uri))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCHER, *map(str, paths)], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 0, run.stderr
    opened, told = json.loads(run.stdout)
    assert len(told) > 150 and not [str(path) for path, text in zip(paths, told, strict=True) if not text]
    real = os.path.realpath(folder)
    assert not [what for what in opened if not what.startswith((f"open {folder}", f"open {real}"))]
    names = {Path(what.removeprefix("open ")).name for what in opened}
    assert not names & {"link.bin", "outside.bin", "loop.bin", "passwd"}


def test_links_and_folders_within_the_folder_are_followed(put: Keeper, tmp_path: Path) -> None:
    maker = Maker().square()
    document = json.loads(maker.gltf())
    put(maker.body, "sub/true.bin")
    (tmp_path / "link.bin").symlink_to("sub/true.bin")
    for uri in ("sub/true.bin", "./sub/true.bin", "link.bin"):
        document["buffers"][0]["uri"] = uri
        assert len(triangles_of(put(json.dumps(document), "mesh.gltf"))) == 2


# F2: counts, offsets, types -------------------------------------------------------------------------------------------

HUGE = 2**31


def change(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return apply


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    **{
        f"{'.'.join(map(str, path))} {value!r}": change(*path, value=value)
        for path in [
            ("accessors", 0, "count"),
            ("accessors", 1, "count"),
            ("accessors", 0, "byteOffset"),
            ("accessors", 0, "bufferView"),
            ("accessors", 0, "componentType"),
            ("bufferViews", 0, "byteLength"),
            ("bufferViews", 0, "byteOffset"),
            ("bufferViews", 0, "buffer"),
            ("bufferViews", 0, "byteStride"),
            ("buffers", 0, "byteLength"),
            ("scenes", 0, "nodes", 0),
            ("scene",),
            ("nodes", 0, "mesh"),
            ("meshes", 0, "primitives", 0, "mode"),
            ("meshes", 0, "primitives", 0, "indices"),
            ("meshes", 0, "primitives", 0, "material"),
            ("meshes", 0, "primitives", 0, "attributes", "POSITION"),
        ]
        for value in (-1, HUGE, 2**63, 10**30, 1.5, "7", None, [], {})
    },
    "type": change("accessors", 0, "type", value="MAT4"),
    "type of indices": change("accessors", 1, "type", value="VEC2"),
    "fractions as indices": change("accessors", 1, "componentType", value=5126),
    "stride": change("bufferViews", 0, "byteStride", value=4),
    "no attributes": change("meshes", 0, "primitives", 0, "attributes", value={}),
    "accessors": change("accessors", value={}),
    "nodes": change("nodes", value=7),
    "scenes": change("scenes", value=[7]),
    "primitives": change("meshes", 0, "primitives", value={}),
    "asset": change("asset", value={"version": "1.0"}),
    "matrix": change("nodes", 0, "matrix", value=[1] * 15),
    "matrix of words": change("nodes", 0, "matrix", value=["1"] * 16),
    "rotation": change("nodes", 0, "rotation", value=[0, 0, 0, 0]),
    "scale 0": change("nodes", 0, "scale", value=[0, 0, 0]),
    "scale 1e300": change("nodes", 0, "scale", value=[1e300] * 3),
    "scale 1e8": change("nodes", 0, "scale", value=[1e8] * 3),
    "scale false": change("nodes", 0, "scale", value=[False, True, True]),
    "zeros": change("accessors", 0, value={"count": 10**6, "type": "VEC3", "componentType": 5126}),
    "many zeros": change("accessors", 0, value={"count": HUGE, "type": "VEC3", "componentType": 5126}),
    "sparse": change("accessors", 0, "sparse", value={"count": HUGE, "indices": {}, "values": {}}),
    "sparse place": change(
        "accessors",
        0,
        "sparse",
        value={"count": 1, "indices": {"bufferView": 0, "componentType": 5125, "byteOffset": 12}, "values": {}},
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_counts_are_refused_before_anything_is_allocated(refuse: Callable[..., MeshError], lie: str) -> None:
    maker = Maker().square()
    maker.glb()
    LIES[lie](maker.document)
    document = json.dumps(maker.document).encode()
    refuse(maker.glb(document))


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16, 20])
def test_a_container_that_does_not_fit_is_refused(refuse: Callable[..., MeshError], at: int) -> None:
    data = bytearray(Maker().square().glb())
    data[at : at + 4] = struct.pack("<I", struct.unpack("<I", data[at : at + 4])[0] ^ 4)
    refuse(bytes(data))
    refuse(bytes(data) + b"\0" * 4)


def test_every_truncation_is_refused(put: Keeper) -> None:
    data = Maker().square().glb()
    for length in range(0, len(data), 7):
        with pytest.raises(MeshError):
            read_surface(put(data[:length]))
        with pytest.raises(MeshError):  # with a header that agrees
            read_surface(put(data[:8] + struct.pack("<I", length) + data[12:length]))


# F3: numbers and shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7, 3e38])
def test_places_that_are_none_are_refused(refuse: Callable[..., MeshError], value: float) -> None:
    places = SQUARE.copy()
    places[2, 1] = value
    refuse(Maker().square(positions=places), what="position")
    refuse(OBJ + f"v 0 0 {value}\nf 1 2 5\n", "mesh.obj", "position")
    refuse(f"solid\nfacet\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 {value} 0\nendfacet\nendsolid", "mesh.stl", "position")


def test_texture_coordinates_that_are_none_are_refused(refuse: Callable[..., MeshError]) -> None:
    maker = Maker().square().attribute("TEXCOORD_0", UV * np.float32(np.nan))
    refuse(maker.material(save(paint()), pbrMetallicRoughness={"baseColorTexture": {"index": 0}}), what="texture")


@pytest.mark.parametrize("shape", ["point", "line", "no triangles", "past the end", "two corners", "five corners"])
def test_shapes_without_triangles_are_refused(refuse: Callable[..., MeshError], shape: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "point": {"positions": SQUARE * 0 + 1},
        "line": {"positions": SQUARE * np.float32([1, 0, 0])},
        "no triangles": {"indices": CORNERS[:0]},
        "past the end": {"indices": CORNERS + 1},
        "two corners": {"indices": CORNERS[:2]},
        "five corners": {"indices": CORNERS[:5]},
    }
    refuse(Maker().square(**changes[shape]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "1." + "0" * 5000])
def test_numbers_that_are_none_are_refused(refuse: Callable[..., MeshError], number: str) -> None:
    maker = Maker().square()
    text = maker.gltf().decode()
    for place in ('"extras": [%s], "asset"', '"min": %s, "asset"'):
        refuse(text.replace('"asset"', place % number, 1), "mesh.gltf", "number")


def test_json_bombs_are_refused(refuse: Callable[..., MeshError]) -> None:
    refuse("[" * 100_000 + "]" * 100_000, "mesh.gltf", "nested|not a mesh")
    refuse('{"a":' * 100_000 + "1" + "}" * 100_000, "mesh.gltf", "nested")
    refuse('{"a":' + "[" * 100_000, "mesh.gltf", "nested")
    refuse('{"a":[' + "[]," * 3_000_000 + "1]}", "mesh.gltf", "values")
    refuse('{"' + '\\"' * 1_000_000, "mesh.gltf", "damaged")
    refuse('{"a": "\ud800"}'.encode("utf-8", "surrogatepass"), "mesh.gltf", "damaged")
    refuse(json.dumps({"asset": {"version": "2.0"}}).encode("utf-16"), "mesh.gltf", "damaged")


def test_brackets_in_names_are_not_depth(put: Keeper) -> None:
    maker = Maker().square()
    maker.document["nodes"][0]["name"] = '[{"\\' * 1000
    assert len(triangles_of(put(maker.gltf(), "mesh.gltf"))) == 2


# F4: nodes ------------------------------------------------------------------------------------------------------------


def nodes_of(kind: str) -> list[dict[str, Any]]:
    return {
        "own child": [{"children": [0], "mesh": 0}],
        "cycle": [{"children": [1]}, {"children": [2]}, {"children": [0], "mesh": 0}],
        "two parents": [{"children": [1, 2]}, {"children": [2]}, {"mesh": 0}],
        "shared 2^40": [*({"children": [k + 1, k + 1]} for k in range(40)), {"mesh": 0}],
        "child twice": [{"children": [1] * 500_000}, {"mesh": 0}],
        "too many": [{"children": [*range(1, 20_001)]}, *({"mesh": 0} for _ in range(20_000))],
        "too deep": [*({"children": [k + 1]} for k in range(20_000)), {"mesh": 0}],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["own child", "cycle", "two parents", "shared 2^40", "child twice", "too many", "too deep"]
)
def test_nodes_that_are_no_forest_are_refused(refuse: Callable[..., MeshError], kind: str) -> None:
    maker = Maker().square()
    maker.document["nodes"] = nodes_of(kind)
    started = time.monotonic()
    refuse(maker, what="node", traced=False)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_deep_chains_and_many_instances_end(put: Keeper) -> None:
    maker = Maker().square()
    maker.document["nodes"] = [*({"children": [k + 1], "translation": [0, 1, 0]} for k in range(19_998)), {"mesh": 0}]
    started = time.monotonic()
    assert read_surface(put(maker.glb())).vertices[:, 1].min() == 19_998
    maker.document["nodes"] = [{"mesh": 0, "translation": [k % 100, k // 100, 0]} for k in range(19_999)]
    maker.document["scenes"][0]["nodes"] = [*range(19_999)]
    assert len(read_surface(put(maker.glb())).faces) == 2 * 19_999
    assert time.monotonic() - started < 8


def test_instances_are_counted_before_they_are_made(refuse: Callable[..., MeshError]) -> None:
    maker = Maker().square(np.tile(CORNERS, 500))
    maker.document["nodes"] = [{"mesh": 0} for _ in range(10_000)]
    maker.document["scenes"][0]["nodes"] = [*range(10_000)]
    refuse(maker, what="million triangles")
    maker = Maker().square(np.zeros(0, np.uint16))
    maker.document["meshes"][0]["primitives"] *= 30_000
    refuse(maker, what="parts")
    maker = Maker().square(positions=np.tile(SQUARE, (50_000, 1)))
    primitive, accessor = maker.document["meshes"][0]["primitives"][0], maker.document["accessors"][0]
    for k in range(500):  # every one of them another accessor over the same bytes
        maker.document["accessors"].append(accessor)
        maker.document["meshes"][0]["primitives"].append({**primitive, "attributes": {"POSITION": 2 + k}})
    refuse(maker, what="million numbers")


# F5: pictures and the other kinds -------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims more pixels than it holds."""
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    )


PICTURES = {
    "bomb": bomb(30_000, 30_000),
    "long": bomb(100_000, 700),
    "short of rows": bomb(1024, 1024),
    "text bomb": save(paint())[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8)) + save(paint())[33:],
    "cut off": save(paint(), "JPEG")[:400],
    "many scans": b"\xff\xd8" + b"\xff\xda" * 501,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "gif": save(paint(), "GIF"),
    "tiff": save(paint(), "TIFF"),
    "bmp": save(paint(), "BMP"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_that_are_none_are_refused(refuse: Callable[..., MeshError], put: Keeper, kind: str) -> None:
    maker = Maker().square().attribute("TEXCOORD_0", UV)
    refuse(
        maker.material(PICTURES[kind], pbrMetallicRoughness={"baseColorTexture": {"index": 0}}), what="texture|buffer"
    )
    put(PICTURES[kind], "skin.png")
    refuse(dae(), "mesh.dae", "texture")
    put("newmtl a\nmap_Kd skin.png", "a.mtl")
    refuse(f"mtllib a.mtl\n{OBJ}usemtl a\nf 1 2 3\n", "mesh.obj", "texture")


def test_one_picture_shown_as_many_is_refused(refuse: Callable[..., MeshError]) -> None:
    maker = Maker()
    view = maker.view(save(Image.new("L", (1024, 1024))))
    for k in range(200):
        maker.square(material=k)
    plain = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": k}}} for k in range(200)]
    images = [{"bufferView": view} for _ in range(200)]
    maker.document.update(images=images, textures=[{"source": k} for k in range(200)], materials=plain)
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MAX_KEPT", 20 * 1024 * 1024)
        refuse(maker, what="too many textures")
        patch.setattr(parts, "MAX_ALL_PIXELS", 10 * 1024 * 1024)
        refuse(maker, what="too large")
    assert time.monotonic() - started < 5


OBJ_LIES = {
    "past the end": OBJ + "f 1 2 5\n",
    "before the start": OBJ + "f 1 2 -5\n",
    "zero": OBJ + "f 0 1 2\n",
    "texture coordinate": OBJ + "vt 0 0\nf 1/1 2/1 3/2\n",
    "huge": OBJ + f"f 1 2 {HUGE}\n",
    "very huge": OBJ + f"f 1 2 {10**30}\n",
    "digits": OBJ + "f 1 2 " + "9" * 5000 + "\n",
    "words": OBJ + "f a b c\n",
    "no faces": OBJ,
    "no vertices": "f 1 2 3\n",
    "flat vertices": "v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n",
    "line": OBJ + "f 1 2\nf 1 2 2\n",
    "fraction": OBJ + "f 1.0 2.0 3.0\n",
    "a missing library": "mtllib none.mtl\n" + OBJ + "f 1 2 3\n",
}


@pytest.mark.parametrize("lie", OBJ_LIES)
def test_obj_lies_are_refused(refuse: Callable[..., MeshError], lie: str) -> None:
    refuse(OBJ_LIES[lie], "mesh.obj")


SMALL_PLY = """ply
format {order} 1.0
element vertex {vertices}
property float x
property float y
property float z
element face {faces}
property list {length} int vertex_indices
end_header
"""
PLY_LIES: dict[str, tuple[dict[str, object], int]] = {  # header, length of the first list
    "vertices": ({"vertices": HUGE}, 3),
    "very many vertices": ({"vertices": 10**30}, 3),
    "negative vertices": ({"vertices": -1}, 3),
    "fewer vertices": ({"vertices": 2}, 3),
    "faces": ({"faces": HUGE}, 3),
    "one face more": ({"faces": 2}, 3),
    "list": ({"length": "int"}, HUGE - 1),
    "negative list": ({"length": "int"}, -1),
    "fractional list": ({"length": "float"}, 3),
    "type": ({"length": "quad"}, 3),
    "order": ({"order": "binary_middle_endian"}, 3),
    "huge order": ({"order": "a" * 70_000}, 3),
}


@pytest.mark.parametrize("lie", PLY_LIES)
@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_ply_lies_are_refused(refuse: Callable[..., MeshError], lie: str, order: str) -> None:
    change, length = PLY_LIES[lie]
    header = SMALL_PLY.format(**({"order": order, "vertices": 4, "faces": 1, "length": "uchar"} | change)).encode()
    kind = {"int": "i", "float": "f"}.get(str(change.get("length")), "B")
    if order == "ascii":
        body = b"0 0 0\n1 0 0\n1 1 0\n0 1 0\n" + f"{length} 0 1 2\n".encode()
    else:
        body = SQUARE.tobytes() + struct.pack(f"<{kind}3i", length, 0, 1, 2)
    refuse(header + body, "mesh.ply")


@pytest.mark.parametrize("corners", ["3 0 1 4", "3 0 1 -1", "2 0 1", "3 0 1", "3 a b c"])
def test_ply_corners_that_are_none_are_refused(refuse: Callable[..., MeshError], corners: str) -> None:
    header = SMALL_PLY.format(order="ascii", vertices=4, faces=1, length="uchar")
    refuse(f"{header}0 0 0\n1 0 0\n1 1 0\n0 1 0\n{corners}\n", "mesh.ply")


def test_stl_lies_are_refused(refuse: Callable[..., MeshError]) -> None:
    facet = struct.pack("<12fH", 0, 0, 1, *SQUARE[:3].ravel(), 0)
    for count in (0, 2, HUGE, 2**32 - 1):
        refuse(b"\0" * 80 + struct.pack("<I", count) + facet, "mesh.stl")
    refuse(b"\0" * 84, "mesh.stl")
    for text in ("solid\nendsolid", "solid\nfacet\nvertex 0 0 0\nvertex 1 0 0\nendfacet\nendsolid", "solid\nfacet\n"):
        refuse(text, "mesh.stl")


INNER = '<instance_node url="#n{}"/>'
DAE_LIES = {
    "laughs": '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + dae(triangle="&b;").partition("?>")[2],
    "another file": '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + dae(triangle="&a;").partition("?>")[2],
    "another document": '<!DOCTYPE COLLADA SYSTEM "http://127.0.0.1:9/a.dtd">' + dae().partition("?>")[2],
    "deep": "<a>" * 100_000 + "</a>" * 100_000,
    "many": "<a>" + "<b/>" * 600_000 + "</a>",
    "past the end": dae(triangle="0 1 4"),
    "negative": dae(triangle="0 1 -1"),
    "two corners": dae(triangle="0 1"),
    "words": dae(triangle="a b c"),
    "not a number": dae().replace("0 1 0</float", "0 NaN 0</float"),
    "vcount": dae().replace("<vcount>4", "<vcount>4000000000"),
    "negative vcount": dae().replace("<vcount>4", "<vcount>-4"),
    "offset": dae().replace('offset="1"', 'offset="4000000000"'),
    "stride": dae().replace('stride="3"', 'stride="0"'),
    "long stride": dae().replace('stride="3"', 'stride="4000000000"'),
    "no geometry": dae().replace('url="#g"', 'url="#nothing"'),
    "remote": dae().replace('url="#g"', 'url="file:///etc/passwd#g"'),
    "no scene": dae().replace("<scene>", "<scenery>").replace("</scene>", "</scenery>"),
    "axis": dae(up="W_UP"),
    "itself": dae(
        nodes='<node id="n"><instance_node url="#n"/></node>', inside='<instance_node url="#n"/>'
    ),
    "shared 2^40": dae(
        nodes="".join(f'<node id="n{k}">{2 * INNER.format(k + 1)}</node>' for k in range(40))
        + '<node id="n40"><instance_geometry url="#g"/></node>',
        inside='<instance_node url="#n0"/>',
    ),
    "cut off": dae()[:-20],
}  # fmt: skip


@pytest.mark.parametrize("lie", DAE_LIES)
def test_dae_lies_are_refused(refuse: Callable[..., MeshError], put: Keeper, lie: str) -> None:
    put(save(paint()), "skin.png")
    started = time.monotonic()
    refuse(DAE_LIES[lie], "mesh.dae", traced=lie not in ("many", "shared 2^40"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["ball.glb", "ball.obj", "ball.ply", "ball.stl", "ball.dae"])
def test_mutants_are_refused_or_read(put: Keeper, name: str) -> None:
    """1,000 of a GLB and 200 of each other kind, by bytes flipped, overwritten, taken out and put in."""
    if name == "ball.glb":
        maker = (
            Maker().square().attribute("TEXCOORD_0", UV).attribute("COLOR_0", (UV[:, [0, 0, 1, 1]] * 255).astype("u1"))
        )
        maker.material(save(paint(8, 8)), pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
        whole = maker.glb()
    elif name == "ball.dae":
        put(save(paint(8, 8)), "skin.png")
        whole = dae().encode()
    else:
        whole = trimesh.creation.box().export(file_type=name[-3:])
        whole = whole.encode() if isinstance(whole, str) else whole
    check_well(read_surface(put(whole, name)))
    rng = random.Random(7)
    read, started = 0, time.monotonic()
    for _ in range(1000 if name == "ball.glb" else 200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.choice(b'\0\xff\x7f09-e.[]{}",:/<>&')
            elif kind == 2:
                del data[at : at + rng.randint(1, 8)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
        if name == "ball.glb" and rng.random() < 0.7:  # else nearly all would end at the length
            data[8:12] = struct.pack("<I", len(data))
        try:
            check_well(read_surface(put(bytes(data), name)))
            read += 1
        except MeshError:
            pass
    assert read >= 5
    assert time.monotonic() - started < 10


# Meshes of others -----------------------------------------------------------------------------------------------------


@needs_shared
def test_the_shared_meshes_read_as_trimesh_reads_them() -> None:
    folder = SHARED / "data"
    paths = sorted((folder / "eval" / "gso").glob("*.glb"))
    with open(folder / "meshes" / "index.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["faces"]) < 40_000]
    paths += [folder / "meshes" / row["file"] for row in random.Random(5).sample(rows, 60)]
    for path in paths:
        surface = read_surface(path)
        check_well(surface)
        scene = trimesh.load(path, process=False)
        triangles = scene.triangles if isinstance(scene, trimesh.Trimesh) else scene.to_mesh().triangles
        triangles = triangles[have_area(triangles)]
        assert abs(len(surface.faces) - len(triangles)) <= len(triangles) // 1000, path
        corners = surface.vertices[surface.faces].reshape(-1, 3)
        np.testing.assert_allclose(corners.min(0), triangles.reshape(-1, 3).min(0), atol=1e-5, err_msg=str(path))
        np.testing.assert_allclose(corners.max(0), triangles.reshape(-1, 3).max(0), atol=1e-5, err_msg=str(path))
