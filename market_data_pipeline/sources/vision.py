"""The archive, data.binance.vision: download a zip and prove it by its published checksum; list what there is.

On the archive 403 and 404 both mean that a file does not exist. No rate limit is known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

from market_data_pipeline import clock
from market_data_pipeline.lake.provenance import ChecksumStatus
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.errors import ChecksumError, NetworkError
from market_data_pipeline.sources.file import ArchiveFile
from market_data_pipeline.sources.http import OK, PASSING, Answer, Host

ABSENT = (403, 404)
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A line of the archive's listing.

    Attributes:
        key: Path in the bucket, e.g. ``data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01-01.zip``.
        size: Bytes.
        etag: Without quotes; empty where the listing has none.
        last_modified: ISO 8601, as listed.
    """

    key: str
    size: int
    etag: str
    last_modified: str


class Archive:
    """The archive's files and its listing."""

    def __init__(self, settings: Settings) -> None:
        self._files = Host(settings.vision_url, settings, (429, *PASSING))
        self._listing = Host(settings.vision_listing_url, settings, (429, *PASSING))

    def fetch(
        self, path: str, admit: Callable[[int], None] | None = None, accepted: Collection[str] = ()
    ) -> ArchiveFile | None:
        """Download a zip and compare it with its ``.CHECKSUM``; None where the archive has no such file.

        As many are downloaded at a time as the settings allow. Who waits for a download may not hold what a download
        waits for in ``admit``.

        A zip that does not match is fetched once more, with its checksum: it may have been replaced in between.

        Args:
            path: Key in the archive's bucket.
            admit: Called with the zip's size before it is read; it may wait until there is room.
            accepted: sha256 of bytes that a person took for good, whatever their checksum says.

        Raises:
            ChecksumError: it does not match in the second attempt either; carries the bytes.
            NetworkError: no whole answer.
        """
        with self._files.downloads:
            fetched = self._fetch_once(path, admit)
            if isinstance(fetched, ChecksumError) and fetched.file.sha256 not in accepted:
                fetched = self._fetch_once(path, admit)
        if isinstance(fetched, ChecksumError):
            if fetched.file.sha256 not in accepted:
                raise fetched
            return replace(fetched.file, checksum=ChecksumStatus.ACCEPTED)
        return fetched

    def _fetch_once(self, path: str, admit: Callable[[int], None] | None) -> ArchiveFile | ChecksumError | None:
        answer = self._get(self._files, path, admit=admit)
        if answer is None:
            return None
        sha256 = hashlib.sha256(answer.body).hexdigest()
        published = self._get(self._files, f"{path}.CHECKSUM")
        name = path.rsplit("/", 1)[-1]
        file = ArchiveFile(
            url=f"{self._files.url}/{path}",
            data=answer.body,
            sha256=sha256,
            etag=_etag(answer),
            last_modified=answer.headers.get("Last-Modified"),
            checksum=ChecksumStatus.MISSING if published is None else ChecksumStatus.VERIFIED,
            fetched_at=clock.now(),
            checksum_etag=None if published is None else _etag(published),
        )
        if published is not None:
            expected = re.match(rb"\s*([0-9a-fA-F]{64})\b", published.body)
            stated = expected.group(1).decode().lower() if expected else "no sha256"
            if stated != sha256:
                return ChecksumError(
                    f"{name} does not match its published checksum: {name}.CHECKSUM says {stated}, the bytes have "
                    f"{sha256}. Binance may mend it: backfill the day again later.",
                    file,
                )
        return file

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a prefix (which ends with a slash)."""
        return [
            (node.text or "").removeprefix(prefix).rstrip("/")
            for page in self._pages(prefix)
            for node in page.iterfind(f"{_S3}CommonPrefixes/{_S3}Prefix")
        ]

    def list_files(self, prefix: str) -> list[ListedFile]:
        """All files whose path begins with a prefix and has no further slash, in the listing's order."""
        return [file for page in self._pages(prefix) for file in _files_on(page)]

    def list_page(self, prefix: str, after: str) -> tuple[list[ListedFile], bool]:
        """One page (1,000 keys, ``.CHECKSUM`` ones counted) of the files right below a prefix: one request.

        Args:
            prefix: What the keys begin with, ending with a slash.
            after: The page begins with the first key after this one, which need not exist.

        Returns:
            The files in the listing's order, and whether there are more after them.

        Raises:
            NetworkError: no whole listing came.
        """
        page = self._page(prefix, after)
        return _files_on(page), page.findtext(f"{_S3}IsTruncated") == "true"

    def _pages(self, prefix: str) -> Iterator[ET.Element]:
        marker = ""
        while True:
            page = self._page(prefix, marker)
            yield page
            if page.findtext(f"{_S3}IsTruncated") != "true":
                return
            # NextMarker comes only with a delimiter; the last key is the documented other way.
            keys = [node.text or "" for node in page.iterfind(f"{_S3}Contents/{_S3}Key")]
            marker = page.findtext(f"{_S3}NextMarker") or keys[-1]

    def _page(self, prefix: str, marker: str) -> ET.Element:
        answer = self._get(self._listing, "", {"delimiter": "/", "prefix": prefix, "marker": marker})
        if answer is None:
            raise NetworkError(
                f"{self._listing.url} refuses to list {prefix} (403 or 404). Check MARKET_DATA_VISION_LISTING_URL."
            )
        try:
            # Expat limits entity expansion itself, and the bucket is the only writer of what is parsed here.
            return ET.fromstring(answer.body)  # noqa: S314
        except ET.ParseError as error:
            raise NetworkError(
                f"{self._listing.url} answered no S3 listing ({error}). Check MARKET_DATA_VISION_LISTING_URL."
            ) from error

    @staticmethod
    def _get(
        host: Host,
        path: str,
        params: dict[str, str] | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> Answer | None:
        answer = host.get(path, params, admit=admit)
        if answer.status in ABSENT:
            return None
        if answer.status != OK:
            raise NetworkError(f"{answer.url} answered {answer.status} in every attempt. Try again later.")
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._files.close()
        self._listing.close()


def _etag(answer: Answer) -> str | None:
    return answer.headers.get("ETag", "").strip('"') or None


def _files_on(page: ET.Element) -> list[ListedFile]:
    return [
        ListedFile(
            key=node.findtext(f"{_S3}Key", ""),
            size=int(node.findtext(f"{_S3}Size", "0")),
            etag=node.findtext(f"{_S3}ETag", "").strip('"'),
            last_modified=node.findtext(f"{_S3}LastModified", ""),
        )
        for node in page.iterfind(f"{_S3}Contents")
    ]
