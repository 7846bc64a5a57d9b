"""A small network that sees what a photo is of: a U-Net from a picture to a mask.

Most of its work is done on a grid four times coarser than the picture, in few wide convolutions; at the bottom every
place looks at every other, since what stands out is a question about the whole picture. It is told from the start how
far each colour is from those along the border (the boundary prior of Wei, Wen, Zhu and Sun, 2012).
Letters: B pictures, S side, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, DEVIATION = 0.45, 0.27  # of photos' values


@dataclass(frozen=True)
class SaliencyDescription:
    """What the weights do not say by themselves."""

    size: int = 160  # px, a multiple of 16
    channels: tuple[int, int, int] = (32, 64, 96)  # on grids 4, 8 and 16 times coarser
    blocks: tuple[int, int, int] = (2, 3, 2)
    fine: int = 16  # channels at half the picture's size


class Conv(nn.Sequential):
    """A 3x3 convolution with its norm and kink."""

    def __init__(self, inward: int, outward: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inward, outward, 3, stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(outward),
            nn.ReLU(),
        )


class Block(nn.Module):
    """Two convolutions beside the input."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = Conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class Attention(nn.Module):
    """Every place looks at every other."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.mix, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        places = self.norm(x.flatten(2).transpose(1, 2))
        mixed = self.mix(places).view(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = mixed[0], mixed[1], mixed[2]
        weights = (query @ key.transpose(-1, -2) / (channels // self.heads) ** 0.5).softmax(-1)
        seen = (weights @ value).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.out(seen).transpose(1, 2).reshape(batch, channels, height, width)


class SaliencyNet(nn.Module):
    """RGB in [0, 1], (B, 3, S, S), to logits (B, 1, S, S); in training also coarse ones of the way there."""

    def __init__(self, description: SaliencyDescription) -> None:
        super().__init__()
        self.description = description
        first, second, third = description.channels
        fine = description.fine
        self.lines = Conv(3, fine, stride=2)
        self.enter = Conv(3 * 16 + 4, first)
        self.wide = nn.Sequential(*(Block(first) for _ in range(description.blocks[0])))
        self.down = Conv(first, second, stride=2)
        self.middle = nn.Sequential(*(Block(second) for _ in range(description.blocks[1])))
        self.lower = Conv(second, third, stride=2)
        deep = [part for _ in range(description.blocks[2]) for part in (Block(third, dilation=2), Attention(third))]
        self.deep = nn.Sequential(*deep)
        self.lift1, self.join1 = nn.Conv2d(third, second, 1), Conv(second, second)
        self.lift2, self.join2 = nn.Conv2d(second, first, 1), Conv(first, first)
        self.settle = Block(first)
        self.join3 = Conv(first // 4 + fine, fine)
        self.answer = nn.Conv2d(fine, 4, 3, padding=1)
        self.coarse = nn.ModuleList([nn.Conv2d(third, 1, 1), nn.Conv2d(second, 1, 1)])

    def forward(self, picture: Tensor) -> Tensor:
        return self.levels(picture)[0]

    def levels(self, picture: Tensor) -> list[Tensor]:
        """The logits, finest first."""
        x = (picture - MEAN) / DEVIATION
        lines = self.lines(x)
        line = torch.linspace(-1, 1, x.shape[-1] // 4, device=x.device)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(x), -1, -1, -1)
        wide = self.wide(self.enter(torch.cat([F.pixel_unshuffle(x, 4), places, strangeness(x)], 1)))
        middle = self.middle(self.down(wide))
        deep = self.deep(self.lower(middle))
        middle = self.join1(middle + double(self.lift1(deep)))
        wide = self.settle(self.join2(wide + double(self.lift2(middle))))
        fine = self.join3(torch.cat([F.pixel_shuffle(wide, 2), lines], 1))
        return [F.pixel_shuffle(self.answer(fine), 2), self.coarse[1](middle), self.coarse[0](deep)]


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def strangeness(picture: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, 2, S / 4, S / 4)
    """How far each place's colour is from the nearest on the border: on its upper three sides, and on the lower one.

    The lower one counts apart, for there an object may leave the picture.
    """
    if torch.is_autocast_enabled(picture.device.type):  # half precision cannot tell colours apart
        with torch.autocast(picture.device.type, enabled=False):
            return strangeness(picture.float())
    colour = F.avg_pool2d(picture, 4)
    side = colour.shape[-1]
    upper = torch.cat([colour[..., 0, :], colour[..., :, 0], colour[..., :, -1]], -1)
    places = colour.flatten(2)  # (B, 3, N)
    lengths = places.square().sum(1)[:, :, None]
    found = []
    for border in (upper, colour[..., -1, :]):  # (B, 3, M)
        squares = lengths + border.square().sum(1)[:, None, :] - 2 * places.transpose(1, 2) @ border
        found.append(squares.amin(-1).clamp_min(1e-4).sqrt().view(-1, side, side))
    return torch.stack(found, 1)
