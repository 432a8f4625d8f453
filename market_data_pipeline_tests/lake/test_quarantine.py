"""What is kept of refused bytes, and what a person can do about it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from market_data_pipeline.errors import DamagedFileError, UsageError
from market_data_pipeline.lake import quarantine
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.quarantine import RefusedZip
from market_data_pipeline.model.day import FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.world import agg_trades, klines

DAY = date(2024, 1, 3)
AT = datetime(2024, 1, 4, 9, 30, tzinfo=UTC)
BTC = klines("BTCUSDT", "1m")
DATA = b"bytes that are not those"
OTHER = "a" * 64


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def kept(
    layout: Layout,
    key: SeriesKey = BTC,
    data: bytes = DATA,
    *,
    day: date | None = DAY,
    kind: str = "checksum",
) -> RefusedZip:
    sha256 = hashlib.sha256(data).hexdigest()
    archive_key = key.archive_daily(day) if day else key.archive_monthly(DAY)
    path = quarantine.store(
        layout,
        key,
        archive_key,
        data,
        kind=kind,
        reason=f"the checksum says {OTHER}, the bytes have {sha256}.",
        day=day,
        at=AT,
        etag="e1",
    )
    (entry,) = [entry for entry in quarantine.entries(layout) if entry.path == path]
    return entry


def test_entry_is_stored_with_all_its_facts(layout: Layout) -> None:
    entry = kept(layout)
    assert entry.key == BTC
    assert (entry.day, entry.days, entry.kind, entry.at, entry.etag) == (DAY, [DAY], "checksum", AT, "e1")
    assert entry.file == BTC.archive_daily(DAY)
    assert entry.sha256 == hashlib.sha256(DATA).hexdigest()
    assert entry.published_sha256 == OTHER
    assert entry.size == len(DATA)
    assert entry.read() == DATA
    assert entry.name == f"BTCUSDT-1m-2024-01-03.{entry.sha256[:12]}.zip"
    assert entry.accepted is None


def test_series_are_listed_in_order_and_other_files_are_skipped(layout: Layout) -> None:
    keys = [
        agg_trades("BTCUSD_PERP", "cm"),
        klines("币安人生USDT", "1h"),
        klines("BTCUSDT", "1m"),
        agg_trades("BTCUSDT"),
    ]
    for key in keys:
        kept(layout, key)
    month = kept(layout, day=None)
    assert month.day is None
    assert month.days == [date(2024, 1, n) for n in range(1, 32)]
    (layout.quarantined / "notes.zip").write_bytes(b"mine")
    (layout.quarantine(BTC) / "notes.zip").write_bytes(b"mine")
    (layout.quarantine(BTC) / "BTCUSDT-1m-2024-02-30.0123456789ab.zip").write_bytes(b"no such day")
    found = quarantine.entries(layout)
    assert [(str(entry.key), entry.day) for entry in found] == [
        ("binance/cm/aggTrades/BTCUSD_PERP", DAY),
        ("binance/spot/aggTrades/BTCUSDT", DAY),
        ("binance/spot/klines/BTCUSDT/1m", None),
        ("binance/spot/klines/BTCUSDT/1m", DAY),
        ("binance/spot/klines/币安人生USDT/1h", DAY),
    ]
    assert quarantine.entries_of(layout, BTC) == found[2:4]
    assert quarantine.entries(Layout(layout.root / "elsewhere")) == []


@pytest.mark.parametrize("record", [b"", b"{", b'{"series": 1}', b'{"sha256": "' + OTHER.encode() + b'"}', None])
def test_damaged_entry_is_named_and_repaired_by_the_next_refusal(layout: Layout, record: bytes | None) -> None:
    beside = kept(layout).path.with_suffix(".json")
    if record is None:
        beside.unlink()
    else:
        beside.write_bytes(record)
    (entry,) = quarantine.entries(layout)
    assert (entry.key, entry.day, entry.kind) == (BTC, DAY, quarantine.UNKNOWN)
    assert str(beside) in entry.reason
    assert entry.file == BTC.archive_daily(DAY)
    assert entry.read() == DATA
    with pytest.raises(UsageError, match="refused as unknown"):
        quarantine.accept(layout, entry, by="me", at=AT)
    assert kept(layout).kind == "checksum"


def test_it_is_found_by_its_names_and_by_its_sha256(layout: Layout) -> None:
    entry, other, month = kept(layout), kept(layout, data=b"other bytes"), kept(layout, day=None)
    for text in (entry.name, entry.name.removesuffix(".zip"), entry.sha256, entry.sha256[:6].upper()):
        assert entry in quarantine.find(layout, text)
    assert quarantine.find(layout, entry.name) == [entry]
    assert {e.name for e in quarantine.find(layout, "BTCUSDT-1m-2024-01-03.zip")} == {entry.name, other.name}
    assert quarantine.find(layout, "BTCUSDT-1m-2024-01") == [month]
    assert quarantine.find(layout, entry.sha256[:5]) == []
    assert quarantine.find(layout, "") == []


def test_acceptance_is_bound_to_the_bytes_and_the_archive_path(layout: Layout) -> None:
    entry = kept(layout)
    kept(layout, data=b"other bytes")
    kept(layout, klines("BTCUSDT", "1m", "um"))
    assert quarantine.accepted_sha256(layout, BTC, entry.file) == frozenset()
    accepted = quarantine.accept(layout, entry, by="somebody", at=AT, reason="never mended")
    assert [e for e in quarantine.entries(layout) if e.accepted] == [accepted]
    assert accepted.accepted is not None
    assert (accepted.accepted.by, accepted.accepted.at, accepted.accepted.reason) == ("somebody", AT, "never mended")
    assert quarantine.accepted_sha256(layout, BTC, entry.file) == {entry.sha256}
    assert quarantine.accepted_sha256(layout, BTC, BTC.archive_daily(date(2024, 1, 4))) == frozenset()
    um = klines("BTCUSDT", "1m", "um")
    assert quarantine.accepted_sha256(layout, um, um.archive_daily(DAY)) == frozenset()


def test_the_same_bytes_refused_again_stay_accepted(layout: Layout) -> None:
    entry = kept(layout)
    quarantine.accept(layout, entry, by="me", at=AT)
    before = entry.path.with_suffix(".json").stat()
    assert kept(layout).accepted is not None
    assert entry.path.with_suffix(".json").stat().st_mtime_ns == before.st_mtime_ns, "nothing was written"
    refused = kept(layout, kind="malformed")
    assert refused.kind == "malformed"
    assert refused.accepted is not None


def test_only_a_wrong_checksum_of_stored_bytes_can_be_accepted(layout: Layout) -> None:
    malformed = kept(layout, kind="malformed")
    with pytest.raises(UsageError, match="refused as malformed, and only a wrong checksum can be"):
        quarantine.accept(layout, malformed, by="me", at=AT)
    entry = kept(layout, data=b"other bytes")
    entry.path.write_bytes(b"something else")
    with pytest.raises(DamagedFileError, match="no longer has the refused bytes"):
        quarantine.accept(layout, entry, by="me", at=AT)
    entry.path.unlink()
    with pytest.raises(DamagedFileError, match="cannot be read"):
        entry.read()
    assert quarantine.accepted_sha256(layout, BTC, entry.file) == frozenset()


def row(outcome: str, day: date = DAY, **fields: object) -> DayRecord:
    return DayRecord(day=day, outcome=outcome, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ledger", "mended"),
    [
        ([row(HELD, final=True, checksum="verified")], True),
        ([row(NOT_LISTED, final=True)], True),
        ([row(HELD, final=True, checksum="accepted")], False),
        ([row(HELD, final=True, checksum="verified", failure="checksum")], False),
        ([row(HELD, final=False)], False),
        ([row(FAILED, failure="checksum")], False),
        ([], False),
    ],
)
def test_bytes_of_a_day_with_a_good_file_are_released(layout: Layout, ledger: list[DayRecord], mended: bool) -> None:
    entry, other = kept(layout), kept(layout, day=date(2024, 1, 4))
    released = quarantine.release_resolved(layout, BTC, Ledger(ledger))
    assert released == ([entry] if mended else [])
    assert quarantine.entries(layout) == ([other] if mended else [entry, other])
    assert len(list(layout.quarantine(BTC).iterdir())) == (2 if mended else 4)


def test_a_months_zip_stays_until_a_person_lets_it_go(layout: Layout) -> None:
    month = kept(layout, day=None)
    ledger = Ledger(row(HELD, day, final=True, checksum="verified") for day in month.days)
    assert quarantine.is_resolved(month, ledger)
    assert quarantine.release_resolved(layout, BTC, ledger) == []
    quarantine.release(month)
    quarantine.release(month)
    assert quarantine.entries(layout) == []


def test_the_record_is_plain_json(layout: Layout) -> None:
    entry = kept(layout)
    record = json.loads(entry.path.with_suffix(".json").read_text())
    assert record["series"] == "binance/spot/klines/BTCUSDT/1m"
    assert record["day"] == "2024-01-03"
    assert record["kind"] == "checksum"
    assert record["sha256"] == entry.sha256


# --- bounds -----------------------------------------------------------------------------------------------------------


def put(layout: Layout, n: int, day: date | None = DAY, *, key: SeriesKey = BTC, size: int = 100) -> RefusedZip | None:
    """Keep the n-th version of an archive, n hours later, where 1,000 bytes are the limit."""
    path = quarantine.store(
        layout,
        key,
        key.archive_daily(day) if day else key.archive_monthly(DAY),
        b"PK%d" % n + bytes(size - len(b"PK%d" % n)),
        kind="malformed",
        reason="why",
        day=day,
        at=AT + timedelta(hours=n),
        most_bytes=1_000,
    )
    return next((entry for entry in quarantine.entries(layout) if entry.path == path), None)


def days_kept(layout: Layout) -> list[tuple[date | None, int]]:
    return [(entry.day, (entry.at - AT) // timedelta(hours=1)) for entry in quarantine.entries(layout)]


def test_three_versions_of_an_archive_are_stored(layout: Layout) -> None:
    for n in range(20):
        assert put(layout, n) is not None
    assert days_kept(layout) == [(DAY, 17), (DAY, 18), (DAY, 19)]
    assert len(list(layout.quarantine(BTC).iterdir())) == 6


def test_accepted_bytes_are_never_removed(layout: Layout) -> None:
    accepted = quarantine.accept(layout, kept(layout, data=b"PK accepted"), by="me", at=AT)
    for n in range(1, 6):
        put(layout, n)
    assert quarantine.entries(layout)[0] == accepted
    assert days_kept(layout)[1:] == [(DAY, 3), (DAY, 4), (DAY, 5)]


def test_one_series_gets_half_of_the_room(layout: Layout) -> None:
    eth = klines("ETHUSDT", "1m")
    others = [date(2024, 1, n) for n in range(4, 8)]
    assert all(put(layout, n, day) for n, day in enumerate([DAY, *others]))
    assert put(layout, 9, date(2024, 1, 9)) is None
    assert put(layout, 9, DAY, key=eth, size=500) is not None
    assert put(layout, 9, DAY, key=klines("SOLUSDT", "1m"), size=10) is None
    assert put(layout, 9, DAY, key=klines("SOLUSDT", "1m"), size=501) is None
    assert {day for day, _ in days_kept(layout)} == {DAY, *others}


def test_older_versions_are_removed_first_then_monthly_zips(layout: Layout) -> None:
    """The only file of a day is never removed."""
    second = date(2024, 1, 4)
    for n, day in enumerate([None, DAY, DAY, second, second]):
        put(layout, n, day)
    new = [date(2024, 1, n) for n in range(10, 20)]
    assert put(layout, 10, new[0])
    assert days_kept(layout) == [(None, 0), (DAY, 2), (second, 3), (second, 4), (new[0], 10)]
    assert put(layout, 11, new[1])
    assert put(layout, 12, new[2])
    assert days_kept(layout) == [(DAY, 2), (second, 4), (new[0], 10), (new[1], 11), (new[2], 12)]
    assert put(layout, 13, new[3]) is None
    assert len(days_kept(layout)) == 5


def test_room_is_made_in_other_series_too(layout: Layout) -> None:
    eth, sol = klines("ETHUSDT", "1m"), klines("SOLUSDT", "1m")
    for key in (BTC, eth):
        put(layout, 1, DAY, key=key, size=250)
        put(layout, 2, DAY, key=key, size=250)
    assert put(layout, 3, DAY, key=sol, size=400) is not None
    assert [(entry.key, entry.size) for entry in quarantine.entries(layout)] == [(BTC, 250), (eth, 250), (sol, 400)]


def test_beginning_of_a_file_that_is_no_zip_is_stored(layout: Layout) -> None:
    entry = kept(layout, data=b"<html>" + bytes(10_000), kind="malformed")
    assert (entry.size, entry.beginning) == (1024, True)
    with pytest.raises(DamagedFileError, match=r"not a zip. Only its beginning is stored: b'<html>"):
        entry.read()
    assert kept(layout, data=b"<body>" + bytes(10_000), kind="malformed").beginning
    assert len(quarantine.entries(layout)) == 1
