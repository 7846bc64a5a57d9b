"""`zero123 views`: the object of each photo from other sides, as pictures, a contact sheet or a turntable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .screen import screen

if TYPE_CHECKING:
    from ..artifacts import Ask, View
    from ..batch import Item

MAX_ANGLE = 1e6  # degrees
ANIMATED = (".gif", ".webp", ".mp4")


WHERE, HOW = "Which views", "How they are sampled"


@options.verb
def views(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Photos, folders or patterns; - reads stdin.", show_default=False),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A folder for single pictures; a .png for one view or a contact sheet; .gif, .webp, .mp4 to turn.",
        ),
    ] = None,
    azimuth: Annotated[
        list[float] | None,
        typer.Option(help="Degrees the camera walks to its right; may be repeated.", rich_help_panel=WHERE),
    ] = None,
    elevation: Annotated[float, typer.Option(help="Degrees the camera rises.", rich_help_panel=WHERE)] = 0.0,
    distance: Annotated[
        float,
        typer.Option(
            min=-1.0, max=1.0, help="How much the camera goes back, in sizes of the object.", rich_help_panel=WHERE
        ),
    ] = 0.0,
    count: Annotated[
        int | None, typer.Option(min=1, max=360, help="A ring of this many views.", rich_help_panel=WHERE)
    ] = None,
    poses: Annotated[
        Path | None, typer.Option(help="A .csv of azimuth,elevation[,distance] rows.", rich_help_panel=WHERE)
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Pictures of each view, all different.", rich_help_panel=WHERE)
    ] = 1,
    photo_elevation: options.PhotoElevation = None,
    cutter: options.Cutter = None,
    mask: options.Mask = None,
    accept_licence: options.AcceptLicence = False,
    model: options.Model = None,
    pose_kind: options.PoseFormula = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim-original, ddim, dpm++ or unipc.", rich_help_panel=HOW)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Network calls a view.", show_default="50", rich_help_panel=HOW)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much more the photo counts.", show_default="3.0", rich_help_panel=HOW)
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Fresh noise in each ddim step.", show_default="1.0", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed, other pictures.", show_default="0", rich_help_panel=HOW)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Views side by side.", show_default="1", rich_help_panel=HOW)
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    *,
    stages: options.Stages,
) -> int:
    """Draw the object of each photo from other sides. Azimuth +90 shows what lay on the picture's right-hand side."""
    from .. import batch as batches
    from .. import machine, photos, pipeline, report
    from ..artifacts import Ask, PhotoCamera
    from ..cache import digest
    from ..cameras import within_a_turn
    from ..errors import UsageError
    from ..report import find_ffmpeg
    from .session import read_settings, record, run_items, tell_left_out

    knobs = {
        "seed": seed,
        "model.name": model,
        "model.pose_kind": pose_kind.value if pose_kind else None,
        "cutout.cutter": cutter,
        "cutout.mask": mask,
        "views.photo_elevation": options.read_elevation(photo_elevation),
        "views.sampler": sampler,
        "views.steps": steps,
        "views.guidance": guidance,
        "views.eta": eta,
        "views.batch": batch,
    }
    loaded = read_settings(preset, set_, knobs)
    settings = loaded.settings
    camera = PhotoCamera(settings.views.photo_elevation)
    asks = [
        Ask(
            azimuth_deg=within_a_turn(where[0]),
            elevation_deg=where[1],
            distance=where[2],
            number=number,
            seed=settings.seed,
            sampler=settings.views.sampler,
            steps=settings.views.steps,
            guidance=settings.views.guidance,
            eta=settings.views.eta,
        )
        for where in choose_poses(azimuth or [], elevation, distance, count, poses)
        for number in range(samples)
    ]
    for ask in asks:
        told = camera.elevation_deg or 0.0
        if not abs(told + ask.elevation_deg) <= 90:
            raise UsageError(
                f"{ask.elevation_deg:+g} degrees from a photo taken at {told:g} is over the top",
                where="--elevation",
                remedy="the two together must lie between -90 and 90",
            )

    sources, missing = batches.gather(inputs)
    together = out is not None and not batches.is_folder(out) and Path(out).suffix != ""
    if together and Path(out or "").suffix.lower() == ".mp4":
        find_ffmpeg()  # what is missing for the last step is said before the first
    if not together:  # a sheet or an animation may show one twice, a folder holds each once
        asks = list(dict.fromkeys(asks))
    names = [""] if together else [f"_{label(ask)}" for ask in asks]
    suffixes = (".png", *ANIMATED) if together else (".png",)
    plans = [
        batches.lay_out(sources, out, name="{stem}" + name, suffixes=suffixes, lost=len(missing)) for name in names
    ]
    found = [] if force else batches.unnamed(sources, inputs)
    made = batches.outputs_among([item for items in plans for item in items], found)
    plans = [[item for item in items if item.source not in made] for items in plans]
    tell_left_out("views", sources, plans[0])
    batches.refuse_clashes([item for items in plans for item in items])
    targets = {items[0].source: [item.target for item in items] for items in zip(*plans, strict=True)}

    cache = stages.open_cache()
    prior = pipeline.pick_prior(settings.model, machine.pick(device, dtype.value), cache)
    tool = pipeline.pick_cutter(settings.cutout, cache, licence_accepted=accept_licence)
    batches.make_folders(plans[0], out)
    screen.note(f"views: {prior.name} on {prior.backend.name}, {prior.backend.dtype}")

    def work(item: Item) -> dict[str, Any]:
        for target in targets[item.source]:
            batches.check_target(target)
        photo = photos.read(item.source)
        for target, shown in zip(targets[item.source], [asks] if together else [[ask] for ask in asks], strict=True):
            # What is kept may be what is there: a run that was stopped goes on. The bytes will tell.
            if (
                os.path.lexists(target)
                and not force
                and not pipeline.has_views(photo, settings.cutout, tool, camera, shown, prior, cache)
            ):
                raise batches.already_there(target)
        watch = screen.watcher(item.source)
        cutout = pipeline.cutout(photo, settings.cutout, tool, cache, watch)
        seen = pipeline.views(cutout, camera, prior, cache, watch)
        pictures = []
        for kept in pipeline.sampled(seen, asks, prior, cache, settings.views.batch, watch):
            pictures.append(kept)
            if not together:
                target = targets[item.source][len(pictures) - 1]
                batches.write_output(target, report.encode_png(kept.artifact.pixels), force=force)
        if together:
            page = encode_together([kept.artifact for kept in pictures], item.target)
            batches.write_output(item.target, page, force=force)
        return record(
            item, digest(photo.data), [cutout, seen, *pictures], {"cutout": cutout, "views": seen}, loaded
        ) | {
            "outputs": [str(target) for target in targets[item.source]],
            "model": prior.name,
            "licence": prior.licence,
            "photo_elevation": seen.artifact.photo_elevation_deg,
            "device": prior.backend.name,
            "dtype": prior.backend.dtype,
            "views": [
                {"azimuth": view.azimuth_deg, "elevation": view.elevation_deg, "distance": view.distance}
                | {"sample": view.number, "hit": kept.hit, "key": kept.key}
                for kept in pictures
                for view in [kept.artifact]
            ],
        }

    def encode_together(drawn: list[View], target: Path) -> bytes:
        pixels = [view.pixels for view in drawn]
        if target.suffix.lower() in ANIMATED:
            return report.encode_animation(pixels, target.suffix.lower())
        if len(drawn) == 1:
            return report.encode_png(pixels[0])
        captions = [caption(view, several=samples > 1) for view in drawn]
        return report.encode_png(report.contact_sheet(pixels, captions, columns=samples if samples > 1 else 0))

    return run_items("views", plans[0], missing, work, how=lambda facts: f"{len(asks)} view{'s' * (len(asks) > 1)}")


def choose_poses(
    azimuths: list[float], elevation: float, distance: float, count: int | None, table: Path | None
) -> list[tuple[float, float, float]]:
    """Azimuth, elevation and distance of each view, all from the photo's."""
    from ..cameras import ring
    from ..errors import UsageError

    if (bool(azimuths) + bool(count) + bool(table)) != 1 and not (count and len(azimuths) == 1 and not table):
        raise UsageError(
            "say which views, in one way",
            where="--azimuth",
            remedy="give --azimuth DEGREES, --count N or --poses FILE.csv",
        )
    for flag, value in [*(("--azimuth", azimuth) for azimuth in azimuths), ("--elevation", elevation)]:
        if not abs(value) <= MAX_ANGLE:
            raise UsageError(f"{value:g} is no angle", where=flag, remedy="give degrees")
    if not abs(distance) <= 1:
        raise UsageError(f"{distance:g} is no distance", where="--distance", remedy="give it from -1 to 1")
    if table:
        for flag, value in (("--elevation", elevation), ("--distance", distance)):
            if value:
                raise UsageError("each pose of the table has its own", where=flag, remedy="leave it out")
        return read_poses(table)
    if count:
        start = azimuths[0] if azimuths else 0.0
        return [(start + view.azimuth_deg, elevation, distance) for view in ring(count)]
    return [(azimuth, elevation, distance) for azimuth in azimuths]


def read_poses(path: Path) -> list[tuple[float, float, float]]:
    """Rows of azimuth,elevation[,distance]; a row of names and rows that begin with # are passed over."""
    import csv
    import math

    from ..errors import MissingInputError, UsageError

    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except OSError as error:
        raise MissingInputError((error.strerror or "unreadable").lower(), where=os.fspath(path)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError("it is not a table", where=os.fspath(path), remedy="write azimuth,elevation rows") from error
    found: list[tuple[float, float, float]] = []
    for number, row in enumerate(rows, 1):
        if not row or row[0].startswith("#") or (not found and row[0].strip().lower() == "azimuth"):
            continue
        try:
            values = [float(cell) for cell in row]
            azimuth, elevation, distance = [*values, 0.0] if len(values) == 2 else values
            if not all(map(math.isfinite, values)) or abs(elevation) > 180 or abs(distance) > 1:
                raise ValueError
        except ValueError:
            remedy = "write azimuth,elevation[,distance], the distance from -1 to 1"
            raise UsageError(f"line {number} is no pose", where=os.fspath(path), remedy=remedy) from None
        found.append((azimuth, elevation, distance))
    if not 0 < len(found) <= 10_000:
        raise UsageError(f"it holds {len(found)} poses", where=os.fspath(path), remedy="write from 1 to 10000")
    return found


def label(ask: Ask) -> str:
    """A view in a file name: az090_el+00_s0, with the distance if it changes."""
    near = f"_r{ask.distance:+.2f}" if ask.distance else ""
    turn = round(ask.azimuth_deg % 360, 3) % 360
    return f"az{degrees(turn, '03')}_el{degrees(ask.elevation_deg, '+03')}{near}_s{ask.number}"


def degrees(value: float, form: str) -> str:
    """Whole degrees as such, others with their decimals."""
    whole = round(value)
    return f"{whole:{form}d}" if abs(value - whole) < 5e-4 else f"{value:{form}.3f}"


def caption(view: View, *, several: bool) -> str:
    """A view under its picture in a contact sheet."""
    near = f"  {view.distance:+g}" if view.distance else ""
    return f"{view.azimuth_deg % 360:g}\u00b0 {view.elevation_deg:+g}\u00b0{near}" + (
        f"  #{view.number}" if several else ""
    )
