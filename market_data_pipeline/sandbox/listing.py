"""S3 ListObjects, version 1, as the bucket of data.binance.vision answers it. HTTP does not belong here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from xml.sax.saxutils import escape

from market_data_pipeline.sandbox.exchange import BucketObject, Exchange

PAGE = 1_000
"""Largest number of keys and common prefixes on a page."""


def list_objects(exchange: Exchange, prefix: str, delimiter: str, marker: str, max_keys: int = PAGE) -> bytes:
    """Return one page of a listing as XML.

    Args:
        exchange: the exchange that owns the archive.
        prefix: the beginning of every listed key.
        delimiter: ``/`` groups everything below a folder into one common prefix. Empty lists every key.
        marker: the page begins after this key or common prefix.
        max_keys: number of entries on the page, at most 1,000.
    """
    size = max(1, min(max_keys, PAGE))
    entries = list(islice(_entries(exchange, "", prefix, delimiter, marker), size + 1))
    truncated = len(entries) > size
    page = entries[:size]
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
        f"<Name>data.binance.vision</Name><Prefix>{escape(prefix)}</Prefix><Marker>{escape(marker)}</Marker>",
    ]
    if truncated and delimiter:
        last = page[-1]
        parts.append(f"<NextMarker>{escape(last.key if isinstance(last, BucketObject) else last)}</NextMarker>")
    parts.append(f"<MaxKeys>{size}</MaxKeys>")
    if delimiter:
        parts.append(f"<Delimiter>{escape(delimiter)}</Delimiter>")
    parts.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
    for file in page:
        if isinstance(file, BucketObject):
            modified = f"{file.last_modified:%Y-%m-%dT%H:%M:%S.000Z}"
            parts.append(
                f"<Contents><Key>{escape(file.key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>&quot;{file.etag}&quot;</ETag><Size>{file.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
    parts += [f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in page if isinstance(p, str)]
    return "".join([*parts, "</ListBucketResult>"]).encode()


def _entries(exchange: Exchange, folder: str, prefix: str, delimiter: str, marker: str) -> Iterator[BucketObject | str]:
    """Yield the files and common prefixes after the marker, ordered by the UTF-8 of their keys."""
    for child in sorted(exchange.children(folder)):
        if not child.endswith("/"):
            if child > marker and child.startswith(prefix):
                file = exchange.describe(child)
                if file is not None:
                    yield file
        elif not (child.startswith(prefix) or prefix.startswith(child)):
            continue  # nothing below can match
        elif child <= marker and not marker.startswith(child):
            continue  # everything below sorts before the marker
        elif delimiter == "/" and len(child) > len(prefix):
            if child > marker and next(_entries(exchange, child, child, "", ""), None) is not None:
                yield child
        else:
            yield from _entries(exchange, child, prefix, delimiter, marker)
