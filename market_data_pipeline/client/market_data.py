"""``MarketData``: what analysts call."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from market_data_pipeline.client.fetch import bring_lacking
from market_data_pipeline.client.gaps import OnGap, check_on_gap, gaps_in, gaps_query, tell_gaps, worth_a_warning
from market_data_pipeline.client.request import Moment, check_held, market_of, wanted_of
from market_data_pipeline.client.result import Answer, Result, StoredRows
from market_data_pipeline.client.session import DuckDB, Limits, Params, Views
from market_data_pipeline.lake import partitions
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import faults
from market_data_pipeline.model.series import DataType
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.resolved import Listings


class MarketData:
    """Binance's market history as it lies in a lake.

    >>> from market_data_pipeline import MarketData
    >>> market = MarketData("data")  # doctest: +SKIP
    >>> market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-02-01").df()  # doctest: +SKIP
    >>> market.sql("SELECT symbol, max(high) FROM binance_spot.klines GROUP BY symbol").df()  # doctest: +SKIP

    Everywhere, ``start`` is inclusive and ``end`` exclusive, so a date as ``end`` leaves that day out; no ``end`` means
    now. Moments are dates, datetimes or ISO text, in UTC where they have no zone. Rows come ordered by symbol and time;
    the columns ``symbol``, ``interval`` (of klines) and the time are always among them, first.

    Args:
        root: The data folder; None means ``MARKET_DATA_DIR``, or ``data``. ``universe.yaml`` is the file that
            ``MARKET_DATA_UNIVERSE`` names, or the one in the data folder, beside it, or above it.

    Warns:
        UserWarning: the folder has files, and is no lake.

    Raises:
        UsageError: a setting in the environment is wrong.
    """

    def __init__(self, root: str | PathLike[str] | None = None) -> None:
        settings = load_settings() if root is None else load_settings(dir=Path(root))
        self._settings = settings.model_copy(update={"universe": _universe_of(settings)})
        self._layout = Layout(self._settings.root)
        _warn_of_no_lake(self._layout)
        self._files = DuckDB(self._layout)
        self._views = Views(self._layout, Limits.of(self._settings))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: the same folders, wherever it is unpickled; connections are opened again there."""
        here = {"dir": self._settings.root, "universe": self._settings.universe.expanduser().absolute()}
        return {**self.__dict__, "_settings": self._settings.model_copy(update=here)}

    def klines(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Candles of one interval whose ``open_time`` lies in a range.

        Args:
            symbols: One symbol or several.
            interval: ``1s`` (spot only), ``1m``, ``3m``, … ``1d``.
            start: From when on, inclusive.
            end: Until when, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol, interval and open_time; None means all.
            sync: First bring what the range lacks, through Dagster and on record.
            final_only: Leave out days that are provisional or whose rows fail the integrity check, and refuse those
                whose file was found damaged.
            on_gap: What to do, before any row is read, about gaps that nothing explains, and about days whose rows fail
                the integrity check: ``raise`` a :class:`GapError` that names them, ``warn`` once with a
                :class:`GapWarning`, or ``ignore`` them. Without ``end``, what has happened since today was fetched is
                no reason to warn.

        Raises:
            UsageError: a symbol, interval, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
            GapError: with ``on_gap="raise"``, rows are missing and nothing explains why.
        """
        return self._rows(DataType.KLINES, symbols, interval, start, end, market, columns, sync, final_only, on_gap)

    def agg_trades(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Aggregated trades whose ``transact_time`` lies in a range, ordered by symbol and ``agg_trade_id``.

        Args:
            symbols: One symbol or several.
            start: From when on, inclusive.
            end: Until when, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol and transact_time; None means all.
            sync: First bring what the range lacks, through Dagster and on record.
            final_only: Leave out days that are provisional or whose rows fail the integrity check, and refuse those
                whose file was found damaged.
            on_gap: What to do, before any row is read, about gaps that nothing explains, and about days whose rows fail
                the integrity check: ``raise`` a :class:`GapError` that names them, ``warn`` once with a
                :class:`GapWarning`, or ``ignore`` them. Without ``end``, what has happened since today was fetched is
                no reason to warn.

        Raises:
            UsageError: a symbol, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
            GapError: with ``on_gap="raise"``, rows are missing and nothing explains why.
        """
        return self._rows(DataType.AGG_TRADES, symbols, None, start, end, market, columns, sync, final_only, on_gap)

    def trade_profile(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """The daily profile of trades (VWAP, point of control, cumulative delta, …), a row a day.

        Args:
            symbols: One symbol or several.
            start: From when on: days whose midnight (UTC) is not before it.
            end: Until when: days whose midnight is before it; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol and day; None means all.
            sync: First bring what the range lacks, through Dagster and on record: trades, then profiles.
            final_only: Leave out days whose trades are provisional, incomplete or fail their checks.
            on_gap: What to do about days without a profile, and about days whose trades are incomplete or fail their
                checks: ``raise``, ``warn`` or ``ignore``, as for :meth:`klines`.

        Raises:
            UsageError: a symbol, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
            GapError: with ``on_gap="raise"``, days are missing and nothing explains why.
        """
        return self._rows(DataType.TRADE_PROFILE, symbols, None, start, end, market, columns, sync, final_only, on_gap)

    def sql(self, query: str, params: Params = None) -> Result:
        """Run a query over the views: ``binance_spot.klines``, ``binance_um.agg_trades``, ``quality.coverage``, ….

        All views have all symbols, also those that are no longer collected. For one symbol the macros
        ``binance_spot.candles('BTCUSDT', '1m', '2024-01-01', '2024-02-01')`` and ``binance_spot.trades(…)`` are faster.

        A query is one SELECT, or EXPLAIN of one. It reads the files of the views and no others, and takes at most
        ``MARKET_DATA_SQL_SECONDS``, ``MARKET_DATA_SQL_MEMORY_MB`` and ``MARKET_DATA_SQL_DISK_MB``. For any other SQL,
        open the file ``catalog.duckdb`` with DuckDB.

        Args:
            query: The SELECT.
            params: Values for its ``?`` (a list), or for its ``$name`` (a dict). Never paste text of others into SQL.

        Raises:
            UsageError: the text is no query, or DuckDB refuses it; its words are in the text.
            QueryLimitError: the query needs more than it may take.
            DamagedFileError: a file that the query needs is damaged; the text names it.
        """
        answer = Answer(self._views, query, params)
        answer.relation()  # so that a mistake is said here, and not where the rows are taken
        return answer

    def series(self) -> Result:
        """Return the stored series, one row for each, with their first and last day, days and rows."""
        return self.sql(
            'SELECT market, data_type, symbol, "interval", min(day) AS first_day, max(day) AS last_day, '
            "count(*) AS days, CAST(sum(rows) AS BIGINT) AS rows FROM quality.coverage WHERE outcome = 'held' "
            'GROUP BY ALL ORDER BY market, data_type, symbol, "interval"'
        )

    def symbols(self, market: str | None = None) -> list[str]:
        """Return the symbols of which something is stored, in order.

        Args:
            market: ``spot``, ``um`` or ``cm``; None means all.

        Raises:
            UsageError: there is no such market.
        """
        only = market_of(market) if market is not None else None
        with faults.in_words():
            return sorted({key.symbol for key in partitions.series_held(self._layout) if only in (None, key.market)})

    def coverage(self) -> Result:
        """Which days are held, from where, provisional or final, what their checks found, and which days failed.

        One row for each day of each series that was ever asked for: the view ``quality.coverage``, in order.
        """
        return self.sql('FROM quality.coverage ORDER BY exchange, market, data_type, symbol, "interval", day')

    def gaps(
        self,
        symbols: str | Iterable[str] | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        market: str | None = None,
        interval: str | None = None,
        explained: bool | None = None,
    ) -> Result:
        """Ranges of rows that are missing, or stand still, inside the days that are held: verdict and evidence of each.

        The view ``quality.gaps``, in order. Days that are not held at all are told by :meth:`coverage`.

        Args:
            symbols: One symbol or several; None means all.
            start: From when on, inclusive; None means the beginning.
            end: Until when, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``; None means all.
            interval: Kline interval; None means all, and trades, too.
            explained: True for those that something explains (an outage, no trade), False for the others.

        Raises:
            UsageError: a symbol, interval or market is not held, or a moment cannot be meant.
        """
        return self.sql(gaps_query(self._layout, symbols, start, end, market, interval, explained))

    def __repr__(self) -> str:
        universe = self._settings.universe
        found = f"universe={str(universe)!r}" if universe.is_file() else "no universe.yaml"
        return f"<MarketData {str(self._layout.root)!r}, {found}>"

    def _rows(
        self,
        data_type: DataType,
        symbols: str | Iterable[str],
        interval: str | None,
        start: Moment,
        end: Moment | None,
        market: str,
        columns: str | Iterable[str] | None,
        sync: bool,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        check_on_gap(on_gap)
        wanted = wanted_of(data_type, symbols, interval, start, end, market, columns)
        with faults.in_words():
            if sync:
                bring_lacking(self._settings, self._layout, wanted)
            else:
                check_held(self._layout, wanted.keys)
        if on_gap != "ignore":
            strict = end is not None or on_gap == "raise"
            with faults.in_words():
                gaps = gaps_in(self._layout, wanted, self._listings, final_only=final_only, growing=strict)
            if on_gap == "warn":
                gaps = worth_a_warning(gaps)
            tell_gaps(gaps, on_gap, stacklevel=3)
        return StoredRows(self._layout, self._files, wanted, final_only=final_only)

    def _listings(self) -> Listings:
        universe = self._settings.universe
        # A lake is read without its universe, too.
        return load_universe(universe, resolve=False).listings if universe.is_file() else {}


def _universe_of(settings: Settings) -> Path:
    """Return the path of the universe: as set, or ``universe.yaml`` in the data folder, beside it, or above it."""
    if "universe" in settings.model_fields_set:
        return settings.universe
    name = settings.universe.name
    near = (settings.root, *settings.root.parents[:2])
    return next((folder / name for folder in near if (folder / name).is_file()), settings.universe)


_OURS = frozenset({"lake", "ledger", "universe.yaml", "dagster", "tmp"})
"""Names of which a data folder has at least one as soon as anything was done in it."""


def _warn_of_no_lake(layout: Layout) -> None:
    """Warn of a folder with files that is no lake: its path is probably mistyped."""
    root = layout.root
    with suppress(OSError):
        names = {path.name for path in root.iterdir() if path.name[0] != "."} - {"README.md"}
        if names and names.isdisjoint(_OURS):
            warnings.warn(
                f"{root} is no data folder of market_data_pipeline: it has neither lake/ nor ledger/.", stacklevel=3
            )
