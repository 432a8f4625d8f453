"""``MarketData``, the public door for notebooks and programs. Reading rows belongs to ``result.py``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import tzinfo
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from market_data_pipeline.client.composition import can_be_own, composition_of, zone_of
from market_data_pipeline.client.fetch import fetch_missing
from market_data_pipeline.client.gaps import (
    Gap,
    OnGap,
    condition_query,
    gaps_in,
    gaps_query,
    tell_gaps,
    worth_a_warning,
)
from market_data_pipeline.client.members import Duration, members_of, members_wanted
from market_data_pipeline.client.request import (
    Moment,
    Request,
    SeriesSelection,
    check_held,
    is_requested,
    market_of,
    refuse_unknown,
    selection_of,
    wanted_of,
    warn_of_reused_symbols,
)
from market_data_pipeline.client.result import ComposedRows, QueryResult, Result, StoredRows, TableResult
from market_data_pipeline.client.session import DuckDB, Limits, Params, Views
from market_data_pipeline.coverage.condition import record_collected
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import partitions, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import faults
from market_data_pipeline.model.places import place_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.config import listings_near
from market_data_pipeline.universe.resolved import Listings
from market_data_pipeline.universe.tables import refresh_tables


class MarketData:
    """The lake of a data folder, for notebooks and programs.

    ``start`` is inclusive and ``end`` exclusive; without ``end``, the range ends now. Moments are dates, datetimes or
    ISO text, in UTC if they have no zone. Rows are ordered by symbol and time. ``symbol``, ``interval`` (klines) and
    the time are always the first columns.

    Args:
        root: The data folder; None means ``MARKET_DATA_DIR``, or ``data``. The universe is the file that
            ``MARKET_DATA_UNIVERSE`` names, or ``universe.yaml`` in the data folder, beside it, or above it.

    Warns:
        UserWarning: The folder has files, but is no data folder.

    Raises:
        UsageError: A setting in the environment is wrong.

    Examples:
        >>> from market_data_pipeline import MarketData
        >>> market = MarketData(root)
        >>> len(market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-01-03"))
        96
    """

    def __init__(self, root: str | PathLike[str] | None = None) -> None:
        settings = load_settings() if root is None else load_settings(dir=place_of(root))
        self._settings = settings.model_copy(update={"universe": _universe_of(settings)})
        self._layout = Layout(self._settings.root)
        _warn_of_no_lake(self._layout)
        self._files = DuckDB(self._layout)
        self._views = Views(self._layout, Limits.of(self._settings))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: the folders. The process that unpickles it opens connections of its own."""
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
        tz: str | tzinfo | None = None,
        sync: bool = False,
        final_only: bool = False,
        include_live: bool = True,
        include_forming: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows | ComposedRows:
        """Return candles of one interval, by ``open_time``.

        Binance's own candles are returned where they are stored: ``1s`` (spot only), ``1m``, ``3m``, … ``1d``. Others
        are composed from the largest stored interval that divides theirs, and have two more columns: ``parts``, the
        number of stored candles, and ``complete``, which is True if none is missing. A candle without any is left out.

        Args:
            symbols: One symbol or several.
            interval: A number and ``s``, ``m``, ``h``, ``d``, ``w`` or ``mo``, such as ``1m``, ``7m``, ``3d``, ``1w``.
                Days count from 1970-01-02, as in Binance's ``3d``. Weeks begin on Monday.
            start: First moment, inclusive.
            end: Last moment, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns besides symbol, interval and open_time; None means all.
            tz: Time zone in which days, weeks and months begin, such as ``America/New_York``; None means UTC. Times of
                the result are UTC.
            sync: First fetch the missing days of the range, as a Dagster run. Shows a progress bar in terminals and
                notebooks. Candles that are neither stored nor in the universe are composed from those that are.
            final_only: Leave out days that are provisional or fail the ``integrity`` check, and live rows.
            include_live: Include rows of the live feed (`market-data live`) that the lake does not have yet.
                ``states()`` of the result names them.
            include_forming: Include the candle that is still open, while the live feed runs. It is the last row of its
                symbol, its state is ``forming``, and it differs in each read. Composed candles have closed parts only.
            on_gap: Action before any row is read, if rows are missing without an explanation or days fail the
                ``integrity`` check: ``"raise"`` a :class:`GapError`, ``"warn"`` once with a :class:`GapWarning`, or
                ``"ignore"`` it. Without ``end``, rows that are newer than the last fetch are not missing.

        Warns:
            UserWarning: A symbol names two coins in the range, because Binance used it again.

        Raises:
            UsageError: A symbol, interval, market, column or zone does not exist, the interval divides no stored one,
                a moment is not valid, or ``include_forming`` is combined with what leaves live rows out.
            DamagedFileError: With ``final_only``, the file of a day is damaged.
            MarketDataError: With ``sync``, days could not be fetched.
            GapError: With ``on_gap="raise"``, rows are missing without an explanation.

        Examples:
            >>> candles = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02", columns="close")
            >>> candles.df().columns.tolist()
            ['symbol', 'interval', 'open_time', 'close']
            >>> candles.wide("close").shape
            (24, 1)
            >>> day = market.klines("BTCUSDT", "1d", "2024-01-01", "2024-01-02", tz="America/New_York").df()
            >>> day["open_time"].astype(str).tolist(), day["parts"].tolist(), day["complete"].tolist()
            (['2024-01-01 05:00:00+00:00'], [24], [True])
        """
        if include_forming and (final_only or not include_live):
            raise UsageError("include_forming needs live rows: leave final_only and include_live out.")
        return self._candles(
            DataType.KLINES,
            symbols,
            interval,
            start,
            end,
            market,
            columns,
            tz,
            sync,
            final_only,
            include_live,
            on_gap,
            include_forming=include_forming,
        )

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
        include_live: bool = True,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return aggregated trades by ``transact_time``, ordered by symbol and ``agg_trade_id``.

        Args:
            symbols: One symbol or several.
            start: First moment, inclusive.
            end: Last moment, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns besides symbol and transact_time; None means all.
            sync: First fetch the missing days of the range, as a Dagster run. Shows a progress bar in terminals and
                notebooks.
            final_only: Leave out days that are provisional or fail the ``integrity`` check, and live rows.
            include_live: Include rows of the live feed (`market-data live`) that the lake does not have yet.
                ``states()`` of the result names them.
            on_gap: Action before any row is read, if rows are missing without an explanation or days fail the
                ``integrity`` check: ``"raise"`` a :class:`GapError`, ``"warn"`` once with a :class:`GapWarning`, or
                ``"ignore"`` it. Without ``end``, rows that are newer than the last fetch are not missing.

        Raises:
            UsageError: A symbol, market or column does not exist, or a moment is not valid.
            DamagedFileError: With ``final_only``, the file of a day is damaged.
            MarketDataError: With ``sync``, days could not be fetched.
            GapError: With ``on_gap="raise"``, rows are missing without an explanation.

        Examples:
            >>> trades = market.agg_trades("BTCUSDT", "2024-01-01T00:00", "2024-01-02", columns="price")
            >>> trades.arrow().column_names
            ['symbol', 'transact_time', 'price']
        """
        wanted = wanted_of(DataType.AGG_TRADES, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, include_live=include_live, growing=end is not None)

    def trades(
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
        """Return single trades by ``time``, ordered by symbol and ``id``.

        Ids of futures have holes, because Binance does not publish trades of the insurance fund. Rows come from the
        archive alone, a day later. Arguments and errors are those of :meth:`agg_trades`.
        """
        wanted = wanted_of(DataType.TRADES, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def mark_price_klines(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        tz: str | tzinfo | None = None,
        sync: bool = False,
        final_only: bool = False,
        include_live: bool = True,
        on_gap: OnGap = "warn",
    ) -> StoredRows | ComposedRows:
        """Return candles of the mark price of futures, by ``open_time``.

        The candles have no volume. Arguments and errors are those of :meth:`klines`. ``market`` is ``um`` or ``cm``.
        """
        return self._candles(
            DataType.MARK_PRICE_KLINES,
            symbols,
            interval,
            start,
            end,
            market,
            columns,
            tz,
            sync,
            final_only,
            include_live,
            on_gap,
        )

    def index_price_klines(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        tz: str | tzinfo | None = None,
        sync: bool = False,
        final_only: bool = False,
        include_live: bool = True,
        on_gap: OnGap = "warn",
    ) -> StoredRows | ComposedRows:
        """Return candles of the index price of a symbol's pair, by ``open_time``.

        Symbols of one pair have the same index.
        The candles have no volume. Arguments and errors are those of :meth:`klines`. ``market`` is ``um`` or ``cm``.
        """
        return self._candles(
            DataType.INDEX_PRICE_KLINES,
            symbols,
            interval,
            start,
            end,
            market,
            columns,
            tz,
            sync,
            final_only,
            include_live,
            on_gap,
        )

    def premium_index_klines(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        tz: str | tzinfo | None = None,
        sync: bool = False,
        final_only: bool = False,
        include_live: bool = True,
        on_gap: OnGap = "warn",
    ) -> StoredRows | ComposedRows:
        """Return candles of the premium of perpetual futures over their index, by ``open_time``.

        The premium is a ratio and may be negative.
        The candles have no volume. Arguments and errors are those of :meth:`klines`. ``market`` is ``um`` or ``cm``.
        """
        return self._candles(
            DataType.PREMIUM_INDEX_KLINES,
            symbols,
            interval,
            start,
            end,
            market,
            columns,
            tz,
            sync,
            final_only,
            include_live,
            on_gap,
        )

    def metrics(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return open interest and long/short ratios of futures, every five minutes, by ``create_time``.

        ``create_time`` is the start of a period, in all years. A value that Binance left out is null.

        Args:
            symbols: One symbol or several.
            start: First moment, inclusive.
            end: Last moment, exclusive; None means now.
            market: ``um`` or ``cm``.
            columns: Columns besides symbol and create_time; None means all.
            sync: First fetch the missing days of the range, as a Dagster run. Shows a progress bar in terminals and
                notebooks.
            final_only: Leave out days that are provisional or fail the ``integrity`` check.
            on_gap: Action before any row is read, if rows are missing without an explanation or days fail the
                ``integrity`` check: ``"raise"`` a :class:`GapError`, ``"warn"`` once with a :class:`GapWarning`, or
                ``"ignore"`` it. Without ``end``, rows that are newer than the last fetch are not missing.

        Raises:
            UsageError: A symbol, market or column does not exist, spot is requested, or a moment is not valid.
            DamagedFileError: With ``final_only``, the file of a day is damaged.
            MarketDataError: With ``sync``, days could not be fetched.
            GapError: With ``on_gap="raise"``, rows are missing without an explanation.
        """
        wanted = wanted_of(DataType.METRICS, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def book_depth(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return the depth of the order book of futures in bands around the price, by ``timestamp``.

        A snapshot comes about every 30 seconds and has ten rows, or twelve since 2026-01-15. Rows come from the archive
        alone, a day later. Arguments and errors are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.BOOK_DEPTH, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def book_ticker(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return each change of the best bid and ask of futures by ``transaction_time``, from 2023-05-16 on.

        A day has up to ten million rows. Binance ended them on 2024-03-30 (um) and 2024-10-15 (cm), so later days are
        not missing. Arguments and errors are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.BOOK_TICKER, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def liquidation_snapshot(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return forced orders of futures by ``time``, at most one per second, from 2023-06-25 on.

        Binance ended them on 2024-03-31 (um) and 2024-10-14 (cm), so later days are not missing. Arguments and errors
        are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.LIQUIDATION_SNAPSHOT, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def bvol_index(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "option",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return the index of implied volatility every second, by ``calc_time``, from 2023-06-20 on.

        Symbols are ``BTCBVOLUSDT`` and ``ETHBVOLUSDT``. Other arguments and errors are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.BVOL_INDEX, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def eoh_summary(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "option",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return hourly summaries of options by ``time`` and ``contract``, from 2023-05-18 to 2023-10-23.

        A symbol is an underlying, such as ``BTCUSDT``. Binance ended the summaries, so later days are not missing.
        Other arguments and errors are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.EOH_SUMMARY, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def funding_rate(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        *,
        market: str = "um",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
        final_only: bool = False,
        on_gap: OnGap = "warn",
    ) -> StoredRows:
        """Return funding rates of perpetual futures, by ``calc_time``, which is some milliseconds late.

        ``funding_interval_hours`` may change inside a series, for example from 8 to 4. Arguments and errors
        are those of :meth:`metrics`.
        """
        wanted = wanted_of(DataType.FUNDING_RATE, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

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
        """Return the daily profile of trades: VWAP, point of control, cumulative delta and more, one row per day.

        Args:
            symbols: One symbol or several.
            start: First day: the first midnight (UTC) that is not before it.
            end: Exclusive: days whose midnight is before it; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns besides symbol and day; None means all.
            sync: First fetch the missing days of the range, as a Dagster run. Shows a progress bar in terminals and
                notebooks.
            final_only: Leave out days that are provisional, or whose trades are incomplete or fail their checks.
            on_gap: Action before any row is read, if rows are missing without an explanation or days fail the
                ``integrity`` check: ``"raise"`` a :class:`GapError`, ``"warn"`` once with a :class:`GapWarning`, or
                ``"ignore"`` it. Without ``end``, rows that are newer than the last fetch are not missing.

        Raises:
            UsageError: A symbol, market or column does not exist, or a moment is not valid.
            DamagedFileError: With ``final_only``, the file of a day is damaged.
            MarketDataError: With ``sync``, days could not be fetched.
            GapError: With ``on_gap="raise"``, rows are missing without an explanation.

        Examples:
            >>> len(market.trade_profile("BTCUSDT", "2024-01-01", "2024-01-03"))
            2
        """
        wanted = wanted_of(DataType.TRADE_PROFILE, symbols, None, start, end, market, columns)
        return self._rows(wanted, sync, final_only, on_gap, growing=end is not None)

    def sql(self, query: str, params: Params = None, *, selection: SeriesSelection | None = None) -> Result:
        """Run a query over the views ``binance_spot.klines``, ``binance_um.agg_trades``, ``quality.coverage`` and more.

        The views have all symbols, also those that are no longer collected. For one symbol the macros
        ``binance_spot.candles('BTCUSDT', '1m', '2024-01-01', '2024-02-01')`` and ``binance_spot.trades(…)`` are faster.

        A query is one SELECT, or EXPLAIN of one. It reads only the files of the views, and takes at most
        ``MARKET_DATA_SQL_SECONDS``, ``MARKET_DATA_SQL_MEMORY_MB`` and ``MARKET_DATA_SQL_DISK_MB``. For other SQL, open
        ``catalog.duckdb`` with DuckDB.

        Args:
            query: The SELECT.
            params: Values for each ``?`` (a list) or ``$name`` (a dict). Pass values from outside only like this.
            selection: Series that the query reads from the views of ``quality``. Only their ledgers are compared with
                the files on disk. None means all.

        Raises:
            UsageError: The text is no query, or DuckDB refuses it.
            QueryLimitError: The query needs more than a limit allows.
            DamagedFileError: A file that the query reads is damaged.

        Examples:
            >>> query = "SELECT count(*) AS n FROM binance_spot.klines WHERE symbol = ?"
            >>> market.sql(query, ["ETHUSDT"]).df()["n"].tolist()
            [48]
        """
        if "universe" in query.casefold():
            with faults.explained():
                refresh_tables(self._layout, self._listings())
        if "condition" in query.casefold():
            self._record_collected()
        answer = QueryResult(self._views, query, params, selection)
        answer.check()  # report a mistake here, not when the rows are read
        return answer

    def universe(
        self,
        as_of: Moment | None = None,
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        every: Duration = "1 month",
        market: str = "spot",
        quote: str | None = None,
        exclude: str | Iterable[str] = (),
        top: int | None = None,
        by: str = "quote_volume",
        lookback: Duration = "30 days",
        min_age: Duration | None = None,
        hindsight: bool = False,
        on_gap: OnGap = "warn",
    ) -> Result:
        """Return the symbols that were listed on a date, or on several, ranked by their volume before it.

        A date means the midnight (UTC) at which it begins. An answer depends only on candles of earlier days, so
        it has delisted symbols and does not know the future. A symbol is listed if it traded on the day before.
        Candles of interval 1d must be stored.

        The columns are ``date``, ``symbol``, ``instrument`` (``LUNAUSDT#2`` is the second coin of that name),
        ``listed_from``, ``listed_until``, ``age_days``, the column of ``by`` and ``rank``.

        Args:
            as_of: One date.
            start: First of several dates, inclusive.
            end: End of the dates, exclusive; None means the newest date that the stored candles can answer.
            every: Step between the dates: ``1 month``, ``1 year``, ``2 weeks``, ``7 days`` or a timedelta.
            market: ``spot``, ``um`` or ``cm``.
            quote: End of the symbols, such as ``USDT``; None means all symbols.
            exclude: Symbols or patterns to leave out, such as ``*UPUSDT``.
            top: Number of symbols per date; None means all.
            by: Column to rank by, summed over ``lookback``: ``quote_volume``, ``volume`` or ``count`` (trades). In cm
                ``base_volume`` replaces ``quote_volume``.
            lookback: Days before the date that count.
            min_age: Days since the listing that a symbol must have; None means no minimum.
            hindsight: Fill ``listed_until`` with the last day with trades, which was not known on the date. Without it,
                the column is null.
            on_gap: Action if candles that the answer needs are not stored although their symbol was listed. Its row is
                then absent, or its volume too small. ``"raise"`` a :class:`GapError`, ``"warn"`` once with a
                :class:`GapWarning`, or ``"ignore"`` it.

        Raises:
            UsageError: An argument is not valid, a date is not after the first stored candle, or no 1d candles are
                stored.
            NotStoredError: No candle of the day before a date is stored.
            DamagedFileError: A file cannot be read. The text names it.
            GapError: With ``on_gap="raise"``, candles are missing.

        Examples:
            >>> members = market.universe("2024-01-03", market="um", quote="USDT", top=50, lookback="2 days")
            >>> members.df()[["symbol", "instrument", "quote_volume", "rank"]].values.tolist()
            [['ETHUSDT', 'ETHUSDT#1', 2.0, 1]]
        """
        refuse_unknown("on_gap", on_gap, get_args(OnGap))
        wanted = members_wanted(
            market,
            as_of=as_of,
            start=start,
            end=end,
            every=every,
            top=top,
            by=by,
            lookback=lookback,
            min_age=min_age,
            quote=quote,
            exclude=exclude,
            hindsight=hindsight,
        )
        with faults.explained():
            table, gaps = members_of(self._layout, wanted, self._listings())
        if on_gap != "ignore":
            tell_gaps(gaps, on_gap, stacklevel=2)
        return TableResult(self._files, table, f"universe of {wanted.market} from {wanted.start}")

    def series(self) -> Result:
        """Return the stored series, one row each: first and last day, number of days and rows.

        Examples:
            >>> stored = market.series().df()
            >>> stored[stored["data_type"] == "klines"][["symbol", "days", "rows"]].values.tolist()
            [['BTCUSDT', 2, 48], ['ETHUSDT', 2, 48], ['ETHUSDT', 2, 2]]
        """
        return self.sql(
            'SELECT market, data_type, symbol, "interval", min(day) AS first_day, max(day) AS last_day, '
            "count(*) AS days, CAST(sum(rows) AS BIGINT) AS rows FROM quality.coverage WHERE outcome = 'held' "
            'GROUP BY ALL ORDER BY market, data_type, symbol, "interval"'
        )

    def symbols(self, market: str | None = None) -> list[str]:
        """Return the symbols with stored data, in order.

        Args:
            market: ``spot``, ``um``, ``cm`` or ``option``; None means all.

        Raises:
            UsageError: The market does not exist.

        Examples:
            >>> market.symbols("spot")
            ['BTCUSDT', 'ETHUSDT']
        """
        only = market_of(market) if market is not None else None
        with faults.explained():
            return sorted({key.symbol for key in partitions.known_series(self._layout) if only in (None, key.market)})

    def coverage(self) -> Result:
        """Return one row for each day that was ever requested: origin, state, findings, and the reason of a failure.

        It is the view ``quality.coverage``, in order.

        Examples:
            >>> market.coverage().df()["state"].unique().tolist()
            ['final']
        """
        return self.sql('FROM quality.coverage ORDER BY exchange, market, data_type, symbol, "interval", day')

    def condition(
        self,
        symbols: str | Iterable[str] | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        market: str | None = None,
        interval: str | None = None,
        data_type: str | None = None,
    ) -> Result:
        """Return one row for each day of each stored or collected series: its condition, the reason and the evidence.

        It is the view ``quality.condition``, in order. A day is ``available``, ``degraded``, ``pending``, ``missing``
        or ``explained``.

        Args:
            symbols: One symbol or several; None means all.
            start: First day, inclusive; None means the beginning.
            end: Exclusive: days whose midnight (UTC) is before it; None means now.
            market: ``spot``, ``um``, ``cm`` or ``option``; None means all.
            interval: Kline interval; None means all, and trades.
            data_type: ``klines``, ``aggTrades`` or another; None means all.

        Raises:
            UsageError: The interval, data type or market does not exist, or a moment is not valid.

        Examples:
            >>> market.condition("BTCUSDT", "2024-01-01", "2024-01-03").df()["condition"].unique().tolist()
            ['available']
        """
        selection = selection_of(symbols, market, data_type, interval)
        return self.sql(condition_query(selection, start, end), selection=selection)

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
        """Return ranges of missing or flat rows inside stored days, with the verdict and evidence of each.

        It is the view ``quality.gaps``, in order. :meth:`coverage` has the days that are not stored.

        Args:
            symbols: One symbol or several; None means all.
            start: First moment, inclusive; None means the beginning.
            end: Last moment, exclusive; None means now.
            market: ``spot``, ``um``, ``cm`` or ``option``; None means all.
            interval: Kline interval; None means all, and trades.
            explained: True for gaps with an explanation (an outage, no trade), False for the others; None means both.

        Raises:
            UsageError: A symbol, interval or market is not stored, or a moment is not valid.

        Examples:
            >>> len(market.gaps("BTCUSDT"))
            0
        """
        selection = replace(selection_of(symbols, market), interval=interval)
        return self.sql(gaps_query(self._layout, selection, start, end, explained), selection=selection)

    def read_old(
        self,
        folder: str | PathLike[str],
        symbol: str,
        interval: str | None = None,
        *,
        market: str | None = None,
        layout: str = "auto",
    ) -> pa.Table:
        """Return the rows of one series in an older cache, without an import. The lake is not read.

        Times are UTC. Candles of files without quote volume and counts have six columns, others all of them. A newest
        candle that may be unfinished is left out. Rows that two files have are returned once.

        Args:
            folder: Folder of the cache. Nothing in it is changed.
            symbol: Symbol in Binance's form, such as ``BTCUSDT``.
            interval: Interval of candles; None means aggTrades.
            market: Market of files whose path names none; None if all paths name the same.
            layout: ``auto``, or a layout of ``market-data import``.

        Raises:
            UsageError: The cache has no such file, or an argument is unknown.
            MalformedError: A file is damaged, or its rows do not match its name.

        Examples:
            >>> candles = market.read_old(old_cache, "BTCUSDT", "1h", market="spot")
            >>> candles.num_rows, candles.column_names[:2]
            (48, ['open_time', 'open'])
        """
        from market_data_pipeline.imports.old_series import read_old_series

        return read_old_series(Path(folder), symbol, interval, market, layout)

    def __repr__(self) -> str:
        universe = self._settings.universe
        found = f"universe={str(universe)!r}" if universe.is_file() else "no universe.yaml"
        return f"<MarketData {str(self._layout.root)!r}, {found}>"

    def _candles(
        self,
        data_type: DataType,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None,
        market: str,
        columns: str | Iterable[str] | None,
        tz: str | tzinfo | None,
        sync: bool,
        final_only: bool,
        include_live: bool,
        on_gap: OnGap,
        *,
        include_forming: bool = False,
    ) -> StoredRows | ComposedRows:
        zone = zone_of(tz)
        growing = end is not None
        columns = [columns] if isinstance(columns, str) else list(columns) if isinstance(columns, Iterable) else columns
        if not isinstance(symbols, str) and isinstance(symbols, Iterable):
            symbols = list(symbols)  # read twice
        universe = load_universe(self._settings.universe) if sync else None

        def is_available(key: SeriesKey) -> bool:
            return is_requested(self._layout, key) or (universe is not None and key in universe)

        if can_be_own(interval, zone, columns):
            wanted = wanted_of(data_type, symbols, interval, start, end, market, columns)
            if all(map(is_available, wanted.keys)):
                warn_of_reused_symbols(wanted, stacklevel=4)
                return self._rows(
                    wanted,
                    sync,
                    final_only,
                    on_gap,
                    include_live=include_live,
                    include_forming=include_forming,
                    growing=growing,
                    stacklevel=4,
                )
        composition = composition_of(
            self._layout,
            self._files,
            data_type,
            symbols,
            interval,
            start,
            end,
            market,
            columns,
            zone,
            sync=sync,
            is_available=is_available,
        )
        warn_of_reused_symbols(composition.wanted, stacklevel=4)
        self._check(
            composition.sources, sync, final_only, on_gap, include_live=include_live, growing=growing, stacklevel=4
        )
        return ComposedRows(self._layout, self._files, composition, final_only=final_only, include_live=include_live)

    def _rows(
        self,
        wanted: Request,
        sync: bool,
        final_only: bool,
        on_gap: OnGap,
        *,
        growing: bool,
        include_live: bool = True,
        include_forming: bool = False,
        stacklevel: int = 3,
    ) -> StoredRows:
        self._check(
            [wanted], sync, final_only, on_gap, include_live=include_live, growing=growing, stacklevel=stacklevel + 1
        )
        return StoredRows(
            self._layout,
            self._files,
            wanted,
            final_only=final_only,
            include_live=include_live,
            include_forming=include_forming,
        )

    def _check(
        self,
        requests: Iterable[Request],
        sync: bool,
        final_only: bool,
        on_gap: OnGap,
        *,
        include_live: bool,
        growing: bool,
        stacklevel: int,
    ) -> None:
        """Fetch what is missing if asked to, and report gaps."""
        refuse_unknown("on_gap", on_gap, get_args(OnGap))
        gaps: list[Gap] = []
        with faults.explained():
            for wanted in requests:
                if sync:
                    fetch_missing(self._settings, self._layout, wanted)
                else:
                    check_held(self._layout, wanted.keys)
                if on_gap != "ignore":
                    some = growing or on_gap == "raise"
                    gaps += gaps_in(
                        self._layout,
                        wanted,
                        self._listings,
                        final_only=final_only,
                        include_live=include_live,
                        growing=some,
                    )
        tell_gaps(gaps if on_gap == "raise" else worth_a_warning(gaps), on_gap, stacklevel=stacklevel)

    def _record_collected(self) -> None:
        if self._settings.universe.is_file():
            record_collected(self._layout, load_universe(self._settings.universe))

    def _listings(self) -> Listings:
        return listings_near(self._settings.universe)


def _universe_of(settings: Settings) -> Path:
    """Return the path of the universe: as set, or ``universe.yaml`` in the data folder, beside it, or above it."""
    if "universe" in settings.model_fields_set:
        return settings.universe
    name = settings.universe.name
    local = Layout(settings.root).local
    near = (local, *local.parents[:2])
    return next((folder / name for folder in near if (folder / name).is_file()), settings.universe)


_NOT_OURS = frozenset({"README.md", "demo"})
"""Names in the project's own empty data folder."""

_OURS = frozenset({"lake", "ledger", "live", "universe.yaml", "dagster", "tmp"})
"""Names of which a data folder has at least one as soon as anything was done in it."""


def _warn_of_no_lake(layout: Layout) -> None:
    """Warn of a folder with files that is no lake: its path is probably mistyped."""
    root = layout.root
    with suppress(OSError):
        names = {name for name in storage.list_names(root) if name[0] != "."} - _NOT_OURS
        if names and names.isdisjoint(_OURS):
            warnings.warn(
                f"{root} is no data folder of market_data_pipeline: it has neither lake/ nor ledger/.", stacklevel=3
            )
