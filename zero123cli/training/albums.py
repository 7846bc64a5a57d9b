"""Objects' pictures with their cameras, read when they are drawn: a dataset may be larger than the memory.

Letters: N pictures of an object, K of them that are drawn, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..errors import MeshError
from .packs import open_pack
from .viewsets import list_objects, read_label, refuse_empty, told_if_damaged


@dataclass(frozen=True)
class Pictures:
    """Some pictures of one object."""

    rgba: np.ndarray  # uint8 (K, S, S, 4)
    poses: np.ndarray  # float32 (K, 3): azimuth and elevation in degrees, distance
    squares: np.ndarray  # float32 (K, 3): x, y, half side


@dataclass(frozen=True)
class Album:
    """What a dataset has to show."""

    names: tuple[str, ...]
    read: Callable[[int, np.random.Generator, int], Pictures]  # object's number, chance, how many
    size: int  # px


def open_album(data: Path) -> Album:
    """The album of a packed file or of a dataset's folder."""
    album = open_packed(data) if data.is_file() else open_folder(data)
    refuse_empty(data, album.names)
    return album


def open_packed(data: Path) -> Album:
    pack = open_pack(data)

    def read(number: int, chance: np.random.Generator, count: int) -> Pictures:
        views = pick(pack.poses.shape[1], chance, count)
        return Pictures(pack.pictures(number)[views], pack.poses[number, views], pack.squares[number, views])

    return Album(pack.names, read, pack.size)


def open_folder(data: Path) -> Album:
    paths = list_objects(data)
    labels = [read_label(path) for path in paths]
    sizes = sorted({label.size for label in labels})
    if len(sizes) > 1:
        remedy = "render them again into a folder of their own"
        what = f"its pictures are of {sizes[0]} to {sizes[-1]} px"
        raise MeshError(what, where=str(data), remedy=remedy)

    def read(number: int, chance: np.random.Generator, count: int) -> Pictures:
        with told_if_damaged(paths[number]), safe_open(paths[number], "np") as file:
            rgba, poses, squares = file.get_slice("rgba"), file.get_tensor("poses"), file.get_tensor("squares")
            views = pick(len(poses), chance, count)
            return Pictures(np.stack([rgba[int(view)] for view in views]), poses[views], squares[views])

    return Album(tuple(label.name for label in labels), read, sizes[0] if sizes else 0)


def pick(views: int, chance: np.random.Generator, count: int) -> np.ndarray:
    """Which pictures are drawn, each once; an object with too few shows some again."""
    return np.resize(chance.permutation(views), count)
