"""The catalog as any SQL tool sees it: a DuckDB file with views and macros."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.day import FAILED, DayRecord
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Finding, Range, Severity, Verdict
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.small_lake import TRADES_A_DAY, SmallLake, days_from, series

BTC = series("BTCUSDT", "1h")
at = datetime.fromisoformat
SCHEMAS = [(market, data_type) for market in Market for data_type in data_types_of(market)]


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    return SmallLake(tmp_path / "data")


def ask(lake: SmallLake, query: str) -> list[Any]:
    """What a tool that opens the published catalog gets."""
    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The open catalog of an empty lake."""
    lake = SmallLake(tmp_path_factory.mktemp("empty") / "data")
    with duckdb.connect(publish_catalog(lake.layout), read_only=True) as reader:
        yield reader


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The open catalog of a lake with a day of each data type."""
    lake = SmallLake(tmp_path_factory.mktemp("full") / "data")
    for market, data_type in SCHEMAS:
        lake.put(series("AUSDT", "1h" if data_type.has_interval else None, market, data_type), [date(2024, 1, 1)])
    with duckdb.connect(publish_catalog(lake.layout), read_only=True) as reader:
        yield reader


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """A lake of five days that tests only read."""
    lake = SmallLake(tmp_path_factory.mktemp("stored") / "data")
    for key in (BTC, series("ETHUSDT", "1h"), series("BTCUSDT", "1h", "um")):
        lake.put(key, days_from("2024-01-01", 5))
    lake.put(series("BTCUSDT"), days_from("2024-01-01", 3))
    publish_catalog(lake.layout)
    return lake


@pytest.fixture
def reader(stored: SmallLake) -> Iterator[duckdb.DuckDBPyConnection]:
    """The open catalog of the lake that tests only read."""
    with duckdb.connect(stored.layout.catalog, read_only=True) as reader:
        yield reader


@pytest.mark.parametrize(("market", "data_type"), SCHEMAS)
def test_an_empty_lake_has_every_view_typed_as_its_files_will_be(
    empty: duckdb.DuckDBPyConnection, full: duckdb.DuckDBPyConnection, market: Market, data_type: DataType
) -> None:
    view = f"binance_{market}.{data_type.sql_name}"
    assert empty.execute(f"FROM {view}").fetchall() == []
    assert full.execute(f"SELECT count(*) > 0 FROM {view}").fetchall() == [(True,)]
    columns = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
    before = empty.execute(columns).fetchall()
    assert [name for name, _ in before] == lake_schema(market, data_type).names
    assert full.execute(columns).fetchall() == before


@pytest.mark.parametrize("view", ["coverage", "findings", "gaps", "condition", "reconciliation"])
def test_an_empty_lake_has_quality_views_typed_as_with_ledgers(
    empty: duckdb.DuckDBPyConnection, full: duckdb.DuckDBPyConnection, view: str
) -> None:
    columns = f"SELECT column_name, column_type FROM (DESCRIBE quality.{view})"
    assert empty.execute(columns).fetchall() == full.execute(columns).fetchall() != []


def test_view_names_symbol_and_interval_and_finds_new_files(lake: SmallLake) -> None:
    """New days and symbols need no other statement."""
    lake.put(BTC, days_from("2024-01-01", 2))
    counts = "SELECT symbol, interval, count(*) FROM binance_spot.klines GROUP BY ALL ORDER BY ALL"
    path = publish_catalog(lake.layout)
    with duckdb.connect(str(path), read_only=True) as reader:
        assert reader.execute(counts).fetchall() == [("BTCUSDT", "1h", 48)]
        lake.put(series("币安人生USDT", "1d"), days_from("2024-01-01", 3))
        assert reader.execute(counts).fetchall() == [("BTCUSDT", "1h", 48), ("币安人生USDT", "1d", 3)]


def test_a_view_prunes_files_by_symbol_without_opening_them(lake: SmallLake) -> None:
    lake.put(BTC, days_from("2024-01-01", 2))
    lake.put(series("XUSDT", "1h"), days_from("2024-01-01", 2))
    damaged = lake.layout.file(series("XUSDT", "1h"), date(2024, 1, 2))
    damaged.write_bytes(b"damaged")
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines WHERE symbol = 'BTCUSDT' AND interval = '1h'") == [(48,)]


def test_macros_take_one_series_of_a_range(reader: duckdb.DuckDBPyConnection) -> None:
    def rows(query: str) -> list[Any]:
        return reader.execute(query).fetchall()

    candles = (
        "SELECT symbol, interval, min(open_time), max(open_time), count(*) FROM binance_spot.candles({}) GROUP BY ALL"
    )
    assert rows(candles.format("'BTCUSDT', '1h', '2024-01-02 12:00', '2024-01-04'")) == [
        ("BTCUSDT", "1h", at("2024-01-02T12:00"), at("2024-01-03T23:00"), 36)
    ]
    assert rows(candles.format("'ETHUSDT', '1h', DATE '2024-01-05'"))[0][-1] == 24
    assert rows(candles.format("'BTCUSDT', '1h', '2024-01-01', b := TIMESTAMP '2024-01-01 00:00:01'"))[0][-1] == 1
    trades = "SELECT symbol, count(*) FROM binance_spot.trades('BTCUSDT', '2024-01-02', '2024-01-04') GROUP BY ALL"
    assert rows(trades) == [("BTCUSDT", 2 * TRADES_A_DAY)]


@pytest.mark.parametrize(
    "rest",
    [
        "candles('BTCUSDT', '1h', (SELECT TIMESTAMP '2024-01-02'), '2024-01-04')",
        "(VALUES (DATE '2024-01-02', DATE '2024-01-04')) AS t(a, b), binance_spot.candles('BTCUSDT', '1h', t.a, t.b)",
        "candles('BTCUSDT', '1h', '2024-01-02 02:00+02'::TIMESTAMPTZ, getvariable('end'))",
    ],
    ids=["subquery", "another table's column", "variable"],
)
def test_macros_take_moments_from_anywhere(reader: duckdb.DuckDBPyConnection, rest: str) -> None:
    table = rest if rest.startswith("(") else f"binance_spot.{rest}"
    reader.execute("SET TimeZone = 'UTC'; SET VARIABLE \"end\" = TIMESTAMP '2024-01-04'")
    assert reader.execute(f"SELECT count(*) FROM {table}").fetchall() == [(48,)]


SECOND_DAY = (
    "'2024-01-02'",
    "'2024-01-02 00:00:00'",
    "'2024-01-02T00:00:00Z'",
    "'2024-01-02T02:00+02:00'",
    "'2024-01-02T02:00:00+0200'",
    "'2024-01-01 18:30:00-05:30'",
    "DATE '2024-01-02'",
    "TIMESTAMP '2024-01-02'",
    "TIMESTAMP_S '2024-01-02'",
    "TIMESTAMP_MS '2024-01-02'",
    "TIMESTAMP_NS '2024-01-02'",
    "TIMESTAMPTZ '2024-01-02 00:00:00+00'",
    "TIMESTAMPTZ '2024-01-02 05:45:00+05:45'",
    "(SELECT TIMESTAMPTZ '2024-01-02 00:00:00+00')",
    "CAST($1 AS TIMESTAMPTZ)",
    "$1",
)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_macros_take_moments_as_python_does_in_any_zone(reader: duckdb.DuckDBPyConnection, zone: str) -> None:
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    reader.execute(f"SET TimeZone = '{zone}'")

    def first_and_rows(macro: str, rest: str) -> tuple[Any, ...]:
        time = "open_time" if macro == "candles" else "transact_time"
        labels = "'BTCUSDT', '1h'" if macro == "candles" else "'BTCUSDT'"
        query = f"SELECT min({time}), count(*) FROM binance_spot.{macro}({labels}, {rest})"
        return reader.execute(query, [moment] if "$1" in rest else []).fetchone() or ()

    for text in SECOND_DAY:
        assert first_and_rows("candles", text) == (at("2024-01-02"), 4 * 24), text
        assert first_and_rows("candles", f"'2024-01-01', {text}") == (at("2024-01-01"), 24), text
        assert first_and_rows("trades", text) == (at("2024-01-02"), 2 * TRADES_A_DAY), text


@pytest.mark.parametrize(
    ("rest", "rows"),
    [
        ("NULL", 120),
        ("NULL, NULL", 120),
        ("'2024-01-02', NULL", 96),
        ("'2024-01-02', (SELECT NULL::TIMESTAMPTZ)", 96),
        ("'-infinity', 'infinity'", 120),
        ("DATE '-infinity', TIMESTAMPTZ 'infinity'", 120),
        ("'infinity'", 0),
        ("'2024-01-01', '-infinity'", 0),
        ("'2024-01-03', '2024-01-01'", 0),
    ],
)
def test_macros_take_bounds_that_are_open(reader: duckdb.DuckDBPyConnection, rest: str, rows: int) -> None:
    query = f"SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', {rest})"
    assert reader.execute(query).fetchall() == [(rows,)]


@pytest.mark.parametrize("moment", ["5", "20240102", "1.5", "true", "'yesterday'", "''", "'2024-01-02Z'", "[1]"])
def test_macros_refuse_what_is_no_moment(reader: duckdb.DuckDBPyConnection, moment: str) -> None:
    with pytest.raises(duckdb.Error, match=r"TIMESTAMP|timestamp"):
        reader.execute(f"SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', {moment})")


def test_macros_follow_clocks_that_are_set_back(lake: SmallLake) -> None:
    """In New York, 01:30 came twice on 2024-11-03."""
    lake.put(series("BTCUSDT", "1m"), [date(2024, 11, 3)])
    between = "'2024-11-03 01:30:00-04'::TIMESTAMPTZ, '2024-11-03 01:30:00-05'::TIMESTAMPTZ"
    with duckdb.connect(publish_catalog(lake.layout), read_only=True) as reader:
        reader.execute("SET TimeZone = 'America/New_York'")
        query = f"SELECT min(open_time), count(*) FROM binance_spot.candles('BTCUSDT', '1m', {between})"
        assert reader.execute(query).fetchall() == [(at("2024-11-03T05:30"), 60)]


def test_macros_open_no_file_of_other_days_months_or_series(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 4, 5, tzinfo=UTC))
    lake.put(BTC, days_from("2024-01-01", 91))
    lake.put(series("BTCUSDT", "1m"), days_from("2024-02-01", 1))
    lake.put(series("BTCUSDT"), days_from("2024-01-01", 3))
    close_months(lake.layout, BTC)
    lake.layout.month(BTC, date(2024, 3, 1)).unlink()  # its days are read again
    for day in ("2024-03-03", "2024-03-06"):
        lake.layout.file(BTC, date.fromisoformat(day)).write_bytes(b"damaged")
    for damaged in (
        lake.layout.month(BTC, date(2024, 1, 1)),
        lake.layout.file(BTC, date(2024, 2, 29)),  # its month is read
        lake.layout.file(series("BTCUSDT", "1m"), date(2024, 2, 1)),
        lake.layout.file(series("BTCUSDT"), date(2024, 1, 3)),
    ):
        damaged.write_bytes(b"damaged")
    candles = "SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', {})"
    assert ask(lake, candles.format("'2024-02-01', '2024-02-29 12:00'")) == [(28 * 24 + 12,)]
    assert ask(lake, candles.format("'2024-02-01', '2024-03-02 12:00'")) == [(30 * 24 + 12,)]
    assert ask(lake, candles.format("'2024-03-04', '2024-03-05 01:00'")) == [(25,)]
    assert ask(lake, "SELECT count(*) FROM binance_spot.trades('BTCUSDT', '2024-01-01', '2024-01-03')") == [
        (2 * TRADES_A_DAY,)
    ]


@pytest.mark.parametrize("market", [Market.SPOT, Market.UM, Market.CM])
def test_macros_give_the_columns_of_the_view_in_its_order(
    empty: duckdb.DuckDBPyConnection, full: duckdb.DuckDBPyConnection, market: Market
) -> None:
    for catalog in (empty, full):

        def columns(table: str, catalog: duckdb.DuckDBPyConnection = catalog) -> list[Any]:
            return catalog.execute(f"DESCRIBE FROM binance_{market}.{table}").fetchall()

        candles = columns("candles('AUSDT', '1h', '2024-01-01')")
        assert candles[:-2] == columns("klines")
        assert [row[:2] for row in candles[-2:]] == [("parts", "BIGINT"), ("complete", "BOOLEAN")]
        assert columns("trades('AUSDT', '2024-01-01')") == columns("agg_trades")


def test_macros_are_empty_for_unknown_and_right_for_later_series(lake: SmallLake) -> None:
    """Series that came after the catalog was published are found."""
    lake.put(BTC, days_from("2024-01-01", 2))
    path = publish_catalog(lake.layout)
    with duckdb.connect(str(path), read_only=True) as reader:
        for args in (
            "'NOPE', '1h', '2024-01-01'",
            "NULL, '1h', '2024-01-01'",
            "'BTC*', '1h', '2024-01-01'",
            "'BTCUSDT', '3m', '2024-01-01'",
            "'BTCUSDT', '1h', '2030-01-01'",
        ):
            assert reader.execute(f"FROM binance_spot.candles({args})").fetchall() == []
        lake.put(series("AAAUSDT", "1h"), [date(2024, 1, 1)])
        lake.put(BTC, [date(2024, 1, 3)])
        count = "SELECT count(*) FROM binance_spot.candles('{}', '1h', '2024-01-01')"
        assert reader.execute(count.format("AAAUSDT")).fetchall() == [(24,)]
        assert reader.execute(count.format("BTCUSDT")).fetchall() == [(72,)]


def test_times_do_not_depend_on_the_zone_of_the_session(reader: duckdb.DuckDBPyConnection) -> None:
    reader.execute("SET TimeZone = 'America/New_York'")
    by_day = (
        "SELECT CAST(open_time AS DATE), count(*) FROM binance_spot.klines WHERE symbol = 'BTCUSDT' GROUP BY ALL "
        "ORDER BY ALL"
    )
    assert reader.execute(by_day).fetchall() == [(day, 24) for day in days_from("2024-01-01", 5)]
    candles = "SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-02', '2024-01-03')"
    assert reader.execute(candles).fetchall() == [(24,)]


def test_coverage_counts_stored_provisional_and_failed_days(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    lake.put(BTC, [date(2024, 1, 2)], final=False)
    failed = DayRecord(
        day=date(2024, 1, 3), outcome=FAILED, failure="checksum", reason="The checksum differs.", attempts=2
    )
    lake.note(BTC, failed)
    lake.put(series("BTCUSD_PERP", None, "cm"), [date(2024, 1, 1)])
    names = 'exchange, market, data_type, symbol, "interval", day'
    assert ask(lake, f"SELECT {names} FROM quality.coverage WHERE day = '2024-01-01' ORDER BY market DESC") == [
        ("binance", "spot", "klines", "BTCUSDT", "1h", date(2024, 1, 1)),
        ("binance", "cm", "aggTrades", "BTCUSD_PERP", None, date(2024, 1, 1)),
    ]
    facts = 'outcome, final, "rows", source, checksum, failure, attempts'
    assert ask(lake, f"SELECT {facts} FROM quality.coverage WHERE market = 'spot' ORDER BY day") == [
        ("held", True, 24, "archive_daily", "verified", None, 1),
        ("held", False, 24, "rest", None, None, 1),
        ("failed", False, 0, None, None, "checksum", 2),
    ]


def test_findings_have_a_row_a_range_with_moments_for_klines(lake: SmallLake) -> None:
    hour = 3_600_000_000
    day = date(2024, 1, 1)
    midnight = clock.day_start_us(day)
    gap = Finding(
        check="gaps",
        rule="unpublished",
        severity=Severity.WARN,
        count=3,
        message="3 candles are missing.",
        ranges=(
            Range(first=midnight, last=midnight + hour, count=2),
            Range(first=midnight + 5 * hour, last=midnight + 5 * hour, count=1),
        ),
    )
    odd = Finding(check="integrity", rule="close_time", severity=Severity.WARN, count=1, message="Cut short.")
    lake.put(BTC, [day], findings=(gap, odd))
    lake.put(BTC, [date(2024, 1, 2)])
    assert ask(
        lake,
        "SELECT symbol, day, check_name, severity, count, range_count, first_time, last_time "
        "FROM quality.findings ORDER BY check_name, first_time",
    ) == [
        ("BTCUSDT", day, "gaps", "warn", 3, 2, at("2024-01-01T00:00"), at("2024-01-01T01:00")),
        ("BTCUSDT", day, "gaps", "warn", 3, 1, at("2024-01-01T05:00"), at("2024-01-01T05:00")),
        ("BTCUSDT", day, "integrity", "warn", 1, None, None, None),
    ]


def gap(rule: str, count: int, ranges: list[tuple[int, int, int]], evidence: str = "") -> Finding:
    return Finding(
        check="gaps",
        rule=rule,
        severity=VERDICT_SEVERITY[Verdict(rule)],
        count=count,
        message="Some.",
        ranges=tuple(Range(first=first, last=last, count=number) for first, last, number in ranges),
        evidence=evidence,
    )


def test_gaps_have_one_row_per_range_with_verdict_and_evidence(lake: SmallLake) -> None:
    """A column shows if the range is explained."""
    day, hour = date(2024, 1, 1), 3_600_000_000
    midnight = clock.day_start_us(day)
    outage = gap(
        "outage", 3, [(midnight, midnight + hour, 2), (midnight + 5 * hour, midnight + 5 * hour, 1)], "REST has none."
    )
    odd = Finding(check="integrity", rule="close_time", severity=Severity.WARN, count=1, message="Cut short.")
    told = Finding(check="gaps", rule="became_final", severity=Severity.INFO, count=2, message="Two rows changed.")
    lake.put(BTC, [day], findings=(outage, odd, told))
    lake.put(series("BTCUSDT"), [day], findings=(gap("archive_defect", 7, [(100, 106, 7)]),))
    assert ask(
        lake,
        'SELECT data_type, "interval", day, verdict, first, last, first_id, last_id, count, severity, explained, '
        "evidence FROM quality.gaps ORDER BY data_type, first",
    ) == [
        ("aggTrades", None, day, "archive_defect", None, None, 100, 106, 7, "error", False, ""),
        ("klines", "1h", day, "outage", at("2024-01-01T00:00"), at("2024-01-01T01:00"), None, None, 2, "info", True,
         "REST has none."),
        ("klines", "1h", day, "outage", at("2024-01-01T05:00"), at("2024-01-01T05:00"), None, None, 1, "info", True,
         "REST has none."),
    ]  # fmt: skip


def test_rows_beyond_stored_ranges_are_one_row_without_bounds(lake: SmallLake) -> None:
    lake.put(
        series("BTCUSDT"), [date(2024, 1, 1)], findings=(gap("outage", 10, [(1, 4, 4)]), gap("unpublished", 0, []))
    )
    assert ask(lake, "SELECT verdict, first_id, last_id, count FROM quality.gaps ORDER BY ALL") == [
        ("outage", 1, 4, 4),
        ("outage", None, None, 6),
        ("unpublished", None, None, 0),
    ]


def test_coverage_shows_the_state_of_each_day(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    lake.put(BTC, [date(2024, 1, 2)], findings=(gap("outage", 2, []),))
    lake.put(BTC, [date(2024, 1, 3)], final=False)
    lake.note(BTC, DayRecord(day=date(2024, 1, 4), outcome=FAILED))
    states = "SELECT state, verdicts, content_sha256 IS NOT NULL FROM quality.coverage ORDER BY day"
    assert ask(lake, states) == [
        ("final", "", True),
        ("outage", "outage", True),
        ("provisional", "", True),
        ("failed", "", False),
    ]


def test_ledgers_of_an_older_version_without_columns_are_read(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    ledger = lake.layout.ledger(BTC)
    parquet.write_table(ledger, parquet.read_table(ledger).drop_columns(["verdicts", "replaced_by", "etag"]))
    assert ask(lake, "SELECT state, verdicts, etag FROM quality.coverage") == [("final", None, None)]
    assert ask(lake, "FROM quality.gaps") == []


def test_catalog_is_rebuilt_for_a_new_series_and_not_for_days(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    first = publish_catalog(lake.layout).stat()
    lake.put(BTC, [date(2024, 1, 2)])
    assert publish_catalog(lake.layout).stat().st_ino == first.st_ino
    lake.put(series("ETHUSDT", "1h"), [date(2024, 1, 1)])
    assert publish_catalog(lake.layout).stat().st_ino != first.st_ino


def test_a_catalog_that_was_deleted_or_overwritten_is_made_again(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    publish_catalog(lake.layout).unlink()
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines") == [(24,)]
    lake.layout.catalog.write_bytes(b"no database")
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines") == [(24,)]


def test_a_lake_that_was_moved_gets_a_catalog_of_its_new_place(lake: SmallLake, tmp_path: Path) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    publish_catalog(lake.layout)
    lake.root.rename(tmp_path / "moved")
    assert ask(SmallLake(tmp_path / "moved"), "SELECT count(*) FROM binance_spot.klines") == [(24,)]


def test_a_series_that_lost_all_its_files_leaves_its_view_empty(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    publish_catalog(lake.layout)
    lake.layout.file(BTC, date(2024, 1, 1)).unlink()
    assert ask(lake, "FROM binance_spot.klines") == []
    assert ask(lake, "FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')") == []


def test_reader_continues_while_another_catalog_is_published(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as reader:
        lake.put(series("BTCUSDT"), [date(2024, 1, 1)])
        publish_catalog(lake.layout)
        assert reader.execute("SELECT count(*) FROM binance_spot.klines").fetchall() == [(24,)]
    assert ask(lake, "SELECT count(*) FROM binance_spot.agg_trades") == [(TRADES_A_DAY,)]


def test_publication_works_while_a_tool_has_the_file_open(lake: SmallLake) -> None:
    """The tool opened it for writing."""
    lake.put(BTC, [date(2024, 1, 1)])
    path = publish_catalog(lake.layout)
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline() == "open\n"
        lake.put(series("BTCUSDT"), [date(2024, 1, 1)])
        assert ask(lake, "SELECT count(*) FROM binance_spot.agg_trades") == [(TRADES_A_DAY,)]
        tool.communicate()


def test_many_may_publish_at_once(lake: SmallLake) -> None:
    def grow(n: int) -> None:
        lake.put(series(f"S{n}USDT", "1h"), [date(2024, 1, 1)])
        publish_catalog(lake.layout)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(grow, range(8)))
    ino = lake.layout.catalog.stat().st_ino
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines") == [(8 * 24,)]
    assert lake.layout.catalog.stat().st_ino == ino, "the last to publish had not seen all series"


def test_the_file_is_of_the_format_that_duckdb_1_reads(lake: SmallLake) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{publish_catalog(lake.layout)}' AS published (READ_ONLY)")
        (tags,) = connection.execute(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'published'"
        ).fetchone() or ({},)
    assert tags["storage_version"] == "v1.0.0+"


def test_any_letters_may_be_in_the_path_of_the_root(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path / "o'[data] {x} *?")
    lake.put(BTC, days_from("2024-01-01", 2))
    lake.put(series("BTCUSDT"), [date(2024, 1, 1)])
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines WHERE symbol = 'BTCUSDT'") == [(48,)]
    assert ask(lake, "SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-02')") == [(24,)]
    assert ask(lake, "SELECT DISTINCT symbol, data_type FROM quality.coverage ORDER BY 2") == [
        ("BTCUSDT", "aggTrades"),
        ("BTCUSDT", "klines"),
    ]


def test_files_and_folders_that_are_no_series_are_passed_over(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 1)])
    folder = lake.layout.folder(BTC)
    for stray in (
        folder / "notes.parquet",
        folder / ".2024-01-02.parquet.1-ab.tmp",
        folder.parent / "7m" / "x.parquet",
    ):
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"")
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines") == [(24,)]
    assert known_series(lake.layout) == [BTC]


def test_no_view_depends_on_a_file_of_a_day(lake: SmallLake) -> None:
    trades = series("BTCUSDT")
    lake.put(trades, days_from("2024-01-01", 2))
    lake.layout.file(trades, date(2024, 1, 1)).write_bytes(b"damaged")
    lake.put(BTC, [date(2024, 1, 1)])
    assert ask(lake, "SELECT count(*) FROM binance_spot.klines") == [(24,)]
    assert ask(lake, "SELECT count(*) FROM binance_spot.trades('BTCUSDT', '2024-01-02')") == [(TRADES_A_DAY,)]
    with pytest.raises(duckdb.Error, match=str(lake.layout.file(trades, date(2024, 1, 1)))):
        ask(lake, "SELECT count(*) FROM binance_spot.agg_trades")


def test_stored_series_are_known_by_ledger_or_by_files(lake: SmallLake) -> None:
    trades, perp = series("BTCUSDT"), series("BTCUSD_PERP", "1d", "cm")
    lake.put(BTC, [date(2024, 1, 1)])
    lake.layout.ledger(BTC).unlink()
    lake.note(trades, DayRecord(day=date(2024, 1, 1), outcome=FAILED))
    lake.put(perp, [date(2024, 1, 1)])
    assert known_series(lake.layout) == sorted([BTC, trades, perp])
    assert known_series(SmallLake(lake.root / "nowhere").layout) == []
