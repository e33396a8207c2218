"""The same judgement under pytest: one item a fixed case, one hunt a kernel, one a law."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moeracle import pytest_session
from moeracle.commands.ci.report import annotations_of
from moeracle.properties.hunt.shard import Shard
from moeracle.properties.report.html.view import read_run
from support.plugin import needs_plugin

# Every session in a process of its own: pytester forgets modules afterwards, and Triton cannot be loaded twice.
pytest_plugins = ["pytester"]
pytestmark = needs_plugin
Session = Callable[..., pytest.RunResult]

SUITE = ("--pyargs", "moeracle.properties.suite")
QUICK = ("-p", "no:randomly", "--moeracle-profile", "smoke", "--moeracle-examples", "3", "-p", "no:cacheprovider")
KERNEL = """
import moeracle
from moeracle.ref import silu_and_mul

@moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32"{more})
def my_silu(h):
    return {returned}
"""
RIGHT = "silu_and_mul(h).to(h.dtype)"


def kernel_file(pytester: pytest.Pytester, returned: str = RIGHT, more: str = "") -> str:
    pytester.makepyfile(my_kernels=KERNEL.format(returned=returned, more=more))
    return "my_kernels.py"


def test_a_right_kernel_passes_and_says_how_much_was_judged(pytester: pytest.Pytester, session: Session) -> None:
    done = session(*SUITE, *QUICK, "--kernel", kernel_file(pytester), "-v")
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        ["*test_case*silu_and_mul.my_silu-silu_and_mul/T9-*PASSED*", "moeracle: * elements judged in * tests"]
    )
    done.stdout.fnmatch_lines(["*test_hunt*silu_and_mul.my_silu*PASSED*"])
    done.stdout.no_fnmatch_line("*FAILED*")


def test_a_wrong_kernel_fails_with_the_verdict_and_no_traceback_of_ours(
    pytester: pytest.Pytester, session: Session
) -> None:
    target = kernel_file(pytester, "(silu_and_mul(h) * 1.1).to(h.dtype)")
    done = session(*SUITE, *QUICK, "--kernel", target, "--moeracle-device", "cpu", "-x")
    assert done.ret == 1
    done.stdout.fnmatch_lines(
        [
            "[[]silu_and_mul[]] my_silu  silu_and_mul/T9-*  FAIL  tier=* stage=out",
            "  * elements illegal; worst *",
            "  replay: moeracle check my_kernels.py --case silu_and_mul/T9-* --device cpu",
        ]
    )
    done.stdout.no_fnmatch_line("*outcome.py*")


KEEPS = """
import moeracle
from moeracle.ref import silu_and_mul

CALLS = []

@moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32")
def my_silu(h):
    CALLS.append(len(h))
    return silu_and_mul(h).to(h.dtype) * (2 if 3 in CALLS[:-1] else 1)
"""


def test_given_cases_alone_are_judged_after_those_that_they_need(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(my_kernels=KEEPS)
    case, before = (f"silu_and_mul/T{T}-I8/bf16/-/-/normal/s1" for T in (2, 3))
    options = ("--kernel", "my_kernels.py", "-p", "no:cacheprovider", "--moeracle-case", case)
    done = session(*SUITE, *options, "--moeracle-after", before)
    assert done.ret == 1
    done.assert_outcomes(failed=1, skipped=2)
    done.stdout.fnmatch_lines([f"  replay: moeracle check my_kernels.py --after {before} --case {case}"])


def test_a_session_asks_how_far_it_judged(pytester: pytest.Pytester, session: Session) -> None:
    shape = ("--moeracle-shape", "E8-H288-I1696-k2-G32", "--moeracle-require", "I>=1696")
    target = kernel_file(pytester, more=", supports=lambda case: case.T < 60 or 'few'")
    far = ("--moeracle-require", "T>=64", "--moeracle-max-skipped", "0.001", "-k", "hunt")
    done = session(*SUITE, *QUICK, "--kernel", target, *shape, *far)
    done.stdout.fnmatch_lines(
        ["*my_silu not judged far enough: T>=64: T was judged from 0 to *; * % of its cases were*"]
    )
    done.stdout.no_fnmatch_line("*I>=1696: *")


@pytest.mark.parametrize("year", [9999, 2020])
def test_a_session_that_judged_nothing_is_no_success(pytester: pytest.Pytester, session: Session, year: int) -> None:
    target = kernel_file(pytester, more=", supports=lambda case: 'needs a full moon'")
    Path("known.toml").write_text(ENTRY.format("gone", year, "false"))
    known = ("--moeracle-known", "known.toml", "--moeracle-in-process")
    done = session(*SUITE, *QUICK, "--kernel", target, "-rs", *known)
    assert done.ret == (3 if year == 9999 else 1)
    expired = "moeracle: known failure: silu_and_mul.gone: its entry expired on 2020-12-31 *"
    (done.stdout.fnmatch_lines if year == 2020 else done.stdout.no_fnmatch_line)(expired)
    done.stdout.fnmatch_lines(["moeracle: nothing could be judged*", "*SKIPPED*needs a full moon*"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "*judges the kernels you name: add --kernel TARGET*"),
        (("--kernel", "my_kernels.py", "--moeracle-profile", "smok"), "*profile: got 'smok'*did you mean 'smoke'?*"),
    ],
)
def test_a_wrong_command_is_one_line(
    pytester: pytest.Pytester, session: Session, options: tuple[str, ...], said: str
) -> None:
    kernel_file(pytester)
    done = session(*SUITE, *options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: {said}"])
    done.stderr.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"after": ["silu_and_mul/T1-I8/bf16/-/-/normal/s1"]}, "--moeracle-after: got a case without --moeracle-case"),
        ({"require": ["T=4"]}, "--moeracle-require: got 'T=4', must be like T>=4096"),
        ({"max_skipped": 2.0}, "--moeracle-max-skipped: got 2.0, must be a share"),
        ({"shape": ["qwen9"]}, "qwen9"),
        ({"shard": "3/2"}, "--moeracle-shard: got '3/2', must be I/N"),
        ({"time_budget": -1.0}, "--moeracle-time-budget: got -1.0, must be above 0"),
        ({"shard": "1/2", "require": ["T>=4"]}, "--moeracle-shard: goes without --moeracle-require"),
    ],
)
def test_a_wrong_demand_is_refused(options: dict[str, Any], said: str) -> None:
    plain: dict[str, Any] = {name: [] for name in ("case", "after", "shape", "require")}
    plain |= dict.fromkeys(("max_skipped", "shard", "time_budget")) | options
    config: Any = SimpleNamespace(getoption=lambda name: plain[name.removeprefix("moeracle_")])
    with pytest.raises(ValueError, match=re.escape(said)):
        pytest_session._requested(config)


def test_the_suite_stays_out_of_other_sessions(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(test_mine="def test_mine(): pass")
    done = session("test_mine.py", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1)
    done.stdout.no_fnmatch_line("*moeracle:*")


SEES = """
import os, torch
with open("seen.txt", "a") as seen:
    seen.write(os.environ["PYTEST_XDIST_WORKER"] + " sees " + os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
"""


def test_under_xdist_the_same_items_run_once_each(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the session that runs this test
    target = kernel_file(pytester)
    path = pytester.path / target
    path.write_text(f"{path.read_text()}\nif 'PYTEST_XDIST_WORKER' in os.environ:\n    exec({SEES!r})\n".replace(
        "import moeracle", "import os, moeracle", 1))  # fmt: skip
    files = ("--moeracle-json", "r.json", "--moeracle-html", "r.html")
    spread = pytester.runpytest_subprocess(*SUITE, *QUICK, "--kernel", target, "-n", "2", *files)
    assert spread.ret == 0
    # 12 fixed cases, 1 hunt, 4 laws: workers that collect different items, or in another order, make xdist refuse.
    assert spread.parseoutcomes()["passed"] == 17
    spread.stdout.fnmatch_lines(["moeracle: * elements judged in * tests"])
    assert set(Path("seen.txt").read_text().splitlines()) == {"gw0 sees 5", "gw1 sees 7"}
    run = read_run(Path("r.json"))
    (found,) = run["kernels"]
    cases = [case["case"] for case in found["cases"]]
    assert (run["exit_code"], found["status"], len(found["laws"])) == (0, "legal", 4)
    assert len(cases) == len(set(cases)) >= 12 + 3
    assert "All judged, all legal" in Path("r.html").read_text()


TWO = """
import moeracle
from moeracle.ref import silu_and_mul

def wrong(h):
    return (silu_and_mul(h) * 1.1).to(h.dtype)

moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32", name="bad")(wrong)
moeracle.kernel("tiny_dot", name="other", contract="grouped,accumulator=fp32")(lambda x, w, sigmoid: None)

@moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32")
def good(h):
    return silu_and_mul(h).to(h.dtype)
"""
ENTRY = """
[[failure]]
kernel = "silu_and_mul.{}"
reason = "why"
issue = "https://example.org/7"
expires = {}-12-31
quarantine = {}
"""


@pytest.mark.parametrize(
    ("entries", "code", "said"),
    [
        (ENTRY.format("bad", 9999, "false"), 0, "1 xfailed"),
        (ENTRY.format("bad", 2020, "false"), 1, "*its entry expired on 2020-12-31*"),
        (
            ENTRY.format("bad", 9999, "true") + ENTRY.format("good", 9999, "false"),
            1,
            "*silu_and_mul.good: it fails no more: remove its entry*",
        ),
    ],
)
def test_known_failures(pytester: pytest.Pytester, session: Session, entries: str, code: int, said: str) -> None:
    pytester.makepyfile(my_kernels=TWO)
    Path("known.toml").write_text(entries)
    options = ("--moeracle-known", "known.toml", "--moeracle-op", "silu_and_mul", "--moeracle-json", "r.json")
    options += ("--moeracle-database", "cases.txt", "--moeracle-in-process")
    again = "silu_and_mul/T3-I16/bf16/-/-/normal/s1"
    Path("cases.txt").write_text(f"{again}\n")
    done = session(*SUITE, *QUICK, "--kernel", "my_kernels.py", *options)
    assert done.ret == code, done.stdout.str()
    done.stdout.fnmatch_lines([f"*{said}*"])
    run = read_run(Path("r.json"))
    assert run["exit_code"] == code
    assert {kernel["kernel"] for kernel in run["kernels"]} == {"bad", "good"}
    assert any(line.startswith("::error") for line in annotations_of(run)) == (code == 1)
    assert again in {case["case"] for kernel in run["kernels"] for case in kernel["cases"]}
    failing = {failure["case"] for kernel in run["kernels"] for failure in kernel["failures"]}
    assert set(Path("cases.txt").read_text().splitlines()[1:]) == failing | {again}


def test_of_a_known_failure_one_part_alone_speaks(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(my_kernels=TWO)
    Path("known.toml").write_text(ENTRY.format("bad", 9999, "false"))
    other = 2 if Shard(1, 2).has("silu_and_mul.bad") else 1
    options = ("--moeracle-known", "known.toml", "--moeracle-op", "silu_and_mul", "--moeracle-json", "r.json")
    options += ("--moeracle-shard", f"{other}/2", "--moeracle-in-process", "-k", "hunt")
    done = session(*SUITE, *QUICK, "--kernel", "my_kernels.py", *options)
    assert done.ret == 0, done.stdout.str()
    assert [kernel["kernel"] for kernel in read_run(Path("r.json"))["kernels"]] == ["good"]


def test_a_session_whose_time_is_over_is_no_pass(pytester: pytest.Pytester, session: Session) -> None:
    budget = ("--moeracle-time-budget", "1e-9", "--moeracle-json", "r.json", "--moeracle-in-process")
    done = session(*SUITE, *QUICK, "--kernel", kernel_file(pytester), *budget)
    assert done.ret == 3
    done.stdout.fnmatch_lines(
        ["moeracle: the time was over; of silu_and_mul.my_silu not judged: test_case: 12, test_hunt: 1, test_law: 6"]
    )
    (found,) = read_run(Path("r.json"))["kernels"]
    assert (found["status"], found["left"]) == ("unjudged", {"test_case": 12, "test_hunt": 1, "test_law": 6})
