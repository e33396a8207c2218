"""`moeracle faults`: plant every known bug in a correct simulation, say which tier sees it, and count false alarms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL
from moeracle.files import read_json, write_atomically
from moeracle.properties.common.processes import interruptible
from moeracle.properties.fault_matrix import figures as faults_figures
from moeracle.properties.fault_matrix import page as faults_page
from moeracle.properties.fault_matrix.matrix import SEEDS, Matrix, Planted, read_matrix, run_matrix
from moeracle.properties.fault_matrix.published_rules import RULES
from moeracle.properties.faults import FAULTS, Fault, faults_of, find_fault
from moeracle.properties.report import report
from moeracle.ref.errors import require

from .console import SteadyProgress, print_error, print_table, say
from .loading import check_asked
from .process import use_one_thread

TITLE_WIDTH = 56
SAME = ("moeracle", "torch", "numpy", "hypothesis")  # versions that a run that goes on must share with the one before


def run_faults(
    op: str | None,
    ids: Sequence[str],
    json: Path | None,
    jobs: int = 1,
    resume: Path | None = None,
    limit: float | None = None,
) -> int:
    """Plant faults, print the matrix, and return the exit code: 1 if one stayed unseen or a legal kernel was accused.

    What there is of the JSON is written every minute, and when the run is interrupted.

    Args:
        op: only in this op, or None for all.
        ids: only these faults; none given: every one, and the legal kernels too.
        json: where to write the same as JSON; None: to `resume`.
        jobs: processes that share the work.
        resume: what an interrupted run has written; what is in it is not run again. None: begin anew.
        limit: seconds that a fault in an op, or a legal kernel, may take; what takes longer is given up and reported.
    Raises:
        ValueError: an unknown op or fault (the nearest is suggested), a fault that does not apply to the op, or a file
            of a run with other versions, seeds or words.
    """
    json = json or resume
    report.require_writable(json)
    faults = _chosen(op, ids)
    command = ["moeracle", "faults", *(["--op", op] if op else []), *(w for id in ids for w in ("--fault", id))]
    use_one_thread()
    earlier = None if resume is None else _earlier(resume, command)
    command = [*command, "--jobs", str(jobs)] if jobs > 1 else command

    def write(matrix: Matrix) -> None:
        if json is not None:
            head: dict[str, Any] = {"format_version": 1, "kind": "moeracle faults", "command": command}
            report.write_json(json, {**head, "environment": report.environment(), **matrix.as_dict()})

    progress = SteadyProgress()
    with interruptible(), progress:
        progress.start("faults")
        try:
            matrix = run_matrix(
                faults, None if op is None else (op,), seeds=SEEDS, legal=not ids, progress=progress, jobs=jobs,
                setup=use_one_thread, limit=limit, earlier=earlier, save=write,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.note(progress.line() + (f"; {json} holds what is done, and --resume goes on" if json else ""))
            raise
    _print(matrix)
    write(matrix)
    return 0 if matrix.ok else ILLEGAL


def _earlier(path: Path, command: list[str]) -> Matrix:
    plain = read_json(path, dict[str, Any], "--resume")
    require(plain.get("kind") == "moeracle faults", f"--resume: got {path}, must be what `moeracle faults` wrote")
    try:
        matrix, versions = read_matrix(plain), {name: plain["environment"][name] for name in SAME}
        asked = " ".join(plain["command"]).partition(" --jobs ")[0]
    except (KeyError, TypeError) as error:
        raise ValueError(f"--resume: got {path}, which has not the form of this version: {error}") from error
    now = report.environment()
    for name in SAME:
        require(versions[name] == now[name], f"--resume: {path} has {name} {versions[name]}, here it is {now[name]}")
    require(asked == " ".join(command), f"--resume: {path} was asked with {asked!r}, must be asked again with the same")
    require(matrix.seeds == SEEDS, f"--resume: {path} has seeds {matrix.seeds}, must be {SEEDS}")
    return matrix


def write_faults_page(made: Path | None, page: Path) -> int:
    """Write docs/faults.md and its figures beside it, and print README.md's table; return 0.

    Args:
        made: what `--json` wrote: of every fault and legal kernel, it gives all figures; of some faults, in all of
            their ops, it gives their rows. None: the figures that are there.
        page: the file to write; its figures are PAGE with the ending .figures.json.
    Raises:
        ValueError: a file cannot be read, or is no JSON of such a run.
    """
    kept = page.with_suffix(".figures.json")
    for path in (page, kept):
        report.require_writable(path)
    try:
        plain = None if made is None else _made(made)
        if plain is not None and plain["legal"]:
            figures = faults_figures.figures_of(plain)
        else:
            require(
                kept.is_file(),
                f"--page: got {page} without {kept.name} beside it, must come with --from of every fault",
            )
            figures = read_json(kept, dict[str, Any], "--page")
            require(figures.get("kind") == faults_figures.KIND, f"--page: {kept} has no figures of faults")
            figures = figures if plain is None else faults_figures.with_later(figures, plain)
        missing = [id for id in FAULTS if id not in {fault["id"] for fault in figures["faults"]}]
        require(not missing, f"--from: got {made} without {', '.join(missing[:4])}, must hold every fault")
        text, table = faults_page.page(figures), faults_page.short_table(figures)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"--from: got {made or kept}, which has not the form of this version: {error}") from error
    report.write_json(kept, figures)
    write_atomically(page, text)
    say(table)
    return 0


def _made(path: Path) -> dict[str, Any]:
    plain = read_json(path, dict[str, Any], "--from")
    whole = plain.get("kind") == "moeracle faults" and not plain.get("partial") and not plain.get("unfinished")
    must = "must be what `moeracle faults --json` wrote of every fault and legal kernel, or of some faults in all ops"
    require(whole and (bool(plain["legal"]) or "--op" not in plain["command"]), f"--from: got {path}, {must}")
    return plain


def _chosen(op: str | None, ids: Sequence[str]) -> list[Fault]:
    check_asked(op, None)
    if not ids:
        return list(FAULTS.values()) if op is None else faults_of(op)
    faults = [find_fault(id) for id in dict.fromkeys(ids)]
    for fault in faults:
        reason = fault.why_not(op) if op is not None else None
        if reason:
            raise ValueError(f"fault: {reason}")
    return faults


def _print(matrix: Matrix) -> None:
    ids = list(dict.fromkeys(p.id for p in matrix.planted))
    columns = ("fault", "what", "tier", "ops", "seen", "examples", "s", *RULES)
    title = (
        f"Faults planted with {len(matrix.seeds)} seeds in each op; examples and seconds until one is seen (medians).\n"
        "Right of them, whether a published rule refuses the same outputs: yes (each op, each seed), part, or no.\n"
    )
    print_table(columns, [_row(id, matrix.of(id)) for id in ids], text_columns=3, title=title)
    if matrix.legal:
        say()
        columns = ("legal kernel", "op", "cases", "vacuous", "elements", "alarms", "err/bound", "s")
        rows = []
        for r in matrix.legal:
            counts = [r.cases, r.vacuous, f"{r.judged:,}", len(r.alarms), f"{r.max_ratio:.3f}", f"{r.seconds:.1f}"]
            rows.append([r.kernel, r.op, *map(str, counts)])
        print_table(columns, rows, text_columns=2, title="Legal kernels; every alarm is a false one.\n")
    _print_rules(matrix)
    _print_summary(matrix)


def _row(id: str, planted: list[Planted]) -> list[str]:
    runs = [run for p in planted for run in p.runs]
    seen = [run for run in runs if run.seen]
    tiers = ",".join(dict.fromkeys(run.tier for run in seen)) or "NONE"
    examples = f"{statistics.median(run.examples for run in seen):g}" if seen else "-"
    seconds = f"{statistics.median(run.seconds for run in seen):.3f}" if seen else "-"
    comparable = [p for p in planted if p.comparable]
    marks = [_mark(rule, comparable) for rule in RULES]
    what = FAULTS[id].title
    what = what if len(what) <= TITLE_WIDTH else what[: TITLE_WIDTH - 1] + "…"
    return [id, what, tiers, str(len(planted)), f"{len(seen)}/{len(runs)}", examples, seconds, *marks]


def _mark(rule: str, planted: list[Planted]) -> str:
    if not planted:
        return "-"
    if all(p.seen_by(rule) for p in planted):
        return "yes"
    return "part" if any(p.rules[rule] for p in planted) else "no"


def _print_rules(matrix: Matrix) -> None:
    say()
    rows = []
    for rule in matrix.as_dict()["rules"]:
        refused = f"{rule['refused']:,} of {rule['outputs']:,}" if matrix.legal else "-"
        rows.append([rule["name"], rule["source"], f"{rule['faults_seen']} of {rule['faults']}", refused])
    fully = {p.id for p in matrix.planted} - {line.split()[0] for line in matrix.unseen}
    ours = [f"{len(fully)} of {len({p.id for p in matrix.planted})}", str(len(matrix.alarms)) if matrix.legal else "-"]
    columns = ("rule", "used in", "faults seen always", "legal outputs refused")
    print_table(columns, [["moeracle", "", *ours], *rows], text_columns=2, title="By rule.\n")


def _print_summary(matrix: Matrix) -> None:
    total = matrix.summary()
    say()
    for line in matrix.unseen:
        print_error(f"no tier saw {line}")
    for line in matrix.alarms:
        print_error(f"false alarm: {line}")
    for line in matrix.unfinished:
        print_error(f"given up: {line}")
    tiers = ", ".join(f"{tier} {runs:,}" for tier, runs in total["tiers"].items())
    say(f"{total['seen']:,} of {total['runs']:,} planted faults seen ({total['faults']} faults); by tier: {tiers}")
    if matrix.legal:
        say(f"{total['alarms']} false alarms in {total['judged']:,} elements of {len(matrix.legal)} legal kernels")
    for line in matrix.misnamed:
        say(f"not named, or as another: {line}")
    share = 100 * total["names_right"] / max(1, total["names_of"])
    names = ", ".join(f"{kind} {runs:,}" for kind, runs in total["names"].items())
    right = f"{total['names_right']:,} of {total['names_of']:,} that can be told apart named rightly"
    say(f"{right}, {share:.1f} % ({names})")
    say(f"{total['seconds']:.0f} s")
