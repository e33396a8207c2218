"""Cases that failed once: `check` and `sweep --database FILE` judge them before all others, and add those that fail.

A text file with one case a line, the newest first. A CI keeps it between runs, or a repository has it:

    # Cases that failed once, the newest first (moeracle docs ci).
    int4_linear/T1-K32-N1-G32/bf16/exllama-sym/-/normal/s3
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moeracle.files import locked, read_bytes, write_atomically
from moeracle.properties.cases.case import Case
from moeracle.properties.hunt.effort import HuntResult
from moeracle.ref.errors import require

WHAT = "database"
HEAD = "# Cases that failed once, the newest first (moeracle docs ci).\n"
MOST = 200  # that are kept: each is judged in every run


def read_database(path: Path | None) -> list[Case]:
    """Read the file; None, and one that is not there yet, give no cases.

    Raises:
        ValueError: in one line: it cannot be read, or a line is no case.
    """
    if path is None or not path.exists():
        return []
    require(not path.is_dir(), f"{WHAT}: got {path}, which is a folder, must be a file of cases, or none yet")
    try:
        lines = read_bytes(path, WHAT, most=1 << 20).decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{WHAT}: {path} is not UTF-8") from None
    cases = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                cases[line.strip()] = Case.parse(line.strip())
            except ValueError as error:
                raise ValueError(f"{WHAT}: {path}, line {number}: {error}") from None
    return list(cases.values())[:MOST]


def add_to_database(path: Path | None, results: Iterable[HuntResult]) -> None:
    """Write the cases that failed above those that the file has; None writes nothing.

    Args:
        path: the file.
        results: of this run.
    Raises:
        ValueError: as `read_database`.
        OSError: it cannot be written.
    """
    if path is None:
        return
    add_cases(path, [verdict.case for result in results for verdict in result.failures if verdict.case])


def add_cases(path: Path, failing: list[str]) -> None:
    """Write cases above those that the file has.

    Args:
        path: the file.
        failing: their texts.
    Raises:
        ValueError: as `read_database`.
        OSError: it cannot be written.
    """
    with locked(path.parent):  # another part of the same run may write it, too
        cases = list(dict.fromkeys([*failing, *map(str, read_database(path))]))[:MOST]
        text = HEAD + "".join(f"{case}\n" for case in cases)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
