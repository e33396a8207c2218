"""Printing: rich on a terminal, plain and unwrapped when piped; progress goes to stderr, results to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

# A line of plain progress at most this often: a log should grow by minutes, not by cases.
PLAIN_EVERY = 5.0


def say(text: str = "") -> None:
    """Print text exactly as it is: no wrapping, no markup."""
    print(text, flush=True)


def print_error(text: str) -> None:
    """Print one line on stderr that says what is wrong."""
    print(f"error: {text}", file=sys.stderr)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, text_columns: int = 1, title: str = ""
) -> None:
    """Print a table; the first `text_columns` columns are text, the others are aligned to the right.

    Args:
        columns: headings.
        rows: one sequence of cells a row.
        title: a line above the table, or "".
    """
    cells = [[str(c) for c in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(columns, cells, text_columns, title)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text_columns else "right", overflow="fold")
    for row in cells:
        table.add_row(*(Text(c) for c in row))
    Console().print(table)


def _print_plain(columns: Sequence[str], cells: list[list[str]], text_columns: int, title: str) -> None:
    if title:
        say(title)
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = [
            c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(padded).rstrip())


class Progress:
    """Tells on stderr how far a hunt is: a bar on a terminal, now and then a line when piped."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.who = ""
        self.last_line = 0.0
        self.every = PLAIN_EVERY

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        if isinstance(error, KeyboardInterrupt) and str(error):
            print(f"interrupted: {error}", file=sys.stderr, flush=True)  # where a kernel hangs shows only here

    def start(self, who: str) -> None:
        """Turn to the next kernel."""
        self.who, self.last_line = who, time.monotonic()
        if self.bar is not None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(who, total=None)

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self.who}  {phase}", completed=done, total=max(total, done))
        elif time.monotonic() - self.last_line >= self.every:
            self.last_line = time.monotonic()
            print(f"{self.who}: {phase} {done}/{total}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say one line at once, without disturbing the bar."""
        if self.bar is not None:
            from rich.text import Text

            self.bar.console.print(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)
