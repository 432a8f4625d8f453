"""Print the result of a command that fetches days: failures, incomplete days and what to do; and its exit code.

Fetching does not belong here (``sync``), nor does the rule that decides whether a day is complete (``model.states``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from market_data_pipeline.checks.remedies import REMEDIES
from market_data_pipeline.cli.console import counted, red
from market_data_pipeline.errors import HostOffError, NetworkError
from market_data_pipeline.model.day import REFUSED, DayRecord
from market_data_pipeline.model.findings import shortened
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.model.states import DayDefect, faults_of

if TYPE_CHECKING:
    from market_data_pipeline.defs.in_process import Report
    from market_data_pipeline.model.outcomes import DayFailure

_SHOWN_DAYS = 20
"""Maximum number of days that a list names."""

_SHOWN_NAMES = 3

_EVIDENCE = 160
"""Characters of the evidence of a day in a list."""


class ExitCode(IntEnum):
    """Exit codes of commands. Code 2, an invalid request, is raised as ``UsageError``."""

    STORED = 0
    """Everything requested is stored, and its checks pass."""
    FAILED = 1
    """Something failed."""
    INCOMPLETE = 3
    """Everything was fetched, but some days are incomplete or fail their checks."""

    @classmethod
    def of(cls, well: bool) -> ExitCode:
        """Return the code of a command that either did all of its work, or failed."""
        return cls.STORED if well else cls.FAILED


def end(code: ExitCode) -> None:
    """End the command with an exit code."""
    if code is not ExitCode.STORED:
        raise click.exceptions.Exit(code)


def tell(report: Report, number: int, series: int, console: Console) -> ExitCode:
    """Print the result of a run for a requested number of days and series. Return the exit code."""
    tell_incomplete(report.incomplete, console)
    tell_warnings(report.warned, console)
    if report.failures:
        tell_failures(report.failures, console)
        return ExitCode.FAILED
    incomplete = sum(map(len, report.incomplete.values()))
    of_series = f"{counted(number, 'day')} of {series:,} series"
    if incomplete:
        console.print(f"{of_series}: all fetched, {incomplete:,} of them incomplete.")
        return ExitCode.INCOMPLETE
    console.print(f"{of_series}: all there.")
    return ExitCode.STORED


def tell_incomplete(incomplete: Mapping[SeriesKey, Sequence[DayRecord]], console: Console) -> None:
    """Print which stored days are incomplete or fail their checks: sums by rule, then days, then what to do."""
    days = [(key, row, faults_of(row)) for key, rows in incomplete.items() for row in rows]
    if not days:
        return
    console.print(red(f"{counted(len(days), 'day')} incomplete: {', '.join(_sums(days))}."))
    # Grouped by kind, then by series and day: the kinds that concern most days come first.
    by_rule = Counter(fault.rule for _, _, faults in days for fault in {fault.rule: fault for fault in faults}.values())
    shown = 0
    for rule, _ in by_rule.most_common():
        for key, row, faults in days:
            of_rule = [fault for fault in faults if fault.rule == rule]
            if of_rule and (shown := shown + 1) <= _SHOWN_DAYS:
                console.print(Text(f"  {key} {row.day}: {_said(key, of_rule)}"))
    if shown > _SHOWN_DAYS:
        console.print(f"  and {shown - _SHOWN_DAYS:,} more: `market-data coverage` counts them by series.")
    for rule in by_rule:
        console.print(Text(f"  {rule}: {REMEDIES.get(rule, _LOOK)}"))


_LOOK = "see the table of checks in docs/reference/checks.md."


def _sums(days: Sequence[tuple[SeriesKey, DayRecord, Sequence[DayDefect]]]) -> Iterator[str]:
    """``50 candles unexplained``: rows of each rule, in the noun of the series."""
    rows: Counter[tuple[str, str]] = Counter()
    for key, _, faults in days:
        for fault in faults:
            rows[fault.rule, _noun(key)] += fault.rows
    for (rule, noun), number in rows.items():
        yield f"{counted(number, noun)} {rule}" if number else rule


def _noun(key: SeriesKey) -> str:
    return {DataType.KLINES: "candle", DataType.AGG_TRADES: "trade", DataType.TRADES: "trade"}.get(key.data_type, "row")


def _said(key: SeriesKey, faults: Sequence[DayDefect]) -> str:
    number, rule = sum(fault.rows for fault in faults), faults[0].rule
    said = f"{counted(number, _noun(key))} {rule}" if number else rule
    return f"{said} ({shortened(faults[0].text, _EVIDENCE)})" if faults[0].text else said


def _reason(failure: DayFailure) -> str:
    return failure.reason.removeprefix(f"{failure.key} {failure.day}: ")


def _without_names(reason: str, key: SeriesKey) -> str:
    """Return a reason without the names and numbers of its series and day, to compare it with others."""
    for name in filter(None, (key.symbol, key.interval, key.data_type, key.market)):
        reason = reason.replace(name, "…")
    return re.sub(r"[0-9]+", "…", reason)


def _days_of(failures: Sequence[DayFailure]) -> str:
    """Return the series and days of failures: ``spot/klines/BTCUSDT/1h, 31 days from 2024-01-01 to 2024-01-31``."""
    keys, days = names_of(failure.key for failure in failures), sorted(failure.day for failure in failures)
    if len(failures) == 1:
        return f"{keys} {days[0]}"
    return f"{keys}, {counted(len(days), 'day')} from {days[0]} to {days[-1]}"


def names_of(keys: Iterable[SeriesKey]) -> str:
    """Return the first names of series, and the number of the others."""
    names = list(dict.fromkeys(map(str, keys)))
    more = f" and {len(names) - _SHOWN_NAMES:,} more series" if len(names) > _SHOWN_NAMES else ""
    return f"{', '.join(names[:_SHOWN_NAMES])}{more}"


def tell_troubles(troubles: Mapping[SeriesKey, str], console: Console) -> None:
    """Print why series were left out: a line for each reason."""
    by_reason: dict[str, list[SeriesKey]] = {}
    for key, reason in troubles.items():
        by_reason.setdefault(_without_names(reason, key), []).append(key)
    for keys in list(by_reason.values())[:_SHOWN_DAYS]:
        reason = troubles[keys[0]].removeprefix(f"{keys[0]}: ")
        named = "" if len(keys) == 1 and reason.startswith(str(keys[0])) else f"{names_of(keys)}: "
        console.print(red(f"{named}{reason}"))
    if more := sum(map(len, list(by_reason.values())[_SHOWN_DAYS:])):
        console.print(red(f"and {more:,} more series."))


def tell_warnings(warned: Mapping[str, int], console: Console) -> None:
    """Print a note on stored days whose checks pass with a warning."""
    if warned:
        rules = ", ".join(f"{rule} on {counted(days, 'day')}" for rule, days in warned.items())
        console.print(f"Note: checks warn of {rules}; `FROM quality.findings` has them.")


_OF_A_HOST = frozenset({NetworkError.kind, HostOffError.kind})
"""Kinds of failures that have one cause for all days, however the requests differ."""


def tell_failures(failures: Sequence[DayFailure], console: Console) -> None:
    """Print which days failed and why: a line for each fault, with its days."""
    console.print(red(f"{counted(len(failures), 'day')} failed:"))
    faults: dict[tuple[str, str], list[DayFailure]] = {}
    for failure in failures:
        same = "" if failure.failure in _OF_A_HOST else _without_names(_reason(failure), failure.key)
        faults.setdefault((failure.failure, same), []).append(failure)
    for (kind, _), alike in list(faults.items())[:_SHOWN_DAYS]:
        ((reason, _),) = Counter(map(_reason, alike)).most_common(1)
        console.print(f"  {_days_of(alike)}: {kind}: {reason}")
    if more := sum(map(len, list(faults.values())[_SHOWN_DAYS:])):
        console.print(f"  and {counted(more, 'day')} more.")
    kept = sum(failure.row.is_stored_final and failure.failure in REFUSED for failure in failures)
    if kept:
        stay = f"{counted(kept, 'day')} stay{'s' if kept == 1 else ''} stored as before"
        console.print(f"{stay} until Binance publishes another archive or another checksum.")
    if kept < len(failures):
        console.print(f"Stored days stay. The same command retries the {'other' if kept else 'failed'} days again.")
