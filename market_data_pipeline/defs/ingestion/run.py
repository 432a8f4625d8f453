"""Runs of the assets of series and of tradeProfiles.

Fetching and computing do not belong here; see ``ingest`` and ``derived``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from market_data_pipeline.checks.integrity import source_findings
from market_data_pipeline.coverage.candles import candles_markdown
from market_data_pipeline.defs import events
from market_data_pipeline.defs.ingestion.session import Ingest
from market_data_pipeline.defs.partitions import day_of, span_of
from market_data_pipeline.defs.platform.faults import failing_in_words
from market_data_pipeline.defs.reconciliation.run import with_reconciliation
from market_data_pipeline.derived.trade_profile import trade_profile
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, checks_do_not_pass
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.outcomes import DayOutcome
from market_data_pipeline.model.series import DataType, SeriesKey

if TYPE_CHECKING:
    import duckdb


def fetch_days(
    context: dg.AssetExecutionContext, ingest: Ingest, key: SeriesKey, layout: Layout, *, reconciled: bool
) -> Iterator[Any]:
    """Ingest the days of a run and report each to Dagster.

    Args:
        context: The context of the series' asset.
        ingest: The resource ``ingestion``.
        key: The series.
        layout: The location of the lake.
        reconciled: True if the asset has the check ``reconciliation``.

    Raises:
        dagster.Failure: A day failed, after the events of the others. Or the series could not be written at all.
    """
    began = time.monotonic()
    refuse_days_before_start(context, key)
    with failing_in_words():  # days that were written before a fault stay, and the next run reports them
        results = list(ingest(key, [day_of(name) for name in context.partition_keys]))
        context.log.info(events.log_line(key, results, time.monotonic() - began))
        picture = _picture_of(layout) if key.data_type is DataType.KLINES else None
        reported = events.day_events(context, results, layout, picture)
        yield from with_reconciliation(context, layout, results, reported) if reconciled else reported


def refuse_days_before_start(context: dg.AssetExecutionContext, key: SeriesKey) -> None:
    """Refuse a run that selects days before the first partition of a series, in words.

    Raises:
        dagster.Failure: The run was requested before the start moved on, or before someone changed it.
    """
    span, partitions = span_of(context.run.tags), context.assets_def.partitions_def
    if span is None or not isinstance(partitions, dg.DailyPartitionsDefinition):
        return
    first = partitions.start.date()
    if span[0] < first:
        raise dg.Failure(
            description=f"{key} is collected from {first} on, so this run cannot fetch {span[0]}. "
            "Start a run of the later days. The schedule `repair` does so within an hour.",
            allow_retries=False,
        )


def _picture_of(layout: Layout) -> Callable[[DayOutcome], str | None]:
    def picture(result: DayOutcome) -> str | None:
        try:
            table = read_day(layout, result.key, result.day, ["open", "high", "low", "close"])
        except DamagedFileError:
            return None  # the next run finds and reports it. A picture must not fail a day
        return candles_markdown(table)

    return picture


def make_profile(
    context: dg.AssetExecutionContext,
    trades: duckdb.DuckDBPyRelation,
    key: SeriesKey,
    layout: Layout,
    level_size: float,
) -> pa.Table:
    """Return the tradeProfile of a run's days, for the IO manager to write.

    Args:
        context: The context of the tradeProfile's asset.
        trades: The days' aggTrades, with the lake's columns.
        key: The tradeProfile.
        layout: The location of the aggTrades' ledger.
        level_size: The height of a price level. 0 chooses it by the price.

    Returns:
        A table with ``model.schema.TRADE_PROFILE_SCHEMA``. A day without trades has no row.
    """
    inverse = MARKETS[key.market].inverse
    with failing_in_words():
        table = trade_profile(trades, symbol=key.symbol, inverse=inverse, level_size=level_size)
    rows = {row["day"]: row for row in table.to_pylist()}
    source = source_of(key)
    unsound = Ledger.read(layout.ledger(source), checks_do_not_pass())
    metadata = {
        name: _profile_metadata(rows.get(day_of(name)), source_findings({source: unsound.get(day_of(name))}))
        for name in context.partition_keys
    }
    events.add_metadata(context, metadata)
    incomplete = [name for name, facts in metadata.items() if "integrity" in facts]
    if incomplete:
        context.log.warning("%s: %d days have incomplete trades: %s", key, len(incomplete), incomplete[:10])
    context.log.info("%s: %d of %d days have trades", key, len(rows), len(context.partition_keys))
    return table


def _profile_metadata(row: Mapping[str, Any] | None, findings: Sequence[Finding]) -> dict[str, Any]:
    if row is None:
        return {"dagster/partition_row_count": 0, "state": "no trades on this day"}
    shown = ("vwap", "point_of_control", "volume", "cumulative_delta", "trades")
    marks = {"integrity": f"fails: {' '.join(one.message for one in findings)}"} if findings else {}
    return {"dagster/partition_row_count": 1, **{name: row[name] for name in shown}, **marks}
