"""View sets as what is measured on: rendered here from small solids by `data render`'s own code, whole and damaged.

Letters: S side of a picture.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from small import CPU, PIXELS, make_model, write_compact
from test_evaluation import BLOCK, write_net, write_obj
from test_evaluation_metrics import sphere

pytest.importorskip("embreex", reason="no ray casting without embreex")

from zero123cli.artifacts import Ask, PhotoCamera, read_head, with_head
from zero123cli.cameras import within_a_turn
from zero123cli.errors import MeshError, MissingInputError
from zero123cli.evaluation import evaluate, metrics, oracle, rig, sets, shapes, views
from zero123cli.evaluation.rig import Case, Plan
from zero123cli.scenes import raycast
from zero123cli.scenes.meshes import read_surface
from zero123cli.scenes.surface import Surface, normalise
from zero123cli.settings import Settings
from zero123cli.stages.views import condition, sample_views
from zero123cli.training import viewsets
from zero123cli.training.viewsets import Rig
from zero123cli.watch import silent

SHAPES, VIEWS = Plan(Settings(), CPU, size=32), Plan(Settings(), CPU, size=32, views=True)
POCKET = Rig(views=6, retexture=0)
Eval = Callable[..., tuple[str, str]]


def make(mesh: Path, folder: Path, how: Rig = POCKET) -> Path:
    """Called from the mesh's folder: what a view set draws by chance depends on how its source is spelt."""
    with contextlib.chdir(mesh.parent):
        return Path(viewsets.make(next(viewsets.pending([mesh.name], folder, how))))


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    write_obj(folder / "ball.obj", sphere(0.5, steps=24))
    write_obj(folder / "block.obj", BLOCK)
    return folder


@pytest.fixture(scope="module")
def made(meshes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """View sets of both rigs, once for all tests."""
    folder = tmp_path_factory.mktemp("made")
    fine = replace(POCKET, size=160, views=5)
    return {
        "block": make(meshes / "block.obj", folder),
        "ball": make(meshes / "ball.obj", folder),
        "fine": make(meshes / "block.obj", folder, fine),
        "fine paper": make(meshes / "block.obj", folder, replace(fine, kind="paper")),
    }


def case_of(path: Path, plan: Plan = VIEWS) -> Case:
    return sets.set_up("thing", path, plan, silent)


def upright(path: Path, meshes: Path) -> Surface:
    """The block itself as it stands before the photo of its view set."""
    one = viewsets.read(path)
    return rig.turn(normalise(read_surface(meshes / "block.obj")), -float(one.poses[sets.choose_photo(one), 0]))


# The photo and the truth ----------------------------------------------------------------------------------------------


def test_the_photo_is_the_picture_nearest_to_twenty_degrees_the_first_of_equals(made: dict[str, Path]) -> None:
    one = viewsets.read(made["block"])
    for lifts, chosen in (((0, 50, 22, 18, 25, 60), 2), ((60, 50, 40, 30, 21, 18), 4), ((20, 20, 20, 20, 20, 20), 0)):
        one.poses[:, 1] = lifts
        assert sets.choose_photo(one) == chosen
    case = case_of(made["block"])
    lifts = [case.camera.elevation_deg, *(other.camera.elevation_deg for other in case.others)]
    assert min(lifts, key=lambda lift: abs(lift - 20)) == lifts[0]
    assert len(case.poses) == 5


def test_cells_become_the_surface_that_they_were_taken_from(made: dict[str, Path], meshes: Path) -> None:
    for name, iou in (("block", 0.95), ("ball", 0.98)):
        truth = normalise(read_surface(meshes / f"{name}.obj"))
        found = sets.as_surface(viewsets.read(made[name]).inside)
        assert np.allclose(np.ptp(found.vertices, axis=0), np.ptp(truth.vertices, axis=0), atol=1.01 / 64)
        assert metrics.overlap(*(metrics.fill(one.vertices[one.faces]) for one in (found, truth))) > iou
    assert len(sets.as_surface(np.zeros((0, 0, 0), bool)).faces) == 0


@pytest.mark.parametrize("kind", ["fine", "fine paper"])
def test_the_object_is_turned_to_face_its_photo(kind: str, made: dict[str, Path], meshes: Path) -> None:
    """The photo's camera, at azimuth 0, sees of the truth what the photo shows."""
    case = case_of(made[kind], SHAPES)
    assert case.camera.azimuth_deg == 0
    for truth in (case.truth, upright(made[kind], meshes)):
        moved = replace(truth, vertices=(truth.vertices - case.middle).astype(np.float32))
        pose = rig.look_at(case.middle, case.camera)
        fov_deg = 2 * math.degrees(math.atan(case.unit / pose.distance))
        seen = raycast.silhouette(raycast.prepare(moved), [pose], 128, fov_deg)[0]
        assert metrics.overlap(seen, case.cutout.rgba[2::4, 2::4, 3] > 127) > 0.95


@pytest.mark.parametrize("kind", ["fine", "fine paper"])
def test_pictures_are_cropped_as_if_rendered_like_the_truth_of_meshes(
    kind: str, made: dict[str, Path], meshes: Path
) -> None:
    """Each from where its camera stood around the middle of the cutout: what is left is how it was turned."""
    case = case_of(made[kind])
    truth = upright(made[kind], meshes)
    moved = raycast.prepare(replace(truth, vertices=(truth.vertices - case.middle).astype(np.float32)))
    for pose, found in zip(case.poses, rig.true_views(case, 96), strict=True):
        fov_deg = 2 * math.degrees(math.atan(case.unit / pose.distance))
        seen = raycast.silhouette(moved, [pose], 96, fov_deg)[0]
        assert metrics.overlap(seen, found[..., 3] > 127) > 0.95


def test_the_photo_itself_brought_to_scale_is_its_cutout(made: dict[str, Path]) -> None:
    for kind in ("fine", "fine paper"):
        case = case_of(made[kind])
        one = viewsets.read(made[kind])
        itself = rig.Seen(one.rgba[sets.choose_photo(one)], case.camera, case.frame)
        found = rig.to_shot(rig.bring_to_scale(itself, case, 64), 64)
        assert metrics.mask_overlap(found, rig.to_shot(case.cutout.rgba, 64)) > 0.97
        assert metrics.psnr(found, rig.to_shot(case.cutout.rgba, 64)) > 30


def test_scale_and_middle_are_those_of_the_photo_wherever_the_others_stood(made: dict[str, Path]) -> None:
    """A ball around the origin is as large and in the middle in all pictures, from near and from far."""
    case = case_of(made["ball"])
    assert np.ptp([pose.distance for pose in case.poses]) > 0.3
    for picture in rig.true_views(case, 64):
        rows, columns = (np.flatnonzero((picture[..., 3] > 127).any(axis)) for axis in (1, 0))
        assert (rows[0] + rows[-1]) / 2 == pytest.approx(31.5, abs=2)
        assert (columns[0] + columns[-1]) / 2 == pytest.approx(31.5, abs=2)
        assert len(rows) == pytest.approx(0.8 * 64, rel=0.12)  # nearer cameras see less than the whole half


# Rows -----------------------------------------------------------------------------------------------------------------


def measure_shape(case: Case, model: str, plan: Plan = SHAPES) -> dict[str, float]:
    answer = shapes.SHAPES[model](case, plan, silent)
    solids = (evaluate.solid(one, case.name, k) for k, one in enumerate((case.truth, answer.shape)))
    return evaluate.measure_paper(*solids) | answer.facts


@pytest.mark.slow
def test_rows_are_the_same_by_cells_as_by_the_mesh(made: dict[str, Path], meshes: Path) -> None:
    case = case_of(made["block"], SHAPES)
    exact = replace(case, truth=upright(made["block"], meshes))
    for model, off in (("extrusion", 0.01), ("oracle", 0.06)):
        one, other = (measure_shape(each, model) for each in (case, exact))
        assert one["iou"] == pytest.approx(other["iou"], abs=off)
        assert one["cd"] == pytest.approx(other["cd"], abs=0.005)
    assert min(one["iou"], other["iou"]) > 0.93  # the oracle's
    assert measure_shape(case_of(made["ball"], SHAPES), "sphere")["iou"] > 0.95


def test_the_elevation_is_held_against_the_photos_own(made: dict[str, Path], tmp_path: Path) -> None:
    net = write_net(tmp_path / "net.safetensors", elevation=40)
    plan = replace(SHAPES, settings=replace(Settings(), model=replace(Settings().model, name=str(net))))
    case = case_of(made["block"], plan)
    off = abs(case.camera.elevation_deg - 40)
    assert measure_shape(case, "volume", plan)["elevation_error"] == pytest.approx(off, abs=0.01)
    assert abs(case.camera.elevation_deg - 20) > 0.1
    pictures = views.VIEWS["volume"](case_of(made["block"]), replace(plan, views=True), silent)
    assert [picture.shape for picture in pictures] == [(32, 32, 4)] * 5


def test_a_view_model_is_told_the_poses_from_the_photos(made: dict[str, Path], tmp_path: Path) -> None:
    net = write_compact(tmp_path / "model.safetensors", make_model(PIXELS))
    settings = replace(Settings(), model=replace(Settings().model, name=str(net)))
    plan = replace(VIEWS, settings=replace(settings, views=replace(settings.views, steps=2)))
    case = case_of(made["block"])
    pictures = views.VIEWS["views"](case, plan, silent)
    assert len(pictures) == len(case.poses)
    model = shapes.load_prior(plan).load(silent)
    seen = condition(case.cutout, PhotoCamera(None), model)
    how = settings.views
    pose, seat = case.poses[3], rig.look_at(case.middle, case.camera)
    ask = Ask(
        azimuth_deg=within_a_turn(pose.azimuth_deg - seat.azimuth_deg),
        elevation_deg=pose.elevation_deg - seat.elevation_deg,
        distance=0.0,
        number=0,
        seed=settings.seed,
        sampler=how.sampler,
        steps=2,
        guidance=how.guidance,
        eta=how.eta,
    )
    off = np.abs(sample_views(seen, [ask], model, silent)[0].pixels.astype(int) - pictures[3])
    assert off.max() <= 1  # of 255: several are sampled side by side


def test_rows_of_views_answer_as_many_pictures_as_there_are_others(made: dict[str, Path]) -> None:
    case = case_of(made["block"])
    mean = evaluate.mean_cutout({"block": made["block"], "gone": made["block"].with_name("gone.safetensors")}, VIEWS)
    truth = [rig.to_shot(picture, 32) for picture in rig.true_views(case, 32)]
    found = {}
    for model in ("white", "input-copy", "mean-picture", "oracle"):
        answers = views.VIEWS[model](replace(case, mean=mean), VIEWS, silent)
        found[model] = evaluate.measure_views([rig.to_shot(picture, 32) for picture in answers], truth)
    assert found["oracle"]["psnr"] == pytest.approx(58.92, abs=0.01)
    assert found["white"]["psnr"] < found["input-copy"]["psnr"] < 40
    assert found["mean-picture"]["mask_iou"] == pytest.approx(found["input-copy"]["mask_iou"], abs=0.05)


def test_the_oracle_of_the_lift_is_the_same_for_a_mesh_and_for_its_cells(made: dict[str, Path], meshes: Path) -> None:
    case = case_of(made["fine"], SHAPES)
    looks = [
        oracle.know(one).look(case.camera)[3] > 0 for one in (case, replace(case, truth=upright(made["fine"], meshes)))
    ]
    assert metrics.overlap(*(look.numpy() for look in looks)) > 0.95


# Files ----------------------------------------------------------------------------------------------------------------


def spoil(path: Path, target: Path, **changes: np.ndarray | int | str) -> Path:
    """A copy with other arrays or other facts."""
    raw = path.read_bytes()
    arrays, head = load(raw), read_head(raw)
    for name, value in changes.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            head[name] = value
    target.write_bytes(save(arrays, with_head(head)))
    return target


def test_damaged_view_sets_are_told_from_whole_ones(made: dict[str, Path], tmp_path: Path) -> None:
    whole = made["block"]
    one = viewsets.read(whole)
    tilted, gone, far = one.poses.copy(), one.squares.copy(), one.squares.copy()
    tilted[0, 1], gone[1, 2], far[2, 0] = np.nan, 0, 1e30
    raw = whole.read_bytes()
    target = tmp_path / "bad.safetensors"
    for bad in (b"", raw[:5000], raw[:-1], b"\xff" * 100, b"glTF" + bytes(100)):
        target.write_bytes(bad)
        with pytest.raises(MeshError, match="no view set, or damaged"):
            viewsets.read(target)
    for changes in (
        {"poses": tilted},
        {"poses": one.poses[:3]},
        {"squares": gone},
        {"squares": far},
        {"rgba": one.rgba[..., :3].copy()},
        {"rgba": one.rgba[:0]},
        {"more": one.poses},
        {"side": 100_000},
        {"side": 72},  # bits that are not there would count as outside
        {"side": -1},
        {"version": 99},
    ):
        with pytest.raises(MeshError, match="no view set, or damaged"):
            viewsets.read(spoil(whole, target, **changes))  # type: ignore[arg-type]
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MissingInputError):
            viewsets.read(missing)
    assert viewsets.read(spoil(whole, target)).name == one.name


def test_cameras_within_the_object_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    poses = viewsets.read(made["block"]).poses.copy()
    poses[3, 2] = 0.1
    with pytest.raises(MeshError, match="within what it shows"):
        case_of(spoil(made["block"], tmp_path / "near.safetensors", poses=poses))


def test_labels_say_what_the_view_set_holds(made: dict[str, Path]) -> None:
    one = viewsets.read(made["fine"])
    assert viewsets.read_label(made["fine"]) == viewsets.Label(one.name, 160, 64, "winding")


def test_view_sets_are_listed_by_the_names_of_their_sources(made: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"")
    solid = make(Path("solid:7-1"), tmp_path, Rig(views=1, size=32, occupancy=8))
    listed = sets.list_sets([made["block"], made["ball"], solid, broken])
    assert list(listed.files) == ["ball", "block", "broken", "solid:7-1"]
    assert (listed.size, listed.cells) == ("32 to 64", "8 to 64")
    assert list(sets.list_sets([made["block"], made["ball"]], 1).files) == ["ball"]
    twice = sets.list_sets([made["block"], made["fine"]]).files  # one object, rendered twice
    assert sorted(twice.values()) == sorted([made["block"], made["fine"]])


def test_every_protocol_has_one_of_its_own_for_view_sets() -> None:
    for table in (evaluate.SHAPE_PROTOCOLS, evaluate.VIEW_PROTOCOLS):
        assert all(name == protocol.name for name, protocol in table.items())
        for name in [name for name in table if not name.endswith(evaluate.ON_SETS)]:
            other = table[name + evaluate.ON_SETS]
            assert (other.metrics, other.measure) == (table[name].metrics, table[name].measure)
            assert "elevation 20" in other.says


# The program ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(inside: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> Eval:
    """What a call prints on stdout and stderr, in this process."""

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        found = inside(*map(str, arguments))
        out, err = capfd.readouterr()
        assert found == code, err
        return out, err

    return call


@pytest.fixture
def dataset(meshes: Path, tmp_path: Path) -> Path:
    out = tmp_path / "dataset"
    for mesh in (meshes / "ball.obj", meshes / "block.obj", Path("solid:0-0")):
        make(mesh, out, Rig(views=3, size=48, occupancy=32))
    return out


def last(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_what_was_rendered_is_measured_by_protocols_of_its_own(
    run: Eval, meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(meshes)
    dataset = tmp_path / "dataset"
    small = ("--views", 3, "--size", 48, "--occupancy", 32, "--jobs", 1)
    run("data", "render", "ball.obj", "block.obj", "--procedural", 1, *small, "-o", dataset, "-q")
    out, err = run("eval", "shape", dataset, "--model", "sphere", "--limit", 2, "--json")
    found = last(out)
    assert found["protocol"] == "P-viewsets of 48 px and 32^3 cells"
    assert [one["name"] for one in found["objects"]] == ["ball", "block"]
    assert "nearest to elevation 20" in found["how"] and found["how"] in err
    assert found["objects"][0]["iou"] > 0.95
    (tmp_path / "sets.json").write_text(out)
    page = tmp_path / "page.html"
    out, _ = run("eval", "views", dataset, "--model", "oracle", "--size", 32, "--limit", 2, "--html", page)
    assert "protocol zero123-viewsets at 32 px of 48 px: the photo is" in out
    assert page.read_text().count("data:image/png") == 2 * (2 + 4)
    out, _ = run("eval", "shape", meshes, "--model", "sphere", "--limit", 1, "--json", "-q")
    (tmp_path / "meshes.json").write_text(out)
    err = run("eval", "shape", "--compare", tmp_path / "sets.json", tmp_path / "meshes.json", code=2)[1]
    assert "measured by P-viewsets of 48 px and 32^3 cells and by P" in err


def test_a_single_view_set_is_a_dataset(run: Eval, made: dict[str, Path]) -> None:
    out, _ = run("eval", "shape", made["ball"], "--model", "sphere", "--json", "-q")
    assert last(out)["objects"][0]["name"] == "ball"


def test_a_damaged_view_set_is_skipped_and_told(run: Eval, dataset: Path) -> None:
    first, second, third = viewsets.list_objects(dataset)
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(b"")
    name = Path(viewsets.read(third).name).stem
    for what, model in (("shape", "sphere"), ("views", "input-copy")):
        out, err = run("eval", what, dataset, "--model", model, "--json", code=65)
        assert err.count("no view set, or damaged") == 2
        assert [one["name"] for one in last(out)["objects"]] == [name]


def test_what_view_sets_do_not_serve_is_refused(run: Eval, made: dict[str, Path], meshes: Path, tmp_path: Path) -> None:
    bare = make(meshes / "block.obj", tmp_path / "bare", Rig(views=1, size=32, occupancy=0))
    assert "--occupancy 64" in run("eval", "shape", bare, "--model", "sphere", code=65)[1]
    assert "a single picture" in run("eval", "views", bare, "--model", "white", code=65)[1]
    small = make(meshes / "block.obj", tmp_path / "small", Rig(views=2, size=16, occupancy=8))
    assert "under 32 a side" in run("eval", "views", small, "--model", "white", code=65)[1]
    ball = made["ball"]
    assert "in its colours" in run("eval", "shape", ball, "--model", "lifted-oracle", code=2)[1]
    assert "of its own" in run("eval", "views", ball, "--model", "white", "--photo-elevation", 20, code=2)[1]


def test_a_sheet_that_encloses_nothing_is_inside_where_the_views_say_what_is(tmp_path: Path) -> None:
    corners = np.array([[-0.5, 0, -0.3], [0.5, 0, -0.3], [0.5, 0, 0.3], [-0.5, 0, 0.3]])
    write_obj(tmp_path / "sheet.obj", corners[[[0, 1, 2], [0, 2, 3]]])
    carving = replace(POCKET, views=12, inside="carved", seed=6)
    with contextlib.chdir(tmp_path):
        with pytest.raises(MeshError, match="nothing is inside"):
            viewsets.photograph("sheet.obj", replace(carving, inside="winding"))
        inside = viewsets.photograph("sheet.obj", carving).inside
        names = {viewsets.file_of(Path(), "sheet.obj", how) for how in (carving, replace(carving, inside="winding"))}
    assert inside[8:56, 31:33, 16:48].any(1).mean() > 0.7  # seen nearly edge-on it is lost here and there
    assert not inside[:, :31].any() and not inside[:, 33:].any()
    assert len(names) == 2


def test_empty_mixed_and_missing_datasets_are_named(run: Eval, dataset: Path, meshes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "objects").mkdir(parents=True)
    for what, model in (("shape", "sphere"), ("views", "white")):
        err = run("eval", what, tmp_path / "empty", "--model", model, code=66)[1]
        assert "no meshes and no view sets" in err
        run("eval", what, tmp_path / "nowhere.safetensors", "--model", model, code=66)
        (dataset / "block.obj").write_bytes((meshes / "block.obj").read_bytes())
        assert "3 view sets and 1 meshes" in run("eval", what, dataset, "--model", model, code=65)[1]
