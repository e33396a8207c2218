"""One-line errors for a caller's mistake: what the argument was, what it must be, the nearest legal name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, got: object, allowed: Iterable[str]) -> ValueError:
    """Return the ValueError for a name that is not in `allowed`, with the nearest legal name suggested.

    Args:
        what: the argument's name, e.g. "layout".
        got: what the caller gave.
        allowed: the legal names.
    """
    names = list(allowed)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{what}: got {got!r}, must be one of {', '.join(names)}{hint}")


def require(ok: bool, message: str) -> None:
    """Raise ValueError(message) unless `ok`; the message names the argument, what it was and what it must be."""
    if not ok:
        raise ValueError(message)
