"""`moeracle infer`: learn the contract of every GEMM kernel of a TARGET from its outputs."""

from __future__ import annotations

import textwrap
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.cases.record import record_of
from moeracle.properties.infer import Inference, infer
from moeracle.properties.infer.found import contract_code
from moeracle.properties.infer.site import check_sizes
from moeracle.properties.report.report import isolation, require_writable, write_json
from moeracle.ref.errors import require
from moeracle.target.declaration import Kernel
from moeracle.target.load import runs_interpreted

from .console import Progress, print_table, say
from .loading import check_asked, kernels_of, limits_of, load, release, require_devices, say_where
from .options import InferOptions
from .process import use_one_thread

INTERPRETED_K = 64  # Triton's interpreter runs Python for every step
WIDTH = 118


def run_infer(options: InferOptions) -> int:
    """Probe the kernels of a TARGET and print each one's contract; return the exit code."""
    if options.target is None:
        raise ValueError("TARGET: got none, must be a module or file with kernels, unless --probe-hardware is given")
    check_asked(options.op, options.device)
    require(options.dtype in (None, "bf16", "fp16"), f"dtype: got {options.dtype!r}, must be bf16 or fp16")
    check_sizes(options.k, options.rows)
    require_writable(options.json)
    use_one_thread()
    limits = limits_of(options.case_timeout, options.max_memory)
    target = load(options.target, options.device, options.in_process, limits)
    named = kernels_of(target, {options.op} if options.op else ())
    kernels = [k for k in named if record_of(k.op).inferred]
    require_devices(kernels, options.device)
    results: list[Inference] = []
    with Progress() as progress:
        for kernel in kernels:
            results += _inferred(kernel, options, progress, alone=len(kernels) == 1)
            release(kernel)
    for kernel in named:
        record = record_of(kernel.op)
        if not record.inferred:
            say(f"[{kernel.op}] {kernel.name}: nothing to infer: {record.nothing_inferred}")
    say_where(options.in_process)
    for result in results:
        print_inference(result)
    if options.json:
        head = {
            "format_version": 1,
            "kind": "moeracle infer",
            "format": 1,
            "target": options.target,
            "isolation": isolation(options.in_process),
        }
        body = {**head, "kernels": [result.as_dict() for result in results]}
        write_json(options.json, body)
    if not all(result.explained for result in results):
        return ILLEGAL
    return 0 if len(results) == len(kernels) else UNJUDGED


def _inferred(kernel: Kernel, options: InferOptions, progress: Progress, alone: bool) -> list[Inference]:
    who = f"[{kernel.op}] {kernel.name}"
    progress.start(who)
    k = options.k if options.k is not None else INTERPRETED_K if runs_interpreted(kernel) else None
    try:
        result = infer(kernel, dtype=options.dtype, k=k, zero=options.zero, rows=options.rows, tick=progress)
    except ValueError as error:
        if alone:
            raise
        progress.note(f"{who}: not inferred: {error}")
        return []
    progress.note(f"{who}: {'found' if result.explained else 'UNKNOWN'}, {result.rows:,} rows, {result.seconds:.1f} s")
    return [result]


def print_inference(result: Inference) -> None:
    """Print what was found about one kernel."""
    say()
    say(f"[{result.op}] {result.kernel}  probed at {result.site} on {result.device}")
    judged = len(result.verdicts)
    if result.explained:
        say(f'  contract="{result.text}"')
        say(f"  {judged} random cases judged with it: all legal. {result.rows:,} probe rows, {result.seconds:.1f} s.")
    else:
        say(f"  UNKNOWN: no contract explains its outputs; the nearest is {result.text}")
        _wrapped(f"what does not fit: {result.why_not or 'no case could be judged'}")
    say()
    rows = [[f.field, _shown(f.value), f.status, f.evidence] for f in result.findings]
    print_table(("  field", "value", "", "what was seen"), [["  " + r[0], *r[1:]] for r in rows], text_columns=4)
    same = [f for f in result.findings if f.same]
    for finding in same:
        _wrapped(f"{finding.field}: outputs cannot tell {_shown(finding.value)} from {', '.join(finding.same)}")
    if result.picture:
        say()
        say(f"  order of sums: {result.order}")
        for line in result.picture:
            say(f"    {line}")
    second = result.second
    if second is not None and second.picture:
        say()
        same_order = second.order == result.order and second.picture == result.picture
        say(f"  order of sums of GEMM2, probed at {second.site}: {'the same' if same_order else second.order}")
        for line in () if same_order else second.picture:
            say(f"    {line}")
    say()
    for field, text, agrees in result.declared:
        _wrapped(f"declared {field}={text}: {agrees} asked for here")
    for note in result.notes:
        _wrapped(f"note: {note}")
    if result.differences:
        say(f"  nearest preset: {result.nearest}; differences (found, preset's): {'; '.join(result.differences)}")
    else:
        say(f"  nearest preset: {result.nearest}; no differences")
    if result.explained:
        say(f"  {contract_code(result.contract, result.text)}")


def _wrapped(text: str) -> None:
    for line in textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False):
        say(line)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
