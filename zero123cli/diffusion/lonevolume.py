"""A view model without a denoiser: what the photo's volume shows from a pose is the answer itself.

It is what is left of the embedded model when only its volume net is there, behind the same seam: `predict` gives the
noise that leads to the volume's rendering, so that samplers and the lift need not know.
Letters: B latents, C channels, h and w of a latent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import HEAD, as_tuple
from ..cameras import Viewpoint
from ..errors import WeightsError
from ..machine import Backend
from .tensorfiles import TensorFile
from .viewmodel import Condition, Description, ViewModel, alphas_cumprod
from .volume import VolumeDescription, VolumeNet

KIND = "volume"  # of the file, in its header


class LoneVolume(ViewModel):
    """The volume net alone; pictures are their own latents."""

    def __init__(self, net: VolumeDescription, licence: str = "") -> None:
        nn.Module.__init__(self)
        volume = asdict(net)
        self.description = Description(
            "volume", "original", {}, {}, None, size=net.size, tokens="patches", licence=licence, volume=volume
        )
        self.volume = VolumeNet(net)
        self.unet = self.clip = self.vae = None
        self.alphas = alphas_cumprod()
        self.lean = False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def embed(self, picture: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 1, 1)
        return picture.new_zeros(len(picture), 1, 1)

    def picture_at(self, condition: Condition, poses: Sequence[Viewpoint]) -> Tensor:
        return self.concat_at(condition, poses).float()

    def predict(
        self,
        condition: Condition,
        latents: Tensor,
        timesteps: Tensor,
        poses: Sequence[Viewpoint],
        guidance: float = 1.0,
    ) -> Tensor:
        alpha = self.alpha(timesteps)
        shown = self.concat_at(condition, poses).float()
        return (latents.to(self.device).float() - alpha.sqrt() * shown) / (1 - alpha).sqrt()


def is_one(file: TensorFile) -> bool:
    """Whether a file holds a volume net and nothing else, by its header."""
    return read_head(file).get("kind") == KIND


def read_head(file: TensorFile) -> dict[str, Any]:
    try:
        head = json.loads(file.metadata[HEAD])
    except (KeyError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def load(file: TensorFile, backend: Backend) -> LoneVolume:
    """The model of a file that is one."""
    head = read_head(file)
    try:
        told = {name: as_tuple(value) for name, value in head["description"].items()}
        description = VolumeDescription(**told)
        with torch.device("meta"):  # whatever it says of itself takes no memory yet
            slots = VolumeNet(description).state_dict()
        wrong = [name for name, slot in slots.items() if file.infos[name].shape != tuple(slot.shape)]
        if wrong:
            raise ValueError(wrong[0])
        model = LoneVolume(description, str(head.get("licence", "")))
        weights = {name: file.read(name).to(getattr(torch, backend.dtype)) for name in slots}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise refusal(file, error) from error
    assert model.volume is not None
    model.volume.load_state_dict(weights, assign=True)
    ready: LoneVolume = model.to(backend.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ready.eval().requires_grad_(False)


def refusal(file: TensorFile, error: Exception) -> WeightsError:
    remedy = "export it again with this version"
    return WeightsError(f"it is no volume net of ours ({error})", where=str(file.path), remedy=remedy)


def inspect(file: TensorFile) -> dict[str, Any]:
    """What it holds, without loading it."""
    told = read_head(file)
    try:
        size, precision = told["description"]["size"], next(iter(file.infos.values())).dtype
    except (KeyError, TypeError) as error:
        raise refusal(file, error) from error
    return {
        "path": str(file.path),
        "kind": KIND,
        "family": "volume",
        "pose_kind": "original",
        "licence": told.get("licence", ""),
        "picture": f"{size} px",
        "context": "none",
        "unet": [],
        "parameters": {"volume": sum(math.prod(info.shape) for info in file.infos.values())},
        "precision": precision,
        "ema": False,
        "tensors": len(file.infos),
        "bytes": file.path.stat().st_size,
        "skipped": sorted(file.notes),
    }
