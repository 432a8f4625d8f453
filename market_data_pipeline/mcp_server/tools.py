# ruff: noqa: S608 - conditions have only the names of columns, and values are bound.
"""The tools: questions about a data folder, answered with what is missing in them. They only read.

The docstrings and the texts of arguments are what a language model reads. The protocol belongs to ``server.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Annotated, Any, TypeVar

from pydantic import Field

from market_data_pipeline import __version__
from market_data_pipeline.client import ComposedRows, Gap, MarketData
from market_data_pipeline.client.request import (
    SeriesSelection,
    market_of,
    moment_of,
    range_of,
    refuse_unknown,
    selection_of,
)
from market_data_pipeline.errors import GapError, UsageError
from market_data_pipeline.mcp_server.answers import (
    LISTED,
    AbsentRange,
    AnswerLimits,
    ProvisionalRange,
    ToolAnswer,
    cut,
    json_rows,
    json_value,
    moment_text,
    units_of,
)
from market_data_pipeline.mcp_server.query_process import QueryProcess
from market_data_pipeline.mcp_server.scan import ScanEstimate, refuse_too_much
from market_data_pipeline.model.findings import MISSING
from market_data_pipeline.model.series import EXCHANGE, DataType, SeriesKey
from market_data_pipeline.model.states import Condition, DayState

_T = TypeVar("_T")

_DEFAULT_ROWS = 200

Symbols = Annotated[
    list[str] | None, Field(description="Symbols, such as BTCUSDT. Leave out for all of the selection.")
]
MarketName = Annotated[str | None, Field(description="spot, um (USDⓈ-margined futures) or cm (coin-margined futures).")]
DataTypeName = Annotated[
    str | None, Field(description="klines, aggTrades, trades, fundingRate, metrics, … Leave out for all.")
]
IntervalName = Annotated[str | None, Field(description="Kline interval, such as 1m or 1h. Leave out for all.")]
Start = Annotated[str | None, Field(description="First moment, inclusive: ISO 8601, UTC without a zone.")]
End = Annotated[str | None, Field(description="Last moment, exclusive: ISO 8601, UTC without a zone. Default: now.")]
RowLimit = Annotated[int, Field(description="Most rows to return. If there are more, `rest` explains how to get them.")]

_RANGES = """
SELECT exchange, market, data_type, symbol, "interval", condition, reason, min(day) AS first, max(day) AS last,
    count(*) AS days, arg_min(evidence, day) AS evidence
FROM (
    SELECT *, day - CAST(row_number() OVER (
        PARTITION BY exchange, market, data_type, symbol, "interval", condition, reason ORDER BY day
    ) AS INTEGER) AS run
    FROM quality.condition WHERE {where}
)
GROUP BY exchange, market, data_type, symbol, "interval", condition, reason, run
ORDER BY exchange, market, data_type, symbol, "interval", first
"""
"""Runs of days with one condition and reason."""


@dataclass(frozen=True, slots=True)
class _Selection:
    """Series and days of a question. None means all."""

    symbols: Sequence[str] | None = None
    market: str | None = None
    data_type: str | None = None
    interval: str | None = None
    start: str | None = None
    end: str | None = None
    keys: Sequence[SeriesKey] | None = None

    @property
    def range(self) -> tuple[datetime, datetime]:
        """Return the first moment, and the first one after the range, in UTC without a zone."""
        return range_of(date.min if self.start is None else self.start, self.end)

    @property
    def series(self) -> SeriesSelection:
        """Return the series."""
        checked = selection_of(None, self.market, self.data_type, self.interval)
        return replace(checked, symbols=self.symbols, keys=self.keys)

    def where(self) -> tuple[str, list[object]]:
        """Return the conditions in SQL, and their values."""
        first, last = self.range
        selected = self.series
        conditions = ["day >= CAST(? AS DATE)", "day < CAST(? AS TIMESTAMP)"]
        found: list[object] = [str(first.date()), str(last)]
        for name in ("market", "data_type", "interval"):
            if (value := getattr(selected, name)) is not None:
                conditions.append(f'"{name}" = ?')
                found.append(str(value))
        if self.symbols is not None:
            conditions.append("list_contains(?, symbol)")
            found.append(list(self.symbols))
        if self.keys is not None:
            names = "concat_ws('/', market, data_type, symbol, \"interval\")"
            conditions.append(f"list_contains(?, {names})")
            found.append(["/".join(filter(None, (k.market, k.data_type, k.symbol, k.interval))) for k in self.keys])
        return " AND ".join(conditions), found


class Tools:
    """Questions about the lake of a data folder."""

    def __init__(self, market: MarketData, process: QueryProcess, limits: AnswerLimits) -> None:
        self._market = market
        self._process = process
        self._limits = limits

    def every_tool(self) -> tuple[Callable[..., ToolAnswer], ...]:
        """Return the tools, in the order in which a client should meet them."""
        return (
            self.series,
            self.coverage,
            self.condition,
            self.gaps,
            self.universe,
            self.candles,
            self.sql,
            self.cite,
        )

    def series(
        self,
        symbols: Symbols = None,
        market: MarketName = None,
        data_type: DataTypeName = None,
        interval: IntervalName = None,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """List the stored series: market, data type, symbol, interval, first and last day, number of days and rows.

        Begin here. A series is one data type of one symbol; candles have a series for each stored interval.
        """
        selection = _Selection(symbols, market, data_type, interval)
        where, values = selection.where()
        ranges = self._ranges(selection)
        table = self._market.sql(
            'SELECT market, data_type, symbol, "interval", min(day) AS first_day, max(day) AS last_day, '
            "count(*) AS days, CAST(sum(rows) AS BIGINT) AS rows, CAST(sum(bytes) AS BIGINT) AS bytes "
            f"FROM quality.coverage WHERE outcome = 'held' AND {where} GROUP BY ALL "
            'ORDER BY market, data_type, symbol, "interval"',
            values,
            selection=selection.series,
        ).arrow()
        return self._answer(
            json_rows(table), table.column_names, limit, _Beside.of(ranges), "Name symbols or a market."
        )

    def coverage(
        self,
        symbols: Symbols = None,
        market: MarketName = None,
        data_type: DataTypeName = None,
        interval: IntervalName = None,
        start: Start = None,
        end: End = None,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Count the days of each series by condition: available, degraded, pending, missing and explained.

        available: final and complete. degraded: rows are missing without an explanation, or a check fails. pending: the
        day is not over, or waits for its archive. missing: not stored although the symbol was listed. explained: the
        source has no rows, for example during an outage or before the listing.
        """
        ranges = self._ranges(_Selection(symbols, market, data_type, interval, start, end))
        counts: dict[tuple[Any, ...], Counter[str]] = {}
        for one in ranges:
            name = tuple(one[label] for label in ("market", "data_type", "symbol", "interval"))
            found = counts.setdefault(name, Counter())
            found[one["condition"]] += one["days"]
        rows = (
            {
                **dict(zip(("market", "data_type", "symbol", "interval"), name, strict=True)),
                **{condition.value: found[condition] for condition in Condition},
            }
            for name, found in counts.items()
        )
        units = dict.fromkeys(map(str, Condition), "days")
        return self._answer(rows, units, limit, _Beside.of(ranges), "Name symbols or a market.", units=units)

    def condition(
        self,
        symbols: Symbols = None,
        market: MarketName = None,
        data_type: DataTypeName = None,
        interval: IntervalName = None,
        start: Start = None,
        end: End = None,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Return the condition of all days of series as ranges of days, with the reason and the evidence of each.

        The reason is finer than the condition: final, healed (rows gap-filled from REST), provisional, not_over,
        incomplete, faulty, outage, not_listed, failed, never_fetched and others.
        """
        ranges = self._ranges(_Selection(symbols, market, data_type, interval, start, end))
        rows = (json_value({name: value for name, value in one.items() if name != "exchange"}) for one in ranges)
        names = ("first", "last")
        rest = "Request fewer series, or a later start."
        return self._answer(rows, names, limit, _Beside.of(ranges), rest, units=dict.fromkeys(names, "UTC day"))

    def gaps(
        self,
        symbols: Symbols = None,
        market: MarketName = None,
        interval: IntervalName = None,
        start: Start = None,
        end: End = None,
        explained: Annotated[
            bool | None, Field(description="True for gaps with an explanation, False for the others.")
        ] = None,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Return ranges of missing or flat rows inside stored days, with the verdict and evidence of each.

        Days that are not stored at all are in ``missing`` of the answer. Trades have ids of rows instead of times.
        """
        table = self._market.gaps(symbols, start, end, market=market, interval=interval, explained=explained).arrow()
        beside = _Beside.of(self._ranges(_Selection(symbols, market, None, interval, start, end)))
        return self._answer(json_rows(table), table.column_names, limit, beside, "Request fewer symbols or days.")

    def universe(
        self,
        as_of: Annotated[str, Field(description="A date. The answer knows only the days before it.")],
        market: Annotated[str, Field(description="spot, um or cm.")] = "spot",
        quote: Annotated[str | None, Field(description="End of the symbols, such as USDT.")] = None,
        exclude: Annotated[list[str], Field(description="Symbols or patterns to leave out, such as *UPUSDT.")] = [],  # noqa: B006 - pydantic copies it
        top: Annotated[int | None, Field(description="Number of symbols. Leave out for all.")] = None,
        by: Annotated[str, Field(description="Column to rank by: quote_volume, volume or count.")] = "quote_volume",
        lookback: Annotated[str, Field(description="Days before the date that count, such as '30 days'.")] = "30 days",
        min_age: Annotated[str | None, Field(description="Time since the listing, such as '90 days'.")] = None,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Return the symbols that were listed on a date, ranked by their past volume, delisted ones included.

        There is no look-ahead and no survivorship bias. Candles of interval 1d must be stored.
        """
        arguments: dict[str, Any] = {
            "market": market,
            "quote": quote,
            "exclude": exclude,
            "top": top,
            "by": by,
            "lookback": lookback,
            "min_age": min_age,
        }
        result, gaps = _with_gaps(lambda on_gap: self._market.universe(as_of, **arguments, on_gap=on_gap))
        table = result.arrow()
        beside = _Beside([_of_gap(gap) for gap in gaps], [], Counter())
        units = units_of(table.column_names, market_of(market))
        return self._answer(json_rows(table), (), limit, beside, "Pass top, or name a quote.", units=units)

    def candles(
        self,
        symbol: Annotated[str, Field(description="One symbol, such as BTCUSDT.")],
        interval: Annotated[str, Field(description="A number and s, m, h, d, w or mo: 1m, 7m, 1h, 3d, 1w, 1mo.")],
        start: Annotated[str, Field(description="First moment, inclusive: ISO 8601, UTC without a zone.")],
        end: End = None,
        market: Annotated[str, Field(description="spot, um or cm.")] = "spot",
        data_type: Annotated[
            str, Field(description="klines; for futures also markPriceKlines, indexPriceKlines, premiumIndexKlines.")
        ] = "klines",
        tz: Annotated[
            str | None, Field(description="Zone in which days, weeks and months begin. Default: UTC.")
        ] = None,
        final_only: Annotated[bool, Field(description="Leave out days that are provisional or fail checks.")] = False,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Return candles of one symbol in order of time.

        Intervals that are not stored are composed from the largest stored interval that divides them. ``version`` is a
        hash over all days of the range, also if the rows are truncated.
        """
        limit = self._limits.checked(limit)
        kind = _data_type(data_type)
        if not kind.has_interval:
            raise UsageError(f"{kind} are no candles. Read them with sql: FROM binance_{market}.{kind.sql_name} …")
        read = getattr(self._market, kind.sql_name)
        result, gaps = _with_gaps(
            lambda on_gap: read(
                symbol, interval, start, end, market=market, tz=tz, final_only=final_only, on_gap=on_gap
            )
        )
        selection = _Selection(keys=result.series, start=start, end=end)
        if isinstance(result, ComposedRows):
            self._refuse_long(selection)
        table = result.relation().limit(limit + 1).to_arrow_table()
        rows = list(json_rows(table))
        beside = self._beside_rows(selection, gaps)
        rest = f"Call again with start={rows[-1]['open_time']}." if len(rows) > limit else ""
        units = units_of(table.column_names, market_of(market))
        return self._answer(rows, (), limit, beside, rest, units=units, version=result.version)

    def sql(
        self,
        query: Annotated[str, Field(description="One SELECT in DuckDB's language.")],
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Run one SELECT over the views of the lake. It cannot write, and reads no other files.

        Views: klines, agg_trades, trades, funding_rate, metrics and more in the schemas binance_spot, binance_um and
        binance_cm; quality.coverage, quality.condition, quality.gaps, quality.findings. Times are UTC. The macros
        binance_spot.candles(symbol, interval, from, to) and binance_spot.trades(symbol, from, to) read only the files
        of their range: prefer them. DESCRIBE binance_spot.klines lists columns. A query that would read too much is
        refused. ``missing`` is about all days of the series that the query names.
        """
        found = self._process.answer(query, self._limits.checked(limit))
        keys = [
            SeriesKey(EXCHANGE, market_of(s.market), DataType(s.data_type), s.symbol, s.interval) for s in found.series
        ]
        beside = _Beside.of(self._ranges(_Selection(keys=keys))) if keys else _Beside([], [], Counter())
        units = {**found.types, **units_of(found.types)}
        rest = "Add ORDER BY with LIMIT and OFFSET, aggregate, or pass a higher limit."
        return self._answer(found.rows, (), limit, beside, rest, units=units, truncated=found.truncated)

    def cite(
        self,
        symbols: Annotated[list[str], Field(description="Symbols, such as BTCUSDT.")],
        start: Annotated[str, Field(description="First moment, inclusive: ISO 8601, UTC without a zone.")],
        end: Annotated[str, Field(description="Last moment, exclusive: ISO 8601, UTC without a zone.")],
        interval: Annotated[str | None, Field(description="Interval of candles. Other data types have none.")] = None,
        market: Annotated[str, Field(description="spot, um or cm.")] = "spot",
        data_type: Annotated[str, Field(description="klines, aggTrades, trades, fundingRate, …")] = "klines",
        final_only: Annotated[bool, Field(description="Leave out days that are provisional or fail checks.")] = False,
        limit: RowLimit = _DEFAULT_ROWS,
    ) -> ToolAnswer:
        """Return the version of a selection: a hash over the contents of its days, to cite in a paper or a backtest.

        The rows are the stored days with their source, checksum and hashes. ``reproduce`` is Python that returns the
        same version from a lake with the same contents.
        """
        kind = _data_type(data_type)
        if kind.has_interval and interval is None:
            raise UsageError(f"{kind} need an interval, such as 1h.")
        if not kind.has_interval and interval is not None:
            raise UsageError(f"{kind} have no interval. Leave it out.")
        first, last = moment_text(moment_of(start, "start")), moment_text(moment_of(end, "end"))
        arguments: list[Any] = [sorted(set(symbols)), *([interval] if interval else []), first, last]
        named = {"market": market, **({"final_only": True} if final_only else {})}
        read = getattr(self._market, kind.sql_name)
        result, gaps = _with_gaps(lambda on_gap: read(*arguments, **named, on_gap=on_gap))
        selection = _Selection(keys=result.series, start=first, end=last)
        version, beside = result.version, self._beside_rows(selection, gaps)
        where, values = selection.where()
        table = self._market.sql(
            'SELECT market, data_type, symbol, "interval", day, state, final, rows, source, checksum, archive_sha256, '
            f"content_sha256, fetched_at FROM quality.coverage WHERE outcome = 'held' AND {where} "
            'ORDER BY symbol, "interval", day',
            values,
            selection=selection.series,
        ).arrow()
        answer = self._answer(
            json_rows(table), table.column_names, limit, beside, "Request the later days.", version=version
        )
        shown = ", ".join([*map(repr, arguments), *(f"{name}={value!r}" for name, value in named.items())])
        answer.reproduce = f"from market_data_pipeline import MarketData\nMarketData().{kind.sql_name}({shown}).version"
        what = " ".join(filter(None, (market, kind, interval)))
        answer.citation = (
            f"Binance {what} of {', '.join(arguments[0])}, {first} to {last} (exclusive), {table.num_rows:,} stored "
            f"days, market-data-pipeline {__version__}, version {version}."
        )
        return answer

    def _answer(
        self,
        rows: Iterable[dict[str, Any]],
        columns: Iterable[str],
        limit: int,
        beside: _Beside,
        rest: str,
        *,
        units: Mapping[str, str] | None = None,
        truncated: bool = False,
        version: str | None = None,
    ) -> ToolAnswer:
        kept, more = cut(rows, self._limits.checked(limit), self._limits.characters)
        return ToolAnswer(
            rows=kept,
            units=dict(units_of(columns) if units is None else units),
            limit=limit,
            truncated=truncated or more,
            rest=rest if truncated or more else None,
            missing=beside.missing[:LISTED],
            missing_total=len(beside.missing),
            provisional=beside.provisional[:LISTED],
            days=dict(beside.days),
            version=version,
        )

    def _ranges(self, selection: _Selection) -> list[dict[str, Any]]:
        """Return the runs of days with one condition and reason.

        Raises:
            UsageError: A symbol has no day in this selection.
        """
        where, values = selection.where()
        found: list[dict[str, Any]] = (
            self._market.sql(_RANGES.format(where=where), values, selection=selection.series).arrow().to_pylist()
        )
        for symbol in selection.symbols or ():
            if not any(one["symbol"] == symbol for one in found):
                known = [name for (name,) in self._known(selection.market)]
                refuse_unknown("stored or collected symbol", symbol, known)
        return found

    def _known(self, market: str | None) -> list[tuple[str]]:
        where = "true" if market is None else "market = ?"
        query = f"SELECT DISTINCT symbol FROM quality.condition WHERE {where} ORDER BY symbol"
        rows = self._market.sql(query, None if market is None else [market]).arrow()
        return [(str(name),) for name in rows["symbol"].to_pylist()]

    def _beside_rows(self, selection: _Selection, gaps: Sequence[Gap]) -> _Beside:
        """Return what is missing in rows: the gaps without an explanation, and those with one."""
        beside = _Beside.of(self._ranges(selection))
        # Outages are listed by their rows.
        explained = [one for one in beside.missing if one.explained and one.reason != DayState.OUTAGE]
        where, values = selection.where()
        words = ", ".join(f"'{verdict}'" for verdict in sorted(MISSING))
        table = self._market.sql(
            f"FROM quality.gaps WHERE explained AND verdict IN ({words}) AND {where} "
            "AND coalesce(last, day + INTERVAL 1 DAY) >= CAST(? AS TIMESTAMP) "
            "AND coalesce(first, day) < CAST(? AS TIMESTAMP) ORDER BY symbol, day, first",
            [*values, *map(str, selection.range)],
            selection=selection.series,
        ).arrow()
        inside = [_of_gap_row(row) for row in table.to_pylist()]
        return _Beside([*map(_of_gap, gaps), *explained, *inside], beside.provisional, beside.days)

    def _refuse_long(self, selection: _Selection) -> None:
        """Refuse to compose candles from too many stored ones."""
        where, values = selection.where()
        table = self._market.sql(
            "SELECT count(*) AS files, CAST(coalesce(sum(rows), 0) AS BIGINT) AS rows FROM quality.coverage "
            f"WHERE outcome = 'held' AND {where}",
            values,
            selection=selection.series,
        ).arrow()
        [size] = table.to_pylist()
        advice = "Narrow it: request a shorter range, or an interval that is stored (see series)."
        refuse_too_much(ScanEstimate(**size), self._limits, advice)


@dataclass(frozen=True, slots=True)
class _Beside:
    """Contents of an answer besides its rows."""

    missing: list[AbsentRange]
    provisional: list[ProvisionalRange]
    days: Counter[str]

    @classmethod
    def of(cls, ranges: Iterable[Mapping[str, Any]]) -> _Beside:
        """Return the contents for runs of days."""
        missing, provisional, days = [], [], Counter[str]()
        for one in ranges:
            days[one["reason"]] += one["days"]
            series = _name_of(one)
            first, last = str(one["first"]), str(one["last"])
            if one["condition"] == Condition.PENDING:
                provisional.append(ProvisionalRange(series=series, first=first, last=last))
            elif one["condition"] != Condition.AVAILABLE:
                missing.append(
                    AbsentRange(
                        series=series,
                        first=first,
                        last=last,
                        reason=one["reason"],
                        explained=one["condition"] == Condition.EXPLAINED,
                        days=one["days"],
                        evidence=one["evidence"] or "",
                    )
                )
        return cls(missing, provisional, days)


def _name_of(row: Mapping[str, Any]) -> str:
    symbol = "_".join(filter(None, (row["symbol"], row["interval"])))
    return f"{EXCHANGE}/{row['market']}/{row['data_type']}/{symbol}"


def _of_gap(gap: Gap) -> AbsentRange:
    whole = gap.count is None
    return AbsentRange(
        series=_name_of({name: getattr(gap.key, name) for name in ("market", "data_type", "symbol", "interval")}),
        first=str(gap.first.date()) if whole else moment_text(gap.first),
        last=str(gap.last.date()) if whole else moment_text(gap.last),
        reason=gap.verdict,
        explained=False,
        days=(gap.last.date() - gap.first.date()).days + 1 if whole else None,
        rows=gap.count,
        evidence=gap.evidence,
    )


def _of_gap_row(row: Mapping[str, Any]) -> AbsentRange:
    first, last = row["first"], row["last"]
    return AbsentRange(
        series=_name_of(row),
        first=str(row["day"]) if first is None else moment_text(first),
        last=str(row["day"]) if last is None else moment_text(last),
        reason=row["verdict"],
        explained=row["explained"],
        rows=row["count"],
        evidence=row["evidence"],
    )


def _with_gaps(read: Callable[[Any], _T]) -> tuple[_T, Sequence[Gap]]:
    """Return a result, and its gaps without an explanation. ``read`` takes ``on_gap``."""
    try:
        return read("raise"), ()
    except GapError as error:
        return read("ignore"), error.gaps


def _data_type(name: str) -> DataType:
    refuse_unknown("data type", name, list(DataType))
    return DataType(name)
