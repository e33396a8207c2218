"""No published way of cheating an evaluation passes, and none touches the judge or the kernels beside it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from hostile.kernels import endings
from hostile.kernels.cheats import OURS, SOURCES, TIERS
from support.hostile import check

CASE = "silu_and_mul/T5-I16/bf16/-/-/normal/s3"


def test_no_cheat_passes_and_the_honest_kernel_is_judged(tmp_path: Path) -> None:
    done, printed, kernels = check(tmp_path, "cheats.py", "--case-timeout", "60", cases=(CASE,))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert set(kernels) == {*TIERS, "honest"}
    assert kernels.pop("honest")["status"] == "legal"
    found = {name: [failure["tier"] for failure in kernel["failures"]] for name, kernel in kernels.items()}
    wrong = {name: (tiers, TIERS[name]) for name, tiers in found.items() if tiers[0] not in TIERS[name].split("|")}
    assert wrong == {}
    assert all(len(tiers) == 1 for tiers in found.values())
    assert "1 passed in" not in printed.partition("[silu_and_mul]")[0]
    assert len(ElementTree.parse(tmp_path / "out.xml").getroot().findall("./testsuite/testcase/failure")) == len(TIERS)


def test_the_collection_is_large_and_most_of_it_was_published() -> None:
    assert len(TIERS) + len(endings.TIERS) >= 80
    published = {source for source in SOURCES.values() if source != OURS}
    assert len(published) >= 10
    assert all(source.startswith("https://") for source in published)
    assert sum(source != OURS for source in SOURCES.values()) >= 30
