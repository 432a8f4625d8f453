"""Server-sent events: closed candles, the open candle, and trades of the feed in this process.

A client that comes back with ``Last-Event-ID`` first gets the rows that it missed, from the window of newest rows. An
event ``gap`` names those that it cannot get. Queues of clients belong to ``live_hub.py``.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline import clock
from market_data_pipeline.client.hot_window import window_span
from market_data_pipeline.client.pages import PageRequest, RowsPage
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.forming_candles import read_forming
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.reader import labels_of, time_column
from market_data_pipeline.model.live_updates import CandleUpdate, LiveUpdate, TradeUpdate
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.server import documented
from market_data_pipeline.server.answers import iso
from market_data_pipeline.server.live_hub import Ending, LiveClient, LiveHub, followed_names
from market_data_pipeline.server.market import market_for, path_name
from market_data_pipeline.server.parameters import MOST_CHARACTERS, symbol_in
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.state import ServerState, state_of_app

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

EVENT_TYPE = "text/event-stream"

_STREAMED = (
    *(DataType.KLINES, DataType.AGG_TRADES),
    *(DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES),
)
QUIET_SECONDS = 15.0
"""Time without events after which a comment shows that the connection is alive."""
COMMENT = b":\n\n"
"""A line that clients ignore. It shows that a connection is alive."""
_RETRY_MS = 2_000
"""Time after which a browser connects again."""
_END_SECONDS = 3.0
"""Time in which a client must take the last event."""
_TRADES_SPAN = timedelta(hours=1)
"""Time for which missed trades are sent again."""
_ROWS = 1_000
"""Missed rows that are read together."""
_MOST_PAGES = 100
_LAST_ID = re.compile(r"(?P<time>\d{10,17})(?:\.(?P<id>\d{1,18}))?")
_SEAM = 100
"""Missed rows that may arrive once more."""
TRANSPORT = "market_data.transport"
"""Name in the scope of the connection's transport, to end a connection that does not read."""


@cache
def stream_routes() -> APIRouter:
    """Return a route for each data type that the feed has."""
    router = APIRouter(prefix="/api/v1/market/stream", tags=["market"])
    for data_type in _STREAMED:
        name = path_name(data_type)
        router.add_api_route(
            f"/{name}/{{symbol}}/{{interval}}" if data_type.has_interval else f"/{name}/{{symbol}}",
            _endpoint(data_type),
            methods=["GET"],
            name=f"stream {name}",
            operation_id=f"stream_{name.replace('-', '_')}",
            summary=f"Follow {name.replace('-', ' ')} as server-sent events, if the live feed runs in this server.",
            response_class=Response,
            responses=documented.of_events(),
        )
    return router


_Symbol = Annotated[str, Path(max_length=MOST_CHARACTERS, description="As Binance spells it.")]
_Interval = Annotated[str, Path(max_length=8, description="An interval that the feed follows.")]
_Market = Annotated[Market | None, Query(description="`spot`, `um` or `cm`. Default: the first that has the type.")]
_LastHeader = Annotated[str | None, Header(alias="Last-Event-ID", max_length=40, description="Id of the last event.")]
_LastQuery = Annotated[
    str | None, Query(alias="last_event_id", max_length=40, description="The same, for clients without headers.")
]


def _endpoint(data_type: DataType) -> Callable[..., Awaitable[Response]]:
    async def candles(
        request: Request,
        symbol: _Symbol,
        interval: _Interval,
        market: _Market = None,
        last_event: _LastHeader = None,
        last_event_id: _LastQuery = None,
    ) -> Response:
        return _opened(request, data_type, symbol, interval, market, last_event or last_event_id)

    async def trades(
        request: Request,
        symbol: _Symbol,
        market: _Market = None,
        last_event: _LastHeader = None,
        last_event_id: _LastQuery = None,
    ) -> Response:
        return _opened(request, data_type, symbol, None, market, last_event or last_event_id)

    return candles if data_type.has_interval else trades


def _opened(
    request: Request, data_type: DataType, symbol: str, interval: str | None, market: Market | None, last: str | None
) -> Response:
    state = state_of_app(request)
    hub = hub_of(state)
    wanted = PageRequest(market_for(data_type, market), data_type, symbol_in(symbol), interval, None, None, _ROWS)
    key = _followed(hub, wanted)
    after = None if last is None else _position(last, data_type)
    return RowEvents(state, hub.client(), key, wanted, after)


def hub_of(state: ServerState) -> LiveHub:
    """Return the hub of the live feed in this process.

    Raises:
        ProblemError: It runs none.
    """
    if state.hub is None:
        raise ProblemError(ProblemKind.OFF, "This server runs no live feed. Start it with `market-data serve --live`.")
    return state.hub


def _followed(hub: LiveHub, wanted: PageRequest) -> SeriesKey:
    """Return the series of a request.

    Raises:
        ProblemError: The feed does not follow it.
    """
    with suppress(UsageError):
        key = SeriesKey(EXCHANGE, wanted.market, wanted.data_type, wanted.symbol, wanted.interval)
        if key in hub.series:
            return key
    name = f"{wanted.symbol} {wanted.interval or wanted.data_type}"
    there = followed_names(one for one in hub.series if one.data_type is wanted.data_type) or "nothing of this type"
    raise ProblemError(
        ProblemKind.UNKNOWN_SERIES,
        f"The live feed does not follow {name} of {wanted.market}. It follows {there}. Collect more in universe.yaml.",
    )


@dataclass(frozen=True, slots=True)
class _Position:
    """The last event that a client has: the time of its row, and the id of a trade."""

    time: datetime
    trade_id: int = -1


def _position(text: str, data_type: DataType) -> _Position:
    match = _LAST_ID.fullmatch(text)
    if match is None or (match["id"] is None) == (data_type is DataType.AGG_TRADES):
        raise ProblemError(ProblemKind.INVALID, "Last-Event-ID is not an id of this stream. Begin without it.")
    return _Position(clock.naive_from_us(int(match["time"])), int(match["id"] or -1))


class EventAnswer(Response, ABC):
    """Events, until the client goes away, reads too slowly, or the server stops."""

    media_type = EVENT_TYPE

    def __init__(self, client: LiveClient) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.client = client

    @abstractmethod
    def texts(self) -> AsyncIterator[bytes]:
        """Yield events, without end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI)."""
        try:
            await self._serve(scope, receive, send)
        finally:
            self.client.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self.client
        await client.serve(self._send(send), _gone(receive))
        if client.ending is not None and (client.ending is Ending.SLOW or not await _said(client.ending, send)):
            transport = scope.get(TRANSPORT)
            if transport is not None:
                transport.abort()  # to close it would wait until the client reads
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await _gone(receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % _RETRY_MS, "more_body": True})
        async for text in self.texts():
            await send({"type": "http.response.body", "body": text, "more_body": True})


class RowEvents(EventAnswer):
    """The events of one series."""

    def __init__(
        self, state: ServerState, client: LiveClient, key: SeriesKey, wanted: PageRequest, after: _Position | None
    ) -> None:
        super().__init__(client)
        self._state = state
        self._key = key
        self._wanted = wanted
        self._after = after

    async def texts(self) -> AsyncIterator[bytes]:
        """Yield what the client missed, the open candle, and then what the feed has."""
        self.client.follow(self._key)  # before the rows are read, so that none is missed in between
        seam: dict[int, tuple[object, ...]] = {}
        if self._after is not None:
            self.client.takes_old = True
            async for text in self._missed(self._after, seam):
                yield text
        forming = read_forming(Layout(self._state.settings.root), self._key)
        if forming is not None and forming.open_us not in seam:
            update = CandleUpdate(self._key, forming.as_of_us, False, forming.values, ())
            yield _text_of(update).encode()
        while True:
            taken = await self.client.take(QUIET_SECONDS)
            if not taken:
                yield COMMENT
            new = (one for one in taken if not _is_known(one.update, seam, self._after))
            texts = [one.text("events", _text_of) for one in new]
            if texts:
                yield "".join(texts).encode()

    async def _missed(self, after: _Position, seam: dict[int, tuple[object, ...]]) -> AsyncIterator[bytes]:
        """Yield what a client missed, and note the newest rows of it."""
        begin = _begin(self._key)
        if after.time < begin:
            yield _gap(after.time, begin, "older than what is sent again: read the rows")
        wanted = replace(self._wanted, start=max(after.time, begin))
        for _ in range(_MOST_PAGES):
            try:
                page = await self._state.workers.run(lambda wanted=wanted: self._state.source.read(wanted))  # type: ignore[misc]
            except UsageError:  # nothing is stored yet
                return
            for span in page.missing:
                if span.first > after.time:
                    yield _gap(span.first, span.until, span.reason)
            yield b"".join(_missed_rows(page, self._key, after, seam))
            if page.position is None:
                return
            wanted = replace(wanted, start=page.position.time, skip=page.position.skip)
        yield _gap(wanted.start or begin, clock.naive_utc(clock.now()), "too many rows: read them")


async def _said(ending: Ending, send: Send) -> bool:
    """Send the reason of an end. Return False if the client does not take it in time."""
    body = event_text("end", {"reason": ending.reason})
    try:
        async with asyncio.timeout(_END_SECONDS):
            with suppress(OSError, RuntimeError):
                await send({"type": "http.response.body", "body": body})
    except TimeoutError:
        return False
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _begin(key: SeriesKey) -> datetime:
    """Return the first moment from which missed rows are sent again."""
    return clock.naive_utc(clock.now()) - (window_span(key) if key.interval is not None else _TRADES_SPAN)


def _missed_rows(
    page: RowsPage, key: SeriesKey, after: _Position, seam: dict[int, tuple[object, ...]]
) -> Iterator[bytes]:
    names = [name for name in lake_schema(key.market, key.data_type).names if name not in labels_of(key.data_type)]
    time = names.index(time_column(key.data_type))
    since = clock.to_us(after.time.replace(tzinfo=clock.now().tzinfo))
    spans = [(span.first, span.until, span.state) for span in page.states]
    for values in zip(*(_numbers(page.table, name) for name in names), strict=True):
        if values[time] < since or (
            values[time] == since and (key.interval is not None or values[0] <= after.trade_id)
        ):
            continue
        at = clock.naive_from_us(values[time])
        state = next((state for first, until, state in spans if first <= at < until), "live")
        seam[values[0]] = values
        if len(seam) > _SEAM:
            del seam[next(iter(seam))]
        yield _row_text(key, values, state).encode()


def _numbers(table: pa.Table, name: str) -> list[Any]:
    column = table[name]
    return column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()


def _is_known(update: LiveUpdate, seam: dict[int, tuple[object, ...]], after: _Position | None) -> bool:
    """Return True if a client has an update already. An open candle whose row it has is known, too."""
    if update.is_old and after is not None and clock.naive_from_us(int(update.values[0])) <= after.time:
        return True
    if not seam:
        return False
    if isinstance(update, TradeUpdate):
        return update.trade_id <= next(reversed(seam))
    known = seam.get(update.open_us)
    return known is not None and (not update.closed or known == update.values)


def _text_of(update: LiveUpdate) -> str:
    if isinstance(update, CandleUpdate) and not update.closed:
        return _row_text(update.key, update.values, "forming", update.event_us)
    return _row_text(update.key, update.values, "live")


def _row_text(key: SeriesKey, values: tuple[Any, ...], state: str, as_of_us: int | None = None) -> str:
    """Return the event of a row. An open candle has no id, so no client resumes from it."""
    names = [name for name in lake_schema(key.market, key.data_type).names if name not in labels_of(key.data_type)]
    document = {**dict(zip(names, values, strict=True)), "state": state}
    if as_of_us is not None:
        document["as_of"] = as_of_us
        number = ""
    elif key.interval is not None:
        number = f"id: {values[0]}\n"
    else:
        number = f"id: {document[time_column(key.data_type)]}.{values[0]}\n"
    name = "candle" if key.interval is not None else "trade"
    return f"{number}event: {name}\ndata: {orjson.dumps(document).decode()}\n\n"


def _gap(first: datetime, until: datetime, reason: str) -> bytes:
    return event_text("gap", {"from": iso(first), "to": iso(until), "reason": reason})


def event_text(name: str, document: dict[str, Any]) -> bytes:
    """Return an event without an id."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(document))
