"""The options and the help of `moeracle ci`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ci_app = typer.Typer(
    help="Put moeracle into a repository's CI (moeracle docs ci). Exit code 0: done. 2: usage, a file that is there.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@ci_app.command(name="init")
def ci_init(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The kernels, as `moeracle check` takes them.")],
    runner: Annotated[
        str, typer.Option(help="rocm, cuda (self-hosted runners) or cpu: where the workflow runs.")
    ] = "cpu",
    folder: Annotated[Path, typer.Option("--dir", help="The repository's top folder.")] = Path(),
) -> int:
    """Write a GitHub workflow, the script that it runs, and a file for known failures.

    Examples:

        moeracle ci init my_kernels.py

        moeracle ci init my_kernels.py --runner rocm
    """
    from .init import run_init

    return run_init(target, runner, folder)


@ci_app.command(name="environment")
def ci_environment() -> int:
    """Print the versions and the machine that a result depends on, as JSON reports have them.

    Example:

        moeracle ci environment
    """
    from .report import run_ci_environment

    return run_ci_environment()


@ci_app.command(name="report")
def ci_report(
    file: Annotated[Path, typer.Argument(metavar="F.json", help="What --json of check wrote.")],
    summary: Annotated[Path | None, typer.Option(help="Append the run as Markdown to this file.")] = None,
) -> int:
    """Print a run's failures as annotations of GitHub, at the kernel's line, and write a summary.

    Example:

        moeracle ci report check.json --summary "$GITHUB_STEP_SUMMARY"
    """
    from .report import run_ci_report

    return run_ci_report(file, summary)
