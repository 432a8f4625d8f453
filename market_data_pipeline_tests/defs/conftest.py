from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from market_data_pipeline_tests.defs.fakes import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Definitions of a small universe over an empty folder, with an instance that keeps nothing."""
    project = Project(tmp_path)
    with project.instance:
        yield project
