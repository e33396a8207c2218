"""pytest says of hostile kernels what `check` says, with one process or two.

`make hostile` asks all of them, a run of the tests every tenth; `check` judges all in the tests beside this one.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from support.hostile import OF_FILE, by_pytest, sample
from support.plugin import needs_plugin


@needs_plugin
@pytest.mark.parametrize("processes", [0, 2])
def test_the_suite_under_pytest_says_the_same(tmp_path: Path, processes: int) -> None:
    started, asked = time.monotonic(), sample()
    done, failures, slowest = by_pytest(tmp_path, asked, processes)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout
    assert failures.pop("honest") == []
    tiers = {name: tier for of_file in asked.values() for name, tier in of_file.items()}
    assert len(tiers) >= len(OF_FILE)
    found = {name: re.findall(r"FAIL  tier=(\w+)", "".join(texts))[:1] for name, texts in failures.items()}
    assert {name: tier for name, tier in found.items() if not tier or tier[0] not in tiers[name].split("|")} == {}
    assert re.search(r"moeracle: [\d,]+ elements judged in", done.stdout)
    took = f"{len(tiers)} kernels in {time.monotonic() - started:.0f} s, the slowest {slowest:.0f} s"
    print(f"\npytest -n {processes}: {took}", flush=True)
