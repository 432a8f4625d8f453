"""Known halts of spot, to estimate what a backfill costs. No check reads them: verdicts rest on what is stored.

Finding halts belongs to ``checks/halts.py``.
"""

from __future__ import annotations

from datetime import date, datetime

from market_data_pipeline import clock
from market_data_pipeline.model.series import DataType, Market, SeriesKey, interval_us

_SPOT = (
    ("2018-01-04 03:00", "2018-01-04 05:06"),
    ("2018-02-08 00:28", "2018-02-09 10:00"),
    ("2018-06-26 02:00", "2018-06-26 12:00"),
    ("2018-06-27 13:00", "2018-06-27 14:45"),
    ("2018-07-04 00:22", "2018-07-04 08:00"),
    ("2018-10-19 06:00", "2018-10-19 09:30"),
    ("2018-11-14 02:00", "2018-11-14 09:00"),
    ("2019-03-12 02:00", "2019-03-12 08:00"),
    ("2019-05-15 03:00", "2019-05-15 13:00"),
    ("2019-06-07 21:13", "2019-06-07 22:15"),
    ("2019-08-15 02:00", "2019-08-15 10:00"),
    ("2019-11-13 02:00", "2019-11-13 04:00"),
    ("2019-11-25 02:00", "2019-11-25 04:00"),
    ("2020-02-09 02:00", "2020-02-09 03:00"),
    ("2020-02-19 11:35", "2020-02-19 17:30"),
    ("2020-03-04 09:21", "2020-03-04 11:30"),
    ("2020-04-25 02:00", "2020-04-25 04:30"),
    ("2020-06-28 02:00", "2020-06-28 05:30"),
    ("2020-11-30 06:00", "2020-11-30 07:00"),
    ("2020-12-21 13:47", "2020-12-21 18:00"),
    ("2020-12-25 02:00", "2020-12-25 03:00"),
    ("2021-02-11 03:40", "2021-02-11 05:00"),
    ("2021-03-06 02:00", "2021-03-06 03:30"),
    ("2021-04-20 02:00", "2021-04-20 04:30"),
    ("2021-04-25 04:01", "2021-04-25 08:45"),
    ("2021-08-13 02:00", "2021-08-13 06:30"),
    ("2021-09-29 07:00", "2021-09-29 09:00"),
    ("2023-03-24 12:40", "2023-03-24 14:00"),
)
"""Starts and ends (UTC) of the halts in which spot has no candles. Some are known to the hour only."""

_SPANS_US = [tuple(clock.to_us(datetime.fromisoformat(f"{text}+00:00")) for text in span) for span in _SPOT]


def lacks_candles(key: SeriesKey, day: date) -> bool:
    """Return True if a known halt left out candles of a series on a day.

    >>> key = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1h")
    >>> [lacks_candles(key, date(2020, 2, number)) for number in (9, 10)]
    [True, False]
    """
    if key.market is not Market.SPOT or key.data_type is not DataType.KLINES or key.interval is None:
        return False
    begin, step = clock.day_start_us(day), interval_us(key.interval)
    cuts = [(max(start, begin), min(end, begin + clock.US_PER_DAY)) for start, end in _SPANS_US]
    return any(-(-start // step) * step + step <= end for start, end in cuts)
