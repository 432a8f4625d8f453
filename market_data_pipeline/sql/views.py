# ruff: noqa: S608 - the SQL has only the project's own column names, and quoted paths and symbols.
"""Views and macros over the lake, as SQL text. The catalog has no data and can be deleted at any time.

The SQL must run on DuckDB 1.4 as well. Its times are TIMESTAMP in UTC without zone.
File lists belong to ``sql/file_lists.py``, the catalog's file to ``sql/publish.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from market_data_pipeline import clock
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.day_records import SERIES_LABELS
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import folder_of
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.datasets import data_types_of, keyed_by_time
from market_data_pipeline.model.day import HELD
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.places import is_object
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, intervals_of
from market_data_pipeline.model.states import CONDITION_RULES, EXPLAINED, RULES, DayState
from market_data_pipeline.sql import bars, intervals
from market_data_pipeline.sql.arguments import BEFORE_END as _BEFORE_END
from market_data_pipeline.sql.arguments import END as _END
from market_data_pipeline.sql.arguments import FIRST as _FIRST
from market_data_pipeline.sql.arguments import INTERVAL_ARGUMENT as _INTERVAL
from market_data_pipeline.sql.arguments import LAST as _LAST
from market_data_pipeline.sql.arguments import START as _START
from market_data_pipeline.sql.arguments import SYMBOL_FOLDER as _SYMBOL_FOLDER
from market_data_pipeline.sql.file_lists import (
    NAMED,
    WHAT_TO_DO,
    Files,
    StoredSeries,
    as_pattern,
    empty,
    has_ledgers,
    mark_of_ledgers,
    quoted,
    read_parquet,
    select_list,
)
from market_data_pipeline.sql.universe_views import of_universe

STATE_SQL = " ".join(("CASE", *(f"WHEN {rule.sql()} THEN '{rule.state}'" for rule in RULES), "END"))
""":func:`state_of` as an SQL expression over the columns ``outcome``, ``final``, ``verdicts`` and ``integrity``."""


class Definition(NamedTuple):
    """A view or macro. ``sql`` returns the statement that creates it. Its schema must exist."""

    schema: str
    name: str
    sql: Callable[[], str]


def statements(
    stored: StoredSeries, corrections: str = "", *, marked: bool = True, published: bool = False
) -> list[str]:
    """Return the SQL that creates every schema, view and macro over a lake.

    The text changes when a series gets its first file or a month is closed, but not when a series gets more files. So
    it shows if a catalog is up to date. The arguments are those of :func:`definitions`.
    """
    made = list(definitions(stored, corrections, marked=marked, published=published))
    schemas = [create_schema(schema) for schema in dict.fromkeys(one.schema for one in made)]
    is_of_folder = published and not is_object(stored.layout.root)
    sequence = [f"CREATE SEQUENCE quality.{_identifier(stored.layout.root)}"] if is_of_folder else []
    return [*schemas, *(one.sql() for one in made), *sequence]


def create_schema(schema: str) -> str:
    """Return the SQL that creates a schema."""
    return f"CREATE SCHEMA IF NOT EXISTS {schema}"


def definitions(
    stored: StoredSeries, corrections: str = "", *, marked: bool = True, published: bool = False
) -> Iterator[Definition]:
    """Yield every view and macro over a lake. None needs another one.

    Args:
        stored: Stored series of the lake.
        corrections: Name of a table that replaces the ledgers of its series (``lake.day_records.CORRECTED``). Empty
            means that the quality views read only the ledgers.
        marked: Read the marks of :func:`marks_of`. They must exist.
        published: Write SQL for the catalog in the data folder, which users may copy and move.
    """
    layout = stored.layout
    place = _in_its_place(layout) if published and not is_object(layout.root) else ""
    for market in Market:
        schema = f"{EXCHANGE}_{market}"
        for data_type in data_types_of(market):
            yield Definition(
                schema, data_type.sql_name, partial(_create_view, stored, market, data_type, marked, place)
            )
            if data_type in _MACROS:
                yield Definition(
                    schema, _MACROS[data_type].name, partial(_create_macro, stored, market, data_type, marked, place)
                )
        if DataType.AGG_TRADES in data_types_of(market):
            macros = bars.bar_macros(stored, market, place, _candle_query, marked=marked)
            for name, create in macros.items():
                yield Definition(schema, name, create)
    for name, query in _quality(layout, corrections, marked=marked, published=published).items():
        yield Definition("quality", name, partial(f"CREATE OR REPLACE VIEW quality.{name} AS {{}}".format, query))
    for name, sql in of_universe(layout, place).items():
        yield Definition("universe", name, partial(str, sql))


def _create_view(stored: StoredSeries, market: Market, data_type: DataType, marked: bool, place: str) -> str:
    files = Files(stored, market, data_type, marked)
    return f"CREATE OR REPLACE VIEW {EXCHANGE}_{market}.{data_type.sql_name} AS {_view(files, place)}"


def _create_macro(stored: StoredSeries, market: Market, data_type: DataType, marked: bool, place: str) -> str:
    files = Files(stored, market, data_type, marked)
    return f"CREATE OR REPLACE MACRO {EXCHANGE}_{market}.{_MACROS[data_type].sql(files, place)}"


def _quality(layout: Layout, corrections: str, *, marked: bool, published: bool) -> dict[str, str]:
    """Return the queries of the views in ``quality``, by name."""
    place = _in_its_place(layout) if published and not is_object(layout.root) else ""
    known = has_ledgers(layout)

    def days(*columns: str) -> str:
        """Return a query for columns of the ledgers. DuckDB takes 2 ms to parse all of them."""
        found = _ledger_days(layout, columns, marked=marked) if known else _no_ledger_days((*_LEDGER_LABELS, *columns))
        if corrections:
            found = (
                f"SELECT * FROM ({found}) WHERE concat_ws('/', {_named(_LEDGER_LABELS)}) NOT IN (SELECT series FROM "
                f"{corrections}) UNION ALL SELECT {_named((*_LEDGER_LABELS, *columns))} FROM {corrections}"
            )
        return _where(found, place)

    with_rows = f"SELECT * FROM ({days('day', 'outcome', 'content_sha256')}) WHERE outcome = {quoted(HELD)}"
    timed = f"(data_type IN ({', '.join(quoted(one) for one in DataType if keyed_by_time(one))}))"
    verdicts, explained = (", ".join(map(quoted, sorted(some))) for some in (Verdict, EXPLAINED))
    compared = _where(_reconciled_days(layout), place)
    return {
        "coverage": _coverage(days(*(name for name in _COVERAGE if name != "state"))),
        "findings": _FINDINGS.format(days=days("day", "findings"), timed=timed),
        "gaps": _GAPS.format(days=days("day", "findings"), verdicts=verdicts, explained=explained, timed=timed),
        "condition": _condition(layout, days("day", *_CONDITION_COLUMNS), published=published),
        "reconciliation": _RECONCILIATION.format(days=compared, rows=with_rows),
        "reconciliation_differences": _RECONCILIATION_DIFFERENCES.format(days=compared),
    }


def _in_its_place(layout: Layout) -> str:
    """Return SQL that is true, or raises an error if its catalog is not in the lake's folder.

    The SQL of a catalog has absolute paths, so a copy would read the original's files. No function returns the catalog
    of a view. So each catalog has a sequence that is named after its folder, and all open catalogs with this sequence
    must be in that folder.
    """
    root = str(layout.root)
    places = ", ".join(quoted(place) for place in dict.fromkeys((root, str(storage.real(layout.root)))))
    message = quoted(
        f"This catalog is of {root}, but is opened from elsewhere. If the data was copied or moved, run `market-data "
        f"status` with MARKET_DATA_DIR set to its folder and open the catalog again. If not, open {layout.catalog}."
    )
    return f"""(
        SELECT CASE WHEN bool_and(parse_dirpath(d.path) IN ({places})) THEN true ELSE error({message}) END
        FROM duckdb_sequences() AS s JOIN duckdb_databases() AS d USING (database_oid)
        WHERE s.sequence_name = {quoted(root)})"""


def _where(query: str, condition: str) -> str:
    return f"SELECT * FROM ({query}) WHERE {condition}" if condition else query


def _identifier(name: str | Path) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def newest_mark(layout: Layout, market: Market, data_type: DataType) -> Path | None:
    """Return a mark that is removed before the current days' files are; None if there is no mark.

    A lazy relation reads it first. DuckDB's error then shows the mark's name instead of the name of a removed day.
    """
    found = {
        mark: modified_ns
        for mark in storage.list_paths(folder_of(layout, market, data_type) / "marks", f"{WHAT_TO_DO}-*.parquet")
        if (modified_ns := storage.modified_ns(mark)) is not None
    }
    return max(found, key=found.__getitem__, default=None)


def _view(files: Files, place: str) -> str:
    """Return the query of a view. Its labels come from the paths, so that a condition on them skips files unopened."""
    if not files.keys:
        return empty(files.market, files.data_type)
    listed, condition = files.of_all()
    return f"""
        SELECT {select_list(files.data_type, lake_schema(files.market, files.data_type).names)}
        FROM {read_parquet(listed, NAMED)}
        WHERE {" AND ".join(filter(None, (condition, place)))}"""


def _trades(files: Files, place: str) -> str:
    """Return a table macro for one series from ``a`` (inclusive) to ``b`` (exclusive); NULL means no bound.

    The macro lists the folders of one series, and skips files outside the range by name. It knows the series that had
    files when the catalog was built. For any other series it lists every folder. This is slower but correct, and the
    result is empty if the series does not exist.
    """
    head = "trades(symbol, a, b := NULL) AS TABLE"
    if not files.keys:
        return f"{head} {empty(files.market, files.data_type)}"
    listed, condition = files.of_series(_SYMBOL_FOLDER, _START, _BEFORE_END)
    return f"{head} {_of_macro(files, listed, (condition, *_in_range('transact_time', _START, _END), place))}"


def _candles(files: Files, place: str) -> str:
    """Return the same macro for candles. A series that is not known is composed from one that divides it."""
    return f"candles(symbol, interval, a, b := NULL, tz := NULL) AS TABLE {_candle_query(files, place)}"


def _candle_query(files: Files, place: str) -> str:
    """Return the query of the macro ``candles``.

    Days, weeks and months begin in the zone ``tz``. DuckDB chooses the query when it binds the macro, and from 1.5 on
    it binds only that one. This matters because binding the composition takes longer than reading a day.
    """
    names = lake_schema(files.market, files.data_type).names
    if not files.keys:
        parts = "CAST(NULL AS BIGINT) AS parts, CAST(NULL AS BOOLEAN) AS complete"
        return f"SELECT *, {parts} FROM ({empty(files.market, files.data_type)})"
    series = f"""concat({_SYMBOL_FOLDER}, "interval", '/')"""
    zone = "coalesce(tz, 'UTC')"
    known = f"({files.knows(series)} AND {zone} = 'UTC')"
    is_known = files.knows(f"concat({_SYMBOL_FOLDER}, one, '/')")
    largest = f"({intervals.divisors(_INTERVAL, zone, is_known)})[1]"

    listed, condition = files.of_series(series, _START, _BEFORE_END)
    conditions = (condition, *_in_range("open_time", _START, _END), place)
    stored = _of_macro(files, listed, conditions, ", CAST(1 AS BIGINT) AS parts, true AS complete")

    start, end = (
        f"greatest(least({intervals.first_begin(_INTERVAL, zone, moment)}, {_LAST}), {_FIRST})"
        for moment in (_START, f"greatest({_END}, {_FIRST})")
    )
    listed, condition = files.of_composed(
        f"{_SYMBOL_FOLDER} || {largest} || '/'", _START, f"({end} - INTERVAL 1 MICROSECOND)"
    )
    step = intervals.steps_us("string_split(filename, '/')[-2]")
    conditions = (condition, *_in_range("open_time", start, end), place)
    rows = _of_macro(files, listed, conditions, f", {step} AS step_us")
    composed = intervals.composed(rows, names, (*names, *intervals.PARTS), _INTERVAL, zone, "r.step_us", ['"symbol"'])

    published = ", ".join(map(quoted, intervals_of(files.market)))
    return f"""
    WITH stored AS NOT MATERIALIZED ({stored}),
    composed AS NOT MATERIALIZED ({composed}),
    other AS NOT MATERIALIZED (FROM query(CASE
        WHEN {largest} IS NOT NULL THEN 'FROM composed'
        WHEN "symbol" IS NULL OR "interval" IS NULL OR ({zone} = 'UTC' AND "interval" IN ({published}))
        THEN 'FROM stored'
        ELSE error({_no_source(files)}) END))
    FROM query(CASE WHEN {known} THEN 'FROM stored' ELSE 'FROM other' END)"""


def _no_source(files: Files) -> str:
    """Return SQL for the message about an interval that divides no stored interval."""
    known = files.knows(f"concat({_SYMBOL_FOLDER}, one, '/')")
    names = ", ".join(map(quoted, intervals_of(files.market)))
    stored = f"array_to_string(list_filter([{names}], lambda one: {known}), ', ')"
    return f"""CASE
        WHEN NOT regexp_full_match("interval", {quoted(intervals.FORM)})
        THEN concat('There is no interval ', "interval", '. {intervals.HOW_TO_WRITE}')
        WHEN tz <> 'UTC' AND NOT regexp_full_match("interval", '.*(d|w|mo)')
        THEN concat('A time zone moves days, weeks and months. ', "interval", ' is shorter: leave tz out.')
        ELSE concat("symbol", ' has no stored interval in {files.market} that divides ', "interval",
            CASE WHEN tz IS NULL THEN '' ELSE concat(' in ', tz) END, '. Stored: ',
            coalesce(nullif({stored}, ''), 'none'), '.') END"""


class _Macro(NamedTuple):
    name: str
    sql: Callable[[Files, str], str]


_MACROS = {DataType.KLINES: _Macro("candles", _candles), DataType.AGG_TRADES: _Macro("trades", _trades)}


def _of_macro(files: Files, listed: str, conditions: Iterable[str], more: str = "") -> str:
    labels = labels_of(files.data_type)
    columns = ", ".join(
        f'"{name}" AS "{name}"' if name in labels else f'r."{name}"'
        for name in lake_schema(files.market, files.data_type).names
    )
    return f"""
        SELECT {columns}{more}
        FROM {read_parquet(listed, NAMED)} AS r
        WHERE {" AND ".join(filter(None, conditions))}"""


def _in_range(time: str, start: str, end: str) -> tuple[str, str]:
    return f'r."{time}" >= {start}', f'r."{time}" < {end}'


_LEDGER_LABELS = SERIES_LABELS
_LEDGER_TYPES = {
    "day": "DATE",
    "final": "BOOLEAN",
    **dict.fromkeys(("fetched_at", "asked_at"), "TIMESTAMP"),
    **dict.fromkeys(("rows", "bytes", "missing", "quiet", "attempts", "first_key", "last_key"), "BIGINT"),
}
_COVERAGE = (
    "day",
    "state",
    "outcome",
    "final",
    "rows",
    "bytes",
    "source",
    "checksum",
    "integrity",
    "gaps",
    "verdicts",
    "missing",
    "quiet",
    "failure",
    "reason",
    "attempts",
    "fetched_at",
    "asked_at",
    "first_key",
    "last_key",
    "content_sha256",
    "archive_sha256",
    "etag",
    "last_modified",
    "replaced_by",
)


def _named(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _coverage(days: str) -> str:
    columns = (f'{STATE_SQL} AS "state"' if name == "state" else f'"{name}"' for name in _COVERAGE)
    return f"SELECT {_named(_LEDGER_LABELS)}, {', '.join(columns)} FROM ({days})"


def _condition(layout: Layout, days: str, *, published: bool) -> str:
    """Return the query of ``quality.condition``: each day from the first to the last of a series, on record or not.

    A published view reads the current day when it is queried. A view in memory has the day of its making, and is made
    again on the next day.
    """
    today = "CAST(make_timestamp(epoch_us(now())) AS DATE)" if published else f"DATE '{clock.today()}'"
    collected = (
        f"SELECT * FROM {read_parquet(quoted(as_pattern(layout.collected)))}"
        if storage.head(layout.collected) is not None
        else f"SELECT {_NO_COLLECTED} WHERE false"
    )
    rules = [(rule.sql(today), rule) for rule in CONDITION_RULES]
    of_day = ", ".join(f'e."{name}"' for name in _LEDGER_LABELS)
    return _CONDITION.format(
        days=days,
        collected=collected,
        today=today,
        series=f"concat_ws('/', {_named(_LEDGER_LABELS)})",
        series_of_day=f"concat_ws('/', {of_day})",
        labels=_named(_LEDGER_LABELS),
        labels_of_day=of_day,
        columns=_named(_CONDITION_COLUMNS),
        state=STATE_SQL,
        not_listed=quoted(DayState.NOT_LISTED),
        missing=quoted(DayState.MISSING),
        condition=" ".join(("CASE", *(f"WHEN {sql} THEN '{rule.condition}'" for sql, rule in rules), "END")),
        reason=" ".join(("CASE", *(f"WHEN {sql} THEN '{rule.reason}'" for sql, rule in rules), "END")),
    )


def _no_ledger_days(names: Iterable[str]) -> str:
    typed = (f'CAST(NULL AS {_LEDGER_TYPES.get(name, "VARCHAR")}) AS "{name}"' for name in names)
    return f"SELECT {', '.join(typed)} WHERE false"


_NO_COLLECTED = ", ".join(
    f"CAST(NULL AS {type_}) AS {name}"
    for name, type_ in (
        *((f'"{label}"', "VARCHAR") for label in _LEDGER_LABELS),
        ('"first"', "DATE"),
        ('"last"', "DATE"),
        ("listed", 'STRUCT("first" DATE, "last" DATE)[]'),
    )
)

_CONDITION_COLUMNS = (
    "outcome",
    "final",
    "failure",
    "reason",
    "replaced_by",
    "checksum",
    "archive_sha256",
    "last_modified",
    "findings",
    "verdicts",
    "integrity",
)

# A symbol without listing spans counts as listed. Without a record, and if the listing contradicts a record "not
# listed", the day is missing.
# Conditions on labels must reach the ledgers' file names. So nothing is joined with the days but the short list of
# collected series, and the CTEs are not materialized. A day that is not on record is found between two points: days on
# record, and the first and last day to collect, which come first if they are on record, too.
_CONDITION = """
WITH days AS NOT MATERIALIZED ({days}),
collected AS NOT MATERIALIZED ({collected}),
points AS NOT MATERIALIZED (
    SELECT {labels}, day, true AS on_record FROM days
    UNION ALL
    SELECT {labels}, unnest(["first", least(coalesce("last", {today}), {today})]) AS day, false AS on_record
    FROM collected WHERE "first" <= {today}
),
ahead AS NOT MATERIALIZED (
    SELECT {labels}, day, on_record, lead(day) OVER (PARTITION BY {labels} ORDER BY day, on_record) AS next FROM points
),
absent AS NOT MATERIALIZED (
    SELECT {labels}, CAST(unnest(generate_series(
        CASE WHEN on_record THEN day + 1 ELSE day END, coalesce(next - 1, day), INTERVAL 1 DAY
    )) AS DATE) AS day
    FROM ahead WHERE NOT on_record OR next > day + 1
),
every AS NOT MATERIALIZED (
    SELECT {labels}, day, {columns} FROM days UNION ALL BY NAME SELECT {labels}, day FROM absent
),
known AS NOT MATERIALIZED (
    SELECT {labels_of_day}, e.day AS day, e.outcome, e.final, e.failure, e.reason AS said, e.replaced_by, e.checksum,
        e.archive_sha256, e.last_modified, e.findings, e.verdicts, e.integrity,
        coalesce(len(c.listed), 0) = 0 AS unknown,
        len(list_filter(c.listed, lambda one: one."first" <= e.day AND coalesce(one."last" >= e.day, true))) > 0
            AS is_listed
    FROM every AS e
    LEFT JOIN (SELECT {series} AS series, listed FROM collected) AS c ON c.series = {series_of_day}
),
stated AS (
    SELECT *, CASE
        WHEN outcome IS NULL THEN CASE WHEN unknown OR is_listed THEN {missing} ELSE {not_listed} END
        WHEN outcome = {not_listed} AND NOT unknown AND is_listed THEN {missing}
        ELSE {state} END AS state
    FROM known
)
SELECT {labels}, day, {condition} AS condition, {reason} AS reason,
    concat_ws('; ',
        'another archive is published: ' || replaced_by,
        CASE WHEN failure IS NOT NULL THEN concat_ws(': ', failure, nullif(said, '')) END,
        CASE WHEN findings <> '[]' THEN nullif(array_to_string([
            concat(f."count", ' ', f.rule, ': ', coalesce(nullif(f.evidence, ''), f.message))
            FOR f IN from_json(findings, '[{{"check": "VARCHAR", "rule": "VARCHAR", "severity": "VARCHAR",
                "count": "BIGINT", "message": "VARCHAR", "evidence": "VARCHAR"}}]')
            IF f."check" = 'gaps' OR f.severity <> 'info'], '; '), '') END
    ) AS evidence,
    last_modified, checksum, archive_sha256
FROM stated
"""

_FOUND = """
WITH found AS (
    SELECT exchange, market, data_type, symbol, "interval", day, {timed} AS timed, unnest(from_json(findings, '[{{
        "check": "VARCHAR", "rule": "VARCHAR", "severity": "VARCHAR", "count": "BIGINT", "message": "VARCHAR",
        "ranges": [{{"first": "BIGINT", "last": "BIGINT", "count": "BIGINT"}}], "evidence": "VARCHAR"
    }}]')) AS f
    FROM ({days}) WHERE findings <> '[]'
)"""

_FINDINGS = (
    _FOUND
    + """, ranged AS (
    SELECT *, unnest(CASE WHEN len(f.ranges) > 0 THEN f.ranges ELSE [NULL] END) AS r FROM found
)
SELECT exchange, market, data_type, symbol, "interval", day,
    f."check" AS check_name, f.rule AS rule, f.severity AS severity, f."count" AS "count", f.message AS message,
    coalesce(f.evidence, '') AS evidence,
    r."first" AS first_key, r."last" AS last_key, r."count" AS range_count,
    CASE WHEN timed THEN make_timestamp(r."first") END AS first_time,
    CASE WHEN timed THEN make_timestamp(r."last") END AS last_time
FROM ranged
"""
)

# A finding stores only its first ranges, but its count includes all. The rest is one row without bounds, so that sums
# are right.
_GAPS = (
    _FOUND
    + """, gap AS (
    SELECT *, f."count" - coalesce(list_sum([r."count" FOR r IN f.ranges]), 0) AS beyond
    FROM found WHERE f."check" = 'gaps' AND f.rule IN ({verdicts})
), ranged AS (
    SELECT *, unnest(CASE WHEN beyond > 0 OR len(f.ranges) = 0
        THEN list_append(f.ranges, {{'first': NULL, 'last': NULL, 'count': beyond}}) ELSE f.ranges END) AS r
    FROM gap
)
SELECT exchange, market, data_type, symbol, "interval", day, f.rule AS verdict,
    CASE WHEN timed THEN make_timestamp(r."first") END AS "first",
    CASE WHEN timed THEN make_timestamp(r."last") END AS "last",
    CASE WHEN NOT timed THEN r."first" END AS first_id,
    CASE WHEN NOT timed THEN r."last" END AS last_id,
    CAST(r."count" AS BIGINT) AS "count", f.severity AS severity, f.rule IN ({explained}) AS explained,
    coalesce(f.evidence, '') AS evidence
FROM ranged
"""
)


def _ledger_days(layout: Layout, columns: Iterable[str], *, marked: bool) -> str:
    folder = layout.root / "ledger"
    listed = _below(folder, [mark_of_ledgers(layout)] if marked else [])
    columns = tuple(columns)
    return f"SELECT {_labels_below(folder)}, {_named(columns)} FROM {read_parquet(listed, NAMED, _as_ledger(columns))}"


def _below(folder: Path, marks: Iterable[Path] = ()) -> str:
    return f"[{', '.join(map(quoted, (*map(as_pattern, marks), f'{as_pattern(folder)}/**/*.parquet')))}]"


# Columns may be missing in ledgers of older versions. The alternative, union_by_name, opens every file to learn the
# columns, and this reads only the files that a condition on labels leaves.
def _as_ledger(columns: Iterable[str]) -> str:
    described = (
        f"{quoted(name)}: {{name: {quoted(name)}, type: {quoted(_LEDGER_TYPES.get(name, 'VARCHAR'))}, "
        "default_value: NULL}"
        for name in columns
    )
    return f"schema = MAP {{{', '.join(described)}}}"


def _labels_below(folder: Path) -> str:
    """Return SQL for the labels of a series, from its file's path below a folder with the layout of the ledgers."""
    depth = str(folder).count("/") + 1
    part = [f"string_split(filename, '/')[{depth + i}]" for i in range(1, 6)]
    without_suffix = "left({0}, len({0}) - len('.parquet'))"
    of_candles = f"{part[2]} IN ({', '.join(quoted(data_type) for data_type in DataType if data_type.has_interval)})"
    labels = (
        part[0],
        part[1],
        part[2],
        f"CASE WHEN {of_candles} THEN {part[3]} ELSE {without_suffix.format(part[3])} END",
        f"CASE WHEN {of_candles} THEN {without_suffix.format(part[4])} END",
    )
    return ", ".join(f'{sql} AS "{name}"' for sql, name in zip(labels, _LEDGER_LABELS, strict=True))


_RECONCILED_TYPES = {
    "day": "DATE",
    "source": "VARCHAR",
    **dict.fromkeys(("bars", "differing", "explained"), "BIGINT"),
    "contract_size": "DOUBLE",
    "compared_at": "TIMESTAMP",
    **dict.fromkeys(("klines_sha256", "source_sha256"), "VARCHAR"),
    "differences": (
        'STRUCT("open_time" TIMESTAMP, "column" VARCHAR, "klines" DOUBLE, "rebuilt" DOUBLE, "reason" VARCHAR, '
        '"ids" VARCHAR)[]'
    ),
}
# Both sides are joined by the name of their series. It is a plain key, so DuckDB uses a hash join.
_RECONCILIATION = """
WITH known AS (
    SELECT concat_ws('/', exchange, market, data_type, symbol, "interval") AS series, day, content_sha256 FROM ({rows})
)
SELECT exchange, market, data_type, symbol, "interval", r.day AS day, r.source AS source, bars, differing, explained,
    differing - explained AS unexplained, contract_size, compared_at, klines_sha256, source_sha256,
    coalesce(k.content_sha256 = klines_sha256 AND s.content_sha256 = source_sha256, false) AS "current"
FROM ({days}) AS r
LEFT JOIN known AS k
    ON k.series = concat_ws('/', exchange, market, data_type, symbol, "interval") AND k.day = r.day
LEFT JOIN known AS s ON s.series = r.source AND s.day = r.day
"""
_RECONCILIATION_DIFFERENCES = """
WITH found AS (SELECT exchange, market, data_type, symbol, "interval", day, unnest(differences) AS d FROM ({days}))
SELECT exchange, market, data_type, symbol, "interval", day, d.open_time AS open_time, d."column" AS column_name,
    d.klines AS klines, d.rebuilt AS rebuilt, nullif(d.reason, '') AS reason, nullif(d.ids, '') AS ids
FROM found
"""


def _reconciled_days(layout: Layout) -> str:
    folder = layout.reconciliation
    named = _named(_RECONCILED_TYPES)
    types = {**dict.fromkeys(_LEDGER_LABELS, "VARCHAR"), **_RECONCILED_TYPES}
    nothing = ", ".join(f'CAST(NULL AS {type_}) AS "{name}"' for name, type_ in types.items())
    if not any(storage.list_paths(folder, "**/*.parquet")):
        return f"SELECT {nothing} WHERE false"
    return f"SELECT {_labels_below(folder)}, {named} FROM {read_parquet(_below(folder), NAMED, 'union_by_name = true')}"
