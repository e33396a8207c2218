"""A user's kernel file, and what a command left."""

from __future__ import annotations

from typing import NamedTuple

RIGHT = """
import torch
import moeracle

@moeracle.kernel("int4_linear", layout="exllama")
def my_linear(x, w, bias):
    weight = w.dequantize(torch.float32).to(x.dtype).float()
    y = x.float() @ weight.T
    return (y if bias is None else y + bias.float()).to(x.dtype)
"""


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str
