"""Judges the file and not the field: reads back what was written, measures it, and holds its picture against the photo.

Letters: V vertices, W places (vertices without seams), F triangles, S side of the picture.
"""

from __future__ import annotations

import functools
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import MeshError, NothingFoundError, UsageError
from ..scenes.meshes import read_surface
from ..scenes.surface import Material, Surface, to_linear, to_srgb
from .cleanup import is_closed, label_components, measure_volume
from .isosurface import overlap
from .mesh import sample_texture, weld
from .shot import Shot, look_at

SIDE = 512  # px of the pictures that are compared, at most
LARGEST = 8192  # px of a texture's side
SAMPLES = 2  # a side for each of their pixels
BEST_PSNR = 99.0  # of equal pictures


@dataclass(frozen=True)
class Verdict:
    """What the file is. Lengths are in its own unit."""

    faces: int
    places: int  # vertices, those in one place counted once
    watertight: bool  # every edge has two faces, which pass it in opposite directions
    outward: bool  # the faces look away from what they enclose
    components: int
    genus: int  # handles of all components; -1 when it isn't watertight
    volume: float  # 0 when it isn't watertight
    low: tuple[float, ...]  # the box
    high: tuple[float, ...]
    texture: int  # pixels of the longer side; 0 without
    coloured: bool  # carries colours or a texture, and they are not all the same
    psnr: float = 0.0  # against the photo, dB, inside its mask; on white; 0 without a photo
    mask_iou: float = 0.0  # of the outlines; 0 without a photo


def judge(path: Path, shot: Shot | None = None, placed: np.ndarray | None = None) -> Verdict:
    """Measures the file at `path`; `placed` is the matrix from the world to the file's axes and unit, (4, 4)."""
    surface = read_back(path)
    first, which = weld(surface.vertices)
    faces = which[surface.faces]
    vertices = surface.vertices[first].astype(np.float64)
    closed = is_closed(faces)
    volume = measure_volume(vertices, faces) if closed else 0.0
    components = int(label_components(faces, len(vertices)).max()) + 1
    used = np.unique(faces)
    genus = (2 * components - (len(used) - len(faces) // 2)) // 2 if closed else -1
    sides = [max(material.texture.shape[:2]) for material in surface.materials if material.texture is not None]
    psnr, mask_iou = (0.0, 0.0) if shot is None else compare(surface, shot, np.eye(4) if placed is None else placed)
    return Verdict(
        faces=len(faces),
        places=len(used),
        watertight=closed,
        outward=volume > 0,
        components=components,
        genus=genus,
        volume=volume,
        low=tuple(vertices[used].min(0).tolist()),
        high=tuple(vertices[used].max(0).tolist()),
        texture=max(sides, default=0),
        coloured=is_coloured(surface),
        psnr=psnr,
        mask_iou=mask_iou,
    )


def require(verdict: Verdict, wanted: Sequence[str], where: str = "") -> None:
    """Raises unless the file is all that is wanted, by the names of REQUIREMENTS."""
    refuse_unknown(wanted)
    missing = [name for name in wanted if not REQUIREMENTS[name](verdict)]
    if missing:
        what = f"the mesh is not {' and not '.join(missing)}"
        raise NothingFoundError(what, where=where, remedy="try other settings, or require less")


def refuse_unknown(wanted: Sequence[str], where: str = "") -> None:
    for name in wanted:
        if name not in REQUIREMENTS:
            raise UsageError(f"{name!r} cannot be required", where=where, remedy=f"known are {', '.join(REQUIREMENTS)}")


REQUIREMENTS: dict[str, Callable[[Verdict], bool]] = {
    "watertight": lambda verdict: verdict.watertight and verdict.outward,
    "textured": lambda verdict: verdict.texture > 0 and verdict.coloured,
    "coloured": lambda verdict: verdict.coloured,
    "one-piece": lambda verdict: verdict.components == 1,
}


# Looks ----------------------------------------------------------------------------------------------------------------


def is_coloured(surface: Surface) -> bool:
    """Whether two places of its surface differ in colour."""
    colours = look_up(surface, np.repeat(np.arange(len(surface.faces)), 3), np.tile(np.eye(3), (len(surface.faces), 1)))
    if any(material.texture is not None for material in surface.materials):
        middle = look_up(surface, np.arange(len(surface.faces)), np.full((len(surface.faces), 3), 1 / 3))
        colours = np.concatenate([colours, middle])
    return bool((np.ptp(colours, axis=0) > 1 / 255).any())


def look_up(surface: Surface, face: np.ndarray, weights: np.ndarray) -> np.ndarray:  # (P,), (P, 3) -> (P, 3)
    """The sRGB colours at places on faces, without any light."""
    light = np.array([material.colour[:3] for material in surface.materials], np.float64)[surface.material[face]]
    for number, material in enumerate(surface.materials):
        own = surface.material[face] == number
        if material.texture is not None and surface.uv is not None and own.any():
            uv = np.einsum("pk,pkc->pc", weights[own], surface.uv[face[own]])
            light[own] *= to_linear(sample_texture(material.texture[..., :3], uv) / 255)
    if surface.colours is not None:
        light *= np.einsum("pk,pkc->pc", weights, surface.colours[face])[:, :3]
    return to_srgb(light)


def draw(surface: Surface, shot: Shot, side: int) -> np.ndarray:  # float64 (S, S, 4)
    """The surface from where the photo was taken, its colours as they are: straight alpha, sRGB."""
    fine = side * SAMPLES
    raster = look_at(shot, surface.vertices, surface.faces, fine)
    rgba = np.zeros((fine, fine, 4))
    hit = raster.face >= 0
    rgba[hit, :3] = look_up(surface, raster.face[hit], raster.weights[hit].astype(np.float64))
    rgba[hit, 3] = 1
    mean = rgba.reshape(side, SAMPLES, side, SAMPLES, 4).mean((1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
    return mean


def compare(surface: Surface, shot: Shot, placed: np.ndarray) -> tuple[float, float]:
    """PSNR on white inside the photo's mask, and the IoU of both outlines."""
    back = np.linalg.inv(placed)
    vertices = surface.vertices.astype(np.float64) @ back[:3, :3].T + back[:3, 3]
    side = min(shot.side, SIDE)
    drawn = draw(Surface(vertices, surface.faces, surface.materials, surface.material, surface.uv, surface.colours),
                 shot, side)  # fmt: skip
    photo = shot.rgba.astype(np.float32) / 255
    photo[..., :3] *= photo[..., 3:]
    if side != shot.side:
        channels = [Image.fromarray(photo[..., k]).resize((side, side), Image.Resampling.BOX) for k in range(4)]
        photo = np.stack([np.asarray(channel) for channel in channels], -1)
    alphas = photo[..., 3], drawn[..., 3]
    error = photo[..., :3] + (1 - photo[..., 3:]) - (drawn[..., :3] * drawn[..., 3:] + (1 - drawn[..., 3:]))
    region = alphas[0] >= 0.5
    square = float((error[region] ** 2).mean()) if region.any() else 0.0
    psnr = min(BEST_PSNR, -10 * math.log10(square)) if square > 0 else BEST_PSNR
    return psnr, overlap(region, alphas[1] >= 0.5)


# Formats that strangers' meshes don't come in -------------------------------------------------------------------------


def read_back(path: Path) -> Surface:
    """The surface in a file that we wrote."""
    reader = READERS.get(path.suffix.lower(), functools.partial(read_surface, side=LARGEST))
    try:
        return reader(path)
    except (ValueError, KeyError, IndexError, AttributeError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise MeshError("what was written does not read back", where=str(path), remedy="write it again") from error


def read_off(path: Path) -> Surface:
    head, counts, *lines = path.read_text("ascii").splitlines()
    if head != "OFF":
        raise ValueError(head)
    vertices, faces = (int(word) for word in counts.split()[:2])
    places = np.array(" ".join(lines[:vertices]).split(), np.float64).reshape(vertices, 3)
    corners = np.array(" ".join(lines[vertices:]).split(), np.int64).reshape(faces, 4)[:, 1:]
    return make_surface(places, corners, ())


def read_3mf(path: Path) -> Surface:
    with zipfile.ZipFile(path) as archive:
        root = ElementTree.fromstring(archive.read("3D/3dmodel.model"))
    space = {"c": "http://schemas.microsoft.com/3dmanufacturing/core/2015/02",
             "m": "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"}  # fmt: skip
    places = [[float(node.attrib[axis]) for axis in "xyz"] for node in root.iterfind(".//c:vertex", space)]
    rows = [node.attrib for node in root.iterfind(".//c:triangle", space)]
    faces = np.array([[int(row[f"v{k}"]) for k in (1, 2, 3)] for row in rows])
    palette = [bytes.fromhex(node.attrib["color"][1:]) for node in root.iterfind(".//m:color", space)]
    if not palette:
        return make_surface(np.array(places), faces, ())
    which = np.array([[int(row[f"p{k}"]) for k in (1, 2, 3)] for row in rows])
    colours = to_linear(np.array([list(colour) for colour in palette]) / 255)[which]
    return make_surface(np.array(places), faces, (), colours=colours)


def read_usdz(path: Path) -> Surface:
    with zipfile.ZipFile(path) as archive:
        text = archive.read("object.usda").decode()
        picture = archive.read("texture.png") if "texture.png" in archive.namelist() else b""

    def numbers(name: str, width: int) -> np.ndarray | None:
        found = re.search(rf"\] {name} = \[([^\]]*)\]", text)
        if found is None:
            return None
        return np.array(re.sub(r"[(),]", " ", found[1]).split(), np.float64).reshape(-1, width)

    places, corners = numbers("points", 3), numbers("faceVertexIndices", 3)
    if places is None or corners is None:
        raise ValueError("no mesh")
    faces = corners.astype(np.int64)
    uv, colours = numbers("primvars:st", 2), numbers("primvars:displayColor", 3)
    texture = None
    if picture:
        with Image.open(BytesIO(picture), formats=["PNG"]) as image:
            texture = np.array(image.convert("RGBA"))
    material = Material((1.0, 1.0, 1.0, 1.0), texture)
    return make_surface(places, faces, (material,), uv=None if uv is None else uv[faces],
                        colours=None if colours is None else colours[faces])  # fmt: skip


def make_surface(
    places: np.ndarray,
    faces: np.ndarray,
    materials: tuple[Material, ...],
    uv: np.ndarray | None = None,  # (F, 3, 2)
    colours: np.ndarray | None = None,  # (F, 3, 3), linear
) -> Surface:
    if colours is not None:
        colours = np.concatenate([colours, np.ones((*colours.shape[:2], 1))], -1).astype(np.float32)
    return Surface(
        places.astype(np.float32),
        faces.astype(np.int32),
        materials or (Material((1.0, 1.0, 1.0, 1.0)),),
        np.zeros(len(faces), np.int32),
        None if uv is None else uv.astype(np.float32),
        colours,
    )


READERS: dict[str, Callable[[Path], Surface]] = {".off": read_off, ".3mf": read_3mf, ".usdz": read_usdz}
