"""Zips that are hostile or broken although their checksum may be right: each is refused in words, and cheaply."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable
from datetime import date
from itertools import cycle, islice

import pyarrow as pa
import pytest
from isal import isal_zlib

from market_data_pipeline import clock
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sources.binance.zip_reader import read_zip
from market_data_pipeline.sources.zips import glimpse
from market_data_pipeline_tests.support.world import agg_trades, klines

KEY, DAY, STEM = klines("BTCUSDT", "1h"), date(2026, 3, 2), "BTCUSDT-1h-2026-03-02"
TRADES, TRADES_STEM = agg_trades("BTCUSDT"), "BTCUSDT-aggTrades-2026-03-02"
SECOND_US = 1_000_000
START_US = clock.day_start_us(DAY)
CSV = f"{STEM}.csv"


def candles(step: int, count: int, lasts: int | None = None, start: int = 0) -> str:
    """Candles that follow each other by seconds, from a second of the day on."""
    begins = range(START_US + start * SECOND_US, START_US + (start + step * count) * SECOND_US, step * SECOND_US)
    length = (lasts or step) * SECOND_US
    return "".join(f"{at},1.0,2.0,0.5,1.5,10.0,{at + length - 1},15.0,5,4.0,6.0,0\n" for at in begins)


HOURS = candles(3600, 24)


def zipped(text: str | bytes, name: str = CSV, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, text)
    return stream.getvalue()


WHOLE = zipped(HOURS)


def read(data: bytes, key: SeriesKey = KEY, stem: str = STEM) -> pa.Table:
    return read_zip(data, key, stem, DAY, DAY)


def patched(data: bytes, signature: bytes, at: int, layout: str, value: int) -> bytes:
    """A zip with one field of a header changed."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, data.index(signature) + at, value)
    return bytes(changed)


LOCAL, ENTRY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def with_entries(number: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for n in range(number):
            archive.writestr(f"{n}.csv", "")
    return stream.getvalue()


def twice() -> bytes:
    """Two entries for the same bytes."""
    directory = WHOLE[WHOLE.index(ENTRY) : WHOLE.index(END)]
    end = struct.pack("<4s4H2LH", END, 0, 0, 2, 2, 2 * len(directory), WHOLE.index(ENTRY), 0)
    return WHOLE[: WHOLE.index(ENTRY)] + 2 * directory + end


def between(more: bytes) -> bytes:
    """Bytes between the CSV and the directory that belong to nothing."""
    at = WHOLE.index(ENTRY)
    return patched(WHOLE[:at] + more + WHOLE[at:], END, 16, "<I", at + len(more))


def in_front(more: bytes) -> bytes:
    moved = patched(more + WHOLE, END, 16, "<I", WHOLE.index(ENTRY) + len(more))
    return patched(moved, ENTRY, 42, "<I", len(more))


def longer_body() -> bytes:
    """The zip states more compressed bytes than its stream has."""
    at = WHOLE.index(ENTRY)
    more = patched(WHOLE[:at] + bytes(500) + WHOLE[at:], END, 16, "<I", at + 500)
    return patched(more, ENTRY, 20, "<I", at - 30 - len(CSV) + 500)


def zip64_end() -> bytes:
    end = WHOLE.index(END)
    wide = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, end - WHOLE.index(ENTRY), WHOLE.index(ENTRY)
    )
    return WHOLE[:end] + wide + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1) + WHOLE[end:]


def commented() -> bytes:
    return patched(WHOLE + b"c" * 0xFFFF, END, 20, "<H", 0xFFFF)


SIZE = len(HOURS)
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a zip"),
    "text": (lambda: b"The service is unavailable.", "not a zip, but starts with b'The service"),
    "web page": (lambda: b"<html>log in</html>" * 1000, "not a zip"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(100), "not a zip"),
    "no entries": (lambda: with_entries(0), "contains nothing"),
    "many entries": (lambda: with_entries(60_000), "lists 60,000 files"),
    "more entries than a zip can count": (lambda: with_entries(70_000), "zip64"),
    "two entries": (lambda: with_entries(2), "nothing else, but it contains 0.csv, 1.csv"),
    "nested zip": (lambda: zipped(WHOLE, f"{STEM}.zip"), r"but it contains BTCUSDT-1h-2026-03-02\.zip"),
    "zip as the csv": (lambda: zipped(WHOLE), "neither a row nor a header"),
    "path upwards": (lambda: zipped(HOURS, f"../../{CSV}"), r"but it contains \.\./"),
    "absolute path": (lambda: zipped(HOURS, f"/{CSV}"), "but it contains /"),
    "long name": (lambda: zipped(HOURS, "n" * 60_000), "lists 1 files in 60,046 bytes|but it contains nnn"),
    "escapes in a name": (lambda: zipped(HOURS, "\x1b[2J.csv"), r"contains '\\x1b\[2J"),
    "bzip2": (lambda: zipped(HOURS, method=zipfile.ZIP_BZIP2), "method 12"),
    "lzma": (lambda: zipped(HOURS, method=zipfile.ZIP_LZMA), "method 14"),
    "zstd": (lambda: patched(WHOLE, ENTRY, 10, "<H", 93), "method 93"),
    "deflate64": (lambda: patched(WHOLE, ENTRY, 10, "<H", 9), "method 9"),
    "encrypted": (lambda: patched(WHOLE, ENTRY, 8, "<H", 1), "encrypted"),
    "strongly encrypted": (lambda: patched(WHOLE, ENTRY, 8, "<H", 0x41), "encrypted"),
    "smaller than stated": (
        lambda: patched(WHOLE, ENTRY, 24, "<I", SIZE + 1),
        f"states {SIZE + 1:,} bytes and contains",
    ),
    "bigger than stated": (
        lambda: patched(WHOLE, ENTRY, 24, "<I", SIZE - 1),
        f"more than its stated {SIZE - 1:,} bytes",
    ),
    "nothing stated": (lambda: patched(WHOLE, ENTRY, 24, "<I", 0), "more than its stated 0 bytes"),
    "huge size stated": (lambda: patched(WHOLE, ENTRY, 24, "<I", 0xFFFFFFFE), "has 4,294,967,294 bytes. The maximum"),
    "compressed size too big": (lambda: patched(WHOLE, ENTRY, 20, "<I", 10**6), "more than it has"),
    "compressed size too small": (lambda: patched(WHOLE, ENTRY, 20, "<I", 10), "belong to no file"),
    "stream ends early": (longer_body, "do not end at"),
    "wrong crc": (lambda: patched(WHOLE, ENTRY, 16, "<I", 1), "CRC"),
    "other local name": (lambda: WHOLE.replace(b"BTCUSDT", b"ETHUSDT", 1), "does not point at its CSV"),
    "offset beyond": (lambda: patched(WHOLE, ENTRY, 42, "<I", 10**6), "does not point at its CSV"),
    "overlapping": (twice, "nothing else, but it contains"),
    "trailing garbage": (lambda: WHOLE + b"garbage", "other bytes or a comment follow"),
    "two zips": (lambda: WHOLE + WHOLE, "belong to no file"),
    "comment": (commented, "other bytes or a comment follow"),
    "hidden bytes": (lambda: between(bytes(5000)), "5,000 bytes that belong to no file"),
    "bytes in front": (lambda: in_front(LOCAL + bytes(5000)), "belong to no file"),
    "cut": (lambda: WHOLE[:-1], "it is truncated"),
    "half": (lambda: WHOLE[: len(WHOLE) // 2], "it is truncated"),
    "zip64": (zip64_end, "zip64"),
    "one line": (lambda: zipped("1" * 100_000), "a line of more than 4,096 bytes"),
    "one long header": (lambda: zipped("a" * 100_000), "a line of more than 4,096 bytes"),
    "open quote": (lambda: zipped('"' + HOURS), "neither a header nor a number"),
    "open quote within": (lambda: zipped(HOURS.replace("15.0", '"15.0', 1)), "is not what Binance publishes"),
    "many columns": (lambda: zipped(HOURS + "1," * 1_000_000 + "1\n"), "a line of more|Expected 12 columns"),
    "many columns within": (lambda: zipped(HOURS + "1," * 10_000 + "1\n" + HOURS), "Expected 12 columns, got 10001"),
    "empty lines only": (lambda: zipped("\n" * 100_000), "neither a header nor a number"),
    "zero bytes": (lambda: zipped(bytes(100_000)), "neither a header nor a number|a line of more"),
    "minutes": (lambda: zipped(candles(60, 1440)), "rows of another interval: 1,440 of 1,440 candles last 1m, not 1h"),
    "seconds": (lambda: zipped(candles(1, 86_400)), "candles last 1s, not 1h"),
    "a day": (lambda: zipped(candles(86_400, 1)), "1 of 1 candles last 1d, not 1h"),
    "half hours at whole hours": (lambda: zipped(candles(3600, 24, 1800)), "24 of 24 candles last 30m"),
    "ten minutes": (lambda: zipped(candles(600, 144)), "144 of 144 candles last 600 s"),
    "two hours": (lambda: zipped(candles(7200, 12)), "candles last 2h"),
    "more rows than a day has": (lambda: zipped(HOURS * 10), "has 240 rows or more. A day of .* has at most 148"),
    "another day": (lambda: zipped(candles(3600, 24, start=86_400)), "rows of other days"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_hostile_zip_is_refused_in_words(case: str) -> None:
    make, words = BAD[case]
    data = make()
    with pytest.raises(MalformedError, match=words) as refused:
        read(data)
    assert len(str(refused.value)) < 600
    glimpse(data, 1000)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        zipped(HOURS, f"BTCUSDT/{CSV}"),
        zipped(HOURS, method=zipfile.ZIP_STORED),
        zipped(HOURS + HOURS),
        zipped("".join(reversed(HOURS.splitlines(keepends=True)))),
    ],
    ids=["plain", "in a folder", "stored", "each row twice", "backwards"],
)
def test_a_real_zip_is_read(data: bytes) -> None:
    assert read(data).num_rows in (24, 48)


def test_a_zip_written_as_a_stream_is_read() -> None:
    """Its sizes come behind the data, in a descriptor, and its local header has a zip64 field."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object, /) -> int:
            self.data += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    stream = Stream()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(CSV, "w", force_zip64=True) as file,
    ):
        file.write(HOURS.encode())
    assert read(bytes(stream.data)).num_rows == 24


OFF_GRID = candles(3600, 14, start=34_094)  # 2018-02-09 09:28:14
CUT = candles(3600, 13) + candles(3600, 1, 2820, start=46_800)  # 2020-12-21 13:47


@pytest.mark.parametrize(
    "text",
    [OFF_GRID, CUT, candles(3600, 1, 1800), candles(3600, 1, -10), candles(3600, 2) + candles(3600, 2, 900, 7200)],
    ids=["off the grid", "cut short", "one, cut to another interval", "closed before it opened", "two of four cut"],
)
def test_candles_off_the_grid_or_cut_short_are_read(text: str) -> None:
    assert read(zipped(text)).num_rows == text.count("\n")


def bomb(row: bytes, key_stem: str, megabytes: int) -> bytes:
    """A small zip that inflates to many megabytes of the same bytes, whose stated size and CRC are right."""
    block = row * ((1 << 20) // len(row))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)  # stands alone, so one serves for all
    body, crc = packed * megabytes + packer.flush(), 0
    for _ in range(megabytes):
        crc = isal_zlib.crc32(block, crc)
    name = f"{key_stem}.csv".encode()
    facts = (20, 0, 8, 0, 0, crc, len(body), megabytes * len(block), len(name), 0)
    local = struct.pack("<4s5H3L2H", LOCAL, *facts) + name
    entry = struct.pack("<4sH5H3L5H2L", ENTRY, 20, *facts, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(entry), len(local) + len(body), 0)
    return local + body + entry + end


TRADE = f"1,1.0,1.0,1,1,{START_US},True,True\n".encode()


@pytest.mark.parametrize(
    ("key", "stem", "row"),
    [
        (KEY, STEM, b"1"),
        (KEY, STEM, candles(3600, 1).encode()),
        (TRADES, TRADES_STEM, TRADE),
        (TRADES, TRADES_STEM, b"1"),
    ],
    ids=["candles, no line", "candles, one row again and again", "trades, one row again and again", "trades, no line"],
)
@pytest.mark.parametrize("honest", [True, False], ids=["states its size", "states a small size"])
def test_a_bomb_is_refused_before_it_is_inflated(key: SeriesKey, stem: str, row: bytes, *, honest: bool) -> None:
    data = bomb(row, stem, 100)
    if not honest:
        data = patched(data, ENTRY, 24, "<I", 2_000)
    tracemalloc.start()
    try:
        with pytest.raises(
            MalformedError, match=r"The maximum for its period|more than its stated 2,000 bytes|a line of more"
        ):
            read(data, key, stem)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    glimpse(data, 1000)


def trades(ids: Iterable[int]) -> bytes:
    """Trades that differ in nothing but their ids."""
    rest = TRADE.removeprefix(b"1")
    return zipped(b"".join(b"%d%b" % (number, rest) for number in ids), f"{TRADES_STEM}.csv")


@pytest.mark.parametrize("ids", [[1], [1, 10**12], [3, 2, 1]], ids=["one trade", "two far apart", "three backwards"])
def test_endlessly_repeated_trades_are_refused_at_once(ids: list[int]) -> None:
    data = trades(islice(cycle(ids), 300_000))
    taken: list[pa.Table] = []
    words = f"repeats its rows: the first [0-9,]+ have {len(ids)} distinct values of agg_trade_id"
    with pytest.raises(MalformedError, match=words):
        read_zip(data, TRADES, TRADES_STEM, DAY, DAY, taken.append)
    assert not taken


@pytest.mark.parametrize("order", ["each twice", "all twice", "backwards"])
def test_duplicate_or_reversed_trades_are_read(order: str) -> None:
    numbers = list(range(1, 100_001))
    ids = {"each twice": sorted(numbers * 2), "all twice": numbers * 2, "backwards": numbers[::-1]}[order]
    assert read(trades(ids), TRADES, TRADES_STEM).num_rows == len(ids)


def test_details_of_a_refused_zip_are_bounded() -> None:
    names, begin = glimpse(bomb(b"1", STEM, 10), 500)
    assert (names, begin) == ((CSV,), b"1" * 500)
    assert glimpse(b"<html>", 500) == ((), b"")
    assert glimpse(zipped(HOURS, method=zipfile.ZIP_LZMA), 500) == ((CSV,), b"")
