"""REST: pages of klines (closed candles only) and aggTrades of the three markets, within the weight budget.

429 means: wait for the requested time and retry. 418 (banned), 403 (firewall) and 451 (blocked country) switch the host
off for the rest of the run, because further requests prolong a ban. The budget itself does not belong here
(``rate_limit.py``).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import (
    BeyondReachError,
    HostOffError,
    MalformedError,
    NetworkError,
    RefusedError,
    RestAnswerError,
)
from market_data_pipeline.model.datasets import MARKETS, REQUEST_BUDGETS, RestEndpoint, precedes_listing, spec_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey, interval_us
from market_data_pipeline.model.waits import Stop, as_duration
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.binance.zip_reader import table_from_rest
from market_data_pipeline.sources.http import (
    BAD_REQUEST,
    CHECK_NETWORK,
    OK,
    TOO_MANY,
    Host,
    Response,
    ResponseKind,
    retry_after_seconds,
)
from market_data_pipeline.sources.rate_limit import LONGEST_BAN_SECONDS, WeightBudget

_USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"
_TIME_WEIGHT = 1
_MOST_COUNTED = 1_000_000
"""Maximum plausible weight per minute in Binance's count. The highest limit is 6,000."""

_ANSWER = ResponseKind("an answer of REST", 16 << 20)
_MOST_COMMAS = 100_000
"""Maximum commas in a response: five times as many as the biggest page has."""

_EXCHANGE_INFO = ResponseKind("an answer of exchangeInfo", 64 << 20)
_MOST_COMMAS_OF_SYMBOLS = 2_000_000
_EXCHANGE_INFO_WEIGHT = 20
"""Weight of exchangeInfo in spot. In futures it is 1."""

_DEFAULT_PAUSE = 60.0
_PATIENCE = 5
"""Attempts at one request that may get 429 before the host is off for the run."""

_INVALID_SYMBOL = -1121
_TOO_OLD = -4166
"""Futures aggTrades beyond the served window: "Search window is restricted to recent 2 days only"."""
_PASSING_CODES = range(-1099, -999)
"""Codes of server and network errors, by Binance's documentation. All others are faults of the request."""

_ADVICE = {
    403: "its firewall refuses this address",
    418: "it has banned this address for too many requests",
    451: "it refuses this country",
}


_CLOCK_TOLERANCE = timedelta(minutes=5)
"""Maximum difference between the server's clock and ours. Beyond it, nobody knows which candles are closed."""

_EDGE = timedelta(minutes=10)
"""Margin at the oldest end of the rows that REST serves: rows in it may be gone before the response."""


@dataclass(frozen=True, slots=True)
class RestRows:
    """Rows from REST.

    Attributes:
        table: With :func:`lake_schema`, ordered by key.
        asked_at: Time of the first request (UTC). The table has everything that happened before. It is the server's
            time, except for requests by id.
        cut: True if rows are missing because the run used up its weight for aggTrades.
        beyond: Reason if rows at the start may be missing because REST no longer serves them. Else empty.
    """

    table: pa.Table
    url: str
    asked_at: datetime
    cut: bool = False
    beyond: str = ""


class RestApi:
    """REST of one market, for one run.

    Each method that fetches raises HostOffError if the host refuses, or did so before in this run, NetworkError without
    a response, and RestAnswerError if a response is not understood.

    Args:
        stop: Ends all waits. By default, only :meth:`close` does.

    Raises:
        HostOffError: The folder of the shared budget is unusable.
    """

    def __init__(self, market: Market, settings: Settings, stop: Stop | None = None) -> None:
        self.market = market
        self._facts = MARKETS[market]
        self._stop = stop = stop or Stop()
        self._requests: dict[str, WeightBudget] = {}
        self._host = Host(settings.rest_url(market), settings, stop=stop)
        self._settings = settings
        self._budget = WeightBudget(
            _budget_name(market, settings),
            self._facts.weight_per_minute,
            settings.weight_share,
            settings.budget_dir,
            stop,
            settings.rest_pause_seconds,
        )
        self._headers = {"X-MBX-TIME-UNIT": "MICROSECOND"} if self._facts.microseconds else {}
        self._unit = 1 if self._facts.microseconds else 1000
        self._off: str | None = None
        self._server: tuple[datetime, float] | None = None
        self._trades_weight_left = settings.rest_trades_weight
        self._lock = threading.Lock()

    # --- endpoints ------------------------------------------------------------------------------------------

    def klines(self, key: SeriesKey, start_us: int, end_us: int, now: datetime | None = None) -> RestRows:
        """Fetch closed candles with ``start_us <= open_time < end_us`` (microseconds UTC).

        Args:
            now: Time at which candles must be closed. None means the server's time.
        """
        endpoint = spec_of(key).rest
        step = interval_us(key.interval or "")
        now = now or self._server_now()
        tables: list[pa.Table] = []
        cursor, end = start_us, min(end_us, clock.to_us(now))
        while cursor < end:
            limit = min(endpoint.page, -(-(end - cursor) // step))
            rows = self._rows(
                endpoint,
                {
                    endpoint.symbol: key.archive_symbol,
                    "interval": key.interval or "",
                    "startTime": str(cursor // 1000),
                    "endTime": str((end - 1) // 1000),
                    "limit": str(limit),
                },
            )
            if not rows:
                break
            table = self._table(rows, key, (cursor, end - 1))
            tables.append(table)
            cursor = _at(table, "open_time", -1) + step
            if len(rows) < limit:
                break
        return self._found(key, tables, "close_time", (0, clock.to_us(now)), now)

    def of_time(self, key: SeriesKey, start_us: int, end_us: int) -> RestRows:
        """Fetch rows with ``start_us <= time < end_us`` (microseconds UTC), for types whose rows have only a time.

        The request begins a day earlier, because the interval of a row is its distance from the row before.

        Raises:
            HostOffError: The host refuses, or did so before in this run.
            NetworkError: No response.
            RestAnswerError: A response is not understood.
        """
        endpoint = endpoint_of(key)
        self._refuse_beyond(endpoint, start_us, clock.now(), key.data_type)
        time_field = next(column.rest for column in spec_of(key).columns if column.name == spec_of(key).time)
        now = self._server_now()
        lead = clock.US_PER_DAY if any(column.spacing for column in spec_of(key).columns) else 0
        first, end = start_us - lead, min(end_us, clock.to_us(now))
        cursor, every = first, list[Any]()
        while cursor < end:
            until = end if endpoint.max_span is None else min(end, cursor + _span_us(endpoint))
            rows = self._rows(endpoint, _by_time(key, cursor, until, endpoint))
            every += self._joined(key, endpoint, rows, (cursor, until), time_field)
            if endpoint.max_span is None and len(rows) < endpoint.page:
                break
            full = endpoint.max_span is None
            cursor = (_time_in(rows[-1], time_field, endpoint) + 1) * self._unit if full else until
        empty = lake_schema(key.market, key.data_type).empty_table()
        found = self._table(every, key, (first, end - 1)) if every else empty
        times = pc.cast(found.column(spec_of(key).time), pa.int64())
        slots = spec_of(key).slots
        step = int(slots.step.total_seconds() * 1e6) if slots is not None and slots.step is not None else 0
        last = min(end_us - 1, clock.to_us(now) - step)  # a period counts when it is over
        inside = pc.and_(pc.greater_equal(times, pa.scalar(start_us)), pc.less_equal(times, pa.scalar(last)))
        return RestRows(found.filter(inside), f"{self._host.url}{endpoint.path}", now)

    def _joined(
        self, key: SeriesKey, endpoint: RestEndpoint, rows: list[Any], between: tuple[int, int], time_field: str
    ) -> list[Any]:
        """Return rows with the fields of further endpoints, joined on their time. A missing row leaves a null."""
        if not rows or not endpoint.joined:
            return rows
        merged = {_time_in(row, time_field, endpoint): dict(row) for row in rows}
        for path, field, column in endpoint.joined:
            other = replace(endpoint, path=path)
            found = self._rows(other, _by_time(key, *between, other))
            values = {_time_in(row, time_field, other): row.get(field) for row in found}
            for at, row in merged.items():
                row[column] = values.get(at)
        return list(merged.values())

    def agg_trades(
        self, key: SeriesKey, start_us: int, end_us: int, from_id: int | None = None, since_us: int | None = None
    ) -> RestRows:
        """Fetch trades with ``start_us <= transact_time < end_us``, from an id on if it is known.

        Args:
            start_us: Microseconds UTC.
            end_us: Microseconds UTC.
            from_id: The first id to fetch. None: the first id after ``start_us``.
            since_us: Time of the trade before that id (microseconds UTC). Defaults to ``start_us``.

        Raises:
            BeyondReachError: REST no longer serves trades this old. No request was sent.
            RestAnswerError: A response does not start at the requested id, or is not understood.
        """
        endpoint = endpoint_of(key)
        self._refuse_beyond(endpoint, start_us if since_us is None else max(start_us, since_us), clock.now())
        now = self._server_now()
        end = min(end_us, clock.to_us(now))
        tables: list[pa.Table] = []
        cut = False
        cursor = start_us
        while cursor < end:
            if not self._spend_on_trades(endpoint.weight):
                cut = True
                break
            if from_id is None:
                span = min(cursor + _span_us(endpoint), end)
                rows = self._rows(endpoint, _by_time(key, cursor, span, endpoint))
                if not rows:
                    cursor = span
                    continue
                table = self._table(rows, key, (cursor, span - 1))
            else:
                # Responses to fromId can be silently truncated (binance-public-data #376).
                page = self._trades_from(key, from_id, until=from_id)
                if page is None:
                    break
                table = page
            tables.append(table)
            if _at(table, "transact_time", -1) >= end or (from_id is not None and table.num_rows < endpoint.page):
                break
            from_id = _at(table, "agg_trade_id", -1) + 1
        return self._found(key, tables, "transact_time", (start_us, end_us), now, cut)

    def agg_trades_of_ids(
        self, key: SeriesKey, first: int, last: int, between_us: tuple[int, int] | None = None
    ) -> RestRows:
        """Fetch the trades with ids from ``first`` to ``last`` that REST has. A cut result has none after its last row.

        Trades with higher ids are known, so all of these have happened. The server's time is not needed.

        Args:
            last: Last id, inclusive.
            between_us: Times of the trades before the first and after the last id (microseconds UTC). They decide if
                REST still serves the ids. None if unknown.

        Raises:
            BeyondReachError: REST no longer serves trades this old. It refused, or no request was sent.
        """
        endpoint = endpoint_of(key)
        now = clock.now()
        beyond = ""
        if between_us is not None:
            self._refuse_beyond(endpoint, between_us[1], now)
            beyond = self._beyond(endpoint, between_us[0], now)
        tables: list[pa.Table] = []
        cut = False
        cursor = first
        if between_us is not None and beyond:
            served = self._first_served(key, endpoint, between_us[1], now)
            cursor = last + 1 if served is None else max(first, served)
        while cursor <= last:
            if not self._spend_on_trades(endpoint.weight):
                cut = True
                break
            table = self._trades_from(key, cursor)
            if table is None:
                break
            tables.append(table)
            cursor = _at(table, "agg_trade_id", -1) + 1
        return self._found(key, tables, "agg_trade_id", (0, last + 1), now, cut, beyond)

    def _trades_from(self, key: SeriesKey, first: int, until: int | None = None) -> pa.Table | None:
        """Return a page of trades that starts at an id, or later up to ``until`` (default: any). None without trades.

        Raises:
            RestAnswerError: It starts elsewhere.
        """
        endpoint = spec_of(key).rest
        params = {"symbol": key.symbol, "fromId": str(first), "limit": str(endpoint.page)}
        rows = self._rows(endpoint, params)
        if not rows:
            return None
        table = self._table(rows, key)
        found = _at(table, "agg_trade_id", 0)
        if found < first or (until is not None and found > until):
            raise RestAnswerError(f"REST answered trades of {key} from id {found} on. Id {first} was requested.")
        return table

    def _found(
        self,
        key: SeriesKey,
        tables: Sequence[pa.Table],
        column: str,
        between: tuple[int, int],
        asked_at: datetime,
        cut: bool = False,
        beyond: str = "",
    ) -> RestRows:
        """Return the rows of all pages whose value in a column is between two, the second excluded."""
        found = pa.concat_tables([lake_schema(key.market, key.data_type).empty_table(), *tables])
        values = pc.cast(found.column(column), pa.int64()).to_numpy()
        inside = pa.array((values >= between[0]) & (values < between[1]))
        return RestRows(found.filter(inside), f"{self._host.url}{spec_of(key).rest.path}", asked_at, cut, beyond)

    def _first_served(self, key: SeriesKey, endpoint: RestEndpoint, until_us: int, now: datetime) -> int | None:
        """Return the id of the oldest trade that REST still serves. None if it has none before ``until_us``."""
        at = clock.to_us(now - (endpoint.reach or timedelta()) + _EDGE)
        while at < until_us and self._spend_on_trades(endpoint.weight):
            span = at + _span_us(endpoint)
            if rows := self._rows(endpoint, _by_time(key, at, span, endpoint)):
                return _at(self._table(rows, key, (at, span - 1)), "agg_trade_id", 0)
            at = span
        return None

    def _refuse_beyond(
        self, endpoint: RestEndpoint, moment_us: int, now: datetime, what: str = DataType.AGG_TRADES
    ) -> None:
        if beyond := self._beyond(endpoint, moment_us, now, what):
            raise BeyondReachError(beyond)

    def _beyond(self, endpoint: RestEndpoint, moment_us: int, now: datetime, what: str = DataType.AGG_TRADES) -> str:
        """Return the reason if REST no longer serves rows of a moment, else an empty string."""
        if endpoint.reach is None or moment_us >= clock.to_us(now - endpoint.reach + _EDGE):
            return ""
        return f"REST of {self.market} only serves {what} of the last {as_duration(endpoint.reach.total_seconds())}"

    def first_candle_day(self, key: SeriesKey) -> date | None:
        """Return the UTC day of a symbol's first candle, or of the first candle of its price. None without any."""
        data_type = key.data_type if precedes_listing(key) else DataType.KLINES
        daily = SeriesKey(EXCHANGE, key.market, data_type, key.symbol, "1d")
        endpoint = spec_of(daily).rest
        parameters = {"interval": "1d", "startTime": "0", "limit": "1", str(endpoint.symbol): daily.archive_symbol}
        rows = self._rows(endpoint, parameters)
        if not rows:
            return None
        return clock.day_of_us(_at(self._table(rows, daily), "open_time", 0))

    def exchange_info(self) -> Any:
        """Return ``exchangeInfo``: the symbols of the market with their status and trading rules, as JSON."""
        path = self._facts.time_path.removesuffix("time") + "exchangeInfo"
        params = {"showPermissionSets": "false"} if self.market is Market.SPOT else {}  # they are most of its bytes
        answer = self._request(path, params, _EXCHANGE_INFO_WEIGHT, kind=_EXCHANGE_INFO)
        return _json(answer, _MOST_COMMAS_OF_SYMBOLS)

    def server_time(self) -> datetime:
        """Request the server's time (UTC). It may differ from this machine's clock by any amount."""
        answer = self._request(self._facts.time_path, {}, _TIME_WEIGHT)
        try:
            # The header's unit applies to the server time, too.
            return datetime.fromtimestamp(int(_json(answer)["serverTime"]) * self._unit / 1e6, UTC)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            raise RestAnswerError(f"{answer.url} answered no server time: {answer.text!r}.") from error

    # --- requests -------------------------------------------------------------------------------------------

    def _server_now(self) -> datetime:
        """Return the server's time. It is requested once per run, and a monotonic clock counts from then on.

        Raises:
            RestAnswerError: It differs so much from ours that one of the clocks is wrong.
        """
        with self._lock:
            if self._server is None:
                server = self.server_time()
                counted_from, ours = time.monotonic(), clock.now()
                if abs(server - ours) > _CLOCK_TOLERANCE:
                    apart = as_duration(abs(server - ours).total_seconds())
                    raise RestAnswerError(
                        f"{self._host.url}{self._facts.time_path} answered {server:%Y-%m-%d %H:%M:%S} UTC and this "
                        f"machine's clock is at {ours:%Y-%m-%d %H:%M:%S}. They differ by {apart}, "
                        "so it is unknown which candles are closed. Set this machine's clock (NTP)."
                    )
                self._server = server, counted_from
            server, counted_from = self._server
        return server + timedelta(seconds=time.monotonic() - counted_from)

    def _rows(self, endpoint: RestEndpoint, params: dict[str, str]) -> list[Any]:
        answer = self._request(endpoint.path, params, endpoint.weight, endpoint.budget)
        rows = _json(answer)
        if not isinstance(rows, list):
            raise RestAnswerError(f"{answer.summary} instead of rows.")
        if len(rows) > int(params["limit"]):
            raise RestAnswerError(f"{answer.url} answered {len(rows):,} rows, more than requested.")
        return rows

    def _table(self, rows: list[Any], key: SeriesKey, between_us: tuple[int, int] | None = None) -> pa.Table:
        """Return the rows of a response as a table, checked to be in order.

        Args:
            between_us: First and last requested moment (microseconds UTC). REST takes milliseconds.

        Raises:
            RestAnswerError: The rows do not match the request.
        """
        spec = spec_of(key)
        try:
            table = table_from_rest(rows, key, self._unit)
        except MalformedError as error:
            raise RestAnswerError(str(error)) from error
        keys = pc.cast(table.column(spec.key), pa.int64()).to_numpy()
        if (keys[1:] <= keys[:-1]).any():
            raise RestAnswerError(f"REST answered rows of {key} that are not ordered by {spec.key}.")
        if between_us is not None:
            bounds: Any = pc.min_max(pc.cast(table.column(spec.time), pa.int64())).as_py()
            low, high = bounds["min"], bounds["max"]
            if low < between_us[0] // 1000 * 1000 or high > between_us[1] // 1000 * 1000 + 999:
                raise RestAnswerError(
                    f"REST answered rows of {key} from {_moment(low)} to {_moment(high)}. "
                    f"{_moment(between_us[0])} to {_moment(between_us[1])} was requested."
                )
        return table

    def _requests_left(self, name: str) -> WeightBudget:
        """Return the budget of a group of endpoints whose requests Binance counts apart from the weight."""
        with self._lock:
            if name not in self._requests:
                limit = REQUEST_BUDGETS[name]
                self._requests[name] = WeightBudget(
                    f"{_budget_name(self.market, self._settings)}+{name}",
                    limit.requests,
                    self._settings.weight_share,
                    self._settings.budget_dir,
                    self._stop,
                    self._settings.rest_pause_seconds,
                    seconds=limit.seconds,
                )
            return self._requests[name]

    def _request(
        self,
        path: str,
        params: Mapping[str, str],
        weight: int,
        budget: str = "",
        kind: ResponseKind = _ANSWER,
    ) -> Response:
        for _ in range(_PATIENCE):
            with self._host.downloads:
                if budget:
                    self._requests_left(budget).acquire(1, self._refuse_if_off)
                self._budget.acquire(weight, self._refuse_if_off)
                self._refuse_if_off()  # another thread or process may have been banned meanwhile
                answer = self._host.get(path, kind, dict(params), self._headers)
                if (used := _used_weight(answer)) is not None:
                    self._budget.observe(used)
                if answer.status == TOO_MANY:
                    # Record it, so that no thread and no other process sends a request: Binance bans for that.
                    self._budget.pause(_retry_after(answer))
                if answer.status != TOO_MANY or _retry_after(answer) > self._settings.rest_pause_seconds:
                    self._raise_for_status(answer)  # record a ban before releasing the download slot
                    return answer
        self._raise_for_status(answer)
        return answer

    def _refuse_if_off(self) -> None:
        banned = None if self._off else self._budget.banned_until()
        if banned:
            self._off = f"it has banned this address until {banned:%Y-%m-%d %H:%M} UTC"
        if self._off:
            raise HostOffError(
                f"REST of {self.market} ({self._host.name}) is off for the rest of this run: {self._off}. "
                f"Days from the archive continue. Wait, lower {PREFIX}WEIGHT_SHARE, "
                f"or set {PREFIX}{self.market.upper()}_URL to a host that answers."
            )

    def _raise_for_status(self, answer: Response) -> None:
        status = answer.status
        if status == OK:
            return
        if status in _ADVICE or status == TOO_MANY:
            pause = _retry_after(answer)
            if status == 418:
                self._budget.ban(pause)
            self._off = _ADVICE.get(status, "it requests longer pauses than we wait") + f" (status {status})"
            self._refuse_if_off()
        code = _code(answer)
        if code == _INVALID_SYMBOL:
            raise RefusedError(f"REST of {self.market} does not know the symbol any more, or never did (error {code})")
        if code == _TOO_OLD:
            raise BeyondReachError(f"REST of {self.market} does not serve rows this old (error {code})")
        if status == BAD_REQUEST and code not in _PASSING_CODES:
            raise RefusedError(f"REST of {self.market} refuses this request: {answer.text}")
        raise NetworkError(f"{answer.summary}. Try again later.")

    def _spend_on_trades(self, weight: int) -> bool:
        """Take weight from this run's allowance for aggTrades. Return False if it is used up."""
        with self._lock:
            if self._trades_weight_left < weight:
                return False
            self._trades_weight_left -= weight
            return True

    def close(self) -> None:
        """Close all connections."""
        self._host.close()
        self._budget.close()
        for budget in self._requests.values():
            budget.close()


def _json(answer: Response, most_commas: int = _MOST_COMMAS) -> Any:
    """Parse the JSON of a response. Numbers must be finite and names unique.

    Raises:
        NetworkError: The response is a web page.
        RestAnswerError: The response is not valid JSON.
    """
    if answer.is_html:
        raise NetworkError(f"{answer.summary} instead of JSON. {CHECK_NETWORK}")
    if answer.body.count(b",") > most_commas:  # each value takes ten times its bytes in memory
        raise RestAnswerError(f"{answer.summary}, far more values than requested.")
    try:
        return json.loads(answer.body, parse_constant=_no_number, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        why = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RestAnswerError(f"{answer.summary}, not the JSON of REST ({why}).") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a duplicate name")
    return found


def _code(answer: Response) -> int | None:
    """Return Binance's error code, which is more precise than the status. None if there is none."""
    try:
        code = json.loads(answer.body)["code"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return code if isinstance(code, int) else None


def _budget_name(market: Market, settings: Settings) -> str:
    """Return the name of the budget: the host, or all hosts that Binance counts together."""
    together = [other for other in MARKETS if MARKETS[other].budget == MARKETS[market].budget]
    hosts = dict.fromkeys(urlsplit(settings.rest_url(other)).netloc for other in together)
    return "+".join((MARKETS[market].budget, *sorted(hosts))) if len(together) > 1 else next(iter(hosts))


def endpoint_of(key: SeriesKey) -> RestEndpoint:
    """Return the endpoint of a series.

    Raises:
        BeyondReachError: REST does not serve its type.
    """
    endpoint = spec_of(key).rest
    if not endpoint.path:
        raise BeyondReachError(f"REST of {key.market} has no {key.data_type}")
    return endpoint


def _span_us(endpoint: RestEndpoint) -> int:
    return int((endpoint.max_span or timedelta(days=1)).total_seconds() * 1e6)


def _by_time(key: SeriesKey, start_us: int, end_us: int, endpoint: RestEndpoint) -> dict[str, str]:
    start, end = start_us // 1000, (end_us - 1) // 1000
    period = {"period": endpoint.period} if endpoint.period else {}
    times = {"startTime": str(start), "endTime": str(end)}
    return {"symbol": key.symbol, **period, **times, "limit": str(endpoint.page)}


def _time_in(row: Any, field: str, endpoint: RestEndpoint) -> int:
    """Return the time of a row as REST writes it."""
    found = row.get(field) if isinstance(row, dict) else None
    if not isinstance(found, int):
        raise RestAnswerError(f"{endpoint.path} answered a row without the time {field}: {str(row)[:200]}.")
    return found


def _retry_after(answer: Response) -> float:
    """Return the seconds to wait by Retry-After. A minute if the header is missing or invalid."""
    seconds = retry_after_seconds(answer)
    return _DEFAULT_PAUSE if seconds is None else min(seconds, LONGEST_BAN_SECONDS)


def _used_weight(answer: Response) -> int | None:
    """Return Binance's count of the weight used in this minute. None if it is missing or implausible."""
    text = answer.headers.get(_USED_WEIGHT, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and int(text) <= _MOST_COUNTED else None


def _at(table: pa.Table, column: str, row: int) -> int:
    return int(pc.cast(table.column(column), pa.int64())[row].as_py())


def _moment(microseconds: int) -> str:
    return clock.naive_from_us(microseconds).isoformat(sep=" ", timespec="milliseconds")
