"""`moeracle soak`: kernels that are legal, on as many elements as wanted; every alarm is a false one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.fault_matrix.legal import legal_kernels
from moeracle.properties.hunt.soak import Soak, soak
from moeracle.properties.report import report
from moeracle.ref.errors import require

from .console import Progress, print_error, print_table, say
from .loading import check_asked, limits_of, load, release, require_devices, say_where
from .options import SoakOptions
from .process import prepare_to_judge

COLUMNS = ("kernel", "op", "contract", "cases", "vacuous", "skipped", "elements", "alarms", "err/bound", "|z|")
SIMULATIONS = "simulations"


def run_soak(options: SoakOptions) -> int:
    """Soak a TARGET's kernels, print what was said of each, and return the exit code: 1 if anything was."""
    report.require_writable(options.json)
    check_asked(options.op, options.device)
    kernels = _kernels(options)
    require(bool(kernels), f"--op: got {options.op}, TARGET {' '.join(_targets(options))} must have a kernel of it")
    isolated = not options.in_process and set(_targets(options)) != {SIMULATIONS}
    prepare_to_judge()
    if options.jobs > 1:
        _release(kernels)  # each process loads its own
    try:
        with Progress() as progress:
            progress.start("soak")
            found = soak(
                kernels, elements=int(options.elements), seconds=options.seconds, seed=options.seed, progress=progress,
                jobs=options.jobs, again=partial(_kernels_of_a_process, options),
            )  # fmt: skip
    finally:
        _release(kernels)
    say_where(options.in_process)
    _print(found)
    if options.json is not None:
        head: dict[str, Any] = {"format_version": 1, "kind": "moeracle soak", "environment": report.environment()}
        head["isolation"] = report.isolation(in_process=not isolated)  # simulations are this library's own
        report.write_json(options.json, {**head, "target": " ".join(_targets(options)), **found.as_dict()})
    return ILLEGAL if found.alarms or found.ended else 0 if found.judged else UNJUDGED


def _targets(options: SoakOptions) -> tuple[str, ...]:
    return options.targets or ("moeracle.kernels",)


def _kernels_of_a_process(options: SoakOptions) -> list[KernelLike]:
    prepare_to_judge()
    return _kernels(options)


def _release(kernels: Sequence[KernelLike]) -> None:
    for kernel in kernels:
        release(kernel)


def _kernels(options: SoakOptions) -> list[KernelLike]:
    wanted, found = None if options.op is None else (options.op,), list[KernelLike]()
    limits = limits_of(options.case_timeout, options.max_memory)
    for target in _targets(options):
        if target == SIMULATIONS:
            found += legal_kernels(wanted)
            continue
        loaded = load(target, options.device, options.in_process, limits).kernels
        kernels = [kernel for kernel in loaded if wanted is None or kernel.op in wanted]
        require_devices(kernels, options.device)
        found += kernels
    return found


def _print(found: Soak) -> None:
    rows = [
        [k.kernel, k.op, k.contract, f"{k.cases:,}", f"{k.vacuous:,}", f"{k.skipped:,}", f"{k.judged:,}",
         str(len(k.alarms)), f"{k.max_ratio:.3g}", f"{k.max_z:.1f}"]
        for k in found.kernels
    ]  # fmt: skip
    print_table(COLUMNS, rows, text_columns=3)
    for alarm in found.alarms:
        print_error(f"false alarm: {alarm}")
    if found.ended:
        print_error(found.ended)
    never = [k.kernel for k in found.kernels if not k.cases]
    if never:
        print_error(f"never judged, the time was over: {len(never)} kernels, {', '.join(never[:4])}")
    cases = sum(k.cases for k in found.kernels)
    say(f"{len(found.alarms)} false alarms in {found.judged:,} elements of {cases:,} cases, {found.seconds:.0f} s")
