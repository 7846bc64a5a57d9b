"""Other looks for the same shape: colours turned, plain paints, made-up patterns, and the palettes they are drawn from.

Letters: F triangles, h and w of a picture.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .raycast import OPAQUE, as_colour, unit
from .surface import Material, Surface, to_linear, to_srgb

TEXTURE_SIDE = 192  # px of a made-up texture


def retexture(surface: Surface, rng: np.random.Generator) -> Surface:
    """The same shape with other looks: its colours turned, plain paints, or made-up patterns laid on from three sides.

    Textures with holes, leaves for instance, keep their pattern.
    """
    kind = rng.choice(["turned", "painted", "patterned"], p=[0.25, 0.15, 0.6])
    angle, saturation, value = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.4), rng.uniform(0.75, 1.25)
    palette = draw_palette(rng, 5)
    patterns = [draw_pattern(rng, draw_palette(rng, int(rng.integers(2, 6)))) for _ in range(int(rng.integers(1, 4)))]
    materials, covered = [], []
    for number, material in enumerate(surface.materials):
        holed = material.texture is not None and bool((material.texture[..., 3] < 255 * OPAQUE).any())
        covered.append(kind == "patterned" and not holed)
        gloss = {"roughness": float(rng.uniform(0.25, 1.0)), "metallic": float(rng.random() < 0.08)}
        if covered[-1]:
            colour = (1.0, 1.0, 1.0, material.colour[3])
            materials.append(Material(colour, patterns[int(rng.integers(len(patterns)))], **gloss))
        elif kind == "painted" and material.texture is None:
            colour = (*as_colour(to_linear(palette[number % len(palette)])), material.colour[3])
            materials.append(Material(colour, None, **gloss))
        else:
            factor = to_linear(turn_colours(to_srgb(np.array(material.colour[:3])), angle, saturation, value))
            texture = material.texture
            if texture is not None:
                turned = turn_colours(texture[..., :3] / 255, angle, saturation, value)
                texture = np.concatenate([np.rint(turned * 255).astype(np.uint8), texture[..., 3:]], -1)
                factor = np.array(material.colour[:3])
            materials.append(replace(material, colour=(*as_colour(factor), material.colour[3]), texture=texture))
    on = np.array(covered)[surface.material]
    uv = surface.uv if surface.uv is not None else np.zeros((len(surface.faces), 3, 2), np.float32)
    if on.any():
        uv = np.where(on[:, None, None], box_uv(surface, rng), uv).astype(np.float32)
    colours = surface.colours
    if colours is not None:
        turned = to_linear(turn_colours(to_srgb(colours[..., :3]), angle, saturation, value))
        colours = np.concatenate([np.where(on[:, None, None], 1.0, turned), colours[..., 3:]], -1).astype(np.float32)
    if kind != "turned" and rng.random() < 0.35:
        colours = fade(surface, rng, colours)
    return replace(surface, materials=tuple(materials), uv=uv, colours=colours)


def box_uv(surface: Surface, rng: np.random.Generator) -> np.ndarray:  # float64 (F, 3, 2)
    """Texture coordinates from the side that each face looks to most, at a drawn scale and turn."""
    corners = surface.vertices[surface.faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.abs(normal).argmax(-1)
    sides = np.array([[2, 1], [0, 2], [0, 1]])[axis]  # y stays up on the walls
    flat = np.take_along_axis(corners, sides[:, None, :], 2) * rng.uniform(0.7, 3.0)
    turn = rng.choice([0.0, rng.uniform(0, 2 * math.pi)])
    cos, sin = math.cos(turn), math.sin(turn)
    return flat @ np.array([[cos, sin], [-sin, cos]]) + rng.uniform(0, 1, 2) + axis[:, None, None] * rng.uniform(0, 1)


def fade(surface: Surface, rng: np.random.Generator, colours: np.ndarray | None) -> np.ndarray:  # float32 (F, 3, 4)
    """A slow change of colour across the object."""
    corners = surface.vertices[surface.faces].astype(np.float64)
    way = unit(rng.normal(size=3) * (1, 2, 1))
    share = np.clip(corners @ way + 0.5, 0, 1)[..., None]
    ends = to_linear(1 - rng.uniform(0, 0.55, (2, 1, 1, 3)))
    tinted = np.ones((*surface.faces.shape, 4), np.float32) if colours is None else colours.copy()
    tinted[..., :3] *= ends[0] * (1 - share) + ends[1] * share
    return tinted


def turn_colours(colour: np.ndarray, angle: float, saturation: float, value: float) -> np.ndarray:  # sRGB (..., 3)
    """The hue turned about the grey axis, the saturation and the value multiplied."""
    cos, third = math.cos(angle), math.sin(angle) / math.sqrt(3)
    base = (1 - cos) / 3
    wheel = np.array([[cos + base, base - third, base + third], [base + third, cos + base, base - third],
                      [base - third, base + third, cos + base]])  # fmt: skip
    grey = colour.mean(-1, keepdims=True)
    return np.clip((grey + saturation * ((colour - grey) @ wheel.T)) * value, 0, 1)


def draw_palette(rng: np.random.Generator, count: int) -> np.ndarray:  # float64 (count, 3), sRGB
    """Colours that go together: of neighbouring hues, of opposite ones, earthy, greyish or loud."""
    mood = rng.choice(["neighbours", "opposites", "earth", "grey", "loud"], p=[0.25, 0.15, 0.25, 0.2, 0.15])
    hue, spread = rng.uniform(), rng.uniform(0.02, 0.12)
    hues = hue + rng.normal(0, spread, count)
    saturation, value = rng.uniform(0.15, 0.8, count), rng.uniform(0.3, 1.2, count).clip(max=0.97)
    if mood == "opposites":
        hues += 0.5 * (np.arange(count) % 2)
    elif mood == "earth":
        hues, saturation = 0.08 + rng.normal(0, 0.03, count), saturation * 0.8
    elif mood == "grey":
        saturation, value = saturation * 0.15, rng.uniform(0.1, 0.97, count)
    elif mood == "loud":
        hues, saturation, value = rng.uniform(size=count), rng.uniform(0.5, 0.95, count), rng.uniform(0.6, 1, count)
    wheel = np.clip(np.abs((hues[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 - saturation[:, None] * (1 - wheel))


def draw_noise(rng: np.random.Generator, roughness: float, stretch: float = 1.0) -> np.ndarray:
    """Fractal noise in [0, 1] that repeats without a seam: amplitudes fall with frequency to the power -`roughness`."""
    side = TEXTURE_SIDE
    frequency = np.hypot(np.fft.fftfreq(side)[:, None] * side * stretch, np.fft.rfftfreq(side) * side)
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.standard_normal((side, side))) * frequency**-roughness
    field = np.fft.irfft2(waves, (side, side))
    low, high = np.quantile(field, (0.01, 0.99))
    return np.clip((field - low) / (high - low), 0, 1)


def draw_pattern(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:  # (count, 3) -> uint8 (h, w, 4)
    """A texture in these colours that repeats without a seam."""
    side = TEXTURE_SIDE
    y, x = np.mgrid[:side, :side] / side
    warp = rng.choice([0.0, rng.uniform(0, 0.12)]) * (draw_noise(rng, 1.8) - 0.5)
    across, down = (int(count) for count in rng.integers(1, 9, 2))
    if rng.random() < 0.5:  # one colour, more or less
        middle = palette[rng.integers(len(palette))]
        palette = middle + (palette - middle) * rng.uniform(0.1, 0.4)
    names = ["stripes", "checks", "spots", "wood", "marble", "clouds", "bricks"]
    kind = rng.choice(names, p=[0.12, 0.08, 0.15, 0.2, 0.12, 0.25, 0.08])
    if kind == "stripes":
        level = np.sin(2 * math.pi * (across * x + (down // 2) * y + 4 * warp)) * rng.choice([0.5, 3.0]) + 0.5
    elif kind == "checks":
        level = (np.floor(2 * across * (x + warp)) + np.floor(2 * down * (y + warp))) % 2 * 0.7 + 0.15
    elif kind == "spots":
        level = (draw_noise(rng, rng.uniform(2, 3.5)) - rng.uniform(0.4, 0.65)) * 8 + 0.5
    elif kind == "wood":
        grain = draw_noise(rng, 2.2, stretch=rng.uniform(4, 9))
        level = 0.5 + 0.5 * np.sin(2 * math.pi * (rng.uniform(2, 6) * grain + across * x))
    elif kind == "marble":
        level = np.abs(np.sin(math.pi * (across * x + down * y + rng.uniform(2, 6) * draw_noise(rng, 1.8)))) ** 0.6
    elif kind == "clouds":
        level = draw_noise(rng, rng.uniform(1.0, 2.4))
    else:
        row = np.floor(2 * down * y)
        column = (across * x + 0.5 * (row % 2)) % across
        joint = (np.minimum(column % 1, 1 - column % 1) < 0.06) | ((2 * down * y) % 1 < 0.1)
        shade_ = rng.uniform(0.35, 1.0, (2 * down, across))[row.astype(int), column.astype(int)]
        level = np.where(joint, 0.0, shade_)
    steps = np.linspace(0, 1, len(palette))
    level = np.clip(level, 0, 1)
    colour = np.stack([np.interp(level, steps, palette[:, channel]) for channel in range(3)], -1)
    grain = draw_noise(rng, rng.uniform(0.3, 1.2)) - 0.5
    worn = draw_noise(rng, 1.8) - 0.5
    colour = colour * (1 + rng.uniform(0.05, 0.3) * grain + rng.uniform(0, 0.4) * worn)[..., None]
    rgba = np.full((side, side, 4), 255, np.uint8)
    rgba[..., :3] = np.rint(np.clip(colour, 0, 1) * 255)
    return rgba
