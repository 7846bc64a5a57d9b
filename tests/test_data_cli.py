"""`zero123 data` and `zero123 train` by running the program: from made-up solids and a damaged mesh to weights."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program

from zero123cli.cli.data import name_solids
from zero123cli.errors import UsageError, Zero123Error
from zero123cli.scenes import solids
from zero123cli.scenes.forms import box
from zero123cli.training import viewsets

pytest.importorskip("embreex", reason="no ray casting without embreex")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def zero123(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "zero123cli", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    out = folder / "dataset"
    run = zero123("data", "render", "--procedural", "10", "--views", "3", "-o", out, "--json")
    facts = json.loads(run.stdout)
    assert (facts["objects"], facts["damaged"]) == (10, [])
    assert len(list(out.glob("objects/*/*.safetensors"))) == 10
    return out


@pytest.mark.slow
def test_rendering_again_finds_all_of_it_done(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.safetensors")}
    run = zero123("data", "render", "--procedural", "10", "--views", "3", "-o", dataset)
    assert "10 of them done before" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.safetensors")} == before


def test_a_damaged_mesh_is_listed_and_skipped(folder: Path) -> None:
    meshes = folder / "meshes"
    meshes.mkdir()
    (meshes / "bad.glb").write_bytes(b"glTF" + bytes(100))
    out = folder / "other"
    arguments = ("data", "render", meshes, "--procedural", "3", "--views", "2", "-o", out)
    run = zero123(*arguments, "--max-bad", "0.5", "--json")
    assert [Path(source).name for source, _ in json.loads(run.stdout)["damaged"]] == ["bad.glb"]
    run = zero123(*arguments, "--max-bad", "0.1", "--json", code=65)
    assert "1 of 4 objects are damaged" in run.stderr and run.stderr.count("bad.glb") == 1
    (facts,) = map(json.loads, run.stdout.splitlines())
    assert facts["code"] == 65 and len(facts["damaged"]) == 1 and "see the list" in facts["remedy"]


def test_a_link_to_nowhere_is_one_bad_mesh(tmp_path: Path) -> None:
    (tmp_path / "gone.glb").symlink_to(tmp_path / "nowhere.glb")
    jobs = list(viewsets.pending([str(tmp_path / "gone.glb"), "solid:0-0"], tmp_path / "out", viewsets.Rig()))
    assert [Path(source).name for source, _, _ in jobs] == ["gone.glb", "solid:0-0"]
    with pytest.raises(Zero123Error):
        viewsets.make(jobs[0])


def test_meshes_of_one_name_size_and_time_are_told_apart(tmp_path: Path) -> None:
    """As two models of an archive may be."""
    meshes = [tmp_path / folder / "model.stl" for folder in "abcd"]
    for mesh, content in zip(meshes, (b"one", b"two", b"one", b"two"), strict=True):
        mesh.parent.mkdir()
        mesh.write_bytes(content)
        os.utime(mesh, (0, 0))
    rig = viewsets.Rig()
    jobs = list(viewsets.pending([str(mesh) for mesh in meshes], tmp_path / "out", rig))
    assert [Path(source).parent.name for source, _, _ in jobs] == ["a", "b"], "c and d are the same once more"
    assert jobs[0][1] == str(viewsets.file_of(tmp_path / "out", str(meshes[0]), rig)) != jobs[1][1]
    for _, path, _ in jobs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"done")
    assert not list(viewsets.pending([str(mesh) for mesh in meshes], tmp_path / "out", rig))


def test_made_up_solids_can_be_of_chosen_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_solids(2, 7, []) == ["solid:7-0", "solid:7-1"]
    named = name_solids(3, 7, ["shoe", "dish"])
    assert named == ["solid:shoe:7-0", "solid:dish:7-1", "solid:shoe:7-2"]
    asked = []
    makers = {kind: (lambda rng, kind=kind: asked.append(kind) or [(box(1, 1, 1), 0)], 1.0) for kind in solids.MAKERS}
    monkeypatch.setattr(solids, "MAKERS", makers)
    for source in named:
        assert viewsets.photograph(source, viewsets.Rig(views=1, occupancy=0)).name == source
    assert asked == ["shoe", "dish", "shoe"]
    for kinds, count in ((["shoes"], 3), (["shoe"], 0)):
        with pytest.raises(UsageError, match="--kind"):
            name_solids(count, 0, kinds)


@pytest.mark.slow
def test_a_dataset_that_cannot_be_written_is_not_the_meshes_fault(folder: Path) -> None:
    (folder / "file").write_text("")
    for out in (folder / "file", folder / "file" / "below"):
        assert "cannot be written" in zero123("data", "render", "--procedural", "1", "-o", out, code=73).stderr
    (folder / "blocked").mkdir()
    (folder / "blocked" / "objects").write_text("")
    told = zero123("data", "render", "--procedural", "1", "-o", folder / "blocked", code=73).stderr
    assert "cannot be written" in told and "damaged" not in told
    paper = ("data", "render", "--procedural", "1", "--rig", "paper", "--inside", "carved", "-o", folder / "paper")
    assert "do not hold whole objects" in zero123(*paper, code=2).stderr
    command = [sys.executable, "-m", "zero123cli", "data", "render", "--procedural", "1", "--occupancy", "0", "-o"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    run = subprocess.run([*command, folder / "full"], capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limit)
    assert run.returncode == 74 and "error[74]" in run.stderr and "free some space" in run.stderr


@pytest.mark.slow
def test_pack_and_train_from_it(here: Program, dataset: Path, folder: Path) -> None:
    packed = folder / "packed.safetensors"
    assert here("data", "pack", dataset, "-o", packed, "--views", "2").stdout == f"{packed}\n"
    assert here("data", "pack", dataset, "-o", packed, code=73)
    run = folder / "run"
    small = ("--set", "train.judged=2", "--dtype", "float32", "--licence", "CC-BY-4.0, (c) Mesh & Co.")
    made = here("train", "train-pocket-volume", "--data", packed, "-o", run, "--steps", "2", "--batch", "2", *small)
    assert made.stdout == f"{run / 'weights.safetensors'}\n"
    told = json.loads(here("models", "inspect", run / "weights.safetensors", "--json").stdout)
    assert told["licence"] == "CC-BY-4.0, (c) Mesh & Co."
    figures = [json.loads(line) for line in (run / "figures.jsonl").read_text().splitlines()]
    assert figures[-1]["step"] == 2
    assert 0 <= figures[-1]["iou"] <= 1
    for name in ("samples.png", "curve.png", "log.jsonl"):
        assert (run / name).is_file()


def test_wrong_calls_are_named(here: Program, folder: Path) -> None:
    assert "nothing to render" in here("data", "render", "-o", folder / "x", code=2).stderr
    assert "no view sets" in here("data", "pack", folder / "nowhere", "-o", folder / "p.safetensors", code=66).stderr
    run = here("train", "train-pocket-volume", "--data", folder / "nowhere", "-o", folder / "y", code=66)
    assert "no such dataset" in run.stderr
    built = ("train", "train-cutter", "--data", folder, "-o", folder / "y")
    assert "builds on nothing" in here(*built, "--base", "weights.safetensors", code=2).stderr
    assert "builds on nothing" in here(*built, "--set", "train.base=x", code=2).stderr
    assert "did you mean" in here("train", "train-pocket-volum", "--data", folder, "-o", folder / "y", code=2).stderr
