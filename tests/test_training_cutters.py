"""The cutter's training: backdrops, composites with known masks, the network, its loss and its way to ONNX."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from zero123cli.artifacts import with_head
from zero123cli.errors import MeshError, MissingInputError, WeightsError
from zero123cli.machine import Backend
from zero123cli.settings import TrainSettings
from zero123cli.training import backdrops, composites, cutters, saliency, train, viewsets
from zero123cli.training.saliency import SaliencyDescription, SaliencyNet
from zero123cli.watch import silent

CPU = Backend("cpu", "float32", "CPU")
SMALL = SaliencyDescription(size=64, channels=(16, 16, 16), blocks=(1, 1, 1), fine=8)
has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
needs_onnx = pytest.mark.skipif(not has_onnx, reason="onnx and onnxscript are not installed: the extra `train`")


def discs(count: int = 3, side: int = 64) -> np.ndarray:  # uint8 (M, 1, S, S, 4)
    """Discs as wide as rendered objects are: the middle four fifths of the frame."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    alpha = (np.hypot(x, y) < viewsets.FRAMED / 2).astype(np.uint8)[..., None]
    colours = np.random.default_rng(5).integers(0, 256, (count, 1, 1, 1, 3), dtype=np.uint8)
    return np.concatenate([colours * alpha, np.broadcast_to(alpha * 255, (count, 1, side, side, 1))], -1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """View sets of discs, as `data render` would leave them."""
    folder = tmp_path_factory.mktemp("discs")
    for number, picture in enumerate(discs(8)):
        views = viewsets.ViewSet(
            name=f"disc-{number}",
            rgba=picture,
            poses=np.zeros((1, 3), np.float32),
            squares=np.zeros((1, 3), np.float32),
            depth=np.zeros((1, 64, 64), np.float16),
            normal=np.zeros((1, 64, 64, 3), np.int8),
            inside=np.zeros((0, 0, 0), bool),
        )
        viewsets.write(folder / "objects" / "00" / f"{number:032d}.safetensors", views)
    return folder


@pytest.fixture(scope="module")
def task(dataset: Path) -> cutters.CutterTask:
    return cutters.CutterTask(dataset, SMALL, backdrops=8)


# Backdrops and composites ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", backdrops.BACKDROPS)
def test_backdrops_of_every_kind_are_pictures_of_one_size(kind: str) -> None:
    draw = backdrops.BACKDROPS[kind][0]
    for seed in range(2):
        picture = np.asarray(draw(np.random.default_rng(seed)))
        assert picture.shape == (backdrops.SIDE, backdrops.SIDE, 3)
        assert picture.dtype == np.uint8


def test_a_backdrop_is_its_number() -> None:
    assert (backdrops.make_backdrop(3) == backdrops.make_backdrop(3)).all()
    assert (backdrops.make_backdrop(3) != backdrops.make_backdrop(4)).any()


def test_noise_repeats_without_a_seam() -> None:
    """The step across the tile's edge is no larger than those within."""
    for tile in backdrops.noise_tiles():
        seam, within = np.abs(tile[0] - tile[-1]).mean(), np.abs(np.diff(tile, axis=0)).mean()
        assert seam < 1.5 * within
        assert tile.mean() == pytest.approx(0, abs=1e-3)


def test_an_object_lies_where_its_place_says() -> None:
    place = composites.Place(x=0.4, y=0.6, size=0.5, aspect=1.0)
    alpha = np.asarray(composites.fit(discs()[0, 0], place, 128))[..., 3] > 127
    rows, columns = np.nonzero(alpha)
    assert (columns.mean() + 0.5) / 128 == pytest.approx(0.4, abs=0.01)
    assert (rows.mean() + 0.5) / 128 == pytest.approx(0.6, abs=0.01)
    assert np.ptp(columns) / 128 == pytest.approx(0.5, abs=0.03)
    assert alpha.mean() == pytest.approx(np.pi / 4 * 0.5**2, rel=0.05)


@pytest.mark.parametrize(
    ("size", "aspect", "turn"), [(0.2, 1.0, 0.0), (0.6, 2.0, 0.0), (0.6, 1.0, 1.0), (0.6, 2.0, 1.57)]
)
def test_an_object_keeps_its_area_however_it_is_turned(size: float, aspect: float, turn: float) -> None:
    place = composites.Place(0.5, 0.5, size, aspect, turn, mirrored=True)
    alpha = np.asarray(composites.fit(discs()[0, 0], place, 128), np.float32)[..., 3] / 255
    assert alpha.mean() == pytest.approx(np.pi / 4 * size**2, rel=0.05)
    wide, tall = np.ptp(np.nonzero(alpha > 0.5), axis=1)[::-1]
    upright = abs(np.cos(turn)) > 0.5
    assert wide / tall == pytest.approx(aspect if upright else 1 / aspect, rel=0.1)


@pytest.mark.parametrize("size", [0.2, 0.7, 1.3])
def test_a_thing_of_the_grounds_own_colour_has_no_outline(size: float) -> None:
    """Colours are weighed by alpha once, not twice: a soft edge is no brighter than what it lies between."""
    chance = np.random.default_rng(0)
    sprite = np.full((64, 64, 4), 128, np.uint8)
    away = np.hypot(*(np.mgrid[:64, :64] - 31.5))
    sprite[..., 3] = np.clip((25 - away) * 40, 0, 255)
    ground = Image.new("RGB", (160, 160), (128, 128, 128))
    laid = np.asarray(composites.lay_over(ground, sprite, composites.Place(0.5, 0.5, size, turn=0.3)))
    assert np.abs(laid.astype(int) - 128).max() <= 2
    layer = np.asarray(composites.fit(sprite, composites.Place(0.5, 0.5, size, turn=0.3), 160)).astype(int)
    assert np.abs(layer[layer[..., 3] > 8][:, :3] - 128).max() <= 16  # rounding of what is nearly clear
    drawn = composites.draw_sprite(chance, sprite[None, None])
    assert np.array_equal(drawn, sprite)


def test_the_mask_is_where_the_object_is() -> None:
    """On a known ground, with neither shadow nor camera, what changed is what the mask says."""
    chance = np.random.default_rng(0)
    ground = Image.new("RGB", (96, 96), (10, 200, 10))
    red = discs(1)
    red[..., :3] = red[..., 3:] // 255 * np.array([250, 0, 0], np.uint8)
    place = composites.Place(0.5, 0.5, 0.6)
    changed = np.asarray(composites.lay_over(ground, red[0, 0], place)) != np.asarray(ground)
    _, truth = composites.put(
        ground, np.zeros((96, 96), np.float32), red[0, 0], place, chance, composites.Backdrops(0, 1)
    )
    assert (changed.any(-1) == (truth > 0)).mean() > 0.995


def test_shadows_only_take_light_and_lie_by_the_foot() -> None:
    alpha = np.asarray(composites.fit(discs()[0, 0], composites.Place(0.5, 0.5, 0.5), 96), np.float32)[..., 3] / 255
    for seed in range(20):
        shadow = composites.cast_shadow(alpha, np.random.default_rng(seed))
        assert shadow.min() >= 0
        assert shadow.max() <= 0.8
    assert not composites.cast_shadow(np.zeros_like(alpha), np.random.default_rng(0)).any()


def test_composites_are_mostly_of_one_large_thing() -> None:
    grounds, sprites = composites.Backdrops(0, 8), discs()
    shares, empty = [], 0
    for seed in range(100):
        picture, mask = composites.compose(np.random.default_rng(seed), sprites, grounds, 32)
        assert picture.shape == (32, 32, 3)
        assert mask.shape == (32, 32)
        empty += not mask.any()
        shares.append((mask > 127).mean())
    assert 0 < empty < 15
    assert 0.1 < np.median(shares) < 0.5


def test_a_batch_is_decided_by_its_chance_and_not_by_threads(task: cutters.CutterTask) -> None:
    first = task.draw(np.random.default_rng(4), 6, held_back=False)
    second = task.draw(np.random.default_rng(4), 6, held_back=False)
    other = task.draw(np.random.default_rng(5), 6, held_back=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert other["picture"].shape == (6, 3, 64, 64)
    assert other["mask"].shape == (6, 1, 64, 64)


def test_own_and_held_backdrops_are_different_ones(task: cutters.CutterTask) -> None:
    own = range(task.backdrops.first, task.backdrops.first + task.backdrops.count)
    held = range(task.held_backdrops.first, task.held_backdrops.first + task.held_backdrops.count)
    assert not set(own) & set(held)


def test_an_empty_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="empty"):
        cutters.CutterTask(tmp_path, SMALL)
    (tmp_path / "objects" / "aa").mkdir(parents=True)
    (tmp_path / "objects" / "aa" / "a.safetensors").write_bytes(b"short")
    with pytest.raises(MeshError, match="no view set, or damaged"):
        cutters.CutterTask(tmp_path, SMALL)


# The network and its loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 64, 96])
def test_the_network_answers_in_the_size_of_the_picture(side: int) -> None:
    network = SaliencyNet(SMALL)
    fine, *coarse = network.levels(torch.rand(2, 3, side, side))
    assert fine.shape == (2, 1, side, side)
    assert [level.shape[-1] for level in coarse] == [side // 8, side // 16]


def test_a_perfect_answer_costs_nothing_and_a_wrong_one_much(task: cutters.CutterTask) -> None:
    class Told(SaliencyNet):
        """Answers what it was told, in a mirror the mirror of it."""

        def __init__(self, masks: torch.Tensor) -> None:
            super().__init__(SMALL)
            self.masks = masks

        def levels(self, picture: torch.Tensor) -> list[torch.Tensor]:
            masks = self.masks if torch.equal(picture, batch["picture"]) else self.masks.flip(-1)
            sides = [masks.shape[-1] // step for step in (1, 8, 16)]
            means = [torch.nn.functional.adaptive_avg_pool2d(masks, side) for side in sides]
            return [torch.logit(mean, eps=1e-6) for mean in means]

    batch = task.draw(np.random.default_rng(1), 8, held_back=True)
    hard = {"picture": batch["picture"], "mask": (batch["mask"] > 0.5).float()}
    right = task.loss(Told(hard["mask"]), hard)
    wrong = task.loss(Told(1 - hard["mask"]), hard)
    for name in ("cross", "overlap", "edge"):
        assert float(right[name]) < 0.01, name
    assert float(wrong["cross"]) > 5
    assert float(wrong["overlap"]) > 0.8
    assert task.judge(Told(hard["mask"]), hard)["iou"] == pytest.approx(1)
    assert task.judge(Told(1 - hard["mask"]), hard)["iou"] < 0.1


def test_strangeness_is_the_distance_to_the_nearest_colour_of_the_border() -> None:
    torch.manual_seed(0)
    picture = torch.rand(2, 3, 16, 16)
    found = saliency.strangeness(picture)
    for k in range(2):
        colour = picture[k].unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
        upper = [colour[:, y, x] for y in range(4) for x in range(4) if y == 0 or x in (0, 3)]
        lower = [colour[:, 3, x] for x in range(4)]
        for y in range(4):
            for x in range(4):
                for level, border in enumerate((upper, lower)):
                    nearest = min(float((colour[:, y, x] - other).norm()) for other in border)
                    assert float(found[k, level, y, x]) == pytest.approx(max(nearest, 0.01), abs=2e-3)


def test_strangeness_is_the_same_under_half_precision() -> None:
    picture = torch.full((1, 3, 32, 32), 2.4)
    picture[..., 12:20, 12:20] = -1.0
    with torch.autocast("cpu", torch.bfloat16):
        found = saliency.strangeness(picture.bfloat16())
    assert torch.allclose(found, saliency.strangeness(picture.bfloat16().float()), atol=1e-3)


def test_soft_overlap_is_the_overlap_of_hard_masks() -> None:
    a, b = torch.zeros(1, 1, 100, 100), torch.zeros(1, 1, 100, 100)
    a[..., :60, :], b[..., 30:, :] = 1, 1
    assert float(cutters.soft_overlap(a, b)) == pytest.approx(1 - 30 / 100, abs=0.01)
    assert float(cutters.soft_overlap(a, a)) == pytest.approx(0, abs=1e-6)


def test_finding_minds_no_mirror() -> None:
    torch.manual_seed(0)
    network = SaliencyNet(SMALL).eval()
    torch.nn.init.normal_(network.answer.weight)
    picture = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        straight, mirrored = cutters.find(network, picture), cutters.find(network, picture.flip(-1))
    torch.testing.assert_close(straight, mirrored.flip(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.bench
def test_it_learns_to_find_discs(task: cutters.CutterTask, dataset: Path, tmp_path: Path) -> None:
    """Three hundred steps of a tiny network are enough to find large discs better than by their usual place."""
    settings = TrainSettings(task="cutter", steps=300, batch=12, rate=4e-3, warmup=5, judged=48, average=0.95)
    checkpoint = train.train(task, settings, tmp_path / "run", CPU, 0, silent)
    weights = train.export(checkpoint, tmp_path / "weights.safetensors", task.facts())
    network = cutters.load_network(weights)
    batch = task.draw(np.random.default_rng(99), 64, held_back=True)
    with torch.inference_mode():
        figures = task.judge(network, batch)
        sheet = task.show(network, batch)
    y, x = (torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")) + 0.5) / 32 - 1
    truth = batch["mask"] > 0.5
    there = truth.flatten(1).any(1)
    usual = (torch.hypot(x, y) < 0.6).expand_as(truth)
    blind = (usual & truth).flatten(1).sum(1) / (usual | truth).flatten(1).sum(1)
    assert figures["iou"] > float(blind[there].mean()) + 0.05
    assert sheet.shape == (2 * 3 * 64, 12 * 64, 3)


# ONNX -----------------------------------------------------------------------------------------------------------------


def write_weights(path: Path, description: SaliencyDescription) -> Path:
    torch.manual_seed(1)
    network = SaliencyNet(description)
    for part in network.modules():  # as after some training: no weight is nought, no statistic is one
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
    for bias in network.parameters():  # nor are two alike, of which the exporter keeps one
        if bias.ndim == 1:
            torch.nn.init.uniform_(bias, 0.5, 1.5)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    save_file(tensors, path, with_head({"kind": "cutter", "description": asdict(description)}))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "w.safetensors", SMALL)


@needs_onnx
def test_the_exported_file_answers_as_the_network_does(weights: Path, tmp_path: Path) -> None:
    path = cutters.export_onnx(weights, tmp_path / "cutter.onnx", {"licence": "MIT"})
    session = onnxruntime.InferenceSession(path)
    picture = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = cutters.find(cutters.load_network(weights), picture)
    found = session.run(None, {"picture": picture.numpy()})[0]
    assert float(expected.std()) > 0.01
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map == {"licence": "MIT"}
    numbers = sum(p.numel() for p in SaliencyNet(SMALL).parameters())
    assert path.stat().st_size < 2 * numbers + 80_000  # half precision, and no notes of the exporter's
    assert b"/site-packages/" not in path.read_bytes()


@needs_onnx
@pytest.mark.slow
def test_training_goes_on_from_the_exported_file(tmp_path: Path) -> None:
    wide = replace(SMALL, channels=(16, 16, 96))  # the exporter turns small matrices into others under other names
    weights = write_weights(tmp_path / "w.safetensors", wide)
    path = cutters.export_onnx(weights, tmp_path / "cutter.onnx", {})
    learnt = cutters.load_network(weights).state_dict()
    built = SaliencyNet(wide)
    guides = {name: tensor.clone() for name, tensor in built.state_dict().items() if name.startswith("coarse.")}
    train.begin(built, path)
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, guides.get(name, learnt[name])), name


@needs_onnx
@pytest.mark.slow
def test_what_is_no_exported_cutter_is_not_begun_from(weights: Path, tmp_path: Path) -> None:
    import onnx

    path = cutters.export_onnx(weights, tmp_path / "cutter.onnx", {})
    model = onnx.load(path)
    for weight in model.graph.initializer:
        weight.name = weight.name.replace("network.", "other.")
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:5000])
    for built, file in (
        (SaliencyNet(SMALL), path),  # of which the exporter has renamed some small matrices
        (SaliencyNet(replace(SMALL, fine=16)), path),
        (SaliencyNet(SMALL), tmp_path / "other.onnx"),
        (SaliencyNet(SMALL), tmp_path / "half.onnx"),
    ):
        with pytest.raises(WeightsError, match="not weights of this task"):
            train.begin(built, file)
