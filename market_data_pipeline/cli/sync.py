"""``market-data sync``: fetch everything in the universe up to now."""

from __future__ import annotations

import click

from market_data_pipeline.cli.download import chosen_of, fetch, yes_option
from market_data_pipeline.cli.selection import Selection
from market_data_pipeline.cli.summary import end
from market_data_pipeline.settings import load_settings


@click.command()
@yes_option
def sync(yes: bool) -> None:
    """Fetch everything in the universe up to now.

    Includes today's candles and trades, and the tradeProfiles of days with trades. Skips days that are stored and on
    record. The schedules in Dagster's UI do the same while `market-data ui` runs.
    """
    settings = load_settings()
    end(fetch(settings, chosen_of(settings, Selection()), yes=yes, everything=True))
