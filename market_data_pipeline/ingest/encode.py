"""Turn an archive's zip into checked days, and into the bytes of their files. Pure, so that any thread can run it.

All heavy computation belongs here. Requests for missing rows and the disk do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import (
    Missing,
    expected_open_times,
    flat_candles,
    missing_candles,
    missing_ids,
    off_grid,
    seems_cut,
)
from market_data_pipeline.checks.integrity import check_integrity, checksum_accepted, checksum_missing, relabelled
from market_data_pipeline.checks.ordering import Ints, in_order, ints, within
from market_data_pipeline.checks.slots import missing_slots
from market_data_pipeline.checks.verdicts import TradeRecord, classify_candles, classify_slots, classify_trades
from market_data_pipeline.errors import ConflictError, MalformedError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.parquet import EncodingAhead, encode_table, read_encoded
from market_data_pipeline.model.datasets import WORDS, expected_rows, meaning_change, spec_of
from market_data_pipeline.model.findings import FLAT_FILLED, OFF_GRID, Finding, Severity, ranges_of
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import ListingSpans, SeriesKey, interval_us
from market_data_pipeline.sources.binance.archive import ArchiveFile
from market_data_pipeline.sources.binance.zip_reader import MOVED, other_interval, read_zip, read_zips, split_days

_BIG_BYTES = 1 << 20
"""Size of a daily zip above which extra threads pay off: about 50,000 trades."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A day's file as the lake will store it.

    Attributes:
        parquet: The bytes of the file.
        record: The content of its footer.
        downloaded: Bytes of the archive behind it.
    """

    parquet: pa.Buffer
    record: Provenance
    downloaded: int


def read_zip_days(
    key: SeriesKey, file: ArchiveFile, first: date, last: date, listing: ListingSpans | None = None
) -> dict[date, DayRows | Encoded]:
    """Read the days of a zip, without requests.

    Args:
        file: The zip: a daily one if ``first`` is ``last``, else a monthly one.
        first: First UTC day that it may have.
        last: Last such day, inclusive.
        listing: Listing spans of the symbol. Complete days are then returned encoded. None: all days come as rows.

    Raises:
        MalformedError: The zip is not in the archive's format.
        ConflictError: Two different rows of a day have the same key.
    """
    if listing is not None and first == last and len(file.data) > _BIG_BYTES:
        return {first: _read_big_day(key, file, first, listing)}
    table = read_zip(file.data, key, file.stem, first, last)
    days = {first: table} if first == last else _of_own_interval(key, split_days(table, spec_of(key).time))
    flat = {} if listing is None else _flat_candles_of_sound(key, table, list(days))
    source = Source.ARCHIVE_DAILY if first == last else Source.ARCHIVE_MONTHLY
    share = len(file.data) / table.num_rows
    found: dict[date, DayRows | Encoded] = {}
    for day, of_day in days.items():
        size = round(share * of_day.num_rows)
        if day in flat:
            found[day] = _encode_sound(key, _of_archive(of_day, [], file, source, day, size), day, flat[day])
            continue
        rows = _rows(key, of_day, file, source, day, size)
        usable = first == last or not spec_of(key).daily or replaces_daily_zip(key, rows)
        if listing is None or not usable or may_need_rest(key, day, rows, listing):
            found[day] = rows
        else:
            found[day] = encode(key, rows, describe(key, day, rows, listing))
    return found


def _of_own_interval(key: SeriesKey, days: dict[date, pa.Table]) -> dict[date, pa.Table]:
    """Drop the days of a monthly zip whose candles have another interval."""
    return {day: table for day, table in days.items() if other_interval(key, table) is None}


def read_daily(key: SeriesKey, files: Mapping[date, ArchiveFile]) -> Iterator[tuple[date, Encoded]]:
    """Yield the days of small daily zips of candles if all are sound. Else yield nothing: read them one by one.

    Args:
        key: The series.
        files: Its zips by UTC day.
    """
    number = expected_rows(key)
    if number is None:
        return
    try:
        table = read_zips({file.stem: file.data for file in files.values()}, key, number)
    except MalformedError:
        return
    flat = _flat_candles_of_sound(key, table, list(files))
    for at, (day, flat_of_day) in enumerate(flat.items()):
        of_day = table.slice(at * number, number)
        rows = _of_archive(of_day, [], files[day], Source.ARCHIVE_DAILY, day, len(files[day].data))
        yield day, _encode_sound(key, rows, day, flat_of_day)


def _flat_candles_of_sound(key: SeriesKey, table: pa.Table, days: Sequence[date]) -> dict[date, Ints]:
    """Return the open times (microseconds UTC) of flat candles by day if all days are sound, else an empty dict.

    Sound candles are complete, in order and break no rule. Nearly all days are sound. Checking many at once takes a
    tenth of the time.
    """
    if key.interval is None:
        return {}
    expected = np.concatenate([expected_open_times(key, day) for day in days])
    if not np.array_equal(ints(table, "open_time"), expected) or check_integrity(key, table):
        return {}
    flat = flat_candles(table)
    flat_days = flat // clock.US_PER_DAY * clock.US_PER_DAY
    return {day: flat[flat_days == clock.day_start_us(day)] for day in days}


def _encode_sound(key: SeriesKey, rows: DayRows, day: date, flat: Ints) -> Encoded:
    none = flat[:0]
    verdicts = classify_candles(key, Missing(none), none, flat, archived=True, rest=None, trades=None)
    return encode(key, rows, _record(key, day, rows, (*rows.findings, *verdicts)))


def _read_big_day(key: SeriesKey, file: ArchiveFile, day: date, listing: ListingSpans) -> DayRows | Encoded:
    """Read a big daily zip, and encode it at the same time: nearly always, no row changes."""
    spec = spec_of(key)
    with closing(EncodingAhead(lake_schema(key.market, key.data_type), spec)) as ahead:
        table = read_zip(file.data, key, file.stem, day, day, ahead.take)
        ahead.end()
        rows = _rows(key, table, file, Source.ARCHIVE_DAILY, day, len(file.data))
        if may_need_rest(key, day, rows, listing):
            return rows
        record = describe(key, day, rows, listing)
        if rows.table is not table:  # it was sorted, or had duplicate rows
            return encode(key, rows, record)
        return Encoded(ahead.signed(record), record, rows.downloaded)


def _rows(key: SeriesKey, table: pa.Table, file: ArchiveFile, source: Source, day: date, size: int) -> DayRows:
    moved = (table.schema.metadata or {}).get(MOVED)
    ordered, findings, conflict = in_order(table.replace_schema_metadata(None) if moved else table, spec_of(key))
    if moved and (change := meaning_change(key, day)) is not None:
        findings.append(relabelled(change, ordered.num_rows))
    if conflict is not None:
        raise ConflictError(
            f"two different rows have {spec_of(key).key} {conflict.key}: {conflict.rows[0]} and {conflict.rows[1]}."
        )
    return _of_archive(ordered, findings, file, source, day, size)


def _of_archive(
    table: pa.Table, findings: list[Finding], file: ArchiveFile, source: Source, day: date, size: int
) -> DayRows:
    """Return the ordered rows of an archive as a day."""
    has_checksum = file.checksum is not ChecksumStatus.MISSING
    if file.checksum is not ChecksumStatus.VERIFIED:
        findings.append(checksum_accepted() if has_checksum else checksum_missing())
    part = Part(
        source=source,
        url=file.url,
        first_row=0,
        rows=table.num_rows,
        fetched_at=file.fetched_at,
        sha256=file.sha256,
        etag=file.etag,
        last_modified=file.last_modified,
        checksum=file.checksum,
    )
    return DayRows(
        table=table,
        parts=(part,),
        final=has_checksum,
        known_until_us=clock.day_start_us(day) + clock.US_PER_DAY,
        findings=tuple(findings),
        downloaded=size,
    )


def replaces_daily_zip(key: SeriesKey, rows: DayRows) -> bool:
    """Return True if a day of a monthly zip can replace the daily archive: it is complete and without errors."""
    faults = [*rows.findings, *check_integrity(key, rows.table)]
    sound = all(finding.severity is not Severity.ERROR for finding in faults)
    return sound and rows.table.num_rows == expected_rows(key)


def may_need_rest(key: SeriesKey, day: date, rows: DayRows, listing: ListingSpans) -> bool:
    """Return True if a day has, or seems to have, rows to fetch from REST. Candles off the grid count, too."""
    if spec_of(key).slots is not None:
        return len(missing_slots(key, rows.table, day, rows.known_until_us, listing)) > 0
    if key.interval is None:
        spec = spec_of(key)
        cut = spec.gapless and seems_cut(ints(rows.table, spec.time), day)
        return cut or (spec.gapless and bool(missing_ids(ints(rows.table, spec.key))))
    if len(off_grid(ints(rows.table, "open_time"), interval_us(key.interval))):
        return True
    return len(missing_candles(key, rows.table, day, rows.known_until_us, listing, rows.reach_us)) > 0


def describe(
    key: SeriesKey, day: date, rows: DayRows, listing: ListingSpans, trades: TradeRecord | None = None
) -> Provenance:
    """Check a day's rows, and return their provenance with all findings.

    Args:
        rows: Its rows, at least one.
        trades: The symbol's stored aggTrades of the day, as evidence for missing candles. None if not stored.
    """
    known = {finding.rule for finding in rows.findings} & {OFF_GRID}  # has REST's candles, too
    integrity = (finding for finding in check_integrity(key, rows.table) if finding.rule not in known)
    found = (*rows.findings, *integrity, *_gaps(key, day, rows, listing, trades))
    return _record(key, day, rows, found)


def _record(key: SeriesKey, day: date, rows: DayRows, findings: tuple[Finding, ...]) -> Provenance:
    first, last = (int(ints(rows.table.slice(at, 1), spec_of(key).key)[0]) for at in (0, rows.table.num_rows - 1))
    return Provenance(
        series=str(key),
        day=day,
        parts=rows.parts,
        final=rows.final,
        fetched_at=max(part.fetched_at for part in rows.parts),
        rows=rows.table.num_rows,
        first_key=first,
        last_key=last,
        content_sha256=content_sha256(rows.table),
        findings=findings,
    )


def _gaps(key: SeriesKey, day: date, rows: DayRows, listing: ListingSpans, trades: TradeRecord | None) -> list[Finding]:
    spec = spec_of(key)
    filled_keys = rows.gap_filled(spec)
    if spec.slots is not None:
        due = missing_slots(key, rows.table, day, rows.known_until_us, listing)
        what = WORDS[key.data_type].rows
        return classify_slots(due, filled_keys, archived=rows.of_archive, rest=rows.rest, what=what)
    if key.interval is None:
        missing = [*rows.before, *missing_ids(ints(rows.table, spec.key))] if spec.gapless else []
        what = WORDS[key.data_type].rows
        return classify_trades(
            missing, filled_keys, archived=rows.of_archive, asked=rows.asked_ids, cut=rows.cut, what=what
        )
    missing_rows = missing_candles(key, rows.table, day, rows.known_until_us, listing, rows.reach_us)
    flat = flat_candles(rows.table)
    filled = filled_keys[within(filled_keys, ranges_of(rows.findings, FLAT_FILLED))]
    of_archive = rows.of_archive
    return classify_candles(
        key, missing_rows, filled_keys, flat, filled=filled, archived=of_archive, rest=rows.rest, trades=trades
    )


def encode(key: SeriesKey, rows: DayRows, record: Provenance) -> Encoded:
    """Encode a day as the bytes of its file."""
    return Encoded(encode_table(rows.table, record, spec_of(key)), record, rows.downloaded)


def decode(encoded: Encoded) -> DayRows:
    """Decode a day: the inverse of :func:`encode`."""
    return DayRows.of_file(encoded.record, read_encoded(encoded.parquet), encoded.downloaded)
