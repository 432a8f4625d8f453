"""``market-data sql``: a query over the catalog's views, answered as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click

from market_data_pipeline.cli.screen import out
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import load_settings


@click.command()
@click.argument("query")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header row.")
@click.option("--json", "form", flag_value="json", help="A JSON array of objects.")
def sql(query: str, form: str | None) -> None:
    """Answer a QUERY in SQL over all that is held.

    The language is DuckDB's; times are UTC.

      market-data sql "FROM binance_spot.klines WHERE symbol = 'BTCUSDT' AND interval = '1h' LIMIT 5"
      market-data sql "FROM binance_spot.candles('BTCUSDT', '1m', '2024-01-01', '2024-02-01')"
      market-data sql --csv "SELECT day, reason FROM quality.coverage WHERE outcome = 'failed'" > failed.csv

    The views klines, agg_trades and trade_profile are in the schemas binance_spot, binance_um and binance_cm; what is
    held and what checks found is in quality.coverage, quality.gaps and quality.findings.
    """
    run_query(load_settings().root, query, form)


def run_query(root: Path, query: str, form: str | None = None) -> None:
    """Print the answer of a query over the data below a root, as a table, ``csv`` or ``json``.

    Raises:
        UsageError: DuckDB refuses the query; its words are in the text.
        DamagedFileError: a file that the query needs is damaged; the text names it.
    """
    import duckdb

    from market_data_pipeline.client import MarketData
    from market_data_pipeline.lake.catalog import lake_error, retrying

    layout = Layout(root)
    answer = MarketData(root).sql(query)
    if form is None:
        retrying(lambda: answer.relation().show(max_width=out().width), layout)
        return
    names, rows = retrying(lambda: _begun(answer.relation()), layout)
    try:
        (_as_csv if form == "csv" else _as_json)(names, rows)
    except duckdb.Error as error:
        raise lake_error(error, layout) from error


def _begun(relation: Any) -> tuple[list[str], Iterator[Sequence[Any]]]:
    """Return the columns of a relation and its rows, of which the first has been read."""
    rows = iter(relation.iter_rows())
    return list(relation.columns), chain(list(islice(rows, 1)), rows)


def _as_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)


def _as_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    before = "[\n"
    for row in rows:
        value = {name: _plain(cell) for name, cell in zip(names, row, strict=True)}
        click.echo(f"{before}  {json.dumps(value, default=str, ensure_ascii=False)}", nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def _plain(cell: Any) -> Any:
    # JSON knows no NaN and no infinity.
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
