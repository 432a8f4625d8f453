"""Publish a market's Iceberg tables, and compare them with the lake.

The work itself belongs to ``iceberg``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import dagster as dg

from market_data_pipeline import clock
from market_data_pipeline.defs.keys import EQUALS_LAKE
from market_data_pipeline.iceberg.comparison import TableDifference, compare_tables, rows_that_differ, sample
from market_data_pipeline.iceberg.publishing import PublishReport, publish
from market_data_pipeline.iceberg.tables import TABLES
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.model.findings import shortened
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.settings import Settings

_SHOWN = 20
_SHOWN_TEXT = 200

_ROUNDS = 3
"""Comparisons before a difference counts. In between, the series that differ are published again."""

_MOST_ROWS = 2_000_000
"""Most rows that one check reads from each side, about a second."""


def publish_market(
    context: dg.AssetExecutionContext, market: Market, settings: Settings
) -> Iterator[dg.MaterializeResult[None]]:
    """Publish the tables of a market, and compare them with the lake.

    Args:
        context: The context of the asset.
        market: The market.
        settings: The location of the lake and of the catalog.
    """
    report = publish(settings, tables=[name for name in TABLES if name.market is market])
    context.log.info("%d files added, %d removed, in %d snapshots", report.added, report.removed, report.commits)
    keys = [key for key in known_series(Layout(settings.root)) if key.market is market]
    some = sample(Layout(settings.root), keys, clock.to_us(clock.now()) // 3_600_000_000, _MOST_ROWS)
    for _ in range(_ROUNDS):
        found: dict[SeriesKey, TableDifference] = {}
        for difference in chain(rows_that_differ(settings, keys), compare_tables(settings, some)):
            found.setdefault(difference.key, difference)
        if not found:
            break
        publish(settings, list(found))  # other runs store days meanwhile
    yield dg.MaterializeResult(
        metadata={
            "series": report.series,
            "series changed": report.changed,
            "files added": report.added,
            "files replaced or removed": report.removed,
            "snapshots": report.commits,
            "old snapshots removed": report.expired,
            "files deleted": report.deleted,
        },
        check_results=[_result(report, found, len(keys), len(some))],
    )


def _result(
    report: PublishReport, found: dict[SeriesKey, TableDifference], series: int, read: int
) -> dg.AssetCheckResult:
    """Return the check result: an error for other rows, a warning for files that cannot be published."""
    passed = not found and not report.troubles
    table = [
        *(dg.TableRecord({"series": str(key), "reason": one.reason}) for key, one in found.items()),
        *(
            dg.TableRecord({"series": name, "reason": shortened(reason, _SHOWN_TEXT)})
            for name, reason in report.troubles.items()
        ),
    ]
    text = (
        f"{series} series have the lake's rows, and {read} of them its sums."
        if passed
        else f"{len(found)} series differ from the lake, and {len(report.troubles)} files were left out. Series that "
        "are written all the time differ until the next run. `market-data publish --verify` compares all of them."
    )
    return dg.AssetCheckResult(
        check_name=EQUALS_LAKE,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if found else dg.AssetCheckSeverity.WARN,
        description=text,
        metadata={
            "differ": len(found),
            "left out": len(report.troubles),
            **({"which": dg.MetadataValue.table(table[:_SHOWN])} if table else {}),
        },
    )
