"""`zero123 export`: finished runs written again, and what is no run of ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trimesh
from conftest import Program, facts_of

from zero123cli.cache import Cache, seal
from zero123cli.runs import find_run, list_runs

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("desk")


@pytest.fixture
def export(inside: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        found = inside("export", *arguments)
        out, err = capfd.readouterr()
        assert found == code, f"exit {found}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    return run


@pytest.fixture
def done(reconstruct: Call, warm: None) -> dict[str, Any]:
    """A finished run of the disc, written as disc.glb."""
    (facts,) = facts_of(reconstruct("disc.png", "-o", "disc.glb", "--json")[0])
    return dict(facts)


def test_a_run_is_written_again_by_its_glb_its_id_or_as_the_last(done: dict[str, Any], export: Call) -> None:
    os.remove("disc.png")
    for name, run in (("a.glb", "disc.glb"), ("b.glb", done["key"][:8].upper()), ("c.glb", "last")):
        assert export(run, "-o", name)[0] == f"{name}\n"
        assert Path(name).read_bytes() == Path("disc.glb").read_bytes()


def test_only_the_mesh_is_made_anew(done: dict[str, Any], export: Call) -> None:
    (facts,) = facts_of(export("last", "-o", "few.stl", "--faces", "100", "--height", "12cm", "--json")[0])
    assert [stage["hit"] for stage in facts["stages"].values()] == [True, True, True, False]
    assert facts["mesh"]["faces"] <= 100 < done["mesh"]["faces"]
    assert facts["settings"]["mesh.faces"] == [100, "flag --faces"]
    assert facts["settings"]["mesh.texture_size"][0] == 64, "what no flag changes is as in the run"
    mesh = trimesh.load("few.stl")
    assert mesh.is_watertight and mesh.extents[2] == pytest.approx(120, rel=1e-3), "as slicers take it"


def test_an_export_can_be_exported_but_is_not_the_last_run(
    done: dict[str, Any], export: Call, cache_root: Path
) -> None:
    export("last", "-o", "few.glb", "--faces", "100")
    export("few.glb", "-o", "few.obj")
    assert len(trimesh.load("few.obj", force="mesh").faces) <= 100
    assert len(list_runs(Cache(cache_root))) == 2
    assert find_run(Cache(cache_root), "last").id == done["key"]


def test_every_photo_of_a_run_comes_back(reconstruct: Call, warm: None, export: Call, photo: Call) -> None:
    photo("back.png", 2)
    reconstruct("disc.png", "--also", "back.png@180", "-o", "two.glb")
    os.remove("back.png")
    export("two.glb", "-o", "again.glb")
    assert Path("again.glb").read_bytes() == Path("two.glb").read_bytes()


def test_runs_are_listed(done: dict[str, Any], inside: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert inside("cache", "runs") == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(done["key"][:16]) and "disc.png" in line


def test_an_output_in_the_way_stays_unless_forced(done: dict[str, Any], export: Call) -> None:
    Path("x.glb").write_bytes(b"mine")
    assert "--force" in export("last", "-o", "x.glb", "--faces", "50", code=73)[1]
    assert Path("x.glb").read_bytes() == b"mine"
    export("last", "-o", "x.glb", "--force")
    assert Path("x.glb").read_bytes() == Path("disc.glb").read_bytes()


def test_what_is_required_and_not_met_is_82(done: dict[str, Any], export: Call) -> None:
    assert "not textured" in export("last", "-o", "x.ply", "--require", "textured", code=82)[1]


def test_what_is_no_run_is_named(done: dict[str, Any], export: Call, tmp_path: Path) -> None:
    Path("not.glb").write_bytes(b"glTF")
    Path("other.glb").write_bytes(trimesh.creation.box().export(file_type="glb"))
    os.mkfifo("pipe.glb")
    for run, code, said in (
        ("nowhere.glb", 66, "no such file or run"),
        ("0123456789", 66, "not on record"),
        ("not.glb", 65, "names no run"),
        ("other.glb", 65, "names no run"),
        ("pipe.glb", 66, "named pipe"),
        (str(tmp_path), 66, "folder"),
    ):
        out, err = export(run, "-o", "x.glb", code=code)
        assert said in err and not out and not Path("x.glb").exists()


def test_wrong_calls_are_refused(done: dict[str, Any], export: Call) -> None:
    for flags, code in (
        (("--faces", "-3"), 2),
        (("--resolution", "100"), 2),
        (("--height", "tall"), 2),
        (("--set", "lift.steps=3"), 2),
        (("--require", "beauty"), 2),
        (("--format", "doc"), 2),
    ):
        export("last", "-o", "x.glb", *flags, code=code)
        assert not Path("x.glb").exists()
    export("last", "-o", "x.doc", code=2)
    export("last", "-o", "nowhere/x.glb", code=73)


def test_a_run_whose_stages_are_gone_says_so(done: dict[str, Any], export: Call, cache_root: Path) -> None:
    shutil.rmtree(cache_root / "entries")
    assert "no longer holds" in export("disc.glb", "-o", "x.glb", code=66)[1]


def test_without_any_run_there_is_no_last(export: Call) -> None:
    assert "no run is on record" in export("last", code=66)[1]


def test_damaged_and_foreign_records_are_left_out(done: dict[str, Any], export: Call, cache_root: Path) -> None:
    path = cache_root / "runs" / f"{done['key']}.json"
    (cache_root / "runs" / ("0" * 64 + ".json")).write_bytes(seal({"verb": "reconstruct"}))
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + b"X" + raw[-8:])
    assert list_runs(Cache(cache_root)) == []
    assert "not on record" in export("disc.glb", "-o", "x.glb", code=66)[1]


def test_pruning_drops_the_records_of_lost_runs(
    done: dict[str, Any], inside: Callable[..., int], cache_root: Path
) -> None:
    assert inside("cache", "prune", "--max-size", "1G") == 0
    assert len(list_runs(Cache(cache_root))) == 1
    assert inside("cache", "prune", "--max-size", "0") == 0
    assert list_runs(Cache(cache_root)) == []


def test_without_a_cache_nothing_is_on_record(reconstruct: Call, warm: None, export: Call, cache_root: Path) -> None:
    shutil.rmtree(cache_root / "runs")
    reconstruct("disc.png", "-o", "x.glb", "--no-cache")
    assert "not on record" in export("x.glb", "-o", "y.glb", code=66)[1]


def test_export_needs_no_torch(done: dict[str, Any], zero123: Program) -> None:
    """Of a mesh that is kept: another format or size takes a second."""
    check = "import sys, atexit\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    told = zero123.wrapped(check, "export", "last", "-o", "y.obj", "--height", "5in")
    assert told.stderr.rstrip().endswith("False")


def test_a_record_never_leads_out_of_the_cache(
    done: dict[str, Any], export: Call, cache_root: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    path = cache_root / "runs" / f"{done['key']}.json"
    done["photos"][0]["cutout"] = str(precious)
    path.write_bytes(seal(done))
    assert "no longer holds" in export("disc.glb", "-o", "x.glb", code=66)[1]
    assert precious.is_dir()


def test_a_run_that_lost_one_stage_goes_with_the_next_pruning(
    done: dict[str, Any], inside: Callable[..., int], cache_root: Path
) -> None:
    key = done["photos"][0]["cutout"]
    shutil.rmtree(cache_root / "entries" / key[:2] / key)
    assert inside("cache", "prune", "--max-size", "1G") == 0
    assert list_runs(Cache(cache_root)) == []
