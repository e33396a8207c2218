"""Pages of `bisect git` and `bisect config`, of maps of what differs, and of JSON that is not what it says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.compare.error_map import difference_map
from moeracle.properties.laws.batch import law_permuting_tokens
from moeracle.properties.report.html.heat import heat_map, legend
from moeracle.properties.report.html.page import render
from moeracle.properties.report.html.view import check_history, read_run, view_of
from moeracle.properties.simulate import simulated_kernel
from moeracle.properties.trial.trial import run_trial
from support.runs import a_run, config_json, git_json, parsed, stages

LINEAR = "int4_linear/T6-N32-K64-G32/bf16/exllama-sym/-/normal/s1"


def read(tmp_path: Path, whole: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(whole))
    return read_run(path)


def test_a_page_names_the_first_bad_commit(tmp_path: Path) -> None:
    run = read(tmp_path, git_json())
    page = render([run])
    parsed(page)
    assert "<script>alert" not in page
    for text in ("First bad commit: 3333333333 change 3", "A. Engineer, 2026-01-02", "kernels/moe.py | 4 ++--",
                 "passed over (build)", "does not build (exit code 1)", "First wrong stage", "Known fault: F29 next",
                 "one was passed over", "What is wrong there"):  # fmt: skip
        assert text in page, text
    assert "--good 0000000000 --bad 6666666666" in page
    view = view_of([run])
    chart = view["search"]["chart"]
    assert [dot["class"] for dot in chart["dots"]] == ["good", "idle", "bad", "bad"]
    assert [tick["label"] for tick in chart["ticks"]] == list("0123456")
    xs = [dot["x"] for dot in chart["dots"]]
    assert xs[3] - xs[2] == pytest.approx(3 * (xs[2] - xs[1]))  # three commits apart, and one
    assert view["search"]["rows"][2]["ratio"] == "∞"
    assert view["verdict"] == "illegal"


def test_a_search_without_an_answer_says_so(tmp_path: Path) -> None:
    page = render([read(tmp_path, git_json(first=False, told=False))])
    parsed(page)
    assert "No single commit can be told" in page
    assert "it is one of 2222222222, 3333333333" in page
    for absent in ("First wrong stage", 'id="summary"', 'id="distribution"'):
        assert absent not in page


def test_many_commits_have_few_ticks(tmp_path: Path) -> None:
    whole = git_json()
    whole["commits"] = 3999
    whole["judged"][-1]["position"] = 3999
    chart = view_of([read(tmp_path, whole)])["search"]["chart"]
    assert [tick["label"] for tick in chart["ticks"]] == ["0", "1,000", "2,000", "3,000"]


def test_a_page_names_the_smallest_set_of_settings(tmp_path: Path) -> None:
    run = read(tmp_path, config_json())
    page = render([run])
    parsed(page)
    for text in ("It takes SPLIT_K=4 and FAST=unset", "Smallest set of settings", "these as in GOOD, it is legal",
                 "127 illegal", "moeracle bisect config conf.py --case"):  # fmt: skip
        assert text in page, text
    settings = view_of([run])["search"]["settings"]
    assert settings == [
        ("SPLIT_K", "1", "4", True),
        ("FAST", "not set", "empty", True),
        ("TILE", "not set", "9", False),
    ]


def test_a_bisection_is_no_part_of_a_history(tmp_path: Path) -> None:
    paths = [Path("a.json"), Path("b.json")]
    check_history([a_run(), a_run()], paths)
    check_history([read(tmp_path, git_json())], paths[:1])
    for other in (git_json(), config_json(), stages()):
        with pytest.raises(ValueError, match=r"^report: b.json: a bisection makes a page of its own"):
            check_history([a_run(), read(tmp_path, other)], paths)


def test_a_broken_law_shows_where_two_answers_differ() -> None:
    good = simulated_kernel("int4_linear", "grouped,accumulator=fp32", "sequential")

    def by_position(x, w, bias):  # type: ignore[no-untyped-def]
        out = good.fn(x, w, bias)
        out[2, 5:9] = 99.0
        return out

    verdict = law_permuting_tokens(replace(good, fn=by_position), Case.parse(LINEAR))
    assert verdict is not None
    assert verdict.status == "illegal"
    (found,) = verdict.maps
    assert (found["axis"], found["unit"], found["rows"], found["columns"]) == ("token", "different", 6, 32)
    assert {j for row in found["cells"] for j, cell in enumerate(row) if cell} == {5, 6, 7, 8}
    shown = heat_map(found)
    assert "of 192 cells are different" in shown["caption"]
    assert "illegal" not in shown["caption"]
    assert legend("different", set()) == [("legal", "the same"), ("l5", "different")]


def test_two_runs_that_differ_show_where() -> None:
    good = simulated_kernel("int4_linear", "grouped,accumulator=fp32", "sequential")
    calls = [0]

    def racing(x, w, bias):  # type: ignore[no-untyped-def]
        calls[0] += 1
        out = good.fn(x, w, bias)
        out[1, 4] = -out[1, 4] if calls[0] % 2 else out[1, 4]
        return out

    verdict = run_trial(replace(good, fn=racing), Case.parse(LINEAR))
    assert (verdict.status, verdict.tier) == ("illegal", "determinism")
    (found,) = verdict.maps
    assert [(i, j) for i, row in enumerate(found["cells"]) for j, cell in enumerate(row) if cell] == [(1, 4)]


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((5,), 5, 1), ((2, 3), 2, 3), ((2, 3, 4), 2, 4), ((0, 3), 0, 3)]
)
def test_maps_of_what_differs_have_any_rank(shape: tuple[int, ...], rows: int, columns: int) -> None:
    found = difference_map("out", "token", torch.ones(shape).bool())
    assert (found["rows"], found["columns"]) == (rows, columns)
    assert all(cell == 1 for row in found["cells"] for cell in row)


def damaged(whole: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (what was done, a copy) with each kind of field once missing, once null, once of another type."""
    places: list[tuple[Any, Any, str]] = []
    seen = {"/environment", "/stages"}  # the latter is a file of its own
    todo = [(whole, path)]
    while todo:
        node, at = todo.pop()
        keys = node.keys() if isinstance(node, dict) else range(min(1, len(node))) if isinstance(node, list) else ()
        for key in keys:
            name = f"{at}/{key if isinstance(node, dict) else '[]'}"
            if name in seen:
                continue
            todo.append((node[key], name))
            if isinstance(node, dict):
                seen.add(name)
                places.append((node, key, name))
    for node, key, name in places:
        kept = dict(node)
        for how, value in (("missing", None), ("text", "x"), ("list", [7])):
            node[key] = value
            if how == "missing":
                del node[key]
            yield f"{name} {how}", whole
            node.clear()
            node.update(kept)


@pytest.mark.parametrize("make", [a_run, git_json, config_json, stages])
def test_a_field_that_is_missing_or_of_another_type_is_one_line_or_a_page(tmp_path: Path, make: Any) -> None:
    whole = copy.deepcopy(make())
    said, made = {}, 0
    for what, broken in damaged(whole):
        try:
            render([read(tmp_path, broken)])
            made += 1
        except ValueError as error:
            said[what] = str(error)
    assert {what: text for what, text in said.items() if not re.fullmatch(r"report: .+", text)} == {}
    assert len(said) > 15
    assert made > 5
