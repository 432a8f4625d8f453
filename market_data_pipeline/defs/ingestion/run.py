"""What a run does for the asset of a series, and for a tradeProfile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from market_data_pipeline.checks.integrity import source_findings
from market_data_pipeline.coverage.candles import candles_markdown
from market_data_pipeline.defs import events
from market_data_pipeline.defs.ingestion.session import Ingestion
from market_data_pipeline.defs.partitions import day_of
from market_data_pipeline.defs.platform.faults import failing_in_words
from market_data_pipeline.defs.reconciliation.run import with_reconciliation
from market_data_pipeline.derived.trade_profile import trade_profile
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import CHECKS_DO_NOT_PASS, Ledger
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.outcomes import DayOutcome
from market_data_pipeline.model.series import DataType, SeriesKey

if TYPE_CHECKING:
    import duckdb


def bring(
    context: dg.AssetExecutionContext, ingestion: Ingestion, key: SeriesKey, layout: Layout, *, reconciled: bool
) -> Iterator[Any]:
    """Bring the days of a run into the lake, and tell Dagster of each.

    Args:
        context: Of the series' asset.
        ingestion: The way into ``ingest``.
        key: The series.
        layout: Where the lake lies.
        reconciled: Whether the asset has the check ``reconciliation``.

    Raises:
        dagster.Failure: a day failed, after the events of the others; or the series could not be written at all.
    """
    began = time.monotonic()
    with failing_in_words():  # days that were written by then are stored, and the next run puts them on record
        results = list(ingestion.days(key, [day_of(name) for name in context.partition_keys]))
        context.log.info(events.log_line(key, results, time.monotonic() - began))
        picture = _picture_of(layout) if key.data_type is DataType.KLINES else None
        told = events.day_events(context, results, layout, picture)
        yield from with_reconciliation(context, layout, results, told) if reconciled else told


def _picture_of(layout: Layout) -> Callable[[DayOutcome], str | None]:
    def picture(result: DayOutcome) -> str | None:
        try:
            table = read_day(layout, result.key, result.day, ["open", "high", "low", "close"])
        except DamagedFileError:
            return None  # the next run finds and reports it; a picture is no reason to fail a day
        return candles_markdown(table)

    return picture


def make_profile(
    context: dg.AssetExecutionContext,
    trades: duckdb.DuckDBPyRelation,
    key: SeriesKey,
    layout: Layout,
    level_size: float,
) -> pa.Table:
    """The tradeProfile of a run's days, for the IO manager to write.

    Args:
        context: Of the tradeProfile's asset.
        trades: The days' aggTrades, columns as in the lake.
        key: The tradeProfile.
        layout: Where the ledger of the aggTrades lies.
        level_size: Height of a price level; 0 takes one by the price.

    Returns:
        A table with ``model.schema.TRADE_PROFILE_SCHEMA``; a day without trades has no row.
    """
    inverse = MARKETS[key.market].inverse
    with failing_in_words():
        table = trade_profile(trades, symbol=key.symbol, inverse=inverse, level_size=level_size)
    rows = {row["day"]: row for row in table.to_pylist()}
    source = source_of(key)
    unsound = Ledger.read(layout.ledger(source), CHECKS_DO_NOT_PASS)
    metadata = {
        name: _profile_metadata(rows.get(day_of(name)), source_findings({source: unsound.get(day_of(name))}))
        for name in context.partition_keys
    }
    events.add_metadata(context, metadata)
    incomplete = [name for name, facts in metadata.items() if "integrity" in facts]
    if incomplete:
        context.log.warning("%s: the trades of %d days are incomplete: %s", key, len(incomplete), incomplete[:10])
    context.log.info("%s: %d of %d days have trades", key, len(rows), len(context.partition_keys))
    return table


def _profile_metadata(row: Mapping[str, Any] | None, findings: Sequence[Finding]) -> dict[str, Any]:
    if row is None:
        return {"dagster/partition_row_count": 0, "state": "no trade on that day"}
    shown = ("vwap", "point_of_control", "volume", "cumulative_delta", "trades")
    marks = {"integrity": f"fails: {' '.join(one.message for one in findings)}"} if findings else {}
    return {"dagster/partition_row_count": 1, **{name: row[name] for name in shown}, **marks}
