"""``market-data reconcile``: compare klines with their trades."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import date

import click
from rich.console import Console
from rich.table import Table

from market_data_pipeline.cli.console import aside, counted, json_option, out, print_json, progress_bar, red, table
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import comparable
from market_data_pipeline.model.reconciliation import DayReconciled, Difference
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.reconciliation.plan import found_before, plan
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe

_SHOWN = 50
"""Most lines of the table of values. The sentence below it counts all."""

Found = Mapping[SeriesKey, Sequence[DayReconciled]]


@click.command()
@choosing(klines_only=True, days=("the first day that is stored on both sides", "yesterday"))
@click.option("--again", is_flag=True, help="Compare unchanged days again.")
@json_option
def reconcile(what: Selection, again: bool, as_json: bool) -> None:
    """Compare klines with their trades.

    Klines of 1s and 1m are rebuilt from trades, or from aggTrades where trades are not stored. Longer intervals are
    rebuilt from klines of 1m, or without them from the longest stored interval that divides theirs. A day is compared
    that is stored on both sides. Prices and numbers of trades must be equal, volumes within 1e-9. Some differences are
    no fault, e.g. because Binance leaves trades of the insurance fund out of aggTrades. The output has the reason.
    Nothing is downloaded. Unchanged days are not compared again. Dagster records the result as the check
    `reconciliation`.

    Exit code 1 if candles differ for no known reason, or some could not be compared.

      market-data reconcile
      market-data reconcile BTCUSDT 1m --market um --from 2024-01 --through 2024-03
      market-data sql "FROM quality.reconciliation WHERE unexplained > 0"
    """
    settings = load_settings()
    universe = load_universe(settings.universe)
    keys = _chosen(universe, what)
    found, complete = _compared(settings, universe, keys, what, again=again)
    console = aside()
    if as_json:
        print_json(_as_object(key, days) for key, days in found.items() if days)
    if not any(found.values()):
        if complete:
            console.print("No day has both sides stored, so there is nothing to compare.")
        end(ExitCode.of(complete))
        return
    differences = [(key, one) for key, days in found.items() for day in days for one in day.differences]
    differences.sort(key=lambda pair: bool(pair[1].reason))  # unexplained ones first
    if not as_json:
        out().print(_by_series(found))
    if differences and not as_json:
        out().print()
        out().print(_values(differences))
    _sum_up(found, len(differences), console)
    end(ExitCode.of(complete and not any(day.unexplained for days in found.values() for day in days)))


def _chosen(universe: Universe, what: Selection) -> list[SeriesKey]:
    there = comparable(universe.series())
    advice = (
        "1s and 1m are compared where trades or aggTrades of a symbol are collected, longer intervals where 1m or an "
        "interval that divides theirs is."
    )
    if not there:
        raise UsageError(f"{universe.path} has no klines that can be compared with anything. {advice}")
    return series_among(there, what, str(universe.path), advice)


def _compared(
    settings: Settings, universe: Universe, keys: Sequence[SeriesKey], what: Selection, *, again: bool
) -> tuple[Found, bool]:
    """Compare the days that are due. Return the results of all chosen days, and True if all could be compared."""
    layout = Layout(settings.root)
    plans = {key: plan(layout, key, what.first, what.last, again=again) for key in keys}
    found = {key: {day.day: day for day in found_before(layout, one)} for key, one in plans.items()}
    due = {key: len(one.days) for key, one in plans.items() if one.days}
    troubles = [trouble for one in plans.values() if (trouble := one.trouble())]
    if not due:
        _tell(troubles)
        return _by_day(found), not troubles
    from market_data_pipeline.defs.definitions import ignore_notices
    from market_data_pipeline.defs.in_process import reasons, run_reconciliation, stop_if_interrupted
    from market_data_pipeline.defs.platform.home import open_instance, recording
    from market_data_pipeline.defs.reconciliation.definitions import build_reconciliation_job, run_config

    with progress_bar(sum(due.values()), "days", "comparing", aside()) as bar, warnings.catch_warnings():
        ignore_notices()

        def told(key: SeriesKey, days: Sequence[DayReconciled]) -> None:
            found[key].update((day.day, day) for day in days)
            bar(len(days), key.short)

        job = build_reconciliation_job(universe.series(), settings, told)
        if job is None:  # nothing of the universe can be compared
            return _by_day(found), True
        with recording(layout), open_instance(layout) as instance:
            config = run_config([str(key) for key in due], what.first, what.last, again=again)
            run = run_reconciliation(instance, job, config, log_level="CRITICAL")
    stop_if_interrupted(run)
    _tell([*troubles, *reasons(run)])
    return _by_day(found), run.success and not troubles


def _tell(troubles: Sequence[str]) -> None:
    for trouble in dict.fromkeys(troubles):
        aside().print(red("Not all could be compared."), trouble)


def _by_day(found: Mapping[SeriesKey, Mapping[date, DayReconciled]]) -> Found:
    return {key: [days[day] for day in sorted(days)] for key, days in found.items()}


# --- what is shown -------------------------------------------------------------------------------------------------


def _as_object(key: SeriesKey, days: Sequence[DayReconciled]) -> dict[str, object]:
    return {
        "series": str(key),
        "first": days[0].day,
        "last": days[-1].day,
        "days": len(days),
        "candles": sum(one.bars for one in days),
        "differing": sum(one.differing for one in days),
        "explained": sum(one.explained for one in days),
        "unexplained": sum(one.unexplained for one in days),
    }


def _by_series(found: Found) -> Table:
    numbers = ("days", "candles", "differ", "explained", "unexplained")
    shown = table("Klines and what they can be rebuilt from", "series", "from", "through", *numbers, right=numbers)
    for key, days in found.items():
        if days:
            _, first, last, *counts, unexplained = _as_object(key, days).values()
            wrong = red(f"{unexplained:,}") if unexplained else "0"
            shown.add_row(key.short, str(first), str(last), *(f"{number:,}" for number in counts), wrong)
    return shown


def _values(differences: Sequence[tuple[SeriesKey, Difference]]) -> Table:
    columns = ("series", "open time", "column", "klines", "rebuilt", "reason", "ids")
    shown = table("Values that differ", *columns, right=("klines", "rebuilt"), fold="ids")
    for key, one in differences[:_SHOWN]:
        shown.add_row(
            key.short,
            f"{one.open_time:%Y-%m-%d %H:%M:%S}",
            one.column,
            _number(one.klines),
            _number(one.rebuilt),
            one.reason or red("none known"),
            one.ids,
        )
    return shown


def _number(value: float | None) -> str:
    # All digits: sums of floats differ in the last ones.
    return "–" if value is None else f"{value!r}".removesuffix(".0")


def _sum_up(found: Found, values: int, console: Console) -> None:
    days = [one for several in found.values() for one in several]
    unexplained = sum(one.unexplained for one in days)
    differing = sum(one.differing for one in days)
    verb = "differs" if differing == 1 else "differ"
    text = f"{counted(sum(one.bars for one in days), 'candle')} of {counted(len(days), 'day')} compared: "
    if not differing:
        text += "all are what they can be rebuilt from."
    elif not unexplained:
        text += f"{differing:,} {verb}, all for a known reason."
    else:
        text += f"{differing:,} {verb}, {unexplained:,} of them for no known reason."
    console.print(text)
    if values > _SHOWN:
        console.print(f"{_SHOWN} of {values:,} values are shown; SQL has them: quality.reconciliation_differences.")
