"""The house keeps its shape: who may import whom, what loads at start-up, where printing happens."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zero123cli

PACKAGE = Path(zero123cli.__file__).parent

# From the ground up: a module imports only from rows above its own.
ROWS = (
    {"errors", "watch", "cameras", "schedules"},
    {"settings", "durable", "machine", "report", "framing", "workers", "diffusion.unpickle", "training.onnxfiles"}
    | {"scenes.surface", "meshing.shot", "meshing.mesh"},
    {"compiled", "meshing.cleanup"},
    {"radiance.kernels_cpu"},
    {"models", "artifacts", "diffusion.tensorfiles", "diffusion.ldm", "diffusion.volume"}
    | {"meshing.isosurface", "meshing.texture", "meshing.write"}
    | {"radiance.losses", "radiance.kernels_cuda", "radiance.rays"},
    {"scenes.parts", "diffusion.rays", "radiance.hashgrid", "radiance.occupancy", "meshing.silhouette", "meshing.thin"},
    {"scenes.gltf", "scenes.obj", "scenes.ply", "scenes.dae", "diffusion.viewmodel"},
    {"fetching", "cache", "photos", "cutters", "diffusion.lonevolume", "diffusion.sampling", "diffusion.guidance"}
    | {"radiance.field"},
    {"diffusion.checkpoints"},
    {"scenes.meshes", "scenes.raycast", "radiance.render"},
    {"scenes.forms", "scenes.looks", "scenes.filling"},
    {"scenes.creatures", "scenes.wares"},
    {
        "stages.cutout",
        "stages.views",
        "stages.unfinished",
        "scenes.solids",
        "scenes.carving",
        "meshing.gate",
        "radiance.fit",
    },
    {"stages.lift"},
    {"stages.mesh"},
    {"runs", "pipeline", "training.viewsets"},
    {"batch", "checkup", "training.packs", "training.targets"},
    {"training.train", "training.albums", "training.backdrops", "training.saliency", "evaluation.metrics"},
    {"training.volumes", "training.composites", "evaluation.rig", "evaluation.published"},
    {"training.cutters", "training.denoisers", "evaluation.oracle"},
    {"evaluation.shapes"},
    {"evaluation.views", "evaluation.sets"},
    {"evaluation.evaluate"},
    {"evaluation.page"},
    {"cli"},
)
APART = ("diffusion", "radiance", "meshing")  # meet only in stages
LIGHT = {"errors", "watch", "settings", "machine", "batch", "models", "durable"}  # no torch, numpy or Pillow on import


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name not in ("", "stages", "scenes", "training", "evaluation", "__main__", *APART):
            found[name] = path
    return found


def row_of(name: str) -> int:
    top = "cli" if name.split(".")[0] == "cli" else name
    return next(k for k, row in enumerate(ROWS) if top in row)


def imported(name: str, path: Path) -> Iterator[str]:
    """The package's own modules that a file imports, deferred imports too."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        assert "zero123cli" not in (getattr(node, "module", None) or ""), f"{name}: imports inside are relative"
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                target = ".".join([*base, alias.name])
                yield target if target in known else ".".join(base)


def test_every_module_has_a_row() -> None:
    for name in modules():
        row_of(name)


@pytest.mark.parametrize("name", modules())
def test_imports_point_downwards(name: str) -> None:
    for target in imported(name, modules()[name]):
        if target and target in modules() and target.split(".")[0] != "cli":
            assert row_of(target) < row_of(name), f"{name} imports {target}"
            assert target.split(".")[0] not in APART or name.split(".")[0] not in {*APART} - {target.split(".")[0]}
        elif target.split(".")[0] == "cli":
            assert name.split(".")[0] == "cli", f"{name} imports {target}"


@pytest.mark.parametrize("name", modules())
def test_only_the_command_line_prints(name: str) -> None:
    if name.split(".")[0] == "cli":
        return
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))


@pytest.mark.parametrize("name", modules())
def test_only_machine_and_the_command_line_ask_the_environment(name: str) -> None:
    if name == "machine" or name.split(".")[0] == "cli":
        return
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        asks = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "expanduser")
        assert not asks or name == "models", name  # models takes the environment as an argument's default


def test_modules_open_with_what_they_are() -> None:
    for name, path in modules().items():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, name


def test_light_modules_load_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(LIGHT)!r}: importlib.import_module('zero123cli.' + name)\n"
        "import zero123cli.cli.app\n"
        "heavy = {'torch', 'numpy', 'PIL', 'scipy', 'onnxruntime', 'rembg', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_leftovers() -> None:
    for name, path in modules().items():
        for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
            assert word not in path.read_text(), f"{word} in {name}"
