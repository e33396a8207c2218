"""Orders that the compiler chooses: what is read off kernels compiled for sm_90 here is what their PTX does."""

from __future__ import annotations

import re

import pytest
import triton

from moeracle.kernels import case_schedules
from moeracle.kernels.case_schedules import _join, lm_head, tree_text
from moeracle.kernels.toolchain import sum_orders
from moeracle.kernels.toolchain.sum_orders import IN_A_THREAD, Compiled, Sum, sums
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import contract

VERSION = tuple(int(n) for n in triton.__version__.split(".")[:2])
THREAD = IN_A_THREAD.get(VERSION)
CASES = {
    "int4_linear": ["int4_linear/T1-N16-K2048-G128/bf16/exllama-sym/-/normal/s1",
               "int4_linear/T5-N48-K512-G128/bf16/exllama-sym/-/normal/s1"],
    "int4_linear.rows": ["int4_linear/T2-N24-K512-G-1/fp16/exllama-sym/-/normal/s1"],
    "tiny_dot": ["tiny_dot/T3-K2048/bf16/-/-/normal/s1", "tiny_dot/T3-K1000/bf16/-/-/normal/s1",
             "tiny_dot/T2-K1/bf16/-/-/normal/s1"],
    "int8_lm_head": ["int8_lm_head/T1-V72-K768-G-1/bf16/-/-/normal+bias/s1",
                "int8_lm_head/T1-V72-K720-G24/bf16/-/-/normal/s1",
                "int8_lm_head/T2-V72-K768-G16/bf16/-/-/normal/s1",
                "int8_lm_head/T3-V72-K768-G32/bf16/-/-/normal/s1",
                "int8_lm_head/T65-V72-K768-G128/bf16/-/-/normal/s1"],
    "shared_expert": ["shared_expert/T4-H1024-I128-G-1/bf16/exllama-sym/-/normal+gate/s1",
               "shared_expert/T9-H256-I128-G128/bf16/exllama-sym/-/normal/s1"],
    "moe_w4a16.decode": ["moe_w4a16/T1-E2-k2-H512-I256-G128/bf16/exllama-sym/uniform/normal/s1"],
}  # fmt: skip
SCRIPT = """
import json, sys
from moeracle.kernels import case_schedules
from moeracle.kernels.compile import dry_run
from moeracle.kernels.toolchain import sum_orders
from moeracle.kernels.toolchain.architectures import architecture
from moeracle.kernels.registry import REGISTRY
from moeracle.properties.cases.case import Case
found, ptx = {}, {}
compiled_by = sum_orders.compiled_by
def kept(fn, *args):
    launches = compiled_by(fn, *args)
    ptx[text] = [(launch.kernel, launch.ttgir, launch.ptx) for launch in launches]
    return launches
case_schedules.compiled_by = kept
with dry_run.pretending(architecture("sm_90")):
    for rule, texts in json.loads(sys.argv[1]).items():
        for text in texts:
            found[text] = next(entry for entry in REGISTRY if entry.name == rule).schedule(Case.parse(text))
print(json.dumps([found, ptx]))
"""


@pytest.fixture(scope="module")
def compiled(compiling):
    """Each case's schedule text, and the kernels that it compiles to."""
    return compiling(SCRIPT, CASES)[-1]


def test_every_case_has_an_order_that_its_contract_can_have(compiled):
    for text, found in compiled[0].items():
        if THREAD is None:
            assert found is None or found.startswith("wgmma"), text
            continue
        preset = "int8_lm_head" if text.startswith("int8_lm_head") else "grouped"
        rules = contract(f"{preset},schedule={found}")
        assert rules.schedule is not None, text
        if text.startswith("shared_expert") and "gate" in text:
            assert rules.gate_schedule is not None
        if text.startswith("moe_w4a16"):
            assert str(rules.sum_schedule) == "fma"


@pytest.mark.skipif(THREAD is None, reason=f"nobody has looked at triton {triton.__version__}")
def test_the_matrix_kernels_orders_do_not_depend_on_the_version(compiled):
    found = compiled[0]
    assert found[CASES["int4_linear"][1]] == "wgmma.k16.sm90"
    assert found[CASES["shared_expert"][1]] == "wgmma.k16.sm90"
    _, _, g16, g32, many = (found[text] for text in CASES["int8_lm_head"])
    if "hopper" not in str(compiled[1][CASES["int8_lm_head"][3]][0][0]):
        assert g16 == "wgmma.k16.sm90/t16/p4/d8/join=halves/fused"
        assert g32 == "wgmma.k16.sm90/t32/p8/bits1.2.16.4.8/d4/join=halves/fused"
        assert many == "wgmma.k16.sm90/t128/fused"


def depth(ptx: str) -> int:
    """How many additions stand one behind another in one thread before its first exchange with another lane."""
    made = {}
    for line in ptx.splitlines():
        if match := re.match(r"\s+shfl\.sync\.bfly\.b32 \s*%r\d+, (%r\d+), ", line):
            break
        if match := re.match(r"\s+(add|fma\.rn|mul)\.f32 \s*(%r\d+), (.*);", line):
            made[match[2]] = match[1], [name for name in match[3].split(", ") if name != match[2]]
    else:
        raise AssertionError("no shuffle")

    def of(name: str) -> int:
        kind, terms = made.pop(name, ("", []))
        if kind == "add":
            return 1 + max(map(of, terms))
        return 1 + of(terms[2]) if kind == "fma.rn" and len(terms) == 3 else 0

    return of(match[1])


@pytest.mark.skipif(THREAD is None, reason=f"nobody has looked at triton {triton.__version__}")
@pytest.mark.parametrize("text", [CASES["moe_w4a16.decode"][0], CASES["int4_linear"][0], CASES["tiny_dot"][0]])
def test_what_one_thread_holds_is_added_as_the_ptx_adds_it(compiled, text):
    _, ttgir, ptx = compiled[1][text][0]
    held = 1 << len(sums(ttgir)[-1].registers)
    assert held >= 8
    assert depth(ptx) == (held - 1 if THREAD == "sequential" else held.bit_length() - 1)


@pytest.mark.skipif(THREAD is None, reason=f"nobody has looked at triton {triton.__version__}")
def test_warps_and_lanes_are_joined_farthest_first(compiled):
    _, ttgir, ptx = compiled[1][CASES["tiny_dot"][0]][0]
    one = sums(ttgir)[-1]
    steps = [int(n) for n in re.findall(r"shfl\.sync\.bfly\.b32 \s*%r\d+, %r\d+, (\d+)", ptx)]
    lanes, warps = ([1 << b for b in reversed(range(len(bits)))] for bits in (one.lanes, one.warps))
    assert steps == [*lanes, *warps]
    assert "fma.rn.f32" in ptx


BLOCKED = "#b = #ttg.blocked<{sizePerThread = [1, 2], threadsPerWarp = [4, 8], warpsPerCTA = [2, 2], order = [1, 0]}>"
REDUCE = """
    %1 = "tt.reduce"(%0) <{{axis = {axis} : i32}}> ({{
    ^bb0(%a: f32, %b: f32):
      %c = arith.{op} %a, %b : f32
      tt.reduce.return %c : f32
    }}) : (tensor<{shape}xf32, {layout}>) -> tensor<8xf32, #x>
"""


def reduce_of(layout, shape="8x128", axis=1, op="addf"):
    return sums(f"{BLOCKED}\n" + REDUCE.format(axis=axis, op=op, shape=shape, layout=layout))


def test_layouts_are_read():
    assert reduce_of("#b") == [Sum(128, (1, 32, 64), (2, 4, 8), (16,))]
    assert reduce_of("#b", shape="8x32") == [Sum(32, (1,), (2, 4, 8), (16,))]
    sliced = "#ttg.slice<{dim = 0, parent = #b}>"
    assert reduce_of(sliced, shape="32", axis=0) == [Sum(32, (1,), (2, 4, 8), (16,))]
    linear = "#ttg.linear<{register = [[0, 4], [1, 0]], lane = [[0, 1], [0, 2], [2, 0]], warp = [[0, 8]], block = []}>"
    assert reduce_of(linear, shape="4x16") == [Sum(16, (4,), (1, 2), (8,))]
    assert reduce_of("#b", op="maxnumf") == []
    with pytest.raises(ValueError, match=r"must be #ttg\.blocked or #ttg\.linear"):
        reduce_of("#ttg.nvidia_mma<{versionMajor = 3}>")
    with pytest.raises(ValueError, match="of 64 elements"):
        reduce_of(linear, shape="4x64")


def test_trees_are_written_from_the_inside_out():
    inner, outer = Sum(4, (1, 2), (), ()), Sum(16, (2,), (1, 4), (8,))
    text = tree_text(64, [(inner, 1), (outer, 4)], "sequential", "held4")
    assert text == "fma/t64/tree4-sequential.2-sequential.4-halves.2-halves/bits1.2.8.4.16.32/held4"
    assert Schedule.parse(text).levels == ((4, "sequential"), (2, "sequential"), (4, "halves"), (2, "halves"))
    assert tree_text(1, [(Sum(1, (), (), ()), 1)], "pairwise", "held1") == "fma"


def test_groups_are_joined_in_a_thread_or_farthest_first():
    assert _join(Sum(4, (1, 2), (), ()), "pairwise") == "/join=pairwise"
    assert _join(Sum(8, (4,), (1, 2), ()), "pairwise") == "/join=halves"
    with pytest.raises(ValueError, match="must be joined in a thread"):
        _join(Sum(4, (1,), (2,), ()), "pairwise")


def test_what_nobody_has_looked_at_has_no_order(monkeypatch):
    assert lm_head([Compiled("somebody's_kernel", {"GROUP": 32, "BLOCK_K": 64}, "", "")], "pairwise", None) is None
    case = type("Case", (), dict.fromkeys(("dims", "dtype", "zero", "flags", "pad")))()
    monkeypatch.setattr(case_schedules, "in_a_thread", lambda: None)
    monkeypatch.setattr(case_schedules, "_READ", {})
    assert case_schedules.read(case_schedules.tiny, "triton.tiny_dot:tiny_dot")(case) is None
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    assert sum_orders.in_a_thread() is None
