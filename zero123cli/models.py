"""The literal table of known weights, and where they lie on this machine. Nothing here uses the network.

View models are the published zero123 checkpoints. Cutters are rembg's local sessions: rembg does not check a file that
is already there; we do, against the digest that it publishes. Its sessions that send pictures to a service are not
offered. A number that nobody published is 0 or "", never a guess. Two small networks of our own came with the program.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from . import machine
from .errors import UnavailableError, UsageError, WeightsError
from .watch import Progress, Watch, silent

INDEX = "model_index.json"  # what makes a folder of the hub a diffusers pipeline
READ = 1 << 22  # bytes at a time


@dataclass(frozen=True)
class KnownModel:
    """One set of weights that draws an object from another side."""

    name: str
    pose_kind: Literal["original", "stable"]  # the fourth pose number: a change of radius, or the photo's polar angle
    licence: str  # "" where none is stated
    repo: str = ""  # on the Hugging Face hub
    file: str = ""  # in the repo, or the name that what `url` serves is kept under; "" for a diffusers folder
    url: str = ""  # for what is not on the hub
    size: int = 0  # bytes, exactly
    about: str = ""  # size, where it is published only roughly
    sha256: str = ""
    variants: tuple[str, ...] = ("",)  # of the weights in a folder, the best first
    non_commercial: bool = False
    note: str = ""

    kind = "view"

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}" if self.sha256 else ""

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return urlsplit(self.url).netloc if self.url else f"huggingface.co/{self.repo}"


@dataclass(frozen=True)
class CutterWeights:
    """One set of weights that separates an object from its background."""

    name: str
    md5: str  # of the onnx file, as rembg 2.0.86 pins it; "" where it pins none
    licence: str
    note: str
    must_accept: bool = False  # its licence has to be accepted by name
    asset: str = ""  # its name among the release files of rembg, where it is not `file`
    sha256: str = ""  # where rembg pins this one instead
    about: str = ""

    size = 0
    kind = "cutter"

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"

    @property
    def url(self) -> str:
        return f"https://github.com/danielgatis/rembg/releases/download/v0.0.0/{self.asset or self.file}"

    @property
    def digest(self) -> str:
        return f"md5:{self.md5}" if self.md5 else f"sha256:{self.sha256}" if self.sha256 else ""

    @property
    def non_commercial(self) -> bool:
        return self.must_accept

    @property
    def origin(self) -> str:
        return "github.com/danielgatis/rembg"


@dataclass(frozen=True)
class EmbeddedWeights:
    """One set of weights that came with the program."""

    name: str
    file: str
    sha256: str
    kind: Literal["view", "cutter"]
    note: str

    licence = "free with attribution, see assets/MODEL_CARD.md"
    origin = "zero123 itself"
    about = ""
    size = 0
    non_commercial = False

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}"

    @property
    def path(self) -> Path:
        """Where it should be."""
        return machine.shipped("assets") / self.file


Published = KnownModel | CutterWeights
Known = EmbeddedWeights | Published

PIP = f"{shlex.quote(sys.executable)} -m pip"  # as a shell reads it
POCKET = EmbeddedWeights(
    "pocket",
    "pocket.safetensors",
    "b94460e67c197081e73c2e6974c70671b6a4b5279d820ed3efa4467001723d6b",
    "view",
    "came with zero123, and is what it uses unless told otherwise",
)
POCKET_CUTTER = EmbeddedWeights(
    "pocket-cutter",
    "pocket-cutter.onnx",
    "6cae43ed61b860e5f011a9db7a2781d0c1112f196cacdfb2426db7acd3e3d5d4",
    "cutter",
    "came with zero123, for where no others are installed",
)
EMBEDDED = {weights.name: weights for weights in (POCKET, POCKET_CUTTER)}

CVLAB = "cvlab/zero123-weights"
STABILITY = "stabilityai/stable-zero123"
RESEARCH = "Stability AI non-commercial research community licence"
HALF = ("fp16_ema", "fp16", "")  # averaged weights are what the published results were made with

KNOWN = {
    model.name: model
    for model in (
        KnownModel("zero123-105000", "original", "MIT", CVLAB, "105000.ckpt", note="the paper's first weights"),
        KnownModel("zero123-165000", "original", "MIT", CVLAB, "165000.ckpt"),
        KnownModel("zero123-230000", "original", "MIT", CVLAB, "230000.ckpt"),
        KnownModel("zero123-300000", "original", "MIT", CVLAB, "300000.ckpt", note="trained longest; may overfit"),
        KnownModel(
            "zero123-xl",
            "original",
            "",
            file="zero123-xl.ckpt",
            url="https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt",
            size=15_465_973_531,
            sha256="bc4ea2f8696ed96495a756e178cab659de807bbae2d2df18987cf61c44070696",
            note="trained on Objaverse-XL; no licence is stated, mirrors on the hub are tagged MIT",
        ),
        KnownModel(
            "stable-zero123",
            "stable",
            RESEARCH,
            STABILITY,
            "stable_zero123.ckpt",
            about="8.58 GB",
            non_commercial=True,
            note="trained on objects that include CC-BY-NC ones",
        ),
        KnownModel(
            "stable-zero123-c",
            "stable",
            "Stability AI Community License",
            STABILITY,
            "stable_zero123_c.ckpt",
            about="about 8.6 GB",
            note="CC-BY and CC0 objects only; commercial use is free below US$ 1M of yearly revenue",
        ),
        KnownModel(
            "zero123-diffusers", "original", "", "bennyguo/zero123-diffusers", about="about 2.5 GB", variants=HALF
        ),
        KnownModel(
            "zero123-xl-diffusers", "original", "", "bennyguo/zero123-xl-diffusers", about="about 2.5 GB", variants=HALF
        ),
        KnownModel("zero123-105000-diffusers", "original", "", "kxic/zero123-105000", note="float32"),
        KnownModel("zero123-165000-diffusers", "original", "", "kxic/zero123-165000", note="float32"),
        KnownModel("zero123-xl-fp16", "original", "MIT", "ashawkey/zero123-xl-diffusers", about="about 2.5 GB"),
        KnownModel(
            "stable-zero123-fp16",
            "stable",
            RESEARCH,
            "ashawkey/stable-zero123-diffusers",
            about="about 2.5 GB",
            non_commercial=True,
            note="the repo is tagged MIT, but the weights are Stability's",
        ),
    )
}

CUTTERS = {
    weights.name: weights
    for weights in (
        CutterWeights("u2net", "60024c5c889badc19c04ad937298a77b", "Apache-2.0", "general", about="176 MB"),
        CutterWeights("u2netp", "8e83ca70e441ab06c318d82300c84806", "Apache-2.0", "general, small", about="4.6 MB"),
        CutterWeights("silueta", "55e59e0d8062d2f5d013f4725ee84782", "Apache-2.0", "u2net made smaller"),
        CutterWeights("u2net_human_seg", "c09ddc2e0104f800e3e1bb4652583d1f", "Apache-2.0", "people"),
        CutterWeights("isnet-general-use", "fc16ebd8b0c10d971d3513d564d01e29", "Apache-2.0", "general, 1024 px"),
        CutterWeights("isnet-anime", "6f184e756bb3bd901c8849220a83e38e", "Apache-2.0", "drawn characters"),
        CutterWeights(
            "birefnet-general",
            "7a35a0141cbbc80de11d9c9a28f52697",
            "MIT",
            "general, best edges, slow",
            asset="BiRefNet-general-epoch_244.onnx",
        ),
        CutterWeights(
            "birefnet-general-lite",
            "4fab47adc4ff364be1713e97b7e66334",
            "MIT",
            "general, lighter",
            asset="BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx",
        ),
        CutterWeights(
            "birefnet-portrait",
            "c3a64a6abf20250d090cd055f12a3b67",
            "MIT",
            "people",
            asset="BiRefNet-portrait-epoch_150.onnx",
        ),
        CutterWeights(
            "birefnet-dis",
            "2d4d44102b446f33a4ebb2e56c051f2b",
            "MIT",
            "thin structures",
            asset="BiRefNet-DIS-epoch_590.onnx",
        ),
        CutterWeights(
            "birefnet-hrsod",
            "c017ade5de8a50ff0fd74d790d268dda",
            "MIT",
            "large pictures",
            asset="BiRefNet-HRSOD_DHU-epoch_115.onnx",
        ),
        CutterWeights(
            "birefnet-cod",
            "f6d0d21ca89d287f17e7afe9f5fd3b45",
            "MIT",
            "hidden objects",
            asset="BiRefNet-COD-epoch_125.onnx",
        ),
        CutterWeights(
            "birefnet-massive",
            "33e726a2136a3d59eb0fdf613e31e3e9",
            "MIT",
            "general, more data",
            asset="BiRefNet-massive-TR_DIS5K_TR_TEs-epoch_420.onnx",
        ),
        CutterWeights(
            "bria-rmbg",
            "",
            "Bria RMBG-2.0, non-commercial",
            "general, 1024 px",
            must_accept=True,
            asset="bria-rmbg-2.0.onnx",
            sha256="5b486f08200f513f460da46dd701db5fbb47d79b4be4b708a19444bcd4e79958",
        ),
    )
}

# What `--cutter auto` takes, the first that is installed.
PREFERRED_CUTTERS = ("u2net", "birefnet-general", "isnet-general-use", "birefnet-general-lite", "silueta", "u2netp")


# Where they are -------------------------------------------------------------------------------------------------------


def table() -> dict[str, Known]:
    """All known weights: those that are always there, view models, cutters."""
    return {**EMBEDDED, **KNOWN, **CUTTERS}


def recipes(on_card: bool) -> dict[str, str]:
    """The preset that lifts with each published model as its makers do, or as a CPU can."""
    if not on_card:
        return dict.fromkeys(KNOWN, "stable-zero123-cpu")
    return {name: "stable-zero123" if known.pose_kind == "stable" else "zero123-xl" for name, known in KNOWN.items()}


def look_up(name: str) -> Known:
    """What the table says of a view model or a cutter."""
    known = table()
    if name in known:
        return known[name]
    raise unknown(name, known)


def unknown(name: str, among: Iterable[str]) -> UsageError:
    """The error that names what is nearest."""
    near = difflib.get_close_matches(name, list(among), 1)
    remedy = f"did you mean {near[0]}?" if near else "see: zero123 models list"
    return UsageError(f"no weights are known by the name {name!r}", remedy=remedy)


def find(known: Known) -> Path | None:
    """The file or folder of installed weights."""
    if isinstance(known, EmbeddedWeights):
        return known.path if known.path.is_file() else None
    return find_model(known.name) if isinstance(known, KnownModel) else find_cutter(known.name)


def find_model(name: str) -> Path | None:
    """The file of a view model, or its folder: in the hub's cache, or in our own folder for what is not on the hub."""
    model = KNOWN[name]
    if model.url:
        path = machine.weights_folder() / model.file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.repo, model.file or INDEX)
    if not isinstance(found, str):
        return None
    if model.file:
        return Path(found)
    folder = Path(found).parent
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether each part that a diffusers pipeline names is there."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    except (OSError, ValueError, AttributeError, IndexError):
        return False
    return all((folder / name).is_dir() for name in parts if name != "safety_checker")


def missing(name: str, where: str = "") -> UnavailableError:
    return UnavailableError(
        f"the weights of {name} are not installed", where=where, remedy=f"run: {fetch_command(name)}"
    )


def model_missing(name: str) -> UnavailableError:
    return missing(name, "--model")


def find_cutter(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The weights file of a cutter, where rembg itself would find it."""
    for folder in machine.cutter_folders(name, environ):
        path = folder / CUTTERS[name].file
        if os.path.isfile(path):
            return path
    return None


def fetch_command(name: str) -> str:
    """The command that puts weights where they are looked for."""
    if name in EMBEDDED:
        return f"{PIP} install --force-reinstall --no-deps zero123cli"
    return f"zero123 models pull {name}"


# Whether they are what was published ----------------------------------------------------------------------------------


def check_cutter(name: str, path: Path, found: Mapping[str, str]) -> None:
    """Refuses weights whose digest (`found` has one of each kind) is not the published one."""
    kind, _, expected = CUTTERS[name].digest.partition(":")
    if expected and found[kind] != expected:
        raise WeightsError(
            f"these are not the published {name} weights (their digest differs)",
            where=str(path),
            remedy="delete the file and fetch it again",
        )


def files_of(known: Known, path: Path) -> Iterator[tuple[Path, str]]:
    """Each file of installed weights with its published digest, or "" where there is none."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            yield file, known.digest or hub_digest(file.resolve().name if file.is_symlink() else "")


def hub_digest(etag: str) -> str:
    """The digest that an etag of the hub is: of large files their sha256, of small ones their git object's name."""
    if re.fullmatch("[0-9a-f]{64}", etag):
        return f"sha256:{etag}"
    return f"git:{etag}" if re.fullmatch("[0-9a-f]{40}", etag) else ""


def damage(path: Path, size: int, digest: str, watch: Watch = silent) -> str:
    """What is wrong with a file that should have this size and digest ("" for nothing); 0 and "" are not checked."""
    found = path.stat().st_size
    if size and found != size:
        return f"{found} bytes instead of {size}"
    kind, _, expected = digest.partition(":")
    if not expected:
        return ""
    if kind == "git":
        state = hashlib.sha1(f"blob {found}\0".encode(), usedforsecurity=False)
    else:
        state = hashlib.new(kind, usedforsecurity=False)
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(READ):
            state.update(chunk)
            done += len(chunk)
            watch(Progress("check", done, found))
    return "" if state.hexdigest() == expected else "its digest differs from the published one"
