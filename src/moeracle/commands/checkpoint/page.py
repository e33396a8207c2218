"""The page of `moeracle checkpoint show` and `diff`: tables and sentences, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moeracle.files import write_atomically

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        title: above it.
        columns: headings.
        rows: cells as text.
        text_columns: how many are text, the others being numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def write_page(
    path: Path, title: str, lines: Sequence[str], problems: Sequence[str], notes: Sequence[str], tables: Sequence[Table]
) -> None:
    """Write a page, whole or not at all.

    Args:
        path: the file.
        title: what it is of.
        lines: below the title.
        problems, notes: sentences.
        tables: with their titles.
    """
    from moeracle.properties.report.html.page import style, template

    page = template("page.html", HERE)
    text = page.render(title=title, lines=lines, problems=problems, notes=notes, tables=tables, style=style())
    write_atomically(path, text)
