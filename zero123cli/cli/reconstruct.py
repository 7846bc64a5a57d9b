"""`zero123 reconstruct`: photos to meshes, the main job."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .screen import screen

if TYPE_CHECKING:
    from ..batch import Item
    from ..cache import Kept
    from ..meshing.gate import Verdict

SHAPE, FILE = "The mesh", "The file"
SUFFIXES = (".glb", ".obj", ".ply", ".stl", ".3mf", ".usdz", ".off")
UNITS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "in": 0.0254, "ft": 0.3048}


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
    photo_elevation: Annotated[
        str | None, typer.Option(metavar="auto|DEG", help="How high the photo's camera stands.", show_default="auto")
    ] = None,
    foreground_ratio: Annotated[
        float | None, typer.Option(help="Longer side of the object / side of the frame.", show_default="0.80")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the lift.", rich_help_panel=SHAPE)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much more the photo counts than no photo.", rich_help_panel=SHAPE)
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="128, 256 or 512 cells a side.", show_default="256", rich_help_panel=SHAPE)
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Density at the surface.", show_default="chosen", rich_help_panel=SHAPE)
    ] = None,
    faces: Annotated[
        int | None, typer.Option(help="Faces at most; 0 for all.", show_default="10000", rich_help_panel=SHAPE)
    ] = None,
    keep_components: Annotated[
        bool | None, typer.Option("--keep-components", help="Keep small loose pieces.", rich_help_panel=SHAPE)
    ] = None,
    texture: Annotated[
        str | None, typer.Option(help="uv, vertex or none.", show_default="uv", rich_help_panel=SHAPE)
    ] = None,
    texture_size: Annotated[
        int | None, typer.Option(help="Side of the texture, px.", show_default="1024", rich_help_panel=SHAPE)
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Of outputs in folders: " + " ".join(SUFFIXES), rich_help_panel=FILE)
    ] = "glb",
    up: Annotated[str, typer.Option(help="y or z.", rich_help_panel=FILE)] = "y",
    front: Annotated[
        str, typer.Option(help="Such as +x.", show_default="+z, or -y where z is up", rich_help_panel=FILE)
    ] = "",
    height: Annotated[
        str | None, typer.Option(metavar="12cm", help="mm, cm, m, in or ft.", rich_help_panel=FILE)
    ] = None,
    origin: Annotated[str, typer.Option(help="center or base.", rich_help_panel=FILE)] = "center",
    require: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT,...", help="watertight, textured, coloured, one-piece: else exit 82.", rich_help_panel=FILE
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name of `zero123 models list`, a file or a folder.", rich_help_panel=options.SETTINGS),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another back.", show_default="0")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    progress: options.Progress = options.ProgressKind.auto,
    color: options.Colour = options.ColourKind.auto,
    offline: options.Offline = False,
    cache_dir: options.CacheDir = None,
    no_cache: options.NoCache = False,
    refresh: options.Refresh = False,
    shared_cache: options.SharedCache = False,
    lock_timeout: options.LockTimeout = 600.0,
) -> int:
    """Turn each photo into a textured 3D mesh that stands upright and faces the front."""
    import numpy as np

    from .. import batch, machine, photos, pipeline
    from ..artifacts import PhotoCamera
    from ..cache import digest
    from ..errors import UsageError
    from ..meshing.gate import refuse_unknown
    from ..meshing.gate import require as demand
    from ..meshing.write import About, Placement, placing, write
    from .session import open_cache, read_settings, record, run_items

    screen.configure(json=json, quiet=quiet, verbose=verbose, progress=progress.value, color=color.value)
    knobs = {
        "seed": seed,
        "model.name": model,
        "cutout.foreground_ratio": foreground_ratio,
        "views.photo_elevation": read_elevation(photo_elevation),
        "lift.steps": steps,
        "lift.refine_steps": steps,
        "lift.scale": guidance,
        "mesh.resolution": resolution,
        "mesh.level": level,
        "mesh.faces": faces,
        "mesh.keep_components": keep_components,
        "mesh.texture": texture,
        "mesh.texture_size": texture_size,
    }
    loaded = read_settings(preset, set_, knobs)
    settings = loaded.settings
    placement = Placement(up, front, read_height(height) if height else 0.0, origin)
    placing(np.eye(3), placement)  # what is wrong with it shows before any work
    wanted = [name.strip() for name in (require or "").split(",") if name.strip()]
    refuse_unknown(wanted, "--require")
    suffix = "." + format_.lower().removeprefix(".")
    if suffix not in SUFFIXES:
        raise UsageError(f"{format_!r} is no mesh format", where="--format", remedy=f"use one of {' '.join(SUFFIXES)}")
    further = [read_also(text) for text in also or []]

    sources, missing = batch.gather(inputs)
    if further and len(sources) + len(missing) != 1:
        raise UsageError("further photos are of one object", where="--also", remedy="give a single INPUT with it")
    items = batch.plan(sources, out, suffixes=(suffix, *(other for other in SUFFIXES if other != suffix)))
    cache = open_cache(cache_dir, no_cache=no_cache, refresh=refresh, shared=shared_cache, lock_timeout=lock_timeout)
    prior = pipeline.pick_prior(settings.model, machine.pick(device, dtype.value), cache)
    tool = pipeline.pick_cutter(settings.cutout, cache)
    batch.make_folders(items, out)
    screen.note(f"reconstruct: {prior.name} on {prior.backend.name}, {prior.backend.dtype}")

    def work(item: Item) -> dict[str, Any]:
        batch.check_target(item.target)
        watch = screen.watcher(item.source)

        given = [(photos.read(item.source), 0.0, settings.views.photo_elevation)]
        given += [(photos.read(path), azimuth, elevation) for path, azimuth, elevation in further]
        in_the_way = item.target.exists() and not force
        if in_the_way and not pipeline.has_mesh(given, settings, tool, prior, cache):
            raise batch.already_there(item.target)
        posed = []
        for photo, azimuth, elevation in given:
            cut = pipeline.cutout(photo, settings.cutout, tool, cache, watch)
            seen = pipeline.views(cut, PhotoCamera(elevation), prior, cache, watch)
            posed.append(pipeline.Posed(cut, seen, azimuth))
        photo = given[0][0]
        field = pipeline.lifted(posed, settings.lift, settings.seed, prior, cache, watch)
        mesh = pipeline.meshed(posed, field, settings.mesh, settings.lift, cache, watch)
        extras = {
            "photo": digest(photo.data),
            "model": prior.name,
            "licence": prior.licence,
            "run": mesh.key,
        }
        files = write(mesh.artifact, item.target.name, placement, About(extras=extras))
        for name, data in files.items():
            batch.write_output(item.target.with_name(name), data, force=force)
        verdict = check_file(item, posed[0], mesh.artifact, placement, settings.lift)
        demand(verdict, wanted, str(item.target))
        stages: list[tuple[str, Kept[Any]]] = [
            (pipeline.CUTOUT.name, posed[0].cutout),
            (pipeline.VIEWS.name, posed[0].views),
            (pipeline.FIELD.name, field),
            (pipeline.MESH.name, mesh),
        ]
        kept: list[Kept[Any]] = [*(part for one in posed for part in (one.cutout, one.views)), field, mesh]
        return record(item, photo, kept, loaded) | {
            "files": [str(item.target.with_name(name)) for name in files],
            "model": prior.name,
            "device": prior.backend.name,
            "dtype": prior.backend.dtype,
            "hits": sum(part.hit for part in kept),
            "stages": {
                name: {"seconds": round(part.seconds, 3), "hit": part.hit, "key": part.key} for name, part in stages
            },
            "photo_elevation": posed[0].views.artifact.photo_elevation_deg,
            "level": [mesh.artifact.level, mesh.artifact.margin],
            "mesh": asdict(verdict),
        }

    def tell(facts: dict[str, Any]) -> str:
        verdict = facts["mesh"]
        closed = "watertight" if verdict["watertight"] else "not watertight"
        parts = " ".join(f"{name} {part['seconds']:.1f}" for name, part in facts["stages"].items())
        return f"{verdict['faces']} faces, {closed}, {parts} s"

    return run_items("reconstruct", items, missing, work, how=tell)


def check_file(item: Item, posed: Any, mesh: Any, placement: Any, lift: Any) -> Verdict:
    """What was written, read back and held against the photo."""
    from ..meshing.gate import judge
    from ..meshing.shot import shot_of
    from ..meshing.write import UNITS as FILE_UNITS
    from ..meshing.write import placing

    views = posed.views.artifact
    shot = shot_of(posed.cutout.artifact.rgba, 0.0, views.photo_elevation_deg, lift.distance, lift.fov_deg)
    matrix = placing(mesh.vertices, placement)
    matrix[:3] *= FILE_UNITS.get(item.target.suffix.lower(), 1.0)
    return judge(item.target, shot, matrix)


def read_elevation(text: str | None) -> float | None:
    """Degrees, or None to have it guessed."""
    from ..errors import UsageError

    if text is None or text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is no angle", where="--photo-elevation", remedy="give degrees, or auto") from None


def read_height(text: str) -> float:
    """Metres."""
    import re

    from ..errors import UsageError

    found = re.fullmatch(r"\s*([0-9.]+)\s*(mm|cm|m|in|ft)\s*", text)
    try:
        metres = float(found[1]) * UNITS[found[2]] if found else 0.0
    except ValueError:
        metres = 0.0
    if not 1e-6 <= metres <= 1e6:
        raise UsageError(f"{text!r} is no height", where="--height", remedy="write it such as 12cm, 80mm, 1.2m or 5in")
    return metres


def read_also(text: str) -> tuple[str, float, float | None]:
    """A file, its azimuth from the first photo's, and its elevation if it is given."""
    from ..errors import UsageError

    path, at, place = text.rpartition("@")
    try:
        azimuth, *rest = [float(part) for part in place.split(",")]
        if not at or not path or len(rest) > 1 or not abs(azimuth) <= 360 or any(abs(part) > 90 for part in rest):
            raise ValueError
    except ValueError:
        remedy = "write FILE@AZIMUTH or FILE@AZIMUTH,ELEVATION, such as back.jpg@180"
        raise UsageError(f"{text!r} says no place", where="--also", remedy=remedy) from None
    return path, azimuth, rest[0] if rest else None
