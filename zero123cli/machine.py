"""Every question to the outside: folders, environment, device, memory. Nobody else asks.

torch is imported only inside the functions that need it: `zero123 --help` must not wait for it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import UnavailableError, UsageError

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Backend:
    """Where networks run and in which precision."""

    device: str  # "cpu", "cuda:0", "mps"
    dtype: Literal["float32", "float16", "bfloat16"]
    name: str  # what people call the device


@dataclass(frozen=True)
class Peers:
    """Processes that were launched together to train one model, and which of them this is."""

    rank: int = 0
    count: int = 1
    local: int = 0  # rank among those on this machine


def peers(environ: Mapping[str, str] = os.environ) -> Peers:
    """What `accelerate launch` or torchrun says of this process."""
    rank, count, local = (environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (rank.isdigit() and count.isdigit() and int(count) > 1):
        return Peers()
    return Peers(int(rank), int(count), int(local) if local.isdigit() else 0)


def shipped(name: Literal["presets", "assets"]) -> Path:
    """A folder that comes with the program: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def preset_folders() -> list[Path]:
    """Where presets are looked for; the user's own come first."""
    own = config_folder()
    return [*([own / "presets"] if own else []), shipped("presets")]


def own_folder(kind: Literal["config", "cache", "log", "data"]) -> Path:
    """This user's folder for it."""
    import platformdirs

    try:
        folder = Path(getattr(platformdirs, f"user_{kind}_dir")("zero123", appauthor=False))
    except RuntimeError:  # a number for a user, as in containers
        folder = Path("~")
    if not folder.is_absolute():
        other = ", or name a folder for the cache: --cache-dir FOLDER" if kind == "cache" else ""
        raise UnavailableError("this user has no home folder", remedy=f"set HOME{other}")
    return folder


def config_folder() -> Path | None:
    """None where there is no home."""
    try:
        return own_folder("config")
    except UnavailableError:
        return None


def cache_folder() -> Path:
    """Where stages are kept unless --cache-dir or ZERO123_CACHE_DIR says otherwise."""
    return own_folder("cache")


def log_folder() -> Path:
    return own_folder("log")


def weights_folder() -> Path:
    """Where weights are kept that have no better place: hub files are in the hub's cache, cutters where rembg looks."""
    return own_folder("data") / "weights"


def project_file() -> Path | None:
    """The nearest `zero123.toml`, from the current folder upwards."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was deleted
        return None
    for folder in (here, *here.parents):
        if os.path.isfile(folder / "zero123.toml"):
            return folder / "zero123.toml"
    return None


def user_file() -> Path | None:
    folder = config_folder()
    return folder / "config.toml" if folder and os.path.isfile(folder / "config.toml") else None


def cutter_folders(name: str, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where rembg keeps the weights of cutter `name`, in the order in which it looks (rembg 2.0.86)."""

    def expand(path: str) -> Path:
        return Path(os.path.expanduser(path))

    data = environ.get("XDG_DATA_HOME")
    legacy = expand(environ.get("U2NET_HOME") or os.path.join(data or "~", ".u2net"))
    default = os.path.join(data, "rembg") if data else os.path.join("~", ".rembg")
    home = legacy if environ.get("U2NET_HOME") else expand(environ.get("REMBG_HOME") or default)
    return [folder for folder in (home / "models" / name, legacy) if "~" not in folder.parts[:1]]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asked_threads(environ: Mapping[str, str] = os.environ) -> int:
    """Threads that the user asked for with OMP_NUM_THREADS; 0 for the library's own choice."""
    asked = environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else 0


def has_compiler(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether C++ can be compiled here."""
    return any(shutil.which(name) for name in (environ.get("CXX", ""), "g++", "clang++"))


def free_memory() -> int | None:
    """Bytes of host memory that can still be had, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def pick(device: str = "auto", dtype: str = "auto") -> Backend:
    """The backend asked for. Only "auto" may fall back; anything else is there or is an UnavailableError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", device):
        raise UsageError(f"there is no device {device!r}", where="--device", remedy="say auto, cpu, cuda[:N] or mps")
    if device == "auto" and not may_have_accelerator():
        device = "cpu"  # known without waiting for torch
    kind, _, number = device.partition(":")
    if kind != "cpu":
        refuse_deleted_folder()
        import torch
    if device == "auto":
        device = kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number) if number.isdigit() else 0
        if index >= count:
            raise UnavailableError(
                f"there is no CUDA device {index} ({count} found)",
                where=f"--device {device}",
                remedy="try --device auto, or see `zero123 doctor`",
            )
        device, name = f"cuda:{index}", torch.cuda.get_device_name(index)
    elif kind == "mps":
        if not torch.backends.mps.is_available():
            raise UnavailableError("there is no Metal device", where="--device mps", remedy="try --device auto")
        device, name = "mps", "Metal"
    else:
        device, name = "cpu", f"CPU, {cores()} cores"
    if dtype == "auto":
        dtype = {"cpu": "bfloat16" if has_fast_bfloat16() else "float32", "mps": "float32"}.get(kind, "float16")
    return Backend(device, dtype, name)  # type: ignore[arg-type]  # the command line offers only the three


def may_have_accelerator() -> bool:
    """Whether it is worth asking torch."""
    return sys.platform == "darwin" or os.name == "nt" or Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


def may_be_cuda(device: str) -> bool:
    """Whether what is asked for is or may well be a CUDA card."""
    return device.startswith("cuda") or (device == "auto" and sys.platform != "darwin" and may_have_accelerator())


def refuse_deleted_folder() -> None:
    """torch's maths library ends the whole process when the current folder is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UnavailableError("the current folder was deleted", remedy="go to another: cd ~") from None


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (elsewhere it is emulated and slow)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def peak_memory() -> int:
    """Bytes of memory that this process held at most until now; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
