"""The published JSON Schemas: current, and true of what older versions wrote.

What commands write is held against them in the commands' own tests (support/schemas.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from moeracle.cli import main
from moeracle.properties.report.report import plain, write_json
from moeracle.properties.report.schemas import SCHEMAS, read_as, schema_text
from support.runs import a_run
from support.schemas import fits

ROOT = Path(__file__).parents[1]
H200 = ROOT / "fixtures/hardware/h200"
OLD = {
    "check": [*sorted((H200 / "check").glob("*.json")), *sorted(H200.glob("hip*check.json")), H200 / "hip.json"],
    "soak": [H200 / "soak.json"],
    "bench": [H200 / "bench.json", H200 / "bench_layer.json", H200 / "sweep.json"],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_current(name: str) -> None:
    path = ROOT / f"docs/schemas/{name}.json"
    assert path.read_text() == schema_text(name), f"moeracle schema {name} > docs/schemas/{name}.json"
    assert f"(schemas/{name}.json)" in (ROOT / "docs/json.md").read_text()


def test_no_other_schema_is_published() -> None:
    assert {path.stem for path in (ROOT / "docs/schemas").iterdir()} == set(SCHEMAS)


@pytest.mark.parametrize("name", OLD)
def test_what_older_versions_wrote_is_readable(name: str) -> None:
    assert OLD[name]
    for path in OLD[name]:
        read_as(name, json.loads(path.read_text()), str(path))


def test_one_group_a_row_was_a_size_of_minus_one() -> None:
    run = a_run()
    run["kernels"][0]["reach"]["sizes"]["G"] = [-1, 64]
    read_as("check", run, "r.json")


@pytest.mark.parametrize("failing", [True, False])
def test_a_report_is_as_its_schema_says(tmp_path: Path, failing: bool) -> None:
    write_json(tmp_path / "r.json", a_run(failing=failing))
    fits("check", tmp_path / "r.json")


def broken(run: dict[str, Any], change: str) -> dict[str, Any]:
    kernel = run["kernels"][0]
    if change == "kernels.0.op":
        del kernel["op"]
    elif change == "kernels.0.judged":
        kernel["judged"] = -1
    elif change == "kernels.0.status":
        kernel["status"] = "fine"
    else:
        run["seconds"] = "1"
    return run


@pytest.mark.parametrize("change", ["kernels.0.op", "kernels.0.judged", "kernels.0.status", "seconds"])
def test_what_does_not_fit_is_one_line_that_names_the_field(change: str) -> None:
    with pytest.raises(ValueError, match=rf"r\.json is damaged \({change}") as error:
        read_as("check", plain(broken(a_run(), change)), "r.json")
    assert "\n" not in str(error.value)


def test_a_field_that_no_schema_names_is_seen(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {**a_run(), "news": 1})
    with pytest.raises(ValidationError, match="news"):
        fits("check", tmp_path / "r.json")


def test_the_command_prints_one_or_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in SCHEMAS)
    assert main(["schema", "chek"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err
