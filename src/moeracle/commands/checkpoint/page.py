"""The page of `moeracle checkpoint show` and `diff`: tables and sentences, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    style = (HERE.parents[1] / "properties" / "report" / "html" / "page.css").read_text(encoding="utf-8")
    options: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    template = Environment(loader=FileSystemLoader(HERE), **options).get_template("page.html")
    text = template.render(title=title, lines=lines, problems=problems, notes=notes, tables=tables, style=style)
    write_atomically(path, text)
