"""SIGINT, SIGTERM and SIGHUP: clean up, say so, then die of the signal, so that shell loops stop too."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

HANDLED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(BaseException):
    """Raised where the program stands when a signal arrives; a BaseException, so that no handler of errors eats it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install() -> None:
    """The first signal raises Interrupted, a second one ends the process at once."""
    for number in HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a background job of a script
            signal.signal(number, interrupt)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    let_go()
    raise Interrupted(number)


def let_go() -> None:
    """At the end, when nobody is left to catch Interrupted: a signal ends the process itself."""
    for number in HANDLED:
        if signal.getsignal(number) == interrupt:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def put_off() -> Iterator[Callable[[], bool]]:
    """The first signal is only noted, for work that can stop at a good moment: Interrupted is raised at the end."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL)  # a second one ends the process at once

    before = {number: signal.getsignal(number) for number in HANDLED}
    before = {number: handler for number, handler in before.items() if handler == interrupt}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items() if not noted else ():
            signal.signal(number, handler)
    if noted:
        raise Interrupted(noted[0])


def die_of(number: int) -> NoReturn:
    """Ends the process the way the signal would have."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # where a signal cannot kill
