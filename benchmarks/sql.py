"""Rows about SQL over the views and macros of ``catalog.duckdb``, in a process that has asked once before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.baselines import in_turn, repeated
from benchmarks.data import Archives, serving
from benchmarks.ingestion import ingest_into
from benchmarks.lakes import big_lake, lake_days, lake_series
from benchmarks.processes import apart, as_a_notebook
from benchmarks.report import Baseline, Row
from market_data_pipeline import MarketData
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sql.publish import publish_catalog

if TYPE_CHECKING:
    import polars as pl

_LAST = 500
_WEEK, _YEAR = 7, 365
_BARS = (
    "time_bucket(INTERVAL '1 hour', open_time) AS hour, arg_min(open, open_time) AS open, max(high) AS high, "
    "min(low) AS low, arg_max(close, open_time) AS close, sum(volume) AS volume"
)


@dataclass(frozen=True, slots=True)
class _Question:
    """One thing to know, asked in several ways.

    Attributes:
        what: In words.
        rows: How many rows must come.
        view: SQL over the view.
        macro: SQL over the table macro.
        plain: SQL over a plain pattern of files, with conditions on the columns, for who has no catalog.
        view_ms: Target of the view.
        macro_ms: Target of the macro.
    """

    what: str
    rows: int
    view: str
    macro: str
    plain: str
    view_ms: float
    macro_ms: float


@as_a_notebook()
def sql(archives: Archives, _: Path) -> list[Row]:
    """Measure SQL over 3 years of 1m klines of 10 symbols: one day, the last 500 candles, hourly bars.

    The catalog is opened read-only by DuckDB, as any tool does, and each answer is fetched as an Arrow table. DuckDB
    over a plain pattern of files takes turns with it. Beside them: ``MarketData.sql``, and polars over the pattern.
    """
    lake = big_lake(archives)
    days, keys = lake_days(archives), lake_series(archives)
    times = archives.scale.repetitions
    questions = _questions(lake, keys, days)
    asked = {name: (question.view, question.macro) for name, question in questions.items()}
    ours = apart(_by_catalog, lake, questions, 2 * times + 1)
    python = apart(_by_market_data, lake, asked, min(3, times))
    polars = apart(_by_polars, lake, questions, keys, days, min(3, times))
    over = f"SQL over {len(days) * len(keys) * 1440 / 1e6:.3g} million 1m candles"
    rows = []
    for way, number in (("view", 0), ("macro", 1)):
        for name, question in questions.items():
            others = {
                "through MarketData.sql": python[name][number],
                "DuckDB over a plain pattern": ours[name][2],
                "polars over a plain pattern": polars[name],
            }
            rows.append(
                Row(
                    f"sql-{way}-{name}",
                    f"{over}, by the {way}: {question.what}",
                    "ms",
                    _ms(ours[name][number]),
                    target=question.macro_ms if number else question.view_ms,
                    baselines=[Baseline(other, _ms(seconds)) for other, seconds in others.items()],
                )
            )
    return rows


def _ms(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]


def _questions(lake: Path, keys: Sequence[SeriesKey], days: Sequence[date]) -> dict[str, _Question]:
    view, plain = "binance_spot.klines", f"read_parquet('{_pattern(lake, keys[0])}')"
    symbol, day = keys[len(keys) // 2].symbol, days[len(days) // 2]
    year = days[-_YEAR:]
    end = days[-1] + timedelta(days=1)
    one = f"symbol = '{symbol}' AND interval = '1m'"
    on_day = f"{one} AND open_time >= '{day}' AND open_time < '{day + timedelta(days=1)}'"
    in_year = f"interval = '1m' AND open_time >= '{year[0]}' AND open_time < '{end}'"
    newest = f"ORDER BY open_time DESC LIMIT {_LAST}"

    def candles(symbol: str, first: date, last: date | None) -> str:
        until = "" if last is None else f", '{last}'"
        return f"binance_spot.candles('{symbol}', '1m', '{first}'{until})"

    each = " UNION ALL ".join(
        f"SELECT symbol, {_BARS} FROM {candles(key.symbol, year[0], end)} GROUP BY symbol, hour" for key in keys
    )
    return {
        "day": _Question(
            "one symbol, one day",
            1440,
            f"FROM {view} WHERE {on_day}",
            f"FROM {candles(symbol, day, day + timedelta(days=1))}",
            f"FROM {plain} WHERE {on_day}",
            25,
            8,
        ),
        "last": _Question(
            f"the last {_LAST} candles of one symbol, without a lower bound",
            _LAST,
            f"FROM {view} WHERE {one} {newest}",
            f"FROM {candles(symbol, days[0], None)} {newest}",
            f"FROM {plain} WHERE {one} {newest}",
            70,
            10,
        ),
        "hours": _Question(
            f"hourly bars of {len(year)} days of {len(keys)} symbols",
            24 * len(year) * len(keys),
            f"SELECT symbol, {_BARS} FROM {view} WHERE {in_year} GROUP BY symbol, hour",
            each,
            f"SELECT symbol, {_BARS} FROM {plain} WHERE {in_year} GROUP BY symbol, hour",
            330,
            300,
        ),
    }


def _pattern(lake: Path, key: SeriesKey) -> Path:
    """All files of klines, of days and of closed months: no day of this lake is in both."""
    klines = next(folder for folder in Layout(lake).folder(key).parents if folder.name == key.data_type)
    return klines / "*" / "*" / "*" / "*.parquet"


def _checked(answer: Callable[[], int], rows: int) -> Callable[[], int]:
    """Return the same, or raise for a wrong number of rows."""

    def checked() -> int:
        came = answer()
        if came != rows:
            raise RuntimeError(f"{rows} rows were asked for, and {came} came.")
        return came

    return checked


def _by_catalog(lake: Path, questions: Mapping[str, _Question], times: int) -> dict[str, list[list[float]]]:
    """Return the seconds of the view, of the macro and of a plain pattern, which take turns."""
    import duckdb

    def answer(session: duckdb.DuckDBPyConnection, query: str) -> int:
        rows: int = session.sql(query).to_arrow_table().num_rows
        return rows

    with duckdb.connect(Layout(lake).catalog, read_only=True) as catalog, duckdb.connect() as alone:
        return {
            name: in_turn(
                [
                    _checked(partial(answer, session, query), question.rows)
                    for session, query in (
                        (catalog, question.view),
                        (catalog, question.macro),
                        (alone, question.plain),
                    )
                ],
                times,
            )
            for name, question in questions.items()
        }


def _by_market_data(lake: Path, asked: Mapping[str, Sequence[str]], times: int) -> dict[str, list[list[float]]]:
    market = MarketData(lake)
    return {
        name: [repeated(lambda query=query: market.sql(query).arrow(), times) for query in queries]  # type: ignore[misc]
        for name, queries in asked.items()
    }


def _by_polars(
    lake: Path, questions: Mapping[str, _Question], keys: Sequence[SeriesKey], days: Sequence[date], times: int
) -> dict[str, list[float]]:
    import polars as pl

    pattern = _pattern(lake, keys[0])
    symbol, day, year = keys[len(keys) // 2].symbol, days[len(days) // 2], days[-_YEAR:]

    def lazy() -> pl.LazyFrame:
        return pl.scan_parquet(pattern).filter(pl.col("interval") == "1m")

    def one() -> pl.LazyFrame:
        return lazy().filter(pl.col("symbol") == symbol)

    def within(frame: pl.LazyFrame, first: date, last: date) -> pl.LazyFrame:
        return frame.filter(pl.col("open_time") >= first, pl.col("open_time") < last + timedelta(days=1))

    bars = [pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last()]
    asked = {
        "day": lambda: len(within(one(), day, day).collect()),
        "last": lambda: len(one().sort("open_time").tail(_LAST).collect()),
        "hours": lambda: len(
            within(lazy(), year[0], year[-1])
            .group_by("symbol", pl.col("open_time").dt.truncate("1h"))
            .agg(*bars, pl.col("volume").sum())
            .collect()
        ),
    }
    return {name: repeated(_checked(asked[name], question.rows), times) for name, question in questions.items()}


_OHLCV = ("open", "high", "low", "close", "volume")


@as_a_notebook()
def composed(archives: Archives, _: Path) -> list[Row]:
    """Measure hourly candles of a year of 10 symbols that are composed from 1m, without other columns.

    ``MarketData.klines`` takes turns with DuckDB's ``time_bucket`` over the same files. Rows of the latter are not
    ordered, and candles without trades are not left out of its prices.
    """
    lake, days = big_lake(archives), lake_days(archives)[-_YEAR:]
    ours, plain = apart(_composed_in_turn, lake, lake_series(archives), days, 2 * archives.scale.repetitions + 1)
    return [
        Row(
            "composed-hours",
            f"hourly candles composed from {len(days)} days of 1m of {archives.scale.symbols} symbols, in Python",
            "ms",
            _ms(ours),
            baselines=[Baseline("DuckDB's time_bucket over the same files", _ms(plain))],
        )
    ]


def _composed_in_turn(lake: Path, keys: Sequence[SeriesKey], days: Sequence[date], times: int) -> list[list[float]]:
    import duckdb

    market, symbols, end = MarketData(lake), [key.symbol for key in keys], days[-1] + timedelta(days=1)
    rows = market.klines(symbols, "1h", days[0], end, columns=_OHLCV, on_gap="ignore")
    layout, whole = Layout(lake), date(end.year, end.month, 1)
    months = [path for key in keys for path in layout.months(key).glob("*.parquet")]
    paths = [str(path) for path in months if path.stem >= f"{days[0]:%Y-%m}"]
    paths += [str(layout.file(key, day)) for key in keys for day in days if day >= whole]
    query = (
        f"SELECT symbol, {_BARS} FROM read_parquet({paths}) WHERE open_time >= '{days[0]}' AND open_time < '{end}' "
        "GROUP BY symbol, hour"
    )
    number = 24 * len(days) * len(keys)
    with duckdb.connect() as session:
        reads = [lambda: rows.arrow().num_rows, lambda: session.sql(query).to_arrow_table().num_rows]
        return in_turn([_checked(read, number) for read in reads], times)


@as_a_notebook()
def vwap(archives: Archives, work: Path) -> list[Row]:
    """Measure the volume-weighted price of each minute of a week of a million aggTrades a day, by SQL over the view."""
    key, days, lake = archives.trade_series, archives.trade_days[:_WEEK], work / "lake"
    times = archives.scale.repetitions
    with serving(archives.trades()) as origin:
        rows = apart(ingest_into, lake, origin.env, {key: days}).rows
    ours = apart(_vwap_by_catalog, lake, key.symbol, 2 * times + 1)
    others = {
        name: apart(read, lake, key, days, min(3, times))
        for name, read in (("polars", _vwap_by_polars), ("pandas", _vwap_by_pandas))
    }
    return [
        Row(
            "vwap",
            f"VWAP of each minute over {rows / 1e6:.2g} million aggTrades, by SQL over the view",
            "ms",
            _ms(ours),
            target=180,
            baselines=[Baseline(name, _ms(seconds)) for name, seconds in others.items()],
        )
    ]


def _vwap_by_catalog(lake: Path, symbol: str, times: int) -> list[float]:
    import duckdb

    query = (
        "SELECT date_trunc('minute', transact_time) AS minute, sum(price * quantity) / sum(quantity) AS vwap "
        f"FROM binance_spot.agg_trades WHERE symbol = '{symbol}' GROUP BY minute ORDER BY minute"
    )
    publish_catalog(Layout(lake))
    with duckdb.connect(Layout(lake).catalog, read_only=True) as catalog:
        return repeated(lambda: catalog.sql(query).to_arrow_table(), times)


def _vwap_by_polars(lake: Path, key: SeriesKey, days: Sequence[date], times: int) -> list[float]:
    import polars as pl

    paths = [Layout(lake).file(key, day) for day in days]
    weighted = (pl.col("price") * pl.col("quantity")).sum() / pl.col("quantity").sum()
    minute = pl.col("transact_time").dt.truncate("1m")
    frame = pl.scan_parquet(paths).group_by(minute).agg(weighted.alias("vwap")).sort("transact_time")
    return repeated(frame.collect, times)


def _vwap_by_pandas(lake: Path, key: SeriesKey, days: Sequence[date], times: int) -> list[float]:
    import pandas as pd

    paths = [Layout(lake).file(key, day) for day in days]

    def read() -> object:
        columns = ["transact_time", "price", "quantity"]
        frame = pd.concat([pd.read_parquet(path, columns=columns) for path in paths])
        frame["turnover"] = frame["price"] * frame["quantity"]
        sums = frame.groupby(frame["transact_time"].dt.floor("min"))[["turnover", "quantity"]].sum()
        return sums["turnover"] / sums["quantity"]

    return repeated(read, times)
