"""Stage 2, cutout -> views: the photo put before the view model once, then pictures of its other sides.

What a photo costs (its context tokens and its latent) is one artifact, each sampled picture another.
Letters: S side of a picture, B views sampled side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..artifacts import Ask, Cutout, PhotoCamera, View, Views
from ..cameras import Viewpoint
from ..diffusion.sampling import count_steps, sample, seed_of
from ..diffusion.viewmodel import Condition, Description, ViewModel
from ..diffusion.volume import Volume, guess_elevation
from ..errors import DivergedError, UsageError
from ..watch import Caution, Progress, Watch, silent

UNSURE = 20.0  # degrees


def condition(cutout: Cutout, camera: PhotoCamera, model: ViewModel, watch: Watch = silent) -> Views:
    """The photo as the model sees it."""
    picture = to_picture(cutout, model.description)
    told = camera.elevation_deg
    seen = model.condition(picture, Viewpoint(0.0, told or 0.0, camera.distance))
    if told is None and seen.volume is not None:
        told, spread = guess_elevation(seen.volume)
        if spread > UNSURE:
            text = f"the photo's elevation is a guess: {told:.0f} degrees, give or take {spread:.0f}"
            watch(Caution("elevation-unsure", text, "if the mesh leans, give --photo-elevation DEGREES"))
    return Views(
        embedding=seen.embedding.float().cpu().numpy(),
        concat=seen.concat.float().cpu().numpy(),
        photo_elevation_deg=told or 0.0,
        distance=camera.distance,
        **{name: as_array(getattr(seen.volume, name, None)) for name in VOLUME},
    )


VOLUME = ("occupancy", "colour", "elevation")


def as_array(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(0, np.float32) if tensor is None else tensor.float().cpu().numpy()


def recall(views: Views, photo: Viewpoint, device: torch.device, dtype: torch.dtype) -> Condition:
    """What the model made of the photo that this camera took."""
    volume = None
    if len(views.colour):
        volume = Volume(*(torch.from_numpy(getattr(views, name)).to(device) for name in VOLUME))
    return Condition(
        torch.from_numpy(views.embedding).to(device, dtype),
        torch.from_numpy(views.concat).to(device, dtype),
        photo,
        volume,
    )


def to_picture(cutout: Cutout, description: Description) -> Tensor:  # float32 (C, S, S) in [-1, 1]
    """The cutout on white at the model's size; with its alpha where the model knows alpha."""
    side = description.size
    rgba = np.asarray(cutout.rgba, np.float32) / 255
    colour = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    layers = [colour[..., c] for c in range(3)] + [rgba[..., 3]] * (description.picture_channels == 4)
    kind = Image.Resampling.BOX if len(rgba) >= side else Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(layer).resize((side, side), kind)) for layer in layers]
    return torch.from_numpy(np.stack(resized)).clamp(0, 1) * 2 - 1


def sample_views(views: Views, asks: Sequence[Ask], model: ViewModel, watch: Watch) -> list[View]:
    """The pictures asked for, sampled side by side; they agree in how."""
    photo = Viewpoint(0.0, views.photo_elevation_deg, views.distance)
    seen = recall(views, photo, model.device, model.dtype)
    poses = [
        # Over the top only where the photo's elevation is a guess.
        Viewpoint(
            ask.azimuth_deg,
            min(90.0, max(-90.0, photo.elevation_deg + ask.elevation_deg)),
            photo.distance + ask.distance,
        )
        for ask in asks
    ]
    seeds = [seed_of(ask.seed, pose, ask.number) for ask, pose in zip(asks, poses, strict=True)]
    how = asks[0]
    if model.certain and any(ask.number for ask in asks):
        watch(Caution("one-answer", "this model has one answer: all samples of a view are the same", about_run=True))
    if model.description.pose_kind == "stable" and any(ask.distance for ask in asks):
        raise UsageError("this model knows no distance", where="--distance", remedy="leave it out")
    walk = sample(model, seen, poses, seeds, sampler=how.sampler, steps=how.steps, guidance=how.guidance, eta=how.eta)
    total = 1 if model.certain else count_steps(how.sampler, how.steps)
    for done, latents in enumerate(walk, 1):
        last = latents
        watch(Progress("views", done, total, f"{len(asks)} side by side" if len(asks) > 1 else ""))
    with torch.inference_mode():
        pictures = model.decode(last)
    if not torch.isfinite(pictures).all():
        remedy = "try --dtype float32 or bfloat16, or a lower --guidance"
        raise DivergedError("the model answered with values that are not numbers (NaN or Inf)", remedy=remedy)
    return [
        View(to_pixels(picture), ask.azimuth_deg, ask.elevation_deg, ask.distance, ask.number)
        for picture, ask in zip(pictures, asks, strict=True)
    ]


def to_pixels(picture: Tensor) -> np.ndarray:  # (C, S, S) in about [-1, 1] -> uint8 (S, S, C)
    """Models that know alpha see colours on white; in a file they are the object's own."""
    levels = (picture.clamp(-1, 1) + 1) / 2
    if len(levels) == 4:
        colour, alpha = levels[:3], levels[3:]
        levels = torch.cat([((colour - 1 + alpha) / alpha.clamp_min(1e-3)).clamp(0, 1), alpha])
    return (levels * 255).round().byte().permute(1, 2, 0).cpu().numpy()
