"""Files in the published layout, their weights made by the recipe of ../shared/golden/README.md.

For tensor NAME of shape S: standard normal numbers from PCG64(crc32(NAME)); with two or more dimensions divided by the
root of the product of S[1:]; else one plus a tenth of them for a "weight"; else a fiftieth.
"""

from __future__ import annotations

import json
import sys
import types
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"


def make_tensor(name: str, shape: list[int]) -> np.ndarray:
    chance = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    x = np.asarray(chance.standard_normal(shape, np.float32))
    scaled = (
        x / np.sqrt(np.prod(shape[1:])) if len(shape) >= 2 else 1 + 0.1 * x if name.endswith("weight") else 0.02 * x
    )
    return np.asarray(scaled, np.float32)


def make_state(layout: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The whole state dict, schedule buffers and counters too."""
    state = {}
    buffers = schedule()
    for name, (dtype, shape) in layout["tensors"].items():
        if name in layout["not_filled"]:
            value = buffers.get(name, np.zeros(shape))
            state[name] = torch.tensor(value, dtype=getattr(torch, dtype)).reshape(shape)
        else:
            state[name] = torch.from_numpy(make_tensor(name, shape))
    return state


def schedule() -> dict[str, Any]:
    """The buffers that training keeps beside the weights; nothing reads them."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    return {"betas": betas, "alphas_cumprod": kept, "model_ema.decay": 0.9999, "model_ema.num_updates": 0}


@contextmanager
def lightning() -> Iterator[types.ModuleType]:
    """Classes under Lightning's names while a checkpoint is written; none is there when it is read."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    modules = {name: types.ModuleType(name) for name in names}
    last = modules[names[-1]]
    last.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": names[-1]})  # type: ignore[attr-defined]  # made here
    sys.modules.update(modules)
    try:
        yield last
    finally:
        for name in names:
            del sys.modules[name]


def write_checkpoint(path: Path, state: dict[str, torch.Tensor], *, extras: bool = True) -> None:
    """A pickle as Lightning 1.4 wrote it: callbacks keyed by class, Adam's moments beside the weights."""
    whole: dict[str, Any] = {"state_dict": state}
    with lightning() as module:
        if extras:
            some = list(state)[:20]
            moments = {
                k: {
                    "step": 105000,
                    "exp_avg": torch.zeros_like(state[name]),
                    "exp_avg_sq": torch.zeros_like(state[name]),
                }
                for k, name in enumerate(some)
            }
            whole |= {
                "epoch": 17,
                "global_step": 105000,
                "pytorch-lightning_version": "1.4.2",
                "callbacks": {module.ModelCheckpoint: {"monitor": None, "best_model_score": torch.tensor(0.1)}},
                "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": list(range(20))}]}],
                "lr_schedulers": [{"last_epoch": 105000}],
            }
        torch.save(whole, path)


def read_layout(path: Path) -> dict[str, Any]:
    layout: dict[str, Any] = json.loads(path.read_text())
    return layout


def relative_error(ours: torch.Tensor | np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())


def compare(path: Path, numbers: Any, *, ema_too: bool = True) -> Iterator[tuple[str, float]]:
    """Name and relative error of every recorded array, computed by the model that lies at `path`, in float32."""
    from zero123cli.cameras import Viewpoint
    from zero123cli.diffusion import checkpoints, sampling, viewmodel
    from zero123cli.machine import Backend

    def load(ema: bool) -> viewmodel.ViewModel:
        return checkpoints.load(path, Backend("cpu", "float32", "CPU"), ema=ema, pose_kind="original")

    given = {name: torch.from_numpy(np.asarray(numbers[name])) for name in numbers}
    picture = given["image_u8"].float() / 127.5 - 1
    photo = Viewpoint(0.0, 0.0, 1.85)
    poses = [Viewpoint(azimuth, -polar, 1.85 + radius) for polar, azimuth, radius in given["poses_deg"].tolist()]
    noisy, times = given["x_t"], given["t"]

    model = load(ema=True)
    seen = model.condition(picture, photo)
    ours: dict[str, Any] = {
        "clip_input_sub": viewmodel.clip_input(picture[None], model.description.clip["image_size"])[..., ::16, ::16],
        "clip_embedding": seen.embedding[None],
        "concat_latent": seen.concat[None],
        "latent_mean_scaled": model.encode(picture[None]),
        "T": [[relative] for relative in pose_vectors(poses, photo)],
        "crossattn": model.context(seen, poses),
        "alphas_cumprod": model.alphas,
    }
    with torch.inference_mode():
        for name, scale in (("eps_cond", 1.0), ("eps_uncond", 0.0), ("eps_cfg3", 3.0)):
            ours[name] = model.predict(seen, noisy, times, poses[: len(noisy)], scale)
        if "z" in given:
            ours["decoded_sub"] = model.decode(given["z"])[..., ::8, ::8]
        if "ddim_xT" in given:
            ours |= walk(model, seen, poses[1], given, sampling)
    for name in numbers:
        if name in ours:
            yield name, relative_error(ours[name], numbers[name])
    if "eps_cond_raw_not_ema" in given and ema_too:
        del model
        raw = load(ema=False)
        seen = raw.condition(picture, photo)
        with torch.inference_mode():
            predicted = raw.predict(seen, noisy, times, poses[: len(noisy)], 1.0)
        yield "eps_cond_raw_not_ema", relative_error(predicted, numbers["eps_cond_raw_not_ema"])


def pose_vectors(poses: Any, photo: Any) -> list[tuple[float, ...]]:
    from zero123cli.cameras import relative_pose

    return [relative_pose("original", photo, pose) for pose in poses]


def walk(model: Any, seen: Any, pose: Any, given: dict[str, torch.Tensor], sampling: Any) -> dict[str, torch.Tensor]:
    """The recorded DDIM walk: 10 steps asked for, 9 walked."""
    steps = len(given["ddim10_timesteps"])
    assert sampling.original_timesteps(steps)[::-1] == given["ddim10_timesteps"].tolist()[:-1]

    def denoise(latents: torch.Tensor, time: int) -> torch.Tensor:
        return model.predict(seen, latents, torch.full((1,), time), [pose], 3.0)

    *_, last = sampling.walk_ddim_original(denoise, given["ddim_xT"], None, model.alphas, steps, 0.0)
    return {"ddim10_latent": last, "ddim10_image_sub": model.decode(last)[..., ::8, ::8]}


# What is given to the networks and not computed by them.
INPUTS = {"image_u8", "poses_deg", "x_t", "t", "z", "ddim_xT", "ddim10_timesteps"}


def bound(name: str) -> float:
    """The relative error that is allowed: a walk of nine steps multiplies it."""
    return 1e-3 if name.startswith("ddim10") else 1e-4
