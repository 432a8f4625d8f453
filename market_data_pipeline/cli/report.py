"""``market-data report``: the truth report of the universe, as a table and as one HTML page.

Rendering belongs to ``coverage/report.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, html_option, json_option, out, print_json, table
from market_data_pipeline.cli.coverage import universe_or_none
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.coverage.condition import conditions, days_to_collect
from market_data_pipeline.coverage.report import SeriesReport, report_page, series_report
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import Condition
from market_data_pipeline.reconciliation.record import read_reconciled
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import Universe


@click.command()
@choosing()
@html_option("Write the report as an HTML page, in one self-contained file.")
@json_option
def report(what: Selection, page: Path | None, as_json: bool) -> None:
    """Show the condition of all days.

    Every day of every stored or collected series is available, degraded, pending, missing or explained. The page of
    --html adds the reason of each day that is not available, gaps with verdict and evidence, replaced files, and
    candles that differ from their source. Nothing is fetched. What you leave out selects all.

      market-data report --html report.html
      market-data report BTCUSDT --market um --json
    """
    from market_data_pipeline.lake.partitions import known_series

    settings = load_settings()
    layout = Layout(settings.root)
    stored = known_series(layout)
    universe = universe_or_none(settings.universe, or_without=bool(stored))
    there = list(dict.fromkeys([*universe.series(), *stored]))
    keys = series_among(there, what, str(settings.root), "`market-data add` adds a series to the universe.")
    reports = list(_reports(layout, universe, keys))
    if as_json:
        print_json(map(_as_object, reports))
    else:
        _print(reports, str(settings.root))
    if page is not None:
        text = report_page(reports, str(settings.root), clock.now())
        storage.put(page.absolute(), text.encode())
        console = aside() if as_json else out()
        console.print(f"{page} is the report on {len(reports):,} series.", soft_wrap=True)


def _reports(layout: Layout, universe: Universe, keys: Sequence[SeriesKey]) -> Iterator[SeriesReport]:
    today = clock.today()
    for key in keys:
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        days = list(conditions(ledger.rows, days_to_collect(universe, key), universe.listing(key), today))
        yield series_report(key, days, ledger.rows.values(), read_reconciled(layout.reconciled(key)).values())


def _as_object(one: SeriesReport) -> dict[str, object]:
    return {
        "series": str(one.key),
        "first": one.first,
        "last": one.last,
        **{condition.value: one.days.get(condition, 0) for condition in Condition},
        "gaps": len(one.gaps),
        "gaps_unexplained": sum(not gap.is_explained for gap in one.gaps),
        "replaced": len(one.replaced),
        "compared": len(one.compared),
        "differing": sum(day.differing for day in one.compared),
        "unexplained": sum(day.unexplained for day in one.compared),
    }


def _print(reports: Sequence[SeriesReport], root: str) -> None:
    numbers = (*(condition.value for condition in Condition), "gaps", "replaced")
    shown = table(f"Days in {root}", "series", *numbers, right=numbers)
    for one in reports:
        shown.add_row(one.key.short, *_cells([one]))
    if len(reports) > 1:
        shown.add_section()
        shown.add_row("total", *_cells(reports), style="bold")
    out().print(shown)


def _cells(reports: Sequence[SeriesReport]) -> list[str]:
    days = [sum(one.days.get(condition, 0) for one in reports) for condition in Condition]
    gaps, replaced = sum(len(one.gaps) for one in reports), sum(len(one.replaced) for one in reports)
    return [f"{number:,}" for number in (*days, gaps, replaced)]
