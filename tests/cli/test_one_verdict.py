"""`check`, the pytest suite, `bisect stages` and a replay line say the same of a kernel."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from moeracle.cli import main
from moeracle.exit_codes import ILLEGAL, USAGE
from support.plugin import needs_plugin

pytest_plugins = ["pytester"]

SUITE = ("--pyargs", "moeracle.properties.suite", "-p", "no:randomly", "-p", "no:cacheprovider", "-q")
FILE = """
import moeracle
import torch
from moeracle.ref import silu_and_mul


def plain(h, w=1.0):
    gate, up = h.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up * w).to(h.dtype)


@moeracle.kernel("silu_and_mul"{contract})
def rounded_twice(h):
    return plain(h)


@moeracle.kernel("silu_and_mul"{contract})
def rounded_once(h):
    return silu_and_mul(h).to(h.dtype)


@moeracle.kernel("silu_and_mul"{contract})
def too_large(h):
    return plain(h, 1.1)
"""
KEEPS = """
import moeracle
from moeracle import ref

MOST = {}


@moeracle.kernel("grouped_gemm", contract="grouped,weight=exact,accumulator=fp32")
def keeps(x, w, offsets):
    "Of a call with fewer busy experts than an earlier one of its shape had, the first row is wrong."
    out, busy = ref.grouped_gemm(x, w, offsets).to(x.dtype), int((offsets.diff() > 0).sum())
    if busy < MOST.setdefault(x.shape, busy):
        out[:1] += 1
    MOST[x.shape] = max(busy, MOST[x.shape])
    return out
"""
LAW = """
import moeracle
from moeracle import ref


@moeracle.kernel("grouped_gemm", contract="grouped,weight=exact,accumulator=fp32", supports=lambda c: c.T < 9 or "few")
def needs_eight(x, w, offsets):
    out = ref.grouped_gemm(x, w, offsets).to(x.dtype)
    if len(x) % 8:
        out[: len(x) % 8] *= 2
    return out
"""


DRAWN = (
    LAW
    + """

@moeracle.kernel("grouped_gemm", contract="grouped,weight=exact,accumulator=fp32")
def varies(x, w, offsets):
    import torch
    out = ref.grouped_gemm(x, w, offsets).to(x.dtype)
    return out * (1 + torch.rand(()).to(x.dtype)) if w.N > 60 else out


@moeracle.kernel("grouped_gemm", contract="grouped,weight=exact,accumulator=fp32")
def large_k(x, w, offsets):
    out = ref.grouped_gemm(x, w, offsets).to(x.dtype)
    return out * 2 if w.K > 96 else out
"""
)

BY_LAW = "grouped_gemm/T8-E3-k1-N8-K32-G32/bf16/exllama-sym/uniform/normal/s3"  # right by itself


def of_kernel(text: str) -> dict[str, str]:
    """The verdicts in a table that `check` printed."""
    return {line.split()[0]: line.split()[3] for line in text.splitlines() if re.match(r"\w+ +silu_and_mul ", line)}


@needs_plugin
@pytest.mark.parametrize("contract", ["", ', contract="grouped"'])
def test_check_and_the_suite_agree(
    contract: str,
    pytester: pytest.Pytester,
    session: Callable[..., pytest.RunResult],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = pytester.path / "mine.py"
    file.write_text(FILE.replace("{contract}", contract))
    assert main(["check", str(file), "--profile", "smoke", "--examples", "3"]) == ILLEGAL
    said = of_kernel(capsys.readouterr().out)
    options = ("--moeracle-profile", "smoke", "--moeracle-examples", "3", "-rA")
    done = session(*SUITE, "--kernel", str(file), *options)
    text = "\n".join(done.outlines)
    wrong = {name for name in said if f"[silu_and_mul] {name} of " in text}
    assert said == {name: "FAIL" if name in wrong else "legal" for name in said}
    assert "too_large" in wrong
    assert ("rounded_once" in wrong) == (contract == ', contract="grouped"')
    assert len(re.findall(r"^FAILED", text, re.MULTILINE)) == len(wrong)  # one bug is one failure
    assert re.search(r"too_large of \S+ fails in \d\d tests, shown once: tier=\w+ stage=out \d+", text)
    if not contract:
        assert "moeracle: [silu_and_mul] rounded_once: inferred " in text
    case = "silu_and_mul/T5-I48/bf16/-/-/normal/s1"
    assert main(["bisect", "stages", f"{file}:rounded_once", "--case", case]) == (ILLEGAL if contract else 0)


def test_a_failure_that_needs_an_earlier_call_is_replayed_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(KEEPS)
    assert main(["check", str(file), "--examples", "3", "--profile", "smoke"]) == ILLEGAL
    out = capsys.readouterr().out
    assert "right when it is called first: it keeps something between calls" in out
    assert "looks like: " in out
    line = shlex.split(re.findall(r"^  replay: moeracle (.*)$", out, re.MULTILINE)[-1])
    assert line.count("--after") == 1
    assert main(line) == ILLEGAL
    after = line.index("--after")
    assert main(line[:after] + line[after + 2 :]) == 0
    assert main(["check", str(file), "--after", line[-1]]) == USAGE
    assert "--after: got a case without --case" in capsys.readouterr().err


def test_each_replay_line_says_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failures of drawn cases, of a law and of two runs that differ: a fresh process gives the same tier and stage."""
    file = tmp_path / "mine.py"
    file.write_text(DRAWN)
    assert main(["check", f"{file}:varies", "--examples", "12", "--profile", "smoke"]) == ILLEGAL
    assert main(["check", f"{file}:large_k", "--examples", "12", "--profile", "smoke"]) == ILLEGAL
    assert main(["check", f"{file}:needs_eight", "--case", BY_LAW]) == ILLEGAL
    told = re.findall(r"  (FAIL  tier=\S+(?: stage=\S+)?)$(?:\n  .*)*?\n  replay: moeracle (.*)$",
                      capsys.readouterr().out, re.MULTILINE)  # fmt: skip
    assert len(told) == 3
    assert {said.split()[1] for said, _ in told} == {"tier=law", "tier=determinism", "tier=interval"}
    for said, line in told:
        assert main(shlex.split(line)) == ILLEGAL
        assert said in capsys.readouterr().out


def test_bisect_says_what_check_says_of_a_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, case = tmp_path / "mine.py", BY_LAW
    file.write_text(LAW)
    assert main(["check", str(file), "--case", case]) == ILLEGAL
    out = capsys.readouterr().out
    assert "tier=law stage=law_" in out
    assert "looks like: not told: a law compares answers" in out
    assert main(["bisect", "stages", str(file), "--case", case]) == ILLEGAL
    said = capsys.readouterr().out
    assert "tier=law stage=law_" in said
    assert "every element of this case is legal by itself" in said
    assert "nothing is wrong" not in said
