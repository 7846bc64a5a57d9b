"""What runs on a card, run on a device that mixes with the CPU no more than a card does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from conftest import QUICK
from elsewhere import a_second_device
from test_lift import TINY, real
from test_training_denoisers import FAST, NET, dataset, narrow, pocket, volume_file
from torch import nn

from zero123cli import machine
from zero123cli.diffusion import sampling
from zero123cli.diffusion.volume import VolumeDescription
from zero123cli.machine import Backend
from zero123cli.stages import lift as stage
from zero123cli.stages import views as views_stage
from zero123cli.stages.lift import lift
from zero123cli.training import train
from zero123cli.training.cutters import CutterTask
from zero123cli.training.saliency import SaliencyDescription
from zero123cli.training.volumes import VolumeTask
from zero123cli.watch import silent

__all__ = ["dataset", "narrow", "volume_file"]  # fixtures

HERE = ("--device", "cpu")  # as the quick way says it


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The second device, which the program finds when it looks for one."""
    plain = torch.no_grad()(functools.partial(sampling.sample.__wrapped__))
    monkeypatch.setattr(views_stage, "sample", plain)
    with a_second_device(monkeypatch) as name:
        monkeypatch.setattr(machine, "pick", lambda *_, **__: Backend(name, "float32", "elsewhere"))
        yield name


def test_the_device_itself(there: str) -> None:
    numbers = torch.arange(6.0, device=there).view(2, 3)
    assert numbers.device.type == there and (numbers * torch.ones(2, 3).to(there)).sum().item() == 15
    for mix in (lambda: numbers + torch.ones(2, 3), lambda: numbers @ torch.ones(3, 1)):
        with pytest.raises(RuntimeError, match="mix devices"):
            mix()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)).to(there)
    picture = torch.rand(2, 3, 8, 8).to(there)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = net(picture).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {parameter.device.type for parameter in net.parameters()} == {there}


@pytest.mark.slow
def test_a_mesh(desk: Path, reconstruct: Callable[..., Any], there: str) -> None:
    quick = [word for word in QUICK if word not in HERE]
    reconstruct("disc.png", "-o", "there.glb", "--set", "lift.steps=2", quick=quick)
    assert (desk / "there.glb").is_file()


def test_a_lift_that_begins_as_a_volume(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = VolumeDescription(size=32, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
    monkeypatch.setattr(stage, "fit_volume", functools.partial(stage.fit_volume, steps=3, points=1 << 8))
    model, photo = real(replace(small.PIXELS, volume=vars(net).copy()))
    made = lift([photo], model.to(there), replace(TINY, refine_steps=2), 0, silent)
    assert made.weights.size


def test_views(desk: Path, inside: Callable[..., int], there: str) -> None:
    assert inside("views", "disc.png", "--model", "small.safetensors", "--azimuth", "90", "-o", "view.png") == 0
    assert (desk / "view.png").is_file()


@pytest.mark.parametrize("field", ["small", "voxels"])
@pytest.mark.parametrize("lean", [False, True], ids=["whole", "lean"])
def test_a_lift_with_a_model_that_has_latents(there: str, field: Any, lean: bool) -> None:
    model, photo = real(small.SMALL)
    model = model.to(there)
    model.lean = lean
    every = replace(TINY, field=field, kind="sds", steps=2, size=(8,), photo_size=(4,), start="blob", bound=1.0)
    terms = replace(every, depth_photo=(1.0,), depth_around=(1.0,), near_view=(1.0,), emptiness=(1.0,), sparsity=(1.0,))
    made = lift([photo], model, terms, 0, silent)
    assert {part.device.type for part in model.vae.parameters()} == {there}
    assert made.weights.size


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["volume", "pocket-views", "cutter"])
@pytest.mark.slow
def test_training(kind: str, dataset: Path, volume_file: Path, there: str, tmp_path: Path) -> None:
    seen = SaliencyDescription(size=32, channels=(16, 16, 16), blocks=(1, 1, 1), fine=8)
    tasks: dict[str, Callable[[], train.Task]] = {
        "volume": lambda: VolumeTask(dataset, NET),
        "pocket-views": lambda: pocket(dataset, volume_file),
        "cutter": lambda: CutterTask(dataset, seen, backdrops=2),
    }
    short = replace(FAST, steps=2, batch=2)
    train.train(tasks[kind](), short, tmp_path, Backend(there, "float32", "elsewhere"), 0, silent)
    train.train(tasks[kind](), replace(short, steps=3), tmp_path, Backend(there, "float32", "elsewhere"), 0, silent)
    assert [path.name for path in train.checkpoints(tmp_path)][-1] == "checkpoint-00000003.safetensors"
