"""`zero123 train`: one command from a dataset to weights; what was broken off goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, signals
from .screen import screen

if TYPE_CHECKING:
    from ..settings import TrainSettings
    from ..training.cutters import CutterTask
    from ..training.denoisers import DenoiserTask
    from ..training.train import Task
    from ..training.volumes import VolumeTask


@options.verb
def train(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Such as train-pocket-volume.")],
    data: Annotated[Path, typer.Option("--data", metavar="DATASET", help="A dataset's folder, or a packed file.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The run's folder.")],
    base: Annotated[Path | None, typer.Option(metavar="WEIGHTS", help="What the task builds on, if anything.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="WEIGHTS", help="Exported weights to start from; a cutter's may be its ONNX file."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the weights may be used for and whom to name.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long, to go on another time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser in all.", show_default="100000")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.", show_default="64")] = None,
    seed: Annotated[int | None, typer.Option(help="What all chance is drawn from.", show_default="0")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    set_: options.Set = None,
) -> None:
    """Train a part of the embedded model, or the paper's. Its folder holds checkpoints, log, figures and pictures.

    The same command again goes on from the newest checkpoint, to the same bits on a CPU as a run without a break.
    """
    from .. import machine
    from ..errors import MissingInputError
    from ..settings import blame
    from .session import read_settings

    peers = machine.peers()
    if peers.rank:
        screen.hush()
    texts = {"train.base": base and str(base), "train.init": init and str(init), "train.licence": licence}
    knobs = {"seed": seed, **texts, "train.minutes": minutes, "train.steps": steps, "train.batch": batch}
    loaded = read_settings(preset, set_, knobs)
    settings = loaded.settings
    if settings.train.base and settings.train.task not in BASED:
        remedy = "leave it out; --init names weights to start from"
        raise blame(loaded.origins["train.base"])("this task builds on nothing", where="train.base", remedy=remedy)
    if not data.exists():
        raise MissingInputError("there is no such dataset", where=str(data), remedy="run `zero123 data render` first")
    backend = machine.pick(device, dtype.value)
    if peers.count > 1 and backend.device.startswith("cuda"):
        backend = machine.pick(f"cuda:{peers.local}", dtype.value)
    from ..training.train import export, train

    task = TASKS[settings.train.task](data, settings.train)
    screen.note(f"train: {len(task.own)} objects, {len(task.held)} held back, on {backend.name}, {backend.dtype}")
    screen.start(f"train: {preset} -> {out}", 1, 1)
    with signals.put_off() as stopped:
        checkpoint = train(task, settings.train, out, backend, settings.seed, screen.watcher(""), stopped, peers)
    if peers.rank:
        return
    facts = task.facts() | ({"licence": settings.train.licence} if settings.train.licence else {})
    weights = export(checkpoint, out / "weights.safetensors", facts)
    if settings.train.task == "cutter":
        weights = finish_cutter(task, weights, out, settings.train.licence)
    screen.finish(f"train: {checkpoint.name} -> {weights}")
    screen.stop()
    screen.result(weights, {"output": str(weights), "checkpoint": str(checkpoint), "status": "ok", "code": 0})


def volume_task(data: Path, settings: TrainSettings) -> VolumeTask:
    from ..diffusion.volume import VolumeDescription
    from ..training.volumes import VolumeTask

    return VolumeTask(data, VolumeDescription())


def denoiser_task(data: Path, settings: TrainSettings) -> DenoiserTask:
    from ..training.denoisers import RECIPES, DenoiserTask

    return DenoiserTask(data, RECIPES[settings.task], settings)


def cutter_task(data: Path, settings: TrainSettings) -> CutterTask:
    from ..training.cutters import CutterTask
    from ..training.onnxfiles import load_exporter
    from ..training.saliency import SaliencyDescription

    load_exporter()  # what is missing for the last step is said before the first
    return CutterTask(data, SaliencyDescription())


def finish_cutter(task: Any, weights: Path, out: Path, licence: str) -> Path:
    from ..training.cutters import export_onnx

    return export_onnx(weights, out / "pocket-cutter.onnx", task.card(licence))


BASED = ("pocket-views", "zero123")  # tasks that build on other weights
TASKS: dict[str, Callable[[Path, TrainSettings], Task]] = {
    "volume": volume_task,
    "pocket-views": denoiser_task,
    "pocket-alone": denoiser_task,
    "zero123": denoiser_task,
    "cutter": cutter_task,
}
