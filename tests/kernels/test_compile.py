"""Every kernel compiles for an H200 and for gfx1151 with neither at hand, and spills nothing there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from moeracle.kernels.compile import Build, compile_kernel

KERNELS = {"grouped_gemm", "padded_gemm", "int4_linear", "decode_gemm", "dequantize", "unpack", "silu_and_mul"}
KERNELS |= {"unpermute", "topk_softmax"}


def compiled_for(architecture: str, cache) -> list[dict]:
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "moeracle.kernels.compile", architecture]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_gfx1151_uses_its_matrix_instructions_and_spills_nothing(tmp_path):
    facts = compiled_for("gfx1151", tmp_path)
    assert {f["kernel"].removesuffix("_kernel") for f in facts} == KERNELS
    for f in facts:
        assert f["vgpr_spill_count"] == f["sgpr_spill_count"] == f["private_segment_fixed_size"] == 0, f
        assert f["vgpr_count"] <= 256, f
        if "BLOCK_M" in f:
            assert f["wmma"] > 0, f


def test_sm_90_uses_mma_for_small_tiles_and_wgmma_for_large_ones(tmp_path):
    facts = compiled_for("sm_90", tmp_path)
    assert {f["kernel"].removesuffix("_kernel") for f in facts} == KERNELS
    for f in facts:
        assert f["shared"] <= 227 * 1024, f
        if "BLOCK_M" in f:
            assert f["wgmma" if f["BLOCK_M"] >= 64 else "mma"] > 0, f


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="arch: got 'gfx115'"):
        compile_kernel(Build("unpermute_triton:unpermute_kernel", {"BLOCK": 64}), "gfx115")
