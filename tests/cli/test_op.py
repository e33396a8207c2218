"""`moeracle op` and `moeracle new`: what they print, and that every file they write holds a right kernel."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from moeracle.cli import app, main
from moeracle.properties.cases.optable import OPS
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.trial.trial import run_trial
from moeracle.target.load import load_target


@pytest.mark.parametrize("op", OPS)
def test_a_new_file_holds_a_right_kernel(op, tmp_path):
    file = tmp_path / f"my_{op}.py"
    assert main(["new", op, str(file)]) == 0
    (kernel,) = load_target(str(file)).kernels
    assert (kernel.op, kernel.name) == (op, f"my_{op}")
    verdicts = [run_trial(kernel, case) for case in must_run(kernel)[:6]]
    assert len(verdicts) >= 5
    assert all(v.status == "legal" for v in verdicts), [v.text() for v in verdicts if v.status != "legal"]


@pytest.mark.parametrize("op", OPS)
def test_the_page_of_an_op_names_each_argument_and_result(op):
    page = CliRunner().invoke(app, ["op", op]).output
    record = OPS[op]
    assert page.startswith(record.signature(op))
    assert len(record.arguments) > 0
    for part in (*record.arguments, *record.results):
        assert part.meaning in page


def test_all_ops_are_listed():
    listed = CliRunner().invoke(app, ["op"]).output
    assert [name for name in OPS if name not in listed] == []


def test_an_existing_file_stays_as_it_is(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("mine")
    assert main(["new", "int4_linear", str(file)]) == 2
    assert file.read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["op", "int4_linaer"], "int4_linear"),
        (["new", "moe", "x.py"], "op"),
        (["new", "int4_linear", "x.txt"], "must end in .py"),
        (["new", "int4_linear", "nowhere/x.py"], "cannot be written"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_wrong_number_of_arguments_is_answered_with_the_signature(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "import moeracle\n\n\n@moeracle.kernel('int4_linear', contract='grouped')\ndef mine(x, w):\n    return x\n"
    )
    (kernel,) = load_target(str(file)).kernels
    verdict = run_trial(kernel, must_run(kernel)[0])
    assert verdict.tier == "call"
    assert "mine(x, w) cannot be called with the 3 arguments of int4_linear" in verdict.reason
    assert "must be mine(x, w, bias)" in verdict.reason


def test_a_type_error_inside_a_kernel_is_not_taken_for_a_wrong_signature(tmp_path):
    file = tmp_path / "inside.py"
    file.write_text(
        "import moeracle\n\n\n@moeracle.kernel('int4_linear', contract='grouped')\n"
        "def mine(x, w, bias):\n    return 1 + ''\n"
    )
    (kernel,) = load_target(str(file)).kernels
    reason = run_trial(kernel, must_run(kernel)[0]).reason
    assert "unsupported operand" in reason
    assert "cannot be called" not in reason
