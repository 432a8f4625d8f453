"""Rows about the universe as of past dates."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.baselines import repeated
from benchmarks.data import Archives
from benchmarks.lakes import UNIVERSE_FROM, universe_lake, universe_months
from benchmarks.measure import measured
from benchmarks.processes import apart, as_a_notebook
from benchmarks.report import Row
from market_data_pipeline import MarketData
from market_data_pipeline.clock import months_before
from market_data_pipeline.lake.layout import Layout

_TOP = 50


@as_a_notebook()
def universe(archives: Archives, _: Path) -> list[Row]:
    """Measure the 50 symbols with the most volume at the start of each month of years, over stored 1d candles.

    The first question finds no table of daily volumes, as after an update from version 0.1, and reads every candle.
    Later ones are what users wait for, because runs and compaction update the table.
    """
    symbols, months = archives.scale.universe, len(universe_months(archives))
    rows = months * min(_TOP, symbols)
    first, later, cpu = apart(_asked, universe_lake(archives), rows, archives.scale.repetitions)
    what = f"monthly top {_TOP} of {symbols} symbols over {months} months, by MarketData.universe"
    return [
        Row("universe", what, "s", later, target=2, details={"cpu_seconds": cpu}),
        Row("universe-without-table", f"{what}, without the table of daily volumes", "s", [first]),
    ]


def _asked(lake: Path, rows: int, times: int) -> tuple[float, list[float], float]:
    """Return the seconds of the first question, of later ones, and the processor seconds of one of them."""
    shutil.rmtree(Layout(lake).universe, ignore_errors=True)
    market, start = MarketData(lake), months_before(UNIVERSE_FROM, -1)

    def ask() -> None:
        came = market.universe(start=start, top=_TOP, on_gap="ignore").arrow().num_rows
        if came != rows:
            raise RuntimeError(f"{rows} rows were asked for, and {came} came.")

    with measured() as cost:
        ask()
    later = repeated(ask, times)
    with measured() as last:
        ask()
    return cost.seconds, later, last.cpu_seconds
