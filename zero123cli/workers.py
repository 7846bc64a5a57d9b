"""Jobs in child processes with limits: a job that crashes, hangs or eats memory costs itself and nothing else.

Each worker is a fresh interpreter, told over a pipe which job comes next. A worker that dies or overstays its time is
replaced and its job reported as failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any


@dataclass(frozen=True)
class Result:
    """What came of a job: its value, or in one line why there is none."""

    job: Any
    value: Any = None
    failure: str = ""
    code: int = 0  # exit code of a failure that the job foresaw


@dataclass
class Worker:
    process: SpawnProcess
    pipe: Connection
    job: Any = None
    since: float = field(default_factory=time.monotonic)


def run_jobs(
    work: Callable[[Any], Any],  # importable by its name; a job and a value must survive pickling
    jobs: Iterable[Any],
    *,
    count: int,
    seconds: float,
    memory: int,  # bytes of address space a worker may have
) -> Iterator[Result]:
    """Does `work` for every job in `count` processes; results as they come."""
    todo = iter(jobs)
    workers: list[Worker] = []
    try:
        while len(workers) < count and (job := next(todo, None)) is not None:
            workers.append(employ(work, memory))
            hand_over(workers[-1], job)
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=0.5)
            for worker in list(workers):
                late = time.monotonic() - worker.since > seconds
                if worker.pipe not in ready and not late:
                    continue
                result, dead = collect(worker, late and worker.pipe not in ready)
                yield result
                following = next(todo, None)
                if dead or following is None:
                    dismiss(worker)
                    workers.remove(worker)
                if following is not None:
                    if dead:
                        worker = employ(work, memory)
                        workers.append(worker)
                    hand_over(worker, following)
    finally:
        for worker in workers:
            dismiss(worker)


def employ(work: Callable[[Any], Any], memory: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(work, theirs, memory, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def hand_over(worker: Worker, job: Any) -> None:
    worker.job, worker.since = job, time.monotonic()
    with contextlib.suppress(OSError):  # it died meanwhile: `collect` finds that out and says how
        worker.pipe.send((job,))


def collect(worker: Worker, late: bool) -> tuple[Result, bool]:
    """The worker's answer, and whether the worker is lost."""
    if late:
        return Result(worker.job, failure="it took too long"), True
    try:
        value, failure, exit_code = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        code = worker.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Result(worker.job, failure=f"its process ended ({how})"), True
    return Result(worker.job, value, failure, exit_code), False


def dismiss(worker: Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def serve(work: Callable[[Any], Any], pipe: Connection, memory: int, parent: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if memory and os.name != "nt":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    while True:
        try:
            (job,) = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (work(job), "", 0)
        except MemoryError:
            answer = (None, "out of memory", 0)
        except Exception as error:  # whatever a stranger's file does is told, not raised
            answer = (None, str(error) or type(error).__name__, getattr(error, "exit_code", 0))
        if os.getppid() != parent:
            return
        pipe.send(answer)
