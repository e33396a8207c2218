"""Laws about values: powers of two pass every rounding, exact sums are linear, columns do not see each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.layouts import pack_int4
from moeracle.ref.rounding import round_to
from moeracle.ref.weight import Int4Weight

from ..case import Case
from ..generator import Stream
from ..inputs import strided
from ..problem import Problem
from .bench import DOT_OPS, Bench, Silent, law
from .change import axes_of, like, with_args

FACTOR = 4.0
# Recipes whose every fp32 step stays among the normal numbers, times four too.
SCALABLE = ("normal", "outliers", "cancelling", "codes16", "integers", "onehot", "samesign")


def _in_range(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return where a stored result may be multiplied by FACTOR and stay a normal number; False for NaN."""
    size, limits = value.double().abs(), torch.finfo(dtype)
    # Twice: what was stored as the smallest normal number may have been a subnormal one before.
    return (size >= 2 * limits.smallest_normal) & (size * FACTOR <= limits.max)


def _scaled(value: torch.Tensor) -> torch.Tensor:
    scaled = like(value, value * FACTOR)
    if not bool(scaled.isfinite().all()):
        raise Silent
    return scaled


def _scaled_weight(w: Int4Weight) -> Int4Weight:
    return replace(w, scale=_scaled(w.scale))


def _scalings(bench: Bench, problem: Problem) -> list[tuple[str, dict[str, Any]]]:
    """Return (what is scaled, the changed arguments) for each way in which the op is homogeneous."""
    op, args, contract = problem.case.op, problem.args, bench.contract
    fp16 = problem.case.dtype == "fp16"
    if op == "silu_and_mul":
        gate, up = args["h"].chunk(2, dim=1)
        return [("the up half", {"h": like(args["h"], torch.cat([gate, _scaled(up)], dim=1))})]
    if op in ("dequantize_int4", "quantize_int8"):
        w = args["w"]
        return [("w", {"w": _scaled(w)}) if op == "quantize_int8" else ("the scales", {"w": _scaled_weight(w)})]
    if op == "shared_expert":  # in fp16 y may be subnormal, where rounding does not scale
        return [] if fp16 else [("w_down's scales", {"w_down": _scaled_weight(args["w_down"])})]
    if op == "tiny_dot":
        return [] if args["sigmoid"] else [(name, {name: _scaled(args[name])}) for name in ("x", "w")]
    if op in ("moe_unpermute", "moe_w4a16"):
        # In fp16 a product that is stored or added in D may be subnormal, where rounding does not scale.
        entry = "unpermute" if op == "moe_unpermute" else contract.router_weight
        in_fp32 = entry == "unpermute" and not contract.sum_in_dtype(problem.case.k)
        ways: list[tuple[str, dict[str, Any]]] = []
        if entry != "input" and (in_fp32 or not fp16):
            ways.append(("the router weights", {"topk_weights": _scaled(args["topk_weights"])}))
        if op == "moe_w4a16" and not fp16:
            ways.append(("w2's scales", {"w2": _scaled_weight(args["w2"])}))
        return ways
    bias = {"bias": _scaled(args["bias"])} if args.get("bias") is not None else {}
    lm_head = op == "int8_lm_head"
    weight = {"scale": _scaled(args["scale"])} if lm_head else {"w": _scaled_weight(args["w"])}
    return [("x", {"x": _scaled(args["x"]), **bias}), ("the scales", {**weight, **bias})]


@law
def law_scaling_by_powers_of_two(bench: Bench, case: Case) -> None:
    """f(4 x) = 4 f(x), bit for bit: a power of two passes through every rounding, fp32 sum and cast unchanged.

    Scaled in turn, with a bias if there is one: x and the weights' scales of a GEMM; the router weights (not where they
    enter on the input) and, in bf16, w2's scales of an MoE layer; the up half of silu_and_mul; what the quantizer reads
    (codes stay, scales grow). Same computation, so only for deterministic contracts; elements that are subnormal,
    overflow, are not finite, or lie below the quantizer's floor are left out, and so are recipes made of such.
    """
    if case.op in DOT_OPS and bench.contract.adder.in_dtype and case.dtype == "fp16":
        raise Silent  # its partial sums may be subnormal
    elementwise = case.op in ("silu_and_mul", "dequantize_int4", "quantize_int8")
    if not bench.contract.deterministic or not (elementwise or case.data in SCALABLE):
        raise Silent
    problem, results = bench.start()
    for what, changes in _scalings(bench, problem):
        on = f"{what} times {FACTOR:g}"
        got = bench.run(with_args(problem, **changes), on)
        if case.op == "quantize_int8":
            floor = results["scale"].double() > 1e-11  # the quantizer's 1e-10 / 127, and room
            wide = floor.reshape(case.V, -1).repeat_interleave(case.K // floor.reshape(case.V, -1).shape[1], 1)
            bench.equal("codes", got["codes"].int(), results["codes"].int(), ("row", "k"), wide, on)
            scaled = results["scale"].double() * FACTOR
            bench.equal("scale", got["scale"].double(), scaled, ("row", "group")[: scaled.ndim], floor, on)
            continue
        out = results["out"]
        axes = ("expert", "n", "k")[-out.ndim :] if case.op == "dequantize_int4" else axes_of(problem, out)
        where = _in_range(out, out.dtype)
        if case.op == "grouped_gemm":
            where &= (torch.arange(case.R) < int(problem.args["expert_offsets"][-1]))[:, None]
        bench.equal("out", got["out"].double(), out.double() * FACTOR, axes, where, on)


@law
def law_linearity(bench: Bench, case: Case) -> None:
    """f(a + b) = f(a) + f(b) on rows with one 1 each, whose results are stored exactly; a and b differ in their column.

    Every kernel with an fp32 accumulator must show it bit for bit: f(a) and f(b) are single weights, integers of few
    bits times a power of two, and f(a + b) is their sum, rounded once as the contract stores. Without a bias.
    """
    problem, _ = bench.start(exact=True, without=frozenset({"bias", "weight", "sigmoid"}))
    x = problem.args["x"]
    rows, K = x.shape
    if K < 2 or not rows:
        raise Silent
    stream = Stream(case.seed, "law.columns")
    first = torch.from_numpy(stream.below((rows,), K))
    second = (first + 1 + torch.from_numpy(stream.below((rows,), K - 1))) % K
    hot = [torch.zeros(rows, K, dtype=x.dtype).scatter_(1, c[:, None], 1.0) for c in (first, second)]
    runs = []
    for what, value in (("a", hot[0]), ("b", hot[1]), ("a + b", hot[0] + hot[1])):
        changed = with_args(problem, x=strided(value, problem.case))
        runs.append(bench.run(changed, f"one-hot rows {what}")["out"])
    total = runs[0].double() + runs[1].double()
    expected = round_to(total, runs[2].dtype, bench.contract.store_rounding)
    where = None
    if case.op == "grouped_gemm":
        where = (torch.arange(rows) < int(problem.args["expert_offsets"][-1]))[:, None]
    bench.equal(
        "f(a + b)", runs[2], expected, ("row", "n"), where, "one-hot rows a + b", "the sum of its results on a and on b"
    )


@law
def law_columns_are_independent(bench: Bench, case: Case) -> None:
    """Output column n depends on weight row n alone (on columns n of gate and up): the others may change.

    Bit for bit on any data where the contract is deterministic (same computation), else on exact data. Every second
    column changes, then the others.
    """
    problem, results = bench.same_computation()
    args, out = problem.args, results["out"]
    for parity in (0, 1):
        columns = torch.arange(out.shape[1]) % 2 != parity  # those that change
        on = f"other values in the {'odd' if parity == 0 else 'even'} columns"
        if case.op == "silu_and_mul":
            new: dict[str, Any] = {"h": like(args["h"], torch.where(columns.repeat(2), -args["h"], args["h"]))}
        elif case.op == "int8_lm_head":
            new = {"codes": torch.where(columns[:, None], ~args["codes"], args["codes"])}
        else:
            new = {"w": _other_rows(args["w"], columns)}
        got = bench.run(with_args(problem, **new), on)["out"]
        bench.equal("out", got, out, axes_of(problem, out), ~columns & out.isfinite(), on)


def _other_rows(w: Int4Weight, rows: torch.Tensor) -> Int4Weight:
    """Return w with the codes u of some rows n replaced by 15 - u."""
    codes = torch.where(rows[:, None], 15 - w.codes(), w.codes())
    return replace(w, packed=like(w.packed, pack_int4(codes, w.layout).view(w.packed.dtype)))
