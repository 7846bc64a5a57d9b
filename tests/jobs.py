"""Jobs that misbehave, importable by their names from a fresh process."""

from __future__ import annotations

import os
import signal
import time


def misbehave(job: str) -> str:
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "leave":
        os._exit(7)
    if job == "hang":
        time.sleep(60)
    if job == "raise":
        raise ValueError("no such shape")
    if job == "eat":
        return str(len(bytearray(8 * 10**9)))
    return job.upper()
