"""Contracts: every rounding that a legal kernel may make, declared and named.

A kernel is judged under one contract. What the contract does not allow is illegal, however small; what it allows is
legal, however large. The presets are the kernels in public use (docs/formats.md section 4).
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..activation import SILU, Activation
from ..bitmodels.fp32_trees import ORDERS
from ..bitmodels.schedule import Schedule
from ..errors import require, unknown
from ..weights.stored import V1_READINGS
from .accumulators import ACCUMULATORS, Accumulator
from .parts import Parts
from .presets import KNOWN
from .ranks import Ranks

__all__ = ["JUDGED", "PRESETS", "SCHEDULES", "STAGES", "Contract", "contract", "with_schedules"]

# A contract's: of every dot product, of a layer's second GEMM, of a shared expert's x·g, of the top-k sum.
SCHEDULES = ("schedule", "gemm2_schedule", "gate_schedule", "sum_schedule")
STAGES = ("h", "a", "y", "out")
JUDGED = ("h", "a", "y", "partial", "out")  # with each rank's part of the top-k sum, where a contract has ranks
CHOICES: dict[str, Collection[str]] = {
    "weight": ("cast", "exact", "post", "hoisted"),
    "weight_rounding": ("rne", "rtz"),
    "accumulator": ACCUMULATORS,
    "silu": ("rounded", "fp32", "rne", "rtz"),
    "router_weight": ("unpermute", "gemm2", "gemm2_dtype", "input", "input_dtype"),
    "topk_sum": ("fp32", "dtype", "vllm"),
    "gate": ("fused", "unfused", "fp32"),
    "one_group": ("as_weight", "after_store", "after_sum"),
    "bias": ("sum", "stored", "contracted"),
    "slot_order": ("slots", "experts", "any"),
    "v1_zeros": V1_READINGS,
}
ROUNDINGS = ("rne", "rtz", "rtz_bf16")  # the last truncates bf16 and rounds fp16 to nearest, as AVX2 code does
MOST_DEPTH = 1 << 62
YES_OR_NO = ("ftz", "deterministic", "scale_cast", "batch_invariant")


@functools.lru_cache(maxsize=256)
def _roundings(text: str) -> dict[str, str]:
    """Return the rounding of each stage that a store_rounding names, "" being every stage.

    Raises:
        ValueError: one line naming what is wrong.
    """
    found: dict[str, str] = {}
    for part in text.split("+"):
        stage, colon, way = part.rpartition(":")
        if way not in ROUNDINGS:
            raise unknown("store_rounding", way, ROUNDINGS)
        if colon and stage not in STAGES:
            raise unknown("store_rounding's stage", stage, STAGES)
        require(stage not in found, f"store_rounding: got {stage or way} twice, must be said once")
        found[stage] = way
    must = f"must be one rounding, or STAGE:ROUNDING of some stages: {', '.join(STAGES)}"
    require("" not in found or len(found) == 1, f"store_rounding: got {text!r}, {must}")
    return found


def _check_schedule(contract: Contract) -> None:
    """Raise ValueError in one line if the contract's other fields leave more than its schedule can say."""
    for field in SCHEDULES:
        schedule = getattr(contract, field)
        if schedule is None:
            continue
        require(not contract.ftz, f"{field}: got one with ftz, must be None (what may be flushed has two values)")
        if field == "sum_schedule":
            plain = schedule.how.core is None and schedule.how.rounding == "rne" and schedule.order in ORDERS
            alone = plain and schedule == type(schedule)(schedule.instruction, order=schedule.order)
            require(alone, f"{field}: got {schedule}, must be fma or mul_add and an order of slots, no more")
            must = "must be None unless topk_sum is 'fp32'"
            require(contract.topk_sum == "fp32", f"{field}: got {schedule} with topk_sum {contract.topk_sum!r}, {must}")
            continue
        _check_dots(field, schedule, "cast" if field == "gate_schedule" else contract.weight, contract.adder)


def _check_orders(contract: Contract) -> None:
    """Raise ValueError in one line if fields contradict each other about an order."""
    parts, atomics = contract.parts, "must be 'any' with deterministic=false (atomics add in no order)"
    if not contract.deterministic:
        require(not contract.batch_invariant, "batch_invariant: got true, must be false with deterministic=false")
        free = parts is None or parts.join == "any"
        require(free, f"parts: got join={parts.join if parts else ''}, {atomics}")
        free = contract.sum_schedule is None or contract.slot_order != "any"
        require(free, f"sum_schedule: got {contract.sum_schedule} with slot_order 'any', must be None")
    elsewhere = parts is not None or contract.slot_order == "any"  # where the atomics are
    whole = contract.schedule is None or elsewhere or contract.deterministic
    require(whole, f"schedule: got {contract.schedule} with deterministic=false, must be None (an order is no atomics)")
    if contract.slot_order == "any":
        got = f"sum_schedule: got {contract.sum_schedule} with slot_order 'any'"
        require(contract.sum_schedule is None, f"{got}, must be None (it names an order)")
    if parts is None:
        return
    for field in ("schedule", "gemm2_schedule"):
        schedule = getattr(contract, field)
        cut = schedule is not None and schedule.split_k > 1
        require(not cut, f"{field}: got {schedule} with parts, must be of one part, without splits of its own")


def _check_dots(field: str, schedule: Schedule, weight: str, adder: Accumulator) -> None:
    modelled = not adder.in_dtype or adder.chain > 0
    require(modelled, f"{field}: got one with accumulator 'dtype', must be None (sums rounded to D have no model)")
    unit = schedule.how.core is not None or schedule.how.narrow
    cannot = f"{field}: got {schedule.instruction} with weight 'exact', must be an fp32 instruction (its"
    require(not (unit and weight == "exact"), f"{cannot} operands are of D)")
    late = schedule.scale_last
    require(
        not late or weight == "post", f"{field}: got {schedule} with weight {weight!r}, must be 'post' to be scaled"
    )
    if weight in ("post", "hoisted"):
        steps = schedule.tile or schedule.chunk or late
        require(bool(steps), f"{field}: got no tile with weight {weight!r}, must have one: its sum is what is scaled")


@dataclass(frozen=True)
class Contract:
    """The roundings of a W4A16 kernel; D is the activation dtype, everything unnamed happens in fp32.

    Args:
        name: what reports call it.
        weight: "cast" (u-z)*s rounded to D before the dot; "exact" (u-z)*s kept in fp32; "post" partial dots of u-z,
            then times s; "hoisted" as post, with the zero point subtracted as z*sum(a) after the dot.
        weight_rounding: rounding of the cast, "rne" or "rtz".
        accumulator: who adds the products, one of ACCUMULATORS (accumulators.py says of each what it may lose).
        depth: longest chain of additions an output passes through, or None for any order.
        ftz: subnormal operands and results of fp32 arithmetic may become zero.
        stores: the stages of moe_w4a16 that are rounded to D, out of h, a, y, out.
        store_rounding: rounding of every store, "rne", "rtz" or "rtz_bf16" (toward zero in bf16, to nearest in fp16);
            or that of some stages, the others to nearest: "a:rtz+out:rtz".
        silu: "rounded": D(silu(gate)), rounded as a is, then times up, rounded again; "rne", "rtz": the same with
            D(silu) so rounded; "fp32": silu(gate)*up rounded once.
        router_weight: where it enters: "unpermute" (fp32), "gemm2" (fp32, before the store), "gemm2_dtype" (rounded to
            D and multiplied in D after the store), "input" (GEMM1's epilogue, fp32), "input_dtype" (x times the weight
            rounded to D, rounded to D, before GEMM1).
        topk_sum: "fp32" (one cast at the end), "dtype" (slot by slot in D), "vllm" (in D for k = 2, 3, 4, else fp32).
        gate: the shared expert's: "fused" D(D(y) * D(sigmoid(dot))), "unfused" with D(dot) stored before its sigmoid,
            "fp32" D(y * sigmoid(dot)), y rounded before only where it is stored.
        deterministic: two runs on the same inputs give the same bits.
        zero_offset: what a magic number leaves on a hoisted code: 0, or 128 for codes read as 128 + u, or 1024 for
            those read as 1024 + u in fp16; bf16 holds no 1024 + u, and there 1024 says 128.
        schedule: instruction and order of every dot product of known operands, whose legal set is then one value;
            elsewhere, and where it is None, `accumulator` and `depth` bound any order.
        gemm2_schedule: that of a layer's second GEMM, where it is another; None: `schedule` is both GEMMs'.
        gate_schedule: that of a shared expert's product with one column.
        sum_schedule: that of the top-k sum over known rows: fma or mul_add, and the order of slots.
        scale_cast: scales of another dtype are rounded to D before they multiply.
        one_group: a weight with one scale a row: "as_weight" says; "after_sum": as "post" has it, whatever weights with
            several scales do; "after_store": the sum of a(u-z) is rounded to D, then multiplied by the scale in D.
        parts: K is cut into parts whose sums are joined (parts.py); None: it is not. `schedule` and `depth` are then of
            one part, and a router weight of "gemm2" multiplies what a part stores in D.
        bias: int4_linear's and int8_lm_head's: added to the "sum" in fp32; in D to what was "stored"; or "contracted",
            as stored, except that a scale which enters after the store and the bias may be one fused operation.
        slot_order: of a top-k sum in D, or of sum_schedule: "slots", by "experts" (the lowest id first), or "any".
        v1_zeros: how a stored 15 of GPTQ v1 zero points is read: as "modulo" 0, as "plain" 16, or as 0 with a carry
            into the neighbour, "byte_carry" or "word_carry".
        batch_invariant: a token's bits depend on nothing but the token: not on T, its place or its neighbours.
        activation: what becomes of gate and up (activation.py); where this page says silu, that activation is meant.
        ranks: the experts of moe_w4a16 lie on several processes, whose partial top-k sums are added (ranks.py); None:
            on one.
    Raises:
        ValueError: a field holds none of its legal values, or two contradict each other.
    """

    name: str
    weight: str = "cast"
    weight_rounding: str = "rne"
    accumulator: str = "tensor_core"
    depth: int | None = None
    ftz: bool = False
    stores: tuple[str, ...] = STAGES
    store_rounding: str = "rne"
    silu: str = "rounded"
    router_weight: str = "unpermute"
    topk_sum: str = "fp32"
    gate: str = "fused"
    deterministic: bool = True
    zero_offset: int = 0
    schedule: Schedule | None = None
    gemm2_schedule: Schedule | None = None
    gate_schedule: Schedule | None = None
    sum_schedule: Schedule | None = None
    scale_cast: bool = False
    one_group: str = "as_weight"
    parts: Parts | None = None
    bias: str = "sum"
    slot_order: str = "slots"
    v1_zeros: str = "modulo"
    batch_invariant: bool = False
    activation: Activation = SILU
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        for stage in self.stores:
            if stage not in STAGES:
                raise unknown("stores", stage, STAGES)
        require("out" in self.stores, f"stores: got {self.stores}, must hold 'out' (a result is stored)")
        deep = f"depth: got {str(self.depth)[:40]}, must be 1 to {MOST_DEPTH}, or None"
        require(self.depth is None or 0 < self.depth <= MOST_DEPTH, deep)
        require(self.zero_offset in (0, 128, 1024), f"zero_offset: got {self.zero_offset}, must be 0, 128 or 1024")
        _roundings(self.store_rounding)
        _check_schedule(self)
        _check_orders(self)

    @property
    def adder(self) -> Accumulator:
        """What is known about the accumulator."""
        return ACCUMULATORS[self.accumulator]

    @property
    def extra_multiplies(self) -> int:
        """Rounded multiplications on the way of one product, besides the product itself (m of docs/numerics.md)."""
        return {"cast": 0, "exact": 0, "post": 1, "hoisted": 2}[self.weight]

    @property
    def of_gemm2(self) -> Contract:
        """The contract of a layer's second GEMM, as one of its own."""
        return self if self.gemm2_schedule is None else replace(self, schedule=self.gemm2_schedule, gemm2_schedule=None)

    @property
    def unscheduled(self) -> Contract:
        """The same contract without schedules, under which any order of sums is legal."""
        if all(getattr(self, field) is None for field in SCHEDULES):
            return self
        kept = [part for part in self.name.split(",") if part.partition("=")[0] not in SCHEDULES]
        return replace(self, name=",".join(kept), **dict.fromkeys(SCHEDULES))  # type: ignore[arg-type]

    def rounding(self, stage: str, dtype: torch.dtype) -> str:
        """Return how a stage's store is rounded, "rne" or "rtz".

        Args:
            stage: h, a, y or out, which is also any other op's result.
            dtype: D.
        """
        ways = _roundings(self.store_rounding)
        way = ways.get(stage, ways.get("", "rne"))
        return {"rtz_bf16": "rtz" if dtype == torch.bfloat16 else "rne"}.get(way, way)

    def of_stage(self, stage: str, dtype: torch.dtype) -> Contract:
        """Return the contract whose every store is rounded as this one's of one stage."""
        way = self.rounding(stage, dtype)
        return self if way == self.store_rounding else replace(self, store_rounding=way)

    def silu_rounding(self, dtype: torch.dtype) -> str | None:
        """Return how silu(gate) is rounded to D before it meets up, or None where it is not."""
        if self.silu in ("rne", "rtz"):
            return self.silu
        return self.rounding("a", dtype) if self.silu == "rounded" else None

    def code_offset(self, dtype: torch.dtype) -> int:
        """Return what a magic number leaves on hoisted codes in one D."""
        return min(self.zero_offset, 128) if dtype == torch.bfloat16 else self.zero_offset

    def after_store(self, groups: int) -> bool:
        """Say whether the scale enters after the store, of a weight with so many groups a row."""
        return groups == 1 and self.one_group == "after_store"

    def after_sum(self, groups: int) -> bool:
        """Say whether the scale enters after the sum, in fp32, of a weight with so many groups a row."""
        return groups == 1 and self.one_group == "after_sum"

    @property
    def scaled_after_sum(self) -> Contract:
        """The contract of weights with one scale a row that enters after the sum, as one of its own."""
        late = None if self.schedule is None else replace(self.schedule, scale_last=True)
        return replace(self, weight="post", one_group="as_weight", schedule=late, gemm2_schedule=None)

    @property
    def weighs_parts(self) -> bool:
        """Say whether a router weight that enters in GEMM2 multiplies what each part of K stores in D."""
        return self.router_weight == "gemm2" and self.parts is not None and self.parts.kept == "dtype"

    @property
    def rounds_sums(self) -> bool:
        """Say whether a GEMM's sums are rounded to D on the way: in parts of K, in chains, or before the scale."""
        parts = self.parts
        in_parts = parts is not None and "dtype" in (parts.kept, parts.add)
        return in_parts or self.one_group == "after_store" or self.adder.in_dtype

    @property
    def rounds_partials(self) -> bool:
        """Say whether the top-k sum is rounded to D on its way over ranks."""
        return self.ranks is not None and "dtype" in (self.ranks.kept, self.ranks.add)

    def sum_in_dtype(self, top_k: int) -> bool:
        """Say whether the top-k sum of `top_k` slots is added slot by slot in D."""
        return self.topk_sum == "dtype" or (self.topk_sum == "vllm" and top_k in (2, 3, 4))

    def differences(self, other: Contract) -> list[str]:
        """List "field: mine, theirs" for each field besides the name in which two contracts differ."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "name"]
        return [f"{name}: {mine}, {theirs}" for name, mine, theirs in pairs if mine != theirs]


PRESETS: dict[str, Contract] = {name: Contract(name, **known.fields) for name, known in KNOWN.items()}


def _value(field: str, text: str) -> Any:
    if field in YES_OR_NO:
        require(text in ("true", "false"), f"{field}: got {text!r}, must be true or false")
        return text == "true"
    if field in ("depth", "zero_offset"):
        require(
            text.isdecimal() or (field == "depth" and text == "none"), f"{field}: got {text!r}, must be a whole number"
        )
        return None if text == "none" else int(text)
    if field in SCHEDULES:
        return None if text == "none" else Schedule.parse(text)
    if field == "parts":
        return None if text == "none" else Parts.parse(text)
    if field == "activation":
        return Activation.parse(text)
    if field == "ranks":
        return None if text == "none" else Ranks.parse(text)
    return tuple(text.split("+")) if field == "stores" else text


def contract(text: str | Contract) -> Contract:
    """Return the preset of that name, with overrides if any: "grouped" or "grouped,accumulator=rdna,depth=64".

    Args:
        text: a preset's name, then any number of ",field=value"; stores are joined by "+", a schedule is its text
            (bitmodels/schedule.py). A Contract passes through.
    Returns:
        The Contract; its name is the text.
    Raises:
        ValueError: an unknown preset, field or value, with the nearest legal name.
    Source: docs/formats.md section 4: where each known kernel rounds.
    """
    if isinstance(text, Contract):
        return text
    name, *overrides = str(text).replace(" ", "").split(",")
    if name not in PRESETS:
        raise unknown("contract", name, PRESETS)
    return _with(PRESETS[name], overrides) if overrides else PRESETS[name]


def with_schedules(rules: Contract, text: str) -> Contract:
    """Return a contract with other schedules than its own.

    Args:
        rules: the contract.
        text: "wgmma.k16.sm90", or with those of other sums "fma,sum_schedule=fma".
    Returns:
        Contract.
    Raises:
        ValueError: as `contract`.
    """
    return _with(rules.unscheduled, f"schedule={text}".replace(" ", "").split(","))


def _with(rules: Contract, overrides: list[str]) -> Contract:
    """Return a contract with fields changed, each a "field=value"."""
    changes: dict[str, Any] = {}
    for override in overrides:
        field, equals, value = override.partition("=")
        known = [f.name for f in fields(Contract) if f.name != "name"]
        if field not in known:
            raise unknown("contract field", field, known)
        require(bool(equals), f"contract: got {override!r}, must be field=value")
        require(field not in changes, f"contract: got {field} twice, must be said once")
        changes[field] = _value(field, value)
    return replace(rules, name=",".join([rules.name, *overrides]), **changes)
