"""Keeps what a stage made: one function, `step`.

An entry is a folder named by the digest of everything that decides its content. It is published by one rename and
carries a sealed manifest with the digest of each file; a hit is a hit only after every digest agrees. Damage of any
kind is a miss with a note: the entry is put aside and made again. Deleting folders is invalidation, changing what a
stage means is raising its number. Locks only save double work; correctness never rests on them.

    root/entries/ab/abcd.../   manifest.json arrays.safetensors facts.json
    root/drafts/ locks/ quarantine/ digests/ runs/ logs/
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import durable
from .artifacts import ARRAYS, FACTS, pack, to_json, unpack
from .errors import BusyError, MissingInputError, OutputError, RefusedError, reason_of
from .machine import peak_memory
from .watch import Caution, Progress, Watch

LAYOUT = 1  # of entries on disk: another number never meets this one's entries
MANIFEST = "manifest.json"
DRAFT_AGE = 24 * 3600.0  # s; older drafts belong to nobody
PARTIAL_AGE = 7 * DRAFT_AGE  # runs that were broken off earlier are not gone on with
TAG = "CACHEDIR.TAG"
CACHEDIR_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# What zero123 made; safe to delete.\n"

DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)  # what reading a damaged entry can raise

A = TypeVar("A")


@dataclass(frozen=True)
class Stage(Generic[A]):
    """What the cache must know of a stage. Raise `version` when the same inputs come to mean another result."""

    name: str
    version: int
    makes: type[A]


@dataclass(frozen=True)
class Cache:
    """A cache folder, or none at all (`root` None: everything is made anew, nothing is kept)."""

    root: Path | None
    lock_timeout: float = 600.0  # s
    refresh: bool = False  # make everything anew and replace what was kept


@dataclass(frozen=True)
class Kept(Generic[A]):
    """What `step` hands back."""

    artifact: A
    key: str
    hit: bool
    seconds: float
    cautions: tuple[Caution, ...]
    peak: int = 0  # bytes that this process held at most until now


def step(
    cache: Cache,
    stage: Stage[A],
    *,
    inputs: Sequence[str],  # keys of what goes in
    settings: Any,  # the stage's own frozen dataclass
    model: str = "",  # digest of the weights
    device: str = "cpu",  # device class and dtype, when they matter
    partial: str = "",  # key of the folder of what is unfinished, where it is not the entry's own
    make: Callable[[Watch], A],
    watch: Watch,
) -> Kept[A]:
    """The artifact of `stage` for these inputs: read if kept, else made and kept."""
    started = time.monotonic()
    key = entry_key(stage, inputs, settings, model, device)
    if cache.root is None:
        artifact, cautions = run(make, watch)
        return Kept(artifact, key, False, time.monotonic() - started, cautions, peak_memory())
    if not cache.refresh and (found := read_beside_others(cache.root, stage, key)):
        return hit(found, key, started, watch)
    with lock(cache, key, stage.name, watch):
        # Whoever held the lock before us may have made it.
        if not cache.refresh and (found := read_alone(cache.root, stage, key, watch)):
            return hit(found, key, started, watch)
        artifact, cautions = run(make, watch)
        if keep(cache, stage, key, artifact, cautions, watch):
            with contextlib.suppress(OSError):  # it may stay: nothing reads it once the entry is there
                discard(cache.root / "partial" / (partial or key))
    return Kept(artifact, key, False, time.monotonic() - started, cautions, peak_memory())


def recall(cache: Cache, stage: Stage[A], key: str, watch: Watch) -> Kept[A]:
    """What is kept under a key, whatever it was made of."""
    started = time.monotonic()
    is_key = re.fullmatch(r"[0-9a-f]{64}", key)  # nothing else may become a path
    found = read_beside_others(cache.root, stage, key) if cache.root is not None and is_key else None
    if found is None:
        remedy = "run zero123 reconstruct on the photo again"
        raise MissingInputError(
            f"the cache no longer holds the {stage.name} of this run", where=key[:16], remedy=remedy
        )
    return hit(found, key, started, watch)


def partial_folder(cache: Cache, key: str) -> Path | None:
    """Where a long stage keeps what is unfinished of this key while it holds its lock; gone once it is finished."""
    try:
        return private_folder(cache.root, "partial", key) if cache.root is not None else None
    except OSError:  # a full disk, a read-only place: it works without
        return None


def entry_key(stage: Stage[A], inputs: Sequence[str], settings: Any, model: str = "", device: str = "cpu") -> str:
    """Digest of everything that decides the content; never a path or a time."""
    parts = {
        "layout": LAYOUT,
        "stage": stage.name,
        "version": stage.version,
        "inputs": list(inputs),
        "settings": asdict(settings),
        "model": model,
        "device": device,
    }
    return digest(to_json(parts))


def holds(cache: Cache, key: str) -> bool:
    """Whether an entry is there; whether it is whole shows when it is read."""
    return cache.root is not None and not cache.refresh and (entry_folder(cache.root, key) / MANIFEST).is_file()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run(make: Callable[[Watch], A], watch: Watch) -> tuple[A, tuple[Caution, ...]]:
    """Runs a stage and remembers its warnings, so that a later hit can repeat them."""
    cautions: list[Caution] = []

    def listen(message: Progress | Caution) -> None:
        if isinstance(message, Caution):
            cautions.append(message)
        watch(message)

    return make(listen), tuple(cautions)


def hit(found: tuple[A, tuple[Caution, ...]], key: str, started: float, watch: Watch) -> Kept[A]:
    artifact, cautions = found
    for caution in cautions:
        watch(caution)
    return Kept(artifact, key, True, time.monotonic() - started, cautions, peak_memory())


# Entries --------------------------------------------------------------------------------------------------------------


def entry_folder(root: Path, key: str) -> Path:
    return root / "entries" / key[:2] / key


def read(root: Path, stage: Stage[A], key: str) -> tuple[A, tuple[Caution, ...]] | None:
    """The kept artifact and its warnings; None if none of ours is kept; one of DAMAGE if it is damaged."""
    folder = entry_folder(root, key)
    if not os.path.lexists(folder):
        return None
    manifest, files = read_entry(folder, key)
    if (manifest["stage"], manifest["version"]) != (stage.name, stage.version):
        return None
    artifact = unpack(stage.makes, files)
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)  # `prune` drops what was not used for longest
    return artifact, tuple(Caution(**caution) for caution in manifest["cautions"])


def read_beside_others(root: Path, stage: Stage[A], key: str) -> tuple[A, tuple[Caution, ...]] | None:
    """Without the key's lock: what looks damaged may be an entry that is just being replaced, and is none for now."""
    try:
        return read(root, stage, key)
    except DAMAGE:
        return None


def read_alone(root: Path, stage: Stage[A], key: str, watch: Watch) -> tuple[A, tuple[Caution, ...]] | None:
    """Under the key's lock: what is damaged is told and put aside, for it is about to be made anew."""
    try:
        return read(root, stage, key)
    except DAMAGE as error:
        reason = "a file is missing" if isinstance(error, FileNotFoundError) else str(error)
    folder = entry_folder(root, key)
    if os.path.lexists(folder):  # else another process took it away meanwhile: a plain miss
        watch(Caution("cache-damaged", f"a damaged cache entry ({key[:12]}: {reason}) is made anew"))
        quarantine(root, folder)
    return None


def read_entry(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and files of an entry, every byte checked; an OSError or ValueError says what is wrong."""
    raw = read_regular(folder / MANIFEST)
    manifest = open_seal(raw)
    if manifest.get("key") != key:
        raise ValueError("another entry's manifest")
    listed = manifest["files"]
    if set(os.listdir(folder)) != {MANIFEST, *listed}:
        raise ValueError("files do not agree with the manifest")
    files = {name: read_regular(folder / name) for name in listed}
    for name, data in files.items():
        if digest(data) != listed[name]:
            raise ValueError(f"{name} does not agree with its digest")
    return manifest, files


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; a link, a pipe or a folder in its place is damage."""
    with open(durable.open_regular(path, follow=False), "rb") as file:
        return file.read()


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON that carries its own digest, so that a flipped bit shows wherever it lies."""
    return to_json({"content": content, "seal": digest(to_json(content))})


def open_seal(raw: bytes) -> dict[str, Any]:
    """What `seal` closed; a ValueError if a single byte differs."""
    outer = json.loads(raw)
    if not isinstance(outer, dict) or not isinstance(outer.get("content"), dict) or seal(outer["content"]) != raw:
        raise ValueError("the seal is broken")
    content: dict[str, Any] = outer["content"]
    return content


def keep(cache: Cache, stage: Stage[A], key: str, artifact: A, cautions: Sequence[Caution], watch: Watch) -> bool:
    """Publishes an entry; whether it is there. A cache that cannot be written is a warning: the work goes on."""
    assert cache.root is not None
    files = pack(artifact)
    manifest = {
        "key": key,
        "stage": stage.name,
        "version": stage.version,
        "files": {name: digest(data) for name, data in files.items()},
        "cautions": [asdict(caution) for caution in cautions],
    }
    folder = entry_folder(cache.root, key)
    try:
        private_folder(cache.root, "entries", key[:2])
        draft = private_folder(cache.root, "drafts") / f"{key[:16]}.{secrets.token_hex(6)}"
        if cache.refresh:
            remove(cache.root, folder)
        # A folder that is in the way is whole: `read` put damaged ones aside under the lock.
        durable.publish_folder({**files, MANIFEST: seal(manifest)}, draft, folder)
    except OSError as error:
        watch(cannot_keep(cache.root, error))
        return False
    with contextlib.suppress(OSError):
        drop_old_drafts(cache.root)
    return True


def cannot_keep(root: Path, error: OSError) -> Caution:
    reason = reason_of(error)
    return Caution(
        "cache-not-written",
        f"the cache {root} cannot be written ({reason}): results are not kept",
        "free some space there, or choose another folder with --cache-dir",
        about_run=True,
    )


def quarantine(root: Path, folder: Path) -> None:
    """Moves a damaged entry out of the way; in a read-only cache it stays and is a miss each time."""
    with contextlib.suppress(OSError):
        place = private_folder(root, "quarantine")
        os.rename(folder, place / f"{folder.name}.{secrets.token_hex(6)}")


def remove(root: Path, folder: Path) -> None:
    """Takes an entry away: out of sight in one rename, then deleted, so that no reader meets half of it."""
    with contextlib.suppress(FileNotFoundError):
        gone = private_folder(root, "drafts") / f"gone.{secrets.token_hex(6)}"
        os.rename(folder, gone)
        discard(gone)


def discard(path: Path) -> None:
    """Deletes whatever stands at `path`, links unfollowed; another process may be at it too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def private_folder(root: Path, *names: str) -> Path:
    """A folder in the cache, made if need be, each step of it for its owner alone."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim(root)
    for name in names:
        root = root / name
        root.mkdir(mode=0o700, exist_ok=True)
    return root


def claim(root: Path) -> None:
    """Marks a folder in which there is nothing yet as a cache: what is not marked is never cleared."""
    tag = root / TAG
    if not tag.exists() and all(place.name.startswith(durable.DRAFT) for place in root.iterdir()):
        durable.write_file(tag, CACHEDIR_TAG, overwrite=True)


def drop_old_drafts(root: Path, age: float = DRAFT_AGE) -> int:
    """Removes what killed processes left behind."""
    return drop_old(listing(root / "drafts"), age)


def drop_old(places: Iterable[Path], age: float) -> int:
    """Removes folders in which no file has been put for so long; how many."""
    dropped = 0
    for place in places:
        with contextlib.suppress(OSError):
            if time.time() - place.lstat().st_mtime > age:
                discard(place)
                dropped += 1
    return dropped


def listing(folder: Path) -> list[Path]:
    """What lies in a folder, in order; nothing if it is not there."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


# The folder -----------------------------------------------------------------------------------------------------------


def open_cache(root: Path, *, shared: bool = False, lock_timeout: float = 600.0, refresh: bool = False) -> Cache:
    """A cache at `root`, made if need be. A folder that others can write to is refused unless `shared`."""
    try:
        if not root.exists():
            root.mkdir(mode=0o700, parents=True)
        elif not root.is_dir():
            raise OutputError("the cache is not a folder", where=str(root), remedy="choose another with --cache-dir")
    except OSError:
        # Not to be made (a full disk, a read-only place): every step warns that it cannot keep, and works.
        return Cache(root, lock_timeout, refresh)
    if os.name != "nt" and not shared:
        refuse_foreign(root)
    with contextlib.suppress(OSError):
        claim(root)  # also one that was made for us beforehand
    return Cache(root, lock_timeout, refresh)


def refuse_no_cache(root: Path) -> None:
    """Before anything is deleted: a folder that was never a cache may hold what others keep under the same names."""
    if root.is_dir() and any(root.iterdir()) and not (root / TAG).is_file():
        remedy = "check --cache-dir, or delete what you mean by hand"
        raise RefusedError("this folder was not made as a cache", where=str(root), remedy=remedy)


def refuse_foreign(root: Path) -> None:
    """Whoever can write to the cache can decide what we make: only its owner may."""
    names = ("entries", "locks", "drafts", "digests", "partial", "runs")
    for place in (root, *(root / name for name in names)):
        try:
            state = place.stat()
        except OSError:
            continue
        if state.st_uid != os.geteuid():
            reason, mend = "belongs to another user", "choose another folder with --cache-dir"
        elif state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason, mend = "can be written by others", f"run: chmod -R go-w {shlex.quote(str(root))}"
        else:
            continue
        raise RefusedError(f"the cache {reason}", where=str(place), remedy=f"{mend}, or trust it with --shared-cache")


@contextlib.contextmanager
def lock(cache: Cache, key: str, stage: str, watch: Watch) -> Iterator[None]:
    """Holds the key's lock while an entry is made. Where locks cannot be had, works without: at worst twice."""
    import filelock

    assert cache.root is not None
    path = cache.root / "locks" / f"{key}.lock"
    holder = filelock.FileLock(path, mode=0o600)
    deadline = time.monotonic() + cache.lock_timeout
    while True:
        try:
            private_folder(cache.root, "locks")
            holder.acquire(timeout=max(0.0, min(10.0, deadline - time.monotonic())), poll_interval=0.05)
            path.write_text(str(os.getpid()))
        except filelock.Timeout:
            owner = owner_of(path)
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{owner} has been making this for over {cache.lock_timeout:g} s",
                    where=str(path),
                    remedy="wait for it or end it, then run again; --lock-timeout sets how long to wait",
                ) from None
            watch(Progress(stage, 0, 1, f"waiting for {owner}, which is making the same"))
        except (OSError, RuntimeError):
            break  # a read-only or full cache, a file system without locks
        else:
            break
    try:
        yield
    finally:
        holder.release()


def owner_of(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


# Digests of files too large to read each time ------------------------------------------------------------------------


@dataclass(frozen=True)
class FileDigest:
    sha256: str
    md5: str  # what rembg's weights are published with


def file_digest(cache: Cache, path: Path) -> FileDigest:
    """Digests of a file, remembered by its size, time and inode."""
    state = path.stat()
    identity = [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino]
    memo = cache.root / "digests" / digest(to_json(identity)) if cache.root else None
    if memo:
        with contextlib.suppress(*DAMAGE):
            return FileDigest(**open_seal(read_regular(memo)))
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(durable.open_regular(path), "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
    found = FileDigest(sha256.hexdigest(), md5.hexdigest())
    if cache.root and memo:
        with contextlib.suppress(OSError):  # only a memo: without it the file is read again
            private_folder(cache.root, "digests")
            durable.write_file(memo, seal(asdict(found)), overwrite=True)
    return found


# Keeping house --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    key: str
    stage: str  # "" when its manifest cannot be read
    size: int  # bytes
    used: float  # when it was last used, seconds since 1970
    damage: str = ""  # what is wrong with it
    folder: Path = field(default=Path(), repr=False)


def entries(root: Path, *, check: bool = False) -> list[Entry]:
    """All entries; with `check` every byte is read and held against the manifest."""
    found = []
    for shelf in listing(root / "entries"):
        for folder in listing(shelf):
            stage, used, size, damage = "", 0.0, 0, ""
            try:
                used = (folder / MANIFEST).lstat().st_mtime
                size = sum(path.lstat().st_size for path in folder.iterdir())
                stage = str(open_seal(read_regular(folder / MANIFEST))["stage"])
                damage = damage_of(folder) if check else ""
            except DAMAGE as error:
                if not os.path.lexists(folder):  # dropped meanwhile
                    continue
                damage = str(error) or type(error).__name__
            found.append(Entry(folder.name, stage, size, used, damage, folder))
    return found


def damage_of(folder: Path) -> str:
    """What is wrong with an entry, every byte of it read; nothing if it is whole, or gone."""
    try:
        _, files = read_entry(folder, folder.name)
    except DAMAGE as error:
        return (str(error) or type(error).__name__) if os.path.lexists(folder) else ""
    return "" if set(files) == {ARRAYS, FACTS} else "unknown files"


def put_aside(root: Path, damaged: Sequence[Entry]) -> bool:
    """Takes damaged entries out of use, to be made again when next asked for; whether all could be."""
    for entry in damaged:
        if damage_of(entry.folder):  # still: it may have been made anew meanwhile
            quarantine(root, entry.folder)
    return not any(damage_of(entry.folder) for entry in damaged)


def prune(root: Path, max_size: int) -> tuple[int, int]:
    """Drops leftovers, then the entries not used for longest until the rest fits; (entries, bytes) dropped."""
    drop_old_drafts(root)
    drop_old(listing(root / "partial"), PARTIAL_AGE)
    for place in listing(root / "quarantine"):
        discard(place)
    kept = sorted(entries(root), key=lambda entry: entry.used)
    total = sum(entry.size for entry in kept)
    dropped, freed = 0, 0
    for entry in kept:
        if total - freed <= max_size:
            break
        remove(root, entry.folder)
        dropped, freed = dropped + 1, freed + entry.size
    drop_idle_locks(root)
    return dropped, freed


def drop_idle_locks(root: Path) -> None:
    """Removes lock files that nobody holds. Whoever waits for one meanwhile may do double work, never wrong work."""
    import filelock

    for path in listing(root / "locks"):
        with contextlib.suppress(filelock.Timeout, OSError, RuntimeError), filelock.FileLock(path, timeout=0):
            path.unlink()


def clear(root: Path) -> tuple[int, int]:
    """Drops everything that was kept; (entries, bytes) dropped."""
    dropped = prune(root, max_size=-1)
    for name in ("digests", "partial", "runs"):
        for place in listing(root / name):
            discard(place)
    return dropped
