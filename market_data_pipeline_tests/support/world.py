"""A small world for tests: a sandbox exchange, a root of its own, and a clock that moves both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.sandbox import DEFAULT_SYMBOLS, GeneratedSymbol, Sandbox
from market_data_pipeline.settings import PREFIX, Settings

Result = DayOutcome | DayFailure


def klines(symbol: str, interval: str, market: str = "spot") -> SeriesKey:
    """A klines series."""
    return SeriesKey(EXCHANGE, Market(market), DataType.KLINES, symbol, interval)


def agg_trades(symbol: str, market: str = "spot") -> SeriesKey:
    """An aggTrades series."""
    return SeriesKey(EXCHANGE, Market(market), DataType.AGG_TRADES, symbol)


def days(first: str, last: str) -> list[date]:
    """All days from one to another, both included."""
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def utc(text: str) -> datetime:
    """A moment in UTC from ISO text without zone."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def symbols_with(trades_per_day: int) -> tuple[GeneratedSymbol, ...]:
    """The sandbox's own symbols with fewer trades: most of a day's cost is in them."""
    return tuple(replace(one, trades_per_day=min(trades_per_day, one.trades_per_day)) for one in DEFAULT_SYMBOLS)


def settings_of(root: Path, sandbox: Sandbox, **overrides: Any) -> Settings:
    """Settings that point at a sandbox, with short pauses and a REST budget of their own."""
    urls = {name.removeprefix(PREFIX).lower(): value for name, value in sandbox.settings_env().items()}
    quick = {"retry_backoff_seconds": 0.01, "budget_dir": root / "budget", "lock_wait_seconds": 20}
    given: dict[str, Any] = {"_env_file": None, "dir": root, **quick, **urls, **overrides}
    return Settings(**given)


class World:
    """A sandbox exchange, a root, and one clock for both."""

    def __init__(self, root: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sandbox = sandbox
        self.root = root
        self.settings = settings_of(root, sandbox)
        self.layout = Layout(root)
        self._monkeypatch = monkeypatch

    def at(self, text: str) -> None:
        """Move all clocks."""
        moment = utc(text)
        self._monkeypatch.setattr(clock, "now", lambda: moment)
        self.sandbox.set_time(moment)

    def set(self, **overrides: Any) -> None:
        """Change settings."""
        self.settings = self.settings.model_copy(update=overrides)

    def ingest(self, key: SeriesKey, wanted: Iterable[date], listing: ListingSpans | None = None) -> list[Result]:
        """Bring days into the lake, as one run does."""
        with Sources(self.settings) as sources:
            return list(
                ingest(key, list(wanted), layout=self.layout, sources=sources, settings=self.settings, listing=listing)
            )

    def one(self, key: SeriesKey, day: str) -> Result:
        """Bring one day."""
        (result,) = self.ingest(key, [date.fromisoformat(day)])
        return result

    def table(self, key: SeriesKey, day: str) -> pa.Table:
        """A day's rows as they lie in the lake."""
        return parquet.read_table(self.layout.file(key, date.fromisoformat(day)))

    def ledger(self, key: SeriesKey) -> Ledger:
        """A series' ledger as it lies in the lake."""
        return Ledger.read(self.layout.ledger(key))

    def asked(self, part: str = "") -> list[str]:
        """Paths that were asked of the sandbox since the last :meth:`forget`."""
        return [request.path for request in self.sandbox.requests if part in request.path]

    def forget(self) -> None:
        """Empty the request log."""
        self.sandbox.clear_requests()
