"""Opens a file of tensors, .safetensors or a zip .ckpt of torch, and reads the tensors asked for, one at a time.

Opening reads the listing alone and checks all of it: of a 15.5 GB checkpoint some megabytes. A tensor is read straight
into the memory it will live in, by position and from the one descriptor that was checked. There is no memory map: its
pages would count beside the copy, a limited address space could not hold it, and a file cut short meanwhile would end
the process. What a file is comes from its content, never from its name.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import durable
from ..errors import DiskError, MissingInputError, WeightsError, reason_of
from .unpickle import ANOTHER, MAX_RANK, MAX_STREAM, Inert, StorageRef, TensorRef, read_pickle, shown

MAX_HEADER = 100_000_000  # bytes of a safetensors header, as the format says
MAX_VALUES = 3_000_000  # in that header: 100,000 tensors of rank 16
MAX_TENSORS = 100_000
MAX_NAME = 1024  # letters
MAX_DIRECTORY = 64 << 20  # bytes of a zip's directory
MAX_SPREAD = 512 << 20  # bytes between the first and last value of a tensor that does not lie in one piece
MAX_TEXT = 1000  # letters of a plain value taken over as metadata
MAX_PATH = 4096  # letters of a path in messages
CHUNK = 8 << 20  # bytes

SIZES = {  # bytes of one value, by the dtype's name in torch
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
REAL = ("float64", "float32", "float16", "bfloat16")
WHOLE = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
SAFETENSORS = {  # as the header says it -> as torch does
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    "C64": "complex64",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}

AGAIN = "download it again"
UNPACK = "unpack it and give the weights inside"
CONVERT = "if you trust it: python -c \"import torch; torch.save({}, 'new.ckpt')\""
RESAVE = CONVERT.format("torch.load('old.ckpt', map_location='cpu', weights_only=True)")
STRIP = CONVERT.format("torch.jit.load('old.pt', map_location='cpu').state_dict()")
OTHERS = {  # how such a file begins -> what it is, what to do
    rb"\x80[\x00-\x05]": ("a bare pickle, as torch wrote them before 1.6", RESAVE),
    rb".{257}ustar": ("a tar archive, as the first torch wrote them", RESAVE),
    rb"(\xef\xbb\xbf)?\s*(<!--.{0,400}?-->\s*)?<(!doctype )?(html|head|body)": (
        "an HTML page",
        "download the file itself, not the page around it (a login or licence page came instead)",
    ),
    rb"(\xef\xbb\xbf)?\s*<": ("an XML file", "download the file itself: a server's error came instead"),
    rb"version https://git-lfs": ("a git-lfs pointer", "fetch the weights with `git lfs pull`"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    rb"\x1f\x8b|BZh|\xfd7zXZ|Rar!|\x28\xb5\x2f\xfd": ("a compressed archive", UNPACK),
    rb"GGUF": ("a GGUF file", ANOTHER),
    rb"\x89HDF": ("an HDF5 file", ANOTHER),
    rb"\0+\Z": ("a file of zeros", AGAIN),
    rb"[\t\n\r -~]+\Z": ("a text file", ANOTHER),
    rb"": ("a file of no known kind", ANOTHER),
}
HEAD = 512  # bytes looked at to tell the kind

LOCAL, CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")  # headers of a zip's member
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
HARMLESS_FLAGS = 0x0808  # sizes after the data, names in UTF-8


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    dtype: str  # as torch names it, e.g. "float32"
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes it takes once read."""
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class _Member:
    """One file in a zip."""

    name: str
    start: int  # of its data, bytes into the file
    size: int  # bytes
    crc: int


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    info: TensorInfo
    start: int  # bytes into the file
    stride: tuple[int, ...]  # elements
    member: _Member | None = None  # whose checksum covers it

    @property
    def span(self) -> int:
        """Bytes from its first value to the end of its last."""
        steps = ((length - 1) * step for length, step in zip(self.info.shape, self.stride, strict=True))
        return (1 + sum(steps)) * SIZES[self.info.dtype] if self.info.size else 0


class TensorFile:
    """An open file of tensors. `infos` tells what it holds, `read` gives one; for one thread at a time."""

    def __init__(
        self,
        path: Path,
        descriptor: int,
        kind: Literal["ckpt", "safetensors"],
        places: dict[str, _Place],
        metadata: dict[str, str],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.kind = kind
        self.infos = {name: place.info for name, place in places.items()}
        self.metadata = metadata  # of a ckpt: epoch, global_step and other plain values beside the tensors
        self.notes = notes  # what was skipped: names of classes, entries that are no tensors
        self._descriptor = descriptor
        self._places = places
        self._sound: set[_Member] = set()  # their checksums agreed

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in memory of its own, its checksum and its numbers checked; KeyError if there is none."""
        try:
            return self._read(name, self._places[name])
        except WeightsError as error:
            raise WeightsError(error.what, where=shown(str(self.path), MAX_PATH), remedy=error.remedy) from error
        except OSError as error:
            raise _reading_failed(error, shown(str(self.path), MAX_PATH)) from error

    def _read(self, name: str, place: _Place) -> torch.Tensor:
        info = place.info
        if info.dtype not in (*REAL, *WHOLE):
            raise WeightsError(f"tensor {shown(name)} is of type {info.dtype}, which no weights are", remedy=ANOTHER)
        dtype, size = getattr(torch, info.dtype), SIZES[info.dtype]
        if not info.size:
            return torch.empty(info.shape, dtype=dtype)
        raw = np.empty(place.span, np.uint8)
        _read_into(self._descriptor, raw, place.start)
        self._check_sum(place, raw)
        words = np.ndarray(info.shape, f"u{size}", raw, strides=[step * size for step in place.stride])
        tensor = torch.from_numpy(np.asarray(words, order="C").reshape(-1)).view(dtype).reshape(info.shape)
        if info.dtype in REAL and not all(math.isfinite(extreme) for extreme in tensor.aminmax()):
            raise WeightsError(f"tensor {shown(name)} holds values that are not numbers (NaN or Inf)", remedy=AGAIN)
        return tensor

    def _check_sum(self, place: _Place, raw: np.ndarray) -> None:
        """Holds the member that a tensor lies in against its checksum, once."""
        member = place.member
        if member is None or member in self._sound:
            return
        whole = len(raw) == member.size
        if (zlib.crc32(raw.data) if whole else _sum_up(self._descriptor, member)) != member.crc:
            raise WeightsError(f"damaged, the checksum of {shown(member.name)} is wrong", remedy=AGAIN)
        self._sound.add(member)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def open_tensors(path: Path) -> TensorFile:
    """The file at `path`, its listing read and checked, no tensor read yet."""
    where = shown(str(path), MAX_PATH)
    try:
        descriptor = durable.open_regular(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (getattr(error, "strerror", None) or "not a path").lower()
        raise MissingInputError(reason, where=where, remedy="check the path and its permissions") from error
    try:
        return _open_kind(path, descriptor, os.fstat(descriptor).st_size)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, WeightsError):
            raise WeightsError(error.what, where=where, remedy=error.remedy) from error
        if isinstance(error, OSError):
            raise _reading_failed(error, where) from error
        raise


def _reading_failed(error: OSError, where: str) -> DiskError:
    reason = reason_of(error)
    return DiskError(f"reading failed: {reason}", where=where, remedy="check the disk and run it again")


def _open_kind(path: Path, descriptor: int, size: int) -> TensorFile:
    if not size:
        raise WeightsError("empty", remedy=AGAIN)
    head = _read_bytes(descriptor, 0, min(size, HEAD))
    if re.match(rb"PK\x03\x04|PK\x05\x06", head):
        return _open_ckpt(path, descriptor, size)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return _open_safetensors(path, descriptor, size)
    for pattern, (what, remedy) in OTHERS.items():
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise WeightsError(f"{what}, not weights that are read", remedy=remedy)
    raise AssertionError("the last pattern matches everything")


def _read_into(descriptor: int, room: np.ndarray, start: int) -> None:
    view, done = room.data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], start + done)
        if not count:
            raise WeightsError("cut short", remedy=AGAIN)
        done += count


def _read_bytes(descriptor: int, start: int, size: int) -> bytes:
    room = np.empty(size, np.uint8)
    _read_into(descriptor, room, start)
    return room.tobytes()


def _sum_up(descriptor: int, member: _Member) -> int:
    crc = 0
    for start in range(0, member.size, CHUNK):
        crc = zlib.crc32(_read_bytes(descriptor, member.start + start, min(CHUNK, member.size - start)), crc)
    return crc


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise WeightsError(f"a tensor has the name {shown(repr(name), 80)}", remedy=ANOTHER)
    return name


# safetensors ----------------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path, descriptor: int, size: int) -> TensorFile:
    length = int.from_bytes(_read_bytes(descriptor, 0, 8), "little")
    if 8 + length > size:
        raise WeightsError("cut short: its header is longer than the file", remedy=AGAIN)
    raw = _read_bytes(descriptor, 8, length)
    if sum(raw.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise WeightsError("its header lists too much", remedy=ANOTHER)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_doubles)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its header is damaged ({shown(str(error), 100)})", remedy=AGAIN) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("its header is damaged (metadata that is no text)", remedy=AGAIN)
    if not 0 < len(header) <= MAX_TENSORS:
        raise WeightsError(f"it holds {len(header)} tensors", remedy=ANOTHER)
    ranges = {_check_name(name): _read_entry(name, entry) for name, entry in header.items()}
    reached = 0
    for name, (_, begin, end) in sorted(ranges.items(), key=lambda item: item[1][1:]):
        if begin != reached:
            raise WeightsError(f"its header is damaged (a hole or an overlap before {shown(name)})", remedy=AGAIN)
        reached = end
    if reached != size - 8 - length:
        what = "cut short" if reached > size - 8 - length else "damaged"
        raise WeightsError(f"{what}: {size - 8 - length} bytes of tensors, {reached} are listed", remedy=AGAIN)
    places = {
        name: _Place(info, 8 + length + begin, _contiguous(info.shape)) for name, (info, begin, _) in ranges.items()
    }
    return TensorFile(path, descriptor, "safetensors", places, metadata)


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an entry is there twice")
    return content


def _read_entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """The tensor, where its bytes begin and where they end."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)], **rest} if not rest:
            if dtype not in SAFETENSORS:
                raise WeightsError(f"tensor {shown(name)} is of the unknown type {shown(dtype, 40)}", remedy=ANOTHER)
            if _is_possible(shape) and 0 <= begin <= end:
                info = TensorInfo(SAFETENSORS[dtype], tuple(shape))
                if info.size == end - begin:
                    return info, begin, end
    raise WeightsError(f"its header is damaged (the entry of {shown(name)})", remedy=AGAIN)


def _is_possible(shape: Sequence[object]) -> bool:
    """Whether a tensor can have this shape, its strides counted in 64 bits."""
    lengths = [length for length in shape if type(length) is int and length >= 0]
    return len(lengths) == len(shape) <= MAX_RANK and math.prod(length or 1 for length in lengths) < 1 << 60


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


# ckpt -----------------------------------------------------------------------------------------------------------------


def _open_ckpt(path: Path, descriptor: int, size: int) -> TensorFile:
    members = _list_members(descriptor, size)
    top = next(iter(members)).split("/")[0]
    if [name for name in members if name.endswith("data.pkl")] != [f"{top}/data.pkl"]:
        raise WeightsError("a zip archive, not a checkpoint", remedy=UNPACK)
    pickle = members[f"{top}/data.pkl"]
    if pickle.size > MAX_STREAM:
        raise WeightsError(f"its pickle takes {pickle.size} bytes, at most {MAX_STREAM} are read", remedy=ANOTHER)
    order = members.get(f"{top}/byteorder")
    if order and (order.size != 6 or _read_bytes(descriptor, order.start, 6) != b"little"):
        raise WeightsError("its numbers are not little-endian", remedy=f"save it on an ordinary computer; {RESAVE}")
    stream = _read_bytes(descriptor, pickle.start, pickle.size)
    summed = any(member.crc for member in members.values())  # torch can be told to leave the checksums out
    if summed and zlib.crc32(stream) != pickle.crc:
        raise WeightsError("damaged, the checksum of data.pkl is wrong", remedy=AGAIN)

    def find_storage(reference: StorageRef) -> _Member:
        member = members.get(f"{top}/data/{reference.key}")
        if member is None:
            raise WeightsError(f"damaged, the storage {shown(reference.key, 80)} is missing", remedy=AGAIN)
        if member.size != reference.numel * SIZES[reference.dtype]:
            raise WeightsError(f"damaged, the storage {shown(reference.key, 80)} has another size", remedy=AGAIN)
        return member

    content, notes = read_pickle(stream, find_storage)
    if not isinstance(content, dict):
        raise WeightsError(f"it holds a {type(content).__name__}, not named tensors", remedy=ANOTHER)
    named = content.get("state_dict", content)
    if not isinstance(named, dict) or not any(isinstance(value, TensorRef) for value in named.values()):
        keys = ", ".join(_spell(key) for key in list(content)[:10])
        raise WeightsError(f"no tensors in state_dict or at its top, which holds: {keys or 'nothing'}", remedy=ANOTHER)
    places = {}
    skipped = []
    for name, value in named.items():
        if isinstance(value, TensorRef):
            places[_check_name(name)] = _place(name, value, summed)
        else:
            skipped.append(f"{_spell(name)} (not a tensor)")
    metadata = {key: text for key, value in content.items() if isinstance(key, str) and (text := _as_text(value))}
    return TensorFile(path, descriptor, "ckpt", places, metadata, (*notes, *skipped))


def _spell(key: object) -> str:
    return shown(key.name if isinstance(key, Inert) else str(key), 80)


def _as_text(value: object) -> str:
    return shown(str(value), MAX_TEXT) if isinstance(value, (str, int, float)) else ""


def _place(name: str, tensor: TensorRef, summed: bool) -> _Place:
    """Where a tensor lies, once it is known to lie within its storage."""
    member, size, shape = tensor.storage, SIZES[tensor.dtype], tensor.shape
    assert isinstance(member, _Member)
    # A stride of 0 would make much of little.
    pairs = list(zip(shape, tensor.stride, strict=False))
    stepping = all(step > 0 for length, step in pairs if length > 1)
    if not _is_possible(shape) or len(tensor.stride) != len(shape) or tensor.offset < 0 or not stepping:
        raise WeightsError(f"tensor {shown(name)} has an impossible shape", remedy=AGAIN)
    stride = tuple(step if length > 1 else 0 for length, step in pairs)
    info = TensorInfo(tensor.dtype, shape)
    place = _Place(info, member.start + tensor.offset * size, stride, member if summed else None)
    if info.size and max(tensor.offset * size + place.span, info.size) > member.size:
        raise WeightsError(f"tensor {shown(name)} claims more than its storage holds", remedy=AGAIN)
    if place.span > max(info.size, MAX_SPREAD):
        raise WeightsError(f"tensor {shown(name)} is scattered over {place.span} bytes", remedy=ANOTHER)
    return place


def _list_members(descriptor: int, size: int) -> Mapping[str, _Member]:
    """The files in a zip by their names: all stored as they are, in one folder, each in a stretch of its own."""
    start, length, count = _find_directory(descriptor, size)
    directory = _read_bytes(descriptor, start, length)
    if b"/code/" in directory or b"/constants.pkl" in directory:
        raise WeightsError("a TorchScript archive, which is a program", remedy=STRIP)
    entries = []
    at = 0
    for _ in range(count):
        if at + CENTRAL.size > length:
            raise _bad_zip("its directory ends early")
        signature, _, _, flags, method, _, _, crc, packed, unpacked, named, extra, comment, _, _, _, offset = (
            CENTRAL.unpack_from(directory, at)
        )
        at += CENTRAL.size
        if signature != b"PK\x01\x02":
            raise _bad_zip("its directory is damaged")
        raw, fields = directory[at : at + named], directory[at + named : at + named + extra]
        at += named + extra + comment
        if flags & 1:
            raise WeightsError("an encrypted zip archive", remedy=UNPACK)
        if method or flags & ~HARMLESS_FLAGS:
            raise WeightsError("a compressed zip archive, not a checkpoint as torch writes it", remedy=UNPACK)
        unpacked, packed, offset = _widen(fields, unpacked, packed, offset)
        if packed != unpacked:
            raise _bad_zip("a file in it has two sizes")
        entries.append((offset, unpacked, crc, raw))
    if at != length:
        raise _bad_zip("its directory is damaged")

    members: dict[str, _Member] = {}
    reached = 0
    for offset, unpacked, crc, raw in sorted(entries):
        if not reached <= offset <= start - LOCAL.size:
            raise _bad_zip("files in it overlap")
        local = LOCAL.unpack(_read_bytes(descriptor, offset, LOCAL.size))
        named, extra = local[9:]
        begin = offset + LOCAL.size + named + extra
        reached = begin + unpacked
        if reached > start:
            raise _bad_zip("a file in it has no end")
        if local[0] != b"PK\x03\x04" or local[2] & ~HARMLESS_FLAGS or local[3]:
            raise _bad_zip("a file in it is not where the directory says")
        if _read_bytes(descriptor, offset + LOCAL.size, named) != raw:
            raise _bad_zip("a file in it has two names")
        name = raw.decode("utf-8", "replace")
        if not name.isprintable() or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise _bad_zip(f"it holds the name {shown(repr(name), 80)}")
        if name in members:
            raise _bad_zip(f"it holds {shown(name, 80)} twice")
        members[name] = _Member(name, begin, unpacked, crc)
    tops = {name.split("/")[0] for name in members if "/" in name}
    if len(tops) != 1 or any("/" not in name for name in members):
        raise WeightsError("a zip archive, not a checkpoint", remedy=UNPACK)
    return members


def _find_directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """Where the zip's directory starts, how many bytes and how many entries it has."""
    tail = _read_bytes(descriptor, max(0, size - 98), min(size, 98)).rjust(98, b"\0")
    signature, disk, first, here, count, length, start, comment = END.unpack(tail[-END.size :])
    if signature != b"PK\x05\x06":
        raise WeightsError("cut short: a zip archive without its end", remedy=AGAIN)
    end, seen = size - END.size, (here, count, length, start)
    locator = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size])
    if locator[0] == b"PK\x06\x07":
        end -= LOCATOR.size + END64.size
        wide = END64.unpack(tail[: END64.size])
        if wide[0] != b"PK\x06\x06" or wide[1] != END64.size - 12 or locator[1:] != (0, end, 1) or any(wide[4:6]):
            raise _bad_zip("its end is damaged")
        here, count, length, start = wide[6:]
        full = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        if any(old not in (new, most) for old, new, most in zip(seen, wide[6:], full, strict=True)):
            raise _bad_zip("its two ends disagree")
    if disk or first or comment or here != count or start + length != end:
        raise _bad_zip("its end is damaged")
    if length > MAX_DIRECTORY or not count:
        raise WeightsError("a zip archive, not a checkpoint", remedy=UNPACK)
    return start, length, count


def _widen(fields: bytes, *values: int) -> list[int]:
    """The values with those that did not fit into 32 bits taken from the zip64 field."""
    wide: Iterator[int] = iter(())
    at = 0
    while at + 4 <= len(fields):
        kind, length = struct.unpack_from("<2H", fields, at)
        if kind == 1 and length % 8 in (0, 4) and at + 4 + length <= len(fields):
            wide = iter(struct.unpack_from(f"<{length // 8}Q", fields, at + 4))
        at += 4 + length
    try:
        return [next(wide) if value == 0xFFFFFFFF else value for value in values]
    except StopIteration as error:
        raise _bad_zip("a size in it is missing") from error


def _bad_zip(reason: str) -> WeightsError:
    return WeightsError(f"a damaged or doctored zip archive ({reason})", remedy=AGAIN)
