"""What SQL may do through ``MarketData.sql`` and ``market-data sql``: which texts, which files, how much."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from market_data_pipeline import MarketData
from market_data_pipeline.cli import main
from market_data_pipeline.client.session import Views
from market_data_pipeline.errors import QueryLimitError, UsageError
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC, TRADES = series("BTCUSDT", "1h"), series("BTCUSDT")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    lake = SmallLake(tmp_path_factory.mktemp("door") / "data")
    lake.put(BTC, days_from("2024-01-01", 2))
    lake.put(TRADES, days_from("2024-01-01", 1))
    (lake.root / "dagster").mkdir()
    (lake.root / "dagster" / "runs.csv").write_text("a,b\n1,2\n")
    (lake.root / "quarantine").mkdir()
    (lake.root / "quarantine" / "refused.csv").write_text("a,b\n1,2\n")
    (lake.root / ".env").write_text("SECRET=1\n")
    return lake


@pytest.fixture(scope="module")
def market(lake: SmallLake) -> MarketData:
    return MarketData(lake.root)


def market_data(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


WITHOUT_GRACE = """\
from market_data_pipeline.cli import main
from market_data_pipeline.client import watchdog
watchdog._GRACE_SECONDS = 0.2
main()
"""
"""The command, but for the five seconds in which DuckDB may end a query by itself."""


def run_shell(
    lake: SmallLake,
    *arguments: str,
    stdout: IO[bytes] | None = None,
    command: Sequence[str] = ("-m", "market_data_pipeline.cli"),
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    ours = {"MARKET_DATA_DIR": str(lake.root), "MARKET_DATA_SQL_MEMORY_MB": "64", **settings}
    return subprocess.run(
        [sys.executable, *command, "sql", *arguments],
        env={**os.environ, **ours},
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )


# --- which texts -------------------------------------------------------------------------------------------------

QUERIES = (
    "SELECT 1",
    "(SELECT 1);",
    "SELECT 1 /* ; COPY */ ;; -- COPY",
    "\ufeffSELECT\u00a0'copy' AS \"copy\"",
    "VALUES (1)",
    "FROM binance_spot.klines",
    "TABLE binance_spot.klines",
    "FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')",
    "SELECT 1 UNION ALL SELECT 2",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) FROM r",
    "WITH x AS MATERIALIZED (SELECT 1) FROM x, range(2), unnest([1])",
    "DESCRIBE binance_spot.klines",
    "DESCRIBE SELECT 1",
    "SUMMARIZE binance_spot.klines",
    "SHOW ALL TABLES",
    "FROM (SHOW TABLES FROM binance_spot)",
    "PIVOT binance_spot.klines ON symbol USING max(open)",
    "FROM (PIVOT binance_spot.klines ON symbol IN ('BTCUSDT') USING max(open));",
    "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b INTO NAME name VALUE value",
    "EXPLAIN SELECT 1",
    "EXPLAIN\u2003(SELECT 1)",
    "explain/**/analyze -- é\n from binance_spot.klines",
    "EXPLAIN (FORMAT json) (SELECT 1) UNION (SELECT 2)",
    "EXPLAIN (ANALYZE, FORMAT json) WITH x AS (SELECT 1) FROM x",
    "EXPLAIN DESCRIBE binance_spot.klines",
    "EXPLAIN PIVOT binance_spot.klines ON symbol USING max(open)",
)

COPY = "COPY (SELECT 1) TO '/nowhere/x.csv'"
OTHERS = (
    "",
    " ; -- nothing",
    "SELECT 1; SELECT 2",
    f"EXPLAIN SELECT 1; {COPY}",
    COPY,
    f"EXPLAIN {COPY}",
    f"EXPLAIN ANALYZE {COPY}",
    f"explain /* */ analyze -- \n {COPY}",
    f"EXPLAIN\u00a0ANALYZE\u3000{COPY}",
    f"EXPLAIN (ANALYZE, FORMAT json) {COPY}",
    "EXPLAIN ANALYZE COPY binance_spot.klines FROM '/etc/passwd'",
    f"WITH x AS ({COPY}) SELECT 1",
    f"EXPLAIN ANALYZE WITH x AS ({COPY}) SELECT 1",
    f"WITH x AS ({COPY}) PIVOT binance_spot.klines ON symbol USING max(open)",
    "COPY (PIVOT binance_spot.klines ON symbol USING max(open)) TO '/nowhere/x.csv'",
    "EXPLAIN ANALYZE COPY (PIVOT binance_spot.klines ON symbol USING max(open)) TO '/nowhere/x.csv'",
    "CREATE TABLE x AS PIVOT binance_spot.klines ON symbol USING max(open)",
    "WITH x AS (DELETE FROM main.as_on_disk RETURNING *) FROM x",
    "WITH x AS (INSERT INTO main.as_on_disk SELECT * FROM main.as_on_disk RETURNING *) FROM x",
    "EXPLAIN ANALYZE DELETE FROM main.as_on_disk",
    "INSERT INTO binance_spot.klines SELECT * FROM binance_spot.klines",
    "CREATE TABLE t AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
    "DROP VIEW binance_spot.klines",
    "CREATE MACRO m() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "EXPLAIN PRAGMA version",
    "CALL pragma_version()",
    "EXPLAIN CALL pragma_version()",
    "SET threads = 1",
    "SET memory_limit = '8GB'",
    "RESET threads",
    "SET VARIABLE x = 1",
    "USE quality",
    "ATTACH ':memory:' AS other",
    "EXPORT DATABASE '/nowhere'",
    "IMPORT DATABASE '/nowhere'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN EXECUTE p",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    # Table functions that do more than read, or run a text that nobody has looked at.
    "FROM enable_logging(storage = 'file', storage_config = {'path': '/nowhere'})",
    "SELECT (SELECT count(*) FROM \"Enable_Profiling\"(save_location := '/nowhere'))",
    "PIVOT (SELECT 1 AS a FROM enable_logging()) ON a USING max(a)",
    "FROM query('SELECT 1')",
    "FROM system.main.query('SELECT 1')",
    "PIVOT (FROM \"query\" /**/ ('SELECT 1 AS a')) ON a USING max(a)",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "FROM force_checkpoint()",
)


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_answered(market: MarketData, query: str) -> None:
    assert market.sql(query).arrow().num_rows


@pytest.mark.parametrize("text", OTHERS)
def test_anything_but_a_query_is_refused(market: MarketData, text: str) -> None:
    with pytest.raises(UsageError, match=r"One query is answered|cannot use a table function"):
        market.sql(text)


@pytest.mark.parametrize("text", ["SELEC 1", "'; DROP TABLE x; --"])
def test_text_that_is_no_sql_is_refused(market: MarketData, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be run"):
        market.sql(text)


def test_query_of_rows_imports_no_library_of_frames(lake: SmallLake) -> None:
    """Each process of the server's SQL would wait for it. PyArrow imports pandas when it makes an array of a list."""
    script = (
        "import sys; from market_data_pipeline import MarketData; market = MarketData(sys.argv[1])\n"
        "market.sql('FROM binance_spot.klines').arrow()\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", script, str(lake.root)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "duckdb" in printed
    assert {"pandas", "polars", "fastapi"}.intersection(printed) == set()


def test_query_that_is_nested_too_deeply_is_refused(market: MarketData) -> None:
    with pytest.raises(UsageError, match=r"nested|cannot be run"):
        market.sql("SELECT * FROM (" * 5000 + "SELECT 1" + ")" * 5000)


def test_shell_refuses_what_overwrites_a_day(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(lake.root))
    path = lake.layout.file(BTC, days_from("2024-01-01", 1)[0])
    before = path.read_bytes()
    for prefix in ("", "EXPLAIN ANALYZE ", "WITH x AS ("):
        end = ") SELECT 1" if "(" in prefix else ""
        result = market_data("sql", f"{prefix}COPY (SELECT 1 AS x) TO '{path}' (FORMAT parquet){end}")
        assert result.exit_code == 2
        assert "One query is answered at a time" in result.stderr
    assert path.read_bytes() == before


def test_unrestricted_shell_runs_any_sql(lake: SmallLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(lake.root))
    copy = f"COPY (SELECT count(*) AS n FROM binance_spot.klines) TO '{tmp_path}/n.csv'"
    assert market_data("sql", "--unrestricted", copy).exit_code == 0
    answer = market_data("sql", "--unrestricted", "--csv", f"FROM '{tmp_path}/n.csv'")
    assert answer.stdout == "n\n48\n"
    assert market_data("sql", f"FROM '{tmp_path}/n.csv'").exit_code == 2


# --- which files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "read_text('/etc/hostname')",
        "read_blob('/proc/self/environ')",
        "read_csv('http://127.0.0.1:9/x.csv')",
        "read_parquet('https://example.org/x.parquet')",
        "read_csv('/dev/stdin')",
        "sniff_csv('/etc/passwd')",
        "read_json('/etc/passwd')",
        "glob('/**')",
        "glob('/etc/*')",
        "'/etc/passwd.csv'",
        "query_table('/etc/passwd.csv')",
        "parquet_metadata('{root}/../x.parquet')",
        "read_text('{root}/.env')",
        "read_text('{root}/lake/../.env')",
        "glob('{root}/*')",
        "read_csv('{root}/dagster/runs.csv')",
        "'{root}/quarantine/refused.csv'",
        "read_text('{root}/lake/link/runs.csv')",
        "frame",
        "getenv('HOME')",
    ],
)
def test_query_reaches_the_files_of_the_views_only(lake: SmallLake, market: MarketData, source: str) -> None:
    frame = pd.DataFrame({"a": [1]})
    link = lake.root / "lake" / "link"
    if not link.exists():
        link.symlink_to(lake.root / "dagster")
    with pytest.raises(UsageError, match=r"may read the files|does not exist|cannot use|cannot be run"):
        market.sql("FROM " + source.format(root=lake.root)).df()
    assert len(frame) == 1


def test_query_finds_no_secrets(market: MarketData) -> None:
    with pytest.raises(UsageError, match="duckdb_secrets"):
        market.sql("FROM duckdb_secrets()")
    settings = market.sql("SELECT name, value FROM duckdb_settings()").df().set_index("name")["value"]
    assert settings["allow_persistent_secrets"] == "false"
    assert settings["lock_configuration"] == "true"
    assert settings["enable_external_access"] == "false"


def test_query_reads_files_of_the_lake(lake: SmallLake, market: MarketData) -> None:
    assert market.sql(f"FROM glob('{lake.root}/lake/binance/spot/*/daily/**/*.parquet')").arrow().num_rows == 3
    assert market.sql(f"FROM read_parquet('{lake.root}/ledger/**/*.parquet', union_by_name = true)").arrow().num_rows


def test_lake_and_root_may_be_links(lake: SmallLake, tmp_path: Path) -> None:
    """Someone who has the trades on another disk links to them."""
    linked = tmp_path / "data"
    linked.mkdir()
    for name in ("ledger", "lake/binance/spot/klines/daily/BTCUSDT", "lake/binance/spot/aggTrades"):
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(lake.root / name)
    (tmp_path / "root").symlink_to(linked)
    for root in (linked, tmp_path / "root"):
        market = MarketData(root)
        assert market.sql("FROM binance_spot.klines").arrow().num_rows == 48
        assert market.sql("FROM binance_spot.agg_trades").arrow().num_rows
        assert market.sql("FROM quality.coverage").arrow().num_rows == 3


# --- how much ----------------------------------------------------------------------------------------------------

ENDLESS = (
    "SELECT count(*) FROM range(1000000000000) a, range(1000000) b",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    "SELECT sleep_ms(60000)",
)
LARGE = (
    "SELECT list(range) FROM range(100000000)",
    "FROM range(1000000000000)",
    "SELECT md5(range::VARCHAR) AS m FROM range(20000000) ORDER BY m",
)


@pytest.mark.parametrize("query", ENDLESS)
def test_query_that_takes_too_long_is_ended(lake: SmallLake, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.setenv("MARKET_DATA_SQL_SECONDS", "0.5")
    market = MarketData(lake.root)
    with pytest.raises(QueryLimitError, match=r"longer than 0\.5 seconds.*MARKET_DATA_SQL_SECONDS"):
        market.sql(query).df()
    assert market.sql("SELECT 1").arrow().num_rows == 1


@pytest.mark.parametrize("query", LARGE)
def test_query_that_takes_too_much_is_ended(lake: SmallLake, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.setenv("MARKET_DATA_SQL_MEMORY_MB", "64")
    monkeypatch.setenv("MARKET_DATA_SQL_DISK_MB", "1")
    market = MarketData(lake.root)
    with pytest.raises(QueryLimitError, match=r"64 MB.*MARKET_DATA_SQL_MEMORY_MB"):
        market.sql(query).arrow()
    assert market.sql("SELECT 1").arrow().num_rows == 1


@pytest.mark.slow
def test_shell_streams_rows_beyond_the_memory(lake: SmallLake, tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("wb") as file:
        ended = run_shell(lake, "--csv", "SELECT repeat('😀', 1000) AS x FROM range(37500)", stdout=file)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "x.csv").stat().st_size > 150_000_000


def test_leftovers_of_a_killed_process_are_removed(lake: SmallLake) -> None:
    old, ours, new = (lake.root / f".sql-{process}-0" for process in (2**22 + 1, os.getpid(), 2**22 + 2))
    for folder in (old, ours, new):
        folder.mkdir()
        (folder / "duckdb_temp_storage.tmp").write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(ours, (0, 0))
    MarketData(lake.root).sql("SELECT 1")
    assert [folder.exists() for folder in (old, ours, new)] == [False, True, True]


def test_spilled_data_lies_below_the_root_and_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_SQL_MEMORY_MB", "64")
    market = MarketData(tmp_path)
    wide = "SELECT repeat(md5(range::VARCHAR), 8) AS m FROM range(400000)"
    query = f"SELECT count(*) AS n FROM ({wide} ORDER BY m LIMIT 390000)"
    relation = market.sql(query).relation()
    assert relation.fetchall() == [(390_000,)]
    (folder,) = tmp_path.glob(f".sql-{os.getpid()}-*")
    assert folder.is_dir()
    del market, relation
    gc.collect()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "seconds", "said"),
    [
        # One function of one row, within which DuckDB looks at no limit.
        ("SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))", "1", "longer than 1 seconds"),
        ("SELECT length(repeat('x', 1000000000) || repeat('y', 1000000000))", "100", "more than 64 MB"),
    ],
)
def test_shell_ends_a_query_that_duckdb_does_not(lake: SmallLake, query: str, seconds: str, said: str) -> None:
    ended = run_shell(lake, query, command=("-c", WITHOUT_GRACE), MARKET_DATA_SQL_SECONDS=seconds)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert said in line


def test_views_and_rows_of_files_have_connections_of_their_own(market: MarketData, tmp_path: Path) -> None:
    """Rows of files may be written anywhere, by DuckDB too; those of a query by what they are handed out as."""
    market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").relation().write_parquet(f"{tmp_path}/x.parquet")
    assert (tmp_path / "x.parquet").exists()
    assert isinstance(market._views, Views)


def test_views_that_a_query_does_not_name_are_found_all_the_same(tmp_path: Path) -> None:
    """Views are made when a query names them. Lists, computed names and mistakes see all."""
    lake = SmallLake(tmp_path / "data")
    lake.put(BTC, days_from("2024-01-01", 1))
    market = MarketData(lake.root)
    assert market.sql('SELECT count(*) AS n FROM "BINANCE_SPOT" . Klines').df()["n"].tolist() == [24]
    assert (
        "gaps"
        in market.sql("SELECT view_name FROM duckdb_views() WHERE schema_name <> 'binance_spot'")
        .df()["view_name"]
        .to_numpy()
    )
    fresh = MarketData(lake.root)
    assert "binance_um" in fresh.sql("SHOW ALL TABLES").df()["schema"].to_numpy()
    with pytest.raises(UsageError, match="klines"):
        MarketData(lake.root).sql("FROM binance_spot.kline")


def test_relation_can_be_joined_with_another_view(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path / "data")
    lake.put(BTC, days_from("2024-01-01", 1))
    market = MarketData(lake.root)
    rows = market.sql("SELECT symbol FROM binance_spot.klines LIMIT 1").relation()
    joined = rows.query("r", "SELECT state FROM r JOIN quality.coverage USING (symbol)")
    assert joined is not None
    assert joined.fetchall() == [("final",)]


def test_view_follows_the_lake_after_queries_of_others(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path / "data")
    market = MarketData(lake.root)
    count = "SELECT count(*) AS n FROM binance_spot.klines"
    assert market.sql(count).df()["n"].tolist() == [0]
    lake.put(BTC, days_from("2024-01-01", 1))
    assert len(market.sql("FROM quality.coverage")) == 1
    assert market.sql(count).df()["n"].tolist() == [24]
