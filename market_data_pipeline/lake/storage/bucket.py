"""Requests to a bucket over S3: bounded retries, and errors in words. Names of the lake belong to ``objects.py``.

Endpoint, region and keys come from the variables that all tools of AWS read.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa

from market_data_pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

_RETRIES = 8
_RETRY_SECONDS = 90
"""Time after which a request is not tried again. Together with the last try it takes less than three minutes."""
_TRY_SECONDS = 60
_CONNECT_SECONDS = 5
_CONDITIONAL_TRIES = 3
"""Tries of a conditional write to which no answer came. The library does not repeat those."""
PAGE_OBJECTS = 1000
"""Objects in one answer of a listing."""


class StoredObject(NamedTuple):
    """An object in a listing.

    Attributes:
        name: Its name in the bucket.
        bytes: Its size.
        modified_ns: Time of its last change, in nanoseconds since 1970, by the store's clock.
        etag: Opaque text that changes with its content.
    """

    name: str
    bytes: int
    modified_ns: int
    etag: str


class ConditionError(Exception):
    """A conditional write was refused: another process wrote the object."""


_T = TypeVar("_T")


class Bucket:
    """A bucket.

    Attributes:
        requests: Number of requests by kind. Retries do not count.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: Counter[str] = Counter()
        self._store = _connected(name)

    def get(self, name: str) -> tuple[bytes, StoredObject]:
        """Read an object.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store does not answer.
        """
        import obstore

        def got() -> tuple[bytes, StoredObject]:
            answer = obstore.get(self._store, name)
            return bytes(answer.bytes()), _stored(answer.meta)

        return self._asked("get", name, got)

    def get_changed(self, name: str, etag: str | None) -> tuple[bytes, StoredObject] | None:
        """Read an object; None if it still has this tag.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store does not answer.
        """
        import obstore
        from obstore.exceptions import NotModifiedError

        def got() -> tuple[bytes, StoredObject] | None:
            try:
                answer = obstore.get(self._store, name, options={"if_none_match": etag} if etag else None)
            except NotModifiedError:
                return None
            return bytes(answer.bytes()), _stored(answer.meta)

        return self._asked("get", name, got)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Read a part of an object."""
        import obstore

        return self._asked("get", name, lambda: bytes(obstore.get_range(self._store, name, start=start, length=length)))

    def head(self, name: str) -> StoredObject | None:
        """Return size, time and tag of an object; None if there is none."""
        import obstore

        with suppress(FileNotFoundError):
            return self._asked("head", name, lambda: _stored(obstore.head(self._store, name)))
        return None

    def put(self, name: str, data: bytes | pa.Buffer, *, if_match: str | None = None, create: bool = False) -> str:
        """Write an object in one request, and return its tag.

        A conditional write is done if the object has exactly these bytes afterwards: the answer to it may get lost.

        Raises:
            ConditionError: The object is another one than ``if_match``, or exists although ``create`` is true.
            StorageError: The store does not answer, or refuses.
        """
        import obstore

        mode: Any = "create" if create else {"e_tag": if_match} if if_match else "overwrite"
        body = data if isinstance(data, bytes) else data.to_pybytes()

        def written() -> str:
            return str(obstore.put(self._store, name, body, mode=mode, use_multipart=False)["e_tag"])

        for left in reversed(range(_CONDITIONAL_TRIES)):
            try:
                return self._asked("put", name, written)
            except FileNotFoundError as error:  # the object of `if_match` was removed
                raise ConditionError(f"Another process has removed s3://{self.name}/{name}.") from error
            except (StorageError, ConditionError) as error:
                if mode == "overwrite":
                    raise
                with suppress(FileNotFoundError):
                    there, found = self.get(name)
                    if there == body:
                        return found.etag
                if isinstance(error, ConditionError) or not left:
                    raise
        raise AssertionError

    def pages(self, folder: str, after: str | None = None) -> Iterator[list[StoredObject]]:
        """Yield all objects below a folder in pages, ordered by name.

        Args:
            after: Name in the bucket after which to begin.
        """
        import obstore

        pages = obstore.list(self._store, folder or None, offset=after, chunk_size=PAGE_OBJECTS)
        done = object()
        while True:
            page: Any = self._asked("list", folder, lambda: next(pages, done))
            if page is done:
                return
            yield [_stored(one) for one in page]
            if len(page) < PAGE_OBJECTS:
                return

    def list_folder(self, folder: str) -> tuple[list[str], list[StoredObject]]:
        """Return the names of the folders in a folder, and its objects."""
        import obstore

        found = self._asked("list", folder, lambda: obstore.list_with_delimiter(self._store, folder or None))
        return [str(name) for name in found["common_prefixes"]], [_stored(one) for one in found["objects"]]

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects. They may be missing."""
        import obstore

        with suppress(FileNotFoundError):
            if names:
                self._asked("delete", names[0], lambda: obstore.delete(self._store, list(names)))

    def copy(self, source: str, to: str) -> None:
        """Copy an object within the bucket."""
        import obstore

        self._asked("put", source, lambda: obstore.copy(self._store, source, to))

    def check_conditions(self, folder: str) -> None:
        """Write an object on conditions that are false, to see that the store refuses.

        Raises:
            StorageError: The store ignores conditions, so two writers would overwrite each other.
        """
        name = "/".join(filter(None, (folder, f".probe-{secrets.token_hex(8)}")))
        self.put(name, b"1", create=True)
        other: Any = {"e_tag": '"0123456789abcdef0123456789abcdef"'}
        conditions: list[tuple[str, Any]] = [("If-None-Match", "create"), ("If-Match", other)]
        try:
            ignored = [header for header, mode in conditions if not self._refuses(name, mode)]
        finally:
            self.delete([name])
        if ignored:
            raise StorageError(
                f"The store at {endpoint()} ignores {' and '.join(ignored)}, so two writers would overwrite each "
                "other's ledgers. Use a store with conditional writes, such as S3, R2, MinIO or SeaweedFS 4."
            )

    def _refuses(self, name: str, mode: Any) -> bool:
        import obstore

        try:
            self._asked("put", name, lambda: obstore.put(self._store, name, b"2", mode=mode, use_multipart=False))
        except ConditionError:
            return True
        return False

    def _asked(self, kind: str, name: str, ask: Callable[[], _T]) -> _T:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        self.requests[kind] += 1
        try:
            return ask()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(_NO_BUCKET.format(bucket=self.name, endpoint=endpoint())) from None
            raise
        except (AlreadyExistsError, PreconditionError) as error:
            raise ConditionError(f"Another process has written s3://{self.name}/{name}.") from error
        except (BaseError, OSError) as error:
            raise StorageError(self._in_words(name, str(error))) from error

    def _in_words(self, name: str, text: str) -> str:
        where = f"s3://{self.name}/{name} cannot be used"
        for signs, words in _CAUSES:
            if any(sign in text for sign in signs):
                return f"{where}: {words.format(bucket=self.name, endpoint=endpoint())}"
        return f"{where} ({text.splitlines()[0][:300]}). Check the store at {endpoint()} and start again."


_NO_BUCKET = "The bucket {bucket} does not exist at {endpoint}. Create it, or correct MARKET_DATA_DIR."

_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("NoSuchBucket",), _NO_BUCKET),
    (
        ("RequestTimeTooSkewed",),
        "the clock of this machine differs from the store's by more than it allows. Set the clock and start again.",
    ),
    (
        (
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "301 Moved",
            "IllegalLocationConstraint",
            "incorrectly configured region",
        ),
        "the bucket {bucket} is in another region. Set AWS_REGION to its region.",
    ),
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "401 Unauthorized"),
        (
            "the store at {endpoint} refuses the keys. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN."
        ),
    ),
    (
        ("AccessDenied", "403 Forbidden", "privileges"),
        "the keys may not do that in the bucket {bucket}. Allow them to read, write, list and delete objects.",
    ),
    (
        ("SlowDown", "503 Service Unavailable", "429 Too Many"),
        (
            "the store at {endpoint} refuses so many requests, also after pauses. Start again later, with fewer runs "
            "at the same time."
        ),
    ),
    (
        ("169.254.169.254",),
        "there are no keys. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    ),
    (
        ("error sending request", "Connect", "timed out", "dns", "connection"),
        "the store at {endpoint} does not answer. Check AWS_ENDPOINT_URL and the network, and start again.",
    ),
)
"""Parts of the store's answers, and what to do about them."""


def endpoint() -> str:
    """Return the address of the store, for messages."""
    return _address() or "AWS"


def _address() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")


def _connected(bucket: str) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise UsageError(
            f"A lake in the bucket {bucket} needs obstore. Install it with `pip install 'market-data-pipeline[s3]'`."
        ) from error
    options: dict[str, Any] = {"virtual_hosted_style_request": False} if _address() else {}
    if (address := _address()) is not None:
        options["endpoint"] = address
    if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
        options["region"] = "us-east-1"
    return S3Store(
        bucket,
        **options,
        client_options={
            "allow_http": True,
            "timeout": timedelta(seconds=_TRY_SECONDS),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        },
        retry_config={
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
            "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15), "base": 2},
        },
    )


def _stored(meta: Any) -> StoredObject:
    modified: datetime = meta["last_modified"]
    whole = int(modified.timestamp()) * 1_000_000_000 + modified.microsecond * 1000
    return StoredObject(str(meta["path"]), int(meta["size"]), whole, str(meta["e_tag"] or whole))
