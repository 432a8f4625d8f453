"""The command ``market-data``: each command is a thin door to what the package does.

What belongs here: reading options, showing progress and tables, exit codes. What does not: anything that a notebook or
Dagster needs too. Exit codes: 0 everything requested is stored and its checks pass, 1 something failed, 2 the request
is invalid, 3 everything was fetched, but some days are incomplete or fail their checks.

Commands import what is slow to import (Dagster, DuckDB) when they run, so that ``--help`` answers at once.
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
from market_data_pipeline.cli.coverage import coverage
from market_data_pipeline.cli.demo import demo
from market_data_pipeline.cli.prune import prune
from market_data_pipeline.cli.quarantine import quarantine
from market_data_pipeline.cli.reconcile import reconcile
from market_data_pipeline.cli.sandbox import sandbox
from market_data_pipeline.cli.signals import ending_the_process
from market_data_pipeline.cli.sql import sql
from market_data_pipeline.cli.status import status
from market_data_pipeline.cli.sync import sync
from market_data_pipeline.cli.ui import ui
from market_data_pipeline.cli.universe import universe
from market_data_pipeline.cli.verify import verify
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.model import faults


class _Refused(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """A group whose commands end with a message, never with a traceback, where the fault could be foreseen."""

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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="market-data")
def main() -> None:
    """Keep a complete, verified copy of Binance's market history, and query it.

    Data lies below the folder that MARKET_DATA_DIR names (./data by default); universe.yaml says what is collected.
    Settings come from the environment or a .env file: see .env.example. All days and times are UTC.

    Begin with:

      market-data demo                               all of it on made-up data, without network
      market-data add BTCUSDT 1h --from 2024-01-01   collect a series and fetch it
      market-data sync                               everything in the universe, up to now
      market-data sql "FROM binance_spot.klines LIMIT 5"
    """


def _keep_examples(command: click.Command) -> None:
    """Let indented paragraphs of a help text stand as they are written, which click does after a backspace."""
    command.help = re.sub(r"\n\n(?=  )", "\n\n\b\n", inspect.cleandoc(command.help or ""))


COMMANDS = (
    demo,
    add,
    backfill,
    sync,
    status,
    coverage,
    quarantine,
    verify,
    reconcile,
    compact_command,
    prune,
    sql,
    universe,
    sandbox,
    ui,
)

for command in COMMANDS:
    main.add_command(command)
    _keep_examples(command)
_keep_examples(main)
