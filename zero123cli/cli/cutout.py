"""`zero123 cutout`: stage 1 alone, photos to RGBA PNG."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .screen import screen

if TYPE_CHECKING:
    from ..batch import Item


@options.verb
def cutout(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Photos, folders or patterns; - reads stdin.", show_default=False),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="A .png; for several inputs a folder or a name with {stem}."
        ),
    ] = None,
    cutter: options.Cutter = None,
    mask: options.Mask = None,
    keep: Annotated[
        str | None, typer.Option(help="Of several objects: largest or all.", rich_help_panel=options.OBJECT)
    ] = None,
    foreground_ratio: options.ForegroundRatio = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the square cutout, px.", show_default="512", rich_help_panel=options.OBJECT),
    ] = None,
    accept_licence: options.AcceptLicence = False,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    *,
    stages: options.Stages,
) -> int:
    """Cut the object out of each photo: an RGBA PNG, square, centred, with soft alpha."""
    from .. import batch, photos, pipeline
    from ..cache import digest
    from ..report import encode_png
    from .session import read_settings, record, run_items, tell_left_out

    flags = {"cutter": cutter, "mask": mask, "keep": keep, "foreground_ratio": foreground_ratio, "size": size}
    loaded = read_settings(preset, set_, {f"cutout.{name}": value for name, value in flags.items()})
    settings = loaded.settings.cutout
    sources, missing = batch.gather(inputs)
    found = [] if force else batch.unnamed(sources, inputs)
    items = batch.plan(sources, out, default="{stem}_cutout", suffixes=(".png",), lost=len(missing), found=found)
    tell_left_out("cutout", sources, items)
    cache = stages.open_cache()
    tool = pipeline.pick_cutter(settings, cache, licence_accepted=accept_licence)
    batch.make_folders(items, out)

    def work(item: Item) -> dict[str, Any]:
        batch.check_target(item.target)
        photo = photos.read(item.source)
        if not force and os.path.lexists(item.target) and not pipeline.has_cutout(photo, settings, tool, cache):
            raise batch.already_there(item.target)
        kept = pipeline.cutout(photo, settings, tool, cache, screen.watcher(item.source))
        batch.write_output(item.target, encode_png(kept.artifact.rgba), force=force)
        return record(item, digest(photo.data), [kept], {"cutout": kept}, loaded) | {"cutter": kept.artifact.cutter}

    return run_items("cutout", items, missing, work, how=lambda facts: str(facts["cutter"]))
