"""What universe.yaml may say, what each mistake in it answers, and how its lock is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.clock import days_between
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.universe import Universe, load_universe, parse_lock, parse_universe
from market_data_pipeline.universe.config import parse_day, parse_since
from market_data_pipeline.universe.edit import add_series, remove_series, render_lock, write_lock
from market_data_pipeline.universe.listings import DELISTED_AFTER, look_up, refresh, spans_of
from market_data_pipeline.universe.resolved import Since, lock_path

PROJECT = Path(__file__).parents[2]
TODAY = date(2026, 11, 21)


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "today", lambda: TODAY)


def klines(symbol: str, interval: str, market: Market = Market.SPOT) -> SeriesKey:
    return SeriesKey("binance", market, DataType.KLINES, symbol, interval)


def agg_trades(symbol: str, market: Market = Market.SPOT) -> SeriesKey:
    return SeriesKey("binance", market, DataType.AGG_TRADES, symbol)


def universe(text: str, lock: str = "") -> Universe:
    return Universe(parse_universe(text), parse_lock(lock) if lock else {})


# --- what is shipped ---------------------------------------------------------------------------------------------


def test_shipped_universe_is_the_small_useful_one() -> None:
    shipped = load_universe(PROJECT / "universe.yaml")
    assert [str(key) for key in shipped.series()] == [
        f"binance/{market}/{series}"
        for market in ("spot", "um")
        for series in [
            *(f"klines/{symbol}/{i}" for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT") for i in ("1m", "1h", "1d")),
            *(f"aggTrades/{symbol}" for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")),
        ]
    ]
    assert shipped.start(klines("BTCUSDT", "1m")) == date(2020, 1, 1)
    assert shipped.start(klines("SOLUSDT", "1m")) == date(2020, 8, 11)
    assert shipped.start(klines("SOLUSDT", "1m", Market.UM)) == date(2020, 9, 14)
    assert shipped.start(agg_trades("BTCUSDT")) == TODAY - timedelta(days=30)
    assert shipped.earliest(agg_trades("BTCUSDT")) == TODAY - timedelta(days=30)


def test_shipped_lock_is_as_refresh_would_write_it() -> None:
    text = lock_path(PROJECT / "universe.yaml").read_text("utf-8")
    assert render_lock(parse_lock(text)) == text


# --- resolving ---------------------------------------------------------------------------------------------------

LOCK = """
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
  BTCUPUSDT: [{from: 2020-05-14, until: 2024-02-28}]
  LUNAUSDT: [{from: 2020-08-21, until: 2022-05-13}, {from: 2022-05-31, until: null}]
  "币安人生USDT": [{from: 2025-10-07, until: null}]
  ETHBTC: [{from: 2017-07-14, until: null}]
"""
PATTERN = """
collect:
  - market: spot
    symbols: ["*USDT"]
    except: ["*UPUSDT"]
    klines: {intervals: [1h], from: listing}
"""


def test_patterns_resolve_against_the_lock() -> None:
    assert universe(PATTERN, LOCK).series() == [klines(s, "1h") for s in ("BTCUSDT", "LUNAUSDT", "币安人生USDT")]


def test_pattern_without_lock_names_the_command_that_writes_it(tmp_path: Path) -> None:
    (tmp_path / "universe.yaml").write_text(PATTERN)
    with pytest.raises(UsageError, match=r"line 4: .*\*USDT.*`market-data universe refresh`"):
        load_universe(tmp_path / "universe.yaml")


def test_named_symbol_needs_no_lock() -> None:
    found = universe("collect: [{market: cm, symbols: BTCUSD_PERP, klines: {intervals: 1d, from: 2024-01-01}}]")
    key = klines("BTCUSD_PERP", "1d", Market.CM)
    assert found.series() == [key]
    assert (found.start(key), found.end(key), found.listing(key)) == (date(2024, 1, 1), TODAY, ListingSpans())


def test_from_listing_without_lock_is_refused(tmp_path: Path) -> None:
    text = "collect: [{market: spot, symbols: BTCUSDT, klines: {intervals: 1d, from: listing}}]"
    (tmp_path / "universe.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"binance/spot/klines/BTCUSDT/1d .* not known.*universe refresh"):
        load_universe(tmp_path / "universe.yaml")
    assert load_universe(tmp_path / "universe.yaml", resolve=False).entries


def test_relisted_symbol_is_not_collected_between_its_listings() -> None:
    luna = klines("LUNAUSDT", "1h")
    days = universe(PATTERN, LOCK).days(luna)
    assert date(2022, 5, 13) in days
    assert date(2022, 5, 14) not in days
    assert date(2022, 5, 31) in days
    assert (days[0], days[-1]) == (date(2020, 8, 21), TODAY)


def test_delisted_symbol_ends_with_its_listing() -> None:
    text = "collect: [{market: spot, symbols: BTCUPUSDT, klines: {intervals: 1d, from: listing}}]"
    assert universe(text, LOCK).days(klines("BTCUPUSDT", "1d"))[-1] == date(2024, 2, 28)


def test_named_symbol_precedes_pattern_and_earliest_pattern_wins() -> None:
    found = universe(
        """
collect:
  - {market: spot, symbols: ["*USDT"], klines: {intervals: [1h], from: 2022-01-01}}
  - {market: spot, symbols: ["*"], klines: {intervals: [1h], from: 2021-01-01}}
  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2024-01-01}}
""",
        LOCK,
    )
    assert found.start(klines("BTCUSDT", "1h")) == date(2024, 1, 1)
    assert found.start(klines("LUNAUSDT", "1h")) == date(2021, 1, 1)


def test_derived_series_starts_with_its_source() -> None:
    """An unknown series lists the choices."""
    found = universe("collect: [{market: spot, symbols: BTCUSDT, aggTrades: {from: 7 days ago}}]", LOCK)
    derived = SeriesKey("binance", Market.SPOT, DataType.TRADE_PROFILE, "BTCUSDT")
    assert found.start(derived) == TODAY - timedelta(days=7)
    with pytest.raises(UsageError, match=r"klines/ETHUSDT/1m is not in .*It has: binance/spot/aggTrades/BTCUSDT"):
        found.start(klines("ETHUSDT", "1m"))


def test_nothing_starts_before_binance() -> None:
    found = universe("collect: [{market: spot, symbols: BTCUSDT, klines: {intervals: 1d, from: 1970-01-01}}]")
    assert found.start(klines("BTCUSDT", "1d")) == date(2017, 7, 14)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("2024-05-17", date(2024, 5, 17)),
        ("2024-05", date(2024, 5, 1)),
        ("2024", date(2024, 1, 1)),
        ("1 day ago", TODAY - timedelta(days=1)),
        ("2 weeks ago", TODAY - timedelta(days=14)),
        ("6 months ago", TODAY.replace(month=TODAY.month - 6)),
        ("3 years ago", TODAY.replace(year=TODAY.year - 3)),
        ("99999 years ago", date(2017, 7, 14)),
    ],
)
def test_start_is_a_day_a_month_a_year_or_some_time_ago(text: str, first: date) -> None:
    found = universe(f"collect: [{{market: spot, symbols: BTCUSDT, klines: {{intervals: 1d, from: {text}}}}}]")
    assert found.start(klines("BTCUSDT", "1d")) == first


@given(
    st.one_of(
        st.builds(Since, st.dates(max_value=TODAY)),
        *(st.builds(Since, **{name: st.integers(0, 99_999)}) for name in ("days_ago", "months_ago")),
        st.just(Since()),
    )
)
def test_start_reads_back_as_it_is_written(since: Since) -> None:
    assert parse_since(str(since)) == since


@given(st.dates(max_value=TODAY), st.sampled_from([10, 7, 4]))
def test_month_and_year_span_the_days_that_begin_so(day: date, length: int) -> None:
    text = day.isoformat()[:length]
    first, last = parse_day(text), parse_day(text, last=True)
    assert first <= day <= last <= TODAY
    assert str(first - timedelta(days=1) if first > date.min else "")[:length] != text
    assert last == TODAY or str(last + timedelta(days=1))[:length] != text


def test_earliest_day_moves_with_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = universe("collect: [{market: spot, symbols: BTCUSDT, aggTrades: {from: 7 days ago}}]", LOCK)
    assert found.earliest(agg_trades("BTCUSDT")) == TODAY - timedelta(days=7)
    monkeypatch.setattr(clock, "today", lambda: TODAY + timedelta(days=400))
    assert found.earliest(agg_trades("BTCUSDT")) == TODAY + timedelta(days=393)


def test_unknown_listing_begins_with_the_archive() -> None:
    found = universe("collect: [{market: spot, symbols: NEWUSDT, klines: {intervals: 1d, from: listing}}]", LOCK)
    assert found.earliest(klines("NEWUSDT", "1d")) == date(2017, 7, 14)


def test_days_outside_the_listing_are_not_taken() -> None:
    text = "collect: [{market: spot, symbols: BTCUSDT, klines: {intervals: 1d, from: 2020-01-02}}]"
    listing = ListingSpans(((date(2020, 1, 1), date(2020, 1, 3)), (date(2020, 1, 5), None)))
    found = Universe(parse_universe(text), {(Market.SPOT, "BTCUSDT"): listing})
    taken = [
        day for day in days_between(date(2020, 1, 1), date(2020, 1, 6)) if found.takes(klines("BTCUSDT", "1d"), day)
    ]
    assert [day.day for day in taken] == [2, 3, 5, 6]


def test_2000_symbols_are_loaded_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "universe.yaml"
    path.write_text(PATTERN.replace("[1h]", "[1m, 1h, 1d]"))
    write_lock(path, {(Market.SPOT, f"C{n}USDT"): ListingSpans(((date(2020, 1, 1), None),)) for n in range(2000)})
    begin = time.process_time()
    assert len(load_universe(path).series()) == 6000
    assert time.process_time() - begin < 5  # 0.3 on an idle machine


# --- mistakes ----------------------------------------------------------------------------------------------------

ENTRY = (
    "collect:\n  - market: spot\n    symbols: [BTCUSDT]\n    klines:\n      intervals: [1m]\n      from: 2024-01-01\n"
)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("collect:", "colect:", 1, r"'colect' is not known in the file \(meant: collect\?\). Allowed: collect"),
        ("market: spot", "market: sopt", 2, r"'sopt' is no market \(meant: spot\?\). Allowed: spot, um, cm"),
        ("market: spot", "market: [spot, spot]", 2, "market spot appears twice"),
        ("market: spot", "marked: spot", 2, r"Allowed: market, symbols, except, klines, aggTrades"),
        ("symbols: [BTCUSDT]", "symbol: BTCUSDT", 3, r"meant: symbols\?"),
        ("symbols: [BTCUSDT]", "symbols: []", 3, "empty list"),
        ("symbols: [BTCUSDT]", "symbols:", 3, "nothing below it"),
        ("symbols: [BTCUSDT]", "symbols: [1000]", 3, "YAML does not read 1000 as text. Write the symbol in quotes"),
        ("symbols: [BTCUSDT]", "symbols: [[BTCUSDT]]", 3, "a list of words; here is a list"),
        ("symbols: [BTCUSDT]", "symbols: [btcusdt]", 3, "capitals: BTCUSDT, not btcusdt"),
        ("symbols: [BTCUSDT]", "symbols: ['BTC/USDT']", 3, "'BTC/USDT' cannot be a symbol"),
        ("symbols: [BTCUSDT]", "symbols: [BTCUSDT, BTCUSDT]", 3, "appears twice"),
        ("symbols: [BTCUSDT]\n", "symbols: [BTCUSDT]\n    symbols: [ETHUSDT]\n", 4, "'symbols' appears twice"),
        ("intervals: [1m]", "intervals: [1m, 7m]", 5, "no kline interval '7m' in spot. Allowed: 1s, 1m, 3m, 5m"),
        ("intervals: [1m]", "intervals: [1m, 1m]", 5, "interval 1m appears twice"),
        ("intervals: [1m]\n      ", "", 5, "`klines:` needs 'intervals'"),
        ("\n      from: 2024-01-01", "", 5, "`klines:` needs 'from'"),
        ("2024-01-01", "2024-02-30", 6, r"`from:` cannot be '2024-02-30'. Allowed: a day such as"),
        ("2024-01-01", "01.02.2024", 6, "30 days ago"),
        ("2024-01-01", "2026-11-22", 6, r"in the future; today is 2026-11-21 \(UTC\)"),
        ("2024-01-01", "{a: 1}", 6, "a mapping"),
        (
            "    klines:\n      intervals: [1m]\n      from: 2024-01-01\n",
            "",
            2,
            "collects nothing. Add one of: `klines:`",
        ),
        ("  - market", "  - aggTrades: [1]\n    market", 2, "must have the keys from, keep; here is a list"),
        ("  - market: spot", "  - x\n  - market: spot", 2, "must have the keys market, symbols"),
        ("[BTCUSDT]", "[BTCUSDT", 4, "not YAML"),
    ],
)
def test_mistake_is_refused_with_its_line_and_what_is_allowed(old: str, new: str, line: int, says: str) -> None:
    assert old in ENTRY
    with pytest.raises(UsageError, match=rf"(?m)^mine.yaml, line {line}: .*{says}"):
        parse_universe(ENTRY.replace(old, new, 1), "mine.yaml")


def test_1s_is_refused_in_futures_even_when_spot_is_named_too() -> None:
    text = ENTRY.replace("spot", "[spot, um]").replace("[1m]", "[1s]")
    with pytest.raises(UsageError, match="line 5: there is no kline interval '1s' in um"):
        parse_universe(text)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_universe(ENTRY.replace("spot", "sopt").replace("2024-01-01", "soon"))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "universe.yaml, line 2",
        "universe.yaml, line 6",
    ]


def test_series_collected_twice_is_refused_with_both_lines() -> None:
    again = "  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1h, 1m], from: 2020-01-01}}\n"
    with pytest.raises(UsageError, match=r"line 7: binance/spot/klines/BTCUSDT/1m is collected twice.*line 3"):
        parse_universe(ENTRY + again)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_empty_file_is_refused_with_the_expected_contents(text: str) -> None:
    with pytest.raises(UsageError, match=r"universe\.yaml is empty. It needs a list `collect:`"):
        parse_universe(text)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no .*universe.yaml.*market-data add"):
        load_universe(tmp_path / "universe.yaml")
    (tmp_path / "universe.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"universe.yaml cannot be read"):
        load_universe(tmp_path / "universe.yaml")


@pytest.mark.parametrize(
    "text", ["spot: 3", "spot: {BTCUSDT: [{from: 2020, until: null}]}", "spott: {}", "spot: {BTCUSDT: 2020-01-01}"]
)
def test_damaged_lock_explains_how_to_write_it_again(text: str) -> None:
    with pytest.raises(UsageError, match=r"universe.lock.yaml, line 1: [\s\S]*`market-data universe refresh` rewrites"):
        parse_lock(text)


# --- the lock ----------------------------------------------------------------------------------------------------


@st.composite
def listings(draw: st.DrawFn) -> tuple[list[date], tuple[tuple[date, date], ...], date]:
    """Days with files (small holes among them), the spans they were made from, and the market's newest day."""
    day = draw(st.dates(date(2017, 7, 14), date(2020, 1, 1)))
    days: list[date] = []
    spans: list[tuple[date, date]] = []
    for _ in range(draw(st.integers(1, 4))):
        first = day
        days.append(day)
        for step in draw(st.lists(st.integers(1, DELISTED_AFTER.days + 1), max_size=12)):
            day += timedelta(days=step)
            days.append(day)
        spans.append((first, day))
        day += timedelta(days=draw(st.integers(DELISTED_AFTER.days + 2, 400)))
    newest = spans[-1][1] + timedelta(days=draw(st.integers(0, 40)))
    return draw(st.permutations(days)), tuple(spans), newest


@given(listings())
def test_spans_are_found_again(case: tuple[list[date], tuple[tuple[date, date], ...], date]) -> None:
    days, spans, newest = case
    *closed, (first, last) = spans
    still = newest - last <= DELISTED_AFTER
    assert spans_of(days, newest) == (*closed, (first, None if still else last))


def test_no_files_no_spans() -> None:
    assert spans_of([], TODAY) == ()


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(Market), st.sampled_from(["BTCUSDT", "1000", "1E5", "NULL", "ON", "币安人生USDT"])),
        st.builds(
            lambda first, days, last: ListingSpans(((first, first + timedelta(days=days)), (date(2025, 1, 1), last))),
            st.dates(date(2017, 7, 14), date(2023, 1, 1)),
            st.integers(0, 400),
            st.none() | st.just(date(2026, 1, 1)),
        ),
    )
)
def test_lock_reads_back_as_written(found: dict[tuple[Market, str], ListingSpans]) -> None:
    text = render_lock(found)
    assert parse_lock(text) == found
    assert render_lock(dict(reversed(found.items()))) == text


@dataclass(frozen=True)
class File:
    key: str


class FakeArchive:
    """An archive's listing made of keys, as ``sources.binance.archive.ArchiveClient`` gives it."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.listed: list[str] = []

    def list_folders(self, prefix: str) -> list[str]:
        below = (key.removeprefix(prefix) for key in self.keys if key.startswith(prefix))
        return sorted({rest.split("/")[0] for rest in below if "/" in rest})

    def list_files(self, prefix: str) -> list[File]:
        self.listed.append(prefix)
        return [File(key) for key in self.keys if key.startswith(prefix)]


class FakeRest:
    def __init__(self, days: dict[str, date]) -> None:
        self.days = days

    def first_candle_day(self, key: SeriesKey) -> date | None:
        return self.days.get(key.symbol)


def files_of(key: SeriesKey, first: date, last: date) -> list[str]:
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [name for day in days for name in (key.archive_daily(day), key.archive_daily(day) + ".CHECKSUM")]


NEWEST = date(2024, 6, 30)


@pytest.fixture
def archive() -> FakeArchive:
    return FakeArchive(
        [
            *files_of(klines("BTCUSDT", "1d"), date(2024, 1, 1), NEWEST),
            *files_of(klines("LUNAUSDT", "1d"), date(2024, 1, 1), date(2024, 1, 13)),
            *files_of(klines("LUNAUSDT", "1d"), date(2024, 1, 31), date(2024, 3, 1)),
            *files_of(klines("ETHBTC", "1h"), date(2024, 2, 1), date(2024, 6, 29)),
            *files_of(agg_trades("XUSDT"), date(2024, 5, 1), NEWEST),
            *files_of(klines("BTCUSDT", "1d", Market.UM), date(2019, 12, 31), date(2020, 1, 20)),
            *files_of(klines("SOLUSDT", "1d", Market.UM), date(2020, 1, 10), date(2020, 1, 19)),
        ]
    )


def test_refresh_finds_listing_delisting_and_relisting(archive: FakeArchive) -> None:
    wanted = universe('collect: [{market: spot, symbols: ["*"], klines: {intervals: 1d, from: listing}}]')
    assert render_lock(refresh(wanted, archive)).splitlines()[2:] == [
        "spot:",
        "  BTCUSDT: [{from: 2024-01-01, until: null}]",
        "  ETHBTC: [{from: 2024-02-01, until: null}]",
        "  LUNAUSDT: [{from: 2024-01-01, until: 2024-01-13}, {from: 2024-01-31, until: 2024-03-01}]",
        "  XUSDT: [{from: 2024-05-01, until: null}]",
    ]


def test_delisting_is_seen_if_only_the_delisted_symbol_is_listed(archive: FakeArchive) -> None:
    wanted = universe("collect: [{market: spot, symbols: LUNAUSDT, klines: {intervals: 1d, from: 2024-01-01}}]")
    found = refresh(wanted, archive)
    assert list(found) == [(Market.SPOT, "LUNAUSDT")]
    assert found[Market.SPOT, "LUNAUSDT"].last == date(2024, 3, 1)


def test_um_listing_before_the_first_daily_file_comes_from_rest(archive: FakeArchive) -> None:
    wanted = universe("collect: [{market: um, symbols: [BTCUSDT, SOLUSDT], aggTrades: {from: listing}}]")
    rest = FakeRest({"BTCUSDT": date(2019, 9, 8), "SOLUSDT": date(2019, 9, 8)})
    found = refresh(wanted, archive, rest)
    assert found[Market.UM, "BTCUSDT"].first == date(2019, 9, 8)
    assert found[Market.UM, "SOLUSDT"].first == date(2020, 1, 10)  # the archive has it from its first day on
    assert refresh(wanted, archive)[Market.UM, "BTCUSDT"].first == date(2019, 12, 31)


def test_refresh_lists_each_matching_symbol_once(archive: FakeArchive) -> None:
    refresh(universe("collect: [{market: spot, symbols: 'B*', klines: {intervals: 1m, from: listing}}]"), archive)
    assert archive.listed == ["data/spot/daily/klines/BTCUSDT/1d/"]


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        ("BTCUSD", r"line 3: spot has no symbol BTCUSD. Similar: .*BTCUSDT.*\(4 symbols in all\)"),
        ("'*EUR'", r"line 3: spot has no symbol \*EUR"),
    ],
)
def test_refresh_refuses_symbols_that_do_not_exist(archive: FakeArchive, symbol: str, says: str) -> None:
    wanted = universe(ENTRY.replace("[BTCUSDT]", f"[{symbol}]"))
    with pytest.raises(UsageError, match=says):
        refresh(wanted, archive)


def test_look_up_finds_one_symbol_or_names_those_near_to_it(archive: FakeArchive) -> None:
    assert look_up(Market.SPOT, "LUNAUSDT", archive)[Market.SPOT, "LUNAUSDT"].last == date(2024, 3, 1)
    with pytest.raises(UsageError, match=r"^Spot has no symbol BTCUSD. Similar: .*BTCUSDT"):
        look_up(Market.SPOT, "BTCUSD", archive)


# --- adding ------------------------------------------------------------------------------------------------------


def test_added_entry_leaves_all_else_as_it_is() -> None:
    text = (PROJECT / "universe.yaml").read_text("utf-8")
    added = add_series(text, klines("BTCUSDT", "5m"), Since(date(2024, 1, 1)))
    assert added.startswith(text)
    assert universe(added).start(klines("BTCUSDT", "5m")) == date(2024, 1, 1)
    assert add_series(added, klines("BTCUSDT", "5m"), Since(date(2024, 1, 1))) == added


def test_series_that_is_there_changes_nothing() -> None:
    text = (PROJECT / "universe.yaml").read_text("utf-8")
    assert add_series(text, klines("BTCUSDT", "1m"), Since(date(2024, 1, 1))) == text
    assert add_series(text, agg_trades("ETHUSDT", Market.UM), Since()) == text


def test_added_entry_moves_to_an_earlier_day_and_never_a_later() -> None:
    key = klines("BNBUSDT", "1h")
    text = add_series(ENTRY, key, Since(date(2024, 1, 1)))
    earlier = add_series(text, key, Since(date(2023, 1, 1)))
    assert universe(earlier).start(key) == date(2023, 1, 1)
    assert add_series(earlier, key, Since(date(2024, 1, 1))) == earlier
    assert earlier.startswith(ENTRY)


@pytest.mark.parametrize(
    "text",
    ["", "# mine\ncollect:\n", "# mine\ncollect: [] # what I want\n", "collect:\n# mine\n", ENTRY.rstrip("\n")],
)
def test_first_and_further_entries_go_into_any_file(text: str) -> None:
    key = klines("币安人生USDT", "1h")
    twice = add_series(add_series(text, key, Since()), agg_trades("ETHUSDT"), Since(days_ago=3))
    found = universe(twice, 'spot: {"币安人生USDT": [{from: 2025-10-07, until: null}]}')
    assert {key, agg_trades("ETHUSDT")} <= set(found.series())
    assert all(comment in twice for comment in ("# mine", "# what I want") if comment in text)


def test_file_that_cannot_be_edited_is_left_with_instructions() -> None:
    """The message shows the lines to write."""
    flow = "collect: [{market: spot, symbols: BTCUSDT, klines: {intervals: 1d, from: 2024-01-01}}]\n"
    with pytest.raises(UsageError, match=r"in its present form. Add this under `collect:`:\n  - market: spot"):
        add_series(flow, klines("ETHUSDT", "1d"), Since())


# --- keep --------------------------------------------------------------------------------------------------------


KEPT = "collect: [{market: spot, symbols: BTCUSDT, aggTrades: {from: 2020-01-01, keep: 30 days}}]"


def test_keep_moves_the_start_but_not_before_from() -> None:
    key = agg_trades("BTCUSDT")
    assert universe(KEPT, LOCK).start(key) == universe(KEPT, LOCK).retained_from(key) == TODAY - timedelta(days=30)
    longer = universe(KEPT.replace("30 days", "20 years"), LOCK)
    assert longer.start(key) == date(2020, 1, 1)
    assert universe(KEPT.replace("30 days", "2 months"), LOCK).start(key) == date(2026, 9, 21)
    assert universe(KEPT.replace(", keep: 30 days", ""), LOCK).retained_from(key) is None


def test_the_longest_keep_of_several_patterns_applies() -> None:
    text = """\
collect:
  - {market: spot, symbols: ["BTC*"], aggTrades: {from: listing, keep: 30 days}}
  - {market: spot, symbols: ["*USDT"], aggTrades: {from: listing, keep: 60 days}}
"""
    key = agg_trades("BTCUSDT")
    assert universe(text, LOCK).retained_from(key) == TODAY - timedelta(days=60)
    assert universe(text.replace(", keep: 60 days", ""), LOCK).retained_from(key) is None


@pytest.mark.parametrize("age", ["30", "0 days", "-3 days", "30 days ago", "2020-01-01", "[1]", "forever"])
def test_a_keep_that_is_no_age_is_refused(age: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: `keep:` cannot be .*30 days"):
        universe(KEPT.replace("30 days", age), LOCK)


def test_a_day_older_than_keep_is_refused_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"line 1\).*cannot be fetched. Set a longer `keep:` there first"):
        universe(KEPT, LOCK).refuse_before_start(date(2026, 1, 1), agg_trades("BTCUSDT"))


# --- removing ----------------------------------------------------------------------------------------------------

MINE = """\
# mine
collect:
  # majors
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]   # both
    klines:
      intervals: [1h, 1d]
      from: 2026-03-02            # shared
    aggTrades: {from: 2026-03-02, keep: 30 days}
  - market: spot
    symbols:
      - SOLUSDT
    klines: {intervals: [1m], from: listing}   # minutes
    aggTrades: {from: 2 days ago}
# the end
"""


def removed(text: str, *keys: SeriesKey, lock: str = "") -> str:
    return remove_series(text, set(keys), parse_lock(lock) if lock else {})


def test_a_type_of_its_own_entry_loses_its_line() -> None:
    assert removed(MINE, agg_trades("SOLUSDT")) == MINE.replace("    aggTrades: {from: 2 days ago}\n", "")
    assert removed(MINE, klines("SOLUSDT", "1m")) == MINE.replace(
        "    klines: {intervals: [1m], from: listing}   # minutes\n", ""
    )


def test_a_whole_symbol_leaves_its_list_or_its_entry() -> None:
    bitcoin = [klines("BTCUSDT", "1h"), klines("BTCUSDT", "1d"), agg_trades("BTCUSDT")]
    assert removed(MINE, *bitcoin) == MINE.replace("[BTCUSDT, ETHUSDT]", "[ETHUSDT]")
    solana = removed(MINE, klines("SOLUSDT", "1m"), agg_trades("SOLUSDT"))
    assert solana == MINE.partition("  - market: spot\n    symbols:\n      - SOL")[0] + "# the end\n"


def test_a_shared_series_leaves_and_the_rest_gets_an_entry() -> None:
    text = removed(MINE, klines("BTCUSDT", "1h"))
    assert text == MINE.replace("[BTCUSDT, ETHUSDT]", "[ETHUSDT]") + (
        "  - market: spot\n    symbols: [BTCUSDT]\n    klines: {intervals: [1d], from: 2026-03-02}\n"
        "    aggTrades: {from: 2026-03-02, keep: 30 days}\n"
    )


def test_a_symbol_of_a_pattern_is_excepted() -> None:
    text = (
        'collect:\n  - market: spot\n    symbols: ["*USDT"]   # all\n    klines: {intervals: [1d], from: 2026-03-01}\n'
    )
    lock = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n  ETHUSDT: [{from: 2017-08-17, until: null}]\n"
    once = removed(text, klines("BTCUSDT", "1d"), lock=lock)
    assert once == text.replace("# all\n", "# all\n    except: [BTCUSDT]\n")


def test_the_last_series_leaves_a_file_that_takes_new_ones() -> None:
    empty = removed(
        "# mine\ncollect:\n  - market: spot\n    symbols: X\n    aggTrades: {from: 2020}\n", agg_trades("X")
    )
    assert empty == "# mine\ncollect: []\n"
    assert agg_trades("Y") in universe(add_series(empty, agg_trades("Y"), Since(date(2020, 1, 1)))).series()


_SERIES = [
    *(klines(symbol, interval) for symbol in ("BTCUSDT", "ETHUSDT") for interval in ("1h", "1d")),
    klines("SOLUSDT", "1m"),
    *(agg_trades(symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")),
]


@given(st.sets(st.sampled_from(_SERIES)))
def test_any_series_leave_and_all_others_stay(gone: set[SeriesKey]) -> None:
    text = removed(MINE, *gone)
    assert set(universe(text).series()) == set(_SERIES) - gone
    assert all(comment in text for comment in ("# mine", "# majors", "# the end"))


def test_a_text_with_anchors_is_left_to_its_author() -> None:
    text = "collect:\n  - market: spot\n    symbols: [&a X, Y]\n    aggTrades: {from: 2020}\n"
    with pytest.raises(UsageError, match="Edit it by hand"):
        removed(text, agg_trades("X"))
