"""Mutation run over the core modules: python mutation/run.py [MODULE …] [--seed N] [--limit N] [--out FOLDER]

cosmic-ray makes the mutants. Each is written into a copy of this checkout, never into the checkout itself, and judged
by its module's tests in a forked child: torch is imported once, so that most mutants take a second. FOLDER receives
session.sqlite, which cosmic-ray's own cr-report and cr-html read, and survivors.txt.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hypothesis  # noqa: F401  imported here so that no child has to
import numpy  # noqa: F401
import pytest
import torch
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from modules import MODULES, Module

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "shared", "report", "build", "dist")


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the spans of all annotations: nothing evaluates them, so their mutants are no mutants."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            at = getattr(node, field, None)
            if at is not None:
                spans.append(((at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)))
    return spans


def family(mutation: MutationSpec) -> str:
    return mutation.operator_name.split("/")[-1].split("_")[0]


def choose(items: list[WorkItem], source: str, limit: int, seed: int) -> list[WorkItem]:
    """Draw one mutant of each kind at each place (+ could become ten operators), and of those at most `limit`."""
    spans, places = annotations(source), {}
    for item in items:
        m = item.mutations[0]
        if not any(start <= m.start_pos and m.end_pos <= end for start, end in spans):
            places.setdefault((m.start_pos, family(m)), []).append(item)
    drawn = random.Random(seed)
    one_each = [drawn.choice(sorted(places[place], key=identity)) for place in sorted(places)]
    return sorted(drawn.sample(one_each, min(limit, len(one_each))), key=lambda item: item.mutations[0].start_pos)


def survived(session: Path) -> set[tuple[str, str, int]]:
    """Return (module, operator, occurrence) of a session's survivors; of use while the code is the same."""
    with use_db(str(session), WorkDB.Mode.open) as db:
        lived = {job for job, result in db.results if result.test_outcome == TestOutcome.SURVIVED}
        return {identity(item) for item in db.work_items if item.job_id in lived}


def identity(item: WorkItem) -> tuple[str, str, int]:
    m = item.mutations[0]
    return "/".join(m.module_path.parts[-2:]), m.operator_name, m.occurrence


def passes(tests: tuple[str, ...], copy: Path, timeout: float, *, compiled: bool = False) -> bool | None:
    """Run pytest on the copy in a child; None if it took longer than `timeout` seconds.

    Only runs without a mutant may leave their bytecode (`compiled`): the mutants' runs then compile one file each, and
    never find another mutant's code.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        sys.path.insert(0, str(copy / "src"))
        sys.dont_write_bytecode = not compiled
        os.environ.update(PYTHONPATH=str(copy / "src"), PYTHONDONTWRITEBYTECODE="" if compiled else "1")
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 70
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]))
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:1] in "+-@" and line[:3] not in ("---", "+++")]


def run_module(module: Module, copy: Path, db: WorkDB, args: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    """Judge the module's mutants; return the counts and the survivors' changed lines."""
    path, survivors = copy / module.path, []
    source, unmutated = path.read_text(), path.stat()
    counts = dict.fromkeys(("killed", "survived", "timeout"), 0)
    if not passes(module.tests, copy, 300, compiled=True):
        raise SystemExit(f"{module.path}: its tests fail without any mutant: {' '.join(module.tests)}")
    started = time.monotonic()
    assert passes(module.tests, copy, 300)
    timeout = 10 + 5 * (time.monotonic() - started)
    items = [item for item in db.work_items if item.mutations[0].module_path == path]
    chosen = choose(items, source, args.limit or module.limit, args.seed)
    if args.again is not None:
        chosen = sorted((item for item in items if identity(item) in args.again), key=identity)
    for item in chosen:
        m = item.mutations[0]
        mutated = mutate_code(source, get_operator(m.operator_name)(**m.operator_args), m.occurrence)
        try:
            compile(mutated, module.path, "exec")
        except SyntaxError:
            continue
        try:
            path.write_text(mutated)
            verdict = passes(module.tests, copy, timeout)
        finally:
            path.write_text(source)
            os.utime(path, ns=(unmutated.st_atime_ns, unmutated.st_mtime_ns))
        name = {True: "survived", False: "killed", None: "timeout"}[verdict]
        counts[name] += 1
        lines = changed_lines(source, mutated)
        if verdict:
            survivors += [f"{module.path} {family(m)} in {m.definition_name}", *lines, ""]
            print("\n".join(survivors[-len(lines) - 2 :]), flush=True)
        outcome = TestOutcome.SURVIVED if verdict else TestOutcome.KILLED
        db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, name, outcome, "\n".join(lines)))
    counts = {
        "possible": len(items),
        "places": len(choose(items, source, len(items), args.seed)),
        "run": sum(counts.values()),
        **counts,
    }
    return counts, survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="paths as in modules.py; all of them if none is named")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--limit", type=int, help="mutants a module, instead of each module's own limit")
    parser.add_argument(
        "--again", type=survived, metavar="SESSION", help="only the survivors of an earlier session.sqlite"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "report" / "mutation")
    args = parser.parse_args()
    wanted = [m for m in MODULES if not args.modules or m.path in args.modules]
    if len(wanted) < len(set(args.modules)):
        parser.error(f"modules: must be among {', '.join(m.path for m in MODULES)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_COPIED)
        with use_db(str(args.out / "session.sqlite"), WorkDB.Mode.create) as db:
            init([copy / m.path for m in wanted], db, {})
            texts = []
            for module in wanted:
                started = time.monotonic()
                counts, survivors = run_module(module, copy, db, args)
                told = "  ".join(f"{name} {count}" for name, count in counts.items())
                print(f"{module.path:28} {told}  ({time.monotonic() - started:.0f} s)", flush=True)
                texts += survivors
                (args.out / "survivors.txt").write_text("\n".join(texts))


if __name__ == "__main__":
    main()
