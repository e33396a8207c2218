"""KernelLike: what a harness asks of a kernel; `@moeracle.kernel` and the simulations make such records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from moeracle.ref.contracts.contract import Contract

from .case import Case


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
    return None
