"""Run requests of schedules and sensors, in as few runs as possible. Choosing days does not belong here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG

from market_data_pipeline.clock import contiguous_ranges, days_between
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import span_of, tags_of
from market_data_pipeline.model.series import SeriesKey

Days = dict[SeriesKey, list[date]]
"""UTC days by series."""


def run_requests(
    stamp: str, wanted: Mapping[SeriesKey, Iterable[date]], at_most: int, now: datetime
) -> list[dg.RunRequest]:
    """Return one run request for each stretch of days that the same series need, newest first.

    Days that REST will soon no longer serve come before all others, and their runs have a higher priority.

    A run under the daemon takes seconds to start. A day within it takes milliseconds.

    Args:
        stamp: The prefix of run keys. Requests with the same stamp, days and series have the same key.
        wanted: UTC days of each series.
        at_most: The maximum number of days in a run.
        now: The current time, zone-aware.
    """
    from market_data_pipeline.model.needs import perishing_first  # at a tick, not at each load

    soon, later = perishing_first(wanted, now)
    urgent = [_request(stamp, *one, tags={PRIORITY_TAG: "1"}) for one in _stretches(soon, at_most)]
    return urgent + [_request(stamp, *one) for one in _stretches(later, at_most)]


def _stretches(
    wanted: Mapping[SeriesKey, Iterable[date]], at_most: int
) -> list[tuple[date, date, tuple[SeriesKey, ...]]]:
    by_day: dict[date, list[SeriesKey]] = {}
    for key, days in wanted.items():
        for day in set(days):
            by_day.setdefault(day, []).append(key)
    alike: dict[tuple[SeriesKey, ...], list[date]] = {}
    for day, keys in by_day.items():
        alike.setdefault(tuple(keys), []).append(day)
    found = [(*span, keys) for keys, days in alike.items() for span in contiguous_ranges(days, at_most)]
    return sorted(found, reverse=True)


def request_of(
    run_key: str, keys: Iterable[SeriesKey], first: date, last: date, tags: Mapping[str, str] | None = None
) -> dg.RunRequest:
    """Return a run request for the UTC days from ``first`` to ``last`` of series."""
    return dg.RunRequest(
        run_key, tags={**tags_of(first, last), **(tags or {})}, asset_selection=[asset_key_of(key) for key in keys]
    )


def underway(
    instance: dg.DagsterInstance, keys: Iterable[SeriesKey], statuses: Sequence[dg.DagsterRunStatus]
) -> dict[SeriesKey, set[date]]:
    """Return the days of series that unfinished runs will fetch, by whomever they were launched.

    Args:
        instance: Dagster's records.
        keys: The series.
        statuses: The statuses of the runs to look at.
    """
    by_asset = {asset_key_of(key): key for key in keys}
    found: dict[SeriesKey, set[date]] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=list(statuses))) if by_asset else ():
        span = span_of(run.tags)
        if span is None:
            continue
        days = days_between(*span)
        for asset in by_asset if run.asset_selection is None else run.asset_selection:
            if asset in by_asset:
                found.setdefault(by_asset[asset], set()).update(days)
    return found


def without(days: Mapping[SeriesKey, Iterable[date]], taken: Mapping[SeriesKey, Collection[date]]) -> Days:
    """Return days of series except those that are taken. Leave out series without days."""
    left = {key: [day for day in some if day not in taken.get(key, ())] for key, some in days.items()}
    return {key: some for key, some in left.items() if some}


def _request(
    stamp: str, first: date, last: date, keys: Sequence[SeriesKey], tags: Mapping[str, str] | None = None
) -> dg.RunRequest:
    digest = hashlib.sha256("\n".join(map(str, keys)).encode()).hexdigest()
    run_key = f"{stamp} {first} {last} {digest[:16]}"
    return request_of(run_key, keys, first, last, tags)
