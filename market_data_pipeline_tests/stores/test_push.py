"""``market-data push``: what a user sees of copies, of old days that go, and of faults."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from market_data_pipeline import clock
from market_data_pipeline.cli import main
from market_data_pipeline.stores.base import RowState
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.postgres import PostgresServer
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

BTC, TRADES = series("BTCUSDT", "1h"), series("BTCUSDT")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """A lake with ten final days and today; it is noon of 2024-01-11."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 11, 12, tzinfo=UTC))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lake = SmallLake(tmp_path)
    lake.put(BTC, days_from("2024-01-01", 10))
    lake.put(BTC, [date(2024, 1, 11)], final=False)
    lake.put(TRADES, days_from("2024-01-09", 2))
    return lake


def push(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["push", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    assert "sekret" not in result.output
    return result


def test_push_copies_what_is_new(lake: SmallLake, database: str, postgres: PostgresStore) -> None:
    result = push("--to", database)
    assert result.exit_code == 0, result.output
    assert "13 days of 2 series copied to 127.0.0.1:" in result.output
    assert "/postgres (464 rows), 0 unchanged." in result.output
    assert postgres.load(TRADES).num_rows == 200

    lake.put(BTC, [date(2024, 1, 11)], version=2)
    result = push("BTCUSDT", "1h", "--to", database)
    assert "1 day of 1 series copied" in result.output
    assert "(24 rows), 10 unchanged." in result.output
    assert postgres.load(BTC, clock.midnight(date(2024, 1, 11))).equals(day_table(BTC, date(2024, 1, 11), 2))


def test_push_takes_days_and_series(lake: SmallLake, database: str, postgres: PostgresStore) -> None:
    result = push("aggTrades", "--from", "2024-01-10", "--through", "2024-01-10", "--to", database)
    assert "1 day of 1 series copied" in result.output
    assert postgres.get_date_range(TRADES) == (date(2024, 1, 10), date(2024, 1, 10))
    assert postgres.get_date_range(BTC) is None


def test_retained_days_are_copied_and_older_ones_go(lake: SmallLake, database: str, postgres: PostgresStore) -> None:
    """A live row that the lake does not have stays, and the exit code is 1."""
    assert push("1h", "--to", database).exit_code == 0

    result = push("1h", "--retain", "3d", "--to", database)
    assert result.exit_code == 0, result.output
    assert "0 days of 1 series copied" in result.output
    assert "7 days before 2024-01-08 removed there." in result.output
    assert postgres.get_date_range(BTC) == (date(2024, 1, 8), date(2024, 1, 11))

    postgres.save(BTC, day_table(BTC, date(2023, 12, 31)), RowState.LIVE)
    result = push("1h", "--retain", "3d", "--to", database)
    assert result.exit_code == 1
    assert "In the database stays spot/klines/BTCUSDT/1h 2023-12-31: the lake does not have it" in result.output


def test_retain_removes_old_days_that_the_lake_has(
    lake: SmallLake, database: str, postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the settings, as the schedule does it. A row that the lake does not have stays, with its day."""
    push("--to", database)
    (lake.root / "universe.yaml").write_text(UNIVERSE)
    extra = day_table(BTC, date(2023, 12, 30))
    postgres.save(BTC, extra, RowState.LIVE)
    assert retain().exit_code == 0  # no setting, no change
    monkeypatch.setenv("MARKET_DATA_HOT_STORE", database)
    monkeypatch.setenv("MARKET_DATA_HOT_STORE_KEEP_DAYS", "3")
    for option, words, left in (("--dry-run", "7 days would be removed", 12), ("--yes", "7 days removed", 5)):
        result = retain(option)
        assert result.exit_code == 1
        assert f"{words} from PostgreSQL, because the lake has them." in result.output
        assert "In the database stays spot/klines/BTCUSDT/1h 2023-12-30: the lake does not have it" in result.output
        assert postgres.load(BTC).num_rows == 24 * left
    assert lake.layout.file(BTC, date(2024, 1, 1)).exists()
    assert postgres.load(TRADES).num_rows == 200


def retain(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["retain", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "sekret" not in result.output
    return result


UNIVERSE = """\
collect:
- market: spot
  symbols: [BTCUSDT]
  klines: {intervals: [1h], from: 2024-01-01}
"""


def test_damaged_day_is_named(lake: SmallLake, database: str) -> None:
    lake.layout.file(BTC, date(2024, 1, 2)).write_bytes(b"PAR1")
    result = push("1h", "--to", database)
    assert result.exit_code == 1
    assert "The lake cannot read spot/klines/BTCUSDT/1h 2024-01-02: " in result.output
    assert "10 days of 1 series copied" in result.output


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("--to", "sekret@host/market"), "The URL of PostgreSQL is invalid.", 2),
        (("ETHUSDT", "--to", "postgresql://h/d"), "has no symbol 'ETHUSDT'", 2),
        (("--retain", "soon", "--to", "postgresql://h/d"), "--retain: 'soon' is not an age.", 2),
        (("--retain", "999999w", "--to", "postgresql://h/d"), "is before the first year", 2),
        ((), "Missing option '--to'", 2),
    ],
)
def test_invalid_request_is_one_sentence(lake: SmallLake, arguments: tuple[str, ...], text: str, code: int) -> None:
    result = push(*arguments)
    assert result.exit_code == code
    assert text in " ".join(result.output.split())


def test_wrong_user_is_one_sentence_without_password(lake: SmallLake, server: PostgresServer) -> None:
    result = push("--to", server.url_of("postgres", "stranger"))
    assert result.exit_code == 1
    assert 'cannot be reached (role "stranger" does not exist)' in " ".join(result.output.split())
