"""Every matrix instruction that has a bit model, by name, and what one of them does with rows of products.

MODELS holds the matrix units' instructions of INSTRUCTIONS and those that no Schedule can name: tf32 and fp8 operands,
fp16 accumulators, block scales. Names are instruction.shape[.operands][.f16 accumulator].architecture.

Special values: as the unit's (tensor_core.py). fp8 on mma.sync of sm_90 and sm_100 is emulated: operands become fp16,
two steps of 16 start at +0 in the order of EMULATED, and the accumulator is added last, rounded to nearest.
Block-scaled units are published only, and the publications contradict each other (docs/bit-models.md).
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from ..errors import require, unknown
from ..rounding import round_to
from .schedule import linear_order
from .tensor_core import (
    AMPERE,
    BLACKWELL,
    FP8,
    HOPPER,
    INSTRUCTIONS,
    NAMES,
    TURING,
    VOLTA,
    Instruction,
    TensorCore,
    aligned_sum,
    exponent,
    fused_rows,
    operand_exponent,
    stored,
)

__all__ = ["MODELS", "model_of", "predict"]

EMULATED = linear_order((1, 4, 8, 16, 2))
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
FP4_GROUP = 16  # products of one group, which are added exactly before scales are applied

AMPERE_TF32 = replace(AMPERE, name="ampere_tf32", products=4, inputs=("tf32",))
HOPPER_TF32 = replace(HOPPER, name="hopper_tf32", products=8, inputs=("tf32",))
BLACKWELL_TF32 = replace(BLACKWELL, name="blackwell_tf32", products=8, inputs=("tf32",), edges="assumed")
ADA_FP8 = TensorCore(
    "ada_fp8", 16, 13, form="e8m13", least_exponent=-133, inputs=FP8, evidence="replayed", edges="assumed"
)
HOPPER_FP8 = replace(ADA_FP8, name="hopper_fp8", products=32, evidence="measured", edges="measured")
BLACKWELL_FP8 = replace(BLACKWELL, name="blackwell_fp8", products=32, inputs=FP8, evidence="published", edges="assumed")
MXF8 = replace(BLACKWELL_FP8, name="blackwell_mxf8")
MXF4 = replace(BLACKWELL_FP8, name="blackwell_mxf4", products=64, bits=35, inputs=("e2m1",))


def _fp16(core: TensorCore) -> TensorCore:
    edges = "measured" if core.edges == "measured" else "assumed"
    return replace(core.fp16, inputs=("fp16",) if "fp16" in core.inputs else core.inputs, edges=edges)


def _all() -> dict[str, Instruction]:
    """Return the table: a line an instruction, architectures that are alike together."""
    found = {name: how for name, how in INSTRUCTIONS.items() if how.core is not None}
    replayed: tuple[str, ...] = ("replayed",)
    published: tuple[str, ...] = ("published",)
    measured: tuple[str, ...] = ("measured",)

    def add(name: str, core: TensorCore, k: int, evidence: tuple[str, ...], **more: bool | int) -> None:
        found[name] = Instruction(core, k, evidence=evidence, **more)  # type: ignore[arg-type]

    add("mma.m8n8k4.f16.sm70", _fp16(VOLTA), 4, replayed)
    add("mma.m16n8k8.f16.sm75", _fp16(TURING), 8, published)
    for sm, seen in ((80, replayed), (86, published), (89, replayed)):
        add(f"mma.m16n8k16.f16.sm{sm}", _fp16(AMPERE), 16, seen)
        add(f"mma.m16n8k8.f16.sm{sm}", _fp16(AMPERE), 8, published)
        add(f"mma.m16n8k8.tf32.sm{sm}", AMPERE_TF32, 8, seen)
        add(f"mma.m16n8k4.tf32.sm{sm}", AMPERE_TF32, 4, published)
    add("mma.m16n8k32.fp8.sm89", ADA_FP8, 32, replayed)
    add("mma.m16n8k32.fp8.f16.sm89", _fp16(ADA_FP8), 32, replayed)
    for sm, core, tf32, seen, alone in (
        (90, HOPPER, HOPPER_TF32, measured + replayed, measured),
        (100, BLACKWELL, BLACKWELL_TF32, replayed, published),
        (120, BLACKWELL, BLACKWELL_TF32, published, published),
    ):
        add(f"mma.m16n8k16.f16.sm{sm}", _fp16(core), 16, seen)
        add(f"mma.m16n8k8.f16.sm{sm}", _fp16(core), 8, alone)
        add(f"mma.m16n8k8.tf32.sm{sm}", tf32, 8, seen)
        add(f"mma.m16n8k4.tf32.sm{sm}", tf32, 4, alone)
    add("mma.m16n8k32.fp8.sm90", replace(HOPPER, inputs=FP8), 32, measured, late=True)
    add("mma.m16n8k32.fp8.f16.sm90", replace(_fp16(HOPPER), inputs=FP8), 32, measured + replayed, late=True)
    add("mma.m16n8k32.fp8.sm100", replace(BLACKWELL, inputs=FP8), 32, replayed, late=True)
    add("mma.m16n8k32.fp8.f16.sm100", replace(_fp16(BLACKWELL), inputs=FP8), 32, replayed, late=True)
    add("wgmma.k16.f16.sm90", _fp16(HOPPER), 16, measured)
    add("wgmma.k8.tf32.sm90", HOPPER_TF32, 8, measured)
    add("wgmma.k32.fp8.sm90", HOPPER_FP8, 32, measured + replayed)
    add("wgmma.k32.fp8.f16.sm90", _fp16(HOPPER_FP8), 32, measured)
    add("tcgen05.k16.f16.sm100", _fp16(BLACKWELL), 16, published)
    add("tcgen05.k8.tf32.sm100", BLACKWELL_TF32, 8, published)
    for prefix, sm in (("tcgen05.k", 100), ("mma.m16n8k", 120)):
        add(f"{prefix}32.fp8.sm{sm}", BLACKWELL_FP8, 32, published)
        add(f"{prefix}32.fp8.f16.sm{sm}", _fp16(BLACKWELL_FP8), 32, published)
        add(f"{prefix}32.mxf8.sm{sm}", MXF8, 32, published, scaled=32)
        add(f"{prefix}64.mxf4.sm{sm}", MXF4, 64, published, scaled=32)
        add(f"{prefix}64.nvf4.sm{sm}", MXF4, 64, published, scaled=16)
    return found


MODELS = _all()


def model_of(device: str, instruction: str, operands: str, out: str) -> str:
    """Return the name of the model of an instruction that is described in words.

    Args:
        device: holds the architecture, "sm_90" of "NVIDIA H100 (sm_90)".
        instruction: holds wgmma or tcgen05, else it is mma; and perhaps its shape, "m16n8k8".
        operands: of OPERANDS, or e2m1.  out: "fp32" or "fp16".
    Returns:
        One of MODELS, never a block-scaled one.
    Raises:
        ValueError: no architecture is named, or nothing of it takes these operands.
    """
    found = re.search(r"sm_?(\d+)", device)
    require(found is not None, f"device: got {device!r}, must name an architecture, for example (sm_90)")
    assert found is not None
    unit = next((word for word in ("wgmma", "tcgen05") if re.search(rf"\b{word}", instruction)), "mma")
    fits = {}
    for name, how in MODELS.items():
        assert how.core is not None
        takes = operands in how.takes and (how.core.form == "fp16") == (out == "fp16") and not how.scaled
        if takes and name.startswith(unit) and name.endswith(f".sm{found[1]}"):
            fits[how.k] = name
    require(bool(fits), f"instruction: got {unit} of sm_{found[1]}, {operands} into {out}, must be one of `MODELS`")
    shape = re.search(r"\bm\d+n\d+k(\d+)", instruction)
    return fits.get(int(shape[1]) if shape else 0, fits[max(fits)])


def predict(
    name: str | Instruction,
    a: torch.Tensor,
    w: torch.Tensor,
    acc: torch.Tensor | None = None,
    *,
    a_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return acc + sum_k a[p,k] w[p,k] as a chain of one matrix instruction leaves it, bit for bit.

    Args:
        name: one of MODELS, or an instruction of one's own.
        a: [P, K]; tf32 as float32, of which 10 fractional bits are read; e2m1 as uint8 codes, one a byte. K may be any
            number: what an instruction lacks is zeros, and what it cannot hold the next one takes.
        w: [P, K], the same dtype, or both fp8.
        acc: float32 [P], or float16 where the accumulator is; None for +0.
        a_scale, w_scale: [P, K / products a scale], float8_e8m0fnu or float8_e4m3fn: only and always of block-scaled
            instructions.
    Returns:
        float32 [P], or float16 where the accumulator is; no error: the only value.
    Raises:
        ValueError: an unknown name, or operands that the instruction does not take.
    Source: docs/bit-models.md, which says what each model rests on.
    """
    if isinstance(name, str) and name not in MODELS:
        raise unknown("model", name, MODELS)
    how = MODELS[name] if isinstance(name, str) else name
    require(how.core is not None, f"model: got {name}, must be a matrix instruction")
    assert how.core is not None
    given = ["e2m1" if x.dtype == torch.uint8 else NAMES.get(x.dtype, str(x.dtype)) for x in (a, w)]
    takes = ", ".join(how.takes)
    require(set(given) <= set(how.takes), f"a, w: got {given[0]} and {given[1]}, must be {takes} for {name}")
    require(a.shape == w.shape and a.dim() == 2, f"a, w: got {tuple(a.shape)} and {tuple(w.shape)}, must be [P, K]")
    codes = [int(x.max()) for x in (a, w) if x.dtype == torch.uint8 and x.numel()]
    require(max(codes, default=0) < len(E2M1), f"a, w: got codes up to {max(codes, default=0)}, must be 0 to 15")
    total = torch.zeros(len(a), device=a.device) if acc is None else acc.float()
    if how.scaled:
        require(a_scale is not None and w_scale is not None, f"a_scale, w_scale: got none, must be there for {name}")
        assert a_scale is not None
        assert w_scale is not None
        total = _scaled(a, w, a_scale, w_scale, total, how, how.core)
    else:
        require(a_scale is None and w_scale is None, f"a_scale, w_scale: got some, must be None for {name}")
        for k in range(0, a.shape[1], how.k):
            part = slice(k, k + how.k)
            if how.late:
                total = _emulated(a[:, part], w[:, part], total, how.core)
            else:
                total = fused_rows(a[:, part], w[:, part], how.core, total, step=how.step)
    return _native(total, how.core)


def _emulated(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Return one fp8 instruction of 32 products on 16-bit units."""
    order = torch.tensor([k for k in EMULATED if k < a.shape[1]], device=a.device)
    sides = (x.half()[:, order] for x in (a, w))
    total = torch.zeros_like(acc)
    inner = replace(core, inputs=("fp16",))
    x, y = sides
    first = int((order % 4 < 2).sum())  # of fewer inputs the others are zeros, each in its own step
    for part in (slice(0, first), slice(first, None)):
        total = fused_rows(x[:, part], y[:, part], inner, total)
    if core.form == "fp16":
        return round_to(total.double() + acc.double(), torch.float16).float()
    return total + acc


def _scaled(
    a: torch.Tensor,
    w: torch.Tensor,
    a_scale: torch.Tensor,
    w_scale: torch.Tensor,
    acc: torch.Tensor,
    how: Instruction,
    core: TensorCore,
) -> torch.Tensor:
    """Return what block-scaled instructions leave.

    fp8 products are aligned by the operands' exponents and the scales'; fp4 products are added exactly in groups of 16,
    each of which has its scales' exponents.
    """
    (P, K), per = a.shape, how.scaled
    fits = K % how.k == 0 and a_scale.shape == w_scale.shape == (P, K // per)
    got = f"{tuple(a_scale.shape)} and {tuple(w_scale.shape)}"
    require(fits, f"a_scale, w_scale: got {got} with K={K}, must be [{P}, K/{per}], K a multiple of {how.k}")
    fp4 = a.dtype == torch.uint8
    x, y = ((E2M1.to(a.device)[t.long()] if fp4 else t).double() for t in (a, w))
    s = (a_scale.float().abs(), w_scale.float().abs())
    of_scales = exponent(s[0].double()) + exponent(s[1].double())
    p = x * y
    if fp4:
        p = p.view(P, -1, FP4_GROUP).sum(2)
        per //= FP4_GROUP
        e = of_scales.repeat_interleave(per, 1)
    else:
        e = operand_exponent(a) + operand_exponent(w) + of_scales.repeat_interleave(per, 1)
    p = p * (s[0].double() * s[1].double()).repeat_interleave(per, 1)
    total, step = acc.double(), how.k // FP4_GROUP if fp4 else how.k
    for k in range(0, p.shape[1], step):
        q, eq = p[:, k : k + step].T, e[:, k : k + step].T
        top = torch.where(q == 0, -10_000, eq).amax(0).clamp_(min=core.least_exponent)
        top = torch.maximum(top, exponent(total, -126)).long()
        ieee = q.sum(0) + total
        total = stored(aligned_sum(q.clone(), total, top, core), core)
        total = torch.where(ieee.isfinite(), total, ieee)
    return (total + 0.0).float()


def _native(x: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Return fp32 values in the form that the instruction stores, its NaN's bits included."""
    if core.form != "fp16":
        nan = torch.tensor(core.nan, dtype=torch.int32, device=x.device).view(torch.float32)
        return torch.where(x.isnan(), nan, x)
    nan16 = torch.tensor(0x7FFF, dtype=torch.int16, device=x.device).view(torch.float16)
    return torch.where(x.isnan(), nan16, x.half())
