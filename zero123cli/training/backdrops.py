"""Made-up backgrounds: walls and floors, skies and hills, leaves, water, rooms, and plain studio paper.

Nothing here comes from a photo. A few tiles of fractal noise are made once; textures are colours laid over them, and a
backdrop is a handful of textures under a light. The number of a backdrop decides all of it.
Letters: S side, px.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 224  # px of a backdrop
TILE = 256  # px of a tile of noise, which repeats without a seam
TILES = 24

Chance = np.random.Generator


def make_backdrop(number: int) -> np.ndarray:  # uint8 (S, S, 3)
    """The backdrop of that number."""
    chance = np.random.default_rng([20, number])
    kinds = list(BACKDROPS)
    shares = np.array([share for _, share in BACKDROPS.values()])
    kind = kinds[chance.choice(len(kinds), p=shares / shares.sum())]
    return np.asarray(light(BACKDROPS[kind][0](chance), chance))


# Textures -------------------------------------------------------------------------------------------------------------


@functools.cache
def noise_tiles() -> np.ndarray:  # float32 (TILES, TILE, TILE), mean 0, deviation 1
    """Fractal noise from rough to smooth, by its spectrum; every third is stretched along its rows."""
    chance = np.random.default_rng(10)
    down, along = np.meshgrid(np.fft.fftfreq(TILE), np.fft.rfftfreq(TILE), indexing="ij")
    tiles = []
    for k in range(TILES):
        stretch = (1.0, 1.0, 6.0)[k % 3]
        frequency = np.hypot(down, along * stretch)
        frequency[0, 0] = np.inf
        power = frequency ** -(0.5 + 1.7 * k / (TILES - 1))
        power[frequency < chance.choice([1, 3, 8]) / TILE] = 0  # no one large blot in some
        wave = np.fft.rfft2(chance.normal(size=(TILE, TILE))) * power
        tile = np.fft.irfft2(wave, (TILE, TILE))
        tiles.append((tile - tile.mean()) / tile.std())
    return np.array(tiles, np.float32)


def draw_noise(chance: Chance) -> np.ndarray:  # float32 (TILE, TILE), mostly in [-2, 2]
    """A tile, shifted, mirrored and perhaps turned on its side."""
    tile = noise_tiles()[chance.integers(TILES)]
    tile = np.roll(tile, tuple(chance.integers(0, TILE, 2)), (0, 1))[:, :: chance.choice([-1, 1])]
    return tile.T if chance.random() < 0.4 else tile


def draw_colour(chance: Chance, spread: float = 0.35) -> np.ndarray:  # float (3,), in [0, 1]
    """Mostly dull, as most surfaces are: grey, earth, wood and stone more often than bright paint."""
    grey = chance.beta(1.6, 1.6)
    saturation = chance.beta(1.0, 3.5) * 2 * spread
    warm = np.array([1.0, 0.1, -1.1]) + chance.normal(0, 0.25, 3)  # brown, sand, wood
    hue = warm if chance.random() < 0.5 else chance.normal(0, 1, 3)
    hue = hue - hue.mean()
    return np.clip(grey + saturation * hue / (np.abs(hue).max() + 1e-6), 0, 1)


def near(colour: np.ndarray, chance: Chance, spread: float) -> np.ndarray:  # (3,), in [0, 1]
    """A colour beside this one, other in lightness before other in hue."""
    return np.clip(colour + chance.normal(0, spread) + chance.normal(0, spread / 3, 3), 0, 1)


def draw_texture(chance: Chance, colour: np.ndarray | None = None) -> np.ndarray:  # float32 (TILE, TILE, 3) in [0, 1]
    """A surface: noise through one of a few curves, coloured between two or three neighbouring colours."""
    base = draw_colour(chance) if colour is None else colour
    noise = draw_noise(chance)
    curve = chance.integers(5)
    if curve == 1:  # veins
        noise = 2 * np.abs(noise) - 1
    elif curve == 2:  # rings, waves
        noise = np.sin(noise * chance.uniform(1, 6)) * 1.2
    elif curve == 3:  # patches
        noise = np.tanh(noise * 4) * 1.2
    share = np.clip(noise / 4 + 0.5, 0, 1)[..., None]
    spread = chance.choice([0.04, 0.1, 0.2])
    ends = [near(base, chance, spread) for _ in range(3)]
    surface = ends[0] + (ends[1] - ends[0]) * share
    if chance.random() < 0.5:
        surface = surface + (ends[2] - surface) * np.clip(draw_noise(chance) / 3, 0, 1)[..., None]
    if chance.random() < 0.35:
        surface = surface * lay_grid(chance)[..., None]
    grain = draw_noise(chance) * chance.choice([0.0, 0.02, 0.06])
    return np.clip(surface + grain[..., None], 0, 1).astype(np.float32)


def lay_grid(chance: Chance) -> np.ndarray:  # float (TILE, TILE), factors
    """Joints of tiles, bricks, planks or checks, each piece a little other than the next."""
    rows, columns = chance.choice([4, 8, 16], 2) if chance.random() < 0.6 else (int(chance.choice([8, 16])), 1)
    tall, wide = TILE // rows, TILE // columns
    y, x = np.mgrid[:TILE, :TILE]
    row = y // tall
    x = (x + (row % 2) * (wide // 2) * int(chance.integers(2))) % TILE
    column = x // wide
    tones = chance.normal(1, chance.choice([0.02, 0.1, 0.25]), (rows, columns))
    if chance.random() < 0.15:
        tones = 1 + 0.4 * ((np.arange(rows)[:, None] + np.arange(columns)) % 2 - 0.5)
    joint = (y % tall < chance.integers(1, 4)) | ((x % wide < chance.integers(1, 4)) & (columns > 1))
    return np.where(joint, chance.uniform(0.4, 1.3), tones[row, column])


def as_image(surface: np.ndarray) -> Image.Image:  # float (H, W, 3) in [0, 1]
    return Image.fromarray((np.clip(surface, 0, 1) * 255).astype(np.uint8))


def fill(chance: Chance, width: int, height: int, colour: np.ndarray | None = None) -> Image.Image:
    """A texture seen from the front at a chance distance."""
    side = int(chance.integers(48, TILE + 1))
    return as_image(draw_texture(chance, colour)[:side, :side]).resize((width, height), Image.Resampling.BILINEAR)


def lay_floor(chance: Chance, width: int, height: int, colour: np.ndarray | None = None) -> Image.Image:
    """A texture on a floor that runs away from the camera."""
    surface = draw_texture(chance, colour)
    far, scale = chance.uniform(2, 8), chance.uniform(0.3, 1.2)  # depth of the back; texels a pixel in front
    y, x = np.mgrid[:height, :width]
    depth = 1 / (1 / far + (1 - 1 / far) * (y + 0.5) / height)
    right = ((x - width * chance.uniform(0.2, 0.8)) * depth * scale).astype(int) % TILE
    away = ((depth * height * scale) + chance.uniform(0, TILE)).astype(int) % TILE
    shown = np.clip(1.5 / (depth * scale), 0, 1)[..., None]  # what is too fine to be seen turns into its mean
    mean = surface.mean((0, 1))
    return as_image(mean + (surface[away, right] - mean) * shown)


# Backdrops ------------------------------------------------------------------------------------------------------------


def draw_paper(chance: Chance) -> Image.Image:
    """Studio paper: one colour, often white, running softly into another."""
    base = np.full(3, chance.uniform(0.85, 1)) if chance.random() < 0.4 else draw_colour(chance)
    other = near(base, chance, chance.choice([0.01, 0.05, 0.15]))
    angle = chance.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    share = np.clip(0.5 + (x * np.cos(angle) + y * np.sin(angle)) * chance.uniform(0.5, 3), 0, 1)[..., None]
    if chance.random() < 0.3:  # a bright middle
        share = np.clip((x**2 + y**2) * chance.uniform(1, 4), 0, 1)[..., None]
    grain = draw_noise(chance)[:SIDE, :SIDE, None] * chance.choice([0, 0.004, 0.02])
    return as_image(base + (other - base) * share + grain)


def draw_surface(chance: Chance) -> Image.Image:
    """One texture all over: a wall from the front, a table or the ground from above."""
    return fill(chance, SIDE, SIDE)


def draw_stand(chance: Chance) -> Image.Image:
    """A wall and what stands before it: a floor or a table, whose edge is straight, tilted a little."""
    edge = int(SIDE * chance.uniform(0.2, 0.8))
    picture = Image.new("RGB", (SIDE, SIDE))
    wall = draw_paper(chance) if chance.random() < 0.4 else fill(chance, SIDE, SIDE)
    if chance.random() < 0.5:
        wall = add_furniture(wall, chance)
    if chance.random() < 0.6:
        wall = wall.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 6)))
    picture.paste(wall)
    picture.paste(lay_floor(chance, SIDE, SIDE - edge), (0, edge))
    return tilt(picture, chance)


def draw_outdoors(chance: Chance) -> Image.Image:
    """Sky, hills or trees in a few layers that pale with distance, and the ground."""
    top, low = (
        np.array([0.3, 0.5, 0.8]) + chance.normal(0, 0.1, 3),
        np.array([0.75, 0.8, 0.85]) + chance.normal(0, 0.1, 3),
    )
    if chance.random() < 0.3:  # overcast, or evening
        top = near(np.full(3, 0.75), chance, 0.1)
    down = np.linspace(0, 1, SIDE)[:, None, None]
    sky = top + (low - top) * down
    clouds = np.clip(draw_noise(chance)[:SIDE, :SIDE, None] * chance.uniform(0, 0.6), 0, 1)
    picture = as_image(sky + (0.95 - sky) * clouds)
    horizon = chance.uniform(0.15, 0.7) * SIDE
    layers = int(chance.integers(0, 4))
    for k in range(layers):
        share = (k + 1) / (layers + 1)
        green = np.array([0.25, 0.4, 0.15]) * chance.uniform(0.4, 1.3) + chance.normal(0, 0.06, 3)
        colour = np.clip(low + (green - low) * share, 0, 1)
        rough = draw_noise(chance)[int(chance.integers(TILE)), :SIDE] * chance.uniform(3, 25)
        skyline = horizon - SIDE * chance.uniform(0, 0.45) * (1 - share) + rough
        mask = Image.fromarray(((np.arange(SIDE)[:, None] > skyline[None]) * 255).astype(np.uint8))
        trees = draw_leaves(chance, colour) if chance.random() < 0.4 else fill(chance, SIDE, SIDE, colour)
        picture.paste(trees, (0, 0), mask)
    ground = None
    if chance.random() < 0.6:  # grass, soil
        ground = np.clip(np.array([0.35, 0.42, 0.2]) * chance.uniform(0.5, 1.5) + chance.normal(0, 0.08, 3), 0, 1)
    start = int(horizon)
    picture.paste(lay_floor(chance, SIDE, SIDE - start, ground), (0, start))
    return tilt(picture, chance)


def draw_leaves(chance: Chance, base: np.ndarray | None = None) -> Image.Image:
    """Leaves, stones or petals: many alike, layer upon layer, the far ones dark and blurred."""
    if base is None:
        base = draw_colour(chance) if chance.random() < 0.4 else np.array([0.25, 0.4, 0.15]) + chance.normal(0, 0.07, 3)
    picture = fill(chance, SIDE, SIDE, np.clip(base * 0.4, 0, 1))
    count, size, thin = int(chance.integers(40, 160)), chance.uniform(5, 26), chance.uniform(0.15, 0.9)
    layers = 3
    for layer in range(layers):
        pen = ImageDraw.Draw(picture)
        for _ in range(count // layers):
            colour = near(base * (0.5 + 0.5 * (layer + 1) / layers), chance, 0.12)
            place, angle = chance.uniform(0, SIDE, 2), chance.uniform(0, 2 * np.pi)
            length = size * chance.uniform(0.6, 1.6)
            turn = np.linspace(0, 2 * np.pi, 9)
            along, across = np.cos(turn) * length, np.sin(turn) * length * thin
            x = place[0] + along * np.cos(angle) - across * np.sin(angle)
            y = place[1] + along * np.sin(angle) + across * np.cos(angle)
            pen.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=paint(colour))
        if layer < layers - 1:
            picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0.3, 3)))
    return picture


def draw_water(chance: Chance) -> Image.Image:
    """Water from above or before a bank, its waves flatter with distance."""
    colour = np.clip(np.array([0.15, 0.35, 0.45]) * chance.uniform(0.5, 1.8) + chance.normal(0, 0.06, 3), 0, 1)
    if chance.random() < 0.5:
        return lay_floor(chance, SIDE, SIDE, colour)
    rough = np.abs(draw_noise(chance)[:SIDE, :SIDE]) ** chance.uniform(0.5, 3)
    light_lines = np.exp(-4 * rough)[..., None] * chance.uniform(0, 0.5)
    return as_image(np.asarray(fill(chance, SIDE, SIDE, colour), np.float32) / 255 + light_lines)


def draw_room(chance: Chance) -> Image.Image:
    """A wall full of furniture, mostly out of focus."""
    picture = add_furniture(fill(chance, SIDE, SIDE), chance, most=14)
    if chance.random() < 0.75:
        picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(1, 8)))
    return tilt(picture, chance)


def draw_blots(chance: Chance) -> Image.Image:
    """Something far out of focus: soft blots of a few colours, perhaps with lights."""
    picture = fill(chance, SIDE, SIDE)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(chance.integers(4, 25))):
        (x, y), size = chance.uniform(-20, SIDE + 20, 2), chance.uniform(8, 70)
        pen.ellipse((x - size, y - size, x + size, y + size * chance.uniform(0.3, 1)), fill=paint(draw_colour(chance)))
    picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(4, 18)))
    if chance.random() < 0.25:
        pen = ImageDraw.Draw(picture)
        for _ in range(int(chance.integers(3, 20))):
            (x, y), size = chance.uniform(0, SIDE, 2), chance.uniform(2, 8)
            pen.ellipse((x - size, y - size, x + size, y + size), fill=paint(near(np.full(3, 0.9), chance, 0.1)))
        picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 2)))
    return picture


def draw_static(chance: Chance) -> Image.Image:
    """Noise without anything in it, fine or coarse, grey or coloured."""
    side = int(chance.integers(16, SIDE + 1))
    noise = chance.normal(chance.uniform(0.2, 0.8), chance.uniform(0.05, 0.4), (side, side, chance.choice([1, 3])))
    return as_image(noise.repeat(3 // noise.shape[-1], -1)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def add_furniture(picture: Image.Image, chance: Chance, most: int = 6) -> Image.Image:
    """Boards, frames, windows, cupboards: upright boxes of other textures, some of them cut by the border."""
    for _ in range(int(chance.integers(1, most + 1))):
        wide, tall = (chance.uniform(0.03, 0.6, 2) * SIDE).astype(int) + 2
        left, top = (int(v) for v in chance.uniform(-0.2, 1, 2) * SIDE)
        piece = fill(chance, int(wide), int(tall))
        if chance.random() < 0.3:
            pen = ImageDraw.Draw(piece)
            pen.rectangle((0, 0, int(wide) - 1, int(tall) - 1), outline=paint(draw_colour(chance)), width=3)
        if chance.random() < 0.3:  # the shade beside it
            shade = Image.new("RGB", (int(wide), int(tall)), paint(np.asarray(picture, np.float32).mean((0, 1)) / 500))
            picture.paste(shade, (left + int(chance.integers(-5, 6)), top + 4))
        picture.paste(piece, (left, top))
    return picture


def paint(colour: np.ndarray) -> tuple[int, int, int]:  # (3,) in [0, 1]
    red, green, blue = (int(v) for v in np.clip(colour, 0, 1) * 255)
    return red, green, blue


def tilt(picture: Image.Image, chance: Chance) -> Image.Image:
    """Cameras are not held quite level."""
    if chance.random() < 0.4:
        return picture
    angle = float(np.clip(chance.normal(0, 5), -15, 15))
    turned = picture.rotate(angle, Image.Resampling.BILINEAR)
    rim = int(np.ceil(SIDE / 2 * abs(np.sin(np.radians(angle)))))  # the corners that the turn left empty
    return turned.crop((rim, rim, SIDE - rim, SIDE - rim)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def light(picture: Image.Image, chance: Chance) -> Image.Image:
    """Light that falls off to a side, and the soft shadows of what is not in the picture."""
    surface = np.asarray(picture, np.float32) / 255
    if chance.random() < 0.6:
        angle, strength = chance.uniform(0, 2 * np.pi), chance.uniform(0, 0.5)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
        surface = surface * (1 + strength * (x * np.cos(angle) + y * np.sin(angle)) * 2)[..., None]
    if chance.random() < 0.2:
        shade = np.clip(draw_noise(chance)[:SIDE, :SIDE, None] * 4, 0, 1)
        surface = surface * (1 - chance.uniform(0.1, 0.5) * shade)
    return as_image(surface)


BACKDROPS: dict[str, tuple[Callable[[Chance], Image.Image], float]] = {  # with their shares
    "paper": (draw_paper, 2.0),
    "surface": (draw_surface, 2.0),
    "stand": (draw_stand, 4.0),
    "outdoors": (draw_outdoors, 3.0),
    "leaves": (draw_leaves, 1.5),
    "water": (draw_water, 1.0),
    "room": (draw_room, 2.0),
    "blots": (draw_blots, 1.5),
    "static": (draw_static, 0.3),
}
