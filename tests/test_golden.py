"""The published code's recorded numbers, at small widths, through every way in which weights can be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zero123cli.diffusion import checkpoints, ldm
from zero123cli.diffusion.checkpoints import build

pytestmark = pytest.mark.skipif(not golden.GOLDEN.is_dir(), reason="../shared/golden is not here")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden.make_state(golden.read_layout(golden.GOLDEN / "zero123-tiny-layout.json"))


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "published.ckpt"
    golden.write_checkpoint(path, state)
    return path


def write_safetensors(checkpoint: Path, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "published.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def write_bare(checkpoint: Path, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "bare.ckpt"
    golden.write_checkpoint(path, state, extras=False)
    return path


def write_compact(checkpoint: Path, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "compact.safetensors"
    checkpoints.convert(checkpoint, path, ema=True, pose_kind="original", dtype="float32")
    return path


def write_pipeline(checkpoint: Path, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """A folder as diffusers writes it, of the averaged weights."""
    unet, clip, vae = ldm.measure({name: tuple(tensor.shape) for name, tensor in state.items()})
    path = folder / "pipeline"
    parts = {"unet": unet, "vae": vae, "image_encoder": clip, "clip_camera_projection": {"embedding_dim": 768}}
    tensors: dict[str, dict[str, torch.Tensor]] = {part: {} for part in parts}
    names = {"unet": "unet", "vae": "vae", "clip": "image_encoder", "projection": "clip_camera_projection"}
    for name in build(checkpoints.Description("tiny", "original", unet, clip, vae)).state_dict():
        place = ldm.place(name, unet, vae, ema=True)
        tensor = state[place.name]
        part, _, rest = name.partition(".")
        rest = f"proj.{rest}" if part == "projection" else rest
        tensors[names[part]][rest] = (place.change(tensor) if place.change else tensor).clone().contiguous()
    for part, config in parts.items():
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text(json.dumps(config))
        stem = "model" if part == "image_encoder" else "diffusion_pytorch_model"
        save_file(tensors[part], path / part / f"{stem}.safetensors")
    return path


@pytest.mark.parametrize(
    "write",
    [
        None,
        pytest.param(write_safetensors, marks=pytest.mark.slow),
        pytest.param(write_bare, marks=pytest.mark.slow),
        pytest.param(write_compact, marks=pytest.mark.slow),
        pytest.param(write_pipeline, marks=pytest.mark.slow),
    ],
)
def test_every_recorded_array_is_met(write, checkpoint: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # one of the functions above
    path = write(checkpoint, state, tmp_path) if write else checkpoint
    keeps_raw = write in (None, write_safetensors, write_bare)
    with np.load(golden.GOLDEN / "zero123-tiny.npz") as numbers:
        recorded = {name: numbers[name] for name in numbers}
    errors = dict(golden.compare(path, recorded, ema_too=keeps_raw))
    expected = set(recorded) - golden.INPUTS - (set() if keeps_raw else {"eps_cond_raw_not_ema"})
    assert set(errors) == expected
    assert {name: error for name, error in errors.items() if error > golden.bound(name)} == {}


def test_the_recipe_tells_averaged_weights_from_raw_ones() -> None:
    """Otherwise taking the wrong set would go unseen."""
    with np.load(golden.GOLDEN / "zero123-tiny.npz") as numbers:
        assert golden.relative_error(numbers["eps_cond"], numbers["eps_cond_raw_not_ema"]) > 0.1
