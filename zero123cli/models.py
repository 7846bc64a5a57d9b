"""The literal table of known weights, and where they lie on this machine.

Cutters are rembg's local sessions. rembg does not check a file that is already there; we do, against the digest that
it publishes. Its sessions that send pictures to a service are not offered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import machine
from .errors import WeightsError


@dataclass(frozen=True)
class CutterWeights:
    """One set of weights that separates an object from its background."""

    name: str
    md5: str  # of the onnx file, as rembg 2.0.86 pins it; "" where it pins none
    licence: str
    note: str
    must_accept: bool = False  # its licence has to be accepted by name

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"


CUTTERS = {
    weights.name: weights
    for weights in (
        CutterWeights("u2net", "60024c5c889badc19c04ad937298a77b", "Apache-2.0", "general, 176 MB"),
        CutterWeights("u2netp", "8e83ca70e441ab06c318d82300c84806", "Apache-2.0", "general, small, 4.6 MB"),
        CutterWeights("silueta", "55e59e0d8062d2f5d013f4725ee84782", "Apache-2.0", "u2net made smaller"),
        CutterWeights("u2net_human_seg", "c09ddc2e0104f800e3e1bb4652583d1f", "Apache-2.0", "people"),
        CutterWeights("isnet-general-use", "fc16ebd8b0c10d971d3513d564d01e29", "Apache-2.0", "general, 1024 px"),
        CutterWeights("isnet-anime", "6f184e756bb3bd901c8849220a83e38e", "Apache-2.0", "drawn characters"),
        CutterWeights("birefnet-general", "7a35a0141cbbc80de11d9c9a28f52697", "MIT", "general, best edges, slow"),
        CutterWeights("birefnet-general-lite", "4fab47adc4ff364be1713e97b7e66334", "MIT", "general, lighter"),
        CutterWeights("birefnet-portrait", "c3a64a6abf20250d090cd055f12a3b67", "MIT", "people"),
        CutterWeights("birefnet-dis", "2d4d44102b446f33a4ebb2e56c051f2b", "MIT", "thin structures"),
        CutterWeights("birefnet-hrsod", "c017ade5de8a50ff0fd74d790d268dda", "MIT", "large pictures"),
        CutterWeights("birefnet-cod", "f6d0d21ca89d287f17e7afe9f5fd3b45", "MIT", "hidden objects"),
        CutterWeights("birefnet-massive", "33e726a2136a3d59eb0fdf613e31e3e9", "MIT", "general, more data"),
        CutterWeights("bria-rmbg", "", "Bria RMBG-2.0, non-commercial", "general, 1024 px", must_accept=True),
    )
}

# What `--cutter auto` takes, the first that is installed.
PREFERRED_CUTTERS = ("u2net", "birefnet-general", "isnet-general-use", "birefnet-general-lite", "silueta", "u2netp")


def find_cutter(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The weights file of a cutter, where rembg itself would find it."""
    for folder in machine.cutter_folders(name, environ):
        path = folder / CUTTERS[name].file
        if path.is_file():
            return path
    return None


def check_cutter(name: str, path: Path, md5: str) -> None:
    """Refuses weights whose digest is not the published one's."""
    expected = CUTTERS[name].md5
    if expected and md5 != expected:
        raise WeightsError(
            f"these are not the published {name} weights (their digest differs)",
            where=str(path),
            remedy="delete the file and fetch it again",
        )


def fetch_command(name: str) -> str:
    """The command that puts a cutter's weights where they are looked for."""
    return f"{sys.executable} -c \"import rembg; rembg.new_session('{name}')\""
