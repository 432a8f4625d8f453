"""``market-data export``: stored rows as files of other tools. Writing them belongs to ``export``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.console import aside, counted, json_option, out, print_json, progress_bar, red, table
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe.config import listings_near

if TYPE_CHECKING:
    from market_data_pipeline.export import SeriesExport

_NAMES = ("freqtrade", "nautilus", "lean", "csv", "parquet")
"""Names of the formats, here because the table of formats is slow to import."""

_ADVICE = "`market-data add` fetches a series."


@click.command("export")
@click.argument("form", metavar="FORMAT", type=click.Choice(_NAMES))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@choosing(days=("the first stored day", "the last stored day"))
@click.option("--final-only", is_flag=True, help="Leave out days that are provisional or fail the integrity check.")
@json_option
def export_command(form: str, folder: Path, what: Selection, final_only: bool, as_json: bool) -> None:
    """Write stored rows for another tool.

    Writes files to DIR in a FORMAT: freqtrade (feather files), nautilus (a Parquet catalog), lean (zips), csv or
    parquet. No missing row is filled. DIR/gaps.json has each range of missing or doubtful rows with its verdict.
    DIR/export.json has the version of each series, a hash over its contents.

    DIR is a new or empty folder, or one of an earlier export in the same format. Series in it are replaced, other
    series stay. Nothing is fetched. What you leave out selects all that the format has.

      market-data export freqtrade user_data/data/binance BTCUSDT ETHUSDT 1h --market um
      market-data export parquet ~/btc BTCUSDT 1m --from 2024 --through 2024 --final-only
    """
    from market_data_pipeline.export import FORMATS, choose_series, days_to_export, export_series
    from market_data_pipeline.lake.partitions import known_series

    settings = load_settings()
    layout = Layout(settings.root)
    stored = series_among(known_series(layout), what, str(settings.root), _ADVICE)
    chosen = choose_series(layout, FORMATS[form], stored, partial(_is_named, what))
    for reason, number in chosen.left_out.items():
        aside().print(f"{number:,} series left out: {reason}.")
    days = days_to_export(layout, chosen.keys, what.first, what.last)
    if without := len(chosen.keys) - len(days):
        aside().print(f"{without:,} series left out: no day is stored in this range.")
    with progress_bar(sum(map(len, days.values())), "days", "exporting", aside()) as bar:
        done = list(
            export_series(
                layout,
                FORMATS[form],
                folder,
                days,
                what.first,
                what.last,
                lambda: listings_near(settings.universe),
                final_only=final_only,
                on_days=lambda key, number: bar(number, key.short),
            )
        )
    if as_json:
        print_json(_as_object(one) for one in done)
    else:
        _print(done, folder)


def _is_named(what: Selection, key: SeriesKey) -> bool:
    """Return True if the user named the data type of a series, or the interval of candles."""
    return key.data_type in what.data_types or (key.data_type is DataType.KLINES and key.interval in what.intervals)


def _as_object(one: SeriesExport) -> dict[str, object]:
    return {
        "series": one.series,
        "first": one.first,
        "last": one.last,
        "days": one.days,
        "rows": one.rows,
        "files": len(one.files),
        "gaps": len(one.gaps),
        "gaps_unexplained": one.unexplained,
        "version": one.version,
    }


def _print(done: Sequence[SeriesExport], folder: Path) -> None:
    numbers = ("days", "rows", "files", "gaps", "unexplained")
    shown = table(f"Exported to {folder}", "series", "from", "through", *numbers, right=numbers)
    for one in done:
        unexplained = red(f"{one.unexplained:,}") if one.unexplained else "0"
        counts = (f"{number:,}" for number in (one.days, one.rows, len(one.files), len(one.gaps)))
        shown.add_row(one.series.partition("/")[2], str(one.first), str(one.last), *counts, unexplained)
    out().print(shown)
    if gaps := sum(one.unexplained for one in done):
        out().print(f"{counted(gaps, 'gap')} without an explanation: {folder}/gaps.json lists them.", soft_wrap=True)
