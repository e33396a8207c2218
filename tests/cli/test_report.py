"""The files that a check writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moeracle.properties.common.verdict import StageResult, Verdict, failed
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.report.report import (
    Report,
    as_dict,
    stage_totals,
    totals,
    write_json,
    write_junit,
)

CASE = "silu_and_mul/T3-I8/bf16/-/-/normal/s1"


def a_report() -> Report:
    legal = Verdict("silu_and_mul", CASE, "f", stages=[StageResult("out", 24, exact=4, width_ulp=1.0, max_ratio=0.5)])
    wide = Verdict(
        "silu_and_mul", CASE + "2", "f", stages=[StageResult("out", 8, exact=1, width_ulp=3.0, max_ratio=0.9)]
    )
    wrong = failed(
        Verdict("silu_and_mul", CASE + "3", "f", stages=[StageResult("out", 8, 8, max_ratio=math.inf)]),
        "interval",
        "out",
        "8 <of\x00> 8",
    )
    on_the_way = failed(
        Verdict("silu_and_mul", CASE + "4", "f", stages=[StageResult("out", 8, 8)]), "interval", "out", "8 of 8"
    )
    result = HuntResult("f", "silu_and_mul", None, "grouped", "cpu", 0, 2, [legal, wide, on_the_way, wrong])
    result.failures = [wrong]
    result.skipped["too large"] = 3
    idle = HuntResult("g", "silu_and_mul", None, "grouped", "cpu", 0, 2)
    return Report("my_kernels.py", ["moeracle", "check", "my_kernels.py"], None, "ci", 0, 0.0, 1.5, 1, [result, idle])


def test_a_case_that_was_judged_under_a_schedule_of_its_own_says_so() -> None:
    report = a_report()
    report.results[0].verdicts[0].contract = "grouped,schedule=fma"
    report.results[0].verdicts[1].contract = "grouped"
    first, *others = as_dict(report)["kernels"][0]["cases"]
    assert first["contract"] == "grouped,schedule=fma"
    assert all("contract" not in other for other in others)


def test_totals_add_counts_take_the_median_width_and_the_largest_ratio() -> None:
    result = a_report().results[0]
    (stage,) = stage_totals(result.judged[:2])
    assert (stage.judged, stage.exact, stage.width_ulp, stage.max_ratio) == (32, 5, 2.0, 0.9)
    whole = totals(result)
    assert whole is not None
    assert (whole.judged, whole.illegal, whole.max_ratio) == (48, 16, math.inf)
    assert totals(a_report().results[1]) is None


def test_json_is_strict_and_as_documented(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", a_report())
    text = (tmp_path / "out.json").read_text()
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    kernel, idle = report["kernels"]
    assert kernel["max_ratio"] == "inf"
    assert (kernel["status"], kernel["skipped"], idle["status"], idle["width_ulp"]) == (
        "illegal",
        {"too large": 3},
        "unjudged",
        None,
    )
    assert [c["status"] for c in kernel["cases"]] == ["legal", "legal", "illegal", "illegal"]
    assert kernel["failures"][0]["summary"] == ["8 <of\x00> 8"]


def test_every_field_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    whole = as_dict(a_report())
    kernel = whole["kernels"][0]
    fields = {*whole, *whole["environment"], *kernel, *kernel["stages"][0], *kernel["failures"][0], *kernel["cases"][0]}
    assert {field for field in fields if f"`{field}`" not in document} == set()


def test_junit_shows_a_failure_once_and_an_unjudged_kernel_as_skipped(tmp_path: Path) -> None:
    write_junit(tmp_path / "out.xml", a_report())
    ran, idle = ElementTree.parse(tmp_path / "out.xml").getroot().findall("testsuite")
    assert (ran.get("name"), ran.get("tests"), ran.get("failures"), ran.get("skipped")) == (
        "silu_and_mul.f",
        "3",
        "1",
        "0",
    )
    (failure,) = ran.findall("testcase/failure")
    assert failure.get("message") == "tier=interval stage=out 8 <of?> 8"
    assert (failure.text or "").splitlines()[-1] == f"  replay: moeracle check my_kernels.py:f --case {CASE}3"
    assert (idle.get("tests"), idle.get("skipped"), len(idle.findall("testcase/skipped"))) == ("1", "1", 1)
