"""A whole dataset in one small file that travels: pictures as WebP, occupancy as deflated bits.

The file is safetensors: one array of bytes with everything in it, one table of where each object's parts lie, poses and
squares as they are. Depth and normals stay behind.
Letters: M objects, N views of each, R resolution of the occupancy.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from .. import durable
from ..artifacts import read_head, with_head
from ..errors import MeshError
from ..watch import Progress, Watch
from .viewsets import ViewSet, read, stand_somewhere, told_if_damaged

KIND = ("packed dataset", "pack")  # and what makes it
QUALITY = 70  # of WebP's colours; alpha is kept exactly


@dataclass(frozen=True)
class Pack:
    """Decoded on demand, object by object."""

    path: Path
    names: tuple[str, ...]
    size: int  # px
    resolution: int  # R
    poses: np.ndarray  # float32 (M, N, 3)
    squares: np.ndarray  # float32 (M, N, 3)
    table: np.ndarray  # int64 (M, N + 2): where each object's pictures begin, then its occupancy, then its end
    data: np.ndarray  # uint8

    def pictures(self, number: int) -> np.ndarray:  # uint8 (N, S, S, 4)
        bounds = self.table[number]
        sheets = [self.data[a:b].tobytes() for a, b in itertools.pairwise(bounds[:-1])]
        with told_if_damaged(self.path, *KIND):
            return np.stack([decode_picture(sheet) for sheet in sheets])

    def inside(self, number: int) -> np.ndarray:  # bool (R, R, R)
        start, end = self.table[number, -2:]
        side = self.resolution
        with told_if_damaged(self.path, *KIND):
            bits = np.frombuffer(inflate(self.data[start:end].tobytes(), -(-(side**3) // 8)), np.uint8)
            return np.unpackbits(bits, count=side**3).astype(bool).reshape(side, side, side)


def pack(objects: Sequence[Path], target: Path, *, views: int, overwrite: bool, watch: Watch) -> int:
    """Packs the first `views` pictures of each object; the size of the file."""
    names, poses, squares, table, parts = [], [], [], [], []
    offset = 0
    shape: tuple[int, int, str] | None = None
    for done, path in enumerate(objects):
        watch(Progress("pack", done, len(objects), path.name))
        one = read(path)
        mine = (one.rgba.shape[1], one.inside.shape[0], one.truth)
        shape = shape or mine
        if mine != shape or len(one.rgba) < views:
            raise MeshError(
                f"it has {len(one.rgba)} views of {mine[0]} px and an occupancy of {mine[1]} ({mine[2]})",
                where=str(path),
                remedy="pack what one call of `zero123 data render` made",
            )
        row = []
        for piece in (*map(encode_picture, one.rgba[:views]), encode_inside(one)):
            row.append(offset)
            parts.append(piece)
            offset += len(piece)
        table.append([*row, offset])
        names.append(one.name)
        poses.append(one.poses[:views])
        squares.append(one.squares[:views])
    if shape is None:
        raise MeshError("the dataset is empty", where=str(target), remedy="run `zero123 data render` first")
    arrays: dict[str, np.ndarray] = {
        "poses": np.stack(poses).astype(np.float32),
        "squares": np.stack(squares).astype(np.float32),
        "table": np.array(table, np.int64),
        "data": np.frombuffer(b"".join(parts), np.uint8),
    }
    whole = save(arrays, with_head({"names": names, "size": shape[0], "resolution": shape[1]}))
    durable.write_file(target, whole, overwrite=overwrite)
    return len(whole)


def encode_picture(rgba: np.ndarray) -> bytes:
    page = io.BytesIO()
    Image.fromarray(rgba).save(page, "WEBP", quality=QUALITY, alpha_quality=100, method=6)
    return page.getvalue()


def decode_picture(sheet: bytes) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGBA"))
    except OSError as error:  # Pillow's word for what is no picture: the disk has no part in it
        raise ValueError("no picture") from error


def encode_inside(one: ViewSet) -> bytes:
    return zlib.compress(np.packbits(one.inside.ravel()).tobytes(), 9)


def inflate(data: bytes, size: int) -> bytes:
    """At most so many bytes: a small file may claim to be a large one."""
    reader = zlib.decompressobj()
    found = reader.decompress(data, size)
    if len(found) != size or reader.unconsumed_tail:
        raise ValueError("an occupancy of another size")
    return found


def open_pack(path: Path) -> Pack:
    with told_if_damaged(path, *KIND):
        raw = path.read_bytes()
        head = read_head(raw)
        found = Pack(path, tuple(head["names"]), head["size"], head["resolution"], **load(raw))
        count, views = found.poses.shape[:2]
        table = found.table
        fits = found.poses.shape == found.squares.shape and stand_somewhere(found.poses, found.squares)
        fits &= len(found.names) == count and table.shape == (count, views + 2)
        if not (fits and (np.diff(table) >= 0).all() and ((table >= 0) & (table <= len(found.data))).all()):
            raise ValueError("its parts do not fit together")
    return found
