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


_REF, _PROPERTIES = "tests/ref/test_", "tests/properties/test_"
_INTERVAL = (_REF + "bounds.py", _REF + "interval.py", _REF + "silu_band.py", _REF + "interval_moe.py")
_NO_ALARM = tuple(
    f"{_PROPERTIES}judge.py::test_a_kernel_that_keeps_its_contract_is_never_illegal[{case}]"
    for case in ("padded_gemm-grouped", "moe_w4a16-wmma")
)
_JUDGE = (
    *(_PROPERTIES + name for name in ("judge_faults.py", "shapes.py")),
    "--deselect=" + _PROPERTIES + "judge.py::test_a_kernel_that_keeps_its_contract_is_never_illegal",
    _PROPERTIES + "judge.py",
)

MODULES = (
    Module("ref/rounding.py", (_REF + "rounding.py", _REF + "interval.py"), 80),
    Module("ref/band.py", (_REF + "band.py", *_INTERVAL, _PROPERTIES + "tally.py", _NO_ALARM[1]), 90),
    Module("ref/interval.py", (*_INTERVAL, _PROPERTIES + "judge_faults.py", *_NO_ALARM), 90),
    Module("ref/interval_moe.py", (*_INTERVAL, _PROPERTIES + "judge_faults.py", *_NO_ALARM), 80),
    Module(
        "properties/judge/tally.py",
        (_PROPERTIES + "tally.py", _PROPERTIES + "tally_numbers.py", _PROPERTIES + "judge_faults.py"),
        80,
    ),
    Module("properties/judge/floats.py", (_PROPERTIES + "judge_float.py", *_JUDGE), 60),
    Module("ref/contract.py", (_REF + "contract.py", _REF + "mistakes.py", _REF + "bounds.py"), 30),
    Module("ref/gemm.py", (_REF + "gemm.py", _REF + "mistakes.py"), 30),
    Module("ref/moe.py", (_REF + "gemm.py", _REF + "mistakes.py", _REF + "interval_moe.py"), 25),
    Module("ref/activation.py", (_REF + "gemm.py", _REF + "mistakes.py"), 20),
    Module("ref/layouts.py", (_REF + "layouts.py", _REF + "zero_layouts.py"), 30),
    Module("ref/dequantize.py", (_REF + "dequantize.py", _REF + "mistakes.py", _REF + "weight.py"), 30),
    Module("ref/align.py", (_REF + "dispatch.py", _REF + "mistakes.py"), 30),
    Module("ref/dispatch.py", (_REF + "dispatch.py", _REF + "mistakes.py"), 30),
    Module("ref/routing.py", (_REF + "routing.py",), 30),
    Module("properties/judge/__init__.py", (_PROPERTIES + "judge_explain.py", *_JUDGE), 30),
    Module("properties/ops/moe_permute.py", (_PROPERTIES + "judge_index.py",), 30),
    Module("properties/judge/topk.py", (_PROPERTIES + "judge_routing_numbers.py", _PROPERTIES + "judge_topk.py"), 30),
)
