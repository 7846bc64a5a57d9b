"""`zero123 reconstruct` as people and scripts call it, with a model that knows nothing and is quick about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import trimesh
from conftest import Photographer, Program

from zero123cli.cache import entries
from zero123cli.cli.reconstruct import read_also, read_height
from zero123cli.diffusion.volume import VolumeDescription
from zero123cli.errors import UsageError

NET = VolumeDescription(size=32, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
SMALL = (
    "--model small.safetensors --device cpu --dtype float32 --steps 8 --faces 600 --texture-size 64 --resolution 128"
    " --set lift.size=16 --set lift.photo_size=24 --set lift.fineness=48 --set lift.cells=16 --set lift.walk=1"
    " --set lift.batch=1 --set lift.guidance=0.001"
)
QUICK = tuple(SMALL.split())


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket model of random weights whose volume is a ball."""
    model = small.make_model(replace(small.PIXELS, tokens="patches", volume=asdict(NET)))
    assert model.volume is not None
    with torch.no_grad():
        last = model.volume.last[-1]
        last.weight.zero_()
        depth = torch.arange(16).repeat_interleave(4)
        last.bias[: 4 * 16] = 12.0 - 3.0 * (depth - 7.5).abs()
    return small.write_compact(tmp_path_factory.mktemp("weights") / "small.safetensors", model)


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, weights: Path, photo: Photographer) -> Path:
    shutil.copyfile(weights, tmp_path / weights.name)
    photo()
    return tmp_path


@pytest.fixture
def call(inside: Callable[..., int], capfd: pytest.CaptureFixture[str], cache_root: Path) -> Callable[..., Any]:
    def run(*arguments: str, code: int = 0, quick: Sequence[str] = QUICK) -> tuple[str, str]:
        capfd.readouterr()
        found = inside("reconstruct", *arguments, *quick)
        out, err = capfd.readouterr()
        assert found == code, f"exit {found}\n{out}\n{err}"
        assert "Traceback" not in err, err
        assert not list(Path.cwd().rglob(".zero123-*.tmp"))
        assert not [entry for entry in entries(cache_root, check=True) if entry.damage]
        return out, err

    return run


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for what the program has kept of the disc: made once, by the first test that asks for it."""
    return tmp_path_factory.mktemp("stages") / "kept"


@pytest.fixture
def warm(stages: Path, call: Callable[..., Any], cache_root: Path) -> None:
    """All four stages of the disc are there already."""
    if not stages.exists():
        call("disc.png", "-o", "warm.glb")
        shutil.copytree(cache_root, stages)
    elif not cache_root.exists():
        shutil.copytree(stages, cache_root)


def facts_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_photo_becomes_a_mesh_and_again_nothing_is_made(call: Any) -> None:
    (facts,) = facts_of(call("disc.png", "-o", "disc.glb", "--json")[0])
    assert facts["status"] == "ok"
    assert facts["hits"] == 0
    assert [*facts["stages"]] == ["cutout", "views", "lift", "mesh"]
    mesh = facts["mesh"]
    assert mesh["watertight"] and mesh["outward"] and mesh["coloured"] and 0 < mesh["faces"] <= 600
    assert mesh["mask_iou"] > 0.6
    scene = trimesh.load("disc.glb")
    assert np.ptp(scene.bounds, axis=0).max() < 1.7
    before = Path("disc.glb").read_bytes()
    (again,) = facts_of(call("disc.png", "-o", "disc.glb", "--json")[0])
    assert again["hits"] == 4 and again["hit"]
    assert Path("disc.glb").read_bytes() == before
    assert not [name for name in facts if name not in again]


def test_another_texture_size_makes_the_mesh_alone(call: Any, warm: None) -> None:
    (facts,) = facts_of(call("disc.png", "-o", "b.glb", "--json", quick=(*QUICK, "--set", "mesh.smoothing=0"))[0])
    assert [stage["hit"] for stage in facts["stages"].values()] == [True, True, True, False]


def test_every_format_is_written_at_its_size(call: Any, warm: None) -> None:
    heights = {".glb": 0.12, ".obj": 0.12, ".ply": 0.12, ".stl": None, ".3mf": 120.0, ".off": 0.12}
    for suffix, tall in heights.items():
        (facts,) = facts_of(call("disc.png", "-o", f"m{suffix}", "--json", "--height", "12cm")[0])
        low, high = (np.array(facts["mesh"][name]) for name in ("low", "high"))
        if tall:
            assert (high - low)[1] == pytest.approx(tall, rel=1e-3), suffix
        assert all(Path(name).is_file() for name in facts["files"])
    assert {path.suffix for path in Path().glob("m.*")} >= {".obj", ".mtl"}


def test_several_photos_keep_their_names_and_a_bad_one_stops_none(call: Any, warm: None, photo: Photographer) -> None:
    photo("b.png", 1)
    Path("bad.png").write_bytes(b"no picture")
    out, err = call("disc.png", "b.png", "bad.png", "-o", "out/", code=65)
    assert out.split() == ["out/disc.glb", "out/b.glb"]
    assert "bad.png" in err


def test_a_second_photo_makes_another_field(call: Any, warm: None, photo: Photographer) -> None:
    photo("back.png", 2)
    (one,) = facts_of(call("disc.png", "-o", "one.glb", "--json")[0])
    (two,) = facts_of(call("disc.png", "--also", "back.png@180", "-o", "two.glb", "--json")[0])
    assert one["stages"]["cutout"]["key"] == two["stages"]["cutout"]["key"]
    assert one["stages"]["lift"]["key"] != two["stages"]["lift"]["key"]
    (again,) = facts_of(call("disc.png", "--also", "back.png@180", "-o", "two.glb", "--json")[0])
    assert again["hit"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--height", "tall"),
        ("--height", "-3cm"),
        ("--also", "back.png"),
        ("--also", "back.png@x"),
        ("--up", "x"),
        ("--front", "y"),
        ("--origin", "corner"),
        ("--require", "beauty"),
        ("--format", "doc"),
        ("--photo-elevation", "high"),
        ("--resolution", "100"),
        ("--texture", "plaid"),
        ("--set", "lift.size=1,2,3"),
        ("--set", "lift.elevations=40"),
        ("-o", "mesh.txt"),
    ],
)
def test_calls_that_cannot_be_right_are_refused_before_any_work(call: Any, arguments: tuple[str, ...]) -> None:
    before = sorted(os.listdir())
    extra = () if "-o" in arguments else ("-o", "x.glb")
    out, err = call("disc.png", *arguments, *extra, code=2, quick=QUICK[:6])
    assert out == "" and sorted(os.listdir()) == before
    assert err.startswith("zero123: error[2]: "), err


def test_what_is_required_and_not_met_is_82_and_leaves_the_file(call: Any, warm: None) -> None:
    _, err = call("disc.png", "-o", "x.stl", "--require", "textured", code=82)
    assert "not textured" in err
    assert Path("x.stl").is_file()
    call("disc.png", "-o", "x.glb", "--require", "watertight,textured")


def test_an_existing_mesh_is_kept_unless_forced(call: Any) -> None:
    Path("x.glb").write_bytes(b"mine")
    call("disc.png", "-o", "x.glb", code=73)
    assert Path("x.glb").read_bytes() == b"mine"
    call("disc.png", "-o", "x.glb", "--force")
    assert Path("x.glb").read_bytes()[:4] == b"glTF"


def test_a_run_that_was_killed_ends_with_the_same_bytes(zero123: Program, tmp_path: Path) -> None:
    long = (*QUICK, "--steps", "12", "--progress", "lines")
    whole = zero123("reconstruct", "disc.png", "-o", "a.glb", *long, "--cache-dir", tmp_path / "one")
    assert whole.returncode == 0
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
    other = ("reconstruct", "disc.png", "-o", "b.glb", *long, "--cache-dir", tmp_path / "two")
    zero123.wrapped(kill, *other, code=-9)
    assert not (tmp_path / "b.glb").exists()
    again = zero123(*other)
    assert "goes on from step 5" in again.stderr
    assert (tmp_path / "b.glb").read_bytes() == (tmp_path / "a.glb").read_bytes()


def test_lengths_and_places_are_read_as_written() -> None:
    assert [read_height(text) for text in ("12cm", "80 mm", "1.5m", "5in", "1ft")] == pytest.approx(
        [0.12, 0.08, 1.5, 0.127, 0.3048]
    )
    assert read_also("a@b.jpg@180") == ("a@b.jpg", 180.0, None)
    assert read_also("top.jpg@0,60") == ("top.jpg", 0.0, 60.0)
    for wrong in ("x", "@3", "x@", "x@1,2,3", "x@nan", "x@0,100"):
        with pytest.raises(UsageError):
            read_also(wrong)
