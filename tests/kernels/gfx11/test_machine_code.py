"""The compiled .hsaco of every HIP kernel, executed: its bits are the emulation's; what it may not do is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moeracle.kernels.gfx11 import code_object, core, decode, machine
from moeracle.kernels.hip.registry import REGISTRY
from moeracle.kernels.hip.runtime.build import build_gfx
from moeracle.kernels.hip.runtime.launch import hip_kernel
from moeracle.kernels.hip.runtime.machine import machine_code
from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge

pytestmark = pytest.mark.usefixtures("toolchain")
CASES = {
    "int4_linear": [
        "int4_linear/T1-N48-K512-G32/bf16/exllama-sym/-/normal/s1",
        "int4_linear/T5-N24-K256-G64/fp16/exllama-rdna/-/outliers+bias/s2",
        "int4_linear/T3-N24-K256-G128/bf16/exllama-unpacked/-/subnormal/s3",
    ],
    "padded_gemm": [
        "padded_gemm/T4-E4-k2-N32-K256-G64-B2/bf16/exllama-sym/zipf1/normal/s4",
        "padded_gemm/T20-E3-k2-N32-K256-G128-B16/bf16/exllama-sym/zipf1/normal/s5",
        "padded_gemm/T20-E3-k2-N32-K256-G128-B16/fp16/exllama-rdna/uniform/normal/s6",
    ],
    "int8_lm_head": [
        "int8_lm_head/T2-V40-K256-G32/bf16/-/-/normal/s7",
        "int8_lm_head/T4-V40-K256-G-1/fp16/-/-/cancelling+bias/s8",
    ],
    "moe_w4a16": [
        "moe_w4a16/T2-E4-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s9",
        "moe_w4a16/T3-E4-k2-H256-I128-G64/fp16/exllama-rdna/uniform/normal/s10",
    ],
    "dequantize_int4": ["dequantize_int4/E2-N24-K256-G64/bf16/exllama-rdna/-/normal/s12"],
    "shared_expert": ["shared_expert/T3-H128-I64-G32/bf16/exllama-sym/-/normal+gate/s13"],
    "tiny_dot": [
        "tiny_dot/T4-K256/bf16/-/-/normal/s14",
        "tiny_dot/T4-K256/fp16/-/-/normal+sigmoid/s15",
    ],
    "silu_and_mul": ["silu_and_mul/T6-I96/bf16/-/-/normal/s11"],
}
# v_exp_f32 and v_rcp_f32 stand between these stages and the emulation's exp: they are judged, not compared.
BEHIND_EXP = {"a", "y", "out"}


def runs() -> list[Any]:
    return [
        pytest.param(entry, text, id=f"{entry.name}-{text}")
        for entry in REGISTRY
        for text in CASES.get(entry.op, [])
        if entry.name != "padded_gemm" and case_fits(entry, Case.parse(text))
    ]


def case_fits(entry: Any, case: Case) -> bool:
    return (
        case.dtype in entry.dtypes
        and (case.zero in entry.zeros or entry.layout is None)
        and entry.supports(case) is True
    )


def stages(output: Any) -> dict[str, torch.Tensor]:
    return output if isinstance(output, dict) else {"out": output}


@pytest.mark.parametrize(("entry", "text"), runs())
def test_machine_code_leaves_the_bits_of_the_emulation(entry: Any, text: str) -> None:
    problem = Case.parse(text).build()
    kernel = entry.load()
    emulated = stages(kernel(*problem.args.values()))
    with machine_code("gfx1151") as done:
        executed = stages(kernel(*problem.args.values()))
    assert sum(run.executed.total() for run in done) > 100
    approximate = (
        BEHIND_EXP if entry.op in ("moe_w4a16", "silu_and_mul", "shared_expert") or "sigmoid" in text else set()
    )
    for stage, got in executed.items():
        if stage not in approximate:
            assert torch.equal(got.view(torch.int16), emulated[stage].view(torch.int16)), stage
    if approximate:
        layer = entry.op in ("moe_w4a16", "shared_expert")
        verdict = judge(problem, executed if layer else executed["out"], entry.contract)
        assert verdict.ok, verdict.text()


def test_every_registered_kernel_was_run() -> None:
    names = {param.values[0].name for param in runs()}
    unrun = {entry.name for entry in REGISTRY} - names
    assert unrun == set()
    assert len(names) >= 8


def test_the_second_architecture_too() -> None:
    problem = Case.parse(CASES["int4_linear"][0]).build()
    kernel = next(e for e in REGISTRY if e.op == "int4_linear").load()
    want = kernel(*problem.args.values())
    with machine_code("gfx1100"):
        got = kernel(*problem.args.values())
    assert torch.equal(got.view(torch.int16), want.view(torch.int16))


def test_a_dot_instruction_in_the_other_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Case.parse("int4_linear/T5-N600-K512-G128/fp16/exllama-sym/-/cancelling/s1").build()
    kernel = next(e for e in REGISTRY if e.op == "int4_linear").load()
    want = kernel(*problem.args.values())
    monkeypatch.setattr(core, "PLANTED", ("-DMOERACLE_PLANT", "-O0"))  # the high product first
    with machine_code("gfx1151"):
        got = kernel(*problem.args.values())
    assert not torch.equal(got.view(torch.int16), want.view(torch.int16))


def source(folder: Path, body: str, lds: str = "") -> Path:
    path = folder / "k.hip"
    path.write_text(
        '#include "moeracle_hip.h"\n'
        f'extern "C" __global__ __launch_bounds__(64) void k(int* out, int n) {{\n{body}\n}}\n'
        "MOERACLE_EXPORT(k)\n"
    )
    return path


def run_one(folder: Path, body: str, n: int, size: int = 64) -> torch.Tensor:
    out = torch.zeros(size, dtype=torch.int32)
    with machine_code("gfx1151"):
        hip_kernel(source(folder, body), "k").launch((1,), (64,), out, n)
    return out


def test_divergent_loops_meet_again(tmp_path: Path) -> None:
    body = "int s = 0; for (int i = 0; i < int(threadIdx.x) % n; i++) s += i; out[threadIdx.x] = s;"
    want = [sum(range(t % 7)) for t in range(64)]
    assert run_one(tmp_path, body, 7).tolist() == want


def test_waves_of_a_block_wait_at_the_barrier(tmp_path: Path) -> None:
    body = (
        "SHARED(int, box, 64); int t = int(threadIdx.x); int v = t;"
        "if (t < 32) for (int i = 0; i < n; i++) v = v * 3 + 1;"
        "box[t] = v; __syncthreads(); out[t] = box[63 - t];"
    )
    slow = list(range(64))
    for _ in range(5):
        slow[:32] = [v * 3 + 1 for v in slow[:32]]
    assert run_one(tmp_path, body, 5).tolist() == slow[::-1]


def test_integer_division(tmp_path: Path) -> None:
    body = "int t = int(threadIdx.x) * 1000003 - 31000000; out[threadIdx.x] = t / n * 1000 + t % n;"
    t = np.arange(64, dtype=np.int64) * 1000003 - 31000000
    want = (np.trunc(t / 977).astype(np.int64) * 1000 + np.fmod(t, 977)).astype(np.int64)
    assert run_one(tmp_path, body, 977).tolist() == ((want + 2**31) % 2**32 - 2**31).tolist()


def test_an_access_past_the_end_names_instruction_and_lane(tmp_path: Path) -> None:
    said = r"global_store_b32: lane 28 of wave 1: 4 bytes at 0x\w+ lie outside every buffer"
    with machine.in_order("forward"), pytest.raises(IndexError, match=said):
        run_one(tmp_path, "out[threadIdx.x] = n;", 1, size=60)


def test_an_endless_kernel_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LONGEST", 5000)
    with pytest.raises(ValueError, match="it does not end"):
        run_one(tmp_path, "while (n) { atomic_add(out, 1); }", 1)


def test_wrong_use_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="arch: got 'gfx942'"), machine_code("gfx942"):
        pass
    text = tmp_path / "not.hsaco"
    text.write_text("no code object")
    with pytest.raises(ValueError, match="must be an AMD GPU code object"):
        code_object.read_kernel(text)
    built = build_gfx(source(tmp_path, "out[threadIdx.x] = n;"), {}, "gfx1151")
    with pytest.raises(ValueError, match="name: got 'other', must be one of k"):
        code_object.read_kernel(built, "other")
    kernel = code_object.read_kernel(built)
    with pytest.raises(ValueError, match="args: got 1, must be the 2 that k takes"):
        machine.launch(kernel, (1, 1, 1), (64, 1, 1), [np.zeros(64, np.int32)])
    monkeypatch.setitem(__import__("sys").modules, "tinygrad.renderer.amd", None)
    with pytest.raises(ImportError, match=r"pip install 'moeracle\[gfx\]'"):
        decode.decode(kernel.text)


def test_an_instruction_that_is_not_modelled_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0x\w+ exp: this instruction is not modelled"):
        run_one(tmp_path, 'out[threadIdx.x] = n; asm volatile("exp mrt0 v0, v0, v0, v0");', 1)
