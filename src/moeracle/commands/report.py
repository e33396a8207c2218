"""`moeracle report`: one page from the JSON of one or more checks, or of a bisection."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moeracle.files import require_writable
from moeracle.properties.report.html.heat import counted
from moeracle.properties.report.html.page import write_page
from moeracle.properties.report.html.view import check_history, read_run

from .console import say


def run_report(files: Sequence[Path], html: Path) -> int:
    """Read every file, then write the page; the runs' own verdicts do not change the exit code.

    Raises:
        ValueError: a file that is not JSON of ours, or a place that cannot be written, in one line.
    """
    require_writable(html)
    if os.path.realpath(html) in [os.path.realpath(path) for path in files]:
        raise ValueError(f"--html: got {html}, which is one of the files to read; must be another file")
    runs = [read_run(path) for path in files]
    check_history(runs, files)
    write_page(html, runs)
    kernels = len({(kernel["op"], kernel["kernel"]) for run in runs for kernel in run["kernels"]})
    say(f"{html}: {counted(len(runs), 'run')}, {counted(kernels, 'kernel')}, {html.stat().st_size:,} bytes")
    return 0
