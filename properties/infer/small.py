"""Ops without a GEMM that round nevertheless: silu times up, and the weighted sum over slots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from moeracle.ref.activation import ACTIVATIONS, SILU, Activation
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import round_in_fp64

from ..cases.case import TORCH_DTYPE, Case
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.generator import Stream
from .calls import Calls
from .found import Inference
from .layer import CLEAR, activated
from .report import note
from .site import ROWS, dtype_of, first_taken
from .slots import SLOTS, find_sum, paired_weights, terms_of

WAYS = ("rne", "rtz")
SURE = 0.999  # share of outputs that silu explains where no other activation is asked about


def is_small(op: str) -> bool:
    """Say whether something can be inferred of an op although it has no GEMM."""
    record = record_of(op)
    return bool(record.inferred) and not record.sums_products


def small_case(kernel: KernelLike, dtype: str | None, rows: int | None) -> Case:
    """Return the case at which such an op is probed.

    Raises:
        ValueError: the kernel takes no suitable sizes.
    """
    return first_taken(kernel, {"dtype": dtype_of(kernel, dtype)}, _shapes(kernel.op, rows))


def _shapes(op: str, rows: int | None) -> Iterator[dict[str, int]]:
    record = record_of(op)
    for T in ROWS[4:] if rows is None else (rows,):
        for n in (256, 64, 512):
            sizes = {"T": T, "E": record.probe_experts, "k": record.probe_slots, "K": n, "I": n}
            yield {letter: sizes[letter] for letter in record.dims}


def find_small(calls: Calls, case: Case, result: Inference) -> Contract:
    """Return the fields that the op shows."""
    calls.phase = "layer"
    rules = record_of(case.op).find_rules(calls, case, result)
    again = "two runs on the same inputs gave the same bits" if calls.repeats else "runs differ in their bits"
    note(result, "deterministic", calls.repeats, again)
    return replace(rules, deterministic=calls.repeats)


def find_silu(calls: Calls, case: Case, result: Inference) -> Contract:
    """Return which activation it is, and how it and the store are rounded: what predicts most outputs."""
    T, I, D = case.T, case.I, TORCH_DTYPE[case.dtype]
    h = (torch.from_numpy(Stream(1, "infer.silu").normal((T, 2 * I))).double() * 3).to(D)
    predicted = {SILU: _silu_shares(SILU, h, calls.run({"h": h}, times=1)["out"].double(), D)}
    if max(predicted[SILU].values()) < SURE:  # gates as large as limits are, and few where 1 + erf cancels
        h = (torch.from_numpy(Stream(2, "infer.silu").normal((T, 2 * I))).double() * 8).to(D)
        h[:, :I] = h[:, :I].clamp(min=-2)
        got = calls.run({"h": h}, times=1)["out"].double()
        for how in dict.fromkeys([SILU, *map(Activation.parse, ACTIVATIONS), *_measured(calls, T, I, D)]):
            predicted[how] = _silu_shares(how, h, got, D)
    tops = {how: max(shares.values()) for how, shares in predicted.items()}
    best = max(tops, key=lambda how: tops[how])
    name, way = _best(predicted[best], "silu", result)
    said = ", ".join(f"{how} {share:.2%}" for how, share in tops.items())
    note(result, "activation", best, said, same=[str(how) for how in tops if how != best and tops[how] == tops[best]])
    return Contract("found", silu=name, store_rounding=way, activation=best)


def _silu_shares(
    how: Activation, h: torch.Tensor, got: torch.Tensor, dtype: torch.dtype
) -> dict[tuple[str, str], float]:
    """Return the share of outputs that an activation predicts, by its rounding and the store's."""
    shares = {}
    gate, up = h.double().chunk(2, 1)
    for name, way in product(("rounded", "fp32"), WAYS):
        rules = Contract("", silu=name, store_rounding=way, activation=how)
        stored = round_in_fp64(activated(gate, up, rules, dtype), dtype, way)
        shares[name, way] = float((stored == got).double().mean())
    return shares


def _measured(calls: Calls, T: int, I: int, dtype: torch.dtype) -> list[Activation]:
    """Return the silus whose alpha, limit and +1 a few gates and ups show, as numbers of three decimals."""
    h = torch.zeros(T, 2 * I, dtype=dtype)
    pairs = ((64.0, 1.0), (64.0, 0.0), (-4.0, 1.0))
    for column, (gate, up) in enumerate(pairs):
        h[:, column], h[:, I + column] = gate, up
    one, none, low = (float(v) for v in calls.run({"h": h}, times=1)["out"][0, : len(pairs)])
    top = one - none
    if not 0 < top <= 64 or not 0 < -low < 2:
        return []
    limit = None if top == 64 else top
    up = round(none / top)
    sigma = -low / 4 / (1 + up)
    alpha = round(-math.log(sigma / (1 - sigma)) / 4, 3) if 0 < sigma < 1 else 1.0
    found = []
    for after in (False, True)[: 1 + (limit is not None)]:
        try:
            found.append(Activation(alpha=alpha, limit=limit, after=after, up=up))
        except ValueError:  # a number that none has
            continue
    return found


def find_unpermute(calls: Calls, case: Case, result: Inference) -> Contract:
    """Return how k slots are added and stored, and the order of the sum."""
    D, sums, found = TORCH_DTYPE[case.dtype], {}, {}
    for k in (3, 8):
        here = case.replace(k=k)
        if not calls.takes(here):
            continue
        stream = Stream(k, "infer.sum")
        y = torch.from_numpy(stream.normal((here.T * k, here.K))).to(D)
        weights = (0.25 + torch.from_numpy(stream.below((here.T, k), 1 << 24)).double() * 2.0**-25).float()
        got = _sum_call(calls, y, weights, torch.from_numpy(stream.permutation(here.T * k).copy()))["out"].double()
        terms = (terms_of(y, weights)).float().double()
        shares = {}
        for way in WAYS:
            once = round_in_fp64(terms.float().sum(1).double(), D, way)
            each = torch.zeros_like(once)
            for term in terms.unbind(1):
                each = round_in_fp64(each + round_in_fp64(term, D, way), D, way)
            shares["fp32", way] = float((once == got).double().mean())
            shares["dtype", way] = float((each == got).double().mean())
        sums[k], found[k] = _best(shares, "topk_sum", result)
    total = "vllm" if (sums.get(3), sums.get(8)) == ("dtype", "fp32") else next(iter(sums.values()), "fp32")
    note(result, "topk_sum", total, ", ".join(f"k = {k}: {name}" for k, name in sums.items()))
    rules = Contract("found", topk_sum=total, store_rounding=next(iter(found.values()), "rne"))
    left = []
    for k in SLOTS:
        here = case.replace(k=k)
        if calls.takes(here):
            stream = Stream(k, "infer.slots")
            ids, weights = paired_weights(stream, here.T, k)
            half = torch.from_numpy(stream.normal((here.T, k // 2, here.K))).to(D)
            of_pair = torch.stack([half, -half], 2).flatten(1, 2)
            y = of_pair.gather(1, ids.long()[:, :, None].expand(-1, -1, here.K)).flatten(0, 1)
            shuffle = torch.from_numpy(stream.permutation(len(y)).copy())
            left.append((terms_of(y, weights), _sum_call(calls, y, weights, shuffle)["out"]))
    return find_sum(rules, left, result)


def _sum_call(calls: Calls, y: torch.Tensor, weights: torch.Tensor, shuffle: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run moe_unpermute on rows in slot order, handed over in another."""
    inv = torch.empty_like(shuffle)
    inv[shuffle] = torch.arange(len(y))
    args: dict[str, Any] = {"y": y[shuffle], "topk_weights": weights, "inv": inv.int()}
    return calls.run(args, times=1)


def _best(shares: dict[tuple[str, str], float], field: str, result: Inference) -> tuple[str, str]:
    best = max(shares, key=lambda pair: shares[pair])
    said = ", ".join(f"{name} with {way} store {share:.2%}" for (name, way), share in shares.items())
    if shares[best] < CLEAR:
        result.why_not = result.why_not or f"{field}: no rounding predicts the outputs ({said})"
    note(result, field, best[0], said)
    note(result, "store_rounding", best[1], said)
    return best
