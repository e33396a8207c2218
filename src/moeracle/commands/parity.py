"""`moeracle parity A B`: two kernels of one op on the same inputs, and what of their difference contracts explain."""

from __future__ import annotations

from collections import Counter

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.infer import infer
from moeracle.properties.infer.parity import Parity, parity, shared_cases
from moeracle.properties.report.report import environment, isolation, require_writable, write_json
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require
from moeracle.target.declaration import Kernel, require_device
from moeracle.target.load import TargetError, runs_interpreted

from .console import Progress, print_table, say
from .infer import INTERPRETED_K
from .loading import load, release, say_where
from .options import ParityOptions
from .process import prepare_to_judge

MOST_BUGS = 8


def run_parity(options: ParityOptions) -> int:
    """Compare two kernels; return the exit code: 0 where contracts explain all that differs, 1 where they do not."""
    require_writable(options.json)
    prepare_to_judge()
    cases = [Case.parse(text) for text in options.cases]
    a = _only(options.a, options.device, options.in_process, options.op or (cases[0].op if cases else None), "A")
    b = _only(options.b, options.device, options.in_process, a.op, "B")
    require(
        a.device == b.device, f"B: {b.name} runs on {b.device}, must run on {a.device} as A does; --device says where"
    )
    for kernel in (a, b):
        require_device(kernel.device, f"kernel {kernel.name}")
    for case in cases:
        for kernel in (a, b):
            reason = kernel.why_not(case)
            require(reason is None, f"--case: got {case}, {kernel.name} does not take it: {reason}")
    cases = cases or shared_cases(a, b, options.examples)
    with Progress() as progress:
        progress.start(f"[{a.op}] {a.name}, {b.name}")
        said = [_contract(kernel, options.declared, progress) for kernel in (a, b)]
        found = parity((a, b), [rules for rules, _ in said], cases, progress)
    for kernel in (a, b):
        release(kernel)
    say_where(options.in_process)
    _print((a, b), said, found)
    if options.json is not None:
        head = {"format_version": 1, "kind": "moeracle parity", "environment": environment()}
        kernels = [
            {"target": target, "kernel": kernel.name, "op": kernel.op, "contract": rules.name, "from": how}
            for target, kernel, (rules, how) in zip((options.a, options.b), (a, b), said, strict=True)
        ]
        where = {"isolation": isolation(options.in_process), "kernels": kernels}
        write_json(options.json, {**head, **where, **found.as_dict()})
    if found.bugs:
        return ILLEGAL
    judged = sum(verdict.status == "legal" for parting in found.partings for verdict in parting.verdicts[:2])
    return 0 if judged else UNJUDGED


def _only(text: str, device: str | None, in_process: bool, op: str | None, which: str) -> Kernel:
    """Return the one kernel that a TARGET names, of one op."""
    target = load(text, device, in_process)
    named = [kernel for kernel in target.kernels if op in (None, kernel.op)]
    if not named:
        held = ", ".join(dict.fromkeys(kernel.op for kernel in target.kernels))
        raise TargetError(f"{which}: TARGET {target.name} has no kernel for op {op}; it has {held}")
    if len(named) > 1:
        names = ", ".join(kernel.name for kernel in named[:6])
        raise TargetError(f"{which}: TARGET {target.name} has {len(named)} kernels ({names}); name one as {text}:NAME")
    return named[0]


def _contract(kernel: Kernel, declared: bool, progress: Progress) -> tuple[Contract, str]:
    """Return a kernel's contract, and where it is from."""
    if declared:
        require(kernel.declared, f"--declared: {kernel.name} declares no contract, must be left out")
        return kernel.contract, "declared"
    if not record_of(kernel.op).inferred:
        return kernel.contract, "declared" if kernel.declared else "the op's default"
    result = infer(kernel, k=INTERPRETED_K if runs_interpreted(kernel) else None, tick=progress)
    if result.explained:
        return result.contract, "inferred"
    how = "declared" if kernel.declared else "the op's default"
    progress.note(f"{kernel.name}: no contract explains its outputs ({result.why_not}); {how}: {kernel.contract.name}")
    return kernel.contract, how


def _print(kernels: tuple[Kernel, Kernel], said: list[tuple[Contract, str]], found: Parity) -> None:
    for letter, kernel, (rules, how) in zip("AB", kernels, said, strict=True):
        say(f"{letter}  [{kernel.op}] {kernel.name}: {rules.name} ({how})")
    say()
    if found.fields:
        print_table(("field", "A", "B"), found.fields, text_columns=3)
    else:
        say("contracts: no difference")
    say()
    parted, compared = found.parted, [p for p in found.partings if all(v.status != "illegal" for v in p.verdicts[:2])]
    if not parted:
        say(f"the same bits in all of {len(compared)} cases" if compared else "no case could be compared")
    else:
        stages = Counter(parting.stage for parting in parted)
        counted = ", ".join(f"{stage} {count}" for stage, count in stages.items())
        say(f"bits differ in {len(parted)} of {len(compared)} cases; first stage that differs: {counted}")
        one = min(parted, key=lambda parting: parting.elements)
        where = f"{one.stage}{one.at}: A {one.first:.8g}, B {one.second:.8g}"
        say(f"  {one.case}: {one.differ:,} of {one.elements:,} elements, first {where}")
        names = " and ".join(found.explaining)
        say(f"  explained by {names}" if names else "  explained: A's contract leaves both bits open (order of sums)")
    for line in found.bugs[:MOST_BUGS]:
        say(f"not explained: {line}")
    if len(found.bugs) > MOST_BUGS:
        say(f"not explained: {len(found.bugs) - MOST_BUGS} more")
    if not found.bugs and parted:
        say("nothing else differs: each is legal under its own contract")
