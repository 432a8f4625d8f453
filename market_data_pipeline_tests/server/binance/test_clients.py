"""Real clients of Binance read ``market-data serve`` by changing one URL, and get the sandbox's own numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.model.series import Market
from market_data_pipeline_tests.clients import HERE, run_client
from market_data_pipeline_tests.server.binance.conftest import BEGIN, END, HOUR, SYMBOLS, Twins, plain
from market_data_pipeline_tests.server.test_serve import answers, free_port
from market_data_pipeline_tests.support.documents import DOCS, blocks, blocks_of
from market_data_pipeline_tests.support.processes import MARKET_DATA, running, until

pytestmark = [pytest.mark.clients, pytest.mark.slow]

GUIDE = DOCS / "guides" / "drop-in.md"
DOCUMENTED_URL = "http://127.0.0.1:8000"
SPAN = (str(BEGIN), str(END - 1))
SAMPLES = 8
"""Field of price candles with the number of samples, which the lake does not store."""

DOWNLOADED = (END - 24 * HOUR) * 1000
"""End of the range that freqtrade downloads, in microseconds. Its pages go on beyond, and it drops the last candle."""


@pytest.fixture(scope="module")
def url(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server over the lake."""
    port = free_port()
    environment = os.environ | {
        "MARKET_DATA_DIR": str(twins.root),
        "MARKET_DATA_UNIVERSE": str(twins.root / "universe.yaml"),
    }
    folder = tmp_path_factory.mktemp("serve")
    with running([MARKET_DATA, "serve", "--port", str(port)], environment, folder) as process:
        until(lambda: answers(port) or process.poll() is not None, "the server answers", 120)
        yield f"http://127.0.0.1:{port}"


def both(tool: str, script: str, url: str, twins: Twins) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a script prints for the server and for the sandbox."""
    return run_client(tool, script, url, *SPAN), run_client(tool, script, twins.sandbox.url, *SPAN)


def test_python_binance_gets_the_same_numbers(twins: Twins, url: str) -> None:
    served, own = both("binance", "read_python_binance.py", url, twins)
    assert served["errors"] == {"unknown": [400, -1121], "order": [403, -2015], "account": [403, -2015]}
    mine, theirs = served["found"], own["found"]
    assert mine.pop("spot symbols") == [SYMBOLS[Market.SPOT]]
    assert theirs.pop("spot symbols")
    for found in (mine, theirs):
        found["um mark"] = [[*row[:SAMPLES], *row[SAMPLES + 1 :]] for row in found["um mark"]]
    assert (len(mine["spot 1m"]), len(mine["um 1m"]), len(mine["spot trades"])) == (4320, 4320, 1500)
    assert plain(mine) == plain(theirs)


def test_official_sdk_gets_the_same_numbers(twins: Twins, url: str) -> None:
    served, own = (one["found"] for one in both("binance", "read_binance_sdk.py", url, twins))
    assert (len(served["klines"]), len(served["trades"])) == (1000, 1000)
    assert served.pop("symbols") == [SYMBOLS[Market.SPOT]]
    assert own.pop("symbols")
    assert plain(served) == plain(own)


def test_ccxt_gets_the_same_numbers_in_three_markets(twins: Twins, url: str) -> None:
    served, own = both("ccxt", "read_ccxt.py", url, twins)
    mine, theirs = served["found"], own["found"]
    assert mine.pop("symbols") == ["BTC/USD:BTC", "SOL/USDT", "SOL/USDT:USDT"]
    assert theirs.pop("symbols")
    for market in SYMBOLS:
        assert (len(mine[f"{market} 1m"]), len(mine[f"{market} 1h"])) == (1000, 48)
        assert mine[f"{market} trades"]
    assert mine == theirs
    assert served["errors"]["account"][0] == "AuthenticationError"
    [kind, text] = served["errors"]["before"]
    assert kind == "BadRequest"
    assert "It is stored from 2026-03-02 to 2026-03-04." in text


def test_freqtrade_downloads_the_same_numbers(twins: Twins, url: str, tmp_path: Path) -> None:
    [config] = blocks_of(GUIDE, "json", after="### freqtrade")[:1]
    results: list[dict[str, Any]] = []
    for address in (url, twins.sandbox.url):
        folder = tmp_path / f"downloads-{len(results)}"
        folder.mkdir()
        (folder / "guide.json").write_text(config.replace(DOCUMENTED_URL, address))
        results.append(run_client("freqtrade", "read_freqtrade_download.py", str(folder), "20260302-20260304"))
    served, own = results
    assert served["codes"] == own["codes"] == {"spot": 0, "futures": 0}
    mine, theirs = (
        {name: [row for row in rows if row[0] < DOWNLOADED] for name, rows in one["found"].items()}
        for one in (served, own)
    )
    assert set(mine) == {
        *("SOL_USDT-1m.feather", "SOL_USDT-1h.feather"),
        *("SOL_USDT_USDT-1m-futures.feather", "SOL_USDT_USDT-1h-futures.feather"),
        *("SOL_USDT_USDT-1h-mark.feather", "SOL_USDT_USDT-1h-funding_rate.feather"),
    }
    assert (len(mine["SOL_USDT-1m.feather"]), len(mine["SOL_USDT-1h.feather"])) == (2880, 48)
    assert mine == theirs


@pytest.mark.parametrize(
    ("tool", "heading"), [("binance", "python-binance"), ("binance", "binance-sdk-spot"), ("ccxt", "ccxt")]
)
def test_snippets_of_the_guide_run(tool: str, heading: str, url: str, tmp_path: Path) -> None:
    """With the address of this server and SOL in place of BTC, which this lake has. The version is the tested one."""
    [code, *_] = [block for block in blocks(GUIDE) if block.line > line_of(f"### {heading}")]
    text = code.code.replace(DOCUMENTED_URL, url).replace("BTC", "SOL")
    lines = [
        f"lines.append({line[len('print(') : -1]})" if line.startswith("print(") else line for line in text.splitlines()
    ]
    script = tmp_path / "snippet.py"
    script.write_text("\n".join(["import json", "lines = []", *lines, "print(json.dumps(lines))"]))
    assert code.output is not None
    assert [str(one) for one in run_client(tool, str(script))] == code.output.splitlines()


def test_guide_names_the_tested_versions() -> None:
    headings = re.findall(r"^### (\S+) (\S+)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    required = "".join(path.read_text() for path in HERE.glob("requirements-*.txt"))
    assert {f"{name}=={version}" for name, version in headings} <= set(required.split())


def line_of(text: str) -> int:
    """Return the number of the line of the guide that begins with a text."""
    return next(number for number, line in enumerate(GUIDE.read_text("utf-8").splitlines(), 1) if line.startswith(text))
