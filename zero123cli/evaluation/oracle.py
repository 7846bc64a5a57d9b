"""A view model that knows the object: it answers with the exact noise that belongs to the true picture at the pose.

What the lift makes of it is what the lift can make of a perfect prior: the ceiling of every view model, and the proof
of the optimiser without any weights. Its latents are pictures: RGBA on white.
Letters: B latents, S side of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifacts import Views
from ..cameras import TRAINING_DISTANCE, Viewpoint
from ..diffusion.viewmodel import Description, alphas_cumprod
from ..diffusion.volume import USUAL_HALF
from ..scenes.raycast import prepare, render
from ..scenes.surface import Surface
from .rig import Case

SIDE = 64  # px


class Oracle:
    """Knows the object as it lies in the frame of its photo's cutout."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, truth: Surface, size: int = SIDE) -> None:
        self.description = Description("oracle", "original", {}, {}, None, size=size)
        self.prepared = prepare(truth)
        self.alphas = alphas_cumprod()

    def predict(
        self, condition: Any, latents: Tensor, timesteps: Tensor, poses: Sequence[Viewpoint], guidance: float
    ) -> Tensor:
        a = self.alphas[timesteps].float()[:, None, None, None]
        true = torch.stack([self.look(pose) for pose in poses])
        return (latents - a.sqrt() * true) / (1 - a).sqrt()

    def look(self, pose: Viewpoint) -> Tensor:  # (4, S, S) in [-1, 1]
        """The true picture, on white."""
        fov_deg = 2 * math.degrees(math.atan(USUAL_HALF))
        shown = render(self.prepared, pose, size=self.description.size, fov_deg=fov_deg, samples=2)
        rgba = torch.from_numpy(shown.rgba.astype(np.float32) / 255).permute(2, 0, 1)
        return torch.cat([rgba[:3] * rgba[3:] + 1 - rgba[3:], rgba[3:]]) * 2 - 1

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        return pictures

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def know(case: Case, size: int = SIDE) -> Oracle:
    """The oracle of an object: moved and scaled so that its photo's cutout is what a common camera sees of it."""
    scale = USUAL_HALF * TRAINING_DISTANCE / case.unit
    moved = (case.truth.vertices - case.middle) * scale
    return Oracle(replace(case.truth, vertices=moved.astype(np.float32)), size)


def as_views(oracle: Oracle, case: Case) -> Views:
    """The photo before the oracle, which needs nothing of it."""
    alpha = torch.from_numpy(case.cutout.rgba.astype(np.float32) / 255).permute(2, 0, 1)[None]
    small = F.interpolate(alpha, (oracle.description.size,) * 2, mode="area")[0]
    empty = np.zeros(0, np.float32)
    return Views(
        np.zeros((1, 1), np.float32), small.numpy(), case.camera.elevation_deg, TRAINING_DISTANCE, empty, empty, empty
    )
