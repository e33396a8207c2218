"""Which stage each known fault belongs to, by the step that it replaces: what a bisection must find by itself."""

from __future__ import annotations

from ..cases.record import record_of
from ..faults import FAULTS, Fault
from .suspects import (
    ACTIVATION,
    BIAS,
    GEMM1,
    GEMM2,
    INPUTS,
    REDUCTION,
    ROUTING,
    SCALE,
    UNPACK,
    ZERO,
)

# A fault that replaces several steps belongs to the first of them in this order.
_OF_STEP = {
    "codes": UNPACK, "load": UNPACK, "scale_group": SCALE, "scales": SCALE, "values": SCALE, "cast": SCALE,
    "zeros": ZERO, "zero_group": ZERO, "subtract": ZERO,
    "experts_of": ROUTING, "local_ids": ROUTING,
    "blocks": ROUTING, "source_row": ROUTING, "read": ROUTING, "spans": ROUTING,
    "halves": ACTIVATION, "silu": ACTIVATION, "product": ACTIVATION,
    "slot_weights": REDUCTION, "slot_rows": REDUCTION, "topk_sum": REDUCTION, "result": REDUCTION,
    "moe_w4a16": REDUCTION, "bias": BIAS,
    "counted": REDUCTION, "keep_partial": REDUCTION, "collected": REDUCTION, "gathered": REDUCTION,
    "lm_group": SCALE, "lm_scales": SCALE, "lm_codes": UNPACK, "lm_partial": GEMM1,
}  # fmt: skip
# Steps of both GEMMs, and whole stages: the stage where the fault first shows decides.
_OF_STORED = {"h": GEMM1, "a": ACTIVATION, "y": GEMM2, "out": REDUCTION}
# Faults that rewrite a whole dot product, by what they get wrong, and one that writes where it may not. A top bit the
# wrong way round is 128 too much or too little to subtract, as in F56 and F57.
_OF_FAULT = {"F51": SCALE, "F64": ZERO, "F123": INPUTS, "F245": SCALE, "F250": ROUTING, "F259": ZERO}


def stage_of(fault: Fault) -> str:
    """Return the stage of moe_w4a16, or of a single GEMM, that a fault belongs to."""
    if fault.id in _OF_FAULT:
        return _OF_FAULT[fault.id]
    named = [stage for step, stage in _OF_STEP.items() if step in fault.steps]
    return named[0] if named else _OF_STORED.get(fault.stage, "")


def stage_of_id(id: str) -> str:
    """Return the stage of a fault's id, or of another candidate of the diagnosis; "" where it is not known."""
    if id in FAULTS:
        return stage_of(FAULTS[id])
    if id == "slots:expert":
        return ROUTING
    kind = id.partition(":")[0]
    return {"layout": UNPACK, "transposed": UNPACK, "zero": ZERO, "group": SCALE, "expert": ROUTING}.get(kind, "")


def stage_in_op(fault: Fault, op: str) -> str:
    """Return the stage that a bisection of a kernel for `op` with this fault has to name."""
    record = record_of(op)
    return record.one_stage or record.stage_shown(stage_of(fault), "result" in fault.steps)
