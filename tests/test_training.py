"""Volumes, their targets and the training loop, on boxes whose inside is known."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from zero123cli.artifacts import read_head, with_head
from zero123cli.diffusion.volume import (
    ELEVATIONS,
    REACH,
    Framing,
    Volume,
    VolumeDescription,
    VolumeNet,
    mean_colour,
    render,
)
from zero123cli.errors import (
    DivergedError,
    MeshError,
    MissingInputError,
    SettingsError,
    UnavailableError,
    Zero123Error,
)
from zero123cli.machine import Backend, has_compiler
from zero123cli.settings import TrainSettings
from zero123cli.training import packs, train, viewsets, volumes
from zero123cli.training.albums import open_album
from zero123cli.training.targets import compare, compare_torch, look_up, look_up_torch
from zero123cli.watch import Caution, Progress, silent

CPU = Backend("cpu", "float32", "CPU")
SMALL = VolumeDescription(size=16, depth=16, colour=8, fine=16, channels=(16, 32), blocks=1, attention=(False, True))


def framing(count: int, seed: int = 0, shift: float = 0.03) -> Framing:
    chance = np.random.default_rng(seed)
    poses = np.stack(
        [chance.uniform(0, 360, count), chance.uniform(-20, 60, count), chance.uniform(1.6, 3.5, count)], 1
    )
    half = 0.7 / poses[:, 2]
    squares = np.stack([chance.uniform(-shift, shift, count), chance.uniform(-shift, shift, count), half], 1)
    return Framing(torch.from_numpy(poses).float(), torch.from_numpy(squares).float())


def box(count: int, cells: int = 32) -> torch.Tensor:
    """An object without symmetry: a box with a smaller one upon a corner."""
    inside = torch.zeros(count, cells, cells, cells, dtype=torch.bool)
    c = cells // 8
    inside[:, c : 6 * c, c : 4 * c, 2 * c : 5 * c] = True
    inside[:, c : 3 * c, 4 * c : 7 * c, 2 * c : 4 * c] = True
    return inside


# Geometry -------------------------------------------------------------------------------------------------------------


def test_to_volume_undoes_to_world() -> None:
    cameras = framing(4)
    u, v = torch.rand(4, 9) * 2 - 1, torch.rand(4, 9) * 2 - 1
    w = torch.rand(4, 9) * 2 - 1
    half, distance = cameras.squares[:, 2:], cameras.poses[:, 2:]
    world = cameras.to_world(u, -v, distance * (1 + w * half))
    torch.testing.assert_close(cameras.to_volume(world), torch.stack([u, v, w], -1), atol=1e-5, rtol=1e-5)


def test_cameras_of_volumes_stand_where_cameras_says() -> None:
    from zero123cli.cameras import Viewpoint

    cameras = framing(5)
    for k in range(5):
        azimuth, elevation, distance = cameras.poses[k].tolist()
        eye = cameras.to_world(torch.zeros(5, 1), torch.zeros(5, 1), torch.zeros(5, 1))[k, 0]
        assert eye.tolist() == pytest.approx(Viewpoint(azimuth, elevation, distance).position(), abs=1e-5)


def test_numba_twin_agrees_with_the_definition() -> None:
    inside, cameras = box(3), framing(3)
    torch.testing.assert_close(
        look_up(inside, cameras, 12, 20), look_up_torch(inside, cameras, 12, 20), atol=1e-4, rtol=1e-4
    )


def test_comparing_in_one_pass_agrees_with_the_definition_and_its_gradient() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(3, 6, 8, 8) * 5).requires_grad_(True)
    wanted, where = torch.rand(3, 6, 8, 8), torch.rand(3, 8, 8) > 0.6
    where[2] = False  # a picture without an object
    found = []
    for function in (compare_torch, compare):
        logits.grad = None
        entropy, lost = function(logits, wanted, where)
        (2 * entropy + 3 * lost).backward()
        assert logits.grad is not None
        found.append((entropy.detach(), lost.detach(), logits.grad.clone()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_perfect_answer_costs_nothing() -> None:
    where = torch.rand(2, 8, 8) > 0.5
    solid = (torch.rand(2, 6, 8, 8) > 0.5) & where[:, None]
    entropy, lost = compare((solid.float() * 2 - 1) * 30, solid.float(), where)
    assert float(entropy) < 1e-6
    assert float(lost) < 1e-6


def test_nothing_is_predicted_where_the_cutout_is_empty() -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 4, 16, 16) * 2 - 1
    picture[:, 3] = -1
    picture[:, 3, 4:9, 5:12] = 1
    volume = VolumeNet(SMALL)(picture)
    filled = (volume.occupancy > -10).any(1)[0]
    assert filled[3:10, 4:13].all()  # and their neighbours
    assert int(filled.sum()) == 7 * 9


def test_a_ray_through_the_object_meets_it_and_learns_so_from_all_its_cells() -> None:
    torch.manual_seed(0)
    net = VolumeNet(SMALL)
    net.last[2].bias.data[: 4 * SMALL.depth] -= 5  # type: ignore[union-attr, operator]  # everything is taken for empty
    picture = torch.rand(1, 4, 16, 16) * 2 - 1
    picture[:, 3] = -1
    picture[:, 3, 4:9, 5:12] = 1
    through = picture[0, 3] > 0
    learning, told = (net.train(learns)(picture).occupancy[0][:, through] for learns in (True, False))
    torch.testing.assert_close(told.amax(0), torch.zeros(int(through.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(learning.logsumexp(0), torch.zeros(int(through.sum())), atol=1e-5, rtol=0)
    assert float(learning.detach().amax()) < -1
    torch.testing.assert_close(told.argmax(0), learning.argmax(0))


def test_colours_begin_as_the_pictures_own_without_its_white() -> None:
    picture = torch.ones(1, 4, 16, 16)
    picture[:, 3] = -1
    picture[:, 3, :, :9] = 1
    picture[:, :3, :, :9] = torch.tensor([0.5, -0.5, 0.25])[None, :, None, None]
    own = mean_colour(picture, 8)
    torch.testing.assert_close(own[0, :, :, :5], torch.tensor([0.5, -0.5, 0.25])[:, None, None].expand(3, 8, 5))


def test_targets_show_the_object_where_the_camera_sees_it() -> None:
    """From the front of a thing that is only to the right, above and near: so must the cells be."""
    inside = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    inside[0, 20:28, 20:28, 20:28] = True  # x, y, z > 0
    cameras = Framing(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, 0.35]]))
    cells = look_up(inside, cameras, 16, 16)[0].nonzero()
    depth, row, column = cells.float().mean(0).tolist()
    assert column > 8
    assert row < 8
    assert depth < 8


def test_rendered_volume_agrees_with_the_object_from_elsewhere() -> None:
    inside = box(6)
    photo, other = framing(6, seed=1), framing(6, seed=2)
    logits = (look_up(inside, photo, 48, 48) * 2 - 1) * 12
    colour = torch.full((6, 3, 4, 4, 4), -0.5)
    seen = render(Volume(logits, colour, torch.zeros(6, len(ELEVATIONS))), photo, other, 32, steps=64)
    truth = look_up(inside, other, 64, 32).amax(1) > 0.5
    found = seen[:, 3] > 0.5
    assert float((truth & found).sum() / (truth | found).sum()) > 0.9
    sure = seen[:, 3] > 0.99
    assert float(seen[:, :3].permute(0, 2, 3, 1)[sure].add(0.5).abs().max()) < 0.05
    assert float(seen[:, :3].permute(0, 2, 3, 1)[seen[:, 3] < 1e-4].sub(1).abs().max()) < 0.01


def test_gradients_reach_occupancy_and_colour_and_stay_finite() -> None:
    logits = torch.zeros(1, 8, 8, 8, requires_grad=True)
    colour = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    seen = render(Volume(logits, colour, torch.zeros(1, 1)), framing(1, 3), framing(1, 4), 8, steps=8)
    seen.square().mean().backward()
    for tensor in (logits, colour):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert float(tensor.grad.abs().max()) > 0


def test_net_has_the_shapes_it_promises() -> None:
    volume = VolumeNet(SMALL)(torch.zeros(2, 4, 16, 16))
    assert volume.occupancy.shape == (2, 16, 16, 16)
    assert volume.colour.shape == (2, 3, 8, 8, 8)
    assert volume.elevation.shape == (2, len(ELEVATIONS))
    assert REACH > 1


# Data -----------------------------------------------------------------------------------------------------------------


def view_set(number: int, views: int = 4, side: int = 16, cells: int = 16) -> viewsets.ViewSet:
    """A made-up object with pictures that show its silhouette."""
    chance = np.random.default_rng(number)
    inside = np.zeros((cells, cells, cells), bool)
    low, high = chance.integers(1, cells // 2, 3), chance.integers(cells // 2 + 1, cells, 3)
    inside[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    cameras = framing(views, seed=number, shift=0.0)
    solid = torch.from_numpy(inside)[None].expand(views, -1, -1, -1)
    alpha = look_up(solid, cameras, 32, side).amax(1).numpy() > 0.5
    colour = chance.integers(0, 200, 3)
    rgba = np.concatenate([np.broadcast_to(colour, (*alpha.shape, 3)), alpha[..., None] * 255], -1).astype(np.uint8)
    return viewsets.ViewSet(
        f"object{number}.glb",
        rgba,
        cameras.poses.numpy(),
        cameras.squares.numpy(),
        np.ones(alpha.shape, np.float16),
        np.zeros((*alpha.shape, 3), np.int8),
        inside,
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for number in range(12):
        viewsets.write(tmp_path / "data" / "objects" / "00" / f"{number:02d}.safetensors", view_set(number))
    return tmp_path / "data"


def test_view_sets_come_back_as_they_went(tmp_path: Path) -> None:
    one = view_set(3)
    viewsets.write(tmp_path / "a" / "b.safetensors", one)
    back = viewsets.read(tmp_path / "a" / "b.safetensors")
    assert back.name == one.name
    for part in ("rgba", "poses", "squares", "depth", "normal", "inside"):
        assert (getattr(back, part) == getattr(one, part)).all(), part


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b.glb", "\ud800.glb"])
def test_names_that_no_file_could_have_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    viewsets.write(path, replace(view_set(3), name=name))
    for read in (viewsets.read, viewsets.read_label):
        with pytest.raises(MeshError, match="no view set, or damaged"):
            read(path)


def test_a_pack_holds_what_the_dataset_holds(dataset: Path, tmp_path: Path) -> None:
    paths = viewsets.list_objects(dataset)
    size = packs.pack(paths, tmp_path / "pack.safetensors", views=3, overwrite=False, watch=silent)
    assert size == (tmp_path / "pack.safetensors").stat().st_size
    pack = packs.open_pack(tmp_path / "pack.safetensors")
    for number, path in enumerate(paths):
        one = viewsets.read(path)
        assert pack.names[number] == one.name
        assert (pack.inside(number) == one.inside).all()
        assert (pack.poses[number] == one.poses[:3]).all()
        pictures = pack.pictures(number)
        assert (pictures[..., 3] == one.rgba[:3, ..., 3]).all()
        opaque = pictures[..., 3] > 0
        assert np.abs(pictures[opaque][:, :3].astype(int) - one.rgba[:3][opaque][:, :3]).mean() < 12


def test_packing_what_does_not_fit_together_is_refused(dataset: Path, tmp_path: Path) -> None:
    viewsets.write(dataset / "objects" / "zz" / "zz.safetensors", view_set(99, side=24))
    with pytest.raises(MeshError, match="24 px"):
        packs.pack(viewsets.list_objects(dataset), tmp_path / "p.safetensors", views=3, overwrite=False, watch=silent)
    viewsets.write(dataset / "objects" / "zz" / "zz.safetensors", replace(view_set(99), truth="carved"))
    with pytest.raises(MeshError, match="carved"):
        packs.pack(viewsets.list_objects(dataset), tmp_path / "p.safetensors", views=3, overwrite=False, watch=silent)


def test_a_pack_that_was_damaged_within_is_told(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    packs.pack(viewsets.list_objects(dataset), path, views=2, overwrite=False, watch=silent)
    arrays, head = load_file(path), read_head(path.read_bytes())
    save_file(arrays | {"data": np.zeros_like(arrays["data"])}, path, with_head(head))
    for decode in (packs.open_pack(path).pictures, packs.open_pack(path).inside):
        with pytest.raises(MeshError, match="no packed dataset, or damaged"):
            decode(0)
    bomb = np.frombuffer(zlib.compress(bytes(1 << 20)), np.uint8)
    table = arrays["table"].copy()
    table[0, -2:] = len(arrays["data"]), len(arrays["data"]) + len(bomb)
    table[1:] = table[0, -1]
    save_file(arrays | {"data": np.concatenate([arrays["data"], bomb]), "table": table}, path, with_head(head))
    with pytest.raises(MeshError, match="no packed dataset, or damaged"):
        packs.open_pack(path).inside(0)
    for wrong in (arrays["table"][:-1], arrays["table"] + (1 << 40), arrays["table"][:, ::-1].copy()):
        save_file(arrays | {"table": wrong}, path, with_head(head))
        with pytest.raises(MeshError, match="no packed dataset, or damaged"):
            packs.open_pack(path)
    save_file(arrays | {"poses": arrays["poses"] * np.nan}, path, with_head(head))
    with pytest.raises(MeshError, match="no packed dataset, or damaged"):
        packs.open_pack(path)


def test_datasets_that_do_not_serve_are_told_from_faults_of_ours(dataset: Path, tmp_path: Path) -> None:
    def refused(data: Path, kind: type[Zero123Error], match: str, net: VolumeDescription = SMALL) -> None:
        with pytest.raises(kind, match=match):
            volumes.VolumeTask(data, net)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", MissingInputError, "the dataset is empty")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n" + bytes(range(256)))
    refused(tmp_path / "photo.png", MeshError, "no packed dataset, or damaged")
    refused(dataset, SettingsError, "its pictures are of 16 px, the model's of 32", replace(SMALL, size=32))
    bare = tmp_path / "bare"
    none = replace(view_set(1), inside=np.zeros((0, 0, 0), bool))
    viewsets.write(bare / "objects" / "aa" / "a.safetensors", none)
    refused(bare, SettingsError, "does not say what is inside")
    viewsets.write(bare / "objects" / "bb" / "b.safetensors", view_set(2))
    refused(bare, MeshError, "not all of one kind")
    two = tmp_path / "two"
    for truth in ("winding", "carved"):
        viewsets.write(two / "objects" / "aa" / f"{truth}.safetensors", replace(view_set(1), truth=truth))
    refused(two, MeshError, "not all of one kind")
    viewsets.write(two / "objects" / "aa" / "carved.safetensors", view_set(2, side=24))
    with pytest.raises(MeshError, match="of 16 to 24 px"):
        open_album(two)
    (bare / "objects" / "bb" / "b.safetensors").write_bytes(b"short")
    refused(bare, MeshError, "no view set, or damaged")
    with pytest.raises(MeshError, match="no view set, or damaged"):
        open_album(bare)


@pytest.mark.parametrize(("fall", "halfway"), [(0.0, 1.0), (0.2, 1.0), (0.5, 1.0), (1.0, 0.55)])
def test_the_rate_falls_over_the_last_share_of_the_steps(fall: float, halfway: float) -> None:
    settings = TrainSettings(steps=1000, warmup=10, fall=fall)
    assert train.rate_at(500, settings) == pytest.approx(halfway)
    assert train.rate_at(1000, settings) == pytest.approx(0.1 if fall else 1.0)
    assert train.rate_at(5, settings) <= 0.5


@pytest.mark.parametrize("cells", [8, 9])
def test_any_number_of_cells_a_side_is_learnt_from(cells: int, tmp_path: Path) -> None:
    one = view_set(5, cells=cells)
    viewsets.write(tmp_path / "objects" / "aa" / "a.safetensors", one)
    batch = volumes.VolumeTask(tmp_path, SMALL).draw(np.random.default_rng(0), 3, held_back=True)
    assert batch["inside"].shape == (3, cells, cells, cells)
    assert (batch["inside"][1].numpy() == one.inside).all()


def test_held_back_objects_are_a_small_share_and_always_the_same() -> None:
    names = [f"mesh{k}.glb" for k in range(5000)]
    held = [name for name in names if viewsets.hold_back(name)]
    assert 0.02 < len(held) / len(names) < 0.04
    assert held == [name for name in names if viewsets.hold_back(f"elsewhere/{name}")]


def test_the_smallest_datasets_are_learnt_from_and_judged_on() -> None:
    names = [f"mesh{k}.glb" for k in range(500)]
    for few in (
        [name for name in names if viewsets.hold_back(name)][:2],
        [n for n in names if not viewsets.hold_back(n)][:2],
    ):
        own, held = viewsets.hold_out(few)
        assert own.tolist() == held.tolist() == [0, 1]
    own, held = viewsets.hold_out(names)
    assert not set(own) & set(held) and len(own) + len(held) == 500


def test_a_mirrored_batch_is_the_mirrored_object(dataset: Path) -> None:
    """Looking up the mirrored inside from the mirrored camera gives the mirrored picture."""
    task = volumes.VolumeTask(dataset, SMALL)
    batch = task.draw(np.random.default_rng(0), 6, held_back=True)
    photo = Framing(batch["poses"][:, 0].contiguous(), batch["squares"][:, 0].contiguous())
    before = look_up(batch["inside"], photo, 16, 16)
    pictures = np.zeros((6, 2, 16, 16, 4), np.float32)
    volumes.mirror(pictures, batch)
    photo = Framing(batch["poses"][:, 0].contiguous(), batch["squares"][:, 0].contiguous())
    after = look_up(batch["inside"].contiguous(), photo, 16, 16)
    torch.testing.assert_close(after, before.flip(-1), atol=1e-4, rtol=1e-4)


def test_colours_are_varied_alike_in_both_pictures_and_white_stays_white() -> None:
    pictures = np.full((5, 2, 4, 4, 4), 1.0, np.float32)
    pictures[:, :, 1:3, 1:3, :3] = np.array([0.2, -0.4, -0.9], np.float32)
    varied = volumes.vary_colours(pictures, np.random.default_rng(0))
    assert np.allclose(varied[:, :, 0, 0, :3], 1)
    assert np.allclose(varied[:, 0], varied[:, 1])
    assert len({tuple(row) for row in varied[:, 0, 1, 1, :3].round(4)}) == 5


# The loop -------------------------------------------------------------------------------------------------------------

FAST = TrainSettings(steps=6, batch=4, judged=4, warmup=2, look_minutes=1e5, save_minutes=1e5)


def go(dataset: Path, folder: Path, settings: TrainSettings = FAST, **more: Any) -> Path:
    return train.train(volumes.VolumeTask(dataset, SMALL), settings, folder, CPU, 0, more.pop("watch", silent), **more)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_continued_run_ends_with_the_same_bits(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CPU", replace(CPU, dtype=dtype))
    whole = go(dataset, tmp_path / "whole")
    stops = iter([False, False, True])
    go(dataset, tmp_path / "parts", stopped=lambda: next(stops))
    assert [path.name for path in train.checkpoints(tmp_path / "parts")] == ["checkpoint-00000003.safetensors"]
    said: list[str] = []

    def watch(message: Progress | Caution) -> None:
        if isinstance(message, Caution):
            said.append(message.code)

    parts = go(dataset, tmp_path / "parts", watch=watch)
    assert said == ["resumed"]
    assert parts.name == whole.name
    assert parts.read_bytes() == whole.read_bytes()


def test_a_damaged_checkpoint_is_left_out_for_the_one_before(dataset: Path, tmp_path: Path) -> None:
    whole = go(dataset, tmp_path / "whole").read_bytes()
    go(dataset, tmp_path / "run", replace(FAST, save_minutes=0))
    kept = train.checkpoints(tmp_path / "run")
    assert len(kept) == train.KEPT
    kept[-1].write_bytes(kept[-1].read_bytes()[:1000])
    said: list[str] = []
    path = go(dataset, tmp_path / "run", watch=lambda m: said.append(m.code) if isinstance(m, Caution) else None)
    assert said == ["checkpoint-damaged", "resumed"]
    assert path.read_bytes() == whole


def test_damaged_checkpoints_never_crowd_out_whole_ones(dataset: Path, tmp_path: Path) -> None:
    go(dataset, tmp_path / "run", replace(FAST, save_minutes=0))
    for kept in train.checkpoints(tmp_path / "run"):  # of steps 5 and 6
        kept.write_bytes(b"short")
    path = go(dataset, tmp_path / "run", stopped=lambda: True)
    assert [path] == train.checkpoints(tmp_path / "run")
    assert path.name == "checkpoint-00000001.safetensors"


def test_a_log_holds_each_step_once_however_a_run_ended(dataset: Path, tmp_path: Path) -> None:
    stops = iter([False, False, True])
    go(dataset, tmp_path, stopped=lambda: next(stops))
    for name in ("log.jsonl", "figures.jsonl"):
        with open(tmp_path / name, "a") as log:  # of steps after the checkpoint, the last line cut off
            log.write('{"step": 4, "seconds": 1.0}\n{"step": 5, "sec')
    go(dataset, tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [*range(1, 7)]
    assert [json.loads(line)["step"] for line in (tmp_path / "figures.jsonl").read_text().splitlines()] == [6], (
        "none for who wants to go"
    )


def test_a_run_whose_last_step_is_skipped_is_kept_and_its_running_means_stay_numbers(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = volumes.VolumeTask.loss, []

    def loss(self: volumes.VolumeTask, model: torch.nn.Module, batch: train.Batch) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == FAST.steps:
            model.seen.fill_(np.nan)  # type: ignore[operator]  # a buffer
        terms = true(self, model, batch)
        return {name: term * (np.nan if len(calls) == FAST.steps else 1) for name, term in terms.items()}

    def build(self: volumes.VolumeTask) -> torch.nn.Module:
        net = VolumeNet(SMALL)
        net.register_buffer("seen", torch.zeros(3))
        return net

    monkeypatch.setattr(volumes.VolumeTask, "loss", loss)
    monkeypatch.setattr(volumes.VolumeTask, "build", build)
    path = go(dataset, tmp_path)
    assert path.name == f"checkpoint-{FAST.steps:08d}.safetensors"
    assert load_file(path)["model.seen"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), MemoryError()], ids=["closed", "memory"])
def test_checkpoints_that_cannot_be_read_now_are_not_begun_over(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    path = go(dataset, tmp_path / "run")
    tmp_path = tmp_path / "run"
    files = {one: one.read_bytes() for one in sorted(tmp_path.iterdir()) if one.is_file()}

    real = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name.startswith("checkpoint-"):
            raise fault
        return real(self)

    with monkeypatch.context() as changes, pytest.raises((MissingInputError, MemoryError)):
        changes.setattr(Path, "read_bytes", read)
        go(dataset, tmp_path, replace(FAST, steps=9))
    assert {one: one.read_bytes() for one in sorted(tmp_path.iterdir()) if one.is_file()} == files
    assert path in files


def test_what_a_killed_run_was_writing_is_cleared_away(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / ".zero123-0123456789ab.tmp").write_bytes(b"half of a checkpoint")
    go(dataset, tmp_path)
    assert not list(tmp_path.glob(".zero123-*"))


def test_the_log_is_written_with_each_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = train.save

    def save(folder: Path, *rest: Any) -> Path:
        seen.append(len((folder / "log.jsonl").read_text().splitlines()))
        return real(folder, *rest)

    monkeypatch.setattr(train, "save", save)
    go(dataset, tmp_path, replace(FAST, save_minutes=0))
    assert seen == list(range(1, FAST.steps + 1))


def test_other_settings_are_refused_for_a_run_that_was_begun(dataset: Path, tmp_path: Path) -> None:
    go(dataset, tmp_path / "run")
    with pytest.raises(SettingsError, match="another folder"):
        go(dataset, tmp_path / "run", replace(FAST, rate=1e-3))


def test_gradients_that_are_none_end_the_run(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = volumes.VolumeTask(dataset, SMALL)
    monkeypatch.setattr(
        volumes.VolumeTask, "loss", lambda self, model, batch: {"x": sum(p.sum() for p in model.parameters()) * np.nan}
    )
    with pytest.raises(DivergedError) as error:
        train.train(task, replace(FAST, steps=100), tmp_path / "run", CPU, 0, silent)
    assert error.value.exit_code == 81


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.bench)])  # minutes of compiling
def test_compiled_networks_learn_the_same(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    if not whole:
        monkeypatch.setattr(volumes.VolumeTask, "steady", lambda self, model: [model.tilt])
    logs = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        go(dataset, folder, replace(FAST, compile=compiled))
        logs.append([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
    assert len(logs[0]) == FAST.steps
    for plain, compiled in zip(*logs, strict=True):
        for name in plain.keys() - {"seconds"}:
            assert compiled[name] == pytest.approx(plain[name], rel=1e-3), (plain["step"], name)


def test_a_missing_compiler_is_named(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler"):
        go(dataset, tmp_path / "run", replace(FAST, compile=True))


def test_training_learns_and_leaves_pictures_figures_and_weights(dataset: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        steps=80, batch=8, judged=8, warmup=5, rate=3e-3, average=0.9, look_minutes=1e5, save_minutes=1e5
    )
    checkpoint = go(dataset, tmp_path / "run", settings)
    task = volumes.VolumeTask(dataset, SMALL)
    raw = train.export(checkpoint, tmp_path / "weights.safetensors", task.facts()).read_bytes()
    assert read_head(raw) == {"kind": "volume", "description": json.loads(json.dumps(asdict(SMALL)))}
    weights = safetensors.torch.load(raw)
    assert set(weights) == set(task.build().state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 80
    first, last = (np.mean([row["overlap"] for row in part]) for part in (log[:10], log[-10:]))
    assert last < 0.85 * first
    (figures,) = (json.loads(line) for line in (tmp_path / "run" / "figures.jsonl").read_text().splitlines())
    assert figures["iou"] > 0.4
    for name in ("samples.png", "curve.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
