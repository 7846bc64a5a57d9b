"""What is drawn with rich: the moving bar and tables. Imported only when something is drawn."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ..batch import Outcome
from .screen import printable


class Bar:
    """One bar for the inputs, with the stage at hand beside it."""

    def __init__(self, total: int, coloured: bool) -> None:
        console = Console(stderr=True, no_color=not coloured, highlight=False)
        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self.bar = RichProgress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("", total=total)
        self.title = ""
        self.bar.start()

    def begin(self, title: str, number: int) -> None:
        self.title = printable(title)
        self.bar.update(self.task, description=self.title, completed=number - 1)

    def show(self, said: str) -> None:
        self.bar.update(self.task, description=f"{self.title} {printable(said)}")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar away while something else is written to the same terminal."""
        self.bar.stop()
        try:
            yield
        finally:
            self.bar.start()

    def above(self, text: str) -> None:
        self.bar.console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)

    def stop(self) -> None:
        self.bar.stop()


def outcome_table(outcomes: Sequence[Outcome], coloured: bool) -> str:
    table = Table("input", "code", "what", box=None, pad_edge=False)
    for outcome in outcomes:
        style = "red" if outcome.error else None
        said = outcome.error.what if outcome.error else "done"
        table.add_row(Text(printable(outcome.source)), str(outcome.exit_code), Text(printable(said)), style=style)
    return as_text(table, coloured)


def panel_of(rows: Mapping[str, str], coloured: bool) -> str:
    """Names and what there is to say of each, in a frame."""
    table = Table.grid(padding=(0, 2))
    for name, said in rows.items():
        table.add_row(Text(name, style="dim"), Text(printable(said), overflow="fold"))
    return as_text(Panel(table, expand=False), coloured)


def as_text(table: Table | Panel, coloured: bool) -> str:
    """A table as text, as wide as the terminal."""
    page = io.StringIO()
    Console(file=page, force_terminal=coloured, no_color=not coloured, width=None if coloured else 120).print(table)
    return page.getvalue()
