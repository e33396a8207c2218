"""Accumulators: who adds the products of a dot product and what that may lose, one record each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..bitmodels.tensor_core import AMPERE, HOPPER, INSTRUCTIONS, TensorCore
from ..errors import require, unknown
from ..rounding import FORMATS

__all__ = ["ACCUMULATORS", "Accumulator"]

EVIDENCE = ("derived", "measured", "replayed", "published", "provisional")


@dataclass(frozen=True)
class Accumulator:
    """One way of adding products; M is the largest partial sum of any order, (T+|y|)/2 (docs/numerics.md).

    Args:
        what: one line for docs/numerics.md.
        unit: u, the relative error of one addition; None: partial sums are rounded to the activation dtype D.
        nearest: additions round to nearest, so that they lose nothing in the mean.
        within: looser accumulators whose bounds cover this one's, the narrowest first: its kernels are legal there.
        chain: products that are added one after another in D before their sum joins an fp32 one; 0: none are.
        instructions: those of a schedule for which this is the narrowest accumulator that covers them.
        core: the bit model of a matrix unit, from which a bound follows that is tighter than any order's; else None.
        sums_nearest: fp32 sums outside of dot products (the top-k sum) round to nearest; else toward zero.
        one_sign: only sums of one sign are known to be exact on small integers.
        evidence: one of EVIDENCE; a bit model's own, if there is one.
        source: where it is derived, measured or published.
    Raises:
        ValueError: unknown evidence, or a bit model from which the block's bound does not follow.
    """

    what: str
    unit: float | None
    nearest: bool = False
    within: tuple[str, ...] = ()
    chain: int = 0
    instructions: tuple[str, ...] = ()
    core: TensorCore | None = None
    sums_nearest: bool = True
    one_sign: bool = False
    evidence: str = "derived"
    source: str = "docs/numerics.md"

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE:
            raise unknown("evidence", self.evidence, EVIDENCE)
        require(self.nearest or self.unit is not None, "nearest: got False without a unit, must be True (sums in D)")
        if self.core is None:
            return
        name, u = self.core.name, self.unit
        require(self.core.sum_bits is None, f"core: got {name}, must align its accumulator with the products")
        require(bool(self.within), f"within: got none with core {name}, must name who adds where the unit does not")
        least = self.block_error_in(torch.float32) / self.block
        require(u is not None and u >= least, f"unit: got {u}, must be {least:g} or more: what {name} loses a product")

    @property
    def in_dtype(self) -> bool:
        """Say whether partial sums are rounded to D; unless they are chains', no schedule has a model then."""
        return self.unit is None

    @property
    def block(self) -> int:
        """Products that are added at once."""
        return 1 if self.core is None else self.core.products

    @property
    def mean_loss(self) -> float:
        """Mean share of M that one product loses: half of the most it may lose, or nothing with nearest rounding."""
        return 0.0 if self.nearest else self.block_error_in(torch.float32) / self.block / 2

    def unit_in(self, dtype: torch.dtype) -> float:
        """Return u, the relative error of one addition, for activations of `dtype`."""
        return 2.0 ** -(FORMATS[dtype][0] + 1) if self.unit is None else self.unit

    def block_error_in(self, dtype: torch.dtype) -> float:
        """Return the most that one block may lose, as a share of M, for activations of `dtype`.

        A matrix unit cuts the block's products and the sum before at 2^-bits of the largest, then stores in fp32:
        (products + 1) * 2^-bits + 2^-23, or 2^-24 where it stores to nearest.
        """
        if self.core is None:
            return self.unit_in(dtype)
        stored = 2.0**-23 if self.core.store == "rtz" else 2.0**-24
        return (self.core.products + 1) * 2.0**-self.core.bits + stored

    def bits_in(self, dtype: torch.dtype) -> int:
        """Return how many significant bits a partial sum holds, for activations of `dtype`."""
        return FORMATS[dtype][0] + 1 if self.in_dtype else 24


ACCUMULATORS: dict[str, Accumulator] = {
    "fp32": Accumulator(
        "fp32 adds, round to nearest even", 2.0**-24,
        nearest=True, within=("truncating", "tensor_core", "rdna"), instructions=("fma", "mul_add"),
    ),
    "tensor_core": Accumulator(
        "any NVIDIA tensor core since Ampere, order free", 2.0**-23,
        within=("rdna",),
        instructions=(
            "mma.m8n8k4.sm70", "tcgen05.k16.sm100", "mma.m16n8k16.sm120", "mma.m16n8k8.sm120",
            "mfma.k16.cdna3", "mfma.k8.cdna3",
        ),
        evidence="published", source="arxiv.org/abs/2511.10909, arxiv.org/abs/2512.07004",
    ),
    "hopper": Accumulator(
        "Hopper's tensor core, with its measured block behaviour: tighter (below)", 2.0**-23,
        within=("tensor_core", "rdna"), core=HOPPER,
        instructions=("wgmma.k16.sm90", "mma.m16n8k16.sm90", "mma.m16n8k16.sm100"),
        evidence=HOPPER.evidence, source="fixtures/hardware/h200, docs/bit-models.md",
    ),
    "ampere": Accumulator(  # Hopper's instruction of 8 products, too: its 25 bits lie within Ampere's 24
        "Ampere's and Ada's tensor core, with its published block behaviour: tighter (below)", 2.0**-23,
        within=("tensor_core", "rdna"),
        instructions=(
            "mma.m16n8k8.sm90", "mma.m16n8k8.sm100", "mma.m16n8k16.sm80", "mma.m16n8k8.sm80", "mma.m16n8k16.sm86",
            "mma.m16n8k8.sm86", "mma.m16n8k16.sm89", "mma.m16n8k8.sm89", "mma.m16n8k8.sm75",
        ),
        core=AMPERE,
        evidence=AMPERE.evidence, source="arxiv.org/abs/2511.10909, arxiv.org/abs/2512.07004",
    ),
    "truncating": Accumulator(
        "fp32 adds that round toward zero", 2.0**-23,
        within=("tensor_core", "rdna"), instructions=("fma.rz", "mul_add.rz"), sums_nearest=False,
    ),
    "rdna": Accumulator(
        "RDNA3 WMMA and dot2; **provisional, not verified on silicon**", 2.0**-22,
        one_sign=True, evidence="provisional", source="github.com/ROCm/rocm-systems/issues/12056",
    ),
    "chains": Accumulator(
        "chains of four products in D, fused; their sums in fp32 (below)", None,
        nearest=True, chain=4, instructions=("hfma",), evidence="published",
        source="vLLM csrc/moe/moe_wna16.cu, csrc/quantization/gptq/q_gemm.cu",
    ),
    "dtype": Accumulator("partial sums kept in the activation dtype", None, nearest=True),
}  # fmt: skip
LOOSEST = "dtype"  # whose bound is wider than every other's; `within` leaves it out, since it is another kind of kernel
ANY_MATRIX_UNIT = "tensor_core"


def of_instruction(instruction: str) -> str:
    """Return the accumulator whose bound holds for an instruction of a schedule."""
    found = next((name for name, adder in ACCUMULATORS.items() if instruction in adder.instructions), None)
    if found is None:
        raise unknown("instruction", instruction, [i for adder in ACCUMULATORS.values() for i in adder.instructions])
    return found


def of_step(products: int, bits: int) -> str:
    """Return the accumulator of matrix instructions that add so many products at once, cut at so many bits."""
    for name, adder in ACCUMULATORS.items():
        steps = [INSTRUCTIONS[i] for i in adder.instructions if adder.core is not None]
        if any(how.step == products and how.core is not None and how.core.bits == bits for how in steps):
            return name
    return ANY_MATRIX_UNIT


def covering(first: str, second: str) -> str:
    """Return the narrowest accumulator whose bound covers two."""
    both = _covers(first) & _covers(second)
    return next((name for name in ACCUMULATORS if name in both and both <= _covers(name)), LOOSEST)


def _covers(name: str) -> set[str]:
    return {name, *ACCUMULATORS[name].within}


def elsewhere(name: str) -> str:
    """Return the accumulator of sums that a matrix instruction does not add, about which its bit model says nothing."""
    adder = ACCUMULATORS[name]
    return name if adder.core is None else adder.within[0]
