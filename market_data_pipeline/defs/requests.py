"""Run requests of schedules and sensors: days of series, in as few runs as there can be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import dagster as dg

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import RANGE_END, RANGE_START, contiguous_ranges, partition_of
from market_data_pipeline.series import SeriesKey


def run_requests(stamp: str, wanted: Mapping[SeriesKey, Iterable[date]], at_most: int) -> list[dg.RunRequest]:
    """A request for each stretch of days that the same series are asked for, newest first.

    A run under the daemon takes seconds to start, a day within it milliseconds.

    Args:
        stamp: What run keys begin with; requests with the same stamp for the same days and series have the same key.
        wanted: UTC days of each series.
        at_most: Most days in a run.
    """
    by_day: dict[date, list[SeriesKey]] = {}
    for key, days in wanted.items():
        for day in set(days):
            by_day.setdefault(day, []).append(key)
    alike: dict[tuple[SeriesKey, ...], list[date]] = {}
    for day, keys in by_day.items():
        alike.setdefault(tuple(keys), []).append(day)
    stretches = [(*span, keys) for keys, days in alike.items() for span in contiguous_ranges(days, at_most)]
    return [_request(stamp, *stretch) for stretch in sorted(stretches, reverse=True)]


def _request(stamp: str, first: date, last: date, keys: Sequence[SeriesKey]) -> dg.RunRequest:
    digest = hashlib.sha256("\n".join(map(str, keys)).encode()).hexdigest()
    run_key = f"{stamp} {first} {last} {digest[:16]}"
    selection = [asset_key_of(key) for key in keys]
    if first == last:
        return dg.RunRequest(run_key, partition_key=partition_of(first), asset_selection=selection)
    tags = {RANGE_START: partition_of(first), RANGE_END: partition_of(last)}
    return dg.RunRequest(run_key, tags=tags, asset_selection=selection)
