"""Inference: a kernel's contract, learned from its outputs alone.

weights  one-hot rows: the weight's and the store's rounding, where scale and zero point enter
facts    three-term sums: bits kept, rounding, subnormals
reveal   FPRev's ±M among units: the summation tree; levels turns it into schedules
fit      sums of nothing but rounding error: which instruction and which schedule predict every bit
layer    sparse layers: silu, stores, router weight, top-k sum
verify   random cases, judged with what was found
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case
from ..cases.cost import require_numbers
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.torch_state import our_arithmetic
from .calls import Calls, ProbeError, RecordingCalls, ReplayedCalls, Tick
from .declared import compare, declared_by
from .drive import Dots, Site, find_site, site_of
from .found import Inference, nearest_preset, settle
from .gemm import find_gemm, find_rounding_of_fp16, find_second, first_dots
from .small import find_small, is_small, small_case
from .verify import verify

__all__ = ["Inference", "ProbeError", "infer", "infer_recorded"]


def infer(
    kernel: KernelLike,
    *,
    dtype: str | None = None,
    k: int | None = None,
    zero: str | None = None,
    rows: int | None = None,
    group: int | None = None,
    tick: Tick | None = None,
    record: Callable[[RecordingCalls, Inference], None] | None = None,
) -> Inference:
    """Learn a kernel's contract by probing it.

    Args:
        kernel: of an op whose record names fields that can be inferred, as @moeracle.kernel makes.
        dtype: of the activations, "bf16" or "fp16"; None: bf16 if the kernel takes it.
        k: length of the dot products; None: what suits the op.
        zero: the zero-point form whose path is probed; None: symmetric if the kernel reads that.
        rows: rows a call, None: 256 or what the kernel takes; few rows may be added in another order.
        group: of the weights' scales, -1 for one a row; None: 32, or what the kernel takes.
        tick: called with the progress as (phase and rows so far, number of the phase, how many there are).
        record: called with every call made and what was found, before verifying.
    Returns:
        Inference; `.explained` says whether the contract explains the kernel's outputs.
    Raises:
        ValueError: the op has no GEMM, the kernel takes no suitable sizes, or it does not answer a probe.
    """
    calls = RecordingCalls(kernel, tick) if record is not None else Calls(kernel, tick)
    if is_small(kernel.op):
        result = _probe_small(kernel, calls, small_case(kernel, dtype, rows))
    else:
        result = _probe(kernel, calls, find_site(kernel, dtype=dtype, k=k, zero=zero, rows=rows, group=group))
    result.declared = compare(result, declared_by(kernel, result))
    if record is not None:
        assert isinstance(calls, RecordingCalls)
        record(calls, result)
    calls.phase = "verifying"
    started = time.perf_counter()
    verify(kernel, calls, result)
    result.seconds += time.perf_counter() - started
    return result


def infer_recorded(path: Path) -> Inference:
    """Learn a contract from recorded outputs; nothing runs, and no random case is judged.

    Args:
        path: the recording (docs/infer.md).
    Returns:
        Inference, without verdicts.
    Raises:
        ValueError: in one line: another format version, or the probes are not those that were recorded.
    """
    calls = ReplayedCalls(path)
    case = Case.parse(calls.header.site)
    require_numbers(case, f"recording {path}")
    try:
        small = is_small(case.op)
        result = _probe_small(calls.kernel, calls, case) if small else _probe(calls.kernel, calls, site_of(case))
        result.declared = compare(result, calls.header.declared)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise ValueError(f"recording {path}: its answers are none of a kernel of {case.op} ({said})") from error
    return result


def _probe(kernel: KernelLike, calls: Calls, site: Site) -> Inference:
    started = time.perf_counter()
    result, record = Inference(kernel.name, kernel.op, str(site.case), kernel.device), record_of(kernel.op)
    with our_arithmetic():
        direct = Dots(calls, site, "h" if record.layer else "out")
        stages = direct.answers() if record.layer else {"out"}
        dots = first_dots(site, stages, direct) if record.layer else direct
        rules = Contract("found")
        if dots is not None:
            rules = find_gemm(dots, result)
            if record.layer:
                rules = find_second(dots, stages, rules, result)
        calls.phase = "layer"
        rules = record.find_around_gemm(direct, rules, dots is None, result)
        if dots is not None:
            rules = find_rounding_of_fp16(direct, stages, rules, result)
    return _settled(result, rules, calls, started)


def _probe_small(kernel: KernelLike, calls: Calls, case: Case) -> Inference:
    started = time.perf_counter()
    result = Inference(kernel.name, kernel.op, str(case), kernel.device)
    with our_arithmetic():
        rules = find_small(calls, case, result)
    return _settled(result, rules, calls, started)


def _settled(result: Inference, rules: Contract, calls: Calls, started: float) -> Inference:
    result.nearest, result.differences = nearest_preset(rules, result.op)
    result.contract = settle(rules, result.nearest, result.op)
    result.calls, result.rows = calls.count, calls.rows
    result.seconds = time.perf_counter() - started
    return result
