"""`moeracle golden`: verify a set, replay kernels on one, make new bits."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import moeracle
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.known_failures import of_kernel, read_known_failures
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import words_read
from moeracle.properties.golden.regen import Plan, check_reason, plan_derived, plan_recorded, read_clean
from moeracle.properties.golden.replay import Replayed, replay
from moeracle.properties.golden.store import (
    MANIFEST,
    ChangedError,
    GoldenSet,
    is_signed,
    manifest_digest,
    read_set,
    write_set,
)
from moeracle.properties.golden.verify import Finding, Verified, verify_set
from moeracle.properties.hunt.must_run import must_run, spread
from moeracle.properties.report.report import isolation, require_writable, write_json
from moeracle.target.declaration import Kernel

from ..console import Progress, note, print_error, print_table, say
from ..loading import check_asked, kernels_of, load, release, require_devices, say_where
from ..process import prepare_to_judge, use_one_thread

MOST_SHOWN = 40
ATTEMPTS = 5
REPLAYED = ("kernel", "op", "contract", "verdict", "fixtures", "elements", "as rounded", "ulp", "recorded", "skipped")

WORDED = 8  # fixed cases of a kernel's own words that `golden make` records


def shipped_set() -> Path:
    """Return the folder of the set that comes with moeracle.

    Raises:
        ValueError: this installation has none.
    """
    folder = (Path(moeracle.__file__).parent / "fixtures").resolve()
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"--dir: no golden set comes with this installation (looked in {folder}); name one with --dir")
    return folder


def run_verify(
    target: str | None,
    folder: Path | None,
    op: str | None,
    device: str | None,
    json: Path | None,
    in_process: bool = False,
    known: Path | None = None,
) -> int:
    """Verify a set, and replay a TARGET on it if there is one; return the exit code.

    Raises:
        ValueError: a user's mistake, or a set that is damaged, in one line.
    """
    check_asked(op, device)
    require_writable(json)
    entries = [entry for entry in read_known_failures(known) if not entry.expired()]
    kernels = _kernels(target, op, device, in_process) if target else []
    for kernel in list(kernels):
        entry = of_kernel(entries, kernel.op, kernel.name)
        if entry is not None:  # `check` says whether it still fails
            say(f"not replayed: {entry.kernel}, known until {entry.expires}: {entry.reason}")
            kernels.remove(kernel)
            release(kernel)
    prepare_to_judge()
    started = time.monotonic()
    where = folder or shipped_set()
    golden = read_set(where)
    with Progress() as progress:
        progress.start("golden")
        verified = verify_set(golden, op, _phase(progress, "derive again"))
        replayed = []
        for kernel in kernels:
            progress.start(f"[{kernel.op}] {kernel.name}")
            replayed.append(replay(golden, kernel, device or kernel.device, _phase(progress, "replay")))
            release(kernel)
    seconds = time.monotonic() - started
    findings = [*verified.findings, *(f for r in replayed for f in r.findings)]
    say_where(bool(target) and in_process)
    _print_verified(where, verified, replayed, findings, seconds)
    code = _verdict(verified, replayed, findings)
    if json is not None:
        ran = {"isolation": isolation(in_process) if target else None}
        write_json(json, {**_as_dict(where, verified, replayed, findings, code), **ran})
    return code


def _kernels(
    target: str, op: str | None, device: str | None, in_process: bool, cases: Sequence[Case] = ()
) -> list[Kernel]:
    use_one_thread()
    kernels = kernels_of(load(target, device, in_process), {op} if op else {case.op for case in cases})
    require_devices(kernels, device)
    return kernels


def _phase(progress: Progress, phase: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(phase, done, total)


def _verdict(verified: Verified, replayed: list[Replayed], findings: list[Finding]) -> int:
    if findings:
        return ILLEGAL
    if not verified.entries:
        print_error("nothing could be verified: the set holds no entry of that op")
        return UNJUDGED
    idle = [r.kernel for r in replayed if not r.cases]
    if idle:
        print_error(f"nothing could be replayed of {', '.join(idle)}: it takes no fixture of its op")
        return UNJUDGED
    return 0


def _print_verified(
    where: Path, verified: Verified, replayed: list[Replayed], findings: list[Finding], seconds: float
) -> None:
    said = "as accepted" if not verified.findings else f"{len(verified.findings)} differ"
    say(f"{where}: {verified.entries} entries, {verified.elements:,} elements derived again: {said}, {seconds:.1f} s")
    if replayed:
        print_table(REPLAYED, [_row(r) for r in replayed], text_columns=4)
    for finding in findings[:MOST_SHOWN]:
        say(f"  {finding}")
    if len(findings) > MOST_SHOWN:
        say(f"  … and {len(findings) - MOST_SHOWN} more")
    kinds = Counter(finding.kind for finding in findings)
    if kinds:
        say("drift of " + ", ".join(f"the {kind} ({count})" for kind, count in kinds.items()))


def _row(r: Replayed) -> list[str]:
    verdict = "DRIFT" if r.findings else "same" if r.cases else "unjudged"
    equal = f"{100 * r.equal / r.elements:.2f}%" if r.elements else "-"
    far = f"{r.ulp:,.0f}" if r.elements else "-"
    names = [r.kernel, r.op, r.contract, verdict]
    return [*names, f"{r.cases}", f"{r.elements:,}", equal, far, f"{r.recorded}", f"{r.skipped}"]


def _as_dict(
    where: Path, verified: Verified, replayed: list[Replayed], findings: list[Finding], code: int
) -> dict[str, object]:
    plain = [{name: value for name, value in vars(r).items() if name != "findings"} for r in replayed]
    return {
        "format_version": 1,
        "kind": "moeracle golden verify",
        "dir": str(where),
        "entries": verified.entries,
        "elements": verified.elements,
        "exit_code": code,
        "kernels": plain,
        "findings": [vars(finding) for finding in findings],
    }


def run_regen(reason: str, folder: Path | None, op: str | None, dry_run: bool) -> int:
    """Derive a set anew; print what changes and write it if every new value is legal.

    Raises:
        ValueError: no reason, an unknown op, or files that are not as their manifest says.
    """
    reason = check_reason(reason)
    check_asked(op, None)
    where = folder or _shipped_or_new()
    if not dry_run:
        _require_writable_folder(where)
    use_one_thread()

    def once() -> int:
        base = manifest_digest(where)
        old = read_clean(where)
        with Progress() as progress:
            progress.start("golden")
            version = moeracle.__version__
            plan = plan_derived(old, reason, version, op, progress=_phase(progress, "derive"))
        return _carry_out(where, plan, dry_run, base)

    return _until_written(once)


def _until_written(once: Callable[[], int]) -> int:
    """Plan and write a set; do so again where another process wrote it in between."""
    for _ in range(ATTEMPTS):
        try:
            return once()
        except ChangedError:
            note("another run has written this set in between: once more, from what it wrote")
    return once()


def _shipped_or_new() -> Path:
    folder = Path(moeracle.__file__).resolve().parents[2] / "fixtures"
    if not folder.is_dir():
        raise ValueError("--dir: only the source tree's own set is written without --dir; name a folder with --dir")
    return folder


def _require_writable_folder(folder: Path) -> None:
    """Raise ValueError if a set could not be written there: asked before the work, not after it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "is not a folder" if not there.is_dir() else "cannot be written"
        raise ValueError(f"--dir: got {folder}, must be a folder that can be written; {there} {what}")


def run_make(
    target: str,
    folder: Path,
    reason: str,
    texts: list[str],
    op: str | None,
    device: str | None,
    dry_run: bool,
    in_process: bool = False,
) -> int:
    """Record what a TARGET's kernels store; print what changes and write it if every value is legal."""
    reason = check_reason(reason)
    check_asked(op, device)
    if not dry_run:
        _require_writable_folder(folder)
    cases = [Case.parse(text) for text in texts]
    kernels = _kernels(target, op, device, in_process, cases)
    say_where(in_process)
    use_one_thread()
    return _until_written(lambda: _make_once(target, kernels, folder, reason, cases, device, dry_run))


def _make_once(
    target: str, kernels: list[Kernel], folder: Path, reason: str, cases: list[Case], device: str | None, dry_run: bool
) -> int:
    base = manifest_digest(folder)
    old = read_clean(folder)
    with Progress() as progress:
        progress.start(target)
        version, phase = moeracle.__version__, _phase(progress, "record")
        more = [case for kernel in kernels for case in _with_words(kernel)]
        plan = plan_recorded(
            old, list(kernels), device, reason, version, cases=cases or None, more=more, progress=phase
        )
    for reason_why, count in Counter(plan.skipped.values()).most_common(8):
        say(f"  skipped {count:,}: {reason_why}")
    recorded = {entry.kernel for entry in plan.golden.entries}
    idle = [kernel.name for kernel in kernels if kernel.name not in recorded]
    if idle and not plan.refused:
        print_error(f"nothing could be recorded of {', '.join(idle)}: it takes none of the cases")
        return UNJUDGED
    return _carry_out(folder, plan, dry_run, base)


def _with_words(kernel: Kernel) -> list[Case]:
    """Return a few fixed cases whose weights are as the kernel declares: the shipped set has plain ones."""
    words = set(words_read(kernel))
    return spread([case for case in must_run(kernel) if case.flags & words], WORDED)


def _carry_out(where: Path, plan: Plan, dry_run: bool, base: str) -> int:
    for line in plan.changes:
        say(f"  changed {line}")
    for entry in plan.gone:
        say(f"  gone {entry.literal or entry.case} [{entry.source}]")
    new = Counter(entry.op for entry in plan.new)
    for op, count in new.items():
        say(f"  new {op}: {count} entries")
    said = f"{len(plan.new)} new, {len(plan.changes)} changed results, {len(plan.gone)} gone, {plan.kept} as they were"
    if plan.refused:
        for line in plan.refused[:MOST_SHOWN]:
            say(f"  refused {line}")
        print_error(f"nothing written: {len(plan.refused)} results are illegal or missing ({said})")
        return ILLEGAL
    if not plan.differs and ((where / MANIFEST).is_file() and not is_signed(where)):
        said = f"the manifest's sha256, {said}"
    elif not plan.differs:
        say(f"{where}: nothing to change, {plan.kept} entries as they were")
        return 0
    if dry_run:
        say(f"{where}: would write {said}")
        return 0
    write_set(where, plan.golden, base)
    say(f"{where}: {said}; {_size(where, plan.golden):,} bytes in {len(plan.golden.inputs)} files")
    return 0


def _size(where: Path, golden: GoldenSet) -> int:
    return sum((where / name).stat().st_size for name in golden.inputs)
