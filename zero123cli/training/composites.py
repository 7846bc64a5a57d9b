"""Composites that look like photos: rendered objects before made-up backdrops, with shadows and a camera's faults.

One object, or a few that stand together, is what the photo is of; what is small and aside, or large and out of focus
behind it, is not. Drawn afresh each time: no two pictures are the same.
Letters: M objects, N pictures of each, S side.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .backdrops import Chance, make_backdrop
from .viewsets import FRAMED

EMPTY = 0.03  # share of pictures without an object


class Backdrops:
    """A bounded set of backdrops, each made when it is first asked for."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.kept: dict[int, Image.Image] = {}

    def draw(self, chance: Chance, side: int, least: float = 0.55) -> Image.Image:
        """A part of one of them, mirrored half the time."""
        number = self.first + int(chance.integers(self.count))
        if number not in self.kept:
            self.kept[number] = Image.fromarray(make_backdrop(number))
        whole = self.kept[number]
        wide, tall = chance.uniform(least, 1, 2) * whole.width
        left, top = chance.uniform(0, whole.width - wide), chance.uniform(0, whole.height - tall)
        part = whole.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall))
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else part


@dataclass(frozen=True)
class Place:
    """Where an object stands in the picture, in shares of its side."""

    x: float
    y: float
    size: float  # of its longer side
    aspect: float = 1.0  # by which it is wider; photos of any shape are squeezed into a square
    turn: float = 0.0  # radians
    mirrored: bool = False


def compose(
    chance: Chance, sprites: np.ndarray, backdrops: Backdrops, side: int
) -> tuple[np.ndarray, np.ndarray]:  # uint8 (M, N, S, S, 4) -> uint8 (S, S, 3), uint8 (S, S)
    """A picture, and the mask of what it is of."""
    ground = backdrops.draw(chance, side)
    truth = np.zeros((side, side), np.float32)
    if chance.random() < 0.2:
        ground = add_far_object(ground, chance, sprites)
    if chance.random() < 0.12:
        ground = add_crowd(ground, chance, sprites)
    aside = int(chance.integers(1, 4)) if chance.random() < 0.4 else 0
    if aside and chance.random() < 0.5:
        ground = add_clutter(ground, chance, sprites, aside)
        aside = 0
    if chance.random() < 0.5:
        ground = ground.filter(ImageFilter.GaussianBlur(chance.exponential(1.5)))
    if aside:
        ground = add_clutter(ground, chance, sprites, aside)
    if chance.random() >= EMPTY:
        place = draw_place(chance)
        picture, truth = put(ground, truth, draw_sprite(chance, sprites), place, chance, backdrops)
        if chance.random() < 0.15:  # another that belongs to it
            angle, reach = chance.uniform(0, 2 * np.pi), place.size * chance.uniform(0.3, 0.6)
            beside = Place(
                x=place.x + reach * np.cos(angle),
                y=place.y + 0.3 * reach * np.sin(angle),
                size=place.size * chance.uniform(0.5, 1.0),
                aspect=place.aspect,
            )
            picture, truth = put(picture, truth, draw_sprite(chance, sprites), beside, chance, backdrops)
    else:
        picture = ground
    shown, mask = expose(picture, chance), np.round(truth * 255).astype(np.uint8)
    return add_bars(shown, mask, chance) if chance.random() < 0.04 else (shown, mask)


def draw_sprite(chance: Chance, sprites: np.ndarray) -> np.ndarray:  # -> uint8 (S, S, 4)
    sprite: np.ndarray = sprites[chance.integers(sprites.shape[0]), chance.integers(sprites.shape[1])]
    return sprite


def draw_place(chance: Chance) -> Place:
    """Mostly large and near the middle; sometimes small, aside, or cut by the border, most often by the lower one."""
    kind = chance.random()
    size, x, y = chance.uniform(0.5, 0.95), 0.5 + chance.normal(0, 0.05), 0.5 + chance.normal(0, 0.06)
    if kind < 0.2:
        size, x, y = chance.uniform(0.25, 0.6), 0.5 + chance.normal(0, 0.14), 0.5 + chance.normal(0, 0.12)
    elif kind < 0.35:
        size = chance.uniform(0.9, 1.4)
        x, y = 0.5 + chance.normal(0, 0.1), 0.5 + chance.choice([0.5, 0.5, 0.0]) * (size - 0.7) + chance.normal(0, 0.05)
    return Place(
        float(x),
        float(y),
        float(size),
        aspect=float(np.exp(chance.normal(0, 0.25))),
        turn=float(chance.normal(0, 0.08) if chance.random() < 0.8 else chance.uniform(-np.pi, np.pi)),
        mirrored=bool(chance.random() < 0.5),
    )


def put(
    ground: Image.Image,
    truth: np.ndarray,  # float32 (S, S)
    sprite: np.ndarray,  # uint8 (S, S, 4), straight alpha
    place: Place,
    chance: Chance,
    backdrops: Backdrops,
) -> tuple[Image.Image, np.ndarray]:
    """The picture with one object more, before what is there, and the mask with it."""
    side = ground.width
    layer = np.asarray(fit(sprite, place, side), np.float32) / 255
    alpha = layer[..., 3]
    colour = dress(layer[..., :3], alpha, ground, chance, backdrops)
    behind = np.asarray(ground, np.float32) / 255
    if chance.random() < 0.65:
        behind = behind * (1 - cast_shadow(alpha, chance)[..., None])
    mixed = behind + (colour - behind) * alpha[..., None]
    return to_image(mixed), np.maximum(truth, alpha)


def fit(sprite: np.ndarray, place: Place, side: int) -> Image.Image:  # uint8 (S, S, 4)
    """The sprite in the picture's frame, empty around it. Pillow weighs colours by alpha."""
    image = Image.fromarray(sprite)
    scale = place.size * side / (FRAMED * image.width)  # px of the picture in one of the sprite
    while scale < 0.5:
        image, scale = image.reduce(2), scale * 2
    wide = scale * place.aspect**0.5 * (-1 if place.mirrored else 1)
    tall = scale / place.aspect**0.5
    cos, sin = np.cos(place.turn), np.sin(place.turn)
    a, b, d, e = cos / wide, sin / wide, -sin / tall, cos / tall  # from the picture to the sprite
    x, y, middle = place.x * side, place.y * side, image.width / 2
    way = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)
    return image.transform((side, side), Image.Transform.AFFINE, way, Image.Resampling.BILINEAR)


def dress(
    colour: np.ndarray,  # float32 (S, S, 3), straight
    alpha: np.ndarray,  # float32 (S, S)
    ground: Image.Image,
    chance: Chance,
    backdrops: Backdrops,
) -> np.ndarray:  # float32 (S, S, 3)
    """Another colouring and light; often a texture on what was flat; sometimes near the ground's own colours."""
    if chance.random() < 0.3:
        colour = colour[..., chance.permutation(3)]
    kind = chance.random()
    if kind < 0.5:
        surface = np.asarray(backdrops.draw(chance, ground.width, least=0.2), np.float32) / 255
        if kind < 0.15:  # only the light of the object is kept
            shade = colour.mean(-1, keepdims=True)
            colour = surface * (shade / max(float((shade[..., 0] * alpha).sum() / (alpha.sum() + 1)), 0.05))
        else:
            grey = surface.mean(-1, keepdims=True)
            colour = colour * (1 + chance.uniform(0.3, 1.5) * (grey / max(float(grey.mean()), 0.05) - 1))
    if chance.random() < 0.5:  # less saturated, as most things are
        grey = colour.mean(-1, keepdims=True)
        colour = grey + (colour - grey) * chance.uniform(0, 1)
    if chance.random() < 0.5:
        colour = np.clip(colour, 0, 1) ** np.float32(np.exp(chance.normal(0, 0.4)))
    if chance.random() < 0.2:
        own = (colour * alpha[..., None]).sum((0, 1)) / (alpha.sum() + 1)
        other = np.asarray(ground.resize((1, 1), Image.Resampling.BOX), np.float32)[0, 0] / 255
        colour = colour + chance.uniform(0, 0.8) * (other - own)
    if chance.random() < 0.4:
        angle = chance.uniform(0, 2 * np.pi)
        y, x = np.mgrid[: len(alpha), : len(alpha)] / len(alpha) - 0.5
        colour = colour * (1 + chance.uniform(0, 0.8) * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    return np.clip(colour, 0, 1).astype(np.float32)


def cast_shadow(alpha: np.ndarray, chance: Chance) -> np.ndarray:  # float32 (S, S) -> (S, S), the share of light lost
    """On the floor, squeezed and slanted from where the object stands, or on the wall close behind it."""
    rows = np.flatnonzero(alpha.max(1) > 0.5)
    if not len(rows):
        return np.zeros_like(alpha)
    side = len(alpha)
    foot = rows[-1] + 1 - chance.uniform(0, 0.06) * side
    squeeze, slant = chance.uniform(0.05, 0.5), chance.normal(0, 0.8)
    shift = 0.0
    if chance.random() < 0.25:
        squeeze, slant, shift = 1.0, 0.0, chance.normal(0, 0.05) * side
        foot += chance.uniform(-0.03, 0.05) * side
    # A point of the shadow at height h above the foot is that of the object at h / squeeze, moved by the slant.
    x_of = (1.0, slant, -slant * foot - shift)
    y_of = (0.0, 1 / squeeze, foot - foot / squeeze)
    image = Image.fromarray((alpha * 255).astype(np.uint8))
    thrown = image.transform((side, side), Image.Transform.AFFINE, x_of + y_of, Image.Resampling.BILINEAR)
    soft = thrown.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 6)))
    return np.asarray(soft, np.float32) * np.float32(chance.uniform(0.1, 0.8) / 255)


def add_clutter(ground: Image.Image, chance: Chance, sprites: np.ndarray, count: int) -> Image.Image:
    """Small things aside."""
    for _ in range(count):
        angle, reach = chance.uniform(0, 2 * np.pi), chance.uniform(0.35, 0.6)
        place = Place(0.5 + reach * np.cos(angle), 0.5 + reach * np.sin(angle), chance.uniform(0.06, 0.28))
        ground = lay_any(ground, chance, sprites, place)
    return ground


def add_crowd(ground: Image.Image, chance: Chance, sprites: np.ndarray) -> Image.Image:
    """Many things behind, as on a shelf or in a street."""
    for _ in range(int(chance.integers(5, 15))):
        place = Place(chance.uniform(0, 1), chance.uniform(0, 0.85), chance.uniform(0.1, 0.4))
        ground = lay_any(ground, chance, sprites, place)
    return ground


def add_far_object(ground: Image.Image, chance: Chance, sprites: np.ndarray) -> Image.Image:
    """Something large behind, far out of focus."""
    place = Place(chance.uniform(0, 1), chance.uniform(0, 1), chance.uniform(0.8, 2.5))
    ground = lay_over(ground, draw_sprite(chance, sprites), place)
    return ground.filter(ImageFilter.GaussianBlur(chance.uniform(2, 8)))


def lay_any(ground: Image.Image, chance: Chance, sprites: np.ndarray, place: Place) -> Image.Image:
    """Something or other, in other colours."""
    return lay_over(ground, draw_sprite(chance, sprites)[..., (*chance.permutation(3), 3)], place)


def lay_over(ground: Image.Image, sprite: np.ndarray, place: Place) -> Image.Image:  # uint8 (S, S, 4)
    layer, behind = (np.asarray(one, np.float32) / 255 for one in (fit(sprite, place, ground.width), ground))
    return to_image(behind + (layer[..., :3] - behind) * layer[..., 3:])


def expose(picture: Image.Image, chance: Chance) -> np.ndarray:  # -> uint8 (S, S, 3)
    """What a camera does to it: a soft lens, exposure, white balance, a vignette, noise, and compression."""
    side = picture.width
    if chance.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0.2, 1.0)))
    gain = np.exp(chance.normal(0, 0.06, 3) + chance.normal(0, 0.12))
    curves = np.clip(np.linspace(0, 1, 256) * gain[:, None], 0, 1) ** np.exp(chance.normal(0, 0.2))
    light = np.asarray(picture.point((curves.ravel() * 255).tolist()), np.float32) / 255
    if chance.random() < 0.3:
        y, x = np.mgrid[:side, :side] / side - 0.5
        light = light * (1 - chance.uniform(0, 0.8) * (x**2 + y**2))[..., None]
    if chance.random() < 0.3:  # haze, a flat scan
        light = light + np.float32(chance.uniform(0, 0.3)) * (np.float32(chance.uniform(0.3, 1)) - light)
    if chance.random() < 0.04:
        light = np.repeat(light.mean(-1, keepdims=True), 3, -1)
    if chance.random() < 0.6:
        grain = chance.standard_normal((side, side, 1 + 2 * int(chance.integers(2))), np.float32)
        light = light + grain * np.float32(chance.exponential(0.02))
    shown = to_image(light)
    if chance.random() < 0.3:
        page = io.BytesIO()
        shown.save(page, "JPEG", quality=int(chance.integers(25, 90)))
        shown = Image.open(page)
    return np.array(shown)


def add_bars(
    picture: np.ndarray, mask: np.ndarray, chance: Chance
) -> tuple[np.ndarray, np.ndarray]:  # uint8 (S, S, 3), uint8 (S, S)
    """Black or white above and below, or to both sides, as around a film's picture."""
    axis, side = int(chance.integers(2)), len(picture)
    wide = int(side * chance.uniform(0.03, 0.2))
    ends = np.r_[:wide, side - wide : side]
    for page, level in ((picture, chance.choice([0, 0, 255])), (mask, 0)):
        page.swapaxes(0, axis)[ends] = level
    return picture, mask


def to_image(colour: np.ndarray) -> Image.Image:  # float (S, S, 3) in [0, 1]
    return Image.fromarray((np.clip(colour, 0, 1) * 255).astype(np.uint8))
