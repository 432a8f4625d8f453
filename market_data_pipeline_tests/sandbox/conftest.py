from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import requests

from market_data_pipeline.sandbox import Sandbox

NOW = datetime(2025, 3, 1, 12, 30, 15, tzinfo=UTC)


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(now=NOW) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    """A sandbox whose clock stands at ``NOW``, without faults."""
    yield running
    running.faults.clear()
    running.clear_requests()
    running.weights.reset()
    running.set_time(NOW)


@pytest.fixture
def get(sandbox: Sandbox) -> Iterator[Callable[..., requests.Response]]:
    """GET a path of the sandbox."""
    with requests.Session() as session:
        yield lambda path, **kwargs: session.get(sandbox.url + path, timeout=120, **kwargs)


def csv_rows(zipped: bytes) -> list[list[str]]:
    """The rows of the only CSV in a zip, without header, read by Python's own csv module."""
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.testzip() is None
        (name,) = archive.namelist()
        rows = list(csv.reader(io.StringIO(archive.read(name).decode())))
    return rows if rows[0][0].isdigit() else rows[1:]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
