"""Numba's compiler, with its results kept wherever there is a place for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from . import machine
from .errors import UnavailableError


def compiled(**how: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that is not stopped by folders that cannot be written to: then each process compiles anew."""

    def compile_it(work: Callable[..., Any]) -> Any:
        if has_place():
            try:
                return numba.njit(cache=True, **how)(work)
            except RuntimeError:  # neither beside the program nor in the user's own cache
                pass
        return numba.njit(**how)(work)

    return compile_it


def has_place() -> bool:
    """Without a home numba would make a folder named ~ in the current one."""
    try:
        machine.own_folder("cache")
    except UnavailableError:
        return os.access(Path(__file__).parent, os.W_OK)
    return True
