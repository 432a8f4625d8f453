"""``market-data report``: the condition of all days, and the page with gaps, replaced files and disagreements."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from market_data_pipeline import MarketData, clock
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.cli import main
from market_data_pipeline.model.day import FAILED, DayRecord
from market_data_pipeline.model.findings import Finding, Severity, Verdict
from market_data_pipeline.model.reconciliation import DayReconciled, Difference
from market_data_pipeline.model.states import Condition
from market_data_pipeline.reconciliation.record import write_reconciled
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC, ETH, OLD = series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("LUNAUSDT", "1h", "um")
UNIVERSE = "collect: [{market: spot, symbols: [BTCUSDT, ETHUSDT], klines: {intervals: [1h], from: 2024-01-01}}]"
OUTAGE = verdict_finding(Ground(Verdict.OUTAGE, "REST has no candle either </script><b>"), "candles", 5, ())
DEFECT = verdict_finding(Ground(Verdict.ARCHIVE_DEFECT, "the ids skip 12 trades"), "candles", 1200, ())
REPLACED = Finding(
    check="integrity",
    rule="replaced",
    severity=Severity.INFO,
    count=1,
    message="1 row differs.",
    evidence="close: 3 → 4",
)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """Two collected series with faults, and an old one; it is noon of 2024-01-11."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 11, 12, tzinfo=UTC))
    (tmp_path / "universe.yaml").write_text(UNIVERSE)
    for name, value in {"DIR": tmp_path / "data", "UNIVERSE": tmp_path / "universe.yaml"}.items():
        monkeypatch.setenv(f"MARKET_DATA_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    lake = SmallLake(tmp_path / "data")
    lake.put(BTC, days_from("2024-01-01", 10))
    lake.put(BTC, [date(2024, 1, 3)], findings=(OUTAGE,))
    lake.put(BTC, [date(2024, 1, 4)], findings=(DEFECT,))
    lake.put(BTC, [date(2024, 1, 5)], findings=(REPLACED,))
    lake.put(ETH, days_from("2024-01-01", 4))
    lake.put(ETH, [date(2024, 1, 10)], final=False)
    lake.note(ETH, DayRecord(day=date(2024, 1, 9), outcome=FAILED, failure="checksum", reason="It <differs>."))
    lake.put(OLD, days_from("2022-01-01", 2))
    at = datetime.fromisoformat("2024-01-02T03:00")
    differences = (Difference(at, "close", 42.5, 42.75), Difference(at, "volume", 1.0, 2.0, "skipped_trades", "7-9"))
    write_reconciled(
        lake.layout.reconciled(BTC),
        [DayReconciled(at.date(), "binance/spot/aggTrades/BTCUSDT", "a", "b", at, 24, 1, 0, None, differences)],
    )
    return lake


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["report", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_report_counts_every_day_once(lake: SmallLake) -> None:
    rows = {row["series"]: row for row in json.loads(run("--json").stdout)}
    names = [condition.value for condition in Condition]
    assert {name: [row[one] for one in names] for name, row in rows.items()} == {
        str(BTC): [8, 1, 1, 0, 1],
        str(ETH): [4, 0, 2, 5, 0],
        str(OLD): [2, 0, 0, 0, 0],
    }
    assert (rows[str(BTC)]["gaps"], rows[str(BTC)]["gaps_unexplained"], rows[str(BTC)]["replaced"]) == (2, 1, 1)
    assert (rows[str(BTC)]["compared"], rows[str(BTC)]["unexplained"]) == (1, 1)


def test_report_and_sql_count_the_same_days(lake: SmallLake) -> None:
    query = "SELECT symbol, condition, count(*) AS n FROM quality.condition GROUP BY ALL"
    in_sql = {(row.symbol, row.condition): row.n for row in MarketData(lake.root).sql(query).df().itertuples()}
    reported = {
        (row["series"].split("/")[-2], condition.value): row[condition.value]
        for row in json.loads(run("--json").stdout)
        for condition in Condition
        if row[condition.value]
    }
    assert in_sql == reported


class _Text(HTMLParser):
    """The texts of the page's cells and paragraphs, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [
            value or "" for name, value in attributes if name in ("src", "href") and value and value[0] != "#"
        ]
        if tag in ("td", "p", "th", "h2"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_page_has_gaps_replacements_and_disagreements(lake: SmallLake) -> None:
    result = run("--html", "report.html")
    assert "report.html is the report on 3 series." in result.stdout
    page = _Text()
    text = Path("report.html").read_text("utf-8")
    page.feed(text)
    cells = [re.sub(r"\s+", " ", cell).strip() for cell in page.cells]
    assert page.loads == []
    assert "<script" not in text
    for shown in (
        "REST has no candle either </script><b>",
        "the ids skip 12 trades",
        "not explained",
        "replaced, with other rows: close: 3 → 4",
        "checksum: It <differs>.",
        "2024-01-05 to 2024-01-08",
        "42.5",
        "42.75",
        "skipped_trades 7-9",
    ):
        assert shown in cells, shown
    assert cells.index("the ids skip 12 trades") < cells.index("REST has no candle either </script><b>")


def test_empty_lake_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("universe.yaml").write_text("collect: []\n")
    assert run("--html", "report.html").exit_code == 0
    assert "0 series, 0 days" in Path("report.html").read_text("utf-8")
