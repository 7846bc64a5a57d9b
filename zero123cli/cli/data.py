"""`zero123 data`: meshes to view sets for training and evaluation, and view sets to one small file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .screen import screen

app = typer.Typer(help="View sets for training: render them from meshes, pack them into one file.")


class RigKind(StrEnum):
    pocket = "pocket"
    paper = "paper"


class InsideKind(StrEnum):
    winding = "winding"
    carved = "carved"


MESH_SUFFIXES = frozenset((".glb", ".gltf", ".obj", ".ply", ".stl", ".dae"))


@app.command()
@options.verb
def render(
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DATASET", help="The folder of the dataset.")],
    meshes: Annotated[
        list[str] | None, typer.Argument(metavar="[MESH...]", help="Mesh files, or folders with meshes below them.")
    ] = None,
    procedural: Annotated[int, typer.Option(min=0, help="Also this many made-up solids.")] = 0,
    kind: Annotated[
        list[str] | None, typer.Option(help="Made-up solids of this kind alone; may be repeated.", show_default=False)
    ] = None,
    rig: Annotated[RigKind, typer.Option(help="Cameras as people hold them, or the paper's.")] = RigKind.pocket,
    views: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each object.")] = 12,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Their side, px.")] = 64,
    retexture: Annotated[float, typer.Option(min=0, max=1, help="Share of objects with another texture.")] = 0.5,
    occupancy: Annotated[int, typer.Option(min=0, max=256, help="Cells a side of what is inside; 0 for none.")] = 64,
    inside: Annotated[
        InsideKind, typer.Option(help="By winding numbers, or all that the views do not see: thin shells are filled.")
    ] = InsideKind.winding,
    seed: Annotated[int, typer.Option(min=0, max=2**53, help="What all chance is drawn from.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, max=256, help="Processes; 0 for one a core.")] = 0,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of meshes that may be damaged before the exit code says so.")
    ] = 0.05,
    seconds: Annotated[float, typer.Option(min=1, max=36000, help="Time limit of one object.")] = 120.0,
) -> int:
    """Render meshes from many sides by ray casting: pictures, poses, depth, normals and what is inside.

    What is already rendered is kept: a run that was broken off goes on. Damaged meshes are listed and skipped.
    """
    from .. import machine
    from ..errors import DiskError, MeshError, OutputError, UsageError, of_code
    from ..training import viewsets
    from ..watch import Progress
    from ..workers import run_jobs

    sources = [str(path) for path in gather_meshes(meshes or [])]
    sources += name_solids(procedural, seed, kind or [])
    if not sources:
        raise UsageError("there is nothing to render", where="data render", remedy="name meshes, or add --procedural N")
    if rig is RigKind.paper and inside is InsideKind.carved:
        raise UsageError(
            "the paper's pictures do not hold whole objects, and what they do not show would count as empty",
            where="--inside carved",
            remedy="leave one of the two out",
        )
    how = viewsets.Rig(rig.value, views, size, 2, retexture, occupancy, inside.value, seed)
    make_dataset(out)
    todo = list(viewsets.pending(sources, out, how))
    screen.start(f"data: {len(sources)} objects, {len(sources) - len(todo)} of them done before", 1, 1)
    watch = screen.watcher("")
    bad: list[tuple[str, str]] = []  # whose and why
    results = run_jobs(viewsets.make, todo, count=jobs or machine.cores(), seconds=seconds, memory=16 * 10**9)
    for done, result in enumerate(results, 1):
        watch(Progress("render", done, len(todo), f"{len(bad)} damaged" if bad else ""))
        if result.code in (OutputError.exit_code, DiskError.exit_code):  # no mesh is to blame
            raise of_code(result.code)(result.failure)
        if result.failure:
            source = result.job[0]
            why = result.failure.removeprefix(f"{source}: ")
            bad.append((source, why))
            screen.error(MeshError(why, where=source))
    screen.finish(f"data: {len(sources) - len(bad)} of {len(sources)} objects -> {out}")
    screen.stop()
    facts = {"output": str(out), "objects": len(sources) - len(bad), "damaged": bad}
    if len(bad) > max_bad * len(sources):
        what, remedy = f"{len(bad)} of {len(sources)} objects are damaged", "see the list, or raise --max-bad"
        error = MeshError(what, where=str(out), remedy=remedy)
        screen.error(error)
        if screen.json:
            screen.result(out, facts | {"status": "error", "code": error.exit_code, "what": what, "remedy": remedy})
        return error.exit_code
    screen.result(out, facts | {"status": "ok", "code": 0})
    return 0


def name_solids(count: int, seed: int, kinds: Sequence[str]) -> list[str]:
    """Of any kind, or of these kinds in turn."""
    from ..errors import UsageError
    from ..training.viewsets import SOLID

    if kinds:
        from ..scenes.solids import MAKERS

        for kind in kinds:
            if kind not in MAKERS:
                known = " ".join(MAKERS)
                raise UsageError(f"{kind} is no kind of made-up solid", where="--kind", remedy=f"use {known}")
        if not count:
            raise UsageError("no made-up solids are asked for", where="--kind", remedy="add --procedural N")
    named = [f"{kinds[number % len(kinds)]}:" if kinds else "" for number in range(count)]
    return [f"{SOLID}{kind}{seed}-{number}" for number, kind in enumerate(named)]


def make_dataset(folder: Path) -> None:
    """Refuses, before any work, a place where nothing can be written."""
    from ..errors import OutputError, writing_failed

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(error, str(folder)) from error
    if not os.access(folder, os.W_OK):
        raise OutputError("it cannot be written to", where=str(folder), remedy="choose another place with -o")


@app.command()
@options.verb
def pack(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `data render` made.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The .safetensors file.")],
    views: Annotated[int, typer.Option(min=1, help="Pictures of each object to keep.")] = 8,
    force: options.Force = False,
) -> None:
    """Pack a dataset into one small file that trains anywhere without the meshes."""
    from .. import batch
    from ..errors import MissingInputError, writing_failed
    from ..training import packs, viewsets
    from .cache import as_size

    objects = viewsets.list_objects(dataset)
    if not objects:
        raise MissingInputError("it holds no view sets", where=str(dataset), remedy="run `zero123 data render` first")
    batch.check_target(out)
    if out.exists() and not force:
        raise batch.already_there(out)
    screen.start(f"pack: {len(objects)} objects", 1, 1)
    try:
        size = packs.pack(objects, out, views=views, overwrite=force, watch=screen.watcher(""))
    except OSError as error:
        raise writing_failed(error, str(out)) from error
    screen.finish(f"pack: {len(objects)} objects, {views} views each, {as_size(size)} -> {out}")
    screen.stop()
    screen.result(out, {"output": str(out), "objects": len(objects), "bytes": size, "status": "ok", "code": 0})


def gather_meshes(inputs: list[str]) -> list[Path]:
    """The mesh files that are named, and those below the folders that are."""
    from ..errors import MissingInputError

    found: dict[Path, None] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            found |= {path: None for path in sorted(given.rglob("*")) if path.suffix.lower() in MESH_SUFFIXES}
        elif given.exists():
            found[given] = None
        else:
            raise MissingInputError("there is no such file or folder", where=str(given))
    return list(found)
