"""What a matrix unit's accumulator holds, bit for bit: many products aligned, cut, and added at once.

Special values first. NaN: any NaN operand, inf*0 or inf-inf gives the unit's one NaN. Infinite operands give what IEEE
arithmetic gives. A finite sum beyond the stored form becomes infinite; a larger product that cancels does not. A sum
that is zero, or that NVIDIA's store makes zero, is +0. Subnormal operands and results count fully.

One step, products p_i = a_i*w_i and accumulator c:

    e_i = e(a_i) + e(w_i)       the operands' exponents, not the product's own: p_i is in [1, 4) * 2^e_i
    E   = max(e_i of the products that are not 0, e(c), least)     a subnormal c counts as its form's smallest
    S   = sum_i cut(p_i * 2^(bits-E)) + cut(c * 2^(bits-E))        integers, added exactly
    c'  = store(S * 2^(E-bits))

Here integers are held in fp64, where all of this is exact: S needs 32 bits, and a product 22. Which instruction has
which unit: INSTRUCTIONS, those that a Schedule can name, and models.py, all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from ..errors import require, unknown
from ..rounding import round_in_fp64
from .fp32_trees import truncate_fp32

EVIDENCE = ("measured", "replayed", "published", "assumed")
FIELDS: dict[str, tuple[str, ...]] = {
    "cut": ("zero", "floor"),
    "exponents": ("operands", "normalized_operands", "product"),
    "store": ("rtz", "rne"),
    "form": ("fp32", "e8m13", "fp16"),
    "evidence": EVIDENCE,
    "edges": EVIDENCE,
}
OPERANDS: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in OPERANDS.items()}
FP8 = ("e4m3", "e5m2")
_NOTHING = -10_000  # exponent of a zero: two of them still fit int16
_LOWEST = -400  # below every exponent that a product of two bf16 can have
# Where the exponent is, and its bias; of tf32 as fp32 holds it.
_FIELDS = {
    torch.bfloat16: (7, 0xFF, 127), torch.float16: (10, 0x1F, 15), torch.float32: (23, 0xFF, 127),
    torch.float8_e4m3fn: (3, 0xF, 7), torch.float8_e5m2: (2, 0x1F, 15),
}  # fmt: skip
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_ORDINARY = (
    -90
)  # exponent of the smallest product, and below that of 1/largest sum, where the ends of the range are far
_ELEMENTS, _ELEMENTS_ON_A_GPU, _STEPS = 1 << 20, 1 << 28, 16  # products of single elements at once, and steps of each
_TF32 = -(1 << 13)  # the bits of an fp32 operand that tf32 has; a unit does not read the others
_LEAST = {"fp32": -126, "e8m13": -126, "fp16": -14}  # exponent of a form's smallest normal


@dataclass(frozen=True)
class TensorCore:
    """How one matrix unit adds.

    Args:
        name: what reports call it.
        products: how many products one step adds to the accumulator.
        bits: fractional bits kept of each term, relative to the largest exponent E.
        cut: where the rest goes: "zero" or "floor" (toward minus infinity).
        exponents: "operands" e(a)+e(w), a subnormal counting as its format's smallest exponent; "normalized_operands"
            the same with a subnormal's own exponent; "product" floor(log2|a*w|).
        store: rounding of the sum to its form, "rtz" or "rne".
        form: what the accumulator is: "fp32"; "e8m13", fp32 with only 13 fractional bits; "fp16".
        sum_bits: None: the accumulator is aligned with the products. Else the products are added by themselves, and
            their sum, with this many bits, and the accumulator, with `bits`, are cut toward minus infinity and added.
        least_exponent: E is never below it; None: no such limit.
        zero_accumulator: an accumulator of 0 counts as having this exponent; None: as having none.
        signed_zero: a sum that is rounded to zero keeps its sign; else it is +0.
        nan: the fp32 bits of its NaN.
        inputs: the operands it multiplies, of OPERANDS.
        evidence: for how it adds and stores: "measured" on hardware for this project, "replayed" on results that others
            recorded, "published" by others and not checked here, or "assumed".
        edges: the same for what random data do not show: least exponent, signs of zero, special values.
    Raises:
        ValueError: a field holds none of its legal values.
    Source: docs/bit-models.md says what each number rests on: an NVIDIA H200, github.com/north-numerical-computing/
        MATLAB-tensor-core (arxiv.org/abs/2512.07004), github.com/microsoft/MMA-Sim (arxiv.org/abs/2511.10909).
    """

    name: str
    products: int
    bits: int
    cut: str = "zero"
    exponents: str = "operands"
    store: str = "rtz"
    form: str = "fp32"
    sum_bits: int | None = None
    least_exponent: int | None = -126
    zero_accumulator: int | None = None
    signed_zero: bool = False
    nan: int = 0x7FFFFFFF
    inputs: tuple[str, ...] = ("bf16", "fp16")
    evidence: str = "published"
    edges: str = "assumed"

    def __post_init__(self) -> None:
        for name, allowed in FIELDS.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        require(1 <= self.products <= 64, f"products: got {self.products}, must be 1 to 64")
        require(8 <= self.bits <= 40, f"bits: got {self.bits}, must be 8 to 40 (sums must stay exact in fp64)")
        in_reach = self.sum_bits is None or self.bits <= self.sum_bits <= 40
        require(in_reach, f"sum_bits: got {self.sum_bits}, must be bits={self.bits} to 40, or None")

    @property
    def fp16(self) -> TensorCore:
        """The same unit where accumulator and result are fp16: the exact sum is rounded once, to nearest."""
        least = None if self.least_exponent is None else self.least_exponent - _LEAST["fp32"] + _LEAST["fp16"]
        return replace(self, name=f"{self.name}_f16", store="rne", form="fp16", least_exponent=least)


# Known least exponents are as far below -126 as the sum of a step's terms may exceed their largest exponent, in bits.
HOPPER = TensorCore("hopper", 16, 25, least_exponent=-133, evidence="measured", edges="measured")
BLACKWELL = TensorCore("blackwell", 16, 25, least_exponent=-133, evidence="replayed", edges="published")
AMPERE = TensorCore("ampere", 8, 24, least_exponent=-132, evidence="replayed", edges="published")  # and Ada
TURING = TensorCore("turing", 8, 24, least_exponent=-132)
VOLTA = TensorCore("volta", 4, 23, least_exponent=-131, evidence="replayed")
CDNA3 = TensorCore(
    "cdna3", 8, 24, store="rne", sum_bits=31, least_exponent=None, zero_accumulator=-126, signed_zero=True,
    nan=0x7FC00000, edges="published",
)  # fmt: skip
TENSOR_CORES: dict[str, TensorCore] = {c.name: c for c in (HOPPER, BLACKWELL, AMPERE, TURING, VOLTA, CDNA3)}


@dataclass(frozen=True)
class Instruction:
    """An instruction that adds products: a matrix unit's, taking k inputs, or (core None) fp32 arithmetic.

    fused: one rounding for multiply and add.  rounding: of fp32 arithmetic, "rne" or "rtz".
    narrow: the chain of a tree's innermost level starts at +0 and is rounded to the operands' dtype at each step.
    inputs: the operands it takes, those of its unit if none are given.
    late: it is emulated on 16-bit units, which add the accumulator last (models.py).
    scaled: products that one pair of block scales covers, 0 without scales.
    evidence: of EVIDENCE, for this very instruction.
    """

    core: TensorCore | None
    k: int
    fused: bool = False
    rounding: str = "rne"
    narrow: bool = False
    inputs: tuple[str, ...] = ()
    late: bool = False
    scaled: int = 0
    evidence: tuple[str, ...] = field(default=("published",), compare=False)  # those that do the same are equal

    @property
    def step(self) -> int:
        """Products added at once: the matrix unit's, or all of a smaller instruction's."""
        return self.k if self.core is None else min(self.k, self.core.products)

    @property
    def takes(self) -> tuple[str, ...]:
        """The operands it takes, of OPERANDS."""
        return self.inputs or (() if self.core is None else self.core.inputs)


_BOTH = ("measured", "replayed")
INSTRUCTIONS: dict[str, Instruction] = {
    "wgmma.k16.sm90": Instruction(HOPPER, 16, evidence=("measured",)),
    "mma.m16n8k16.sm90": Instruction(HOPPER, 16, evidence=_BOTH),
    "mma.m16n8k8.sm90": Instruction(HOPPER, 8, evidence=("measured",)),
    "mma.m16n8k16.sm80": Instruction(AMPERE, 16, evidence=("replayed",)),
    "mma.m16n8k8.sm80": Instruction(AMPERE, 8),
    "mma.m16n8k16.sm86": Instruction(AMPERE, 16),
    "mma.m16n8k8.sm86": Instruction(AMPERE, 8),
    "mma.m16n8k16.sm89": Instruction(AMPERE, 16, evidence=("replayed",)),
    "mma.m16n8k8.sm89": Instruction(AMPERE, 8),
    "mma.m16n8k8.sm75": Instruction(TURING, 8, inputs=("fp16",)),
    "mma.m8n8k4.sm70": Instruction(VOLTA, 4, inputs=("fp16",), evidence=("replayed",)),
    "mma.m16n8k16.sm100": Instruction(BLACKWELL, 16, evidence=("replayed",)),
    "mma.m16n8k8.sm100": Instruction(BLACKWELL, 8),
    "tcgen05.k16.sm100": Instruction(BLACKWELL, 16),
    "mma.m16n8k16.sm120": Instruction(BLACKWELL, 16),
    "mma.m16n8k8.sm120": Instruction(BLACKWELL, 8),
    "mfma.k16.cdna3": Instruction(CDNA3, 16),
    "mfma.k8.cdna3": Instruction(CDNA3, 8),
    "fma": Instruction(None, 1, fused=True),
    "mul_add": Instruction(None, 1),
    "fma.rz": Instruction(None, 1, fused=True, rounding="rtz"),
    "mul_add.rz": Instruction(None, 1, rounding="rtz"),
    "hfma": Instruction(None, 1, fused=True, narrow=True),
}


def exponent(x: torch.Tensor, least: int = _LOWEST) -> torch.Tensor:
    """Return int16 floor(log2|x|) of fp64 values, at least `least`; far below all others for zero."""
    e = ((x.view(torch.int64) >> 52) & 0x7FF).sub_(1023).clamp_(min=least)
    return torch.where(x == 0, _NOTHING, e).to(torch.int16)


def operand_exponent(x: torch.Tensor) -> torch.Tensor:
    """Return int16 exponents of values as stored: a subnormal has its format's smallest; of tf32, those of fp32."""
    shift, mask, bias = _FIELDS[x.dtype]
    bits = x.view(_INTEGERS[x.element_size()])
    e = ((bits >> shift) & mask).to(torch.int16).clamp_(min=1).sub_(bias)
    return e.masked_fill_((bits << 1) == 0, _NOTHING)


def power_of_two(e: torch.Tensor) -> torch.Tensor:
    """Return fp64 2^e of int64 exponents within the normal range."""
    return ((e + 1023) << 52).view(torch.float64)


def _cut(x: torch.Tensor, how: str) -> torch.Tensor:
    return x.trunc_() if how == "zero" else x.floor_()


def fused_dot(
    a: torch.Tensor, w: torch.Tensor, core: TensorCore, acc: torch.Tensor | None = None, *, step: int | None = None
) -> torch.Tensor:
    """Return acc + sum_k a[m,k] w[n,k] as the matrix unit leaves it, `step` products after another.

    Memory grows with M*N*step: `accumulate` cuts large problems into parts.

    Args:
        a: [..., M, K], of one of the unit's operands, tf32 as float32.  w: [..., N, K], the same dtype, or both fp8.
        core: which unit.
        acc: float32 [..., M, N], or None for +0.
        step: products a step, at most and by default core.products (an instruction may hold fewer); a K that it does
            not divide ends with a smaller step, as zeros would.
    Returns:
        float32 [..., M, N], of a unit that stores fp16 its values; every bit as the model says.
    Raises:
        ValueError: dtypes are not those of the unit, or step is out of range.
    """
    total = torch.zeros(*a.shape[:-1], w.shape[-2], device=a.device) if acc is None else acc
    a, w = (x.movedim(-1, 0).contiguous() for x in _operands(a, w, core))
    return _added(a[..., None], w[..., None, :], total.double(), core, step)


def fused_rows(
    a: torch.Tensor, w: torch.Tensor, core: TensorCore, acc: torch.Tensor | None = None, *, step: int | None = None
) -> torch.Tensor:
    """Return acc[p] + sum_k a[p,k] w[p,k]: `fused_dot` of single rows, a and w [P, K] and acc [P]."""
    total = torch.zeros(a.shape[0], device=a.device) if acc is None else acc
    a, w = _operands(a, w, core)
    return _added(a.T.contiguous(), w.T.contiguous(), total.double(), core, step)


def fused_elements(
    a: torch.Tensor, w: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, core: TensorCore, *, step: int
) -> torch.Tensor:
    """Return fp32 elements (rows[p], columns[p]) of what `fused_dot` returns of a [M, K] and w [N, K], int64 [p]."""
    a, w = _operands(a, w, core)
    out, K, on_cpu = torch.empty(len(rows), device=a.device), a.shape[1], a.device.type == "cpu"
    block = _STEPS * step  # inputs, so that few operations follow many elements
    at_once = max(1, (_ELEMENTS if on_cpu else _ELEMENTS_ON_A_GPU) // max(1, min(block, K)))
    exponents = (operand_exponent(a), operand_exponent(w)) if core.exponents == "operands" and len(rows) else None
    zero = torch.zeros(1, device=a.device)
    if exponents is None or not _ordinary(*exponents, K, a.dtype, core, zero):
        at_once = max(1, at_once * min(block, K) // max(1, K))
        for some in (slice(start, start + at_once) for start in range(0, len(rows), at_once)):
            out[some] = fused_rows(a[rows[some]], w[columns[some]], core, step=step)
        return out
    a_power, w_power = (_powers(e, a.dtype) for e in exponents)
    for some in (slice(start, start + at_once) for start in range(0, len(rows), at_once)):
        r, c = rows[some], columns[some]
        acc = torch.zeros(len(r), device=a.device)
        for k in range(0, K, block):
            s = slice(k, k + block)
            products, powers = (x[:, s][r].float().mul_(y[:, s][c]) for x, y in ((a, w), (a_power, w_power)))
            tops = torch.nn.functional.pad(powers, (0, -powers.shape[1] % step)).unflatten(1, (-1, step)).amax(2)
            for j, top in enumerate(tops.clamp_(min=2.0**_ORDINARY).unbind(1)):
                acc = _ordinary_step(products[:, j * step : (j + 1) * step], top, acc, core, 1)
        out[some] = acc
    return out


def _powers(e: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 2^e in a 16-bit dtype of exponents int16 [...]; 0 for a zero's."""
    shift, _, bias = _FIELDS[dtype]
    return torch.where(e == _NOTHING, 0, (e + bias) << shift).to(torch.int16).view(dtype)


def _operands(a: torch.Tensor, w: torch.Tensor, core: TensorCore) -> tuple[torch.Tensor, torch.Tensor]:
    """Check operands and return them as the unit reads them."""
    names = [NAMES.get(x.dtype, str(x.dtype)) for x in (a, w)]
    alike = names[0] == names[1] or set(names) <= set(FP8)
    if not alike or not set(names) <= set(core.inputs):
        must = " or ".join(str(OPERANDS.get(name, name)) for name in core.inputs)
        raise ValueError(f"a, w: got {a.dtype} and {w.dtype}, must both be {must} ({core.name})")
    if a.dtype == torch.float32:
        a, w = ((x.view(torch.int32) & _TF32).view(torch.float32) for x in (a, w))
    return a, w


def _added(a: torch.Tensor, w: torch.Tensor, total: torch.Tensor, core: TensorCore, step: int | None) -> torch.Tensor:
    """Add the products of a and w, [K, ...], to fp64 `total`, of the shape that they broadcast to without K."""
    step = step or core.products
    require(1 <= step <= core.products, f"step: got {step}, must be 1 to {core.products} ({core.name})")
    as_stored = core.exponents == "operands"
    if as_stored:
        a_exp, w_exp = operand_exponent(a), operand_exponent(w)
        if _ordinary(a_exp, w_exp, len(a), a.dtype, core, total):
            return _ordinary_sum(a, w, a_exp, w_exp, total.float(), core, step)
    a64, w64 = a.double(), w.double()
    if not as_stored:
        a_exp, w_exp = exponent(a64), exponent(w64)
    special = _may_leave_range(a64, w64, total, core)
    for k in range(0, len(a), step):
        s = slice(k, k + step)
        p = a64[s] * w64[s]
        e = exponent(p) if core.exponents == "product" else a_exp[s] + w_exp[s]
        ieee = _ieee_sum(p, total, core) if special else None
        total = _step(p, e, total, core)
        if ieee is not None:
            total = torch.where(ieee.isfinite(), total, ieee)
            total = torch.where(
                total.abs() >= 2.0**128, torch.copysign(torch.full_like(total, torch.inf), total), total
            )
    out = total.float()
    if not core.signed_zero:
        out = out + 0.0  # a negative sum that becomes zero, too, is +0
    return torch.where(out.isnan(), torch.tensor(core.nan, dtype=torch.int32, device=a.device).view(torch.float32), out)


def _ordinary(
    a_exp: torch.Tensor, w_exp: torch.Tensor, K: int, dtype: torch.dtype, core: TensorCore, acc: torch.Tensor
) -> bool:
    """Say whether K products, and sums of them, are so far from the ends of fp32's range that `_ordinary_sum` holds."""
    plain = (core.cut, core.store, core.form, core.sum_bits) == ("zero", "rtz", "fp32", None)
    plain = plain and core.zero_accumulator is None and not core.signed_zero and core.products <= 16 and core.bits <= 25
    if not plain or not a_exp.numel() or not w_exp.numel() or dtype not in (torch.bfloat16, torch.float16):
        return False
    ends = [end for e in (a_exp, w_exp) for end in (e.masked_fill(e == _NOTHING, 0).amin(), e.amax())]
    size = acc.abs()
    small = ((size > 0) & (size < 2.0**_ORDINARY)).any()
    values = torch.stack([*(end.double() for end in ends), size.amax(), small.double()]).tolist()
    a_low, a_top, w_low, w_top, largest, any_small = values
    finite = max(a_top, w_top) <= math.log2(torch.finfo(dtype).max)
    low = a_low + w_low >= _ORDINARY and not any_small
    return finite and low and a_top + w_top + math.log2(K) + 2 <= -_ORDINARY and largest <= 2.0**-_ORDINARY


def _ordinary_sum(
    a: torch.Tensor, w: torch.Tensor, a_exp: torch.Tensor, w_exp: torch.Tensor, acc: torch.Tensor, core: TensorCore,
    step: int,
) -> torch.Tensor:  # fmt: skip
    """Do what `_added` does where nothing is subnormal or overflows: products fit fp32, and 16 cut ones an int32.

    A cut product is below (2 - 2^-10)^2 * 2^bits, bits <= 25; an accumulator is a multiple of 2^(_ORDINARY-bits), so
    that with no product as large as 2^_ORDINARY a cut there changes nothing.
    """
    a, w = a.float(), w.float()
    for k in range(0, len(a), step):
        s = slice(k, k + step)
        top = (a_exp[s] + w_exp[s]).amax(0).clamp_(min=_ORDINARY).int()
        acc = _ordinary_step(a[s] * w[s], ((top + 127) << 23).view(torch.float32), acc, core, 0)
    return acc


def _ordinary_step(p: torch.Tensor, top: torch.Tensor, acc: torch.Tensor, core: TensorCore, along: int) -> torch.Tensor:
    """Add products p, whose dimension `along` is summed, of largest power of two `top` to acc, all fp32."""
    top = torch.maximum(top, (acc.view(torch.int32) & (0xFF << 23)).view(torch.float32))
    scale = 2.0**core.bits / top
    total = (p * scale.unsqueeze(along)).int().sum(along, dtype=torch.int32).double()  # to an integer: toward zero
    total += (acc * scale).trunc_()
    total = (total.view(torch.int64) & -(1 << 29)).view(torch.float64)  # 24 bits
    return total.mul_(top).mul_(2.0**-core.bits).float()


def _step(p: torch.Tensor, e: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Add products p fp64 [s, ...] of exponents e int16 to acc fp64 [...]; p is overwritten."""
    lowest = _LOWEST if core.least_exponent is None else core.least_exponent
    top = e.amax(0).clamp_(min=lowest)
    of_acc = exponent(acc, _LEAST[core.form])  # a subnormal accumulator counts as stored, too
    if core.zero_accumulator is not None:
        of_acc = of_acc.clamp_(min=core.zero_accumulator)
    both = torch.maximum(top, of_acc).long()
    if core.sum_bits is None:
        return stored(aligned_sum(p, acc, both, core), core)
    products = _cut(p.mul_(power_of_two(core.bits - top.long())), core.cut).sum(0)
    products = products.mul_(power_of_two(top.long() - core.bits)).mul_(power_of_two(core.sum_bits - both)).floor_()
    held = (acc * power_of_two(core.bits - both)).floor_().mul_(2.0 ** (core.sum_bits - core.bits))
    return stored(products.add_(held).mul_(power_of_two(both - core.sum_bits)), core)


def aligned_sum(p: torch.Tensor, acc: torch.Tensor, top: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Return fp64 acc + the sum of p [s, ...], each cut at core.bits below exponent `top`; p is overwritten."""
    scale = power_of_two(core.bits - top)
    return _cut(p.mul_(scale), core.cut).sum(0).add_(_cut(acc * scale, core.cut)).mul_(power_of_two(top - core.bits))


def stored(x: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Round fp64 sums to the unit's form and return them as fp64."""
    if core.form == "fp16":
        return torch.copysign(round_in_fp64(x, torch.float16, core.store), x)
    if core.store == "rne":
        return x.float().double()
    return truncate_fp32(x, 13 if core.form == "e8m13" else 23)


def _may_leave_range(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> bool:
    """Say whether an infinity, a NaN or an overflow can occur; what cannot need not be looked for in each step."""
    if not a.numel() or not w.numel():
        return False
    bound = a.abs().amax() * w.abs().amax() * a.shape[0] + acc.abs().amax()
    return not bool(bound < (2.0**15 if core.form == "fp16" else 2.0**127))


def _ieee_sum(p: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Return fp64 acc + sum of p, which no finite terms can bring to infinity; CDNA3's products end at fp32's range."""
    if core.sum_bits is not None:
        p = torch.where(p.abs() >= 2.0**128, torch.copysign(torch.full_like(p, torch.inf), p), p)
    return p.sum(0) + acc
