"""What can be wrong at the exchange, one story a test: verdict, evidence, rows in the lake, number of requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import parquet, quarantine
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance.flat_candles import classify_flat_candles
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayRecord, OtherArchive, after
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.model.series import ListingSpans, Market, SeriesKey
from market_data_pipeline.sandbox import (
    ChangedRows,
    Damage,
    DamagedArchive,
    Fault,
    GeneratedSymbol,
    LateArchive,
    LoggedRequest,
    MarketOutage,
    MissingChecksum,
    MissingDay,
    MissingRows,
    QuietSymbol,
    RepeatedAtMidnight,
    ReplacedArchive,
    Sandbox,
    Status,
    WrongChecksum,
)
from market_data_pipeline.sources.http import Host, Response
from market_data_pipeline_tests.support.world import Result, World, agg_trades, days, klines, utc

BTC, TRADES = klines("BTCUSDT", "1m"), agg_trades("BTCUSDT")
DAY, BEFORE = date(2026, 3, 3), date(2026, 3, 2)


@dataclass(frozen=True)
class Asked:
    """How many requests of each kind were made; a 404 or a refusal counts, too."""

    zips: int = 0
    checksums: int = 0
    clocks: int = 0
    pages: int = 0
    """Of candles or of trades, by REST."""
    others: int = 0

    def __add__(self, other: Asked) -> Asked:
        return Asked(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __rmul__(self, times: int) -> Asked:
        return Asked(*(times * mine for mine in astuple(self)))

    @classmethod
    def of(cls, requests: Iterable[LoggedRequest]) -> Asked:
        """The requests that the exchange saw."""
        return sum((_kind(request.path) for request in requests), cls())


def _kind(path: str) -> Asked:
    name = path.rsplit("/", 1)[-1]
    if name.endswith(".zip"):
        return Asked(zips=1)
    if name.endswith(".CHECKSUM"):
        return Asked(checksums=1)
    kinds = {"time": CLOCK, "klines": PAGE, "aggTrades": PAGE}
    return kinds.get(name, Asked(others=1))


NOTHING, ABSENT = Asked(), Asked(zips=1)
ZIP = Asked(zips=1, checksums=1)
"""A zip that is there comes with its CHECKSUM; of one that is not, none is asked for."""
CLOCK, PAGE = Asked(clocks=1), Asked(pages=1)
"""REST is asked for its clock before the first page of a run, since only candles that have closed by it count."""
REST = CLOCK + PAGE
CANDLES, TRADES_A_PAGE = 1000, 1000
"""Rows that spot's REST gives at most in one answer."""
WHOLE_DAY = CLOCK + -(-1440 // CANDLES) * PAGE
"""Of candles of a minute."""


@dataclass
class Story:
    """A world with a fault, beside the same world without it."""

    world: World

    def truth(self, key: SeriesKey, day: date = DAY) -> pa.Table:
        """The day as the exchange had it: brought into another lake while no fault is in force."""
        layout = Layout(self.world.root / "truth")
        with self.undisturbed(), Sources(self.world.settings) as sources:
            [result] = ingest(key, [day], layout=layout, sources=sources, settings=self.world.settings)
        assert isinstance(result, DayOutcome), result
        return parquet.read_table(layout.file(key, day))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Lift all faults for a while, and leave no trace in the log."""
        faults = list(self.world.sandbox.faults)
        self.world.sandbox.faults.clear()
        try:
            yield
        finally:
            for fault in faults:
                self.world.sandbox.faults.add(fault)
            self.world.forget()

    def bring(
        self, key: SeriesKey, wanted: Sequence[date] = (DAY,), listing: ListingSpans | None = None
    ) -> list[Result]:
        """Bring days as one run does, with a log of its requests alone."""
        self.world.forget()
        return self.world.ingest(key, wanted, listing)

    def held(self, key: SeriesKey, day: date = DAY) -> pa.Table:
        return parquet.read_table(self.world.layout.file(key, day))

    @property
    def requests(self) -> Asked:
        """Made since the last :meth:`bring` began."""
        return Asked.of(self.world.sandbox.requests)


@pytest.fixture
def story(world: World) -> Story:
    return Story(world)


def good(results: Sequence[Result]) -> DayRecord:
    """The ledger row of the one day that was brought."""
    [result] = results
    assert isinstance(result, DayOutcome), result
    return result.row


def gaps(row: DayRecord) -> list[Finding]:
    return [finding for finding in row.findings_list() if finding.check == "gaps"]


def the_gap(row: DayRecord) -> Finding:
    [found] = gaps(row)
    return found


def finding(row: DayRecord, rule: str) -> Finding:
    [found] = [found for found in row.findings_list() if found.rule == rule]
    return found


def at(text: str) -> int:
    """A moment on the day, in microseconds."""
    return clock.to_us(utc(f"{DAY}T{text}"))


def span(found: Finding) -> list[tuple[int, int, int]]:
    return [(r.first, r.last, r.count) for r in found.ranges]


# --- the exchange stood still ---------------------------------------------------------------------------------------


def test_spot_outage_has_no_rows_in_rest_either(story: Story) -> None:
    story.world.sandbox.faults.add(MarketOutage(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="/spot/"))
    row = good(story.bring(BTC))
    found = the_gap(row)
    assert (found.rule, found.count, row.gaps, row.final) == ("outage", 20, "info", True)
    assert span(found) == [(at("10:00"), at("10:19"), 20)]
    assert found.evidence == "REST has no candle either"
    assert story.held(BTC).num_rows == 1420
    assert story.requests == ZIP + REST


def test_spot_outage_is_confirmed_by_consecutive_trade_ids(story: Story) -> None:
    story.world.sandbox.faults.add(MarketOutage(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="/spot/"))
    assert gaps(good(story.bring(TRADES))) == []
    assert story.requests == ZIP
    story.world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    row = good(story.bring(BTC))
    found = the_gap(row)
    ids = ints(story.held(TRADES), "agg_trade_id")
    times = ints(story.held(TRADES), "transact_time")
    last = int(ids[times < at("10:00")][-1])
    assert (found.rule, row.gaps) == ("outage", "info")
    assert (
        f"the aggTrade ids before and after are consecutive, {last} to {last + 1}; REST was not asked" in found.evidence
    )
    assert story.held(BTC).num_rows == 1420
    assert story.requests == ZIP + CLOCK  # which was refused; no page was asked for after that


def test_an_outage_in_um_is_flat_rows_in_every_symbol(story: Story) -> None:
    keys = [klines(symbol, "1m", "um") for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")]
    story.world.sandbox.faults.add(MarketOutage(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="/um/"))
    for key in keys:
        assert good(story.bring(key)).verdicts == "quiet"
        assert story.requests == ZIP
    story.world.forget()
    assert classify_flat_candles(story.world.layout, Market.UM).days == 3
    assert story.requests == NOTHING  # the lake knows all symbols
    for key in keys:  # and REST, whether the archive alone has them flat
        assert finding(story.world.ledger(key).rows[DAY], "unconfirmed").count == 20
        story.world.ingest(key, [DAY])
    assert not story.world.asked(".zip")
    classify_flat_candles(story.world.layout, Market.UM)
    for key in keys:
        row = story.world.ledger(key).rows[DAY]
        found = finding(row, "suspended")
        assert (found.count, span(found), row.gaps) == (20, [(at("10:00"), at("10:19"), 20)], "info")
        assert "every other stored symbol was flat or missing, too (2: " in found.evidence
        assert story.held(key).num_rows == 1440


def test_a_quiet_symbol_is_flat_while_others_trade(story: Story) -> None:
    quiet, other = klines("ETHUSDT", "1m", "um"), klines("BTCUSDT", "1m", "um")
    story.world.sandbox.faults.add(
        QuietSymbol(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="^binance/um/.*/ETHUSDT")
    )
    found = the_gap(good(story.bring(quiet)))
    assert (found.rule, found.count) == ("quiet", 20)
    assert found.evidence.startswith("unconfirmed")
    assert story.requests == ZIP  # no row lacks, so there is nothing to ask REST for
    assert gaps(good(story.bring(other))) == []
    assert story.requests == ZIP
    story.world.forget()
    classify_flat_candles(story.world.layout, Market.UM)
    assert story.requests == NOTHING
    row = story.world.ledger(quiet).rows[DAY]
    found = the_gap(row)
    assert (found.rule, found.count, span(found)) == ("quiet", 20, [(at("10:00"), at("10:19"), 20)])
    assert (row.gaps, row.final) == ("info", True)
    assert "BTCUSDT" in found.evidence
    held = story.held(quiet)
    flat = (ints(held, "count") == 0).nonzero()[0]
    assert (held.num_rows, flat.tolist()) == (1440, list(range(600, 620)))


# --- the archive lacks what the exchange had ------------------------------------------------------------------------


def test_twenty_minutes_missing_from_the_archive_come_from_rest(story: Story) -> None:
    truth = story.truth(BTC)
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="klines", where="archive")
    )
    row = good(story.bring(BTC))
    found = the_gap(row)
    assert (found.rule, found.count, found.evidence) == ("healed", 20, "REST has them")
    assert span(found) == [(at("10:00"), at("10:19"), 20)]
    assert (row.gaps, row.final, row.missing) == ("info", True, 0)
    assert story.held(BTC).equals(truth)
    parts = parquet.read_provenance(story.world.layout.file(BTC, DAY)).parts
    assert [(p.source.value, p.first_row, p.rows) for p in parts] == [
        ("archive_daily", 0, 600),
        ("rest", 600, 20),
        ("archive_daily", 620, 820),
    ]
    assert story.requests == ZIP + REST  # twenty minutes are a page
    story.bring(BTC)
    assert story.requests == NOTHING


@pytest.mark.parametrize("key", [BTC, TRADES])
def test_rows_missing_without_a_checksum_come_from_rest_too(story: Story, key: SeriesKey) -> None:
    truth = story.truth(key)
    proof = story.world.sandbox.faults.add(MissingChecksum(days=[DAY]))
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="BTCUSDT", where="archive")
    )
    row = good(story.bring(key))
    assert (row.final, row.checksum, row.source) == (False, "missing", "archive_daily+rest")
    assert the_gap(row).rule == "healed"
    assert the_gap(row).evidence == "REST has them"
    assert story.held(key).equals(truth)

    # Without an answer of REST, what it gave stays.
    refusal = story.world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    assert good(story.bring(key)).rows == truth.num_rows
    assert story.held(key).equals(truth)
    story.world.sandbox.faults.remove(refusal)

    story.world.sandbox.faults.remove(proof)
    row = good(story.bring(key))
    assert (row.final, row.checksum, row.source) == (True, "verified", "archive_daily+rest")
    assert [f.rule for f in row.findings_list()] == ["healed"], "nothing changed"
    assert story.held(key).equals(truth)


def test_rows_missing_from_both_sources_have_true_evidence(story: Story) -> None:
    """The archive has no checksum."""
    story.world.sandbox.faults.add(MissingChecksum(days=[DAY]))
    gone = MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="klines", where="both")
    story.world.sandbox.faults.add(gone)
    found = the_gap(good(story.bring(BTC)))
    assert (found.rule, found.count, found.evidence) == ("outage", 20, "REST has no candle either")
    assert story.requests == ZIP + REST


def test_rows_missing_while_rest_refuses_are_requested_later(story: Story) -> None:
    """The zip is not downloaded again."""
    truth = story.truth(BTC)
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="klines", where="archive")
    )
    refusal = story.world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    row = good(story.bring(BTC))
    found = the_gap(row)
    assert (found.rule, row.gaps, row.final) == ("unpublished", "warn", True)
    assert "REST was not asked" in found.evidence
    assert "refuses this country" in found.evidence
    assert story.held(BTC).num_rows == 1420
    assert story.requests == ZIP + CLOCK
    story.world.sandbox.faults.remove(refusal)
    assert [r.action for r in story.bring(BTC) if isinstance(r, DayOutcome)] == [Action.HELD]
    assert story.requests == NOTHING  # it rests for an hour
    refusal = story.world.sandbox.faults.add(refusal)
    story.world.at("2026-03-05T13:30:00")
    assert (good(story.bring(BTC)).attempts, story.requests) == (2, CLOCK)
    story.world.sandbox.faults.remove(refusal)
    story.world.at("2026-03-05T15:00:00")
    assert (good(story.bring(BTC)).attempts, story.requests) == (2, NOTHING)  # and then for two
    story.world.at("2026-03-05T15:31:00")
    assert the_gap(good(story.bring(BTC))).rule == "healed"
    assert story.requests == REST
    assert story.held(BTC).equals(truth)


def test_missing_candles_are_a_defect_until_filled(story: Story) -> None:
    """Trades took place in these minutes."""
    truth = story.truth(BTC)
    good(story.bring(TRADES))
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="klines", where="archive")
    )
    refusal = story.world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    row = good(story.bring(BTC))
    assert (the_gap(row).rule, row.gaps) == ("archive_defect", "error")
    assert "stored aggTrades took place there" in the_gap(row).evidence
    assert story.held(BTC).num_rows == 1420
    assert story.requests == ZIP + CLOCK  # refused
    story.world.sandbox.faults.remove(refusal)
    story.world.at("2026-03-05T13:30:00")
    row = good(story.bring(BTC))
    assert (the_gap(row).rule, the_gap(row).evidence, row.gaps) == ("healed", "REST has them", "info")
    assert story.held(BTC).equals(truth)
    assert story.requests == REST  # the zip has told all that it knows


def reworded(found: Finding) -> Finding:
    rest = found.rest and found.rest.model_copy(update={"reason": "451"})
    return found.model_copy(update={"message": "Gap.", "evidence": "none", "rest": rest})


def test_new_words_alone_do_not_write_a_day_again(story: Story) -> None:
    """An older version described the same gap in other words."""
    faults = story.world.sandbox.faults
    faults.add(MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), where="archive"))
    faults.add(Status(path="/api/v3/", status=451))
    assert the_gap(good(story.bring(BTC))).rest is not None
    path = story.world.layout.file(BTC, DAY)
    record, table = parquet.parse_whole(path, path.read_bytes())
    older = record.model_copy(update={"findings": tuple(map(reworded, record.findings))})
    parquet.write_table(path, table, older, spec_of(BTC))
    story.world.layout.ledger(BTC).unlink()
    story.world.at("2026-03-05T13:30:00")
    [result] = story.bring(BTC)
    assert isinstance(result, DayOutcome)
    assert (result.action, story.requests) == (Action.HELD, CLOCK)
    assert parquet.read_provenance(path).findings == older.findings


def test_candles_missing_from_all_sources_are_unexplained(story: Story) -> None:
    """Trades took place in these minutes."""
    good(story.bring(TRADES))
    story.world.sandbox.faults.add(MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="klines"))
    row = good(story.bring(BTC))
    assert (the_gap(row).rule, row.gaps) == ("unexplained", "error")
    assert "REST has no candle either, but" in the_gap(row).evidence
    assert story.held(BTC).num_rows == 1420
    assert story.requests == ZIP + REST


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_whole_day_missing_from_archive_is_provisional_from_rest(story: Story, key: SeriesKey) -> None:
    truth = story.truth(key)
    story.world.sandbox.faults.add(MissingDay(days=[DAY]))
    row = good(story.bring(key))
    assert (row.source, row.final, gaps(row), row.checksum) == ("rest", False, [], None)
    assert story.held(key).equals(truth)
    [part] = parquet.read_provenance(story.world.layout.file(key, DAY)).parts
    assert (part.source.value, part.first_row, part.rows) == ("rest", 0, truth.num_rows)
    if key == BTC:
        assert story.requests == ABSENT + WHOLE_DAY
    else:
        # One candle tells whether the symbol was listed yet, which spares 24 requests where it was not. The first page
        # is asked for by time, and is of one hour at most; from then on by id, until one holds a trade of the next day.
        first_page = min(int((ints(truth, "transact_time") < at("01:00")).sum()), TRADES_A_PAGE)
        by_id = (truth.num_rows - first_page) // TRADES_A_PAGE + 1
        assert story.requests == ABSENT + PAGE + CLOCK + PAGE + by_id * PAGE


@pytest.mark.parametrize("cut_at", ["09:29", "23:55"])
def test_a_day_of_trades_that_the_archive_cut_short_is_completed(story: Story, cut_at: str) -> None:
    truth = story.truth(TRADES)
    end = utc(str(DAY + timedelta(days=1)))
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T{cut_at}"), end=end, series="aggTrades", where="archive")
    )
    # Of a few minutes only the next day's first id tells.
    results = story.bring(TRADES, [DAY, DAY + timedelta(days=1)])
    row = good(results[:1])
    lacked = int((ints(truth, "transact_time") >= at(cut_at)).sum())
    found = finding(row, "healed")
    assert (found.count, row.gaps, row.final) == (lacked, "info", True)
    assert story.held(TRADES).equals(truth)
    assert row.content_sha256 == story.world.ledger(TRADES).rows[DAY].content_sha256
    # REST is asked from the first id that lacks, page after page. Where the day itself shows the cut, up to the first
    # trade after the day's end, which takes the clock, too; else up to the next day's first id.
    assert lacked % TRADES_A_PAGE != 0
    clock_asked = CLOCK if cut_at == "09:29" else NOTHING
    assert story.requests == 2 * ZIP + clock_asked + -(-lacked // TRADES_A_PAGE) * PAGE


def test_day_missing_from_monthly_zip_comes_from_the_daily_zip(story: Story) -> None:
    key, wanted = klines("BTCUSDT", "1h"), days("2026-01-01", "2026-01-31")
    story.world.sandbox.faults.add(MissingDay(days=[date(2026, 1, 31)], cadence="monthly"))
    results = story.bring(key, wanted)
    rows = [r.row for r in results if isinstance(r, DayOutcome)]
    assert [(row.source, row.rows, gaps(row)) for row in rows] == [
        *[("archive_monthly", 24, [])] * 30,
        ("archive_daily", 24, []),
    ]
    assert story.requests == 2 * ZIP


def test_day_with_gap_in_monthly_zip_comes_from_the_daily_zip(story: Story) -> None:
    key, wanted = klines("BTCUSDT", "1h"), days("2026-01-01", "2026-01-31")
    story.world.sandbox.faults.add(
        MissingRows(start=utc("2026-01-15T05:00"), end=utc("2026-01-15T07:00"), where="archive", cadence="monthly")
    )
    rows = [r.row for r in story.bring(key, wanted) if isinstance(r, DayOutcome)]
    assert [row.day.day for row in rows if row.source == "archive_daily"] == [15]
    assert all(row.rows == 24 and not gaps(row) for row in rows)
    assert story.requests == 2 * ZIP


# --- ids of trades --------------------------------------------------------------------------------------------------


def test_interleaved_ids_are_sorted(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(DamagedArchive(days=[DAY], damage=Damage.INTERLEAVED))
    row = good(story.bring(TRADES))
    assert finding(row, "order").count > 1000
    assert gaps(row) == []
    assert story.held(TRADES).equals(truth)
    assert story.requests == ZIP


def test_exact_duplicates_are_dropped_and_counted(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(DamagedArchive(days=[DAY], damage=Damage.DUPLICATES))
    row = good(story.bring(TRADES))
    assert finding(row, "duplicates").count >= 1
    assert story.held(TRADES).equals(truth)
    assert story.requests == ZIP


def test_two_rows_with_one_id_fail_the_day_and_both_are_shown(story: Story) -> None:
    story.world.sandbox.faults.add(DamagedArchive(days=[DAY], damage=Damage.CONFLICTING_DUPLICATES))
    [result] = story.bring(TRADES)
    assert isinstance(result, DayFailure)
    assert result.failure == "conflict"
    assert result.reason.count("price=") == 2
    assert not story.world.layout.file(TRADES, DAY).exists()
    assert story.requests == ZIP


@pytest.mark.parametrize("together", [True, False])
def test_an_id_on_both_sides_of_midnight_stays_on_one(story: Story, together: bool) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(RepeatedAtMidnight(days=[DAY]))
    if together:
        results = story.bring(TRADES, [BEFORE, DAY])
    else:
        good(story.bring(TRADES, [BEFORE]))
        results = story.bring(TRADES)
    row = good(results[-1:])
    found = finding(row, "across_midnight")
    last = int(ints(story.held(TRADES, BEFORE), "agg_trade_id")[-1])
    assert (found.count, found.severity.value, span(found)) == (1, "warn", [(last, last, 1)])
    assert "also appear in the previous day. Only the previous day has them now" in found.message
    assert story.held(TRADES).equals(truth)
    assert story.requests == (2 if together else 1) * ZIP


def test_trades_missing_inside_a_day_are_requested_by_id(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="aggTrades", where="archive")
    )
    row = good(story.bring(TRADES))
    lacked = int(((ints(truth, "transact_time") >= at("10:00")) & (ints(truth, "transact_time") < at("10:20"))).sum())
    assert lacked < TRADES_A_PAGE
    assert (the_gap(row).rule, the_gap(row).count, the_gap(row).evidence) == ("healed", lacked, "REST has them")
    assert story.held(TRADES).equals(truth)
    assert story.requests == ZIP + PAGE  # what has an id has happened, whatever REST's clock says


def test_ids_missing_from_rest_too_are_unexplained(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="aggTrades", where="both")
    )
    row = good(story.bring(TRADES))
    assert (the_gap(row).rule, row.gaps, row.final) == ("unexplained", "error", True)
    assert "REST" in the_gap(row).evidence
    assert story.held(TRADES).num_rows == row.rows < truth.num_rows
    assert story.requests == ZIP + PAGE  # which begins elsewhere, and so tells that they are not there


@pytest.mark.parametrize(("start", "end"), [("10:05", "10:10"), ("10:00", "10:05"), ("10:15", "10:20")])
def test_ids_partly_in_rest_are_filled_and_others_unexplained(story: Story, start: str, end: str) -> None:
    truth = story.truth(TRADES)
    ids, times = ints(truth, "agg_trade_id"), ints(truth, "transact_time")
    gone = (times >= at(start)) & (times < at(end))
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="aggTrades", where="archive")
    )
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T{start}"), end=utc(f"{DAY}T{end}"), series="aggTrades", where="both")
    )
    row = good(story.bring(TRADES))
    assert sorted(found.rule for found in gaps(row)) == ["healed", "unexplained"]
    assert span(finding(row, "unexplained")) == [(ids[gone][0], ids[gone][-1], gone.sum())]
    assert story.held(TRADES).equals(truth.filter(pa.array(~gone)))
    assert story.requests == ZIP + PAGE  # one page spans it all, and what it leaves out is seen


def test_ids_missing_from_cut_archive_and_rest_are_unexplained(story: Story) -> None:
    truth = story.truth(TRADES)
    ids, times = ints(truth, "agg_trade_id"), ints(truth, "transact_time")
    gone = (times >= at("15:00")) & (times < at("15:10"))
    midnight = utc(str(DAY + timedelta(days=1)))
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T09:29"), end=midnight, series="aggTrades", where="archive")
    )
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T15:00"), end=utc(f"{DAY}T15:10"), series="aggTrades", where="both")
    )
    row = good(story.bring(TRADES))
    assert sorted(found.rule for found in gaps(row)) == ["healed", "unexplained"]
    assert span(finding(row, "unexplained")) == [(ids[gone][0], ids[gone][-1], gone.sum())]
    assert story.held(TRADES).equals(truth.filter(pa.array(~gone)))


def test_ids_beyond_the_weight_of_a_run_are_unpublished(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.set(rest_trades_weight=0)
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series="aggTrades", where="archive")
    )
    row = good(story.bring(TRADES))
    assert (the_gap(row).rule, row.gaps) == ("unpublished", "warn")
    assert "weight" in the_gap(row).evidence
    assert story.held(TRADES).num_rows == row.rows < truth.num_rows
    assert story.requests == ZIP  # no trade may be asked for


def rest_forgets_the_symbol(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let REST say from now on that it does not know the symbol; returned are the paths that it is asked for."""
    real, asked = Host.get, list[str]()

    def get(host: Host, path: str, *more: Any, **named: Any) -> Response:
        if not path.endswith(("klines", "aggTrades")):
            return real(host, path, *more, **named)
        asked.append(path)
        return Response(path, 400, {}, b'{"code": -1121, "msg": "Invalid symbol."}')

    monkeypatch.setattr(Host, "get", get)
    return asked


@pytest.mark.parametrize("key", [BTC, TRADES], ids=str)
def test_rows_of_a_symbol_unknown_to_rest_are_not_retried(
    story: Story, key: SeriesKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.world.sandbox.faults.add(
        MissingRows(start=utc(f"{DAY}T10:00"), end=utc(f"{DAY}T10:20"), series=key.data_type, where="archive")
    )
    asked = rest_forgets_the_symbol(monkeypatch)
    row = good(story.bring(key))
    found = the_gap(row)
    assert (found.rule, row.final, len(asked)) == ("unexplained", True, 1)
    assert found.evidence.endswith("REST of spot does not know the symbol any more, or never did (error -1121)")
    story.world.at("2026-06-05T12:00:00")
    assert good(story.bring(key)) == row
    assert len(asked) == 1


# --- late, replaced, wrong ------------------------------------------------------------------------------------------


def test_archive_nine_days_late_makes_the_day_final(story: Story) -> None:
    truth = story.truth(BTC)
    story.world.sandbox.faults.add(LateArchive(days=[DAY], days_late=9))
    row = good(story.bring(BTC))
    assert (row.final, row.source, gaps(row)) == (False, "rest", [])
    assert story.requests == ABSENT + WHOLE_DAY
    assert story.held(BTC).equals(truth)
    story.world.at("2026-03-12T12:00:00")
    assert not good(story.bring(BTC)).final
    assert story.requests == ABSENT  # the day is whole, so REST is left alone
    story.world.at("2026-03-13T12:00:00")
    row = good(story.bring(BTC))
    assert (row.final, row.source, row.checksum, gaps(row)) == (True, "archive_daily", "verified", [])
    assert story.requests == ZIP
    assert not [f for f in row.findings_list() if f.rule in ("became_final", "disagreement")]
    assert story.held(BTC).equals(truth)


def test_replaced_archive_is_fetched_again_and_compared(story: Story) -> None:
    truth = story.truth(BTC)
    story.world.sandbox.faults.add(ReplacedArchive(days=[DAY], at=utc("2026-03-05T18:00"), short_by=30))
    row = good(story.bring(BTC))
    assert (row.rows, finding(row, "healed").count) == (1440, 30)
    assert story.requests == ZIP + REST
    story.world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    story.world.at("2026-03-06T12:00:00")
    ledger = story.world.ledger(BTC)
    ledger.put(after(row, row.day, OtherArchive("another-etag")))
    ledger.write(story.world.layout.ledger(BTC))
    replaced = good(story.bring(BTC))
    assert (replaced.final, replaced.replaced_by, replaced.etag != row.etag) == (True, None, True)
    assert gaps(replaced) == []
    assert story.held(BTC).equals(truth)
    assert story.requests == ZIP


def test_the_rows_that_a_replaced_archive_changed_are_counted(story: Story) -> None:
    truth = story.truth(TRADES)
    story.world.sandbox.faults.add(ReplacedArchive(days=[DAY], at=utc("2026-03-05T18:00")))
    row = good(story.bring(TRADES))
    assert story.requests == ZIP
    assert story.held(TRADES).equals(truth)
    story.world.at("2026-03-06T12:00:00")
    ledger = story.world.ledger(TRADES)
    ledger.put(after(row, row.day, OtherArchive("another-etag")))
    ledger.write(story.world.layout.ledger(TRADES))
    found = finding(good(story.bring(TRADES)), "replaced")
    assert found.count == 1
    assert "0 rows added, 0 removed, 1 changed" in found.message
    assert "quantity" in found.message
    assert span(found) == [(row.last_key, row.last_key, 1)]
    held = story.held(TRADES)
    assert held.slice(0, held.num_rows - 1).equals(truth.slice(0, truth.num_rows - 1))
    assert held.column("quantity")[-1] != truth.column("quantity")[-1]
    assert story.requests == ZIP  # nothing lacks in either archive, and the neighbouring days are not held


def test_lasting_wrong_checksum_fails_until_a_person_accepts(story: Story) -> None:
    truth = story.truth(BTC)
    story.world.sandbox.faults.add(WrongChecksum(path=f"BTCUSDT-1m-{DAY}"))
    [result] = story.bring(BTC)
    assert isinstance(result, DayFailure)
    assert (result.failure, result.row.etag is not None) == ("checksum", True)
    assert story.requests == 2 * ZIP  # it may have been replaced between the zip and its checksum
    assert "does not match its published checksum" in result.reason
    assert not story.world.layout.file(BTC, DAY).exists()
    [entry] = quarantine.entries(story.world.layout)
    quarantine.accept(story.world.layout, entry, by="trader", at=clock.now(), reason="as Binance has it")
    row = good(story.bring(BTC))
    assert story.requests == ZIP  # nobody fetches twice what is accepted
    assert (row.checksum, row.final, row.integrity) == ("accepted", True, "warn")
    assert "market-data quarantine show" in finding(row, "checksum_accepted").message
    assert story.held(BTC).equals(truth)


def test_relisted_symbol_is_not_missing_between_its_listings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back = GeneratedSymbol(
        Market.SPOT, "BACKUSDT", date(2026, 1, 1), breaks=((date(2026, 2, 3), date(2026, 2, 5)),), trades_per_day=500
    )
    key = klines("BACKUSDT", "1h")
    spans = ListingSpans(((date(2026, 1, 1), date(2026, 2, 2)), (date(2026, 2, 6), None)))
    with Sandbox(symbols=[back]) as sandbox:
        story = Story(World(tmp_path, sandbox, monkeypatch))
        story.world.at("2026-03-05T12:00:30")
        results = story.bring(key, days("2026-02-01", "2026-02-07"), spans)
        assert [(r.row.outcome, r.row.rows) for r in results] == [
            ("held", 24),
            ("held", 24),
            ("not_listed", 0),
            ("not_listed", 0),
            ("not_listed", 0),
            ("held", 24),
            ("held", 24),
        ]
        assert all(not gaps(r.row) for r in results)
        assert story.requests == 4 * ZIP


@pytest.mark.parametrize(
    ("lost", "listing"),
    [(("00:00", "02:00"), ((DAY, None),)), (("20:00", "23:59"), ((date(2020, 1, 1), DAY),))],
    ids=["first day", "last day"],
)
def test_rows_missing_on_first_or_last_listed_day_come_from_rest(
    story: Story, lost: tuple[str, str], listing: tuple[tuple[date, date | None]]
) -> None:
    truth = story.truth(BTC)
    start, end = (utc(f"{DAY}T{one}") for one in lost)
    story.world.sandbox.faults.add(MissingRows(start=start, end=end, series="klines", where="archive"))
    row = good(story.bring(BTC, listing=ListingSpans(listing)))
    assert story.requests == ZIP + REST
    assert story.held(BTC).equals(truth)
    assert [f.rule for f in gaps(row)] == ["healed"]
    assert sum(r.count for r in the_gap(row).ranges) == (end - start) // timedelta(minutes=1)


def test_rows_missing_on_last_listed_day_wait_for_rest(story: Story) -> None:
    """The listing is to the day: that trading ended with it says nothing of the hours that the archive lacks."""
    truth, listing = story.truth(BTC), ListingSpans(((date(2020, 1, 1), DAY),))
    lost = MissingRows(start=utc(f"{DAY}T18:00"), end=utc("2026-03-04T00:00"), series="klines", where="archive")
    story.world.sandbox.faults.add(lost)
    outage = story.world.sandbox.faults.add(Status(path="/api/v3/klines", status=503))
    row = good(story.bring(BTC, listing=listing))
    found = the_gap(row)
    assert (found.rule, row.gaps, row.missing, row.final) == ("unpublished", "warn", 360, True)
    assert found.evidence.startswith("REST was not asked: ")
    assert "503" in found.evidence
    story.world.sandbox.faults.remove(outage)
    story.world.forget()
    assert story.bring(BTC, listing=listing)[0].row == row
    assert story.requests == NOTHING, "it rests for an hour"
    story.world.at("2026-03-05T14:00:00")
    story.world.forget()
    row = good(story.bring(BTC, listing=listing))
    assert (the_gap(row).rule, row.gaps) == ("healed", "info")
    assert story.requests == REST
    assert story.held(BTC).equals(truth)


@pytest.mark.parametrize("forgotten", [False, True])
def test_candles_before_the_first_trade_cost_one_request(
    story: Story, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not listed."""
    start, end = utc(f"{DAY}T00:00"), utc(f"{DAY}T19:00")
    story.world.sandbox.faults.add(MissingRows(start=start, end=end, series="klines", where="both"))
    asked = rest_forgets_the_symbol(monkeypatch) if forgotten else []
    row = good(story.bring(BTC, listing=ListingSpans(((DAY, None),))))
    assert story.requests + len(asked) * PAGE == ZIP + REST
    found = the_gap(row)
    assert (found.rule, span(found)) == ("not_listed", [(at("00:00"), at("18:59"), 19 * 60)])
    if forgotten:
        assert found.evidence.startswith("trading began on this day by the listing; REST of spot does not know the ")
    else:
        assert found.evidence == f"REST has no candle before {DAY} 19:00 either"
    story.world.forget()
    assert story.bring(BTC, listing=ListingSpans(((DAY, None),)))[0].row == row
    assert story.requests == NOTHING, "it is settled"


@pytest.mark.parametrize("way", ["became final", "healed"])
def test_archive_wins_over_rest_and_both_values_are_reported(story: Story, way: str) -> None:
    truth = story.truth(BTC)
    changed = ChangedRows(
        start=utc(f"{DAY}T08:00"), end=utc(f"{DAY}T08:01"), series="klines", where="rest", column="volume"
    )
    story.world.sandbox.faults.add(changed)
    faults: list[Fault] = []
    if way == "became final":
        faults.append(story.world.sandbox.faults.add(MissingDay(days=[DAY])))
        assert not good(story.bring(BTC)).final
        assert story.requests == ABSENT + WHOLE_DAY
        story.world.sandbox.faults.remove(faults[0])
    else:
        for minute in ("07:50", "08:10"):
            start = utc(f"{DAY}T{minute}")
            story.world.sandbox.faults.add(
                MissingRows(start=start, end=start + timedelta(minutes=1), series="klines", where="archive")
            )
    row = good(story.bring(BTC))
    found = finding(row, "disagreement")
    volume = truth.column("volume")[8 * 60].as_py()
    assert (found.count, found.severity.value, span(found)) == (1, "warn", [(at("08:00"), at("08:00"), 1)])
    assert f"{DAY} 08:00:00 volume {volume + 1}" in found.message
    assert f"→ {volume}" in found.message
    assert story.held(BTC).equals(truth)
    # Where candles lack, one page spans both of them, and with them the one that differs; else REST has told already.
    assert story.requests == (ZIP if way == "became final" else ZIP + REST)
    assert (row.final, Ledger.read(story.world.layout.ledger(BTC)).rows[DAY]) == (True, row)
