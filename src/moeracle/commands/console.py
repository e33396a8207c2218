"""Printing: rich on a terminal, plain and unwrapped when piped; progress goes to stderr, results to stdout."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from moeracle.text import one_line, printable

# A line of plain progress at most this often: a log should grow by minutes, not by cases.
PLAIN_EVERY = 5.0
BAR_WIDTH = 60  # of what runs, on a terminal
STEADY_EVERY = 10.0  # seconds between lines that come whether or not anything was done


def say(text: str = "") -> None:
    """Print text as it is: no wrapping, no markup; control bytes but newline as escapes."""
    if sys.stdout is None:
        return
    try:
        print(_encodable(printable(text), sys.stdout), flush=True)
    except OSError as error:
        _lose_stdout(error)


def note(text: str) -> None:
    """Print one line on stderr."""
    with suppress(OSError, AttributeError):  # it is closed or full, and there is nowhere else to say so
        print(_encodable(one_line(text), sys.stderr), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    """Print one line on stderr that says what is wrong."""
    note(f"error: {text}")


def _encodable(text: str, stream: Any) -> str:
    """Return text with escapes for what a stream's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


_lost: list[str] = []


def _lose_stdout(error: OSError) -> None:
    """Go on without stdout, whose reader has gone or whose disk is full: reports are still to be written."""
    if not _lost:
        print_error(f"stdout: {error.strerror}; the rest is not printed")
    _lost.append(error.strerror or "")
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def stdout_lost() -> bool:
    """Say whether something could not be printed since this was asked last."""
    with suppress(AttributeError, ValueError):
        try:
            sys.stdout.flush()
        except OSError as error:
            _lose_stdout(error)
    lost, _lost[:] = bool(_lost), []
    return lost or sys.stdout is None


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, text_columns: int = 1, title: str = ""
) -> None:
    """Print a table; the first `text_columns` columns are text, the others are aligned to the right.

    Args:
        columns: headings.
        rows: one sequence of cells a row.
        title: a line above the table, or "".
    """
    cells = [[one_line(str(c)) for c in row] for row in rows]
    if sys.stdout is None or not sys.stdout.isatty():
        _print_plain(columns, cells, text_columns, title)
        return
    from rich.console import Console

    Console().print(table_for(columns, cells, text_columns, title, Console().width))


def table_for(columns: Sequence[str], cells: list[list[str]], text_columns: int, title: str, width: int) -> Any:
    """Return what rich prints of a table: one line a row where that fits; else a block a row. No word is broken.

    Args:
        columns, text_columns, title: as in `print_table`.
        cells: of each row.
        width: of the terminal.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left")
    wide = Console(width=1 << 16)
    spare = width
    for i, column in enumerate(columns):
        words = [word for cell in (column, *(row[i] for row in cells)) for word in _words(cell, i < text_columns)]
        least, wraps = max(map(cell_len, words)), any(" " in row[i] for row in cells) and i < text_columns
        spare -= least
        justify: Any = "left" if i < text_columns else "right"
        table.add_column(column, justify=justify, no_wrap=not wraps, min_width=least)
    for row in cells:
        table.add_row(*(Text(c) for c in row))
    natural = [max(cell_len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    if table.__rich_measure__(wide, wide.options).maximum - sum(natural) <= spare:  # what rich puts between columns
        return table
    blocks = [Text(title, "italic")] if title else []
    for row in cells:
        named = [(column, cell) for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
        blocks += [Text(row[0], "bold"), *_filled(named, width), Text()]
    return Group(*blocks)


def _words(cell: str, is_text: bool) -> list[str]:
    return (cell.split() if is_text else [cell]) or [""]


def _filled(named: Sequence[tuple[str, str]], width: int) -> list[Any]:
    """Return lines of "name cell" pairs, as many on each as a terminal of this width has room for; one at least."""
    from rich.text import Text

    lines: list[Any] = []
    for name, cell in named:
        pair = Text.assemble((name, "dim"), " ", cell)
        if lines and lines[-1].cell_len + 3 + pair.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "   ", pair)
        else:
            whole = not {" "} & set(cell)  # a word that is longer than the terminal goes on beyond it
            lines.append(Text.assemble("  ", pair, no_wrap=whole, overflow="ignore" if whole else "fold"))
    return lines


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
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        if isinstance(error, KeyboardInterrupt) and str(error):
            note(f"interrupted: {error}")  # where a kernel hangs shows only here

    def start(self, who: str) -> None:
        """Turn to the next kernel."""
        self.who, self.last_line = one_line(who), time.monotonic()
        if self.bar is not None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(self.who, total=None)

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self.who}  {phase}", completed=done, total=max(total, done))
        elif time.monotonic() - self.last_line >= self.every:
            self.last_line = time.monotonic()
            note(f"{self.who}: {phase} {done}/{total}")

    def note(self, text: str) -> None:
        """Say one line at once, without disturbing the bar."""
        if self.bar is not None:
            from rich.text import Text

            self.bar.console.print(Text(one_line(text)))
        else:
            note(text)


class SteadyProgress(Progress):
    """Progress of one long piece of work: what runs, how fast, and the time left, also while nothing becomes ready."""

    def __init__(self) -> None:
        super().__init__()
        self.every = STEADY_EVERY
        self.state = ("", 0, 0)
        self.first = 0  # what was done before this began
        self.began = 0.0
        self.ended = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def start(self, who: str) -> None:
        """Begin."""
        super().start(who)
        self.began = time.monotonic()
        if self.bar is None:
            self.ticker.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ended.set()
        super().__exit__(kind, error, tb)

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self.state[2]:
            self.first = done
        self.state = phase, done, total
        if self.bar is not None:
            super().__call__(f"{phase[:BAR_WIDTH]}  {self._left()}", done, total)

    def line(self) -> str:
        """Return the line that is printed now."""
        phase, done, total = self.state
        return f"{self.who}: {done}/{total}{self._left()}; now {phase}"

    def _left(self) -> str:
        _, done, total = self.state
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        return f", {rate:.2g}/s, {(total - done) / rate:.0f} s left" if rate else ""

    def _tick(self) -> None:
        while not self.ended.wait(self.every):
            note(self.line())
