"""The benchmark's harness with a clock of our own, on the CPU: what is judged, timed, compared and written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeracle import bench_judge
from moeracle.bench import launched_tile
from moeracle.bench_judge import complaint
from moeracle.bench_problems import Point, Problems, points, rotation, work_of
from moeracle.cli import main
from moeracle.commands import kernels_bench
from moeracle.kernels import bench_report
from moeracle.kernels.bench_cases import Work, rotations, shape_named
from moeracle.kernels.bench_timing import Times, ceilings, ratios

sys.path.insert(0, str(Path(__file__).parent))

from bench_fakes import CEILINGS, ILLEGAL, LEGAL, TINY, Clock, layer, point, suite


def test_a_legal_kernel_is_timed_and_its_work_counted():
    s = suite()
    (row,) = s.measure(point(), [LEGAL])
    assert row["case"] == "moe_w4a16/T4-E8-k2-H64-I32-G32/bf16/exllama-sym/zipf1/normal/s1"
    assert row["us"] == 11.0
    expert = 64 * 64 // 2 + 64 * 2 * 2 + 64 * 32 // 2 + 64 * 2  # words and scales of w13, of w2
    assert row["floor_us"] == pytest.approx(max(row["active"] * expert / 1e6, 2 * 8 * 3 * 64 * 32 / 1e6), rel=1e-3)
    assert row["floor_percent"] == pytest.approx(100 * row["floor_us"] / 11)
    assert not s.illegal


def test_an_illegal_kernel_is_not_timed():
    s = suite()
    assert [row["kernel"] for row in s.measure(point(), [ILLEGAL, LEGAL])] == ["mine"]
    ((name, case, why),) = s.illegal
    assert name == "broken"
    assert "illegal" in why
    assert case == str(point().case())
    assert s.timer.calls == 1  # of the legal one


def test_a_kernel_that_raises_is_illegal():
    def refuse(*args):
        raise RuntimeError("out of resources")

    assert "raised RuntimeError: out of resources" in complaint(
        replace(LEGAL, fn=refuse), Problems("cpu").build(point().case())
    )


def test_what_is_timed_must_have_the_bits_of_what_was_judged(monkeypatch):
    problem = Problems("cpu").build(point().case())
    monkeypatch.setattr(bench_judge, "timed", lambda kernel: lambda *args: layer(*args)["out"])
    assert complaint(LEGAL, problem) is None
    monkeypatch.setattr(bench_judge, "timed", lambda kernel: lambda *args: layer(*args)["out"] + 1)
    assert "gives other bits" in complaint(LEGAL, problem)


def test_a_second_implementation_is_compared_round_by_round():
    s = suite([10.0, 20.0, 40.0], [30.0, 40.0, 120.0])
    (row,) = s.measure(point(), [LEGAL], replace(LEGAL, name="theirs"))
    assert row["against"] == {
        "kernel": "theirs",
        "us": 40.0,
        "us_low": 30.0,
        "us_high": 120.0,
        "ratio": 3.0,  # the median of 3, 2, 3; of medians it would be 2
        "ratio_low": 2.0,
        "ratio_high": 3.0,
    }
    assert len(bench_report.cells(row)) == len(bench_report.COLUMNS) + 2


def test_an_illegal_second_implementation_is_not_timed():
    s = suite()
    (row,) = s.measure(point(), [LEGAL], ILLEGAL)
    assert "against" not in row
    assert s.illegal[0][0] == "broken"


def test_a_kernel_that_does_not_take_the_case_is_skipped():
    few = replace(LEGAL, supports=lambda case: case.T <= 2 or "for T <= 2")
    s = suite()
    assert s.measure(point(), [few]) == []
    assert s.skipped == [("mine", str(point().case()), "for T <= 2")]


def test_routings_rotate_over_the_same_weights():
    problems = rotation(Problems("cpu"), point(1), cache_bytes=20_000)
    assert len(problems) > 2
    assert len({p.args["w13"].packed.data_ptr() for p in problems}) == 1
    assert len({str(p.args["topk_ids"].tolist()) for p in problems}) > 1
    assert rotations(1 << 20, 50 << 20) == 16
    assert rotations(1 << 30, 50 << 20) == 1
    assert rotations(25 << 20, 50 << 20) == 8
    assert rotations(25 << 20, 50 << 20, others=75 << 20) == 2
    assert rotations(1 << 20, 0) == 1


def test_a_dense_op_rotates_over_copies_of_its_weight():
    linear = Point("int4_linear", "int4_linear", "tiny", TINY, "-", 4)
    problems = rotation(Problems("cpu"), linear, cache_bytes=2000)
    assert len({p.args["w"].packed.data_ptr() for p in problems}) == len(problems) > 1
    assert all(torch.equal(p.args["w"].packed, problems[0].args["w"].packed) for p in problems)


@pytest.mark.parametrize(("op", "whats"), [("grouped_gemm", ["gemm1", "gemm2"]), ("padded_gemm", ["gemm1", "gemm2"])])
def test_both_gemms_of_a_layer(op, whats):
    found = list(points(op, {"tiny": TINY}, ("uniform",), (4,)))
    assert [p.what for p in found] == whats
    first, second = (p.case() for p in found)
    assert (first.N, first.K, second.N, second.K) == (64, 64, 64, 32)
    assert first.R == second.R == 8


def test_work_counts_active_experts_and_padding():
    work = work_of(Problems("cpu").build(point(4).case().replace(routing="balanced")))
    assert (work.active, work.rows, work.counts) == (8, 8, (1,) * 8)
    assert work.padded_rows(16) == 128
    assert work.flops == 2 * 8 * (64 * 64 + 64 * 32)
    assert Work(2, 33, 0, 0, 0, (32, 1)).padded_rows(32) == 64
    assert Work(1, 1, 4_000_000, 1, 10).floor_us(4000, 1) == pytest.approx(1.0)
    assert Work(1, 1, 1, 1, 7_000_000).floor_us(4000, 1) == pytest.approx(7.0)


def test_padded_and_useful_rates():
    row = bench_report.row({"kernel": "k"}, Work(2, 24, 100, 0, 48_000_000, (20, 4)), Times.of([4.0] * 3), CEILINGS, 16)
    assert row["useful_percent"] == pytest.approx(100 * 24 / 48)
    assert row["tflops_useful"] == pytest.approx(12.0)
    assert row["tflops_padded"] == pytest.approx(24.0)


def test_times_and_ratios():
    assert Times.of([3.0, 1.0, 2.0]).us == 2.0
    assert ratios(Times.of([1.0, 2.0]), Times.of([2.0, 2.0])).rounds == (2.0, 1.0)


def test_ceilings_are_bytes_and_flops_over_time():
    found = ceilings(Clock([1000.0]), "cpu", gib=2**-10, n=64)
    assert found["copy_gbs"] == pytest.approx(2 * 2**20 / 1000 / 1e3)
    assert found["gbs"] == found["copy_gbs"] == 2 * found["read_gbs"]
    assert found["tflops"] == pytest.approx(2 * 64**3 / 1000 / 1e6)


def test_the_whole_command_with_a_clock(tmp_path, capsys):
    options = kernels_bench.Options(
        tokens=(1, 4), archetypes=("balanced", "zipf1"), json=tmp_path / "b.json", plot=tmp_path / "b.png"
    )
    pytest.importorskip("matplotlib")
    s = suite([10.0, 11.0], [20.0, 21.0])
    code = kernels_bench.measure(s, [LEGAL], {"moe_w4a16": replace(LEGAL, name="theirs")}, {"tiny": TINY}, options)
    written = json.loads((tmp_path / "b.json").read_text())
    assert code == 0
    assert [(r["archetype"], r["T"]) for r in written["rows"]] == [
        ("balanced", 1),
        ("balanced", 4),
        ("zipf1", 1),
        ("zipf1", 4),
    ]
    assert written["against"] == {"moe_w4a16": "theirs"}
    assert written["ceilings"] == CEILINGS
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert "theirs / ours" in capsys.readouterr().out
    assert kernels_bench.measure(suite(), [ILLEGAL], {}, {"tiny": TINY}, options) == 1
    never = replace(LEGAL, supports=lambda case: "never")
    assert kernels_bench.measure(suite(), [never], {}, {"tiny": TINY}, replace(options, plot=None)) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench"], "bench: needs a GPU"),
        (["sweep"], "sweep: needs a GPU"),
        (["tune"], "needs a GPU"),
        (["bench", "--op", "grouped"], "op: got 'grouped'"),
        (["bench", "--shape", "qwen4"], "shape: got 'qwen4'"),
        (["bench", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["bench", "--archetype", "zipf3"], "archetype: got 'zipf3'"),
        (["bench", "--kernel", "moe_w4a16.hoper"], "did you mean 'moe_w4a16.hopper'"),
        (["bench", "--dtype", "fp32"], "dtype: got 'fp32'"),
        (["bench", "--zero", "asym"], "zero: got 'asym'"),
        (["bench", "--json", "/no/such/folder/b.json"], "/no/such/folder"),
        (["bench", "--plot", "/no/such/folder/b.png"], "/no/such/folder"),
        (["bench", "--resume"], "resume: needs --json"),
        (["sweep", "--op", "moe"], "op: got 'moe'"),
        (["sweep", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["sweep", "--json", "/no/such/folder/s.json"], "/no/such/folder"),
        (["tune", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["tune", "--kernel", "int4_linear"], "kernel: got 'int4_linear', must be one of grouped_gemm, padded_gemm"),
        (["bench", "--shape", "E8-H64"], "or all of E, H, I, k, G: E8-H256-I128-k2-G32"),
        (["tune", "--archetype", "zipf3"], "archetype: got 'zipf3'"),
        (["tune", "--dtype", "fp8"], "dtype: got 'fp8'"),
        (["tune", "--json", "/no/such/folder/t.json"], "/no/such/folder"),
        (["tune", "--arch", "sm_90"], "must be a gfx architecture"),
        (["tune", "--arch", "gfx90"], "arch: got 'gfx90'"),
        (["compile", "--arch", "gfx115"], "did you mean 'gfx1151'"),
        (["compile", "--kernel", "grouped"], "did you mean 'grouped_gemm'"),
        (["compile", "--diff", "int4_gemv", "int4_gem"], "kernel: got 'int4_gem'"),
        (["compile", "--diff", "int4_gemv:DECOD=1", "int4_gemv"], "macro: got 'DECOD'"),
        (["tune", "--arch", "gfx1151", "--kernel", "grouped"], "kernels: got ('grouped',), must be left out"),
        (["tune", "--arch", "gfx1151", "--dtype", "fp16"], "dtype: got 'fp16', must be left out"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["kernels", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_shapes_by_name_and_written_out():
    assert shape_named("E8-H64-I32-k2-G32") == TINY
    assert shape_named("qwen3.5-35b").E == 256
    with pytest.raises(ValueError, match=r"must be 1\.\.E"):
        shape_named("E2-H64-I32-k4-G32")


def test_the_rows_of_a_block_are_those_of_the_first_launch_with_a_tile(monkeypatch):
    class Launch:
        """As triton's JITFunction, as far as the benchmark looks at it."""

        def __init__(self, name, *params):
            self.__name__, self.arg_names = name, list(params)
            kind = lambda p: SimpleNamespace(name=p, default=None, is_constexpr=p.isupper())
            self.params = [kind(p) for p in params]

        def run(self, *args, grid, warmup=False, **options):
            ran.append(self.__name__)

    ran = []
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "triton.runtime.jit", SimpleNamespace(JITFunction=Launch))
    gather, gemm = Launch("gather", "x", "BLOCK_M"), Launch("gemm", "x", "BM", "BN")
    launches = lambda: (gather.run(1, 64, grid=(1,)), gemm.run(1, BM=16, BN=128, num_warps=4, grid=(1,)))
    assert launched_tile(launches) == {"kernel": "gemm", "BM": 16, "BN": 128, "BLOCK_M": 16, "num_warps": 4}
    assert ran == ["gather", "gemm"]
    assert launched_tile(lambda: gather.run(1, 64, grid=(1,))) == {}
