"""gfx11 machine code under the judge: examples/rdna, legal where a contract says so; two defects are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeracle.cli import main
from moeracle.isolate.wire import contract_from, plain_contract
from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.properties.simulate.orders import same_atomics
from moeracle.ref.contracts.contract import contract
from moeracle.target.load import load_target
from moeracle.tensors import saved

pytestmark = pytest.mark.usefixtures("toolchain")
EXAMPLES = Path(__file__).parents[3] / "examples" / "rdna"
CASE = "int4_linear/T4-N32-K1024-G32/{}/compressed_tensors-sym/-/normal/s3"
LEGAL = [
    "int4_linear/T3-N24-K512-G64/bf16/compressed_tensors-sym/-/outliers/s1",
    "int4_linear/T1-N16-K2048-G128/fp16/compressed_tensors-sym/-/normal/s2",
    "int4_linear/T2-N8-K264-G8/fp16/compressed_tensors-sym/-/cancelling/s3",
    CASE.format("bf16"),
]


def kernels(name: str) -> dict[str, Any]:
    return {kernel.name: kernel for kernel in load_target(str(EXAMPLES / name)).kernels}


def verdict(name: str, kernel: str, text: str) -> Any:
    problem, found = Case.parse(text).build(), kernels(name)[kernel]
    return judge(problem, found.fn(*problem.args.values()), found.contract)


@pytest.mark.parametrize("text", LEGAL)
def test_the_example_is_legal(text: str) -> None:
    found = verdict("target.py", "gemv", text)
    assert found.ok, found.text()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrowed_parts_are_legal_only_where_the_contract_says_so(dtype: str) -> None:
    found = verdict("split.py", "declared", CASE.format(dtype))
    assert found.ok, found.text()
    assert not verdict("split.py", "narrowed", CASE.format(dtype)).ok


def test_both_defects_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    small = CASE.format("bf16").replace("T4-N32", "T2-N16")
    assert main(["check", str(EXAMPLES / "split.py"), "--in-process", "--case", small]) == 1
    said = capsys.readouterr().out
    assert "looks like: F201 partial sums of K narrowed before they are added" in said
    assert "looks like: F171 partial sums truncated to integers" in said
    assert "would pass at: contract 'megakernel_sum'" in said


def test_what_is_named_follows_from_the_outputs_alone() -> None:
    """Nine wrong elements: in some orders of the atomics that diagnosis simulates, F13 fits them as well as F201."""
    problem = Case.parse(CASE.format("bf16").replace("T4-N32", "T2-N16")).build()
    kernel = kernels("split.py")["narrowed"]
    output = kernel.fn(*problem.args.values())
    named = []
    for seed in range(12):
        with same_atomics(seed):
            named.append(judge(problem, output, kernel.contract).summary)
    assert "looks like: F201" in named[0][-1]
    assert named == [named[0]] * 12


@pytest.mark.parametrize("changed", ["parts=8/up32/dtype,deterministic=false", "activation=silu/alpha1.5/limit7/up1"])
def test_a_contract_crosses_to_a_child_and_back_and_into_a_file(changed: str) -> None:
    rules = contract(f"grouped,{changed}")
    assert contract_from(json.loads(json.dumps(plain_contract(rules)))) == rules
    assert saved._contract(json.loads(json.dumps(saved._fields(rules)))) == rules
