"""`moeracle laws`: every law, put to legal simulations of every contract on every recipe: refusals are false alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.files import read_json
from moeracle.properties.common.processes import interruptible
from moeracle.properties.fault_matrix.legal_laws import LawRun, read_law_run, run_laws
from moeracle.properties.hunt.shard import shard_named
from moeracle.properties.report import report
from moeracle.ref.errors import require

from .console import SteadyProgress, print_error, print_table, say
from .faults import SAME
from .loading import check_asked
from .options import LawOptions
from .process import prepare_to_judge

COLUMNS = ("op", "law", "contracts", "of", "cases", "false alarms")


def run_law_sweep(options: LawOptions) -> int:
    """Ask every law, print what each said, and return the exit code: 1 if one accused a legal kernel.

    What there is of the JSON is written every minute, and when the run is interrupted."""
    json = options.json or options.resume
    report.require_writable(json)
    check_asked(options.op, None)
    shard = shard_named(options.shard)
    earlier = None if options.resume is None else _earlier(options.resume, options)
    prepare_to_judge()

    def write(run: LawRun) -> None:
        if json is not None:
            head = {"format_version": 1, "kind": "moeracle laws", "op": options.op, "jobs": options.jobs}
            report.write_json(json, {**head, "environment": report.environment(), **run.as_dict()})

    progress, limit = SteadyProgress(), options.limit if options.jobs > 1 else None
    with interruptible(), progress:
        progress.start("laws")
        try:
            found = run_laws(
                None if options.op is None else (options.op,), seed=options.seed, shard=shard, progress=progress,
                jobs=options.jobs, setup=prepare_to_judge, limit=limit, earlier=earlier, save=write,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.note(progress.line() + (f"; {json} holds what is done, and --resume goes on" if json else ""))
            raise
    write(found)
    _print(found)
    return ILLEGAL if found.alarms or found.unfinished else 0 if found.judged else UNJUDGED


def _earlier(path: Path, options: LawOptions) -> LawRun:
    plain = read_json(path, dict[str, Any], "--resume")
    require(plain.get("kind") == "moeracle laws", f"--resume: got {path}, must be what `moeracle laws` wrote")
    try:
        run, versions, op = read_law_run(plain), {name: plain["environment"][name] for name in SAME}, plain["op"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--resume: got {path}, which has not the form of this version: {error}") from error
    now, shard = report.environment(), shard_named(options.shard)
    for name in SAME:
        require(versions[name] == now[name], f"--resume: {path} has {name} {versions[name]}, here it is {now[name]}")
    asked = (options.op, options.seed, f"{shard.place}/{shard.of}")
    must = f"must be asked again with the same --op, --seed and --shard: {(op, run.seed, run.shard)}"
    require((op, run.seed, run.shard) == asked, f"--resume: got {asked}, {must}")
    return run


def _print(found: LawRun) -> None:
    counts = ("contracts", "of_contracts", "cases", "alarms")
    rows = [[row["op"], row["law"], *(f"{row[count]:,}" for count in counts)] for row in found.rows()]
    print_table(COLUMNS, rows, text_columns=2)
    for line in [f"false alarm: {alarm}" for alarm in found.alarms] + found.unfinished:
        print_error(line)
    plain = found.as_dict()
    contracts = len({one.contract for one in found.asked})
    asked = f"{plain['checks']:,} checks ({found.judged:,} elements) on {plain['cases']:,} cases"
    say(f"{len(found.alarms)} false alarms in {asked} under {contracts:,} contracts, {found.seconds:.0f} s")
