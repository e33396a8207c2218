"""Kernels as they are shipped, in plain PyTorch: each is legal under one contract and under nothing narrower.

Each entry of REAL is a kernel, the contract that describes it, narrower ones that must refuse it, and kernels that are
wrong in one thing, which the contract must see. Seen on an H200 in vLLM 0.33's compiled ops, or read in the source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from moeracle.properties.simulate import orders
from moeracle.ref.ops.padded_gemm import infer_block_size
from moeracle.ref.rounding import round_in_fp64

T = torch.Tensor


class Real(NamedTuple):
    """One kernel: its op, its contract, narrower contracts that refuse it, wrong kernels, and the cases to judge."""

    op: str
    fn: Callable[..., Any]
    contract: str
    narrower: tuple[str, ...]
    wrong: dict[str, Callable[..., Any]]
    cases: tuple[str, ...]


def to_d(x: T, D: torch.dtype) -> T:
    """Round fp32 to D and return it as fp32."""
    return x.to(D).float()


def toward_zero(x: T, D: torch.dtype) -> T:
    return round_in_fp64(x.double(), D, "rtz").to(D)


def dense(w: Any, D: torch.dtype) -> T:
    return to_d(w.dequantize(), D)


# ---- K in parts --------------------------------------------------------------


def split_k(x: T, w: Any, bias: Any, count: int = 8, keep: Any = to_d, add: Any = None, deal: bool = False) -> T:
    """K in 8 parts, each part's sum rounded to D, the parts added in fp32 and rounded once. awq_gemm deals tiles of 32
    inputs to the parts in turn, other kernels give each part one run.
    """
    D, W = x.dtype, dense(w, x.dtype)
    runs, tiles = torch.arange(w.K).split(-(-w.K // count // 32) * 32), torch.arange(w.K).split(32)
    cuts = [torch.cat(tiles[i::count]) for i in range(min(count, len(tiles)))] if deal else runs
    parts = [keep(x[:, at].float() @ W[:, at].T, D).float() for at in cuts]
    return functools.reduce(lambda a, b: to_d(a + b, D) if add else a + b, parts).to(D)


def chain_runs(x: T, w: T, D: torch.dtype, length: int = 4) -> T:
    """Two chains of fused multiply-adds in D over each eight products, added in fp32: [K/8, M, N]."""
    a, b = (part.double().unflatten(1, (-1, 8)).permute(2, 1, 0) for part in (x, w))
    both = []
    for at in range(0, 8, length):
        acc = torch.zeros(a.shape[1], len(x), len(w), dtype=torch.float64)
        for k in range(at, at + length):
            acc = round_in_fp64(acc + a[k][:, :, None] * b[k][:, None, :], D)
        both.append(acc.float())
    return functools.reduce(torch.add, both)


def atomics(parts: list[T], D: torch.dtype) -> T:
    """Add in D, in no fixed order."""
    orders.shuffle(parts)
    return functools.reduce(lambda a, b: to_d(a + b, D), [to_d(p, D) for p in parts])


def gptq_gemm(x: T, w: Any, bias: Any, length: int = 4, block: int = 128) -> T:
    """exllama's gptq_gemm: chains of u-z in D, inputs 0 2 4 6 and 1 3 5 7, scaled in fp32; parts of 128 by atomics."""
    D, order = x.dtype, [0, 2, 4, 6, 1, 3, 5, 7]
    zeros = w.zeros()
    z = 8.0 if zeros is None else zeros.float().repeat_interleave(w.G, -1)
    steps, parts = w.codes().float() - z, []
    for start in range(0, w.K, block):
        acc, eights = torch.zeros(len(x), w.N), torch.arange(start, min(start + block, w.K)).unflatten(0, (-1, 8))
        at = eights[:, order].flatten()
        for k, run in zip(eights[:, 0].tolist(), chain_runs(x[:, at], steps[:, at], D, length), strict=True):
            acc = (acc.double() + run.double() * w.scale[:, k // w.G].double()).float()
        parts.append(acc)
    return atomics(parts, D).to(D)


def moe_wna16(
    x: T, w: Any, ids: T, experts: T, end: T, weights: T | None, top_k: int, block: int = 64, late: bool = False
) -> T:
    """vLLM's moe_wna16_gemm: chains of D(D(u-z)·s) in D, the router weight in fp32, then 16-bit atomics over K."""
    D, R = x.dtype, len(x) * top_k
    out, rows_of = torch.zeros(R, w.N), infer_block_size(len(ids), len(experts), R, w.E or 1, int(end)) if R else 0
    for b in range(int(end) // rows_of if rows_of else 0):
        rows = ids[b * rows_of : (b + 1) * rows_of].long()
        rows = rows[rows < R]
        if experts[b] < 0 or not len(rows):
            continue
        W, a, parts = dense(w.expert(int(experts[b])), D), x[rows // top_k], []
        for start in range(0, w.K, block):
            at = slice(start, start + block)
            part = functools.reduce(torch.add, chain_runs(a[:, at], W[:, at], D).unbind())
            parts.append(part if weights is None or late else part * weights.reshape(-1, 1)[rows])
        total = atomics(parts, D)
        out[rows] = total * weights.reshape(-1, 1)[rows] if weights is not None and late else total
    return out.to(D)


def w8a16(
    x: T, w: Any, ids: T, experts: T, end: T, weights: T | None, top_k: int, middle: int = 128, top: int = 255
) -> T:
    """vLLM's fused_moe_kernel_gptq_awq with 8-bit codes: D((u-z)·s), fp32 sums times the router weight, one store."""
    D, R = x.dtype, len(x) * top_k
    out, rows_of = torch.zeros(R, w.N, dtype=D), infer_block_size(len(ids), len(experts), R, w.E or 1, int(end))
    for b in range(int(end) // rows_of):
        rows = ids[b * rows_of : (b + 1) * rows_of].long()
        rows, e = rows[rows < R], int(experts[b])
        if e < 0 or not len(rows):
            continue
        each = lambda part: part.float().repeat_interleave(w.G, -1)
        codes = (w.packed[e].view(torch.uint8) & top).float()
        W = to_d((codes - (middle if w.zero is None else each(w.zero[e]))) * each(w.scale[e]), D)
        y = x[rows // top_k].float() @ W.T
        out[rows] = (y if weights is None else y * weights.reshape(-1, 1)[rows]).to(D)
    return out


# ---- Where scale and bias enter ----------------------------------------------


def marlin_dense(x: T, w: Any, bias: Any, once: bool = False) -> T:
    """Marlin: with one group the sum of codes is rounded to D, then multiplied by the scale in D; once: in fp32."""
    D = x.dtype
    if w.G < w.K:
        return (x.float() @ dense(w, D).T).to(D)
    sums = x.float() @ (w.codes().float() - w.middle).T
    return ((sums if once else to_d(sums, D)) * w.scale.mT.float()).to(D)


def bias_after(x: T, w: Any, bias: T | None, truncated: bool = False) -> T:
    """vLLM's triton_w4a16_skinny_fmt_gemm: the bias is added in D to what was stored."""
    D = x.dtype
    y = x.float() @ dense(w, D).T
    if bias is None:
        return y.to(D)
    return ((toward_zero(y, D) if truncated else y.to(D)).float() + bias.float()).to(D)


def marlin_and_bias(x: T, w: Any, bias: T | None, plain: int = 8, once: bool = False) -> T:
    """Marlin with one group and a bias: one fused operation, but for 8 of 64 columns of a tile's first 8 rows."""
    D = x.dtype
    if bias is None or w.G < w.K:
        y = marlin_dense(x, w, None)
        return y if bias is None else (y.float() + bias.float()).to(D)
    sums = x.float() @ (w.codes().float() - 8).T
    scaled = (sums if once else to_d(sums, D)) * w.scale.mT.float()
    fused = round_in_fp64(scaled.double() + bias.double(), D).to(D)
    unfused = (to_d(scaled, D) + bias.float()).to(D)
    first = (torch.arange(len(x))[:, None] % 16 < 8) & (torch.arange(w.N) % 64 < plain)
    return torch.where(first, unfused, fused)


def v1_zeros(x: T, w: Any, bias: Any, reading: str = "plain") -> T:
    """exllama's gptq_gemm, v1 zeros: 1 is added without a mask, so that a stored 15 is 16; other loaders carry."""
    D = x.dtype
    words = w.zero.long() & 0xFFFFFFFF
    if reading == "word_carry":
        words = (words + 0x11111111) & 0xFFFFFFFF
    stored = torch.stack([words >> 4 * r & 15 for r in range(8)], -1).flatten(-2).T
    z = (stored + (reading == "plain")).float().repeat_interleave(w.G, -1)
    weight = (w.codes().float() - z) * w.scale.float().repeat_interleave(w.G, -1)
    return (x.float() @ to_d(weight, D).T).to(D)


# ---- Stores that truncate ----------------------------------------------------


def truncating_store(x: T, w: Any, bias: Any, nearest: bool = False) -> T:
    """fp32 throughout, and every bf16 store truncates, as AVX2 code does that drops the low 16 bits."""
    y = x.float() @ w.dequantize().T
    return toward_zero(y, x.dtype) if x.dtype == torch.bfloat16 and not nearest else y.to(x.dtype)


# ---- Layers ------------------------------------------------------------------


def biased(sums: T, w: Any, e: int, D: torch.dtype, how: dict[str, Any]) -> T:
    """Add an expert's bias to the sums, or to what was stored of them."""
    if w.bias is None:
        return sums
    return (sums if how.get("bias") == "sum" else to_d(sums, D)) + w.bias[e].float()


def layer(x: T, w13: Any, w2: Any, tw: T, ids: T, **how: Any) -> dict[str, T]:
    """A layer whose roundings are chosen: see each use below; all stages in D are returned."""
    (tokens, H), k, D = x.shape, ids.shape[1], x.dtype
    flat, weight, exact = ids.reshape(-1), tw.reshape(-1, 1), how.get("exact", False)
    form = (lambda w: w.dequantize()) if exact else (lambda w: dense(w, D))
    put = toward_zero if how.get("rtz") and torch.bfloat16 == D else (lambda v, D: v.to(D))
    y = torch.zeros(len(flat), H)
    stages: dict[str, T] = {"a": torch.zeros(len(flat), w2.K, dtype=D), "y": torch.zeros(len(flat), H, dtype=D)}
    for e in flat.unique().tolist():
        if e < 0:
            continue
        r = (flat == e).nonzero().flatten()
        rows = x[r // k]
        if how.get("on_x"):
            rows = (rows * (weight[r].to(D) if how["on_x"] == "dtype" else weight[r])).to(D)
        h = biased(rows.float() @ form(w13.expert(e)).T, w13, e, D, how)
        silu, whole = how.get("act", torch.nn.functional.silu), h if how.get("fused") else to_d(h, D)
        if w13.N == w2.K:
            a = put(silu(whole), D)
        else:
            gate, up = whole.chunk(2, 1)
            a = put((silu(gate) if how.get("fused") else to_d(silu(gate), D)) * up, D)
        stages["a"][r] = a
        if how.get("h"):
            stages.setdefault("h", torch.zeros(len(flat), w13.N, dtype=D))[r] = whole.to(D)
        y[r] = biased(a.float() @ form(w2.expert(e)).T, w2, e, D, how)
    if how.get("in_dtype"):
        y = to_d(to_d(y, D) * weight.to(D).float(), D)
        rows = y.view(tokens, k, H)
        if how["in_dtype"] == "experts":
            rows = rows.gather(1, ids.long().argsort(dim=1, stable=True)[:, :, None].expand(rows.shape))
        stages["y"] = y.to(D)
        slots = list(rows.unbind(1))
        if how["in_dtype"] == "atomics":
            orders.shuffle(slots)
        total = functools.reduce(lambda s, t: to_d(s + t, D), slots)
        return {**stages, "out": total.to(D)}
    y = y if how.get("fused") else to_d(y, D)
    total = (y if how.get("on_x") else y * weight).view(tokens, k, H).sum(1)
    return {**stages, "y": y.to(D), "out": put(total, D)} if not how.get("fused") else {"a": stages["a"],
                                                                                      "out": put(total, D)}  # fmt: skip


def relu2(h: T) -> T:
    return h.relu() ** 2


def of(fn: Callable[..., Any], **changed: Any) -> Callable[..., Any]:
    return functools.partial(fn, **changed)


# ---- Activations -------------------------------------------------------------


def swigluoai(h: T, alpha: float = 1.702, limit: float = 7.0, plus: float = 1.0, low: bool = False) -> T:
    """vLLM's swigluoai_and_mul: all in fp32, one rounding."""
    gate, up = h.float().chunk(2, 1)
    gate, up = gate.clamp(-limit if low else None, limit), up.clamp(-limit, limit)
    return ((up + plus) * (gate / (1 + torch.exp(-gate * alpha)))).to(h.dtype)


def swiglustep(h: T, limit: float = 7.0, first: bool = False) -> T:
    """vLLM's swiglustep: silu in D, limited afterwards, times up in D."""
    gate, up = h.chunk(2, 1)
    gate = gate.clamp(max=limit) if first else gate
    return torch.nn.functional.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)


def gelu_and_mul(h: T, approximate: str = "none") -> T:
    """gelu in D times up in D: vLLM's gelu_and_mul and gelu_tanh_and_mul."""
    gate, up = h.chunk(2, 1)
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


def relu2_and_mul(h: T, square: bool = True) -> T:
    gate, up = h.chunk(2, 1)
    return (gate.relu() ** 2 if square else gate.relu()) * up


def unweighted(x: T, w13: Any, w2: Any, tw: T, ids: T) -> dict[str, T]:
    return layer(x, w13, w2, torch.ones_like(tw), ids, on_x="dtype")


LINEAR = "int4_linear/T9-N16-K{}-G{}/{}/{}/-/{}/s{}"
LAYER = "moe_w4a16/T9-E4-k{}-H64-I64-G32/{}/exllama-sym/uniform/{}/s{}"
CHAINS = "hfma/t8/tree4-sequential.2-pairwise/"
GPTQ = f"vllm@0.33:gptq_gemm,schedule={CHAINS}fused/order0.2.4.6.1.3.5.7"
WNA16 = f"vllm@0.33:moe_wna16,schedule={CHAINS}combine=sequential,parts=k64/dtype/add=dtype"
PADDED = tuple(
    f"padded_gemm/T9-E3-k2-N16-K256-G32-B16/{d}/exllama-sym/uniform+weight/normal/s2" for d in ("bf16", "fp16")
)

BYTES = tuple(text.replace("exllama-sym", f"bytes-{zero}+w8") for text in PADDED for zero in ("sym", "unpacked"))
NO_UP = tuple(
    f"moe_w4a16/T9-E4-k2-H64-I64-G32/{d}/gptq-sym+w8+bias+ungated/uniform/normal/s3" for d in ("bf16", "fp16")
)

GATES = tuple(f"silu_and_mul/T{t}-I64/{d}/-/-/{r}/s1" for t, d, r in (
    (9, "bf16", "outliers"), (9, "fp16", "outliers"), (255, "bf16", "allgates")))  # fmt: skip

REAL: dict[str, Real] = {
    "swigluoai_and_mul": Real(
        "silu_and_mul", swigluoai, "grouped,activation=swigluoai,silu=fp32",
        ("grouped", "grouped,activation=swigluoai", "grouped,activation=silu/alpha1.702/limit7,silu=fp32",
         "grouped,activation=silu/alpha1.702/up1,silu=fp32", "grouped,activation=silu/limit7/up1,silu=fp32"),
        {"no alpha": of(swigluoai, alpha=1.0), "up without its 1": of(swigluoai, plus=0.0),
         "limit 8": of(swigluoai, limit=8.0), "gate limited below": of(swigluoai, low=True)},
        GATES,
    ),
    "swiglustep_and_mul": Real(
        "silu_and_mul", swiglustep, "grouped,activation=swiglustep",
        ("grouped", "grouped,activation=swigluoai", "grouped,activation=silu/limit7",
         "grouped,activation=silu/limit8/after"),
        {"limit before": of(swiglustep, first=True), "limit 6": of(swiglustep, limit=6.0)},
        GATES,
    ),
    "gelu_and_mul": Real(
        "silu_and_mul", gelu_and_mul, "grouped,activation=gelu", ("grouped", "grouped,activation=gelu_tanh"),
        {"tanh": of(gelu_and_mul, approximate="tanh")}, GATES,
    ),
    "gelu_tanh_and_mul": Real(
        "silu_and_mul", of(gelu_and_mul, approximate="tanh"), "grouped,activation=gelu_tanh",
        ("grouped", "grouped,activation=gelu"), {"erf": gelu_and_mul}, GATES,
    ),
    "relu2_and_mul": Real(
        "silu_and_mul", relu2_and_mul, "grouped,activation=relu2", ("grouped", "grouped,activation=gelu"),
        {"not squared": of(relu2_and_mul, square=False)}, GATES[:1] + GATES[2:],
    ),
    "layer with gelu_tanh": Real(
        "moe_w4a16", of(layer, act=of(torch.nn.functional.gelu, approximate="tanh")), "grouped,activation=gelu_tanh",
        ("grouped", "grouped,activation=gelu"), {"silu": layer, "erf": of(layer, act=torch.nn.functional.gelu)},
        (LAYER.format(2, "bf16", "normal", 1), LAYER.format(2, "fp16", "normal", 1)),
    ),
    "awq_gemm": Real(
        "int4_linear", of(split_k, deal=True), "vllm@0.33:awq_gemm",
        ("grouped", "grouped,parts=8/up32/dtype", "grouped,parts=16/deal32/dtype"),
        {"five parts": of(split_k, deal=True, count=5), "parts in runs": split_k,
         "parts that truncate": of(split_k, deal=True, keep=toward_zero)},
        tuple(LINEAR.format(K, 32, "fp16", "awq-asym", d, 1) for K in (512, 480) for d in ("normal", "cancelling")),
    ),
    "parts in runs": Real(
        "int4_linear", split_k, "grouped,parts=8/up32/dtype",
        ("grouped", "grouped,parts=8/up32", "grouped,parts=16/up32/dtype", "vllm@0.33:awq_gemm"),
        {"five parts": of(split_k, count=5), "parts that truncate": of(split_k, keep=toward_zero)},
        tuple(LINEAR.format(K, 32, "fp16", "awq-asym", d, 1) for K in (288, 480) for d in ("normal", "cancelling")),
    ),
    "parts added in D": Real(
        "int4_linear", of(split_k, add=True), "grouped,parts=8/up32/dtype/add=dtype/join=sequential",
        ("grouped", "grouped,parts=8/up32/dtype", "grouped,parts=8/up32/dtype/add=dtype/join=reversed"),
        {"added in fp32": split_k},
        tuple(LINEAR.format(256, 32, d, "exllama-sym", "normal", 3) for d in ("bf16", "fp16")),
    ),
    "gptq_gemm": Real(
        "int4_linear", gptq_gemm, GPTQ,
        ("wvsplitk", GPTQ + ",parts=none,deterministic=true", GPTQ.replace("/order0.2.4.6.1.3.5.7", "")),
        {"chains of eight": of(gptq_gemm, length=8), "parts of 64": of(gptq_gemm, block=64)},
        (LINEAR.format(512, 64, "fp16", "gptq-v2", "normal", 4),),
    ),
    "moe_wna16_gemm": Real(
        "padded_gemm", moe_wna16, WNA16,
        ("gptq_awq", WNA16.replace("k64", "k128"), WNA16.replace("/add=dtype", "")),
        {"the weight after the parts": of(moe_wna16, late=True)},
        PADDED,
    ),
    "W8A16 experts": Real(
        "padded_gemm", w8a16, "gptq_awq",
        ("gptq_awq,weight=exact", "gptq_awq,router_weight=gemm2_dtype", "gptq_awq,store_rounding=rtz"),
        {"int4's zero point": of(w8a16, middle=8), "codes cut to nibbles": of(w8a16, top=15)},
        BYTES,
    ),
    "W8A16 layer without up, with biases": Real(
        "moe_w4a16", of(layer, act=relu2, h=True), "grouped,activation=relu2,bias=stored",
        ("grouped,activation=relu2", "grouped,bias=stored", "grouped,activation=relu2,bias=stored,weight=exact"),
        {"a bias before the store": of(layer, act=relu2, h=True, bias="sum"), "silu": of(layer, h=True)},
        NO_UP,
    ),
    "marlin, one group": Real(
        "int4_linear", marlin_dense, "vllm@0.33:marlin",
        ("marlin",),
        {"one rounding": of(marlin_dense, once=True)},
        tuple(LINEAR.format(128, -1, d, "gptq-sym", "normal", 5) for d in ("bf16", "fp16")),
    ),
    "marlin, 8 bits, one group": Real(
        "int4_linear", of(marlin_dense, once=True), "vllm@0.33:marlin_w8",
        ("vllm@0.33:marlin", "vllm@0.33:marlin_w8,one_group=as_weight"),
        {"the scale after the store": marlin_dense},
        tuple(LINEAR.format(128, -1, d, "gptq-sym+w8", "normal", 5) for d in ("bf16", "fp16")),
    ),
    "marlin, one group and a bias": Real(
        "int4_linear", marlin_and_bias, "vllm@0.33:marlin",
        ("vllm@0.33:marlin,bias=stored", "vllm@0.33:marlin,bias=sum"),
        {"one rounding": of(marlin_and_bias, once=True)},
        tuple(LINEAR.format(128, -1, d, "gptq-sym", "normal+bias", 5) for d in ("bf16", "fp16")),
    ),
    "bias after the store": Real(
        "int4_linear", bias_after, "grouped,bias=stored",
        ("grouped",),
        {"a store that truncates first": of(bias_after, truncated=True)},
        (*(LINEAR.format(128, 32, d, "exllama-sym", "normal+bias", 6) for d in ("bf16", "fp16")),
         "int4_linear/T64-N64-K512-G64/bf16/gptq-sym/-/normal+bias/s0"),
    ),
    "v1 zeros without a mask": Real(
        "int4_linear", v1_zeros, "grouped,v1_zeros=plain",
        ("grouped", "grouped,v1_zeros=word_carry", "grouped,v1_zeros=byte_carry"),
        {"with a carry": of(v1_zeros, reading="word_carry")},
        (LINEAR.format(128, 16, "fp16", "gptq-v1", "normal", 7),),
    ),
    "v1 zeros with a carry": Real(
        "int4_linear", of(v1_zeros, reading="word_carry"), "grouped,v1_zeros=word_carry",
        ("grouped", "grouped,v1_zeros=plain", "grouped,v1_zeros=byte_carry"),
        {"without a mask": v1_zeros},
        (LINEAR.format(128, 16, "fp16", "gptq-v1", "normal", 7),),
    ),
    "truncating store": Real(
        "int4_linear", truncating_store, "grouped,weight=exact,accumulator=fp32,store_rounding=rtz_bf16",
        ("grouped,weight=exact,accumulator=fp32",),
        {"to nearest": of(truncating_store, nearest=True)},
        (LINEAR.format(128, 32, "bf16", "exllama-sym", "normal", 7),),
    ),
    "cpu_fused_moe": Real(
        "moe_w4a16", of(layer, exact=True, fused=True, rtz=True), "vllm@0.33:cpu_fused_moe",
        ("vllm@0.33:cpu_fused_moe,store_rounding=rne", "vllm@0.33:cpu_fused_moe,store_rounding=out:rtz",
         "vllm@0.33:cpu_fused_moe,store_rounding=a:rtz"),
        {"to nearest": of(layer, exact=True, fused=True)},
        tuple(LAYER.format(2, "bf16", "normal", s) for s in (8, 9)),
    ),
    "weight on the input, in D": Real(
        "moe_w4a16", of(layer, on_x="dtype"), "grouped,router_weight=input_dtype",
        ("grouped", "grouped,router_weight=input", "grouped,router_weight=gemm2"),
        {"the weight is not rounded first": of(layer, on_x="fp32"), "not at all": unweighted},
        tuple(LAYER.format(1, d, "normal", 10) for d in ("bf16", "fp16")),
    ),
    "transformers, eager": Real(
        "moe_w4a16", of(layer, in_dtype="experts"), "transformers@5.24:eager",
        ("marlin", "transformers@5.24:eager,slot_order=slots"),
        {"slot order": of(layer, in_dtype="slots")},
        tuple(LAYER.format(4, d, "normal", 11) for d in ("bf16", "fp16")),
    ),
    "atomics over the slots": Real(
        "moe_w4a16", of(layer, in_dtype="atomics"),
        "marlin,topk_sum=dtype,slot_order=any,deterministic=false",
        ("marlin,topk_sum=dtype", "transformers@5.24:eager"),
        {"weights not in D": layer},
        tuple(LAYER.format(4, d, "normal", 12) for d in ("bf16", "fp16")),
    ),
}  # fmt: skip
