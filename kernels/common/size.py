"""The sizes of one problem that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Size:
    """The sizes of one problem, by the letters of CONTRIBUTING.md.

    Args:
        T: tokens.
        E, k: experts and experts a token.
        H, I: hidden and intermediate size.
        G: group size.
        V: rows of a language model's head.
        dtype: "bf16" or "fp16".
        zero: "sym", "rdna" or "unpacked".
    """

    T: int = 64
    E: int = 256
    k: int = 8
    H: int = 2048
    I: int = 512
    G: int = 128
    V: int = 248320
    dtype: str = "bf16"
    zero: str = "sym"

    def with_(self, **changes: Any) -> Size:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def __str__(self) -> str:
        return f"T{self.T}-E{self.E}-k{self.k}-H{self.H}-I{self.I}-G{self.G}/{self.dtype}/{self.zero}"
