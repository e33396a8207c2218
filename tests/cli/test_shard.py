"""A part of all cases, and a time that is over: nothing is judged twice, nothing is left out in silence."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeracle import gpus
from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import StageResult, Verdict
from moeracle.properties.hunt.budget import time_budget
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.hunt.shard import Shard, shard_named
from moeracle.target.declaration import make_kernel
from support.commands import Done

Cli = Callable[..., Done]
Write = Callable[..., str]


STUB = make_kernel(lambda *args: None, "int4_linear", name="stub")


class Recorder:
    """Runs no case: it notes each, and calls legal what has fewer than `bad` tokens."""

    def __init__(self, bad: int = 1 << 30) -> None:
        self.cases: list[str] = []
        self.bad = bad

    def __call__(self, kernel: Any, case: Case, **_: Any) -> Verdict:
        self.cases.append(str(case))
        status = "legal" if self.bad > case.T else "illegal"
        return Verdict(case.op, str(case), status=status, tier="bits", stages=[StageResult("out", 1)])


def judged(shard: Shard | None = None) -> Counter[str]:
    run = Recorder()
    result = hunt(STUB, run=run, shard=shard, examples=60, laws=False)
    assert result.status == "legal"
    return Counter(run.cases)


@pytest.mark.parametrize("of", [2, 5])
def test_shards_together_judge_every_case_once(of: int) -> None:
    whole = judged()
    parts = [judged(Shard(place, of)) for place in range(1, of + 1)]
    assert sum(parts, Counter()) == whole
    assert set(whole.values()) == {1}
    assert all(len(part) > len(whole) / of / 3 for part in parts), "a hunt is split, not only its kernels"


def test_a_failure_is_found_in_the_shard_that_has_it_and_shrunk_through_all_cases() -> None:
    found = [hunt(STUB, run=Recorder(bad=40), shard=Shard(place, 3), examples=60).failures for place in (1, 2, 3)]
    assert [failure.case for failures in found for failure in failures]
    assert {Case.parse(failure.case).N for failures in found for failure in failures} == {1}


@pytest.mark.parametrize("looks", [0, 5, 60])
def test_a_hunt_whose_time_is_over_says_what_is_left(looks: int) -> None:
    run, seen = Recorder(), iter(range(10**6))
    result = hunt(STUB, run=run, examples=60, laws=False, spent=lambda: next(seen) >= looks)
    assert len(run.cases) <= looks
    assert result.status == "unjudged"
    assert result.left["drawn cases"] > 0
    assert ("fixed cases" in result.left) == (looks < 20)
    if looks == 0:
        assert result.left["fixed cases"] == len(must_run(STUB))
        assert result.left["tall cases"] + result.left["drawn cases"] == 60


def test_what_failed_before_the_time_was_over_is_shrunk() -> None:
    run = Recorder(bad=40)
    result = hunt(STUB, run=run, examples=60, spent=lambda: any(Case.parse(case).T >= 40 for case in run.cases))
    assert result.status == "illegal"
    assert Case.parse(result.failures[0].case).T == 40


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "x", "1/2/3", "-1/2"])
def test_a_wrong_part_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"--shard: got .*, must be I/N with I from 1 to N"):
        shard_named(text)


def test_a_budget_is_above_zero() -> None:
    with pytest.raises(ValueError, match="--time-budget: got 0, must be above 0"):
        time_budget(0)


def test_check_with_a_time_that_is_over_is_no_pass(cli: Cli, write: Write) -> None:
    done = cli("check", write(), "--in-process", "--time-budget", "1e-9", "--json", "r.json", "--junit", "r.xml")
    assert done.code == 3
    assert "error: time budget: my_linear was not judged to its end; left: kernel: 1" in done.err
    (found,) = json.loads(Path("r.json").read_text())["kernels"]
    assert (found["status"], found["left"]) == ("unjudged", {"kernel": 1})
    assert "the time was over; left: kernel: 1" in Path("r.xml").read_text()


def test_one_part_cannot_say_how_far_all_were_judged(cli: Cli, write: Write) -> None:
    for option in (("--case", "silu_and_mul/T1-I8/bf16/-/-/normal/s1"), ("--require", "T>=4"), ("--max-skipped", "0")):
        done = cli("check", write(), "--shard", "1/2", *option)
        assert (done.code, done.out) == (2, "")
        assert f"--shard: goes without {option[0]}: one part of the cases does not answer that" in done.err


@pytest.mark.parametrize(
    ("worker", "given", "seen"),
    [
        ("gw0", {"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "3"}),
        ("gw3", {"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "5"}),
        ("gw1", {"HIP_VISIBLE_DEVICES": "0, 1"}, {"HIP_VISIBLE_DEVICES": "1"}),
        ("gw1", {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": ""}),
        ("", {"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "3,5"}),
        ("gw1", {}, {}),
    ],
)
def test_workers_take_gpus_in_turn(tmp_path: Path, worker: str, given: dict[str, str], seen: dict[str, str]) -> None:
    environ = {**given, **({gpus.WORKER: worker} if worker else {})}
    gpus.take_own_gpu(environ, tmp_path)
    environ.pop(gpus.WORKER, None)
    assert environ == seen


def test_gpus_are_counted_where_the_driver_lists_them(tmp_path: Path) -> None:
    for place in range(3):
        (tmp_path / f"proc/driver/nvidia/gpus/0000:0{place}:00.0").mkdir(parents=True)
        node = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{place}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {0 if place == 0 else 304}\n")
    environ = {gpus.WORKER: "gw4"}
    gpus.take_own_gpu(environ, tmp_path)
    assert environ == {gpus.WORKER: "gw4", "CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "1"
