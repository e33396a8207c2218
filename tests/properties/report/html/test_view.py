"""What a page shows: maps, charts and text, from JSON and nothing else; and what is refused."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest

from moeracle.properties.report.html.charts import histogram, history, share, short
from moeracle.properties.report.html.heat import heat_map, level, ulps
from moeracle.properties.report.html.next_steps import READ, next_steps
from moeracle.properties.report.html.page import render, write_page
from moeracle.properties.report.html.view import read_run, view_of
from moeracle.properties.report.report import write_json
from support.runs import LAYER, NASTY, a_run, parsed


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = render([a_run()])
    tags = parsed(page)
    for tag, attrs in tags:
        assert tag not in ("link", "iframe", "img", "object"), tag
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", page)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for _, attrs in tags if attrs.get("href")}
    assert {target.removeprefix("#") for target in targets if target} <= set(ids)
    labelled = {attrs["aria-labelledby"] for _, attrs in tags if attrs.get("aria-labelledby")}
    assert labelled <= set(ids)
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "svg")


def test_it_says_what_the_run_says() -> None:
    run = a_run()
    page = render([run])
    failure = run["kernels"][0]["failures"][0]
    for text in (
        "Something is wrong: 1 of 2 kernels illegal",
        failure["case"],
        "stage y",
        "not judged",
        "law_rows (5)",
    ):
        assert text in page, text
    assert f'data-copy="moeracle check my_kernels.py --case {failure["case"]}"' in page
    assert "3 skipped: T is too large" in page
    assert "not finite" in page


def test_whatever_a_name_holds_stays_text() -> None:
    page = render([a_run(target=NASTY, note=NASTY)])
    parsed(page)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5


def test_maps_have_the_cells_of_the_json() -> None:
    run = a_run()
    (failure,) = view_of([run])["failures"]
    (group,) = failure["groups"]
    by_token, by_expert = group["maps"]
    assert (by_token["axis"], by_expert["axis"]) == ("token", "expert")
    wide, tall, left, top = (by_token[k] for k in ("cell_width", "cell_height", "left", "top"))
    at = {
        (round((s["x"] - left) / wide), round((s["y"] - top) / tall), round(s["w"] / wide)): s["class"]
        for s in by_token["shapes"]
    }
    assert at[(4, 1, 4)] == "inf"  # row 3 is slot 1 of token 1, columns 4 to 7
    assert (0, 2, 1) in at
    assert len(at) == 2
    assert dict(by_token["legend"])["inf"] == "not finite"
    assert by_token["data"]["cells"] == run["kernels"][0]["failures"][0]["maps"][0]["cells"]


def test_the_map_of_the_case_as_first_found_comes_first() -> None:
    run = a_run()
    failure = run["kernels"][0]["failures"][0]
    assert failure["found"] is None
    larger = copy.deepcopy(failure["maps"])
    failure["found"] = {"case": "moe_w4a16/T99", "illegal": 7, "maps": larger}
    (shown,) = view_of([run])["failures"]
    assert [group["case"] for group in shown["groups"]] == ["moe_w4a16/T99", failure["case"]]
    assert "As first found" in render([run])


@pytest.mark.parametrize(
    ("error", "name"),
    [(0, ""), (1e-30, "l1"), (0.99, "l1"), (1, "l2"), (255, "l5"), (256, "l6"), (1e9, "l7"), (math.inf, "inf")],
)
def test_levels(error: float, name: str) -> None:
    assert level(error) == name
    assert level(error, "wrong") == ("l5" if error else "")
    assert level(math.nan) == "inf"
    assert [short(v) for v in (None, 0.9984, 20345.6, 999.6, math.inf, math.nan)] == [
        "-",
        "0.998",
        "20,300",
        "1,000",
        "∞",
        "NaN",
    ]
    assert (ulps(0.2), ulps(12345.6), ulps(math.inf)) == ("under 1 ulp", "12,346 ulp", "not finite")


def test_a_map_without_cells_and_one_of_text() -> None:
    empty = {"stage": "h", "axis": "token", "unit": "ulp", "rows": 0, "columns": 4, "row_step": 1, "column_step": 1}
    assert heat_map({**empty, "cells": []})["shapes"] == []
    one = heat_map({**empty, "rows": 1, "cells": [[0, "inf", "inf", 3]]})
    assert [(s["class"], round(s["w"] / one["cell_width"])) for s in one["shapes"]] == [("inf", 2), ("l2", 1)]


def test_a_distribution_shows_one_illegal_element_of_a_million() -> None:
    counts = [0] * 15
    counts[3], counts[12] = 999_999, 1
    chart = histogram(counts)
    assert chart is not None
    bars = [bar for bar in chart["bars"] if bar["h"]]
    assert [(bar["class"], bar["h"] >= 3) for bar in bars] == [("good", True), ("bad", True)]
    assert chart["beyond"] == "1 of 1,000,000 sampled elements beyond the bound"
    assert "under 0.1 %" in chart["words"]
    assert histogram([]) is None
    assert histogram([0] * 15) is None
    assert share(999_999, 1_000_000) == "over 99.9 %"


def test_history_is_by_time_and_says_what_changed() -> None:
    runs = [a_run(), a_run(failing=False), a_run(failing=False)]
    for run, day in zip(runs, ("03", "01", "02"), strict=True):
        run["started"] = f"2026-11-{day}T00:00:00+00:00"
    runs[2]["environment"]["torch"] = "9.9"
    view = view_of(runs)
    assert view["verdict"] == "illegal"  # the newest
    assert [row["verdict"] for row in view["history"]["rows"]] == ["unjudged", "unjudged", "illegal"]
    changed = [row["changed"] for row in view["history"]["rows"]]
    assert changed[0] == ""
    assert "torch" in changed[1]
    assert "9.9 → " in changed[2]
    words = {kernel["kernel"]: kernel["words"] for kernel in view["history"]["kernels"]}
    assert words == {"my_moe": "legal from run 1, illegal from run 3", "idle": "not judged from run 1"}
    parsed(render(runs))


def test_a_kernel_that_comes_and_goes() -> None:
    point = {"status": "legal", "max_ratio": 0.5}
    chart = history([None, point, {"status": "illegal", "max_ratio": "inf"}, {"status": "unjudged", "max_ratio": None}])
    assert [(dot["run"], dot["class"]) for dot in chart["dots"]] == [(2, "good"), (3, "bad"), (4, "idle")]
    assert chart["dots"][1]["y"] < chart["bound"] < chart["dots"][0]["y"]
    law = history([{"status": "illegal", "max_ratio": 0.2}])
    assert law["dots"][0]["y"] == law["bound"]  # broke a law, not its bound: never drawn as if it were fine


def test_a_failure_says_what_to_do_next() -> None:
    (failure,) = view_of([a_run()])["failures"]
    assert [command for _, command in failure["next"]] == [
        f"moeracle bisect stages my_kernels.py --case {LAYER}",
        f"moeracle bisect git my_kernels.py --good REV --bad HEAD --case {LAYER}",
        *(["moeracle infer my_kernels.py --op moe_w4a16"] if failure["tier"] == "interval" else []),
        f"moeracle docs {READ.get(failure['tier'], 'reports')}",
    ]
    there = {path.stem for path in (Path(__file__).parents[4] / "docs").glob("*.md")}
    assert {"reports", *READ.values()} <= there
    on_gpu = next_steps({**failure, "case": LAYER}, f"moeracle check 'my file.py' --case {LAYER} --device cuda")
    assert on_gpu[0][1] == f"moeracle bisect stages 'my file.py' --case {LAYER} --device cuda"
    assert len(next_steps({**failure, "case": LAYER}, "moeracle judge saved.safetensors")) == 1


def test_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    run = a_run()
    good = tmp_path / "good.json"
    good.write_text(json.dumps(run))
    assert read_run(good) == run
    for name, content, said in (
        ("none.json", None, "no such file"),
        ("text.json", "hello", "is not JSON"),
        ("list.json", "[1]", "wrong fields (Input should be an object)"),
        ("other.json", json.dumps({"kind": "moeracle faults"}), "got kind 'moeracle faults'"),
        ("new.json", json.dumps({**run, "format_version": 2}), "format_version 2, must be 1"),
        (
            "torn.json",
            json.dumps({k: v for k, v in run.items() if k != "kernels"}),
            "damaged (kernels: Field required)",
        ),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=r"^report: ") as caught:
            read_run(tmp_path / name)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_of_an_older_version_without_maps_or_ratios_still_makes_a_page(tmp_path: Path) -> None:
    run = a_run()
    for kernel in run["kernels"]:
        for stage in kernel["stages"]:
            del stage["ratios"]
        for failure in kernel["failures"]:
            del failure["maps"], failure["found"]
        kernel["contract"] = "of another time"
    write_json(tmp_path / "old.json", run)
    write_page(tmp_path / "old.html", [read_run(tmp_path / "old.json")])
    page = (tmp_path / "old.html").read_text()
    parsed(page)
    assert "no map of elements" in page
    assert "does not know this contract" in page


def test_the_recordings_in_the_repository_make_a_page() -> None:
    for op in ("moe_w4a16", "topk_softmax"):
        run = read_run(Path(__file__).parents[4] / "fixtures" / "hardware" / "h200" / "check" / f"{op}.json")
        assert "NVIDIA H200" in render([run])


def test_a_bisection_makes_a_page_too(tmp_path: Path) -> None:
    kernel = a_run()["kernels"][0]
    failure = {k: v for k, v in kernel["failures"][0].items() if k not in ("text", "found")}
    probe = {"name": "one row", "suspect": "reduction", "asks": "the right value", "passed": False, "detail": "32 ulp"}
    report = {
        "status": "illegal", "stage": "reduction", "also": "", "how": "probes", "fault": None, "max_ratio": "inf",
        "probes": [probe], "calls": 3, "notes": ["slow"], "verdict": failure, "seconds": 1.0,
        "smallest": {**failure, "case": "moe_w4a16/T1"},
    }  # fmt: skip
    whole = {"format_version": 1, "kind": "moeracle bisect stages", "environment": a_run()["environment"]}
    path = tmp_path / "bisect.json"
    path.write_text(json.dumps({**whole, "target": "k.py", "device": None, "kernel": report, "single_kernels": None}))
    page = render([read_run(path)])
    parsed(page)
    for text in ("First wrong stage", "reduction", "one row", "32 ulp", "No known fault explains it", "As first found"):
        assert text in page, text
    assert 'data-copy="moeracle check k.py --case moe_w4a16/T1"' in page
    path.write_text(json.dumps({**whole, "target": "k.py", "device": None, "kernel": None}))
    with pytest.raises(ValueError, match=r"got no 'kernel'"):
        read_run(path)
