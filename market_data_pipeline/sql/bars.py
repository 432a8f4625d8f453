# ruff: noqa: S608 - the SQL has only the project's own column names, and quoted paths and symbols.
"""Bars and order flow as table macros over aggTrades, and the returns of perpetual futures over candles.

Aggregation happens in DuckDB while the files are read, so memory grows with the bars and not with the trades. Only bars
of ticks, volume and dollars need the trades in order: one UTC day at a time. Views belong to ``sql/views.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import MARKETS, data_types_of
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sql import intervals
from market_data_pipeline.sql.arguments import END, FIRST, INTERVAL_ARGUMENT, LAST, START, SYMBOL_FOLDER
from market_data_pipeline.sql.file_lists import NAMED, Files, StoredSeries, as_pattern, quoted, read_parquet

_DAY = "INTERVAL 1 DAY"
_BEFORE = "INTERVAL 1 MICROSECOND"

_NAMED_SYMBOLS = 10
"""Number of stored symbols that an error names."""

_EIGHT_DECIMALS = 100_000_000
"""Binance writes prices and quantities with at most eight decimals, so a step is 0.00000001."""

_CONTRACT_DOLLARS = """CASE WHEN starts_with("symbol", 'BTCUSD_') THEN 100 ELSE 10 END"""
"""SQL for the value of a coin-margined contract in US dollars. Binance never had others."""

Columns = Mapping[str, str]
"""Columns of a result: their SQL by name."""


def bar_macros(
    stored: StoredSeries, market: Market, place: str, candles: Callable[[Files, str], str], *, marked: bool
) -> dict[str, Callable[[], str]]:
    """Return the macros of a market by name, each as a function that returns the SQL that creates it.

    Args:
        stored: Stored series of the lake.
        market: The market. Its schema must exist.
        place: Condition that is true if the catalog is in its place; empty if there is none.
        candles: Returns the query of the macro ``candles`` over the files of klines.
        marked: Read the marks of :func:`marks_of`. They must exist.
    """
    trades = Files(stored, market, DataType.AGG_TRADES, marked)
    made: dict[str, Callable[[], str]] = {
        "time_bars": partial(_time_bars, trades, place),
        **{event.macro: partial(_event_bars, trades, place, event) for event in _EVENTS},
        "footprint": partial(_footprint, trades, place),
        "vwap": partial(_vwap, trades, place),
        "cumulative_delta": partial(_cumulative_delta, trades, place),
        "profile": partial(_profile, trades, place),
    }
    if DataType.FUNDING_RATE in data_types_of(market):
        funding = Files(stored, market, DataType.FUNDING_RATE, marked)
        klines = Files(stored, market, DataType.KLINES, marked)
        made["perp_returns"] = lambda: _perp_returns(funding, place, candles(klines, place))
    return {name: partial(_created, market, macro) for name, macro in made.items()}


def _created(market: Market, macro: Callable[[], str]) -> str:
    return f"CREATE OR REPLACE MACRO {EXCHANGE}_{market}.{macro()}"


# --- trades -----------------------------------------------------------------------------------------------------------


def _fills(files: Files, place: str, start: str, end: str, wrong: str) -> str:
    """Return a query for the aggTrades of a symbol from ``start`` to ``end``, which are SQL.

    Rows that are no trades (first = last = -1) have an ``id`` and NULL: they count as present.

    Args:
        files: The files of aggTrades.
        place: Condition that is true if the catalog is in its place; empty if there is none.
        start: SQL for the first moment.
        end: SQL for the first moment after the range.
        wrong: SQL for a message about the arguments; NULL if nothing is wrong with them.
    """
    listed, conditions = _listed(files, start, end, wrong, place)
    real = "r.first_trade_id >= 0 AND r.price > 0"
    value = f"r.quantity * {_CONTRACT_DOLLARS} / r.price" if _inverse(files) else "r.price * r.quantity"
    columns: Columns = {
        "id": "r.agg_trade_id",
        "at": "r.transact_time",
        "sold": "r.is_buyer_maker",
        "p": f"CASE WHEN {real} THEN r.price END",
        "q": f"CASE WHEN {real} THEN r.quantity END",
        "v": f"CASE WHEN {real} THEN {value} END",
        "fills": f"CASE WHEN {real} THEN r.last_trade_id - r.first_trade_id + 1 END",
    }
    times = (f"r.transact_time >= {start}", f"r.transact_time < {end}")
    return f"SELECT {_select(columns)} FROM {listed} AS r WHERE {' AND '.join((*conditions, *times))}"


def _listed(files: Files, start: str, end: str, wrong: str, place: str) -> tuple[str, list[str]]:
    """Return SQL for the rows of a symbol's files, and the conditions that skip files outside a range.

    The list of files is evaluated when a query is bound, so a wrong argument is an error even if no file is read.
    """
    problem = f"coalesce({_not_stored(files)}, {wrong})"
    paths, condition = files.of_composed(SYMBOL_FOLDER, start, f"({end} - {_BEFORE})")
    # The error of NULL is NULL.
    return read_parquet(f"coalesce(error({problem}), {paths})", NAMED), [condition, *filter(None, [place])]


def _macro(head: str, query: str, files: Files) -> str:
    """Return a table macro that refuses a range that ends before it begins, and every symbol if none is stored.

    DuckDB evaluates the second part when it plans a query, and leaves it out. It evaluates the argument of ``query``
    when it binds one. A refusal alone is short, and DuckDB takes 10 ms to parse a whole macro.
    """
    if not files.keys:
        return f"{head} AS TABLE FROM query(error({_not_stored(files)}))"
    wrong = "CASE WHEN x > y THEN error(concat('The range begins at ', x, ' and ends before that, at ', y, '.')) END"
    return f"""{head} AS TABLE
        SELECT * FROM ({query}) UNION ALL BY NAME SELECT CAST(NULL AS VARCHAR) AS symbol
        FROM (SELECT {START} AS x, {END} AS y) WHERE {wrong} IS NOT NULL"""


def _not_stored(files: Files) -> str:
    """Return SQL for the message about a symbol without files; NULL if it has some."""
    symbols = [key.symbol for key in files.keys]
    more = f" and {len(symbols) - _NAMED_SYMBOLS} more" if len(symbols) > _NAMED_SYMBOLS else ""
    named = quoted(f"{', '.join(symbols[:_NAMED_SYMBOLS]) or 'none'}{more}")
    return f"""CASE WHEN coalesce({files.knows(SYMBOL_FOLDER)}, false) THEN NULL ELSE concat(
        coalesce("symbol", 'NULL'), ' has no stored {files.data_type} in {files.market}. Stored: ', {named}, '.') END"""


def _inverse(files: Files) -> bool:
    return MARKETS[files.market].inverse


def _select(columns: Columns) -> str:
    return ", ".join(f'{sql} AS "{name}"' for name, sql in columns.items())


def _no_interval(argument: str = INTERVAL_ARGUMENT) -> str:
    """Return SQL for the message about text that is no interval; NULL if it is one."""
    return f"""CASE WHEN coalesce(regexp_full_match({argument}, {quoted(intervals.FORM)}), false) THEN NULL ELSE concat(
        'There is no interval ', coalesce({argument}, 'NULL'), '. {intervals.HOW_TO_WRITE}') END"""


def _not_positive(argument: str, name: str) -> str:
    """Return SQL for the message about a number that is not a finite one of at least 0.00000001; NULL if it is."""
    return f"""CASE WHEN coalesce(CAST({argument} AS DOUBLE) BETWEEN 1e-8 AND 1e20, false) THEN NULL ELSE concat(
        '{name} is ', coalesce(CAST({argument} AS VARCHAR), 'NULL'), '. It must be at least 0.00000001.') END"""


def _steps(number: str) -> str:
    """Return SQL for a number of eight decimals as a whole number of steps. Sums of these are exact."""
    return f"CAST(round({number} * {_EIGHT_DECIMALS}) AS HUGEINT)"


# --- from trades to bars ----------------------------------------------------------------------------------------------


def _sums(files: Files) -> Columns:
    """Return the aggregates that each kind of bar has, by the names of klines."""
    value = "base" if _inverse(files) else "quote"
    total = "round(coalesce(fsum({0}){1}, 0), 8)".format
    bought = " FILTER (NOT f.sold)"
    return {
        "open": "arg_min(f.p, f.id)",
        "high": "max(f.p)",
        "low": "min(f.p)",
        "close": "arg_max(f.p, f.id)",
        "volume": total("f.q", ""),
        f"{value}_volume": total("f.v", ""),
        "count": "CAST(coalesce(sum(f.fills), 0) AS BIGINT)",
        "taker_buy_volume": total("f.q", bought),
        f"taker_buy_{value}_volume": total("f.v", bought),
        "agg_trades": "count(f.p)",
    }


_EXTENT: Columns = {
    "rows": "count(*)",
    "first_id": "min(f.id)",
    "last_id": "max(f.id)",
    "first_at": "min(f.at)",
    "last_at": "max(f.at)",
}
"""Aggregates that show if ids are missing. Ids of aggTrades have no holes."""

_MISSING = ("missing", "complete")


def _checked(parts: str, begun: str, ended: str, reached: str, last_day: str) -> str:
    """Return a query that adds ``missing`` and ``complete`` to bars, from the ids of their trades.

    ``missing`` counts the ids between the end of the bar before and the end of this one. If a whole day without trades
    is between two bars, the missing ids are of such days. Otherwise they can be of either bar, and neither is complete.

    Args:
        parts: Name of a table with one row per bar and the columns of ``_EXTENT``.
        begun: SQL for the moment from which a bar has trades, over ``p``.
        ended: SQL for the moment until which it has trades.
        reached: SQL that is true for a bar that is over.
        last_day: SQL for the moment until which the trades of the last bar's day are stored, over ``p`` and ``l``.
    """
    first_midnight, last_midnight = "date_trunc('day', p.first_at)", f"date_trunc('day', p.last_at) + {_DAY}"
    days_between = f"date_trunc('day', {{}}) > date_trunc('day', {{}}) + {_DAY}".format
    return f"""
        SELECT p.* EXCLUDE (id_before, at_before, id_after, at_after),
            greatest(0, p.last_id - coalesce(p.id_before, p.first_id - 1) - p.rows) AS missing,
            {reached} AND p.last_id - p.first_id < p.rows AND NOT CASE
                WHEN p.id_before IS NULL THEN {first_midnight} > {begun}
                WHEN p.first_id <= p.id_before + 1 THEN false
                WHEN {days_between("p.first_at", "p.at_before")} THEN {first_midnight} > {begun}
                ELSE true END AND NOT CASE
                WHEN p.id_after IS NULL THEN {last_day} < {ended}
                WHEN p.id_after <= p.last_id + 1 THEN false
                WHEN {days_between("p.at_after", "p.last_at")} THEN {last_midnight} < {ended}
                ELSE true END AS complete
        FROM (
            SELECT *, lag(o.last_id) OVER w AS id_before, lag(o.last_at) OVER w AS at_before,
                lead(o.first_id) OVER w AS id_after, lead(o.first_at) OVER w AS at_after
            FROM {parts} AS o WINDOW w AS (ORDER BY o.first_id)
        ) AS p {_LEDGER_JOIN if "l." in last_day else ""}"""


_LEDGER_JOIN = "LEFT JOIN recorded AS l ON l.on_day = CAST(p.last_at AS DATE)"
_STORED_UNTIL = f"""coalesce(CASE WHEN l.is_final THEN date_trunc('day', p.last_at) + {_DAY}
    ELSE least(date_trunc('day', p.last_at) + {_DAY}, l.fetched) END, p.last_at)"""


def _recorded(files: Files) -> str:
    """Return a query for the ledger of a symbol: its days, if they are final, and when they were fetched."""
    example = SeriesKey(EXCHANGE, files.market, files.data_type, "-")
    folder = Layout(files.stored.layout.root).ledger(example).parent
    if not any(storage.list_paths(folder, "*.parquet")):
        return "SELECT CAST(NULL AS DATE) AS on_day, NULL AS is_final, CAST(NULL AS TIMESTAMP) AS fetched WHERE false"
    return f"""SELECT r."day" AS on_day, r."final" AS is_final, r.fetched_at AS fetched
        FROM {read_parquet(quoted(f"{as_pattern(folder)}/*.parquet"), NAMED)} AS r
        WHERE parse_filename(filename, true) = "symbol" """


_BEGUN, _ENDED = (
    f"greatest(least({intervals.first_begin(INTERVAL_ARGUMENT, intervals.UTC_ZONE, moment)}, {LAST}), {FIRST})"
    for moment in (START, f"greatest({END}, {FIRST})")
)
_NEXT = intervals.end_of(INTERVAL_ARGUMENT, "p.begun")
_CHECKED = _checked("parts", "p.begun", _NEXT, "true", _STORED_UNTIL)
_CLOSED = f"{intervals.end_of(INTERVAL_ARGUMENT, 'p.begun')} - {_BEFORE}"


def _by_interval(files: Files, place: str, sums: Columns) -> str:
    """Return the common tables ``parts``, ``recorded`` and ``checked``: one row per interval that has trades."""
    fills = _fills(files, place, _BEGUN, _ENDED, _no_interval())
    return f"""
        WITH parts AS (
            SELECT {intervals.begin_of(INTERVAL_ARGUMENT, "f.at")} AS begun, {_select({**_EXTENT, **sums})}
            FROM ({fills}) AS f GROUP BY begun
        ), recorded AS ({_recorded(files)}), checked AS ({_CHECKED})"""


def _of_interval(columns: Iterable[str] | Columns) -> str:
    """Return the columns of a row per interval, with the given ones in the middle."""
    own = columns if isinstance(columns, Mapping) else {name: f'p."{name}"' for name in columns}
    return _select(
        {
            "symbol": '"symbol"',
            "interval": INTERVAL_ARGUMENT,
            "open_time": "p.begun",
            "close_time": _CLOSED,
            **own,
            **{name: f"p.{name}" for name in _MISSING},
        }
    )


def _time_bars(files: Files, place: str) -> str:
    """Return a macro for candles of any interval, made of aggTrades."""
    sums = _sums(files)
    query = f"""{_by_interval(files, place, sums)}
        SELECT {_of_interval(tuple(sums))} FROM checked AS p WHERE p.agg_trades > 0 ORDER BY p.begun"""
    return _macro("time_bars(symbol, interval, a, b := NULL)", query, files)


def _vwap_of(files: Files) -> str:
    """Return an aggregate. A VWAP is between low and high, but the last digit of a quotient may miss that."""
    quotient = "fsum(f.q) / fsum(f.q / f.p)" if _inverse(files) else "fsum(f.v) / fsum(f.q)"
    return f"least(max(f.p), greatest(min(f.p), {quotient}))"


def _vwap(files: Files, place: str) -> str:
    """Return a macro for the volume-weighted average price of each interval."""
    volumes = {name: sql for name, sql in _sums(files).items() if name in ("volume", "quote_volume", "base_volume")}
    sums = {"vwap": _vwap_of(files), **volumes, "agg_trades": "count(f.p)"}
    query = f"""{_by_interval(files, place, sums)}
        SELECT {_of_interval(tuple(sums))} FROM checked AS p WHERE p.agg_trades > 0 ORDER BY p.begun"""
    return _macro("vwap(symbol, interval, a, b := NULL)", query, files)


_SIDES: Columns = {
    "buy_volume": "round(coalesce(fsum(f.q) FILTER (NOT f.sold), 0), 8)",
    "sell_volume": "round(coalesce(fsum(f.q) FILTER (f.sold), 0), 8)",
}


def _cumulative_delta(files: Files, place: str) -> str:
    """Return a macro for the volume bought minus sold, and its sum since the last bar with missing trades."""
    sums = {**_SIDES, "agg_trades": "count(f.p)"}
    columns: Columns = {
        **{name: f"p.{name}" for name in _SIDES},
        "delta": "p.delta",
        "cumulative_delta": "round(fsum(p.delta) OVER (PARTITION BY p.run ORDER BY p.begun), 8)",
    }
    query = f"""{_by_interval(files, place, sums)}
        SELECT {_of_interval(columns)} FROM (
            SELECT *, round(j.buy_volume - j.sell_volume, 8) AS delta,
                count(*) FILTER (j.missing > 0) OVER (ORDER BY j.begun) AS run FROM checked AS j
        ) AS p WHERE p.agg_trades > 0 ORDER BY p.begun"""
    return _macro("cumulative_delta(symbol, interval, a, b := NULL)", query, files)


def _footprint(files: Files, place: str) -> str:
    """Return a macro with one row per interval and price level."""
    wrong = f"coalesce({_no_interval()}, {_not_positive('price_step', 'price_step')})"
    fills = _fills(files, place, _BEGUN, _ENDED, wrong)
    # Levels use whole numbers: 0.29 / 0.01 is 28.999… in floating point.
    step = _steps("CAST(price_step AS DOUBLE)")
    level = f"{_steps('f.p')} // {step}"
    count = "CAST(coalesce(sum(f.fills){0}, 0) AS BIGINT)".format
    sums: Columns = {
        **_SIDES,
        "buy_trades": count(" FILTER (NOT f.sold)"),
        "sell_trades": count(" FILTER (f.sold)"),
    }
    columns: Columns = {
        "price": "p.price",
        "buy_volume": "p.buy_volume",
        "sell_volume": "p.sell_volume",
        "delta": "round(p.buy_volume - p.sell_volume, 8)",
        "buy_trades": "p.buy_trades",
        "sell_trades": "p.sell_trades",
    }
    whole: Columns = {
        "rows": "CAST(sum(s.rows) AS BIGINT)",
        "first_id": "min(s.first_id)",
        "last_id": "max(s.last_id)",
        "first_at": "min(s.first_at)",
        "last_at": "max(s.last_at)",
    }
    query = f"""        WITH levels AS MATERIALIZED (
            SELECT {intervals.begin_of(INTERVAL_ARGUMENT, "f.at")} AS begun, {level} AS level,
                {_select({**_EXTENT, **sums})}
            FROM ({fills}) AS f GROUP BY begun, level
        ), parts AS (
            SELECT s.begun, {_select(whole)} FROM levels AS s GROUP BY s.begun
        ), recorded AS ({_recorded(files)}), checked AS ({_CHECKED})
        SELECT {_of_interval(columns)} FROM (
            SELECT s.* EXCLUDE (rows, first_id, last_id, first_at, last_at), j.missing, j.complete,
                CAST(s.level * {step} AS DOUBLE) / {_EIGHT_DECIMALS} AS price
            FROM levels AS s JOIN checked AS j ON j.begun = s.begun WHERE s.level IS NOT NULL
        ) AS p ORDER BY p.begun, p.level"""
    return _macro("footprint(symbol, interval, price_step, a, b := NULL)", query, files)


LEVEL_BY_PRICE = "pow(10, floor(log10(vwap * 1e-4)))"
"""SQL for the height of price levels: the largest power of ten that is at most 0.01 % of ``vwap``."""


def _profile(files: Files, place: str) -> str:
    """Return a macro with the columns of tradeProfile for each interval. It reads the trades twice."""
    sums: Columns = {
        "vwap": _vwap_of(files),
        "high": "max(f.p)",
        "low": "min(f.p)",
        "volume": "round(coalesce(fsum(f.q), 0), 8)",
        **_SIDES,
        "trades": "CAST(coalesce(sum(f.fills), 0) AS BIGINT)",
        "agg_trades": "count(f.p)",
    }
    columns: Columns = {
        **{name: f"p.{name}" for name in ("vwap", "high", "low")},
        "point_of_control": f"CAST(c.level * p.level_steps AS DOUBLE) / {_EIGHT_DECIMALS}",
        "point_of_control_volume": "c.level_volume",
        "level_size": f"CAST(p.level_steps AS DOUBLE) / {_EIGHT_DECIMALS}",
        **{name: f"p.{name}" for name in ("volume", *_SIDES)},
        "cumulative_delta": "round(p.buy_volume - p.sell_volume, 8)",
        **{name: f"p.{name}" for name in ("trades", "agg_trades")},
    }
    fills = _fills(files, place, _BEGUN, _ENDED, _no_interval())
    query = f"""{_by_interval(files, place, sums)}, sized AS (
            SELECT j.*, greatest(1, {_steps(LEVEL_BY_PRICE.replace("vwap", "j.vwap"))}) AS level_steps
            FROM checked AS j WHERE j.agg_trades > 0
        ), levels AS (
            SELECT s.begun, {_steps("f.p")} // s.level_steps AS level, round(fsum(f.q), 8) AS level_volume
            FROM ({fills}) AS f JOIN sized AS s ON s.begun = {intervals.begin_of(INTERVAL_ARGUMENT, "f.at")}
            WHERE f.p IS NOT NULL GROUP BY s.begun, level
        ), controls AS (
            SELECT v.* FROM levels AS v
            QUALIFY row_number() OVER (PARTITION BY v.begun ORDER BY v.level_volume DESC, v.level) = 1
        )
        SELECT {_of_interval(columns)} FROM sized AS p JOIN controls AS c ON c.begun = p.begun ORDER BY p.begun"""
    return _macro("profile(symbol, interval, a, b := NULL)", query, files)


@dataclass(frozen=True)
class _Event:
    """A kind of bar that closes on a trade.

    Attributes:
        macro: Name of the macro.
        argument: Name of its threshold.
        weight: SQL for the weight of a trade in whole steps, over ``f``. A row that is no trade has NULL.
        weight_inverse: The same for coin-margined futures.
        step: Number of steps in a unit of the threshold.
    """

    macro: str
    argument: str
    weight: str
    weight_inverse: str
    step: int


_EVENTS = (
    _Event("tick_bars", "n", "CAST(f.fills AS HUGEINT)", "CAST(f.fills AS HUGEINT)", 1),
    _Event("volume_bars", "quantity", _steps("f.q"), _steps("f.q"), _EIGHT_DECIMALS),
    # The product of two whole numbers is exact, with sixteen decimals. A contract is worth a fixed amount of dollars.
    _Event(
        "dollar_bars",
        "quote",
        f"{_steps('f.p')} * {_steps('f.q')}",
        f"{_steps('f.q')} * {_CONTRACT_DOLLARS} * {_EIGHT_DECIMALS}",
        _EIGHT_DECIMALS**2,
    ),
)


def _event_bars(files: Files, place: str, event: _Event) -> str:
    """Return a macro for bars that close on the trade with which the sum of the day reaches a multiple of a threshold.

    The sum begins at 0 with each UTC day. So bars do not depend on the range, do not span a missing day, and need the
    trades of one day in order, not those of the range.
    """
    argument = f'"{event.argument}"'
    if event.step == 1:
        wrong = f"""CASE WHEN coalesce(TRY_CAST({argument} AS BIGINT) >= 1
            AND TRY_CAST({argument} AS BIGINT) = CAST({argument} AS DOUBLE), false) THEN NULL ELSE concat(
            '{event.argument} is ', coalesce(CAST({argument} AS VARCHAR), 'NULL'),
            '. It must be a whole number of at least 1.') END"""
        threshold = f"CAST({argument} AS HUGEINT)"
    else:
        wrong = _not_positive(argument, event.argument)
        threshold = f"{_steps(f'CAST({argument} AS DOUBLE)')} * CAST({event.step // _EIGHT_DECIMALS} AS HUGEINT)"
    start, end = (
        f"date_trunc('day', {START})",
        f"least(date_trunc('day', {END} - {_BEFORE}) + {_DAY}, {LAST})",
    )
    fills = _fills(files, place, start, end, wrong)
    weight = event.weight_inverse if _inverse(files) else event.weight
    sums = _sums(files)
    columns: Columns = {
        "symbol": '"symbol"',
        "day": "CAST(p.on_day AS DATE)",
        "bar": "CAST(p.bar + 1 AS BIGINT)",
        "open_time": "p.opened",
        "close_time": "p.closed",
        **{name: f'p."{name}"' for name in sums},
        "first_agg_trade_id": "p.first_trade",
        "last_agg_trade_id": "p.last_trade",
        **{name: f"p.{name}" for name in _MISSING},
    }
    own: Columns = {
        "total": "max(f.total)",
        "opened": "min(f.at) FILTER (f.p IS NOT NULL)",
        "closed": "max(f.at) FILTER (f.p IS NOT NULL)",
        "first_trade": "min(f.id) FILTER (f.p IS NOT NULL)",
        "last_trade": "max(f.id) FILTER (f.p IS NOT NULL)",
    }
    is_over = f"p.total >= (p.bar + 1) * {threshold}"
    query = f"""        WITH weighed AS (
            SELECT f.*, date_trunc('day', f.at) AS on_day, coalesce({weight}, 0) AS w FROM ({fills}) AS f
        ), summed AS (
            SELECT f.*, sum(f.w) OVER (PARTITION BY f.on_day ORDER BY f.id ROWS UNBOUNDED PRECEDING) AS total
            FROM weighed AS f
        ), parts AS (
            SELECT f.on_day, (f.total - f.w) // ({threshold}) AS bar, {_select({**_EXTENT, **sums, **own})}
            FROM summed AS f GROUP BY f.on_day, bar
        ), checked AS ({_checked("parts", "p.on_day", f"p.on_day + {_DAY}", is_over, f"p.on_day + {_DAY}")})
        SELECT {_select(columns)} FROM checked AS p
        WHERE p.agg_trades > 0 AND p.opened >= {START} AND p.opened < {END} ORDER BY p.first_id"""
    return _macro(f"{event.macro}(symbol, {event.argument}, a, b := NULL)", query, files)


# --- returns of perpetual futures -------------------------------------------------------------------------------------


def _perp_returns(files: Files, place: str, candles: str) -> str:
    """Return a macro for the return of a long position in each candle: of the price, of funding, and both.

    A payment shows that none was due since its interval began, and that none is due until it ends. Outside these
    times, funding is unknown.

    Args:
        files: The files of funding rates.
        place: Condition that is true if the catalog is in its place; empty if there is none.
        candles: Query for the candles, with the arguments of this macro.
    """
    margin = "INTERVAL 2 DAYS"
    start, end = f"greatest({START} - {margin}, {FIRST})", f"least({END}, {LAST} - INTERVAL 400 DAYS)"
    width = intervals.end_of(INTERVAL_ARGUMENT, "TIMESTAMP '2000-01-01'")
    until = f"{end} + ({width} - TIMESTAMP '2000-01-01') + {margin}"
    listed, conditions = _listed(files, start, f"({until})", _no_interval(), place)
    change = "1 - p.close_before / p.close" if _inverse(files) else "p.close / p.close_before - 1"
    columns: Columns = {
        "symbol": '"symbol"',
        "interval": INTERVAL_ARGUMENT,
        "open_time": "p.open_time",
        "close_time": "p.close_time",
        "close": "p.close",
        "price_return": "p.price_return",
        "payments": "p.payments",
        "funding": "p.funding",
        "total_return": "p.price_return - p.funding",
        "complete": "p.complete AND p.price_return IS NOT NULL AND p.funding IS NOT NULL",
    }
    query = f"""        WITH candle AS (SELECT * FROM ({candles}) AS c), paid AS (
            SELECT r.calc_time AS at, date_trunc('hour', r.calc_time) AS due, r.last_funding_rate AS rate,
                to_hours(CAST(r.funding_interval_hours AS INTEGER)) AS every
            FROM {listed} AS r WHERE {" AND ".join(conditions)}
        ), unknown AS (
            SELECT coalesce(lag(f.due + f.every) OVER (ORDER BY f.at), {FIRST}) AS since, f.due - f.every AS up_to
            FROM paid AS f
            UNION ALL SELECT coalesce(max(f.due + f.every), {FIRST}), {LAST} FROM paid AS f
        ), charged AS (
            SELECT c.open_time AS begun, count(*) AS payments, fsum(f.rate) AS rate
            FROM candle AS c JOIN paid AS f ON f.at >= c.open_time AND f.at <= c.close_time GROUP BY begun
        ), doubtful AS (
            SELECT DISTINCT c.open_time AS begun FROM candle AS c
            JOIN unknown AS u ON u.since <= c.close_time AND u.up_to >= c.open_time WHERE u.since <= u.up_to
        )
        SELECT {_select(columns)} FROM (
            SELECT p.*, {change} AS price_return FROM (
                SELECT c.open_time, c.close_time, c.close, c.complete,
                    CASE WHEN lag(c.close_time) OVER w + INTERVAL 2 MILLISECONDS > c.open_time
                        THEN lag(c.close) OVER w END AS close_before,
                    CASE WHEN d.begun IS NULL THEN coalesce(h.payments, 0) END AS payments,
                    CASE WHEN d.begun IS NULL THEN coalesce(h.rate, 0) END AS funding
                FROM candle AS c LEFT JOIN charged AS h ON h.begun = c.open_time
                LEFT JOIN doubtful AS d ON d.begun = c.open_time WINDOW w AS (ORDER BY c.open_time)
            ) AS p
        ) AS p ORDER BY p.open_time"""
    return _macro("perp_returns(symbol, interval, a, b := NULL, tz := NULL)", query, files)
