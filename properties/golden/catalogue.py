"""What the shipped golden set holds: each case, the contracts it is derived under, and what it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

from ..cases.case import Case, Problem
from ..cases.optable import OPS, ZERO_LAYOUT
from ..cases.record import OpRecord, record_of
from .literal_data import Literal
from .literals import DEQUANTIZE, ROUTING, UNPACK
from .literals_gemm import ACTIVATION, INT8, LAYER, LINEAR, SHARED


def of_records() -> Iterator[Literal]:
    """Yield the literals that stand in the records of their ops."""
    for op in OPS:
        yield from record_of(op).golden_literals


LITERALS: dict[str, Literal] = {
    literal.name: literal
    for literal in (*UNPACK, *DEQUANTIZE, *ROUTING, *LINEAR, *ACTIVATION, *LAYER, *SHARED, *INT8, *of_records())
}
# A preset with a version comes with a release; the shipped files hold the kernels as they were first described.
LAYER_CONTRACTS = tuple(name for name in OpRecord.presets if "@" not in name)
# One preset of each way to form the weights and to round: cast, exact; what else a preset says is the layer's.
GEMM_CONTRACTS = ("grouped", "wvsplitk")
FORMS = [(layout, zero) for layout, zeros in ZERO_LAYOUT.items() for zero in zeros]


@dataclass(frozen=True)
class Item:
    """One case of a set.

    Args:
        case: its text; a literal's says only its op, shapes and dtype.
        contracts: under which it is derived.
        why: what it is there for.
        literal: the literal's name, or "".
    """

    case: str
    contracts: tuple[str, ...]
    why: str
    literal: str = ""

    @property
    def op(self) -> str:
        """The case's op."""
        return self.case.partition("/")[0]

    @property
    def name(self) -> str:
        """The fixture's name: the literal's, or the case's text without its op, with dots for slashes."""
        return self.literal.partition(".")[2] if self.literal else self.case.partition("/")[2].replace("/", ".")

    def problem(self) -> Problem:
        """Build it on the CPU.

        Raises:
            ValueError: the case or the literal is unknown to this version.
        """
        if not self.literal:
            return Case.parse(self.case).build()
        if self.literal not in LITERALS:
            raise ValueError(f"golden: this version has no literal case {self.literal!r}; regenerate the set")
        return LITERALS[self.literal].problem()


def items() -> list[Item]:
    """Return the shipped set's cases, op by op."""
    by_op: dict[str, dict[str, Item]] = {op: {} for op in OPS}
    for literal in LITERALS.values():
        item = Item(literal.case, (literal.contract,), literal.why, literal.name)
        by_op[item.op][literal.name] = item
    of_ops = (row for op in OPS for row in record_of(op).golden_cases())
    for text, contracts, why in (*_weights(), *_gemms(), *_layers(), *_shared(), *_large(), *_others(), *of_ops):
        case = Case.parse(text)
        by_op[case.op].setdefault(str(case), Item(str(case), contracts or (OPS[case.op].default_contract,), why))
    return [item for of_op in by_op.values() for item in of_op.values()]


Row = tuple[str, tuple[str, ...], str]


def _weights() -> Iterator[Row]:
    """Every layout with every form of zero points, unpacked, dequantized and multiplied."""
    dtypes = cycle(("bf16", "fp16", "fp16", "bf16"))
    for seed, (layout, zero) in enumerate(FORMS):
        form, dtype = f"{layout}-{zero}", next(dtypes)
        why = f"{layout} words, zero points {zero}"
        yield f"unpack_int4/N16-K32-G16/{dtype}/{form}/-/codes16/s{seed}", (), why
        yield f"dequantize_int4/E2-N16-K32-G16/{dtype}/{form}/-/codes16/s{seed}", (), why
        yield f"int4_linear/T3-N16-K64-G32/{dtype}/{form}/-/normal/s{seed}", GEMM_CONTRACTS, why
        yield f"moe_w4a16/T3-E3-k2-H32-I16-G16/{dtype}/{form}/uniform/normal/s{seed}", ("grouped",), why
    for dtype in ("bf16", "fp16"):
        for seed in (1, 2):
            yield f"dequantize_int4/N8-K32-G16/{dtype}/exllama-sym/-/subnormal/s{seed}", (), "subnormal scales"
        yield f"dequantize_int4/N8-K32-G-1/{dtype}/gptq-v1+pad32/-/wide/s5", (), "one group a row, padded rows"
    rtz = ("grouped,weight_rounding=rtz,store_rounding=rtz",)
    yield "dequantize_int4/N16-K32-G16/bf16/exllama-unpacked/-/normal/s6", rtz, "weights cut instead of rounded"
    yield "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal+bias/s6", rtz, "stores cut instead of rounded"


def _gemms() -> Iterator[Row]:
    recipes = [r for r in OPS["int4_linear"].data if r != "normal"]
    for seed, recipe in enumerate(recipes):
        dtype = ("bf16", "fp16")[seed % 2]
        yield f"int4_linear/T4-N16-K64-G32/{dtype}/exllama-sym/-/{recipe}+bias/s{seed}", GEMM_CONTRACTS, recipe
        head = "normal" if recipe == "codes16" else recipe
        yield f"int8_lm_head/T3-V16-K64-G32/{dtype}/-/-/{head}/s{seed}", (), head
    yield "int4_linear/T0-N16-K64-G32/bf16/exllama-sym/-/normal/s1", GEMM_CONTRACTS, "no tokens"
    yield "int8_lm_head/T3-V16-K64-G-1/bf16/-/-/normal+bias/s1", (), "one scale a row, bias"
    for op, block in (("grouped_gemm", ""), ("padded_gemm", "-B4")):
        for seed, (routing, dtype, data) in enumerate(
            (
                ("empty", "bf16", "normal"),
                ("ignored", "fp16", "outliers"),
                ("onehot", "bf16", "cancelling"),
                ("repeat", "fp16", "integers"),
                ("ignored+ep2", "bf16", "wide"),
            )
        ):
            weight = "+weight" if block and seed % 2 else ""
            text = f"{op}/T7-E5-k2-N16-K32-G16{block}/{dtype}/exllama-sym/{routing}{weight}/{data}/s{seed}"
            contracts = (*GEMM_CONTRACTS, "marlin") if weight else GEMM_CONTRACTS
            yield text, contracts, f"routing {routing}, {data}"
        yield f"{op}/T0-E5-k2-N16-K32-G16{block}/bf16/exllama-sym/uniform/normal/s9", GEMM_CONTRACTS, "no tokens"


def _layers() -> Iterator[Row]:
    whole = "T5-E4-k2-H32-I32-G16"
    yield f"moe_w4a16/{whole}/bf16/exllama-sym/ignored/normal/s1", LAYER_CONTRACTS, "each contract's stages, ids of -1"
    yield f"moe_w4a16/{whole}/fp16/gptq-v2/zipf1/normal/s2", LAYER_CONTRACTS, "each contract's stages, zero points"
    yield "moe_w4a16/T2-E6-k5-H32-I32-G16/bf16/exllama-sym/uniform/normal/s3", LAYER_CONTRACTS, "k = 5: sums in fp32"
    some = ("grouped", "megakernel", "et_vecmat", "gptq_awq")
    for seed, recipe in enumerate(r for r in OPS["moe_w4a16"].data if r not in ("normal", "sweep", "onehot2")):
        dtype = ("bf16", "fp16")[seed % 2]
        routing = ("empty", "onehot", "uniform", "repeat")[seed % 4]
        yield (
            f"moe_w4a16/T4-E4-k2-H32-I16-G16/{dtype}/exllama-sym/{routing}/{recipe}/s{seed}",
            some,
            f"{recipe}, {routing}",
        )
    yield "moe_w4a16/T0-E4-k2-H32-I16-G16/bf16/exllama-sym/uniform/normal/s4", some, "no tokens"
    yield "moe_w4a16/T1-E4-k1-H32-I16-G16/fp16/awq-asym/uniform/normal/s5", some, "one token, one slot"


def _shared() -> Iterator[Row]:
    gates = ("grouped", "grouped,gate=unfused", "grouped,gate=fp32", "grouped,gate=fp32,stores=h+a+out")
    for seed, recipe in enumerate(r for r in OPS["shared_expert"].data if r not in ("sweep", "onehot2")):
        dtype, gate = ("bf16", "fp16")[seed % 2], "" if seed % 3 == 2 else "+gate"
        text = f"shared_expert/T4-H32-I32-G16/{dtype}/exllama-sym/-/{recipe}{gate}/s{seed}"
        yield text, gates if gate else ("grouped", "wvsplitk"), f"{recipe}, {'with a gate' if gate else 'no gate'}"
    yield "shared_expert/T0-H32-I32-G16/bf16/exllama-sym/-/normal+gate/s1", gates, "no tokens"
    yield "shared_expert/T3-H32-I32-G16/bf16/gptq-v1/-/normal+gate/s2", gates, "zero points"
    for seed, recipe in enumerate(OPS["tiny_dot"].data):
        for dtype, flag in (("bf16", ""), ("fp16", "+sigmoid")):
            yield f"tiny_dot/T4-K64/{dtype}/-/-/{recipe}{flag}/s{seed}", (), f"{recipe}{flag.replace('+', ', ')}"


def _large() -> Iterator[Row]:
    """What kernels take whose tiles are large: whole multiples of 64 and more."""
    why = "large enough for whole tiles"
    for seed, (dtype, G) in enumerate((("bf16", 128), ("fp16", 32), ("bf16", 64)), 50):
        form = ("exllama-sym", "gptq-v1", "awq-asym")[seed - 50]
        yield f"int4_linear/T4-N128-K256-G{G}/{dtype}/{form}/-/normal/s{seed}", GEMM_CONTRACTS, why
    for dtype, G in (("bf16", 128), ("fp16", 32)):
        yield f"grouped_gemm/T8-E4-k2-N128-K256-G{G}/{dtype}/exllama-sym/ignored/normal/s53", ("grouped",), why
        yield f"padded_gemm/T8-E4-k2-N128-K256-G{G}-B16/{dtype}/exllama-sym/ignored/normal/s53", ("grouped",), why
        text = f"moe_w4a16/T4-E4-k2-H256-I128-G{G}/{dtype}/exllama-sym/ignored/normal/s54"
        yield text, ("grouped", "gptq_awq", "megakernel"), why
        yield f"shared_expert/T4-H256-I128-G{G}/{dtype}/exllama-sym/-/normal+gate/s55", ("grouped",), why
        yield f"int8_lm_head/T4-V128-K256-G{G}/{dtype}/-/-/normal/s56", (), why


def _others() -> Iterator[Row]:
    for seed, (dtype, flag, recipe) in enumerate(
        (d, f, r) for r in OPS["topk_softmax"].data for d, f in (("bf16", ""), ("fp16", "+renorm"), ("fp32", "+renorm"))
    ):
        yield f"topk_softmax/T7-E16-k4/{dtype}/-/-{flag}/{recipe}/s{seed}", (), f"{recipe} logits"
    yield "topk_softmax/T0-E8-k2/bf16/-/-/normal/s1", (), "no tokens"
    for seed, routing in enumerate((*OPS["moe_permute"].routings, "ignored+ep2")):
        yield f"moe_align_block_size/T9-E6-k2-B4/-/-/{routing}/-/s{seed}", (), f"routing {routing}"
        recipe = ("normal", "wide", "subnormal", "integers")[seed % 4]
        yield (
            f"moe_permute/T5-E6-k2-K8/{('bf16', 'fp16')[seed % 2]}/-/{routing}/{recipe}/s{seed}",
            (),
            f"routing {routing}",
        )
    yield "moe_align_block_size/T0-E6-k2-B4/-/-/uniform/-/s1", (), "no tokens"
    yield "moe_permute/T0-E6-k2-K8/bf16/-/uniform/normal/s1", (), "no tokens"
    for seed, recipe in enumerate(OPS["moe_unpermute"].data):
        text = f"moe_unpermute/T5-E6-k3-K16/{('bf16', 'fp16')[seed % 2]}/-/ignored/{recipe}/s{seed}"
        yield text, ("grouped", "gptq_awq"), f"{recipe}: summed in fp32, and slot by slot"
    for dtype in ("bf16", "fp16"):
        for seed, recipe in enumerate(OPS["silu_and_mul"].data):
            size = "T16-I64" if recipe == "allgates" else "T4-I32"
            yield f"silu_and_mul/{size}/{dtype}/-/-/{recipe}/s{seed}", ("grouped", "et_batched"), f"{recipe} gates"
    yield "silu_and_mul/T0-I32/bf16/-/-/normal/s1", (), "no tokens"
    for seed, recipe in enumerate(OPS["quantize_int8"].data):
        for dtype, group in (("bf16", 32), ("fp16", -1), ("fp32", 16)):
            yield f"quantize_int8/V4-K64-G{group}/{dtype}/-/-/{recipe}/s{seed}", (), f"{recipe} weights"
