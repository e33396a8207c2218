"""The probe kernels: right on exact data in the interpreter, and one instruction each where they compile to a GPU's."""

import pytest
import torch

from moeracle.kernels.triton import dot_probe
from moeracle.properties.infer import probe_file

SCRIPT = """
import json
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from moeracle.kernels.triton import dot_probe as probes

pointers = lambda kind: {"a_ptr": kind, "w_ptr": kind, "acc_ptr": "*fp32", "out_ptr": "*fp32"}
found = {}
for arch in ("gfx1151", "gfx1201"):
    target = GPUTarget("hip", arch, 32)
    source = ASTSource(probes.dot_probe_kernel, {**pointers("*bf16"), "K": "constexpr", "TILE": "constexpr"},
                       constexprs={"K": 16, "TILE": 16})
    asm = compile(source, target=target, options={"num_warps": 1}).asm["amdgcn"]
    found[arch] = asm.count("v_wmma_f32_16x16x16_bf16")
    source = ASTSource(probes.dot2_probe_kernel, {**pointers("*i32"), "ASM": "constexpr", "TILE": "constexpr"},
                       constexprs={"ASM": probes.DOT2[probes.torch.bfloat16] + " $0, $1, $2, $3", "TILE": 32})
    asm = compile(source, target=target, options={"num_warps": 1}).asm["amdgcn"]
    found[arch + " dot2"] = asm.count("v_dot2_f32_bf16")
print(json.dumps(found))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_row_is_its_own_dot_product(dtype):
    draw = torch.Generator().manual_seed(1)
    a, w = (torch.randint(-8, 9, (21, 16), generator=draw).to(dtype) for _ in range(2))
    acc = torch.randint(-99, 100, (21,), generator=draw).float()
    assert torch.equal(dot_probe.dot(a, w, acc), probe_file.sequential(a, w, acc))
    assert dot_probe.dot(a[:0], w[:0], acc[:0]).shape == (0,)


def test_on_amd_each_probe_is_one_instruction(compiling):
    assert compiling(SCRIPT) == [{"gfx1151": 1, "gfx1151 dot2": 1, "gfx1201": 1, "gfx1201 dot2": 1}]


def test_without_a_gpu_the_architecture_is_not_invented():
    if not torch.cuda.is_available():
        assert dot_probe.architecture() == ""
