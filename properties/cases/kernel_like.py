"""KernelLike: what a harness asks of a kernel; `@moeracle.kernel` and the simulations make such records."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from moeracle.ref.contracts.contract import Contract

from .case import Case
from .optable import OPS, PLACEMENTS, W13_FORMS, WIDTHS


class KernelLike(Protocol):
    """One kernel under judgement: what it computes, what it reads and what it promises."""

    @property
    def op(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def fn(self) -> Callable[..., Any]: ...
    @property
    def contract(self) -> Contract: ...
    @property
    def device(self) -> str: ...
    @property
    def layout(self) -> str | None: ...
    @property
    def zeros(self) -> tuple[str, ...]: ...
    @property
    def dtypes(self) -> tuple[str, ...]: ...
    def why_not(self, case: Case) -> str | None:
        """Return the reason why the kernel does not take the case, or None."""
        ...

    def contract_for(self, case: Case) -> Contract:
        """Return the contract that the kernel is judged under on this case."""
        ...


def not_declared(kernel: KernelLike, case: Case) -> str | None:
    """Say in one line which declared field of a kernel excludes a case: op, layout, zeros or dtypes; None if none."""
    if case.op != kernel.op:
        return f"op is {kernel.op}, not {case.op}"
    if case.layout != "-" and kernel.layout not in (None, case.layout):
        return f"layout is {kernel.layout}, not {case.layout}"
    if case.layout != "-" and case.zero not in kernel.zeros:
        return f"zero points are {', '.join(kernel.zeros)}, not {case.zero}"
    if case.dtype != "-" and case.dtype not in kernel.dtypes:
        return f"dtype is {', '.join(kernel.dtypes)}, not {case.dtype}"
    words = set(OPS[case.op].weight_flags) & case.flags
    read = words_read(kernel)
    if not words <= set(read):
        return f"weights are {', '.join(read) or 'plain'}, not {', '.join(sorted(words - set(read)))}"
    width = set(read) & set(WIDTHS)
    if not width <= words:
        return "weights are of 8-bit codes, not of 4"
    orders = set(read) & set(W13_FORMS)
    if orders and not orders & words:
        return f"rows of w13 are {', '.join(orders)}, not gate before up"
    ranks, extra = kernel.contract.ranks, OPS[case.op].extra
    if ranks is not None:
        placed = next((word for word in PLACEMENTS if word in case.flags), None)
        if placed is not None:
            return f"it runs over {ranks.count} ranks, and {placed} is one rank's part alone"
        if case.E - ranks.shared < ranks.count:
            return f"it runs over {ranks.count} ranks, of which {case.E} experts leave some without any"
    if extra is not None and not case.flags.isdisjoint(PLACEMENTS) and not takes_extra(kernel):
        return f"it has no parameter {extra.name}"
    return None


def words_read(kernel: KernelLike) -> tuple[str, ...]:
    """Return the words of the layout field that a kernel declares."""
    return tuple(getattr(kernel, "weights", ()))


def words_required(kernel: KernelLike) -> tuple[str, ...]:
    """Return the words that every case of a kernel has: the width of its codes, and the first form of w13."""
    read = words_read(kernel)
    return (*(word for word in WIDTHS if word in read), *[word for word in W13_FORMS if word in read][:1])


def takes_extra(kernel: KernelLike) -> bool:
    """Say whether a kernel has a parameter for its op's extra argument; True where the op has none.

    *args do not count: who takes everything says nothing.
    """
    said = getattr(kernel, "extra", None)
    return has_extra(kernel.op, kernel.fn) if said is None else bool(said)


def has_extra(op: str, fn: Callable[..., object]) -> bool:
    """Say whether a function has a parameter for its op's extra argument."""
    extra, arguments = OPS[op].extra, OPS[op].arguments
    if extra is None:
        return True
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin function shows no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > len(arguments) and (
        positional[len(arguments)].name == extra.name or positional[len(arguments)].default is inspect.Parameter.empty
    )
