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
from dataclasses import asdict, replace
from pathlib import Path

from moeracle.ref.contract import Contract

from ..case import Case
from ..judge import our_arithmetic
from ..trial import KernelLike
from .calls import Calls, ProbeError, RecordingCalls, ReplayedCalls, Tick
from .drive import GEMMS, Dots, Site, find_site, site_of
from .facts import accumulator_facts
from .fit import ask_noise
from .found import Inference, nearest_preset, settle
from .order import find_order
from .report import tell
from .routing import find_layer
from .verify import verify
from .weights import weight_path

__all__ = ["GEMMS", "Inference", "ProbeError", "infer", "infer_recorded"]


def infer(
    kernel: KernelLike,
    *,
    dtype: str | None = None,
    k: int | None = None,
    zero: str | None = None,
    rows: int | None = None,
    tick: Tick | None = None,
    record: Callable[[RecordingCalls], None] | None = None,
) -> Inference:
    """Learn a kernel's contract by probing it.

    Args:
        kernel: a record of one of GEMMS, as @moeracle.kernel makes.
        dtype: of the activations, "bf16" or "fp16"; None: bf16 if the kernel takes it.
        k: length of the dot products; None: what suits the op.
        zero: the zero-point form whose path is probed; None: symmetric if the kernel reads that.
        rows: rows a call, None: 256 or what the kernel takes; few rows may be added in another order.
        tick: told of progress as (phase and rows so far, number of the phase, how many there are).
        record: called with every call made, before verifying.
    Returns:
        Inference; `.explained` says whether the contract explains the kernel's outputs.
    Raises:
        ValueError: the op has no GEMM, the kernel takes no suitable sizes, or it does not answer a probe.
    """
    calls = RecordingCalls(kernel, tick) if record is not None else Calls(kernel, tick)
    result = _probe(kernel, calls, find_site(kernel, dtype=dtype, k=k, zero=zero, rows=rows))
    if record is not None:
        assert isinstance(calls, RecordingCalls)
        record(calls)
    calls.phase = "verifying"
    started = time.perf_counter()
    verify(kernel, calls, result)
    result.seconds += time.perf_counter() - started
    return result


def infer_recorded(path: Path) -> Inference:
    """Learn a contract from recorded outputs; nothing runs, and no random case is judged.

    Args:
        path: the recording (docs/infer.md).
    Raises:
        ValueError: in one line: another format version, or the probes are not those that were recorded.
    """
    calls = ReplayedCalls(path)
    return _probe(calls.kernel, calls, site_of(Case.parse(calls.header["site"])))


def _probe(kernel: KernelLike, calls: Calls, site: Site) -> Inference:
    started = time.perf_counter()
    result = Inference(kernel.name, kernel.op, str(site.case), kernel.device)
    with our_arithmetic():
        dots = Dots(calls, site)
        calls.phase = "weight path"
        opaque = kernel.op == "moe_w4a16" and not dots.answers()
        rules = Contract("found")
        if not opaque:
            path = weight_path(dots)
            rules = replace(rules, store_rounding=path.store_rounding, weight=path.weight or "cast",
                            weight_rounding=path.weight_rounding, zero_offset=path.zero_offset)  # fmt: skip
            tell(result, path, rules)
            calls.phase = "determinism"
            repeated = ask_noise(dots, 0, times=2)
            rules = replace(rules, deterministic=calls.repeats)
            calls.phase = "accumulator"
            facts = accumulator_facts(dots)
            rules = find_order(dots, rules, facts, [repeated], result)
            result.facts = {name: value for name, value in asdict(facts).items() if name != "evidence"}
        if kernel.op in ("moe_w4a16", "padded_gemm"):
            calls.phase = "layer"
            rules = find_layer(dots, rules, opaque, result)
        result.nearest, result.differences = nearest_preset(rules, kernel.op)
        result.contract = settle(rules, result.nearest, kernel.op)
    result.calls, result.rows = calls.count, calls.rows
    result.seconds = time.perf_counter() - started
    return result
