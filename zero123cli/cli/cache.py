"""`zero123 cache`: where the stage cache is, what it holds and which runs, and keeping it sound and small."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from . import options
from .screen import printable, screen

app = typer.Typer(help="The stage cache: where it is, what it holds; check, prune or clear it.")

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@app.command("dir")
@options.verb
def dir_(cache_dir: options.CacheDir = None) -> None:
    """Print the cache folder."""
    from .session import cache_root

    root = cache_root(cache_dir)
    screen.result(root, {"path": str(root), "status": "ok", "code": 0})


@app.command("list")
@options.verb
def list_(cache_dir: options.CacheDir = None) -> None:
    """List what is kept: key, stage, size, last use."""
    from ..cache import entries
    from .session import cache_root

    found = entries(cache_root(cache_dir))
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        facts = {"key": entry.key, "stage": entry.stage, "bytes": entry.size, "used": used, "damage": entry.damage}
        screen.result(f"{entry.key[:16]}  {entry.stage or '?':8} {as_size(entry.size):>9}  {used}", facts)
    screen.note(f"{len(found)} entries, {as_size(sum(entry.size for entry in found))}")


@app.command()
@options.verb
def runs(cache_dir: options.CacheDir = None) -> None:
    """List finished runs, the latest last: id, when, faces, photo. `zero123 export ID` writes one again."""
    from ..cache import Cache
    from ..runs import list_runs
    from .session import cache_root

    found = list_runs(Cache(cache_root(cache_dir)))
    for run in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.used))
        said = f"{run.id[:16]}  {when}  {run.record['mesh']['faces']:>8}  {printable(run.record['input'])}"
        screen.result(said, run.record)
    screen.note(f"{len(found)} runs")


@app.command()
@options.verb
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Put damaged entries aside; they are made anew.")] = False,
    cache_dir: options.CacheDir = None,
) -> None:
    """Check every byte that is kept; exits 65 when something is damaged."""
    from ..cache import entries, put_aside, refuse_no_cache
    from ..errors import CacheDamageError
    from .session import cache_root, name_root

    root = cache_root(cache_dir)
    if repair:
        refuse_no_cache(root)
    found = entries(root, check=True)
    damaged = [entry for entry in found if entry.damage]
    for entry in damaged:
        screen.result(
            f"{entry.key}  {entry.damage}", {"key": entry.key, "damage": entry.damage, "path": str(entry.folder)}
        )
    if damaged:
        stuck = repair and not put_aside(root, damaged)
        remedy = "they will be made anew" if repair else f"run: zero123 cache verify --repair{name_root(root)}"
        remedy = "they cannot be put aside: the cache cannot be written to" if stuck else remedy
        raise CacheDamageError(f"{len(damaged)} of {len(found)} entries are damaged", where=str(root), remedy=remedy)
    screen.note(f"{len(found)} entries, all sound")


@app.command()
@options.verb
def prune(
    max_size: Annotated[str, typer.Option("--max-size", metavar="SIZE", help="What may stay, such as 500M or 20G.")],
    cache_dir: options.CacheDir = None,
    shared_cache: options.SharedCache = False,
) -> None:
    """Drop leftovers, then what was not used for longest, until the rest fits."""
    from ..cache import Cache, refuse_no_cache
    from ..cache import prune as prune_cache
    from ..runs import drop_lost
    from .session import cache_root, open_cache

    limit = parse_size(max_size)
    refuse_no_cache(cache_root(cache_dir))
    open_cache(cache_dir, no_cache=False, shared=shared_cache)
    dropped = prune_cache(cache_root(cache_dir), limit)
    drop_lost(Cache(cache_root(cache_dir)))
    report(*dropped)


@app.command()
@options.verb
def clear(cache_dir: options.CacheDir = None, shared_cache: options.SharedCache = False) -> None:
    """Drop everything that is kept. Runs that are under way at worst do their work again."""
    from ..cache import clear as clear_cache
    from ..cache import refuse_no_cache
    from .session import cache_root, open_cache

    refuse_no_cache(cache_root(cache_dir))
    open_cache(cache_dir, no_cache=False, shared=shared_cache)
    report(*clear_cache(cache_root(cache_dir)))


def report(dropped: int, freed: int) -> None:
    screen.note(f"{dropped} entries dropped, {as_size(freed)} freed")
    if screen.json:
        screen.result("", {"dropped": dropped, "freed": freed, "status": "ok", "code": 0})


def parse_size(text: str) -> int:
    """Bytes of "500M", "1.5G" or "2000"."""
    from ..errors import UsageError

    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)b?", text.strip().lower())
    if not match:
        raise UsageError(f"{text!r} is no size", where="--max-size", remedy="write it like 500M or 20G")
    return int(float(match[1]) * UNITS[match[2]])


def as_size(count: int) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]  # a float from here on
    raise AssertionError
