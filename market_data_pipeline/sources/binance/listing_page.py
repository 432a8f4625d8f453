"""Parse one page of the bucket's listing strictly: reject a malformed page as a whole.

The listing decides which archives exist, so an unrelated page must not look like vanished archives. Requesting pages
does not belong here (``archive.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn
from xml.etree import ElementTree as ET

_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_MOST_KEYS = 1_000
"""Maximum keys and folders on one page of S3."""

_MOST_MARKUP = 100 * _MOST_KEYS
"""Maximum tags and attributes on one page. S3 has about 20 tags per key. Each takes 100 times its bytes in memory."""

_LONGEST_KEY = 1_024
"""Maximum bytes of an S3 key."""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A line of the archive's listing.

    Attributes:
        key: Path in the bucket, e.g. ``data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01-01.zip``.
        size: Bytes.
        etag: Without quotes. Empty if the listing has none.
        last_modified: ISO 8601, as listed. Empty if the listing has none.
    """

    key: str
    size: int
    etag: str
    last_modified: str


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing.

    Attributes:
        files: Files, ordered by key.
        folders: Names of the folders, without the prefix and the slash, in order.
        next_marker: Marker of the next page. None on the last page.
        last: The last key or folder, as the bucket names it.
    """

    files: tuple[ListedFile, ...]
    folders: tuple[str, ...]
    next_marker: str | None
    last: str


class _NoDoctype(ET.TreeBuilder):
    """Tree builder that rejects a document type: no listing has one, and entities need it."""

    def doctype(self, name: str, _public: str | None, _system: str | None) -> NoReturn:
        raise ValueError(f"it has a document type, {name[:40]!r}")


def read_page(body: bytes, prefix: str, after: str) -> Page:
    """Read a page of ListObjects.

    Args:
        prefix: The requested prefix, ending with a slash.
        after: All keys and folders come after this one in UTF-8 order.

    Raises:
        ValueError: It is not a page of the requested listing. The text is the reason.
    """
    root = _parse(body)
    echoed = root.findtext(f"{_S3}Prefix")
    if echoed is not None and echoed != prefix:
        raise ValueError(f"it lists {_shown(echoed)} instead of {prefix}")
    contents = (
        node for node in root.iterfind(f"{_S3}Contents") if node.findtext(f"{_S3}Key") != prefix
    )  # skip the folder
    files = tuple(_file(node, prefix) for node in contents)
    folders = tuple(_folder(node, prefix) for node in root.iterfind(f"{_S3}CommonPrefixes"))
    if len(files) + len(folders) > _MOST_KEYS:
        raise ValueError(f"it has {len(files) + len(folders):,} keys, and the maximum is {_MOST_KEYS:,}")
    keys = [file.key for file in files]
    prefixes = [f"{prefix}{folder}/" for folder in folders]
    _refuse_disorder(keys, after)
    _refuse_disorder(prefixes, after)
    last = max((*keys[-1:], *prefixes[-1:]), default="")
    return Page(files, folders, _next_marker(root, keys, last), last)


def _parse(body: bytes) -> ET.Element:
    if body.count(b"<") + body.count(b"=") > _MOST_MARKUP:
        raise ValueError(f"it has far more elements than {_MOST_KEYS:,} keys have")
    try:
        parser = ET.XMLParser(target=_NoDoctype())  # noqa: S314 - entities are refused with the document type
        parser.feed(body)
        root = parser.close()
    except ET.ParseError as error:
        raise ValueError(f"it is not XML ({error})") from error
    except LookupError as error:
        raise ValueError(f"its encoding is unknown ({error})") from error
    if root.tag != f"{_S3}ListBucketResult":
        raise ValueError(f"its root is {_shown(root.tag)} instead of ListBucketResult")
    return root


def _next_marker(root: ET.Element, keys: list[str], last: str) -> str | None:
    truncated = root.findtext(f"{_S3}IsTruncated")
    if truncated == "false":
        return None
    if truncated != "true":
        raise ValueError(f"IsTruncated is {_shown(truncated or '')} instead of true or false")
    # NextMarker comes only with a delimiter. Otherwise the last key is the marker, as documented.
    marker = root.findtext(f"{_S3}NextMarker") or (keys[-1] if keys else "")
    if not last or not marker:
        raise ValueError("it is truncated, but has no key and no NextMarker to continue from")
    if marker < last:
        raise ValueError(f"its NextMarker {_shown(marker)} comes before its last key {_shown(last)}")
    return marker


def _refuse_disorder(keys: Iterable[str], after: str) -> None:
    before = after
    for key in keys:
        if key <= before:
            raise ValueError(f"its keys are out of order: {_shown(key)} comes after {_shown(before)}")
        before = key


def _file(node: ET.Element, prefix: str) -> ListedFile:
    key = node.findtext(f"{_S3}Key", "")
    _name(key, prefix)
    size = node.findtext(f"{_S3}Size", "")
    etag = node.findtext(f"{_S3}ETag", "").strip('"')
    modified = node.findtext(f"{_S3}LastModified", "")
    if not re.fullmatch(r"[0-9]{1,15}", size):
        raise ValueError(f"the size of {key} is {_shown(size)}")
    if not re.fullmatch(r"[\x21\x23-\x7e]{0,200}", etag):
        raise ValueError(f"the ETag of {key} is {_shown(etag)}")
    try:
        datetime.fromisoformat(modified or "0001-01-01")
    except ValueError as error:
        raise ValueError(f"the date of {key} is {_shown(modified)}") from error
    return ListedFile(key, int(size), etag, modified)


def _folder(node: ET.Element, prefix: str) -> str:
    key = node.findtext(f"{_S3}Prefix", "")
    if not key.endswith("/"):
        raise ValueError(f"the folder {_shown(key)} does not end with a slash")
    return _name(key[:-1], prefix)


def _name(key: str, prefix: str) -> str:
    """Return the part of a key after the prefix: one name that is safe in a path."""
    name = key.removeprefix(prefix)
    if not key.startswith(prefix) or not name:
        raise ValueError(f"{_shown(key)} is not below {prefix}")
    if "/" in name or "\\" in name or name in (".", "..") or not name.isprintable() or len(key.encode()) > _LONGEST_KEY:
        raise ValueError(f"{_shown(key)} is not the key of a file directly below {prefix}")
    return name


def _shown(text: str) -> str:
    return repr(text[:120])
