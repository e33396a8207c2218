"""`moeracle kernels`: what this library ships, and how fast it is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import unknown
from moeracle.target.load import OWN, load_target

from ..console import Progress, print_table, say

BENCHES = ("reference", "judge")


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
    with Progress() as progress:
        progress.start(f"bench {op}")
        if op == "judge":
            import torch

            from moeracle.properties.trial.bench_judging import bench_judging, format_judging

            measured = bench_judging("cuda" if torch.cuda.is_available() else "cpu", progress.note)
            text = format_judging(measured)
        else:
            from moeracle.properties.trial.bench_reference import bench_reference, format_bench

            measured = bench_reference(progress.note)
            text = format_bench(measured)
    say(text)
    if json is not None:
        write_json(json, measured)
    return 0
