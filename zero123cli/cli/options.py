"""The flags that verbs share, each spelled once.

`verb` gives a verb those that say how it speaks, and spreads out each of its parameters that is a group: a dataclass
whose fields are flags.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .screen import screen

if TYPE_CHECKING:
    from ..cache import Cache


class ProgressKind(StrEnum):
    auto = "auto"
    bar = "bar"
    lines = "lines"
    none = "none"


class ColourKind(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


def folder(text: str) -> Path:
    """An unset variable of a script must not make the current folder the cache."""
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


OBJECT, OUTPUT, SETTINGS, CACHE = "The object", "Output", "Settings", "Cache"

Cutter = Annotated[
    str | None,
    typer.Option(help="auto, pocket-cutter, classical, u2net ...: see `zero123 presets show`.", rich_help_panel=OBJECT),
]
Mask = Annotated[
    str | None, typer.Option(help="Where the mask comes from: auto, alpha, remove, keep.", rich_help_panel=OBJECT)
]
ForegroundRatio = Annotated[
    float | None,
    typer.Option(help="Longer side of the object / side of the frame.", show_default="0.80", rich_help_panel=OBJECT),
]
AcceptLicence = Annotated[
    bool,
    typer.Option("--accept-licence", help="You agree to the licence of the chosen cutter.", rich_help_panel=OBJECT),
]

Json = Annotated[bool, typer.Option("--json", help="Results as JSON, one object a line.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv shows tracebacks.", rich_help_panel=OUTPUT)
]
Progress = Annotated[
    ProgressKind, typer.Option("--progress", help="A bar, plain lines or nothing.", rich_help_panel=OUTPUT)
]
Colour = Annotated[ColourKind, typer.Option("--color", help="Colour on stderr.", rich_help_panel=OUTPUT)]
Force = Annotated[bool, typer.Option("--force", help="Replace existing outputs.", rich_help_panel=OUTPUT)]


PhotoElevation = Annotated[
    str | None,
    typer.Option(
        metavar="auto|DEG",
        help="Degrees above the horizon of the photo's camera.",
        show_default="auto",
        rich_help_panel=OBJECT,
    ),
]


def read_elevation(text: str | None) -> float | str | None:
    """As the settings take it: what is no number is for them to judge."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


class DtypeKind(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class PoseKind(StrEnum):
    original = "original"
    stable = "stable"


PoseFormula = Annotated[
    PoseKind | None,
    typer.Option("--pose-kind", help="What the model's fourth pose number means.", rich_help_panel=SETTINGS),
]

Model = Annotated[
    str | None,
    typer.Option(
        help="One of `zero123 models list`, a file or a folder.", show_default="pocket", rich_help_panel=SETTINGS
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda[:N] or mps.", rich_help_panel=SETTINGS)
]
Dtype = Annotated[DtypeKind, typer.Option("--dtype", help="Precision of the networks.", rich_help_panel=SETTINGS)]

Preset = Annotated[
    str | None, typer.Option("--preset", help="A preset by name, or a .toml file.", rich_help_panel=SETTINGS)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Any setting; may be repeated.", rich_help_panel=SETTINGS),
]

CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        parser=folder,
        metavar="FOLDER",
        envvar="ZERO123_CACHE_DIR",
        help="Where stages are kept.",
        rich_help_panel=CACHE,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.", rich_help_panel=CACHE)]
Refresh = Annotated[bool, typer.Option("--refresh", help="Make anew what the cache holds.", rich_help_panel=CACHE)]
SharedCache = Annotated[
    bool,
    typer.Option(
        "--shared-cache",
        envvar="ZERO123_SHARED_CACHE",
        help="Trust a cache folder that others can write to.",
        rich_help_panel=CACHE,
    ),
]
LockTimeout = Annotated[
    float,
    typer.Option(
        "--lock-timeout",
        envvar="ZERO123_LOCK_TIMEOUT",
        min=0,
        max=1e6,
        help="Seconds to wait for another process that makes the same.",
        rich_help_panel=CACHE,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="ZERO123_OFFLINE",
        help="Never use the network. (This verb never does.)",
        rich_help_panel=OUTPUT,
    ),
]

# Groups ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voice:
    """How a verb speaks."""

    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = 0
    progress: Progress = ProgressKind.auto
    color: Colour = ColourKind.auto
    offline: Offline = False


@dataclass(frozen=True)
class Stages:
    """Where stages are kept, and whether what is kept counts."""

    cache_dir: CacheDir = None
    no_cache: NoCache = False
    refresh: Refresh = False
    shared_cache: SharedCache = False
    lock_timeout: LockTimeout = 600.0

    def open_cache(self) -> Cache:
        from .session import open_cache

        return open_cache(
            self.cache_dir,
            no_cache=self.no_cache,
            refresh=self.refresh,
            shared=self.shared_cache,
            lock_timeout=self.lock_timeout,
        )


def verb(work: Callable[..., int | None]) -> Callable[..., int | None]:
    """What Typer makes a command of."""
    kinds = get_type_hints(work, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    flags: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(work).parameters.values():
        if parameter.name in groups:
            flags |= flags_of(groups[parameter.name])
        else:
            flags[parameter.name] = parameter.replace(annotation=kinds[parameter.name])
    voice = {name: flag for name, flag in flags_of(Voice).items() if name not in flags}

    def speak(**given: Any) -> int | None:
        said = Voice(**{name: given.pop(name) for name in voice})
        screen.configure(
            json=said.json,
            quiet=said.quiet,
            verbose=said.verbose,
            progress=said.progress.value,
            color=said.color.value,
        )
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return work(**given)

    speak.__name__, speak.__doc__ = work.__name__, work.__doc__
    order = sorted((flags | voice).values(), key=lambda flag: flag.kind)  # flags of groups are named, never placed
    speak.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]  # it is what Typer reads
    return speak


def flags_of(group: Any) -> dict[str, inspect.Parameter]:
    kinds = get_type_hints(group, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name]
        )
        for field in fields(group)
    }
