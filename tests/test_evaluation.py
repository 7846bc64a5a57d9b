"""What models are shown, who answers and how answers become means: on solids made here, with a small net.

Letters: D depth bins, S side.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import CPU
from test_evaluation_metrics import box, sphere

pytest.importorskip("embreex", reason="no ray casting without embreex")

from zero123cli.artifacts import with_head
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion.volume import ELEVATIONS, Framing, Volume, VolumeDescription, VolumeNet
from zero123cli.errors import NothingFoundError, UsageError, WeightsError
from zero123cli.evaluation import evaluate, metrics, published, rig, shapes, views
from zero123cli.evaluation.evaluate import Job, Row
from zero123cli.evaluation.page import build_page
from zero123cli.evaluation.rig import Case, Plan
from zero123cli.settings import ModelSettings, Settings
from zero123cli.training.targets import look_up
from zero123cli.watch import silent

SMALL = VolumeDescription(32, depth=24, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, False))
PLAN = Plan(Settings(), CPU, size=32)


def write_obj(path: Path, corners: np.ndarray) -> Path:  # (F, 3, 3)
    lines = ["v " + " ".join(f"{value:.6f}" for value in corner) for corner in corners.reshape(-1, 3)]
    lines += [f"f {3 * k + 1} {3 * k + 2} {3 * k + 3}" for k in range(len(corners))]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_net(path: Path, description: VolumeDescription = SMALL, elevation: float | None = None) -> Path:
    """A file as `zero123 train` exports it, of a net that never learnt; it may be sure of an elevation."""
    torch.manual_seed(0)
    net = VolumeNet(description)
    with torch.no_grad():
        net.last[-1].weight.mul_(0.3)
        if elevation is not None:
            net.tilt[-1].weight.zero_()
            net.tilt[-1].bias.zero_()[ELEVATIONS.index(int(elevation))] = 50.0
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    save_file(state, path, with_head({"kind": "volume", "description": asdict(description)}))
    return path


def ask(model: Path, **changes: object) -> Plan:
    return replace(PLAN, settings=Settings(model=ModelSettings(name=str(model))), **changes)  # type: ignore[arg-type]


BLOCK = box((-0.5, -0.25, -0.3), (0.5, 0.25, 0.3))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return rig.set_up("block", write_obj(tmp_path / "block.obj", BLOCK), PLAN, silent)


# The rig --------------------------------------------------------------------------------------------------------------


def test_objects_are_turned_by_their_names_and_normalised(case: Case) -> None:
    assert (rig.seed_of("block"), rig.seed_of("Dino_4")) == (0x831B9722, 0x35CC45E6)  # CRC-32, on every machine
    angle = math.radians(0x831B9722 % 360)
    wide, deep = abs(math.cos(angle)), abs(math.sin(angle))
    sides = np.array([wide + 0.6 * deep, 0.5, deep + 0.6 * wide])
    assert np.allclose(np.ptp(case.truth.vertices, axis=0), sides / sides.max(), atol=1e-5)
    assert np.allclose(case.truth.vertices.max(0), -case.truth.vertices.min(0), atol=1e-5)


def test_turning_takes_what_looks_at_us_to_our_right() -> None:
    front = replace_vertices(np.array([[0, 0, 1.0]]))
    assert np.allclose(rig.turn(front, 90).vertices, [[1, 0, 0]], atol=1e-6)


def replace_vertices(vertices: np.ndarray) -> shapes.Surface:
    return shapes.clay(vertices, np.zeros((1, 3)))


def test_the_photo_is_cut_out_by_its_alpha(case: Case) -> None:
    assert case.photo.data[:4] == b"\x89PNG"
    assert case.cutout.cutter == "alpha"
    assert case.cutout.photo_width == 512
    ratio = case.cutout.foreground_ratio
    assert np.isclose(case.square[2], 0.5 / 2 / ratio, rtol=0.25)  # half of about 1 over the distance and the ratio


def test_poses_depend_on_the_name_alone() -> None:
    poses = rig.draw_poses("Dino_4")
    assert len(poses) == 12
    assert poses == rig.draw_poses("Dino_4") != rig.draw_poses("Dino_5")
    assert all(-10 <= pose.elevation_deg <= 45 and 0 <= pose.azimuth_deg < 360 for pose in poses)
    many = [pose for k in range(60) for pose in rig.draw_poses(str(k))]
    assert np.histogram([pose.azimuth_deg for pose in many], 4)[0].min() > 130


def test_the_pose_of_the_photo_shows_the_cutout(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "draw_poses", lambda name: [rig.PHOTO])
    (seen,) = rig.true_views(case, 128)
    assert metrics.overlap(seen[..., 3] > 127, case.cutout.rgba[2::4, 2::4, 3] > 127) > 0.96


def test_objects_are_listed_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b/two.glb", "a/one.obj", "b/one.glb")]
    assert list(rig.list_meshes(paths, 2)) == ["a/one", "b/one"], "however the way to them is written"
    assert list(rig.list_meshes(paths[:2])) == ["one", "two"]


def test_pictures_are_measured_on_white_at_one_size() -> None:
    half = np.full((8, 8, 4), (255, 0, 0, 128), np.uint8)
    shot = rig.to_shot(half, 8)
    assert np.allclose(shot.rgb[0, 0], (1, 127 / 255, 127 / 255), atol=1e-6)
    assert shot.mask.all()
    plain = np.full((8, 8, 3), 255, np.uint8)
    plain[2:6, 2:6] = (200, 250, 250)
    shot = rig.to_shot(plain, 4)
    assert shot.rgb.shape == (4, 4, 3)
    assert shot.mask.sum() == 4
    assert rig.to_shot(plain, 16).rgb.max() <= 1


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [BLOCK, sphere(0.5, steps=16)], ids=["block", "ball"])
def test_a_perfect_volume_stands_up_as_the_object(tmp_path: Path, corners: np.ndarray) -> None:
    case = rig.set_up("thing", write_obj(tmp_path / "thing.obj", corners), PLAN, silent)
    inside = torch.from_numpy(metrics.fill(case.truth.vertices[case.truth.faces], 96))[None]
    framing = Framing(torch.tensor([[0.0, 20.0, 2.0]]), torch.tensor([case.square]))
    known = look_up(inside, framing, 48, 48)[0].numpy() - 0.5
    truth = evaluate.solid(case.truth, "", 0)

    def iou(elevation: float) -> float:
        return evaluate.measure_paper(evaluate.solid(shapes.stand_up(known, elevation), "", 1), truth)["iou"]

    assert iou(20) > 0.9
    assert corners is not BLOCK or iou(20) > iou(0) + 0.15


def test_strays_are_dropped_and_parts_are_kept() -> None:
    solid = np.full((20, 20, 20), -1.0, np.float32)
    solid[2:12, 2:12, 2:12] = 1
    solid[14:17, 14:17, 14:17] = 1  # 27 cells of 1000
    solid[19, 19, 19] = 1
    kept = shapes.drop_strays(solid, 0) > 0
    assert kept[15, 15, 15]
    assert not kept[19, 19, 19]
    assert kept.sum() == 1027


def test_nothing_inside_is_an_answer_that_failed() -> None:
    with pytest.raises(NothingFoundError):
        shapes.stand_up(np.full((4, 4, 4), -1.0, np.float32), 0)


def test_surfaces_are_closed_at_the_border() -> None:
    vertices, faces = shapes.enclose(np.ones((5, 6, 7), np.float32), 0)
    assert np.ptp(vertices, axis=0) == pytest.approx([5, 6, 7], abs=1.01)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def scores(case: Case, model: str, plan: Plan = PLAN) -> dict[str, float]:
    answer = shapes.SHAPES[model](case, plan, silent)
    return evaluate.measure_paper(evaluate.solid(answer.shape, case.name, 1), evaluate.solid(case.truth, case.name, 0))


def test_rows_without_a_model_are_what_they_say(tmp_path: Path) -> None:
    ball = rig.set_up("ball", write_obj(tmp_path / "ball.obj", sphere(0.5, steps=24)), PLAN, silent)
    assert scores(ball, "sphere")["iou"] > 0.97
    # A cylinder around a ball, and the double cone in it; a camera that is near widens what is near.
    assert scores(ball, "extrusion")["iou"] == pytest.approx(2 / 3, abs=0.06)
    assert scores(ball, "inflate")["iou"] == pytest.approx(1 / 2, abs=0.06)


def test_the_oracle_knows_what_pictures_can_tell(case: Case) -> None:
    found = scores(case, "oracle")
    assert found["iou"] > 0.9
    assert found["cd_s"] == found["cd"] / 2


def test_told_elevation_turns_the_answer(case: Case) -> None:
    flat, risen = (shapes.extrude(case, replace(PLAN, elevation_deg=told), silent).shape for told in (None, 20.0))
    x, y, z = flat.vertices.T
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    assert np.allclose(risen.vertices, np.stack([x, y * cos + z * sin, z * cos - y * sin], -1), atol=1e-5)


def test_a_file_with_a_volume_net_alone_answers(case: Case, tmp_path: Path) -> None:
    plan = ask(write_net(tmp_path / "net.safetensors", elevation=40))
    answer = shapes.show_volume(case, plan, silent)
    assert answer.facts["elevation_error"] == pytest.approx(20, abs=0.01)
    assert len(answer.shape.faces) > 100
    sizes = [shapes.show_volume(case, replace(plan, threshold=level), silent) for level in (-0.5, 0.5)]
    solids = [metrics.fill(evaluate.solid(one.shape, "", 0).corners) for one in (answer, *sizes)]
    assert len({solid.sum() for solid in solids}) == 3
    told = shapes.show_volume(case, replace(plan, elevation_deg=40.0), silent)
    assert np.allclose(told.shape.vertices, answer.shape.vertices, atol=1e-4)
    assert told.facts["elevation_error"] == answer.facts["elevation_error"]


def test_mirrored_volumes_of_mirror_images_are_mirror_images(case: Case, tmp_path: Path) -> None:
    plan = ask(write_net(tmp_path / "net.safetensors"), mirrored=True)
    other = replace(case.cutout, rgba=np.ascontiguousarray(case.cutout.rgba[:, ::-1]))
    one, two = shapes.predict(case.cutout, plan), shapes.predict(other, plan)
    assert torch.allclose(one.occupancy, two.occupancy.flip(-1), atol=1e-4)
    assert torch.allclose(one.colour, two.colour.flip(-1), atol=1e-4)
    assert torch.allclose(one.elevation, two.elevation, atol=1e-4)
    plain = shapes.predict(case.cutout, replace(plan, mirrored=False))
    assert not torch.allclose(one.occupancy, plain.occupancy, atol=1e-3)


def test_a_damaged_net_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", with_head({"kind": "volume", "description": {}}))
    with pytest.raises(WeightsError, match="no volume net of ours"):
        shapes.load_net(ask(tmp_path / "bad.safetensors"))


# Views ----------------------------------------------------------------------------------------------------------------


def judge_views(case: Case, model: str, plan: Plan = PLAN) -> dict[str, float]:
    pictures = views.VIEWS[model](case, plan, silent)
    assert len(pictures) == rig.POSES
    answers, truth = ([rig.to_shot(one, 32) for one in some] for some in (pictures, rig.true_views(case, 32)))
    return evaluate.measure_views(answers, truth)


def test_the_truth_is_the_ceiling_of_views(case: Case) -> None:
    best = judge_views(case, "oracle")
    assert best["psnr"] == best["psnr_object"] == pytest.approx(58.92, abs=0.01)
    assert best["ssim"] == pytest.approx(1)
    assert best["mask_iou"] == 1
    assert judge_views(case, "white")["mask_iou"] == 0
    copied = judge_views(case, "input-copy")
    assert judge_views(case, "white")["psnr"] < copied["psnr"] < best["psnr"]
    assert 0.3 < copied["mask_iou"] < 1


def test_the_mean_picture_knows_neither_photo_nor_pose(case: Case, tmp_path: Path) -> None:
    found = {name: write_obj(tmp_path / f"{name}.obj", corners) for name, corners in (("a", BLOCK), ("b", sphere(0.5)))}
    mean = rig_mean(found)
    alone = [rig_mean({name: path}) for name, path in found.items()]
    assert np.abs(mean[..., 3] - (alone[0][..., 3].astype(float) + alone[1][..., 3]) / 2).max() <= 1
    assert views.repeat_mean(replace(case, mean=mean), PLAN, silent)[7] is mean


def rig_mean(found: dict[str, Path]) -> np.ndarray:
    return evaluate.mean_cutout(found, PLAN)


def test_a_perfect_volume_looks_like_the_object(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the same framing, and told the elevation: hardly anything is left to be wrong."""
    inside = torch.from_numpy(metrics.fill(case.truth.vertices[case.truth.faces], 96))[None]
    framing = Framing(torch.tensor([[0.0, 20.0, 2.0]]), torch.tensor([case.square]))
    logits = (look_up(inside, framing, 48, 48) - 0.5) * 40
    volume = Volume(logits, torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, len(ELEVATIONS)))
    monkeypatch.setattr(views, "predict", lambda cutout, plan: volume)
    assert judge_views(case, "volume", replace(PLAN, elevation_deg=20.0))["mask_iou"] > 0.85


# Means, jobs and pages ------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(tmp_path: Path) -> Callable[..., list[Job]]:
    def make(*models: str, **more: object) -> list[Job]:
        found = {"ball": sphere(0.5, steps=12), "block": BLOCK}
        return [
            Job(name, write_obj(tmp_path / f"{name}.obj", corners), models, "P", PLAN, **more)  # type: ignore[arg-type]
            for name, corners in found.items()
        ]

    return make


def test_a_row_that_fails_costs_no_other(jobs: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, plan: Plan, watch: object) -> shapes.Answer:
        raise NothingFoundError("nothing is inside", where=case.name)

    monkeypatch.setitem(shapes.SHAPES, "none", fail)
    todo = jobs("none", "sphere")
    todo.append(replace(todo[0], path=todo[0].path.with_name("gone.obj")))
    results = list(evaluate.run(todo, 1, 60))
    assert [bool(result.failure) for result in results] == [False, False, True]
    failed, good = results[0].value.rows
    assert (failed.failure, failed.code) == ("ball: nothing is inside", 82)
    assert good.figures["iou"] > 0.9
    rows = [result.value.rows[0] for result in results[:2]]
    assert evaluate.score("none", "P", rows).metrics == {}


@pytest.mark.bench
def test_other_processes_find_the_same(jobs: Callable[..., list[Job]]) -> None:
    todo = jobs("sphere")
    here = {result.job.name: result.value.rows[0].figures for result in evaluate.run(todo, 1, 60)}
    there = {result.job.name: result.value.rows[0].figures for result in evaluate.run(todo, 2, 60)}
    assert here == there
    assert pickle.loads(pickle.dumps(todo[0])) == todo[0]


def test_comparisons_are_paired_over_common_objects() -> None:
    one = {"a": {"iou": 0.5, "cd": 1.0}, "b": {"iou": 0.9, "cd": 1.0}, "c": {"iou": 0.1}}
    other = {"b": {"iou": 0.8, "extra": 1.0}, "a": {"iou": 0.4}, "d": {"iou": 0.0}}
    found = evaluate.compare(one, other)
    assert list(found) == ["iou"]
    assert found["iou"].mean == pytest.approx(0.1)
    assert found["iou"].low == pytest.approx(0.1)
    with pytest.raises(UsageError, match="no object in common"):
        evaluate.compare(one, {"z": {"iou": 1.0}})


def test_fscores_are_of_halves_of_the_longest_side() -> None:
    block = evaluate.solid(shapes.clay(BLOCK.reshape(-1, 3), np.arange(36).reshape(-1, 3)), "a", 0)
    found = evaluate.measure_fscores(block, replace(block, seed=(1, 1)))
    assert list(found) == ["f_0.05", "f_0.1", "f_0.2", "f_0.5"]
    assert sorted(found.values()) == list(found.values())
    assert found["f_0.1"] > 0.97  # 2,000 points lie about 0.03 apart


def test_every_metric_is_known_to_the_tables() -> None:
    told = [*evaluate.SHAPE_PROTOCOLS.values(), *evaluate.VIEW_PROTOCOLS.values()]
    assert {key for protocol in told for key in protocol.metrics} <= evaluate.METRICS.keys()
    papers = (*published.SHAPES, *published.VIEWS)
    assert {key for paper in papers for key in paper.figures} <= evaluate.METRICS.keys()
    assert all(paper.protocol and paper.source for paper in papers)
    assert (
        published.Published("Zero-1-to-3", {"iou": 0.5052, "cd": 0.0717}, published.PAPER_SHAPE, published.ZERO123)
        in papers
    )


def test_the_page_stands_alone_and_escapes_names(jobs: Callable[..., list[Job]]) -> None:
    sheets = [result.value for result in evaluate.run(jobs("sphere", pictures=True), 1, 60)]
    rows = [sheet.rows[0] for sheet in sheets]
    rows[0] = replace(rows[0], name="<script>")
    sheets[0] = replace(sheets[0], rows=(rows[0], Row("none", "ball", failure="a & b", code=82)))
    protocol = evaluate.SHAPE_PROTOCOLS["P"]
    page = build_page(
        "shape",
        protocol,
        [evaluate.score("sphere", "P", rows)],
        sheets,
        {"sphere": "a ball", "none": "x"},
        published.SHAPES,
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page and "a &amp; b" in page
    assert page.count("data:image/png;base64,") == 6  # of both: the photo, the truth, the answer
    assert "http" not in page
    assert "0.0717" in page


def test_viewpoints_of_the_rig_are_the_pages() -> None:
    assert evaluate.GLANCES[0] == rig.PHOTO == Viewpoint(0, 20, 2)
