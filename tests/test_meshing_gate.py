"""What the gate says of files that were written well, and of files that were not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from zero123cli.cameras import Viewpoint
from zero123cli.errors import MeshError, NothingFoundError, UsageError
from zero123cli.meshing.cleanup import Solid
from zero123cli.meshing.gate import REQUIREMENTS, SAMPLES, draw, judge, read_back, require
from zero123cli.meshing.mesh import Mesh
from zero123cli.meshing.shot import Shot
from zero123cli.meshing.texture import paint
from zero123cli.meshing.write import UNITS, WRITERS, Placement, placing, stand, write

SHOT = Shot(np.zeros((96, 96, 4), np.uint8), Viewpoint(0, 15), half=0.4)
STANDING = Placement("z", "+x", 0.12, "base")
UPRIGHT = Placement()


def rainbow(points: np.ndarray) -> np.ndarray:
    return (points + 0.5).astype(np.float32)


def ring() -> Solid:
    mesh = trimesh.creation.torus(0.35, 0.13, major_sections=32, minor_sections=16)
    return Solid(np.asarray(mesh.vertices), np.asarray(mesh.faces))


@pytest.fixture(scope="module")
def textured() -> Mesh:
    return paint(ring(), rainbow, size=128)


def save(mesh: Mesh, name: str, folder: Path, placement: Placement = UPRIGHT) -> Path:
    for each, data in write(mesh, name, placement).items():
        (folder / each).write_bytes(data)
    return folder / name


def matrix_of(mesh: Mesh, placement: Placement, suffix: str = ".glb") -> np.ndarray:
    matrix = placing(mesh.vertices, stand(placement, suffix))
    matrix[:3] *= UNITS.get(suffix, 1)
    return matrix


def photo_of(mesh: Mesh, folder: Path, shot: Shot = SHOT) -> Shot:
    """The photo that the mesh should have come from: drawn from a file by itself."""
    drawn = draw(read_back(save(mesh, "photo.glb", folder)), shot, shot.side)
    return replace(shot, rgba=np.rint(drawn * 255).astype(np.uint8))


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_is_measured_right(suffix: str, textured: Mesh, tmp_path: Path) -> None:
    verdict = judge(save(textured, "a" + suffix, tmp_path, STANDING))
    unit = UNITS.get(suffix, 1)
    reference = trimesh.Trimesh(ring().vertices, ring().faces, process=False)
    scale = 0.12 / np.ptp(ring().vertices[:, 1])
    assert verdict.watertight and verdict.outward
    assert (verdict.components, verdict.genus) == (1, 1)
    assert (verdict.faces, verdict.places) == (len(ring().faces), len(ring().vertices))
    assert verdict.volume == pytest.approx(reference.volume * (scale * unit) ** 3, rel=1e-4)
    assert verdict.low[2] == pytest.approx(0, abs=1e-6 * unit) and verdict.high[2] == pytest.approx(0.12 * unit)
    assert verdict.texture == (128 if suffix in (".glb", ".obj", ".usdz") else 0)
    assert verdict.coloured == (suffix not in (".stl", ".off"))


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".usdz"])
def test_a_large_texture_is_told_in_its_size(suffix: str, textured: Mesh, tmp_path: Path) -> None:
    large = replace(textured, texture=np.kron(textured.texture, np.ones((12, 12, 1), np.uint8)))
    assert judge(save(large, "a" + suffix, tmp_path)).texture == 1536


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_file_looks_like_the_photo_however_it_was_placed(suffix: str, textured: Mesh, tmp_path: Path) -> None:
    photo = photo_of(textured, tmp_path)
    path = save(textured, "a" + suffix, tmp_path, STANDING)
    # The photo was drawn of the box's middle; the mesh is there already.
    verdict = judge(path, photo, matrix_of(textured, STANDING, suffix))
    assert verdict.mask_iou > 0.99
    assert verdict.psnr > (35 if verdict.texture else 25 if verdict.coloured else 0)
    assert judge(path, photo).mask_iou < 0.5  # without being told where it was placed


def test_a_wrong_picture_is_told_from_the_right_one(textured: Mesh, tmp_path: Path) -> None:
    photo = photo_of(textured, tmp_path)
    path = save(textured, "a.glb", tmp_path)
    right = judge(path, photo, matrix_of(textured, UPRIGHT))
    turned = judge(path, replace(photo, viewpoint=Viewpoint(0, 60)), matrix_of(textured, UPRIGHT))
    swapped = replace(textured, texture=textured.texture[..., ::-1].copy())
    other = judge(save(swapped, "b.glb", tmp_path), photo, matrix_of(swapped, UPRIGHT))
    assert turned.mask_iou < 0.8 and right.psnr > turned.psnr + 10
    assert other.mask_iou == right.mask_iou and right.psnr > other.psnr + 10


def test_coverage_is_a_share(textured: Mesh, tmp_path: Path) -> None:
    drawn = draw(read_back(save(textured, "a.glb", tmp_path)), SHOT, 64)
    assert set(np.unique(np.rint(drawn[..., 3] * SAMPLES**2))) == {0, 1, 2, 3, 4}
    assert drawn.min() >= 0 and drawn.max() <= 1


def test_drawn_colours_are_the_fields(tmp_path: Path) -> None:
    """A ball's front, from straight ahead and from the right, in the colours that the field has there."""
    mesh = trimesh.creation.icosphere(3, 0.4)
    ball = paint(Solid(np.asarray(mesh.vertices), np.asarray(mesh.faces)), rainbow, size=128)
    surface = read_back(save(ball, "a.glb", tmp_path))
    for azimuth, colour in ((0, (0.5, 0.5, 0.9)), (90, (0.9, 0.5, 0.5))):
        drawn = draw(surface, Shot(SHOT.rgba, Viewpoint(azimuth), half=0.02), 9)
        assert drawn[4, 4] == pytest.approx([*colour, 1], abs=0.01)


def test_holes_turned_faces_and_pieces_are_seen(textured: Mesh, tmp_path: Path) -> None:
    holed = judge(save(replace(textured, faces=textured.faces[5:]), "a.glb", tmp_path))
    assert not holed.watertight and holed.genus == -1 and holed.volume == 0 and not holed.outward
    inward = judge(save(replace(textured, faces=textured.faces[:, ::-1].copy()), "b.glb", tmp_path))
    assert inward.watertight and not inward.outward and inward.volume < 0
    two = [trimesh.creation.icosphere(2, 0.2), trimesh.creation.icosphere(2, 0.1)]
    vertices = np.concatenate([two[0].vertices, two[1].vertices + np.array([0.5, 0, 0])])
    faces = np.concatenate([two[0].faces, two[1].faces + len(two[0].vertices)])
    verdict = judge(save(paint(Solid(vertices, faces), rainbow, mode="none"), "c.glb", tmp_path))
    assert (verdict.components, verdict.genus, verdict.watertight) == (2, 0, True)


def test_one_colour_is_not_coloured(tmp_path: Path) -> None:
    def grey(points: np.ndarray) -> np.ndarray:
        return np.full((len(points), 3), 0.5, np.float32)

    for mode in ("uv", "vertex", "none"):
        verdict = judge(save(paint(ring(), grey, mode=mode, size=64), f"{mode}.glb", tmp_path))
        assert not verdict.coloured
        assert judge(save(paint(ring(), rainbow, mode=mode, size=64), f"{mode}2.glb", tmp_path)).coloured == (
            mode != "none"
        )


def test_requirements_are_held(textured: Mesh, tmp_path: Path) -> None:
    good = judge(save(textured, "a.glb", tmp_path))
    require(good, list(REQUIREMENTS))
    bad = replace(good, watertight=False, texture=0)
    with pytest.raises(NothingFoundError, match="not watertight and not textured") as told:
        require(bad, ["watertight", "textured", "coloured"], "a.glb")
    assert told.value.exit_code == 82 and told.value.where == "a.glb"
    for name in REQUIREMENTS:
        with pytest.raises(NothingFoundError):
            require(replace(good, watertight=False, texture=0, coloured=False, components=2), [name])
    with pytest.raises(UsageError, match="'shiny'"):
        require(good, ["shiny"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_file_is_an_error_and_no_verdict(suffix: str, textured: Mesh, tmp_path: Path) -> None:
    path = save(textured, "a" + suffix, tmp_path)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2] + b" \xff nonsense")
    with pytest.raises(MeshError):
        judge(path)
