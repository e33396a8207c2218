"""Putting a page together: template, style and script in one text that loads nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeracle.files import write_atomically

from .view import view_of

HERE = Path(__file__).parent


def render(runs: Sequence[dict[str, Any]]) -> str:
    """Return the page of one run, or of several with their history.

    Args:
        runs: the JSON of `moeracle check`, as plain values: view.read_run, or report's own.
    Raises:
        ValueError: in one line: what a file holds is not what its format says.
    """
    from jinja2 import UndefinedError

    view = view_of(runs)
    # Inside <script>, "</" would end it: whatever a kernel's name holds.
    maps = json.dumps(view.pop("maps"), separators=(",", ":")).replace("<", "\\u003c")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    try:
        return template("page.html").render(**view, maps_json=maps, style=style(), script=script)
    except (TypeError, ValueError, UndefinedError) as error:
        raise ValueError(f"report: the newest file is damaged ({str(error).splitlines()[0][:100]})") from None


@functools.cache
def template(name: str, folder: Path = HERE) -> Any:
    """Return one of the templates of a folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only who wants a page waits for it

    loader = FileSystemLoader([folder, HERE])  # every folder's templates share shared.html
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return env.get_template(name)


def style() -> str:
    """Return the style sheet that every page holds."""
    return (HERE / "page.css").read_text(encoding="utf-8")


def write_page(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write the page, whole or not at all."""
    write_atomically(path, render(runs))
