"""The condition of each day: one row for every day, the same in SQL and in Python."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import MarketData, clock
from market_data_pipeline.coverage.condition import DayCondition, conditions, days_to_collect, record_collected
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord, finding_columns
from market_data_pipeline.model.findings import VERDICT_SEVERITY, CheckName, Finding, Severity, Verdict, worst
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.model.states import Condition
from market_data_pipeline.sql.file_lists import stored_series
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline.sql.views import create_schema, definitions
from market_data_pipeline.universe import Universe
from market_data_pipeline.universe.resolved import CollectedType, Entry, Since
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import SmallLake, series

BTC, TRADES = series("BTCUSDT", "1h"), series("BTCUSDT")
FIRST = date(2024, 1, 1)
TODAY = date(2024, 3, 1)
NOW_FIRST = TODAY - timedelta(days=20)


def collecting(first: date, *spans: tuple[date, date | None]) -> Universe:
    """A universe with BTCUSDT 1h from a day on."""
    wanted = (CollectedType(BTC.data_type, ("1h",), Since(day=first), 1),)
    entry = Entry((Market.SPOT,), (("BTCUSDT", 1),), (), wanted, 1)
    return Universe((entry,), {(Market.SPOT, "BTCUSDT"): ListingSpans(spans)} if spans else {})


def found(rule: str, severity: Severity, check: CheckName = "gaps", evidence: str = "REST agrees") -> Finding:
    return Finding(check=check, rule=rule, severity=severity, count=3, message="A message.", evidence=evidence)


FINDINGS = st.lists(
    st.one_of(
        st.sampled_from(Verdict).map(lambda verdict: found(verdict, VERDICT_SEVERITY[verdict])),
        st.sampled_from(Severity).map(lambda severity: found("price_range", severity, "integrity", "")),
    ),
    max_size=3,
)


@st.composite
def records(draw: st.DrawFn) -> DayRecord:
    """Any record of a day of the last weeks, also one that no chain of events leads to."""
    findings = draw(FINDINGS)
    outcome = draw(st.sampled_from([HELD, HELD, HELD, FAILED, EMPTY, NOT_LISTED]))
    failure = draw(st.sampled_from([None, None, "checksum", "timeout"]))
    return DayRecord(
        NOW_FIRST + timedelta(days=draw(st.integers(0, 20))),
        outcome,
        final=draw(st.booleans()),
        checksum=draw(st.sampled_from([None, "verified", "accepted"])),
        replaced_by=draw(st.sampled_from([None, None, '"an-etag"'])),
        failure=failure,
        reason=draw(st.sampled_from(["because", ""])) if failure else None,
        integrity=worst(findings, "integrity").value,
        **finding_columns(findings),
    )


@pytest.fixture(autouse=True, scope="module")
def _on_a_day() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", lambda: datetime.combine(TODAY, time(12), UTC))
        yield


@pytest.fixture(scope="module")
def session() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as session:
        session.execute(create_schema("quality"))
        yield session


def in_sql(session: duckdb.DuckDBPyConnection, lake: SmallLake, query: str) -> list[Any]:
    """The answer of the view over a lake. It replaces that of the lake before."""
    for one in definitions(stored_series(lake.layout), marked=False):
        if (one.schema, one.name) == ("quality", "condition"):
            session.execute(one.sql())
    return session.execute(query).fetchall()


def in_python(lake: SmallLake, universe: Universe) -> list[DayCondition]:
    rows = Ledger.read(lake.layout.ledger(BTC)).rows
    return list(conditions(rows, days_to_collect(universe, BTC), universe.listing(BTC), TODAY))


@settings(max_examples=sized(30, 100))
@given(st.lists(records(), max_size=12), st.integers(-3, 25), st.sets(st.integers(0, 22), max_size=4))
def test_sql_and_python_agree_on_every_day(
    session: duckdb.DuckDBPyConnection, rows: list[DayRecord], start: int, edges: set[int]
) -> None:
    spans, ends = [], [NOW_FIRST + timedelta(days=n) for n in sorted(edges)]
    for n in range(0, len(ends), 2):
        if ends[n] > TODAY:
            break  # a listing is known when it has begun
        spans.append((ends[n], ends[n + 1] if n + 1 < len(ends) else None))
    universe = collecting(NOW_FIRST + timedelta(days=start), *spans)
    with tempfile.TemporaryDirectory() as folder:
        lake = SmallLake(Path(folder))
        lake.note(BTC, *rows)
        record_collected(lake.layout, universe)
        columns = "day, condition, reason, evidence, last_modified, checksum, archive_sha256"
        answer = in_sql(session, lake, f"SELECT {columns} FROM quality.condition ORDER BY day")
        expected = in_python(lake, universe)
    assert [DayCondition(day, Condition(word), *rest) for day, word, *rest in answer] == expected
    assert [one.day for one in expected] == sorted({one.day for one in expected})
    assert {row.day for row in rows} <= {one.day for one in expected}


def test_each_condition_has_its_reason_and_evidence(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    day = [FIRST + timedelta(days=n) for n in range(9)]
    lake.put(BTC, [day[0]])
    lake.put(BTC, [day[1]], findings=(found("archive_defect", Severity.ERROR, evidence="REST has no rows"),))
    lake.put(BTC, [day[2]], final=False)
    lake.put(BTC, [day[3]], findings=(found("outage", Severity.INFO),))
    lake.note(
        BTC,
        DayRecord(day[4], FAILED, failure="checksum", reason="The SHA-256 differs."),
        DayRecord(day[5], EMPTY),
        DayRecord(day[6], NOT_LISTED, final=True),
        DayRecord(day[8], HELD, final=True, checksum="accepted"),
    )
    with duckdb.connect(str(publish_catalog(lake.layout)), read_only=True) as catalog:
        answer = catalog.execute("SELECT day, condition, reason, evidence FROM quality.condition ORDER BY day")
        rows = answer.fetchall()
    assert rows == [
        (day[0], "available", "final", ""),
        (day[1], "degraded", "incomplete", "3 archive_defect: REST has no rows"),
        (day[2], "pending", "provisional", ""),
        (day[3], "explained", "outage", "3 outage: REST agrees"),
        (day[4], "missing", "failed", "checksum: The SHA-256 differs."),
        (day[5], "missing", "no_rows", ""),
        (day[6], "explained", "not_listed", ""),
        (day[7], "missing", "never_fetched", ""),
        (day[8], "degraded", "checksum_accepted", ""),
    ]


def test_collected_days_without_a_record_have_a_row(tmp_path: Path, session: duckdb.DuckDBPyConnection) -> None:
    """Also of a series that was never fetched, up to today, and between two listings."""
    lake = SmallLake(tmp_path)
    ago = [TODAY - timedelta(days=n) for n in range(8)]
    record_collected(lake.layout, collecting(ago[6], (ago[7], ago[5]), (ago[2], None)))
    assert in_sql(session, lake, "SELECT symbol, day, condition, reason FROM quality.condition ORDER BY day") == [
        ("BTCUSDT", ago[6], "missing", "never_fetched"),
        ("BTCUSDT", ago[5], "missing", "never_fetched"),
        ("BTCUSDT", ago[4], "explained", "not_listed"),
        ("BTCUSDT", ago[3], "explained", "not_listed"),
        ("BTCUSDT", ago[2], "missing", "never_fetched"),
        ("BTCUSDT", ago[1], "missing", "never_fetched"),
        ("BTCUSDT", ago[0], "pending", "not_over"),
    ]


def test_market_data_narrows_the_conditions(tmp_path: Path) -> None:
    """Days of the universe are in, up to today."""
    lake = SmallLake(tmp_path / "data")
    first = TODAY - timedelta(days=3)
    lake.put(BTC, [first])
    lake.put(TRADES, [first])
    (tmp_path / "data" / "universe.yaml").write_text(
        "collect:\n  - market: spot\n    symbols: [BTCUSDT]\n    klines: {intervals: [1h], from: 2024-02-27}\n"
    )
    market = MarketData(tmp_path / "data")

    frame = market.condition("BTCUSDT", interval="1h").df()

    assert frame["condition"].tolist() == ["available", "missing", "missing", "pending"]
    assert frame["checksum"].tolist()[0] == "verified"
    assert len(market.condition("BTCUSDT", "2024-02-27", "2024-02-28")) == 2
    assert len(market.condition(market="um")) == 0


def test_unknown_interval_of_conditions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no interval '7m'"):
        MarketData(tmp_path).condition(interval="7m")


SELECTIONS: list[dict[str, Any]] = [
    {"symbols": "BTCUSDT"},
    {"symbols": ["ETHUSDT", "BTCUSDT"], "interval": "1h"},
    {"market": "um"},
    {"data_type": "aggTrades"},
    {"symbols": "ETHUSDT", "market": "spot", "data_type": "klines", "interval": "1h"},
]


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """A lake whose files and ledgers differ."""
    lake = SmallLake(tmp_path_factory.mktemp("differing"))
    keys = [BTC, TRADES, series("ETHUSDT", "1h"), series("ETHUSDT", "1d"), series("ETHUSDT", "1h", "um")]
    for number, key in enumerate(keys):
        lake.put(key, [FIRST + timedelta(days=n) for n in (0, 1, 3 + number)])
        lake.layout.file(key, FIRST + timedelta(days=1)).unlink()
        lake.write_file(key, FIRST + timedelta(days=2))
    return lake


@pytest.fixture(scope="module")
def whole_of_it(differing: SmallLake) -> pd.DataFrame:
    return MarketData(differing.root).condition().df()


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_selection_answers_like_the_whole_lake(
    differing: SmallLake, whole_of_it: pd.DataFrame, selection: dict[str, Any]
) -> None:
    """Also where files and ledgers differ, inside the selection and outside of it."""
    assert {"failed", "final", "never_fetched"} <= set(whole_of_it["reason"])
    whole = whole_of_it
    for name, value in selection.items():
        whole = whole[whole[{"symbols": "symbol"}.get(name, name)].isin([value] if isinstance(value, str) else value)]

    market = MarketData(differing.root)
    narrow = market.condition(**selection)
    market.condition("BTCUSDT", interval="1h").arrow()  # corrects other ledgers in between

    assert len(narrow) > 0
    assert narrow.df().equals(whole.reset_index(drop=True))


def test_selection_of_an_unknown_data_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no data type 'candles'"):
        MarketData(tmp_path).condition(data_type="candles")


def test_days_to_collect_fill_holes_around_the_record(tmp_path: Path, session: duckdb.DuckDBPyConnection) -> None:
    """The first day to collect is on record, before it, or after it; each day has one row."""
    for first in (TODAY - timedelta(days=6), TODAY - timedelta(days=4), TODAY - timedelta(days=2), TODAY):
        lake = SmallLake(tmp_path / str(first))
        lake.put(BTC, [TODAY - timedelta(days=4), TODAY - timedelta(days=3)])
        record_collected(lake.layout, collecting(first))
        days = [day for (day,) in in_sql(session, lake, "SELECT day FROM quality.condition ORDER BY day")]
        assert days == clock.days_between(min(first, TODAY - timedelta(days=4)), TODAY)
