"""A view model whose concatenated condition depends on the pose: the photo's volume as seen from there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from zero123cli import artifacts
from zero123cli.artifacts import Ask, Cutout, PhotoCamera
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import checkpoints
from zero123cli.diffusion.viewmodel import Description, ViewModel
from zero123cli.diffusion.volume import VolumeDescription, VolumeNet
from zero123cli.errors import UsageError, WeightsError
from zero123cli.stages import views as stage
from zero123cli.watch import silent

NET = VolumeDescription(size=16, depth=16, colour=8, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
TOLD = Description(
    "pocket", "original", small.UNET, small.CLIP, None, size=16, tokens="patches", volume=asdict(NET)
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ViewModel:
    torch.manual_seed(0)
    made = ViewModel(TOLD).eval().requires_grad_(False)
    torch.nn.init.normal_(made.volume.last[-1].weight, std=0.5)  # type: ignore[union-attr]  # it has one
    return made


def photo(side: int = 16) -> torch.Tensor:
    chance = torch.Generator().manual_seed(3)
    return torch.rand(4, side, side, generator=chance) * 2 - 1


@pytest.mark.parametrize("told", [None, [], {"size": "large"}, asdict(NET) | {"channels": [10**7, 10**7]}])
def test_a_volume_alone_that_describes_itself_wrongly_is_refused(told: object, tmp_path: Path) -> None:
    head = artifacts.with_head({"kind": "volume"} | ({"description": told} if told is not None else {}))
    save_file({"x": torch.zeros(1)}, tmp_path / "volume.safetensors", head)
    with pytest.raises(WeightsError, match="no volume net of ours"):
        checkpoints.load(tmp_path / "volume.safetensors", small.CPU)
    if not told:
        with pytest.raises(WeightsError, match="no volume net of ours"):
            checkpoints.inspect(tmp_path / "volume.safetensors")


def test_volume_is_predicted_once_and_seen_from_each_pose(model: ViewModel) -> None:
    seen = model.condition(photo(), Viewpoint(0, 10))
    assert seen.volume is not None
    calls = []
    handle = model.volume.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]  # it has one
    poses = [Viewpoint(0, 10), Viewpoint(90, 10), Viewpoint(180, -20)]
    concat = model.concat_at(seen, poses)
    handle.remove()
    assert calls == []
    assert concat.shape == (3, 4, 16, 16)
    assert float((concat[0] - concat[1]).abs().max()) > 0.05
    assert float((concat[1] - concat[2]).abs().max()) > 0.05
    torch.testing.assert_close(model.concat_at(seen, poses[1:2])[0], concat[1])


def test_only_the_azimuth_between_photo_and_view_matters(model: ViewModel) -> None:
    a = model.concat_at(model.condition(photo(), Viewpoint(0, 10)), [Viewpoint(70, 20)])
    b = model.concat_at(model.condition(photo(), Viewpoint(100, 10)), [Viewpoint(170, 20)])
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_prediction_reads_the_rendering_and_without_a_condition_does_not(model: ViewModel) -> None:
    seen = model.condition(photo(), Viewpoint())
    other = replace(seen, volume=type(seen.volume)(-seen.volume.occupancy, -seen.volume.colour, seen.volume.elevation))  # type: ignore[union-attr,misc]  # it has one
    noisy, times = torch.randn(2, 4, 16, 16), torch.tensor([100, 700])
    poses = [Viewpoint(45), Viewpoint(200)]
    conditioned = [model.predict(which, noisy, times, poses, 1.0) for which in (seen, other)]
    free = [model.predict(which, noisy, times, poses, 0.0) for which in (seen, other)]
    assert float((conditioned[0] - conditioned[1]).abs().max()) > 1e-4
    torch.testing.assert_close(free[0], free[1])


def test_a_compact_file_brings_the_volume_along(model: ViewModel, tmp_path: Path) -> None:
    path = small.write_compact(tmp_path / "pocket.safetensors", model)
    loaded = checkpoints.load(path, small.CPU)
    poses = [Viewpoint(33, 12)]
    noisy, times = torch.randn(1, 4, 16, 16), torch.tensor([400])
    ours, theirs = (m.predict(m.condition(photo(), Viewpoint()), noisy, times, poses, 3.0) for m in (model, loaded))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert checkpoints.inspect(path)["parameters"]["volume"] > 0


def test_the_stage_keeps_the_volume_and_samples_from_it(model: ViewModel) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    cutout = Cutout(rgba, 0, 0, 64, 64, 64, 0.8, "alpha")
    views = stage.condition(cutout, PhotoCamera(10.0), model)
    assert views.occupancy.shape == (1, 16, 16, 16)
    back = artifacts.unpack(artifacts.Views, artifacts.pack(views))
    ask = Ask(90, 0, 0, 0, 0, "ddim", 3, 2.0, 0.0)
    first, second = (stage.sample_views(kept, [ask], model, silent)[0] for kept in (views, back))
    assert first.pixels.shape == (16, 16, 4)
    assert (first.pixels == second.pixels).all()


# The volume alone -----------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    net = VolumeNet(NET)
    torch.nn.init.normal_(net.last[-1].weight, std=0.5)
    path = tmp_path / "volume.safetensors"
    head = artifacts.with_head({"kind": "volume", "description": asdict(NET), "licence": "CC0"})
    save_file({name: tensor.half() for name, tensor in net.state_dict().items()}, path, head)
    return path


def test_a_volume_alone_is_a_view_model_whose_pictures_are_its_renderings(alone: Path) -> None:
    model = checkpoints.load(alone, small.CPU)
    seen = model.condition(photo(), Viewpoint(0, 10))
    poses = [Viewpoint(50, 10), Viewpoint(170, 0)]
    shown = model.concat_at(seen, poses)
    noise, times = torch.randn(2, 4, 16, 16), torch.tensor([300, 800])
    noisy = model.add_noise(shown, noise, times)
    torch.testing.assert_close(model.predict(seen, noisy, times, poses, 3.0), noise, atol=1e-4, rtol=1e-4)
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    views = stage.condition(Cutout(rgba, 0, 0, 64, 64, 64, 0.8, "alpha"), PhotoCamera(None), model)
    view = stage.sample_views(views, [Ask(90, 0, 0, 0, 0, "ddim", 3, 2.0, 0.0)], model, silent)[0]
    turned = Viewpoint(90, views.photo_elevation_deg, views.distance)
    true = model.concat_at(
        model.condition(stage.to_picture(Cutout(rgba, 0, 0, 64, 64, 64, 0.8, "alpha"), model.description),
                        Viewpoint(0, views.photo_elevation_deg, views.distance)), [turned]
    )  # fmt: skip
    assert np.abs(view.pixels.astype(int) - stage.to_pixels(true[0]).astype(int)).max() <= 1


def test_a_volume_alone_is_told_by_its_header_and_refused_when_damaged(alone: Path) -> None:
    facts = checkpoints.inspect(alone)
    assert facts["kind"] == "volume" and facts["licence"] == "CC0"
    assert facts["parameters"] == {"volume": sum(p.numel() for p in VolumeNet(NET).parameters())}
    with pytest.raises(UsageError, match="compact as it is"):
        checkpoints.convert(alone, alone.with_name("x.safetensors"), ema=True, pose_kind=None, dtype="float16")
    tensors = load_file(alone)
    first = next(iter(tensors))
    for broken in ({k: v for k, v in tensors.items() if k != first}, tensors | {first: torch.zeros(3)}):
        head = artifacts.with_head({"kind": "volume", "description": asdict(NET)})
        save_file(broken, alone, head)
        with pytest.raises(WeightsError, match="no volume net of ours"):
            checkpoints.load(alone, small.CPU)


THREADS = """
import torch
from zero123cli.diffusion.rays import render_numba
from zero123cli.diffusion.volume import Framing, Volume
from zero123cli.training.targets import look_up

torch.set_num_threads(1)
frame = Framing(torch.tensor([[0.0, 20, 2]]), torch.tensor([[0, 0, 0.4]]))
render_numba(Volume(torch.zeros(1, 8, 8, 8), torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 19)), frame, frame, 8)
look_up(torch.ones(1, 8, 8, 8, dtype=torch.bool), frame, 8, 8)
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_rendering_leaves_torch_the_threads_that_it_was_allowed() -> None:
    """Numba's threads and torch's are OpenMP's: starting the ones must not give the others more."""
    told = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=told, timeout=120)
    assert run.stdout == "1\n", run.stderr
