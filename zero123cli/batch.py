"""Many inputs: which they are, where each one's output goes, and what came of it.

Whatever can be done is done: one bad photo never stops the rest. Only a call that cannot be right as a whole (two
inputs for one output) is refused before any work.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import durable
from .errors import (
    MissingInputError,
    OutOfMemoryError,
    OutputError,
    UsageError,
    Zero123Error,
    is_out_of_memory,
    writing_failed,
)

PHOTO_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".heif"]
)
STDIN = "-"


@dataclass(frozen=True)
class Item:
    """One input and the place of its output."""

    source: str  # a path, or "-" for stdin
    target: Path
    beside: tuple[Path, ...] = ()  # further files that are part of it

    @property
    def stem(self) -> str:
        return stem_of(self.source)

    @property
    def targets(self) -> tuple[Path, ...]:
        return self.target, *self.beside


@dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    source: str
    error: Zero123Error | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # of a success

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error else 0


def gather(inputs: Sequence[str]) -> tuple[list[str], list[Outcome]]:
    """The photos that the inputs name (files, folders, patterns, "-"), in order and each once; and what is missing."""
    found: dict[str, str] = {}
    missing: list[Outcome] = []
    for given in inputs:
        matches = [given] if given == STDIN or os.path.lexists(given) else sorted(glob.glob(given))
        if not matches:
            missing.append(Outcome(given, MissingInputError("there is no such file", where=given)))
        for match in matches:
            if match != STDIN and os.path.isdir(match):
                remedy = "name the files, or another folder"
                try:
                    photos, reason = photos_in(match), "the folder holds no photos"
                except OSError as error:
                    photos, reason = [], (error.strerror or "unreadable").lower()
                if not photos:
                    missing.append(Outcome(match, MissingInputError(reason, where=match, remedy=remedy)))
            else:
                photos = [match]
            for photo in photos:
                found.setdefault(place_of(photo), photo)
    return list(found.values()), missing


def place_of(source: str) -> str:
    """The same however it is spelt. Links are files of their own: each has an output under its own name."""
    if source == STDIN:
        return source
    folder, name = os.path.split(source)
    return os.path.join(os.path.realpath(folder), name)


def unnamed(sources: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Those that were only found, in a folder or by a pattern."""
    named = {place_of(given) for given in inputs}
    return [source for source in sources if place_of(source) not in named]


def photos_in(folder: str) -> list[str]:
    """The photos right inside a folder, hidden ones left out."""
    named = [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder))
        if os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES and not name.startswith(".")
    ]
    return [path for path in named if not os.path.isdir(path)]


def stem_of(source: str) -> str:
    return "stdin" if source == STDIN else Path(source).stem


def plan(
    sources: Sequence[str],
    out: str | None,
    *,
    suffixes: Sequence[str],
    lost: int = 0,  # further inputs, which are not there
    name: str = "{stem}",  # of an output in a folder
    default: str = "",  # of an output without `out`, if it is another
    beside: Callable[[str], Sequence[str]] = lambda name: (),  # names of the further files of an output of that name
    also: Sequence[str] = (),  # further inputs
    found: Sequence[str] = (),  # sources that nobody named: what an earlier run made of the others is left out
) -> list[Item]:
    """Where each output goes, nothing over another or over an input."""
    items = lay_out(sources, out, suffixes=suffixes, lost=lost, name=name, default=default, beside=beside)
    made = outputs_among(items, found)
    items = [item for item in items if item.source not in made]
    refuse_clashes(items, also)
    return items


def lay_out(
    sources: Sequence[str],
    out: str | None,
    *,
    suffixes: Sequence[str],
    lost: int = 0,
    name: str = "{stem}",
    default: str = "",
    beside: Callable[[str], Sequence[str]] = lambda name: (),
) -> list[Item]:
    """Each output's place: `out` is a file for one input, else a folder or a template with {stem}.

    The first of `suffixes` is used in folders.
    """
    template = (
        (default or name) + suffixes[0] if out is None else as_template(out, len(sources) + lost, name + suffixes[0])
    )
    items = [Item(source, Path(template.replace("{stem}", stem_of(source)))) for source in sources]
    for item in items:
        if item.target.suffix.lower() not in suffixes:
            known = " ".join(suffixes)
            if not item.target.suffix:
                remedy = f"end it with a slash for a folder, or with {known}"
                raise UsageError(f"{item.target} could be a file or a folder", where="-o", remedy=remedy)
            raise UsageError(
                f'outputs of the kind "{item.target.suffix}" are not written here', where="-o", remedy=f"use {known}"
            )
    return [
        replace(item, beside=tuple(item.target.with_name(other) for other in beside(item.target.name)))
        for item in items
    ]


def outputs_among(items: Sequence[Item], found: Sequence[str]) -> set[str]:
    """Sources that are outputs of others."""
    made: set[str] = set()
    targets: dict[str, list[str]] = {}
    for item in items:
        for target in item.targets:
            targets.setdefault(os.path.realpath(target), []).append(item.source)
    for source in sorted({item.source for item in items} & {*found}, key=lambda source: (len(source), source)):
        makers = {*targets.get(os.path.realpath(source), [])} - {source}
        if makers - made:
            made.add(source)
    return made


def as_template(out: str, count: int, name: str) -> str:
    if os.path.isdir(out):
        return os.path.join(out, name)
    if "{" in out.replace("{stem}", ""):
        raise UsageError(f"{out} holds an unknown placeholder", where="-o", remedy="{stem} is the only one")
    if out.endswith(("/", os.sep)):
        return os.path.join(out, name)
    if "{stem}" in out or count <= 1:
        return out
    if Path(out).suffix:
        raise UsageError(
            f"{out} is one file, for {count} inputs", where="-o", remedy="give a folder, or a name with {stem}"
        )
    return os.path.join(out, name)


def is_folder(out: str) -> bool:
    """Whether `-o` names a folder, by its slash or because it is one."""
    return out.endswith(("/", os.sep)) or os.path.isdir(out)


def refuse_clashes(items: Sequence[Item], also: Sequence[str] = ()) -> None:
    """Two inputs for one output, or an output over an input: never."""
    taken: dict[str, Item] = {}
    inputs = {os.path.realpath(source) for source in (*(item.source for item in items), *also) if source != STDIN}
    for item in items:
        for target in item.targets:
            place = os.path.realpath(target)
            if place in taken:
                raise UsageError(
                    f"{taken[place].source} and {item.source} would both write {target}",
                    where="-o",
                    remedy="rename one, or run them apart",
                )
            if place in inputs:
                raise UsageError(f"{target} would replace an input", where="-o", remedy="choose another name")
            taken[place] = item


def make_folders(items: Sequence[Item], out: str | None) -> None:
    """Makes the folders that a folder or a template in `-o` stands for; a single file's folder must be there."""
    if out is None or [item.target for item in items] == [Path(out)]:
        return
    for folder in {item.target.parent for item in items}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(error, str(folder)) from error


def in_the_way(item: Item) -> Path | None:
    """What is there already of an output."""
    return next((target for target in item.targets if os.path.lexists(target)), None)


def check_target(target: Path) -> None:
    """Refuses, before any work, a place where nothing can be written."""
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(
            "its folder is not there", where=str(target), remedy=f"make it first: mkdir -p {shlex.quote(str(folder))}"
        )
    if target.is_dir():
        raise OutputError(
            "a folder of that name is in the way", where=str(target), remedy="choose another name with -o"
        )
    if not os.access(folder, os.W_OK):
        raise OutputError("its folder cannot be written to", where=str(target), remedy="choose another place with -o")
    if len(os.fsencode(target.name)) > 255:
        raise OutputError("its name is too long", where=f"{target.name[:40]}...", remedy="choose a shorter one with -o")


def already_there(target: Path) -> OutputError:
    return OutputError("it exists", where=str(target), remedy="add --force to replace it")


def write_output(target: Path, data: bytes, *, force: bool) -> None:
    """Writes an output in one step. One that is there already, byte for byte, is as good: a run may be repeated."""
    try:
        durable.write_file(target, data, overwrite=force)
    except FileExistsError:
        if not target.is_file() or target.read_bytes() != data:  # a named pipe would be waited for
            raise already_there(target) from None


def write_outputs(files: dict[Path, bytes], *, force: bool) -> None:
    """Writes what belongs together: all of it, or nothing where something else is in the way. The first names the
    others, and comes last."""
    if not force:
        for target, data in files.items():
            if os.path.lexists(target) and not (target.is_file() and target.read_bytes() == data):
                raise already_there(target)
    for target, data in reversed(files.items()):
        write_output(target, data, force=force)


def run_one(
    item: Item, work: Callable[[Item], dict[str, Any]], unexpected: Callable[[Exception, str], Zero123Error]
) -> Outcome:
    """Does `work` and says what came of it; `unexpected` files a report of what should not happen."""
    try:
        return Outcome(item.source, facts=work(item))
    except Zero123Error as error:
        return Outcome(item.source, error)
    except OSError as error:
        return Outcome(item.source, writing_failed(error, str(error.filename or item.target)))
    except Exception as error:  # a bug of ours must not stop the other photos
        if is_out_of_memory(error):
            remedy = "close other programs, or use a smaller picture"
            return Outcome(item.source, OutOfMemoryError("out of memory", where=item.source, remedy=remedy))
        return Outcome(item.source, unexpected(error, item.source))
