"""Declared schedules are what the compiler makes: read off kernels compiled for sm_90 with no GPU at hand."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moeracle.kernels.hopper import cases as hopper_cases
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.triton import schedules
from moeracle.kernels.triton.schedules import GEMM
from moeracle.kernels.triton.tiles import Tile
from moeracle.properties.cases.case import Case
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.target import load as target
from moeracle.target.declaration import make_kernel

MODULE = "moeracle.kernels.registry"
TILES = [Tile(16, 128, 64, 4, 4), Tile(32, 64, 32), Tile(64, 128, 64, 4, 3), Tile(128, 64, 128)]
SCRIPT = """
import json, re, sys
from moeracle.kernels.common.size import Size
from moeracle.kernels.compile.dry_args import arguments
from moeracle.kernels.compile.dry_run import pretending
from moeracle.kernels.toolchain.architectures import architecture
from moeracle.kernels.triton.grouped_gemm import grouped_gemm
from moeracle.kernels.triton.tiles import Tile
found = {}
for numbers in json.loads(sys.argv[1]):
    with pretending(architecture("sm_90"), lambda kernel, _: kernel == "grouped_gemm_kernel") as launches:
        grouped_gemm(*arguments("grouped_gemm", Size()), config=Tile(*numbers))
    asm = launches[0].compiled.asm
    names = set(re.findall(r"(?:wgmma\\.mma_async|mma\\.sync)[.\\w]*", asm["ptx"]))
    found[str(numbers)] = [sorted(names), sorted(set(re.findall(r"kWidth = (\\d+)", asm["ttgir"])))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(compiling):
    return compiling(SCRIPT, [[t.block_m, t.block_n, t.block_k, t.num_warps, t.num_stages] for t in TILES])[-1]


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.block_m}x{t.block_n}x{t.block_k}")
def test_gemms_compile_to_the_declared_instruction_on_consecutive_k(compiled, tile):
    names, widths = compiled[str([tile.block_m, tile.block_n, tile.block_k, tile.num_warps, tile.num_stages])]
    schedule = Schedule.parse(schedules.gemm_schedule(tile))
    assert schedule.tile == tile.block_k
    if tile.block_m < 64:
        assert schedule.instruction == "mma.m16n8k16.sm90"
        assert [name.split(".")[3] for name in names] == ["m16n8k16"]
        assert widths == ["2"]  # two k a register: each instruction's k are consecutive; 4 would permute them
    else:
        assert schedule.instruction == "wgmma.k16.sm90"
        assert all(re.search(r"m64n\d+k16", name) for name in names)
        assert names
        assert widths == []  # both operands come from shared memory


def test_everything_that_adds_floats_declares_an_order_that_its_contract_can_have():
    ordered = ("gemm", "linear", "lm_head", "moe_w4a16", "moe_unpermute", "shared", "tiny")
    adding = {e.name: e for e in REGISTRY if any(word in e.op for word in ordered)}
    assert [name for name, e in adding.items() if e.schedule is None] == []
    # what nobody adds up, and softmax, whose terms have no bit model
    assert {e.op for e in REGISTRY if e.schedule is None} == {
        "unpack_int4", "dequantize_int4", "topk_softmax", "grouped_topk", "moe_align_block_size", "moe_permute",
        "silu_and_mul",
    }  # fmt: skip
    for entry in adding.values():
        if isinstance(entry.schedule, str):
            found = contract(f"{entry.contract},schedule={entry.schedule}")
            assert found.schedule or found.sum_schedule
            assert (found.sum_schedule is None) == (entry.op not in ("moe_w4a16", "moe_unpermute"))
    for rule in (hopper_cases.hopper_schedule, hopper_cases.split_schedule):
        for K in (64, 96, 128, 512):
            assert contract(f"grouped,schedule={rule(SimpleNamespace(K=K))}").schedule


@pytest.mark.parametrize(("capability", "holds"), [((9, 0), True), ((8, 0), False), ((10, 0), False)])
def test_schedules_are_demanded_on_compute_capability_9_only(monkeypatch, capability, holds):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert target.schedules_hold("cuda") is holds
    assert not target.schedules_hold("cpu")
    assert not target.schedules_hold("cuda:1")  # there is none; require_device says so
    found = {k.name: k.contract for k in target._registry(MODULE, "cuda")}
    assert (found["grouped_gemm"].schedule == Schedule("wgmma.k16.sm90")) is holds
    assert (found["moe_unpermute"].sum_schedule == Schedule("fma")) is holds
    by_case = {k.name for k in target._registry(MODULE, "cuda") if k.schedule is not None}
    assert ({"int8_lm_head", "tiny_dot", "moe_w4a16.decode"} <= by_case) is holds
    assert all(k.contract.schedule is None and k.schedule is None for k in target._registry(MODULE, "cpu"))


def test_a_triton_that_does_not_contract_keeps_none_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    for fuses in (True, False):
        monkeypatch.setattr(schedules, "fuses", lambda fuses=fuses: fuses)
        assert target.schedules_hold("cuda") is fuses


def test_a_schedule_is_the_one_of_the_zero_points_it_was_recorded_with(monkeypatch) -> None:
    monkeypatch.setattr(target, "schedules_hold", lambda device: True)
    kernel = next(k for k in target._registry(MODULE, "cpu") if k.name == "int4_linear.dot")
    judged_by = {
        zero: kernel.contract_for(Case.parse(f"int4_linear/T3-N8-K96-G32/bf16/exllama-{zero}/-/cancelling/s2")).schedule
        for zero in ("sym", "rdna", "unpacked")
    }
    assert judged_by["sym"] is not None
    assert judged_by["rdna"] is not None
    assert str(judged_by["unpacked"]) == schedules.UNPACKED_MMA  # inferred on an H200: its k order differs


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("padded_gemm", "padded_gemm/T8-E2-k2-N64-K96-G32-B16/bf16/exllama-unpacked/uniform/normal/s1", "permuted"),
        ("padded_gemm", "padded_gemm/T8-E2-k2-N64-K96-G32-B64/bf16/exllama-unpacked/uniform/normal/s1", None),
        ("grouped_gemm", "grouped_gemm/T8-E2-k2-N64-K96-G32/bf16/exllama-unpacked/uniform/normal/s1", "permuted"),
        ("grouped_gemm", "grouped_gemm/T8-E2-k2-N64-K96-G32/bf16/exllama-rdna/uniform/normal/s1", None),
        ("moe_w4a16.padded", "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1", "permuted+sum"),
        ("moe_w4a16.fused", "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1", "permuted+sum"),
        ("somebody's", "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1", "none"),
    ],
)
def test_unpacked_zero_points_change_the_k_order_of_mma_only(name, text, expected):
    expected = schedules.UNPACKED_MMA if expected == "permuted" else expected
    expected = f"{schedules.UNPACKED_MMA},sum_schedule=fma" if expected == "permuted+sum" else expected
    assert schedules.case_schedule(name, Case.parse(text), "cpu") == expected
    assert schedules.gemm_schedule(TILES[0], "unpacked") == schedules.UNPACKED_MMA
    assert schedules.gemm_schedule(TILES[2], "unpacked") == schedules.gemm_schedule(TILES[2])


def test_a_layer_whose_gemms_take_other_instructions_says_so_for_each(monkeypatch):
    text = "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1"
    monkeypatch.setattr(schedules, "_block_rows", lambda *_: [16, 64])
    found = contract(f"grouped,schedule={schedules.case_schedule('moe_w4a16.grouped', Case.parse(text), 'cpu')}")
    assert str(found.schedule) == schedules.UNPACKED_MMA
    assert str(found.of_gemm2.schedule) == schedules.GEMM
    assert str(found.sum_schedule) == "fma"


def test_a_kernels_function_of_the_case_may_name_several_schedules():
    text = "wgmma.k16.sm90,gemm2_schedule=mul_add,sum_schedule=fma"
    record = make_kernel(print, "moe_w4a16", contract="grouped,depth=9", schedule=lambda case: text)
    rules = record.contract_for(Case.parse("moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-sym/uniform/normal/s1"))
    assert [str(s) for s in (rules.schedule, rules.gemm2_schedule, rules.sum_schedule)] == [GEMM, "mul_add", "fma"]
    assert rules.depth == 9
    assert rules.unscheduled == contract("grouped,depth=9")


def test_a_function_of_the_case_that_raises_is_one_line():
    record = make_kernel(print, "int4_linear", name="mine", schedule=lambda case: 1 // 0)
    with pytest.raises(
        ValueError, match=r"^schedule of mine: raised ZeroDivisionError: .* on int4_linear/T3"
    ) as caught:
        record.contract_for(Case.parse("int4_linear/T3-N8-K96-G32/bf16/exllama-sym/-/normal/s2"))
    assert "\n" not in str(caught.value)


def test_a_function_of_the_case_keeps_the_fields_of_a_contract_that_is_no_text():
    case = Case.parse("int4_linear/T3-N8-K96-G32/bf16/exllama-sym/-/normal/s2")
    for given in (Contract("mine", depth=9), replace(contract("grouped"), depth=9)):
        record = make_kernel(print, "int4_linear", contract=given, schedule=lambda case: "fma")
        found = record.contract_for(case)
        assert (found.depth, str(found.schedule), found.name) == (9, "fma", f"{given.name},schedule=fma")
        assert found.unscheduled == given
