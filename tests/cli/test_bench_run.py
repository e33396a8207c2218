"""A long benchmark run: kernels compiled ahead by other processes, the time left, and going on where it was cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeracle.bench import judge as bench_judge
from moeracle.bench.judge import examine
from moeracle.bench.problems import Point, Problems, rotation
from moeracle.bench.suite import Suite
from moeracle.commands.console import Progress
from moeracle.commands.kernels import bench as kernels_bench
from moeracle.commands.kernels import bench_options, bench_run
from moeracle.commands.kernels import sweep as kernels_sweep
from moeracle.commands.kernels.bench_run import Estimate, Workers, run_points
from moeracle.commands.options import SweepOptions
from moeracle.ref.contracts.contract import contract
from moeracle.target.declaration import make_kernel
from moeracle.target.load import load_target
from support.bench_fakes import CEILINGS, LEGAL, TINY, Clock, point, suite
from support.schemas import fits

TARGET = """
import moeracle
from support.bench_fakes import layer

@moeracle.kernel("moe_w4a16", layout="exllama", name="deadly", contract="grouped")
def deadly(*args):
    import multiprocessing, os
    return layer(*args) if multiprocessing.parent_process() is None else os._exit(9)

@moeracle.kernel("moe_w4a16", layout="exllama", name="leaves a file", contract="grouped")
def leaves(*args):
    import multiprocessing, pathlib
    if multiprocessing.parent_process() is not None:
        pathlib.Path({folder!r}, f"ran at T{{len(args[0])}}").touch()
    return layer(*args)
"""


def in_processes(name: str, tmp_path: Path, capsys) -> tuple[Suite, str]:
    """Measure one kernel of TARGET with two processes that compile ahead; return the suite and what stderr said."""
    path = tmp_path / "their_kernels.py"
    path.write_text(TARGET.format(folder=str(tmp_path)))
    s, kernels = suite(), [k for k in load_target(str(path)).kernels if k.name == name]
    todo = [(replace(point(T), archetype=archetype), kernels) for archetype in ("zipf1", "balanced") for T in (1, 4)]
    with Progress() as progress:
        progress.every = 0.0
        run_points(s, todo, {}, progress, lambda left: None, Workers(2, (str(path),)))
    return s, capsys.readouterr().err


def test_kernels_are_compiled_ahead_by_other_processes(tmp_path, capsys):
    s, said = in_processes("leaves a file", tmp_path, capsys)
    assert sorted(path.name for path in tmp_path.glob("ran at *")) == ["ran at T1", "ran at T4"]
    assert len(s.found) == 4
    assert said.count("compiled") == 2  # one archetype of each T
    assert "timed tiny layer balanced T=1, about" in said
    assert "6/6" in said


def test_a_process_that_dies_takes_nothing_with_it(tmp_path, capsys):
    s, _ = in_processes("deadly", tmp_path, capsys)
    assert len(s.found) == 4


def test_the_time_left_counts_each_kind_of_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench_run.time, "monotonic", lambda: now[0])
    estimate = Estimate({"compiled": 2, "timed": 3}, last=0.0)
    assert estimate.text == ""
    for kind, seconds in (("compiled", 10.0), ("compiled", 20.0), ("timed", 4.0)):
        now[0] += seconds
        estimate.step(kind)
    assert estimate.text == ", about 8 s left"
    estimate.left["timed"] = 100
    assert estimate.text == ", about 7 min left"


def test_equal_bits_under_one_contract_are_judged_once(monkeypatch):
    gemm = Point("grouped_gemm", "gemm1", "tiny", TINY, "uniform", 4)
    (problem,) = rotation(Problems("cpu"), gemm, 0)
    calls = []
    monkeypatch.setattr(bench_judge, "judge", lambda *args, **options: calls.append(args) or Passed())
    by = lambda fn, name: make_kernel(fn, "grouped_gemm", layout="exllama", name=name)
    zeros = lambda x, w, offsets: torch.zeros(x.shape[0], w.N, dtype=x.dtype)
    ones = lambda x, w, offsets: torch.ones(x.shape[0], w.N, dtype=x.dtype)
    elsewhere = replace(by(zeros, "d"), contract=contract("grouped,accumulator=fp32"))
    examine([by(zeros, "a"), by(zeros, "b"), by(ones, "c"), elsewhere], [problem])
    assert [rules.name for _, _, rules in calls] == ["grouped", "grouped", "grouped,accumulator=fp32"]


class Passed:
    ok = True


THEIRS = {"moe_w4a16": replace(LEGAL, name="theirs")}


class Cut(Clock):
    """Is interrupted at the third point, as a run with too little time is."""

    def measure(self, sides, rounds, seconds):
        if self.calls >= 5:
            raise KeyboardInterrupt
        return super().measure(sides, rounds, seconds)


def measured(options, clock, *, baselines=THEIRS, **ceilings) -> list[tuple[str, int]]:
    s = Suite(clock, {"gbs": 1000.0, "tflops": 1.0, **ceilings}, "cpu", cache_bytes=0)
    assert kernels_bench.measure(s, [LEGAL], baselines, {"tiny": TINY}, options) == 0
    return [(found["archetype"], found["T"]) for found in s.found]


@pytest.fixture
def cut(tmp_path, capsys):
    """Options of a run of four points that was cut after two."""
    options = bench_options.Options(tokens=(1, 4), archetypes=("balanced", "zipf1"), json=tmp_path / "b.json")
    with pytest.raises(KeyboardInterrupt):
        measured(options, Cut([10.0], [20.0]))
    assert "b.json has 2 rows, and --resume goes on" in capsys.readouterr().err
    return replace(options, resume=True)


def test_a_run_that_was_cut_goes_on(cut, capsys):
    written = fits("bench", cut.json)
    assert (len(written["rows"]), written["points"]) == (2, {"asked": 4, "left": 2})
    clock = Clock([30.0], [40.0])
    assert measured(cut, clock, gbs=1010.0) == [("balanced", 1), ("balanced", 4), ("zipf1", 1), ("zipf1", 4)]
    assert clock.calls == 4  # two points, two sides: nothing is measured again
    assert "2 rows are there, 2 points are left" in capsys.readouterr().err
    again = json.loads(cut.json.read_text())
    assert [row["us"] for row in again["rows"]] == [10.0, 10.0, 30.0, 30.0]
    assert again["ceilings"]["gbs"] == 1000.0  # one table, one floor
    assert again["points"]["left"] == 0
    assert len(again["resumed"]) == 1
    assert measured(cut, Clock([50.0])) == [("balanced", 1), ("balanced", 4), ("zipf1", 1), ("zipf1", 4)]
    assert [row["us"] for row in json.loads(cut.json.read_text())["rows"]] == [10.0, 10.0, 30.0, 30.0]


def test_another_bandwidth_is_said(cut, capsys):
    measured(cut, Clock([30.0], [40.0]), gbs=2000.0)
    assert "bandwidth is now 2.00x" in capsys.readouterr().err


def test_only_a_run_of_the_same_kind_goes_on(cut):
    with pytest.raises(ValueError, match=r"has against \{'moe_w4a16': 'theirs'\}, here it is \{\}"):
        measured(cut, Clock([30.0]), baselines={})
    written = json.loads(cut.json.read_text())
    cut.json.write_text(json.dumps(written | {"device": "NVIDIA H100"}))
    with pytest.raises(ValueError, match="has device 'NVIDIA H100', here it is 'cpu'"):
        measured(cut, Clock([30.0]))
    for text in ("{", "[]", '{"rows": []}', json.dumps(written | {"rows": [{}]})):
        cut.json.write_text(text)
        with pytest.raises(ValueError, match=r"resume: .*b\.json is not a benchmark's JSON"):
            measured(cut, Clock([30.0]))


def test_a_file_that_is_not_there_yet_is_a_beginning(tmp_path):
    options = bench_options.Options(tokens=(1,), archetypes=("zipf1",), json=tmp_path / "new.json", resume=True)
    assert measured(options, Clock([10.0], [20.0])) == [("zipf1", 1)]
    assert "resumed" not in json.loads(options.json.read_text())


def test_a_sweep_goes_on_too(tmp_path):
    options = SweepOptions(tokens=(1, 2, 4, 8), json=tmp_path / "s.json")

    class CutSweep(Cut):
        def prepare(self, calls):
            self.calls += 1  # there is no second side
            return super().prepare(calls)

    def swept(clock, options):
        return kernels_sweep.measure(Suite(clock, CEILINGS, "cpu", cache_bytes=0), [LEGAL], {"tiny": TINY}, options)

    with pytest.raises(KeyboardInterrupt):
        swept(CutSweep([10.0]), options)
    written = json.loads(options.json.read_text())
    assert (len(written["rows"]), written["cliffs"]) == (2, None)  # not known yet
    clock = Clock([10.0])
    assert swept(clock, replace(options, resume=True)) == 0
    assert clock.calls == 2
    assert json.loads(options.json.read_text())["cliffs"] == []


@pytest.fixture
def held(monkeypatch):
    """What the registry holds here, without importing it."""
    names = ("moe_w4a16.padded", "moe_w4a16.grouped", "grouped_gemm", "padded_gemm")
    every = {name: replace(LEGAL, name=name, op=name.partition(".")[0]) for name in names}

    def load(text):
        name = text.partition(":")[2]
        return SimpleNamespace(name=text, kernels=(every[name],) if name else tuple(every.values()))

    monkeypatch.setattr(bench_options, "load_target", load)


def kernels_named(**fields):
    return bench_options.chosen(bench_options.Options(**fields))


def test_one_second_implementation_an_op(held):
    two = ("moeracle.kernels:moe_w4a16.padded", "moeracle.kernels:grouped_gemm")
    ours, baselines = kernels_named(against=two)
    assert {k.op for k in ours} == {"moe_w4a16", "grouped_gemm"}  # nothing that has no second implementation
    assert {op: k.name for op, k in baselines.items()} == {
        "moe_w4a16": "moe_w4a16.padded",
        "grouped_gemm": "grouped_gemm",
    }
    with pytest.raises(ValueError, match=r"against: got two implementations of moe_w4a16"):
        kernels_named(against=(two[0], "moeracle.kernels:moe_w4a16.grouped"))
    with pytest.raises(ValueError, match=r"with grouped_gemm \(grouped_gemm\), must name one kernel of moe_w4a16"):
        kernels_named(kernels=("moe_w4a16.padded",), against=(two[1],))


def test_a_kernel_of_another_machine_is_named_with_it(held):
    with pytest.raises(ValueError, match=r"kernel: moe_w4a16.hopper runs on cuda 9.0, which is not here"):
        kernels_named(kernels=("moe_w4a16.hopper",))
    with pytest.raises(ValueError, match="kernel: none of grouped_gemm implements moe_w4a16"):
        kernels_named(kernels=("grouped_gemm",), ops=("moe_w4a16",))
