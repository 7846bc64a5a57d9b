"""`zero123 reconstruct` as people and scripts call it, with a model that knows nothing and is quick about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from conftest import QUICK, Photographer, Program, facts_of

from zero123cli.cli.delivery import read_height
from zero123cli.cli.reconstruct import read_also
from zero123cli.errors import UsageError

pytestmark = pytest.mark.usefixtures("desk")


def test_a_photo_becomes_a_mesh_and_again_nothing_is_made(reconstruct: Any) -> None:
    (facts,) = facts_of(reconstruct("disc.png", "-o", "disc.glb", "--json")[0])
    assert facts["status"] == "ok"
    assert facts["hits"] == 0
    assert [*facts["stages"]] == ["cutout", "views", "lift", "mesh"]
    mesh = facts["mesh"]
    assert mesh["watertight"] and mesh["outward"] and mesh["coloured"] and 0 < mesh["faces"] <= 600
    assert mesh["mask_iou"] > 0.6
    scene = trimesh.load("disc.glb")
    assert np.ptp(scene.bounds, axis=0).max() < 1.7
    before = Path("disc.glb").read_bytes()
    (again,) = facts_of(reconstruct("disc.png", "-o", "disc.glb", "--json")[0])
    assert again["hits"] == 4 and again["hit"]
    assert Path("disc.glb").read_bytes() == before
    assert not [name for name in facts if name not in again]


def test_another_texture_size_makes_the_mesh_alone(reconstruct: Any, warm: None) -> None:
    (facts,) = facts_of(
        reconstruct("disc.png", "-o", "b.glb", "--json", quick=(*QUICK, "--set", "mesh.smoothing=0"))[0]
    )
    assert [stage["hit"] for stage in facts["stages"].values()] == [True, True, True, False]


@pytest.mark.slow
def test_every_format_is_written_at_its_size(reconstruct: Any, warm: None) -> None:
    heights = {".glb": 0.12, ".obj": 0.12, ".ply": 0.12, ".stl": 120.0, ".3mf": 120.0, ".off": 0.12}
    for suffix, tall in heights.items():
        (facts,) = facts_of(reconstruct("disc.png", "-o", f"m{suffix}", "--json", "--height", "12cm")[0])
        low, high = (np.array(facts["mesh"][name]) for name in ("low", "high"))
        up = 2 if suffix in (".stl", ".3mf") else 1
        assert (high - low)[up] == pytest.approx(tall, rel=1e-3), suffix
        assert all(Path(name).is_file() for name in facts["files"])
    assert {path.suffix for path in Path().glob("m.*")} >= {".obj", ".mtl"}


def test_what_is_written_beside_a_mesh_never_replaces_a_photo(
    reconstruct: Any, warm: None, photo: Photographer
) -> None:
    photo("disc_texture.png", 1)
    before = {name: Path(name).read_bytes() for name in ("disc.png", "disc_texture.png")}
    for call in (
        ("disc_texture.png", "disc.png", "-o", "{stem}.obj"),
        ("disc.png", "--also", "disc_texture.png@90", "-o", "disc.obj"),
    ):
        assert "would replace an input" in reconstruct(*call, "--force", code=2)[1]
    # A stranger's file there is in the way, and nothing is written of the rest.
    Path("x").mkdir()
    Path("x/disc_texture.png").write_bytes(b"mine")
    err = reconstruct("disc.png", "-o", "x/disc.obj", code=73)[1]
    assert "x/disc_texture.png" in err and "it exists" in err
    assert [path.name for path in Path("x").iterdir()] == ["disc_texture.png"]
    (facts,) = facts_of(reconstruct("disc.png", "-o", "y/", "--format", "obj", "--json")[0])
    assert [Path(name).name for name in facts["files"]] == ["disc.obj", "disc.mtl", "disc_texture.png"]
    assert {name: Path(name).read_bytes() for name in before} == before


def test_several_photos_keep_their_names_and_a_bad_one_stops_none(
    reconstruct: Any, warm: None, photo: Photographer
) -> None:
    photo("b.png", 1)
    Path("bad.png").write_bytes(b"no picture")
    out, err = reconstruct("disc.png", "b.png", "bad.png", "-o", "out/", code=65)
    assert out.split() == ["out/disc.glb", "out/b.glb"]
    assert "bad.png" in err


def test_a_second_photo_makes_another_field(reconstruct: Any, warm: None, photo: Photographer) -> None:
    photo("back.png", 2)
    (one,) = facts_of(reconstruct("disc.png", "-o", "one.glb", "--json")[0])
    (two,) = facts_of(reconstruct("disc.png", "--also", "back.png@180", "-o", "two.glb", "--json")[0])
    assert one["stages"]["cutout"]["key"] == two["stages"]["cutout"]["key"]
    assert one["stages"]["lift"]["key"] != two["stages"]["lift"]["key"]
    (again,) = facts_of(reconstruct("disc.png", "--also", "back.png@180", "-o", "two.glb", "--json")[0])
    assert again["hit"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--height", "tall"),
        ("--height", "-3cm"),
        ("--height", ""),
        ("--also", "back.png"),
        ("--also", "back.png@x"),
        ("--also", "back.png@90,nan"),
        ("--guidance", "-1"),
        ("--up", "x"),
        ("--front", "up"),
        ("--origin", "corner"),
        ("--require", "beauty"),
        ("--require", ""),
        ("--format", "doc"),
        ("--photo-elevation", "high"),
        ("--resolution", "100"),
        ("--texture", "plaid"),
        ("--set", "lift.size=1,2,3"),
        ("--set", "lift.elevations=40"),
        ("-o", "mesh.txt"),
    ],
)
def test_calls_that_cannot_be_right_are_refused_before_any_work(reconstruct: Any, arguments: tuple[str, ...]) -> None:
    before = sorted(os.listdir())
    extra = () if "-o" in arguments else ("-o", "x.glb")
    out, err = reconstruct("disc.png", *arguments, *extra, code=2, quick=QUICK[:6])
    assert out == "" and sorted(os.listdir()) == before
    assert err.startswith("zero123: error[2]: "), err


def test_what_is_required_and_not_met_is_82_and_replaces_nothing(reconstruct: Any, warm: None) -> None:
    _, err = reconstruct("disc.png", "-o", "x.stl", "--require", "textured", code=82)
    assert "not textured" in err
    assert not Path("x.stl").exists()
    Path("x.stl").write_bytes(b"an earlier one, and good")
    reconstruct("disc.png", "-o", "x.stl", "--require", "textured", "--force", code=82)
    assert Path("x.stl").read_bytes() == b"an earlier one, and good"
    reconstruct("disc.png", "-o", "x.glb", "--require", "watertight,textured")


def test_an_existing_mesh_is_kept_unless_forced(reconstruct: Any, warm: None) -> None:
    Path("x.glb").write_bytes(b"mine")
    reconstruct("disc.png", "-o", "x.glb", code=73)
    assert Path("x.glb").read_bytes() == b"mine"
    reconstruct("disc.png", "-o", "x.glb", "--force")
    assert Path("x.glb").read_bytes()[:4] == b"glTF"


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bytes(reconstruct: Any, warm: None, zero123: Program) -> None:
    long = (*QUICK, "--steps", "12", "--texture", "vertex")
    reconstruct("disc.png", "-o", "a.glb", "--cache-dir", "other", quick=long)
    kill = (
        "import os, sys\n"
        "import zero123cli.stages.lift as stage\n"
        "stage.SAVE_SECONDS = 0.0\n"
        "true, count = stage.move, []\n"
        "def move(*given):\n"
        "    count.append(1)\n"
        "    if len(count) == 6: os.kill(os.getpid(), 9)\n"
        "    return true(*given)\n"
        "stage.move = move\n"
    )
    zero123.wrapped(kill, "reconstruct", "disc.png", "-o", "b.glb", *long, code=-9)
    assert not Path("b.glb").exists()
    _, err = reconstruct("disc.png", "-o", "b.glb", quick=long)
    assert "goes on from step 5" in err
    assert Path("b.glb").read_bytes() == Path("a.glb").read_bytes()


def test_lengths_and_places_are_read_as_written() -> None:
    assert [read_height(text) for text in ("12cm", "80 mm", "1.5m", "5in", "1ft")] == pytest.approx(
        [0.12, 0.08, 1.5, 0.127, 0.3048]
    )
    assert read_also("a@b.jpg@180") == ("a@b.jpg", 180.0, None)
    assert read_also("top.jpg@0,60") == ("top.jpg", 0.0, 60.0)
    for wrong in ("x", "@3", "x@", "x@1,2,3", "x@nan", "x@0,100"):
        with pytest.raises(UsageError):
            read_also(wrong)
