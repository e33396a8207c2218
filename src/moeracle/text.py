"""Text that others wrote, such as a kernel's name or an exception's words, as it may be printed."""

from __future__ import annotations

import re

# Control bytes but newline, what turns the direction of writing, and halves of a surrogate pair.
_UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with escapes, like \x1b, for what would drive a terminal or that UTF-8 cannot say."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Return a text as `printable` does, on one line: a newline is \n."""
    return printable(text).replace("\n", "\\n")
