"""What published tolerance rules would have said: each as its project wrote it, to be run on the same outputs as ours.

They are here to be compared with, never to judge by. A rule answers "passes" for a final output against a reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..cases.case import Problem
from ..cases.record import record_of

Passes = Callable[[torch.Tensor, torch.Tensor], bool]
AITER_BAD_SHARE = 0.05


@dataclass(frozen=True)
class Rule:
    """A published rule: its name, `passes(got, want)`, and where it is used."""

    name: str
    passes: Passes
    source: str


def allclose(tolerance: float) -> Passes:
    """Return the rule |got - want| <= tolerance + tolerance * |want| for every element."""
    return lambda got, want: torch.allclose(got, want, rtol=tolerance, atol=tolerance)


def largest_error(limit: float) -> Passes:
    """Return the rule max |got - want| < limit."""
    return lambda got, want: got.numel() == 0 or bool((got - want).abs().max() < limit)


def nmse(limit: float) -> Passes:
    """Return the rule sum (got - want)^2 / sum want^2 <= limit, NaN and mismatched infinities refused beforehand."""

    def passes(got: torch.Tensor, want: torch.Tensor) -> bool:
        if bool((got.isnan() | want.isnan()).any()) or bool((got.isinf() & (got != want)).any()):
            return False
        error, size = (got - want).square().sum(), want.square().sum()
        return not bool(error / size > limit)  # as written there: what cannot be compared passes

    return passes


def cosine(limit: float) -> Passes:
    """Return the rule 1 - 2 got.want / (got.got + want.want) < limit."""

    def passes(got: torch.Tensor, want: torch.Tensor) -> bool:
        both = (got * got + want * want).sum()
        return bool(both == 0) or bool(1 - 2 * (got * want).sum() / both < limit)

    return passes


def share_of_bad(rtol: float, atol: float) -> Passes:
    """Return aiter's rule: at most 5 % of the elements outside |got - want| <= atol + rtol * |want|."""

    def passes(got: torch.Tensor, want: torch.Tensor) -> bool:
        bad = ~torch.isclose(got, want, rtol=rtol, atol=atol)
        return got.numel() == 0 or float(bad.double().mean()) <= AITER_BAD_SHARE

    return passes


_VLLM = "https://github.com/vllm-project/vllm/blob/main/tests/kernels/moe/test_moe.py"
_AITER = "https://github.com/ROCm/aiter/blob/main"
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("1e-2", allclose(1e-2), _VLLM),
        Rule("2e-2", allclose(2e-2), _VLLM),
        Rule("3e-2", allclose(3e-2), "https://github.com/ROCm/vllm/pull/980"),
        Rule(
            "abs 0.5",
            largest_error(0.5),
            "https://github.com/pytorch/executorch/blob/main/backends/cuda/tests/test_fused_moe.py",
        ),
        Rule("NMSE 5e-4", nmse(5e-4), "https://github.com/ggml-org/llama.cpp/blob/master/tests/test-backend-ops.cpp"),
        Rule(
            "cosine 1e-3",
            cosine(1e-3),
            "https://github.com/deepseek-ai/DeepGEMM/blob/main/deep_gemm/testing/numeric.py",
        ),
        Rule("cosine 0.1", cosine(0.1), "https://github.com/ROCm/aiter/issues/5032"),
        Rule("aiter 5 %", share_of_bad(1e-2, 1e-2), f"{_AITER}/aiter/test_common.py"),
        Rule("aiter atol 100", share_of_bad(1e-2, 100.0), f"{_AITER}/op_tests/test_moe.py"),
    )
}


def rules_that_see(got: torch.Tensor, want: torch.Tensor) -> set[str]:
    """Return the names of the rules that refuse `got` [..] against the reference `want`, compared in fp64."""
    got, want = got.double(), want.double()
    return {name for name, rule in RULES.items() if not rule.passes(got, want)}


def reference_output(problem: Problem) -> Any:
    """Return what the reference gives for a problem, in fp32, rounded once and in the form that a kernel returns."""
    record = record_of(problem.case.op)
    return record.as_output(record.reference(problem, torch.float32))


def compared(op: str, output: Any) -> torch.Tensor | None:
    """Return the float tensor of an op's result that a tolerance can be put on; None if there is none."""
    record = record_of(op)
    return None if output is None or not record.has("compared") else record.compared(output)
