"""One verdict as a notebook shows it: its text and its heat maps, with a style that touches nothing else there."""

from __future__ import annotations

import re

from ...common.verdict import Verdict
from .heat import heat_map
from .page import style, template

CLASSES = ("field", "inf", *(f"l{i}" for i in range(1, 8)))


def notebook_page(verdict: Verdict, text: str) -> str:
    """Return one verdict as HTML.

    Args:
        verdict: with the maps of its failure.
        text: what is printed of it.
    """
    first = re.search(r":root \{(.*?)\}", style(), re.DOTALL)
    colours = " ".join(re.findall(r"--[\w-]+: #\w+;", first[1])) if first else ""
    maps = [heat_map(found) for found in verdict.maps]
    page: str = template("notebook.html").render(
        status=verdict.status, text=text, maps=maps, colours=colours, classes=CLASSES
    )
    return page
