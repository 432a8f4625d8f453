"""The command ``market-data``: read options, show progress and tables, return exit codes.

Commands import slow packages (Dagster, DuckDB) when they run, so that ``--help`` answers at once. ``summary.ExitCode``
lists the exit codes. Code that a notebook or Dagster needs too does not belong here.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import click

from market_data_pipeline.lake.arrow_memory import reuse_memory

reuse_memory()

# isort: split
from market_data_pipeline import __version__
from market_data_pipeline.cli.add import add
from market_data_pipeline.cli.backfill import backfill
from market_data_pipeline.cli.compact import compact_command
from market_data_pipeline.cli.copy import copy_command
from market_data_pipeline.cli.coverage import coverage
from market_data_pipeline.cli.demo import demo
from market_data_pipeline.cli.doctor import doctor
from market_data_pipeline.cli.export import export_command
from market_data_pipeline.cli.import_ import import_command
from market_data_pipeline.cli.live import live
from market_data_pipeline.cli.mcp import mcp
from market_data_pipeline.cli.plan import plan_command
from market_data_pipeline.cli.prune import prune_command
from market_data_pipeline.cli.publish import publish_command
from market_data_pipeline.cli.push import push_command
from market_data_pipeline.cli.quarantine import quarantine
from market_data_pipeline.cli.reconcile import reconcile
from market_data_pipeline.cli.remove import remove_command
from market_data_pipeline.cli.report import report
from market_data_pipeline.cli.retain import retain_command
from market_data_pipeline.cli.sandbox import sandbox
from market_data_pipeline.cli.serve import serve_command
from market_data_pipeline.cli.signals import ending_the_process
from market_data_pipeline.cli.sql import sql
from market_data_pipeline.cli.status import status
from market_data_pipeline.cli.sync import sync
from market_data_pipeline.cli.ui import ui
from market_data_pipeline.cli.universe import universe
from market_data_pipeline.cli.verify import verify
from market_data_pipeline.cli.worker import worker
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.model import faults


class _Refused(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """A group whose commands end with a message, not with a traceback, if the fault could be foreseen."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _Refused(str(error)) from error
        except MarketDataError as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            text = faults.sentence(error)
            if text is None or isinstance(error, click.ClickException):
                raise
            raise click.ClickException(text) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line as a process of its own."""
        with ending_the_process():
            return self.main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """List the commands by group."""
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="market-data")
def main() -> None:
    """Collect a complete, verified copy of Binance's market history, and query it.

    MARKET_DATA_DIR names the data folder (default: ./data). universe.yaml lists the series to collect. Settings come
    from the environment or a .env file: see .env.example. All days and times are UTC.

    Begin with:

      market-data demo                               the pipeline on made-up data, without network
      market-data add BTCUSDT 1h --from 2024-01-01   collect a series and fetch it
      market-data sync                               everything in the universe, up to now
      market-data sql "FROM binance_spot.klines LIMIT 5"
    """


def _keep_examples(command: click.Command) -> None:
    """Stop click from wrapping indented paragraphs of a help text. It leaves a paragraph alone after a backspace."""
    command.help = re.sub(r"\n\n(?=  )", "\n\n\b\n", inspect.cleandoc(command.help or ""))


_GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Get data": (add, plan_command, sync, backfill, import_command, remove_command),
    "Look at data": (status, coverage, report, sql, universe),
    "Share data": (export_command, push_command, publish_command, copy_command),
    "Check and repair": (verify, reconcile, quarantine, compact_command, retain_command, prune_command, doctor),
    "Run": (serve_command, live, ui, worker, mcp, demo, sandbox),
}
"""The commands in the order of the help text, by group."""

for commands in _GROUPS.values():
    for command in commands:
        main.add_command(command)
        _keep_examples(command)
_keep_examples(main)
