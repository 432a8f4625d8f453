"""The archive, data.binance.vision: download a zip and prove it by its published checksum; list what there is.

On the archive 403 and 404 both mean that a file does not exist. No rate limit is known. Pages of the listing are read
in ``listing_page.py``.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime

from market_data_pipeline import clock
from market_data_pipeline.errors import ChecksumError, NetworkError
from market_data_pipeline.model.datasets import MOST_PAGES
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.binance.listing_page import ListedFile, Page, read_page
from market_data_pipeline.sources.http import CHECK_NETWORK, FORBIDDEN, OK, PASSING, Answer, Host, Kind
from market_data_pipeline.sources.protocol import ArchiveFile

__all__ = ["Archive", "ListedFile"]

ABSENT = (403, 404)

_CHECKSUM = Kind("a checksum", 4 << 10)
_LISTING = Kind("a page of a listing", 8 << 20)

_CHECK_LISTING = f"Check the network and {PREFIX}VISION_LISTING_URL."


class Archive:
    """The archive's files and its listing.

    Args:
        settings: Its hosts, and how patient to be.
        stop: What ends all waits; the end of the process does so, too.
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
        """Download a zip and compare it with its ``.CHECKSUM``; None where the archive has no such file.

        As many are downloaded at a time as the settings allow. Who waits for a download may not hold what a download
        waits for in ``admit``.

        A zip that does not match is fetched once more, with its checksum: it may have been replaced in between.

        Args:
            path: Key in the archive's bucket.
            admit: Called with the zip's size before all of it is kept; it may wait until there is room.
            accepted: sha256 of bytes that a person took for good, whatever their checksum says.
            most_bytes: Size that such a zip has at most; never more than ``MARKET_DATA_MAX_ZIP_MB``.

        Raises:
            ChecksumError: it does not match in the second attempt either; carries the bytes.
            NetworkError: no whole answer, or one that is neither a zip nor what the checksum says.
        """
        if most_bytes is None or most_bytes > self._most_bytes:
            kind = Kind(f"a zip (by {PREFIX}MAX_ZIP_MB)", self._most_bytes, big=True)
        else:
            kind = Kind("a zip of this series", most_bytes, big=True)
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
        self, path: str, kind: Kind, admit: Callable[[int], None] | None
    ) -> ArchiveFile | ChecksumError | None:
        answer = _found(self._files.get(path, kind, admit=admit))
        if answer is None:
            return None
        sha256 = hashlib.sha256(answer.body).hexdigest()
        published = _found(self._files.get(f"{path}.CHECKSUM", _CHECKSUM))
        stated = None if published is None else _stated_sha256(published)
        if stated != sha256 and (instead := _instead_of_zip(answer)):
            raise NetworkError(instead)
        if published is not None and stated is None:
            raise NetworkError(f"{published.said} instead of a checksum. {CHECK_NETWORK}")
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
                f"{name} does not match its published checksum: {name}.CHECKSUM says {stated}, the bytes have "
                f"{sha256}. Binance may mend it: backfill the day again later.",
                file,
                stated,
            )
        return file

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a prefix (which ends with a slash).

        Raises:
            NetworkError: no whole listing came.
        """
        return [folder for page in self._pages(prefix) for folder in page.folders]

    def list_files(self, prefix: str) -> list[ListedFile]:
        """All files whose path begins with a prefix and has no further slash, in the listing's order.

        Raises:
            NetworkError: no whole listing came.
        """
        return [file for page in self._pages(prefix) for file in page.files]

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
            f"The listing of {prefix} at {self._listing.url} has more than {MOST_PAGES} pages, the last of them from "
            f"{marker!r} on. Check {PREFIX}VISION_LISTING_URL."
        )

    def _page(self, prefix: str, marker: str, after: str) -> Page:
        answer = self._listing.get("", _LISTING, {"delimiter": "/", "prefix": prefix, "marker": marker})
        if answer.status != OK or answer.is_html:
            raise NetworkError(f"{answer.said} instead of an S3 listing. {_CHECK_LISTING}")
        try:
            return read_page(answer.body, prefix, after)
        except ValueError as error:
            raise NetworkError(
                f"{answer.url}{answer.route} answered no S3 listing that can be used: {error}. {_CHECK_LISTING}"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._files.close()
        self._listing.close()


def _found(answer: Answer) -> Answer | None:
    """An answer with a file; None where the archive says that it has none.

    Raises:
        NetworkError: it says neither.
    """
    if answer.status == OK:
        return answer
    # A 403 with a web page is a firewall or a proxy that talks to people; S3 answers XML.
    if answer.status in ABSENT and not (answer.status == FORBIDDEN and answer.is_html):
        return None
    raise NetworkError(f"{answer.said}. Try again later.")


def _stated_sha256(answer: Answer) -> str | None:
    found = re.match(rb"\s*([0-9a-fA-F]{64})(\s|$)", answer.body)
    return found[1].decode().lower() if found else None


def _instead_of_zip(answer: Answer) -> str | None:
    """What came instead of a zip, in words; None where it is one, from its beginning to its end."""
    if not answer.body.startswith(b"PK"):
        return f"{answer.said} instead of a zip. {CHECK_NETWORK}"
    if not zipfile.is_zipfile(io.BytesIO(answer.body)):
        return f"{answer.url}{answer.route} was cut short: its {len(answer.body):,} bytes lack the end of a zip."
    return None


def _etag(answer: Answer) -> str | None:
    """The ETag without quotes; None where there is none, or none that can be."""
    found = re.fullmatch(r'(?:W/)?"?([\x21\x23-\x7e]{1,200})"?', answer.headers.get("ETag", "").strip())
    return found[1] if found else None


def _last_modified(answer: Answer) -> str | None:
    text = answer.headers.get("Last-Modified", "")
    try:
        parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return text if len(text) < 64 and text.isascii() and text.isprintable() else None
