"""How a finished mesh leaves the house, from `reconstruct` and `export` alike: written, measured, put on record."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .screen import screen

if TYPE_CHECKING:
    from ..batch import Item
    from ..cache import Cache, Kept
    from ..meshing.gate import Verdict
    from ..meshing.mesh import Made
    from ..meshing.write import Placement
    from ..pipeline import Lifted
    from ..settings import Loaded, MeshSettings
    from ..watch import Watch

SHAPE, FILE = "The mesh", "The file"
SUFFIXES = (".glb", ".obj", ".ply", ".stl", ".3mf", ".usdz", ".off")
UNITS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "in": 0.0254, "ft": 0.3048}
TALLEST = 100.0  # m


@dataclass(frozen=True)
class Wish:
    """What a file is to be besides the mesh in it."""

    placement: Placement
    required: Sequence[str]
    force: bool


@dataclass(frozen=True)
class ShapeFlags:
    """What a call says of the mesh; None: nothing."""

    resolution: Annotated[
        int | None, typer.Option(help="64, 128, 256 or 512 cells a side (256).", rich_help_panel=SHAPE)
    ] = None
    level: Annotated[
        float | None, typer.Option(help="Density at the surface; 0: chosen (0).", rich_help_panel=SHAPE)
    ] = None
    faces: Annotated[int | None, typer.Option(help="Faces at most; 0 for all (10000).", rich_help_panel=SHAPE)] = None
    keep_components: Annotated[
        bool | None, typer.Option("--keep-components", help="Keep small loose pieces.", rich_help_panel=SHAPE)
    ] = None
    texture: Annotated[str | None, typer.Option(help="uv, vertex or none (uv).", rich_help_panel=SHAPE)] = None
    texture_size: Annotated[int | None, typer.Option(help="Side of the texture, px (1024).", rich_help_panel=SHAPE)] = (
        None
    )

    def knobs(self) -> dict[str, Any]:
        return {f"mesh.{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True)
class FileFlags:
    """What a call says of the file."""

    format_: Annotated[
        str, typer.Option("--format", help="Of outputs in folders: " + " ".join(SUFFIXES), rich_help_panel=FILE)
    ] = "glb"
    up: Annotated[
        str, typer.Option(help="y or z.", show_default="z in .3mf and .stl, else y", rich_help_panel=FILE)
    ] = ""
    front: Annotated[
        str, typer.Option(help="Such as +x.", show_default="+z, or -y where z is up", rich_help_panel=FILE)
    ] = ""
    height: Annotated[str | None, typer.Option(metavar="12cm", help="mm, cm, m, in or ft.", rich_help_panel=FILE)] = (
        None
    )
    origin: Annotated[str, typer.Option(help="center or base.", rich_help_panel=FILE)] = "center"
    require: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT,...", help="watertight, textured, coloured, one-piece: else exit 82.", rich_help_panel=FILE
        ),
    ] = None

    def read_wish(self, *, force: bool) -> Wish:
        """What is wrong with it shows before any work."""
        import numpy as np

        from ..meshing.gate import refuse_unknown
        from ..meshing.write import Placement, placing

        placement = Placement(
            self.up, self.front, 0.0 if self.height is None else read_height(self.height), self.origin
        )
        placing(np.eye(3), placement)
        required = [] if self.require is None else [name.strip() for name in self.require.split(",")]
        refuse_unknown(required, "--require")
        return Wish(placement, required, force)

    def suffixes(self) -> tuple[str, ...]:
        """All that can be written, what `--format` names first."""
        from ..errors import UsageError

        suffix = "." + self.format_.lower().removeprefix(".")
        if suffix not in SUFFIXES:
            remedy = f"use one of {' '.join(SUFFIXES)}"
            raise UsageError(f"{self.format_!r} is no mesh format", where="--format", remedy=remedy)
        return (suffix, *(other for other in SUFFIXES if other != suffix))


def plan_files(
    sources: Sequence[str],
    out: str | None,
    suffixes: Sequence[str],
    settings: MeshSettings,
    also: Sequence[str],
    lost: int = 0,
    found: Sequence[str] = (),
) -> list[Item]:
    """Where each mesh goes, with all that is written beside it; never over a photo."""
    from .. import batch
    from ..meshing.write import sidecars

    beside = functools.partial(sidecars, textured=settings.texture == "uv")
    return batch.plan(sources, out, suffixes=suffixes, beside=beside, also=also, lost=lost, found=found)


def read_height(text: str) -> float:
    """Metres."""
    from ..errors import UsageError

    found = re.fullmatch(r"\s*([0-9.]+)\s*(mm|cm|m|in|ft)\s*", text)
    try:
        metres = float(found[1]) * UNITS[found[2]] if found else 0.0
    except ValueError:
        metres = 0.0
    if not 1e-6 <= metres <= TALLEST:
        raise UsageError(
            f"{text!r} is no height", where="--height", remedy="write it such as 12cm, 80mm, 1.2m or 5in; 100m at most"
        )
    return metres


def deliver(
    verb: str, item: Item, lifted: Lifted, mesh: Kept[Made], loaded: Loaded, wish: Wish, cache: Cache, watch: Watch
) -> dict[str, Any]:
    """Writes the mesh and measures what was written; the record of the run, which the cache keeps too."""
    from .. import batch
    from ..meshing.gate import require
    from ..meshing.write import About, write
    from ..runs import keep_run
    from .session import record

    photo = lifted.photos[0]
    told = {"photo": photo.sha256, "model": lifted.model, "licence": lifted.licence, "run": mesh.key}
    files = write(mesh.artifact, item.target.name, wish.placement, About(extras=told))
    verdict = None
    if wish.required:  # before anything of an earlier run is replaced
        with tempfile.TemporaryDirectory(prefix="zero123-") as draft:
            for name, data in files.items():
                Path(draft, name).write_bytes(data)
            verdict = judge_file(Path(draft, item.target.name), lifted, mesh, loaded, wish.placement)
        require(verdict, wish.required, str(item.target))
    batch.write_outputs({item.target.with_name(name): data for name, data in files.items()}, force=wish.force)
    verdict = verdict or judge_file(item.target, lifted, mesh, loaded, wish.placement)
    stages: dict[str, Kept[Any]] = {"cutout": photo.cutout, "views": photo.views, "lift": lifted.field, "mesh": mesh}
    kept: list[Kept[Any]] = [
        *(part for one in lifted.photos for part in (one.cutout, one.views)), lifted.field, mesh
    ]  # fmt: skip
    facts = record(item, photo.sha256, kept, stages, loaded) | {
        "verb": verb,
        "files": [str(item.target.with_name(name)) for name in files],
        "bytes": sum(map(len, files.values())),
        "model": lifted.model,
        "licence": lifted.licence,
        "device": lifted.device,
        "dtype": lifted.dtype,
        "photos": [
            {
                "input": one.source,
                "sha256": one.sha256,
                "azimuth": one.azimuth_deg,
                "elevation": one.views.artifact.photo_elevation_deg,
                "cutout": one.cutout.key,
                "views": one.views.key,
            }
            for one in lifted.photos
        ],
        "photo_elevation": photo.views.artifact.photo_elevation_deg,
        "level": [mesh.artifact.level, mesh.artifact.margin],
        "mesh": asdict(verdict),
    }
    keep_run(cache, facts, watch)
    return facts


def judge_file(path: Path, lifted: Lifted, mesh: Kept[Made], loaded: Loaded, placement: Placement) -> Verdict:
    """What was written, read back and held against the photo."""
    from ..meshing.gate import judge
    from ..meshing.shot import shot_of
    from ..meshing.write import UNITS as FILE_UNITS
    from ..meshing.write import placing, stand

    photo, lift = lifted.photos[0], loaded.settings.lift
    shot = shot_of(
        photo.cutout.artifact.rgba, 0.0, photo.views.artifact.photo_elevation_deg, lift.distance, lift.fov_deg
    )
    suffix = path.suffix.lower()
    matrix = placing(mesh.artifact.vertices, stand(placement, suffix))
    matrix[:3] *= FILE_UNITS.get(suffix, 1.0)
    return judge(path, shot, matrix)


def tell(facts: dict[str, Any]) -> str:
    """A run in a line."""
    verdict = facts["mesh"]
    closed = "watertight" if verdict["watertight"] else "not watertight"
    parts = " ".join(f"{name} {part['seconds']:.1f}" for name, part in facts["stages"].items())
    return f"{verdict['faces']} faces, {closed}, {parts} s"


def show_panel(facts: dict[str, Any], cache: Cache) -> None:
    """A run on a terminal, with what may be done next."""
    from .session import name_root

    verdict = facts["mesh"]
    seconds = [
        f"{name} {'kept' if part['hit'] else format(part['seconds'], '.1f')}" for name, part in facts["stages"].items()
    ]
    size = f"{verdict['texture']} px texture" if verdict["texture"] else "no texture"
    colours = f", PSNR {verdict['psnr']:.1f} dB" if verdict["coloured"] else ""
    rows = {
        "file": f"{facts['output']}, {facts['bytes'] / 1e6:.1f} MB",
        "mesh": f"{verdict['faces']} faces, {'watertight' if verdict['watertight'] else 'not watertight'}, {size}",
        "like the photo": f"mask IoU {verdict['mask_iou']:.2f}" + colours,
        "seconds": f"{', '.join(seconds)}; {facts['seconds']:.1f} in all",
    }
    if cache.root is not None:  # else nothing was kept that could be exported
        rows["next"] = f"zero123 export {facts['key'][:12]} -o other.stl --height 12cm{name_root(cache.root)}"
    screen.panel(rows)
