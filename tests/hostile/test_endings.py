"""Whatever ends a kernel's process, or never ends, is a verdict with its kind, and the next kernel is judged."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from hostile.kernels.endings import TIERS
from support.commands import run_here
from support.hostile import CASE, RIGHT, check

LEAVES = """
import os
import moeracle

@moeracle.kernel("silu_and_mul", contract="grouped")
def leaves(h):
    os._exit(0)
"""


def test_every_ending_has_a_verdict_and_the_run_goes_on(tmp_path: Path) -> None:
    done, kernels = check(tmp_path, "endings.py", "--case-timeout", "60")
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert len(TIERS) > 20
    assert set(kernels) == {*TIERS, "honest"}
    found = {name: [f["tier"] for f in kernel["failures"]] for name, kernel in kernels.items()}
    assert found.pop("honest") == []
    assert kernels["honest"]["status"] == "legal"
    assert found == {name: [tier] for name, tier in TIERS.items()}
    for name in TIERS:
        assert f"[silu_and_mul] {name}  {CASE}  FAIL  tier={TIERS[name]}" in done.out
        assert f"replay: moeracle check endings.py:{name} --case {CASE}" in done.out
    assert "\x1b" not in done.out
    assert "\nFAKE" not in done.out
    junit = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert len(junit.findall("./testsuite/testcase/failure")) == len(TIERS)


def test_a_kernel_that_never_returns_is_ended(tmp_path: Path) -> None:
    done, kernels = check(tmp_path, "hangs.py", "--case-timeout", "2", "--op", "silu_and_mul")
    hanging = {name: kernel for name, kernel in kernels.items() if name != "honest"}
    assert len(hanging) == 7
    assert {f["tier"] for kernel in hanging.values() for f in kernel["failures"]} == {"timeout"}
    assert all(kernel["failures"] for kernel in hanging.values())
    assert done.code == 1
    assert "PASSED legal" in hanging["floods_its_output"]["failures"][0]["text"] or "x" * 100 in str(hanging)


def test_a_kernel_that_ends_its_process_twice_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(LEAVES + RIGHT)
    cases = [CASE.replace("s1", f"s{seed}") for seed in range(6)]
    asked = [word for case in cases for word in ("--case", case)]
    assert run_here(tmp_path, "check", "two.py", "--json", "out.json", *asked).code == 1
    kernels = {kernel["kernel"]: kernel for kernel in json.loads((tmp_path / "out.json").read_text())["kernels"]}
    assert [f["case"] for f in kernels["leaves"]["failures"]] == cases[:2]
    assert len(kernels["honest"]["cases"]) == 6
    assert kernels["honest"]["status"] == "legal"
