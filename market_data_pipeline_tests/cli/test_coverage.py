"""``market-data coverage``: its table, and the page with a calendar of each series."""

from __future__ import annotations

import io
import json
import re
import shutil
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from market_data_pipeline import clock
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.cli import main
from market_data_pipeline.cli.coverage import print_coverage
from market_data_pipeline.coverage.calendar import calendar_of
from market_data_pipeline.model.day import EMPTY, FAILED, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.series import DataType
from market_data_pipeline.model.states import DayState
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC, ETH, OLD = series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("LUNAUSDT", "1h", "um")
UNIVERSE = "collect: [{market: spot, symbols: [BTCUSDT, ETHUSDT], klines: {intervals: [1h], from: 2024-01-01}}]"
OUTAGE = verdict_finding(Ground(Verdict.OUTAGE, "REST has no candle either </script><b>"), "candles", 1200, ())


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """Two series that are collected, of one of which days lack, and one that is not any more; it is 2024-01-11."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 11, 12, tzinfo=UTC))
    (tmp_path / "universe.yaml").write_text(UNIVERSE)
    for name, value in {"DIR": tmp_path / "data", "UNIVERSE": tmp_path / "universe.yaml"}.items():
        monkeypatch.setenv(f"MARKET_DATA_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    lake = SmallLake(tmp_path / "data")
    for key in (BTC, ETH):
        lake.put(key, days_from("2024-01-01", 10))
    lake.put(BTC, [date(2024, 1, 3)], findings=(OUTAGE,))
    for number in (5, 6):
        lake.layout.file(ETH, date(2024, 1, number)).unlink()
    lake.put(ETH, [date(2024, 1, 11)], final=False)
    lake.note(ETH, DayRecord(day=date(2024, 1, 9), outcome=FAILED, failure="checksum", reason="It <differs>."))
    lake.layout.file(ETH, date(2024, 1, 9)).unlink()
    lake.put(OLD, days_from("2022-01-01", 2))
    return lake


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["coverage", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def table(text: str) -> dict[str, dict[str, str]]:
    """The table's rows by series; a cell that is not there is empty."""
    head, *rows = [line.rstrip() for line in text.splitlines()[1:] if "  " in line.strip()]
    names = ["series", *head.split()[1:]]
    found = {}
    for row in rows:
        cells = row.split(maxsplit=len(names) - 1 if "rows by verdict" not in head else len(names) - 3)
        found[cells[0]] = dict(zip(names, [*cells, "", "", ""], strict=False))
    return found


def test_the_table_counts_days_by_state_and_rows_by_verdict(lake: SmallLake) -> None:
    result = run()
    assert result.exit_code == 0
    [header] = [line.split() for line in result.output.splitlines() if line.startswith("series")]
    assert header == ["series", "final", "prov.", "outage", "failed", "missing", "rows", "by", "verdict"]
    found = {name: list(row.values())[1:7] for name, row in table(result.output).items()}
    assert found == {
        "spot/klines/BTCUSDT/1h": ["9", "0", "1", "0", "0", "1,200 outage"],
        "spot/klines/ETHUSDT/1h": ["7", "1", "0", "3", "0", ""],
        "um/klines/LUNAUSDT/1h": ["2", "0", "0", "0", "0", ""],
        "total": ["18", "1", "1", "3", "0", "1,200 outage"],
    }


def test_a_narrow_screen_has_the_gaps_below_the_table(lake: SmallLake) -> None:
    calendars = [calendar_of(BTC, {date(2024, 1, 1): DayState.OUTAGE}, {"outage": 1200})]
    console = Console(file=io.StringIO(), width=80)
    print_coverage(calendars, "data", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "…" not in text
    assert text.splitlines()[-1] == "Rows by verdict: 1,200 outage"


def test_brackets_in_a_path_are_no_markup(lake: SmallLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "[" / "x] [red]"
    odd.parent.mkdir()
    lake.root.rename(odd)
    monkeypatch.setenv("MARKET_DATA_DIR", str(odd))
    for command in (["coverage"], ["status"], ["verify", "--local"], ["quarantine", "list"]):
        found = CliRunner().invoke(main, command)
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        assert "".join(str(odd).split()) in "".join(found.output.split()), "a table wraps its title"


def test_coverage_without_a_universe_shows_stored_days(lake: SmallLake, tmp_path: Path) -> None:
    (tmp_path / "universe.yaml").write_text(UNIVERSE.replace("[BTCUSDT, ETHUSDT]", "['*USDT']"))
    result = run()
    assert result.exit_code == 0
    assert "`market-data universe refresh` writes the lock" in result.stderr
    assert table(result.stdout)["spot/klines/BTCUSDT/1h"]["final"] == "9"
    shutil.rmtree(lake.root)
    assert run().exit_code == 2


def of_status() -> dict[str, dict[str, Any]]:
    """What `market-data status` says, by series as coverage names them."""
    found = json.loads(CliRunner().invoke(main, ["status", "--json"]).output)
    return {one["series"].removeprefix("binance/"): one for one in found}


def lacking(coverage: dict[str, dict[str, str]]) -> dict[str, tuple[int, int]]:
    return {name: (int(row["failed"]), int(row["missing"])) for name, row in coverage.items() if name != "total"}


def test_failed_and_missing_are_as_in_status(lake: SmallLake) -> None:
    lake.note(BTC, DayRecord(day=date(2024, 1, 2), outcome=EMPTY), DayRecord(day=date(2024, 1, 11), outcome=EMPTY))
    lake.layout.file(BTC, date(2024, 1, 2)).unlink()
    lake.note(ETH, DayRecord(day=date(2024, 1, 7), outcome=EMPTY, final=True))
    lake.layout.file(ETH, date(2024, 1, 7)).unlink()
    lake.note(ETH, DayRecord(day=date(2024, 1, 8), outcome=NOT_LISTED, final=True))
    lake.layout.file(ETH, date(2024, 1, 8)).unlink()
    lake.note(ETH, *(DayRecord(day=date(2024, 1, n), outcome=FAILED, failure="gone") for n in (5, 6)))
    found = lacking(table(run().output))
    assert found["spot/klines/BTCUSDT/1h"] == (0, 1)
    assert found == {name: (one["failed"], one["missing"]) for name, one in of_status().items()}


def test_day_is_missing_if_the_current_listing_contains_it(lake: SmallLake, tmp_path: Path) -> None:
    """The day was recorded as not listed, and its file is gone."""
    lake.note(BTC, DayRecord(day=date(2024, 1, 2), outcome=NOT_LISTED, final=True))
    lake.layout.file(BTC, date(2024, 1, 2)).unlink()
    assert lacking(table(run().output))["spot/klines/BTCUSDT/1h"] == (0, 0)
    (tmp_path / "universe.lock.yaml").write_text("spot: {BTCUSDT: [{from: 2023-01-01, until: null}]}")
    found = lacking(table(run().output))["spot/klines/BTCUSDT/1h"]
    assert found == (0, 1)
    assert (of_status()["spot/klines/BTCUSDT/1h"]["failed"], of_status()["spot/klines/BTCUSDT/1h"]["missing"]) == found


def test_series_can_be_chosen_and_what_is_not_there_is_refused(lake: SmallLake) -> None:
    assert list(table(run("--symbol", "ETHUSDT").output)) == ["spot/klines/ETHUSDT/1h"]
    assert list(table(run("--market", "um", "--interval", "1h").output)) == ["um/klines/LUNAUSDT/1h"]
    refused = run("--symbol", "ETHUSD")
    assert refused.exit_code == 2
    assert "has no symbol 'ETHUSD'" in refused.output
    assert "There are: ETHUSDT" in refused.output


def test_a_lost_ledger_does_not_look_like_missing_days(lake: SmallLake) -> None:
    before = table(run("--symbol", "BTCUSDT").output)
    lake.layout.ledger(BTC).unlink()
    assert table(run("--symbol", "BTCUSDT").output) == before


class Page(HTMLParser):
    """What stands in a page: its elements, its texts, and the data of its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and self.elements[-1][1].get("id") == "data":
            self.data = json.loads(data)
        else:
            self.texts.append(data)


@pytest.fixture
def page(lake: SmallLake, tmp_path: Path) -> Page:
    result = run("--html", "coverage.html")
    assert result.exit_code == 0
    assert "coverage.html shows 3 calendars." in result.output
    return Page((tmp_path / "coverage.html").read_text("utf-8"))


def test_the_page_needs_nothing_else(page: Page, tmp_path: Path) -> None:
    text = (tmp_path / "coverage.html").read_text("utf-8")
    assert "://" not in text
    assert not [tag for tag, attributes in page.elements if {"src", "href"} & set(attributes) or tag == "link"]
    assert "url(" not in text.replace("url(#grid)", "")
    assert "prefers-color-scheme:dark" in text


def test_the_page_shows_every_series_with_its_days_and_why(page: Page) -> None:
    names = [attributes["data-name"] for tag, attributes in page.elements if tag == "section"]
    assert names == ["spot/klines/BTCUSDT/1h", "spot/klines/ETHUSDT/1h", "um/klines/LUNAUSDT/1h"]
    whole = [attributes["data-name"] for tag, attributes in page.elements if "data-whole" in attributes]
    assert whole == ["spot/klines/BTCUSDT/1h", "um/klines/LUNAUSDT/1h"]
    assert "2024-01-01 to 2024-01-11: 7 final, 1 provisional, 3 failed." in page.texts
    assert "2024-01-01 to 2024-01-10: 9 final, 1 outage inside. Rows by verdict: 1,200 outage." in page.texts
    assert "2024-01-09: failed. checksum: It <differs>." in page.texts
    assert "2024-01-03: outage inside. 1,200 rows outage (REST has no candle either </script><b>)" in page.texts


def test_provisional_day_is_not_missing(lake: SmallLake, tmp_path: Path) -> None:
    lake.put(BTC, [date(2024, 1, 11)], final=False)
    run("--html", "coverage.html")
    found = Page((tmp_path / "coverage.html").read_text("utf-8"))
    whole = [attributes["data-name"] for tag, attributes in found.elements if "data-whole" in attributes]
    assert whole == ["spot/klines/BTCUSDT/1h", "um/klines/LUNAUSDT/1h"]


def test_the_script_knows_what_every_day_is(page: Page) -> None:
    meaning, (btc, eth, old) = page.data["meaning"], page.data["series"]

    def told(one: dict[str, Any], day: date) -> str:
        number = (day - date(1970, 1, 1)).days
        (state,) = [state for first, last, state in one["runs"] if first <= number <= last]
        return f"{meaning[state]} {one['notes'].get(str(number), '')}".strip()

    assert told(btc, date(2024, 1, 3)).startswith("outage inside 1,200 rows outage (REST has no candle")
    assert told(eth, date(2024, 1, 4)) == "final"
    assert told(eth, date(2024, 1, 9)) == "failed checksum: It <differs>."
    assert told(eth, date(2024, 1, 11)) == "provisional"
    assert told(old, date(2022, 1, 2)) == "final"
    assert re.fullmatch(r"\d+", str(eth["strips"][0][0]))


def test_unwritable_page_is_reported_without_a_traceback(lake: SmallLake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--html", "file/coverage.html")
    assert result.exit_code == 1
    assert "coverage.html cannot be written" in result.output


def test_an_empty_lake_has_its_missing_days(tmp_path: Path, lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path / "nowhere"))
    found = table(run("--html", str(tmp_path / "page.html")).output)
    assert found["spot/klines/BTCUSDT/1h"]["missing"] == "10"
    assert not (tmp_path / "nowhere").exists()


def test_coverage_shows_a_derived_series(lake: SmallLake, tmp_path: Path) -> None:
    lake.put(series("BTCUSDT", None, "spot", DataType.TRADE_PROFILE), days_from("2024-01-01", 3))
    shown = CliRunner().invoke(main, ["coverage"], env={"MARKET_DATA_DIR": str(lake.layout.root)})
    assert (shown.exit_code, shown.exception) == (0, None)
    assert "tradeProfile" in shown.stdout
