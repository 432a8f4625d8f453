"""Download and list files of the archive, data.binance.vision, and verify zips against their published checksums.

On the archive, 403 and 404 both mean that a file does not exist. It has no known rate limit. Parsing pages of the
listing does not belong here (``listing_page.py``).
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime

from market_data_pipeline import clock
from market_data_pipeline.errors import ChecksumError, NetworkError
from market_data_pipeline.model.datasets import MOST_PAGES
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.binance.listing_page import ListedFile, Page, read_page
from market_data_pipeline.sources.http import CHECK_NETWORK, FORBIDDEN, OK, PASSING, Host, Response, ResponseKind

__all__ = ["ArchiveClient", "ListedFile"]

_ABSENT = (403, 404)

_CHECKSUM = ResponseKind("a checksum", 4 << 10)
_LISTING = ResponseKind("a page of a listing", 8 << 20)

_CHECK_LISTING = f"Check the network and {PREFIX}VISION_LISTING_URL."


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A zip as the archive serves it, with the result of its verification.

    Attributes:
        sha256: SHA-256 of the bytes, in hex.
        etag: The ETag, without quotes.
        last_modified: The Last-Modified header (HTTP date).
        checksum: ``verified``; ``missing`` if no ``.CHECKSUM`` is published; ``accepted`` if a person did.
        fetched_at: Time of the response (UTC).
        checksum_etag: ETag of the ``.CHECKSUM``, without quotes. None if none is published.
    """

    url: str
    data: bytes
    sha256: str
    etag: str | None
    last_modified: str | None
    checksum: ChecksumStatus
    fetched_at: datetime
    checksum_etag: str | None = None

    @property
    def stem(self) -> str:
        """The file name without ``.zip``. The CSV inside has the same stem."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zip")


class ArchiveClient:
    """Client of the archive's files and its listing.

    Args:
        stop: Ends all waits, as the end of the process does.
    """

    def __init__(self, settings: Settings, stop: Stop | None = None) -> None:
        stop = stop or Stop()
        self._files = Host(settings.vision_url, settings, (429, *PASSING), stop)
        self._listing = Host(settings.vision_listing_url, settings, (429, *PASSING), stop)
        self._most_bytes = settings.max_zip_mb << 20

    def fetch(
        self,
        path: str,
        admit: Callable[[int], None] | None = None,
        accepted: Collection[str] = (),
        most_bytes: int | None = None,
    ) -> ArchiveFile | None:
        """Download a zip and verify it against its ``.CHECKSUM``. Return None if the archive has no such file.

        The settings limit the downloads at a time. Do not reserve memory before waiting for a download slot. It can
        deadlock with ``admit``.

        If the checksum differs, fetch the zip and its checksum once more: the zip may have been replaced in between.

        Args:
            path: Key in the archive's bucket.
            admit: Called with the zip's size before all of it is in memory. It may block until memory is free.
            accepted: SHA-256 of bytes that a person accepted despite their checksum.
            most_bytes: Maximum size of such a zip. ``MARKET_DATA_MAX_ZIP_MB`` is the upper limit and the default.

        Raises:
            ChecksumError: The second attempt does not match either. The error carries the bytes.
            NetworkError: No complete response, or one that is not a zip and does not match the checksum.
        """
        if most_bytes is None or most_bytes > self._most_bytes:
            kind = ResponseKind(f"a zip ({PREFIX}MAX_ZIP_MB)", self._most_bytes, big=True)
        else:
            kind = ResponseKind("a zip of this series", most_bytes, big=True)
        with self._files.downloads:
            fetched = self._fetch_once(path, kind, admit)
            if isinstance(fetched, ChecksumError) and fetched.file.sha256 not in accepted:
                fetched = self._fetch_once(path, kind, admit)
        if isinstance(fetched, ChecksumError):
            if fetched.file.sha256 not in accepted:
                raise fetched
            return replace(fetched.file, checksum=ChecksumStatus.ACCEPTED)
        return fetched

    def _fetch_once(
        self, path: str, kind: ResponseKind, admit: Callable[[int], None] | None
    ) -> ArchiveFile | ChecksumError | None:
        answer = _found(self._files.get(path, kind, admit=admit))
        if answer is None:
            return None
        sha256 = hashlib.sha256(answer.body).hexdigest()
        published = _found(self._files.get(f"{path}.CHECKSUM", _CHECKSUM))
        stated = None if published is None else stated_sha256(published.body)
        if stated != sha256 and (instead := _instead_of_zip(answer)):
            raise NetworkError(instead)
        if published is not None and stated is None:
            raise NetworkError(f"{published.summary} instead of a checksum. {CHECK_NETWORK}")
        name = path.rsplit("/", 1)[-1]
        file = ArchiveFile(
            url=f"{self._files.url}/{path}",
            data=answer.body,
            sha256=sha256,
            etag=_etag(answer),
            last_modified=_last_modified(answer),
            checksum=ChecksumStatus.MISSING if published is None else ChecksumStatus.VERIFIED,
            fetched_at=clock.now(),
            checksum_etag=None if published is None else _etag(published),
        )
        if stated is not None and stated != sha256:
            return ChecksumError(
                f"{name} does not match its published checksum: {name}.CHECKSUM has {stated}, the bytes have "
                f"{sha256}. Binance may fix it: backfill the day again later.",
                file,
                stated,
            )
        return file

    def published_sha256(self, path: str) -> str | None:
        """Return the SHA-256 that the archive publishes for a zip, in one small request. None if it publishes none.

        Args:
            path: Key of the zip in the archive's bucket.

        Raises:
            NetworkError: No complete response, or one that is not a checksum.
        """
        published = _found(self._files.get(f"{path}.CHECKSUM", _CHECKSUM))
        if published is None:
            return None
        if (stated := stated_sha256(published.body)) is None:
            raise NetworkError(f"{published.summary} instead of a checksum. {CHECK_NETWORK}")
        return stated

    def list_folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below a prefix, which ends with a slash.

        Raises:
            NetworkError: The listing is incomplete.
        """
        return [folder for page in self._pages(prefix) for folder in page.folders]

    def list_files(self, prefix: str) -> list[ListedFile]:
        """Return all files whose path starts with a prefix and has no further slash, in the listing's order.

        Raises:
            NetworkError: The listing is incomplete.
        """
        return [file for page in self._pages(prefix) for file in page.files]

    def list_page(self, prefix: str, after: str) -> tuple[list[ListedFile], bool]:
        """Return one page of the files directly below a prefix, in one request.

        A page has 1,000 keys. ``.CHECKSUM`` keys count.

        Args:
            prefix: Start of the keys, ending with a slash.
            after: The page starts with the first key after this one. The key need not exist.

        Returns:
            The files in the listing's order, and True if more follow.

        Raises:
            NetworkError: The listing is incomplete.
        """
        page = self._page(prefix, after, after)
        return list(page.files), page.next_marker is not None

    def _pages(self, prefix: str) -> Iterator[Page]:
        marker = after = ""
        for _ in range(MOST_PAGES):
            page = self._page(prefix, marker, after)
            yield page
            if page.next_marker is None:
                return
            marker, after = page.next_marker, page.last
        raise NetworkError(
            f"The listing of {prefix} at {self._listing.url} has more than {MOST_PAGES} pages. The next one starts "
            f"at {marker!r}. Check {PREFIX}VISION_LISTING_URL."
        )

    def _page(self, prefix: str, marker: str, after: str) -> Page:
        answer = self._listing.get("", _LISTING, {"delimiter": "/", "prefix": prefix, "marker": marker})
        if answer.status != OK or answer.is_html:
            raise NetworkError(f"{answer.summary} instead of an S3 listing. {_CHECK_LISTING}")
        try:
            return read_page(answer.body, prefix, after)
        except ValueError as error:
            raise NetworkError(
                f"{answer.url}{answer.route} answered an unusable S3 listing: {error}. {_CHECK_LISTING}"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._files.close()
        self._listing.close()


def _found(answer: Response) -> Response | None:
    """Return a response with a file. Return None if the archive has no such file.

    Raises:
        NetworkError: The response is neither.
    """
    if answer.status == OK:
        return answer
    # A 403 with a web page comes from a firewall or a proxy. S3 answers XML.
    if answer.status in _ABSENT and not (answer.status == FORBIDDEN and answer.is_html):
        return None
    raise NetworkError(f"{answer.summary}. Try again later.")


def stated_sha256(checksum: bytes) -> str | None:
    """Return the SHA-256 in the bytes of a ``.CHECKSUM``. None if they are none."""
    found = re.match(rb"\s*([0-9a-fA-F]{64})(\s|$)", checksum)
    return found[1].decode().lower() if found else None


def _instead_of_zip(answer: Response) -> str | None:
    """Return a message about a response that is not a complete zip, else None."""
    if not answer.body.startswith(b"PK"):
        return f"{answer.summary} instead of a zip. {CHECK_NETWORK}"
    if not zipfile.is_zipfile(io.BytesIO(answer.body)):
        return f"{answer.url}{answer.route} was cut short: its {len(answer.body):,} bytes have no end of a zip."
    return None


def _etag(answer: Response) -> str | None:
    """Return the ETag without quotes. None if it is missing or invalid."""
    found = re.fullmatch(r'(?:W/)?"?([\x21\x23-\x7e]{1,200})"?', answer.headers.get("ETag", "").strip())
    return found[1] if found else None


def _last_modified(answer: Response) -> str | None:
    text = answer.headers.get("Last-Modified", "")
    try:
        parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return text if len(text) < 64 and text.isascii() and text.isprintable() else None
