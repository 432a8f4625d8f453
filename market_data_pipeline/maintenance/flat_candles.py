"""Classify flat candles of a market by comparing all its symbols, and write the verdicts into the ledgers.

``ingest`` sees one series and marks flat candles as quiet and unconfirmed. This room compares a market's day at a time.
A day on which every symbol is flat is ``unconfirmed`` and due: ``ingest`` requests it from REST once. Footers stay
unchanged. A second run changes nothing. The rules for verdicts belong to ``checks/halts.py``.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from hashlib import blake2b
from pathlib import Path
from struct import Struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import flat_candles
from market_data_pipeline.checks.halts import Answers, MarketDay, Stillness, TradedIn, is_contested, is_cut, stillness
from market_data_pipeline.checks.ordering import Ints, ints
from market_data_pipeline.errors import DamagedFileError, SeriesBusyError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, read_columns
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.day import HELD, Classified, after
from market_data_pipeline.model.findings import FLAT, MISSING, Basis, Finding, Range, Verdict, from_json, to_json
from market_data_pipeline.model.needs import needs
from market_data_pipeline.model.outcomes import DayOutcome
from market_data_pipeline.model.series import DataType, Market, SeriesKey, interval_us

_MOST_DAYS = 5_000
"""Most days to fetch in one run. The rest stays due. A day takes up to three requests."""

logger = logging.getLogger(__name__)

_COLUMNS = ["day", "outcome", "bytes", "version", "first_key", "last_key", "verdicts", "findings", "bases"]


@dataclass(frozen=True, slots=True)
class Classification:
    """Result of classifying the flat candles of a market.

    Attributes:
        days: Number of days whose verdicts or evidence changed.
        busy: Series that another run was writing. The next run classifies them.
        verdicts: Days whose verdicts changed, in order, by series. Days with only other evidence are left out.
    """

    days: int
    busy: tuple[SeriesKey, ...]
    verdicts: Mapping[SeriesKey, tuple[date, ...]] = field(default_factory=dict, compare=False)

    def then(self, later: Classification) -> Classification:
        """Merge with the result of a second run over some of the same days."""
        both = {
            key: tuple(sorted({*self.verdicts.get(key, ()), *later.verdicts.get(key, ())}))
            for key in (*self.verdicts, *later.verdicts)
        }
        return Classification(max(self.days, later.days), later.busy, both)


def classify_flat_candles(layout: Layout, market: Market) -> Classification:
    """Classify all stored flat candles of a market as ``suspended`` or ``quiet``, and write that into the ledgers.

    A day is classified again only after one of the market's files for it was written, or one of its verdicts was lost.

    Raises:
        StorageError: a ledger cannot be written.
    """
    seen = _read_versions(layout.classified(market))
    every = _ledgers(layout, market)
    versions = _versions(every)
    changed: dict[SeriesKey, dict[date, tuple[str, str]]] = {}
    looked_at: dict[str, int] = {}
    for interval in sorted({key.interval for key in every if key.interval is not None}):
        ledgers = {key: rows for key, rows in every.items() if key.interval == interval}
        others = {key: rows for key, rows in every.items() if key.interval != interval}
        due = _days_with(ledgers, "bases", Basis.MARKET_NOT_COMPARED)
        for verdict in FLAT:
            flat = _days_with(ledgers, "verdicts", verdict)
            due |= {day for day in flat if seen.get(_record_name(interval, day)) != versions[day]}
        for day, changes in _classify_days(layout, _stored_on(ledgers, due), others):
            looked_at[_record_name(interval, day)] = versions[day]
            for key, before, now in changes:
                changed.setdefault(key, {})[day] = (before, now)
    days, busy, renewed = 0, list[SeriesKey](), dict[SeriesKey, tuple[date, ...]]()
    for key, verdicts in changed.items():
        try:
            written = _write(layout, key, verdicts)
            days += len(written)
            if new := tuple(day for day in written if _verdicts_of(verdicts[day][0]) != _verdicts_of(verdicts[day][1])):
                renewed[key] = new
        except SeriesBusyError:
            logger.info("Another run is writing %s. The next run classifies its flat candles.", key)
            busy.append(key)
            for day in verdicts:
                looked_at.pop(_record_name(key.interval or "", day), None)
    if looked_at:
        path, what = layout.classified(market), f"The record of flat candles of {market}"
        # The next run classifies days again that cannot be recorded.
        with suppress(SeriesBusyError), storage.only_writer(path.with_suffix(".lock"), _REMEMBER_WAIT_SECONDS, what):
            storage.put(path, json.dumps({**_read_versions(path), **looked_at}, indent=0).encode())
    return Classification(days, tuple(busy), renewed)


@dataclass(frozen=True, slots=True)
class _StoredDay:
    """A stored day in its ledger: first and last open time (aggTrades: id), and the findings as JSON."""

    key: SeriesKey
    first: int
    last: int
    findings: str


_REMEMBER_WAIT_SECONDS = 10.0


def _read_versions(path: Path) -> dict[str, int]:
    """Read the recorded versions of classified days. A lost record is empty, so that all days are classified again."""
    try:
        found: dict[str, int] = json.loads(storage.read(path)[0])
    except (FileNotFoundError, ValueError):
        return {}
    return {name: version for name, version in found.items() if name.endswith(_WITH_REST)}


_WITH_REST = " asked"
"""Suffix of days classified with REST. Days that version 0.1 classified without REST are classified once more."""


def _record_name(interval: str, day: date) -> str:
    return f"{interval} {day}{_WITH_REST}"


def _ledgers(layout: Layout, market: Market) -> dict[SeriesKey, pa.Table]:
    """Return the stored days of a market's series that show trading: klines and aggTrades."""
    return {
        key: rows
        for key in known_series(layout)
        if key.market is market
        and key.data_type in (DataType.KLINES, DataType.AGG_TRADES)
        and (rows := _stored_rows(layout, key)) is not None
    }


def _stored_rows(layout: Layout, key: SeriesKey) -> pa.Table | None:
    try:
        rows = read_columns(layout.ledger(key), _COLUMNS)
    except DamagedFileError:  # or missing: its next writer rebuilds it from the footers
        return None
    return rows.filter(pc.and_(pc.equal(rows["outcome"], pa.scalar(str(HELD))), pc.is_valid(rows["first_key"])))


_FILE, _VERSION = Struct("<Iqq"), Struct("<q")


def _versions(ledgers: Mapping[SeriesKey, pa.Table]) -> dict[date, int]:
    """Return a number for each day that changes when one of its files is written, added or removed."""
    found: dict[date, int] = {}
    for key, rows in ledgers.items():
        name = zlib.crc32(str(key).encode())
        for day, size, written in zip(*(rows[name].to_pylist() for name in ("day", "bytes", "version")), strict=True):
            digest = blake2b(_FILE.pack(name, size, written), digest_size=8).digest()
            found[day] = found.get(day, 0) ^ _VERSION.unpack(digest)[0]
    return found


def _days_with(ledgers: Mapping[SeriesKey, pa.Table], column: str, text: str) -> set[date]:
    return {
        day for rows in ledgers.values() for day in parquet.days_of(rows.filter(pc.match_substring(rows[column], text)))
    }


def _stored_on(ledgers: Mapping[SeriesKey, pa.Table], days: Iterable[date]) -> dict[date, list[_StoredDay]]:
    wanted = pa.array(sorted(days), pa.date32())
    found: dict[date, list[_StoredDay]] = {}
    for key, rows in ledgers.items():
        for row in rows.filter(pc.is_in(rows["day"], value_set=wanted)).to_pylist():
            stored = _StoredDay(key, row["first_key"], row["last_key"], row["findings"])
            found.setdefault(row["day"], []).append(stored)
    return found


_Change = tuple[SeriesKey, str, str]
"""A series whose findings of a day change, with the old and the new findings as JSON."""


def _classify_days(
    layout: Layout, stored: Mapping[date, Sequence[_StoredDay]], others: Mapping[SeriesKey, pa.Table]
) -> Iterator[tuple[date, list[_Change]]]:
    """Yield the changes of each day.

    Args:
        stored: Stored days of one interval.
        others: Stored days of other intervals, and of aggTrades. They are read only for days on which no series of the
            same interval shows trading. In a market of many symbols these are few.
    """
    contested = []
    for day, of_day in stored.items():
        changes, is_clear = _classify_day(layout, day, of_day, ())
        if is_clear:
            yield day, changes
        else:
            contested.append(day)
    also = _stored_on(others, contested)
    for day in contested:
        yield day, _classify_day(layout, day, stored[day], also.get(day, ()))[0]


def _classify_day(
    layout: Layout, day: date, stored: Sequence[_StoredDay], also: Sequence[_StoredDay]
) -> tuple[list[_Change], bool]:
    """Return the changes of a day, and True if no other series can change its verdicts further.

    Args:
        stored: The day's series of one interval.
        also: The day's series of other intervals, and its aggTrades.
    """
    symbols: dict[str, Stillness] = {}
    answers: dict[str, Answers] = {}
    flat: dict[SeriesKey, tuple[Ints, tuple[Finding, ...]]] = {}
    for one in stored:
        findings = from_json(one.findings)
        ours = [finding for finding in findings if _is_flat(finding)]
        # Use all flat candles, also those beyond the ranges of a finding. Otherwise verdicts would differ between
        # runs, because ranges that are classified in parts are stored in parts.
        times = _flat_times(layout, one.key, day, ours)
        if times is None:
            continue
        symbols[one.key.symbol] = stillness(findings, one.first, one.last, times)
        answers[one.key.symbol] = Answers.of(findings)
        if ours:
            flat[one.key] = times, findings
    interval = stored[0].key.interval or ""
    trades = _trades(layout, day, symbols, also, interval)
    market = MarketDay(interval, day, symbols, _elsewhere(also), trades, answers)
    before = {one.key: one.findings for one in stored}
    changes, is_clear = list[_Change](), True
    for key, (times, findings) in flat.items():
        own = next((one.key for one in also if one.key.interval is None and one.key.symbol == key.symbol), None)
        traded = None if own is None else _traded(layout, day, own, interval_us(interval))
        judged = market.classify(key, times, traded)
        is_clear = is_clear and not any(map(is_contested, judged))
        after = to_json([*(finding for finding in findings if not _is_flat(finding)), *judged])
        if after != before[key]:
            changes.append((key, before[key], after))
    return changes, is_clear


def _elsewhere(stored: Iterable[_StoredDay]) -> dict[str, dict[str, Stillness]]:
    """Return the stillness of series of other intervals, from their findings alone, by interval and symbol."""
    found: dict[str, dict[str, Stillness]] = {}
    for one in stored:
        if one.key.interval is not None:
            known = stillness(from_json(one.findings), one.first, one.last)
            found.setdefault(one.key.interval, {})[one.key.symbol] = known
    return found


def _trades(
    layout: Layout, day: date, symbols: Iterable[str], stored: Sequence[_StoredDay], interval: str
) -> dict[str, TradedIn]:
    """Return the candles with trades, from aggTrades, of symbols without stored candles as fine as ``interval``."""
    step = interval_us(interval)
    known = {
        *symbols,
        *(one.key.symbol for one in stored if one.key.interval and interval_us(one.key.interval) <= step),
    }
    found: dict[str, TradedIn] = {}
    for one in stored:
        if one.key.interval is None and one.key.symbol not in known:
            times = _traded(layout, day, one.key, step)
            if times is not None:
                whole = not any(f.check == "gaps" and f.rule in MISSING for f in from_json(one.findings))
                found[one.key.symbol] = TradedIn(times, whole)
    return found


def _traded(layout: Layout, day: date, key: SeriesKey, step: int) -> Ints | None:
    """Return the open times of the candles in which aggTrades have trades. None if their file is damaged."""
    try:
        times = ints(read_day(layout, key, day, ["transact_time"]), "transact_time")
    except DamagedFileError:
        return None
    return np.unique(times // step * step)


def _is_flat(finding: Finding) -> bool:
    return finding.check == "gaps" and (finding.rule in FLAT or finding.basis is Basis.TRADED)


def _flat_times(layout: Layout, key: SeriesKey, day: date, findings: Sequence[Finding]) -> Ints | None:
    """Return the open times of a day's flat candles, in order. None if the file is damaged."""
    if not any(map(is_cut, findings)):
        step = interval_us(key.interval or "")
        bounds = [(range_.first, range_.count) for found in findings for range_ in found.ranges]
        firsts, counts = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.sort(np.repeat(firsts, counts) + step * within)
    try:
        return flat_candles(read_day(layout, key, day, ["open_time", "volume", "count"]))
    except DamagedFileError:
        return None


_NOT_CONFIRMED = (Basis.MARKET_NOT_COMPARED, Basis.NO_OTHER_SERIES)


def _verdicts_of(findings: str) -> list[tuple[str, int, tuple[Range, ...], bool]]:
    """Return the verdicts on flat candles: verdict, count, ranges, and True if no other series confirms it."""
    return [
        (one.rule, one.count, one.ranges, one.basis in _NOT_CONFIRMED) for one in from_json(findings) if _is_flat(one)
    ]


def _write(layout: Layout, key: SeriesKey, verdicts: Mapping[date, tuple[str, str]]) -> list[date]:
    """Write verdicts into a ledger, except on days that changed meanwhile. Return the written days, in order.

    Raises:
        SeriesBusyError: another run is writing the series.
    """
    with storage.only_writer(layout.lock(key), 0, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        written = []
        for day, (before, now) in sorted(verdicts.items()):
            row = ledger.get(day)
            if row is not None and row.findings == before:
                ledger.put(after(row, day, Classified(from_json(now))))
                written.append(day)
        if written:
            ledger.write(layout.ledger(key))
    return written


FetchAgain = Callable[[Mapping[SeriesKey, Sequence[date]]], Iterable[DayOutcome]]
"""Fetch days of series again, and yield the stored ones."""


def classify_with_rest(
    layout: Layout, market: Market, keys: Iterable[SeriesKey], fetch_again: FetchAgain
) -> tuple[Classification, tuple[DayOutcome, ...]]:
    """Classify the flat candles of a market, and confirm from REST the ones that the whole market shares.

    Each day is requested from REST once. Without an answer it stays ``unconfirmed`` and is retried with backoff.

    Args:
        keys: The series to collect. No others are fetched.
        fetch_again: Called at most once, with the days that REST has to confirm.

    Returns:
        The verdicts, and the days that were stored again with REST's answers.

    Raises:
        StorageError: a ledger cannot be written.
    """
    classified = classify_flat_candles(layout, market)
    stored: tuple[DayOutcome, ...] = ()
    if due := _unconfirmed(layout, market, keys):
        stored = tuple(fetch_again(due))
        classified = classified.then(classify_flat_candles(layout, market))
    return classified, stored


def _unconfirmed(layout: Layout, market: Market, keys: Iterable[SeriesKey]) -> dict[SeriesKey, list[date]]:
    """Return due days whose flat candles REST has to confirm, at most :data:`_MOST_DAYS`."""
    left = _MOST_DAYS
    found: dict[SeriesKey, list[date]] = {}
    now, unconfirmed = clock.now(), pc.match_substring(pc.field("verdicts"), Verdict.UNCONFIRMED)
    for key in keys:
        if key.market is market and key.interval is not None:
            rows = Ledger.read(layout.ledger(key), unconfirmed).rows.values()
            due = sorted(row.day for row in rows if Verdict.UNCONFIRMED in row.verdicts and needs(row, now).is_due)
            if days := due[: max(0, left)]:
                found[key] = days
                left -= len(days)
    return found
