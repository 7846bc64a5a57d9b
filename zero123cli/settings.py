"""Every knob as frozen dataclasses (meaning and unit in its line) and the one TOML reader that fills them.

Whoever may state settings is a layer, the later one wins: default < preset < user file < project file < environment
< flag.
Every statement is checked, also one that a stronger layer overrides, and the origin of every value is kept.
A new knob is one line in its dataclass: reading, naming, checking and describing it follow from its type and bounds.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import MissingInputError, SettingsError, UsageError, reason_of
from .schedules import is_schedule, value_at

T = TypeVar("T")

OTHER_VARIABLES = (
    "ZERO123_CACHE_DIR",
    "ZERO123_OFFLINE",
    "ZERO123_DEBUG",
    "ZERO123_SHARED_CACHE",
    "ZERO123_LOCK_TIMEOUT",
)
OPTIONS = {  # that are not called like their knob
    "model.name": "--model",
    "lift.scale": "--guidance",
    "lift.refine_steps": "--steps",
}
DEFAULT_PRESET = "cpu"
CALL = "flag --preset"  # what asks for a preset, if it does
AUTO = "auto"  # what states that a knob without a value is to have none
PRESET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # never a path that climbs
MAX_CHAIN = 4  # presets that extend one another
MAX_BYTES = 256 * 1024
MAX_LETTERS = 200  # of a summary or a name
MAX_DOTS = 64  # in one line: tomllib's time grows with the square of the parts of a dotted key


def knob(default: T, meaning: str, *, low: float | None = None, high: float | None = None) -> T:
    """A dataclass field with its meaning (and unit) and its inclusive bounds."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


Cutter = Literal[
    "auto",
    "pocket-cutter",
    "classical",
    "u2net",
    "u2netp",
    "silueta",
    "u2net_human_seg",
    "isnet-general-use",
    "isnet-anime",
    "birefnet-general",
    "birefnet-general-lite",
    "birefnet-portrait",
    "birefnet-dis",
    "birefnet-hrsod",
    "birefnet-cod",
    "birefnet-massive",
    "bria-rmbg",
]


@dataclass(frozen=True)
class CutoutSettings:
    cutter: Cutter = knob("auto", "what separates the object from its background")  # noqa: RUF009
    mask: Literal["auto", "alpha", "remove", "keep"] = knob(
        "auto", "the photo's alpha when useful, alpha only, always the cutter, or the whole picture kept as it is"
    )
    keep: Literal["largest", "all"] = knob("largest", "which of several objects stay")
    foreground_ratio: float = knob(0.80, "longer side of the object's box / side of the frame", low=0.1, high=1.0)
    size: int = knob(512, "side of the square cutout, px", low=64, high=4096)


@dataclass(frozen=True)
class ModelSettings:
    name: str = knob("pocket", "the view model: the embedded one, a name of `zero123 models list`, a file or a folder")
    lean: bool = knob(False, "keep on the GPU only the network that is at work: slower, for small cards")
    ema: bool = knob(True, "take the averaged weights of a training checkpoint, as the original does")
    pose_kind: Literal["auto", "original", "stable"] = knob(
        "auto", "what the fourth pose number is: the distance's change, or the photo's polar angle (Stable Zero123)"
    )


@dataclass(frozen=True)
class ViewsSettings:
    photo_elevation: float | None = knob(
        None,
        "how high the photo's camera stands, degrees, up positive; none: guessed if the model can",
        low=-90,
        high=90,
    )
    sampler: Literal["ddim-original", "ddim", "dpm++", "unipc"] = knob("ddim-original", "how noise becomes a picture")
    steps: int = knob(50, "network calls for a view, each for both branches of the guidance", low=1, high=999)
    guidance: float = knob(3.0, "how much more the photo counts than no photo; 1 is the photo alone", low=0, high=100)
    eta: float = knob(1.0, "share of fresh noise in each step of the ddim samplers", low=0, high=1)
    batch: int = knob(1, "views sampled side by side; more is faster on a GPU", low=1, high=256)


@dataclass(frozen=True)
class LiftSettings:
    """The defaults are the embedded model's recipe; published ones are presets.

    What is a tuple is a value, or step, value, step, value, ...: linear between them, or by jumps where it says so.
    """

    start: Literal["auto", "blob", "volume"] = knob(
        "auto", "what the field begins as; auto: a volume if one is offered"
    )
    field: Literal["small", "full", "voxels"] = knob("small", "hash grid of 8 or 16 levels, or SJC's latent voxels")
    bound: float = knob(0.8, "half side of the field's box, object sizes", low=0.5, high=4)
    solid: float = knob(50.0, "density of what a volume says is solid", low=1, high=1e4)
    steps: int = knob(150, "steps of the optimiser", low=1, high=1_000_000)
    refine_steps: int = knob(60, "steps of the optimiser when the field starts from a volume", low=1, high=1_000_000)
    kind: Literal["sds", "sjc", "clean"] = knob("clean", "how the view model guides")
    scale: float = knob(1.0, "classifier-free guidance", low=0, high=1000)
    weighting: Literal["published", "dreamfusion", "uniform"] = knob("published", "weight of SDS over noise levels")
    walk: int = knob(2, "steps to a clean estimate", low=1, high=100)
    clamp: float = knob(0.0, "largest absolute value of guidance; 0 for none", low=0, high=1e6)
    low_noise: tuple[float, ...] = knob((0.1,), "least noise that is added, share of the schedule", low=0, high=1e9)
    high_noise: tuple[float, ...] = knob((0.9,), "most noise that is added, share of the schedule", low=0, high=1e9)
    distance: float = knob(1.85, "of the cameras, object sizes", low=0.5, high=20)
    distance_spread: float = knob(0.0, "share by which distances vary", low=0, high=0.5)
    fov_deg: float = knob(38.58, "field of view of the cameras, degrees", low=1, high=120)
    elevations: tuple[float, ...] = knob((-10.0, 60.0), "lowest and highest camera, degrees", low=-90, high=90)
    directions: Literal["band", "cube"] = knob("band", "how cameras are drawn: over a band, or as a cube's points lie")
    size: tuple[float, ...] = knob((64,), "side of the pictures from around, px; jumps", low=0, high=1e9)
    photo_size: tuple[float, ...] = knob(
        (96,), "side of the picture from where the photo was taken, px; jumps", low=0, high=1e9
    )
    batch: tuple[float, ...] = knob((2,), "pictures from around a step; jumps", low=0, high=1e9)
    allow_degrade: bool = knob(
        False, "halve the side of pictures, not below 32 px, where memory does not hold single ones"
    )
    photo_every: int = knob(1, "steps between two looks at the photo", low=1, high=1000)
    samples: int = knob(64, "samples of a ray at most", low=4, high=4096)
    fineness: int = knob(160, "steps across the box", low=16, high=4096)
    cells: int = knob(48, "cells a side in which emptiness is known", low=8, high=256)
    optimiser: Literal["adam", "adamax"] = knob("adam", "what moves the field")
    rate: float = knob(0.01, "learning rate", low=0, high=10)
    guidance: tuple[float, ...] = knob((0.3,), "weight of the view model's guidance", low=0, high=1e9)
    colour: tuple[float, ...] = knob((500,), "weight of the photo's colours, mean square", low=0, high=1e9)
    mask: tuple[float, ...] = knob((100,), "weight of the photo's mask, mean square", low=0, high=1e9)
    depth_photo: tuple[float, ...] = knob(
        (0,), "weight of depth smoothness from where the photo was taken", low=0, high=1e9
    )
    depth_around: tuple[float, ...] = knob((0,), "weight of depth smoothness from around", low=0, high=1e9)
    near_view: tuple[float, ...] = knob((0,), "weight of near-view consistency", low=0, high=1e9)
    emptiness: tuple[float, ...] = knob((0,), "weight of emptiness along rays", low=0, high=1e9)
    sparsity: tuple[float, ...] = knob((0,), "weight of sparsity", low=0, high=1e9)
    opaqueness: tuple[float, ...] = knob((1.0,), "weight of opaqueness", low=0, high=1e9)
    orientation: tuple[float, ...] = knob((0,), "weight of normals that face away", low=0, high=1e9)
    normal_smoothness: tuple[float, ...] = knob((0,), "weight of smooth normals in pictures", low=0, high=1e9)
    normal_change: tuple[float, ...] = knob((0,), "weight of smooth normals in space", low=0, high=1e9)
    variation: tuple[float, ...] = knob((0,), "weight of total variation of the densities", low=0, high=1e9)


@dataclass(frozen=True)
class MeshSettings:
    resolution: Literal[64, 128, 256, 512] = knob(256, "cells a side in which the surface is looked for")
    level: float = knob(0.0, "density at the surface; 0: chosen by the photo's mask", low=0, high=1e6)
    faces: int = knob(10_000, "faces at most; 0 for all", low=0, high=10_000_000)
    keep_components: bool = knob(False, "keep pieces under a hundredth of the largest")
    smoothing: int = knob(60, "rounds of smoothing that keeps the volume", low=0, high=1000)
    watertight: bool = knob(True, "close holes")
    texture: Literal["uv", "vertex", "none"] = knob("uv", "a picture, a colour for each vertex, or neither")
    texture_size: int = knob(1024, "side of the texture, px", low=64, high=8192)


@dataclass(frozen=True)
class TrainSettings:
    task: Literal["volume", "pocket-views", "pocket-alone", "zero123", "cutter"] = knob("volume", "what is trained")
    base: str = knob("", "weights that the task builds on: a volume net's, or an image-variations Stable Diffusion")
    init: str = knob("", "exported weights of the same task to start from")
    licence: str = knob("", "what the weights may be used for and whom to name; written into them")
    steps: int = knob(100_000, "steps of the optimiser in all", low=1, high=10_000_000)
    minutes: float = knob(0.0, "time box of one call, minutes; 0 for none", low=0, high=1e5)
    batch: int = knob(64, "pictures a step", low=1, high=65536)
    shares: int = knob(1, "parts of the batch, worked off one after another or by several GPUs", low=1, high=65536)
    rate: float = knob(4e-4, "learning rate", low=0, high=1)
    warmup: int = knob(200, "steps over which the rate rises", low=0, high=1_000_000)
    fall: float = knob(0.2, "last share of the steps, over which the rate falls to a tenth", low=0, high=1)
    decay: float = knob(0.01, "weight decay", low=0, high=1)
    inertia: float = knob(0.99, "share of the gradient's mean square that a step keeps", low=0, high=0.999999)
    clip: float = knob(1.0, "largest norm of a step's gradient", low=0, high=1e6)
    compile: bool = knob(False, "compile the networks first: faster steps, and a C++ compiler is needed on a CPU")
    average: float = knob(0.999, "share of the averaged weights that a step keeps", low=0, high=1)
    judged: int = knob(64, "held-back pictures that the figures are of", low=1, high=65536)
    look_minutes: float = knob(5.0, "minutes between figures, pictures and curves", low=0, high=1e5)
    save_minutes: float = knob(2.0, "minutes between checkpoints", low=0, high=1e5)


@dataclass(frozen=True)
class Settings:
    seed: int = knob(0, "what all chance is drawn from", low=0, high=2**53)
    model: ModelSettings = field(default_factory=ModelSettings)
    cutout: CutoutSettings = field(default_factory=CutoutSettings)
    views: ViewsSettings = field(default_factory=ViewsSettings)
    lift: LiftSettings = field(default_factory=LiftSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def blame(*origins: str) -> type[UsageError | SettingsError]:
    """The error for what was stated there: a wrong call when a flag had a part in it."""
    return UsageError if any(origin.startswith("flag ") for origin in origins) else SettingsError


def check_lift(lift: LiftSettings, origins: Mapping[str, str]) -> None:
    """Every tuple is a schedule, and one that is asked for something sensible at every step."""
    limits = {"low_noise": (0, 1), "high_noise": (0, 1), "size": (4, 1024), "photo_size": (4, 1024), "batch": (1, 64)}
    for member in fields(lift):
        value = getattr(lift, member.name)
        if not isinstance(value, tuple):
            continue
        low, high = limits.get(member.name, (0, math.inf))
        key, fault = f"lift.{member.name}", ""
        if member.name == "elevations":
            fault = "" if len(value) == 2 and value[0] <= value[1] else "the lowest and the highest"
        elif not is_schedule(value):
            fault = "a value, or step, value, step, value, ... with rising steps"
        elif not all(low <= part <= high for part in (value if len(value) == 1 else value[1::2])):
            fault = f"values from {low:g} to {high:g}"
        if fault:
            raise blame(origins[key])(f'"{key}" is {list(value)} ({origins[key]}), expected {fault}')


def check_noise(lift: LiftSettings, origins: Mapping[str, str]) -> None:
    """At no step is the least noise above the most."""
    for step in sorted({0, *map(int, lift.low_noise[::2]), *map(int, lift.high_noise[::2])}):
        low, high = value_at(lift.low_noise, step), value_at(lift.high_noise, step)
        if low > high:
            stated = [origins[key] for key in ("lift.low_noise", "lift.high_noise")]
            raise blame(*stated)(
                f'"lift.low_noise" ({stated[0]}) is {low:g} at step {step}, above the {high:g} of "lift.high_noise" '
                f"({stated[1]})",
                remedy="lower the one or raise the other",
            )


def check(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuses what is right knob by knob and impossible together."""
    check_lift(settings.lift, origins)
    check_noise(settings.lift, origins)
    if settings.views.sampler == "ddim-original" and settings.views.steps < 2:
        stated = [origins[key] for key in ("views.steps", "views.sampler")]
        raise blame(*stated)(
            f'"views.steps" is {settings.views.steps} ({stated[0]}) and "views.sampler" is "ddim-original" '
            f"({stated[1]}), which drops the first of its steps",
            remedy="ask for 2 or more, or for another sampler",
        )
    views = settings.views
    spanned = 1000 // views.steps * views.steps
    if views.sampler == "ddim" and spanned < 900:
        stated = [origins[key] for key in ("views.steps", "views.sampler")]
        raise blame(*stated)(
            f'"views.steps" is {views.steps} ({stated[0]}): with so many "views.sampler" "ddim" ({stated[1]}) would '
            f"take pure noise for that of step {spanned} of 1000",
            remedy="ask for 50, 100, 200, 250 or 500, or for another sampler",
        )
    cutout = settings.cutout
    if cutout.mask in ("alpha", "keep") and cutout.cutter != "auto":
        stated = [origins[key] for key in ("cutout.cutter", "cutout.mask")]
        raise blame(*stated)(
            f'"cutout.cutter" is "{cutout.cutter}" ({stated[0]}) and "cutout.mask" is "{cutout.mask}" ({stated[1]}): '
            "the cutter would never run",
            remedy="leave the cutter at auto, or let the mask be auto or remove",
        )


@dataclass(frozen=True)
class Knob:
    """One row of what can be set."""

    key: str  # dotted
    kind: Any  # the type without its None
    default: object
    meaning: str
    low: float | None
    high: float | None

    @property
    def type_text(self) -> str:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        shapes = {Literal: "one of", tuple: "a list of numbers"}
        return names.get(self.kind) or shapes[typing.get_origin(self.kind)]

    @property
    def choices(self) -> tuple[object, ...]:
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def allowed(self) -> str:
        """Its choices or bounds in words; empty when it has none."""
        if self.low is not None and self.high is not None:
            return f"from {self.low} to {self.high}"
        low = f"at least {self.low}" if self.low is not None else ""
        high = f"at most {self.high}" if self.high is not None else ""
        return low or high or ", ".join(map(str, self.choices))

    @property
    def variable(self) -> str:
        return "ZERO123_" + self.key.upper().replace(".", "_")


def _walk(kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and dataclass field of each member, in the order of the file."""
    hints = typing.get_type_hints(kind)
    for member in fields(kind):
        hint = hints[member.name]
        if typing.get_origin(hint) in (types.UnionType, typing.Union):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        yield member.name, hint, member


def describe(settings_type: Any = Settings, prefix: str = "") -> list[Knob]:
    """A row for every knob, for `presets show` and help texts."""
    rows = []
    for name, kind, member in _walk(settings_type):
        if is_dataclass(kind):
            rows += describe(kind, f"{prefix}{name}.")
        else:
            rows.append(Knob(key=prefix + name, kind=kind, default=member.default, **member.metadata))
    return rows


def flatten(settings: object, prefix: str = "") -> dict[str, object]:
    """The value of every knob under its dotted key."""
    values: dict[str, object] = {}
    for name, kind, _ in _walk(type(settings)):
        value = getattr(settings, name)
        values |= flatten(value, f"{prefix}{name}.") if is_dataclass(kind) else {prefix + name: value}
    return values


def differences(settings: object) -> dict[str, object]:
    """The values that are not at their default."""
    defaults = {row.key: row.default for row in describe(type(settings))}
    return {key: value for key, value in flatten(settings).items() if value != defaults[key]}


def _fill(kind: Any, values: Mapping[str, object], prefix: str = "") -> Any:
    filled = {}
    for name, part, _ in _walk(kind):
        if is_dataclass(part):
            filled[name] = _fill(part, values, f"{prefix}{name}.")
        elif prefix + name in values:
            filled[name] = values[prefix + name]
    return kind(**filled)


def _tame(text: str) -> str:
    """A stranger's text, short and free of control characters."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:60])
    return f"{shown}..." if len(text) > 60 else shown


def _show(value: object) -> str:
    if isinstance(value, str):
        return f'"{_tame(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number of more than 64 bits"
    if isinstance(value, (int, float)):
        return str(value)
    return "a table" if isinstance(value, dict) else f"a {type(value).__name__}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The question that names what was most likely meant, or nothing."""
    return "".join(f'did you mean "{near}"?' for near in difflib.get_close_matches(name[:80], list(known), n=1))


def _parse(kind: Any, text: str) -> object:
    """What a text from the environment or --set states; a text that does not fit stays one, to be refused as such."""
    text = text.strip()
    if typing.get_origin(kind) is tuple:
        inner = text.removeprefix("[").removesuffix("]")
        return [_parse(typing.get_args(kind)[0], part) for part in inner.split(",") if part.strip()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    words: dict[str, object] = {str(choice): choice for choice in typing.get_args(kind)}
    return (words if kind is not bool else {"true": True, "false": False}).get(text, text)


def _accept(kind: Any, raw: Any, low: float | None, high: float | None) -> object:
    """The value of a knob, or ValueError; a bool is no number, a whole number is also a number."""
    shape, parts = typing.get_origin(kind), typing.get_args(kind)
    if shape is tuple and isinstance(raw, (list, tuple)):
        return tuple(_accept(parts[0], item, low, high) for item in raw)
    if shape is Literal and (type(raw), raw) in [(type(choice), choice) for choice in parts]:
        return raw
    if kind in (bool, str) and type(raw) is kind:
        return raw
    if kind in (int, float) and type(raw) in (int, kind):
        finite = abs(raw) < 2**63 if type(raw) is int else math.isfinite(raw)
        if finite and (low is None or raw >= low) and (high is None or raw <= high):
            return kind(raw)
    raise ValueError


@dataclass(frozen=True)
class _Layer:
    """One place that states settings."""

    stated: Mapping[str, object]  # by dotted key
    origins: Mapping[str, str]  # where each key was stated, in words
    path: str = ""  # of the file, if it is one
    error: type[SettingsError | UsageError] = SettingsError
    is_text: bool = False  # its values are texts that the type of the knob has yet to read


def _take(layer: _Layer, knobs: Mapping[str, Knob], key: str) -> object:
    """The checked value that a layer states for a key."""
    where, raw = layer.path or layer.origins[key], layer.stated[key]
    if key not in knobs:
        if any(other.startswith(f"{key}.") for other in knobs):
            raise layer.error(f"{_show(key)} is {_show(raw)}, expected a table of settings", where=where)
        table, dot, name = key.rpartition(".")
        remedy = _nearest(key, knobs).replace(f'"{table}{dot}', '"', 1)
        remedy = remedy or " ".join(f'did you mean "{other}"?' for other in knobs if other.endswith(f".{name}"))
        remedy = remedy or "`zero123 presets show` lists every key"
        raise layer.error(f"unknown key {_show(key)}", where=where, remedy=remedy)
    row = knobs[key]
    if row.default is None and isinstance(raw, str) and raw.strip() == AUTO:
        return None
    if layer.is_text:
        raw = _parse(row.kind, str(raw))
    try:
        return _accept(row.kind, raw, row.low, row.high)
    except ValueError:
        expected = f"{row.type_text} {row.allowed}".strip() + (f', or "{AUTO}"' if row.default is None else "")
        remedy = _nearest(raw, map(str, row.choices)) if isinstance(raw, str) else ""
        raise layer.error(f"{_show(key)} is {_show(raw)}, expected {expected}", where=where, remedy=remedy) from None


def _read_toml(path: Path) -> dict[str, object]:
    """What a TOML file states: top-level keys, and those of its tables dotted. Whoever wrote it may be hostile."""
    where = str(path)
    try:
        if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
            raise SettingsError("is not a file", where=where)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SettingsError(f"is larger than {MAX_BYTES // 1024} kB", where=where)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingInputError(
            "is not there", where=where, remedy="`zero123 presets list` shows the presets"
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot be read: {reason_of(error)}", where=where) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"is not UTF-8 (at line {line})", where=where, remedy="save it as UTF-8") from None
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.count(".") > MAX_DOTS:
            raise SettingsError(f"more than {MAX_DOTS} dots (at line {number})", where=where)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        reason = reason if len(reason) <= 160 else f"{reason[:100]} ... {reason[-50:]}"
        raise SettingsError(f"is not TOML: {reason}", where=where) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise SettingsError(reason, where=where) from None
    stated: dict[str, object] = {}
    for key, value in tables.items():
        name = f'"{key}"' if "." in key else key  # a quoted key that holds a dot is not a dotted key
        members = value if isinstance(value, dict) and value else {}
        stated |= {f"{name}.{member}": inner for member, inner in members.items()} or {name: value}
    return stated


@dataclass(frozen=True)
class Loaded:
    settings: Settings
    origins: dict[str, str]  # of every key: where its value was stated, in words
    preset: str


@dataclass(frozen=True)
class PresetInfo:
    name: str
    summary: str
    path: Path


def _pop_text(stated: dict[str, object], key: str, where: object) -> str | None:
    text = stated.pop(key, None)
    if text is None or (isinstance(text, str) and text.isprintable() and text.strip() and len(text) <= MAX_LETTERS):
        return text
    expected = f"one line of at most {MAX_LETTERS} letters"
    raise SettingsError(f"{_show(key)} is {_show(text)}, expected {expected}", where=str(where))


def _find_presets(folders: Sequence[Path]) -> dict[str, Path]:
    """Every preset by name; the first folder that has a name wins."""
    paths: list[Path] = []
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # of another user
            paths += folder.glob("*.toml")
    return {path.stem: path for path in paths if PRESET_NAME.fullmatch(path.stem)}


def _read_preset(path: Path) -> tuple[str, str | None, dict[str, object]]:
    """Its summary, the preset it extends and what it states."""
    stated = _read_toml(path)
    summary, extends = _pop_text(stated, "summary", path), _pop_text(stated, "extends", path)
    if summary is None:
        raise SettingsError("has no summary", where=str(path), remedy='add summary = "one line about it"')
    return summary, extends, stated


def list_presets(preset_folders: Sequence[Path]) -> list[PresetInfo]:
    """Every preset that can be asked for by name."""
    found = sorted(_find_presets(preset_folders).items())
    return [PresetInfo(name, _read_preset(path)[0], path) for name, path in found]


def _preset_layers(name: str, asker: str, folders: Sequence[Path]) -> list[_Layer]:
    """The preset and those it extends, the weakest first."""
    from_flag = asker == CALL
    presets = _find_presets(folders)
    layers: list[_Layer] = []
    extends: str | None = name
    while extends is not None:
        if from_flag and not layers and (extends.endswith(".toml") or "/" in extends or "\\" in extends):
            path = Path(extends)
        elif extends in presets:
            path = presets[extends]
        else:
            error = UsageError if from_flag and not layers else SettingsError
            remedy = f"{_nearest(extends, presets)} `zero123 presets list` shows them all".strip()
            raise error(f"unknown preset {_show(extends)}", where=layers[0].path if layers else asker, remedy=remedy)
        chain = [layer.path for layer in layers]
        if str(path) in chain:
            raise SettingsError("extends itself", where=chain[0])
        if len(chain) == MAX_CHAIN:
            raise SettingsError(f"extends more than {MAX_CHAIN - 1} presets in a row", where=chain[-1])
        origin = f"preset {extends}"
        _, extends, stated = _read_preset(path)
        layers.insert(0, _Layer(stated, dict.fromkeys(stated, origin), path=str(path)))
    return layers


def _read_configuration(path: Path | None) -> dict[str, object]:
    """What the project's or the user's file states; one that is not there states nothing."""
    try:
        return _read_toml(path) if path else {}
    except MissingInputError:
        return {}


def _environment_layer(environ: Mapping[str, str], knobs: Mapping[str, Knob]) -> _Layer:
    """What `ZERO123_*` states; an empty variable states nothing."""
    variables = {row.variable: row.key for row in knobs.values()}
    known = [*variables, *OTHER_VARIABLES, "ZERO123_PRESET"]
    for name in environ:
        if name.startswith("ZERO123_") and name not in known:
            raise SettingsError(
                f"unknown variable {_show(name)}", where="environment", remedy=_nearest(name, known) or "unset it"
            )
    given = {name: key for name, key in variables.items() if environ.get(name)}
    stated = {key: environ[name] for name, key in given.items()}
    return _Layer(stated, {key: f"environment {name}" for name, key in given.items()}, is_text=True)


def _set_layer(set_flags: Sequence[str]) -> _Layer:
    stated: dict[str, object] = {}
    for text in set_flags:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals:
            raise UsageError(f"{_show(text)} states nothing", where="flag --set", remedy="write --set stage.key=value")
        if key in stated:
            raise UsageError(f"{_show(key)} is given twice", where="flag --set", remedy="leave one out")
        stated[key] = value
    return _Layer(stated, {key: f"flag --set {_tame(key)}" for key in stated}, error=UsageError, is_text=True)


def _flag_layer(flags: Mapping[str, object]) -> _Layer:
    stated = {key: value for key, value in flags.items() if value is not None}
    named = {key: OPTIONS.get(key) or "--" + key.rpartition(".")[2].replace("_", "-") for key in stated}
    return _Layer(stated, {key: f"flag {option}" for key, option in named.items()}, error=UsageError)


def load(
    *,
    preset: str | None = None,
    flags: Mapping[str, object] = types.MappingProxyType({}),  # typed values of named options; None: not given
    set_flags: Sequence[str] = (),  # "stage.key=value"
    environ: Mapping[str, str] = types.MappingProxyType({}),
    project_file: Path | None = None,
    user_file: Path | None = None,
    preset_folders: Sequence[Path] = (),  # the first that has a name wins; without any, the default preset is empty
    recipes: Mapping[str, str] = types.MappingProxyType({}),  # presets by model, for calls that ask for none
) -> Loaded:
    """The settings of this call, and where each came from."""
    knobs = {row.key: row for row in describe(Settings)}
    project, user = _read_configuration(project_file), _read_configuration(user_file)
    asked = [
        (preset, CALL),
        (environ.get("ZERO123_PRESET") or None, "environment ZERO123_PRESET"),
        (_pop_text(project, "preset", project_file), str(project_file)),
        (_pop_text(user, "preset", user_file), str(user_file)),
        (DEFAULT_PRESET, "default"),
    ]
    name, asker = next((name, asker) for name, asker in asked if name is not None)
    stated = [
        _Layer(user, dict.fromkeys(user, f"user file {user_file}"), path=str(user_file)),
        _Layer(project, dict.fromkeys(project, f"project file {project_file}"), path=str(project_file)),
        _environment_layer(environ, knobs),
        _set_layer(set_flags),
        _flag_layer(flags),
    ]
    if asker == "default" and recipes:
        name = recipes.get(_settle(stated, knobs, name).settings.model.name, name)
    below = _preset_layers(name, asker, preset_folders) if preset_folders or asker != "default" else []
    loaded = _settle([*below, *stated], knobs, name)
    check(loaded.settings, loaded.origins)
    return loaded


def reload(
    recorded: Mapping[str, tuple[object, str]],  # `differences` of an earlier call, each with where it was stated
    preset: str,
    *,
    flags: Mapping[str, object],
    set_flags: Sequence[str],
) -> Loaded:
    """The settings of an earlier call, with what this one states instead. They have been checked together then."""
    stated = {key: value for key, (value, _) in recorded.items()}
    origins = {key: origin for key, (_, origin) in recorded.items()}
    knobs = {row.key: row for row in describe(Settings)}
    return _settle([_Layer(stated, origins), _set_layer(set_flags), _flag_layer(flags)], knobs, preset)


def _settle(layers: Sequence[_Layer], knobs: Mapping[str, Knob], preset: str) -> Loaded:
    """What the layers state together, a later one over an earlier."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(knobs, "default")
    tables = {key.partition(".")[0] for key in knobs if "." in key}
    for layer in layers:
        for key, raw in layer.stated.items():
            if raw == {} and key in tables:
                continue  # an empty table states nothing
            values[key] = _take(layer, knobs, key)
            origins[key] = layer.origins[key]
    return Loaded(_fill(Settings, values), origins, preset)
