"""``market-data backfill``: fetch days of series that are in the universe."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import click

from market_data_pipeline.cli.download import chosen_of, fetch, yes_option
from market_data_pipeline.cli.selection import choosing, selection
from market_data_pipeline.cli.summary import end
from market_data_pipeline.settings import load_settings


@click.command()
@choosing
@yes_option
def backfill(
    markets: Sequence[str],
    data_types: Sequence[str],
    symbols: Sequence[str],
    intervals: Sequence[str],
    first: date | None,
    last: date | None,
    yes: bool,
) -> None:
    """Fetch days of series in the universe.

    You can repeat each option. An option that you leave out selects all. Dagster runs in this process: every day is a
    materialization with its checks, on record in the UI. Stored days are not downloaded again, so a stopped backfill
    resumes. A file that was damaged by hand is replaced.

    Exit codes: 0 all days are stored and their checks pass, 1 days failed, 2 invalid request, 3 all days were fetched,
    but some are incomplete or fail their checks.

      market-data backfill --symbol BTCUSDT --interval 1m --from 2024-01-01 --through 2024-01-31
      market-data backfill --market um --data-type aggTrades --from 2024-05-01 --through 2024-05-01
    """
    settings = load_settings()
    end(fetch(settings, chosen_of(settings, selection(markets, data_types, symbols, intervals, first, last)), yes=yes))
