"""Requests for rows in Binance's dialect: parse them, read the rows, and refuse what the lake cannot answer.

An answer has every row of its range, or it is an error. It is empty only if nothing can have traded in the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.client.pages import ARCHIVE_BEGINS_AT, MissingSpan, PageRequest, RowsPage
from market_data_pipeline.lake import reader
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files, known_series
from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import Refusal
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import HELD
from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.server.binance import encoding
from market_data_pipeline.server.rows import RowSource

_IDS = {"aggTrades": DataType.AGG_TRADES, "historicalTrades": DataType.TRADES}
"""Endpoints of trades, which take ``fromId``."""

_OUR_INTERVALS = {"1M": "1mo"}
_FIRST_IDS = 1
"""Greatest id that means the oldest trade."""


@dataclass(frozen=True, slots=True)
class RowsCall:
    """A parsed request for rows.

    Attributes:
        symbol: Symbol of the lake.
        interval: Interval of the lake.
        start: First moment in microseconds since 1970. None means the newest rows.
        end: Last moment, inclusive. None means now.
        from_id: Id of the first trade.
        fine: Times of the answer are in microseconds.
    """

    market: Market
    endpoint: str
    data_type: DataType
    symbol: str
    interval: str | None
    start: int | None
    end: int | None
    from_id: int | None
    limit: int
    fine: bool

    def page(self) -> PageRequest:
        """Return the request that names its series. Its range is not set."""
        return PageRequest(self.market, self.data_type, self.symbol, self.interval, None, None, self.limit)


def call_of(market: Market, endpoint: str, parameters: Mapping[str, str], *, fine: bool) -> RowsCall:
    """Parse a request for rows.

    Args:
        fine: The client requests microseconds. Futures ignore it.

    Raises:
        Refusal: A parameter is missing or not valid.
    """
    limit = dialect.limit_in(parameters, market, endpoint)
    data_type = data_type_of(market, endpoint)
    symbol = dialect.listed_name_in(parameters, endpoint)
    interval = dialect.interval_in(parameters, market) if data_type.has_interval else None
    if endpoint == "continuousKlines" and dialect.contract_in(parameters) != dialect.CONTRACTS[0]:
        raise dialect.invalid("contractType", "The lake has no series that roll. Read each contract with klines.")
    if dialect.symbol_name(endpoint) == "pair":
        symbol = dialect.perpetual_of(market, symbol)
    if endpoint in dialect.STATISTICS and parameters.get("period") != "5m":
        raise (
            dialect.mandatory("period")
            if not parameters.get("period")
            else dialect.invalid("period", "The lake has periods of 5m.")
        )
    start, end = dialect.times_in(parameters, market)
    from_id = dialect.number_in(parameters, "fromId") if endpoint in _IDS else None
    if data_type.has_interval:
        dialect.refuse_long_span(market, start, end)
    if endpoint == "aggTrades":
        dialect.refuse_combination(market, from_id, start, end)
    if endpoint == "historicalTrades":
        start = end = None
    if endpoint == "fundingRate":
        start = start or None  # as Binance reads it
    return RowsCall(
        market,
        endpoint,
        data_type,
        symbol,
        _OUR_INTERVALS.get(interval, interval) if interval else None,
        start,
        end,
        from_id,
        limit,
        fine and market is Market.SPOT,
    )


def data_type_of(market: Market, endpoint: str) -> DataType:
    """Return the data type of an endpoint's rows."""
    if endpoint in dialect.CANDLES[market]:
        return dialect.CANDLES[market][endpoint]
    if endpoint in dialect.STATISTICS:
        return DataType.METRICS
    return _IDS[endpoint] if endpoint in _IDS else DataType(endpoint)


def not_stored(layout: Layout, call: RowsCall) -> Refusal:
    """Return the refusal of a request whose series the lake does not have. This lists the folders of the lake."""
    name = dialect.symbol_name(call.endpoint)
    stored = [key for key in known_series(layout) if key.market is call.market and key.symbol == call.symbol]
    if not stored:
        return dialect.unknown_symbol(name)
    intervals = [str(key.interval) for key in stored if key.data_type is call.data_type and key.interval]
    if intervals:
        return Refusal(-1120, f"Invalid interval. The lake has {call.symbol} of {call.market} in {_list(intervals)}.")
    types = sorted({str(key.data_type) for key in stored})
    return dialect.invalid(
        name,
        f"The lake has no {call.data_type} of {call.symbol} in {call.market}. It has {_list(types)}. "
        "`market-data add` collects more.",
    )


def _list(names: list[str]) -> str:
    return ", ".join(names)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows of an answer, and the page that they come from. ``page`` is None if the range is in the future."""

    table: pa.Table | None
    page: RowsPage | None


class RowsReader:
    """Reads rows of the lake as Binance would answer.

    Args:
        source: Where rows come from.
        layout: The lake. Ids of trades are found in its ledgers.
    """

    def __init__(self, source: RowSource, layout: Layout) -> None:
        self._source = source
        self._layout = layout

    def read(self, call: RowsCall, key: SeriesKey) -> ReadRows:
        """Read the rows of a request, without looking at what is missing. This blocks.

        Raises:
            Refusal: A trade with this id is not stored.
            DamagedFileError: A file is damaged.
        """
        now = clock.to_us(clock.now())
        if (call.start is not None and call.start > now) or _is_reversed(call):
            return ReadRows(None, None)
        end = _end_of(call, key, now)
        request = replace(call.page(), end=end)
        if call.from_id is not None:
            place = self._place_of(call, key)
            if place is None:
                return ReadRows(None, None)
            request = replace(request, start=place[0], skip=place[1], end=None)
        elif call.start is not None and call.endpoint not in dialect.STATISTICS:
            request = replace(request, start=max(_moment(call.start), ARCHIVE_BEGINS_AT))
        page = self._source.read(request)
        return ReadRows(self._cut(call, key, page), page)

    def _cut(self, call: RowsCall, key: SeriesKey, page: RowsPage) -> pa.Table:
        """Return the rows of a page without those outside of the request, and without candles that are not over."""
        table, time = page.table, reader.time_column(call.data_type)
        if call.from_id is not None or call.endpoint in dialect.STATISTICS:
            if call.start is not None:
                table = table.filter(pc.field(time) >= pa.scalar(_moment(call.start), pa.timestamp("us")))
            if call.end is not None:
                table = table.filter(pc.field(time) <= pa.scalar(_moment(call.end), pa.timestamp("us")))
        if call.interval != key.interval:
            begun = [span.first for span in page.missing if span.fetchable and span.until > (_last(page) or span.first)]
            over = min([_present(), *begun])
            table = table.filter(pc.field("close_time") < pa.scalar(over, pa.timestamp("us")))
        return table

    def refuse_missing(self, call: RowsCall, key: SeriesKey, found: ReadRows) -> None:
        """Refuse an answer that would leave out rows that Binance may have.

        Raises:
            Refusal: Rows are missing. The text names the first span.
        """
        page, table = found.page, found.table
        if page is None or table is None:
            return
        from_begin = call.start is None or _moment(call.start) < ARCHIVE_BEGINS_AT
        if call.from_id is not None:
            from_begin = call.from_id <= _FIRST_IDS
        missing = list(page.missing)
        if call.endpoint in dialect.STATISTICS and call.start is not None and _moment(call.start) < page.first:
            begin = max(_moment(call.start), ARCHIVE_BEGINS_AT)
            if page.table.num_rows < call.limit:
                missing = [*self._missing(call, begin, page.first), *missing]
        if table.num_rows == 0:
            if call.from_id is None:  # with an end, so that the part of today that was not fetched counts
                missing = self._missing(call, max(_moment(call.start or 0), ARCHIVE_BEGINS_AT), page.until)
            for span in missing:
                raise self._absent(call, key, span)
            return
        first, last = _moments(table, reader.time_column(call.data_type))
        to_present = call.end is None or _moment(call.end) >= clock.midnight(clock.today())
        for span in missing:
            before, after = span.until <= first, span.until > last
            if span.fetchable and not (before and from_begin) and not (after and to_present):
                raise self._absent(call, key, span)

    def _missing(self, call: RowsCall, begin: datetime, end: datetime) -> list[MissingSpan]:
        if begin >= end:
            return []
        return list(self._source.read(replace(call.page(), start=begin, end=end, limit=1)).missing)

    def _absent(self, call: RowsCall, key: SeriesKey, span: MissingSpan) -> Refusal:
        days = sorted(day_files(self._layout, key))
        stored = f" It is stored from {days[0]} to {days[-1]}." if days else ""
        what = f"{call.symbol} {call.interval or call.data_type} of {call.market}"
        return dialect.invalid(
            "startTime" if call.start is not None else "fromId" if call.from_id is not None else "endTime",
            f"The lake does not have {what} from {_shown(span.first)} to {_shown(span.until)} UTC "
            f"({span.reason}).{stored} `market-data sync` fetches missing days.",
        )

    # --- ids -----------------------------------------------------------------------------------------------------

    def _place_of(self, call: RowsCall, key: SeriesKey) -> tuple[datetime, int] | None:
        """Return the time of the first trade with an id or a later one, and the rows of that time before it.

        None means that the exchange has no such trade: it was delisted before.

        Raises:
            Refusal: The trade is not stored, or comes after the newest stored one.
        """
        assert call.from_id is not None  # noqa: S101 - checked by the caller
        on_disk = day_files(self._layout, key)
        days = sorted(on_disk)
        records = rows_on_record(self._layout, key, on_disk, days[0], days[-1]) if days else {}
        stored = [
            (day, one.first_key, one.last_key)
            for day, one in sorted(records.items())
            if one.outcome == HELD and one.first_key is not None and one.last_key is not None
        ]
        before: date | None = None
        for day, first, last in stored:
            if last >= call.from_id:
                if first > call.from_id > _FIRST_IDS and before != day - clock.DAY:
                    raise self._no_id(call, stored)
                return self._place_in(key, day, call.from_id)
            before = day
        if before is not None and not self._missing(call, clock.midnight(before + clock.DAY), _present()):
            return None  # delisted: there is no later trade
        raise self._no_id(call, stored)

    def _place_in(self, key: SeriesKey, day: date, from_id: int) -> tuple[datetime, int]:
        ids, time = spec_of(key).key, reader.time_column(key.data_type)
        rows = reader.read_day(self._layout, key, day, [ids, time])
        at = int((rows[ids].to_numpy() < from_id).sum())
        moment = rows[time][at].as_py()
        same = rows[time].slice(0, at).to_pylist().count(moment)
        return moment, same

    def _no_id(self, call: RowsCall, stored: list[tuple[date, int, int]]) -> Refusal:
        ids = f" It has ids {stored[0][1]} to {stored[-1][2]}, of {stored[0][0]} to {stored[-1][0]}." if stored else ""
        return dialect.invalid(
            "fromId",
            f"The lake has no {call.data_type} of {call.symbol} in {call.market} with id {call.from_id}.{ids}",
        )


def encoded_rows(call: RowsCall, table: pa.Table | None) -> bytes:
    """Return the JSON of an answer."""
    if table is None:
        return b"[]"
    divisor = 1 if call.fine else 1_000
    match call.data_type:
        case DataType.AGG_TRADES:
            return encoding.agg_trades_json(table, call.market, divisor)
        case DataType.TRADES:
            return encoding.trades_json(table, call.market, divisor)
        case DataType.FUNDING_RATE:
            return encoding.funding_rates_json(table, call.symbol)
        case DataType.METRICS:
            return encoding.statistics_json(table, call.symbol, call.endpoint)
        case _:
            return encoding.candles_json(table, call.market, call.data_type, divisor)


def _present() -> datetime:
    return clock.naive_utc(clock.now())


def _is_reversed(call: RowsCall) -> bool:
    return call.start is not None and call.end is not None and call.start > call.end


def _end_of(call: RowsCall, key: SeriesKey, now: int) -> datetime | None:
    """Return the first moment after the range. None means now."""
    if call.end is None or call.end >= now:
        return None
    end = call.end + 1
    if call.interval is not None and call.interval != key.interval:
        end = clock.to_us(_next_open(_moment(call.end), call.interval).replace(tzinfo=UTC))
    return None if end > now else _moment(end)


def _next_open(moment: datetime, interval: str) -> datetime:
    """Return the open time of the first candle after a moment."""
    day = clock.midnight(moment.date())
    match interval:
        case "1mo":
            return clock.midnight(clock.days_of_month(moment.date())[-1] + clock.DAY)
        case "1w":
            return day + timedelta(days=7 - day.weekday())
        case "3d":
            return day + timedelta(days=3 - (clock.day_number(day.date()) - 1) % 3)
        case _:
            step = INTERVALS[interval] * 1_000_000
            return _moment((clock.to_us(moment.replace(tzinfo=UTC)) // step + 1) * step)


_LAST_US = clock.to_us(datetime.max.replace(tzinfo=UTC))


def _moment(us: int) -> datetime:
    return clock.naive_from_us(min(us, _LAST_US))


def _moments(table: pa.Table, time: str) -> tuple[datetime, datetime]:
    return table[time][0].as_py(), table[time][table.num_rows - 1].as_py()


def _last(page: RowsPage) -> datetime | None:
    return page.table["open_time"][page.table.num_rows - 1].as_py() if page.table.num_rows else None


def _shown(moment: datetime) -> str:
    return moment.isoformat(" ", "minutes")
