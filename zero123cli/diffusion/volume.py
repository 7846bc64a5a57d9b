"""A volume from one picture: for each pixel of the cutout's frame, what lies along its ray.

The frame of the volume is the camera's own, so that no elevation is needed to predict it: u runs right and v down over
the picture in [-1, 1], w away from the camera in [-REACH, REACH], in half sides of the frame at the object's middle. A
point (u, v, w) stands at x = u (1 + w h), y = -v (1 + w h), z = -w, where h is half the frame's side at distance 1.
The photo's elevation comes with it, as a distribution over bins.
Letters: B pictures, S side of the picture, D depth bins, C channels, V volume cells a side of the colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 1.2  # half sides: objects deeper than this are cut off
EMPTY = -16.0  # logit of what cannot be
USUAL_HALF = 0.35  # h of a common photo: an object of size 1 at twice its size
ELEVATIONS = tuple(range(-20, 71, 5))  # degrees, the middles of the bins


@dataclass(frozen=True)
class VolumeDescription:
    """What the weights do not say by themselves."""

    size: int = 64  # px of the picture
    depth: int = 64  # bins of occupancy along a ray
    colour: int = 32  # bins of colour along a ray, and colour cells a side
    fine: int = 64  # channels at half the picture's side
    channels: tuple[int, ...] = (96, 160, 192)  # at a quarter of it and below
    blocks: int = 2
    attention: tuple[bool, ...] = (False, True, True)


@dataclass(frozen=True)
class Volume:
    occupancy: Tensor  # (B, D, S, S), logits
    colour: Tensor  # (B, 3, V, V, V), over depth, rows, columns, in [-1, 1]
    elevation: Tensor  # (B, len(ELEVATIONS)), logits


class Block(nn.Module):
    """Two convolutions beside the input, as in the denoisers."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(16, inward), nn.Conv2d(inward, outward, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(16, outward), nn.Conv2d(outward, outward, 3, padding=1)
        self.skip = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return self.skip(x) + inner


class Attention(nn.Module):
    """Every place looks at every other. Written out: the fused CPU kernel's backward pass is slower at these sizes."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(16, channels)
        self.mix, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        places = self.norm(x).flatten(2).transpose(1, 2)
        mixed = self.mix(places).view(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = mixed
        weights = (query @ key.transpose(-1, -2) / (channels // self.heads) ** 0.5).softmax(-1)
        seen = (weights @ value).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.out(seen).transpose(1, 2).reshape(batch, channels, height, width)


class VolumeNet(nn.Module):
    """A U-Net over the picture whose channels, at the end, are depth.

    Most of it works at a quarter of the picture's side and below, where a step costs little; outlines come from the
    picture itself: nothing is along a ray that the cutout leaves empty, and colours start from the pixel's own.
    """

    def __init__(self, description: VolumeDescription) -> None:
        super().__init__()
        self.description = description
        widths = description.channels
        self.fine = nn.Conv2d(16, description.fine, 3, padding=1)
        self.first = nn.Conv2d(64, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inward = widths[0]
        kept = [inward]
        for level, width in enumerate(widths):
            for _ in range(description.blocks):
                self.down.append(self.stage(inward, width, description.attention[level]))
                inward = width
                kept.append(inward)
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(inward, inward, 3, stride=2, padding=1))
                kept.append(inward)
        self.middle = nn.Sequential(Block(inward, inward), Attention(inward), Block(inward, inward))
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(description.blocks):
                self.up.append(self.stage(inward + kept.pop(), width, description.attention[level]))
                inward = width
            kept.pop()
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inward, inward, 3, padding=1)))
        self.open = nn.Conv2d(inward, 4 * description.fine, 1)
        self.join = Block(description.fine, description.fine)
        out = 4 * description.depth + 3 * description.colour
        self.last = nn.Sequential(nn.GroupNorm(16, description.fine), nn.SiLU(), nn.Conv2d(description.fine, out, 1))
        self.tilt = nn.Sequential(nn.Linear(widths[-1], 128), nn.SiLU(), nn.Linear(128, len(ELEVATIONS)))

    @staticmethod
    def stage(inward: int, outward: int, attends: bool) -> nn.Module:
        block = Block(inward, outward)
        return nn.Sequential(block, Attention(outward)) if attends else block

    def forward(self, picture: Tensor) -> Volume:  # (B, 4, S, S) in [-1, 1], colours on white
        side = self.description
        x = self.first(F.pixel_unshuffle(picture, 4))
        kept = [x]
        for layer in self.down:
            x = layer(x)
            kept.append(x)
        x = self.middle(x)
        tilt = self.tilt(x.mean((2, 3)))
        for layer in self.up:
            if isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Upsample):
                kept.pop()
                x = layer(x)
            else:
                x = layer(torch.cat([x, kept.pop()], 1))
        x = self.join(F.pixel_shuffle(self.open(x), 2) + self.fine(F.pixel_unshuffle(picture, 2)))
        occupancy, colour = self.last(x).split([4 * side.depth, 3 * side.colour], 1)
        logits = F.pixel_shuffle(occupancy, 2).float().masked_fill(~covered(picture)[:, None], EMPTY)
        # Each ray through the object meets it somewhere: the likeliest cell is inside, however thin the part. Learning
        # looks at all cells of the ray: raised alone, whichever leads would be pushed up for what the others lack.
        met = logits.logsumexp(1, keepdim=True) if self.training else logits.amax(1, keepdim=True)
        short = (-met).clamp_min(0)
        logits = logits + short * (picture[:, 3:].float() > 0)
        own = torch.atanh(0.97 * mean_colour(picture, side.colour))
        cells = torch.tanh(own[:, :, None] + colour.unflatten(1, (3, side.colour)).float())
        return Volume(logits, cells, tilt)


def covered(picture: Tensor) -> Tensor:  # (B, 4, S, S) in [-1, 1] -> bool (B, S, S)
    """Where the object may be: its pixels and their neighbours."""
    return F.max_pool2d(picture[:, 3:].float(), 3, 1, 1)[:, 0] > -0.95


def mean_colour(picture: Tensor, cells: int) -> Tensor:  # (B, 4, S, S) on white -> (B, 3, cells, cells) in [-1, 1]
    """The object's own colour in each cell, without the white around it."""
    share = picture[:, 3:].float() / 2 + 0.5
    own = F.adaptive_avg_pool2d(picture[:, :3].float() - 1 + share, cells)
    return (own / F.adaptive_avg_pool2d(share, cells).clamp_min(1e-3)).clamp(-1, 1)


def guess_elevation(volume: Volume) -> tuple[float, float]:
    """The photo's elevation and how far off it may well be (a standard deviation), degrees."""
    share = volume.elevation[0].detach().float().softmax(-1).cpu()
    bins = torch.tensor(ELEVATIONS, dtype=torch.float32)
    middle = float(share @ bins)
    return middle, float((share @ (bins - middle) ** 2).sqrt())


# Seen from elsewhere --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """Cameras on orbits around the world's origin, each with a square cut out of the plane at distance 1."""

    poses: Tensor  # (B, 3): azimuth and elevation in degrees, distance
    squares: Tensor  # (B, 3): middle to the right and up, half side

    def beside(self, volume: Volume) -> Framing:
        """The same on the volume's device."""
        device = volume.occupancy.device
        return Framing(self.poses.to(device), self.squares.to(device))

    def axes(self) -> Tensor:  # (B, 3, 3): right, up, back
        azimuth, elevation = torch.deg2rad(self.poses[:, 0]), torch.deg2rad(self.poses[:, 1])
        right = torch.stack([azimuth.cos(), torch.zeros_like(azimuth), -azimuth.sin()], -1)
        flat = elevation.cos()
        back = torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()], -1)
        return torch.stack([right, torch.linalg.cross(back, right), back], 1)

    def to_world(self, x: Tensor, y: Tensor, depth: Tensor) -> Tensor:
        """World points (B, ..., 3) of places in the frame ([-1, 1], y up) at a depth along the camera's axis."""
        form = (-1, *[1] * (x.ndim - 1))
        middle_x, middle_y, half = (column.view(form) for column in self.squares.unbind(1))
        seen = torch.stack(
            [(middle_x + x * half) * depth, (middle_y + y * half) * depth, self.poses[:, 2].view(form) - depth], -1
        )
        return torch.einsum("b...k,bkc->b...c", seen, self.axes())

    def to_volume(self, world: Tensor) -> Tensor:
        """Places (u, v, w) in the volume of these cameras of world points (B, ..., 3)."""
        x, y, back = torch.einsum("b...c,bkc->b...k", world, self.axes()).unbind(-1)
        form = (-1, *[1] * (x.ndim - 1))
        middle_x, middle_y, half = (column.view(form) for column in self.squares.unbind(1))
        distance = self.poses[:, 2].view(form)
        depth = (distance - back).clamp_min(1e-3)
        return torch.stack(
            [(x / depth - middle_x) / half, (middle_y - y / depth) / half, -back / (half * distance)], -1
        )


def pick(cells: Tensor, places: Tensor) -> Tensor:  # (B, C, D, H, W), (B, ..., 3) in [-1, 1]
    return F.grid_sample(cells.float(), places, padding_mode="border", align_corners=False)


def volume_grid(volume: Volume, photo: Framing, bound: float, cells: int) -> Tensor:  # (4, G, G, G)
    """Colours and opacities in [0, 1] over x, y, z of the world's box [-bound, bound]^3, of a single volume."""
    photo = photo.beside(volume)
    along = ((torch.arange(cells, device=photo.poses.device) + 0.5) / cells * 2 - 1) * bound
    world = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), -1)[None]
    places = photo.to_volume(world)
    places = torch.cat([places[..., :2], places[..., 2:] / REACH], -1)
    inside = (places.abs() <= 1).all(-1)
    filled = torch.sigmoid(pick(volume.occupancy[:, None], places)[:, 0]) * inside
    return torch.cat([pick(volume.colour, places)[0] / 2 + 0.5, filled])


def render(
    volume: Volume, photo: Framing, target: Framing, size: int, steps: int = 48, reach: float = 0.9
) -> Tensor:  # (B, 4, size, size): colours in [-1, 1] on white, and coverage in [0, 1]
    """The volume of the photo's cameras as the target's cameras see it."""
    photo, target = photo.beside(volume), target.beside(volume)
    across = (torch.arange(size, device=photo.poses.device) + 0.5) / size * 2 - 1
    along = ((torch.arange(steps, device=photo.poses.device) + 0.5) / steps * 2 - 1) * reach
    step, row, column = torch.meshgrid(along, across, across, indexing="ij")
    depth = target.poses[:, 2, None, None, None] + step
    x, y = column.expand_as(depth), -row.expand_as(depth)
    places = photo.to_volume(target.to_world(x, y, depth))
    places = torch.cat([places[..., :2], places[..., 2:] / REACH], -1)
    inside = (places.abs() <= 1).all(-1)
    logits = pick(volume.occupancy[:, None], places)[:, 0]
    colour = pick(volume.colour, places)
    # A cell's occupancy is its opacity over one bin; a step of another length covers more or less.
    unit = (photo.squares[:, 2] * photo.poses[:, 2])[:, None, None, None]
    bins = 2 * reach / steps / (2 * REACH * unit / volume.occupancy.shape[1])
    clear = torch.exp(F.logsigmoid(-logits) * bins) * inside + ~inside
    passed = torch.cumprod(torch.cat([torch.ones_like(clear[:, :1]), clear], 1), 1)
    weights = passed[:, :-1] * (1 - clear)
    covered = 1 - passed[:, -1:]
    return torch.cat([(weights[:, None] * colour).sum(2) + 1 - covered, covered], 1)
