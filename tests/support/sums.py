"""Sums of a few terms as fp32 bit patterns, and operands of every kind, for tests of the bit models."""

from __future__ import annotations

import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.tensor_core import HOPPER, fused_dot

BF16 = torch.bfloat16


def bits(x):
    return [v & 0xFFFFFFFF for v in x.reshape(-1).view(torch.int32).tolist()]


def float_bits(x):
    return bits(torch.tensor([x]))[0]


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def of_terms(values, schedule):
    """The bits of a sum whose terms are the values themselves."""
    return bits(accumulate(row(*values), torch.ones(1, len(values)), schedule))[0]


def one(a, w, core=HOPPER, acc=None, dtype=BF16, step=None):
    """The bits of one output."""
    held = None if acc is None else torch.tensor([[acc]])
    return bits(fused_dot(torch.tensor([a], dtype=dtype), torch.tensor([w], dtype=dtype), core, held, step=step))[0]


def draw(seed, K, dtype, kind, M=3, N=4):
    g = torch.Generator().manual_seed(seed)
    a, w = torch.randn(M, K, generator=g), torch.randn(N, K, generator=g)
    spread = {"normal": 1, "wide": 8, "outliers": 1, "cancelling": 2, "subnormal": 3}[kind]
    a = a * torch.exp2(torch.randint(-spread, spread, a.shape, generator=g).float())
    if kind == "outliers":
        a[:, :: max(K // 3, 1)] *= 1000
    if kind == "cancelling":
        h = K // 2
        a[:, h : 2 * h], w[:, h : 2 * h] = a[:, :h], -w[:, :h]
        a[:, -1] *= 2.0**-6
    if kind == "subnormal":
        a, w = (a * 2.0**-66, w * 2.0**-66) if dtype == BF16 else (a * 2.0**-15, w * 2.0**-15)
    a[torch.rand(a.shape, generator=g) < 0.1] = 0
    return a.to(dtype), w.to(dtype)
