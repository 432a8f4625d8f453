"""``market-data backfill``: fetch days of series that are in the universe."""

from __future__ import annotations

import click

from market_data_pipeline.cli.download import chosen_of, fetch, yes_option
from market_data_pipeline.cli.selection import Selection, choosing
from market_data_pipeline.cli.summary import end
from market_data_pipeline.settings import load_settings


@click.command()
@choosing(days=("the start in universe.yaml", "today, or the delisting"))
@yes_option
def backfill(what: Selection, yes: bool) -> None:
    """Fetch days of series in the universe.

    Name symbols, kline intervals and aggTrades in any order, or repeat the options. What you leave out selects all.
    Dagster runs in this process: every day is a materialization with its checks, on record in the UI. Stored days are
    not downloaded again, so a stopped backfill resumes. A file that was damaged by hand is replaced.

    Exit codes: 0 all days are stored and their checks pass, 1 days failed, 2 invalid request, 3 all days were fetched,
    but some are incomplete or fail their checks.

      market-data backfill BTCUSDT ETHUSDT 1m --from 2024-01 --through 2024-03
      market-data backfill aggTrades --market um --from "2 weeks ago" --through yesterday
    """
    settings = load_settings()
    end(fetch(settings, chosen_of(settings, what), yes=yes))
