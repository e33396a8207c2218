"""The fields that a layer or padded_gemm's router weights show, put into words and rules."""

from __future__ import annotations

from dataclasses import replace

from moeracle.ref.contracts.contract import Contract

from .drive import Dots
from .found import UNDECIDED, Inference
from .layer import CLEAR, LayerFound, layer_found, padded_weight_shares
from .report import note, others
from .slots import layer_sum

PREFERRED = ("unpermute", "gemm2", "gemm2_dtype", "input", "input_dtype")


def find_layer(dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
    """Return the rules with silu, stores, router weight and top-k sum.

    Args:
        rules: with the GEMM's fields; the weight path is taken from the layer if `opaque`.
        opaque: the kernel returns no stage but its last.
    """
    found = layer_found(dots, None if opaque else rules)
    if not found.best:
        result.notes.append("layer: the kernel takes neither k = 3 nor k = 8; silu, stores and sums were not asked")
        return rules
    poor = [f"k = {k}: {share:.2%}" for k, share in found.shares.items() if share < CLEAR]
    if poor:
        result.why_not = result.why_not or f"layer: no combination of roundings predicts its stages ({', '.join(poor)})"
    first = _agreed(found)
    if opaque:
        result.notes.append("no stage shows a GEMM's sums as they are: their order and accumulator were not asked")
        rules = replace(rules, weight=first.weight, weight_rounding=first.weight_rounding,
                        store_rounding=first.store_rounding)  # fmt: skip
        note(
            result, "weight", rules.weight, "the layer's outputs", same=["post", "hoisted"] * (rules.weight == "exact")
        )
        note(result, "weight_rounding", rules.weight_rounding, "the layer's outputs")
        note(result, "store_rounding", rules.store_rounding, "the layer's outputs")
        note(result, "accumulator", rules.accumulator, "not asked: no stage shows a GEMM's sums", UNDECIDED)
    sums = {k: best[0].topk_sum for k, best in found.best.items()}
    total, status = _topk_sum(sums)
    rules = replace(rules, stores=first.stores, silu=first.silu, activation=first.activation, topk_sum=total,
                    router_weight=first.router_weight, store_rounding=first.store_rounding)  # fmt: skip
    orders = [best[0].slot_order for best in found.best.values() if best[0].topk_sum == "dtype"]
    order = "any" if "any" in orders else next(iter(orders), "slots")  # three slots may fall into their order by chance
    if order == "any":
        note(result, "deterministic", False, "runs of a layer differ in the order of slots")
    if order != "slots":
        note(result, "slot_order", order, f"sums in D, slot after slot: {order}")
        rules = replace(rules, slot_order=order, deterministic=rules.deterministic and order != "any")
    _tell(result, found, rules, first, status)
    return layer_sum(dots, rules, result)


def _agreed(found: LayerFound) -> Contract:
    """Return the combination, apart from the top-k sum, that is best for every k, the plainest of those."""
    per_k = [[_without_sum(c) for c in best] for best in found.best.values()]
    common = [c for c in per_k[0] if all(c in others for others in per_k[1:])] or per_k[0]
    return min(common, key=lambda c: (-len(c.stores), PREFERRED.index(c.router_weight)))


def _without_sum(rules: Contract) -> Contract:
    """Return a combination with the plainest top-k sum, so that those of several k can be compared."""
    return replace(rules, topk_sum="fp32", slot_order="slots", deterministic=True)


def _topk_sum(sums: dict[int, str]) -> tuple[str, str]:
    """Return the contract's topk_sum for what k = 3 and k = 8 showed, and what is open."""
    few, many = sums.get(3), sums.get(8)
    if few is None or many is None:
        known = few or many or "fp32"
        return known, f"only k = {next(iter(sums))} could be asked"
    return ("vllm" if (few, many) == ("dtype", "fp32") else many), ""


def _tell(result: Inference, found: LayerFound, rules: Contract, first: Contract, open_: str) -> None:
    shares = ", ".join(f"k = {k}: {share:.2%} of elements" for k, share in found.shares.items())
    asked = f"sparse layers predicted ({shares})"
    per_k = [[_without_sum(c) for c in best] for best in found.best.values()]
    common = [c for c in per_k[0] if all(c in others for others in per_k[1:])] or [first]
    for name in ("silu", "activation", "router_weight"):
        note(result, name, getattr(rules, name), asked, same=others(common, first, name))
    returned = "the stages that the kernel returns" if len(found.returned) > 1 else asked
    note(result, "stores", rules.stores, returned, same=others(common, first, "stores"))
    sums = ", ".join(f"k = {k}: {best[0].topk_sum}" for k, best in found.best.items())
    note(result, "topk_sum", rules.topk_sum, f"{sums}{'; ' + open_ if open_ else ''}")
    for k, (share, change) in found.runner_up.items():
        result.notes.append(f"layer, k = {k}: the next best combination ({change}) predicts {share:.2%}")


def find_router_weight(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with how padded_gemm multiplies router weights in."""
    shares = padded_weight_shares(dots)
    best = max(shares, key=lambda name: shares[name])
    said = ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if name.endswith(rules.store_rounding))
    if shares[best] < CLEAR:
        result.why_not = result.why_not or f"router weight: no rounding predicts the outputs ({said})"
    value = best.partition(",")[0]
    note(result, "router_weight", value, f"sparse rows times router weights: {said}")
    return replace(rules, router_weight=value)
