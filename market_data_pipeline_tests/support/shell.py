"""``market-data`` as somebody at a shell calls it, in the world of a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from market_data_pipeline.cli import main
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import PREFIX
from market_data_pipeline_tests.support.world import World

MarketData = Callable[..., Result]
"""Runs the command: its arguments, and ``input``, what is typed when it asks."""


def shell(
    world: World, monkeypatch: pytest.MonkeyPatch, universe: str, lock: str | None = None, **settings: str
) -> MarketData:
    """The command, with data in a folder of its own below the world's root, which the world looks at from now on.

    Args:
        world: With the exchange that is asked.
        monkeypatch: For the environment.
        universe: What stands in ``universe.yaml``.
        lock: What stands in its lock file; None writes none.
        settings: Further settings, by their names.
    """
    path = world.root / "universe.yaml"
    path.write_text(universe)
    if lock is not None:
        path.with_name("universe.lock.yaml").write_text(lock)
    world.layout = Layout(world.root / "data")
    world.set(dir=world.layout.root)
    ours = {
        "dir": str(world.layout.root),
        "universe": str(path),
        "budget_dir": str(world.root / "budget"),
        "retry_backoff_seconds": "0.01",
        **settings,
    }
    environment = {f"{PREFIX}{name.upper()}": value for name, value in ours.items()}
    for name, value in (world.sandbox.settings_env() | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", "")

    def run(*arguments: str, input: str | None = None) -> Result:  # noqa: A002 - click's word
        result = CliRunner().invoke(main, arguments, input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return result

    return run
