"""The denoisers' training: what is drawn, what is learnt and what becomes of it, on boxes whose inside is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zero123cli.artifacts import Ask, Cutout, PhotoCamera, read_head, with_head
from zero123cli.cameras import TRAINING_DISTANCE, Viewpoint
from zero123cli.diffusion import checkpoints, ldm
from zero123cli.diffusion.rays import render_numba
from zero123cli.diffusion.sampling import sample
from zero123cli.diffusion.viewmodel import ViewModel, look_from
from zero123cli.diffusion.volume import ELEVATIONS, Framing, Volume, VolumeDescription, VolumeNet, render
from zero123cli.errors import MissingInputError, SettingsError, UsageError, WeightsError
from zero123cli.settings import TrainSettings
from zero123cli.stages import views as stage
from zero123cli.training import denoisers, packs, train, viewsets
from zero123cli.training.albums import open_album
from zero123cli.training.denoisers import RECIPES, DenoiserTask
from zero123cli.training.targets import look_up
from zero123cli.watch import silent

SIDE = 32
NET = VolumeDescription(size=SIDE, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
UNET = {
    **denoisers.POCKET_UNET,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
FAST = TrainSettings(steps=4, batch=6, judged=2, warmup=2, rate=1e-3, look_minutes=1e5, save_minutes=1e5)


def solid_box(chance: np.random.Generator, cells: int = 32) -> np.ndarray:
    inside = np.zeros((cells, cells, cells), bool)
    low, high = chance.integers(2, cells // 3, 3), chance.integers(cells // 2, cells - 2, 3)
    inside[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return inside


def photographed(number: int, views: int = 6, side: int = SIDE) -> viewsets.ViewSet:
    """A box seen by cameras whose frames are not in the middle."""
    chance = np.random.default_rng(number)
    inside = solid_box(chance)
    poses = np.stack([chance.uniform(0, 360, views), chance.uniform(-15, 60, views), chance.uniform(1.6, 3, views)], 1)
    half = chance.uniform(0.6, 0.9, views) / poses[:, 2]
    squares = np.stack([chance.uniform(-0.04, 0.04, views), chance.uniform(-0.04, 0.04, views), half], 1)
    cameras = Framing(torch.from_numpy(poses).float(), torch.from_numpy(squares).float())
    alpha = silhouette(inside, cameras, side)
    rgba = np.concatenate([np.broadcast_to(chance.integers(0, 200, 3), (*alpha.shape, 3)), alpha[..., None] * 255], -1)
    depth, normal = np.ones(alpha.shape, np.float16), np.zeros((*alpha.shape, 3), np.int8)
    name = f"object{number}.glb"
    return viewsets.ViewSet(
        name, rgba.astype(np.uint8), cameras.poses.numpy(), cameras.squares.numpy(), depth, normal, inside
    )


def silhouette(inside: np.ndarray, cameras: Framing, side: int) -> np.ndarray:  # bool (B, side, side)
    solid = torch.from_numpy(inside)[None].expand(len(cameras.poses), -1, -1, -1)
    return (look_up(solid, cameras, 64, side).amax(1) > 0.5).numpy()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for number in range(8):
        viewsets.write(folder / "objects" / "00" / f"{number:02d}.safetensors", photographed(number))
    return folder


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as training a volume net leaves them."""
    torch.manual_seed(5)
    net = VolumeNet(NET)
    torch.nn.init.normal_(net.last[-1].weight, std=0.5)
    path = tmp_path_factory.mktemp("weights") / "volume.safetensors"
    weights = {name: weight.half().contiguous() for name, weight in net.state_dict().items()}
    save_file(weights, path, with_head({"kind": "volume", "description": asdict(NET)}))
    return path


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded denoiser as it is, but for its widths."""
    monkeypatch.setattr(denoisers, "POCKET_UNET", UNET)
    monkeypatch.setattr(
        denoisers,
        "POCKET_CLIP",
        {**small.CLIP, "projection_dim": 16, "image_size": SIDE, "patch_size": 8, "num_attention_heads": 2},
    )


def pocket(dataset: Path, base: Path | str, **changes: Any) -> DenoiserTask:
    return DenoiserTask(dataset, RECIPES["pocket-views"], replace(FAST, task="pocket-views", base=str(base), **changes))


def built(task: DenoiserTask, seed: int = 0) -> ViewModel:
    torch.manual_seed(seed)
    model = task.build()
    assert isinstance(model, ViewModel)
    return model


# Data -----------------------------------------------------------------------------------------------------------------


def test_pictures_of_a_folder_and_of_its_pack_are_the_same(dataset: Path, tmp_path: Path) -> None:
    packs.pack(viewsets.list_objects(dataset), tmp_path / "p.safetensors", views=6, overwrite=False, watch=silent)
    folder, packed = open_album(dataset), open_album(tmp_path / "p.safetensors")
    assert (folder.names, folder.size) == (packed.names, packed.size)
    for number in (0, 5):
        a, b = (album.read(number, np.random.default_rng(7), 4) for album in (folder, packed))
        assert (a.rgba[..., 3] == b.rgba[..., 3]).all()
        assert (a.poses == b.poses).all()
        assert (a.squares == b.squares).all()
        assert len(np.unique(a.poses[:, 0])) == 4


def test_objects_are_learnt_from_or_held_back_and_never_both() -> None:
    names = tuple(f"mesh{k}.glb" for k in range(2000))
    own, held = viewsets.hold_out(names)
    assert sorted([*own, *held]) == list(range(2000))
    assert 30 < len(held) < 90


def test_an_empty_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="empty"):
        open_album(tmp_path)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_is_asked_for_is_what_the_true_volume_shows(mirrored: bool) -> None:
    """Cut at the photo's scale around its middle, also in a mirror: the known inside, seen by `render` from there."""
    one = photographed(3)
    cameras = np.concatenate([one.poses, one.squares], 1)
    pictures, inside = denoisers.on_white(one.rgba), torch.from_numpy(one.inside)
    if mirrored:
        pictures, cameras = denoisers.mirror(pictures, cameras)
        inside = inside.flip(0)
    which = torch.arange(5)
    photo = denoisers.take(denoisers.to_framing(cameras), torch.zeros(5, dtype=torch.long))
    target = denoisers.take(denoisers.to_framing(cameras), which + 1)
    asked, wanted, _ = denoisers.reframe(
        denoisers.to_channels_first(pictures[1:]), photo, target, torch.linspace(0.8, 1.3, 5)
    )
    logits = (look_up(inside[None].expand(5, -1, -1, -1).contiguous(), photo, 48, 48) * 2 - 1) * 12
    volume = Volume(logits, torch.zeros(5, 3, 4, 4, 4), torch.zeros(5, len(ELEVATIONS)))
    seen = render(volume, photo, wanted, SIDE)[:, 3] > 0.5
    true = asked[:, 3] > 0
    assert (true.flatten(1).sum(1) > 20).all()
    assert float((seen & true).sum() / (seen | true).sum()) > 0.85
    assert float((seen & true.flip(-1)).sum() / (seen | true.flip(-1)).sum()) < 0.8


def test_a_picture_is_cut_around_the_photos_middle_at_its_scale() -> None:
    """A dot at the middle of the photo's frame stays in the middle of what is asked for, wherever from."""
    photo = Framing(torch.tensor([[20.0, 10.0, 2.0]] * 3), torch.tensor([[0.05, -0.03, 0.3]] * 3))
    own = Framing(
        torch.tensor([[20.0, 10.0, 2.0], [90.0, 40.0, 2.5], [200.0, -10.0, 1.7]]),
        torch.tensor([[0.05, -0.03, 0.3], [0.0, 0.02, 0.3], [0.01, 0.0, 0.5]]),
    )
    dot = photo.to_world(torch.zeros(3), torch.zeros(3), photo.poses[:, 2])
    _, wanted, told = denoisers.reframe(torch.zeros(3, 4, 8, 8), photo, own, torch.ones(3))
    assert wanted.to_volume(dot)[:, :2].abs().max() < 1e-5
    depth = wanted.poses[:, 2] - torch.einsum("bc,bc->b", dot, own.axes()[:, 2])
    assert wanted.squares[:2, 2] * depth[:2] == pytest.approx([0.6, 0.6], abs=1e-5)
    assert wanted.squares[2, 2] == pytest.approx(0.5 / denoisers.LARGEST)  # else it would be enlarged twofold
    assert told[:2, 1] == pytest.approx([TRAINING_DISTANCE] * 2, abs=1e-5)
    assert told[2, 1] == pytest.approx(TRAINING_DISTANCE * 0.375 * float(depth[2]) / 0.6, abs=1e-5)
    # Told of that distance, the program looks from where the frame is as much wider than the photo's.
    asked = look_from([Viewpoint(0, 0, float(far)) for far in told[:, 1]])
    scale = asked.squares[:, 2] * asked.poses[:, 2] / (asked.squares[0, 2] * TRAINING_DISTANCE)
    torch.testing.assert_close(scale, wanted.squares[:, 2] * depth / 0.6)


def test_a_picture_cut_at_its_own_square_is_itself_and_elsewhere_it_moves() -> None:
    picture = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    picture = torch.nn.functional.interpolate(picture, (SIDE, SIDE), mode="bicubic").clamp(-0.9, 0.9)
    picture[:, :, :3] = picture[:, :, -3:] = torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None, None]
    square = torch.tensor([[0.1, 0.2, 0.4]])
    same = denoisers.crop(picture, square, square)
    assert float((same - picture)[:, :, 5:-5, 2:-2].abs().mean()) < 0.01
    pixel = 2 * 0.4 / SIDE
    moved = denoisers.crop(picture, square, square + torch.tensor([[3 * pixel, 2 * pixel, 0.0]]))
    assert float((moved[:, :, 8:, :-3] - same[:, :, 6:-2, 3:])[:, :, 3:-3, 3:-3].abs().max()) < 1e-4
    assert (moved[0, :3, :2] > 0.999).all()  # above its edge there is white, and nothing
    assert (moved[0, 3, :2] < -0.999).all()


def test_pictures_asked_for_of_one_photo_share_it(dataset: Path, volume_file: Path, narrow: None) -> None:
    task = pocket(dataset, volume_file)
    batch = task.draw(np.random.default_rng(0), 8, held_back=False)
    assert batch["photo"].shape == (2, 4, SIDE, SIDE)
    assert batch["asked"].shape == (8, 4, SIDE, SIDE)
    assert sorted(batch["whose"].tolist()) == [0] * 4 + [1] * 4
    again = task.draw(np.random.default_rng(0), 8, held_back=False)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_told_numbers_are_those_of_the_pose_between_them(dataset: Path, volume_file: Path, narrow: None) -> None:
    task = pocket(dataset, volume_file)
    numbers = task.tell(
        torch.tensor([[10.0, 20.0, 2.0]]), torch.tensor([[100.0, 50.0, 3.0]]), torch.tensor([[1.85, 1.95]])
    )
    assert numbers[0].tolist() == pytest.approx([np.radians(-30), 1.0, 0.0, 0.1], abs=1e-6)


# The renderer's twin --------------------------------------------------------------------------------------------------


def test_numba_twin_renders_what_the_definition_renders() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.nn.functional.interpolate(torch.randn(3, 1, 6, 6, 6, generator=chance) * 9, (20, 24, 24))[:, 0] - 2
    volume = Volume(logits, torch.rand(3, 3, 8, 8, 8, generator=chance) * 2 - 1, torch.zeros(3, 1))
    first, second = (
        Framing(torch.from_numpy(one.poses[:3]), torch.from_numpy(one.squares[:3]))
        for one in (photographed(0), photographed(1))
    )
    ours, theirs = render_numba(volume, first, second, 20), render(volume, first, second, 20)
    assert 0.1 < float(theirs[:, 3].mean()) < 0.95
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


# What is learnt -------------------------------------------------------------------------------------------------------


def test_training_shows_the_network_what_the_program_shows_it(dataset: Path, volume_file: Path, narrow: None) -> None:
    """The same photo and poses by way of a batch and by way of `condition` and `predict`."""
    task = pocket(dataset, volume_file)
    model = built(task).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    photo, poses = small.picture_of(4, SIDE), [Viewpoint(40, 5), Viewpoint(250, 30, 2.0)]
    stands = Viewpoint(0, 12)
    condition = model.condition(photo, stands)
    camera, asked = look_from([stands]), look_from(poses)
    batch = {
        "photo": photo[None],
        "photo_poses": camera.poses,
        "photo_squares": camera.squares,
        "whose": torch.tensor([0, 0]),
        "poses": asked.poses,
        "squares": asked.squares,
        "numbers": task.tell(
            torch.tensor([[0.0, 12.0]] * 2),
            asked.poses[:, :2],
            torch.tensor([[TRAINING_DISTANCE, v.distance] for v in poses]),
        ),
    }
    tokens, concat = task.see(model, batch)
    torch.testing.assert_close(concat, model.concat_at(condition, poses))
    context = model.join(tokens, batch["numbers"])
    torch.testing.assert_close(context, model.context(condition, poses))
    noisy, times = small.noise_of(2, 4, SIDE, SIDE), torch.tensor([100, 800])
    torch.testing.assert_close(
        model.denoise(noisy, times, context, concat), model.predict(condition, noisy, times, poses, 1.0)
    )
    told = list(sample(model, condition, poses, [1, 2], sampler="ddim-original", steps=50, guidance=3.0, eta=1.0))
    with torch.no_grad():
        seen, judged = task.sample(model, batch)
    assert len(told) == 1 and float((judged - seen).abs().mean()) > 0.01
    torch.testing.assert_close(told[0], judged)


def test_without_photo_the_embedded_model_learns_what_guidance_asks_of_it(
    dataset: Path, volume_file: Path, narrow: None
) -> None:
    task = pocket(dataset, volume_file)
    model = built(task)
    tokens, numbers = torch.randn(3, 16, 16), torch.randn(3, 4)
    context = task.drop_tokens(model, tokens, numbers, torch.tensor([True, False, True]))
    assert not context[[0, 2]].any()
    torch.testing.assert_close(context[1], model.join(tokens, numbers)[1])


def test_the_volume_shows_the_same_while_the_denoiser_learns(dataset: Path, volume_file: Path, narrow: None) -> None:
    """A net that takes nearly everything for empty, which learning would treat otherwise."""
    task = pocket(dataset, volume_file)
    model = built(task)
    assert model.volume is not None
    model.volume.last[2].bias.data[: 4 * NET.depth] -= 5  # type: ignore[union-attr, operator]
    batch = task.draw(np.random.default_rng(0), 4, held_back=False)
    with torch.no_grad():
        learning, told = (task.see(model.train(learns), batch)[1] for learns in (True, False))
    assert model.train().unet.training
    assert float(told[:, 3].max()) > 0  # something is there
    torch.testing.assert_close(learning, told)


def test_outlines_are_missed_by_fog_and_by_shifts() -> None:
    disc = torch.full((2, 4, 8, 8), -1.0)
    disc[:, 3, 2:6, 2:6] = 1
    missed = [float(denoisers.miss(ours, disc)) for ours in (disc, disc.clamp_max(0.5), disc.roll(1, 3), -disc)]
    assert missed[0] == pytest.approx(0, abs=1e-6)
    assert missed[1] == pytest.approx(1 - 13 / 17) and missed[2] == pytest.approx(1 - 13 / 21)
    assert missed[3] == pytest.approx(1 - 1 / 65)


def test_conditions_are_dropped_in_three_ways_each_as_often() -> None:
    no_tokens, no_concat = denoisers.drop((torch.arange(1000) + 0.5) / 1000)
    kinds = [
        int((no_tokens & ~no_concat).sum()),
        int((no_tokens & no_concat).sum()),
        int((~no_tokens & no_concat).sum()),
    ]
    assert kinds == [50, 50, 50]


def test_what_is_wanted_is_the_clean_picture_once_the_model_has_turned_it(
    dataset: Path, volume_file: Path, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = pocket(dataset, volume_file)
    model = built(task)
    batch = task.draw(np.random.default_rng(0), 8, held_back=False)

    def answer(self: ViewModel, latents: torch.Tensor, times: torch.Tensor, context: Any, concat: Any) -> torch.Tensor:
        return batch["asked"] - concat

    monkeypatch.setattr(ViewModel, "answer", answer)
    assert float(task.loss(model, batch)["correction"]) < 1e-10
    noise = torch.randn_like(batch["asked"])
    for time in (3, 400, 990):
        times = torch.full((8,), time)
        latents = model.add_noise(batch["asked"], noise, times)
        found = model.denoise(latents, times, torch.zeros(8, 1, 1), torch.rand_like(latents))
        torch.testing.assert_close(found, noise, atol=1e-3, rtol=1e-3)


def test_before_it_has_learnt_anything_the_embedded_model_shows_the_volume(
    dataset: Path, volume_file: Path, narrow: None
) -> None:
    task = pocket(dataset, volume_file)
    model = built(task).eval()
    with torch.inference_mode():
        figures = task.judge(model, task.draw(np.random.default_rng(0), 8, held_back=True))
    assert figures["psnr"] == pytest.approx(figures["seen_psnr"], abs=0.01)
    assert figures["iou"] == pytest.approx(figures["seen_iou"], abs=0.01)


def test_the_projection_learns_ten_times_as_fast_and_the_volume_net_not_at_all(
    dataset: Path, volume_file: Path, narrow: None
) -> None:
    task = pocket(dataset, volume_file)
    model = built(task)
    others, projection = task.groups(model, 1e-4)
    assert projection["base"] == pytest.approx(10 * others["base"])
    assert {id(w) for w in projection["params"]} == {id(w) for w in model.projection.parameters()}
    learning = sum(len(group["params"]) for group in (others, projection))
    assert learning == sum(weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in model.volume.parameters())  # type: ignore[union-attr]  # it has one
    terms = task.loss(model, task.draw(np.random.default_rng(0), 4, held_back=False))
    terms["correction"].backward()
    assert all(weight.grad is None for weight in model.volume.parameters())  # type: ignore[union-attr]  # it has one
    assert float(model.unet.conv_out.weight.grad.abs().max()) > 0


def test_a_run_goes_on_only_on_the_volume_that_it_was_begun_on(
    dataset: Path, volume_file: Path, narrow: None, tmp_path: Path
) -> None:
    short = replace(FAST, steps=1, batch=4)
    train.train(pocket(dataset, volume_file), short, tmp_path / "run", small.CPU, 0, silent)
    weights = load_file(volume_file)
    name = next(name for name in weights if name.endswith("weight"))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "v.safetensors", read_head_texts(volume_file))
    for _ in range(2):
        with pytest.raises(SettingsError, match="builds on other weights"):
            train.train(
                pocket(dataset, tmp_path / "v.safetensors"), replace(short, steps=2), tmp_path / "run", small.CPU, 0,
                silent,
            )  # fmt: skip
    train.train(pocket(dataset, volume_file), replace(short, steps=2), tmp_path / "run", small.CPU, 0, silent)


def read_head_texts(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_the_papers_averages_are_of_its_unet_alone(paper_dataset: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    task = paper(paper_dataset, bases[".ckpt"])
    settings = replace(FAST, steps=3, batch=2, judged=1, average=0.999)
    checkpoint = train.train(task, settings, tmp_path / "run", small.CPU, 0, silent)
    held = load_file(checkpoint)
    assert not [name for name in held if name.startswith("averaged.projection")]
    assert [name for name in held if name.startswith("averaged.unet")]
    exported = load_file(train.export(checkpoint, tmp_path / "w.safetensors", task.facts()))
    torch.testing.assert_close(exported["projection.weight"], held["model.projection.weight"].half())
    assert built(task).unet.is_gradient_checkpointing


def test_what_may_be_stable_zero123_s_is_not_trained_as_the_original(tmp_path: Path, paper_dataset: Path) -> None:
    model = small.make_model(small.SMALL)
    path = small.write_ldm(tmp_path / "weights.ckpt", small.publish(model))
    with pytest.raises(UsageError, match="nothing in the file tells"):
        paper(paper_dataset, path)


def test_a_pocket_model_is_trained_exported_and_sampled_from(
    dataset: Path, volume_file: Path, narrow: None, tmp_path: Path
) -> None:
    settings = replace(FAST, steps=40, batch=8, average=0.9, rate=3e-3)
    task = pocket(dataset, volume_file)
    checkpoint = train.train(task, settings, tmp_path / "run", small.CPU, 0, silent)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = (np.mean([row["correction"] for row in part]) for part in (log[:8], log[-8:]))
    assert last < 0.7 * first
    figures = json.loads((tmp_path / "run" / "figures.jsonl").read_text().splitlines()[-1])
    assert set(figures) == {"step", "psnr", "seen_psnr", "iou", "seen_iou"}
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    path = train.export(checkpoint, tmp_path / "pocket.safetensors", task.facts())
    weights, before = load_file(path), load_file(volume_file)
    assert all(torch.equal(weights[f"volume.{name}"], tensor) for name, tensor in before.items())
    model = checkpoints.load(path, small.CPU)
    assert model.description == task.description
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    views = stage.condition(Cutout(rgba, 0, 0, 64, 64, 64, 0.8, "alpha"), PhotoCamera(10.0), model)
    (view,) = stage.sample_views(views, [Ask(90, 0, 0, 0, 0, "ddim", 3, 2.0, 0.0)], model, silent)
    assert view.pixels.shape == (SIDE, SIDE, 4)


def test_a_denoiser_alone_is_shown_the_photo_and_needs_no_weights_to_start_from(
    dataset: Path, narrow: None, tmp_path: Path
) -> None:
    settings = replace(FAST, task="pocket-alone", steps=3)
    task = DenoiserTask(dataset, RECIPES["pocket-alone"], settings)
    model = built(task)
    assert model.volume is None
    batch = task.draw(np.random.default_rng(0), 8, held_back=False)
    _, concat = task.see(model, batch)
    assert torch.equal(concat, batch["photo"][batch["whose"]])
    checkpoint = train.train(task, settings, tmp_path / "run", small.CPU, 0, silent)
    path = train.export(checkpoint, tmp_path / "alone.safetensors", task.facts())
    assert checkpoints.load(path, small.CPU).description == task.description
    assert checkpoints.inspect(path)["picture"] == f"{SIDE} px, latents 4 x {SIDE} x {SIDE}"
    later = DenoiserTask(dataset, RECIPES["pocket-alone"], replace(settings, init=str(path)))
    assert later.description == task.description


# The paper's ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `data render --rig paper` frames: the whole picture, no outline looked for."""
    folder = tmp_path_factory.mktemp("paper")
    for number in range(4):
        one = photographed(number, views=3)
        squares = np.broadcast_to(np.array([0, 0, 0.457], np.float32), one.squares.shape)
        one = replace(one, squares=np.ascontiguousarray(squares), inside=np.zeros((0, 0, 0), bool))
        viewsets.write(folder / "objects" / "00" / f"{number}.safetensors", one)
    return folder


@pytest.fixture(scope="module")
def image_variations() -> ViewModel:
    """A model of toy width; what is written of it below knows no pose, and its UNet has four channels."""
    return small.make_model(replace(small.SMALL, clip={**small.CLIP, "projection_dim": 16}))


def write_variations(path: Path, model: ViewModel, layout: str) -> Path:
    """An image-variations Stable Diffusion in a published layout."""
    if layout == "diffusers":
        small.write_folder(path, model, parts=("unet", "vae", "image_encoder"))
        config = json.loads((path / "unet" / "config.json").read_text())
        (path / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
        weights = path / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(poseless(load_file(weights), "conv_in.weight"), weights)
        return path
    state = {name: tensor for name, tensor in small.publish(model).items() if not name.startswith("cc_projection")}
    return small.write_ldm(path.with_suffix(layout), poseless(state, ldm.UNET + "input_blocks.0.0.weight"))


def poseless(state: dict[str, torch.Tensor], first: str) -> dict[str, torch.Tensor]:
    return state | {first: state[first][:, :4].contiguous()}


LAYOUTS = (".ckpt", ".safetensors", "diffusers")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, image_variations: ViewModel) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        layout: write_variations(folder / f"base-{k}", image_variations, layout) for k, layout in enumerate(LAYOUTS)
    }


def paper(dataset: Path, base: Path | str = "", **changes: Any) -> DenoiserTask:
    return DenoiserTask(dataset, RECIPES["zero123"], replace(FAST, task="zero123", base=str(base), **changes))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_papers_model_first_answers_as_the_one_it_starts_from(
    layout: str, bases: dict[str, Path], image_variations: ViewModel, paper_dataset: Path
) -> None:
    """Without a pose's numbers: whatever latent is concatenated, the context being the photo's own embedding."""
    model = built(paper(paper_dataset, bases[layout])).eval().requires_grad_(False)
    assert model.description.unet["in_channels"] == 8
    torch.testing.assert_close(model.projection.weight[:, :16], torch.eye(16))
    assert float(model.projection.weight[:, 16:].abs().min()) > 0
    assert not model.projection.bias.any()
    photo, noisy, times = small.picture_of()[None], small.noise_of(1, 4, 16, 16), torch.tensor([500])
    tokens = model.embed(photo)
    torch.testing.assert_close(tokens, image_variations.embed(photo))
    context = model.join(tokens, torch.zeros(1, 4))
    answers = [
        model.answer(noisy, times, context, concat) for concat in (noisy * 0, noisy * 9, torch.randn(1, 4, 16, 16))
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0])
    told = image_variations.description.unet | {"in_channels": 4}
    plain = type(model.unet)(**told).eval()
    plain.load_state_dict(poseless(image_variations.unet.state_dict(), "conv_in.weight"))
    theirs = plain(noisy, times, tokens, return_dict=False)[0]
    torch.testing.assert_close(answers[0], theirs, atol=1e-4, rtol=1e-4)


def test_without_photo_the_paper_keeps_the_pose(bases: dict[str, Path], paper_dataset: Path) -> None:
    task = paper(paper_dataset, bases[".safetensors"])
    model = built(task)
    tokens, numbers = torch.randn(2, 1, 16), torch.randn(2, 4)
    context = task.drop_tokens(model, tokens, numbers, torch.tensor([True, False]))
    torch.testing.assert_close(context[0], model.join(tokens[:1] * 0, numbers[:1])[0])
    torch.testing.assert_close(context[1], model.join(tokens, numbers)[1])


def test_the_papers_latents_are_a_scaled_sample_and_a_plain_mode(bases: dict[str, Path], paper_dataset: Path) -> None:
    task = paper(paper_dataset, bases[".safetensors"])
    model = built(task)
    batch = task.draw(np.random.default_rng(0), 2, held_back=False)
    assert batch["whose"].tolist() == [0, 1]
    assert torch.equal(batch["numbers"][:, 3], batch["poses"][:, 2] - batch["photo_poses"][:, 2])
    _, concat = task.see(model, batch)
    posterior = model.vae.encode(batch["photo"][:, :3]).latent_dist  # type: ignore[union-attr]  # it has one
    torch.testing.assert_close(concat, posterior.mode())


@pytest.mark.slow
def test_the_papers_model_is_trained_continued_exported_and_sampled_from(
    bases: dict[str, Path], paper_dataset: Path, tmp_path: Path
) -> None:
    def go(folder: str, **how: Any) -> Path:
        task = paper(paper_dataset, bases[".ckpt"], steps=3, batch=2)
        return train.train(task, replace(FAST, steps=3, batch=2), tmp_path / folder, small.CPU, 0, silent, **how)

    whole = go("whole")
    go("parts", stopped=stopping(1))
    assert go("parts").read_bytes() == whole.read_bytes()
    task = paper(paper_dataset, bases[".ckpt"])
    path = train.export(whole, tmp_path / "zero123.safetensors", task.facts())
    base, model = built(task), checkpoints.load(path, small.CPU)
    assert model.description == task.description
    weights = load_file(path)
    moved = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor.half(), weights[name])}
    assert "unet.conv_in.weight" in moved
    assert "projection.weight" in moved
    assert not any(name.startswith(("clip.", "vae.")) for name in moved)
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    views = stage.condition(Cutout(rgba, 0, 0, 64, 64, 64, 0.8, "alpha"), PhotoCamera(0.0), model)
    (view,) = stage.sample_views(views, [Ask(90, 0, 0, 0, 0, "ddim", 2, 2.0, 0.0)], model, silent)
    assert view.pixels.shape == (small.SIZE, small.SIZE, 3)
    # And what was exported is itself something to start from.
    again = paper(paper_dataset, init=str(path))
    assert again.description == task.description
    assert all(torch.equal(tensor.half(), weights[name]) for name, tensor in built(again).state_dict().items())


def test_a_text_to_image_model_is_no_start(paper_dataset: Path, tmp_path: Path, image_variations: ViewModel) -> None:
    state = {name: tensor for name, tensor in small.publish(image_variations).items() if "visual" not in name}
    del state["cc_projection.weight"]
    path = small.write_ldm(tmp_path / "text.safetensors", state)
    with pytest.raises(WeightsError, match=r"lacks the tensor cond_stage_model\.model\.visual"):
        paper(paper_dataset, path)


# Going on -------------------------------------------------------------------------------------------------------------


def stopping(after: int) -> Callable[[], bool]:
    steps = iter([False] * (after - 1) + [True])
    return lambda: next(steps)


@pytest.mark.bench
def test_a_continued_run_ends_with_the_same_bits(
    dataset: Path, volume_file: Path, narrow: None, tmp_path: Path
) -> None:
    def go(folder: str, **how: Any) -> bytes:
        return train.train(
            pocket(dataset, volume_file), FAST, tmp_path / folder, small.CPU, 0, silent, **how
        ).read_bytes()

    whole = go("whole")
    go("parts", stopped=stopping(2))
    assert go("parts") == whole


def ship(task: DenoiserTask, folder: Path) -> Path:
    """What a short run of it exports."""
    checkpoint = train.train(task, FAST, folder / "first", small.CPU, 0, silent)
    return train.export(checkpoint, folder / "pocket.safetensors", task.facts())


def test_a_run_starts_from_exported_weights(dataset: Path, volume_file: Path, narrow: None, tmp_path: Path) -> None:
    task = pocket(dataset, volume_file)
    shipped = ship(task, tmp_path)
    settings = replace(FAST, task="pocket-views", init=str(shipped), rate=0.0, decay=0.0, average=0.5)
    later = DenoiserTask(dataset, RECIPES["pocket-views"], settings)
    assert later.description == task.description
    checkpoint = train.train(later, settings, tmp_path / "second", small.CPU, 1, silent)
    again = train.export(checkpoint, tmp_path / "again.safetensors", later.facts())
    before, after = load_file(shipped), load_file(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_a_run_builds_on_stays_whatever_it_starts_from(
    dataset: Path, volume_file: Path, narrow: None, tmp_path: Path
) -> None:
    task = pocket(dataset, volume_file)
    shipped = ship(task, tmp_path)
    other = tmp_path / "volume.safetensors"
    raw = volume_file.read_bytes()
    save_file({name: tensor * 2 for name, tensor in load_file(volume_file).items()}, other, with_head(read_head(raw)))
    settings = replace(FAST, task="pocket-views", base=str(other), init=str(shipped), steps=1, rate=0.0, decay=0.0)
    later = DenoiserTask(dataset, RECIPES["pocket-views"], settings)
    again = load_file(
        train.export(
            train.train(later, settings, tmp_path / "second", small.CPU, 0, silent), tmp_path / "a.safetensors", {}
        )
    )
    before, base = load_file(shipped), load_file(other)
    assert all(torch.equal(again[f"volume.{name}"], tensor.half()) for name, tensor in base.items())
    assert all(torch.equal(again[name], before[name]) for name in before if not name.startswith("volume."))


def test_a_volume_is_learnt_on_from_the_one_of_a_whole_model(
    dataset: Path, volume_file: Path, narrow: None, tmp_path: Path
) -> None:
    task = pocket(dataset, volume_file)
    shipped = ship(task, tmp_path)
    net = VolumeNet(NET)
    train.begin(net, shipped)
    of_it = load_file(volume_file)
    assert all(torch.equal(tensor, of_it[name].float()) for name, tensor in net.state_dict().items())


def test_weights_of_something_else_are_refused(dataset: Path, volume_file: Path, narrow: None, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing is named"):
        pocket(dataset, "")
    with pytest.raises(MissingInputError):
        pocket(dataset, tmp_path / "nowhere.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="does not say what it is"):
        pocket(dataset, tmp_path / "x.safetensors")
    weights = load_file(volume_file)
    del weights["first.weight"]
    save_file(weights, tmp_path / "half.safetensors", with_head({"kind": "volume", "description": asdict(NET)}))
    with pytest.raises(WeightsError, match="not those that it describes"):
        pocket(dataset, tmp_path / "half.safetensors").build()
    task = pocket(dataset, volume_file)
    with pytest.raises(WeightsError, match="not weights of this task"):
        train.train(task, replace(FAST, init=str(volume_file)), tmp_path / "run", small.CPU, 0, silent)
    with pytest.raises(MissingInputError):
        train.train(task, replace(FAST, init=str(tmp_path / "no")), tmp_path / "run", small.CPU, 0, silent)


def test_pictures_of_another_size_are_refused(tmp_path: Path, volume_file: Path, narrow: None) -> None:
    viewsets.write(tmp_path / "objects" / "00" / "0.safetensors", photographed(0, side=16))
    with pytest.raises(SettingsError, match="16 px"):
        pocket(tmp_path, volume_file)
