"""Kernels under judgement: `@moeracle.kernel` declares one, with everything the judge must know about it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from moeracle.properties.cases.case import TORCH_DTYPE, Case
from moeracle.properties.cases.kernel_like import has_extra, not_declared
from moeracle.properties.cases.optable import NONE, OPS, ZERO_LAYOUT, code_bits, zero_forms
from moeracle.properties.common.endings import Ended
from moeracle.properties.compare.sums import require_sums
from moeracle.ref.contracts.contract import Contract, contract, with_schedules
from moeracle.ref.contracts.ranks import MOST
from moeracle.ref.errors import require, unknown
from moeracle.text import one_line

from .devices import check_device as check_device
from .devices import require_device as require_device
from .interpreter import interpreter_is_wrong
from .tiles import tile_of, tile_texts, with_values

Function = TypeVar("Function", bound=Callable[..., Any])
ZEROS = tuple(dict.fromkeys(zero for forms in ZERO_LAYOUT.values() for zero in forms))
_RECORDS = "__moeracle_kernels__"
_BY_MODULE: dict[str, list[Kernel]] = {}


@dataclass(frozen=True)
class Kernel:
    """One function under judgement, and everything it declares.

    Args:
        op: the op it implements, one of docs/cases.md; also the argument list it is called with.
        name: what reports call it.
        fn: the function.
        layout: the int4 layout it reads, or None for every layout (and for ops without int4 weights).
        contract: the roundings it may make.
        device: where its inputs live, "cpu", "cuda" or "cuda:N".
        supports: takes a Case; returns True, or the reason why not as text. None: every case.
        zeros: the zero-point forms it reads, of those a Case can name.
        dtypes: the activation dtypes it takes, of "bf16", "fp16", "fp32".
        module: the module that declared it.
        scheduled_zeros: the zero-point forms for which the contract's schedule holds; None: every one.
        schedule: takes a Case; returns the text of the schedule that the contract has there, perhaps with further ones
            ("A,gemm2_schedule=B"), or None for none.
        declared: whether a contract was declared; if not, it is the op's default, and `check` infers one first.
        extra: whether the function has a parameter for the op's extra argument.
        weights: what it reads besides plain weights: "act", "short", "scale16", "scale32"; or how it wants w13's
            rows, "upgate" or "interleaved".
        tiles: the texts of the tiles that it may be called with (target.tiles).
        source: where the function is written, "FILE:LINE" from the current folder; "" if it is not below that.
        world_size: the number of ranks that it runs over, each a process; 1: it runs in one.
    """

    op: str
    name: str
    fn: Callable[..., Any]
    layout: str | None
    contract: Contract
    device: str
    supports: Callable[[Case], bool | str] | None
    zeros: tuple[str, ...]
    dtypes: tuple[str, ...]
    module: str
    scheduled_zeros: tuple[str, ...] | None = None
    schedule: Callable[[Case], str | None] | None = None
    declared: bool = True
    extra: bool = True
    weights: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()
    source: str = ""
    world_size: int = 1

    def with_tile(self, text: str) -> Kernel:
        """Return the kernel with one of its tiles; `supports` and `schedule` get the values that they have names for.

        Raises:
            ValueError: it has no such tile.
        """
        if text not in self.tiles:
            raise unknown(f"tile of {self.name}", text, self.tiles)
        values = tile_of(text)
        return replace(
            self,
            name=f"{self.name}[{text}]",
            fn=with_values(self.fn, values),
            supports=self.supports and with_values(self.supports, values, whole=False),
            schedule=self.schedule and with_values(self.schedule, values, whole=False),
            tiles=(),
        )

    def contract_for(self, case: Case) -> Contract:
        """Return the contract with this case's schedule; without one whose zero points it was not declared for.

        Raises:
            ValueError: `schedule` raised, or its text is no schedule that this contract can have.
        """
        if self.schedule is not None:
            try:
                text = self.schedule(case)
            except Ended as ended:
                raise Ended(ended.tier, f"schedule: {ended.lines[0]}", *ended.lines[1:], case=str(case)) from None
            except Exception as error:
                raise DeclaredError(f"schedule of {self.name}: raised {_one_line(error)}", case) from error
            return self.contract if text is None else with_schedules(self.contract, text)
        zeros = self.scheduled_zeros
        holds = self.contract.schedule is None or zeros is None or case.zero in (*zeros, "-")
        return self.contract if holds else self.contract.unscheduled

    def why_not(self, case: Case) -> str | None:
        """Say in one line why this kernel does not take the case, or None if it does.

        Raises:
            ValueError: `supports` raised, or returned neither a bool nor text.
        """
        return not_declared(self, case) or self._unsupported(case) or self._interpreter_objection(case)

    def _unsupported(self, case: Case) -> str | None:
        if self.supports is None:
            return None
        try:
            answer = self.supports(case)
        except Ended as ended:
            raise Ended(ended.tier, f"supports: {ended.lines[0]}", *ended.lines[1:], case=str(case)) from None
        except Exception as error:
            raise DeclaredError(f"supports of {self.name}: raised {_one_line(error)}", case) from error
        if isinstance(answer, str):
            return one_line(answer) or "supports() gave an empty reason"
        if not isinstance(answer, bool):
            must = "must be True or the reason as text"
            raise DeclaredError(f"supports of {self.name}: returned {answer!r}, {must},", case)
        return None if answer else "supports() said no"

    def interpreted_wrongly(self) -> bool:
        """Say whether the kernel's process runs Triton in an interpreter whose bf16 is not corrected."""
        return interpreter_is_wrong()

    def _interpreter_objection(self, case: Case) -> str | None:
        """Refuse bf16 where the interpreter is not corrected: it works on raw bits, a verdict would prove nothing."""
        if case.dtype != "bf16" or not self.interpreted_wrongly():
            return None
        return "Triton's interpreter computes bf16 wrongly here, and is not corrected"


class DeclaredError(ValueError):
    """What `supports` or `schedule` of one kernel did in place of answering.

    Args:
        text: one line, without the case.
        case: that they were asked about.
    """

    def __init__(self, text: str, case: Case) -> None:
        super().__init__(f"{text} on {case}")
        self.case = case


class SaidError(Exception):
    """An exception of a kernel's own process, of which only the line came over."""


def _one_line(error: BaseException) -> str:
    if isinstance(error, SaidError):
        return str(error)
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _names(what: str, got: Iterable[str] | str, allowed: Iterable[str]) -> tuple[str, ...]:
    names = (got,) if isinstance(got, str) else tuple(got)
    if not names:
        raise ValueError(f"{what}: got none, must hold at least one of {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise unknown(what, name, allowed)
    return names


def make_kernel(
    fn: Callable[..., Any],
    op: str,
    *,
    layout: str | None = None,
    contract: str | Contract | None = None,
    device: str = "cpu",
    supports: Callable[[Case], bool | str] | None = None,
    name: str | None = None,
    zeros: Iterable[str] | str = ("sym",),
    dtypes: Iterable[str] | str = ("bf16", "fp16"),
    scheduled_zeros: tuple[str, ...] | None = None,
    schedule: Callable[[Case], str | None] | None = None,
    weights: Iterable[str] | str = (),
    tiles: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]] | None = None,
    world_size: int = 1,
) -> Kernel:
    """Return the checked record of one kernel; the arguments are those of `kernel`."""
    if op not in OPS:
        raise unknown("op", op, OPS)
    words = _weights(op, weights)
    known = zero_forms(words)
    if layout is not None and layout not in known:
        raise unknown("layout of 8-bit codes" if code_bits(words) == 8 else "layout", layout, known)
    if not callable(fn):
        raise ValueError(f"kernel {name or op}: got {type(fn).__name__}, must be a function")
    for given, what in ((supports, "supports"), (schedule, "schedule")):
        if given is not None and not callable(given):
            raise ValueError(f"{what}: got {given!r}, must be a function of a Case")
    read = _names("zeros", zeros, ZEROS)
    if OPS[op].weight and layout is not None and not set(read) & set(known[layout]):
        forms = ", ".join(known[layout])
        raise ValueError(f"zeros: got {', '.join(read)}, layout {layout} must have one of {forms}")
    extra = has_extra(op, fn)
    taken = OPS[op].dtypes if OPS[op].dtypes != NONE else tuple(TORCH_DTYPE)
    return Kernel(
        op=op,
        name=one_line(str(name or getattr(fn, "__name__", op))),
        fn=_with_extra(fn) if extra and OPS[op].extra else fn,
        layout=layout,
        contract=_contract(op, contract, world_size, extra),
        device=_device(device, world_size),
        supports=supports,
        zeros=read,
        dtypes=_names(f"dtypes of {op}", dtypes, taken),
        module=getattr(fn, "__module__", "") or "",
        scheduled_zeros=scheduled_zeros,
        schedule=schedule,
        declared=contract is not None,
        extra=extra,
        weights=_weights(op, weights),
        tiles=() if tiles is None else tile_texts(fn, tiles),
        source=_source(fn),
        world_size=world_size,
    )


def _source(fn: Callable[..., Any]) -> str:
    with suppress(Exception):  # whatever fn says of itself, or a folder that is gone
        code = inspect.unwrap(fn).__code__
        file = os.path.relpath(os.path.realpath(code.co_filename), os.path.realpath(os.getcwd()))
        return "" if file.startswith(os.pardir) else f"{file}:{code.co_firstlineno}"
    return ""


def _weights(op: str, given: Iterable[str] | str) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else tuple(given)
    if words and not OPS[op].weight_flags:
        raise ValueError(f"weights: got {', '.join(words)}, {op} reads no int4 weight")
    return _names(f"weights of {op}", words, OPS[op].weight_flags) if words else ()


def _with_extra(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gets None for the op's extra argument where a case brings none and it has no default."""
    parameters = [p for p in inspect.signature(fn).parameters.values() if p.kind != p.KEYWORD_ONLY]
    last = [p for p in parameters if p.kind != p.VAR_POSITIONAL][-1]
    if last.default is not inspect.Parameter.empty:
        return fn

    @functools.wraps(fn)
    def called(*args: Any, **tile: Any) -> Any:
        return fn(*args, *[None] * (len(parameters) - len(args)), **tile)

    return called


def _contract(op: str, given: str | Contract | None, world_size: int, extra: bool) -> Contract:
    """Return the contract, which says where ranks round their sums; none given: as torch's all_reduce adds in D."""
    right = isinstance(world_size, int) and not isinstance(world_size, bool) and 1 <= world_size <= MOST
    require(right, f"world_size: got {world_size!r}, must be the number of ranks, 1 to {MOST}")
    reduced = f",ranks={world_size}/dtype/add=dtype" if world_size > 1 else ""
    rules = contract(f"{OPS[op].default_contract}{reduced}" if given is None else given)
    require_sums(op, rules)
    if world_size > 1:
        count = 0 if rules.ranks is None else rules.ranks.count
        said = f"contract {rules.name!r} with world_size={world_size}"
        require(count == world_size, f"ranks: got {said}, must say where ranks round: {(reduced or ',')[1:]}, say")
        require(extra, f"expert_map: got none with world_size={world_size}, must be the sixth parameter of the kernel")
    return rules


def _device(device: str, world_size: int) -> str:
    numbered = world_size > 1 and ":" in check_device(device)
    require(not numbered, f"device: got {device!r} with world_size={world_size}, must be without number: one a rank")
    return check_device(device)


_DECLARABLE = tuple(inspect.signature(make_kernel).parameters)[2:]


def kernel(op: str, **declared: Any) -> Callable[[Function], Function]:
    """Declare a function to be a kernel for `op`; the function itself is returned unchanged.

    Args:
        op: the op, e.g. "moe_w4a16"; the function is called with that op's arguments, positionally.
        layout: one of `moeracle.ref.LAYOUTS`, under "w8" one of LAYOUTS8, or None: every layout.
        contract: a preset's name with overrides ("grouped,depth=64") or a Contract; None: "grouped"
            ("int8_lm_head" for that op), until `moeracle check` has inferred one.
        device: "cpu", "cuda" or "cuda:N".
        supports: takes a Case, returns True or the reason why not.
        name: what reports call it; None: the function's name.
        zeros: zero-point forms it reads, ("sym",) if not said.
        dtypes: activation dtypes it takes, ("bf16", "fp16") if not said.
        schedule: takes a Case, returns the text of the schedule that its GEMMs keep there, or None: for a kernel whose
            tile depends on the case (one schedule for all is part of the contract's text). Further ones may follow,
            "A,gemm2_schedule=B,sum_schedule=fma".
        tiles: values by keyword-only parameter, all combinations of which it may be called with, or a list of such
            tiles: what `moeracle kernels tune` chooses from.
        world_size: the number of ranks that a layer runs over: it is called on each, in a process of its own, inside of
            torch.distributed's default group; its contract says where they round (ranks=…, docs/ranks.md).
    Returns:
        A decorator that registers a function and returns the function itself.
    Raises:
        ValueError: an unknown op, layout, contract, device, zero-point form or dtype, with the nearest name.
    """

    def declare(fn: Function) -> Function:
        record = make_kernel(fn, op, **declared)
        _BY_MODULE.setdefault(record.module, []).append(record)
        # A function may be declared more than once, e.g. for two layouts; some callables take no attributes.
        if hasattr(fn, "__dict__"):
            setattr(fn, _RECORDS, (*getattr(fn, _RECORDS, ()), record))
        return fn

    # What is unknown is reported where it was written, also if the function below it never gets defined.
    if callable(op):
        raise ValueError("kernel: got a function in place of an op, must be called with one: @moeracle.kernel(OP, …)")
    if op not in OPS:
        raise unknown("op", op, OPS)
    for name in declared:
        if name not in _DECLARABLE:
            raise unknown("kernel's argument", name, _DECLARABLE)
    return declare


def declared_in(module: Any) -> list[Kernel]:
    """List the kernels that a module, its submodules or the functions it re-exports declared, in order, each once."""
    name = module.__name__
    found: list[Kernel] = []
    for module_name, kernels in _BY_MODULE.items():
        if module_name == name or module_name.startswith(name + "."):
            found += kernels
    for value in list(vars(module).values()):
        records = getattr(value, _RECORDS, ()) if callable(value) else ()
        found += [r for r in records if isinstance(r, Kernel)]
    return list({id(k): k for k in found}.values())


def forget(module_name: str) -> None:
    """Drop what a module declared, before it is executed again."""
    _BY_MODULE.pop(module_name, None)
