from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.clock import contiguous_ranges, days_between
from market_data_pipeline.defs.partitions import daily_partitions, day_of, partition_of, partitions_of, span_of, tags_of
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.universe import Universe, parse_universe

dates = st.dates(date(2017, 7, 14), date(2030, 1, 1))


def test_first_day_and_today_are_partitions_but_not_tomorrow() -> None:
    listed = ((date(2020, 1, 1), None),)
    keys = daily_partitions(date(2020, 1, 1), listed).get_partition_keys(datetime(2020, 1, 3, 0, 5, tzinfo=UTC))
    assert list(keys) == ["2020-01-01", "2020-01-02", "2020-01-03"]


@given(first=st.integers(0, 12), ends=st.lists(st.integers(1, 20), min_size=2, max_size=8, unique=True))
def test_partitions_are_the_listed_days_from_the_start(first: int, ends: list[int]) -> None:
    """Listings end and begin again, also before the first day. There is no partition outside of them."""
    begin, bounds = date(2020, 1, 1), sorted(ends)[: len(ends) // 2 * 2]
    spans = [(begin + timedelta(days=a), begin + timedelta(days=b)) for a, b in batched(bounds)]
    start = begin + timedelta(days=first)
    expected = [day for a, b in spans for day in days_between(a, b) if day >= start]
    assert [day_of(name) for name in daily_partitions(start, tuple(spans)).get_partition_keys()] == expected


def batched(bounds: list[int]) -> list[tuple[int, int]]:
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def test_equal_days_share_one_definition() -> None:
    text = (
        "collect: [{market: spot, symbols: [A, B, C], klines: {intervals: 1d, from: 2020-01-02}, "
        "aggTrades: {from: 2020-03-04}}]"
    )
    universe = Universe(parse_universe(text), {(Market.SPOT, "C"): ListingSpans(((date(2020, 2, 1), None),))})
    found = {key: partitions_of(universe, key) for key in universe.series()}
    assert {str(key): str(one.start.date()) for key, one in found.items()} == {
        "binance/spot/klines/A/1d": "2020-01-02",
        "binance/spot/klines/B/1d": "2020-01-02",
        "binance/spot/klines/C/1d": "2020-02-01",
        "binance/spot/aggTrades/A": "2020-03-04",
        "binance/spot/aggTrades/B": "2020-03-04",
        "binance/spot/aggTrades/C": "2020-03-04",
    }
    assert len({id(one) for one in found.values()}) == 4


@given(day=dates)
def test_a_day_and_its_partition_are_one(day: date) -> None:
    assert day_of(partition_of(day)) == day


@given(first=dates, length=st.integers(0, 400))
def test_tags_and_spans_are_inverse(first: date, length: int) -> None:
    last = first + timedelta(days=length)
    assert span_of(tags_of(first, last)) == (first, last)
    assert span_of({}) is None


@given(offsets=st.sets(st.integers(0, 60), max_size=40), at_most=st.one_of(st.none(), st.integers(1, 10)))
def test_ranges_are_as_long_as_possible_and_exact(offsets: set[int], at_most: int | None) -> None:
    days = [date(2024, 1, 1) + timedelta(days=n) for n in offsets]
    ranges = list(contiguous_ranges(days, at_most))
    assert [day for first, last in ranges for day in days_between(first, last)] == sorted(days)
    lengths = [(last - first).days + 1 for first, last in ranges]
    assert all(at_most is None or length <= at_most for length in lengths)
    for (_, last), (first, _), length in zip(ranges, ranges[1:], lengths, strict=False):
        assert first - last > timedelta(days=1) or length == at_most
