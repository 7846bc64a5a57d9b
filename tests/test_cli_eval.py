"""`zero123 eval` by running the program: tables, JSON, pages and comparisons over two small solids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Program
from test_evaluation import BLOCK, write_net, write_obj
from test_evaluation_metrics import draw_lpips, sphere

from zero123cli.cache import Cache
from zero123cli.cli.eval import make_plan
from zero123cli.errors import MissingInputError

pytest.importorskip("embreex", reason="no ray casting without embreex")

Eval = Callable[..., tuple[str, str]]


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    folder = tmp_path / "objects"
    folder.mkdir()
    for name, corners in (("ball", sphere(0.5, steps=12)), ("block", BLOCK), ("zzz", BLOCK)):
        write_obj(folder / f"{name}.obj", corners)
    return folder


@pytest.fixture
def run(inside: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> Eval:
    """What a call prints on stdout and stderr, in this process."""

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        found = inside("eval", *map(str, arguments))
        out, err = capfd.readouterr()
        assert found == code, err
        return out, err

    return call


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_shape_by_a_volume_net(run: Eval, objects: Path, tmp_path: Path) -> None:
    net = write_net(tmp_path / "net.safetensors", elevation=30)
    page = tmp_path / "page.html"
    out, err = run("shape", objects, "--limit", 2, "--model", net, "--volume-alone", "--json", "--html", page)
    rows = lines(out)
    assert [row["model"] for row in rows] == ["sphere", "extrusion", "inflate", "net.safetensors (volume)"]
    last = rows[-1]
    assert (last["protocol"], last["n"], last["code"]) == ("P", 2, 0)
    assert [one["name"] for one in last["objects"]] == ["ball", "block"]
    for key in ("iou", "cd", "cd_s"):
        values = [one[key] for one in last["objects"]]
        assert last["metrics"][key]["mean"] == pytest.approx(sum(values) / 2, abs=1e-5)
        low, high = last["metrics"][key]["ci95"]
        assert low <= last["metrics"][key]["mean"] <= high
        theirs = [one[key] for one in rows[0]["objects"]]
        paired = last["minus"]["sphere"][key]["mean"]
        assert paired == pytest.approx((sum(values) - sum(theirs)) / 2, abs=1e-5)
    assert last["metrics"]["elevation_error"]["mean"] == pytest.approx(10, abs=0.01)
    assert rows[0]["objects"][0]["iou"] > 0.9  # the ball
    assert "protocol P: " in err and "64^3" in err
    assert page.read_text().count("data:image/png") == 2 * (2 + 4)
    run("shape", objects, "--html", page, code=73)


def test_tables_go_to_stdout_with_protocol_and_papers(run: Eval, objects: Path) -> None:
    out, err = run("shape", objects / "ball.obj", "--model", "inflate", "--with-published")
    assert "protocol P: both in a unit cube" in out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["sphere", "extrusion", "inflate"]
    assert "0.505  0.0717" in out and "arXiv 2303.11328" in out
    out, err = run("shape", objects / "ball.obj", "--protocol", "F", "--model", "sphere", "-q")
    assert "F@0.05" in out and err == ""


def test_views_without_weights_say_so(run: Eval, objects: Path, tmp_path: Path) -> None:
    net = write_net(tmp_path / "net.safetensors")
    small = ("views", objects, "--limit", 1, "--size", 32)
    out, _ = run(*small, "--model", net)
    assert "protocol zero123 at 32 px: 12 poses" in out
    assert out.count("no weights") == 4
    weights = tmp_path / "lpips.npz"
    np.savez(weights, **draw_lpips())
    out, _ = run(*small, "--model", "oracle", "--lpips", weights, "--json", "-q")
    last = lines(out)[-1]
    assert [row["model"] for row in lines(out)] == ["white", "input-copy", "mean-picture", "oracle"]
    assert last["metrics"]["lpips"]["mean"] == 0
    assert last["metrics"]["mask_iou"]["mean"] == 1
    assert last["minus"]["white"]["psnr"]["mean"] > 30


@pytest.mark.slow
def test_two_runs_are_compared_object_by_object(run: Eval, objects: Path, tmp_path: Path) -> None:
    for model, limit in (("sphere", 2), ("inflate", 0)):
        out, _ = run("shape", objects, "--limit", limit, "--model", model, "--json", "-q")
        (tmp_path / f"{model}.json").write_text(out)
    ours, theirs = tmp_path / "inflate.json", tmp_path / "sphere.json"
    (found,) = lines(run("shape", "--compare", ours, theirs, "--json", "-q")[0])
    assert (found["model"], found["minus"], found["n"]) == ("inflate", "sphere", 2)
    one, other = (lines(path.read_text())[-1]["objects"] for path in (ours, theirs))
    mean = sum(a["iou"] - b["iou"] for a, b in zip(one, other, strict=False)) / 2
    assert found["metrics"]["iou"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert "seconds" not in found["metrics"]
    assert "inflate minus (paired)" in run("shape", "--compare", ours, theirs)[0]
    other_protocol = lines(theirs.read_text())[-1] | {"protocol": "F"}
    theirs.write_text(json.dumps(other_protocol))
    assert "one protocol" in run("shape", "--compare", ours, theirs, code=2)[1]
    theirs.write_text("[]")
    assert "not what" in run("shape", "--compare", ours, theirs, code=2)[1]


def test_wrong_calls_are_named(run: Eval, objects: Path, tmp_path: Path) -> None:
    assert "name the objects" in run("shape", code=2)[1]
    assert "no such file" in run("shape", tmp_path / "nowhere", "--model", "sphere", code=66)[1]
    (tmp_path / "empty").mkdir()
    assert "no meshes" in run("views", tmp_path / "empty", "--model", "white", code=66)[1]
    assert "no weights are known" in run("shape", objects, "--model", "inflat", code=2)[1]
    assert "no such file" in run("views", objects, "--model", tmp_path / "nowhere.safetensors", code=66)[1]
    (tmp_path / "bad.safetensors").write_bytes(write_net(tmp_path / "net.safetensors").read_bytes()[:5000])
    assert "cut short" in run("shape", objects, "--model", tmp_path / "bad.safetensors", "--volume-alone", code=65)[1]


def test_what_only_volumes_heed_is_refused_elsewhere(run: Eval, objects: Path) -> None:
    for flags in (("--mirrored",), ("--threshold", "0.5"), ("--volume-alone", "--model", "inflate")):
        assert "only a model's volume" in run("shape", objects, *flags, code=2)[1]
    assert "only a model's volume" in run("views", objects, "--model", "white", "--mirrored", code=2)[1]


def test_weights_of_lpips_are_read_first(run: Eval, objects: Path, tmp_path: Path) -> None:
    assert "nowhere.npz" in run("views", objects, "--model", "white", "--lpips", tmp_path / "nowhere.npz", code=66)[1]
    np.savez(tmp_path / "odd.npz", **draw_lpips() | {"lin3": np.ones((1, 7, 1, 1), np.float32)})
    out, err = run("views", objects, "--model", "white", "--lpips", tmp_path / "odd.npz", code=65)
    assert "other shapes" in err and out == ""


def test_a_damaged_mesh_is_skipped_and_told(run: Eval, objects: Path) -> None:
    (objects / "bad.glb").write_bytes(b"glTF" + bytes(100))
    out, err = run("shape", objects, "--limit", 2, "--model", "sphere", "--json", code=65)
    assert "error[65]: bad: " in err
    row = lines(out)[-1]
    assert (row["n"], row["status"], row["code"]) == (1, "error", 65)
    assert [one["name"] for one in row["skipped"]] == ["bad"]
    assert "error[65]: bad: " in run("shape", objects, "--limit", 2, "--model", "sphere", "-q", code=65)[1]


def test_an_object_keeps_the_code_of_what_went_wrong(run: Eval, objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zero123cli.evaluation import evaluate

    def refuse(job: Any) -> None:
        raise MissingInputError("permission denied", where=job.name)

    monkeypatch.setattr(evaluate, "judge", refuse)
    out, err = run("shape", objects, "--limit", 1, "--model", "sphere", "--json", code=66)
    assert "error[66]: ball: " in err
    assert [one["code"] for one in lines(out)[-1]["skipped"]] == [66]


@pytest.mark.slow
def test_the_program_itself_with_workers(zero123: Program, objects: Path) -> None:
    run = zero123("eval", "shape", objects, "--limit", "1", "--model", "inflate", "--json", "--jobs", "2", "-q")
    assert [json.loads(line)["model"] for line in run.stdout.splitlines()] == ["sphere", "extrusion", "inflate"]


def test_the_photos_elevation_is_one_setting_wherever_it_is_said() -> None:
    plan = make_plan(None, ["views.photo_elevation=20"], {}, "cpu", "float32", Cache(None))
    assert plan.elevation_deg == 20
