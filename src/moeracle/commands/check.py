"""`moeracle check`: hunt for a counterexample in every kernel of a TARGET, or judge given cases."""

from __future__ import annotations

import os
import secrets
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from moeracle.bench.problems import shape_cases
from moeracle.case_database import add_to_database, read_database
from moeracle.exit_codes import ILLEGAL, INTERNAL, INTERRUPTED, UNJUDGED, USAGE
from moeracle.kernels.bench.cases import Shape, shape_named
from moeracle.known_failures import KnownFailure, Settled, of_kernel, of_nobody, read_known_failures, settle
from moeracle.properties.cases.case import Case
from moeracle.properties.common.endings import InternalError, Interrupted
from moeracle.properties.common.verdict import Verdict, failed
from moeracle.properties.hunt import reach
from moeracle.properties.hunt.budget import TimeBudget, time_budget
from moeracle.properties.hunt.effort import HuntResult, profile_named
from moeracle.properties.hunt.history import confirm
from moeracle.properties.hunt.hunt import hunt, judge_cases, not_judged
from moeracle.properties.hunt.shard import Shard, shard_named
from moeracle.properties.infer.batches import orders_of_batches
from moeracle.properties.laws.batch import law_batch_invariance
from moeracle.properties.report import report
from moeracle.properties.trial.call import one_line
from moeracle.ref.errors import require
from moeracle.target.declaration import DeclaredError, Kernel
from moeracle.target.load import place_of

from .console import Progress, print_error, print_table, say
from .loading import (
    check_asked,
    confined_by,
    kernels_of,
    limits_of,
    load,
    look_ahead,
    release,
    require_devices,
    say_where,
)
from .options import CheckOptions
from .process import prepare_to_judge
from .weights import Weights, weights_of

COLUMNS = ("kernel", "op", "contract", "verdict", "cases", "elements", "exact", "ulp", "err/bound", "skipped", "s")
MOST_REASONS = 8
# What is imported only when it is needed, is imported before a kernel can have rewritten its files.
LATER = ("moeracle.commands.check_undeclared", "numpy.random", "torch.utils._device")


def run_check(options: CheckOptions) -> int:
    """Judge a TARGET and print what was found; return the exit code."""
    # Whatever can be refused is refused before anything runs: a long hunt must not end in a typing error.
    profile_named(options.profile)
    check_asked(options.op, options.device)
    cases = [Case.parse(text) for text in options.cases]
    require(bool(cases) or not options.after, "--after: got a case without --case, must come before one")
    reach.check_demands(options.require, options.max_skipped)
    before, shapes = [Case.parse(text) for text in options.after], [shape_named(text) for text in options.shapes]
    shard, budget = shard_named(options.shard), time_budget(options.time_budget)
    reach.check_shard(shard, bool(cases), options.require, options.max_skipped)
    if options.adversarial:
        require(not options.in_process, "--adversarial: goes without --in-process: there nothing can be confined")
        options = replace(options, seed=options.seed or 2 * secrets.randbelow(1 << 29))  # even: must_run's parity stays
    limits = limits_of(options.case_timeout, options.max_memory, options.adversarial)
    entries = read_known_failures(options.known)
    again = read_database(options.database)
    files = {"--database": options.database, "--json": options.json, "--junit": options.junit, "--html": options.html}
    owners: dict[Path, str] = {}
    for option, path in files.items():
        report.require_writable(path)
        if path is not None:
            first = owners.setdefault(path.resolve(), option)
            require(first == option, f"{option}: got {path}, must be another file than {first}'s")
    absolute = {option: path.absolute() for option, path in files.items() if path is not None}  # a kernel may move us
    prepare_to_judge()
    for module in LATER:
        import_module(module)
    if options.html is not None:
        import_module("moeracle.properties.report.html.page").template("page.html")
    weights = weights_of(options.checkpoint, options.layer, options.experts, cases)
    target = load(options.target, options.device, options.in_process, limits, ranks=True)
    kernels = weights.able(kernels_of(target, {options.op} if options.op else {case.op for case in cases}))
    require_devices(kernels, options.device)
    started = time.time()
    with weights.supplying():
        results, interrupted = _hunt_all(
            kernels, options, CheckPlan(cases, before, again, shapes, weights, shard, budget), entries
        )
    known = _known(results, entries, whole=not (cases or interrupted))
    missed = [f"{r.kernel}: {m}" for r in results for m in reach.unmet(r, options.require, options.max_skipped)]
    others = [result for result in results if not (settled := known.get(report.name_of(result))) or settled.wrong]
    all_of_it = not (cases or options.op) and place_of(options.target) == options.target
    gone = [one for one in of_nobody(entries, target.kernels) if all_of_it and shard.has(one.entry.kernel)]
    code = INTERRUPTED if interrupted else exit_code(others, cases) or (UNJUDGED if missed else 0)
    if not interrupted and (gone or any(settled.wrong for settled in known.values())):
        code = ILLEGAL
    if code == 0 and not any(result.judged for result in results):
        code = UNJUDGED  # all in quarantine
    written = report.Report(
        target=options.target,
        command=_command(options),
        device=options.device,
        profile=None if cases else options.profile,
        seed=options.seed,
        started=started,
        seconds=time.time() - started,
        exit_code=code,
        results=results,
        in_process=options.in_process,
        confined=confined_by(kernels[0]) if options.adversarial else None,
        weights=weights.words,
        known={name: settled.as_dict() for name, settled in known.items()},
    )
    unwritten = _write(written, absolute)
    try:
        _print(written, missed)
        for settled in (*known.values(), *gone):
            (print_error if settled.wrong else say)(f"known failure: {settled.text}")
    except OSError as error:  # whoever read the output has gone, or its disk is full: the verdicts stand
        print_error(f"stdout: {error.strerror}")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or Python complains once more at its end)
    for line in missed:
        print_error(f"not judged far enough: {line}")
    for line in unwritten:
        print_error(line)
    return code or (USAGE if unwritten else 0)


def _write(written: report.Report, files: dict[str, Path]) -> list[str]:
    """Write every file that was asked for, before anything is printed; return what kept any from being written."""
    failures = []
    for option, path in files.items():
        try:
            if option == "--database":
                add_to_database(path, written.results)
            elif option == "--json":
                report.write_json(path, written)
            elif option == "--junit":
                report.write_junit(path, written)
            else:
                from moeracle.properties.report.html.page import write_page

                write_page(path, [report.plain(report.as_dict(written))])
        except OSError as error:
            failures.append(f"{error.filename or path}: {error.strerror}")
        except ValueError as error:  # a kernel can have put a folder in its place
            failures.append(str(error))
    return failures


class CheckPlan(NamedTuple):
    """What a check judges, and how much of it.

    Args:
        cases: judged in its place.
        before: judged before those.
        again: cases that failed once.
        shapes, weights, shard, budget: as the options of these names say.
    """

    cases: list[Case]
    before: list[Case]
    again: list[Case]
    shapes: list[Shape]
    weights: Weights
    shard: Shard
    budget: TimeBudget | None

    def of(self, op: str) -> CheckPlan:
        """Return what of it is an op's."""
        cases, before, again = ([c for c in given if c.op == op] for given in (self.cases, self.before, self.again))
        return self._replace(cases=cases, before=before, again=again)


def _known(results: list[HuntResult], entries: list[KnownFailure], whole: bool) -> dict[str, Settled]:
    """Hold each result against its entry of --known, by op.kernel; not those that found nothing before their end."""
    settled = {}
    for result in results:
        entry = of_kernel(entries, result.op, result.kernel)
        if entry is not None:
            tiers = [verdict.tier for verdict in result.failures]
            if not (tiers or entry.quarantine or entry.expired() or (whole and not result.left and not result.error)):
                continue
            settled[entry.kernel] = settle(entry, tiers, run=bool(result.judged or tiers or not entry.quarantine))
    return settled


def _hunt_all(
    kernels: list[Kernel], options: CheckOptions, plan: CheckPlan, entries: list[KnownFailure]
) -> tuple[list[HuntResult], bool]:
    """Return a result for every kernel, and whether Ctrl-C came before all were judged."""
    results: list[HuntResult] = []
    try:
        with Progress() as progress:
            for kernel in kernels:
                progress.start(f"[{kernel.op}] {kernel.name}")
                entry, wanted = of_kernel(entries, kernel.op, kernel.name), plan.of(kernel.op)
                if entry is not None:  # held against a whole hunt, in one shard
                    if not plan.shard.has(entry.kernel):
                        continue
                    wanted = wanted._replace(shard=Shard())
                if entry is not None and entry.quarantine:
                    results.append(not_judged(kernel))
                    results[-1].skipped[entry.quarantine_words] += 1
                    continue
                try:
                    look_ahead(kernel, more=kernel is not kernels[-1])
                    result = _hunt_one(kernel, options, wanted, progress)
                    if wanted.shard.of == 1 or result.verdicts or result.skipped or result.left:
                        results.append(result)  # else none of its cases is in this shard
                except DeclaredError as error:
                    if len(kernels) == 1:
                        raise  # a user's mistake
                    results.append(_refused(kernel, error))
                except (ValueError, OSError):
                    raise
                except InternalError as error:  # whose line says it all
                    results.append(not_judged(kernel, f"internal error: {error}"))
                except Exception as error:
                    traceback.print_exc()
                    results.append(not_judged(kernel, f"internal error: {one_line(error)}"))
                finally:
                    release(kernel, spare=False)
    except KeyboardInterrupt as stop:
        results += [stop.result] if isinstance(stop, Interrupted) else []
        return results + [not_judged(kernel) for kernel in kernels[len(results) :]], True
    finally:
        release(kernels[-1])
    return results, False


def _refused(kernel: Kernel, error: DeclaredError) -> HuntResult:
    """Return the result of a kernel that could not be asked which cases it takes, beside others that are judged."""
    result = not_judged(kernel)
    verdict = failed(Verdict(kernel.op, str(error.case), kernel.name, kernel.contract.name), "call", "", str(error))
    result.verdicts, result.failures = [verdict], [verdict]
    return result


def _hunt_one(kernel: Kernel, options: CheckOptions, plan: CheckPlan, progress: Progress) -> HuntResult:
    who, run, weights = f"[{kernel.op}] {kernel.name}", None, plan.weights
    if plan.budget is not None and plan.budget():
        result = not_judged(kernel)
        result.left["kernel"] += 1
        return result
    if not kernel.declared:
        from .check_undeclared import OrderFirst, infer_for_check  # which need much that a contract does not

        kernel, run = infer_for_check(kernel, progress), OrderFirst()
    if plan.cases:
        judge_cases(kernel, plan.before, run=run, laws=False)
        result = judge_cases(kernel, plan.cases, run=run, progress=progress, spent=plan.budget)
    else:
        kernel = weights.restricted(kernel)
        result = hunt(
            kernel, profile=options.profile, examples=weights.examples(options.profile, options.examples),
            seed=options.seed, run=run, more=shape_cases(kernel, plan.shapes), again=plan.again,
            salt=2 * options.seed if options.adversarial else 0, progress=progress,
            cases=weights.cases_of(kernel), shard=plan.shard, spent=plan.budget,
        )  # fmt: skip
    confirm(kernel, result, run, plan.before)
    for verdict in result.failures:
        if verdict.stage == law_batch_invariance.__name__:
            verdict.summary += orders_of_batches(kernel, Case.parse(verdict.case))
    order = run.order_line() if run is not None else ""
    progress.note(f"{who}: {_outcome(result)}{order}")
    return result


def _outcome(result: HuntResult) -> str:
    if result.failures:
        return f"FAIL after {len(result.judged)} cases, {result.seconds:.1f} s"
    if result.left:
        return f"the time was over: {result.left_words} not judged"
    if not result.judged:
        return "nothing could be judged"
    return f"legal in {len(result.judged)} cases, {result.seconds:.1f} s"


def exit_code(results: list[HuntResult], cases: list[Case]) -> int:
    """Return 1 if anything is wrong, 4 if judging failed, 3 if a kernel or a given case was not judged, else 0."""
    if any(r.failures for r in results):
        return ILLEGAL
    if any(r.error for r in results):
        return INTERNAL
    if cases:
        judged = {v.case for r in results for v in r.judged}
        return 0 if all(str(case) in judged for case in cases) else UNJUDGED
    return 0 if all(r.status == "legal" for r in results) else UNJUDGED


def _print(written: report.Report, missed: list[str]) -> None:
    results = written.results
    say_where(written.in_process)
    print_table(COLUMNS, [_row(written, result) for result in results], text_columns=4)
    reasons: Counter[str] = Counter()
    for result in results:
        reasons.update(result.skipped)
    for reason, count in reasons.most_common(MOST_REASONS):
        say(f"  skipped {count:,}: {reason}")
    for result in results:
        if len(result.judged) > 1:
            say(f"  {result.kernel}: {reach.describe(result)}")
    for result in results:
        for verdict in [] if report.is_known(written, result) else result.failures:
            say()
            say(report.failure_text(written, verdict))
    for result in results:
        if result.error:
            print_error(f"{result.kernel} was not judged: {result.error}")
    left = [result for result in results if result.left]
    for result in left:
        print_error(f"time budget: {result.kernel} was not judged to its end; left: {result.left_words}")
    if written.exit_code == UNJUDGED and not missed and not left:
        unjudged = ", ".join(r.kernel for r in results if not r.judged) or "some of the cases given"
        why = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        print_error(f"nothing could be judged of {unjudged}{why}")


def _row(written: report.Report, result: HuntResult) -> list[str]:
    whole = report.totals(result)
    elements = ["-"] * 4
    if whole is not None:
        elements = [f"{whole.judged:,}", f"{whole.exact:,}", f"{whole.width_ulp:.3g}", f"{whole.max_ratio:.3g}"]
    verdict = "FAIL" if result.failures else result.status
    verdict = "known" if report.is_known(written, result) else verdict
    names = [result.kernel, result.op, result.contract, verdict]
    return [*names, f"{len(result.judged):,}", *elements, f"{result.skipped.total():,}", f"{result.seconds:.1f}"]


def _command(options: CheckOptions) -> list[str]:
    words = ["moeracle", "check", options.target]
    given = (("--after", options.after), ("--case", options.cases), ("--shape", options.shapes))
    cases = [(flag, text) for flag, texts in given for text in texts]
    for flag, value in (("--op", options.op), *cases, ("--examples", options.examples)):
        words += [] if value is None else [flag, str(value)]
    words += ["--profile", options.profile, "--seed", str(options.seed)]
    where = {"--checkpoint": options.checkpoint, "--layer": options.layer, "--experts": options.experts}
    words += [word for flag, value in where.items() if value is not None for word in (flag, str(value))]
    part = {"--shard": options.shard, "--time-budget": options.time_budget}
    words += [word for flag, value in part.items() if value is not None for word in (flag, str(value))]
    words += ["--device", options.device] if options.device else []
    words += ["--in-process"] if options.in_process else []
    words += ["--adversarial"] if options.adversarial else []
    return words
