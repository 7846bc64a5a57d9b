"""How an object is framed: a square around its box, the box's longer side a given share of the square's.

The photo of a user and the renderings of the training set are framed by the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

FAINT = 0.1  # alpha from which a pixel counts for the object's box


@dataclass(frozen=True)
class Box:
    """A rectangle, px."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def longer(self) -> float:
        return max(self.right - self.left, self.bottom - self.top)

    def scaled(self, factor: float) -> Box:
        return Box(self.left * factor, self.top * factor, self.right * factor, self.bottom * factor)

    def moved(self, right: float, down: float) -> Box:
        return Box(self.left + right, self.top + down, self.right + right, self.bottom + down)


def find_box(mask: np.ndarray, level: float) -> Box:  # float (h, w)
    """The box of what is at least `level`; the whole picture if nothing is."""
    rows, columns = np.flatnonzero((mask >= level).any(1)), np.flatnonzero((mask >= level).any(0))
    if not len(rows):
        return Box(0, 0, mask.shape[1], mask.shape[0])
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def frame(box: Box, ratio: float) -> Box:
    """The square around the middle of `box` in which its longer side takes `ratio` of the side."""
    half = box.longer / ratio / 2
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return Box(x - half, y - half, x + half, y + half)


def crop(image: Image.Image, square: Box, size: int) -> Image.Image:
    """`square` of the image at `size` px; empty beyond the image. Colours are weighted by alpha."""
    factor = int(square.longer // (2 * size))
    if factor > 1:  # far too large: averaged down first, so that the crop below stays small
        image = image.reduce(factor)
        square = square.scaled(1 / factor)
    margin = 4  # px, more than the filter reaches when enlarging
    left, top = int(np.floor(square.left)) - margin, int(np.floor(square.top)) - margin
    right, bottom = int(np.ceil(square.right)) + margin, int(np.ceil(square.bottom)) + margin
    inner = square.moved(-left, -top)
    filter_ = Image.Resampling.BICUBIC if square.longer < size else Image.Resampling.LANCZOS
    part = image.crop((left, top, right, bottom))
    return part.resize((size, size), filter_, (inner.left, inner.top, inner.right, inner.bottom))
