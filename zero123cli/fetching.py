"""Fetches weights over HTTP: resumed where it broke off, checked, whole or not at all. Only `models pull` calls this.

What has come lies in a partial file beside its target, with a note of which version of the file it belongs to; a
resumed transfer goes on only if the server still has that version. Nothing gets its real name before its size and
digest are right. (huggingface_hub's own download starts from nothing after a kill, so hub files come this way too and
are put where its cache keeps them.) Where locks do nothing two pulls may get in each other's way and fail, but a wrong
file is never used: a partial file is never truncated, and it is checked before it is renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from . import durable, machine
from .errors import BusyError, DiskError, UnavailableError, WeightsError, Zero123Error, writing_failed
from .models import INDEX, CutterWeights, KnownModel, Published, damage, find_cutter, hub_digest
from .watch import Progress, Watch

TIME_OUT = 30.0  # s without a byte
TRIES = 4  # in a row that bring nothing
PAUSE = 0.5  # s after the first of them; doubled each time
READ = 1 << 18  # bytes at a time
WAIT_AND_SEE = (408, 425, 429)  # and 5xx: the server may well answer later

NETWORK = (OSError, http.client.HTTPException)  # what a connection can raise


@dataclass(frozen=True)
class Parcel:
    """One file to fetch. 0 and "" are not checked."""

    url: str
    target: Path
    size: int = 0
    digest: str = ""  # "sha256:...", "md5:..." or "git:..."
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    page: str = ""  # where access to it can be asked for
    pointer: Path | None = None  # the name under which the hub's cache shows it


@dataclass(frozen=True)
class Order:
    """All files of one set of weights, and what makes them count as installed."""

    parcels: tuple[Parcel, ...]
    path: Path  # where they are in the end
    commit: str = ""  # of the hub
    ref: Path | None = None  # written last: from then on the commit is the installed one

    @property
    def size(self) -> int:
        """Bytes of all of it; 0 when a server has yet to say."""
        sizes = [parcel.size for parcel in self.parcels]
        return sum(sizes) if all(sizes) else 0


class BrokenOff(Exception):
    """The transfer ended early; another try may go on with it."""


# What there is to fetch -----------------------------------------------------------------------------------------------


def place_order(known: Published) -> Order:
    """What has to be fetched for these weights; asks the hub for sizes and digests."""
    if isinstance(known, CutterWeights):
        folders = machine.cutter_folders(known.name)
        if not folders:
            raise UnavailableError("this user has no home folder", remedy="set HOME")
        target = folders[0] / known.file
    elif known.url:
        target = machine.weights_folder() / known.file
    else:
        return ask_hub(known)
    return Order((Parcel(known.url, target, known.size, known.digest),), target)


def ask_hub(model: KnownModel) -> Order:
    """The files of a hub model as its main branch has them now."""
    from huggingface_hub import HfApi, get_token, hf_hub_url

    page = f"https://huggingface.co/{model.repo}"
    try:
        info = HfApi().model_info(model.repo, files_metadata=True)
    except Exception as error:  # the client's exceptions differ from version to version
        raise hub_failed(error, page) from error
    listed = {file.rfilename: file for file in info.siblings or ()}
    names = [model.file] if model.file else choose(listed, model.variants)
    commit = info.sha or ""
    if not hub_digest(commit) or not names or any(name not in listed for name in names):
        raise UnavailableError(f"{model.file or INDEX} is not there", where=page, remedy="see the model's page")
    repo = hub_folder(model)
    snapshot = repo / "snapshots" / commit
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    parcels = []
    for name in names:
        file: Any = listed[name]
        etag = file.lfs["sha256"] if file.lfs else file.blob_id
        digest = hub_digest(etag or "")
        if not digest:
            raise UnavailableError(f"the hub gives no digest of {name}", where=page, remedy="try again later")
        if model.sha256 and digest != model.digest:
            raise WeightsError(
                f"the hub has another {name} than the published one (its digest differs)",
                where=page,
                remedy="nothing was fetched",
            )
        url = hf_hub_url(model.repo, name, revision=commit)
        pointer = snapshot.joinpath(*PurePosixPath(name).parts)
        parcels.append(Parcel(url, repo / "blobs" / etag, file.size or 0, digest, headers, page, pointer))
    path = snapshot / model.file if model.file else snapshot
    return Order(tuple(parcels), path, commit, repo / "refs" / "main")


def hub_folder(model: KnownModel) -> Path:
    """Where the hub's cache keeps this repository, HF_HOME and HF_HUB_CACHE heeded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{model.repo.replace('/', '--')}"


def choose(names: Mapping[str, object], variants: tuple[str, ...]) -> list[str]:
    """Of a diffusers repository what inference reads: the settings, and one variant of the weights of each part."""
    if INDEX not in names:
        return []
    chosen = [INDEX]
    parts: dict[str, dict[tuple[str, str], list[str]]] = {}
    for path in map(PurePosixPath, names):
        if len(path.parts) != 2 or ".." in path.parts or path.parts[0] == "safety_checker":
            continue
        if path.suffix in (".json", ".txt"):
            chosen.append(str(path))
        elif match := re.fullmatch(r"[^.]+?(?:\.(\w+))?(?:-\d+-of-\d+)?\.(safetensors|bin)", path.name):
            parts.setdefault(path.parts[0], {}).setdefault((match[1] or "", match[2]), []).append(str(path))
    for found in parts.values():
        wanted = [(variant, kind) for variant in (*variants, "") for kind in ("safetensors", "bin")]
        chosen += found[next((key for key in wanted if key in found), next(iter(found)))]
    return sorted(chosen)


def hub_failed(error: Exception, page: str) -> UnavailableError:
    """What a user can do about an exception of the hub's client."""
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", 0)
    if code in (401, 403):
        return no_access(page)
    if code:
        return UnavailableError(
            f"the hub answers {code}", where=page, remedy="see the model's page, or try again later"
        )
    reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
    return UnavailableError(f"the hub cannot be reached ({reason})", where=page, remedy="check the connection")


def no_access(page: str) -> UnavailableError:
    return UnavailableError(
        "the hub does not let you have it",
        where=page,
        remedy="accept the licence on that page, make a token and set HF_TOKEN",
    )


# Fetching it ----------------------------------------------------------------------------------------------------------


def deliver(order: Order, watch: Watch, lock_timeout: float = 600.0) -> Path:
    """Fetches what is not there yet and puts everything in its place."""
    for parcel in order.parcels:
        fetch(parcel, watch, lock_timeout)
    try:
        for parcel in order.parcels:
            if parcel.pointer:
                show(parcel.target, parcel.pointer)
        if order.ref:
            order.ref.parent.mkdir(parents=True, exist_ok=True)
            durable.write_file(order.ref, order.commit.encode(), overwrite=True)
    except OSError as error:
        raise cannot_write(error, order.path) from error
    return order.path


def show(blob: Path, pointer: Path) -> None:
    """Links a blob of the hub's cache under its own name; where links cannot be made it moves there."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), pointer)
    except OSError:
        os.replace(blob, pointer)
    durable.sync_folder(pointer.parent)


def fetch(parcel: Parcel, watch: Watch, lock_timeout: float = 600.0) -> None:
    """Fetches one file; returns at once when it is there and sound."""
    target = parcel.target
    part = partial_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(part.with_suffix(".lock"), lock_timeout, watch) as locked:
            if is_there(parcel, watch):
                return
            if locked:
                receive(parcel, part, watch)
                settle(parcel, part, watch)
                return
            part = part.with_stem(f"{part.stem}-{secrets.token_hex(4)}")  # private: neighbours cannot be held off
            try:
                receive(parcel, part, watch)
                settle(parcel, part, watch)
            finally:
                forget(part)
    except OSError as error:
        raise cannot_write(error, target) from error


def settle(parcel: Parcel, part: Path, watch: Watch) -> None:
    """Gives a complete partial file its name, if it is what was published.

    It leaves its shared name first: where locks do nothing a neighbour may have put another file there meanwhile.
    """
    mine = part.with_stem(f"{part.stem}-{secrets.token_hex(4)}")
    with open(part, "rb+") as file:  # held open: its inode cannot come back as another file's
        if wrong := damage(part, parcel.size, parcel.digest, watch):
            forget(part)
            raise another_file(parcel, wrong)
        os.fsync(file.fileno())
        os.replace(part, mine)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(mine)):
            forget(mine)
            raise BusyError("another process fetches the same", where=str(part), remedy="pull again when it is done")
    os.replace(mine, parcel.target)
    forget(part)
    durable.sync_folder(part.parent)


def is_there(parcel: Parcel, watch: Watch) -> bool:
    """Whether the file itself is there; a damaged one is in the way and goes."""
    for path in (parcel.target, parcel.pointer):
        if path and path.is_file():
            if not damage(path, parcel.size, parcel.digest, watch):
                if path == parcel.pointer:  # a cache without links: `show` finds it where it is fetched to
                    os.replace(path, parcel.target)
                return True
            path.unlink()
    return False


def receive(parcel: Parcel, part: Path, watch: Watch) -> None:
    """Tries until the partial file is complete, or until several tries in a row brought nothing."""
    failures = 0
    while not is_complete(part):
        before = size_of(part)
        try:
            receive_once(parcel, part, watch)
        except BrokenOff as broken:
            failures = 1 if size_of(part) > before else failures + 1
            if failures >= TRIES:
                raise UnavailableError(
                    f"the transfer failed ({broken})",
                    where=parcel.url,
                    remedy="check the connection and pull again: it goes on where it stopped",
                ) from broken
            time.sleep(PAUSE * 2 ** (failures - 1))


def receive_once(parcel: Parcel, part: Path, watch: Watch) -> None:
    """One request, which goes on where the partial file ends if the server still has the same version."""
    note = read_note(part)
    have = size_of(part) if note.get("version") else 0
    with connect(parcel, part, have, str(note.get("version", ""))) as response:
        version, start, total = describe(response)
        if start and (start != have or version != note["version"] or total != note["total"]):
            forget(part)
            raise BrokenOff("the file changed on the server")
        if parcel.size and total and total != parcel.size:
            forget(part)
            raise another_file(parcel, f"{total} bytes instead of {parcel.size}")
        require_space(part, total - start)
        if not version or note != {"version": version, "total": total}:
            forget(part)
            write_note(part, version, total)
        done = start
        part.touch()
        with open(part, "rb+") as file:
            file.seek(start)
            while chunk := read_some(response):
                file.write(chunk)
                done += len(chunk)
                watch(Progress("fetch", done, total))
    if total and done < total:
        raise BrokenOff(f"it ended after {done} of {total} bytes")
    if not done:
        raise BrokenOff("the answer is empty")
    if not total:  # the server did not say how much it would be: its end is the end
        write_note(part, version, done)


def connect(parcel: Parcel, part: Path, have: int, version: str) -> http.client.HTTPResponse:
    """The answer to a GET for what is missing."""
    request = urllib.request.Request(parcel.url, headers={"User-Agent": "zero123"})
    for name, value in parcel.headers.items():
        # Redirects lead to other hosts: the token must not go along.
        (request.add_unredirected_header if name.lower() == "authorization" else request.add_header)(name, value)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(Redirects).open(request, timeout=TIME_OUT)
        return answer
    except urllib.error.HTTPError as error:
        code = error.code
        error.close()
    except NETWORK as error:
        raise BrokenOff(str(getattr(error, "reason", "") or error) or type(error).__name__) from error
    if code == 416:  # the file became shorter
        forget(part)
    if code == 416 or code in WAIT_AND_SEE or code >= 500:
        raise BrokenOff(f"the server answers {code}")
    if code in (401, 403) and parcel.page:
        raise no_access(parcel.page)
    raise UnavailableError(f"the server answers {code}", where=parcel.url, remedy="it may have moved; try again later")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token goes along only within one host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following and token and urlsplit(req.full_url)[:2] == urlsplit(newurl)[:2]:
            following.add_unredirected_header("Authorization", token)
        return following


def read_some(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(READ)
    except NETWORK as error:
        raise BrokenOff(str(error) or type(error).__name__) from error


def describe(response: http.client.HTTPResponse) -> tuple[str, int, int]:
    """Which version of the file an answer holds ("" if it cannot be told), from which byte on, and of how many."""
    etag = response.headers.get("ETag", "")
    version = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (version, int(match[1]), int(match[2])) if match else (version, -1, 0)
    length = response.headers.get("Content-Length", "")
    return version, 0, int(length) if length.isdigit() else 0


def require_space(part: Path, need: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if need > free:
        raise DiskError(
            f"{need / 1e9:.2f} GB are to come and {free / 1e9:.2f} GB are free",
            where=str(part.parent),
            remedy="free some space and pull again",
        )


def another_file(parcel: Parcel, wrong: str) -> WeightsError:
    return WeightsError(
        f"this is not the published file: {wrong}",
        where=parcel.url,
        remedy="nothing of it was kept; pull again, and if it stays so, the server has another file",
    )


def cannot_write(error: OSError, path: Path) -> Zero123Error:
    failed = writing_failed(error, str(path))
    if failed.exit_code == 73:
        failed.remedy = "make that folder writable, or name another: HF_HOME for hub files, REMBG_HOME for cutters"
    return failed


# The partial file -----------------------------------------------------------------------------------------------------


def partial_of(target: Path) -> Path:
    """Beside the target, under a name that is short whatever the target's is."""
    return target.parent / f".zero123-{hashlib.sha256(target.name.encode()).hexdigest()[:16]}.part"


def note_of(part: Path) -> Path:
    return part.with_suffix(".json")


def read_note(part: Path) -> dict[str, Any]:
    """Which version the partial file belongs to, and its full size; nothing when that is not known."""
    try:
        note = json.loads(note_of(part).read_bytes())
        return note if isinstance(note, dict) and {"version", "total"} <= note.keys() else {}
    except (OSError, ValueError):
        return {}


def write_note(part: Path, version: str, total: int) -> None:
    durable.write_file(note_of(part), json.dumps({"version": version, "total": total}).encode(), overwrite=True)


def size_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def is_complete(part: Path) -> bool:
    total = read_note(part).get("total")
    return part.is_file() and bool(total) and size_of(part) == total


def forget(part: Path) -> None:
    for path in (part, note_of(part)):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path, timeout: float, watch: Watch) -> Iterator[bool]:
    """Holds a lock while a file is fetched; False where locks cannot be had."""
    import filelock

    holder = filelock.FileLock(path, mode=0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            holder.acquire(timeout=max(0.0, min(5.0, deadline - time.monotonic())), poll_interval=0.05)
        except filelock.Timeout:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"another process has been fetching this for over {timeout:g} s",
                    where=str(path),
                    remedy="wait for it or end it, then pull again",
                ) from None
            watch(Progress("wait", 0, 0, "another process is fetching the same"))
        except (OSError, RuntimeError):  # a file system without locks
            break
        else:
            break
    try:
        yield holder.is_locked
    finally:
        if holder.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # whoever waits for it finds the file, or the partial one, and goes on
        holder.release()


# Removing it ----------------------------------------------------------------------------------------------------------


def remove(known: Published, path: Path | None) -> int:
    """Removes installed weights and what a broken-off pull left; bytes freed."""
    try:
        if isinstance(known, KnownModel) and known.repo:
            return remove_from_hub_cache(hub_folder(known), path)
        freed = 0
        while path:
            freed += path.stat().st_size
            path.unlink()
            # rembg looks in two folders
            path = find_cutter(known.name) if isinstance(known, CutterWeights) else None
        return freed + drop_partials(place_order(known).path.parent)
    except OSError as error:
        raise cannot_write(error, path or Path(known.name)) from error


def remove_from_hub_cache(repo: Path, path: Path | None) -> int:
    """Removes the files at `path`; blobs that another revision or file shows stay."""
    freed = drop_partials(repo / "blobs")
    gone = [path] if path and not path.is_dir() else files_below(path) if path else []
    blobs = {file.resolve() for file in gone}
    for file in gone:
        if not file.is_symlink():
            freed += file.stat().st_size
        file.unlink()
    still_shown = {file.resolve() for file in files_below(repo / "snapshots")}
    for blob in blobs:
        if blob.is_file() and blob not in still_shown and (repo / "blobs").resolve() in blob.parents:
            freed += blob.stat().st_size
            blob.unlink()
    if repo.is_dir() and not still_shown and not files_below(repo / "blobs"):
        shutil.rmtree(repo)
    return freed


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]


def drop_partials(folder: Path) -> int:
    """Removes what broken-off pulls left in a folder, unless a pull is at work there."""
    import filelock

    freed = 0
    for part in folder.glob(".zero123-*.part"):
        with contextlib.suppress(OSError, RuntimeError), filelock.FileLock(part.with_suffix(".lock"), timeout=0):
            freed += part.stat().st_size
            forget(part)
            part.with_suffix(".lock").unlink(missing_ok=True)
    return freed
