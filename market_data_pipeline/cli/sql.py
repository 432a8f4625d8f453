"""``market-data sql``: a query over the catalog's views, answered as a table, CSV or JSON."""

from __future__ import annotations

import csv
import os
import sys
from contextlib import nullcontext
from itertools import chain
from typing import Any, NoReturn

import click

from market_data_pipeline.cli.console import out, print_json
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe


@click.command()
@click.argument("query")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header row.")
@click.option("--json", "form", flag_value="json", help="A JSON array of objects.")
@click.option(
    "--unrestricted", is_flag=True, help="Run any SQL with your own rights: it can write and remove files. No limits."
)
def sql(query: str, form: str | None, unrestricted: bool) -> None:
    """Run a SQL QUERY over the lake.

    The language is DuckDB's; times are UTC.

      market-data sql "FROM binance_spot.klines WHERE symbol = 'BTCUSDT' AND interval = '1h' LIMIT 5"
      market-data sql "FROM binance_spot.candles('BTCUSDT', '1m', '2024-01-01', '2024-02-01')"
      market-data sql "FROM binance_spot.candles('BTCUSDT', '1w', '2024-01-01', tz := 'America/New_York')"
      market-data sql --csv "SELECT day, reason FROM quality.coverage WHERE outcome = 'failed'" > failed.csv

    The views klines, agg_trades and trade_profile are in the schemas binance_spot, binance_um and binance_cm. Stored
    days are in quality.coverage, and results of checks in quality.gaps and quality.findings.

    A query is one SELECT, or EXPLAIN of one. It reads the files of the views and writes none. It takes at most
    MARKET_DATA_SQL_SECONDS, MARKET_DATA_SQL_MEMORY_MB and MARKET_DATA_SQL_DISK_MB.
    """
    run_query(load_settings(), query, form, unrestricted=unrestricted)


def run_query(settings: Settings, query: str, form: str | None = None, *, unrestricted: bool = False) -> None:
    """Print the answer of a query over a data folder, as ``csv``, ``json`` or a table.

    The query is one SELECT, or EXPLAIN of one, within the limits of the settings. ``unrestricted`` runs any SQL.

    Raises:
        UsageError: the text is no query, or DuckDB refuses it; its words are in the text.
        QueryLimitError: the query needs more time or memory than it may take.
        DamagedFileError: a file that the query needs is damaged; the text names it.
    """
    from market_data_pipeline.client.session import Limits, Unrestricted, Views
    from market_data_pipeline.client.watchdog import ended_beyond
    from market_data_pipeline.coverage.condition import record_collected
    from market_data_pipeline.sql.publish import refresh_catalog
    from market_data_pipeline.universe.config import listings_near
    from market_data_pipeline.universe.tables import refresh_tables

    layout = Layout(settings.root)
    limits = Limits.of(settings)
    if "universe" in query.casefold():
        refresh_tables(layout, listings_near(settings.universe))
    if "condition" in query.casefold() and settings.universe.is_file():
        record_collected(layout, load_universe(settings.universe))
    refresh_catalog(layout)
    views = Unrestricted(layout) if unrestricted else Views(layout, limits)
    with views.in_time(), nullcontext() if unrestricted else ended_beyond(limits, _end):
        if form is None:
            views.read(query, _show)
            return
        names, rows = views.streamed(query)
        if form == "csv":
            csv.writer(sys.stdout, lineterminator="\n").writerows(chain([names], rows))
        else:
            print_json(dict(zip(names, row, strict=True)) for row in rows)


def _show(answer: Any) -> None:
    if answer is not None:  # a statement such as COPY answers nothing
        answer.show(max_width=out().width)


def _end(why: str) -> NoReturn:
    click.echo(f"Error: {why}", err=True)
    os._exit(1)
