"""Everything about one GEMM of a kernel; and of a layer, both, and what one contract says of them."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from moeracle.ref.contracts.accumulators import covering
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.parts import Parts
from moeracle.ref.rounding import round_in_fp64

from .drive import Dots
from .facts import accumulator_facts
from .fit import ask_noise
from .found import MEASURED, UNDECIDED, Inference
from .late import find_late_scale, find_scale_cast, find_v1_zeros, scaled_after_store
from .order import find_order
from .parts import find_parts
from .report import note, tell
from .site import Site, second_site, site_of
from .through import GatedDots, SecondDots, opens
from .weights import MULTIPLIERS, RIGHT, weight_path

LONGER = (4, 2)  # times K, at which a K that is cut in two is asked again
RUNS = 4  # more, on the same inputs: atomics rarely add twice in one order
DROWNS = (
    "GEMM1 subtracts zero points from whole sums, so that a large input drowns the gates that let the others through"
)


def first_dots(site: Site, stages: set[str], direct: Dots) -> Dots | None:
    """Return how a layer's GEMM1 is read: from h, else through a, y or out; None if nothing shows it as it is."""
    if "h" in stages:
        return direct
    if not direct.gated:  # there is no up that an open gate lets through
        return None
    stage = next((stage for stage in ("a", "y") if stage in stages), "out")
    through = GatedDots(direct.calls, site, stage)
    return through if opens(through) else None


def find_gemm(dots: Dots, result: Inference) -> Contract:
    """Return the fields that one GEMM shows; findings, order and schedules are put into the result."""
    whole, parts, repeats = dots, None, True
    if dots.calls.asks_parts and "weight" in dots.record.inferred:
        dots.enter("determinism")
        ask_noise(dots, 0, times=RUNS)
        repeats = dots.calls.repeats
        parts, dots = find_parts(dots, result)
        if parts is not None and len(parts.inputs(whole.K)) == 2 and dots.calls.asks_longer:
            parts, repeats = find_more_parts(whole, parts, repeats, result)
        if parts is not None:  # all else is asked inside one part, where even atomics leave one order
            dots.calls.repeats = True
    rules = _find_uncut(dots, result)
    rules = find_scale_cast(whole, rules, result)
    if parts is None:
        return find_v1_zeros(whole, find_late_scale(whole, rules, result), result)
    whole.calls.repeats = repeats
    note(result, "deterministic", repeats, f"{RUNS + 1} runs on the same inputs", MEASURED)
    if not repeats:
        note(result, "parts", str(parts), "runs differ: parts are joined by atomics", MEASURED)
    return replace(rules, parts=parts, deterministic=repeats)


def find_more_parts(dots: Dots, parts: Parts, repeats: bool, result: Inference) -> tuple[Parts, bool]:
    """Return the parts, and whether runs repeat, as a longer sum shows them: two parts are added alike in any order.

    Args:
        dots: a GEMM whose K is cut in two.
        parts: how.
        repeats: whether its runs gave the same bits.
        result: findings are put in.
    """
    for times in LONGER:
        try:
            case = dots.site.case.replace(**{dots.site.letter: times * dots.K})
        except ValueError:
            continue
        if dots.site.gemm > 1 or not dots.calls.takes(case):
            continue
        longer, before = dots.at(site_of(case)), list(result.findings)
        dots.calls.repeats = True
        ask_noise(longer, 0, times=RUNS)
        there = dots.calls.repeats
        more, _ = find_parts(longer, result)
        if more is not None and replace(more, add=parts.add, join=parts.join) == parts:
            return more, repeats and there
        result.findings = before
        return parts, repeats and there
    return parts, repeats


def find_rounding_of_fp16(direct: Dots, stages: set[str], rules: Contract, result: Inference) -> Contract:
    """Return the rules of a kernel whose bf16 stores truncate, with what its fp16 stores do, where it takes fp16."""
    if rules.store_rounding != "rtz" or direct.dtype != torch.bfloat16 or not direct.calls.asks_parts:
        return rules
    case = direct.site.case.replace(dtype="fp16")
    if not direct.calls.takes(case):
        return rules
    site = site_of(case)
    other = type(direct)(direct.calls, site, direct.stage)
    dots = first_dots(site, stages, other) if direct.record.layer else other
    found = weight_path(dots).store_rounding if dots is not None else "rtz"
    if found == "rtz":
        return rules
    note(result, "store_rounding", "rtz_bf16", "one-hot rows: bf16 stores truncate, fp16 stores round to nearest")
    return replace(rules, store_rounding="rtz_bf16")


def _find_uncut(dots: Dots, result: Inference) -> Contract:
    """Return the fields of a GEMM that is not cut, or of one part."""
    dots.enter("weight path")
    rules = Contract("found")
    if "weight" not in dots.record.inferred:  # its weight is given in D
        rules = replace(rules, store_rounding=_store_rounding(dots, result))
    else:
        path = weight_path(dots)
        rules = replace(rules, store_rounding=path.store_rounding, weight=path.weight or "cast",
                        weight_rounding=path.weight_rounding, zero_offset=path.zero_offset)  # fmt: skip
        tell(result, path, rules)
        rules = scaled_after_store(dots, rules, result)
    dots.enter("determinism")
    repeated = ask_noise(dots, 0, times=2)
    rules = replace(rules, deterministic=dots.calls.repeats)
    dots.enter("accumulator")
    facts = accumulator_facts(dots)
    if dots.gaps and rules.weight == "hoisted":
        note(result, "accumulator", rules.accumulator, f"not asked: {DROWNS}", UNDECIDED)
        return rules
    rules = find_order(dots, rules, facts, [repeated], result)
    result.facts = {name: value for name, value in asdict(facts).items() if name != "evidence"}
    return rules


def _store_rounding(dots: Dots, result: Inference) -> str:
    """Return the store rounding of a GEMM whose weights are as they are given: one-hot rows, products of 16 bits."""
    x = torch.zeros(64, dots.K, dtype=dots.dtype)
    columns = torch.arange(64) % dots.K
    x[torch.arange(64), columns] = (1 + torch.arange(64) / 64.0).to(dots.dtype) * MULTIPLIERS[3]
    q = ((torch.arange(dots.K) * 5) % 13 + 3.0).expand(dots.N, -1)
    got = dots(x, q).double()
    exact = x.double().sum(1, keepdim=True) * q.double()[:, columns].T
    shares = {way: float((round_in_fp64(exact, dots.dtype, way) == got).double().mean()) for way in ("rne", "rtz")}
    best = max(shares, key=lambda way: shares[way])
    if shares[best] < RIGHT:
        result.why_not = f"store rounding: one-hot rows fit none (nearest: {best}, {shares[best]:.2%} of elements)"
    note(result, "store_rounding", best, f"one-hot rows: {best} explains {shares[best]:.2%}")
    return best


def find_second(first: Dots, stages: set[str], rules: Contract, result: Inference) -> Contract:
    """Probe a layer's GEMM2 as its GEMM1 was, and return the rules that hold for both.

    Args:
        first: how GEMM1 is driven.
        stages: those that the kernel stores.
        rules: what GEMM1 showed.
        result: what was found about GEMM1; `second` and findings are put in.
    """
    calls = first.calls
    if not first.gated:
        return _unasked(result, rules, "without up rows its input is what the activation makes of sums, not any value")
    site = second_site(first.site, calls.takes, rules.weight == "hoisted")
    if site is None:
        return _unasked(result, rules, "the kernel takes no sizes H > I at which it could be asked")
    dots = SecondDots(calls, site, "y" if "y" in stages else "out")
    dots.enter("weight path")
    if not opens(dots):
        return _unasked(result, rules, "silu(32) * up does not come through as 32 * up")
    second = Inference(result.kernel, result.op, str(site.case), result.device)
    late = find_gemm(dots, second)
    result.second = second
    if "schedule" in second.checks:
        result.checks["gemm2_schedule"] = second.checks["schedule"]
    result.why_not = result.why_not or (f"GEMM2: {second.why_not}" if second.why_not else "")
    result.notes += [f"GEMM2: {text}" for text in second.notes]
    for name in ("weight", "weight_rounding", "store_rounding", "zero_offset", "parts", "one_group"):
        mine, theirs = getattr(rules, name), getattr(late, name)
        if mine != theirs and not (name == "weight_rounding" and rules.weight != "cast"):
            text = f"{name}: GEMM1 shows {mine}, GEMM2 {theirs}; one contract says one of them"
            result.why_not = result.why_not or text
    return together(rules, late, result)


def _unasked(result: Inference, rules: Contract, why: str) -> Contract:
    result.notes.append(f"GEMM2: not asked: {why}; it is judged under what GEMM1 showed")
    return rules


def together(rules: Contract, late: Contract, result: Inference) -> Contract:
    """Return one contract for two GEMMs: the accumulator whose bound holds for both, and the schedules of both."""
    first, second = rules.schedule, late.schedule
    accumulator = covering(rules.accumulator, late.accumulator)
    deterministic, ftz = rules.deterministic and late.deterministic, rules.ftz or late.ftz
    plain = replace(rules, schedule=None, accumulator=accumulator, deterministic=deterministic, ftz=ftz)
    if accumulator != rules.accumulator:
        said = f"GEMM1: {rules.accumulator}, GEMM2: {late.accumulator}; the bound that holds for both"
        note(result, "accumulator", accumulator, said)
    assert result.second is not None
    if ftz or plain.adder.in_dtype:  # a contract of these has no schedule
        _tell_second(result, replace(late, schedule=None))
        return plain
    if first is not None and second is not None:
        theirs = {str(c.schedule) for c in result.second.fitting}
        common = next((c for c in result.fitting if str(c.schedule) in theirs), None)
        if common is not None:
            note(result, "gemm2_schedule", str(common.schedule), f"{result.second.order}; the same predicts it")
            result.schedule = str(common.schedule)
            return replace(plain, schedule=common.schedule, accumulator=common.accumulator)
    _tell_second(result, late)
    return with_schedules(plain, rules, late, result)


def with_schedules(plain: Contract, rules: Contract, late: Contract, result: Inference) -> Contract:
    """Return the contract with a schedule for each GEMM; without any if only GEMM1's is known."""
    if late.schedule is None:
        if rules.schedule is not None:
            result.notes.append(
                f"schedule: GEMM1 keeps {rules.schedule}; GEMM2's is not known, and a contract has both, or GEMM2's"
            )
            note(result, "schedule", None, result.notes[-1], UNDECIDED)
        return plain
    return replace(plain, schedule=rules.schedule, gemm2_schedule=late.schedule)


def _tell_second(result: Inference, late: Contract) -> None:
    assert result.second is not None
    found = result.second.finding("schedule")
    if found is not None:
        shown = str(late.schedule) if late.schedule else None
        note(result, "gemm2_schedule", shown, found.evidence, MEASURED if shown else UNDECIDED, found.same)
    found = result.second.finding("accumulator")
    if found is not None:
        note(result, "accumulator of GEMM2", found.value, found.evidence, found.status, found.same)
