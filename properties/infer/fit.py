"""Fitting a schedule to outputs: every candidate predicts, bit for bit, sums that are nothing but rounding error.

x and q are random, and every term has a partner elsewhere that is its negative: what a kernel stores is what its order,
its instruction and its roundings left behind, and a candidate is right if it predicts all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch

from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import INSTRUCTIONS
from moeracle.ref.bounds.band import exactly
from moeracle.ref.bounds.dot import dot_band, dot_weights
from moeracle.ref.contracts import accumulators
from moeracle.ref.contracts.contract import Contract

from ..common.generator import FORMATS, Stream, round_bits, to_tensor
from .drive import Dots

ROWS = 32
FIRST_SUMS = 256


@dataclass(frozen=True)
class Noise:
    """One question of pure rounding error, and the kernel's answer: x [P, K], q [N, K], s [N, K/G], got [P, N]."""

    dots: Dots
    x: torch.Tensor
    q: torch.Tensor
    s: torch.Tensor
    got: torch.Tensor

    def predict(self, rules: Contract) -> list[torch.Tensor]:
        """Return what a kernel of a contract with a schedule may store: each [P, N]."""
        return predict(self.dots, self.x, self.q, self.s, rules)

    def share(self, rules: Contract) -> float:
        """Return the share of elements that the contract predicts."""
        return max(float((value == self.got).double().mean()) for value in self.predict(rules))


def predict(dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract) -> list[torch.Tensor]:
    """Return what a kernel of a contract with a schedule may store for these operands."""
    return dots.stored(dots.record.predicted_sums(dots, x, q, s, rules), rules.store_rounding)


def int4_sums(dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract) -> torch.Tensor:
    """Return the sums [P, N] that a schedule predicts for an int4 weight, float64."""
    weights = dot_weights(dots.pack(q, s), rules, dots.dtype)
    return dot_band(exactly(x), weights, rules, dots.dtype).lo


def ask_noise(dots: Dots, seed: int, *, spread: int = 0, times: int = 0) -> Noise:
    """Ask a kernel for sums of nothing but rounding error.

    Args:
        dots: its GEMM.
        seed: of the draw.
        spread: activations are scaled by powers of two up to this, so that aligning cuts something.
        times: run that many times more, to see whether the bits stay (calls.repeats).
    """
    N, K, name = dots.N, dots.K, "bf16" if dots.dtype == torch.bfloat16 else "fp16"
    stream = Stream(seed, "infer.noise")
    order = torch.from_numpy(stream.permutation(K).copy())
    first, second = order[: K // 2], order[K // 2 : K // 2 * 2]
    half = stream.normal((ROWS, K // 2))
    if spread:
        half *= (2.0 ** -stream.below((ROWS, K // 2), spread)).astype("float32")
    values = to_tensor(round_bits(half, FORMATS[name]), FORMATS[name])
    x, q = torch.zeros(ROWS, K, dtype=dots.dtype), torch.zeros(N, K)
    codes = torch.from_numpy(stream.below((N, K // 2), 7)).float() + 1
    codes *= torch.from_numpy(stream.below((N, K // 2), 2)).float() * 2 - 1
    x[:, first], x[:, second] = dots.fitting(values), dots.fitting(values)
    q[:, first], q[:, second] = codes, -codes
    if dots.gaps:  # and its partner, so that all still cancels
        at = order.tolist().index(dots.gaps[0])
        x[:, [dots.gaps[0], int(order[(at + K // 2) % K])]] = 0
    scale = torch.from_numpy(1 + stream.below((N, 1), 128) / 128.0).to(dots.dtype)
    s = scale.expand(N, K // dots.G).contiguous()
    return Noise(dots, x, q, s, dots(x, q, s, times=times))


def bias_is_fused(dots: Dots) -> bool:
    """Say whether int8_lm_head's scale and bias enter in one operation: 3 * (1 + 2^-23) - 3 is 3 * 2^-23 then.

    The product, rounded first, leaves 2^-21.
    """
    other = dots.at(dots.site)
    other.bias = torch.full((dots.N,), -3.0, dtype=dots.dtype)
    x = torch.zeros(1, dots.K, dtype=dots.dtype)
    x[0, 0] = 3
    got = other(x, None, torch.full((dots.N, dots.K // dots.G), 1 + 2.0**-23))
    return bool((got.double() == 3 * 2.0**-23).all())


def candidates(structures: Iterable[Schedule], path: Contract, step: int, one_scale: bool = False) -> list[Contract]:
    """Return the contracts that these structures may mean, each with every instruction that adds `step` at once.

    Args:
        structures: schedules whose trees fit, with any one instruction.
        path: weight path and store rounding.
        step: products a fused step adds; 1 for fp32 arithmetic.
        one_scale: each row has one scale.
    """
    found = []
    late = path.weight in ("post", "hoisted")
    for structure in structures:
        for name, how in INSTRUCTIONS.items():
            if (how.core is None) != (step == 1) or (step > 1 and how.step < step):
                continue
            products = step if step > 1 and how.step > step else 0  # zeros in the others' places
            for variant in _scaled(structure, one_scale) if late else (structure,):
                try:
                    schedule = replace(variant, instruction=name, products=products)
                    adder = accumulators.of_instruction(name)
                    found.append(replace(path, schedule=schedule, accumulator=adder))
                except ValueError:
                    continue
    return found


def _scaled(structure: Schedule, one: bool) -> list[Schedule]:
    """Return how a tile's scale may enter: tiles that are scaled start at +0 whether or not they are chained.

    one: there is one scale a row, which may enter at the end.
    """
    last = [replace(structure, scale_last=True)] if one else []
    if structure.lanes or structure.held or structure.deal > 1:
        return [structure, replace(structure, scale_fused=True), *last]
    if not structure.tile:
        return last
    if structure.levels and structure.combine == "sequential":
        return [structure, replace(structure, combine="chained", scale_fused=True), *last]
    if structure.levels or structure.combine != "sequential":
        return [structure, *last]
    chained = replace(structure, combine="chained")
    return [chained, replace(chained, scale_fused=True), *last]


def fit(noises: list[Noise], contracts: list[Contract]) -> list[tuple[float, Contract]]:
    """Return each contract with the least share of any question that it predicts, the best first.

    A contract that misses an answer's first rows is not asked about the rest; nor is one that differs only in its order
    from one that predicted all of it, since no two orders leave the same rounding errors in so many first sums.
    """
    known: dict[object, float] = {}
    whole: set[object] = set()
    scored = []
    for rules in contracts:
        instruction, order = _arithmetic(rules)
        key = (instruction, order)
        if key not in known:
            late = rules.weight in ("post", "hoisted")  # how a scale enters may show in few sums
            known[key] = _least_share(noises, rules, key if late else instruction, whole)
        scored.append((known[key], rules))
    return sorted(scored, key=lambda pair: -pair[0])


def _arithmetic(rules: Contract) -> tuple[object, object]:
    """Return what decides the bits of a contract's sums, besides their order, and the order.

    Instructions that do the same have one name each. Products of two values of D are exact, fused or not.
    """
    schedule = rules.schedule
    assert schedule is not None
    how, core = schedule.how, schedule.how.core
    adder = core and replace(core, name="", evidence="assumed", edges="assumed")
    step = schedule.step if schedule.order == "reversed" else schedule.products or how.step
    fused = how.fused and rules.weight == "exact"
    order = tuple(getattr(schedule, f.name) for f in fields(schedule) if f.name not in ("instruction", "products"))
    path = (rules.weight, rules.weight_rounding, rules.store_rounding, rules.zero_offset)
    return (adder, step, fused, how.rounding, how.narrow, path), order


def _least_share(noises: list[Noise], rules: Contract, alike: object, whole: set[object]) -> float:
    """Return the least share; `whole` holds which questions were predicted whole by a contract that is `alike`."""
    share = 1.0
    for at, noise in enumerate(noises):
        rows = -(-FIRST_SUMS // noise.got.shape[1])
        few = replace(noise, x=noise.x[:rows], got=noise.got[:rows])
        try:
            share = min(share, few.share(rules))
            if share == 1.0 and rows < len(noise.x) and (at, alike) not in whole:
                share = min(share, noise.share(rules))
        except ValueError:  # tiles that do not divide this question's groups, or do not cover its K
            return 0.0
        if share < 1.0:
            break
        whole.add((at, alike))
    return share
