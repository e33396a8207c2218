"""One of n parts of all cases, so that n machines share one hunt: each case is judged in one part, whoever asks."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from moeracle.ref.errors import require

__all__ = ["Shard", "shard_named"]


class Shard(NamedTuple):
    """Part `place` of `of`, the first being 1.

    Args:
        place: 1 to `of`.
        of: how many parts there are.
    """

    place: int = 1
    of: int = 1

    def has(self, text: object) -> bool:
        """Say whether a case, or whatever else has this text, belongs to this part: by its digest, on every machine."""
        digest = hashlib.sha256(str(text).encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.place - 1


def shard_named(text: str | None, option: str = "--shard") -> Shard:
    """Return the part that "2/4" names; None: all there is.

    Args:
        text: I/N.
        option: what it was given by, for the message.
    Returns:
        Shard.
    Raises:
        ValueError: it names none.
    """
    if text is None:
        return Shard()
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    right = found is not None and 1 <= int(found[1]) <= int(found[2])
    require(right, f"{option}: got {text!r}, must be I/N with I from 1 to N, as 2/4")
    assert found is not None
    return Shard(int(found[1]), int(found[2]))
