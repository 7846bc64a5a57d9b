"""The stage cache under faults: kills at every system call, full and read-only disks, damage of every byte, races.

The oracle is always the same: the result is right, an entry is absent or whole, nothing raises but what is promised.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zero123cli import cache as c
from zero123cli import durable
from zero123cli.errors import BusyError, OutputError, RefusedError
from zero123cli.watch import Caution, Progress, Watch, silent

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and POSIX modes")


@dataclass(frozen=True)
class Tiny:
    values: np.ndarray
    name: str
    ratio: float
    pair: tuple[int, int]


@dataclass(frozen=True)
class Knobs:
    size: int = 6
    seed: int = 0


TINY = c.Stage("tiny", 1, Tiny)


def make_tiny(knobs: Knobs) -> Tiny:
    values = np.random.default_rng(knobs.seed).normal(size=(knobs.size, 2)).astype(np.float32)
    return Tiny(values, "näme", 0.1, (1, 2))


class Listener:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.cautions: list[Caution] = []

    def __call__(self, message: Progress | Caution) -> None:
        if isinstance(message, Caution):
            self.cautions.append(message)

    @property
    def codes(self) -> list[str]:
        return [caution.code for caution in self.cautions]


class Maker:
    """Makes the tiny artifact and counts how often."""

    def __init__(self, knobs: Knobs = Knobs()) -> None:
        self.knobs = knobs
        self.made = 0

    def __call__(self, watch: Watch) -> Tiny:
        self.made += 1
        return make_tiny(self.knobs)


def take(cache: c.Cache, knobs: Knobs = Knobs(), make: Any = None, watch: Watch = silent, **more: Any) -> c.Kept[Tiny]:
    more.setdefault("inputs", ["photo"])
    return c.step(cache, TINY, settings=knobs, make=make or Maker(knobs), watch=watch, **more)


def same(a: Tiny, b: Tiny) -> bool:
    return np.array_equal(a.values, b.values) and (a.name, a.ratio, a.pair) == (b.name, b.ratio, b.pair)


@pytest.fixture
def cache(tmp_path: Path) -> c.Cache:
    return c.open_cache(tmp_path / "cache")


def entry_of(cache: c.Cache, kept: c.Kept[Tiny]) -> Path:
    assert cache.root
    return c.entry_folder(cache.root, kept.key)


# What it is for -------------------------------------------------------------------------------------------------------


def test_second_time_is_a_hit_with_the_same_artifact(cache: c.Cache) -> None:
    first, second = take(cache), take(cache, make=Maker())
    assert (first.hit, second.hit) == (False, True)
    assert same(first.artifact, second.artifact)
    assert second.artifact.values.dtype == np.float32


def test_key_changes_with_everything_that_decides_the_content(cache: c.Cache) -> None:
    base = take(cache).key
    others = [
        take(cache, Knobs(size=7)).key,
        take(cache, Knobs(seed=1)).key,
        take(cache, inputs=["other"]).key,
        take(cache, inputs=["photo", "photo"]).key,
        take(cache, model="weights").key,
        take(cache, device="cuda").key,
        c.step(cache, c.Stage("tiny", 2, Tiny), inputs=["photo"], settings=Knobs(), make=Maker(), watch=silent).key,
        c.step(cache, c.Stage("other", 1, Tiny), inputs=["photo"], settings=Knobs(), make=Maker(), watch=silent).key,
    ]
    assert len({base, *others}) == len(others) + 1
    assert take(cache).key == base


def test_warnings_of_a_stage_are_repeated_on_a_hit(cache: c.Cache) -> None:
    def make(watch: Watch) -> Tiny:
        watch(Caution("tiny-object", "small", "come closer"))
        return make_tiny(Knobs())

    for _ in range(2):
        listener = Listener()
        kept = take(cache, make=make, watch=listener)
        assert listener.cautions == [Caution("tiny-object", "small", "come closer")]
        assert list(kept.cautions) == listener.cautions


def test_failed_stage_leaves_nothing(cache: c.Cache) -> None:
    def fail(watch: Watch) -> Tiny:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        take(cache, make=fail)
    assert cache.root and not c.entries(cache.root)
    assert not take(cache).hit


def test_refresh_makes_anew_and_replaces(cache: c.Cache) -> None:
    take(cache)
    maker = Maker()
    fresh = c.Cache(cache.root, refresh=True)
    assert not take(fresh, make=maker).hit
    assert maker.made == 1
    assert take(cache).hit


def test_no_cache_keeps_nothing(tmp_path: Path) -> None:
    assert not take(c.Cache(None)).hit
    assert list(tmp_path.iterdir()) == []


def test_entries_are_the_same_bytes_for_the_same_artifact(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        cache = c.open_cache(tmp_path / name)
        folders.append(entry_of(cache, take(cache)))
    names = sorted(os.listdir(folders[0]))
    assert names == ["arrays.safetensors", "facts.json", "manifest.json"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


# Kills ----------------------------------------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "close", "rename", "replace", "link", "mkdir", "unlink", "rmdir", "utime")


class Injected:
    """Replaces the system calls of `os` by ones that misbehave at the n-th call from now on."""

    def __init__(self, act: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any], at: int, lasting: bool) -> None:
        self.act, self.at, self.lasting = act, at, lasting
        self.count = 0
        self.real = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> Injected:
        for name, call in self.real.items():
            setattr(os, name, self.wrap(name, call))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self.real.items():
            setattr(os, name, call)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.lasting and self.count > self.at):
                return self.act(name, lambda: call(*args, **kwargs), args)
            return call(*args, **kwargs)

        return instead


def die(before: bool) -> Callable[..., Any]:
    def act(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if name == "write" and before:
            os.pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], 0)  # half of it reached the disk
        elif not before:
            with contextlib.suppress(OSError):
                call()
        os.kill(os.getpid(), signal.SIGKILL)

    return act


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked child; minus the signal that ended it, or its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 minds forks beside threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@posix
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("held", ["nothing", "damaged", "refreshed"])
def test_sigkill_at_any_system_call_leaves_no_entry_that_reads_as_finished(
    tmp_path: Path, before: bool, held: str
) -> None:
    expected = make_tiny(Knobs())
    points = 0
    for at in range(1, 400):
        root = tmp_path / str(at)
        cache = c.open_cache(root)
        if held != "nothing":
            folder = entry_of(cache, take(cache))
            if held == "damaged":
                (folder / "facts.json").write_bytes(b"{}")
        work = c.Cache(root, refresh=held == "refreshed")

        def run(work: c.Cache = work, at: int = at) -> None:
            with Injected(die(before), at, lasting=False):
                take(work)

        code = in_child(run)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        points += 1
        found = c.entries(root, check=True)
        if held == "damaged":  # the damaged one may still stand, as damaged
            assert all(not entry.damage or "facts.json" in entry.damage for entry in found)
        else:
            assert all(not entry.damage for entry in found)
        again = take(cache, watch=(listener := Listener()))
        assert same(again.artifact, expected)
        assert "cache-not-written" not in listener.codes
        assert [entry.damage for entry in c.entries(root, check=True)] == [""]
        shutil.rmtree(root)
    else:
        pytest.fail("the run never came to its end")
    assert points >= 20


@posix
@pytest.mark.slow
def test_kill_then_torn_file_then_run_is_right(tmp_path: Path) -> None:
    """A power cut may also tear what a kill left: cut it, zero a part of it, or swap two parts."""
    chance = random.Random(0)
    expected = make_tiny(Knobs())
    for at in range(1, 60):
        root = tmp_path / str(at)
        cache = c.open_cache(root)

        def run(cache: c.Cache = cache, at: int = at) -> None:
            with Injected(die(True), at, lasting=False):
                take(cache)

        in_child(run)
        for path in [path for path in root.rglob("*") if path.is_file()]:
            data = bytearray(path.read_bytes())
            if not data:
                continue
            spot = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    del data[spot:]
                case 1:
                    data[spot : spot + 64] = bytes(len(data[spot : spot + 64]))
                case 2:
                    data = data[spot:] + data[:spot]
            path.write_bytes(data)
        assert same(take(cache).artifact, expected)
        assert same(take(cache).artifact, expected)
        shutil.rmtree(root)


@posix
def test_everything_is_synced_before_the_rename_that_shows_it(tmp_path: Path) -> None:
    cache = c.open_cache(tmp_path / "cache")
    log: list[tuple[str, Any]] = []
    paths: dict[int, str] = {}

    def act(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        result = call()
        if name == "open":
            paths[result] = os.fspath(args[0])
        elif name in ("write", "fsync"):
            log.append((name, paths.get(args[0])))
        elif name == "rename":
            log.append((name, (os.fspath(args[0]), os.fspath(args[1]))))
        return result

    with Injected(act, at=1, lasting=True):
        take(cache)
    publish = next(i for i, (name, what) in enumerate(log) if name == "rename" and "entries" in what[1])
    draft, target = log[publish][1]
    written = {path for name, path in log[:publish] if name == "write" and path.startswith(draft)}
    synced = {path for name, path in log[:publish] if name == "fsync"}
    assert len(written) == 3
    assert written <= synced
    assert draft in synced  # the folder itself
    assert ("fsync", os.path.dirname(target)) in log[publish:]
    for path in written:
        assert max(i for i, row in enumerate(log) if row == ("write", path)) < log.index(("fsync", path))


# Full and read-only disks ---------------------------------------------------------------------------------------------


def fail_with(number: int) -> Callable[..., Any]:
    def act(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return act


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_any_system_call_may_fail_and_the_result_is_still_right(tmp_path: Path, number: int, lasting: bool) -> None:
    expected = make_tiny(Knobs())
    warned = 0
    for at in range(1, 400):
        root = tmp_path / str(at)
        cache = c.open_cache(root)
        listener = Listener()
        injected = Injected(fail_with(number), at, lasting)
        try:
            with injected:
                kept = take(cache, watch=listener)
        finally:
            failed = injected.count >= at
        assert same(kept.artifact, expected)
        assert set(listener.codes) <= {"cache-not-written"}
        assert len(listener.codes) <= 1
        warned += bool(listener.codes)
        assert all(not entry.damage for entry in c.entries(root, check=True))
        assert same(take(cache).artifact, expected)  # the disk has recovered
        shutil.rmtree(root)
        if not failed:
            break
    else:
        pytest.fail("the run never came to its end")
    assert warned


def test_short_writes_are_finished(cache: c.Cache) -> None:
    def one_byte(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        return (
            os.pwrite(args[0], bytes(args[1])[:7], os.lseek(args[0], 7, os.SEEK_CUR) - 7) if name == "write" else call()
        )

    with Injected(one_byte, at=1, lasting=True):
        take(cache)
    assert take(cache).hit


@posix
def test_file_size_limit_of_the_kernel_is_survived(cache: c.Cache) -> None:
    """EFBIG from the real kernel, half-way through a file."""

    def run() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        listener = Listener()
        kept = take(cache, watch=listener)
        assert same(kept.artifact, make_tiny(Knobs()))
        assert listener.codes == ["cache-not-written"]

    assert in_child(run) == 0
    assert cache.root and not c.entries(cache.root)
    assert c.listing(cache.root / "drafts") == []


def as_nobody(work: Callable[[], None]) -> int:
    """Runs `work` without root's power to write anywhere."""

    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_child(run)


@posix
def test_read_only_cache_serves_its_hits_and_warns_once_for_a_miss(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
            with contextlib.suppress(OSError):
                folder.chmod(folder.stat().st_mode | 0o055)
    cache = c.open_cache(tmp_path / "cache")
    take(cache)
    assert cache.root
    for path in [cache.root, *cache.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def run() -> None:
        listener = Listener()
        assert take(cache, watch=listener).hit
        assert listener.codes == []
        kept = take(cache, Knobs(seed=5), watch=listener)
        assert same(kept.artifact, make_tiny(Knobs(seed=5)))
        assert listener.codes == ["cache-not-written"]

    try:
        assert as_nobody(run) == 0
    finally:
        for path in [cache.root, *cache.root.rglob("*")]:
            path.chmod(0o755)


def test_cache_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    with Injected(fail_with(errno.EROFS), at=1, lasting=True):
        cache = c.open_cache(tmp_path / "cache")
        listener = Listener()
        kept = take(cache, watch=listener)
    assert same(kept.artifact, make_tiny(Knobs()))
    assert listener.codes == ["cache-not-written"]
    assert listener.cautions[0].about_run


# Damage ---------------------------------------------------------------------------------------------------------------


def flips(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of an entry with every byte changed in turn."""
    chance = random.Random(1)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for spot in range(len(whole)):
            yield path, whole[:spot] + bytes([whole[spot] ^ (1 << chance.randrange(8))]) + whole[spot + 1 :]


def test_every_flipped_bit_is_seen(cache: c.Cache) -> None:
    folder = entry_of(cache, take(cache))
    count = 0
    for path, damaged in flips(folder):
        whole = path.read_bytes()
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError, KeyError, TypeError)):
            c.read_entry(folder, folder.name)
        path.write_bytes(whole)
        count += 1
    assert count > 500
    c.read_entry(folder, folder.name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def extra_file(path: Path) -> None:
    (path.parent / "extra").write_bytes(b"x")


def deep_json(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


@pytest.mark.parametrize("name", ["manifest.json", "facts.json", "arrays.safetensors"])
@pytest.mark.parametrize(
    "damage", [cut, empty, extend, remove, link, folder_instead, pipe_instead, foreign, extra_file, deep_json]
)
def test_damage_is_a_miss_with_one_note_and_the_right_answer(
    cache: c.Cache, name: str, damage: Callable[[Path], None]
) -> None:
    folder = entry_of(cache, take(cache))
    damage(folder / name)
    listener = Listener()
    kept = take(cache, watch=listener)
    assert not kept.hit
    assert same(kept.artifact, make_tiny(Knobs()))
    assert listener.codes == ["cache-damaged"]
    assert take(cache).hit
    assert cache.root and len(c.listing(cache.root / "quarantine")) == 1


def test_entry_of_another_key_is_not_taken_for_this_one(cache: c.Cache) -> None:
    one, other = take(cache), take(cache, Knobs(seed=9))
    shutil.rmtree(entry_of(cache, one))
    shutil.copytree(entry_of(cache, other), entry_of(cache, one))
    listener = Listener()
    kept = take(cache, watch=listener)
    assert same(kept.artifact, make_tiny(Knobs()))
    assert listener.codes == ["cache-damaged"]


def test_entry_of_another_artifact_is_not_taken_for_this_one(cache: c.Cache) -> None:
    """Well sealed, but holding what another version of the code would write."""

    @dataclass(frozen=True)
    class Odd:
        something: str

    key = take(cache).key
    assert cache.root
    shutil.rmtree(c.entry_folder(cache.root, key))
    c.keep(cache, c.Stage("tiny", 1, Odd), key, Odd("else"), [], silent)
    listener = Listener()
    assert same(take(cache, watch=listener).artifact, make_tiny(Knobs()))
    assert listener.codes == ["cache-damaged"]


def test_entry_that_is_a_file_is_damage(cache: c.Cache) -> None:
    folder = entry_of(cache, take(cache))
    shutil.rmtree(folder)
    folder.write_bytes(b"in the way")
    listener = Listener()
    assert same(take(cache, watch=listener).artifact, make_tiny(Knobs()))
    assert listener.codes == ["cache-damaged"]
    assert take(cache).hit


# Several processes ----------------------------------------------------------------------------------------------------

RACER = """
import sys, time
from pathlib import Path
from test_cache import *
root, start, locks, rounds = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if locks == "dead":
    import fcntl
    fcntl.flock = lambda *_: None  # as on some network file systems: everybody gets the lock
made = 0
for k in range(rounds):
    while time.time() < start + 0.15 * k:
        pass
    maker = Maker(Knobs(seed=k))
    kept = take(c.open_cache(root), Knobs(seed=k), make=maker)
    assert same(kept.artifact, make_tiny(Knobs(seed=k)))
    made += maker.made
print(made)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize("locks", ["alive", "dead"])
def test_many_processes_making_the_same_entry_all_succeed(tmp_path: Path, locks: str) -> None:
    rounds, racers = 5, 4
    here = {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", RACER, str(tmp_path / "cache"), str(time.time() + 3), locks, str(rounds)]
    running = [
        subprocess.Popen(command, env=os.environ | here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(racers)
    ]
    results = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert [code for _, code in results] == [0] * racers, results
    found = c.entries(tmp_path / "cache", check=True)
    assert len(found) == rounds
    assert not any(entry.damage for entry in found)
    assert c.listing(tmp_path / "cache" / "drafts") == []
    made = sum(int(out) for (out, _), _ in results)
    assert made == rounds if locks == "alive" else made >= rounds


def test_an_entry_that_appears_while_it_is_looked_for_is_not_taken_for_a_damaged_one(
    cache: c.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = c.read_entry
    folder = entry_of(cache, take(cache))
    shutil.move(folder, cache_beside := folder.with_suffix(".aside"))
    folder.mkdir()

    def appear(place: Path, key: str) -> Any:
        """Looks at what another process has half taken away; by the next look it has put the whole there."""
        monkeypatch.setattr(c, "read_entry", real)
        try:
            return real(place, key)
        finally:
            folder.rmdir()
            shutil.move(cache_beside, folder)

    monkeypatch.setattr(c, "read_entry", appear)
    listener = Listener()
    kept = take(cache, watch=listener)
    assert kept.hit
    assert listener.codes == []
    assert cache.root and not c.listing(cache.root / "quarantine")


@posix
def test_waiters_go_on_at_once_when_the_holder_is_killed(cache: c.Cache) -> None:
    ready, wait = os.pipe()

    def hold() -> None:
        with c.lock(cache, "k", "tiny", silent):
            os.write(wait, b"x")
            time.sleep(60)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        hold()
        os._exit(0)
    os.read(ready, 1)
    with (
        pytest.raises(BusyError, match=f"process {child}") as busy,
        c.lock(c.Cache(cache.root, 0.2), "k", "tiny", silent),
    ):
        pass
    assert busy.value.exit_code == 75
    assert str(cache.root) in busy.value.where

    killer = threading.Timer(0.3, os.kill, (child, signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    with c.lock(cache, "k", "tiny", silent):
        assert time.monotonic() - started < 1.3
    os.waitpid(child, 0)
    killer.join()
    os.close(ready)
    os.close(wait)


def test_readers_beside_eviction_see_whole_or_nothing(cache: c.Cache) -> None:
    assert cache.root
    stop = threading.Event()
    wrong: list[object] = []

    def evict() -> None:
        while not stop.is_set():
            c.clear(cache.root)  # type: ignore[arg-type]  # asserted above

    evictor = threading.Thread(target=evict)
    evictor.start()
    try:
        for k in range(150):
            listener = Listener()
            kept = take(cache, Knobs(seed=k % 3), watch=listener)
            if not same(kept.artifact, make_tiny(Knobs(seed=k % 3))):
                wrong.append(k)
    finally:
        stop.set()
        evictor.join()
    assert wrong == []


# Whose folder ---------------------------------------------------------------------------------------------------------


@posix
def test_cache_is_private_and_tagged(tmp_path: Path) -> None:
    cache = c.open_cache(tmp_path / "deep" / "cache")
    take(cache)
    assert cache.root
    for folder in [cache.root, *(path for path in cache.root.rglob("*") if path.is_dir())]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert (cache.root / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
@pytest.mark.parametrize("inner", ["", "entries"])
def test_cache_that_others_can_write_to_is_refused(tmp_path: Path, mode: int, inner: str) -> None:
    root = tmp_path / "cache"
    take(c.open_cache(root))
    (root / inner).chmod(mode)
    with pytest.raises(RefusedError, match="written by others"):
        c.open_cache(root)
    assert take(c.open_cache(root, shared=True)).hit


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give folders away")
def test_cache_of_another_user_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    c.open_cache(root)
    os.chown(root, 65534, 65534)
    with pytest.raises(RefusedError, match="another user"):
        c.open_cache(root)


def test_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(OutputError):
        c.open_cache(tmp_path / "cache")


@posix
def test_lock_that_is_a_link_is_not_followed(cache: c.Cache, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"sings")
    key = take(cache).key
    assert cache.root
    c.clear(cache.root)
    (cache.root / "locks").mkdir(exist_ok=True)
    (cache.root / "locks" / f"{key}.lock").symlink_to(canary)
    assert same(take(cache).artifact, make_tiny(Knobs()))
    assert canary.read_bytes() == b"sings"


# Keeping house --------------------------------------------------------------------------------------------------------


def test_prune_drops_what_was_not_used_for_longest(cache: c.Cache) -> None:
    assert cache.root
    keys = [take(cache, Knobs(seed=k)).key for k in range(4)]
    for age, key in enumerate(keys):
        os.utime(c.entry_folder(cache.root, key) / c.MANIFEST, (1000 + age, 1000 + age))
    take(cache, Knobs(seed=0))  # used just now
    size = c.entries(cache.root)[0].size
    dropped, freed = c.prune(cache.root, 2 * size)
    assert dropped == 2
    assert freed == 2 * size
    assert {entry.key for entry in c.entries(cache.root)} == {keys[0], keys[3]}


def test_unfinished_runs_that_nobody_goes_on_with_are_pruned(cache: c.Cache) -> None:
    assert cache.root
    for name in ("old", "young"):
        (cache.root / "partial" / name).mkdir(parents=True)
        (cache.root / "partial" / name / "checkpoint").write_bytes(b"x")
    os.utime(cache.root / "partial" / "old", (0, 0))
    c.prune(cache.root, 10**9)
    assert os.listdir(cache.root / "partial") == ["young"]


def test_where_there_are_no_locks_things_are_made_all_the_same(cache: c.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def no_locks(self: Any, **_: Any) -> None:
        raise NotImplementedError

    assert cache.root
    take(cache)
    monkeypatch.setattr(filelock.BaseFileLock, "acquire", no_locks)
    assert same(take(cache, Knobs(seed=1)).artifact, make_tiny(Knobs(seed=1)))
    c.prune(cache.root, 10**9)


def test_old_drafts_go_and_young_ones_stay(cache: c.Cache) -> None:
    assert cache.root
    drafts = cache.root / "drafts"
    drafts.mkdir(exist_ok=True)
    for name in ("old", "young"):
        (drafts / name).mkdir()
        (drafts / name / "half").write_bytes(b"x")
    os.utime(drafts / "old", (0, 0))
    take(cache)
    assert [path.name for path in c.listing(drafts)] == ["young"]


def test_clear_leaves_nothing_kept(cache: c.Cache) -> None:
    assert cache.root
    take(cache)
    assert c.clear(cache.root)[0] == 1
    assert c.entries(cache.root) == []
    assert not take(cache).hit


def test_verify_finds_damage_and_putting_aside_mends_it(cache: c.Cache) -> None:
    assert cache.root
    folder = entry_of(cache, take(cache))
    cut(folder / "facts.json")
    damaged = [entry for entry in c.entries(cache.root, check=True) if entry.damage]
    assert [entry.key for entry in damaged] == [folder.name]
    c.put_aside(cache.root, damaged)
    assert c.entries(cache.root, check=True) == []


def test_file_digest_is_remembered_until_the_file_changes(cache: c.Cache, tmp_path: Path) -> None:
    import hashlib

    weights = tmp_path / "weights"
    weights.write_bytes(b"one" * 1000)
    first = c.file_digest(cache, weights)
    assert first.sha256 == hashlib.sha256(b"one" * 1000).hexdigest()
    assert first.md5 == hashlib.md5(b"one" * 1000).hexdigest()
    assert c.file_digest(cache, weights) == first
    weights.write_bytes(b"two" * 1000)
    assert c.file_digest(cache, weights).sha256 == hashlib.sha256(b"two" * 1000).hexdigest()


def test_damaged_memo_of_a_digest_is_not_believed(cache: c.Cache, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    right = c.file_digest(cache, weights)
    assert cache.root
    (memo,) = c.listing(cache.root / "digests")
    whole = json.loads(memo.read_bytes())
    whole["content"]["sha256"] = "0" * 64
    memo.write_bytes(json.dumps(whole).encode())
    assert c.file_digest(cache, weights) == right


def test_publishing_over_a_whole_entry_keeps_the_first(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    assert durable.publish_folder({"a": b"1"}, tmp_path / "draft1", target)
    assert not durable.publish_folder({"a": b"2"}, tmp_path / "draft2", target)
    assert (target / "a").read_bytes() == b"1"
    assert [path.name for path in c.listing(tmp_path)] == ["entry"]


def test_a_lift_that_could_not_be_kept_leaves_what_is_unfinished(
    cache: c.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = c.entry_key(TINY, ["photo"], Knobs())
    unfinished = c.partial_folder(cache, key)
    assert unfinished
    (unfinished / "checkpoint").write_bytes(b"hours")
    real = durable.publish_folder

    def full(*_: Any) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "publish_folder", full)
    listener = Listener()
    take(cache, watch=listener)
    assert listener.codes == ["cache-not-written"]
    assert (unfinished / "checkpoint").read_bytes() == b"hours"
    monkeypatch.setattr(durable, "publish_folder", real)
    take(cache)
    assert not unfinished.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_can_sync_no_folder_is_one_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(durable.os, "fsync", fsync)
    if number == errno.EIO:  # something is really wrong
        with pytest.raises(OSError, match="Input/output"):
            durable.write_file(tmp_path / "x", b"whole", overwrite=False)
    else:
        durable.write_file(tmp_path / "x", b"whole", overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_cache_whose_mark_could_not_be_made_gets_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = durable.write_file

    def full(path: Path, *rest: Any, **more: Any) -> None:
        (path.parent / ".zero123-0123.tmp").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_file", full)
    cache = c.open_cache(tmp_path / "cache")
    listener = Listener()
    take(cache, watch=listener)
    assert listener.codes == ["cache-not-written"]
    monkeypatch.setattr(durable, "write_file", real)
    take(cache)
    c.refuse_no_cache(tmp_path / "cache")
    assert take(cache).hit


def test_an_entry_that_is_dropped_while_all_are_checked_is_not_damaged(
    cache: c.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = entry_of(cache, take(cache))
    real = c.read_regular

    def read(path: Path) -> bytes:
        shutil.rmtree(folder, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(c, "read_regular", read)
    assert cache.root and c.entries(cache.root, check=True) == []


def test_what_was_made_anew_since_it_was_found_damaged_stays(cache: c.Cache) -> None:
    folder = entry_of(cache, take(cache))
    sound = (folder / "arrays.safetensors").read_bytes()
    (folder / "arrays.safetensors").write_bytes(b"damage")
    assert cache.root
    damaged = c.entries(cache.root, check=True)
    (folder / "arrays.safetensors").write_bytes(sound)
    assert c.put_aside(cache.root, damaged)
    assert take(cache).hit
