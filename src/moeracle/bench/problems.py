"""The benchmark's problems: what to measure, its tensors, and the work in them.

Int4 weights are made once for a shape and stay on the device, whatever T and routing; the first routing of a rotation
is its case as the text says, the others have other ids, router weights and x over the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeracle.kernels.bench.cases import Shape, Work, dimensions, rotations
from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.cases.weights import WeightPlan, make_weight, weights_from
from moeracle.properties.hunt.must_run import weight_forms
from moeracle.ref.weights.weight import Int4Weight


@dataclass(frozen=True)
class Point:
    """One thing to measure: an op of a layer at one routing and number of tokens.

    block None is bench_cases.block_for; of the modifiers, each op takes those that it has.
    """

    op: str
    what: str
    shape_name: str
    shape: Shape
    archetype: str
    T: int
    dtype: str = "bf16"
    zero: str = "sym"
    block: int | None = None
    seed: int = 1
    modifiers: tuple[str, ...] = ()

    def case(self, rotation: int = 0) -> Case:
        """Return the case of one routing of the rotation."""
        record = record_of(self.op)
        sizes = {**OPS[self.op].plain_sizes, **dimensions(self.op, self.shape, self.T, self.what, self.block)}
        flags = {*record.routing_flags, *record.data_flags} & set(self.modifiers)
        seed = self.seed + rotation
        return record.case_of(sizes, dtype=self.dtype, zero=self.zero, routing=self.archetype, seed=seed, flags=flags)


def points(
    op: str, shapes: Mapping[str, Shape], archetypes: Sequence[str], tokens: Sequence[int], **fields: Any
) -> Iterator[Point]:
    """Yield what to measure of an op: both GEMMs of a layer where it has one weight, the op once where it has not.

    An op without routing is measured once for each T, under the archetype "-".
    """
    routed = tuple(archetypes) if set(archetypes) & set(OPS[op].routings) else ("-",)
    for name, shape in shapes.items():
        for what in record_of(op).timed_as or (op,):
            for archetype in routed:
                for T in tokens:
                    yield Point(op, what, name, shape, archetype, T, **fields)


def shape_cases(kernel: KernelLike, shapes: Sequence[Shape]) -> list[Case]:
    """Return cases of given shapes for a kernel: one token and a few, its dtypes and the forms that it reads in turn.

    Args:
        kernel: whose op, layouts, zero points and dtypes the cases have.
        shapes: of layers; an op that is one of a layer's GEMMs has a case for each of them.
    """
    op, cases, dtypes = OPS[kernel.op], [], [d for d in OPS[kernel.op].dtypes if d in (*kernel.dtypes, "-")]
    forms = weight_forms(kernel)
    for shape in shapes:
        for what in record_of(op.name).timed_as or (op.name,):
            for seed, T in enumerate((1, 33)):
                point = Point(op.name, what, "", shape, "zipf1", T, dtype=dtypes[seed % len(dtypes)], seed=seed)
                layout, zero = forms[seed % len(forms)]
                cases.append(point.case().replace(**({"layout": layout, "zero": zero} if op.weight else {})))
    return cases


class Problems:
    """Builds problems whose int4 weights are made once and stay on the device.

    Args:
        device: where.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._weights: dict[Any, Int4Weight] = {}

    def _shared_weight(self, case: Case, name: str, experts: int | None, plan: WeightPlan) -> Int4Weight:
        key = (name, experts, case.weight_shapes()[name], case.G, case.dtype, case.layout, case.zero, case.data)
        if key not in self._weights:
            whole = Problem(case, {name: make_weight(case, name, experts, plan)}).to(self.device)
            self._weights[key] = whole.args[name]
        return self._weights[key]

    def build(self, case: Case) -> Problem:
        """Return the case's problem on the device; its weights are those of the first case of the same sizes."""
        with weights_from(self._shared_weight):
            problem = record_of(case.op).build(case)
        whole = Problem(case, {}, problem.truth, problem.exact).to("cpu")
        for name, value in problem.args.items():
            own = isinstance(value, Int4Weight) and value.packed.device.type == torch.device(self.device).type
            whole.args[name] = value if own else Problem(case, {name: value}).to(self.device).args[name]
        whole.truth = Problem(case, dict(problem.truth)).to(self.device).args
        return whole

    def forget(self) -> None:
        """Drop every weight, before another shape needs the memory."""
        self._weights.clear()


def work_of(problem: Problem) -> Work:
    """Return what one call on this problem has to do; see bench_cases."""
    case, sizes, record = problem.case, problem.case.sizes, record_of(problem.case.op)
    ids = problem.args.get("topk_ids", problem.truth.get("topk_ids"))
    counts: tuple[int, ...] = ()
    if isinstance(ids, torch.Tensor):
        flat = ids.flatten().long().cpu()
        counts = tuple(c for c in torch.bincount(flat[flat >= 0], minlength=sizes["E"]).tolist() if c)
    weights, others = 0, 0
    rows = sum(counts) or sizes.get("T", 0)
    for name, value in problem.args.items():
        nbytes = Problem(case, {"value": value}).nbytes()
        if isinstance(value, Int4Weight):
            E = value.packed.shape[0] if value.packed.ndim == 3 else 1
            weights += nbytes * (len(counts) if counts and E > 1 else E) // E
        elif name in record.weight_arguments:
            weights += nbytes
        else:
            others += nbytes
    return Work(len(counts) or 1, rows, weights, others, record.flops(case, rows), counts)


def rotation(problems: Problems, point: Point, cache_bytes: int, least: int = 1) -> list[Problem]:
    """Build the problems of one point: several routings, or for a dense op several copies of the weight.

    Args:
        problems: builds them.
        point: what is measured.
        cache_bytes: of the device's last-level cache.
        least: routings at least.
    """
    first = problems.build(point.case())
    work = work_of(first)
    if "k" in first.case.sizes:
        stored = 2 * work.rows * sum(N for N, _ in first.case.weight_shapes().values())  # bf16 or fp16, by each GEMM
        count = max(least, rotations(work.weight_bytes, cache_bytes, others=work.other_bytes + stored))
        return [first, *(problems.build(point.case(i)) for i in range(1, count))]
    count = rotations(work.weight_bytes, cache_bytes, most=64)
    return [first, *(_copy_of(first) for _ in range(1, count))]


def _copy_of(problem: Problem) -> Problem:
    def copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, Int4Weight):
            zero = None if value.zero is None else value.zero.clone()
            return replace(value, packed=value.packed.clone(), scale=value.scale.clone(), zero=zero)
        return value

    return replace(problem, args={name: copy(value) for name, value in problem.args.items()})
