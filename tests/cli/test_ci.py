"""The CI kit: known failures, what changed between runs, and the workflow that `moeracle ci init` writes, executed."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from moeracle.commands.ci.report import annotations_of, markdown
from moeracle.commands.compare import compared
from moeracle.known_failures import KnownFailure, read_known_failures, settle
from moeracle.properties.report.report import known_text
from support.commands import Done
from support.schemas import fits
from support.served import run_served

Cli = Callable[..., Done]
Write = Callable[..., str]

KERNELS = """
import moeracle
from moeracle import ref


@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def good(x, w, sigmoid):
    return ref.tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype)


@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def bad(x, w, sigmoid):
    return good(x, w, sigmoid) * FACTOR
"""
ENTRY = """
[[failure]]
kernel = "tiny_dot.bad"
reason = "it is too large"
issue = "https://example.org/7"
expires = 9999-12-31
"""
CASE = "tiny_dot/T3-K64/bf16/-/-/normal/s1"
QUICK = ("--profile", "smoke", "--examples", "2", "--in-process")


def kernels(factor: str) -> str:
    return KERNELS.replace("FACTOR", factor)


@pytest.mark.parametrize(
    ("factor", "entry", "code", "said"),
    [
        ("1.02", ENTRY, 0, "known failure: tiny_dot.bad fails, known until 9999-12-31: it is too large"),
        ("1.02", "", 1, "FAIL"),
        ("1.02", ENTRY.replace("9999", "2020"), 1, "its entry expired on 2020-12-31"),
        ("1.02", ENTRY + 'tier = "determinism"\n', 1, "its entry knows tier=determinism only"),
        ("1", ENTRY, 1, "it fails no more: remove its entry"),
        ("1.02", ENTRY + "quarantine = true\n", 0, "in quarantine until 9999-12-31"),
    ],
)
def test_a_known_failure(cli: Cli, write: Write, factor: str, entry: str, code: int, said: str) -> None:
    Path("known.toml").write_text(entry)
    done = cli(
        "check", write(kernels(factor)), *QUICK, "--known", "known.toml", "--json", "run.json",
        "--junit", "j.xml", "--html", "p.html",
    )  # fmt: skip
    assert done.code == code
    assert said in done.out + done.err
    run = json.loads(Path("run.json").read_text())
    assert run["exit_code"] == code
    failing = {kernel["kernel"] for kernel in run["kernels"] if kernel["status"] == "illegal"}
    assert failing == ({"bad"} if factor != "1" and "quarantine" not in entry else set())
    assert ("<failure" in Path("j.xml").read_text()) == (code == 1)
    texts = [known_text(kernel["known"]) for kernel in run["kernels"] if "known" in kernel]
    assert bool(texts) == bool(entry)
    page = html.unescape(Path("p.html").read_text())
    assert all(text in page and text in markdown(run) for text in texts)
    assert any(line.startswith("::error") for line in annotations_of(run)) == (code == 1)


@pytest.mark.parametrize(("options", "code"), [(("--time-budget", "1e-9"), 3), (("--case", CASE), 0)])
def test_a_known_failure_that_was_not_looked_for_is_not_gone(
    cli: Cli, write: Write, options: tuple[str, ...], code: int
) -> None:
    Path("known.toml").write_text(ENTRY)
    done = cli("check", f"{write(kernels('1'))}:bad", *QUICK, "--known", "known.toml", *options)
    assert done.code == code
    assert "fails no more" not in done.out + done.err


def test_an_entry_past_its_day_is_wrong_though_no_kernel_has_it(cli: Cli, write: Write) -> None:
    gone = ENTRY.replace("tiny_dot.bad", "tiny_dot.gone")
    target, options = write(kernels("1")), (*QUICK, "--known", "known.toml")
    Path("known.toml").write_text(gone)
    assert cli("check", target, *options).code == 0
    Path("known.toml").write_text(gone.replace("9999", "2020"))
    done = cli("check", target, *options)
    assert done.code == 1
    assert "tiny_dot.gone: its entry expired on 2020-12-31" in done.err
    assert cli("check", f"{target}:good", *options).code == 0, "asked about one kernel alone"


def test_a_run_of_kernels_in_quarantine_alone_is_no_pass(cli: Cli, write: Write) -> None:
    Path("known.toml").write_text(ENTRY + "quarantine = true\n")
    assert cli("check", f"{write(kernels('1'))}:bad", *QUICK, "--known", "known.toml").code == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[[", "is not TOML"),
        ("x = 1\n", "has wrong fields (x:"),
        (ENTRY.replace("reason", "why"), "reason"),
        (ENTRY.replace("it is too large", " "), "reason: got an empty text"),
        (ENTRY.replace("https://example.org/7", "7"), "issue: got '7', must be a link"),
        (ENTRY.replace("tiny_dot.bad", "bad"), "must be OP.KERNEL"),
        (ENTRY.replace("9999-12-31", '"soon"'), "expires"),
        (ENTRY + ENTRY, "names tiny_dot.bad twice"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "known.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_known_failures(tmp_path / "known.toml")
    assert "\n" not in str(error.value)


def test_the_last_day_still_counts() -> None:
    entry = KnownFailure("op.kernel", "why", "https://example.org", date(2027, 3, 31))
    assert settle(entry, ["interval"], today=date(2027, 3, 31)).wrong == ""
    assert "expired" in settle(entry, ["interval"], today=date(2027, 4, 1)).wrong


def kernel_of(status: str = "legal", **fields: Any) -> dict[str, Any]:
    plain = {"kernel": "k", "op": "tiny_dot", "contract": "grouped", "status": status, "seconds": 1.0, "skipped": {}}
    cases = [{"case": "a", "bits": {"out": "1"}}, {"case": "b", "bits": {"out": "2"}}]
    return {**plain, "cases": cases, "failures": [], "reach": {"sizes": {"T": [0, 64]}, "skipped": 0}, **fields}


@pytest.mark.parametrize(
    ("old", "new", "worse", "other"),
    [
        ([kernel_of()], [kernel_of()], "", ""),
        ([kernel_of()], [kernel_of("illegal")], "legal before, illegal now", ""),
        ([kernel_of("illegal")], [kernel_of()], "", "illegal before, legal now"),
        ([kernel_of()], [], "legal before, absent now", ""),
        ([], [kernel_of()], "", ""),
        ([], [kernel_of("illegal")], "absent before, illegal now", ""),
        ([kernel_of()], [kernel_of(reach={"sizes": {"T": [0, 32]}, "skipped": 0.5})], "judged up to T=32 only", "50 %"),
        ([kernel_of()], [kernel_of(cases=[{"case": "a", "bits": {"out": "3"}}])], "", "other bits in 1 of 1 cases: a"),
        ([kernel_of()], [kernel_of(contract="exact")], "", "contract 'grouped' before, 'exact' now"),
        ([kernel_of(laws={"law_x": 5})], [kernel_of(laws={"law_x": 0})], "law_x was put to 5 cases before", ""),
        ([kernel_of()], [kernel_of("illegal", known={"wrong": ""}, reach={})], "", "before, a known failure now"),
        ([kernel_of()], [kernel_of("illegal", known={"wrong": "it expired"})], "legal before, illegal now", ""),
    ],
)
def test_what_changed(old: list[Any], new: list[Any], worse: str, other: str) -> None:
    (change,) = compared({"kernels": old}, {"kernels": new})
    assert worse in "".join(change.worse)
    assert bool(change.worse) == bool(worse)
    assert other in "".join(change.other)
    assert bool(change.other) == bool(other)


def test_other_bits_are_worse_where_that_is_asked() -> None:
    new = kernel_of(cases=[{"case": "a", "bits": {"out": "3"}}])
    (change,) = compared({"kernels": [kernel_of()]}, {"kernels": [new]}, bits=True)
    assert "other bits" in change.worse[0]


def test_compare_reads_what_check_writes(cli: Cli, write: Write) -> None:
    for name, factor in (("old", "1"), ("new", "1.02")):
        cli("check", write(kernels(factor), name=f"{name}.py"), *QUICK, "--json", f"{name}.json")
    assert cli("compare", "old.json", "old.json").code == 0
    done = cli("compare", "old.json", "new.json", "--json", "changes.json")
    assert done.code == 1
    assert "legal before, illegal now" in done.out
    assert fits("compare", "changes.json")["worse"] == 1
    assert [kernel["source"] for kernel in fits("check", "new.json")["kernels"]] == ["new.py:6", "new.py:11"]
    assert cli("compare", "old.json", "changes.json").code == 2


def test_an_annotation_is_one_line_at_the_kernels_line() -> None:
    failing = kernel_of("illegal", source="k.py:3", failures=[{"text": "100 % wrong\n::error::forged"}])
    (line,) = annotations_of({"target": "k.py:k", "kernels": [failing]})
    assert line == "::error file=k.py,line=3,title=moeracle%3A tiny_dot k::100 %25 wrong%0A::error::forged"
    failing = kernel_of("illegal", kernel="a|b\n### c", failures=[], cases_judged=0, judged=0)
    assert "| a\\|b\\n### c |" in markdown({"target": "k.py", "kernels": [failing]})


def executed(workflow: Path, repository: Path, summary: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Run the `run` steps of a workflow's one job as a runner would, but for the installation; return its code."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'moeracle[docs]'")
    (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
    assert {"uses": "actions/checkout@v4"} in job["steps"]
    commands = [step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"]
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(summary), "MOERACLE_PROFILE": "smoke"}
    code = 0
    for command in commands:
        code = code or run_served(["bash", "-e", "-c", command], repository, environment, capsys).returncode
    assert commands
    return code


def test_the_workflow_is_green_and_red(
    cli: Cli, write: Write, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(kernels("1.02"))
    assert cli("ci", "init", "my_kernels.py").code == 0
    Path("known_failures.toml").write_text(ENTRY)
    script = Path("ci/moeracle.sh")
    # Few cases, in one process: the hunt, the child and the whole golden set have tests of their own.
    text = script.read_text().replace("moeracle check", "moeracle check --in-process --examples 1")
    script.write_text(text.replace("golden verify", "golden verify --in-process --op tiny_dot"))
    workflow = folder / ".github/workflows/moeracle.yml"
    assert executed(workflow, folder, folder / "summary.md", capsys) == 0, (folder / ".served/log").read_text()
    said = (folder / ".served/log").read_text()
    steps = [line.split()[2] for line in said.splitlines() if line.startswith("== moeracle")]
    assert steps == ["check", "ci", "golden"]
    assert json.loads(said.split("== environment")[1].split("==")[0])["python"]
    shutil.copy("moeracle-reports/check.json", "moeracle-baseline.json")
    assert len(Path(".moeracle-cases.txt").read_text().splitlines()) == 2, "the known failure's case is kept"
    write(kernels("1.02").replace("to(x.dtype)\n", "to(x.dtype) * 3\n"))  # the other is wrong now, too
    assert executed(workflow, folder, folder / "summary.md", capsys) == 1
    assert "illegal" in Path("summary.md").read_text()
    assert "legal before, illegal now" in Path("moeracle-reports/changes.json").read_text()
    assert {path.name for path in Path("moeracle-reports").iterdir()} >= {"check.json", "check.xml", "check.html"}


@pytest.mark.parametrize("runner", ["rocm", "cuda", "cpu"])
def test_every_runner_has_a_workflow(cli: Cli, folder: Path, runner: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'moeracle[docs]'")
    assert cli("ci", "init", "a b.py", "--runner", runner).code == 0
    workflow = yaml.safe_load((folder / ".github/workflows/moeracle.yml").read_text())
    assert workflow["jobs"]["moeracle"]["runs-on"] == ("ubuntu-latest" if runner == "cpu" else ["self-hosted", runner])
    assert subprocess.run(["bash", "-n", "ci/moeracle.sh"], check=False).returncode == 0
    assert "TARGET='a b.py'" in Path("ci/moeracle.sh").read_text()


def test_a_file_that_is_there_is_kept(cli: Cli, folder: Path) -> None:
    (folder / "known_failures.toml").write_text("mine")
    done = cli("ci", "init", "k.py")
    assert done.code == 2
    assert "is there already" in done.err
    assert not (folder / "ci").exists()
    assert cli("ci", "init", "k.py", "--runner", "gpu").code == 2
