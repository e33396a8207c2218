"""What only a whole layer tells: silu, which stages are stored, where the router weight enters, how k slots are added.

Each row of x has one value, and each row of a then has one value: every stage is a product of two numbers, whatever the
order of its sums. So each combination of roundings predicts every stage bit for bit, and the kernel's outputs choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, combinations, product
from typing import Any

import torch

from moeracle.ref.activation import ACTIVATIONS, Activation
from moeracle.ref.bounds.band import exactly, join_band
from moeracle.ref.contracts.contract import STAGES, Contract
from moeracle.ref.ops.moe_align_block_size import moe_align_block_size
from moeracle.ref.rounding import round_in_fp64

from ..common.generator import Stream
from .calls import ProbeError
from .drive import Dots

TOKENS = 8
SUMMED_AT_ONCE = 1 << 18  # elements of the rows that are summed for many contracts at a time
CLEAR = 0.97  # share of elements that the right combination explains at least: silu is not correctly rounded
MARGIN = 0.004


@dataclass
class LayerFound:
    """The best combinations for each k, best first and all as good, and what share of elements they explain."""

    best: dict[int, list[Contract]] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    runner_up: dict[int, tuple[float, str]] = field(default_factory=dict)
    returned: tuple[str, ...] = ()


def layer_found(dots: Dots, path: Contract | None) -> LayerFound:
    """Run sparse layers for k = 3 and k = 8 and return which combinations of roundings predict them.

    Args:
        dots: how a moe_w4a16 kernel is driven; its GEMM need not be readable.
        path: the weight path and store rounding if they are known, else None.
    """
    found = LayerFound()
    sizes = [dots.site.case.replace(k=k, T=min(dots.limit, TOKENS)) for k in (3, 8)]
    taken = [case for case in sizes if dots.calls.takes(case)]  # vLLM adds 2, 3 or 4 slots in D; two come out alike
    if not taken and dots.calls.asks_parts and dots.calls.takes(sizes[0].replace(k=1)):
        taken = [sizes[0].replace(k=1)]  # a kernel for top-1 layers
    for case in taken:
        k = case.k
        args = sparse_layer(dots, case.sizes)
        got = dots.calls.run(args)
        found.returned = tuple(stage for stage in STAGES if stage in got)
        formed = Formed(args, dots.dtype)
        scored: list[tuple[float, Contract]] = []
        for more in (False, True):  # what few kernels do is asked where nothing else explains the stages
            scored += shares_of(got, args, combinations_of(found.returned, path, more), dots, formed)
            top = max(share for share, _ in scored)
            if top < CLEAR and not more:
                scored += _of_other_activations(dots, case.sizes, found.returned, path)
                top = max(share for share, _ in scored)
            if top >= CLEAR:
                break
        if top < CLEAR and dots.calls.asks_parts:
            scored += _in_any_order(got, args, dots, formed, scored)
            top = max(share for share, _ in scored)
        found.shares[k] = top
        found.best[k] = [rules for share, rules in scored if share >= top - 1e-12]
        rest = [pair for pair in scored if pair[0] < top - 1e-12]
        if rest:
            share, rules = max(rest, key=lambda pair: pair[0])
            found.runner_up[k] = (share, "; ".join(rules.differences(found.best[k][0])))
    return found


def _of_other_activations(
    dots: Dots, sizes: dict[str, int], returned: tuple[str, ...], path: Contract | None
) -> list[tuple[float, Contract]]:
    """Return combinations with another activation than silu, and what they predict of a layer with few large gates."""
    args = sparse_layer(dots, sizes, mild=True)
    every = [
        replace(rules, activation=Activation.parse(name))
        for rules in combinations_of(returned, path)
        if path is not None or "rtz" not in (rules.weight_rounding, rules.store_rounding)
        for name in ACTIVATIONS[1:]
    ]
    return shares_of(dots.calls.run(args), args, every, dots, Formed(args, dots.dtype))


def _in_any_order(
    got: dict[str, torch.Tensor],
    args: dict[str, Any],
    dots: Dots,
    formed: Formed,
    scored: list[tuple[float, Contract]],
) -> list[tuple[float, Contract]]:
    """Return combinations whose slots are added in D in no order: they explain the other stages, and runs differ."""
    again = dots.calls.run(args)
    if all(torch.equal(again[stage], value) for stage, value in got.items()):
        again = dots.calls.run(args)
    if all(torch.equal(again[stage], value) for stage, value in got.items()):
        return []
    free: dict[str, Any] = {"topk_sum": "dtype", "slot_order": "any", "deterministic": False, "sum_schedule": None}
    every = dict.fromkeys(replace(rules, **free) for _, rules in scored)
    return shares_of(got, args, every, dots, formed)


@lru_cache(maxsize=8)
def combinations_of(returned: tuple[str, ...], path: Contract | None, more: bool = False) -> tuple[Contract, ...]:
    """Return every combination of what is not yet known.

    Args:
        returned: the stages that the kernel returns.
        path: the weight path and store rounding if they are known, else None.
        more: those with weights on x in D, slots by experts, silu or single stages rounded in another way.
    """
    return tuple(_combined(returned, path, more))


def _combined(returned: tuple[str, ...], path: Contract | None, more: bool) -> Iterator[Contract]:
    hidden = [stage for stage in ("h", "a", "y") if stage not in returned]  # rounded, or never
    subsets = chain.from_iterable(combinations(hidden, n) for n in range(len(hidden), -1, -1))
    stores = [tuple(stage for stage in STAGES if stage in (*subset, *returned, "out")) for subset in subsets]
    paths = [path] if path is not None else [
        Contract("", weight=weight, weight_rounding=way, store_rounding=store)
        for weight, way, store in (("cast", "rne", "rne"), ("cast", "rtz", "rne"), ("exact", "rne", "rne"),
                                   ("cast", "rne", "rtz"), ("cast", "rtz", "rtz"), ("exact", "rne", "rtz"))
    ]  # fmt: skip
    enters: tuple[str, ...] = ("unpermute", "gemm2", "gemm2_dtype", "input")
    if not more:
        every = product(paths, stores, ("rounded", "fp32"), enters, ("fp32", "dtype"))
        for known, stored, silu, weight, total in every:
            yield replace(known, stores=stored, silu=silu, router_weight=weight, topk_sum=total)
        return
    enters, orders = (*enters, "input_dtype"), (("fp32", "slots"), ("dtype", "slots"), ("dtype", "experts"))
    for known, stored, silu, weight, (total, order) in product(paths, stores, ("rounded", "fp32"), enters, orders):
        plain = replace(known, stores=stored, silu=silu, router_weight=weight, topk_sum=total, slot_order=order)
        yield plain
        if weight == "input_dtype" or order == "experts":
            continue
        for ways in product(("rne", "rtz"), repeat=len(stored)):
            if len(set(ways)) > 1:
                of_stages = "+".join(f"{stage}:{way}" for stage, way in zip(stored, ways, strict=True))
                yield replace(plain, store_rounding=of_stages)
        if silu == "rounded":
            yield replace(plain, silu="rtz" if known.store_rounding == "rne" else "rne")


def activated(gate: torch.Tensor, up: torch.Tensor | None, rules: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Return the activation of fp64 values as a kernel's fp32 has it, each step rounded correctly."""
    how, way = rules.activation, rules.silu_rounding(dtype)
    silu = how.capped(how.of_gate(how.limited(gate)).float().double())
    if up is None:
        return silu
    silu = silu if way is None else round_in_fp64(silu, dtype, way)
    return (silu * how.of_up(up).float().double()).float().double()


def sparse_layer(dots: Dots, sizes: dict[str, int], mild: bool = False) -> dict[str, Any]:
    """Return arguments of moe_w4a16 with one value a row of x and one a row of a.

    Args:
        sizes: by dimension letter.
        mild: no gate is so negative that 1 + erf or 1 + tanh cancels, and where up is 0 the gate is, too, so that a row
            has one value of a although an activation adds 1 to up.
    """
    T, E, k, H, I, G = (sizes[letter] for letter in ("T", "E", "k", "H", "I", "G"))
    stream, D = Stream(k, "infer.layer"), dots.dtype
    x = torch.zeros(T, H, dtype=D)
    column = torch.from_numpy(stream.below((T,), H))
    x[torch.arange(T), column] = (1 + torch.from_numpy(stream.below((T,), 8)).double() / 8).to(D)
    nonzero = lambda shape: torch.from_numpy(stream.below(shape, 15)).float().sub_(7.5).mul_(1).round_()
    one_a_row = torch.arange(H) % I == torch.arange(I)[:, None]
    q13 = nonzero((E, 2 * I if dots.gated else I, H))
    sparse = q13[:, -I:]  # up rows, or all there are
    sparse *= one_a_row
    sparse += (sparse == 0) * one_a_row
    if mild:
        q13[:, :I].clamp_(min=-1).mul_(sparse != 0)
    scale = lambda shape, size: ((1 + torch.from_numpy(stream.below(shape, 1 << 10)).double() / 1024) * size).to(D)
    w13 = dots.pack(q13, scale((*q13.shape[:2], H // G), 0.5))
    w2 = dots.pack(nonzero((E, H, I)), scale((E, H, I // G), 0.25))
    weights = (0.25 + torch.from_numpy(stream.below((T, k), 1 << 24)).double() * 2.0**-25).float()
    ids = torch.stack([torch.from_numpy(stream.permutation(E)[:k].copy()) for _ in range(T)]).int()
    return {"x": x, "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids}


class Formed:
    """The two weights of a layer as each weight path forms them, and stages that contracts share, fp64, made once."""

    def __init__(self, args: dict[str, Any], dtype: torch.dtype) -> None:
        self.exact = {name: args[name].dequantize(torch.float64) for name in ("w13", "w2")}
        self.dtype = dtype
        self.made: dict[tuple[str, str, str], torch.Tensor] = {}
        self.stages: dict[tuple[Any, ...], torch.Tensor] = {}

    def once(self, key: tuple[Any, ...], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the stage that a key tells from others, computed where it is asked for first."""
        if key not in self.stages:
            self.stages[key] = compute()
        return self.stages[key]

    def __call__(self, name: str, rules: Contract) -> torch.Tensor:
        key = (name, rules.weight, rules.weight_rounding)
        if rules.weight != "cast":
            return self.exact[name]
        if key not in self.made:
            self.made[key] = round_in_fp64(self.exact[name], self.dtype, rules.weight_rounding)
        return self.made[key]


def emulate(args: dict[str, Any], rules: Contract, dots: Dots, weights: Formed) -> dict[str, torch.Tensor]:
    """Return the stages of a sparse layer under a contract, fp64 values, each product rounded where a kernel must."""
    stages = until_sum(args, rules, dots, weights)
    return {**stages, **summed_slots(stages["y"], args, rules, dots.dtype)}


def until_sum(args: dict[str, Any], rules: Contract, dots: Dots, weights: Formed) -> dict[str, torch.Tensor]:
    """Return the stages of a sparse layer before its sum over slots; contracts that differ in what comes later share
    the tensor."""
    x, ids, D = args["x"], args["topk_ids"].long(), dots.dtype
    T, k = ids.shape
    expert, token = ids.flatten(), torch.arange(T * k) // k
    router = args["topk_weights"].double().reshape(-1, 1)
    to_d = lambda value, stage: round_in_fp64(value, D, rules.rounding(stage, D))
    keep = lambda value, stage: to_d(value, stage) if stage in rules.stores else value
    summed = (lambda value: round_in_fp64(value, D)) if rules.adder.in_dtype else fp32

    def first() -> torch.Tensor:
        column = x.abs().argmax(1)[token]
        value = x.double().gather(1, x.abs().argmax(1, keepdim=True))[token]
        if rules.router_weight == "input_dtype":
            value = round_in_fp64(value * round_in_fp64(router, D), D)
        h = summed(value * weights("w13", rules)[expert, :, column])
        return keep(fp32(h * router) if rules.router_weight == "input" else h, "h")

    def second() -> torch.Tensor:
        at = a.abs().argmax(1, keepdim=True)
        y = summed(a.gather(1, at) * weights("w2", rules)[expert, :, at[:, 0]])
        if rules.router_weight == "gemm2_dtype":
            return to_d(to_d(y, "y") * round_in_fp64(router, D), "y")
        return keep(fp32(y * router) if rules.router_weight == "gemm2" else y, "y")

    stores = {stage: rules.rounding(stage, D) if stage in rules.stores else "" for stage in ("h", "a", "y")}
    enters = rules.router_weight if rules.router_weight.startswith("input") else ""
    until_h = rules.weight, rules.weight_rounding, rules.adder.in_dtype, enters, stores["h"]
    until_a = *until_h, rules.activation, rules.silu_rounding(D), stores["a"]
    h = weights.once(until_h, first)
    gate, up = h.chunk(2, 1) if dots.gated else (h, None)
    a = weights.once(until_a, lambda: keep(activated(gate, up, rules, D), "a"))
    y = weights.once((*until_a, rules.router_weight, rules.rounding("y", D), stores["y"]), second)
    return {"h": h, "a": a, "y": y}


def summed_slots(y: torch.Tensor, args: dict[str, Any], rules: Contract, D: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what a layer stores of its rows [..., T*k, H]: "out" [..., T, H], and the "highest" if order is free."""
    ids, router = args["topk_ids"].long(), args["topk_weights"].double().reshape(-1, 1)
    to_d = lambda value: round_in_fp64(value, D, rules.rounding("out", D))
    weighed = rules.router_weight == "unpermute"
    terms = (fp32(y * router) if weighed else y).unflatten(-2, ids.shape)
    if rules.slot_order == "experts":
        terms = terms.gather(-2, ids.argsort(dim=1, stable=True)[:, :, None].expand(terms.shape))
    if rules.slot_order == "any":
        slots = to_d(terms) if weighed else terms
        band = join_band([exactly(slot) for slot in slots.unbind(-2)], "any", D, rules.rounding("out", D))
        return {"out": to_d(band.lo), "highest": to_d(band.hi)}
    total = torch.zeros_like(terms[..., 0, :])
    for term in terms.unbind(-2):
        if rules.topk_sum == "dtype":
            total = to_d(fp32(total + (to_d(term) if weighed else term)))
        else:
            total = fp32(total + term)
    return {"out": to_d(total)}


def fp32(value: torch.Tensor) -> torch.Tensor:
    """Round fp64 values to fp32, as fp64."""
    return value.float().double()


def shares_of(
    got: dict[str, torch.Tensor], args: dict[str, Any], every: Iterable[Contract], dots: Dots, formed: Formed
) -> list[tuple[float, Contract]]:
    """Return the contracts, each with the share that it explains (`share_of`).

    Those that add slots alike do so together: there are thousands of them, and a sum is a dozen small operations.
    """
    least, chosen = [], list(every)
    of_stage: dict[int, float] = {}  # by the id of a tensor that `formed` keeps
    alike: dict[tuple[Any, ...], dict[int, tuple[torch.Tensor, list[int]]]] = {}
    for number, rules in enumerate(chosen):
        stages = until_sum(args, rules, dots, formed)
        before = {stage: stages[stage] for stage in got if stage != "out"}
        for stage, value in before.items():
            if id(value) not in of_stage:
                [of_stage[id(value)]] = _shares(stage, got[stage], value[None])
        least.append(min((of_stage[id(value)] for value in before.values()), default=1.0))
        way = rules.router_weight == "unpermute", rules.slot_order, rules.topk_sum, rules.rounding("out", dots.dtype)
        y = stages["y"]
        alike.setdefault(way, {}).setdefault(id(y), (y, []))[1].append(number)
    for of_way in alike.values():
        rows = list(of_way.values())
        at_once = max(1, SUMMED_AT_ONCE // rows[0][0].numel())
        for some in (rows[at : at + at_once] for at in range(0, len(rows), at_once)):
            sums = summed_slots(torch.stack([y for y, _ in some]), args, chosen[some[0][1][0]], dots.dtype)
            shares = _shares("out", got["out"], sums["out"], sums.get("highest"))
            for share, (_, numbers) in zip(shares, some, strict=True):
                for number in numbers:
                    least[number] = min(least[number], share)
    return list(zip(least, chosen, strict=True))


def share_of(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the least share, over the stages that a kernel returned, of nonzero elements that are as expected."""
    return min(_shares(stage, value, expected[stage][None])[0] for stage, value in got.items())


def _shares(stage: str, value: torch.Tensor, want: torch.Tensor, high: torch.Tensor | None = None) -> list[float]:
    """Return for each of n predictions [n, ...], or ranges, the share of its nonzero elements that a value fits."""
    high = want if high is None else high
    if value.numel() != want[0].numel():
        raise ProbeError(f"stage {stage} has shape {list(value.shape)}, must be {list(want.shape[1:])}")
    stored = value.double().reshape(want.shape[1:])
    asked = (want != 0) | (high != 0)
    same = (want <= stored) & (stored <= high) & asked
    counts = zip(same.flatten(1).sum(1).tolist(), asked.flatten(1).sum(1).tolist(), strict=True)
    return [equal / all_of if all_of else 0.0 for equal, all_of in counts]


def padded_weight_shares(dots: Dots) -> dict[str, float]:
    """Return the share of padded_gemm's outputs, with router weights, that each way of multiplying them in explains."""
    case, K, N = dots.site.case, dots.K, dots.N
    stream, P = Stream(3, "infer.router"), min(dots.limit, 64)
    q = torch.from_numpy(stream.below((N, K), 7)).float() + 1
    x = torch.zeros(P, K, dtype=dots.dtype)
    columns = torch.from_numpy(stream.below((P,), K))
    x[torch.arange(P), columns] = (1 + torch.from_numpy(stream.below((P,), 8)).double() / 8).to(dots.dtype)
    router = (0.25 + torch.from_numpy(stream.below((P, 1), 1 << 24)).double() * 2.0**-25).float()
    ids, experts, end = moe_align_block_size(torch.zeros(P, 1, dtype=torch.int32), case.B, 1)
    got = dots.calls.run(
        {"x": x, "w": dots.pack(q[None], torch.ones(1, N, K // dots.G)), "sorted_token_ids": ids,
         "expert_ids": experts, "num_tokens_post_padded": end, "topk_weights": router, "top_k": 1}
    )["out"].double()  # fmt: skip
    exact = x.double().gather(1, columns[:, None]) * q.double()[:, columns].T
    shares = {}
    for store in ("rne", "rtz"):
        to_d = lambda value, store=store: round_in_fp64(value, dots.dtype, store)
        late = to_d(to_d(exact) * round_in_fp64(router.double(), dots.dtype))
        early = to_d((exact * router.double()).float().double())
        shares[f"gemm2,{store}"] = float((early == got).double().mean())
        shares[f"gemm2_dtype,{store}"] = float((late == got).double().mean())
    return shares
