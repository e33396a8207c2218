"""`moeracle sweep`: a hunt as a campaign, which ends when its cases or its hours do, and survives what kills it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from moeracle.case_database import read_database
from moeracle.exit_codes import ILLEGAL, INTERNAL, INTERRUPTED, UNJUDGED
from moeracle.files import read_json
from moeracle.properties.hunt.effort import profile_named
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import require
from moeracle.target.declaration import require_device

from ..console import Progress, note, print_error, print_table, say
from ..loading import check_asked, limits_of, load, release
from ..options import CampaignOptions
from . import campaign
from .plan import FILE, Plan, Subject, chunk_size, read_plan, same_campaign, write_plan
from .summary import Summary, merge, summarize, write_page
from .worker import subject_of

COLUMNS = ("kernel", "op", "legal", "illegal", "skipped", "too weak", "elements", "err/bound", "illegal by")


def run_sweep(options: CampaignOptions) -> int:
    """Begin a campaign, or go on with one, and return the exit code: 1 if any case of it is illegal."""
    _require_pyarrow()
    require(
        options.cases is not None or options.hours is not None, "--cases: got none, and no --hours; give one of them"
    )
    profile_named(options.profile)
    check_asked(options.op, options.device)
    folder, jobs = options.out.absolute(), options.jobs or os.cpu_count() or 1
    plan = _plan(options, jobs, folder)
    on_gpu = any(subject.device.startswith("cuda") for subject in plan.kernels)
    until = None if options.hours is None else time.monotonic() + 3600 * options.hours
    interrupted = False
    with Progress() as progress:
        progress.start(f"sweep {folder.name}")
        try:
            if options.ray is None:
                outcome = campaign.run(folder, campaign.LocalWorkers(folder, until), jobs, until, progress)
            else:
                with campaign.ray_cluster(options.ray, options.jobs):
                    workers = campaign.RayWorkers(folder, until, on_gpu)
                    outcome = campaign.run(folder, workers, options.jobs or workers.places(), until, progress)
        except KeyboardInterrupt:
            interrupted, outcome = True, campaign.Outcome()
    found = summarize([folder])
    _print(found, [options.out])
    if outcome.deaths:
        note(f"{outcome.deaths} workers ended before their time and were replaced; no finished case was lost")
    if outcome.stopped:
        print_error(f"{outcome.stopped}; the same command goes on from here")
    if interrupted:
        note("interrupted: what is finished is kept, and the same command goes on from here")
        return INTERRUPTED
    if found.illegal:
        return ILLEGAL
    if outcome.stopped:
        return INTERNAL
    return 0 if found.judged and all(k.verdicts["legal"] for k in found.kernels) else UNJUDGED


def _plan(options: CampaignOptions, jobs: int, folder: Path) -> Plan:
    """Return the campaign's plan, written into its folder; a campaign that is there goes on as it was begun."""
    kernels = _subjects(options)
    again = [str(case) for case in read_database(options.database)]
    first = list(dict.fromkeys([*again, *(case for place in options.failures for case in known_failures_of(place))]))
    plan = Plan(
        moeracle=_version(), kernels=kernels, seed=options.seed, profile=options.profile, shapes=list(options.shapes),
        first=first, cases=options.cases, chunk=chunk_size(options.cases, len(kernels), jobs), device=options.device,
        case_timeout=options.case_timeout, max_memory=options.max_memory,
        database=None if options.database is None else str(options.database.absolute()),
    )  # fmt: skip
    if (folder / FILE).exists():
        there = read_plan(folder)
        other = same_campaign(plan, there)
        require(
            other is None,
            f"--out: {folder} holds a campaign with another {other}; must be a new folder, or the same command",
        )
        wrong = f"--cases: got {plan.cases}, {folder} was begun with {there.cases}; another number needs a new folder"
        require(plan.cases == there.cases, wrong)
        return there
    empty = not folder.exists() or not any(folder.iterdir())
    require(empty, f"--out: {folder} holds files and no campaign; must be a new or an empty folder")
    campaign.prepare(folder)
    write_plan(folder, plan)
    return plan


def _subjects(options: CampaignOptions) -> list[Subject]:
    limits = limits_of(options.case_timeout, options.max_memory)
    found = []
    for text in options.targets:
        target = load(text, options.device, False, limits, ranks=True)
        chosen = [kernel for kernel in target.kernels if options.op in (None, kernel.op)]
        for kernel in chosen:
            require(kernel.declared, f"kernel {kernel.name}: declares no contract; `moeracle infer {text}` finds one")
            require_device(kernel.device, f"kernel {kernel.name}" if options.device is None else "--device")
        found += [subject_of(text, kernel) for kernel in chosen]
        for kernel in target.kernels:
            release(kernel)
    require(bool(found), f"--op: got {options.op}, TARGET {' '.join(options.targets)} must have a kernel of it")
    require(len(set(found)) == len(found), "TARGET: the same kernel is named twice")
    return found


def known_failures_of(folder: Path) -> list[str]:
    """Return the cases that a campaign's failures folder, or a campaign's folder, holds.

    Raises:
        ValueError: there is no such folder, or a file in it is damaged.
    """
    place = folder / "failures" if (folder / "failures").is_dir() else folder
    require(place.is_dir(), f"--failures: got {folder}, must be a campaign's folder, or its folder `failures`")
    found = [read_json(path, dict, "failures") for path in sorted(place.glob("*.json"))]
    return list(dict.fromkeys(str(said["case"]) for said in found if "case" in said))


def run_sweep_report(
    folders: Sequence[Path], json: Path | None = None, html: Path | None = None, merged: Path | None = None
) -> int:
    """Print what campaigns found, write it as asked, and return the exit code: 1 if any case is illegal.

    Raises:
        ValueError: a folder holds no campaign, or a file cannot be written.
    """
    _require_pyarrow()
    for path in (json, html, merged):
        require_writable(path)
    found = summarize(folders)
    if json is not None:
        write_json(json, found.as_dict())
    if html is not None:
        write_page(html, found, folders)
    if merged is not None:
        say(f"{merged}: {merge(folders, merged):,} rows")
    _print(found, folders)
    return ILLEGAL if found.illegal or found.twice else 0 if found.judged else UNJUDGED


def _print(found: Summary, folders: Sequence[Path]) -> None:
    rows = [
        [k.kernel, k.op, *(f"{k.verdicts[name]:,}" for name in ("legal", "illegal", "skipped", "vacuous")),
         f"{k.judged:,}", f"{k.max_ratio:.3g}", ", ".join(f"{tier} {count:,}" for tier, count in k.tiers.items())]
        for k in found.kernels
    ]  # fmt: skip
    print_table(COLUMNS, rows, text_columns=2)
    for kernel in found.kernels:
        sizes = " ".join(f"{letter}<{1 << max(counts):,}" for letter, counts in sorted(kernel.sizes.items()))
        if sizes:
            say(f"  {kernel.kernel}: judged with {sizes}")
    for failure in found.failures:
        say()
        say(failure["text"])
    whole = f" of {found.wanted:,}" if found.wanted else ""
    where = ", ".join(map(str, folders))
    say(f"{found.cases:,}{whole} cases finished, {found.illegal:,} illegal, {found.twice} twice: {where}")


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError("sweep: needs the extra `sweep`: pip install 'moeracle[sweep]'") from None


def _version() -> str:
    from moeracle import __version__

    return __version__
