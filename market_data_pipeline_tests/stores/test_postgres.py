"""PostgreSQL that is down, killed, restarted, slow, full or forbidden, and programs that write at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from market_data_pipeline import EnvironmentFaultError, UsageError
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores.base import RowState
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.postgres import PostgresServer, postgres_server
from market_data_pipeline_tests.support.small_lake import day_table, days_from, series

MINUTES = series("BTCUSDT", "1m")
HOURS = series("BTCUSDT", "1h")
DAY = date(2024, 3, 1)


def refused(url: str, key: SeriesKey = HOURS) -> str:
    """Return the message of a store that cannot be used. It never has the password."""
    with PostgresStore(url, attempts=1, connect_seconds=2) as store, pytest.raises(EnvironmentFaultError) as error:
        store.save(key, day_table(key, DAY))
    assert "sekret" not in str(error.value)
    assert error.value.__cause__ is None
    return str(error.value)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_server_that_is_down_is_one_sentence() -> None:
    text = refused("postgresql://team:sekret@127.0.0.1:1/market")
    assert text.startswith("PostgreSQL at 127.0.0.1:1/market cannot be reached (connection to server at")
    assert text.endswith("Check its address, and that it runs.")


def test_missing_database_is_not_tried_again(server: PostgresServer) -> None:
    with (
        PostgresStore(server.url_of("nowhere"), attempts=9, backoff_seconds=600) as store,
        pytest.raises(EnvironmentFaultError, match=r'\(database "nowhere" does not exist\)'),
    ):
        store.load(HOURS)


def test_user_without_rights_is_told_what_to_grant(server: PostgresServer, database: str) -> None:
    server.sql("DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    text = refused(server.url_of("postgres", "guest"))
    assert "permission denied for database postgres" in text
    assert "Grant the user the right" in text
    server.sql("DROP ROLE guest")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:sekret@h/d",
        "sekret",
        "postgresql://u:sek/ret@h/d",
        "postgresql://u:sekret@h:x/d",
        "postgresql://u: @h",
    ],
)
def test_invalid_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match=r"^The URL of PostgreSQL is invalid\.") as error:
        PostgresStore(url)
    assert "sek" not in str(error.value)
    assert error.value.__cause__ is None


def test_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    with pytest.raises(UsageError, match=r'pip install "market-data-pipeline\[postgres\]"'):
        PostgresStore("postgresql://h/d")


def test_full_disk_is_one_sentence_and_stores_nothing(server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.save(MINUTES, day_table(MINUTES, DAY))
    # The server raises its own error for a full disk whenever a row is written.
    server.sql(
        "CREATE FUNCTION binance_spot.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON binance_spot.klines EXECUTE FUNCTION binance_spot.full()",
    )
    with pytest.raises(EnvironmentFaultError, match=r"No space left on device\)\. Its disk is full: free some space"):
        postgres.save(MINUTES, day_table(MINUTES, DAY + timedelta(days=1)))
    assert postgres.load(MINUTES).equals(day_table(MINUTES, DAY))


def test_slow_server_is_one_sentence(server: PostgresServer, database: str) -> None:
    with PostgresStore(database, statement_seconds=1) as store:
        store.save(HOURS, day_table(HOURS, DAY))
        lock = "LOCK TABLE binance_spot.klines IN ACCESS EXCLUSIVE MODE"
        with (
            transaction_of_another_program(server.url, lock),
            pytest.raises(EnvironmentFaultError, match="It is too slow, or another program locks the table"),
        ):
            store.load(HOURS)
        assert store.load(HOURS).num_rows == 24


def test_table_of_another_form_is_one_sentence(server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.save(HOURS, day_table(HOURS, DAY))
    server.sql("ALTER TABLE binance_spot.klines RENAME COLUMN close TO last")
    with pytest.raises(EnvironmentFaultError, match="Its table has other columns"):
        postgres.load(HOURS)


# --- lost connections ------------------------------------------------------------------------------------------------


def test_lost_connection_is_opened_again(server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.save(HOURS, day_table(HOURS, DAY))
    others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'market-data'"
    assert server.sql(others) == "1"
    assert postgres.load(HOURS).num_rows == 24
    assert server.sql(others) == "1"
    assert postgres.save(HOURS, day_table(HOURS, DAY)).unchanged == 24


def test_table_that_was_dropped_is_made_again(server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.save(HOURS, day_table(HOURS, DAY))
    server.sql("DROP TABLE binance_spot.klines")
    assert postgres.load(HOURS).num_rows == 0
    assert postgres.save(HOURS, day_table(HOURS, DAY)).inserted == 24


WRITER = """
import sys
from datetime import date, timedelta
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.small_lake import day_table, series
key, day = series("BTCUSDT", "1m"), date(2024, 1, 1)
with PostgresStore(sys.argv[1], attempts=12, backoff_seconds=0.1) as store:
    for number in range(int(sys.argv[2])):
        store.save(key, day_table(key, day + timedelta(days=number), 1))
        print(number, flush=True)
"""


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process with the block, also if an assertion fails."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.slow
def test_server_killed_in_mid_write_loses_nothing() -> None:
    """Each acknowledged day is there after each kill, whole, and the writer goes on by itself."""
    number = 30
    with postgres_server() as server:
        command = [sys.executable, "-c", WRITER, server.url, str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer, ending(writer):
            assert writer.stdout is not None
            for line in writer.stdout:
                done = int(line) + 1
                if done in (3, 9, 20):
                    server.kill()
                    server.start()
                    with PostgresStore(server.url) as reader:
                        stored = reader.load(MINUTES)
                        expected = [day_table(MINUTES, day, 1) for day in days_from("2024-01-01", done)]
                        assert stored.slice(0, done * 1440).equals(pa.concat_tables(expected))
                        assert stored.num_rows % 1440 == 0
            assert writer.wait(600) == 0
        with PostgresStore(server.url) as reader:
            assert reader.load(MINUTES).num_rows == number * 1440
            assert reader.get_date_range(MINUTES) == (date(2024, 1, 1), date(2024, 1, number))


@pytest.mark.slow
def test_server_restarted_in_mid_write_is_waited_for() -> None:
    with postgres_server() as server, PostgresStore(server.url, attempts=12, backoff_seconds=0.1) as store:
        store.save(HOURS, day_table(HOURS, DAY))
        server.stop()
        with ThreadPoolExecutor(1) as thread:
            saving = thread.submit(store.save, HOURS, day_table(HOURS, DAY + timedelta(days=1)))
            server.start()
            assert saving.result(600).inserted == 24
        assert store.load(HOURS).num_rows == 48


# --- several writers -------------------------------------------------------------------------------------------------


def test_writers_at_once_agree_on_the_newest(database: str) -> None:
    """Eight writers save the same candles. No deadlock, and the row that was seen last stays."""
    start = threading.Barrier(8)

    def write(version: int) -> None:
        with PostgresStore(database, backoff_seconds=0.1) as store:
            start.wait(600)
            seen_at = datetime(2024, 3, 2, 0, version, tzinfo=UTC)
            store.save(MINUTES, day_table(MINUTES, DAY, version), RowState.LIVE, seen_at=seen_at)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    with PostgresStore(database) as store:
        assert store.load(MINUTES).equals(day_table(MINUTES, DAY, 7))


def test_final_rows_of_another_program_stay(server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.save(HOURS, day_table(HOURS, DAY, 1), RowState.FINAL)
    server.sql("UPDATE binance_spot.klines SET close = 99")
    postgres.save(HOURS, day_table(HOURS, DAY, 2), RowState.PROVISIONAL)
    assert pc.unique(postgres.load(HOURS)["close"]).to_pylist() == [99.0]


def test_threads_share_a_store(postgres: PostgresStore) -> None:
    keys = [series(symbol, "1h") for symbol in ("AUSDT", "BUSDT", "CUSDT", "DUSDT")]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: postgres.save(key, day_table(key, DAY, 3)), keys))
        loaded = list(threads.map(postgres.load, keys))
    assert all(rows.equals(day_table(key, DAY, 3)) for key, rows in zip(keys, loaded, strict=True))


def test_names_are_quoted_in_every_statement(server: PostgresServer, postgres: PostgresStore) -> None:
    key = series("x';DROP/**/TABLE/**/klines;--".replace("/", "_"), "1h")
    postgres.save(key, day_table(key, DAY))
    assert postgres.load(key, last=5).num_rows == 5
    assert postgres.delete(key) == 24
    assert server.sql("SELECT count(*) FROM binance_spot.klines") == "0"


@contextmanager
def transaction_of_another_program(url: str, statement: str) -> Iterator[None]:
    """Run a statement, and end its transaction after the block."""
    with adbc.connect(url) as connection:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        yield
        connection.rollback()
