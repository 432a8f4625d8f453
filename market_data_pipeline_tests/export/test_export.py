"""``market-data export``: what is written, what lies next to it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from market_data_pipeline import MarketData, clock
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.cli import main
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.export import FORMATS, days_to_export, export_series
from market_data_pipeline.model.day import EMPTY, FAILED, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Range, Verdict
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

BTC, ETH, TRADES = series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("BTCUSDT")
HOUR = 3_600_000_000

Export = Callable[..., Result]


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """A data folder with two series; it is noon of 2024-01-11."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 11, 12, tzinfo=UTC))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    lake = SmallLake(tmp_path / "data")
    lake.put(BTC, days_from("2024-01-01", 4))
    lake.put(ETH, days_from("2024-01-01", 4))
    return lake


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def done(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def gaps(folder: str = "out") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(folder, "gaps.json").read_text())
    return found


def files(folder: str = "out") -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()} - {
        ".export.lock"
    }


# --- gaps and versions ---------------------------------------------------------------------------------------------


def hours(day: date, first: int, last: int) -> Range:
    start = clock.day_start_us(day)
    return Range(first=start + first * HOUR, last=start + last * HOUR, count=last - first + 1)


def test_each_gap_is_listed_with_its_verdict(lake: SmallLake) -> None:
    """Rows that are missing are in no file, and rows that are remarked on are."""
    day = date(2024, 1, 2)
    missing = {
        Verdict.OUTAGE: hours(day, 3, 4),
        Verdict.ARCHIVE_DEFECT: hours(day, 6, 6),
    }
    remarks = {Verdict.HEALED: hours(day, 8, 9), Verdict.QUIET: hours(day, 10, 10)}
    findings = tuple(
        verdict_finding(Ground(verdict, f"because {verdict}"), "candles", one.count, (one,))
        for verdict, one in (missing | remarks).items()
    )
    rows = [n for n in range(24) if n not in (3, 4, 6)]
    lake.note(BTC, lake.write_file(BTC, day, findings=findings, table=day_table(BTC, day).take(rows)))
    [made] = done("csv", "out", "BTCUSDT", "1h", "--from", "2024-01-02", "--through", "2024-01-02")
    assert (made["rows"], made["gaps"], made["gaps_unexplained"]) == (21, 4, 1)
    lines = Path("out/spot/klines/BTCUSDT/1h/2024-01.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[2][11:13]) for line in lines] == rows
    facts = ("verdict", "first", "last", "count", "explained", "rows", "evidence")
    assert [tuple(gap[name] for name in facts) for gap in gaps()] == [
        ("outage", "2024-01-02T03:00:00Z", "2024-01-02T04:00:00Z", 2, True, "missing", "because outage"),
        (
            "archive_defect",
            "2024-01-02T06:00:00Z",
            "2024-01-02T06:00:00Z",
            1,
            False,
            "missing",
            "because archive_defect",
        ),
        ("healed", "2024-01-02T08:00:00Z", "2024-01-02T09:00:00Z", 2, True, "stored", "because healed"),
        ("quiet", "2024-01-02T10:00:00Z", "2024-01-02T10:00:00Z", 1, True, "stored", "because quiet"),
    ]


def test_days_without_a_file_are_gaps_of_whole_days(lake: SmallLake) -> None:
    failed = DayRecord(day=date(2024, 1, 6), outcome=FAILED, failure="checksum", reason="It differs.")
    halted = DayRecord(day=date(2024, 1, 7), outcome=EMPTY, final=True)
    gone = [DayRecord(day=day, outcome=NOT_LISTED, final=True) for day in days_from("2024-01-08", 2)]
    lake.note(BTC, failed, halted, *gone)
    [made] = done("parquet", "out", "BTCUSDT", "1h", "--through", "2024-01-10")
    assert (made["days"], made["last"]) == (4, "2024-01-10")
    assert [(gap["verdict"], gap["first"], gap["last"], gap["count"], gap["explained"]) for gap in gaps()] == [
        ("missing", "2024-01-05T00:00:00Z", "2024-01-05T23:00:00Z", 24, False),
        ("failed", "2024-01-06T00:00:00Z", "2024-01-06T23:00:00Z", 24, False),
        ("outage", "2024-01-07T00:00:00Z", "2024-01-07T23:00:00Z", 24, True),
        ("not_listed", "2024-01-08T00:00:00Z", "2024-01-09T23:00:00Z", 48, True),
        ("missing", "2024-01-10T00:00:00Z", "2024-01-10T23:00:00Z", 24, False),
    ]


def test_missing_trades_are_listed_by_id(lake: SmallLake) -> None:
    ground = Ground(Verdict.UNEXPLAINED, "the ids skip 3 trades")
    lake.put(
        TRADES, [date(2024, 1, 1)], findings=(verdict_finding(ground, "trades", 3, (Range(first=7, last=9, count=3),)),)
    )
    done("csv", "out", "aggTrades")
    [gap] = gaps()
    assert (gap["first_id"], gap["last_id"], gap["count"], gap["verdict"]) == (7, 9, 3, "unexplained")
    assert (gap["first"], gap["last"]) == ("2024-01-01T00:00:00Z", "2024-01-01T23:59:59.999999Z")


def test_final_only_leaves_out_provisional_days(lake: SmallLake) -> None:
    lake.put(BTC, [date(2024, 1, 3)], final=False, fetched_at=datetime(2024, 1, 10, tzinfo=UTC))
    assert [one["days"] for one in done("csv", "out", "BTCUSDT")] == [4]
    [made] = done("csv", "out", "BTCUSDT", "--final-only")
    assert (made["days"], made["rows"]) == (3, 72)
    assert [(gap["verdict"], gap["first"][:10], gap["rows"]) for gap in gaps()] == [
        ("provisional", "2024-01-03", "missing")
    ]


def test_version_is_that_of_the_client(lake: SmallLake) -> None:
    [made] = done("csv", "out", "BTCUSDT", "--from", "2024-01-02", "--through", "2024-01-03")
    rows = MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-02", "2024-01-04")
    assert made["version"] == rows.version
    [noted] = json.loads(Path("out/export.json").read_text())["series"]
    assert (noted["version"], noted["files"]) == (rows.version, ["spot/klines/BTCUSDT/1h/2024-01.csv"])


# --- the folder ----------------------------------------------------------------------------------------------------


def test_second_export_replaces_its_series_only(lake: SmallLake) -> None:
    lake.put(BTC, days_from("2024-02-01", 1))
    done("csv", "out", "BTCUSDT")
    assert files() == {
        "export.json",
        "gaps.json",
        "spot/klines/BTCUSDT/1h/2024-01.csv",
        "spot/klines/BTCUSDT/1h/2024-02.csv",
    }
    of_btc = gaps()
    assert of_btc
    done("csv", "out", "ETHUSDT")
    assert gaps() == of_btc
    done("csv", "out", "BTCUSDT", "--through", "2024-01-04")
    assert files() == {
        "export.json",
        "gaps.json",
        "spot/klines/BTCUSDT/1h/2024-01.csv",
        "spot/klines/ETHUSDT/1h/2024-01.csv",
    }
    assert gaps() == []


def test_shared_instrument_stays_until_its_last_series(lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-01", 2))
    done("nautilus", "out", "BTCUSDT")
    [instrument] = [name for name in files() if "currency_pair" in name]
    done("nautilus", "out", "BTCUSDT", "1h", "--through", "2024-01-02")
    assert len([name for name in files() if "/bar/" in name]) == 2
    assert instrument in files()


def test_folder_with_other_files_is_refused(lake: SmallLake) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    assert "has files that are not from an export. Choose an empty folder" in refused("csv", "out")
    assert files() == {"notes.txt"}


def test_folder_of_another_format_is_refused(lake: SmallLake) -> None:
    done("csv", "out", "BTCUSDT")
    before = files()
    assert "has an export in the format csv. Choose another folder." in refused("parquet", "out")
    assert files() == before


def test_data_folder_is_no_target(lake: SmallLake) -> None:
    assert "is inside of the data folder" in refused("csv", "data/lake/export")
    assert not Path("data/lake/export").exists()


def test_file_is_no_target(lake: SmallLake) -> None:
    Path("out").write_text("mine")
    assert "out is not a folder." in refused("csv", "out")
    assert Path("out").read_text() == "mine"


def test_nothing_is_written_through_a_link(lake: SmallLake) -> None:
    done("csv", "out", "ETHUSDT")
    Path("elsewhere").mkdir()
    Path("out/um").symlink_to(Path("elsewhere").absolute())
    lake.put(series("BTCUSDT", "1h", "um"), days_from("2024-01-01", 1))
    assert "is outside of" in refused("csv", "out", "BTCUSDT", "--market", "um")
    assert list(Path("elsewhere").iterdir()) == []


def test_nothing_is_removed_outside_of_the_folder(lake: SmallLake) -> None:
    done("csv", "out", "BTCUSDT")
    Path("mine.csv").write_text("mine")
    made = json.loads(Path("out/export.json").read_text())
    made["series"][0]["files"].append("../mine.csv")
    Path("out/export.json").write_text(json.dumps(made))
    assert "is outside of" in refused("csv", "out", "BTCUSDT")
    assert Path("mine.csv").read_text() == "mine"


def test_damaged_day_ends_the_export_and_changes_no_file(lake: SmallLake) -> None:
    done("csv", "out", "BTCUSDT")
    path = Path("out/spot/klines/BTCUSDT/1h/2024-01.csv")
    before = path.read_bytes()
    lake.layout.file(BTC, date(2024, 1, 3)).write_bytes(b"damaged")
    result = run("csv", "out", "BTCUSDT")
    assert result.exit_code == 1
    assert "2024-01-03.parquet" in result.output
    assert path.read_bytes() == before
    assert not list(Path("out").glob(".market-data-export-*"))


# --- days that change meanwhile ------------------------------------------------------------------------------------


def exported(lake: SmallLake, on_days: Callable[[SeriesKey, int], object]) -> str:
    days = days_to_export(lake.layout, [BTC], None, None)
    [made] = export_series(lake.layout, FORMATS["csv"], Path("out"), days, None, None, dict, on_days=on_days)
    assert made.version == MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-01-05").version
    return Path("out/spot/klines/BTCUSDT/1h/2024-01.csv").read_text()


def test_day_that_is_replaced_meanwhile_is_exported_again(lake: SmallLake) -> None:
    left = [7]

    def replace_once(_: SeriesKey, __: int) -> None:
        for version in left:
            lake.put(BTC, [date(2024, 1, 2)], version=version)
        left.clear()

    text = exported(lake, replace_once)
    assert sum(line.split(",")[6] == "7" for line in text.splitlines()) == 24


def test_days_that_change_all_the_time_end_with_an_error(lake: SmallLake) -> None:
    versions = iter(range(1, 100))

    def replace(_: SeriesKey, __: int) -> None:
        lake.put(BTC, [date(2024, 1, 2)], version=next(versions))

    with pytest.raises(MarketDataError, match=r"BTCUSDT/1h were replaced 3 times during the export. Run it again"):
        exported(lake, replace)
    assert files() == {"export.json"}


# --- selections ----------------------------------------------------------------------------------------------------


def test_named_type_that_a_format_does_not_have_is_refused(lake: SmallLake) -> None:
    lake.put(TRADES, days_from("2024-01-01", 1))
    lake.put(series("BTCUSDT", None, "um", "metrics"), days_from("2024-01-01", 1))
    text = refused("freqtrade", "out", "BTCUSDT", "--data-type", "metrics")
    assert (
        "binance/um/metrics/BTCUSDT cannot be exported: freqtrade has no metrics, only klines, markPriceKlines" in text
    )
    assert not Path("out").exists()


def test_type_that_nobody_named_is_left_out_with_a_note(lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", None, "um", "metrics"), days_from("2024-01-01", 1))
    result = run("freqtrade", "out")
    assert result.exit_code == 0
    assert "1 series left out: freqtrade has no metrics" in result.output
    assert files() == {"export.json", "gaps.json", "BTC_USDT-1h.feather", "ETH_USDT-1h.feather"}


def test_interval_that_lean_does_not_have_is_refused(lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "4h"), days_from("2024-01-01", 1))
    assert "LEAN has no candles of 4h, only of 1s, 1m, 1h, 1d" in refused("lean", "out", "BTCUSDT", "4h")
    assert [one["series"] for one in done("lean", "out", "BTCUSDT")] == [str(BTC)]


def test_contract_with_a_delivery_is_no_series_of_lean(lake: SmallLake) -> None:
    lake.put(series("BTCUSDT_240329", "1h", "um"), days_from("2024-01-01", 1))
    assert "LEAN reads perpetual futures" in refused("lean", "out", "BTCUSDT_240329")


@pytest.mark.parametrize("form", ["freqtrade", "nautilus", "lean"])
def test_tools_have_one_kind_of_trades_of_a_symbol(lake: SmallLake, form: str) -> None:
    single = series("BTCUSDT", data_type="trades")
    for key in (TRADES, single):
        lake.put(key, days_from("2024-01-01", 1))
    text = refused(form, "out", "BTCUSDT", "aggTrades", "trades")
    assert f"{form} has one file for aggTrades and trades" in text
    assert {one["series"] for one in done(form, "out", "BTCUSDT")} == {str(BTC), str(TRADES)}
    assert [one["series"] for one in done(form, "single", "BTCUSDT", "trades")] == [str(single)]


@pytest.mark.parametrize("form", ["freqtrade", "nautilus"])
def test_single_trades_take_the_place_of_agg_trades(lake: SmallLake, form: str) -> None:
    single = series("BTCUSDT", data_type="trades")
    lake.put(TRADES, days_from("2024-01-01", 2))
    lake.put(single, days_from("2024-01-01", 1))
    done(form, "out", "BTCUSDT", "aggTrades")
    done(form, "out", "BTCUSDT", "trades")
    [noted] = json.loads(Path("out/export.json").read_text())["series"]
    assert (noted["series"], noted["rows"]) == (str(single), 1)
    assert files() == {"export.json", "gaps.json", *noted["files"]}


def test_symbol_with_unknown_assets_is_left_out_with_advice(lake: SmallLake) -> None:
    lake.put(series("BTCNEWCOIN", "1h"), days_from("2024-01-01", 1))
    result = run("freqtrade", "out")
    assert result.exit_code == 0
    assert "1 series left out: The base and quote asset of spot BTCNEWCOIN are not known." in result.output
    assert "spot_exchange_info" in refused("freqtrade", "new", "BTCNEWCOIN")


def test_unknown_symbol_and_empty_range_are_refused(lake: SmallLake) -> None:
    assert "has no symbol 'BTCUSDX'" in refused("csv", "out", "BTCUSDX")
    assert "No day of the selected series is stored" in refused(
        "csv", "out", "--from", "2023-01-01", "--through", "2023-02-01"
    )
    assert not Path("out").exists()


def test_table_counts_gaps_and_names_their_file(lake: SmallLake) -> None:
    result = run("csv", "out", "BTCUSDT", "--through", "2024-01-05")
    assert result.exit_code == 0
    assert "1 gap without an explanation: out/gaps.json lists them." in result.output
    [line] = [line for line in result.output.splitlines() if "spot/klines/BTCUSDT/1h" in line]
    assert line.split()[1:] == ["2024-01-01", "2024-01-05", "4", "96", "1", "1", "1"]


def test_formats_of_the_command_are_those_of_the_table() -> None:
    [argument] = [one for one in main.commands["export"].params if one.name == "form"]
    assert list(argument.type.choices) == list(FORMATS)  # type: ignore[attr-defined]  # a choice
