"""Locks and fences in PostgreSQL: one holder on all hosts, and no write of one that lost its lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from market_data_pipeline.errors import EnvironmentFaultError, SeriesBusyError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.storage.objects import forget_connections
from market_data_pipeline.settings import PREFIX, load_settings
from market_data_pipeline.team.current import current_team, leave_team
from market_data_pipeline.team.session import TeamSession
from market_data_pipeline_tests.support.bucket import moto, use
from market_data_pipeline_tests.support.postgres import PostgresServer, postgres_server
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series


@pytest.fixture
def hosts(team_url: str) -> Iterator[tuple[TeamSession, TeamSession]]:
    """Two hosts of a team."""
    ours, theirs = TeamSession(team_url), TeamSession(team_url)
    yield ours, theirs
    ours.close()
    theirs.close()


def cut_off(session: TeamSession) -> None:
    """End a host's connection at the server, which frees its locks."""
    assert session._connection is not None
    with psycopg2.connect(session._url) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (session._connection.info.backend_pid,))
    other.close()


def test_one_host_has_a_lock_at_a_time(hosts: tuple[TeamSession, TeamSession]) -> None:
    ours, theirs = hosts
    lock = ours.take("series")
    assert lock is not None
    assert theirs.take("series") is None
    assert ours.take("series") is None  # another thread of this process
    assert theirs.take("another") is not None
    assert "process" in theirs.holder("series")
    ours.release(lock)
    assert theirs.take("series") is not None


def test_a_lock_is_free_after_its_process_ended(hosts: tuple[TeamSession, TeamSession]) -> None:
    ours, theirs = hosts
    assert not theirs.is_free("run")  # it was never taken
    lock = ours.take("run")
    assert lock is not None
    assert not theirs.is_free("run")
    ours.close()
    assert theirs.is_free("run")
    assert theirs.names("r") == ["run"]
    mine = theirs.take("run")
    assert mine is not None
    theirs.release(mine, forget=True)
    assert theirs.names("r") == []


def test_lock_is_regained_if_nobody_took_it(hosts: tuple[TeamSession, TeamSession]) -> None:
    ours, theirs = hosts
    lock = ours.take("series")
    assert lock is not None
    cut_off(ours)
    with ours.fenced("series"):
        assert theirs.take("series") is None
    assert not lock.lost


def test_host_without_its_lock_writes_nothing(hosts: tuple[TeamSession, TeamSession], tmp_path: Path) -> None:
    ours, theirs = hosts
    told: list[str] = []
    assert ours.take("series", on_lost=lambda: told.append("lost")) is not None
    cut_off(ours)
    assert theirs.take("series") is not None
    with pytest.raises(SeriesBusyError, match="lost its lock of series"), ours.fenced("series"):
        (tmp_path / "ledger").touch()
    assert list(tmp_path.iterdir()) == []
    assert told == ["lost"]


def test_no_update_is_lost_in_200_rounds(hosts: tuple[TeamSession, TeamSession], tmp_path: Path) -> None:
    """Two hosts add rows to one file, and each loses its lock in every third round, before it writes."""
    ledger = tmp_path / "ledger"
    ledger.write_text("")
    refused, taken_over = set[str](), set[str]()

    def write(session: TeamSession, mark: str) -> None:
        for number in range(100):
            left = 1 if number % 3 == 0 else 0
            while True:
                lock = session.take("series")
                if lock is None:
                    continue
                try:
                    rows = ledger.read_text()
                    if left:
                        left -= 1
                        cut_off(session)
                        other = hosts[mark == "a"]
                        if (theirs := other.take("series")) is not None:
                            taken_over.add(f"{mark}{number}")
                            other.release(theirs)
                    with session.fenced("series"):
                        ledger.write_text(f"{rows}{mark}{number}\n")
                    break
                except SeriesBusyError:
                    refused.add(f"{mark}{number}")
                finally:
                    session.release(lock)

    writers = [threading.Thread(target=write, args=pair) for pair in zip(hosts, "ab", strict=True)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(ledger.read_text().split()) == sorted(f"{mark}{number}" for mark in "ab" for number in range(100))
    assert taken_over
    assert taken_over <= refused


def test_restarted_server_is_waited_for() -> None:
    with postgres_server("fsync=off") as server:
        session, other = TeamSession(server.url), TeamSession(server.url)
        lock = session.take("series")
        assert lock is not None
        server.stop()
        starter = threading.Timer(0.5, server.start, ["fsync=off"])
        starter.start()
        with session.fenced("series"):
            assert other.take("series") is None
        starter.join()
        assert not lock.lost
        session.close()
        other.close()


def test_no_server_is_an_error_in_one_sentence(shared_postgres: PostgresServer) -> None:
    session = TeamSession("postgresql://me:sekret@127.0.0.1:1/market", patience_seconds=0.3)
    with pytest.raises(EnvironmentFaultError, match=r"127\.0\.0\.1:1/market cannot be used .*Check MARKET_DATA_POSTGR"):
        session.take("series")
    unknown = TeamSession(shared_postgres.url_of("no_such"), patience_seconds=60)
    with pytest.raises(EnvironmentFaultError, match="Create the database") as error:  # no wait: it will not appear
        unknown.take("series")
    assert "sekret" not in str(error.value)


def test_full_server_is_an_error_with_its_remedy() -> None:
    with postgres_server("fsync=off", "max_connections=4", "superuser_reserved_connections=0") as server:
        others = [psycopg2.connect(server.url) for _ in range(4)]
        session = TeamSession(server.url, patience_seconds=0.3)
        with pytest.raises(EnvironmentFaultError, match="no free connection: raise its max_connections"):
            session.take("series")
        others.pop().close()
        assert session.take("series") is not None
        session.close()
        for other in others:
            other.close()


def test_wrong_url_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Write postgresql://user:password@host"):
        TeamSession("mysql://me@host/market")


def test_a_lake_in_a_bucket_has_one_writer_on_all_hosts(
    hosts: tuple[TeamSession, TeamSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock in PostgreSQL has the ledger's name, and its loss stops the write."""
    monkeypatch.setenv(f"{PREFIX}POSTGRES", hosts[0]._url)
    monkeypatch.setenv(f"{PREFIX}DIR", "s3://lake/team")
    monkeypatch.setenv(f"{PREFIX}LOCAL_DIR", str(tmp_path / "here"))
    root, days, key = load_settings().root, days_from("2024-01-01", 2), series("BTCUSDT", "1d")
    with moto() as url:
        use(monkeypatch, url)
        lake = SmallLake(root)
        with storage.only_writer(lake.layout.lock(key), 5, "BTC"):
            assert hosts[1].take("ledger/binance/spot/klines/BTCUSDT/1d.lock") is None
            lake.put(key, days[:1])
            team = current_team()
            assert team is not None
            cut_off(team)
            assert hosts[1].take("ledger/binance/spot/klines/BTCUSDT/1d.lock") is not None
            with pytest.raises(SeriesBusyError):
                lake.put(key, days)
    leave_team()
    forget_connections()


def test_an_error_of_a_good_connection_keeps_its_locks(hosts: tuple[TeamSession, TeamSession], team_url: str) -> None:
    """A statement that waits too long for another one fails by itself."""
    ours, theirs = hosts
    assert ours.take("series") is not None
    with psycopg2.connect(team_url) as other, other.cursor() as holder:
        holder.execute("SELECT * FROM market_data.locks FOR UPDATE")
        ours._do(lambda cursor: cursor.execute("SET lock_timeout = '10ms'"))
        with pytest.raises(EnvironmentFaultError):
            ours._do(lambda cursor: cursor.execute("UPDATE market_data.locks SET token = token"))
    other.close()
    assert theirs.take("series") is None


def test_a_process_without_its_folder_needs_no_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv(f"{PREFIX}DIR", str(tmp_path))
    assert current_team() is None
    monkeypatch.chdir(tmp_path)
