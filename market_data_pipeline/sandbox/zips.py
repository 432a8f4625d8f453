"""Deterministic zips in the archive's format, deflated by isal, which is faster than zlib.

The contents of the files and their faults do not belong here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from isal import isal_zlib

_TIME, _DATE = 0, (2020 - 1980) << 9 | 1 << 5 | 1  # a fixed time, so that the bytes do not depend on the clock
_UTF8 = 1 << 11
_DEFLATED = 8


def make_zip(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a zip of the named files. Equal files give equal bytes."""
    body, directory = bytearray(), bytearray()
    for name, content in files:
        compressor = isal_zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = compressor.compress(content) + compressor.flush()
        encoded = name.encode()
        common = struct.pack(
            "<HHHHHIIIHH",
            20, _UTF8, _DEFLATED, _TIME, _DATE, zlib.crc32(content), len(packed), len(content), len(encoded), 0,
        )  # fmt: skip
        directory += (
            b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + encoded
        )
        body += b"PK\x03\x04" + common + encoded + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + b"PK\x05\x06" + end)
