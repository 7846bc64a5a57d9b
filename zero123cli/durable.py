"""Bytes to disk, whole or not at all: for what must survive a kill or a power cut. And files opened with care.

A file is written under a short random name beside its target, synced, then renamed. A folder is written as a draft,
each file synced, then renamed in one step: a reader sees nothing or all of it. (Measured: files written one by one into
their final folder leave a half entry at most kill points, a renamed draft at none.)
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

DRAFT = ".zero123-"  # how the names of files begin that are not whole yet
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)  # of a file system that can sync no folder

O_BINARY = getattr(os, "O_BINARY", 0)  # Windows only
O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # not on Windows, like the two below
O_NOCTTY = getattr(os, "O_NOCTTY", 0)
O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: Path | str, *, follow: bool = True) -> int:
    """A descriptor of a regular file to be read; an OSError says what else it is.

    Opening never waits: a pipe that nobody writes to is refused like a folder or a device.
    """
    flags = os.O_RDONLY | O_BINARY | O_NONBLOCK | O_NOCTTY | (0 if follow else O_NOFOLLOW)
    handle = os.open(path, flags)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    what = "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
    raise OSError(errno.EINVAL, f"{what}, not a file")


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` last through a power cut, where the platform can sync a folder."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # written to, though not to be read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def write_synced(path: Path, chunks: Iterable[bytes], mode: int = 0o666) -> None:
    """Writes a new file and syncs it. The name must not exist: nothing is followed or overwritten."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY, mode)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:  # a write may be short
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes | Iterable[bytes], *, overwrite: bool) -> None:
    """Writes `path` in one step, from bytes or from chunks of them as they are made.

    Without `overwrite` an existing file raises FileExistsError and stays as it is.
    """
    # The name is short whatever the target's is: a 255-byte target still leaves room for it.
    draft = path.parent / f"{DRAFT}{secrets.token_hex(6)}.tmp"
    try:
        write_synced(draft, [data] if isinstance(data, bytes) else data)
        if overwrite:
            os.replace(draft, path)
        else:
            link_once(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_once(draft: Path, path: Path) -> None:
    """Renames `draft` to `path` unless that exists, without a gap between the look and the leap."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: look, then leap
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists") from None
        os.replace(draft, path)
    else:
        os.unlink(draft)


def publish_folder(files: Mapping[str, bytes], draft: Path, target: Path) -> bool:
    """Writes `files` into `draft` and renames it to `target`; False if a whole `target` was there first."""
    try:
        os.mkdir(draft, 0o700)
        for name, data in files.items():
            write_synced(draft / name, [data], 0o600)
        sync_folder(draft)
        try:
            os.rename(draft, target)
        except OSError:
            if target.is_dir():  # another process won the race
                return False
            raise
        sync_folder(target.parent)
        return True
    finally:
        discard_folder(draft)


def discard_folder(folder: Path) -> None:
    """Removes a flat folder of files; what cannot be removed is left for `cache prune`."""
    try:
        for name in os.listdir(folder):
            os.unlink(folder / name)
        os.rmdir(folder)
    except OSError:
        pass
