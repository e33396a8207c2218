"""A kernel file outside this repository: right as it stands, and with five real bugs planted, each caught."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

SOURCE = """
import torch
import moeracle

FAULT = "%s"

def unpack(w):
    words = w.packed.unsqueeze(-1)
    shifts = [0, 16, 4, 20, 8, 24, 12, 28] if FAULT != "F08" else [0, 4, 8, 12, 16, 20, 24, 28]
    return ((words >> torch.tensor(shifts)) & 15).flatten(-2).float() - 8

def weights(w, dtype):
    scale = w.scale.float()
    if FAULT == "F29":
        scale = scale.roll(-1, -1)
    return (unpack(w) * scale.repeat_interleave(w.G, -1)).to(dtype).float()

def gemm(rows, matrix):
    y = rows.float() @ matrix.T
    if FAULT == "F42":
        return (y.view(torch.int32) & -65536).view(torch.float32).to(rows.dtype)
    return y.to(rows.dtype)

@moeracle.kernel("moe_w4a16", layout="exllama", contract="grouped", dtypes=("bf16",))
def third_party(x, w13, w2, topk_weights, topk_ids):
    (T, k), H, I = topk_ids.shape, w2.N, w2.K
    W13, W2, flat = weights(w13, x.dtype), weights(w2, x.dtype), topk_ids.flatten()
    h, y = torch.empty(T * k, 2 * I, dtype=x.dtype), torch.empty(T * k, H, dtype=x.dtype)
    a = torch.zeros(T * k, I, dtype=x.dtype)
    for e in range(w13.E):
        rows = (flat == e).nonzero().flatten()
        if FAULT == "F01":
            rows = rows[: -(-len(rows) // 2)]
        h[rows] = gemm(x[rows // k], W13[e])
        gate, up = h[rows].float().chunk(2, 1)
        if FAULT == "F31":
            gate, up = up, gate
        a[rows] = (torch.nn.functional.silu(gate).to(x.dtype).float() * up).to(x.dtype)
        y[rows] = gemm(a[rows], W2[e])
    for t in (h, a, y):
        t[flat < 0] = 0
    terms = y.float().reshape(T, k, H) * topk_weights[:, :, None]
    out = torch.where((topk_ids >= 0)[:, :, None], terms, 0.0).sum(1)
    return {"h": h, "a": a, "y": y, "out": out.to(x.dtype)}
"""
FIRST_SEEN = {"F01": "h", "F08": "h", "F29": "h", "F31": "a", "F42": "h"}


def test_the_right_kernel_is_legal(cli: Any, write: Any) -> None:
    done = cli("check", write(SOURCE % "none"), "--profile", "smoke")
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("fault", FIRST_SEEN)
def test_a_planted_bug_is_caught_where_it_is_and_replays(cli: Any, write: Any, fault: str) -> None:
    done = cli("check", write(SOURCE % fault), "--profile", "smoke")
    assert done.code == 1
    failure = done.out[done.out.index("[moe_w4a16] third_party  moe_w4a16/") :].rstrip().splitlines()
    assert f"stage={FIRST_SEEN[fault]}" in failure[0]
    assert re.search(r"\d of [\d,]+ elements illegal; worst", failure[1])
    replay = shlex.split(failure[-1].removeprefix("  replay: "))
    assert replay[:2] == ["moeracle", "check"]
    again = cli(*replay[1:])
    assert again.code == 1
    assert failure[0] in again.out
    assert failure[1] in again.out
