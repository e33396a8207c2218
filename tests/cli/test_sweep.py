"""Campaigns: each case once, whatever is killed, cut short, full or started twice."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.case_database import read_database
from moeracle.commands.sweep import worker
from moeracle.commands.sweep.campaign import Meter, Outcome, prepare, ray_cluster, run
from moeracle.commands.sweep.journal import JOURNALS, PARTS, Journal, finished, unfinished
from moeracle.commands.sweep.plan import Plan, cases_of, chunk_size, read_plan, write_plan
from moeracle.commands.sweep.summary import curve, merge, rows_of, summarize
from moeracle.commands.sweep.worker import DISK, ENDED, MOST_BEGUN, MOST_ENDED, OTHERS_LEFT, subject_of, work
from moeracle.properties.cases.case import Case
from moeracle.target.load import load_target
from support.commands import Done

pytest.importorskip("pyarrow")
Cli = Callable[..., Done]
KERNELS = """
import os
import moeracle
from moeracle import ref

@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def good(x, w, sigmoid):
    return ref.tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype)

@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def wrong_from_nine_rows(x, w, sigmoid):
    right = good(x, w, sigmoid)
    return right if len(x) < 9 else right * 1.5
"""
DIES = """
@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def dies(x, w, sigmoid):
    os._exit(1)
"""
HANGS = """
@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def hangs(x, w, sigmoid):
    import time
    time.sleep(3600)
"""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers call kernels themselves: what is tested here is the campaign, and starting children takes time."""
    monkeypatch.setattr(worker, "load", lambda target, device, *_, **__: load_target(target, device))


def begin(folder: Path, source: str, cases: int | None, chunk: int, **fields: Any) -> Plan:
    """Begin a campaign of the kernels of a file."""
    file = folder.with_suffix(".py")
    file.write_text(source)
    subjects = [subject_of(str(file), kernel) for kernel in load_target(str(file)).kernels]
    plan = Plan("0", subjects, 0, "smoke", [], [], cases, chunk, **fields)
    prepare(folder)
    write_plan(folder, plan)
    return plan


def fork_worker(folder: Path, *limits: tuple[int, int]) -> int:
    """Start a worker by forking this process, which has imported everything."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used its GPU cannot be forked")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for what, most in limits:
            resource.setrlimit(what, (most, most))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        code = worker.main(str(folder), "")
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Return the exit code of a forked process; below zero: its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def texts(folder: Path) -> list[tuple[str, str, str, str]]:
    """Return kernel, case, verdict and digests of every finished case, sorted."""
    return sorted((r["kernel"], r["case"], r["verdict"], r["digests"]) for r in rows_of(folder))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A campaign that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "campaign"
    plan = begin(folder, KERNELS, 64, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "load", lambda target, device, *_, **__: load_target(target, device))
        assert work(folder)
    return folder, plan


def test_every_case_of_the_plan_is_judged_once(undisturbed: tuple[Path, Plan]) -> None:
    folder, plan = undisturbed
    found, summary = texts(folder), summarize([folder])
    assert len(found) == len({row[:2] for row in found}) == plan.cases == summary.cases
    assert not list((folder / JOURNALS).iterdir())
    good, wrong = summary.kernels
    assert good.verdicts["legal"]
    assert not good.verdicts["illegal"]
    at_fault = [row for row in found if row[0] == "wrong_from_nine_rows" and row[2] == "illegal"]
    assert wrong.verdicts["illegal"] == len(at_fault) > 1
    assert all(Case.parse(case).T >= 9 for _, case, _, _ in at_fault)
    assert sum(count for _, _, count in summary.as_dict()["kernels"][0]["sizes"]["T"]) == 32
    shrunk = {Case.parse(failure["case"]).T for failure in summary.failures}
    assert shrunk == {9}
    assert all("replay: moeracle check" in failure["text"] for failure in summary.failures)


def test_killed_workers_lose_nothing_and_repeat_nothing(
    undisturbed: tuple[Path, Plan], tmp_path: Path, in_process: None
) -> None:
    folder, draw, kills = tmp_path / "campaign", random.Random(7), 0
    begin(folder, KERNELS, 64, 8)
    before: list[tuple[str, str, str, str]] = []
    while len(before) < 56:
        pid, more = fork_worker(folder), draw.randint(1, 7)
        while len(texts(folder)) < len(before) + more:  # a case that ends its worker again and again counts as wrong
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(draw.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        now = texts(folder)
        assert set(before) <= set(now), "no finished case is lost"
        before, kills = now, kills + 1
    assert kills > 6
    assert ended(fork_worker(folder)) == 0
    target, there = str(folder.with_suffix(".py")), str(undisturbed[0].with_suffix(".py"))
    assert target != there
    assert texts(folder) == texts(undisturbed[0]), "as if nothing had been killed: each case once, the same bits"


def test_two_workers_never_judge_the_same_case(
    undisturbed: tuple[Path, Plan], tmp_path: Path, in_process: None
) -> None:
    folder = tmp_path / "campaign"
    begin(folder, KERNELS, 64, 8)
    assert [ended(pid) for pid in [fork_worker(folder) for _ in range(3)]] == [0, 0, 0]
    assert texts(folder) == texts(undisturbed[0])
    assert summarize([folder, folder]).twice == 64, "a case that is there twice is seen"


def test_a_journal_is_held_by_one_process(tmp_path: Path) -> None:
    prepare(tmp_path)
    with Journal(tmp_path, 3) as first, Journal(tmp_path, 3) as second:
        assert first.take()
        assert not second.take()


def test_a_full_disk_stops_a_worker_and_the_next_goes_on(
    undisturbed: tuple[Path, Plan], tmp_path: Path, in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "campaign"
    begin(folder, KERNELS, 64, 8)
    assert ended(fork_worker(folder, (resource.RLIMIT_FSIZE, 3000))) == DISK
    said = capfd.readouterr().err
    assert said.startswith(f"error: {folder / JOURNALS}")
    assert said.endswith(f": {os.strerror(errno.ENOSPC)}\n")
    assert 0 < len(texts(folder)) < 64
    assert ended(fork_worker(folder)) == 0
    assert texts(folder) == texts(undisturbed[0])


def test_a_line_that_was_cut_short_is_judged_again(tmp_path: Path) -> None:
    prepare(tmp_path)
    with Journal(tmp_path, 0) as journal:
        assert journal.take()
        journal.plan(["a", "b"])
        journal.begin("a")
        journal.finish({"case": "a"})
        journal.begin("b")
    path = tmp_path / JOURNALS / "00000000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"case":"b","verd')
    assert [row["case"] for row in unfinished(tmp_path)] == ["a"]
    with Journal(tmp_path, 0) as journal:
        assert journal.take()
        assert journal.left() == ["b"]
        assert journal.begin("b") == 1, "begun once before"
    path.write_bytes(b"{}\nnonsense\n{}\n")
    with Journal(tmp_path, 0) as journal, pytest.raises(ValueError, match="damaged at line 2"):
        journal.take()


def test_a_case_that_ends_its_worker_is_not_begun_for_ever(tmp_path: Path, in_process: None) -> None:
    folder = tmp_path / "campaign"
    begin(folder, KERNELS + DIES, 6, 2)
    codes = [ended(fork_worker(folder)) for _ in range(2 * MOST_BEGUN + 1)]
    assert codes == [1] * 2 * MOST_BEGUN + [0]
    dead = [row for row in rows_of(folder) if row["kernel"] == "dies"]
    assert {(row["verdict"], row["tier"]) for row in dead} == {("illegal", "exit")}
    assert len(dead) == 2
    assert len((folder / ENDED / "2").read_text().splitlines()) == 2


def test_a_kernel_that_ends_its_process_too_often_is_given_up(tmp_path: Path, in_process: None) -> None:
    folder = tmp_path / "campaign"
    begin(folder, KERNELS, 20, 2)
    (folder / ENDED / "1").write_text("case\n" * MOST_ENDED)
    assert work(folder)
    assert {row["kernel"] for row in rows_of(folder)} == {"good"}
    assert len(texts(folder)) == 10


def test_what_killed_workers_left_is_removed(undisturbed: tuple[Path, Plan]) -> None:
    folder, _ = undisturbed
    (folder / JOURNALS / "00000000.jsonl").write_text('{"cases":[]}\n')
    (folder / PARTS / ".00000000-8.parquet.abcd1234.tmp").touch()
    assert work(folder)
    assert not list((folder / JOURNALS).iterdir())
    assert not [path for path in (folder / PARTS).iterdir() if path.suffix == ".tmp"]


def test_a_clock_that_goes_back_changes_nothing(
    undisturbed: tuple[Path, Plan], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = tmp_path / "campaign", iter(range(10**9, 0, -1000))
    begin(folder, KERNELS, 64, 8)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert work(folder)
    assert texts(folder) == texts(undisturbed[0])
    points = curve(summarize([folder]).times)
    assert points == sorted(points)
    assert points[-1][1] == 64


def test_the_plan_draws_the_same_cases_everywhere(undisturbed: tuple[Path, Plan]) -> None:
    folder, plan = undisturbed
    kernel = load_target(plan.kernels[0].target).kernels[0]
    drawn = [str(case) for chunk in range(0, 8, 2) for case in cases_of(read_plan(folder), kernel, chunk)]
    assert sorted(drawn) == sorted(row["case"] for row in rows_of(folder) if row["kernel"] == "good")
    assert len(set(drawn)) == 32
    first = "tiny_dot/T3-K33/bf16/-/-/normal/s5"
    again = Plan(**{**vars(plan), "first": [first]})
    assert str(cases_of(again, kernel, 0)[0]) == first, "failures of others come first, as they were"
    clash = [str(case) for case in cases_of(plan, kernel, 0)]
    both = [
        str(case) for chunk in (0, 2) for case in cases_of(Plan(**{**vars(plan), "first": clash[1:4]}), kernel, chunk)
    ]
    assert both[:3] == clash[1:4]
    assert len(set(both)) == len(both) == 16
    assert [chunk_size(cases, 2, 4) for cases in (None, 10**6, 320, 1)] == [500, 500, 10, 1]


def test_rows_of_several_campaigns_become_one_file(undisturbed: tuple[Path, Plan], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder, _ = undisturbed
    prepare(tmp_path / "b")
    write_plan(tmp_path / "b", read_plan(folder))
    with Journal(tmp_path / "b", 0) as journal:
        assert journal.take()
        journal.plan(["x"])
        row = next(rows_of(folder))
        del row["case"]
        journal.finish({"case": "tiny_dot/T1-K1/bf16/-/-/normal/s0", **row, "chunk": 0})
    assert merge([folder, tmp_path / "b"], tmp_path / "all.parquet") == 65
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 65
    part = next((folder / PARTS).iterdir())
    damaged = part.read_bytes()
    try:
        part.write_bytes(damaged[:100])
        with pytest.raises(ValueError, match="is damaged"):
            summarize([folder])
    finally:
        part.write_bytes(damaged)


class _Workers:
    """Workers that end as a script says."""

    def __init__(self, codes: list[int | None], wait: int = 0) -> None:
        self.codes, self.alive, self.started, self.stopped = codes, 0, 0, False

    def start(self) -> None:
        self.alive, self.started = self.alive + 1, self.started + 1

    def ended(self) -> list[int | None]:
        over = [self.codes.pop(0)] if self.codes and self.alive else []
        self.alive -= len(over)
        return over

    def running(self) -> int:
        return self.alive

    def stop(self) -> None:
        self.stopped = True

    def pids(self) -> list[int]:
        return []


@pytest.mark.parametrize(
    ("codes", "starts", "deaths", "stopped"),
    [
        ([0], 1, 0, ""),
        ([OTHERS_LEFT, 0], 2, 0, ""),
        ([None, None, 0], 3, 2, ""),
        ([2], 1, 1, "a worker could not go on"),
        ([DISK], 1, 1, "a worker could not go on"),
        ([None] * 30, 21, 21, "no case was finished meanwhile"),
    ],
)
def test_workers_that_die_are_replaced_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int | None], starts: int, deaths: int, stopped: str
) -> None:
    monkeypatch.setattr("moeracle.commands.sweep.campaign.POLL", 0.0)
    begin(tmp_path / "campaign", KERNELS, 4, 2)
    workers = _Workers(list(codes))
    outcome: Outcome = run(tmp_path / "campaign", workers, 1, None, lambda phase, done, total: None)
    assert (workers.started, outcome.deaths) == (starts, deaths)
    assert stopped in outcome.stopped
    assert bool(outcome.stopped) == bool(stopped)
    assert workers.stopped


def test_progress_says_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = begin(tmp_path / "campaign", KERNELS, 4, 2)
    meter, said = Meter(tmp_path / "campaign", plan), list[tuple[str, int, int]]()
    with Journal(tmp_path / "campaign", 1) as journal:
        assert journal.take()
        journal.plan(["a", "b"])
        journal.finish({"case": "a"})
    meter.started -= 10
    meter.look(lambda *words: said.append(words))
    assert said == [("0.1 cases/s, 0 min 30 s left", 1, 4)]
    (tmp_path / "campaign" / PARTS / "00000000-2.parquet").touch()
    assert finished(tmp_path / "campaign") == {0: 2}
    meter.look(lambda *words: said.append(words))
    assert said[1][1:] == (3, 4)


def test_the_command_end_to_end(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS + DIES + HANGS)
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "kernels.py", "--cases", "16", "--out", "campaign", "--jobs", "1", "--profile", "smoke"]
    words += ["--database", "failed.txt"]
    done = cli(*words, "--case-timeout", "0.5")
    assert done.code == 1, done.err
    failed = (tmp_path / "failed.txt").read_text().splitlines()[1:]
    assert failed  # shrunk; what ends a process is not
    assert {row["tier"] for row in rows_of(tmp_path / "campaign") if row["verdict"] == "illegal"} >= {"exit", "timeout"}
    assert all(Case.parse(text).T == 9 for text in failed), failed
    plan = read_plan(tmp_path / "campaign")
    assert plan.database == str(tmp_path / "failed.txt")
    assert [str(case) for case in read_database(tmp_path / "failed.txt")] == failed  # check and pytest judge them first
    assert "16 of 16 cases finished" in done.out
    found = {(row["kernel"], row["verdict"], row["tier"]) for row in rows_of(tmp_path / "campaign")}
    assert {("dies", "illegal", "exit"), ("hangs", "illegal", "timeout")} <= found
    assert any(kernel == "good" and verdict == "legal" for kernel, verdict, _ in found)
    again = cli("sweep", "report", "campaign", "--html", "page.html", "--json", "out.json")
    assert again.code == 1
    assert again.out.splitlines()[-1] == done.out.splitlines()[-1]
    assert json.loads((tmp_path / "out.json").read_text())["cases"] == 16
    page = (tmp_path / "page.html").read_text()
    assert "of 16 cases are illegal" in page
    for wrong, said in (
        (["sweep", "kernels.py", "--out", "campaign"], "--cases: got none"),
        ([*words[:3], "17", *words[4:], "--case-timeout", "0.5"], "another number needs a new folder"),
        (words, "holds a campaign with another case_timeout"),
        (["sweep", "kernels.py", "--cases", "2", "--out", "."], "holds files and no campaign"),
        (["sweep", "report", "."], "found no file"),
        (["sweep", "kernels.py", "--cases", "2", "--out", "new", "--failures", "no"], "must be a campaign's folder"),
        (["sweep", "kernels.py", "--cases", "2", "--out", "kernels.py/x"], "cannot be made"),
    ):
        refused = cli(*wrong)
        assert refused.code == 2, (wrong, refused)
        assert said in refused.err
        assert len(refused.err.strip().splitlines()) == 1
    (tmp_path / "kernels.py").write_text(KERNELS + DIES + HANGS + "\n")  # results of two kernels are no campaign
    changed = cli(*words, "--case-timeout", "0.5")
    assert (changed.code, changed.err.count("\n")) == (2, 1)
    assert "holds a campaign with another code of its kernels; must be a new folder" in changed.err
    with pytest.raises(ValueError, match="its code is not what it was when the campaign began"):
        worker._load(plan, 0)


def test_a_cluster_that_cannot_be_had_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = "nothing answers there" if importlib.util.find_spec("ray") else "needs the extra `ray`"
    with pytest.raises(ValueError, match=said), ray_cluster(address, None):
        pass
