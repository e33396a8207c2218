"""A file of hostile kernels, with an honest one after them, judged by the command in a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[1] / "hostile" / "kernels"
CASE = "silu_and_mul/T3-I8/bf16/-/-/normal/s1"
RIGHT = """

@moeracle.kernel("silu_and_mul", contract="grouped")
def honest(h):
    import torch
    gate, up = h.float().chunk(2, 1)
    return torch.nn.functional.silu(gate).to(h.dtype) * up.to(h.dtype)
"""


def check(folder: Path, file: str, *options: str, cases: tuple[str, ...] = (CASE,)) -> tuple[Any, str, dict[str, Any]]:
    """Return the finished process, what it printed, and its JSON by kernel, for a file with an honest kernel added."""
    (folder / file).write_text((KERNELS / file).read_text() + RIGHT)
    command = [sys.executable, "-m", "moeracle", "check", file, *options, "--json", "out.json", "--junit", "out.xml"]
    for case in cases:
        command += ["--case", case]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    report = json.loads((folder / "out.json").read_text())
    return done, done.stdout, {kernel["kernel"]: kernel for kernel in report["kernels"]}
