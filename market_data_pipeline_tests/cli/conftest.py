"""The world of commands: few trades a day, since most of a day's cost is in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline_tests.support.world import World, symbols_with


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A sandbox with generated data, at noon of 2026-03-05. A module that needs more trades sets ``TRADES_A_DAY``."""
    with Sandbox(symbols=symbols_with(getattr(request.module, "TRADES_A_DAY", 1_500))) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        yield world
