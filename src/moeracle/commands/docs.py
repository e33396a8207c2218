"""`moeracle docs`: the documents that come with an installation, on the terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import moeracle
from moeracle.ref.errors import unknown

from .console import print_table, say


def pages() -> dict[str, Path]:
    """Return the documents by name, in the order of their names."""
    return {path.stem: path for path in sorted((Path(moeracle.__file__).parent / "docs").glob("*.md"))}


def run_docs(page: str | None) -> int:
    """Print one document, or the list of all.

    Raises:
        ValueError: there is no such page, or none came with this installation.
    """
    all_pages = pages()
    if not all_pages:
        raise ValueError("docs: no documents came with this installation")
    if page is None:
        print_table(["page", "about"], [(name, _title(path)) for name, path in all_pages.items()], text_columns=2)
        say("moeracle docs PAGE prints one")
        return 0
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in all_pages:
        raise unknown("page", page, all_pages)
    text = all_pages[name].read_text(encoding="utf-8")
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        with console.pager(styles=True):
            console.print(Markdown(text))
    else:
        say(text)
    return 0


def _title(path: Path) -> str:
    """Return a document's first heading."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].replace("`", "") if found else path.stem
