"""The benchmark's harness with a clock of our own, on the CPU: what is judged, timed, compared and written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moeracle.bench import baselines as bench_baselines
from moeracle.bench import judge as bench_judge
from moeracle.bench import suite as bench
from moeracle.bench.judge import complaint
from moeracle.bench.problems import Point, Problems, points, rotation, work_of
from moeracle.bench.suite import launched_tile
from moeracle.commands.kernels import bench as kernels_bench
from moeracle.kernels import tuned
from moeracle.kernels.bench import report as bench_report
from moeracle.kernels.bench.cases import Work, rotations, shape_named
from moeracle.kernels.bench.timing import Times, ceilings, ratios
from moeracle.properties.cases.case import Case
from moeracle.target.declaration import make_kernel
from moeracle.target.load import load_target
from support.bench_fakes import CEILINGS, ILLEGAL, LEGAL, TINY, Clock, layer, point, suite


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


def test_a_kernel_that_is_timed_giving_back_what_it_computed_before_is_illegal():
    kept = {}

    def once(*args):
        place = args[0].data_ptr()
        if place not in kept:
            kept[place] = layer(*args)
        return kept[place]

    s = suite()
    assert s.measure(point(), [replace(LEGAL, fn=once)]) == []
    (found,) = s.illegal
    assert found[2].startswith("illegal as it was timed, on inputs that came later: ")
    assert len(s.measure(point(), [LEGAL, replace(LEGAL, fn=once, name="once")], replace(LEGAL, name="theirs"))) == 1


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


@pytest.mark.parametrize("what", ["gemm1", "gemm2"])
def test_the_alignment_follows_rows_an_expert_unless_it_is_forced(what):
    for T, block in ((1, 16), (40, 16), (41, 32), (96, 32), (97, 64), (4096, 64)):  # 10 and 24 rows an expert
        padded = Point("padded_gemm", what, "tiny", TINY, "uniform", T)
        assert padded.case().sizes["B"] == block
        assert replace(padded, block=48).case().B == 48
    kernel = make_kernel(lambda *args: 1 / 0, "padded_gemm", layout="exllama", name="any")
    s = suite()
    assert s._about(padded, kernel, 1, {}, "")["block"] == 64
    assert "block" not in s._about(point(), LEGAL, 1, {}, "")


def test_the_table_says_how_rows_were_aligned():
    given = {"kernel": "k", "what": "gemm1", "archetype": "uniform", "T": 4, "block": 32}
    row = bench_report.row(given, Work(2, 24, 100, 0, 1, (20, 4)), Times.of([4.0] * 3), CEILINGS, 16)
    named = dict(zip(bench_report.COLUMNS, bench_report.cells(row), strict=True))
    assert (named["BM"], named["B"]) == ("16", "32")
    del row["block"]  # an older file's, which --resume goes on with
    assert bench_report.cells(row)[-1] == "-"


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


def test_an_untuned_shape_is_noted_under_the_table_and_in_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuned, "untuned", lambda: ["some shape: untuned"])
    options = kernels_bench.Options(tokens=(1,), archetypes=("balanced",), json=tmp_path / "b.json")
    assert kernels_bench.measure(suite(), [LEGAL], {}, {"tiny": TINY}, options) == 0
    assert "note: some shape: untuned" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "b.json").read_text())["untuned"] == ["some shape: untuned"]


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


def moe_w4a16_hopper(*args):
    return layer(*args)


def test_what_is_timed_in_the_place_of_what_was_judged_must_have_its_bits():
    def stages(*args):
        return layer(*args)

    for bias in (0.0, 1.0):
        stages.timed = lambda *args, bias=bias: layer(*args)["out"] + bias
        s = suite([10.0])
        assert len(s.measure(point(), [replace(LEGAL, fn=stages)])) == (not bias)
        assert [(name, "which is timed, gives other bits" in why) for name, _, why in s.illegal] == [
            ("mine", True)
        ] * bool(bias)


def parts_of(problems, bias=0.0):
    """A layer's parts in torch; GEMM2 is wrong by `bias`."""
    stages = [layer(*problem.args.values()) for problem in problems]
    held = SimpleNamespace(a=torch.zeros_like(stages[0]["a"]), y=torch.zeros_like(stages[0]["y"]))
    calls = {"gemm1": [lambda: held.a.copy_(stages[0]["a"])], "gemm2": [lambda: held.y.copy_(stages[0]["y"] + bias)]}
    held.parts = lambda: calls | {name: [lambda s=s: s["out"] for s in stages] for name in ("sum", "aligned", "plain")}
    return held


def test_parts_are_timed_if_they_have_the_judged_bits(monkeypatch, capsys):
    monkeypatch.setattr(bench, "layer_of", parts_of)
    s = suite([10.0], [4.0], [1.0], [8.0], [9.0], parts=True, peers={"tiny": {"4": 16}})
    options = kernels_bench.Options(tokens=(1, 4), archetypes=("zipf1",), parts=True)
    assert kernels_bench.measure(s, [replace(LEGAL, fn=moe_w4a16_hopper), LEGAL], {}, {"tiny": TINY}, options) == 0
    first, plain, second, _ = s.found
    assert first["parts"] == second["parts"] == {"gemm1": 10, "gemm2": 4, "sum": 1, "aligned": 8, "plain": 9}
    assert "parts" not in plain  # a kernel that has none
    assert (second["peer"], second["peer_ratio"]) == (16, 2)
    assert "peer" not in first  # no figure at T = 1
    assert "tiny, alignments made before" in capsys.readouterr().out


def test_a_part_with_other_bits_is_illegal_and_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "layer_of", lambda problems: parts_of(problems, bias=1.0))
    s = suite([10.0], parts=True)
    (row,) = s.measure(point(), [replace(LEGAL, fn=moe_w4a16_hopper)])
    assert "gemm2" not in row["parts"]
    ((name, _, why),) = s.illegal
    assert (name, why) == ("mine", "illegal: gemm2 gives other bits than the layer, which was judged")


def peer_layer(*args):
    return layer(*args)


def peer_parts(problems, wrong=False):
    stages = [layer(*problem.args.values()) for problem in problems]
    right = [lambda s=s: s for s in stages]
    other = [lambda: {name: stage + 1 for name, stage in stages[0].items()}]
    return {("aligned", "B=8"): right, ("aligned", "B=16"): other if wrong else right, ("step", "B=8"): right}


BENCH_PARTS = {"peer_layer": peer_parts}


@pytest.mark.parametrize("wrong", [False, True])
def test_parts_of_the_second_implementation_take_turns_with_ours_and_are_judged(monkeypatch, capsys, wrong):
    monkeypatch.setattr(bench, "layer_of", lambda problems: with_step(parts_of(problems)))
    monkeypatch.setitem(BENCH_PARTS, "peer_layer", lambda problems: peer_parts(problems, wrong))
    peer = replace(LEGAL, name="theirs", fn=peer_layer, module="moeracle.theirs")
    sides = {
        "gemm1": 1,
        "gemm2": 1,
        "sum": 1,
        "aligned": 8,
        "plain": 9,
        "step": 10,
        "their 8": 12,
        "their 16": 10,
        "their step": 25,
    }
    s = suite(*([float(us)] for name, us in sides.items() if not (wrong and name == "their 16")), parts=True)
    options = kernels_bench.Options(tokens=(4,), archetypes=("zipf1",), parts=True)
    code = kernels_bench.measure(s, [replace(LEGAL, fn=moe_w4a16_hopper)], {"moe_w4a16": peer}, {"tiny": TINY}, options)
    (row,) = s.found
    best = {"us": 12, "how": "B=8", "ratio": 1.5} if wrong else {"us": 10, "how": "B=16", "ratio": 1.25}
    assert row["against_parts"] == {"aligned": best, "step": {"us": 25, "how": "B=8", "ratio": 2.5}}
    assert row["parts"]["step"] == 10
    assert code == int(wrong)
    assert [(name, "aligned B=16" in why) for name, _, why in s.illegal] == [("theirs", True)] * wrong
    assert "theirs / step" in capsys.readouterr().out


def with_step(held):
    parts = held.parts()
    held.parts = lambda: parts | {"step": [lambda: None]}
    return held


def test_launches_are_counted_if_asked(monkeypatch, capsys):
    monkeypatch.setattr(bench, "launches", lambda call: 3 if call() is not None else 0)
    theirs = replace(LEGAL, name="theirs")
    options = kernels_bench.Options(tokens=(1,), archetypes=("zipf1",))
    s = suite(launches=True)
    assert kernels_bench.measure(s, [LEGAL], {"moe_w4a16": theirs}, {"tiny": TINY}, options) == 0
    assert (s.found[0]["launches"], s.found[0]["against"]["launches"]) == (3, 3)
    assert "3 : 3" in capsys.readouterr().out
    assert "launches" not in suite().measure(point(), [LEGAL])[0]


BASELINES = {kernel.name: kernel for kernel in load_target("moeracle.bench.baselines").kernels}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("torch.linear", "int4_linear/T4-N64-K256-G32/bf16/exllama-rdna/-/normal+bias/s1"),
        ("torch.linear", "int4_linear/T64-N64-K256-G-1/fp16/exllama-sym/-/normal/s1"),
        ("torch.shared_expert", "shared_expert/T16-H64-I64-G32/bf16/exllama-sym/-/normal+gate/s1"),
        ("torch.shared_expert", "shared_expert/T16-H64-I64-G32/fp16/exllama-sym/-/normal/s1"),
        ("torch.lm_head", "int8_lm_head/T4-V64-K256-G32/bf16/-/-/normal+bias/s1"),
        ("torch.lm_head", "int8_lm_head/T4-V64-K256-G-1/fp16/-/-/normal/s1"),
        ("torch.topk_softmax", "topk_softmax/T40-E64-k8/bf16/-/-+renorm/ties/s1"),
        ("torch.route", "topk_softmax/T40-E64-k8/bf16/-/-/normal/s1"),
    ],
)
def test_a_baseline_is_judged_as_any_kernel(name, case):
    problem = Case.parse(case).build()
    assert complaint(BASELINES[name], problem) is None
    wrong = make_kernel(lambda *args: BASELINES[name].fn(*args)[0], BASELINES[name].op, layout=BASELINES[name].layout)
    assert complaint(wrong, problem) is not None  # one row, or the weights without the ids


def test_a_baseline_keeps_its_dense_weight_and_no_switch(monkeypatch):
    problem = Case.parse("int4_linear/T4-N64-K256-G32/bf16/exllama-sym/-/normal/s1").build()
    seen, linear = [], bench_baselines.linear
    switch = "allow_bf16_reduced_precision_reduction"
    before = getattr(torch.backends.cuda.matmul, switch)

    def watched(x, w, bias):
        seen.append((w.data_ptr(), getattr(torch.backends.cuda.matmul, switch)))
        return linear(x, w, bias)

    monkeypatch.setattr(bench_baselines, "linear", watched)
    for _ in range(2):
        BASELINES["torch.linear"].fn(*problem.args.values())
    assert seen[0] == seen[1]
    assert not seen[0][1]
    assert getattr(torch.backends.cuda.matmul, switch) == before


def test_an_op_takes_the_modifiers_that_it_has():
    given = {"modifiers": ("bias", "gate", "renorm")}
    text = {op: str(Point(op, op, "tiny", TINY, "uniform", 4, **given).case()) for op in ("int4_linear", "moe_permute")}
    assert text["int4_linear"] == "int4_linear/T4-N64-K64-G32/bf16/exllama-sym/-/normal+bias/s1"
    assert "+" not in text["moe_permute"]
    assert str(Point("topk_softmax", "-", "tiny", TINY, "-", 4, **given).case()).split("/")[4] == "-+renorm"


def test_shapes_by_name_and_written_out():
    assert shape_named("E8-H64-I32-k2-G32") == TINY
    assert shape_named("E8-H64-I32-k2-G-1") == replace(TINY, G=-1)
    assert Point("int8_lm_head", "-", "tiny", replace(TINY, G=-1, V=8), "-", 4).case().G == -1
    with pytest.raises(ValueError, match="got H=-64, must be at least 1"):
        shape_named("E8-H-64-I32-k2-G32")
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
