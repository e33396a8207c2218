"""`moeracle sweep TARGET…` and `moeracle sweep report DIR…`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..options import CampaignOptions, from_options


class _RunByDefault(TyperGroup):
    """A group whose command is `run` where none is named: its first word is a TARGET then."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return super().parse_args(ctx, args if named or not args else ["run", *args])


sweep_app = typer.Typer(
    cls=_RunByDefault,
    help="Hunt for as many cases or hours as wanted, over many processes or machines: `moeracle sweep TARGET…`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@sweep_app.command("run")
@from_options
def run(options: CampaignOptions) -> int:
    """Judge so many cases of kernels, or for so many hours. `run` may be left out.

    What is finished is in DIR, as Parquet, one row a case. The same command goes on where a kill, a full disk or Ctrl-C
    ended it. `moeracle docs sweep` says more.

    Examples:

        moeracle sweep my_kernels.py --cases 100000 --out campaign

        moeracle sweep my_kernels.py other.py --hours 8 --profile nightly --jobs 16 --out night

        moeracle sweep my_kernels.py --cases 1000000 --ray auto --out /shared/campaign
    """
    from moeracle.isolate.start import start_early

    start_early(True)
    from .run import run_sweep

    return run_sweep(options)


@sweep_app.command("report")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR …", help="Folders of campaigns.")],
    json: Annotated[Path | None, typer.Option(help="Write it as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
    merge: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows as one Parquet file.")] = None,
) -> int:
    """Say what campaigns found: verdicts, failures with their replay lines, and which sizes were judged.

    Examples:

        moeracle sweep report campaign --html campaign.html

        moeracle sweep report monday tuesday --merge both.parquet
    """
    from .run import run_sweep_report

    return run_sweep_report(folders, json, html, merge)
