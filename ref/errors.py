"""One-line errors for a caller's mistake: what the argument was, what it must be, the nearest legal name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMED = 24  # longer lists are cut: the nearest name is what helps


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
    shown = names if len(names) <= MOST_NAMED else [*names[: MOST_NAMED // 2], "…", names[-1]]
    return ValueError(f"{what}: got {got!r}, must be one of {', '.join(shown)}{hint}")


def require(ok: bool, message: str) -> None:
    """Raise ValueError(message) unless `ok`; the message names the argument, what it was and what it must be."""
    if not ok:
        raise ValueError(message)
