"""What ``MarketData`` says of the rows that it hands out: final or not, whole or not, and their version."""

from __future__ import annotations

import re
import warnings
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from market_data_pipeline import GapError, GapWarning, MarketData, clock
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.day import EMPTY, FAILED, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import MAX_RANGES, Finding, Range, Severity, Verdict
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC, ETH, TRADES = series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("BTCUSDT")
HOUR = 3_600_000_000
DAYS = days_from("2024-01-01", 10)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """Ten days of two symbols of 1h candles and of trades, and no universe."""
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(tmp_path / "universe.yaml"))
    lake = SmallLake(tmp_path / "data")
    for key in (BTC, ETH, TRADES):
        lake.put(key, DAYS)
    return lake


@pytest.fixture
def market(lake: SmallLake) -> MarketData:
    return MarketData(lake.root)


def lacks(verdict: Verdict, day: str, *hours: tuple[int, int], beyond: int = 0) -> Finding:
    """A verdict on candles of a day, from one hour to another."""
    start = clock.day_start_us(date.fromisoformat(day))
    ranges = [Range(first=start + a * HOUR, last=start + b * HOUR, count=b - a + 1) for a, b in hours]
    count = sum(range_.count for range_ in ranges) + beyond
    return verdict_finding(Ground(verdict, f"as {verdict} is shown"), "candles", count, ranges)


def told(market: MarketData, symbols: str | list[str], *args: Any, **options: Any) -> list[str]:
    """What ``on_gap="raise"`` names, a line each."""
    with pytest.raises(GapError) as raised:
        market.klines(symbols, *args, **{**options, "on_gap": "raise"})
    lines = [line.removeprefix("- ") for line in str(raised.value).splitlines() if line.startswith("- ")]
    assert lines == [str(gap) for gap in raised.value.gaps]
    return lines


# --- final_only ----------------------------------------------------------------------------------------------------


def test_final_only_leaves_provisional_days_out(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], final=False)
    lake.put(TRADES, [date(2024, 1, 3)], final=False)
    result = market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02", "2024-01-05", final_only=True)
    for rows in (result.arrow().num_rows, len(result.df()), result.pl().height, len(result.relation())):
        assert rows == 5 * 24
    assert repr(result).endswith("5 of 6 days stored and final>")
    assert market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05").arrow().num_rows == 72
    trades = market.agg_trades("BTCUSDT", "2024-01-02", "2024-01-05", final_only=True).df()
    assert set(trades["transact_time"].dt.day) == {2, 4}


@pytest.mark.parametrize("ledger", ["behind", "lost"])
def test_final_state_comes_from_the_file_without_its_ledger(lake: SmallLake, market: MarketData, ledger: str) -> None:
    lake.write_file(BTC, date(2024, 1, 3), version=1, final=False)
    if ledger == "lost":
        lake.layout.ledger(BTC).unlink()
    assert market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True).arrow().num_rows == 48


def spoil(lake: SmallLake, key: SeriesKey, day: date) -> None:
    """Raise the closes of a day's file, whose footer still speaks of what they were."""
    path = lake.layout.file(key, day)
    table = pq.read_table(path)
    at = table.schema.get_field_index("close")
    higher = table.set_column(at, table.schema.field(at), pc.add(table["close"], 1.0))
    pq.write_table(higher.replace_schema_metadata(pq.read_schema(path).metadata), path)


@pytest.mark.parametrize("found", ["by verify", "by whoever reads"])
def test_file_that_contradicts_its_footer_is_not_good(lake: SmallLake, market: MarketData, found: str) -> None:
    bad = date(2024, 1, 3)
    spoil(lake, BTC, bad)
    if found == "by verify":
        verify_local(Settings(dir=lake.root, _env_file=None), [BTC])  # type: ignore[call-arg]  # pydantic's own
    (line,) = told(market, "BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True)
    assert line.startswith("spot BTCUSDT 1h, 2024-01-03: failed (damaged: ")
    assert told(market, "BTCUSDT", "1h", "2024-01-02", "2024-01-05") == [line]
    path = str(lake.layout.file(BTC, bad))
    final = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True, on_gap="ignore")
    with pytest.raises(DamagedFileError, match=path):
        final.arrow()
    assert path in repr(final)
    with pytest.raises(DamagedFileError, match=path):
        _ = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", on_gap="ignore").version
    assert market.klines("BTCUSDT", "1h", "2024-01-04", "2024-01-05", final_only=True, on_gap="raise").arrow().num_rows


def test_repaired_file_is_good_before_its_ledger_is_updated(lake: SmallLake, market: MarketData) -> None:
    path = lake.layout.file(BTC, date(2024, 1, 3))
    good = path.read_bytes()
    before = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05").version
    spoil(lake, BTC, date(2024, 1, 3))
    verify_local(Settings(dir=lake.root, _env_file=None), [BTC])  # type: ignore[call-arg]  # pydantic's own
    path.write_bytes(good)
    result = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True, on_gap="raise")
    assert (result.arrow().num_rows, result.version) == (72, before)


def test_ledger_of_an_older_version_without_a_column_is_read(lake: SmallLake, market: MarketData) -> None:
    path = lake.layout.ledger(BTC)
    lake.note(BTC, DayRecord(day=date(2024, 1, 11), outcome=FAILED, failure="checksum", reason="The bytes differ."))
    pq.write_table(pq.read_table(path).drop_columns(["replaced_by", "verdicts"]), path)
    (line,) = told(market, "BTCUSDT", "1h", "2024-01-09", "2024-01-12")
    assert line == "spot BTCUSDT 1h, 2024-01-11: failed (checksum: The bytes differ.)"


# --- on_gap --------------------------------------------------------------------------------------------------------


def test_a_range_that_is_whole_or_explained_raises_nothing(lake: SmallLake, market: MarketData) -> None:
    explained = (
        lacks(Verdict.OUTAGE, "2024-01-03", (3, 4)),
        lacks(Verdict.QUIET, "2024-01-03", (7, 7)),
        lacks(Verdict.HEALED, "2024-01-03", (9, 9)),
    )
    lake.put(BTC, [date(2024, 1, 3)], findings=explained)
    for on_gap in ("raise", "warn", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-01-11", on_gap=on_gap)
            trades = market.agg_trades("BTCUSDT", "2024-01-01", "2024-01-11", on_gap=on_gap)
        assert (result.arrow().num_rows, trades.arrow().num_rows) == (480, 1000)


def test_raise_names_the_ranges_that_nothing_explains(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.ARCHIVE_DEFECT, "2024-01-03", (3, 4), (9, 9)),))
    lake.put(ETH, [date(2024, 1, 4)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-04", (0, 23)),))
    for day in (5, 6):
        lake.layout.file(ETH, date(2024, 1, day)).unlink()
    row = DayRecord(day=date(2024, 1, 11), outcome=FAILED, failure="checksum", reason="The bytes differ.")
    lake.note(ETH, row)
    gone = lake.layout.file(ETH, date(2024, 1, 5))
    assert told(market, ["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02", "2024-01-13") == [
        "spot BTCUSDT 1h, 2024-01-03 03:00 to 2024-01-03 04:00: archive_defect, 2 rows (as archive_defect is shown)",
        "spot BTCUSDT 1h, 2024-01-03 09:00: archive_defect, 1 row (as archive_defect is shown)",
        "spot BTCUSDT 1h, 2024-01-11 to 2024-01-12: missing",
        "spot ETHUSDT 1h, 2024-01-04 00:00 to 2024-01-04 23:00: unexplained, 24 rows (as unexplained is shown)",
        f"spot ETHUSDT 1h, 2024-01-05 to 2024-01-06: failed (gone: {gone} is gone. Backfill that day to restore it.)",
        "spot ETHUSDT 1h, 2024-01-11: failed (checksum: The bytes differ.)",
        "spot ETHUSDT 1h, 2024-01-12: missing",
    ]


def test_ranges_are_clipped_to_the_request(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-03", (3, 6)),))
    market.klines("BTCUSDT", "1h", "2024-01-03T07:00", "2024-01-04", on_gap="raise")
    market.klines("BTCUSDT", "1h", "2024-01-03", "2024-01-03T03:00", on_gap="raise")
    (line,) = told(market, "BTCUSDT", "1h", "2024-01-03T03:30", "2024-01-03T05:30")
    assert line.startswith("spot BTCUSDT 1h, 2024-01-03 04:00 to 2024-01-03 05:00: unexplained, 2 rows")


def test_ranges_beyond_those_listed_in_a_finding_are_counted(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-03", (3, 3), beyond=MAX_RANGES),))
    assert [line.partition(" (")[0] for line in told(market, "BTCUSDT", "1h", "2024-01-03", "2024-01-04")] == [
        "spot BTCUSDT 1h, 2024-01-03 03:00: unexplained, 1 row",
        "spot BTCUSDT 1h, 2024-01-03 00:00: unexplained, 100 rows",
    ]


def test_missing_trade_ids_are_named(lake: SmallLake, market: MarketData) -> None:
    not_asked = Ground(Verdict.UNPUBLISHED, "REST was not asked")
    ids = verdict_finding(not_asked, "aggregated trades", 3, [Range(first=17, last=19, count=3)])
    cut = verdict_finding(Ground(Verdict.UNPUBLISHED, "the weight was used up"), "aggregated trades", 0, [])
    lake.put(TRADES, [date(2024, 1, 3)], findings=(ids, cut))
    with pytest.raises(GapError) as raised:
        market.agg_trades("BTCUSDT", "2024-01-02T12:00", "2024-01-03T01:00", on_gap="raise")
    first, second = raised.value.gaps
    assert str(first) == "spot BTCUSDT aggTrades, 2024-01-03, ids 17 to 19: unpublished, 3 rows (REST was not asked)"
    assert (second.ids, second.count, second.evidence) == (None, None, "the weight was used up")


def test_days_outside_of_the_listing_are_not_missing(lake: SmallLake, market: MarketData, tmp_path: Path) -> None:
    lake.note(ETH, DayRecord(day=date(2024, 1, 11), outcome=NOT_LISTED, final=True))
    lake.note(ETH, DayRecord(day=date(2024, 1, 12), outcome=EMPTY, final=True))
    market.klines("ETHUSDT", "1h", "2024-01-01", "2024-01-13", on_gap="raise")
    assert len(told(market, "BTCUSDT", "1h", "2023-12-30", "2024-01-13")) == 2
    (tmp_path / "universe.yaml").write_text(
        "collect: [{market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2024-01-01}}]"
    )
    (tmp_path / "universe.lock.yaml").write_text(
        "spot:\n  BTCUSDT: [{from: 2024-01-01, until: 2024-01-10}]\n  ETHUSDT: [{from: 2024-01-01, until: 2024-01-11}]"
    )
    market.klines("BTCUSDT", "1h", "2023-12-30", "2024-01-13", on_gap="raise")
    assert told(market, "ETHUSDT", "1h", "2024-01-01", "2024-01-13") == ["spot ETHUSDT 1h, 2024-01-11: missing"]


def test_provisional_days_are_gaps_with_final_only(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3), date(2024, 1, 4)], final=False)
    market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-06", on_gap="raise")
    assert told(market, "BTCUSDT", "1h", "2024-01-02", "2024-01-06", final_only=True) == [
        "spot BTCUSDT 1h, 2024-01-03 to 2024-01-04: provisional (only final days were asked for)"
    ]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2024-01-11T10:40", []),
        ("2024-01-11T11:00", ["2024-01-11 10:00: unpublished, 1 row"]),
        ("2024-01-11T15:59", ["2024-01-11 10:00 to 2024-01-11 14:00: unpublished, 5 rows"]),
        ("2024-01-12T00:00", ["2024-01-11 10:00 to 2024-01-11 23:00: unpublished, 14 rows"]),
    ],
)
def test_candles_closed_since_the_last_fetch_today_are_a_gap(
    lake: SmallLake, market: MarketData, monkeypatch: pytest.MonkeyPatch, now: str, expected: list[str]
) -> None:
    lake.put(BTC, [date(2024, 1, 11)], final=False, fetched_at=datetime(2024, 1, 11, 10, 30, tzinfo=UTC))
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: moment)
    if not expected:
        market.klines("BTCUSDT", "1h", "2024-01-10", on_gap="raise")
        return
    evidence = "(fetched at 2024-01-11 10:30, and not since)"
    assert told(market, "BTCUSDT", "1h", "2024-01-10") == [f"spot BTCUSDT 1h, {text} {evidence}" for text in expected]


def test_warn_points_at_the_caller_and_returns_stored_rows(lake: SmallLake, market: MarketData) -> None:
    lake.layout.file(BTC, date(2024, 1, 3)).unlink()
    with pytest.warns(
        GapWarning, match=r"1 gap without an explanation:\n- spot BTCUSDT 1h, 2024-01-03: failed"
    ) as said:
        result = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", on_gap="warn")
    assert said[0].filename == __file__
    assert result.arrow().num_rows == 48


def faulty(day: str) -> Finding:
    return Finding(
        check="integrity", rule="taker", severity=Severity.ERROR, count=1, message=f"Takers bought too much on {day}."
    )


def test_default_warns_once_a_call_of_what_nothing_explains(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-03", (3, 4)),))
    lake.put(BTC, [date(2024, 1, 4)], findings=(faulty("2024-01-04"),))
    with pytest.warns(GapWarning, match="2 gaps without an explanation") as warned:
        rows = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-06")
    assert (rows.arrow().num_rows, rows.df().shape[0]) == (96, 96)
    assert [one.filename for one in warned] == [__file__]
    text = str(warned[0].message)
    assert "2024-01-03 03:00 to 2024-01-03 04:00: unexplained, 2 rows" in text
    assert "2024-01-04: faulty (Takers bought too much on 2024-01-04.)" in text
    assert "`market-data sync`" in text


def test_default_is_silent_about_what_is_explained(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.OUTAGE, "2024-01-03", (3, 4)),))
    lake.put(BTC, [date(2024, 1, 4)], findings=(lacks(Verdict.SUSPENDED, "2024-01-04", (3, 4)),))
    lake.note(BTC, DayRecord(day=date(2023, 12, 31), outcome=NOT_LISTED, final=True))
    assert market.klines("BTCUSDT", "1h", "2023-12-31", "2024-01-06").arrow().num_rows == 120


def test_final_only_leaves_faulty_days_out_of_every_answer(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 3)], findings=(faulty("2024-01-03"),))
    with pytest.warns(GapWarning, match="2024-01-03: faulty .* Left out, by final_only"):
        rows = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True)
    taken = (rows.arrow().num_rows, len(rows.df()), len(rows.pl()), len(rows.relation().fetchall()))
    assert taken == (48, 48, 48, 48)
    assert "2 of 3 days stored and final" in repr(rows)
    whole = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", on_gap="ignore")
    assert (whole.arrow().num_rows, whole.version != rows.version) == (72, True)
    lines = told(market, "BTCUSDT", "1h", "2024-01-02", "2024-01-05", final_only=True)
    assert lines == [
        "spot BTCUSDT 1h, 2024-01-03: faulty (Takers bought too much on 2024-01-03. Left out, by final_only.)"
    ]


def test_final_only_leaves_a_faulty_day_of_a_closed_month_out(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, days_from("2024-01-01", 31))
    lake.put(ETH, days_from("2024-01-01", 31))
    lake.put(BTC, [date(2024, 1, 3)], findings=(faulty("2024-01-03"),))
    assert close_months(lake.layout, BTC) == [date(2024, 1, 1)]
    assert close_months(lake.layout, ETH) == [date(2024, 1, 1)]
    asked = (["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02T12:00", "2024-01-05")
    rows = market.klines(*asked, final_only=True, on_gap="ignore")
    lengths = {
        "arrow": rows.arrow().num_rows,
        "len": len(rows),
        "pandas": len(rows.df()),
        "relation": len(rows.relation().fetchall()),
        "scan": len(rows.scan().collect()),
    }
    assert lengths == dict.fromkeys(lengths, 36 + 60)
    days = {str(time.date()) for time in rows.scan().collect().filter(pl.col("symbol") == "BTCUSDT")["open_time"]}
    assert days == {"2024-01-02", "2024-01-04"}
    whole = market.klines(*asked, on_gap="ignore")
    assert len(whole) == len(whole.scan().collect()) == 60 + 60


def test_final_only_leaves_faulty_trades_out(lake: SmallLake, market: MarketData) -> None:
    before = market.agg_trades("BTCUSDT", "2024-01-02", "2024-01-05").arrow().num_rows
    lake.put(TRADES, [date(2024, 1, 3)], findings=(faulty("2024-01-03"),))
    with pytest.warns(GapWarning, match="faulty"):
        rows = market.agg_trades("BTCUSDT", "2024-01-02", "2024-01-05", final_only=True)
    assert rows.arrow().num_rows == before * 2 // 3


def test_up_to_now_is_up_to_what_was_fetched(
    lake: SmallLake, market: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 11, 9, tzinfo=UTC))
    assert market.klines("BTCUSDT", "1h", "2024-01-09").arrow().num_rows == 48, "today was not fetched yet"
    with pytest.warns(GapWarning, match="2024-01-11: missing"):
        market.klines("BTCUSDT", "1h", "2024-01-09", "2024-01-12")
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 12, 9, tzinfo=UTC))
    with pytest.warns(GapWarning, match="2024-01-11: missing"):
        market.klines("BTCUSDT", "1h", "2024-01-09")


def test_long_list_of_gaps_is_cut_in_text_and_whole_in_the_error(lake: SmallLake, market: MarketData) -> None:
    hours = [(hour, hour) for hour in range(0, 24, 2)]
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-03", *hours),))
    with pytest.raises(
        GapError, match=r"has 12 gaps without an explanation:(?s:.*)… and 2 more\n.*market-data sync"
    ) as e:
        market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05", on_gap="raise")
    assert len(e.value.gaps) == 12


def test_another_on_gap_is_refused(market: MarketData) -> None:
    with pytest.raises(UsageError, match=r"no on_gap 'rais'\. Did you mean raise\? There are: raise, warn, ignore"):
        market.klines("BTCUSDT", "1h", "2024-01-02", on_gap="rais")  # type: ignore[arg-type]  # the user's mistake


# --- version -------------------------------------------------------------------------------------------------------


def asked(market: MarketData, **options: Any) -> Any:
    return market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02", "2024-01-05", **options)


def test_version_changes_with_values_and_nothing_else(lake: SmallLake, market: MarketData) -> None:
    version = asked(market).version
    assert re.fullmatch("[0-9a-f]{64}", version)
    lake.put(BTC, [date(2024, 1, 3)], fetched_at=datetime(2024, 6, 1, tzinfo=UTC))  # again, as it was
    lake.put(BTC, [date(2024, 1, 1)], version=1)  # not asked for
    lake.layout.ledger(ETH).unlink()
    assert asked(market).version == asked(MarketData(lake.root), columns="close").version == version

    lake.put(BTC, [date(2024, 1, 3)], version=1)
    changed = asked(market).version
    lake.layout.file(ETH, date(2024, 1, 4)).unlink()
    assert len({version, changed, asked(market, on_gap="ignore").version}) == 3


def test_days_that_are_left_out_are_not_in_the_version(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 4)], final=False)
    lake.put(ETH, [date(2024, 1, 4)], final=False)
    two_days = market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02", "2024-01-04").version
    assert asked(market, final_only=True).version == two_days
    assert asked(market).version != two_days


@pytest.mark.parametrize("face", ["arrow", "df", "pl", "relation"])
def test_the_version_is_of_the_rows_as_they_were_taken(lake: SmallLake, market: MarketData, face: str) -> None:
    result = asked(market)
    getattr(result, face)()
    version = result.version
    lake.put(BTC, [date(2024, 1, 8)], version=1)
    assert result.version == version
    lake.put(BTC, [date(2024, 1, 3)], version=1)
    with pytest.raises(MarketDataError, match="replaced after its rows were read"):
        _ = result.version
    getattr(result, face)()
    assert result.version != version


def test_rows_are_read_without_a_ledger(lake: SmallLake, market: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (BTC, ETH):
        lake.layout.ledger(key).write_bytes(b"not a ledger")
    for key in (BTC, ETH):
        lake.layout.file(key, date(2024, 1, 2))

    def refuse(*args: Any) -> Any:
        raise AssertionError("a footer's record was read")

    monkeypatch.setattr("market_data_pipeline.lake.parquet.read_provenance", refuse)
    assert asked(market, on_gap="ignore").arrow().num_rows == 2 * 72


# --- gaps() --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_gaps(lake: SmallLake, market: MarketData) -> MarketData:
    lake.put(BTC, [date(2024, 1, 3)], findings=(lacks(Verdict.OUTAGE, "2024-01-03", (3, 4), (9, 9)),))
    lake.put(ETH, [date(2024, 1, 4)], findings=(lacks(Verdict.UNEXPLAINED, "2024-01-04", (0, 2), beyond=4),))
    ids = verdict_finding(
        Ground(Verdict.HEALED, "REST has them"), "aggregated trades", 3, [Range(first=17, last=19, count=3)]
    )
    lake.put(TRADES, [date(2024, 1, 5)], findings=(ids,))
    lake.put(series("BTCUSDT", "1h", "um"), [date(2024, 1, 6)], findings=(lacks(Verdict.QUIET, "2024-01-06", (5, 5)),))
    return market


def short(frame: Any) -> list[tuple[Any, ...]]:
    rows = frame[["market", "symbol", "verdict", "count"]].itertuples(index=False)
    return [tuple(row) for row in rows]


OUTAGES = [("spot", "BTCUSDT", "outage", 2), ("spot", "BTCUSDT", "outage", 1)]
OPEN = [("spot", "ETHUSDT", "unexplained", 3), ("spot", "ETHUSDT", "unexplained", 4)]
HEALED = [("spot", "BTCUSDT", "healed", 3)]
QUIET = [("um", "BTCUSDT", "quiet", 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [*HEALED, *OUTAGES, *OPEN, *QUIET]),
        ({"symbols": "ETHUSDT"}, OPEN),
        ({"symbols": ["BTCUSDT", "ETHUSDT"], "market": "spot"}, [*HEALED, *OUTAGES, *OPEN]),
        ({"interval": "1h", "market": "spot"}, [*OUTAGES, *OPEN]),
        ({"explained": False}, OPEN),
        ({"explained": True, "market": "um"}, QUIET),
        ({"start": "2024-01-03T04:00", "end": "2024-01-03T09:00"}, OUTAGES[:1]),
        ({"start": "2024-01-03T05:00", "end": "2024-01-04T00:00"}, OUTAGES[1:]),
        ({"start": "2024-01-04T12:00", "end": "2024-01-05T12:00"}, [*HEALED, *OPEN[1:]]),
        ({"start": "2024-01-07"}, []),
    ],
)  # fmt: skip
def test_gaps_are_those_of_the_request(
    with_gaps: MarketData, options: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    assert short(with_gaps.gaps(**options).df()) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"symbols": "BTCUSD"}, r"No symbol 'BTCUSD' is held\. Did you mean BTCUSDT or ETHUSDT\?"),
        ({"symbols": "ETHUSDT", "market": "um"}, r"No symbol 'ETHUSDT' is held\. .*There are: BTCUSDT\."),
        ({"market": "usdm"}, r"no market 'usdm'"),
        ({"interval": "4h"}, r"No interval '4h' is held\. .*There are: 1h\."),
        ({"start": "soon"}, r"start is 'soon', which is not a date"),
    ],
)  # fmt: skip
def test_gaps_of_what_is_not_there_are_refused_in_words(
    with_gaps: MarketData, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        with_gaps.gaps(**options)


def test_an_empty_lake_has_no_gaps(tmp_path: Path) -> None:
    assert MarketData(tmp_path / "nowhere").gaps().df().empty
    assert MarketData(tmp_path / "nowhere").gaps(market="um").df().empty


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"market": "foo"}, r"There is no market 'foo'\. There are: spot, um, cm, option\."),
        ({"interval": "7m"}, r"No interval '7m' is held\."),
        ({"symbols": "BTCUSDT"}, r"No symbol 'BTCUSDT' is held\."),
    ],
)
def test_an_empty_lake_refuses_what_it_cannot_know(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MarketData(tmp_path / "nowhere").gaps(**options)
