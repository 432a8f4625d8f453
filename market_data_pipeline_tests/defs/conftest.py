from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from market_data_pipeline_tests.support.fakes import OPENED, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Definitions of a small universe over an empty folder, with an instance that keeps nothing."""
    return Project(tmp_path)


@pytest.fixture(autouse=True)
def _instances_are_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().dispose()
