"""A layer put together from a TARGET's single kernels: each judged from its own input, the first wrong one convicted.

unpack_int4, dequantize_int4 of w13 and w2; moe_permute, or moe_align_block_size; grouped_gemm or padded_gemm with w13;
silu_and_mul; the same GEMM with w2; moe_unpermute. Where TARGET has no kernel the reference takes the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from moeracle.ref.ops.moe_align_block_size import moe_align_block_size

from ..cases.case import Case, Problem
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.endings import ENDINGS
from ..common.verdict import Verdict, failed
from ..fault_matrix.published_rules import reference_output
from ..judge import judge
from ..trial.call import call, ending_of
from .suspects import ACTIVATION, GEMM1, GEMM2, REDUCTION, ROUTING, SCALE, UNPACK

BLOCK = 16


class Link(NamedTuple):
    """One step: its stage, and what it works on."""

    stage: str
    what: str


@dataclass
class ChainReport:
    """What the single kernels of a TARGET do on one layer.

    Args:
        links: each step with its verdict, in order.
        notes: what a reader must know.
    """

    links: list[tuple[Link, Verdict]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """The first wrong stage, "" if none is."""
        return next((link.stage for link, verdict in self.links if verdict.status == "illegal"), "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        links = [{**link._asdict(), "verdict": verdict.as_dict()} for link, verdict in self.links]
        return {"stage": self.stage, "links": links, "notes": self.notes}


def chain_of(kernels: Iterable[KernelLike], case: Case) -> dict[str, KernelLike]:
    """Return the kernels that a moe_w4a16 case can be put together from, by op; empty for a case of another op.

    Args:
        kernels: any.
        case: whose layout and dtype they must take.
    Returns:
        {op: the first kernel of that op that takes the case}.
    """
    if not record_of(case.op).bisected_by_stages:
        return {}
    chosen: dict[str, KernelLike] = {}
    for kernel in kernels:
        first = record_of(kernel.op).step_of_layer and kernel.op not in chosen
        if first and kernel.why_not(_case_of(kernel.op, case)) is None:
            chosen[kernel.op] = kernel
    return chosen


def bisect_chain(kernels: dict[str, KernelLike], case: Case, *, device: str | None = None) -> ChainReport:
    """Run a layer step by step.

    Args:
        kernels: by op, from chain_of.
        case: of moe_w4a16.
        device: where to run; None takes the kernels'.
    Returns:
        ChainReport, with one verdict a step.
    """
    where = device or next(iter(kernels.values())).device
    layer = case.build(where).args
    x, ids, weights, dtype = layer["x"], layer["topk_ids"], layer["topk_weights"], layer["x"].dtype
    run = _Runner(kernels, ChainReport())
    for name in ("w13", "w2"):
        shape = case.weight_shapes()[name]
        for op, stage in (("unpack_int4", UNPACK), ("dequantize_int4", SCALE)):
            if op in kernels:
                run(op, Link(stage, name), _case_of(op, case, shape), {"w": layer[name]})
    op = next((op for op in ("grouped_gemm", "padded_gemm") if op in kernels), "grouped_gemm")
    padded = op == "padded_gemm"
    h_case, y_case = (_case_of(op, case, case.weight_shapes()[name]) for name in ("w13", "w2"))
    if padded:
        args = {"topk_ids": ids, "block_size": BLOCK, "num_experts": case.E, "expert_map": None}
        placed = run("moe_align_block_size", Link(ROUTING, "blocks"), _case_of("moe_align_block_size", case), args)
        blocks = dict(zip(("sorted_token_ids", "expert_ids", "num_tokens_post_padded"), placed, strict=True))
        truth = {"topk_ids": ids, "block_size": BLOCK, "expert_map": None}
        own = {"x": x, "w": layer["w13"], **blocks, "topk_weights": None, "top_k": case.k}
        h = run(op, Link(GEMM1, "h"), h_case, own, truth)
        inv = torch.arange(case.R, dtype=torch.int32, device=x.device)
    else:
        args = {"x": x, "topk_ids": ids, "num_experts": case.E, "expert_map": None}
        rows, offsets, inv = run("moe_permute", Link(ROUTING, "rows"), _case_of("moe_permute", case), args)
        truth = {"topk_ids": ids, "inv": inv, "expert_map": None}
        h = run(op, Link(GEMM1, "h"), h_case, {"x": rows, "w": layer["w13"], "expert_offsets": offsets}, truth)
    a = run("silu_and_mul", Link(ACTIVATION, "a"), _case_of("silu_and_mul", case), {"h": h})
    if padded:  # each slot is a token of its own now
        slots = ids.reshape(-1, 1)
        placed = moe_align_block_size(slots, BLOCK, case.E, None)
        blocks = dict(zip(blocks, placed, strict=True))
        own = {"x": a, "w": layer["w2"], **blocks, "topk_weights": None, "top_k": 1}
        y = run(op, Link(GEMM2, "y"), y_case.replace(T=case.R, k=1), own, {**truth, "topk_ids": slots})
    else:
        y = run(op, Link(GEMM2, "y"), y_case, {"x": a, "w": layer["w2"], "expert_offsets": offsets}, truth)
        y[int(offsets[-1]) :] = 0
    last = {"y": y.to(dtype), "topk_weights": torch.where(ids >= 0, weights, 0), "inv": inv}
    run("moe_unpermute", Link(REDUCTION, "out"), _case_of("moe_unpermute", case), last)
    missing = [
        name for name in ("moe_permute", op, "silu_and_mul", "moe_unpermute") if name not in kernels and not padded
    ]
    if missing:
        run.report.notes.append(f"TARGET has no kernel for {', '.join(missing)}: the reference took those steps")
    return run.report


class _Runner:
    """Runs and judges one step after another."""

    def __init__(self, kernels: dict[str, KernelLike], report: ChainReport) -> None:
        self.kernels, self.report = kernels, report

    def __call__(
        self, op: str, link: Link, case: Case, args: dict[str, Any], truth: dict[str, Any] | None = None
    ) -> Any:
        problem = Problem(case, args, truth or {})
        kernel = self.kernels.get(op)
        if kernel is None:
            return reference_output(problem)
        try:
            output = call(kernel, args, 0)
        except Exception as error:
            tier, lines = ending_of(error)
            verdict = failed(Verdict(op, str(case)), tier, "", *lines)
            output = None
        else:
            rules = kernel.contract_for(case)
            verdict = judge(problem, output, rules)
        verdict.kernel = kernel.name
        self.report.links.append((link, verdict))
        return reference_output(problem) if verdict.tier in ("call", "shape", *ENDINGS) else output


def _case_of(op: str, case: Case, shape: tuple[int, int] | None = None) -> Case:
    """Return the case of one step, for its sizes and its names; the data come from the steps before."""
    N, K = shape or case.weight_shapes()["w13"]
    sizes = {"T": case.T, "E": case.E, "k": case.k, "N": N, "K": K, "G": case.G, "I": case.I, "B": BLOCK}
    return record_of(op).step_case(case, sizes)


__all__ = ["ChainReport", "bisect_chain", "chain_of"]
