"""What a verb begins with: the screen set up, the settings read, the cache opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import machine
from ..settings import Loaded, load

if TYPE_CHECKING:
    from ..cache import Cache


def read_settings(preset: str | None, set_flags: Sequence[str] | None, flags: Mapping[str, object]) -> Loaded:
    """The settings of this call, from every place that may state them."""
    return load(
        preset=preset,
        flags=flags,
        set_flags=set_flags or (),
        environ=os.environ,
        project_file=machine.project_file(),
        user_file=machine.user_file(),
        preset_folders=machine.preset_folders(),
    )


def cache_root(folder: Path | None) -> Path:
    return (folder or machine.cache_folder()).absolute()


def open_cache(
    folder: Path | None, *, no_cache: bool, refresh: bool = False, shared: bool, lock_timeout: float = 600.0
) -> Cache:
    from .. import cache

    if no_cache:
        return cache.Cache(None)
    return cache.open_cache(cache_root(folder), shared=shared, lock_timeout=lock_timeout, refresh=refresh)
