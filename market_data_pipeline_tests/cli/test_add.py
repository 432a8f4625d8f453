"""``market-data add`` on series that universe.yaml knows, and requests that select no day at all."""

from __future__ import annotations

import re

import pytest

from market_data_pipeline.lake import storage
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

UNIVERSE = """\
# mine
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]   # both
    klines:
      intervals: [1h, 1d]
      from: 2026-03-02            # shared
  - market: spot
    symbols: SOLUSDT
    klines:
      intervals: 1d
      from: '2026-03-03'          # its own
    aggTrades: {from: 2 days ago}
"""
PATTERN = """\
collect:
  - market: spot
    symbols: ["*USDT"]
    klines: {intervals: [1d], from: 2026-03-01}
  - market: spot
    symbols: ["BTC*"]
    klines: {intervals: [1d], from: 2026-03-03}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
  ETHUSDT: [{from: 2017-08-17, until: null}]
  LUNAUSDT: [{from: 2020-08-21, until: 2022-05-13}]
  SOLUSDT: [{from: 2020-08-11, until: null}]
"""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK)


def universe(world: World) -> str:
    return (world.root / "universe.yaml").read_text()


def stored(world: World, key: SeriesKey) -> list[str]:
    return [str(day) for day in storage.list_dates(world.layout.folder(key))]


def span(first: str, last: str) -> list[str]:
    return list(map(str, days(first, last)))


def test_earlier_from_of_a_shared_entry_names_its_line(world: World, market_data: MarketData) -> None:
    result = market_data("add", "BTCUSDT", "1d", "--from", "2026-03-01")
    assert result.exit_code == 2
    assert "BTCUSDT/1d is collected from 2026-03-02 on" in result.stderr
    assert "universe.yaml, line 7)" in result.stderr
    assert "Set `from: 2026-03-01` there" in result.stderr
    assert universe(world) == UNIVERSE
    assert not world.asked(".zip")


def test_earlier_from_of_its_own_entry_is_entered(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "1d", "--from", "2026-03-01")
    assert result.exit_code == 0, result.output
    assert universe(world) == UNIVERSE.replace("'2026-03-03'", "2026-03-01"), "comments stay"
    assert stored(world, klines("SOLUSDT", "1d")) == span("2026-03-01", "2026-03-04")


def test_moving_start_of_its_own_entry_gives_way_to_a_day(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "aggTrades", "--from", "2026-03-02", "--through", "2026-03-03")
    assert result.exit_code == 0, result.output
    assert universe(world) == UNIVERSE.replace("2 days ago", "2026-03-02")
    assert stored(world, agg_trades("SOLUSDT")) == span("2026-03-02", "2026-03-03")


def test_day_is_not_replaced_by_a_start_that_moves_on(world: World, market_data: MarketData) -> None:
    assert market_data("add", "SOLUSDT", "1d", "--from", "4 days ago").exit_code == 0
    assert universe(world) == UNIVERSE.replace("'2026-03-03'", "2026-03-01")


def test_later_from_limits_what_is_fetched(world: World, market_data: MarketData) -> None:
    result = market_data("add", "BTCUSDT", "1d", "--from", "2026-03-04")
    assert result.exit_code == 0, result.output
    assert "BTCUSDT/1d is collected from 2026-03-02 on" in result.stderr
    assert stored(world, klines("BTCUSDT", "1d")) == ["2026-03-04"]
    assert universe(world) == UNIVERSE


def test_without_from_a_known_series_begins_where_it_did(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "1d")
    assert result.exit_code == 0, result.output
    assert stored(world, klines("SOLUSDT", "1d")) == span("2026-03-03", "2026-03-04")
    assert universe(world) == UNIVERSE


@pytest.mark.parametrize("since", ["2026-03-02", "2026-03-01", "3 days ago"])
def test_pattern_that_covers_the_series_is_enough(world: World, market_data: MarketData, since: str) -> None:
    """A named entry would go before the patterns, and collect fewer days than they do."""
    (world.root / "universe.yaml").write_text(PATTERN)
    result = market_data("add", "BTCUSDT", "1d", "--from", since, "--through", "2026-03-02")
    assert result.exit_code == 0, result.output
    assert "universe.yaml, line 4)" in result.stderr, "of two patterns, the earlier one holds"
    assert universe(world) == PATTERN
    first = "2026-03-01" if since == "2026-03-01" else "2026-03-02"
    assert stored(world, klines("BTCUSDT", "1d")) == span(first, "2026-03-02")


def test_earlier_from_than_a_pattern_gets_an_entry(world: World, market_data: MarketData) -> None:
    (world.root / "universe.yaml").write_text(PATTERN)
    result = market_data("add", "BTCUSDT", "1d", "--from", "2026-02-27", "--through", "2026-03-01")
    assert result.exit_code == 0, result.output
    assert universe(world).startswith(PATTERN)
    assert stored(world, klines("BTCUSDT", "1d")) == span("2026-02-27", "2026-03-01")


def test_refusal_of_one_interval_changes_nothing(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "4h", "1d", "--from", "2026-03-01")
    assert result.exit_code == 0, result.output
    result = market_data("add", "BTCUSDT", "4h", "1d", "--from", "2026-03-01")
    assert (result.exit_code, "BTCUSDT/4h" in universe(world)) == (2, False)
    assert "4h]" in universe(world)
    assert "symbols: [BTCUSDT]" not in universe(world)


def test_start_that_is_an_alias_is_not_changed(world: World, market_data: MarketData) -> None:
    text = """\
collect:
  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1d], from: &since 2026-03-03}}
  - {market: spot, symbols: [ETHUSDT], klines: {intervals: [1d], from: *since}}
"""
    (world.root / "universe.yaml").write_text(text)
    for symbol in ("ETHUSDT", "BTCUSDT"):
        result = market_data("add", symbol, "1d", "--from", "2026-03-01")
        assert (result.exit_code, universe(world)) == (2, text)
        assert re.search(r"universe.yaml, line 2\)", result.stderr)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("add BTCUSDT 4h --through 2017-01-31", r"BTCUSDT was listed from 2017-08-17 to now"),
        ("add SOLUSDT 1d --through 2026-03-02", r"No requested day is left .*SOLUSDT was listed from 2020-08-11"),
        ("add LUNAUSDT 1d --from 2023-01-01", r"LUNAUSDT was listed from 2020-08-21 to 2022-05-13"),
        ("add BTCUSDT 4h --from 2026-03-04 --through 2026-03-01", r"--through 2026-03-01 is before --from 2026-03-04"),
        (
            "backfill --symbol SOLUSDT --interval 1d --through 2026-03-02",
            r"from 2026-03-03 on \(.*universe.yaml, line 12\)",
        ),
        (
            "backfill --symbol SOLUSDT --from 2026-02-01",
            r"from 2026-03-0\d on .*, line 1\d\), so 2026-02-01 cannot be fetched",
        ),
        ("backfill --symbol BTCUSDT --from 2026-03-06", r"is in the future"),
        (
            "backfill --symbol BTCUSDT --from 2010-01-01 --through 2010-01-02",
            r"No requested day is left|listed from 2017-08-17",
        ),
        ("backfill --symbol DOGEUSDT", r"no symbol 'DOGEUSDT'"),
    ],
)
def test_request_for_no_day_is_invalid(world: World, market_data: MarketData, command: str, says: str) -> None:
    result = market_data(*command.split())
    assert result.exit_code == 2
    assert re.search(says, result.stderr), result.stderr
    assert "all there" not in result.stderr
    assert universe(world) == UNIVERSE
    assert (world.root / "universe.lock.yaml").read_text() == LOCK


def test_backfill_leaves_out_days_before_from(world: World, market_data: MarketData) -> None:
    """Other selected series start earlier. Alone, such a request is refused, because nothing of it is collected."""
    result = market_data("backfill", "--market", "spot", "--interval", "1d", "--from", "2026-03-02")
    assert result.exit_code == 0, result.output
    assert re.search(r"1d is collected from 2026-03-03 on \(.*, line 12\): earlier days are left out", result.stderr)
    assert stored(world, klines("SOLUSDT", "1d")) == span("2026-03-03", "2026-03-04")
    alone = market_data("backfill", "--symbol", "SOLUSDT", "--interval", "1d", "--from", "2026-03-02")
    assert alone.exit_code == 2
    assert "so 2026-03-02 cannot be fetched. Set an earlier `from:` there first" in alone.stderr
