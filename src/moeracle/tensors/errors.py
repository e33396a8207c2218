"""What cannot be judged."""

from __future__ import annotations

__all__ = ["NotJudged"]


class NotJudged(ValueError):  # noqa: N818 - what it says is no error of the kernel
    """These tensors cannot be judged; the message says in one line what was given and what fits."""
