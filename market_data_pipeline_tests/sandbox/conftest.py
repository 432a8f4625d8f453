from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

import market_data_pipeline
from market_data_pipeline.sandbox import Sandbox

NOW = datetime(2025, 3, 1, 12, 30, 15, tzinfo=UTC)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Recorded Binance data; see its README."""
    folder = Path(market_data_pipeline.__file__).parents[2] / "shared" / "realdata"
    if not folder.is_dir():
        pytest.skip(f"recorded data are not there: {folder}")
    return folder


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
        yield lambda path, **kwargs: session.get(sandbox.url + path, timeout=30, **kwargs)


def csv_rows(zipped: bytes) -> list[list[str]]:
    """The rows of the only CSV in a zip, without header, read by Python's own csv module."""
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.testzip() is None
        (name,) = archive.namelist()
        rows = list(csv.reader(io.StringIO(archive.read(name).decode())))
    return rows if rows[0][0].isdigit() else rows[1:]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
