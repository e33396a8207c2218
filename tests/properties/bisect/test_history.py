"""The parts of a bisection over revisions: what is remembered, what git says, commands that do not end, the plot."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from moeracle.properties.bisect.history import HistoryReport
from moeracle.properties.bisect.history_git import Commit, Found, Repository, read_result
from moeracle.properties.bisect.history_plot import text_plot, write_png
from moeracle.properties.bisect.history_runner import Ended, conclude, environment_for, harness_in, run_bounded
from moeracle.properties.bisect.history_state import BAD, GOOD, SKIP, Judged, Memory, Plan
from support.bisect_repository import git

A, B, C = "a" * 40, "b" * 40, "c" * 40
PLAN = Plan(A, C, "kernels/moe.py", "op/dims", timeout=5)


def verdict(status: str, ratio: float | str | None = 0.5, reason: str = "1 ulp outside") -> dict[str, object]:
    return {"status": status, "reason": reason, "stage": "h", "tier": "interval", "max_ratio": ratio}


@pytest.mark.parametrize(
    ("ended", "written", "expected"),
    [
        (Ended(0, 1.0), [verdict("legal")] * 3, (GOOD, "")),
        (Ended(0, 1.0), [verdict("illegal", 9.0)] * 3, (BAD, "")),
        (Ended(0, 1.0), [verdict("legal"), verdict("illegal", 9.0), verdict("legal")], (SKIP, "flaky")),
        (Ended(0, 1.0), [verdict("illegal", 9.0), verdict("vacuous", None)], (SKIP, "flaky")),
        (Ended(0, 1.0), [verdict("skipped", None, "K must be a multiple of 64")], (SKIP, "unjudged")),
        (Ended(None, 5.0), None, (BAD, "")),
        (Ended(-11, 1.0), None, (BAD, "")),
        (Ended(2, 1.0), None, (SKIP, "target")),
        (Ended(1, 1.0), None, (SKIP, "unjudged")),
    ],
)
def test_a_judgement_is_good_bad_or_skipped(
    ended: Ended, written: list[object] | None, expected: tuple[str, str]
) -> None:
    judged = conclude(B, PLAN, ended, None if written is None else {"verdicts": written}, "error: no such file")
    assert (judged.verdict, judged.kind) == expected
    assert judged.reason


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, PLAN)
    judged = Judged(B, BAD, "wrong", statuses=["illegal"], max_ratio=float("inf"), stage="h", tier="nonfinite")
    memory.put(judged)
    assert Memory.of(tmp_path, PLAN).all() == {B: judged}
    (memory.folder / f"{C}.json").write_text('{"commit": "c')  # cut off: as if it had not been judged
    (memory.folder / f"{A}.json").write_text((memory.folder / f"{B}.json").read_text())  # of another commit
    assert set(memory.all()) == {B}
    (memory.folder / f".{C}.123.answer").write_text("left by a run that was killed")
    with memory.opened(PLAN, False, int):
        assert memory.plan() == PLAN
        assert set(memory.all()) == {B}
        assert not list(memory.folder.glob(".*"))
    with memory.opened(PLAN, True, int):
        assert memory.all() == {}


def test_other_questions_have_other_memories(tmp_path: Path) -> None:
    other = Plan(A, C, "kernels/moe.py", "op/dims", build="make", timeout=5)
    Memory.of(tmp_path, PLAN).put(Judged(B, GOOD))
    assert Memory.of(tmp_path, other).all() == {}


def test_a_command_that_never_ends_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = f"sleep 300 & echo $! > {pid}; wait"
    pid.touch()
    seconds = 1.0
    while not pid.read_text().strip():  # a slow machine has not begun the command in so short a time
        assert run_bounded(command, tmp_path, seconds, tmp_path / "log", dict(os.environ)).code is None
        seconds *= 2
    child, deadline = int(pid.read_text()), time.monotonic() + 200  # it would sleep for 300
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended, and nobody has asked for its exit code yet
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists(), "the build's child lives on"


def test_output_and_exit_code_of_a_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_bounded("echo one; echo two >&2; exit 7", tmp_path, 600, log, dict(os.environ)).code == 7
    assert log.read_text() == "one\ntwo\n"
    words = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert run_bounded(words, tmp_path, 600, log, dict(os.environ)).code == -9


def test_the_worktree_comes_first_and_git_variables_do_not_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    (tmp_path / "src").mkdir()
    env = environment_for(tmp_path)
    paths = env["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(tmp_path), str(tmp_path / "src")]
    assert str(Path("elsewhere").resolve()) in paths
    assert not any(name.startswith("GIT_") for name in env)
    (tmp_path / "src" / "moeracle").mkdir()  # our own repository: its revisions must not be their own judges
    assert str(tmp_path / "src") not in environment_for(tmp_path)["PYTHONPATH"].split(os.pathsep)


def test_a_harness_is_there_only_while_it_is_needed(tmp_path: Path) -> None:
    harness = tmp_path / "mine.py"
    harness.write_text("x = 1\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    with harness_in(tree, "checks/mine.py:moe", harness):
        assert (tree / "checks" / "mine.py").read_text() == "x = 1\n"
    assert not (tree / "checks" / "mine.py").exists()


def test_what_git_bisect_says_is_read() -> None:
    assert read_result(f"running it\n{B} is the first bad commit\ncommit {B}\n") == Found(B)
    several = f"There are only 'skip'ped commits left.\nThe first bad commit could be any of:\n{A}\n{B}\nWe cannot"
    assert read_result(several) == Found("", (A, B))
    assert read_result("bisect run failed: exit code 128") == Found()


def test_a_bisection_of_skipped_commits_ends_with_suspects(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    ids = []
    for number in range(3):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", f"{number}")
        ids.append(git(tmp_path, "rev-parse", "HEAD"))
    repository = Repository(tmp_path)
    assert read_result(repository.bisect("start", ids[2], ids[0], cwd=tmp_path)) == Found()
    found = read_result(repository.bisect(SKIP, cwd=tmp_path))
    assert not found.first_bad
    assert set(found.suspects) == set(ids[1:])
    assert read_result(repository.bisect(GOOD, ids[1], cwd=tmp_path)) == Found(ids[2])
    with pytest.raises(ValueError, match=r"^git bisect nonsense: .") as error:
        repository.bisect("nonsense", cwd=tmp_path)
    assert "\n" not in str(error.value)


def test_no_git_and_no_repository_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be inside a git repository") as error:
        Repository(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="must be a folder"):
        Repository(tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="git: not found on PATH"):
        Repository(tmp_path)


def report() -> HistoryReport:
    commits = [Commit(c * 40, "A", "2026-01-02", f"change {c}") for c in "abcdef"]
    judged = {
        "a" * 40: Judged("a" * 40, GOOD, max_ratio=0.5),
        "c" * 40: Judged("c" * 40, SKIP, "does not build", "build"),
        "d" * 40: Judged("d" * 40, BAD, max_ratio=float("inf")),
        "f" * 40: Judged("f" * 40, BAD, max_ratio=64.0),
    }
    return HistoryReport(PLAN, commits, judged, Found("d" * 40))


def test_the_plot_crosses_the_bound_where_it_goes_wrong() -> None:
    lines = text_plot(report())
    assert [line.split()[0] for line in lines] == ["0", "2", "3", "5"]
    beyond = ["|" in line and line.split("|")[1].startswith("#") for line in lines]
    assert beyond == [False, False, True, True]
    assert [line.endswith("<- first bad") for line in lines] == [False, False, True, False]
    assert "build" in lines[1]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_png(report(), tmp_path / "plot")
    assert (tmp_path / "plot").read_bytes().startswith(b"\x89PNG")
