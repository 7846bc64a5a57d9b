"""`zero123 presets`: which there are, what each sets, and where every value comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .screen import screen

app = typer.Typer(help="List presets; show what a preset sets and where each value comes from.")


@app.command("list")
@options.verb
def list_() -> None:
    """List the presets that can be named with --preset."""
    from .. import machine
    from ..settings import list_presets

    for preset in list_presets(machine.preset_folders()):
        facts = {"name": preset.name, "summary": preset.summary, "path": str(preset.path)}
        screen.result(f"{preset.name:20} {preset.summary}", facts)


@app.command()
@options.verb
def show(
    preset: Annotated[str | None, typer.Argument(help="A preset by name, or a .toml file.", show_default="cpu")] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    set_: options.Set = None,
) -> None:
    """Show every setting as a run with this preset would use it, environment and configuration files included."""
    from ..settings import describe, flatten
    from .session import read_settings

    loaded = read_settings(preset, set_, {})
    values = flatten(loaded.settings)
    if screen.json:
        rows = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
        screen.result("", {"preset": loaded.preset, "settings": rows})
        return
    section = ""
    for knob in describe():
        table, _, name = knob.key.rpartition(".")
        if table != section:
            screen.result(f"[{table}]")
            section = table
        told = (
            loaded.origins[knob.key] if origin else f"{knob.meaning}" + (f" ({knob.allowed})" if knob.allowed else "")
        )
        value = values[knob.key]
        said = f"{name} = {as_toml(value)}" if value is not None else f"# {name} ="  # TOML knows no nothing
        screen.result(f"{said:34} # {told}")


def as_toml(value: object) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value)
