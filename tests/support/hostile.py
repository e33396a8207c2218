"""A file of hostile kernels, with an honest one after them, judged by the command, or by pytest, in its own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hostile.kernels import cheats, endings, hangs, tricks
from support.commands import Done, run_here

ALL = bool(os.environ.get("MOERACLE_HOSTILE"))  # make hostile
OF_FILE = {"endings.py": endings.TIERS, "cheats.py": cheats.TIERS, "tricks.py": tricks.TIERS, "hangs.py": hangs.TIERS}
KERNELS = Path(__file__).parents[1] / "hostile" / "kernels"
CASE = "silu_and_mul/T3-I8/bf16/-/-/normal/s1"
RIGHT = """

@moeracle.kernel("silu_and_mul", contract="grouped")
def honest(h):
    import torch
    gate, up = h.float().chunk(2, 1)
    return torch.nn.functional.silu(gate).to(h.dtype) * up.to(h.dtype)
"""


def check(folder: Path, file: str, *options: str, cases: tuple[str, ...] = (CASE,)) -> tuple[Done, dict[str, Any]]:
    """Return what the command left, and its JSON by kernel, for a file with an honest kernel added."""
    (folder / file).write_text((KERNELS / file).read_text() + RIGHT)
    asked = [word for case in cases for word in ("--case", case)]
    done = run_here(folder, "check", file, *options, "--json", "out.json", "--junit", "out.xml", *asked)
    report = json.loads((folder / "out.json").read_text())
    return done, {kernel["kernel"]: kernel for kernel in report["kernels"]}


def sample() -> dict[str, dict[str, str]]:
    """Return by file the kernels that every way of judging is put to: all by `make hostile`, else a tenth."""
    always = ("leaves_modules_for_the_judge", "cannot_say_what_it_takes")  # only pytest can tell these
    return {
        file: {name: tier for i, (name, tier) in enumerate(tiers.items()) if ALL or i % 10 == 0 or name in always}
        for file, tiers in OF_FILE.items()
    }


def by_pytest(
    folder: Path, asked: dict[str, dict[str, str]], processes: int
) -> tuple[Any, dict[str, list[str]], float]:
    """Return the finished session of the suite, the text of each kernel's failures, and the seconds of the slowest.

    Args:
        folder: empty.
        asked: by file, the kernels to judge; each file gets an honest kernel, which is judged, too.
        processes: of xdist.
    """
    command = [sys.executable, "-m", "pytest", "--pyargs", "moeracle.properties.suite", "-p", "no:cacheprovider", "-q"]
    command += [
        "-n",
        str(processes),
        "--moeracle-profile",
        "smoke",
        "--moeracle-examples",
        "0",
        "--junitxml",
        "all.xml",
    ]
    hunted = "test_hunt and (leaves_when or answers_for or cannot_say)"  # of these no case can be asked for
    command += ["--moeracle-case-timeout", "8", "-k", f"T9-I160 or ({hunted})"]
    for file, tiers in asked.items():
        (folder / file).write_text((KERNELS / file).read_text() + RIGHT)
        command += [word for name in (*tiers, "honest") for word in ("--kernel", f"{file}:{name}")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3600)
    failures: dict[str, list[str]] = {name: [] for tiers in asked.values() for name in (*tiers, "honest")}
    seconds = dict.fromkeys(failures, 0.0)
    for case in ElementTree.parse(folder / "all.xml").getroot().iter("testcase"):
        name = str(case.get("name")).partition("silu_and_mul.")[2].partition("-")[0].rstrip("]")
        seconds[name] += float(case.get("time", 0))
        failures[name] += [str(failure.text) for failure in case.findall("failure")]
    return done, failures, max(seconds.values())
