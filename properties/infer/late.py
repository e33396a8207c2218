"""Whether a scale of one group, or a bias, enters after the store: sums of many bits, rounded once or twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.contracts.accumulators import covering
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import FORMATS, round_in_fp64

from ..cases.kernel_like import words_read
from ..cases.optable import OPS
from ..common.generator import Stream
from .calls import ProbeError
from .drive import Dots
from .facts import accumulator_facts
from .fit import ask_noise, fit
from .found import MEASURED, UNDECIDED, Inference
from .order import bounded
from .report import note
from .site import site_of
from .weights import RIGHT

ROWS = 64


def scaled_after_store(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules, with one_group where the GEMM has one scale a row and multiplies by it in D after the store."""
    if not dots.one_scale or not dots.calls.asks_parts or dots.site.gemm > 1:
        return rules
    shares = late_shares(dots, rules)
    share, other = shares["after_store"], max(shares["after_sum"], shares["as_weight"])
    if share < RIGHT or share <= other:
        return rules
    note(
        result, "one_group", "after_store", f"one-hot rows: D(D(x*q)*s) explains {share:.2%}, one rounding {other:.2%}"
    )
    note(result, "weight", "cast", "one group: the scale enters after the store, and no weight is formed", UNDECIDED)
    return replace(rules, one_group="after_store", weight="cast", zero_offset=0)


def find_late_scale(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with one_group, asked where the kernel takes one scale a row besides the groups probed."""
    shown = not dots.record.layer or (type(dots) is Dots and dots.site.gemm == 1)  # of a layer h, as it is stored
    if dots.one_scale or not dots.calls.asks_parts or not shown or "G" not in dots.site.case.sizes:
        return rules
    case = dots.site.case.replace(G=-1)
    if not dots.calls.takes(case):
        return rules
    whole = dots.at(site_of(case))
    try:
        shares = late_shares(whole, rules)
    except ProbeError:
        return rules
    best = max(shares, key=lambda way: shares[way])  # "as_weight" before others that explain as much
    if shares[best] < RIGHT or best == "as_weight":
        return rules
    said = {"after_store": "D(D(x*q)*s)", "after_sum": "D((x*q)*s)"}[best]
    note(result, "one_group", best, f"G = -1: {said} explains {shares[best]:.2%} of one-hot rows")
    return _ordered_in_one_group(whole, replace(rules, one_group=best), result)


def _ordered_in_one_group(whole: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with the first schedule of those found with groups that predicts a whole row's sums, too."""
    if rules.schedule is None:
        return rules
    with_groups = [replace(c, one_group=rules.one_group) for c in result.fitting]
    held = [c for share, c in fit([ask_noise(whole, 4, spread=6)], with_groups) if share == 1.0]
    if held and held[0].schedule == rules.schedule:
        return rules
    best = held[0].schedule if held else None
    accumulator = held[0].accumulator if held else rules.accumulator
    if best is None:  # another order, and perhaps another adder: the bound that holds for both
        facts = accumulator_facts(whole)
        in_d = 0 < facts.kept <= FORMATS[whole.dtype][0] + 1
        found, why = bounded(whole, rules, facts, 0, in_d)
        accumulator = covering(rules.accumulator, found)
        if accumulator != rules.accumulator:
            note(result, "accumulator", accumulator, f"G = -1: {why}; the bound that holds for both")
    said = f"G = -1: {best or 'no schedule that was found with groups'} predicts every bit, {rules.schedule} does not"
    note(result, "schedule", str(best) if best else None, said, MEASURED if best else UNDECIDED)
    result.schedule, result.fitting = str(best or ""), held
    result.schedules = [str(c.schedule) for c in held[1:13]]
    return replace(rules, schedule=best, accumulator=accumulator)


def late_shares(dots: Dots, rules: Contract) -> dict[str, float]:
    """Return the share of one-hot rows that each place of a row's only scale explains, by value of one_group."""
    D, way = dots.dtype, rules.store_rounding
    x, columns, q, s = _one_hot(dots)
    got = dots(x, q, s).double()
    sums = x.double().gather(1, columns[:, None]) * q.double()[:, columns].T
    scale = s.double().T
    weight = q.double()[:, columns].T * scale
    formed = round_in_fp64(weight, D, rules.weight_rounding) if rules.weight == "cast" else weight
    values = {
        "as_weight": x.double().gather(1, columns[:, None]) * formed,
        "after_sum": sums * scale,
        "after_store": round_in_fp64(sums, D, way) * scale,
    }
    return {name: float((round_in_fp64(value, D, way) == got).double().mean()) for name, value in values.items()}


def _one_hot(dots: Dots) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x [P, K] of one value with all bits of D a row, its column [P], q [N, K] and scales [N, groups]."""
    stream, K, N = Stream(5, "infer.late"), dots.K, dots.N
    columns = torch.from_numpy(stream.below((ROWS,), K))
    x = torch.zeros(ROWS, K, dtype=dots.dtype)
    x[torch.arange(ROWS), columns] = (1 + torch.from_numpy(stream.below((ROWS,), 1 << 10)).double() / 1024).to(
        dots.dtype
    )
    q = torch.from_numpy(stream.below((N, K), 7)).float() + 1
    s = (1 + torch.from_numpy(stream.below((N, 1), 1 << 10)).double() / 1024).to(dots.dtype)
    return x, columns, q, s.expand(N, K // dots.G).contiguous()


def find_scale_cast(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with whether scales of another dtype are rounded to D first, where the kernel takes such."""
    words = {"scale32": torch.float32, "scale16": torch.float16}
    case = dots.site.case
    taken = [
        word for word in words
        if word in OPS[case.op].weight_flags and (word == "scale32" or dots.dtype == torch.bfloat16)
        and dots.calls.asks_parts and word in words_read(dots.calls.kernel)
        and dots.calls.takes(case.replace(flags=case.flags | {word}))
    ]  # fmt: skip
    if not taken or dots.site.gemm > 1:
        return rules
    asked = dots.at(dots.site)
    asked.scale_dtype = words[taken[0]]
    x, columns, q, _ = _one_hot(dots)
    s = 1 + torch.from_numpy(Stream(7, "infer.scale").below((dots.N, 1), 1 << 10)).double() / 1024 + 2.0**-12
    s = s.to(asked.scale_dtype).double()
    ones = (x != 0).to(dots.dtype)
    got = asked(ones, q, s.expand(dots.N, dots.K // dots.G).float().contiguous()).double()
    steps, way = q.double()[:, columns].T, rules.store_rounding
    shares = {}
    for cast, scale in ((False, s), (True, s.to(dots.dtype).double())):
        weight = steps * scale.T
        weight = round_in_fp64(weight, dots.dtype, rules.weight_rounding) if rules.weight == "cast" else weight
        shares[cast] = float((round_in_fp64(weight, dots.dtype, way) == got).double().mean())
    cast = shares[True] > shares[False]
    known = max(shares.values()) >= RIGHT and shares[True] != shares[False]
    said = f"one-hot rows and {taken[0]}: D(code*D(s)) explains {shares[True]:.2%}, D(code*s) {shares[False]:.2%}"
    note(result, "scale_cast", cast and known, said, MEASURED if known else UNDECIDED)
    return replace(rules, scale_cast=True) if cast and known else rules


def find_v1_zeros(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with how a stored 15 of v1 zero points is read: zero points of 0 are stored so."""
    if not dots.calls.asks_parts or dots.site.case.zero_layout != "gptq_v1":
        return rules
    x, columns, q, _ = _one_hot(dots)
    asked = dots.at(dots.site)
    asked.zero_point = 0
    got = asked((x != 0).to(dots.dtype), q).double()
    n = torch.arange(dots.N)
    bits = dots.site.case.bits
    read = {"modulo": 0 * n, "plain": 0 * n + (1 << bits)}  # carries: into the neighbour of a byte, or of a word
    read |= {"byte_carry": (n % (8 // bits) > 0).long(), "word_carry": (n % (32 // bits) > 0).long()}
    steps = q.double()[:, columns].T
    shares = {name: float((steps - z.double() == got).double().mean()) for name, z in read.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < RIGHT:
        return rules
    note(result, "v1_zeros", best, f"zero points stored as 15: {best} explains {shares[best]:.2%}")
    return replace(rules, v1_zeros=best)


def find_bias(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with where a GEMM's bias enters, an argument or of the experts, where the kernel takes one."""
    case = dots.site.case.replace(flags=dots.site.case.flags | {"bias"})
    if not dots.calls.asks_parts or not dots.calls.takes(case):
        return rules
    if dots.record.layer and dots.stage not in dots.answers():
        note(result, "bias", "sum", "not asked: the kernel does not return h", UNDECIDED)
        return rules
    D, way = dots.dtype, rules.store_rounding
    x, columns, q, _ = _one_hot(dots)
    bias = -(3 + torch.from_numpy(Stream(6, "infer.bias").below((dots.N,), 1 << 7)).double() / 128).to(D)
    got = dots.ask(x, _biased(dots, q, torch.ones(dots.N, dots.K // dots.G), bias), 0).double()
    sums = x.double().gather(1, columns[:, None]) * q.double()[:, columns].T
    if rules.parts is not None and rules.parts.kept == "dtype":  # then a sum of one part is rounded either way
        sums = round_in_fp64(sums, D, way)
    shares = {
        where: float((round_in_fp64(value + bias.double(), D, way) == got).double().mean())
        for where, value in (("sum", sums), ("stored", round_in_fp64(sums, D, way)))
    }
    said = ", ".join(f"{where} {share:.2%}" for where, share in shares.items())
    best = max(shares, key=lambda where: shares[where])
    known = shares[best] >= RIGHT
    note(result, "bias", best if known else "sum", f"one-hot rows and a bias: {said}", MEASURED if known else UNDECIDED)
    return _with_bias_of_one_group(dots, replace(rules, bias=best), bias, result) if known else rules


def _biased(dots: Dots, q: torch.Tensor, s: torch.Tensor, bias: torch.Tensor) -> dict[str, Any]:
    """Return the op's weight arguments with a bias [N], as an argument or of every expert."""
    weights = dots.weights(q, s)
    if "bias" in dots.record.data_flags:
        return {**weights, "bias": bias}
    zeros = torch.zeros(1, dtype=bias.dtype)  # of a layer's second weight
    biases = {name: bias if len(bias) == w.N and name != "w2" else zeros for name, w in weights.items()}
    return {name: replace(w, bias=biases[name].expand(w.shape[:-1]).contiguous()) for name, w in weights.items()}


def _with_bias_of_one_group(dots: Dots, rules: Contract, bias: torch.Tensor, result: Inference) -> Contract:
    """Return the rules with whether a bias is fused with the scale that one group multiplies after the store."""
    case = dots.site.case.replace(G=-1, flags=dots.site.case.flags | {"bias"})
    if rules.bias != "stored" or rules.one_group != "after_store" or not dots.calls.takes(case):
        return rules
    whole, D, way = dots.at(site_of(case)), dots.dtype, rules.store_rounding
    x, columns, q, s = _one_hot(whole)
    got = whole.ask(x, _biased(whole, q, s, bias), 0).double()
    sums = x.double().gather(1, columns[:, None]) * q.double()[:, columns].T
    scaled = round_in_fp64(sums, D, way) * s.double().T
    stored = round_in_fp64(round_in_fp64(scaled, D, way) + bias.double(), D, way) == got
    fused = round_in_fp64(scaled + bias.double(), D, way) == got
    share, either = float(stored.double().mean()), float((stored | fused).double().mean())
    if share >= RIGHT or either < RIGHT:
        return rules
    said = f"G = -1: D(D(D(x*q)*s) + bias) explains {share:.2%}, that or one operation for both {either:.2%}"
    note(result, "bias", "contracted", said)
    return replace(rules, bias="contracted")
