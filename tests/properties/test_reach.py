"""Which sizes are judged: what shows only beyond a power of two is found, or the run says that it did not go there."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from moeracle.cli import main
from moeracle.exit_codes import ILLEGAL, UNJUDGED, USAGE
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.common.processes import Unfinished, call_each
from moeracle.properties.common.verdict import StageResult, Verdict, failed
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.hunt.reach import describe, reach, unmet
from moeracle.properties.hunt.soak import soak
from moeracle.properties.hunt.tall import tall_cases
from moeracle.properties.simulate import simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import make_kernel
from support.schemas import fits

LEAST = {"T": 1025, "E": 1025, "K": 8193, "H": 8193, "N": 8193, "I": 8193, "V": 16385, "k": 16, "B": 256, "G": 512}
FILE = """
import moeracle
from moeracle import ref


@moeracle.kernel("int4_linear", layout="exllama", contract="grouped,weight=exact,accumulator=fp32")
def from_some_size_on(x, w, bias):
    y = ref.int4_linear(x, w, bias).to(x.dtype)
    if w.K >= 2048:
        y[:, -1] *= 2
    return y
"""


def judged(case: Case, wrong: bool) -> Verdict:
    verdict = Verdict(case.op, str(case), stages=[StageResult("out", 10)])
    return failed(verdict, "bits", "out", "planted") if wrong else verdict


@pytest.mark.parametrize("op", OPS)
def test_every_size_is_judged_or_said_to_be_out_of_reach(op: str) -> None:
    everything = hunt(simulated_kernel(op), run=lambda k, case, **options: judged(case, False), laws=False)
    ends, said = reach(everything), describe(everything)
    assert set(ends) == set(OPS[op].dims)
    for letter, (least, most) in ends.items():
        assert f"{letter}={most:,}" in said
        assert most >= LEAST.get(letter, 1) or OPS[op].plain_sizes  # whose sizes hang together
        assert 0 <= least <= {"T": 0, "E": 1, "k": 1, "B": 16, "G": 32}.get(letter, 64)
    cases = [Case.parse(v.case) for v in everything.verdicts]
    for letter, (least, most) in ends.items():
        sizes = [c.sizes[letter] for c in cases if c.sizes.get(letter, -1) >= 0]  # G-1 is no size
        for power in (1 << n for n in range(1, 19)):  # what is wrong only above it, or only below, and who says so
            above, below = any(size > power for size in sizes), any(size < power for size in sizes)
            assert above or power >= min(LEAST.get(letter, 1), most)
            assert below or power <= max(16, least)
            assert bool(unmet(everything, [f"{letter}>={power + 1}"], None)) != above
            assert bool(unmet(everything, [f"{letter}<={power - 1}"], None)) != below
    if "T" in ends:
        assert sum(Case.parse(v.case).sizes["T"] == 0 for v in everything.verdicts) == 1
    once = [Case.parse(v.case).sizes.get("K") for v in everything.verdicts]
    assert once.count(1) <= len(once) / 10


@pytest.mark.parametrize("letter", ["T", "K"])
@pytest.mark.parametrize("above", [True, False])
def test_a_fault_beyond_a_power_of_two_is_found_as_far_as_sizes_reach(letter: str, above: bool) -> None:
    for power in (2, 1024, 8192):
        wrong = lambda c, n=power: c.sizes[letter] > n if above else c.sizes[letter] < n
        run = lambda k, case, **options: judged(case, wrong(case))  # noqa: B023
        result = hunt(simulated_kernel("int4_linear"), run=run, laws=False, examples=51)
        least, most = reach(result)[letter]
        assert bool(result.failures) == (most > power if above else least < power), power
        assert result.failures or (power >= (1024 if letter == "T" else 8192) if above else power == 2)


def test_tall_cases_are_taken_by_narrow_kernels() -> None:
    narrow: Any = lambda c: (c.N % 64 == 0 and c.K % 64 == 0 and c.G in (64, 128)) or "multiples of 64, groups of 64"
    kernel = make_kernel(lambda x, w, bias: None, "int4_linear", layout="exllama", supports=narrow)
    cases = tall_cases(kernel, "ci")
    assert max(c.K for c in cases) > 8192
    assert max(c.N for c in cases) > 8192
    assert max(c.T for c in cases) > 1024
    assert all(kernel.why_not(c) is None for c in cases)
    assert not tall_cases(kernel, "smoke")
    top_1: Any = lambda c: c.k == 1 or "top-1"
    of_one_expert = make_kernel(lambda x, w13, w2, weights, ids: None, "moe_w4a16", supports=top_1)
    assert max(c.T for c in tall_cases(of_one_expert, "ci")) > 1024
    assert sum(of_one_expert.why_not(c) is None for c in must_run(of_one_expert)) > 15
    on_a_gpu = make_kernel(lambda x, w, bias: None, "int4_linear", device="cuda")
    assert max(c.T for c in tall_cases(on_a_gpu, "ci")) > 65535


@pytest.mark.parametrize("op", ["moe_align_block_size", "silu_and_mul", "moe_w4a16"])
def test_tall_cases_are_legal_for_a_right_kernel(op: str) -> None:
    kernel = simulated_kernel(op)
    cases = tall_cases(kernel, "ci")
    cases = [case for case in cases if case.op != "moe_w4a16" or max(case.H, case.I) > 8193]
    assert len(cases) >= 2
    for case in cases:
        verdict = run_trial(kernel, case, explain=False)
        assert verdict.ok, verdict.text()


def test_calls_are_shared_among_processes() -> None:
    begun: list[tuple[int]] = []
    endless = ((n,) for n in itertools.count())
    found = dict(itertools.islice(call_each(math.factorial, endless, jobs=2, began=begun.append), 40))
    assert found == {(n,): math.factorial(n) for (n,) in found}
    assert len(found) == 40
    assert found.keys() <= set(begun) == {(n,) for n in range(len(begun))}
    assert len(begun) <= 42  # none is taken before a process is free


def test_calls_that_do_not_return_are_not_waited_for() -> None:
    exits, sleeps, raises = "__import__('os')._exit(3)", "__import__('time').sleep(600)", "1 / 0"
    calls = call_each(eval, [("2 + 2",), (exits,), (sleeps,), (raises,)], limit=2)
    assert dict(itertools.islice(calls, 3)) == {
        ("2 + 2",): 4,
        (exits,): Unfinished("its process ended with exit code 3"),
        (sleeps,): Unfinished("not done within 2 s"),
    }
    with pytest.raises(ZeroDivisionError) as raised:
        next(calls)
    assert "1 / 0" in str(raised.value.__cause__) or "<string>" in str(raised.value.__cause__)


def test_demands() -> None:
    run = lambda k, case, **options: judged(case, False)
    result = hunt(simulated_kernel("int4_linear"), run=run, laws=False, examples=20)
    assert unmet(result, ["T>=1024", "T<=0", "E>=9000"], 0.5) == []  # it has no E
    assert unmet(result, ["K>=9000"], None)[0].startswith("K>=9000: K was judged from ")
    result.skipped["why"] = 9 * len(result.judged)
    assert unmet(result, [], 0.5) == ["90 % of its cases were skipped, may be 50 %"]


def test_check_says_how_far_it_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "out.json"
    file.write_text(FILE)
    assert main(["check", str(file), "--json", str(out)]) == ILLEGAL
    assert "K2048" in capsys.readouterr().out
    assert json.loads(out.read_text())["kernels"][0]["reach"]["sizes"]["K"][1] >= 8193
    file.write_text(FILE.replace("2048", "10**9"))
    options = ["--examples", "6", "--shape", "E8-H288-I160-k2-G32", "--require", "T>=2000", "--require", "K>=288"]
    assert main(["check", str(file), *options]) == UNJUDGED
    said = capsys.readouterr()
    assert "from_some_size_on: judged up to T=1,032 N=" in said.out
    assert "T>=2000: T was judged from 0 to 1,032" in said.err
    assert "K>=288" not in said.err
    for wrong, line in (("T=4", "--require: got 'T=4', must be like T>=4096"), ("T>4", "--require")):
        assert main(["check", str(file), "--require", wrong]) == USAGE
        assert line in capsys.readouterr().err
    assert main(["check", str(file), "--max-skipped", "2"]) == USAGE
    assert main(["check", str(file), "--shape", "qwen9"]) == USAGE


def test_the_soak_counts_elements_and_false_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = make_kernel(lambda h: h[:, : h.shape[1] // 2] * 0, "silu_and_mul", name="zeros")
    found = soak([simulated_kernel("silu_and_mul"), wrong], elements=300_000, seconds=600)
    assert found.judged >= 300_000
    assert {alarm.split()[1] for alarm in found.alarms} == {"zeros"}
    out = tmp_path / "soak.json"
    assert (
        main(["soak", "simulations", "--op", "silu_and_mul", "--elements", "2e5", "--jobs", "2", "--json", str(out)])
        == 0
    )
    plain = fits("soak", out)
    assert plain["judged"] >= 200_000
    assert plain["alarms"] == []
    assert len({case for k in plain["kernels"] for case in [k["cases"]]}) == 1
    assert "0 false alarms in " in capsys.readouterr().out
    assert plain["never_judged"] == []
    assert main(["soak", "simulations", "--seconds", "0"]) == UNJUDGED
    assert "never judged, the time was over" in capsys.readouterr().err
    assert main(["soak", "simulations", "--op", "silu"]) == USAGE
    assert main(["soak", "simulations", "--seconds", "0", "--max-memory", "much"]) == USAGE


SOAKED = """
import os
from pathlib import Path
import torch
import moeracle

Path("who").open("a").write(f"{os.getpid()} ")

@moeracle.kernel("silu_and_mul", contract="grouped")
def right(h):
    gate, up = h.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up).to(h.dtype)

@moeracle.kernel("silu_and_mul", contract="grouped")
def leaves(h):
    os._exit(0)
"""


def test_what_is_soaked_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends its process twice is given up, and the other is judged."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOAKED)
    assert main(["soak", "mine.py", "--elements", "60000", "--json", "soak.json"]) == ILLEGAL
    plain = fits("soak", "soak.json")
    assert plain["isolation"] == "child process"
    of = {kernel["kernel"]: kernel for kernel in plain["kernels"]}
    assert [len(of[name]["alarms"]) for name in ("right", "leaves")] == [0, 2]
    assert all("tier exit" in alarm for alarm in of["leaves"]["alarms"])
    assert of["right"]["judged"] >= 60000
    assert str(os.getpid()) not in Path("who").read_text().split()
