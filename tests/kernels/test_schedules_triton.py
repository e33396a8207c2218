"""Declared schedules are what the compiler makes: read off kernels compiled for sm_90 with no GPU at hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import triton

from moeracle import target
from moeracle.kernels import schedules
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.tiles import Tile
from moeracle.properties.case import Case
from moeracle.ref.contract import contract
from moeracle.ref.schedule import Schedule

HOME = "moeracle.kernels.registry"
IS_DECLARED = tuple(int(n) for n in triton.__version__.split(".")[:2]) == schedules.DECODE_TRITON
TILES = [Tile(16, 128, 64, 4, 4), Tile(32, 64, 32), Tile(64, 128, 64, 4, 3), Tile(128, 64, 128)]
SCRIPT = """
import json, re, sys
from moeracle.kernels.compile import Build, compile_kernel, gemm_builds
from moeracle.kernels.tiles import Tile
from moeracle.properties.case import Case
found = {}
for numbers in json.loads(sys.argv[1]):
    build = next(gemm_builds(Tile(*numbers), 128))
    asm = compile_kernel(build, "sm_90").asm
    names = set(re.findall(r"(?:wgmma\\.mma_async|mma\\.sync)[.\\w]*", asm["ptx"]))
    found[str(numbers)] = [sorted(names), sorted(set(re.findall(r"kWidth = (\\d+)", asm["ttgir"])))]
for group in (32, 256):
    blocks = {"GROUP": group, "ZERO": 0, "BLOCK_N": 16, "BLOCK_K": 256}
    asm = compile_kernel(Build("decode_triton:decode_gemm_kernel", blocks), "sm_90").asm
    ir = asm["ttgir"]
    name = re.search(r'"tt.reduce".*?\\}\\) : \\(tensor<[^>]*?(#\\w+)>\\)', ir, re.S).group(1)
    found[f"G{group}"] = [re.search(re.escape(name) + " = (.*)", ir).group(1), asm["ptx"].count("fma.rn.f32")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    env["TRITON_DEFAULT_FP_FUSION"] = "1"
    tiles = [[t.block_m, t.block_n, t.block_k, t.num_warps, t.num_stages] for t in TILES]
    command = [sys.executable, "-c", SCRIPT, json.dumps(tiles)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


@pytest.mark.skipif(not IS_DECLARED, reason=f"decode's order is declared for triton 3.6, this is {triton.__version__}")
def test_decode_reduces_in_the_declared_order(compiled):
    layout, fused = compiled["G32"]
    bits = [int(k) for k in re.findall(r"\[0, (\d+)\]", layout) if k != "0"]  # registers, lanes, warps, as k
    assert tuple(bits) == tuple(Schedule.parse(schedules.decode_schedule(32)).k_order[1 << b] for b in range(8))
    assert len(re.findall(r"\[0, \d+\]", re.search(r"register = (\[\[.*?\]\])", layout)[1])) == 5
    assert fused == 31
    layout, _ = compiled["G256"]
    assert "threadsPerWarp = [1, 32], warpsPerCTA = [1, 4]" in layout
    assert Schedule.parse(schedules.decode_schedule(256)).levels == ((2, "sequential"), (32, "halves"), (4, "halves"))


def test_every_gemm_of_the_registry_declares_a_schedule_that_its_contract_can_have():
    gemms = {e.name: e for e in REGISTRY if "gemm" in e.op or e.op in ("int4_linear", "moe_w4a16")}
    # which order these keep depends on T, or is the compiler's
    open_ones = {"moe_w4a16.decode", "moe_w4a16.hopper", "int4_linear", "int4_linear.rows"}
    assert {name for name, e in gemms.items() if e.schedule is None} == open_ones
    for entry in gemms.values():
        for K in (64, 96, 128, 512):
            text = entry.schedule(SimpleNamespace(K=K)) if callable(entry.schedule) else entry.schedule
            assert contract(f"{entry.contract},schedule={text or schedules.decode_schedule(32)}").schedule


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
    found = {k.name: k.contract for k in target._registry(HOME, "cuda")}
    assert (found["grouped_gemm"].schedule == Schedule("wgmma.k16.sm90")) is holds
    assert found["moe_w4a16.decode"].schedule is None
    assert all(k.contract.schedule is None for k in target._registry(HOME, "cpu"))


def test_a_schedule_is_the_one_of_the_zero_points_it_was_recorded_with(monkeypatch) -> None:
    monkeypatch.setattr(target, "schedules_hold", lambda device: True)
    kernel = next(k for k in target._registry(HOME, "cpu") if k.name == "int4_linear.dot")
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
        ("moe_w4a16.padded", "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1", "permuted"),
        ("somebody's", "moe_w4a16/T8-E2-k2-H64-I64-G32/bf16/exllama-unpacked/uniform/normal/s1", "none"),
    ],
)
def test_unpacked_zero_points_change_the_k_order_of_mma_only(name, text, expected):
    expected = schedules.UNPACKED_MMA if expected == "permuted" else expected
    assert schedules.case_schedule(name, Case.parse(text), "cpu") == expected
    assert schedules.gemm_schedule(TILES[0], "unpacked") == schedules.UNPACKED_MMA
    assert schedules.gemm_schedule(TILES[2], "unpacked") == schedules.gemm_schedule(TILES[2])
