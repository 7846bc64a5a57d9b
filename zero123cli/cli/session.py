"""What verbs have in common: settings read, the cache opened, the work done input by input, its record."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import batch, machine
from ..errors import UnavailableError, gravest
from ..settings import Loaded, differences, load
from .reports import file_report
from .screen import screen

if TYPE_CHECKING:
    from ..cache import Cache, Kept


def read_settings(
    preset: str | None, set_flags: Sequence[str] | None, flags: Mapping[str, object], device: str = ""
) -> Loaded:
    """The settings of this call, from every place that may state them.

    Verbs that lift say on which device: there a published model has a recipe of its own.
    """
    recipes: Mapping[str, str] = {}
    if device:
        from .. import models

        recipes = models.recipes(machine.may_be_cuda(device))
    return load(
        preset=preset,
        flags=flags,
        set_flags=set_flags or (),
        environ=os.environ,
        project_file=machine.project_file(),
        user_file=machine.user_file(),
        preset_folders=machine.preset_folders(),
        recipes=recipes,
    )


def cache_root(folder: Path | None) -> Path:
    return (folder or machine.cache_folder()).absolute()


def name_root(root: Path) -> str:
    """The flag that another call needs for this cache, with a space before it; none for the usual one."""
    try:
        usual = root == cache_root(None)
    except UnavailableError:  # a user without a home
        usual = False
    return "" if usual else f" --cache-dir {shlex.quote(str(root))}"


def open_cache(
    folder: Path | None, *, no_cache: bool, refresh: bool = False, shared: bool, lock_timeout: float = 600.0
) -> Cache:
    from .. import cache

    if no_cache:
        return cache.Cache(None)
    return cache.open_cache(cache_root(folder), shared=shared, lock_timeout=lock_timeout, refresh=refresh)


def tell_left_out(verb: str, sources: Sequence[str], items: Sequence[batch.Item]) -> None:
    """Names the photos that are outputs of an earlier run over the same folder."""
    kept = {item.source for item in items}
    for source in sources:
        if source not in kept:
            screen.note(f"{verb}: {source} is what another photo becomes: left out")


def run_items(
    verb: str,
    items: Sequence[batch.Item],
    missing: Sequence[batch.Outcome],
    work: Callable[[batch.Item], dict[str, Any]],
    how: Callable[[dict[str, Any]], str],
    panel: Callable[[dict[str, Any]], None] | None = None,  # shows a single input's outcome on a terminal
) -> int:
    """Does the work for each input, telling what comes of it; the exit code of the whole."""
    outcomes = list(missing)
    for outcome in outcomes:
        screen.outcome(outcome)
    for number, item in enumerate(items, 1):
        screen.start(f"{verb}: {item.source}", number, len(items))
        outcome = batch.run_one(item, work, file_report)
        outcomes.append(outcome)
        if not outcome.error:
            facts = outcome.facts
            told = "kept from before" if facts["hit"] else how(facts)
            screen.finish(f"{verb}: {item.source}: {told}, {facts['seconds']:.2f} s -> {item.target}")
        screen.outcome(outcome)
    lively = screen.bars
    screen.stop()
    if panel and lively and len(outcomes) == 1 and not outcomes[0].error:
        panel(outcomes[0].facts)
    screen.summary(outcomes)
    return gravest([outcome.exit_code for outcome in outcomes])


def record(
    item: batch.Item, photo_sha256: str, steps: Sequence[Kept[Any]], stages: Mapping[str, Kept[Any]], loaded: Loaded
) -> dict[str, Any]:
    """The part of a run's record that is the same for every verb; the last of its steps is what it was for, and some of
    them are its stages."""
    from .. import __version__

    return {
        "version": __version__,
        "seed": loaded.settings.seed,
        "input": item.source,
        "output": str(item.target),
        "status": "ok",
        "code": 0,
        "hit": all(kept.hit for kept in steps),
        "key": steps[-1].key,
        "photo_sha256": photo_sha256,
        "seconds": round(sum(kept.seconds for kept in steps), 3),
        "hits": sum(kept.hit for kept in steps),
        "stages": {
            name: {"seconds": round(kept.seconds, 3), "hit": kept.hit, "key": kept.key, "process_peak_bytes": kept.peak}
            for name, kept in stages.items()
        },
        "warnings": [
            {"code": caution.code, "text": str(caution)}
            for caution in dict.fromkeys(caution for kept in steps for caution in kept.cautions)
        ],
        "preset": loaded.preset,
        "settings": {key: [value, loaded.origins[key]] for key, value in differences(loaded.settings).items()},
    }
