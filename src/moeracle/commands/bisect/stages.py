"""`moeracle bisect stages`: the first wrong stage of a kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.bisect.chain import ChainReport, bisect_chain, chain_of
from moeracle.properties.bisect.stages import StageReport, bisect_stages
from moeracle.properties.report import report

from ..console import Progress, print_table, say
from ..loading import require_devices, say_where
from ..weights import weights_of
from .judge import one_kernel, prepared

FORMAT_VERSION = 1


def run_stages(
    target: str, case_text: str, device: str | None, shrink: float | None, json: Path | None,
    checkpoint: tuple[Path | None, int | None, str | None] = (None, None, None), in_process: bool = False,
) -> int:  # fmt: skip
    """Print the first wrong stage; return the exit code.

    Args:
        checkpoint: whose weights the case has, its layer and its experts. Smaller cases and probes have made ones.
    """
    report.require_writable(json)
    loaded, case = prepared(target, case_text, device, in_process)
    weights = weights_of(*checkpoint, [case])
    chain = chain_of(loaded.kernels, case)
    fused = [kernel for kernel in loaded.kernels if kernel.op == case.op]
    found: StageReport | None = None
    in_turn: ChainReport | None = None
    with weights.supplying(), Progress() as progress:
        if fused or not chain:
            kernel = one_kernel(loaded, case)
            require_devices([kernel], device)
            progress.start(f"[{kernel.op}] {kernel.name}")
            if not kernel.declared:
                from ..check_undeclared import infer_for_check  # which needs much that a contract does not

                kernel = infer_for_check(kernel, progress)
                kernel = replace(kernel, contract=kernel.contract.unscheduled)  # an order of one size is no promise
            found = bisect_stages(kernel, case, device=device, shrink_seconds=shrink, progress=progress)
        if chain and (found is None or found.verdict.status == "illegal"):
            progress.start("single kernels")
            in_turn = bisect_chain(chain, case, device=device)
    say_where(in_process)
    if found is not None:
        _print_stages(target, found, weights.words)
    if in_turn is not None:
        _print_chain(in_turn)
    if json is not None:
        report.write_json(json, stages_json(target, device, found, in_turn, in_process))
    return _exit_code(found, in_turn)


def _exit_code(found: StageReport | None, in_turn: ChainReport | None) -> int:
    statuses = [found.verdict.status] if found is not None else []
    statuses += [verdict.status for _, verdict in in_turn.links] if in_turn is not None else []
    return ILLEGAL if "illegal" in statuses else 0 if "legal" in statuses else UNJUDGED


def stages_json(
    target: str,
    device: str | None,
    found: StageReport | None,
    in_turn: ChainReport | None = None,
    in_process: bool = False,
) -> dict[str, Any]:
    """Return what `--json` writes."""
    head = {"format_version": FORMAT_VERSION, "kind": "moeracle bisect stages", "environment": report.environment()}
    both = {
        "kernel": None if found is None else found.as_dict(),
        "single_kernels": None if in_turn is None else in_turn.as_dict(),
    }
    return {**head, "isolation": report.isolation(in_process), "target": target, "device": device, **both}


def _print_stages(target: str, found: StageReport, words: str) -> None:
    verdict = found.verdict
    if verdict.status != "illegal":
        say(verdict.text(target))
        say("nothing is wrong with this case" if verdict.ok else "nothing could be judged")
        return
    if found.probes:
        rows = [(p.name, "right" if p.passed else "WRONG", p.asks) for p in found.probes]
        print_table(("probe", "answer", "asks"), rows, text_columns=3)
        last = found.probes[-1]
        if not last.passed:
            say(f"  {last.name}: {last.detail}")
        say(f"  {found.calls:,} calls, in the sizes of {found.probed}")
        say()
    say(verdict.text(target) + words)
    say()
    stage = found.stage or "not told"
    how = {"stored": f", stored stage {verdict.stage}", "op": ", all that this kernel does"}.get(found.how, "")
    say(f"first wrong stage: {stage}{how}")
    if found.also:
        say(
            f"  or {found.also}: faults of both give the same outputs; a kernel that stores its stages tells them apart"
        )
    say(f"known fault: {found.fault['title'] if found.fault else 'none that explains it'}")
    for note in found.notes:
        say(f"note: {note}")
    least = found.smallest
    if least is not None and least.case != verdict.case:
        say(f"smallest case: {least.case}")
        for line in least.summary[:2]:
            say(f"  {line}")
        say(f"  replay: moeracle check {target} --case {least.case}")


def _print_chain(in_turn: ChainReport) -> None:
    say()
    rows = []
    for link, verdict in in_turn.links:
        said = "FAIL" if verdict.status == "illegal" else verdict.status
        rows.append((link.stage, link.what, verdict.kernel, said, verdict.reason or "-"))
    print_table(("stage", "what", "kernel", "verdict", "reason"), rows, text_columns=5,
                title="Single kernels of TARGET, each from its own input.")  # fmt: skip
    say(f"first wrong of them: {in_turn.stage}" if in_turn.stage else "none of them is wrong")
    for note in in_turn.notes:
        say(f"note: {note}")
