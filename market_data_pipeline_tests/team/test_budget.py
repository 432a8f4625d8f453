"""The REST budget of a team: hosts behind one address share it, others do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from market_data_pipeline.errors import HostOffError
from market_data_pipeline.model.waits import Stop, StoppedError
from market_data_pipeline.sources import rate_limit
from market_data_pipeline.sources.rate_limit import WeightBudget
from market_data_pipeline.team.session import TeamSession


@pytest.fixture
def host(team_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TeamSession]]:
    """The session of the host whose turn it is. A test may put another one in."""
    monkeypatch.setenv("MARKET_DATA_POSTGRES", team_url)
    turn, both = [TeamSession(team_url)], [TeamSession(team_url)]
    monkeypatch.setattr(rate_limit, "current_team", lambda: turn[0])
    both.extend(turn)
    turn.append(both[0])
    yield turn
    for session in both:
        session.close()


def budget(folder: Path, patience: float = 60.0, stop: Stop | None = None) -> WeightBudget:
    return WeightBudget("api.example.com", 100, 1.0, folder, stop, patience)


def test_hosts_behind_one_address_share_the_budget(host: list[TeamSession], tmp_path: Path) -> None:
    ours = budget(tmp_path)
    ours.acquire(60)
    host.reverse()
    stop = Stop()
    theirs = budget(tmp_path, stop=stop)
    theirs.acquire(40)
    waiting = threading.Timer(0.2, stop.set)
    waiting.start()
    with pytest.raises(StoppedError):  # the limit is used up by both together
        theirs.acquire(1)
    waiting.join()
    assert list(tmp_path.iterdir()) == []  # nothing is on disk


def test_a_pause_and_a_ban_reach_the_other_host(host: list[TeamSession], tmp_path: Path) -> None:
    ours = budget(tmp_path)
    ours.pause(3600)
    ours.ban(7200)
    host.reverse()
    theirs = budget(tmp_path)
    assert theirs.banned_until() is not None
    with pytest.raises(HostOffError, match="requested a pause with"):
        theirs.acquire(1)


def test_another_address_has_its_own_budget(
    host: list[TeamSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(tmp_path).ban(7200)
    monkeypatch.setenv("MARKET_DATA_REST_ADDRESS", "office")
    assert budget(tmp_path).banned_until() is None


def test_reported_weight_counts_for_its_minute_only(host: list[TeamSession], tmp_path: Path) -> None:
    ours = budget(tmp_path)
    ours.observe(94)
    now = host[0].now()
    with host[0]._open().cursor() as cursor:
        cursor.execute("SELECT value FROM market_data.heard")
        assert cursor.fetchall() == [(94.0,)]
        cursor.execute("UPDATE market_data.heard SET at = %s", (now - 61,))
    ours.acquire(50)
