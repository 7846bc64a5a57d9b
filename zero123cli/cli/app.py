"""The verbs and their order in `zero123 --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import cache, cutout, data, doctor, eval, export, models, presets, reconstruct, train, views

app = typer.Typer(
    name="zero123",
    help="One photo to a clean, textured 3D mesh.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zero123 {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


app.command("reconstruct")(reconstruct.reconstruct)
app.command("export")(export.export)
app.command("cutout")(cutout.cutout)
app.command("views")(views.views)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.add_typer(eval.app, name="eval")
app.add_typer(presets.app, name="presets")
app.add_typer(cache.app, name="cache")
app.command("doctor")(doctor.doctor)
