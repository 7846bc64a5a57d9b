"""What people and scripts see. stdout carries results only; all else goes to stderr.

On a terminal a bar moves; elsewhere there is one line at the start and end of each piece of work and at most one every
few seconds between, without carriage returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..batch import Outcome
from ..errors import DiskError, Zero123Error, reason_of
from ..watch import Caution, Progress, Watch

COLOURS = {"red": "31", "yellow": "33", "dim": "2"}
LINE_EVERY = 5.0  # s between progress lines off a terminal

Bars = Literal["auto", "bar", "lines", "none"]
Colour = Literal["auto", "always", "never"]


class Screen:
    """The two streams of this process and how they are used. There is one, `screen` below."""

    def __init__(self) -> None:
        self.json = "--json" in sys.argv[1:]  # also before the call is parsed: its errors must be JSON too
        self.quiet = False
        self.verbosity = 2 if os.environ.get("ZERO123_DEBUG") else 0
        self.bars = False
        self.lines = True
        self.coloured = False
        self.said: set[str] = set()
        self.last_line = 0.0
        self.bar: Any = None
        self.stdout_open = True
        self.unsaid = 0  # the exit code of results that could not be printed

    def configure(self, *, json: bool, quiet: bool, verbose: int, progress: Bars, color: Colour) -> None:
        self.json = json
        self.quiet = quiet
        self.verbosity = max(verbose, self.verbosity)
        lively = is_lively_terminal(os.environ)
        self.bars = progress == "bar" or (progress == "auto" and lively and not quiet)
        self.lines = not self.bars and progress != "none" and not quiet
        self.coloured = color == "always" or (color == "auto" and lively and not os.environ.get("NO_COLOR"))

    def hush(self) -> None:
        """Errors only from now on."""
        self.quiet, self.bars, self.lines = True, False, False

    # Results

    def result(self, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
        """One path a line, or one JSON object a line."""
        if self.json:
            self.print(json.dumps(facts, default=str).encode())
        else:
            self.print(os.fsencode(path))

    def print(self, line: bytes) -> None:
        """A line on stdout, byte for byte. A closed pipe is not an error; a full disk behind it is."""
        if sys.stdout is None or not self.stdout_open:
            return
        try:
            with self.bar.aside() if self.bar is not None and sys.stdout.isatty() else contextlib.nullcontext():
                sys.stdout.flush()
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            self.close_stdout()
        except OSError as error:
            self.close_stdout()
            reason = reason_of(error)
            lost = DiskError(reason, where="standard output", remedy="the outputs themselves are written")
            self.unsaid = lost.exit_code  # the work goes on
            self.error(lost)

    def flush(self, code: int) -> int:
        """The exit code once all that was printed is out; what cannot be written is not tried again at the end."""
        if sys.stdout is None or not self.stdout_open:
            return code
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self.close_stdout()
        except OSError as error:
            self.close_stdout()
            if not code:
                lost = DiskError(reason_of(error), where="standard output")
                self.error(lost)
                return lost.exit_code
        return code

    def close_stdout(self) -> None:
        """Points stdout nowhere, so that nothing is flushed into a closed pipe at the end."""
        self.stdout_open = False
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def outcome(self, outcome: Outcome) -> None:
        """What came of one input: its path or its object on stdout, its error on stderr."""
        if outcome.error:
            self.failed(outcome.error, outcome.error.__cause__, outcome.source)
        elif self.json:
            self.result("", outcome.facts)
        else:
            for path in outcome.facts.get("outputs") or [outcome.facts["output"]]:
                self.result(path)

    def failed(self, error: Zero123Error, cause: BaseException | None = None, source: str = "") -> None:
        """One line on stderr, and with --json an object on stdout."""
        if self.verbosity >= 2 and cause is not None:
            import traceback

            self.write("".join(traceback.format_exception(cause)))
        self.error(error)
        if self.json:
            facts = {"status": "error", "code": error.exit_code, "what": error.what, "remedy": error.remedy}
            self.result("", ({"input": source} if source else {}) | {"where": error.where} | facts)

    # All else

    def line(self, text: str, colour: str = "") -> None:
        text = printable(text)
        if self.coloured and colour:
            text = f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Text on stderr as it is, above the bar if there is one."""
        if self.bar is not None:
            self.bar.above(text)
        elif sys.stderr is not None:
            with contextlib.suppress(OSError):  # nobody is there to be told
                sys.stderr.write(text)
                sys.stderr.flush()

    def note(self, text: str) -> None:
        """What a person may want to know; nothing with --quiet."""
        if not self.quiet:
            self.line(text, "dim")

    def error(self, error: Zero123Error) -> None:
        self.line(f"zero123: error[{error.exit_code}]: {error}", "red")

    def watcher(self, source: str) -> Watch:
        """What the stages call while they work on `source`."""

        clock = Clock()

        def watch(message: Progress | Caution) -> None:
            if isinstance(message, Caution):
                self.caution(message, source)
                return
            if message.picture and message.picture not in self.said:
                self.said.add(message.picture)
                self.note(f"{message.stage}: how it looks so far: {message.picture}")
            said = clock.describe(message)
            if self.bar is not None:
                self.bar.show(said)
            elif self.lines and time.monotonic() - self.last_line > LINE_EVERY:
                self.last_line = time.monotonic()
                self.line(said)

        return watch

    def caution(self, caution: Caution, source: str) -> None:
        """A warning, each but once."""
        about = "" if caution.about_run else f"{source}: "
        text = f"zero123: warning[{caution.code}]: {about}{caution}"
        if text not in self.said and not self.quiet:
            self.said.add(text)
            self.line(text, "yellow")

    def start(self, text: str, number: int, total: int) -> None:
        """A piece of work begins: one input of `total`."""
        if self.bars and self.bar is None:
            from .bars import Bar

            self.bar = Bar(total, self.coloured)
        if self.bar is not None:
            self.bar.begin(text, number)
        elif self.lines:
            self.last_line = time.monotonic()
            self.line(text + (f" ({number} of {total})" if total > 1 else ""))

    def finish(self, text: str) -> None:
        """A piece of work is over."""
        if self.bar is not None or self.lines:
            self.line(text)

    def stop(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def panel(self, rows: Mapping[str, str]) -> None:
        """What is worth knowing at the end, in a frame."""
        if not self.quiet:
            from .bars import panel_of

            self.write(panel_of(rows, self.coloured))

    def summary(self, outcomes: Sequence[Outcome]) -> None:
        """Which of several inputs got which, when not all went well."""
        failed = [outcome for outcome in outcomes if outcome.error]
        if len(outcomes) < 2 or self.quiet:
            return
        if not failed:
            self.note(f"{len(outcomes)} of {len(outcomes)} done")
            return
        from .bars import outcome_table

        self.write(outcome_table(outcomes, self.coloured))
        self.line(f"{len(outcomes) - len(failed)} of {len(outcomes)} done, {len(failed)} failed")


class Clock:
    """Tells the time that is left of a stage from the time that its steps took."""

    def __init__(self) -> None:
        self.stage = ""
        self.first = 0
        self.started = 0.0

    def describe(self, message: Progress) -> str:
        """Steps, seconds left and what is going on, in one line."""
        now = time.monotonic()
        if message.stage != self.stage or message.done < self.first:
            self.stage, self.first, self.started = message.stage, message.done, now
        parts = [message.stage]
        if message.total > 1:
            parts[0] += f" {message.done}/{message.total}"
            if message.done > self.first:
                left = (now - self.started) / (message.done - self.first) * (message.total - message.done)
                parts.append(f"{left:.0f} s left")
        return ", ".join(parts + [message.text] * bool(message.text))


def is_lively_terminal(environ: Mapping[str, str]) -> bool:
    """Whether stderr is a terminal that can move its cursor, with a person before it."""
    return bool(sys.stderr and sys.stderr.isatty()) and not environ.get("CI") and environ.get("TERM", "dumb") != "dumb"


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes escaped: a file name must not steer the terminal."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = (sys.stderr and sys.stderr.encoding) or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


screen = Screen()
