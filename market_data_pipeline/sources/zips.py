"""Inflate the one CSV inside a zip, within bounds.

A zip with a matching checksum can still be hostile or broken in every field. Nothing here trusts a size that the zip
states or inflates more than the caller allows. Rows and columns do not belong here (``binance/zip_reader.py``).
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from isal import igzip_lib, isal_zlib
from isal.igzip_lib import IsalError

from market_data_pipeline.errors import MalformedError

_BODY_BYTES = 1 << 20
"""Compressed bytes inflated at a time, to about 4 MB of CSV, so that a day's CSV is never completely in memory.
Above the C library's allocation cache, the system allocates and frees each block, which takes as long as inflating."""

_BLOCK_BYTES = 4 << 20
"""Maximum bytes of CSV inflated at a time."""

_END_BYTES = 22
"""Length of a zip's end record without a comment (zip specification, 4.3.16). Binance's zips have no comment."""

_ENTRIES = 8
"""Maximum files and folders in a zip: one CSV, and the folders around some of them."""

_DIRECTORY_BYTES = 1 << 14
"""Maximum bytes of a zip's directory."""

_DESCRIPTOR_BYTES = 24
"""Maximum bytes of a data descriptor after a file's compressed bytes (zip specification, 4.3.9)."""

_FOLDER_BYTES = 1024
"""Maximum bytes of a folder's own entry before the directory."""

_ENCRYPTED, _PATCHED = 0x2041, 0x20
_UTF8_NAME = 0x800
_HEADER_BYTES = 30
"""Length of a file's local header without its name."""


def is_zip(data: bytes) -> bool:
    """Return True if bytes start like a zip."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def inflated(data: bytes, stem: str, most_bytes: int) -> Iterator[bytes]:
    """Inflate the CSV of a zip piece by piece.

    Args:
        stem: Name of the zip without ``.zip``. Its CSV has the same stem.

    Raises:
        MalformedError: The zip does not contain exactly this CSV, is built or compressed in a way that no archive uses,
            states a wrong size or CRC, or contains more than ``most_bytes``.
    """
    member, start = _only_member(data, stem)
    if member.file_size > most_bytes:
        raise MalformedError(
            f"{stem}.csv has {member.file_size:,} bytes. The maximum for its period is {most_bytes:,}. "
            "It was not inflated."
        )
    body = memoryview(data)[start : start + member.compress_size]
    crc = size = 0
    for piece in _decompressed(body, member, stem):
        size += len(piece)
        if size > member.file_size:
            raise _broken(stem, f"it contains more than its stated {member.file_size:,} bytes")
        crc = isal_zlib.crc32(piece, crc)
        yield piece
    if size != member.file_size:
        raise _broken(stem, f"it states {member.file_size:,} bytes and contains {size:,}")
    if crc != member.CRC:
        raise _broken(stem, "its content does not match its own CRC")


def glimpse(data: bytes, most_bytes: int) -> tuple[tuple[str, ...], bytes]:
    """Return the names of the files in a zip, and the start of the first one.

    It helps people to inspect rejected bytes. Unreadable parts are left out.

    Args:
        data: The bytes. They need not be a zip.
        most_bytes: Maximum bytes to return.
    """
    names: tuple[str, ...] = ()
    begin = b""
    try:
        entries = _entries(data, "")
        names = tuple(_shown(entry.filename) for entry in entries)
        if entries:
            _refuse_unread(entries[0], "")
            start = _data_start(data, entries[0], "")
            body = memoryview(data)[start : start + min(entries[0].compress_size, most_bytes)]
            for piece in _decompressed(body, entries[0], "", whole=False):
                begin = (begin + piece)[:most_bytes]
    except MalformedError:
        pass
    return names, begin


def _only_member(data: bytes, stem: str) -> tuple[zipfile.ZipInfo, int]:
    """Return the CSV's entry, and the offset of its compressed bytes."""
    entries = _entries(data, stem)
    member = _csv_among(entries, stem)
    _refuse_unread(member, stem)
    start = _data_start(data, member, stem)
    directory = len(data) - _END_BYTES - struct.unpack_from("<I", data, len(data) - 10)[0]
    behind = directory - start - member.compress_size
    if behind < 0:
        raise _broken(stem, f"it states {member.compress_size:,} compressed bytes, more than it has")
    if member.header_offset + behind > _DESCRIPTOR_BYTES + _FOLDER_BYTES * (len(entries) - 1):
        raise _broken(stem, f"it has {member.header_offset + behind:,} bytes that belong to no file")
    return member, start


def _entries(data: bytes, stem: str) -> list[zipfile.ZipInfo]:
    """Return all entries of a zip, files first."""
    if not is_zip(data):
        began = f"starts with {data[:40]!r}" if data else "is empty"
        raise _broken(stem, f"it is not a zip, but {began} ({len(data):,} bytes)")
    end = data[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise _broken(stem, "it is truncated, or other bytes or a comment follow its end")
    if data[-_END_BYTES - 20 :][:4] == b"PK\x06\x07":
        raise _broken(stem, "it has a zip64 directory, and no archive of this size needs one")
    number, directory_bytes = struct.unpack_from("<H", end, 10)[0], struct.unpack_from("<I", end, 12)[0]
    if number > _ENTRIES or directory_bytes > _DIRECTORY_BYTES:
        raise _broken(stem, f"it lists {number:,} files in {directory_bytes:,} bytes instead of one")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError, OverflowError) as error:
        raise _broken(stem, str(error).rstrip(".")) from error
    return sorted(found, key=zipfile.ZipInfo.is_dir)


def _csv_among(entries: list[zipfile.ZipInfo], stem: str) -> zipfile.ZipInfo:
    """Return the one file, the CSV of the right name. Some archives have it in a folder (binance-public-data #449)."""
    found = [entry for entry in entries if not entry.is_dir()]
    if len(found) == 1:
        path = PurePosixPath(found[0].filename)
        if path.name == f"{stem}.csv" and ".." not in path.parts and not path.is_absolute():
            return found[0]
    names = ", ".join(_shown(entry.filename) for entry in found) or "nothing"
    raise MalformedError(f"The zip should contain {stem}.csv and nothing else, but it contains {names}.")


def _refuse_unread(member: zipfile.ZipInfo, stem: str) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise MalformedError(f"The zip of {stem} is encrypted. No archive is.")
    if member.flag_bits & _PATCHED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MalformedError(
            f"The zip of {stem} is compressed by method {member.compress_type}, which no archive uses."
        )


def _data_start(data: bytes, member: zipfile.ZipInfo, stem: str) -> int:
    """Return the offset of a file's compressed bytes."""
    # The local header repeats the name and has an extra field of its own length (zip specification, 4.3.7).
    header = data[member.header_offset : member.header_offset + _HEADER_BYTES]
    if len(header) == _HEADER_BYTES and header[:4] == b"PK\x03\x04":
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        name_end = member.header_offset + _HEADER_BYTES + int(name_length)
        name = data[member.header_offset + _HEADER_BYTES : name_end]
        encoding = "utf-8" if member.flag_bits & _UTF8_NAME else "cp437"
        if name.decode(encoding, "replace") == member.orig_filename:
            return name_end + int(extra_length)
    raise _broken(stem, "its directory does not point at its CSV")


def _decompressed(body: memoryview, member: zipfile.ZipInfo, stem: str, *, whole: bool = True) -> Iterator[bytes]:
    """Inflate compressed bytes piece by piece.

    Args:
        stem: Name of the zip, for messages.
        whole: Reject a body that ends before or after the end of the compressed stream.
    """
    if member.compress_type == zipfile.ZIP_STORED:
        for at in range(0, len(body), _BLOCK_BYTES):
            yield bytes(body[at : at + _BLOCK_BYTES])
        return
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    read = 0
    try:
        for at in range(0, len(body), _BODY_BYTES):
            yield inflater.decompress(body[at : at + _BODY_BYTES], _BLOCK_BYTES)
            while not (inflater.eof or inflater.needs_input):
                yield inflater.decompress(b"", _BLOCK_BYTES)
            if inflater.eof:
                read = min(at + _BODY_BYTES, len(body)) - len(inflater.unused_data)
                break
    except IsalError as error:  # type: ignore[misc]  # isal's stub declares an instance
        raise _broken(stem, str(error)) from error
    if whole and read != len(body):
        raise _broken(stem, "its compressed bytes do not end at the stated offset")


def _broken(stem: str, why: str) -> MalformedError:
    return MalformedError(f"The zip of {stem} is broken: {why}.")


def _shown(name: str) -> str:
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
