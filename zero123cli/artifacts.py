"""What the stages hand on: inert values, no methods beyond trivial properties; one writer and one reader for all.

An artifact is arrays, numbers, strings and tuples of those. On disk it is `arrays.safetensors` and `facts.json`.
Letters: H height, W width, S side of a square picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load, save

from . import durable
from .cameras import TRAINING_DISTANCE

T = TypeVar("T")

ARRAYS = "arrays.safetensors"
FACTS = "facts.json"
HEAD = "zero123"  # the key of what our safetensors files say of themselves
MAX_HEAD = 1 << 24  # bytes that are read of a file for it


@dataclass(frozen=True)
class Photo:
    """A photo as it came: undecoded, so that its key costs one digest and a cache hit decodes nothing."""

    name: str  # for messages only, never part of a key
    data: bytes


@dataclass(frozen=True)
class Picture:
    """A decoded photo: upright, sRGB, straight alpha."""

    rgba: np.ndarray  # uint8 (H, W, 4)
    has_alpha: bool  # the file carried an alpha channel or a transparent colour


@dataclass(frozen=True)
class Cutout:
    """The object alone: a square picture with soft alpha, colours free of the background."""

    rgba: np.ndarray  # uint8 (S, S, 4), straight alpha
    left: float  # where the square lies in the upright photo, px; it may reach beyond it
    top: float
    side: float  # px of the photo
    photo_width: int
    photo_height: int
    foreground_ratio: float  # longer side of the object's box / side of the square
    cutter: str  # what made the mask: a cutter's name, "alpha" or "keep"


@dataclass(frozen=True)
class Views:
    """A photo as a view model sees it: the conditioned prior, computed once for all views. K tokens, D their width."""

    embedding: np.ndarray  # float32 (K, D)
    concat: np.ndarray  # float32 (C, h, w)
    photo_elevation_deg: float
    distance: float  # of the photo's camera, in sizes of the object
    occupancy: np.ndarray  # float32 (1, D, S, S), logits of a volume; without one all three are empty
    colour: np.ndarray  # float32 (1, 3, V, V, V)
    elevation: np.ndarray  # float32 (1, bins), logits


@dataclass(frozen=True)
class PhotoCamera:
    """Where the photo was taken from."""

    elevation_deg: float | None  # None: the view model's own guess, 0 if it has none
    distance: float = TRAINING_DISTANCE


@dataclass(frozen=True)
class Ask:
    """One picture: where from, which of several, and how."""

    azimuth_deg: float  # from the photo's
    elevation_deg: float  # from the photo's
    distance: float  # from the photo's
    number: int
    seed: int
    sampler: str
    steps: int
    guidance: float
    eta: float


@dataclass(frozen=True)
class View:
    """One sampled picture of the object from another side."""

    pixels: np.ndarray  # uint8 (S, S, 3) on white, or (S, S, 4)
    azimuth_deg: float  # from the photo's
    elevation_deg: float  # from the photo's
    distance: float  # from the photo's
    number: int  # which of several samples at this pose


@dataclass(frozen=True)
class Field:
    """A radiance field: what its networks hold, and the JSON that says how to build them."""

    weights: np.ndarray  # float32 (N,), all parameters in order
    description: str


def pack(artifact: object) -> dict[str, bytes]:
    """The files of an artifact, the same bytes for the same artifact."""
    assert is_dataclass(artifact) and not isinstance(artifact, type), artifact
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for part in fields(artifact):
        value = getattr(artifact, part.name)
        if isinstance(value, np.ndarray):
            arrays[part.name] = np.ascontiguousarray(value)
        else:
            facts[part.name] = value
    return {ARRAYS: save(arrays), FACTS: to_json({"artifact": type(artifact).__name__, "facts": facts})}


def unpack(kind: type[T], files: Mapping[str, bytes]) -> T:
    """The artifact that `pack` made; a ValueError when the files hold another kind or another layout."""
    head = json.loads(files[FACTS])
    values = {name: as_tuple(value) for name, value in head["facts"].items()} | load(files[ARRAYS])
    names = {part.name for part in fields(kind)}  # type: ignore[arg-type]  # T is one of the dataclasses above
    if head["artifact"] != kind.__name__ or set(values) != names:
        raise ValueError(f"holds {head['artifact']}, not {kind.__name__}")
    return kind(**values)


def to_json(value: object) -> bytes:
    """One spelling for one value: what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def as_tuple(value: Any) -> Any:
    """JSON knows lists only; frozen artifacts hold tuples."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value


def with_head(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as the metadata of a safetensors file: under one key, since several are written in a random order."""
    return {HEAD: to_json(facts).decode()}


def read_head(raw: bytes) -> dict[str, Any]:
    """The facts of a safetensors file's bytes; a ValueError or KeyError when it holds none."""
    head: dict[str, Any] = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"][HEAD])
    return head


def peek_head(path: Path) -> dict[str, Any]:
    """The facts of a safetensors file of ours, without its tensors; empty for anything else."""
    try:
        with open(durable.open_regular(path), "rb") as file:
            size = file.read(8)
            head = read_head(size + file.read(min(int.from_bytes(size, "little"), MAX_HEAD)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}
