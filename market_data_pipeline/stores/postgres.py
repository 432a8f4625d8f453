# ruff: noqa: S608 - names come from the table of datasets and are quoted; values are quoted or bound.
"""PostgreSQL as a store: hot rows that a team shares. Rows travel as Arrow, through ADBC.

A table per market and data type has the columns of the lake, ``state`` and ``seen_at``. Choosing between two rows of a
key belongs to ``rows.py``, copying days of the lake to ``push.py``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from os import getpid
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import EnvironmentFaultError, UsageError
from market_data_pipeline.lake.reader import labels_of, time_column
from market_data_pipeline.model.schema import WORD
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.waits import Stop, Wait
from market_data_pipeline.stores.base import RowState, SaveReport, Store
from market_data_pipeline.stores.rows import (
    SEEN_AT,
    STATE,
    decide,
    key_columns,
    micros,
    moment_after,
    stored_rows,
    stored_schema,
    value_columns,
    with_labels,
    without_state,
)
from market_data_pipeline.team.address import secrets_of, shown, with_limits

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection, Cursor

_T = TypeVar("_T")

_ROWS_AT_ONCE = 100_000
"""Most rows of one transaction of :meth:`PostgresStore.save`."""

_FEW = 200
"""Up to so many rows are bound to a prepared statement, which takes a millisecond. More are copied."""

_TYPES: Mapping[pa.DataType, str] = {
    pa.timestamp("us"): "timestamptz",
    pa.date32(): "date",
    pa.int16(): "smallint",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.string(): "text",
    WORD: "text",
}

_COPIED = '"market_data"."copied_days"'
"""Table of the days of the lake that were copied, with the hash of their content."""


@dataclass(frozen=True, slots=True)
class CopiedDay:
    """A day of the lake in the database: the hash of its content, and if it was final."""

    content_sha256: str
    final: bool


class PostgresStore(Store):
    """Rows in a PostgreSQL database, which several machines read and write.

    Writers of one series take turns. A write is one transaction per 100,000 rows. After a lost connection, the store
    connects again and repeats the transaction, a few times. You can share a store between threads.

    Args:
        url: ``postgresql://user@host:port/database``. The password may come from ``PGPASSWORD`` or ``~/.pgpass``.
        attempts: How often to try before an unreachable server is an error.
        backoff_seconds: Pause before the second attempt. It doubles with each attempt.
        connect_seconds: Time limit for a connection.
        statement_seconds: Time limit for a statement, and for the wait for another writer of the series.
        hypertable: Make new tables hypertables of TimescaleDB, if their key is their time.

    Raises:
        UsageError: The URL is invalid, or the extra is not installed.

    Examples:
        >>> from market_data_pipeline.stores.postgres import PostgresStore
        >>> store = PostgresStore("postgresql://team@db.example.com/market")  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        attempts: int = 5,
        backoff_seconds: float = 0.5,
        connect_seconds: int = 10,
        statement_seconds: int = 300,
        hypertable: bool = False,
    ) -> None:
        self._driver = _driver()
        self._url = with_limits(
            url,
            connect_timeout=connect_seconds,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
        self._secrets = secrets_of(url)
        self.name = shown(url)
        self._attempts = max(1, attempts)
        self._backoff = backoff_seconds
        self._statement_ms = statement_seconds * 1000
        self._hypertable = hypertable
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._process = getpid()
        self._made: set[str] = set()

    # --- the interface -------------------------------------------------------------------------------------------

    def save(
        self, key: SeriesKey, rows: pa.Table, state: RowState = RowState.PROVISIONAL, *, seen_at: datetime | None = None
    ) -> SaveReport:
        """Store rows; see :meth:`Store.save`. Each 100,000 rows are one transaction.

        Raises:
            UsageError: The rows are not rows of this series.
            EnvironmentFaultError: The database cannot be used. Transactions that were committed stay, and saving the
                same rows again continues.
        """
        incoming = stored_rows(key, rows, state, seen_at)
        parts = [incoming.slice(first, _ROWS_AT_ONCE) for first in range(0, incoming.num_rows, _ROWS_AT_ONCE)]
        return SaveReport.total([self._in_transaction(key, _saving(part)) for part in parts])

    def load(
        self,
        key: SeriesKey,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        last: int | None = None,
        least: RowState = RowState.LIVE,
        with_state: bool = False,
    ) -> pa.Table:
        """Return rows; see :meth:`Store.load`.

        Raises:
            EnvironmentFaultError: The database cannot be used.
        """
        names = _unlabelled(key)
        where = f'{_range(key, start, end)} AND "{STATE}" >= {int(least)}'
        order = ", ".join(map(_quoted, key_columns(key)))
        query = f"SELECT {_list(names)} FROM {_table(key)} WHERE {where}"
        if last is None:
            query = f"{query} ORDER BY {order}"
        else:
            time, down = _quoted(time_column(key.data_type)), ", ".join(f"{_quoted(n)} DESC" for n in key_columns(key))
            newest = f"{query} ORDER BY {time} DESC, {down} LIMIT {max(0, int(last))}"
            query = f"SELECT * FROM ({newest}) AS newest ORDER BY {order}"
        table = self._query(query)
        rows = stored_schema(key).empty_table() if table is None else with_labels(key, table, state=True)
        return rows if with_state else without_state(rows)

    def exists(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> bool:
        """Return True if the database has a closed row of a series in a range."""
        where = f'{_range(key, start, end)} AND "{STATE}" >= {int(RowState.LIVE)}'
        table = self._query(f"SELECT 1 FROM {_table(key)} WHERE {where} LIMIT 1")
        return table is not None and table.num_rows > 0

    def delete(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> int:
        """Remove rows of a series, and return their number."""

        def remove(cursor: Cursor, key: SeriesKey) -> int:
            cursor.execute(f"DELETE FROM {_table(key)} WHERE {_range(key, start, end)}")
            removed = max(0, cursor.rowcount)
            days = f"{_day_bound('>=', start)} AND {_day_bound('<=', end)}"
            cursor.execute(f"DELETE FROM {_COPIED} WHERE series = {_literal(str(key))} AND {days}")
            return removed

        return self._in_transaction(key, remove)

    def get_date_range(self, key: SeriesKey) -> tuple[date, date] | None:
        """Return the first and the last UTC day with closed rows; None if there are none."""
        time, where = _quoted(time_column(key.data_type)), f'{_range(key)} AND "{STATE}" >= {int(RowState.LIVE)}'
        table = self._query(f"SELECT min({time}), max({time}) FROM {_table(key)} WHERE {where}")
        first, last = (None, None) if table is None else (column[0].as_py() for column in table.columns)
        return None if first is None or last is None else (_day(first), _day(last))

    def get_missing_dates(self, key: SeriesKey, first: date, last: date) -> list[date]:
        """Return the UTC days from first to last, both included, without closed rows."""
        days = clock.days_between(first, last)
        if not days:
            return []
        time, where = _quoted(time_column(key.data_type)), f'{_range(key)} AND "{STATE}" >= {int(RowState.LIVE)}'
        one = (
            "CAST(day AS date)" if time_column(key.data_type) == "day" else "CAST(day AS timestamp) AT TIME ZONE 'UTC'"
        )
        after = one.replace("CAST(day", "CAST(day + interval '1 day'")
        table = self._query(
            f"SELECT CAST(day AS date) AS missing FROM generate_series(timestamp '{first}', timestamp '{last}', "
            f"interval '1 day') AS day WHERE NOT EXISTS (SELECT 1 FROM {_table(key)} WHERE {where} AND {time} >= {one} "
            f"AND {time} < {after}) ORDER BY day"
        )
        return days if table is None else [day for day in table["missing"].to_pylist() if day is not None]

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        with self._lock:
            self._drop()

    # --- days of the lake ----------------------------------------------------------------------------------------

    def copied_days(self, key: SeriesKey) -> dict[date, CopiedDay]:
        """Return the days that :meth:`copy_day` copied and nobody removed."""
        table = self._query(f"SELECT day, content_sha256, final FROM {_COPIED} WHERE series = {_literal(str(key))}")
        rows = [] if table is None else table.to_pylist()
        return {row["day"]: CopiedDay(row["content_sha256"], row["final"]) for row in rows}

    def copy_day(
        self, key: SeriesKey, day: date, rows: pa.Table, content: CopiedDay, seen_at: datetime | None = None
    ) -> SaveReport:
        """Copy a whole day of the lake in one transaction, and record the hash of its content.

        A final day replaces all rows of the day: its archive is the authority, also if it was published again. The rows
        of a provisional day are saved by the rule of :meth:`Store.save`.
        """
        state = RowState.FINAL if content.final else RowState.PROVISIONAL
        incoming = stored_rows(key, rows, state, seen_at)

        def copy(cursor: Cursor, key: SeriesKey) -> SaveReport:
            if content.final:
                bounds = clock.midnight(day), moment_after(day)
                cursor.execute(f"DELETE FROM {_table(key)} WHERE {_range(key, *bounds)}")
            report = _saving(incoming)(cursor, key)
            values = (str(key), str(day), content.content_sha256, str(content.final).lower())
            cursor.execute(
                f"INSERT INTO {_COPIED} (series, day, content_sha256, final) VALUES "
                f"({', '.join(map(_literal, values))}) ON CONFLICT (series, day) DO UPDATE SET "
                "content_sha256 = EXCLUDED.content_sha256, final = EXCLUDED.final, copied_at = now()"
            )
            return report

        return self._in_transaction(key, copy)

    def evict_day(self, key: SeriesKey, day: date, is_stored: Callable[[pa.Table], bool]) -> int | None:
        """Remove a day's rows if another store has them. Return their number, or None if they stay.

        Args:
            is_stored: Return True if these rows, of any state, may go. No other writer changes them meanwhile.
        """
        bounds = clock.midnight(day), moment_after(day)

        def evict(cursor: Cursor, key: SeriesKey) -> int | None:
            cursor.execute(f"SELECT {_list(_unlabelled(key))} FROM {_table(key)} WHERE {_range(key, *bounds)}")
            rows = with_labels(key, cursor.fetch_arrow_table(), state=True)
            if not is_stored(rows):
                return None
            cursor.execute(f"DELETE FROM {_table(key)} WHERE {_range(key, *bounds)}")
            cursor.execute(f"DELETE FROM {_COPIED} WHERE series = {_literal(str(key))} AND day = {_literal(str(day))}")
            return rows.num_rows

        return self._in_transaction(key, evict)

    # --- connections ---------------------------------------------------------------------------------------------

    def _query(self, query: str) -> pa.Table | None:
        """Return the rows of a query; None if its table does not exist yet."""

        def read(cursor: Cursor) -> pa.Table | None:
            try:
                cursor.execute(query)
            except self._driver.Error as error:
                if error.sqlstate in _NO_TABLE:
                    return None
                raise
            table: pa.Table = cursor.fetch_arrow_table()
            return table

        return self._repeated(read)

    def _in_transaction(self, key: SeriesKey, work: Callable[[Cursor, SeriesKey], _T]) -> _T:
        def run(cursor: Cursor) -> _T:
            with self._transaction():
                self._make_tables(cursor, key)
                # One writer of a series at a time, so that it decides on rows that nobody changes meanwhile.
                cursor.execute(f"SELECT pg_advisory_xact_lock(hashtextextended({_literal(str(key))}, 0))")
                cursor.fetchall()
                done = work(cursor, key)
            self._made.add(_table(key))
            return done

        return self._repeated(run)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        connection: Any = self._connection
        connection.adbc_connection.set_autocommit(False)
        yield
        # An error leaves this block before the commit. Its connection is dropped, which ends the transaction.
        connection.adbc_connection.commit()
        connection.adbc_connection.set_autocommit(True)

    def _repeated(self, work: Callable[[Cursor], _T]) -> _T:
        """Do work, and repeat it with a backoff if the connection is lost. All work is idempotent."""
        wait = Wait(Stop())
        with self._lock:
            for attempt in range(1, self._attempts + 1):
                opened = False
                try:
                    connection = self._open()
                    opened = True
                    with connection.cursor() as cursor:
                        return work(cursor)
                except self._driver.Error as error:
                    self._drop()
                    if attempt == self._attempts or not _is_passing(error, opened=opened):
                        raise EnvironmentFaultError(self._sentence(error, opened, attempt)) from None
                except BaseException:
                    self._drop()
                    raise
                wait.sleep(self._backoff * 2 ** (attempt - 1), f"Waiting for PostgreSQL at {self.name}.")
        raise AssertionError("unreachable")

    def _open(self) -> Connection:
        if self._connection is not None and self._process != getpid():  # a fork: its socket belongs to the parent
            _ABANDONED.append(self._connection)
            self._connection = None
        if self._connection is None:
            connection = self._driver.connect(self._url, autocommit=True)
            self._connection, self._process = connection, getpid()
            settings = {
                "TimeZone": "UTC",
                "standard_conforming_strings": "on",
                "synchronous_commit": "on",
                "statement_timeout": str(self._statement_ms),
                "lock_timeout": str(self._statement_ms),
                "application_name": "market-data",
            }
            with connection.cursor() as cursor:
                calls = (f"set_config({_literal(name)}, {_literal(to)}, false)" for name, to in settings.items())
                cursor.execute(f"SELECT {', '.join(calls)}")
                cursor.fetchall()
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._made.clear()
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _make_tables(self, cursor: Cursor, key: SeriesKey) -> None:
        if _table(key) in self._made:
            return
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('market_data tables', 0))")
        cursor.fetchall()
        tables = (f"to_regclass({_literal(table)}) IS NULL" for table in (_table(key), _COPIED))
        cursor.execute(f"SELECT {', '.join(tables)}")
        [(no_table, no_copied)] = cursor.fetchall()
        if no_copied:
            cursor.execute('CREATE SCHEMA IF NOT EXISTS "market_data"')
            cursor.execute(
                f"CREATE TABLE IF NOT EXISTS {_COPIED} (series text, day date, content_sha256 text NOT NULL, "
                "final boolean NOT NULL, copied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (series, day))"
            )
        if no_table:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(key.sql_schema)}")
            for statement in _table_statements(key):
                cursor.execute(statement)
            if self._hypertable:
                self._make_hypertable(cursor, key)

    def _make_hypertable(self, cursor: Cursor, key: SeriesKey) -> None:
        if key_columns(key)[0] != time_column(key.data_type):
            return  # the unique key of a hypertable has its time, and that of trades is an id
        cursor.execute(
            "SELECT namespaces.nspname FROM pg_extension JOIN pg_namespace AS namespaces "
            "ON namespaces.oid = extnamespace WHERE extname = 'timescaledb'"
        )
        for (schema,) in cursor.fetchall():
            arguments = f"{_literal(_table(key))}, {_literal(time_column(key.data_type))}"
            cursor.execute(f"SELECT {_quoted(schema)}.create_hypertable({arguments})")
            cursor.fetchall()

    def _sentence(self, error: Any, opened: bool, attempts: int) -> str:
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        found = re.search(r"(?:FATAL|ERROR|PANIC): *([^\n]*)", text)
        reason = found[1] if found else text.split("Failed to connect: ")[-1].split("\n")[0].removeprefix("IO: ")
        reason = reason.strip().rstrip(".")
        times = f" after {attempts} attempts" if attempts > 1 else ""
        state = error.sqlstate or ""
        if not opened:
            return (
                f"PostgreSQL at {self.name} cannot be reached{times} ({reason}). Check its address, and that it runs."
            )
        remedy = next((remedy for states, remedy in _REMEDIES if state.startswith(states)), _CONNECTION_REMEDY)
        return f"PostgreSQL at {self.name} failed{times} ({reason}). {remedy} Committed rows are stored."


_ABANDONED: list[Any] = []
"""Connections of a parent process. To close one here would end it for the parent."""

_NO_TABLE = ("42P01", "3F000")

_CONNECTION_REMEDY = "Start again when it runs: the same call continues."
_REMEDIES: tuple[tuple[str | tuple[str, ...], str], ...] = (
    ("53100", "Its disk is full: free some space there and start again."),
    (("57014", "55P03"), "It is too slow, or another program locks the table: start again later."),
    (("42501", "28"), "Grant the user the right to create schemas and tables, or to write them."),
    ("25006", "It is a read-only copy: use the address of its primary server."),
    (("42703", "42804"), "Its table has other columns: another version made it. Rename it and start again."),
    ("53", "It has too little memory or too few connections: start again later."),
)


def _is_passing(error: Any, *, opened: bool) -> bool:
    """Return True if another attempt may succeed."""
    state = error.sqlstate
    if state is None:
        # libpq reports a lost connection, and every fault of a new one, without a code.
        fatal = re.search(r"FATAL: *([^\n]*)", str(error))
        if opened or fatal is None:
            return True
        passing = r"starting up|shutting down|accepting connections|recovery|too many|reserved|terminat"
        return re.search(passing, fatal[1]) is not None
    # A lost connection, a shutdown, a deadlock, too many connections; or another program that wrote the same key or
    # removed the table meanwhile.
    return state.startswith(("08", "57P", "40")) or state in ("53300", "23505", *_NO_TABLE)


def _driver() -> Any:
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise UsageError(
            'PostgreSQL needs the extra postgres. Install it: pip install "market-data-pipeline[postgres]"'
        ) from None
    return dbapi


# --- SQL -------------------------------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names))


def _table(key: SeriesKey) -> str:
    return f"{_quoted(key.sql_schema)}.{_quoted(key.data_type.sql_name)}"


def _unlabelled(key: SeriesKey) -> list[str]:
    return [name for name in stored_schema(key).names if name not in labels_of(key.data_type)]


def _primary(key: SeriesKey) -> tuple[str, ...]:
    return (*labels_of(key.data_type), *key_columns(key))


def _table_statements(key: SeriesKey) -> list[str]:
    columns = [
        f"{_quoted(field.name)} {_TYPES[field.type]}{'' if _may_be_null(key, field) else ' NOT NULL'}"
        for field in stored_schema(key)
    ]
    made = [f"CREATE TABLE {_table(key)} ({', '.join(columns)}, PRIMARY KEY ({_list(_primary(key))}))"]
    time = time_column(key.data_type)
    if key_columns(key)[0] != time:
        made.append(f"CREATE INDEX ON {_table(key)} ({_list((*labels_of(key.data_type), time))})")
    return made


def _may_be_null(key: SeriesKey, field: pa.Field[Any]) -> bool:
    return field.nullable and field.name not in _primary(key)


def _range(key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> str:
    """Return the condition for rows of a series in a range."""
    time = time_column(key.data_type)
    found = [f"{_quoted(label)} = {_literal(str(getattr(key, label)))}" for label in labels_of(key.data_type)]
    for sign, moment in ((">=", start), ("<", end)):
        if moment is not None:
            at = _literal(clock.naive_from_us(micros(moment)).isoformat(" "))
            # The row of a whole day has a date, which is compared as its midnight.
            found.append(
                f"{_quoted(time)} {sign} "
                + (f"timestamp {at}" if time == "day" else f"timestamp {at} AT TIME ZONE 'UTC'")
            )
    return " AND ".join(found)


def _day_bound(sign: str, moment: datetime | None) -> str:
    return "true" if moment is None else f"day {sign} {_literal(str(clock.day_of_us(micros(moment))))}"


def _day(value: datetime | date) -> date:
    return value.date() if isinstance(value, datetime) else value


def _saving(incoming: pa.Table) -> Callable[[Cursor, SeriesKey], SaveReport]:
    """Return the work of storing rows within a transaction that has the lock of their series."""

    def save(cursor: Cursor, key: SeriesKey) -> SaveReport:
        if not incoming.num_rows:
            return SaveReport()
        # Values are compared only with rows of the same state. Reading the keys alone takes a third of the time.
        names = _unlabelled(key) if incoming.num_rows <= _FEW else [*key_columns(key), STATE, SEEN_AT]
        stored = _stored_among(cursor, key, incoming, names)
        if incoming.num_rows > _FEW and pc.any(pc.equal(stored[STATE], incoming[STATE][0])).as_py():
            stored = _stored_among(cursor, key, incoming, _unlabelled(key))
        decision = decide(key, stored, incoming)
        if decision.replace.num_rows == stored.num_rows > _FEW:
            # Every stored row of the range goes, so that removing them and copying takes half the time of an upsert.
            cursor.execute(
                f"DELETE FROM {_table(key)} WHERE {_range(key)} AND {_keys(key, incoming)} "
                f'AND "{STATE}" < {int(RowState.FINAL)}'
            )
            _insert(cursor, key, incoming)
        else:
            _insert(cursor, key, decision.insert)
            _upsert(cursor, key, decision.replace)
        return decision.report

    return save


def _stored_among(cursor: Cursor, key: SeriesKey, incoming: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return columns of the stored rows that may have a key of these rows."""
    cursor.execute(f"SELECT {_list(names)} FROM {_table(key)} WHERE {_range(key)} AND {_keys(key, incoming)}")
    table = cursor.fetch_arrow_table()
    schema = pa.schema([stored_schema(key).field(name) for name in names])
    return pa.table([table[field.name].cast(field.type) for field in schema], schema=schema)


def _keys(key: SeriesKey, incoming: pa.Table) -> str:
    """Return a condition that every stored row with a key of these rows fulfils, and few others."""
    first = key_columns(key)[0]
    kind = incoming.schema.field(first).type
    whole: Any = incoming[first].cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())

    def text(value: int) -> str:
        if pa.types.is_timestamp(kind):
            return _literal(f"{clock.naive_from_us(value).isoformat(' ')}+00")
        return _literal(str(clock.day_of_number(value))) if pa.types.is_date32(kind) else str(value)

    if incoming.num_rows <= _FEW:
        return f"{_quoted(first)} IN ({', '.join(map(text, dict.fromkeys(whole.to_pylist())))})"
    return f"{_quoted(first)} BETWEEN {text(whole[0].as_py())} AND {text(whole[-1].as_py())}"


def _insert(cursor: Cursor, key: SeriesKey, rows: pa.Table) -> None:
    """Write rows whose keys are new. Another program may have written one meanwhile: that is an error to repeat."""
    if rows.num_rows > _FEW:
        cursor.adbc_ingest(key.data_type.sql_name, _zoned(rows), mode="append", db_schema_name=key.sql_schema)
    else:
        _upsert(cursor, key, rows)


def _upsert(cursor: Cursor, key: SeriesKey, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    names = rows.column_names
    if rows.num_rows <= _FEW:
        source = f"VALUES ({', '.join(f'${n + 1}' for n in range(len(names)))})"
    else:
        cursor.execute('DROP TABLE IF EXISTS pg_temp."incoming"')
        cursor.execute(f'CREATE TEMPORARY TABLE "incoming" (LIKE {_table(key)}) ON COMMIT DROP')
        cursor.adbc_ingest("incoming", _zoned(rows), mode="append", temporary=True)
        source = f'SELECT {_list(names)} FROM pg_temp."incoming"'
    changed = (*value_columns(key), STATE, SEEN_AT)
    sets = ", ".join(f"{_quoted(name)} = EXCLUDED.{_quoted(name)}" for name in changed)
    statement = (
        f"INSERT INTO {_table(key)} AS stored ({_list(names)}) {source} ON CONFLICT ({_list(_primary(key))}) "
        # The rows were chosen by `decide`. This protects final rows from programs that do not take the lock.
        f'DO UPDATE SET {sets} WHERE EXCLUDED."{STATE}" > stored."{STATE}" OR (EXCLUDED."{STATE}" = stored."{STATE}" '
        f'AND stored."{STATE}" < {int(RowState.FINAL)} AND EXCLUDED."{SEEN_AT}" >= stored."{SEEN_AT}")'
    )
    if rows.num_rows <= _FEW:
        for batch in _zoned(rows).combine_chunks().to_batches():
            cursor.executemany(statement, batch)
    else:
        cursor.execute(statement)


def _zoned(rows: pa.Table) -> pa.Table:
    """Return rows in the types that ADBC sends: times with their zone, labels as text."""
    fields = [
        pa.field(field.name, pa.timestamp("us", "UTC"))
        if pa.types.is_timestamp(field.type)
        else pa.field(field.name, pa.string())
        if field.type == WORD
        else pa.field(field.name, field.type)
        for field in rows.schema
    ]
    return rows.cast(pa.schema(fields))
