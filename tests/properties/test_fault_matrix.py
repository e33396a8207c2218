"""The matrix counts what it should, notices what nobody sees, and is the same as its JSON; so does the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.commands import faults as faults_command
from moeracle.commands.faults import run_faults, write_faults_page
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.common import processes
from moeracle.properties.common.processes import Unfinished, saved_at_times
from moeracle.properties.fault_matrix import hunt as fault_hunt
from moeracle.properties.fault_matrix import matrix as matrix_module
from moeracle.properties.fault_matrix.figures import figures_of, number
from moeracle.properties.fault_matrix.hunt import FaultRun, Planted, hunt_fault
from moeracle.properties.fault_matrix.legal import LARGE, large_cases, legal_kernels, run_legal
from moeracle.properties.fault_matrix.matrix import Matrix, run_matrix
from moeracle.properties.fault_matrix.page import COLLECTED, PLANTED_SINCE, page
from moeracle.properties.fault_matrix.published_rules import RULES, compared, reference_output
from moeracle.properties.fault_matrix.refused_once import LegalKernel, refused_once
from moeracle.properties.faults import FAULTS, faults_of, find_fault
from moeracle.properties.faults.base import Fault
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.report import schemas
from moeracle.properties.simulate import LEGAL, simulated_kernel
from moeracle.properties.trial.trial import run_trial

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    faults = [find_fault(id) for id in ("F11", "F18", "F37", "F42")]
    return run_matrix(faults, ["silu_and_mul", "topk_softmax", "moe_align_block_size"], seeds=(0, 1))


def test_everything_is_seen_and_counted(matrix: Matrix) -> None:
    assert [(p.id, p.op) for p in matrix.planted] == [
        ("F11", "moe_align_block_size"), ("F18", "topk_softmax"), ("F37", "silu_and_mul"), ("F42", "silu_and_mul")
    ]  # fmt: skip
    assert matrix.ok
    total = matrix.summary()
    assert (total["faults"], total["planted"], total["runs"], total["seen"], total["unseen"]) == (4, 4, 8, 8, [])
    assert sum(total["tiers"].values()) == 8
    assert total["alarms"] == 0
    assert total["judged"] == sum(run.judged for run in matrix.legal) > 0
    assert [run.op for run in matrix.legal] == ["silu_and_mul", "topk_softmax", "moe_align_block_size"]


def test_rules_are_asked_about_the_same_outputs(matrix: Matrix) -> None:
    gelu, truncated, tail = matrix.of("F37")[0], matrix.of("F42")[0], matrix.of("F11")[0]
    assert gelu.seen_by("2e-2")
    assert not truncated.seen_by("2e-2")  # an ulp of bf16 is too little for any published rule
    assert not tail.comparable  # there is no float in it
    assert matrix.faults_seen_by("2e-2") == (1, 3)


def test_json_holds_the_same(matrix: Matrix) -> None:
    plain = json.loads(json.dumps(matrix.as_dict()))
    assert all(schemas.Fault.model_validate_json(json.dumps(fault), extra="forbid") for fault in plain["faults"])
    assert all(schemas.Rule.model_validate_json(json.dumps(rule), extra="forbid") for rule in plain["rules"])
    assert {"seeds", "faults", "rules", "legal", "partial", "unfinished", "summary"} == set(plain)
    assert plain["summary"]["seen"] == 8
    first = plain["faults"][0]
    assert (first["id"], first["source"]) == ("F11", FAULTS["F11"].source)
    run = first["planted"][0]["runs"][0]
    assert set(run) == {"seed", "seen", "tier", "stage", "case", "examples", "seconds", "named", "name"}
    assert str(Case.parse(run["case"])) == run["case"]
    assert [rule["name"] for rule in plain["rules"]] == list(RULES)


def test_what_no_tier_sees_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_hunt, "DRAWN", 3)
    harmless = replace(find_fault("F37"), steps={"silu": lambda sim, base, gate: base(gate)})
    found = run_matrix([harmless], ["silu_and_mul"], seeds=(4,), legal=False)
    assert not found.ok
    assert found.unseen == ["F37 in silu_and_mul under grouped (seeds 4)"]
    assert found.summary()["seen"] == 0
    assert found.planted[0].runs[0].examples > 9  # the fixed cases and then drawn ones


def test_an_accused_legal_kernel_is_an_alarm() -> None:
    wrong = find_fault("F42").kernel("silu_and_mul")
    run = run_legal(wrong)
    assert run.alarms
    assert "tier bits" in run.alarms[0]
    assert not Matrix((0,), [], [run]).ok
    right = run_legal(simulated_kernel("silu_and_mul"))
    assert not right.alarms
    assert 0 < right.max_ratio <= 1


def test_another_seed_is_another_case() -> None:
    kernel = find_fault("F29").kernel("int4_linear")
    first, second = hunt_fault(kernel, 0)[0], hunt_fault(kernel, 1)[0]
    assert first.case != second.case
    assert first.case == hunt_fault(kernel, 0)[0].case


def test_legal_kernels_are_all_orders_of_the_gemms_and_every_other_op() -> None:
    kernels = legal_kernels()
    assert {kernel.op for kernel in kernels} == set(OPS)
    more = refused_once(["moe_w4a16"])
    assert sum(kernel.op == "moe_w4a16" for kernel in kernels) == len(LEGAL) + len(more)
    assert {kernel.name for kernel in more} >= {"lists of rows", "grouped,schedule=fma"}
    layer = simulated_kernel("moe_w4a16")
    cases = [case for case, _ in zip(large_cases(layer), range(2 * len(OPS["moe_w4a16"].data)), strict=False)]
    assert {(case.data, case.dtype) for case in cases} == {
        (d, t) for d in OPS["moe_w4a16"].data for t in ("bf16", "fp16")
    }
    assert {case.sizes["T"] for case in cases} == {LARGE.sizes["T"]}
    narrow = [kernel for kernel in kernels if kernel.op == "moe_w4a16" and kernel.why_not(LARGE) is not None]
    assert {next(large_cases(kernel)).k for kernel in narrow} == {1}
    assert list(large_cases(replace(layer, dtypes=()))) == []  # and it ends


def test_references_have_the_ops_own_results() -> None:
    for op in OPS:
        kernel = simulated_kernel(op)
        problem = must_run(kernel)[0].build()
        want = reference_output(problem)
        got = compared(op, kernel.fn(*problem.args.values()))
        expected = None if want is None else compared(op, want)
        assert (got is None) == (expected is None) == (op == "moe_align_block_size")
        if got is not None and expected is not None:
            torch.testing.assert_close(got.double(), expected.double(), atol=0.05, rtol=0.02)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    run_matrix([find_fault("F37")], ["silu_and_mul"], seeds=(0,), progress=lambda *what: told.append(what))
    legal, planted = "legal grouped/matmul of silu_and_mul", "F37 in silu_and_mul"
    assert told == [(legal, 0, 2), ("done", 1, 2), (planted, 1, 2), ("done", 2, 2)]


def test_what_is_done_is_kept_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "faults.json", list[str]()

    def planted(fault: str | Fault, op: str, seeds: tuple[int, ...]) -> Planted:
        id = fault if isinstance(fault, str) else fault.id
        asked.append(id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        runs = [FaultRun(seed, True, "bits", "out", "", 1, 0.0) for seed in seeds]
        return Planted(id, op, "grouped", runs, dict.fromkeys(RULES, 0))

    monkeypatch.setattr(matrix_module, "plant_and_hunt", planted)
    with pytest.raises(KeyboardInterrupt):
        run_faults("topk_softmax", ["F17", "F18"], path)
    kept = json.loads(path.read_text())
    assert (kept["partial"], [fault["id"] for fault in kept["faults"]]) == (True, ["F17"])
    with pytest.raises(ValueError, match="must be what `moeracle faults --json` wrote of every fault"):
        write_faults_page(path, tmp_path / "faults.md")
    assert run_faults("topk_softmax", ["F17", "F18"], None, resume=path) == 0
    assert asked == ["F17", "F18", "F18"]
    whole = json.loads(path.read_text())
    assert (whole["partial"], [fault["id"] for fault in whole["faults"]]) == (False, ["F17", "F18"])
    assert whole["faults"][0] == kept["faults"][0]
    with pytest.raises(ValueError, match="was asked with 'moeracle faults --op topk_softmax --fault F17 --fault F18'"):
        run_faults("topk_softmax", ["F17"], None, resume=path)
    path.write_text(json.dumps({**whole, "seeds": [7]}))
    with pytest.raises(ValueError, match="has seeds"):
        run_faults("topk_softmax", ["F17", "F18"], None, resume=path)


def test_what_is_given_up_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(work: Any, calls: list[Any], *_: Any, began: Any, **__: Any) -> Iterator[tuple[Any, Unfinished]]:
        for call in calls:
            began(call)
            yield call, Unfinished("not done within 7 s")

    monkeypatch.setattr(matrix_module, "call_each", gives_up)
    assert run_faults("topk_softmax", ["F18"], None, limit=7) == 1
    assert "given up: F18 in topk_softmax: not done within 7 s" in capsys.readouterr().err


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds: got none"):
        run_matrix([], seeds=())


def test_names_are_counted(matrix: Matrix) -> None:
    total = matrix.summary()
    assert total["names"] == {"itself": 4, "shared": 2, "few": 2}
    assert (total["names_right"], total["names_of"], total["misnamed"]) == (4, 4, [])
    wrong = Matrix((0, 1), [replace(p, runs=[replace(r, named="another", name="F01") for r in p.runs])
                            for p in matrix.of("F37")])  # fmt: skip
    assert wrong.misnamed == ["F37 in silu_and_mul: F01 (seeds 0, 1)"]
    assert (wrong.summary()["names_right"], wrong.summary()["names_of"]) == (0, 2)


@pytest.mark.parametrize("kernel", refused_once(), ids=lambda kernel: f"{kernel.op}-{kernel.name}")
def test_kernels_once_refused_are_legal(kernel: LegalKernel) -> None:
    """In the plainest case that each takes, and some after it: `moeracle faults` judges all of them."""
    cases = [case for case in must_run(kernel) if kernel.why_not(case) is None]
    assert len(cases) > 15
    for case in cases[:: len(cases) // 3]:
        verdict = run_trial(kernel, case, explain=False)
        assert verdict.ok, verdict.text()


def test_the_command_prints_and_writes_the_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults_command, "SEEDS", (0,))
    path = tmp_path / "faults.json"
    assert run_faults("silu_and_mul", [], path) == 0
    out = capsys.readouterr().out
    assert "that can be told apart named rightly, 100.0 %" in out
    assert "gelu in place of silu" in out
    assert "0 false alarms in" in out
    written = json.loads(path.read_text())
    assert written["kind"] == "moeracle faults"
    assert written["format_version"] == 1
    assert written["summary"]["unseen"] == []
    assert f"{written['summary']['seen']} of {written['summary']['runs']} planted faults seen" in out
    text = page(figures_of(written))
    assert "| F37 | gelu in place of silu | a | 1 | bits | 1 |" in text
    assert all(text.count(f"\n| {fault.id} |") == 1 for fault in faults_of("silu_and_mul"))
    assert "Numbers without a row (F1 to F21, F23, F26 to F30," in text
    assert "grouped top-k: F147 to F155; expert maps" in text
    assert {id for ids in PLANTED_SINCE.values() for id in ids} <= set(FAULTS)
    assert not set(COLLECTED) & set(FAULTS)
    with pytest.raises(ValueError, match="without F01, F02"):  # it is not of every op
        write_faults_page(path, tmp_path / "faults.md")
    assert not (tmp_path / "faults.md").exists()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a copy of the published page, its figures beside it."""
    for name in ("faults.md", "faults.figures.json"):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    return tmp_path / "faults.md"


def test_the_published_page_is_what_its_figures_make(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(published.with_suffix(".figures.json").read_text())
    assert [row["id"] for row in figures["faults"]] == sorted(FAULTS, key=lambda id: (number(id), id))
    counted = [row for row in figures["faults"] if row["id"] in figures["summary"]["counts"]]
    assert (len(counted), sum(row["runs"] for row in counted)) == (
        figures["summary"]["faults"],
        figures["summary"]["runs"],
    )
    published.write_text("")
    kept = published.with_suffix(".figures.json").read_bytes()
    assert write_faults_page(None, published) == 0
    assert published.read_text() == (DOCS / "faults.md").read_text(), "moeracle faults --page docs/faults.md"
    assert published.with_suffix(".figures.json").read_bytes() == kept


def test_a_later_run_of_some_faults_gives_their_rows_and_the_page_says_so(matrix: Matrix, published: Path) -> None:
    later = published.with_name("later.json")
    head = {
        "kind": "moeracle faults",
        "command": ["moeracle", "faults", "--fault", "F37"],
        "environment": {"torch": "9"},
    }
    ours = Matrix((0, 1), matrix.of("F37"))
    for _ in range(2):  # the second takes the place of the first
        later.write_text(json.dumps({**head, **ours.as_dict()}))
        assert write_faults_page(later, published) == 0
        text, before = published.read_text(), (DOCS / "faults.md").read_text()
        assert "* The rows of F37 come from a later run of these faults alone (2 seeds, torch 9).\n" in text
        rows = [[line for line in page.splitlines() if line.startswith("| ")] for page in (text, before)]
        assert [new[:6] for new, old in zip(*rows, strict=True) if new != old] == ["| F37 "]
        assert text.count("come from a later run") == before.count("come from a later run") + 1
    for wrong in ({"partial": True}, {"unfinished": ["F37"]}, {"command": ["moeracle", "--op", "moe_w4a16"]}):
        later.write_text(json.dumps({**head, **ours.as_dict(), **wrong}))
        with pytest.raises(ValueError, match="or of some faults in all ops"):
            write_faults_page(later, published)
    later.write_text(json.dumps({**head, **ours.as_dict()}))
    with pytest.raises(ValueError, match=r"without none\.figures\.json beside it"):
        write_faults_page(later, published.with_name("none.md"))


def test_the_command_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="did you mean 'F37'"):
        run_faults(None, ["f37"], None)
    with pytest.raises(ValueError, match="F37 does not apply to int4_linear; it applies to silu_and_mul, moe_w4a16"):
        run_faults("int4_linear", ["F37"], None)
    with pytest.raises(ValueError, match="did you mean 'silu_and_mul'"):
        run_faults("silu_mul", [], None)


def test_the_command_fails_when_something_is_unseen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fault_hunt, "must_run", lambda kernel: [])
    monkeypatch.setattr(fault_hunt, "hunt", lambda *args, **kwargs: type("None_", (), {"failures": [], "verdicts": []}))
    assert run_faults("moe_align_block_size", ["F11"], None) == 1
    captured = capsys.readouterr()
    assert "no tier saw F11 in moe_align_block_size" in captured.err
    assert "NONE" in captured.out


@pytest.mark.parametrize(("every", "wanted"), [(60.0, [2]), (0.0, [1, 2, 2])])
def test_a_long_run_is_saved_once_a_minute_and_where_it_is_ended(monkeypatch, every: float, wanted: list[int]) -> None:
    monkeypatch.setattr(processes, "SAVE_EVERY", every)
    pieces: list[str] = []
    kept: list[int] = []

    def interrupted() -> None:
        with saved_at_times(kept.append, lambda: len(pieces)) as done:
            for piece in ("first", "second"):
                pieces.append(piece)
                done()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert kept == wanted
