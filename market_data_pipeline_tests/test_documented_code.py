"""The code of the documentation runs: every block of Python, SQL and shell on every page, on generated exchanges.

A block ``text`` after a block is its output, ``…`` in it stands for anything. A block that cannot run has a comment
``<!-- not run: reason -->`` on the line above; ``NOT_RUN`` counts them. To accept changed answers of SQL, run these
tests with ``UPDATE_SNAPSHOTS=1``. They write the answers into the page.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from market_data_pipeline import MarketData, clock
from market_data_pipeline.cli import main
from market_data_pipeline.defs.in_process import run_ingest
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.reconciliation.record import write_reconciled
from market_data_pipeline.sandbox import (
    DEFAULT_SYMBOLS,
    MarketOutage,
    MissingRows,
    QuietSymbol,
    Sandbox,
    WrongChecksum,
)
from market_data_pipeline.settings import PREFIX
from market_data_pipeline_tests.support.documents import DOCS, PROJECT, RUNNABLE, Block, blocks, pages
from market_data_pipeline_tests.support.processes import MARKET_DATA, until
from market_data_pipeline_tests.support.processes import running as running_process
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

pytestmark = pytest.mark.slow

FEW_TRADES = tuple(replace(symbol, trades_per_day=200) for symbol in DEFAULT_SYMBOLS if symbol.symbol == "BTCUSDT")
NOW = clock.now
ON_THE_LAKE = pytest.mark.xdist_group("documented code")

NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "README.md": 2,
    "docs/concepts/reconciliation.md": 1,
    "docs/development/performance.md": 1,
    "docs/guides/automation.md": 1,
    "docs/guides/buckets.md": 3,
    "docs/guides/drop-in.md": 3,
    "docs/guides/iceberg.md": 6,
    "docs/guides/importing.md": 1,
    "docs/guides/live.md": 3,
    "docs/guides/operating.md": 5,
    "docs/guides/scaling.md": 3,
    "docs/guides/serving.md": 2,
    "docs/quickstart.md": 1,
    "examples/README.md": 1,
}
"""Numbers of blocks that need a network, a service or a person. A new one needs a reason in its page."""

OTHER_LANGUAGES = {"fish", "ini", "json", "mermaid", "text", "yaml", "zsh"}

FROM_AN_EMPTY_FOLDER = {"README.md": DEFAULT_SYMBOLS, "docs/quickstart.md": FEW_TRADES}
"""Pages whose first command starts in an empty folder, with the symbols of their exchange. All others have the lake."""

DOCUMENT = DOCS / "reference" / "sql.md"
BLOCK = re.compile(r"^```sql\n(?P<query>.*?)^```\n(?:\n(?P<answer>\|.*?\n)(?=\n|\Z))?", re.DOTALL | re.MULTILINE)
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 1h, 1d], from: 2026-03-01}
    aggTrades: {from: 2026-03-03}
  - market: spot
    symbols: [ETHUSDT]
    klines: {intervals: [1h, 1d], from: 2026-03-01}
  - market: um
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m], from: 2026-03-02}
  - market: um
    symbols: [ETHUSDT]
    fundingRate: {from: 2026-03-02}
    metrics: {from: 2026-03-03}
    trades: {from: 2026-03-03}
    bookDepth: {from: 2026-03-03}
    markPriceKlines: {intervals: [1h], from: 2026-03-03}
    indexPriceKlines: {intervals: [1h], from: 2026-03-03}
"""
FAULTS = (
    MarketOutage(start=utc("2026-03-03T10:00"), end=utc("2026-03-03T10:20"), series="/spot/"),
    MarketOutage(start=utc("2026-03-03T14:00"), end=utc("2026-03-03T14:19"), series="/um/"),
    QuietSymbol(start=utc("2026-03-02T05:00"), end=utc("2026-03-02T05:03"), series="^binance/um/.*/ETHUSDT"),
    MissingRows(
        start=utc("2026-03-02T08:00"), end=utc("2026-03-02T08:12"), series="spot/klines/BTCUSDT/1m", where="archive"
    ),
    WrongChecksum(path="spot/.*ETHUSDT-1h-2026-03-02"),
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five days of a made-up exchange with an outage in each market, a quiet symbol, a lack and a wrong checksum."""
    root = tmp_path_factory.mktemp("documented") / "data"
    with pytest.MonkeyPatch.context() as patch, Sandbox() as sandbox:
        patch.setenv("DAGSTER_HOME", str(root / "dagster"))
        world = World(root, sandbox, patch)
        world.at("2026-03-05T12:00:30")
        universe = root.parent / "universe.yaml"
        universe.write_text(UNIVERSE)
        world.set(universe=universe)
        patch.setenv("MARKET_DATA_UNIVERSE", str(universe))
        for fault in FAULTS:
            sandbox.faults.add(fault)
        spot = days("2026-03-01", "2026-03-05")
        wanted = dict.fromkeys((klines("BTCUSDT", "1m"), klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h")), spot)
        wanted |= dict.fromkeys((klines("BTCUSDT", "1d"), klines("ETHUSDT", "1d")), spot[:4])
        wanted |= {klines(symbol, "1m", "um"): spot[1:4] for symbol in ("BTCUSDT", "ETHUSDT")}
        wanted |= {agg_trades("BTCUSDT"): spot[2:4]}
        wanted |= {SeriesKey(EXCHANGE, Market.UM, DataType.FUNDING_RATE, "ETHUSDT"): spot[1:4]}
        for one_day in (DataType.METRICS, DataType.TRADES, DataType.BOOK_DEPTH):
            wanted |= {SeriesKey(EXCHANGE, Market.UM, one_day, "ETHUSDT"): spot[2:3]}
        for prices in (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES):
            wanted |= {SeriesKey(EXCHANGE, Market.UM, prices, "ETHUSDT", "1h"): spot[2:4]}
        report = run_ingest(world.settings, wanted, profiles=True, coverage=True)
        assert [str(failure.day) for failure in report.failures] == ["2026-03-02"]
        reconcile(Layout(root))
        if os.environ.get("UPDATE_SNAPSHOTS"):
            write_answers(root)
        yield root


def reconcile(layout: Layout) -> None:
    """Put one compared day on record."""
    key, source, day = klines("BTCUSDT", "1h"), klines("BTCUSDT", "1m"), date(2026, 3, 3)
    of_klines, of_source = (Ledger.read(layout.ledger(one)).rows[day].content_sha256 for one in (key, source))
    at = clock.naive_utc(utc("2026-03-04T11:00"))
    compared = DayReconciled(day, str(source), of_klines, of_source, at, bars=24, differing=0, explained=0)
    write_reconciled(layout.reconciled(key), [compared])


def text(value: Any) -> str:
    """A value as it stands in a table of the document."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


market_of = cache(MarketData)
"""The lake as its readers have it: it makes its views once, for all queries."""


def answer_of(query: str, root: Path) -> list[list[Any]]:
    """The names of the columns, then the rows."""
    table = market_of(root).sql(query).arrow()
    return [table.column_names, *([*row.values()] for row in table.to_pylist())]


def as_markdown(answer: Sequence[Sequence[Any]]) -> str:
    head, *rows = ["| " + " | ".join(text(value).replace("|", r"\|") for value in row) + " |" for row in answer]
    return "\n".join([head, "|" + "---|" * len(answer[0]), *rows]) + "\n"


def write_answers(root: Path) -> None:
    """Put into the document what its queries answer now."""

    def answered(found: re.Match[str]) -> str:
        return f"```sql\n{found['query']}```\n\n{as_markdown(answer_of(found['query'], root))}"

    DOCUMENT.write_text(BLOCK.sub(answered, DOCUMENT.read_text("utf-8")), "utf-8")


def same(shown: str, value: Any) -> bool:
    """Whether a value is the one that is shown; sums of floats may differ in the last places."""
    if isinstance(value, float):
        return math.isclose(float(shown), value, rel_tol=1e-6)
    return shown == text(value)


def queries() -> list[re.Match[str]]:
    return list(BLOCK.finditer(DOCUMENT.read_text("utf-8")))


@ON_THE_LAKE
@pytest.mark.parametrize("number", range(len(queries())))
def test_every_query_has_the_answer_that_is_shown(lake: Path, number: int) -> None:
    found = queries()[number]
    shown = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (found["answer"] or "").splitlines()
    ]
    names, *rows = answer_of(found["query"], lake)
    assert rows
    assert shown[0] == names
    assert len(shown) - 2 == len(rows)
    for cells, row in zip(shown[2:], rows, strict=True):
        assert all(same(cell, value) for cell, value in zip(cells, row, strict=True)), (cells, row)


def test_page_of_sql_has_nothing_else_to_run() -> None:
    assert [block.language for block in blocks(DOCUMENT) if block.runs] == ["sql"] * len(queries())


@ON_THE_LAKE
def test_every_schema_view_macro_and_column_is_named(lake: Path) -> None:
    document = DOCUMENT.read_text("utf-8")
    market = market_of(lake)
    tables = market.sql(
        "SELECT schema_name, view_name AS name FROM duckdb_views() WHERE NOT internal UNION ALL "
        "SELECT schema_name, function_name FROM duckdb_functions() WHERE NOT internal AND function_type LIKE '%macro'"
    ).arrow()
    assert tables.num_rows >= 9 + 6 + 4
    for row in tables.to_pylist():
        assert f"`{row['schema_name']}`" in document
        assert f"`{row['name']}" in document or f"`{row['schema_name']}.{row['name']}`" in document, row
    columns = market.sql(
        "SELECT DISTINCT column_name AS name FROM duckdb_columns() WHERE NOT internal ORDER BY name"
    ).arrow()
    assert [name for name in columns["name"].to_pylist() if f"`{name}`" not in document] == []


# --- all other pages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Somebody who runs the blocks of a page one after another, in one folder.

    Attributes:
        folder: The current folder.
        sandbox: What stands in for Binance.
        names: The names that the Python blocks have set.
        processes: True if ``market-data`` runs in a shell, as it does for somebody who reads the page.
    """

    folder: Path
    sandbox: Sandbox
    names: dict[str, Any]
    processes: bool = False

    def run(self, block: Block) -> str:
        """Run a block and return what it printed."""
        if block.language == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile(block.code, f"{block.page}:{block.line}", "exec"), self.names)
            return printed.getvalue()
        if block.language == "sql":
            assert duckdb.execute(block.code).fetchall()
            return ""
        return self.shell(block.code)

    def shell(self, code: str) -> str:
        """Run commands of a shell. Those of ``market-data`` alone need neither a shell nor a process of their own."""
        settings = {**self.sandbox.settings_env(), "MARKET_DATA_BUDGET_DIR": str(self.folder / "budget")}
        commands = None if self.processes else calls_of_market_data(code)
        if commands is not None:
            return "".join(self.call(arguments, settings) for arguments in commands)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment |= {**settings, "COLUMNS": "160"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def call(self, arguments: Sequence[str], settings: Mapping[str, str]) -> str:
        """Run ``market-data`` in this process, with the real time."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in {**settings, "COLUMNS": "160", "DAGSTER_HOME": ""}.items():
                patch.setenv(name, value)
            patch.setattr(clock, "now", NOW)
            ended = CliRunner().invoke(main, arguments)
        assert ended.exit_code == 0, ended.output
        return ended.output

    def check(self, block: Block) -> None:
        """Run a block and compare what it prints with the page."""
        if block.language != "console":
            printed = self.run(block)
            if block.output is not None:
                assert_shown(block.output, printed)
            return
        for command in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
            line, _, shown = command.partition("\n")
            assert_shown(shown, self.shell(line))


def calls_of_market_data(code: str) -> list[list[str]] | None:
    """Return the arguments of each call, or None if the code is more than calls of ``market-data``.

    >>> calls_of_market_data('market-data status  # all days\\nmarket-data sql "FROM a\\n LIMIT 1"')
    [['status'], ['sql', 'FROM a\\n LIMIT 1']]
    >>> calls_of_market_data("market-data status | head")
    """
    before, *calls = re.split(r"^market-data ", code, flags=re.MULTILINE)
    if before.strip() or re.search("[|&;<>$`]", code):
        return None
    return [shlex.split(call, comments=True) for call in calls]


def assert_shown(shown: str, printed: str) -> None:
    """Compare lines, without spaces at their ends. ``…`` stands for anything."""
    pattern = "\n".join(re.escape(line.rstrip()).replace("…", ".*") for line in shown.rstrip().splitlines())
    lines = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
    assert re.fullmatch(pattern, lines), f"The page shows\n{shown}\nand this was printed:\n{printed}"


def running(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.runs]


def read_page(page: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run all blocks of a page that can run, compare what they print, and return their number."""
    monkeypatch.chdir(reader.folder)
    blocks = running(page)
    for block in blocks:
        reader.check(block)
    return len(blocks)


@pytest.fixture
def beside_the_lake(lake: Path, tmp_path: Path) -> Iterator[Reader]:
    """A reader in a folder with a copy of the lake and its universe."""
    shutil.copytree(lake, tmp_path / "data")
    shutil.copy(lake.parent / "universe.yaml", tmp_path)
    with Sandbox(now=utc("2026-03-05T12:00:30")) as sandbox:
        yield Reader(tmp_path, sandbox, {})


WITH_CODE = {page.relative_to(PROJECT).as_posix(): page for page in pages() if running(page) and page != DOCUMENT}
NOTEBOOKS = "docs/guides/notebooks.md"
SERVING = "docs/guides/serving.md"


@pytest.mark.parametrize("name", sorted(FROM_AN_EMPTY_FOLDER))
def test_page_runs_from_an_empty_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", NOW)  # the lake of the other pages has a clock that is stopped
    with Sandbox(symbols=FROM_AN_EMPTY_FOLDER[name]) as sandbox:
        reader = Reader(tmp_path, sandbox, {}, processes=name == "README.md")
        assert read_page(WITH_CODE[name], reader, monkeypatch)
        assert len(reader.names["candles"]) >= 30 * 24


@ON_THE_LAKE
@pytest.mark.parametrize("name", sorted(WITH_CODE.keys() - FROM_AN_EMPTY_FOLDER.keys() - {NOTEBOOKS, SERVING}))
def test_code_of_the_page_runs(name: str, beside_the_lake: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "docs/reference/commands.md" and beside_the_lake.shell("echo $BASH_VERSION") < "4.4":
        pytest.skip("The page says that completion needs Bash 4.4.")
    assert read_page(WITH_CODE[name], beside_the_lake, monkeypatch)


@ON_THE_LAKE
def test_guide_to_notebooks_runs(beside_the_lake: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_page(WITH_CODE[NOTEBOOKS], beside_the_lake, monkeypatch)
    names = beside_the_lake.names
    assert len(names["candles"].df()) == 2 * 2 * 24
    assert names["trades"].height > 0
    assert set(names["days"]["state"]) == {"final", "provisional", "failed", "outage", "healed"}
    assert len(names["frame"]) == 4 * 1440 - 20
    assert re.fullmatch("[0-9a-f]{64}", names["cited"])
    (gap,) = names["gaps"]
    assert str(gap).startswith("spot ETHUSDT 1h, 2026-03-02: failed (checksum: ")
    assert set(names["why"]["verdict"]) == {"outage", "healed"}


@ON_THE_LAKE
def test_guide_to_serving_runs(beside_the_lake: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a server on a port that is free. The page has the default port."""
    key = "a-key-of-the-documentation"
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"MARKET_DATA_DIR": str(beside_the_lake.folder / "data"), "MARKET_DATA_API_KEYS": key}

    def is_up() -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    with running_process([MARKET_DATA, "serve", "--port", str(port)], environment, beside_the_lake.folder) as server:
        until(lambda: is_up() or server.poll() is not None, "the server answers", 120)
        monkeypatch.chdir(beside_the_lake.folder)
        for block in running(WITH_CODE[SERVING]):
            code = block.code.replace(":8000", f":{port}").replace("$MARKET_DATA_API_KEYS", key)
            beside_the_lake.check(replace(block, code=code))
    assert len(beside_the_lake.names["trades"]) == 100


# --- what does not run ------------------------------------------------------------------------------------------------


def test_every_block_names_a_known_language() -> None:
    """A block without a language would be run by nobody."""
    known = RUNNABLE | OTHER_LANGUAGES
    found = [f"{block.page}:{block.line}" for page in pages() for block in blocks(page) if block.language not in known]
    assert found == []


def test_blocks_that_do_not_run_are_counted() -> None:
    marked = [block for page in pages() for block in blocks(page) if block.reason]
    assert all(block.language in RUNNABLE for block in marked)
    assert Counter(block.page for block in marked) == NOT_RUN


def test_every_mark_belongs_to_a_block() -> None:
    marks = sum(len(re.findall(r"^<!-- not run", page.read_text("utf-8"), re.MULTILINE)) for page in pages())
    assert marks == sum(NOT_RUN.values())
