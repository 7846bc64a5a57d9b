"""`zero123 models`: the known weights; fetching, checking, finding and removing them. Only `pull` uses the network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .cache import as_size
from .screen import screen

if TYPE_CHECKING:
    from ..models import Known
    from ..watch import Watch

app = typer.Typer(help="Weights: list, pull, verify, locate or remove known ones; inspect and convert any.")

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="As `zero123 models list` shows them.")]


@app.command("list")
@options.verb
def list_() -> None:
    """List all known weights: what is installed, sizes, licences."""
    from ..models import files_of, find, table

    rows = []
    for known in table().values():
        path = find(known)
        size = known.about or (as_size(known.size) if known.size else "-")
        if path:
            size = as_size(sum(file.stat().st_size for file, _ in files_of(known, path)))
        if screen.json:
            screen.result("", facts_of(known, path) | {"installed": path is not None})
        note = known.note if known.kind == "view" else f"cutter: {known.note}"
        rows.append((known.name, "installed" if path else "-", size, licence_of(known), note))
    if screen.json:
        return
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.table import Table as Rows

        from .bars import as_text

        shown = Rows("name", "state", "size", "licence", "note", box=None, pad_edge=False)
        for row in rows:
            shown.add_row(*row, style=None if row[1] == "installed" else "dim")
        screen.result(as_text(shown, screen.coloured).rstrip())
        return
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        screen.result("  ".join([*cells, row[4]]).rstrip())


@app.command()
@options.verb
def pull(
    names: Names,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You agree to the licences; without it you are asked.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="ZERO123_OFFLINE", help="Refuse: this verb needs the network.")
    ] = False,
    lock_timeout: options.LockTimeout = 600.0,
) -> int:
    """Fetch weights: goes on where it was broken off; HF_HOME, HF_TOKEN and HF_ENDPOINT are heeded."""
    from ..errors import RefusedError, UnavailableError, WeightsError
    from ..fetching import deliver, place_order
    from ..models import EmbeddedWeights, find, missing

    numbers = {name: number for number, name in enumerate(names, 1)}

    def work(known: Known) -> dict[str, Any]:
        watch = in_megabytes(screen.watcher(known.name))
        screen.start(f"pull: {known.name}", numbers[known.name], len(numbers))
        path = find(known)
        if path:
            try:
                check(known, path, watch)
            except WeightsError as damaged:
                if isinstance(known, EmbeddedWeights):
                    raise
                screen.note(str(damaged))
            else:
                screen.finish(f"pull: {known.name}: already installed")
                return facts_of(known, path)
        if isinstance(known, EmbeddedWeights):
            raise missing(known.name)
        if offline or hub_is_offline():
            raise UnavailableError(
                f"{known.name} is not installed and the network is not to be used",
                where="--offline",
                remedy="pull it without --offline, ZERO123_OFFLINE and HF_HUB_OFFLINE",
            )
        terms = f"{known.name}: licence: {licence_of(known)}" + (" (non-commercial)" if known.non_commercial else "")
        if not accept_licence and not can_ask():
            screen.line(terms)
            raise RefusedError(
                "its licence has to be accepted", where=known.name, remedy="add --accept-licence if you agree to it"
            )
        order = place_order(known)
        size = as_size(order.size) if order.size else known.about or "size not stated"
        tell = screen.note if accept_licence else screen.line
        tell(f"{terms}; {size} from {known.origin} to {order.path.parent}")
        if known.note:
            tell(f"{known.name}: {known.note}")
        if not accept_licence:
            if not ask("Do you accept the licence, and shall it be pulled?"):
                raise RefusedError("its licence is not accepted", where=known.name, remedy="nothing was fetched")
            screen.start(f"pull: {known.name}", numbers[known.name], len(numbers))  # the question took the bar away
        path = deliver(order, watch, lock_timeout)
        screen.finish(f"pull: {known.name}: done -> {path}")
        return facts_of(known, path)

    return for_each(names, work)


@app.command()
@options.verb
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Without: all installed.")] = None,
) -> int:
    """Check sizes and digests of installed weights; exits 65 when something is wrong."""
    from ..models import EMBEDDED, find, table

    if not names:
        names = [name for name, known in table().items() if name in EMBEDDED or find(known)]

    def work(known: Known) -> dict[str, Any]:
        path = require(known)
        published = check(known, path, in_megabytes(screen.watcher(known.name)))
        screen.note(f"{known.name}: {'sound' if published else 'no published digest to hold it against'}")
        return facts_of(known, path) | {"digest_published": published}

    return for_each(names, work)


@app.command("path")
@options.verb
def path_(name: Annotated[str, typer.Argument(metavar="NAME", help="As `zero123 models list` shows it.")]) -> None:
    """Print where installed weights are."""
    from ..models import look_up

    known = look_up(name)
    path = require(known)
    screen.result(path, facts_of(known, path))


@app.command()
@options.verb
def rm(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Remove installed weights, and what broken-off pulls of them left."""
    from ..errors import RefusedError
    from ..fetching import remove
    from ..models import EmbeddedWeights, find

    def work(known: Known) -> dict[str, Any]:
        if isinstance(known, EmbeddedWeights):
            raise RefusedError("it is a part of zero123", where=known.name, remedy="it goes with the program")
        path = find(known)
        if not yes:
            if not can_ask():
                raise RefusedError("removing has to be confirmed", where=known.name, remedy="add --yes")
            if not ask(f"Remove {known.name}{f' ({path})' if path else ''}?"):
                raise RefusedError("not removed", where=known.name)
        freed = remove(known, path)
        if not path and not freed:
            require(known)
        screen.note(f"{known.name}: removed, {as_size(freed)} freed")
        return {**facts_of(known, path), "freed": freed}

    return for_each(names, work)


@app.command()
@options.verb
def inspect(
    file: Annotated[str, typer.Argument(metavar="MODEL", help="A file, a folder, or a name of the list.")],
    cache_dir: options.CacheDir = None,
    no_cache: options.NoCache = False,
    shared_cache: options.SharedCache = False,
) -> None:
    """Say what is inside weights, without loading them: family, sizes, parameters, precision, digest, licence."""
    from .. import pipeline
    from ..models import KNOWN
    from .session import open_cache

    path = pipeline.locate_model(file)  # a wrong name is told before torch is there
    from ..diffusion.checkpoints import inspect as look_inside

    facts = look_inside(path)
    facts["digest"] = pipeline.model_digest(open_cache(cache_dir, no_cache=no_cache, shared=shared_cache), path)
    known = KNOWN.get(file) or next((known for known in KNOWN.values() if known.sha256 == facts["digest"]), None)
    if known:
        facts |= {"family": known.name, "pose_kind": known.pose_kind, "licence": licence_of(known)}
    if screen.json:
        screen.result("", facts)
        return
    total = sum(facts["parameters"].values())
    parts = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in facts["parameters"].items())
    rows = {
        "family": f"{facts['family']} ({facts['kind']})",
        "pose kind": facts["pose_kind"] if facts["pose_kind"] != "unknown" else "not said: give --pose-kind",
        "licence": facts["licence"] or "not said",
        "picture": facts["picture"],
        "denoiser": f"{' '.join(map(str, facts['unet']))} channels, {facts['context']} of context"
        if facts["unet"]
        else "none: what the volume shows is the answer",
        "parameters": f"{total / 1e6:.1f} M: {parts}",
        "precision": facts["precision"],
        "averaged": "yes, and used" if facts["ema"] else "no",
        "file": f"{facts['tensors']} tensors, {as_size(facts['bytes'])}",
        "digest": facts["digest"],
        "skipped": ", ".join(facts["skipped"]) or "nothing",
    }
    for name, value in rows.items():
        screen.result(f"{name:11} {value}")


@app.command()
@options.verb
def convert(
    file: Annotated[str, typer.Argument(metavar="MODEL", help="A file, a folder, or a name of the list.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="A .safetensors file.")],
    pose_kind: Annotated[
        options.PoseKind | None, typer.Option(help="What the fourth pose number means, where nothing says so.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the raw weights, not the averaged ones.")] = False,
    dtype: Annotated[options.DtypeKind, typer.Option(help="Precision to keep.")] = options.DtypeKind.float16,
    force: options.Force = False,
    cache_dir: options.CacheDir = None,
    no_cache: options.NoCache = False,
    shared_cache: options.SharedCache = False,
) -> None:
    """Write what inference needs into one compact file that says itself what it is; it loads in seconds."""
    from .. import batch, pipeline
    from ..diffusion import checkpoints
    from ..errors import UsageError, writing_failed
    from ..models import KNOWN
    from ..settings import ModelSettings
    from .session import open_cache

    if out.suffix != ".safetensors":
        raise UsageError(f"{out} is no .safetensors file", where="-o", remedy="give it that suffix")
    path = pipeline.locate_model(file)
    batch.check_target(out)
    if os.path.realpath(path) in (os.path.realpath(out), *map(os.path.realpath, out.parents)):
        raise UsageError(f"{out} would replace an input", where="-o", remedy="choose another name")
    if out.exists() and not force:
        raise batch.already_there(out)
    cache = open_cache(cache_dir, no_cache=no_cache, shared=shared_cache)
    asked = ModelSettings(pose_kind=pose_kind.value if pose_kind else "auto")
    known = KNOWN.get(file)
    screen.start(f"convert: {file}", 1, 1)
    try:
        checkpoints.convert(
            path,
            out,
            ema=not raw,
            pose_kind=pipeline.pick_pose_kind(asked, file, pipeline.model_digest(cache, path)),
            dtype="float16" if dtype is options.DtypeKind.auto else dtype.value,
            family=known.name if known else "",
            licence=known.licence if known else "",
            overwrite=force,
            watch=screen.watcher(file),
        )
    except OSError as error:
        raise writing_failed(error, str(out)) from error
    screen.finish(f"convert: {file} -> {out}, {as_size(out.stat().st_size)}")
    screen.stop()
    screen.result(out, {"input": file, "output": str(out), "status": "ok", "code": 0, "bytes": out.stat().st_size})


# What the verbs share -------------------------------------------------------------------------------------------------


def for_each(names: list[str], work: Callable[[Known], dict[str, Any]]) -> int:
    """Does what can be done, a line for each failure; the gravest exit code. An unknown name stops it at once."""
    from ..errors import Zero123Error, gravest
    from ..models import look_up

    codes = []
    for known in [look_up(name) for name in dict.fromkeys(names)]:
        try:
            facts = work(known)
        except Zero123Error as error:
            screen.stop()
            screen.failed(error, error.__cause__, known.name)
            codes.append(error.exit_code)
        else:
            screen.result(facts["path"] or known.name, facts)
    screen.stop()
    return gravest(codes)


def facts_of(known: Known, path: Path | None) -> dict[str, Any]:
    return {
        "name": known.name,
        "status": "ok",
        "code": 0,
        "path": str(path) if path else None,
        "kind": known.kind,
        "licence": known.licence,
        "non_commercial": known.non_commercial,
        "bytes": known.size or None,
        "digest": known.digest,
        "origin": known.origin,
        "note": known.note,
    }


def licence_of(known: Known) -> str:
    return known.licence or "not stated"


def require(known: Known) -> Path:
    """Where it is installed, or the error that says how to get it."""
    from ..models import find, missing

    path = find(known)
    if not path:
        raise missing(known.name)
    return path


def check(known: Known, path: Path, watch: Watch) -> bool:
    """Refuses damaged weights; whether there was a published digest for all of them."""
    from ..errors import MissingInputError, WeightsError, reason_of
    from ..models import damage, fetch_command, files_of

    published = True
    try:
        for file, digest in files_of(known, path):
            published = published and bool(digest)
            if wrong := damage(file, known.size, digest, watch):
                remedy = f"run: {fetch_command(known.name)}"
                raise WeightsError(
                    f"these are not the published {known.name} weights: {wrong}", where=str(file), remedy=remedy
                )
    except OSError as error:
        raise MissingInputError(reason_of(error), where=str(path), remedy="make it readable") from error
    return published


def in_megabytes(watch: Watch) -> Watch:
    """Passes progress in bytes on in a form for people."""
    from ..watch import Caution, Progress

    def told(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and not message.text:
            share = f" of {as_size(message.total)}" if message.total else ""
            message = Progress(message.stage, 0, 1, as_size(message.done) + share)
        watch(message)

    return told


def hub_is_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return HF_HUB_OFFLINE


def can_ask() -> bool:
    """Whether a person is there to answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask(question: str) -> bool:
    screen.stop()
    screen.write(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
