"""The daemon: connect, decode, store, ask REST, write the status. Other modules of the room decide."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from websockets.exceptions import WebSocketException

from market_data_pipeline import clock
from market_data_pipeline.errors import MarketDataError, SourceError, StorageError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.feed_status import STATUS_VERSION, write_status
from market_data_pipeline.lake.forming_candles import FormingCandle, FormingWriter, can_form
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_eviction import LiveComparison, evict_final_days
from market_data_pipeline.lake.live_rows import CLOSE_STATE, LiveRow, LiveWriter, live_days, read_live_rows
from market_data_pipeline.live.effects import SECOND_US, Append, AskCandles, AskTrades, Effect, Notice, ShowForming
from market_data_pipeline.live.links import Link, LinkGroup
from market_data_pipeline.live.market import MarketFeed, is_followed, make_feed
from market_data_pipeline.live.rest_answers import RestAnswers, rows_of
from market_data_pipeline.live.status import series_status, status_time
from market_data_pipeline.live.updates import updates_of
from market_data_pipeline.live.venue_clock import VenueClock
from market_data_pipeline.model.binance_dialect import stream_name
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.live_updates import LiveListener, LiveUpdate
from market_data_pipeline.model.series import DataType, Market, SeriesKey, interval_us
from market_data_pipeline.model.waits import Stop, StoppedError
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.websocket import (
    MOST_STREAMS,
    CandleEvent,
    MarkPriceEvent,
    ShutdownEvent,
    StreamDecoder,
    TradeEvent,
    UnreadableError,
    open_streams,
)

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_STATUS_SECONDS = 1.0
_TIME_SECONDS = 300.0
"""Seconds between two looks at the server's time."""
_LISTING_SECONDS = 3_600.0
"""Seconds between two looks at exchangeInfo, as long as a symbol is silent."""
_EVICTION_SECONDS = 600.0
"""Real seconds between two looks for days that are final by now."""
_MOST_ROWS_WAITING = 1_000
"""Most rows that wait for the end of the messages that have already arrived."""
_MOST_CANDLES_BACK = 1_500
"""Most candles to fetch at the start. Ingestion fetches older ones."""
_TRADES_BACK_US = 3_600 * SECOND_US
"""Age of the last stored trade from which on the feed continues with the next id."""
_CLOSE_SECONDS = 3.0
"""Time for connections to close at the end."""
_CONNECTION_ERRORS = (OSError, WebSocketException, TimeoutError, EOFError)


class Feed:
    """The live feed of a data folder.

    Args:
        keys: The series to follow. Others than aggTrades and candles are ignored.
        speed: Seconds of the exchange in a real second. Only a sandbox has another speed than 1.
        listener: Takes what the feed has, as soon as it has it.

    Raises:
        UsageError: No series can be followed.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Iterable[SeriesKey],
        speed: float = 1.0,
        listener: LiveListener | None = None,
    ) -> None:
        self._layout = Layout(settings.root)
        self._settings = settings
        self._keys = [key for key in keys if is_followed(key)]
        if not self._keys:
            raise UsageError("No collected series can be followed live: collect klines or aggTrades in universe.yaml.")
        self._speed = speed
        self._listener = listener

    @property
    def series(self) -> list[SeriesKey]:
        """Return the series that this feed follows."""
        return list(self._keys)

    async def run(self, stop: asyncio.Event, began: Callable[[], object] | None = None) -> None:
        """Follow the streams until ``stop`` is set.

        Args:
            began: Called once no other feed writes to the data folder.

        Raises:
            SeriesBusyError: Another feed writes to the data folder.
            StorageError: Rows cannot be stored.
        """
        lock = self._layout.local / "live" / "feed.lock"
        with (
            storage.only_writer(lock, 0.0, f"The live feed of {self._layout.root}"),
            LiveWriter(self._layout) as writer,
            FormingWriter(self._layout, self._keys) as forming,
        ):
            if began is not None:
                began()
            markets = {key.market: [k for k in self._keys if k.market is key.market] for key in self._keys}
            outputs = _Outputs(writer, forming, self._listener)
            feeds = [
                _Market(market, keys, self._layout, self._settings, outputs, VenueClock(self._speed))
                for market, keys in markets.items()
            ]
            status = asyncio.create_task(self._write_status(feeds, writer))
            evicting = asyncio.create_task(self._evict(writer))
            running = [asyncio.create_task(feed.run()) for feed in feeds]
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([*running, status, evicting, stopping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*running, status, evicting, stopping):
                    task.cancel()
                ended = await asyncio.gather(*running, status, evicting, return_exceptions=True)
            for error in ended:
                if isinstance(error, Exception):
                    raise error

    async def _write_status(self, feeds: list[_Market], writer: LiveWriter) -> None:
        started = clock.now()
        while True:
            status = {
                "version": STATUS_VERSION,
                "process": os.getpid(),
                "started_at": status_time(started),
                "updated_at": status_time(clock.now()),
                "markets": {str(feed.market): feed.status() for feed in feeds},
                "series": {name: state for feed in feeds for name, state in feed.series_status().items()},
            }
            await asyncio.to_thread(_store_status, self._layout, status, writer)
            await asyncio.sleep(_STATUS_SECONDS)

    async def _evict(self, writer: LiveWriter) -> None:
        """Remove live rows of days that the lake has by now."""
        while True:
            for key in self._keys:
                for day in live_days(self._layout, key)[:-1]:
                    writer.release(key, day)
                for found in await asyncio.to_thread(_cancelled_at_the_end(partial(_evicted, self._layout, key))):
                    if found.changed or found.missing:
                        logger.warning(
                            "%s %s: the archive changed %s of %s live rows and does not have %s.",
                            *(found.series, found.day, found.changed, found.rows, found.missing),
                        )
            await asyncio.sleep(_EVICTION_SECONDS)


def _cancelled_at_the_end(work: Callable[[], Any]) -> Callable[[], Any]:
    """Return work whose task is canceled if the end of the process cuts a wait of it.

    The error of such a wait is a KeyboardInterrupt. In a task, it would end the loop before the others have ended.
    """

    def result() -> Any:
        try:
            return work()
        except StoppedError as error:
            raise asyncio.CancelledError from error

    return result


def _evicted(layout: Layout, key: SeriesKey) -> list[LiveComparison]:
    return list(evict_final_days(layout, key, clock.today()))


def _store_status(layout: Layout, status: dict[str, Any], writer: LiveWriter) -> None:
    writer.sync()
    write_status(layout, status)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """The files and the listener that all markets of a feed share."""

    writer: LiveWriter
    forming: FormingWriter
    listener: LiveListener | None


class _Market:
    """The feed of one market."""

    def __init__(
        self,
        market: Market,
        keys: list[SeriesKey],
        layout: Layout,
        settings: Settings,
        outputs: _Outputs,
        venue: VenueClock,
    ) -> None:
        self.market = market
        self._keys = keys
        self._layout = layout
        self._url = settings.stream_url(market)
        self._writer, self._slots, self._listener = outputs.writer, outputs.forming, outputs.listener
        self._clock = venue
        self._unit = 1 if MARKETS[market].microseconds else 1_000
        self._decoder = StreamDecoder(market, keys, self._unit)
        self._stop = Stop()
        self._rest = RestAnswers(market, settings, self._stop)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"live-{market}")
        self._asking = set[asyncio.Task[None]]()
        self._following = set[asyncio.Task[None]]()
        self._feed: MarketFeed | None = None
        names = sorted({name for key in keys if (name := stream_name(key)) is not None})
        size = MOST_STREAMS[market]
        chunks = [tuple(names[at : at + size]) for at in range(0, len(names), size)]
        self._groups = [LinkGroup(chunk, self._starter(chunk)) for chunk in chunks]
        self._of_stream = {name: key for key in keys if (name := stream_name(key)) is not None}
        self._forming: dict[SeriesKey, CandleEvent | None] = {}
        self._timed_at = 0.0
        self._listed_at: float | None = None
        self._rows: dict[SeriesKey, list[LiveRow]] = {}
        self._waiting_rows = 0
        self._updates: list[LiveUpdate] = []
        self._failure: StorageError | None = None

    # --- start and end ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow this market until the task is cancelled."""
        try:
            await self._set_clock()
            self._feed = self._resumed()
            while True:
                if self._failure is not None:
                    raise self._failure
                now = self._clock.now_us()
                for group in self._groups:
                    group.tick(now)
                    if not group.is_fed(now):
                        self._do(self._feed.lost(self._of_stream[name] for name in group.names))
                self._do(self._feed.tick(now))
                self._write_forming()
                if time.monotonic() - self._timed_at > self._clock.real(_TIME_SECONDS):
                    self._background(self._set_clock())
                if self._feed.doubts_listings(now) and self._may_look_at_listing():
                    self._background(self._look_at_listing())
                await asyncio.sleep(min(_TICK_SECONDS, self._clock.real(1.0)))
        finally:
            for group in self._groups:
                group.close()
            self._write()
            self._stop.set()
            if self._following:
                await asyncio.wait(self._following, timeout=_CLOSE_SECONDS)
            for task in self._asking:
                task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._rest.close()

    async def _set_clock(self) -> None:
        self._timed_at = time.monotonic()
        try:
            found = await self._in_thread(self._rest.server_us)
        except SourceError as error:
            logger.warning("The time of %s is unknown, so this machine's clock counts: %s", self.market, error)
        else:
            self._clock.set(*found)

    def _may_look_at_listing(self) -> bool:
        seconds = self._clock.real(_LISTING_SECONDS)
        return self._listed_at is None or time.monotonic() - self._listed_at > seconds

    async def _look_at_listing(self) -> None:
        self._listed_at = time.monotonic()
        try:
            trading = await self._in_thread(self._rest.trading_symbols)
        except MarketDataError as error:
            logger.info("The symbols of %s that trade are unknown: %s", self.market, error)
        else:
            if self._feed is not None:
                self._do(self._feed.take_listing(trading))

    def _resumed(self) -> MarketFeed:
        """Continue where stored live rows end. Without any, begin with the candles of today."""
        now = self._clock.now_us()
        next_candle, next_trade, stored = dict[SeriesKey, int](), dict[SeriesKey, int | None](), {}
        for key in self._keys:
            if key.data_type is DataType.AGG_TRADES:
                last = rows_of(self._stored(key, now - _TRADES_BACK_US), key)[-1:]
                next_trade[key] = int(last[0][0]) + 1 if last else None
                continue
            step = interval_us(key.interval or "1m")
            earliest = (now - _MOST_CANDLES_BACK * step) // step * step
            rows = rows_of(self._stored(key, earliest), key)
            midnight = max(now // clock.US_PER_DAY * clock.US_PER_DAY, earliest)
            next_candle[key] = min([midnight, *(int(values[0]) for values in rows[:1])])
            stored[key] = rows
        feed = make_feed(self._keys, next_candle, next_trade)
        for key, rows in stored.items():
            feed.candles[key].resume(rows)
        return feed

    def _stored(self, key: SeriesKey, since_us: int) -> Any:
        return read_live_rows(self._layout, key, since_us).drop_columns([CLOSE_STATE])

    # --- connections -----------------------------------------------------------------------------------------

    def _starter(self, names: tuple[str, ...]) -> Callable[[Link], asyncio.Task[None]]:
        def start(link: Link) -> asyncio.Task[None]:
            task = asyncio.create_task(self._follow(names, link))
            self._following.add(task)
            task.add_done_callback(self._following.discard)
            return task

        return start

    async def _follow(self, names: tuple[str, ...], link: Link) -> None:
        group = next(group for group in self._groups if group.names == names)
        try:
            async with open_streams(self._url, names, microseconds=self._unit == 1, pace=self._clock.real) as socket:
                while True:
                    self._read(await socket.recv(decode=False), group, link)
        except _CONNECTION_ERRORS as error:
            logger.info("A connection to %s ended: %s", self.market, str(error) or repr(error))

    def _read(self, message: bytes, group: LinkGroup, link: Link) -> None:
        feed = self._feed
        if feed is None:
            return
        feed.counts["messages"] += 1
        try:
            event = self._decoder.decode(message)
        except UnreadableError:
            feed.counts["unreadable"] += 1
            return
        now = self._clock.now_us()
        if isinstance(event, (CandleEvent, TradeEvent)):
            group.data(link, str(event.key), now)
        elif isinstance(event, MarkPriceEvent):
            group.data(link, event.symbol, now)
        elif isinstance(event, ShutdownEvent):
            link.ends_soon = True
        elif event.error:
            logger.warning("%s refused a subscription: %s", self.market, event.error)
        self._do(feed.take(event, now))

    # --- effects ---------------------------------------------------------------------------------------------

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                self._store(effect)
            elif isinstance(effect, ShowForming):
                self._forming[effect.key] = effect.candle
                self._announce(effect)
            elif isinstance(effect, Notice):
                if self._feed is not None:
                    self._feed.counts[effect.kind] += 1
                logger.warning("%s: %s", effect.key, effect.text)
            else:
                self._background(self._ask(effect))

    def _store(self, effect: Append) -> None:
        """Store rows together with those of the messages that have already arrived."""
        self._write_soon()
        self._rows.setdefault(effect.key, []).extend(effect.rows)
        self._announce(effect)
        self._waiting_rows += len(effect.rows)
        if self._waiting_rows >= _MOST_ROWS_WAITING:
            self._write()

    def _announce(self, effect: Append | ShowForming) -> None:
        """Pass an effect on to the listener, after its rows are stored."""
        if self._listener is not None and self._listener.wants(effect.key):
            self._write_soon()
            self._updates.extend(updates_of(effect, self._clock.now_us()))

    def _write_soon(self) -> None:
        if not self._rows and not self._updates:
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        rows, self._rows, self._waiting_rows = self._rows, {}, 0
        updates, self._updates = self._updates, []
        try:
            for key, found in rows.items():
                self._writer.append(key, found)
        except StorageError as error:
            self._failure = error  # `run` raises it
            return
        if updates and self._listener is not None:
            self._listener.publish(updates)

    def _write_forming(self) -> None:
        """Show the newest state of open candles to other readers, and that the feed runs.

        Raises:
            StorageError: The file cannot be written.
        """
        changed, self._forming = self._forming, {}
        for key, candle in changed.items():
            if not can_form(key):
                continue
            if candle is None:
                self._slots.clear(key)
            else:
                self._slots.put(FormingCandle(key, candle.values, candle.event_us))
        self._slots.beat()

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, ask: AskCandles | AskTrades) -> None:
        feed = self._feed
        if feed is None:
            return
        try:
            if isinstance(ask, AskCandles):
                rows = await self._in_thread(lambda: self._rest.candles(ask))
                effects = feed.answered_candles(ask, rows, self._clock.now_us())
            else:
                trades = await self._in_thread(lambda: self._rest.trades(ask))
                effects = feed.answered_trades(ask, trades, self._clock.now_us())
        except SourceError as error:
            logger.info("REST has no answer about %s: %s", ask.key, error)
            effects = feed.failed(ask, self._clock.now_us())
        self._do(effects)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _cancelled_at_the_end(work))

    # --- status ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the state of the connections."""
        now = self._clock.now_us()
        counts = dict(self._feed.counts) if self._feed is not None else {}
        links = [link for group in self._groups for link in group.links]
        return {
            "now": status_time(clock.naive_from_us(now)),
            "connections": len(links),
            "seconds_without_data": round(max((now - link.data_us for link in links), default=0) / 1e6, 1),
            "reconnects": sum(group.ended + group.silent for group in self._groups),
            "silent": sum(group.silent for group in self._groups),
            "rest_requests": self._rest.requests,
            "not_trading_now": sorted(self._feed.not_trading) if self._feed is not None else [],
            **counts,
        }

    def series_status(self) -> dict[str, dict[str, Any]]:
        """Return the state of each series."""
        if self._feed is None:
            return {}
        return series_status(self._feed, self._clock.now_us())


def run_feed(settings: Settings, keys: Iterable[SeriesKey], speed: float = 1.0) -> int:
    """Follow the streams in this thread until SIGTERM or Ctrl-C. Return the number of the signal.

    Raises:
        SeriesBusyError: Another feed writes to the data folder.
        StorageError: Rows cannot be stored.
        UsageError: No series can be followed.
    """
    feed, heard = Feed(settings, keys, speed), list[int]()

    async def main() -> None:
        stop = asyncio.Event()

        def end(number: int) -> None:
            heard.append(number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
                asyncio.get_running_loop().add_signal_handler(number, end, number)
        await feed.run(stop)

    asyncio.run(main())
    return heard[0] if heard else 0
