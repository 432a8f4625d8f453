"""The pages on SQL and notebooks: each query and block of Python runs over a generated exchange with the shown answer.

To accept changed answers, run these tests with ``UPDATE_SNAPSHOTS=1``. They write the answers into the page.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.defs.in_process import run_ingest
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.reconciliation.record import write_reconciled
from market_data_pipeline.sandbox import MarketOutage, MissingRows, QuietSymbol, Sandbox, WrongChecksum
from market_data_pipeline_tests.support.documents import DOCS, blocks_of
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sql document")]

DOCUMENT = DOCS / "reference" / "sql.md"
NOTEBOOKS = DOCS / "guides" / "notebooks.md"
BLOCK = re.compile(r"^```sql\n(?P<query>.*?)^```\n(?:\n(?P<answer>\|.*?\n)(?=\n|\Z))?", re.DOTALL | re.MULTILINE)
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 1h], from: 2026-03-01}
    aggTrades: {from: 2026-03-03}
  - market: spot
    symbols: [ETHUSDT]
    klines: {intervals: [1h], from: 2026-03-01}
  - market: um
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m], from: 2026-03-02}
  - market: um
    symbols: [ETHUSDT]
    fundingRate: {from: 2026-03-02}
    metrics: {from: 2026-03-03}
    markPriceKlines: {intervals: [1h], from: 2026-03-03}
    indexPriceKlines: {intervals: [1h], from: 2026-03-03}
"""
FAULTS = (
    MarketOutage(start=utc("2026-03-03T10:00"), end=utc("2026-03-03T10:20"), series="/spot/"),
    MarketOutage(start=utc("2026-03-03T14:00"), end=utc("2026-03-03T14:19"), series="/um/"),
    QuietSymbol(start=utc("2026-03-02T05:00"), end=utc("2026-03-02T05:03"), series="^binance/um/.*/ETHUSDT"),
    MissingRows(
        start=utc("2026-03-02T08:00"), end=utc("2026-03-02T08:12"), series="spot/klines/BTCUSDT/1m", where="archive"
    ),
    WrongChecksum(path="spot/.*ETHUSDT-1h-2026-03-02"),
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five days of a made-up exchange with an outage in each market, a quiet symbol, a lack and a wrong checksum."""
    root = tmp_path_factory.mktemp("documented") / "data"
    with pytest.MonkeyPatch.context() as patch, Sandbox() as sandbox:
        patch.setenv("DAGSTER_HOME", str(root / "dagster"))
        world = World(root, sandbox, patch)
        world.at("2026-03-05T12:00:30")
        universe = root.parent / "universe.yaml"
        universe.write_text(UNIVERSE)
        world.set(universe=universe)
        patch.setenv("MARKET_DATA_UNIVERSE", str(universe))
        for fault in FAULTS:
            sandbox.faults.add(fault)
        spot = days("2026-03-01", "2026-03-05")
        wanted = dict.fromkeys((klines("BTCUSDT", "1m"), klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h")), spot)
        wanted |= {klines(symbol, "1m", "um"): spot[1:4] for symbol in ("BTCUSDT", "ETHUSDT")}
        wanted |= {agg_trades("BTCUSDT"): spot[2:4]}
        wanted |= {SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "ETHUSDT"): spot[1:4]}
        wanted |= {SeriesKey(EXCHANGE, Market.UM, DataType.METRICS, "ETHUSDT"): spot[2:3]}
        for prices in (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES):
            wanted |= {SeriesKey(EXCHANGE, Market.UM, prices, "ETHUSDT", "1h"): spot[2:4]}
        report = run_ingest(world.settings, wanted, profiles=True, coverage=True)
        assert [str(failure.day) for failure in report.failures] == ["2026-03-02"]
        reconcile(Layout(root))
        if os.environ.get("UPDATE_SNAPSHOTS"):
            write_answers(root)
        yield root


def reconcile(layout: Layout) -> None:
    """Put one compared day on record."""
    key, source, day = klines("BTCUSDT", "1h"), klines("BTCUSDT", "1m"), date(2026, 3, 3)
    of_klines, of_source = (Ledger.read(layout.ledger(one)).rows[day].content_sha256 for one in (key, source))
    at = clock.naive_utc(utc("2026-03-04T11:00"))
    compared = DayReconciled(day, str(source), of_klines, of_source, at, bars=24, differing=0, explained=0)
    write_reconciled(layout.reconciled(key), [compared])


def text(value: Any) -> str:
    """A value as it stands in a table of the document."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def answer_of(query: str, root: Path) -> list[list[Any]]:
    """The names of the columns, then the rows."""
    table = MarketData(root).sql(query).arrow()
    return [table.column_names, *([*row.values()] for row in table.to_pylist())]


def as_markdown(answer: Sequence[Sequence[Any]]) -> str:
    head, *rows = ["| " + " | ".join(text(value).replace("|", r"\|") for value in row) + " |" for row in answer]
    return "\n".join([head, "|" + "---|" * len(answer[0]), *rows]) + "\n"


def write_answers(root: Path) -> None:
    """Put into the document what its queries answer now."""

    def answered(found: re.Match[str]) -> str:
        return f"```sql\n{found['query']}```\n\n{as_markdown(answer_of(found['query'], root))}"

    DOCUMENT.write_text(BLOCK.sub(answered, DOCUMENT.read_text("utf-8")), "utf-8")


def same(shown: str, value: Any) -> bool:
    """Whether a value is the one that is shown; sums of floats may differ in the last places."""
    if isinstance(value, float):
        return math.isclose(float(shown), value, rel_tol=1e-6)
    return shown == text(value)


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer(DOCUMENT.read_text("utf-8")))


@pytest.mark.parametrize("number", range(len(blocks())))
def test_every_query_has_the_answer_that_is_shown(lake: Path, number: int) -> None:
    found = blocks()[number]
    shown = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (found["answer"] or "").splitlines()
    ]
    names, *rows = answer_of(found["query"], lake)
    assert rows
    assert shown[0] == names
    assert len(shown) - 2 == len(rows)
    for cells, row in zip(shown[2:], rows, strict=True):
        assert all(same(cell, value) for cell, value in zip(cells, row, strict=True)), (cells, row)


def test_the_python_runs(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lake.parent)
    names: dict[str, Any] = {}
    for code in blocks_of(NOTEBOOKS, "python"):
        exec(code, names)
    assert len(names["candles"].df()) == 2 * 2 * 24
    assert names["trades"].height > 0
    assert set(names["held"]["state"]) == {"final", "provisional", "failed", "outage", "healed"}
    assert len(names["frame"]) == 4 * 1440 - 20
    assert re.fullmatch("[0-9a-f]{64}", names["cited"])
    (gap,) = names["lacking"]
    assert str(gap).startswith("spot ETHUSDT 1h, 2026-03-02: failed (checksum: ")
    assert set(names["why"]["verdict"]) == {"outage", "healed"}


def test_every_schema_view_macro_and_column_is_named(lake: Path) -> None:
    document = DOCUMENT.read_text("utf-8")
    market = MarketData(lake)
    tables = market.sql(
        "SELECT schema_name, view_name AS name FROM duckdb_views() WHERE NOT internal UNION ALL "
        "SELECT schema_name, function_name FROM duckdb_functions() WHERE NOT internal AND function_type LIKE '%macro'"
    ).arrow()
    assert tables.num_rows >= 9 + 6 + 4
    for row in tables.to_pylist():
        assert f"`{row['schema_name']}`" in document
        assert f"`{row['name']}" in document or f"`{row['schema_name']}.{row['name']}`" in document, row
    columns = market.sql(
        "SELECT DISTINCT column_name AS name FROM duckdb_columns() WHERE NOT internal ORDER BY name"
    ).arrow()
    assert [name for name in columns["name"].to_pylist() if f"`{name}`" not in document] == []
