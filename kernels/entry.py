"""What is said of one kernel: what it implements, reads, promises and cannot do.

Importing this module imports no kernel and no triton; `Entry.load` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from typing import Any

import torch

__all__ = ["DEVICE", "EXLLAMA_ZEROS", "Entry", "any_case", "everywhere"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXLLAMA_ZEROS = ("sym", "rdna", "unpacked")


def any_case(case: Any) -> bool | str:
    """Support every case.

    Args:
        case: of the entry's op.
    Returns:
        True.
    """
    return True


def everywhere(device: str) -> bool:
    """Run on any device.

    Args:
        device: "cpu", "cuda" or "cuda:N".
    Returns:
        True.
    """
    return True


@dataclass(frozen=True)
class Entry:
    """One kernel, with the fields of `@moeracle.kernel`.

    Args:
        op: the op it implements; its arguments are the op's.
        name: its name in reports.
        fn: "module:function", imported by `load` only.
        layout: the packed layout it reads, or None for an op without int4 weights.
        contract: a preset's text.
        device: "cuda" or "cpu" (Triton's interpreter, corrected).
        supports: case -> True, or a reason why not.
        zeros: zero points it reads, as in a case's layout field.
        dtypes: activation dtypes.
        schedule: the text of the schedules that it keeps on compute capability 9.0, whatever the tile; a function from
            a case to such a text where they depend on the case (case_schedules.py); None: it adds nothing whose order
            a contract can name. A HIP kernel's holds wherever dot2 is two fused multiply-adds.
        here: device -> whether this machine's is one it runs on; elsewhere it is left out unless it is named.
        needs: what that machine must have, in words, where it is not any.
        dry_arguments: kernels.compile.dry_args.Size -> the arguments that the compile table calls it with; None: those
            of the op in dry_args.py.
        given: named arguments that `fn` is always called with. Those of them that only make it keep its stages for the
            judge (`return_stages`) are left out where it is timed: `load` returns a function with that one as `timed`.
        expected: what the machine code of each Triton kernel that it launches must hold, by the kernel's name, beside
            kernels/compile/expectations.json.
    """

    op: str
    name: str
    fn: str
    layout: str | None = None
    contract: str = "grouped"
    device: str = DEVICE
    supports: Callable[[Any], bool | str] = any_case
    zeros: tuple[str, ...] = ("sym",)
    dtypes: tuple[str, ...] = ("bf16", "fp16")
    schedule: str | Callable[[Any], str | None] | None = None
    here: Callable[[str], bool] = everywhere
    needs: str = ""
    dry_arguments: Callable[[Any], tuple[Any, ...]] | None = None
    given: Mapping[str, Any] = field(default_factory=dict, hash=False)
    expected: Mapping[str, list[str]] = field(default_factory=dict, hash=False)

    def load(self) -> Callable[..., Any]:
        """Import the kernel and return its function.

        Raises:
            ImportError: triton is not installed.
            RuntimeError: no GPU, and triton was imported before its interpreter could be corrected.
        """
        module, function = self.fn.split(":")
        fn: Callable[..., Any] = getattr(import_module(module), function)
        if not self.given:
            return fn

        @wraps(fn)
        def judged(*args: Any, **named: Any) -> Any:
            return fn(*args, **{**named, **self.given})

        if "return_stages" in self.given:
            judged.timed = fn  # type: ignore[attr-defined]
        return judged
