"""The command `market-data live` before it connects to anything."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main


def test_without_the_extra_a_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("market_data_pipeline.live") or "websocket" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    result = CliRunner().invoke(main, ["live"])
    assert result.exit_code == 2
    assert 'needs the package msgspec: pip install "market-data-pipeline[live]"' in result.output
    assert "Traceback" not in result.output
