from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.clock import contiguous_ranges, days_between
from market_data_pipeline.defs.partitions import daily_partitions, day_of, partition_of

dates = st.dates(date(2017, 7, 14), date(2030, 1, 1))


def test_the_first_day_and_today_are_partitions_and_tomorrow_is_not() -> None:
    keys = daily_partitions(date(2020, 1, 1)).get_partition_keys(datetime(2020, 1, 3, 0, 5, tzinfo=UTC))
    assert list(keys) == ["2020-01-01", "2020-01-02", "2020-01-03"]


@given(day=dates)
def test_a_day_and_its_partition_are_one(day: date) -> None:
    assert day_of(partition_of(day)) == day


@given(offsets=st.sets(st.integers(0, 60), max_size=40), at_most=st.one_of(st.none(), st.integers(1, 10)))
def test_ranges_are_as_long_as_may_be_and_hold_just_the_days(offsets: set[int], at_most: int | None) -> None:
    days = [date(2024, 1, 1) + timedelta(days=n) for n in offsets]
    ranges = list(contiguous_ranges(days, at_most))
    assert [day for first, last in ranges for day in days_between(first, last)] == sorted(days)
    lengths = [(last - first).days + 1 for first, last in ranges]
    assert all(at_most is None or length <= at_most for length in lengths)
    for (_, last), (first, _), length in zip(ranges, ranges[1:], lengths, strict=False):
        assert first - last > timedelta(days=1) or length == at_most
