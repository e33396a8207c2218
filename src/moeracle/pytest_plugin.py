"""pytest options for judging kernels: `pytest --pyargs moeracle.properties.suite --kernel TARGET`.

Every pytest run of an environment with moeracle installed loads this file, so it imports nothing heavy itself; the rest
is in `pytest_session`, loaded once a kernel is named.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SUITE = "moeracle.properties.suite"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("moeracle", f"judging kernels (pytest --pyargs {SUITE} --kernel TARGET)")
    group.addoption(
        "--kernel",
        action="append",
        default=[],
        dest="moeracle_targets",
        metavar="TARGET",
        help="kernels to judge: module, module:name or path/to/file.py; may be repeated",
    )
    group.addoption("--moeracle-profile", default="ci", metavar="NAME", help="smoke, ci (default) or nightly")
    group.addoption("--moeracle-examples", type=int, metavar="N", help="drawn cases a kernel, instead of the profile's")
    group.addoption("--moeracle-device", metavar="D", help="cpu, cuda or cuda:N, instead of what kernels declare")
    group.addoption(
        "--moeracle-in-process", action="store_true", help="run kernels in pytest's process, for a debugger"
    )
    group.addoption("--moeracle-case-timeout", type=float, metavar="SECONDS", help="limit of one call of a kernel")
    group.addoption("--moeracle-max-memory", metavar="SIZE", help="memory that a kernel may take, e.g. 2G")
    group.addoption("--moeracle-seed", type=int, default=0, metavar="N", help="the same seed draws the same cases")
    repeated = {"action": "append", "default": []}
    group.addoption("--moeracle-case", metavar="CASE", help="judge this case and no other; may be repeated", **repeated)
    group.addoption("--moeracle-after", metavar="CASE", help="run this case before those; may be repeated", **repeated)
    group.addoption(
        "--moeracle-shape", metavar="SHAPE", help="also judge cases of this shape, as check's --shape", **repeated
    )
    group.addoption(
        "--moeracle-require",
        metavar="T>=N",
        help="fail a kernel that was not judged so far",
        **repeated,
    )
    group.addoption(
        "--moeracle-max-skipped", type=float, metavar="SHARE", help="fail a kernel of which a larger share was skipped"
    )
    group.addoption("--moeracle-op", metavar="OP", help="only the kernels of this op; may be repeated", **repeated)
    group.addoption("--moeracle-shard", metavar="I/N", help="judge part I of N of every kernel's cases")
    group.addoption(
        "--moeracle-time-budget",
        type=float,
        metavar="SECONDS",
        help="begin nothing after this time, say what was left, and exit with 3 if anything was",
    )
    group.addoption("--moeracle-known", metavar="FILE", help="failures that are known, as TOML (moeracle docs ci)")
    group.addoption("--moeracle-database", metavar="FILE", help="cases that failed once, as `check --database`")
    group.addoption("--moeracle-json", metavar="FILE", help="write the results as `moeracle check --json` does")
    group.addoption("--moeracle-html", metavar="FILE", help="write one page, as `moeracle check --html` does")


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Give each xdist worker a GPU of its own, before anything can import torch."""
    given = early_config.known_args_namespace
    if given.moeracle_targets and not given.moeracle_device:
        from .gpus import take_own_gpu

        take_own_gpu(os.environ)


def pytest_configure(config: pytest.Config) -> None:
    targets = config.getoption("moeracle_targets")
    if targets:
        from .isolate.start import start_early

        if not config.getoption("moeracle_in_process"):
            start_early(True)
            _look_last_in(os.getcwd())
        from .pytest_session import Judging

        config.pluginmanager.register(Judging(config, targets), "moeracle-judging")
    elif any(_is_the_suite(arg) for arg in config.args):
        import pytest

        raise pytest.UsageError(
            f"{SUITE} judges the kernels you name: add --kernel TARGET (a module or path/to/file.py)"
        )


def _look_last_in(folder: str) -> None:
    """Let no module in a folder that kernels can write stand for an installed one that is imported later."""
    if {folder, ""} & set(sys.path):
        sys.path[:] = [*(place for place in sys.path if place not in ("", folder)), folder]


def _is_the_suite(arg: str) -> bool:
    place = arg.partition("::")[0]
    return place.startswith(SUITE) or os.path.join("properties", "suite") in place
