"""Every format opened by another reader, with the same geometry, the same bytes twice, and the right place and size."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from zero123cli.errors import UsageError
from zero123cli.meshing.cleanup import Solid
from zero123cli.meshing.mesh import Mesh
from zero123cli.meshing.texture import MODES, paint
from zero123cli.meshing.write import FRONTS, UNITS, WRITERS, About, Placement, make_plain, placing, stand, write
from zero123cli.scenes.surface import to_srgb

TEXTURED = (".glb", ".obj", ".usdz")
OPENED = (".glb", ".obj", ".ply", ".stl", ".off", ".3mf")  # by trimesh; it does not know USDZ
ABOUT = About("zero123 1.2 <test & more>", {"model": "pocket", "photo": "sha256:00", "seed": 0})


def rainbow(points: np.ndarray) -> np.ndarray:
    return (points + 0.5).astype(np.float32)


def make(mode: str) -> Mesh:
    """A ring, higher than wide, not symmetric."""
    mesh = trimesh.creation.torus(0.3, 0.12, major_sections=24, minor_sections=12)
    vertices = np.asarray(mesh.vertices) * (1, 1.1, 1) + (0.02, 0.01, 0.03)
    return paint(Solid(vertices, np.asarray(mesh.faces)), rainbow, mode=mode, size=64)


@pytest.fixture(scope="module")
def meshes() -> dict[str, Mesh]:
    return {mode: make(mode) for mode in MODES}


def save(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))


def load(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", OPENED)
def test_trimesh_opens_it_with_the_same_triangles(
    suffix: str, mode: str, meshes: dict[str, Mesh], tmp_path: Path
) -> None:
    if suffix == ".3mf":
        pytest.importorskip("lxml")
    mesh = meshes[mode]
    opened = load(save(write(mesh, "ring" + suffix, Placement(), ABOUT), tmp_path))
    matrix = placing(mesh.vertices, stand(Placement(), suffix))
    expected = (mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])[mesh.faces] * UNITS.get(suffix, 1)
    assert np.allclose(opened.vertices[opened.faces], expected, rtol=1e-6, atol=1e-6 * UNITS.get(suffix, 1))
    opened.merge_vertices(merge_tex=True, merge_norm=True)
    assert opened.is_watertight and opened.volume > 0 and opened.euler_number == 0


@pytest.mark.parametrize(
    ("suffix", "placement", "up"),
    [
        (".glb", Placement(), "y"),
        (".3mf", Placement(), "z"),
        (".stl", Placement(), "z"),
        (".stl", Placement(up="y"), "y"),
        (".stl", Placement(front="+x"), "z"),
        (".stl", Placement(front="+z"), "y"),
        (".glb", Placement(front="-y"), "z"),
    ],
)
def test_what_is_printed_stands_on_the_bed_unless_told_otherwise(suffix: str, placement: Placement, up: str) -> None:
    assert stand(placement, suffix).up == up
    placing(np.eye(3), stand(placement, suffix))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", WRITERS)
def test_same_mesh_same_bytes(suffix: str, mode: str, meshes: dict[str, Mesh]) -> None:
    name = "ring" + suffix
    assert write(meshes[mode], name, Placement(), ABOUT) == write(make(mode), name, Placement(), ABOUT)


def test_glb_textures_and_colours_reach_another_reader(meshes: dict[str, Mesh], tmp_path: Path) -> None:
    textured = load(save(write(meshes["uv"], "a.glb"), tmp_path))
    picture = np.asarray(textured.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(picture, meshes["uv"].texture)
    assert np.allclose(textured.visual.uv, meshes["uv"].uv, atol=1e-6)
    assert textured.visual.material.metallicFactor == 0 and textured.visual.material.roughnessFactor == 0.9
    assert not textured.visual.material.doubleSided
    document = read_json(write(meshes["vertex"], "b.glb")["b.glb"])
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert accessor["normalized"] is True and document["meshes"][0]["primitives"][0]["material"] == 0
    values = read_accessor(write(meshes["vertex"], "b.glb")["b.glb"], accessor, document, np.uint16, 4) / 65535
    assert np.array_equal(np.rint(to_srgb(values[:, :3]) * 255).astype(np.uint8), meshes["vertex"].colours)


def read_json(glb: bytes) -> dict:  # type: ignore[type-arg]
    return json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])


def read_accessor(glb: bytes, accessor: dict, document: dict, kind: type, width: int) -> np.ndarray:  # type: ignore[type-arg]
    view = document["bufferViews"][accessor["bufferView"]]
    start = 28 + int.from_bytes(glb[12:16], "little") + view["byteOffset"]
    return np.frombuffer(glb[start : start + view["byteLength"]], kind).reshape(-1, width)


def test_glb_says_where_it_comes_from(meshes: dict[str, Mesh]) -> None:
    asset = read_json(write(meshes["uv"], "a.glb", Placement(), ABOUT)["a.glb"])["asset"]
    assert asset == {"version": "2.0", "generator": ABOUT.generator, "extras": dict(ABOUT.extras or {})}


def test_many_vertices_have_long_numbers(tmp_path: Path) -> None:
    ball = trimesh.creation.uv_sphere(0.5, [260, 260])
    mesh = paint(Solid(np.asarray(ball.vertices), np.asarray(ball.faces)), rainbow, mode="none")
    opened = load(save(write(mesh, "a.glb"), tmp_path))
    assert len(opened.vertices) > 65535 and np.array_equal(opened.faces, mesh.faces)


def test_obj_has_its_material_and_texture_beside_it(meshes: dict[str, Mesh], tmp_path: Path) -> None:
    files = write(meshes["uv"], "ring.obj")
    assert list(files) == ["ring.obj", "ring.mtl", "ring_texture.png"]
    opened = load(save(files, tmp_path))
    assert np.array_equal(np.asarray(opened.visual.material.image.convert("RGB")), meshes["uv"].texture)
    assert files["ring.obj"].count(b"\nv ") == len(make_plain(meshes["uv"]).vertices) < len(meshes["uv"].vertices)


@pytest.mark.parametrize("name", ["a b.obj", "käse.obj", "x#y.obj", "-rf.obj"])
def test_names_beside_are_plain_and_not_shared(name: str, meshes: dict[str, Mesh]) -> None:
    files = write(meshes["uv"], name)
    assert next(iter(files)) == name
    beside = list(files)[1:]
    assert len(beside) == 2 and all(re.fullmatch(r"[A-Za-z0-9._-]+", other) for other in beside)
    assert f"mtllib {beside[0]}\n".encode() in files[name] and f"map_Kd {beside[1]}\n".encode() in files[beside[0]]
    assert set(beside).isdisjoint(write(meshes["uv"], name.replace(name[1], "_")))


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_colours_of_vertices_reach_another_reader(suffix: str, meshes: dict[str, Mesh], tmp_path: Path) -> None:
    opened = load(save(write(meshes["vertex"], "a" + suffix), tmp_path))
    assert np.abs(opened.visual.vertex_colors[:, :3].astype(int) - make_plain(meshes["vertex"]).colours).max() <= 1


def test_a_texture_becomes_colours_where_there_are_no_textures(meshes: dict[str, Mesh]) -> None:
    plain = make_plain(meshes["uv"])
    assert np.abs(plain.colours / 255 - np.clip(rainbow(plain.vertices), 0, 1)).max() < 0.08
    model = zipfile.ZipFile(io.BytesIO(write(meshes["uv"], "a.3mf")["a.3mf"])).read("3D/3dmodel.model").decode()
    assert 'unit="millimeter"' in model and model.count("<m:color ") > 100 and ' p1="' in model
    assert (
        "&lt;test &amp; more&gt;"
        in zipfile.ZipFile(io.BytesIO(write(meshes["uv"], "a.3mf", Placement(), ABOUT)["a.3mf"]))
        .read("3D/3dmodel.model")
        .decode()
    )


def test_usdz_is_packed_as_its_rules_say(meshes: dict[str, Mesh]) -> None:
    for mode, mesh in meshes.items():
        data = write(mesh, "a.usdz", Placement(), ABOUT)["a.usdz"]
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert names == ["object.usda", *(["texture.png"] if mode == "uv" else [])]
            for entry in archive.infolist():
                assert entry.compress_type == zipfile.ZIP_STORED
                extra = int.from_bytes(data[entry.header_offset + 28 : entry.header_offset + 30], "little")
                start = entry.header_offset + 30 + len(entry.filename) + extra
                assert start % 64 == 0 and data[start : start + 4] in (b"#usd", b"\x89PNG")
            text = archive.read("object.usda").decode()
        assert text.startswith("#usda 1.0\n") and 'upAxis = "Y"' in text
        assert all(text.count(one) == text.count(other) for one, other in ("{}", "()", "[]"))
        assert ("primvars:st" in text, "displayColor" in text) == (mode == "uv", mode == "vertex")
        for target in re.findall(r"</(Object[^>.]*)", text):
            for part in target.split("/"):
                assert f'"{part}"' in text
        count = re.search(r"int\[\] faceVertexIndices = \[([^\]]*)\]", text)
        assert count and len(count[1].split(",")) == 3 * len(mesh.faces)
    picture = zipfile.ZipFile(io.BytesIO(write(meshes["uv"], "a.usdz")["a.usdz"])).read("texture.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), meshes["uv"].texture)


def test_stl_does_not_begin_like_the_text_kind(meshes: dict[str, Mesh]) -> None:
    data = write(meshes["uv"], "a.stl", Placement(), About("solid " + "x" * 200))["a.stl"]
    assert not data.startswith(b"solid") and len(data) == 84 + 50 * len(meshes["uv"].faces)


# Placing --------------------------------------------------------------------------------------------------------------


def placed_axes(placement: Placement, mesh: Mesh) -> list[list[float]]:
    """Where the world's right, up and front go."""
    turn = placing(mesh.vertices, placement)[:3, :3]
    return np.rint(turn / np.cbrt(np.linalg.det(turn))).T.tolist()


@pytest.mark.parametrize(
    ("placement", "axes"),
    [
        (Placement(), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (Placement("z"), [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
        (Placement("z", "+y"), [[-1, 0, 0], [0, 0, 1], [0, 1, 0]]),
        (Placement("y", "x"), [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),
        (Placement("z", "-x"), [[0, -1, 0], [0, 0, 1], [-1, 0, 0]]),
    ],
    ids=str,
)
def test_axes_go_where_they_are_sent(placement: Placement, axes: list[list[float]], meshes: dict[str, Mesh]) -> None:
    found = placed_axes(placement, meshes["none"])
    assert found == axes
    assert np.linalg.det(np.array(found)) == pytest.approx(1)  # never mirrored


@pytest.mark.parametrize("up", FRONTS)
@pytest.mark.parametrize("suffix", [".glb", ".3mf"])
def test_height_and_base_are_as_asked(suffix: str, up: str, meshes: dict[str, Mesh], tmp_path: Path) -> None:
    if suffix == ".3mf":
        pytest.importorskip("lxml")
    placement = Placement(up, height=0.12, origin="base")
    opened = load(save(write(meshes["none"], "a" + suffix, placement), tmp_path))
    unit = UNITS.get(suffix, 1)
    axis = "xyz".index(up)
    low, high = opened.bounds
    assert low[axis] == pytest.approx(0, abs=1e-6 * unit) and high[axis] == pytest.approx(0.12 * unit, rel=1e-5)
    assert np.delete(low + high, axis) == pytest.approx(0, abs=1e-6 * unit)
    assert opened.volume > 0


def test_centre_is_the_boxs(meshes: dict[str, Mesh]) -> None:
    moved = replace(meshes["none"], vertices=meshes["none"].vertices + np.float32(5))
    matrix = placing(moved.vertices, Placement())
    placed = moved.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    assert placed.min(0) + placed.max(0) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "placement",
    [Placement("x"), Placement("y", "+y"), Placement("z", "-z"), Placement("y", "w"), Placement(origin="o")],
)
def test_senseless_placements_are_refused(placement: Placement, meshes: dict[str, Mesh]) -> None:
    with pytest.raises(UsageError):
        write(meshes["none"], "a.glb", placement)


@pytest.mark.parametrize("name", ["a.fbx", "a", "a.gltf", ".glb.txt"])
def test_other_formats_are_refused_by_name(name: str, meshes: dict[str, Mesh]) -> None:
    with pytest.raises(UsageError, match="format"):
        write(meshes["none"], name)


def test_one_flat_triangle_can_be_written(tmp_path: Path) -> None:
    mesh = paint(Solid(np.eye(3) * (1, 0, 1), np.array([[0, 1, 2]])), rainbow, mode="vertex")
    for suffix in WRITERS:
        files = write(mesh, "a" + suffix, Placement(height=0.1))
        assert files["a" + suffix]


# The Khronos validator ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent / "validate_glb.mjs"


def test_khronos_validator_finds_nothing(meshes: dict[str, Mesh], tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed here")
    for mode, mesh in meshes.items():
        for number, placement in enumerate((Placement(), Placement("z", "+x", 0.12, "base"))):
            save(write(mesh, f"{mode}{number}.glb", placement, ABOUT), tmp_path)
    triangle = paint(Solid(np.eye(3), np.array([[0, 1, 2]])), rainbow, mode="vertex")
    save(write(triangle, "triangle.glb"), tmp_path)
    files = sorted(tmp_path.glob("*.glb"))
    run = subprocess.run([node, SCRIPT, *files], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    if run.returncode == 3:
        pytest.skip("the npm package gltf-validator is not installed; NODE_PATH can name the folder it is in")
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) == len(files) == 7, run.stderr
    for report in reports:
        assert (report["errors"], report["warnings"]) == (0, 0), report
    broken = tmp_path / "broken.glb"  # the script can say no
    broken.write_bytes(files[0].read_bytes().replace(b'"SCALAR"', b'"VEC2"  '))
    assert subprocess.run([node, SCRIPT, broken], capture_output=True, timeout=60).returncode == 1
