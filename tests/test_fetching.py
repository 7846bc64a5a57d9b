"""Fetching over real HTTP from a server of our own: ranges, broken-off transfers, changed files, wrong digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zero123cli import fetching
from zero123cli.errors import BusyError, DiskError, OutputError, UnavailableError, WeightsError, Zero123Error
from zero123cli.fetching import Parcel, choose, fetch, partial_of
from zero123cli.watch import Caution, Progress, silent

DATA = hashlib.shake_256(b"weights").digest(3_000_000)
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
COMMIT = "1234567890" * 4


# The stand-in ---------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """One file and how the server behaves over it. `cuts` and `codes` are used up, one a request."""

    data: bytes
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    if_range: bool = True  # whether If-Range is heeded
    tells_length: bool = True
    cuts: list[int] = field(default_factory=list)  # end the answer after so many bytes
    codes: list[int] = field(default_factory=list)  # answer these first
    reset: bool = False  # end by a reset, not in order
    stall: float = 0.0  # s to wait where the answer is cut
    location: str = ""  # redirect there
    token: str = ""  # needed to see it
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    path: str
    range: str | None
    token: str | None
    sent: int = 0


class StandIn(http.server.ThreadingHTTPServer):
    """Serves `files` on 127.0.0.1 and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, Served] = {}
        self.log: list[Seen] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.other_host = f"http://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""

    def put(self, path: str, data: bytes = DATA, **behaviour: Any) -> Served:
        self.files[path] = Served(data, **behaviour)
        return self.files[path]

    def put_repo(self, repo: str, files: dict[str, bytes], **behaviour: Any) -> dict[str, Served]:
        """A model of the hub: its listing, and each file behind a redirect to another host, as the hub does it."""
        siblings, stored = [], {}
        for name, data in files.items():
            sha256 = hashlib.sha256(data).hexdigest()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            large = not name.endswith(".json")
            lfs = {"sha256": sha256, "size": len(data), "pointerSize": 130} if large else None
            siblings.append({"rfilename": name, "size": len(data), "blobId": git, "lfs": lfs})
            place = f"/{repo}/resolve/{COMMIT}/{name}"
            if large:
                gate = {key: behaviour.pop(key) for key in ("token",) if key in behaviour}
                self.put(place, b"", location=f"{self.other_host}/store/{sha256}", **gate)
                stored[name] = self.put(f"/store/{sha256}", data, etag=f'"{sha256[:8]}"', **behaviour)
            else:
                stored[name] = self.put(place, data, etag=f'"{git}"')
        listing = {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        self.put(f"/api/models/{repo}", json.dumps(listing).encode(), headers={"Content-Type": "application/json"})
        return stored

    def sent(self, path: str) -> int:
        return sum(seen.sent for seen in self.log if seen.path == path)

    def asked(self) -> list[str]:
        return [seen.path for seen in self.log if "harness" not in seen.path]


class Answer(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        seen = Seen(path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.server.log.append(seen)
        served = self.server.files.get(path)
        code = served.codes.pop(0) if served and served.codes else 200
        if served is None:
            return self.say(404)
        if served.token and seen.token != f"Bearer {served.token}":
            return self.say(403 if seen.token else 401, {"X-Error-Code": "GatedRepo"})
        if code != 200:
            return self.say(code)
        if served.location:
            return self.say(302, {"Location": served.location})
        data, start = served.data, 0
        known = self.headers.get("If-Range") in (served.etag, served.modified) or not served.if_range
        if seen.range and served.ranges and known:
            start = int(seen.range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.say(416)
            code = 206
        headers = {"ETag": served.etag, "Last-Modified": served.modified, **served.headers}
        if served.tells_length:
            headers["Content-Length"] = str(len(data) - start)
        if code == 206:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.say(code, headers)
        stop = start + served.cuts.pop(0) if served.cuts else len(data)
        for place in range(start, min(stop, len(data)), 65536):
            piece = data[place : min(place + 65536, stop)]
            self.wfile.write(piece)
            seen.sent += len(piece)
        if stop < len(data):
            time.sleep(served.stall)
            if served.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def say(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {"Content-Length": "0"}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()


def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


server = pytest.fixture(stand_in)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "file.bin"


def assert_whole(target: Path, data: bytes = DATA) -> None:
    assert target.read_bytes() == data
    assert os.listdir(target.parent) == [target.name]


def assert_nothing(target: Path) -> None:
    assert os.listdir(target.parent) == []


def fails(parcel: Parcel, kind: type[Zero123Error], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        fetch(parcel, silent)
    assert caught.value.where and caught.value.remedy


# Whole ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [SHA256, f"md5:{hashlib.md5(DATA).hexdigest()}", ""])
@pytest.mark.parametrize("behaviour", [{}, {"ranges": False}, {"etag": ""}, {"tells_length": False}])
def test_a_file_comes_whole(server: StandIn, target: Path, digest: str, behaviour: dict[str, Any]) -> None:
    server.put("/file", **behaviour)
    fetch(Parcel(f"{server.url}/file", target, len(DATA), digest), silent)
    assert_whole(target)
    assert len(server.log) == 1


def test_progress_is_told_in_bytes(server: StandIn, target: Path) -> None:
    told: list[Progress | Caution] = []
    server.put("/file")
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), told.append)
    assert {message.stage for message in told if isinstance(message, Progress)} == {"fetch", "check"}
    assert told[-1] == Progress("check", len(DATA), len(DATA))


def test_what_is_there_and_sound_is_not_fetched_again(server: StandIn, target: Path) -> None:
    server.put("/file")
    parcel = Parcel(f"{server.url}/file", target, len(DATA), SHA256)
    fetch(parcel, silent)
    fetch(parcel, silent)
    assert len(server.log) == 1
    target.write_bytes(b"damaged" + DATA[7:])
    fetch(parcel, silent)
    assert len(server.log) == 2
    assert_whole(target)


# Broken off -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 8191, fetching.READ, fetching.READ + 1, len(DATA) - 1])
def test_a_broken_off_transfer_goes_on_where_it_stopped(server: StandIn, target: Path, cut: int, reset: bool) -> None:
    served = server.put("/file", cuts=[cut], reset=reset)
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    assert served.cuts == []
    if not reset:  # a reset throws away what the client had not read yet
        assert server.sent("/file") == len(DATA)
        assert server.log[-1].range == (f"bytes={cut}-" if cut else None)


def test_many_breaks_in_a_row_are_borne_as_long_as_something_comes(server: StandIn, target: Path) -> None:
    server.put("/file", cuts=[100_000] * 20)
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    assert server.sent("/file") == len(DATA)


def test_a_transfer_given_up_goes_on_at_the_next_call(server: StandIn, target: Path) -> None:
    served = server.put("/file", cuts=[1_000_000, *[0] * fetching.TRIES])
    parcel = Parcel(f"{server.url}/file", target, len(DATA), SHA256)
    fails(parcel, UnavailableError, "ended after 1000000 of 3000000 bytes")
    assert partial_of(target).stat().st_size == 1_000_000 and not target.exists()
    assert served.cuts == [0]
    served.cuts = []
    fetch(parcel, silent)
    assert_whole(target)
    assert server.sent("/file") == len(DATA)


@pytest.mark.parametrize("behaviour", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"weak"'}])
def test_without_ranges_or_a_version_it_starts_over(server: StandIn, target: Path, behaviour: dict[str, Any]) -> None:
    server.put("/file", cuts=[1_000_000], **behaviour)
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    assert server.sent("/file") == 1_000_000 + len(DATA)


def test_a_date_will_do_for_a_version(server: StandIn, target: Path) -> None:
    server.put("/file", etag="", modified="Wed, 21 Oct 2015 07:28:00 GMT", cuts=[1_000_000])
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    assert server.sent("/file") == len(DATA)


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("new", [DATA[::-1], DATA[:500_000], DATA + DATA], ids=["other", "shorter", "longer"])
def test_a_file_that_changes_meanwhile_is_fetched_anew(
    server: StandIn, target: Path, new: bytes, if_range: bool
) -> None:
    """Also from a server that does not heed If-Range."""
    server.put("/file", cuts=[1_000_000, *[0] * fetching.TRIES])
    parcel = Parcel(f"{server.url}/file", target)
    fails(parcel, UnavailableError, "ended after")
    server.put("/file", new, etag='"two"', if_range=if_range)
    fetch(parcel, silent)
    assert_whole(target, new)


def test_a_complete_partial_file_is_not_fetched_again(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last byte and the rename."""
    server.put("/file")
    parcel = Parcel(f"{server.url}/file", target, len(DATA), SHA256)
    with monkeypatch.context() as patched:
        patched.setattr(fetching, "damage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(parcel, silent)
    assert not target.exists()
    fetch(parcel, silent)
    assert_whole(target)
    assert len(server.log) == 1


def test_a_server_that_falls_silent_is_left_and_asked_again(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIME_OUT", 0.2)
    server.put("/file", cuts=[1_000_000], stall=1.0)
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    assert server.sent("/file") == len(DATA)


# Wrong ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sha256", "md5", "git"])
def test_a_wrong_digest_is_never_used(server: StandIn, target: Path, kind: str) -> None:
    server.put("/file", cuts=[1_000_000])
    wrong = {"sha256": "0" * 64, "md5": "0" * 32, "git": "0" * 40}[kind]
    fails(Parcel(f"{server.url}/file", target, digest=f"{kind}:{wrong}"), WeightsError, "its digest differs")
    assert_nothing(target)


def test_one_flipped_bit_is_seen(server: StandIn, target: Path) -> None:
    server.put("/file", DATA[:1_500_000] + bytes([DATA[1_500_000] ^ 1]) + DATA[1_500_001:])
    fails(Parcel(f"{server.url}/file", target, len(DATA), SHA256), WeightsError, "its digest differs")
    assert_nothing(target)


def test_a_wrong_length_is_seen_before_the_transfer(server: StandIn, target: Path) -> None:
    server.put("/file")
    fails(Parcel(f"{server.url}/file", target, 10), WeightsError, "3000000 bytes instead of 10")
    assert_nothing(target)
    server.put("/file", tells_length=False)
    fails(Parcel(f"{server.url}/file", target, 10), WeightsError, "3000000 bytes instead of 10")
    assert_nothing(target)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server: StandIn, target: Path, code: int) -> None:
    server.put("/file", codes=[code])
    fails(Parcel(f"{server.url}/file", target), UnavailableError, f"the server answers {code}")
    assert_nothing(target)
    assert len(server.log) == 1


def test_an_empty_answer_is_no_file(server: StandIn, target: Path) -> None:
    server.put("/file", b"")
    fails(Parcel(f"{server.url}/file", target), UnavailableError, "empty")
    assert 1 < len(server.log) < 50


def test_a_server_in_trouble_is_asked_again(server: StandIn, target: Path) -> None:
    server.put("/file", codes=[500, 503, 429])
    fetch(Parcel(f"{server.url}/file", target, digest=SHA256), silent)
    assert_whole(target)
    server.put("/other", codes=[502] * 99)
    fails(Parcel(f"{server.url}/other", target.with_name("other")), UnavailableError, "the server answers 502")


def test_no_server_is_unavailable(target: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        fails(Parcel(url, target), UnavailableError, "refused")
    assert_nothing(target)


def test_the_token_stays_with_its_host(server: StandIn, target: Path) -> None:
    server.put("/here", b"", location="/there")
    server.put("/there", b"", location=f"{server.other_host}/file")
    server.put("/file")
    fetch(Parcel(f"{server.url}/here", target, headers={"Authorization": "Bearer secret"}), silent)
    assert_whole(target)
    assert [seen.token for seen in server.log] == ["Bearer secret", "Bearer secret", None]


# The disk and the neighbours ------------------------------------------------------------------------------------------


def test_too_little_space_is_seen_before_the_transfer(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2_999_999))
    server.put("/file")
    fails(Parcel(f"{server.url}/file", target), DiskError, "are to come")
    assert_nothing(target)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_the_end_leaves_the_partial_file(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    server.put("/file")
    parcel = Parcel(f"{server.url}/file", target, digest=SHA256)
    with monkeypatch.context() as patched:
        sync = os.fsync

        def fail(handle: int) -> None:
            if os.fstat(handle).st_size == len(DATA):
                raise OSError(number, os.strerror(number))
            sync(handle)

        patched.setattr(os, "fsync", fail)
        fails(parcel, DiskError, os.strerror(number).lower())
    assert not target.exists()
    fetch(parcel, silent)
    assert_whole(target)


def test_a_place_that_cannot_be_is_told(server: StandIn, target: Path) -> None:
    target.parent.write_bytes(b"a file where the folder should be")
    fails(Parcel(f"{server.url}/file", target), OutputError, "cannot be written")
    assert server.log == []


def fetch_at_once(parcel: Parcel, count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        for result in [pool.submit(fetch, parcel, silent) for _ in range(count)]:
            result.result()


def test_several_at_once_fetch_it_once(server: StandIn, target: Path) -> None:
    server.put("/file", cuts=[1_000_000], stall=0.3)
    fetch_at_once(Parcel(f"{server.url}/file", target, len(DATA), SHA256), 4)
    assert_whole(target)
    assert server.sent("/file") == len(DATA)


def test_several_at_once_where_there_are_no_locks_all_succeed(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def no_locks(self: Any, **_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.BaseFileLock, "acquire", no_locks)
    server.put("/file", cuts=[1_000_000, 0, 700_000], stall=0.05)
    fetch_at_once(Parcel(f"{server.url}/file", target, len(DATA), SHA256), 4)
    assert_whole(target)


@pytest.mark.parametrize("round", range(6))
def test_several_at_once_where_locks_do_nothing_never_leave_a_wrong_file(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch, round: int
) -> None:
    """As on file systems whose locks everybody gets."""
    import filelock

    monkeypatch.setattr(filelock.BaseFileLock, "acquire", lambda *_, **__: None)
    monkeypatch.setattr(filelock.BaseFileLock, "is_locked", True)
    server.put("/file", cuts=[500_000 * round, 0, 400_000 * round], stall=0.02)
    parcel = Parcel(f"{server.url}/file", target, len(DATA), SHA256)
    with contextlib.suppress(Zero123Error):
        fetch_at_once(parcel, 4)
    assert not target.exists() or target.read_bytes() == DATA
    fetch(parcel, silent)
    assert target.read_bytes() == DATA


def test_a_neighbour_that_starts_over_after_the_check_never_slips_its_file_in(
    server: StandIn, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_and_lose(path: Path, *rest: Any) -> str:
        wrong = damage(path, *rest)
        path.unlink()
        path.write_bytes(bytes(len(DATA)))
        return wrong

    damage = fetching.damage
    server.put("/file")
    parcel = Parcel(f"{server.url}/file", target, len(DATA), SHA256)
    with monkeypatch.context() as patched:
        patched.setattr(fetching, "damage", look_and_lose)
        with pytest.raises(BusyError, match="another process"):
            fetch(parcel, silent)
    assert not target.exists()
    fetch(parcel, silent)
    assert target.read_bytes() == DATA


def test_waiting_for_a_neighbour_ends(server: StandIn, target: Path) -> None:
    import filelock

    server.put("/file")
    target.parent.mkdir()
    with filelock.FileLock(partial_of(target).with_suffix(".lock")), pytest.raises(BusyError, match="another process"):
        fetch(Parcel(f"{server.url}/file", target), silent, lock_timeout=0.1)
    assert server.log == []


# Which files of a diffusers repository --------------------------------------------------------------------------------


def test_one_variant_of_each_part_is_chosen() -> None:
    names = [
        "README.md",
        "model_index.json",
        "zero123.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16_ema.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.bin",
        "vae/diffusion_pytorch_model.bin",
        "image_encoder/model-00001-of-00002.safetensors",
        "image_encoder/model-00002-of-00002.safetensors",
        "image_encoder/pytorch_model.bin",
        "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors",
        "../evil/config.json",
        "deep/er/config.json",
    ]
    shards = [name for name in names if "-of-" in name]
    settings = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]
    half = ["unet/diffusion_pytorch_model.fp16_ema.safetensors", "vae/diffusion_pytorch_model.fp16.bin"]
    plain = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"]
    assert choose(dict.fromkeys(names), ("fp16_ema", "fp16", "")) == sorted([*settings, *shards, *half])
    assert choose(dict.fromkeys(names), ("",)) == sorted([*settings, *shards, *plain])
    assert choose(dict.fromkeys(names[1:4] + names[6:7]), ("",)) == [*settings[:1], "unet/config.json", names[6]]
    assert choose({"105000.ckpt": None}, ("",)) == []
