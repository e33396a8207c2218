"""Which core modules are mutated, by which tests each is judged, and how many mutants of it are drawn.

Tests are pytest arguments, the quickest first: the run of a mutant ends at the first failure.
"""

from __future__ import annotations

from typing import NamedTuple


class Module(NamedTuple):
    """One module: its path, its tests, and how many of its mutants are drawn when there are more."""

    path: str
    tests: tuple[str, ...]
    limit: int


_REF, _PROPERTIES = "tests/ref/", "tests/properties/"
_INTERVAL = (
    _REF + "bounds/test_bounds.py",
    _REF + "bounds/test_dot.py",
    _REF + "bounds/test_silu_band.py",
    _REF + "bounds/test_moe_w4a16.py",
)
_NO_ALARM = tuple(
    f"{_PROPERTIES}test_judge.py::test_a_kernel_that_keeps_its_contract_is_never_illegal[{case}]"
    for case in ("padded_gemm-grouped", "moe_w4a16-wmma")
)
_JUDGE = (
    *(_PROPERTIES + name for name in ("compare/test_judge_faults.py", "compare/test_shapes.py")),
    "--deselect=" + _PROPERTIES + "test_judge.py::test_a_kernel_that_keeps_its_contract_is_never_illegal",
    _PROPERTIES + "test_judge.py",
)

MODULES = (
    Module("ref/rounding.py", (_REF + "test_rounding.py", _REF + "bounds/test_dot.py"), 80),
    Module(
        "ref/bounds/band.py",
        (_REF + "bounds/test_band.py", *_INTERVAL, _PROPERTIES + "compare/test_tally.py", _NO_ALARM[1]),
        90,
    ),
    Module("ref/bounds/dot.py", (*_INTERVAL, _PROPERTIES + "compare/test_judge_faults.py", *_NO_ALARM), 90),
    Module("ref/bounds/moe_w4a16.py", (*_INTERVAL, _PROPERTIES + "compare/test_judge_faults.py", *_NO_ALARM), 80),
    Module(
        "properties/compare/tally.py",
        (
            _PROPERTIES + "compare/test_tally.py",
            _PROPERTIES + "compare/test_tally_numbers.py",
            _PROPERTIES + "compare/test_judge_faults.py",
        ),
        80,
    ),
    Module("properties/compare/floats.py", (_PROPERTIES + "compare/test_judge_float.py", *_JUDGE), 60),
    Module(
        "ref/contracts/contract.py",
        (_REF + "contracts/test_contract.py", _REF + "test_mistakes.py", _REF + "bounds/test_bounds.py"),
        30,
    ),
    Module("ref/ops/int4_linear.py", (_REF + "ops/test_gemm.py", _REF + "test_mistakes.py"), 10),
    Module("ref/ops/grouped_gemm.py", (_REF + "ops/test_gemm.py", _REF + "test_mistakes.py"), 10),
    Module("ref/ops/padded_gemm.py", (_REF + "ops/test_gemm.py", _REF + "test_mistakes.py"), 10),
    Module(
        "ref/ops/moe_w4a16.py",
        (_REF + "ops/test_gemm.py", _REF + "test_mistakes.py", _REF + "bounds/test_moe_w4a16.py"),
        25,
    ),
    Module("ref/activation.py", (_PROPERTIES + "test_activations.py",), 30),
    Module(
        "ref/bounds/activation.py", (_REF + "bounds/test_silu_band.py", _REF + "bounds/test_activation_gates.py"), 40
    ),
    Module("ref/ops/silu_and_mul.py", (_REF + "ops/test_gemm.py", _REF + "test_mistakes.py"), 20),
    Module("ref/weights/layouts.py", (_REF + "weights/test_layouts.py", _REF + "weights/test_zero_layouts.py"), 30),
    Module(
        "ref/weights/dequantize.py",
        (_REF + "weights/test_dequantize.py", _REF + "test_mistakes.py", _REF + "weights/test_weight.py"),
        30,
    ),
    Module("ref/ops/moe_align_block_size.py", (_REF + "ops/test_moe_permute.py", _REF + "test_mistakes.py"), 30),
    Module("ref/ops/moe_permute.py", (_REF + "ops/test_moe_permute.py", _REF + "test_mistakes.py"), 30),
    Module("ref/ops/grouped_topk.py", (_REF + "ops/test_topk_softmax.py",), 20),
    Module("ref/ops/topk_softmax.py", (_REF + "ops/test_topk_softmax.py",), 30),
    Module("properties/judge/__init__.py", (_PROPERTIES + "compare/test_judge_explain.py", *_JUDGE), 30),
    Module("properties/ops/moe_permute.py", (_PROPERTIES + "compare/test_judge_index.py",), 30),
    Module(
        "properties/compare/topk.py",
        (_PROPERTIES + "compare/test_judge_routing_numbers.py", _PROPERTIES + "compare/test_judge_topk.py"),
        30,
    ),
)
