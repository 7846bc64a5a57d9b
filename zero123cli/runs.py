"""What a finished run leaves behind: its record, by which its stages are found again without the photo.

A run's id is the key of its mesh, and a glb carries it. Records are sealed like everything in the cache:

    root/runs/<id>.json
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import durable
from .cache import DAMAGE, Cache, cannot_keep, holds, listing, open_seal, private_folder, read_regular, seal
from .errors import MeshError, MissingInputError, UsageError, reason_of
from .watch import Watch

LAST = "last"
RECONSTRUCT = "reconstruct"  # the verb whose runs count as the last
SHORTEST = 6  # letters of an id that may stand for the whole
JSON_LIMIT = 64 * 10**6  # bytes of a glb's description


@dataclass(frozen=True)
class Run:
    id: str
    used: float  # seconds since 1970
    record: Mapping[str, Any]  # the object that `--json` prints


def keep_run(cache: Cache, record: Mapping[str, Any], watch: Watch) -> None:
    """Writes the record of a run whose mesh is done; without a cache there is nothing to come back to."""
    if cache.root is None:
        return
    try:
        path = private_folder(cache.root, "runs") / f"{record['key']}.json"
        if record["verb"] == RECONSTRUCT or not path.is_file():  # an export adds a run, it never replaces one
            durable.write_file(path, seal(record), overwrite=True)
    except OSError as error:
        watch(cannot_keep(cache.root, error))


def list_runs(cache: Cache) -> list[Run]:
    """All runs on record, the last one last; a damaged record is as good as none."""
    found = []
    for path in listing(cache.root / "runs") if cache.root else []:
        with contextlib.suppress(*DAMAGE):
            record = open_seal(read_regular(path))
            if path.suffix == ".json" and record["key"] == path.stem and is_whole(record):
                found.append(Run(path.stem, path.lstat().st_mtime, record))
    return sorted(found, key=lambda run: run.used)


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether all is there that an export and a list need; a KeyError or TypeError says no as well."""
    texts = ("verb", "input", "preset", "model", "licence", "device", "dtype")
    photos = [(one["input"], one["sha256"], float(one["azimuth"])) for one in record["photos"]]
    keys = all(isinstance(key, str) for key in stage_keys(record))
    return (
        keys
        and bool(photos)
        and all(isinstance(record[name], str) for name in texts)
        and (isinstance(record["settings"], dict) and isinstance(record["mesh"]["faces"], int))
    )


def stage_keys(record: Mapping[str, Any]) -> list[str]:
    """Of the entries that an export reads."""
    seen = [one[stage] for one in record["photos"] for stage in ("cutout", "views")]
    return [*seen, record["stages"]["lift"]["key"]]


def find_run(cache: Cache, name: str) -> Run:
    """The run that an id, the beginning of one, "last" or a glb of ours names."""
    runs = list_runs(cache)
    if name == LAST:
        if lifted := [run for run in runs if run.record.get("verb") == RECONSTRUCT]:
            return lifted[-1]
        raise MissingInputError("no run is on record", where=name, remedy="run zero123 reconstruct first")
    known = name.lower() if re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST},64}}", name) else ""
    if os.path.lexists(name):
        known = run_in(Path(name))
    elif not known:
        remedy = f"give {LAST}, a glb written by zero123, or one of `zero123 cache runs`"
        raise MissingInputError("there is no such file or run", where=name, remedy=remedy)
    alike = [run for run in runs if run.id.startswith(known)]
    if len(alike) > 1:
        raise UsageError(f"{len(alike)} runs begin like this", where=name, remedy="give more letters of the id")
    if not alike:
        remedy = "run zero123 reconstruct on its photo again, or name the cache of that run with --cache-dir"
        raise MissingInputError(f"the run {known[:16]} is not on record here", where=name, remedy=remedy)
    return alike[0]


def drop_lost(cache: Cache) -> None:
    """Removes the records of runs that have lost a stage: nothing can be exported from them any more."""
    for run in list_runs(cache):
        if cache.root and not all(holds(cache, key) for key in stage_keys(run.record)):
            (cache.root / "runs" / f"{run.id}.json").unlink(missing_ok=True)


def run_in(path: Path) -> str:
    """The id that a glb of ours carries; the file may be anybody's."""
    remedy = "give a glb written by zero123, or a run's id"
    try:
        with open(durable.open_regular(path, follow=True), "rb") as file:
            magic, _, _, length, kind = struct.unpack("<4sIII4s", file.read(20))
            if magic != b"glTF" or kind != b"JSON" or length > JSON_LIMIT:
                raise ValueError
            found = json.loads(file.read(length))["asset"]["extras"]["run"]
    except OSError as error:
        reason = reason_of(error)
        raise MissingInputError(reason, where=str(path), remedy=remedy) from error
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise MeshError("it names no run of zero123", where=str(path), remedy=remedy) from error
    if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{64}", found):
        raise MeshError("it names no run of zero123", where=str(path), remedy=remedy)
    return found
