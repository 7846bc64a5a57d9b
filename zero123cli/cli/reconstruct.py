"""`zero123 reconstruct`: photos to meshes, the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import delivery, options
from .screen import screen

if TYPE_CHECKING:
    from ..batch import Item


@options.verb
def reconstruct(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Photos, folders or patterns; - reads stdin.", show_default=False),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="A mesh file; for several inputs a folder or a name with {stem}."
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE@AZ[,EL]", help="A further photo of the same object; may be repeated."),
    ] = None,
    photo_elevation: options.PhotoElevation = None,
    cutter: options.Cutter = None,
    mask: options.Mask = None,
    foreground_ratio: options.ForegroundRatio = None,
    accept_licence: options.AcceptLicence = False,
    steps: Annotated[int | None, typer.Option(help="Steps of the lift.", rich_help_panel=delivery.SHAPE)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much more the photo counts than no photo.", rich_help_panel=delivery.SHAPE)
    ] = None,
    allow_degrade: Annotated[
        bool | None,
        typer.Option(
            "--allow-degrade",
            help="Render smaller pictures where memory is short.",
            rich_help_panel=delivery.SHAPE,
        ),
    ] = None,
    *,
    shape: delivery.ShapeFlags,
    file: delivery.FileFlags,
    model: options.Model = None,
    pose_kind: options.PoseFormula = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another back.", show_default="0")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    stages: options.Stages,
) -> int:
    """Turn each photo into a textured 3D mesh that stands upright and faces the front."""
    from .. import batch, machine, photos, pipeline
    from ..artifacts import PhotoCamera
    from ..cache import digest
    from ..errors import UsageError
    from ..runs import RECONSTRUCT
    from .session import read_settings, run_items, tell_left_out

    knobs = {
        "seed": seed,
        "model.name": model,
        "model.pose_kind": pose_kind.value if pose_kind else None,
        "cutout.cutter": cutter,
        "cutout.mask": mask,
        "cutout.foreground_ratio": foreground_ratio,
        "views.photo_elevation": options.read_elevation(photo_elevation),
        "lift.steps": steps,
        "lift.refine_steps": steps,
        "lift.scale": guidance,
        "lift.allow_degrade": allow_degrade,
        **shape.knobs(),
    }
    loaded = read_settings(preset, set_, knobs, device)
    settings = loaded.settings
    wish, suffixes = file.read_wish(force=force), file.suffixes()
    further = [read_also(text) for text in also or []]

    sources, missing = batch.gather(inputs)
    if further and len(sources) + len(missing) != 1:
        raise UsageError("further photos are of one object", where="--also", remedy="give a single INPUT with it")
    beside = [path for path, _, _ in further]
    found = [] if force else batch.unnamed(sources, inputs)
    items = delivery.plan_files(sources, out, suffixes, settings.mesh, beside, len(missing), found)
    tell_left_out(RECONSTRUCT, sources, items)
    cache = stages.open_cache()
    prior = pipeline.pick_prior(settings.model, machine.pick(device, dtype.value), cache)
    tool = pipeline.pick_cutter(settings.cutout, cache, licence_accepted=accept_licence)
    batch.make_folders(items, out)
    screen.note(f"reconstruct: {prior.name} on {prior.backend.name}, {prior.backend.dtype}")

    def work(item: Item) -> dict[str, Any]:
        for target in item.targets:
            batch.check_target(target)
        watch = screen.watcher(item.source)

        given = [(item.source, 0.0, settings.views.photo_elevation), *further]
        taken = [(photos.read(path), azimuth, elevation) for path, azimuth, elevation in given]
        old = None if force else batch.in_the_way(item)
        if old and not pipeline.has_mesh(taken, settings, tool, prior, cache):
            raise batch.already_there(old)
        posed = []
        for photo, azimuth, elevation in taken:
            cut = pipeline.cutout(photo, settings.cutout, tool, cache, watch)
            seen = pipeline.views(cut, PhotoCamera(elevation), prior, cache, watch)
            posed.append(pipeline.Posed(cut, seen, azimuth, photo.name, digest(photo.data)))
        field = pipeline.lifted(posed, settings.lift, settings.seed, prior, cache, watch)
        mesh = pipeline.meshed(posed, field, settings.mesh, settings.lift, cache, watch)
        backend = prior.backend
        lifted = pipeline.Lifted(posed, field, prior.name, prior.licence, backend.name, backend.dtype)
        return delivery.deliver(RECONSTRUCT, item, lifted, mesh, loaded, wish, cache, watch)

    return run_items(
        RECONSTRUCT, items, missing, work, how=delivery.tell, panel=lambda facts: delivery.show_panel(facts, cache)
    )


def read_also(text: str) -> tuple[str, float, float | None]:
    """A file, its azimuth from the first photo's, and its elevation if it is given."""
    from ..errors import UsageError

    path, at, place = text.rpartition("@")
    try:
        azimuth, *rest = [float(part) for part in place.split(",")]
        if not at or not path or len(rest) > 1 or not abs(azimuth) <= 360 or not all(abs(part) <= 90 for part in rest):
            raise ValueError
    except ValueError:
        remedy = "write FILE@AZIMUTH or FILE@AZIMUTH,ELEVATION, such as back.jpg@180"
        raise UsageError(f"{text!r} says no place", where="--also", remedy=remedy) from None
    return path, azimuth, rest[0] if rest else None
