"""The JSON of a benchmark: written after every point, and read back to go on where a run was cut short."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from moeracle.bench.problems import Point
from moeracle.bench.suite import Suite
from moeracle.files import read_json
from moeracle.kernels import tuned
from moeracle.properties.report.report import isolation
from moeracle.target.declaration import Kernel

KEYS = ("kernel", "case", "why")
SAME = ("device", "versions", "against")  # what a run that goes on must share with the one before


def command_line() -> str:
    """Return the command as typed; of a file outside the current folder only the name, wherever it lay."""
    return " ".join(["moeracle", *(Path(word).name if word[:1] == "/" else word for word in sys.argv[1:])])


def gpu_name(device: str) -> str:
    """Return a device's name, "cpu" where there is no GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def versions() -> dict[str, Any]:
    """Return what the figures depend on."""
    import platform

    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if "triton" in sys.modules:
        found["triton"] = sys.modules["triton"].__version__
    return found


@cache
def driver() -> str:
    """Return the GPU driver's version, or "unknown"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def as_json(suite: Suite, baselines: Mapping[str, Kernel], **more: Any) -> dict[str, Any]:
    """Return everything a run found as plain values.

    Args:
        suite: that measured.
        baselines: second implementations by op.
        more: further fields of the file.
    """
    return {
        "format_version": 1,
        "kind": "moeracle kernels bench",
        "command": command_line(),
        "isolation": isolation(in_process=True),  # a clock stands beside the kernel
        "device": gpu_name(suite.device),
        "driver": driver(),
        "versions": versions(),
        "ceilings": dict(suite.ceilings),
        "against": {op: kernel.name for op, kernel in baselines.items()},
        **more,
        "rows": suite.found,
        "illegal": [dict(zip(KEYS, item, strict=True)) for item in suite.illegal],
        "skipped": [dict(zip(KEYS, item, strict=True)) for item in suite.skipped],
        "untuned": tuned.untuned(),
    }


def read(path: Path) -> dict[str, Any]:
    """Return a file that an earlier run wrote; empty if there is none.

    Raises:
        ValueError: it is no benchmark's JSON.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(path, dict[str, Any], "resume")
        _ = [found[name] for name in (*SAME, "ceilings", "command")], [(r["kernel"], r["case"]) for r in found["rows"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"resume: {path} is not a benchmark's JSON ({type(error).__name__}: {error})") from None
    return dict(found)


def go_on(suite: Suite, earlier: Mapping[str, Any], baselines: Mapping[str, Kernel], path: Path) -> None:
    """Take over an earlier run's rows and ceilings, so that one table has one floor.

    Raises:
        ValueError: it was measured on another GPU, with other versions, or against something else.
    """
    now = as_json(suite, baselines)
    for name in SAME:
        if earlier[name] != now[name]:
            raise ValueError(f"resume: {path} has {name} {earlier[name]!r}, here it is {now[name]!r}")
    ratio = suite.ceilings["gbs"] / earlier["ceilings"]["gbs"]
    if not 0.95 < ratio < 1.05:
        suite.note(f"the device's bandwidth is now {ratio:.2f}x of what {path} says; its floors are kept")
    suite.ceilings = dict(earlier["ceilings"])
    suite.found = list(earlier["rows"])


def left(
    points: Sequence[Point], kernels: Sequence[Kernel], earlier: Mapping[str, Any]
) -> list[tuple[Point, list[Kernel]]]:
    """Return each point with the kernels of its op that no earlier row is about; without those that have none."""
    done = {(row["kernel"], row["case"]) for row in earlier.get("rows", ())}
    todo = []
    for point in points:
        mine = [k for k in kernels if k.op == point.op and (k.name, str(point.case())) not in done]
        if mine:
            todo.append((point, mine))
    return todo
