"""`moeracle kernels`: what this library ships, and how fast it is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import unknown
from moeracle.target.load import OWN, load_target

from ..console import Progress, print_table, say

BENCHES = ("reference",)


def run_list() -> int:
    """Print one line for each kernel of the registries, also for those that need another machine."""
    kernels = [kernel for place in OWN for kernel in load_target(place).kernels]
    rows = [
        (k.name, k.op, k.layout or "-", ", ".join(k.zeros), ", ".join(k.dtypes), k.contract.name, k.device)
        for k in kernels
    ]
    here = {k.name for k in kernels}
    elsewhere = [e for place in OWN.values() for e in import_module(place).REGISTRY if e.name not in here]
    rows += [
        (
            e.name,
            e.op,
            e.layout or "-",
            ", ".join(e.zeros),
            ", ".join(e.dtypes),
            str(e.contract),
            f"{e.needs} (not here)",
        )
        for e in elsewhere
    ]
    print_table(("kernel", "op", "layout", "zero points", "dtypes", "contract", "device"), rows, text_columns=7)
    return 0


def run_bench(op: str, json: Path | None) -> int:
    """Time one thing and print it.

    Raises:
        ValueError: nothing of that name can be timed, or the file cannot be written.
    """
    if op not in BENCHES:
        raise unknown("op", op, BENCHES)
    require_writable(json)
    from moeracle.properties.trial.bench_reference import bench_reference, format_bench

    with Progress() as progress:
        progress.start("bench reference")
        measured = bench_reference(progress.note)
    say(format_bench(measured))
    if json is not None:
        write_json(json, measured)
    return 0
