"""Recorded Binance archives through ``market-data backfill``: every row and column, every gap, as Binance has them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main
from market_data_pipeline.defs.in_process import run_ingest
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.world import days, klines, utc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recorded")]

FOLDERS = {"spot": Market.SPOT, "um": Market.UM, "cm": Market.CM}
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m, 1h], from: 2019-01-01}
  - market: spot
    symbols: [PEPEUSDT]
    aggTrades: {from: 2019-01-01}
  - market: um
    symbols: [BTCUSDT, ETHUSDT, AVAXUSDT, NEARUSDT, FILUSDT]
    klines: {intervals: [1m, 1h], from: 2019-01-01}
  - market: um
    symbols: [APEUSDT]
    aggTrades: {from: 2019-01-01}
  - market: cm
    symbols: [BTCUSD_PERP]
    klines: {intervals: [1m], from: 2019-01-01}
"""


# The recordings are single days and months: their own listing would say that the symbols were listed then only.
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
  ETHUSDT: [{from: 2017-08-17, until: null}]
  PEPEUSDT: [{from: 2023-05-05, until: null}]
um:
  BTCUSDT: [{from: 2019-09-08, until: null}]
  ETHUSDT: [{from: 2019-11-27, until: null}]
  AVAXUSDT: [{from: 2020-09-23, until: null}]
  NEARUSDT: [{from: 2020-10-15, until: null}]
  FILUSDT: [{from: 2020-10-16, until: null}]
  APEUSDT: [{from: 2022-03-17, until: null}]
cm:
  BTCUSD_PERP: [{from: 2020-08-10, until: null}]
"""


class Recording:
    """One zip of the recordings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = path.parts[path.parts.index("data") + 1 : -1]
        market, _, data_type, symbol, *interval = parts[1:] if parts[0] == "futures" else parts
        self.key = SeriesKey(EXCHANGE, FOLDERS[market], DataType(data_type), symbol, *interval)
        period = path.stem.removeprefix(f"{symbol}-{(interval or [data_type])[0]}-")
        self.monthly = len(period) == len("2024-01")
        self.first = date.fromisoformat(f"{period}-01" if self.monthly else period)
        following = (self.first + timedelta(days=32)).replace(day=1)
        self.last = following - timedelta(days=1) if self.monthly else self.first

    def days(self) -> list[date]:
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    def columns(self) -> dict[str, list[Any]]:
        """Return what Python's own csv module reads, as the lake should have it."""
        with zipfile.ZipFile(self.path) as archive:
            lines = list(csv.reader(io.StringIO(archive.read(archive.namelist()[0]).decode())))
        if not lines[0][0].isdigit():
            lines = lines[1:]
        read = kline(self.key.market) if self.key.interval else agg_trade(self.key.market)
        labels = {"symbol": self.key.symbol} | ({"interval": self.key.interval} if self.key.interval else {})
        values = zip(*lines, strict=True)
        return {name: [label] * len(lines) for name, label in labels.items()} | {
            name: list(map(kind, column)) for (name, kind), column in zip(read.items(), values, strict=False)
        }


def spans(recordings: list[Recording]) -> list[tuple[SeriesKey, date, date]]:
    """Series with first and last day, recordings that follow each other as one."""
    found: list[tuple[SeriesKey, date, date]] = []
    for recording in sorted(recordings, key=lambda r: (str(r.key), r.first)):
        if found and found[-1][0] == recording.key and found[-1][2] + timedelta(days=1) == recording.first:
            found[-1] = (recording.key, found[-1][1], recording.last)
        else:
            found.append((recording.key, recording.first, recording.last))
    return found


Columns = dict[str, Callable[[str], Any]]
"""What each column of a CSV is called in the lake, in their order, and how its values are read."""


def moment(text: str) -> int:
    """Microseconds, which spot has since 2025 and milliseconds everywhere else."""
    value = int(text)
    return value * 1000 if value < 10**14 else value


def kline(market: Market) -> Columns:
    quote = "base" if market is Market.CM else "quote"
    return {
        "open_time": moment, "open": float, "high": float, "low": float, "close": float, "volume": float,
        "close_time": moment, f"{quote}_volume": float, "count": int, "taker_buy_volume": float,
        f"taker_buy_{quote}_volume": float,
    }  # fmt: skip


def agg_trade(market: Market) -> Columns:
    truth = {"True": True, "true": True, "False": False, "false": False}.__getitem__
    columns: Columns = {
        "agg_trade_id": int, "price": float, "quantity": float, "first_trade_id": int, "last_trade_id": int,
        "transact_time": moment, "is_buyer_maker": truth,
    }  # fmt: skip
    return columns | ({"is_best_match": truth} if market is Market.SPOT else {})


@pytest.fixture(scope="module")
def recordings(realdata: Path) -> list[Recording]:
    return [Recording(path) for path in sorted((realdata / "mirror").rglob("*.zip"))]


@pytest.fixture(scope="module")
def lake(recordings: list[Recording], realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A lake into which the command line has brought all recordings."""
    root = tmp_path_factory.mktemp("recorded")
    universe = root / "universe.yaml"
    universe.write_text(UNIVERSE)
    universe.with_name("universe.lock.yaml").write_text(LOCK)
    with pytest.MonkeyPatch.context() as patch, Sandbox(mirror=realdata / "mirror") as sandbox:
        environment = {
            **sandbox.settings_env(),
            "MARKET_DATA_DIR": str(root),
            "MARKET_DATA_UNIVERSE": str(universe),
            "MARKET_DATA_BUDGET_DIR": str(root / "budget"),
            "DAGSTER_HOME": str(root / "dagster"),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        (key, first, last), *others = spans(recordings)
        command = ["backfill", "--market", str(key.market), "--data-type", str(key.data_type), "--symbol", key.symbol]
        command += ["--interval", key.interval] if key.interval else []
        command += ["--from", first.isoformat(), "--through", last.isoformat()]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, f"{' '.join(command)}\n{result.output}"
        # All others at once, as the command does it for one span of days.
        wanted: dict[SeriesKey, list[date]] = {}
        for key, first, last in others:
            wanted.setdefault(key, []).extend(days(first.isoformat(), last.isoformat()))
        report = run_ingest(load_settings(), wanted)
        assert report.failures == []
        yield Layout(root)


def ledger_of(lake: Layout, key: SeriesKey) -> dict[date, DayRecord]:
    return Ledger.read(lake.ledger(key)).rows


def findings(lake: Layout, key: SeriesKey, rule: str) -> Iterator[Finding]:
    for row in ledger_of(lake, key).values():
        yield from (found for found in row.findings_list() if found.rule == rule)


def test_every_row_and_column_equals_the_csv(lake: Layout, recordings: list[Recording]) -> None:
    assert len(recordings) == 30
    for recording in recordings:
        tables = [parquet.read_table(lake.file(recording.key, day)) for day in recording.days()]
        found, expected = pa.concat_tables(tables), recording.columns()
        assert set(found.column_names) == set(expected), recording.path.name
        for name, values in expected.items():
            column = found[name]
            if pa.types.is_timestamp(column.type):
                assert column.type == pa.timestamp("us")
                column = column.cast(pa.int64())
            assert column.null_count == 0, (recording.path.name, name)
            assert np.array_equal(column.to_numpy(), np.array(values)), (recording.path.name, name)


def test_every_day_is_final_verified_and_names_its_archive(lake: Layout, recordings: list[Recording]) -> None:
    for recording in recordings:
        ledger = ledger_of(lake, recording.key)
        for day in recording.days():
            row = ledger[day]
            source = "archive_monthly" if recording.monthly else "archive_daily"
            assert (row.outcome, row.final, row.checksum, row.source) == ("held", True, "verified", source), row


def test_the_gaps_of_spot_btcusdt_1h_2019_are_exact(lake: Layout) -> None:
    hour = 3_600_000_000
    expected = [("2019-03-12T02:00", 6), ("2019-05-15T03:00", 10), ("2019-08-15T02:00", 8), ("2019-11-13T02:00", 2),
                ("2019-11-25T02:00", 2)]  # fmt: skip
    gaps = [r for found in findings(lake, klines("BTCUSDT", "1h"), "outage") for r in found.ranges]
    starts = [int(utc(text).timestamp()) * 1_000_000 for text, _ in expected]
    assert [(gap.first, gap.last, gap.count) for gap in sorted(gaps, key=lambda gap: gap.first)] == [
        (start, start + (count - 1) * hour, count) for start, (_, count) in zip(starts, expected, strict=True)
    ]
    for text, count in expected:
        row = ledger_of(lake, klines("BTCUSDT", "1h"))[utc(text).date()]
        assert (row.gaps, row.missing) == ("info", count)


@pytest.mark.parametrize(("symbol", "minutes"), [("NEARUSDT", 144), ("AVAXUSDT", 22)])
def test_flat_minutes_are_classified_and_fail_nothing(lake: Layout, symbol: str, minutes: int) -> None:
    key = klines(symbol, "1m", "um")
    quiet, suspended = (list(findings(lake, key, rule)) for rule in ("quiet", "suspended"))
    assert sum(found.count for found in (*quiet, *suspended)) == minutes
    ((outage,),) = (found.ranges for found in suspended)
    assert (datetime.fromtimestamp(outage.first / 1e6, UTC), outage.count) == (utc("2023-09-12T08:34"), 19)
    assert {row.gaps for row in ledger_of(lake, key).values()} == {"info"}


def test_the_close_time_that_binance_cut_short_is_warned_of(lake: Layout) -> None:
    (found,) = findings(lake, klines("BTCUSDT", "1h"), "close_time")
    assert datetime.fromtimestamp(found.ranges[0].first / 1e6, UTC).date() == date(2019, 6, 7)


def test_recorded_days_have_no_other_fault(lake: Layout, recordings: list[Recording]) -> None:
    keys = {recording.key for recording in recordings}
    rules = {found.rule for key in keys for row in ledger_of(lake, key).values() for found in row.findings_list()}
    assert rules <= {"outage", "quiet", "suspended", "flat_confirmed", "close_time"}
