"""Reading answers to dot_probes: facts about an instruction, and which model predicts every bit of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from moeracle.ref.bitmodels.fp32_trees import multiply_add
from moeracle.ref.bitmodels.rdna import FAMILY, frame_dot
from moeracle.ref.bitmodels.tensor_core import INSTRUCTIONS, fused_dot

from .dot_probes import BELOW_2, LARGE, order_triples, questions, window_rows
from .reveal import NotRevealedError, Probe, reveal
from .tree import Node

Answers = dict[str, torch.Tensor]
Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
JUDGING = ("samesign", "mixedsign", "normal", "wide", "window", "rounding", "exponent")


def facts_of(dtype: str, K: int, answers: Answers) -> dict[str, Any]:
    """Return what the answers say without any model.

    Returns:
        order (in words), terms_a_step, bits_product, bits_accumulator, align, rounding, zeros, what became of tiny
        operands, products and accumulators, samesign_exact and mixedsign_exact (shares).
    """
    asked = questions(dtype, K)
    facts: dict[str, Any] = {}
    root = _tree(K, dtype, answers["order"])
    facts["order"] = "not one tree of sums" if root is None else _order_words(root, K)
    facts["terms_a_step"] = 0 if root is None else max(len(node.kids) for node in root.inner())
    facts |= _window_facts(dtype, K, answers["window"], facts["terms_a_step"] > 2)
    facts["align"] = _align(dtype, K, answers["exponent"], facts["bits_product"])
    facts["rounding"] = _rounding(answers["rounding"], dtype)
    signs = ["-0" if bool(torch.signbit(x)) else "+0" if float(x) == 0 else f"{float(x):g}" for x in answers["zeros"]]
    facts["zeros"] = ", ".join(signs)
    tiny = answers["tiny"].double()
    a, w, acc = asked["tiny"]
    exact = (a.double() * w.double()).sum(1) + acc.double()
    twice = [name for name in ("subnormal_operand", "tiny_product", "subnormal_accumulator") for _ in range(2)]
    names = [*twice, "smallest_accumulator", "cancelling_subnormals"]
    for name, got, want in zip(names, tiny.tolist(), exact.float().double().tolist(), strict=True):
        kept = "kept" if got == want else "flushed" if got == 0 else f"{got:g} for {want:g}"
        facts[name] = kept if facts.get(name, kept) == kept else f"{facts[name]}, negative: {kept}"
    for name in ("samesign", "mixedsign"):
        a, w, acc = asked[name]
        right = (a.double() * w.double()).sum(1) + acc.double()
        facts[f"{name}_exact"] = round(float((right == answers[name].double()).double().mean()), 6)
    return facts


def models(K: int) -> dict[str, Model]:
    """Return every model that can predict an instruction of K products: matrix units, fp32 chains, gfx11's family."""
    found: dict[str, Model] = {}
    for name, how in INSTRUCTIONS.items():
        if how.narrow:  # its sum is of D, these questions' are of fp32
            continue
        if how.core is None:
            for order in ("sequential", "reversed"):
                found[f"{name} {order}"] = _fp32(order, how.fused, how.rounding)
        else:
            for step in sorted({min(how.step, K), min(how.step, K) // 2 or 1}):
                found.setdefault(f"{how.core.name}, {step} products a step", _unit(how.core, step))
    if K % 2 == 0:
        for adder in FAMILY:
            found[adder.name] = functools.partial(frame_dot, adder=adder)
    return found


def fits(dtype: str, K: int, answers: Answers) -> list[tuple[str, float, dict[str, float]]]:
    """Return (model, share of all judged answers it predicts bit for bit, share by group), the best first."""
    asked = questions(dtype, K)
    results = []
    for name, model in models(K).items():
        by_group, right, total = {}, 0, 0
        for group in JUDGING:
            same = model(*asked[group]).view(torch.int32) == answers[group].view(torch.int32)
            by_group[group] = round(float(same.double().mean()), 6)
            right, total = right + int(same.sum()), total + same.numel()
        results.append((name, right / total, by_group))
    return sorted(results, key=lambda r: -r[1])


def _unit(core: Any, step: int) -> Model:
    def predict(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
        parts = []
        for at in range(0, len(a), 64):
            here = slice(at, at + 64)
            n = len(a[here])
            whole = fused_dot(a[here], w[here], core, acc[here, None].expand(n, n).contiguous(), step=step)
            parts.append(whole.diagonal())
        return torch.cat(parts)

    return predict


def _fp32(order: str, fused: bool, rounding: str) -> Model:
    def predict(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
        total = acc
        for k in range(a.shape[1]) if order == "sequential" else range(a.shape[1] - 1, -1, -1):
            total = multiply_add(a[:, k].float(), w[:, k].float(), total, fused, rounding)
        return total

    return predict


def _tree(K: int, dtype: str, answers: torch.Tensor) -> Node | None:
    """Build the tree over K products and the accumulator (leaf K) from the exhaustive table of triples."""
    unit = 2.0 ** LARGE[dtype][1]
    table: dict[tuple[int, int, int], float] = {}
    for (i, j, m), value in zip(order_triples(K), (answers.double() / unit).tolist(), strict=True):
        table[i, j, m] = value

    def count(probes: Sequence[Probe]) -> list[int]:
        counts = []
        for i, j, units in probes:
            left = 0
            for m in units:
                seen = {table[i, j, m], table[j, i, m]}
                if not seen & {0.0, 1.0}:
                    raise NotRevealedError(f"terms {i} and {j} as ±M beside one unit in {m} gave {sorted(seen)}")
                left += 1.0 in seen and 0.0 not in seen
            counts.append(left)
        return counts

    try:
        return reveal(count, range(K + 1), K + 1)
    except NotRevealedError:
        return None


def _order_words(root: Node, K: int) -> str:
    """Say in which steps the accumulator and the products meet."""
    node, steps = root, []
    while node.kids:
        inner = [kid for kid in node.kids if kid.kids]
        own = sorted(kid.leaf for kid in node.kids if not kid.kids)
        steps.append("+".join("acc" if leaf == K else f"p{leaf}" for leaf in own) or "sums")
        if len(inner) != 1:
            break
        node = inner[0]
    steps.reverse()
    return " then ".join(steps if len(steps) <= 6 else [*steps[:5], "…"])


def _window_facts(dtype: str, K: int, answers: torch.Tensor, fused: bool) -> dict[str, Any]:
    """Return up to which e a unit is kept beside 2^e: as a product of the same step, and as the accumulator.

    Where steps have two terms, the least of all placements says what a partial sum holds.
    """
    unit = 2.0 ** LARGE[dtype][1]
    kept: dict[tuple[int, int], int] = {}
    for (i, j, _, e, b), value in zip(window_rows(dtype, K), (answers.double() / unit).tolist(), strict=True):
        if b == 1.0:
            kept[i, j] = max(kept.get((i, j), 0), e) if value == 1.0 else kept.get((i, j), 0)
    if not fused:
        return {"bits_product": min(kept.values()), "bits_accumulator": min(kept.values())}
    return {"bits_product": kept[0, 1], "bits_accumulator": kept[K, 0]}


def _align(dtype: str, K: int, answers: torch.Tensor, bits: int) -> str:
    unit = 2.0 ** LARGE[dtype][1]
    left = enumerate((answers.double() / unit).tolist(), 16)
    kept = [e for e, value in left if value == (2.25 - BELOW_2) * 2.0**e + 1]
    if not kept or bits < 24:
        return "not asked: steps of two terms"
    return {bits: "operand exponents", bits - 1: "the product's own exponent"}.get(
        max(kept), f"kept up to 2.25 * 2^{max(kept)}"
    )


def _rounding(answers: torch.Tensor, dtype: str) -> str:
    unit = 2.0 ** LARGE[dtype][1] if dtype == "fp16" else 1.0
    up, down = (answers[:4].double() / unit - 2.0**24).tolist(), (answers[8:12].double() / unit + 2.0**24).tolist()
    if up == [0, 0, 2, 2] and down == [0, 0, -2, -2]:
        return "to nearest, ties to even"
    if up == [0, 0, 0, 2] and down == [0, 0, 0, -2]:
        return "toward zero"
    shown = [", ".join(f"{x:g}" for x in side) for side in (up, down)]
    return f"2^24 + 0.5, 1, 1.5, 2.5 became 2^24 + {shown[0]}; with all signs turned -2^24 + {shown[1]}"
