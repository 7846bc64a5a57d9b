"""Looks over an installation: what is there, what is missing, and the one command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import __version__, machine
from .cache import Cache, file_digest, open_cache
from .cutters import embedded_cutter
from .errors import UnavailableError, Zero123Error
from .models import (
    CUTTERS,
    PIP,
    POCKET,
    POCKET_CUTTER,
    PREFERRED_CUTTERS,
    check_cutter,
    damage,
    fetch_command,
    find,
    find_cutter,
    missing,
)
from .pipeline import locate_model

DISTRIBUTION = "zero123cli"
LITTLE_MEMORY = 4e9  # bytes; less is tight for a mesh
LITTLE_DISK = 1e9  # bytes in the cache's file system


@dataclass(frozen=True)
class Finding:
    what: str
    state: Literal["ok", "could", "bad"]  # "could": works without, better with
    found: str
    mend: str = ""  # the command or the step that mends it


def examine(cache_root: Path, *, shared: bool = False) -> list[Finding]:
    """Everything worth knowing, most basic first."""
    return [
        Finding("zero123", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *look_at_packages(),
        look_at_device(),
        look_at_memory(),
        *look_at_cache(cache_root, shared),
        *look_at_embedded(),
        *look_at_cutters(cache_root),
        *look_at_extras(),
    ]


def look_at_packages() -> Iterator[Finding]:
    """Each package that the installed metadata asks for, held against its range."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "bad", "zero123cli itself is not installed", f"{PIP} install zero123cli")
        return
    for need in wanted:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        mend = f'{PIP} install "{need.name}{need.specifier}"'
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(need.name, "bad", "not installed", mend)
            continue
        fits = need.specifier.contains(version, prereleases=True)
        found = version if fits else f"{version}, needed {need.specifier}"
        yield Finding(need.name, "ok" if fits else "bad", found, "" if fits else mend)


def look_at_device() -> Finding:
    try:
        machine.refuse_deleted_folder()
        import torch  # noqa: F401  # whether it loads is the question

        backend = machine.pick()
    except UnavailableError as error:
        return Finding("device", "bad", error.what, error.remedy)
    except Exception as error:  # torch's import fails in many ways
        mend = f"{PIP} install --force-reinstall torch"
        return Finding("device", "bad", f"torch does not load ({type(error).__name__})", mend)
    if backend.device == "cpu" and Path("/dev/nvidia0").exists():
        mend = f"{PIP} install --force-reinstall torch"
        seen = f"{backend.name}; there is an NVIDIA card, for which torch has to be a CUDA build"
        return Finding("device", "could", seen, mend)
    return Finding("device", "ok", f"{backend.name}, {backend.dtype}")


def look_at_memory() -> Finding:
    free = machine.free_memory()
    if free is None:
        return Finding("memory", "ok", "the system does not tell")
    low = free < LITTLE_MEMORY
    return Finding(
        "memory", "could" if low else "ok", f"{free / 1e9:.1f} GB free", "close other programs" if low else ""
    )


def look_at_cache(root: Path, shared: bool) -> Iterator[Finding]:
    try:
        open_cache(root, shared=shared)
    except Zero123Error as error:
        yield Finding("cache", "bad", f"{error.where}: {error.what}", error.remedy)
        return
    place = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    if not root.is_dir() or not os.access(root, os.W_OK):
        yield Finding("cache", "bad", f"{root} cannot be written", "choose another: export ZERO123_CACHE_DIR=FOLDER")
        return
    free = shutil.disk_usage(place).free
    low = free < LITTLE_DISK
    yield Finding(
        "cache",
        "could" if low else "ok",
        f"{root}, {free / 1e9:.1f} GB free",
        f"zero123 cache prune --max-size 1G --cache-dir {shlex.quote(str(root))}" if low else "",
    )


def look_at_embedded() -> Iterator[Finding]:
    """The weights that came with the package, each of them held against its digest and used."""
    looks = {
        f"model {POCKET.name}": (POCKET, look_into_model),
        f"cutter {POCKET_CUTTER.name}": (POCKET_CUTTER, try_cutter),
    }
    for what, (weights, look) in looks.items():
        mend = fetch_command(weights.name)
        try:
            if find(weights) is None:
                raise missing(weights.name)
            found, wrong = look(), damage(weights.path, weights.size, weights.digest)
        except Zero123Error as error:
            yield Finding(what, "bad", f"{error.where}: {error.what}" if error.where else error.what, mend)
        except OSError as error:
            yield Finding(what, "bad", f"{weights.path} cannot be read ({(error.strerror or '').lower()})", mend)
        else:
            yield Finding(
                what, "bad" if wrong else "ok", f"{weights.path}: {wrong}" if wrong else found, wrong and mend
            )


def look_into_model() -> str:
    from .diffusion.tensorfiles import open_tensors

    with open_tensors(locate_model(POCKET.name)) as file:
        numbers = sum(file.read(name).numel() for name in file.infos)
    return f"came with zero123, {numbers / 1e6:.1f} M parameters"


def try_cutter() -> str:
    import numpy as np

    weights = POCKET_CUTTER.path
    embedded_cutter(weights, "").find_mask(np.zeros((32, 32, 3), np.uint8))
    return f"came with zero123, {weights.stat().st_size / 1e6:.1f} MB"


def look_at_cutters(root: Path) -> Iterator[Finding]:
    installed = [(name, path) for name in CUTTERS if (path := find_cutter(name))]
    for name, path in installed:
        try:
            check_cutter(name, path, vars(file_digest(Cache(root), path)))
        except Zero123Error as error:
            yield Finding(
                f"cutter {name}",
                "bad",
                f"{error.where}: {error.what}",
                f"rm {shlex.quote(str(path))} && {fetch_command(name)}",
            )
        except OSError as error:
            yield Finding(f"cutter {name}", "bad", f"{path} cannot be read", error.strerror or "")
        else:
            yield Finding(f"cutter {name}", "ok", str(path))
    if not any(name in PREFERRED_CUTTERS for name, _ in installed):
        yield Finding(
            "cutter",
            "could",
            "no weights: objects are cut out by a small network, or by colour alone",
            fetch_command(PREFERRED_CUTTERS[0]),
        )


def look_at_extras() -> Iterator[Finding]:
    """What is not needed, and what it would bring."""
    pip = f"{PIP} install"
    extras = (
        ("pi_heif", "HEIC photos", f'{pip} "{DISTRIBUTION}[heic]"'),
        ("tinycudann", "faster hash grids on NVIDIA cards", "see the README of tiny-cuda-nn"),
    )
    for module, brings, mend in extras:
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            module, "ok" if there else "could", f"{'' if there else 'not installed: '}{brings}", "" if there else mend
        )
    ffmpeg = shutil.which("ffmpeg")
    yield Finding("ffmpeg", "ok" if ffmpeg else "could", ffmpeg or "not installed: videos of turntables", "")
