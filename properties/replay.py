"""Replay: predict every bit of a recording from its inputs and its schedule, and count the bits that are so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from moeracle.ref.accumulate import accumulate
from moeracle.ref.accumulate_tensor_core import fused_dot
from moeracle.ref.band import add_band, exactly, weigh_band
from moeracle.ref.contract import Contract, contract
from moeracle.ref.errors import require
from moeracle.ref.gemm import expert_spans, padded_rows
from moeracle.ref.interval import dot_band, dot_weights
from moeracle.ref.interval_moe import expert_weights
from moeracle.ref.rounding import round_to
from moeracle.ref.schedule import Schedule

from .case import Case
from .problem import Problem
from .recordings import STORES, Entry

REPLAYED = ("int4_linear", "grouped_gemm", "padded_gemm")
INTEGER = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Replay:
    """How much of one entry was predicted: elements whose bits are equal, all elements, and the first that is not."""

    entry: Entry
    equal: int
    total: int
    first: str = ""

    @property
    def ok(self) -> bool:
        """Whether every bit is as predicted, of at least one element."""
        return self.equal == self.total > 0


def replay(entry: Entry, tensors: dict[str, torch.Tensor], schedule: str | None = None) -> Replay:
    """Predict one entry's stored bits and compare.

    Args:
        entry: what was recorded.
        tensors: its tensors; the work is done on their device.
        schedule: another schedule's text, to see that it does not fit; None: the entry's own.
    Returns:
        Replay; bits are compared, so -0 is not +0. Only a NaN that was rounded to D may hold any payload.
    Raises:
        ValueError: the schedule does not cover K, or names no instruction.
    """
    out = tensors["out"]
    rules = Schedule.parse(schedule or entry.schedule)
    if entry.kind == "dots":
        expected = predict_dots(tensors["a"], tensors["w"], tensors.get("acc"), rules)
        same = _bits(expected) == _bits(out)
    else:
        problem = Case.parse(entry.case).build(out.device)
        expected = predict_case(problem, replace(contract(entry.contract), schedule=rules), STORES[entry.store])
        require_shape(entry, expected, out)
        same = _bits(expected) == _bits(out)
        if entry.store != "fp32":
            same |= expected.isnan() & out.isnan()
    wrong = (~same).nonzero()
    first = ""
    if len(wrong):
        at = tuple(wrong[0].tolist())
        first = f"{list(at)}: recorded {_hex(out[at])}, predicted {_hex(expected[at])}"
    return Replay(entry, int(same.sum()), same.numel(), first)


def require_shape(entry: Entry, expected: torch.Tensor, out: torch.Tensor) -> None:
    """Raise ValueError if a recorded result has another shape than its case's."""
    got, must = tuple(out.shape), tuple(expected.shape)
    require(got == must, f"recording entry {entry.name}: out has shape {got}, must be {must}")


def predict_dots(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor | None, schedule: Schedule) -> torch.Tensor:
    """Return float32 [P, M, N]: acc + a w^T for each of P problems, under the schedule.

    Args:
        a: [P, M, K], bf16 or fp16.  w: [P, N, K], the same dtype, or int8 codes that the kernel converts to it.
        acc: float32 [P, M, N], what a single chain of a matrix unit starts from, or None for +0.
    """
    w = w.to(a.dtype)
    if acc is None:
        return torch.stack([accumulate(x, y, schedule) for x, y in zip(a, w, strict=True)])
    how = schedule.how
    alone = how.core is not None and schedule == Schedule(schedule.instruction)
    require(alone, f"schedule: got {schedule} with accumulators, must be a matrix instruction alone")
    assert how.core is not None
    sums = [fused_dot(x, y, how.core, c, step=how.step) for x, y, c in zip(a, w, acc, strict=True)]
    return torch.stack(sums)


def predict_case(problem: Problem, rules: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Return what a kernel of this contract and schedule stores, in dtype, rows that nobody computes as zeros.

    Args:
        problem: of int4_linear, grouped_gemm or padded_gemm.
        rules: with a schedule.
        dtype: of the store; fp32 leaves the accumulator as it is.
    """
    op = problem.case.op
    require(op in REPLAYED, f"replay: got a case of {op}, must be {', '.join(REPLAYED)}")
    args, x, w = problem.args, problem.args["x"], problem.args["w"]
    top_k, bias = args.get("top_k", 1), args.get("bias")
    out = torch.zeros(x.shape[0] * top_k, w.N, dtype=dtype, device=x.device)
    weights = None if args.get("topk_weights") is None else args["topk_weights"].reshape(-1, 1).double()
    of_expert = (lambda e: dot_weights(w, rules, x.dtype)) if w.E is None else expert_weights(w, rules, x.dtype)
    for e, rows in _routed_rows(problem):
        band = dot_band(exactly(x[rows // top_k]), of_expert(e), rules, x.dtype)
        if bias is not None:
            band = add_band(band, bias)
        if weights is not None:
            band = weigh_band(band, weights[rows])
        exact = band.lo.float() if dtype == torch.float32 else round_to(band.lo, dtype, rules.store_rounding)
        out[rows] = exact
    return out


def _routed_rows(problem: Problem) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (expert, its output rows)."""
    args, op = problem.args, problem.case.op
    if op == "int4_linear":
        yield 0, torch.arange(args["x"].shape[0], device=problem.device)
    elif op == "grouped_gemm":
        for e, start, stop in expert_spans(args["expert_offsets"]):
            yield e, torch.arange(start, stop, device=problem.device)
    else:
        R, block = args["x"].shape[0] * args["top_k"], problem.truth["block_size"]
        yield from padded_rows(args["sorted_token_ids"], args["expert_ids"], args["num_tokens_post_padded"], R, block)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(INTEGER[x.element_size()])


def _hex(x: torch.Tensor) -> str:
    size = x.element_size()
    return f"{int(_bits(x)) & (1 << 8 * size) - 1:0{2 * size}x}"
