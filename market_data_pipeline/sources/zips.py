"""The one CSV inside a zip, inflated within bounds.

A zip may be hostile or broken in every field although its checksum is right. Nothing here trusts a size that the zip
states, and nothing is inflated beyond what the caller allows. Rows and columns belong in
``sources/binance/zip_reader.py``.
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
"""Of a zip, inflated at a time, to some 4 MB of CSV, so that a day's is never whole in memory. Where that is more than
the C library keeps for the next time, the system gives it anew and takes it back, which takes as long as to inflate."""

_BLOCK_BYTES = 4 << 20
"""CSV inflated at a time, at most."""

_END_BYTES = 22
"""Length of a zip's end record without a comment (zip specification, 4.3.16). Binance's zips have no comment."""

_ENTRIES = 8
"""Most files and folders in a zip: one CSV, and the folders that lie around some of them."""

_DIRECTORY_BYTES = 1 << 14
"""Most bytes of a zip's directory."""

_DESCRIPTOR_BYTES = 24
"""Longest data descriptor behind a file's compressed bytes (zip specification, 4.3.9)."""

_FOLDER_BYTES = 1024
"""Most bytes of a folder's own entry in front of the directory."""

_ENCRYPTED, _PATCHED = 0x2041, 0x20
_UTF8_NAME = 0x800
_HEADER_BYTES = 30
"""Length of a file's local header without its name."""


def is_zip(data: bytes) -> bool:
    """Return True if bytes begin as a zip does."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def inflated(data: bytes, stem: str, most_bytes: int) -> Iterator[bytes]:
    """Inflate the CSV of a zip piece by piece.

    Args:
        data: The zip.
        stem: Name of the zip without ``.zip``; its CSV has the same.
        most_bytes: Most bytes that the CSV may have.

    Raises:
        MalformedError: The zip does not hold exactly this CSV, is built or compressed in a way that no archive uses,
            states a wrong size or CRC, or holds more than ``most_bytes``.
    """
    member, start = _only_member(data, stem)
    if member.file_size > most_bytes:
        raise _too_big(stem, member.file_size, most_bytes)
    body = memoryview(data)[start : start + member.compress_size]
    crc = size = 0
    for piece in _decompressed(body, member, stem):
        size += len(piece)
        if size > member.file_size:
            raise _broken(stem, f"it holds more than the {member.file_size:,} bytes that it states")
        crc = isal_zlib.crc32(piece, crc)
        yield piece
    if size != member.file_size:
        raise _broken(stem, f"it states {member.file_size:,} bytes and holds {size:,}")
    if crc != member.CRC:
        raise _broken(stem, "what it holds does not match its own CRC")


def glimpse(data: bytes, most_bytes: int) -> tuple[tuple[str, ...], bytes]:
    """Return the names of the files in a zip, and how the first of them begins.

    This is for people who look at refused bytes. Whatever cannot be read is left out.

    Args:
        data: The bytes, which need not be a zip.
        most_bytes: Most bytes to return.
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
    """Return the CSV's entry, and where its compressed bytes begin."""
    entries = _entries(data, stem)
    member = _csv_among(entries, stem)
    _refuse_unread(member, stem)
    start = _data_start(data, member, stem)
    directory = len(data) - _END_BYTES - struct.unpack_from("<I", data, len(data) - 10)[0]
    behind = directory - start - member.compress_size
    if behind < 0:
        raise _broken(stem, f"it states {member.compress_size:,} compressed bytes, which are more than it has")
    if member.header_offset + behind > _DESCRIPTOR_BYTES + _FOLDER_BYTES * (len(entries) - 1):
        raise _broken(stem, f"it has {member.header_offset + behind:,} bytes that belong to no file")
    return member, start


def _entries(data: bytes, stem: str) -> list[zipfile.ZipInfo]:
    """Return all entries of a zip, files first."""
    if not is_zip(data):
        began = f"begins with {data[:40]!r}" if data else "is empty"
        raise _broken(stem, f"it is not a zip, but {began} ({len(data):,} bytes)")
    end = data[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise _broken(stem, "it was cut, or other bytes or a comment follow its end")
    if data[-_END_BYTES - 20 :][:4] == b"PK\x06\x07":
        raise _broken(stem, "it has a zip64 directory, which no archive of this size needs")
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
    """Return the one file, the CSV of the right name; some archives have it in a folder (binance-public-data #449)."""
    found = [entry for entry in entries if not entry.is_dir()]
    if len(found) == 1:
        path = PurePosixPath(found[0].filename)
        if path.name == f"{stem}.csv" and ".." not in path.parts and not path.is_absolute():
            return found[0]
    names = ", ".join(_shown(entry.filename) for entry in found) or "nothing"
    raise MalformedError(f"The zip should hold {stem}.csv and nothing else, but it holds {names}.")


def _refuse_unread(member: zipfile.ZipInfo, stem: str) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise MalformedError(f"The zip of {stem} is encrypted, which no archive is.")
    if member.flag_bits & _PATCHED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MalformedError(
            f"The zip of {stem} is compressed by method {member.compress_type}, which no archive uses."
        )


def _data_start(data: bytes, member: zipfile.ZipInfo, stem: str) -> int:
    """Return where a file's compressed bytes begin."""
    # The local header repeats the name and has an extra field of its own length (zip specification, 4.3.7).
    header = data[member.header_offset : member.header_offset + _HEADER_BYTES]
    if len(header) == _HEADER_BYTES and header[:4] == b"PK\x03\x04":
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        name_end = member.header_offset + _HEADER_BYTES + int(name_length)
        name = data[member.header_offset + _HEADER_BYTES : name_end]
        encoding = "utf-8" if member.flag_bits & _UTF8_NAME else "cp437"
        if name.decode(encoding, "replace") == member.orig_filename:
            return name_end + int(extra_length)
    raise _broken(stem, "its directory points at something else than its CSV")


def _decompressed(body: memoryview, member: zipfile.ZipInfo, stem: str, *, whole: bool = True) -> Iterator[bytes]:
    """Inflate compressed bytes piece by piece.

    Args:
        body: The bytes.
        member: Says by which method they are compressed.
        stem: Name of the zip, for messages.
        whole: Refuse bytes that end before or behind the end of what was compressed.
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
        raise _broken(stem, "its compressed bytes end elsewhere than it states")


def _too_big(stem: str, size: int, most: int) -> MalformedError:
    return MalformedError(
        f"{stem}.csv has {size:,} bytes, and at most {most:,} are possible for its period. It was not inflated."
    )


def _broken(stem: str, why: str) -> MalformedError:
    return MalformedError(f"The zip of {stem} is broken: {why}.")


def _shown(name: str) -> str:
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
