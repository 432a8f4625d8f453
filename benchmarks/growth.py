"""Rows about growth: whole Dagster backfills of more and more, and what a unit of it costs each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.backfills import bring_all
from benchmarks.data import Archives, days_of_months, serving
from benchmarks.measure import median
from benchmarks.processes import apart
from benchmarks.report import Baseline, Row
from market_data_pipeline.model.series import SeriesKey

_AMOUNTS = 3

_ALIKE = 1.15
"""How much more a unit may cost where there is most of it, and still count as no more: the machine's own noise."""


def growth_years(archives: Archives, work: Path) -> list[Row]:
    """1, 3 and 8 years of 1m klines of one symbol, from monthly zips: what a day costs."""
    most, key = archives.scale.months, archives.kline_series
    parts = {months: days_of_months(archives.months[:months]) for months in _steps(most, (12, 36, 96))}
    with serving(archives.monthly()) as origin:
        costs = {
            len(days): [
                apart(bring_all, work / f"{months}-{n}", origin.env, {key: days}).seconds
                for n in range(_repetitions(archives))
            ]
            for months, days in parts.items()
        }
    return growth_rows("growth-days", "days of 1m klines of one symbol", "day", costs)


def growth_series(archives: Archives, work: Path) -> list[Row]:
    """10, 100 and 400 series of klines, two days each, from daily zips: what a series costs."""
    series, days = archives.many_series, archives.short_days
    with serving(archives.many()) as origin:
        costs = {
            count: [
                apart(bring_all, work / f"{count}-{n}", origin.env, _first(series, count, days)).seconds
                for n in range(_repetitions(archives))
            ]
            for count in _steps(len(series), (10, 100, 400))
        }
    return growth_rows("growth-series", f"series of klines, {len(days)} days each", "series", costs)


def _first(series: Sequence[SeriesKey], count: int, days: Sequence[date]) -> Mapping[SeriesKey, Sequence[date]]:
    # Whole symbols, since the universe has every interval of each.
    return dict.fromkeys(series[:count], days)


def _steps(most: int, steps: Sequence[int]) -> list[int]:
    """Return the steps, in proportion if there is less than the last of them.

    >>> _steps(96, (12, 36, 96)), _steps(6, (12, 36, 96)), _steps(2, (12, 36, 96))
    ([12, 36, 96], [1, 2, 6], [1, 2])
    """
    return sorted({max(1, step * most // steps[-1]) for step in steps} | {most})


def _repetitions(archives: Archives) -> int:
    return min(2, archives.scale.repetitions)


def growth_rows(name: str, what: str, unit: str, costs: Mapping[int, Sequence[float]]) -> list[Row]:
    """Return a row for each amount with the cost of a unit, and the cost of each further one, which shows the growth.

    Args:
        name: Of the rows, before the amount.
        what: Of what there is more and more, in words.
        unit: One of it.
        costs: Seconds of each repetition, for each amount.
    """
    a_unit = {count: [1000 * value / count for value in seconds] for count, seconds in costs.items()}
    smallest = Baseline(f"with {min(costs):,}", a_unit[min(costs)])
    rows = [
        Row(
            f"{name}-{count}",
            f"Dagster backfill of {count:,} {what}, for each {unit}",
            "ms",
            runs,
            baselines=[] if count == min(costs) else [smallest],
        )
        for count, runs in a_unit.items()
    ]
    if len(costs) == _AMOUNTS:
        least, middle, most = sorted(costs)
        before = _further(costs, least, middle)
        row = Row(
            f"{name}-further",
            f"Dagster backfill of {what}: what each further {unit} costs, from {middle:,} to {most:,}",
            "ms",
            _further(costs, middle, most),
            target=_ALIKE * median(before),
            baselines=[Baseline(f"from {least:,} to {middle:,}", before)],
        )
        rows.append(row)
    return rows


def _further(costs: Mapping[int, Sequence[float]], few: int, many: int) -> list[float]:
    """Return the cost in ms of each one beyond a few, without the fixed cost of a backfill."""
    pairs = zip(costs[few], costs[many], strict=True)
    return [1000 * (after - before) / (many - few) for before, after in pairs]
