"""Contracts: every rounding that a legal kernel may make, declared and named.

A kernel is judged under one contract. What the contract does not allow is illegal, however small; what it allows is
legal, however large. The presets are the kernels in public use (docs/formats.md section 4).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from ..bitmodels.fp32_trees import ORDERS
from ..bitmodels.schedule import Schedule
from ..errors import require, unknown
from .accumulators import ACCUMULATORS, Accumulator

__all__ = ["PRESETS", "SCHEDULES", "STAGES", "Contract", "contract", "with_schedules"]

# A contract's: of every dot product, of a layer's second GEMM, of a shared expert's x·g, of the top-k sum.
SCHEDULES = ("schedule", "gemm2_schedule", "gate_schedule", "sum_schedule")
STAGES = ("h", "a", "y", "out")
CHOICES: dict[str, Collection[str]] = {
    "weight": ("cast", "exact", "post", "hoisted"),
    "weight_rounding": ("rne", "rtz"),
    "accumulator": ACCUMULATORS,
    "store_rounding": ("rne", "rtz"),
    "silu": ("rounded", "fp32"),
    "router_weight": ("unpermute", "gemm2", "gemm2_dtype", "input"),
    "topk_sum": ("fp32", "dtype", "vllm"),
    "gate": ("fused", "unfused", "fp32"),
}


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
        _check_dots(field, schedule, "cast" if field == "gate_schedule" else contract.weight, contract.adder.in_dtype)


def _check_dots(field: str, schedule: Schedule, weight: str, in_dtype: bool) -> None:
    require(not in_dtype, f"{field}: got one with accumulator 'dtype', must be None (sums rounded to D have no model)")
    unit = schedule.how.core is not None
    cannot = f"{field}: got {schedule.instruction} with weight 'exact', must be an fp32 instruction (a matrix unit's"
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
        store_rounding: rounding of every store, "rne" or "rtz".
        silu: "rounded": D(silu(gate)), then times up, rounded again; "fp32": silu(gate)*up rounded once.
        router_weight: where it enters: "unpermute" (fp32), "gemm2" (fp32, before the store), "gemm2_dtype" (rounded to
            D and multiplied in D after the store), "input" (GEMM1's epilogue, fp32).
        topk_sum: "fp32" (one cast at the end), "dtype" (slot by slot in D), "vllm" (in D for k = 2, 3, 4, else fp32).
        gate: the shared expert's: "fused" D(D(y) * D(sigmoid(dot))), "unfused" with D(dot) stored before its sigmoid,
            "fp32" D(y * sigmoid(dot)), y rounded before only where it is stored.
        deterministic: two runs on the same inputs give the same bits.
        zero_offset: what a magic number leaves on a hoisted code: 0, or 128 for codes read as 128 + u.
        schedule: instruction and order of every dot product of known operands, whose legal set is then one value;
            elsewhere, and where it is None, `accumulator` and `depth` bound any order.
        gemm2_schedule: that of a layer's second GEMM, where it is another; None: `schedule` is both GEMMs'.
        gate_schedule: that of a shared expert's product with one column.
        sum_schedule: that of the top-k sum over known rows: fma or mul_add, and the order of slots.
    Raises:
        ValueError: a field holds none of its legal values.
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

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        for stage in self.stores:
            if stage not in STAGES:
                raise unknown("stores", stage, STAGES)
        require("out" in self.stores, f"stores: got {self.stores}, must hold 'out' (a result is stored)")
        require(self.depth is None or self.depth > 0, f"depth: got {self.depth}, must be positive or None")
        require(self.zero_offset in (0, 128), f"zero_offset: got {self.zero_offset}, must be 0 or 128")
        _check_schedule(self)

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

    def sum_in_dtype(self, top_k: int) -> bool:
        """Say whether the top-k sum of `top_k` slots is added slot by slot in D."""
        return self.topk_sum == "dtype" or (self.topk_sum == "vllm" and top_k in (2, 3, 4))

    def differences(self, other: Contract) -> list[str]:
        """List "field: mine, theirs" for each field besides the name in which two contracts differ."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "name"]
        return [f"{name}: {mine}, {theirs}" for name, mine, theirs in pairs if mine != theirs]


def _presets(*contracts: Contract) -> dict[str, Contract]:
    return {c.name: c for c in contracts}


PRESETS: dict[str, Contract] = _presets(
    # vLLM's Triton fused_moe_kernel_gptq_awq: router weight in GEMM2, moe_sum in D for small k.
    Contract("gptq_awq", router_weight="gemm2", topk_sum="vllm"),
    # ROCm/vllm's hybrid path and its grouped GEMM, and this repository's Triton kernels.
    Contract("hybrid"),
    Contract("grouped"),
    # ROCm/vllm's HIP decode kernel: exact u-8, one chunk's fp32 partial dot, then times s.
    Contract("wvsplitk", weight="post", accumulator="rdna"),
    # As wvsplitk, all after GEMM1 in one launch: a (fused silu, rounded once) and out are the only roundings.
    Contract("megakernel", weight="post", accumulator="rdna", stores=("h", "a", "out"), silu="fp32"),
    # The same with GEMM2's codes left at 128 + u and 136 * sum(a) subtracted afterwards.
    Contract(
        "megakernel_sum", weight="hoisted", accumulator="rdna", stores=("h", "a", "out"), silu="fp32", zero_offset=128
    ),
    # ROCm/vllm's WMMA prefill GEMM: s * (raw - 136 * sum a) per group.
    Contract("wmma", weight="hoisted", accumulator="rdna", zero_offset=128),
    # vLLM's CUDA moe_wna16: partial sums of eight in D, split-K through 16-bit atomics.
    Contract("moe_wna16", accumulator="dtype", router_weight="gemm2", topk_sum="vllm", deterministic=False),
    # Marlin MoE: the router weight is rounded to D and multiplied in D after the store rounding.
    Contract("marlin", router_weight="gemm2_dtype"),
    # executorch decode: fp32 weights and fp32 silu straight into GEMM2.
    Contract(
        "et_vecmat", weight="exact", accumulator="fp32", stores=("h", "y", "out"), silu="fp32", router_weight="gemm2"
    ),
    # executorch prefill: weights in D, silu * up rounded once.
    Contract("et_batched", silu="fp32", router_weight="gemm2"),
    # int8 lm_head: fp32 dot of 16, times the scale in fp32, reduce, bias, one rounding.
    Contract("int8_lm_head", weight="post", accumulator="fp32"),
)


def _value(field: str, text: str) -> Any:
    if field in ("ftz", "deterministic"):
        require(text in ("true", "false"), f"{field}: got {text!r}, must be true or false")
        return text == "true"
    if field in ("depth", "zero_offset"):
        require(
            text.isdecimal() or (field == "depth" and text == "none"), f"{field}: got {text!r}, must be a whole number"
        )
        return None if text == "none" else int(text)
    if field in SCHEDULES:
        return None if text == "none" else Schedule.parse(text)
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
