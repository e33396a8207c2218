"""A user's kernel file, a command run in this process, and what it left."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from moeracle.cli import main

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


def run_here(folder: Path, *words: str) -> Done:
    """Run `moeracle` in a folder, in this process, which has imported torch and forks children already."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
    finally:
        os.chdir(before)
        sys.path[:] = path
    printed = []
    for stream in (out, err):
        stream.seek(0)
        printed.append(stream.read())
    return Done(code, *printed)
