"""The task of the volume net: from one picture of an object to what lies along its rays.

Occupancy is held against the known inside, colours against a second picture of the object through the renderer,
the elevation against the camera's.
Letters: M objects, N pictures of each, B pictures of a batch, S side.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.volume import ELEVATIONS, Framing, Volume, VolumeDescription, VolumeNet, covered, render
from ..errors import SettingsError
from .packs import open_pack
from .targets import compare, look_up
from .train import Batch
from .viewsets import hold_out, list_objects, read, refuse_empty, refuse_mixed, refuse_size

SEEN = 32  # px of the second pictures
RENDERED = 3  # one picture in so many is also rendered from elsewhere: that costs more than it teaches
MINOR = 0.3  # weight of renderings and the elevation: at 1 half of the gradient's noise is theirs, and little else


class VolumeTask:
    """Everything lies in memory: pictures as bytes, the inside as bits."""

    def __init__(self, data: Path, description: VolumeDescription) -> None:
        self.description = description
        pictures, inside, poses, squares, names = read_objects(data)
        refuse_size(data, pictures.shape[2], description.size)
        if not inside.size:
            remedy = "run `zero123 data render` with --occupancy 64"
            raise SettingsError("it does not say what is inside the objects", where=str(data), remedy=remedy)
        self.pictures = pictures  # uint8 (M, N, S, S, 4)
        self.inside = inside  # uint8 (M, R^3 / 8), packed
        self.cells = round((inside.shape[1] * 8) ** (1 / 3))
        self.poses, self.squares = poses, squares  # float32 (M, N, 3), both
        self.own, self.held = hold_out(names)

    def facts(self) -> dict[str, Any]:
        """What the weights do not say by themselves."""
        return {"kind": "volume", "description": asdict(self.description)}

    def build(self) -> nn.Module:
        return VolumeNet(self.description)

    def raw(self, name: str) -> bool:
        return False

    def groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": rate, "base": rate}]

    def steady(self, model: nn.Module) -> list[nn.Module]:
        return [model]

    def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> Batch:
        """Pairs of pictures of the same object: the first is shown, the second asked for."""
        pool = self.held if held_back else self.own
        objects = pool[chance.integers(0, len(pool), count)]
        views = np.stack([chance.permutation(self.pictures.shape[1])[:2] for _ in range(count)])
        if views.shape[1] == 1:  # an object with a single picture is asked for that again
            views = np.repeat(views, 2, 1)
        inside = np.unpackbits(self.inside[objects], axis=1, count=self.cells**3).astype(bool)
        batch = {
            "inside": torch.from_numpy(inside.reshape(count, self.cells, self.cells, self.cells)),
            "poses": torch.from_numpy(self.poses[objects[:, None], views]),
            "squares": torch.from_numpy(self.squares[objects[:, None], views]),
        }
        pictures = on_white(self.pictures[objects[:, None], views])
        if not held_back:
            pictures = vary_colours(pictures, chance)
            if chance.random() < 0.5:
                mirror(pictures, batch)
        shown, asked = torch.from_numpy(pictures[:, 0]), torch.from_numpy(pictures[:, 1])
        batch["picture"] = shown.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        batch["asked"] = F.interpolate(asked.permute(0, 3, 1, 2), (SEEN, SEEN), mode="area")
        return batch

    def targets(self, batch: Batch) -> tuple[Framing, Framing, Tensor]:
        photo = Framing(batch["poses"][:, 0].contiguous(), batch["squares"][:, 0].contiguous())
        other = Framing(batch["poses"][:, 1].contiguous(), batch["squares"][:, 1].contiguous())
        return photo, other, look_up(batch["inside"], photo, self.description.depth, self.description.size)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        photo, other, inside = self.targets(batch)
        volume: Volume = model(batch["picture"])
        entropy, lost = compare(volume.occupancy, inside, covered(batch["picture"]))
        few = max(1, len(inside) // RENDERED)
        with torch.autocast(inside.device.type, enabled=False):  # half precision has no place for places
            seen = render(head(volume, few), head(photo, few), head(other, few), SEEN)
        asked, tilts = batch["asked"][:few], elevation_targets(batch["poses"][:, 0, 1])
        return {
            "occupancy": entropy,
            "overlap": lost,
            "colour": MINOR * (seen[:, :3] - asked[:, :3]).abs().mean(),
            "cover": MINOR * (seen[:, 3:] - asked[:, 3:] / 2 - 0.5).abs().mean(),
            "elevation": MINOR * 0.1 * F.cross_entropy(volume.elevation.float(), tilts),
        }

    def judge(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Mean overlap of the prediction and of a plain extrusion with the truth, and the elevation's error."""
        photo, other, inside = self.targets(batch)
        volume: Volume = model(batch["picture"])
        solid = inside > 0.5
        prism = (batch["picture"][:, 3:] > 0) & middle_bins(solid)
        degrees = torch.tensor(ELEVATIONS, device=solid.device, dtype=torch.float32)
        guessed = volume.elevation.float().softmax(-1) @ degrees
        seen = render(volume, photo, other, SEEN)
        wrong = ((seen[:, :3] - batch["asked"][:, :3]) / 2).square().mean((1, 2, 3))
        return {
            "iou": float(overlap_of(volume.occupancy > 0, solid).mean()),
            "extrusion": float(overlap_of(prism.expand_as(solid), solid).mean()),
            "psnr": float((-10 * wrong.log10()).mean()),
            "elevation_error": float((guessed - batch["poses"][:, 0, 1]).abs().median()),
        }

    def show(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """Rows of what was shown, what was asked for, what was rendered, and the depth that was predicted."""
        few = {name: tensor[:12] for name, tensor in batch.items()}
        photo, other, _ = self.targets(few)
        volume: Volume = model(few["picture"])
        seen = render(volume, photo, other, SEEN)
        first = (volume.occupancy > 0).float().argmax(1).float() / self.description.depth
        hit = (volume.occupancy > 0).any(1)
        depth = torch.where(hit, 1 - first, torch.zeros_like(first))[:, None].expand(-1, 3, -1, -1) * 2 - 1
        side = self.description.size
        rows = [few["picture"][:, :3], few["asked"][:, :3], seen[:, :3], depth]
        tall = torch.cat([torch.cat(list(F.interpolate(row.float(), (side, side))), 2) for row in rows], 1)
        pixels: np.ndarray = ((tall.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
        return pixels


def read_objects(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Pictures, packed inside, poses, squares and names, of a packed file or a dataset's folder."""
    if data.is_file():
        pack = open_pack(data)
        refuse_empty(data, pack.names)
        count = len(pack.names)
        inside = np.stack([np.packbits(pack.inside(k).ravel()) for k in range(count)])
        return np.stack([pack.pictures(k) for k in range(count)]), inside, pack.poses, pack.squares, list(pack.names)
    sets = [read(path) for path in list_objects(data)]
    refuse_empty(data, [one.name for one in sets])
    refuse_mixed(data, [(one.rgba.shape, one.inside.shape, one.truth) for one in sets])
    return (
        np.stack([one.rgba for one in sets]),
        np.stack([np.packbits(one.inside.ravel()) for one in sets]),
        np.stack([one.poses for one in sets]),
        np.stack([one.squares for one in sets]),
        [one.name for one in sets],
    )


def head(whole: Any, count: int) -> Any:
    """The first pictures of a volume or a framing."""
    return type(whole)(*(getattr(whole, member.name)[:count] for member in fields(whole)))


def on_white(rgba: np.ndarray) -> np.ndarray:  # uint8 (..., 4) -> float32 (..., 4) in [-1, 1]
    shares = rgba.astype(np.float32) / 255
    alpha = shares[..., 3:]
    return np.concatenate([shares[..., :3] * alpha + 1 - alpha, alpha], -1) * 2 - 1


def vary_colours(pictures: np.ndarray, chance: np.random.Generator) -> np.ndarray:  # (B, 2, S, S, 4) in [-1, 1]
    """Each object in other colours and another light, the same in both its pictures; white stays white."""
    count = len(pictures)
    order = np.stack([chance.permutation(3) for _ in range(count)])
    colour = np.take_along_axis(pictures[..., :3], order[:, None, None, None], -1) / 2 + 0.5
    gamma = np.exp(chance.normal(0, 0.25, (count, 1, 1, 1, 3))).astype(np.float32)
    varied = np.clip(colour, 0, 1) ** gamma
    return np.concatenate([varied * 2 - 1, pictures[..., 3:]], -1).astype(np.float32)


def mirror(pictures: np.ndarray, batch: Batch) -> None:
    """The whole batch in a mirror: pictures left to right, the object and its cameras along x, in place."""
    pictures[:] = pictures[:, :, :, ::-1].copy()
    batch["inside"] = batch["inside"].flip(1)
    batch["poses"] = batch["poses"] * torch.tensor([-1.0, 1.0, 1.0])
    batch["squares"] = batch["squares"] * torch.tensor([-1.0, 1.0, 1.0])


def elevation_targets(degrees: Tensor) -> Tensor:  # (B,) -> (B, bins)
    """A distribution about as wide as a bin around the true elevation."""
    bins = torch.tensor(ELEVATIONS, device=degrees.device, dtype=torch.float32)
    return (-((bins - degrees[:, None]) ** 2) / (2 * 5.0**2)).softmax(-1)


def middle_bins(solid: Tensor) -> Tensor:  # bool (B, D, S, S) -> bool (1, D, 1, 1)
    """The bins of an extrusion: half the frame's reach, in the middle."""
    depth = solid.shape[1]
    bins = torch.arange(depth, device=solid.device)
    return ((bins - (depth - 1) / 2).abs() < depth / 5)[None, :, None, None]


def overlap_of(a: Tensor, b: Tensor) -> Tensor:  # bool (B, ...), both -> (B,)
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return both / either.clamp_min(1)
