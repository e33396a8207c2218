"""Laws: what every right kernel obeys, whatever the formula. Two or more for each op; `hunt` puts them to a kernel.

Each law is a callable (kernel, case) -> Verdict, or None where it says nothing about that case or kernel. They do not
use the reference's arithmetic, so a mistake shared by a kernel and the reference cannot hide from them. The text of the
case is enough to see a failure again: `moeracle check TARGET --case TEXT` judges the case and then puts its laws to it.
"""

from __future__ import annotations

from ..case import Case
from ..cases.kernel_like import KernelLike
from ..verdict import Verdict, failed
from .batch import law_dispatch_counts_add_up, law_permuting_tokens, law_splitting_batches
from .bench import Bench, Broken, Law
from .change import by_token, local_slots
from .experts import (
    law_block_size,
    law_order_inside_blocks,
    law_order_of_slots,
    law_other_experts_weights,
    law_relabelling_experts,
    law_zero_router_weight,
)
from .routing import (
    law_choosing_fewer,
    law_every_slot_has_one_place,
    law_rows_keep_their_contents,
    law_weights_are_probabilities,
)
from .scaling import law_columns_are_independent, law_linearity, law_scaling_by_powers_of_two
from .shared import law_gates_of_both_signs_add_up, law_no_gate_weight_halves, law_sigmoids_of_both_signs_add_up
from .weights import (
    law_an_expert_alone,
    law_codes_at_their_zero_point,
    law_inverting_words,
    law_layouts_agree,
    law_negating_weights,
    law_packing_again,
    law_quantizing_again,
)

_BATCH: list[Law] = [law_permuting_tokens, law_splitting_batches]
_DENSE: list[Law] = [*_BATCH, law_scaling_by_powers_of_two, law_linearity, law_columns_are_independent]
_ROUTED: list[Law] = [
    *_BATCH,
    law_relabelling_experts,
    law_other_experts_weights,
    law_scaling_by_powers_of_two,
    law_linearity,
    law_layouts_agree,
]

LAWS: dict[str, list[Law]] = {
    "unpack_int4": [law_packing_again, law_inverting_words, law_an_expert_alone, law_layouts_agree],
    "dequantize_int4": [
        law_scaling_by_powers_of_two,
        law_codes_at_their_zero_point,
        law_an_expert_alone,
        law_layouts_agree,
    ],
    "topk_softmax": [*_BATCH, law_relabelling_experts, law_choosing_fewer, law_weights_are_probabilities],
    "moe_align_block_size": [
        law_every_slot_has_one_place,
        *_BATCH,
        law_relabelling_experts,
        law_block_size,
        law_dispatch_counts_add_up,
    ],
    "moe_permute": [law_rows_keep_their_contents, *_BATCH, law_relabelling_experts, law_dispatch_counts_add_up],
    "moe_unpermute": [*_BATCH, law_zero_router_weight, law_order_of_slots, law_scaling_by_powers_of_two],
    "int4_linear": [*_DENSE, law_layouts_agree],
    "grouped_gemm": _ROUTED,
    "padded_gemm": [*_ROUTED, law_zero_router_weight, law_block_size, law_order_inside_blocks],
    "silu_and_mul": [*_BATCH, law_scaling_by_powers_of_two, law_columns_are_independent],
    "moe_w4a16": [
        *_BATCH,
        law_relabelling_experts,
        law_other_experts_weights,
        law_zero_router_weight,
        law_order_of_slots,
        law_scaling_by_powers_of_two,
        law_layouts_agree,
    ],
    "quantize_int8": [*_BATCH, law_scaling_by_powers_of_two, law_negating_weights, law_quantizing_again],
    "int8_lm_head": _DENSE,
    "shared_expert": [
        *_BATCH,
        law_scaling_by_powers_of_two,
        law_no_gate_weight_halves,
        law_gates_of_both_signs_add_up,
        law_layouts_agree,
    ],
    "tiny_dot": [*_BATCH, law_scaling_by_powers_of_two, law_linearity, law_sigmoids_of_both_signs_add_up],
}


def law_grouped_equals_padded(
    grouped: KernelLike, padded: KernelLike, case: Case, *, bits: bool = False
) -> Verdict | None:
    """Return whether a grouped and a padded GEMM agree, slot by slot, on one problem; None if either declines.

    Bit for bit on exact data. With `bits` on the case's own data too: for two kernels of one family and one tile, which
    promise it.

    Args:
        grouped, padded: kernels for grouped_gemm and padded_gemm.
        case: a grouped_gemm case; the padded one has block size 16.
        bits: demand equal bits on any data.
    """
    name = "law_grouped_equals_padded"
    bench = Bench(name, "grouped GEMM and padded GEMM of the same rows are equal", grouped, case)
    sizes, text = {**case.sizes, "B": 16}, str(case).split("/")
    text[0], text[1] = "padded_gemm", "-".join(f"{letter}{size}" for letter, size in sizes.items())
    if grouped.why_not(case) is not None or padded.why_not(Case.parse("/".join(text))) is not None:
        return None
    try:
        problem, results = bench.start(exact=not bits)
        same = Case.parse("/".join(text)).replace(data=problem.case.data).build()
        other = Bench(name, bench.identity, padded, same.case)
        got = by_token(same, other.run(same, "the padded kernel"))["out"]
        expected = by_token(problem, results)["out"]
        where = local_slots(problem)[:, :, None]
        bench.equal("out", got, expected, ("token", "slot", "n"), where, f"padded by {padded.name}")
    except Broken as broken:
        failed(bench.verdict, "law", name, *broken.args, f"law: {bench.identity}")
    return bench.verdict
