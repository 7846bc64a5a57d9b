"""`zero123 export`: another format, size or face budget of a finished run; nothing is lifted again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import delivery, options
from .screen import screen

if TYPE_CHECKING:
    from ..batch import Item


@options.verb
def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A glb written by zero123, the id of a run, or last.", show_default=False),
    ],
    out: Annotated[str | None, typer.Option("-o", "--output", metavar="OUT", help="A mesh file, or a folder.")] = None,
    *,
    shape: delivery.ShapeFlags,
    file: delivery.FileFlags,
    force: options.Force = False,
    set_: options.Set = None,
    cache_dir: options.CacheDir = None,
    shared_cache: options.SharedCache = False,
    lock_timeout: options.LockTimeout = 600.0,
) -> int:
    """Write a finished run's mesh again: as it was, or with what the flags change about it."""
    from .. import batch, pipeline, settings
    from ..errors import UsageError
    from ..runs import find_run
    from ..watch import silent
    from .session import open_cache, run_items

    wish, suffixes = file.read_wish(force=force), file.suffixes()
    cache = open_cache(cache_dir, no_cache=False, shared=shared_cache, lock_timeout=lock_timeout)
    record = find_run(cache, run).record
    loaded = settings.reload(record["settings"], record["preset"], flags=shape.knobs(), set_flags=set_ or ())
    for text in set_ or ():
        if not text.strip().startswith("mesh."):
            remedy = "change it with zero123 reconstruct; --set mesh.KEY=VALUE works here"
            raise UsageError(f"{text!r} would change the field", where="--set", remedy=remedy)
    photos = [photo["input"] for photo in record["photos"]]
    items = delivery.plan_files([record["input"]], out, suffixes, loaded.settings.mesh, photos)
    batch.make_folders(items, out)

    def work(item: Item) -> dict[str, Any]:
        for target in item.targets:
            batch.check_target(target)
        watch = screen.watcher(item.source)
        lifted = pipeline.remember(record, cache, silent)  # its warnings are old news
        old = None if force else batch.in_the_way(item)
        if old and not pipeline.is_meshed(lifted.field.key, loaded.settings, cache):
            raise batch.already_there(old)
        mesh = pipeline.meshed(lifted.photos, lifted.field, loaded.settings.mesh, loaded.settings.lift, cache, watch)
        return delivery.deliver("export", item, lifted, mesh, loaded, wish, cache, watch)

    return run_items(
        "export", items, (), work, how=delivery.tell, panel=lambda facts: delivery.show_panel(facts, cache)
    )
