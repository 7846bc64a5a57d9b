"""What a user can mend, each kind with the exit code that scripts see.

Zero123Error                 70  ours to mend: reported with a log file
+- UsageError                 2  the call is wrong
+- PhotoError                65  a photo is malformed or refused
+- WeightsError              65  a weights file is malformed, damaged or of another kind
+- MeshError                 65  a mesh is malformed or refused
+- CacheDamageError          65  `cache verify` met damage
+- MissingInputError         66  an input is not there or not readable
+- UnavailableError          69  a device, an optional package or weights are not installed
+- OutputError               73  an output cannot be created
+- DiskError                 74  reading or writing failed, or the disk is full
+- BusyError                 75  another process holds a lock for too long
+- RefusedError              77  refused for safety or because a licence is not accepted
+- SettingsError             78  a preset, a configuration file or the environment is malformed
+- OutOfMemoryError          80  out of GPU or host memory after every back-off
+- DivergedError             81  the optimiser diverged
+- NothingFoundError         82  nothing to reconstruct, or --require not met

Exit code 1 is never used: an uncaught exception ends with 1, so a 1 is always a bug of ours.
"""

from __future__ import annotations

import errno


class Zero123Error(Exception):
    """Says what is wrong, where, and what to try."""

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.remedy}" if self.remedy else text


class UsageError(Zero123Error):
    exit_code = 2


class PhotoError(Zero123Error):
    exit_code = 65


class WeightsError(Zero123Error):
    exit_code = 65


class MeshError(Zero123Error):
    exit_code = 65


class CacheDamageError(Zero123Error):
    exit_code = 65


class MissingInputError(Zero123Error):
    exit_code = 66


class UnavailableError(Zero123Error):
    exit_code = 69


class OutputError(Zero123Error):
    exit_code = 73


class DiskError(Zero123Error):
    exit_code = 74


class BusyError(Zero123Error):
    exit_code = 75


class RefusedError(Zero123Error):
    exit_code = 77


class SettingsError(Zero123Error):
    exit_code = 78


class OutOfMemoryError(Zero123Error):
    exit_code = 80


class DivergedError(Zero123Error):
    exit_code = 81


class NothingFoundError(Zero123Error):
    exit_code = 82


def of_code(code: int) -> type[Zero123Error]:
    """The kind of error with this exit code."""
    return next((kind for kind in Zero123Error.__subclasses__() if kind.exit_code == code), Zero123Error)


# Of several inputs the gravest outcome decides: a full disk is never hidden behind an empty photo.
GRAVITY = (70, 74, 77, 69, 73, 75, 78, 80, 81, 66, 65, 82)


def gravest(codes: list[int]) -> int:
    """The exit code of a run over several inputs."""
    failed = [code for code in codes if code]
    return min(failed, key=lambda code: GRAVITY.index(code) if code in GRAVITY else -1, default=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: of a GPU, for which torch has a type of error, or of the machine."""
    signs = ("out of memory", "annot allocate memory", "can't allocate memory", "ALLOC_FAILED", "NOT_INITIALIZED")
    told = type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ELOOP,
)


def reason_of(error: OSError) -> str:
    """What the system says of it."""
    return (error.strerror or str(error)).lower()


def writing_failed(error: OSError, where: str) -> Zero123Error:
    """The error a user sees when writing `where` failed."""
    reason = reason_of(error)
    if error.errno == errno.ENOMEM:
        return OutOfMemoryError("out of memory", where=where, remedy="close other programs and run it again")
    if error.errno in FULL_DISK:
        return DiskError(reason, where=where, remedy="free some space and run it again")
    if error.errno in NOT_WRITABLE:
        return OutputError(f"cannot be written: {reason}", where=where, remedy="choose another place")
    return DiskError(f"writing failed: {reason}", where=where, remedy="check the disk and run it again")
