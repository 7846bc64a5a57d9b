"""`zero123 train`: one command from a dataset to weights; what was broken off goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .screen import screen


def train(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Such as train-pocket-volume.")],
    data: Annotated[Path, typer.Option("--data", metavar="DATASET", help="A dataset's folder, or a packed file.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The run's folder.")],
    minutes: Annotated[float | None, typer.Option(help="Stop after so long, to go on another time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser in all.", show_default="100000")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.", show_default="64")] = None,
    seed: Annotated[int | None, typer.Option(help="What all chance is drawn from.", show_default="0")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    progress: options.Progress = options.ProgressKind.auto,
    color: options.Colour = options.ColourKind.auto,
) -> None:
    """Train a part of the embedded model. The run's folder holds checkpoints, the log, figures and pictures.

    The same command again goes on from the newest checkpoint, to the same bits on a CPU as a run without a break.
    """
    from .. import machine
    from ..errors import MissingInputError
    from .session import read_settings

    screen.configure(json=json, quiet=quiet, verbose=verbose, progress=progress.value, color=color.value)
    knobs = {"seed": seed, "train.minutes": minutes, "train.steps": steps, "train.batch": batch}
    settings = read_settings(preset, set_, knobs).settings
    if not data.exists():
        raise MissingInputError("there is no such dataset", where=str(data), remedy="run `zero123 data render` first")
    backend = machine.pick(device, dtype.value)
    from ..diffusion.volume import VolumeDescription
    from ..training import volumes
    from ..training.train import export, train

    task = volumes.VolumeTask(data, VolumeDescription())
    screen.note(f"train: {len(task.own)} objects, {len(task.held)} held back, on {backend.name}, {backend.dtype}")
    screen.start(f"train: {preset} -> {out}", 1, 1)
    checkpoint = train(task, settings.train, out, backend, settings.seed, screen.watcher(""))
    weights = export(checkpoint, out / "weights.safetensors", task.facts())
    screen.finish(f"train: {checkpoint.name} -> {weights}")
    screen.stop()
    screen.result(weights, {"output": str(weights), "checkpoint": str(checkpoint), "status": "ok", "code": 0})
