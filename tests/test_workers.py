"""Jobs in child processes: one that misbehaves costs itself and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from zero123cli.workers import collect, dismiss, employ, hand_over, run_jobs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")


def run(jobs: list[str], seconds: float = 20, count: int = 2) -> dict[str, tuple[object, str]]:
    import jobs as work

    results = run_jobs(work.misbehave, jobs, count=count, seconds=seconds, memory=4 * 10**9)
    return {result.job: (result.value, result.failure) for result in results}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find the jobs' module too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_every_job_is_done_once() -> None:
    jobs = [f"job{k}" for k in range(20)]
    assert run(jobs) == {job: (job.upper(), "") for job in jobs}


def test_one_that_misbehaves_costs_itself_only() -> None:
    done = run(["a", "crash", "b", "raise", "c", "leave", "d", "eat", "e"])
    assert {job for job, (value, _) in done.items() if value} == {"a", "b", "c", "d", "e"}
    assert done["crash"][1] == "its process ended (killed by SIGSEGV)"
    assert done["leave"][1] == "its process ended (exit code 7)"
    assert done["raise"][1] == "no such shape"
    assert done["eat"][1] == "out of memory"


def test_one_that_hangs_is_ended_in_time() -> None:
    started = time.monotonic()
    done = run(["hang", "a", "b"], seconds=3)
    assert time.monotonic() - started < 20
    assert done["hang"] == (None, "it took too long")
    assert {done[job][0] for job in ("a", "b")} == {"A", "B"}


def test_one_that_died_while_idle_is_told_like_any_other() -> None:
    import jobs as work

    worker = employ(work.misbehave, 4 * 10**9)
    worker.process.kill()
    worker.process.join()
    hand_over(worker, "a")
    result, lost = collect(worker, late=False)
    assert lost and result.failure == "its process ended (killed by SIGKILL)"
    dismiss(worker)


def test_leaving_early_ends_the_workers() -> None:
    import jobs as work

    results = run_jobs(work.misbehave, ["a", "hang", "hang"], count=2, seconds=60, memory=4 * 10**9)
    assert next(results).value == "A"
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]  # a generator
    assert time.monotonic() - started < 5
