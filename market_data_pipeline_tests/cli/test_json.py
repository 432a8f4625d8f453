"""``--json``: one shape for every command that lists something."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.cli import main
from market_data_pipeline.cli.console import print_json
from market_data_pipeline.sandbox import ReplacedArchive, WrongChecksum
from market_data_pipeline_tests.support.documents import DOCS, first_cells
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

HOURS, MINUTES, TRADES = klines("BTCUSDT", "1h"), klines("BTCUSDT", "1m"), agg_trades("BTCUSDT")
WEEK = days("2026-02-02", "2026-02-08")
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 1h], from: 2026-02-02}
"""
KEYS = {
    "status": "series collected first last held provisional incomplete failed missing rows bytes",
    "coverage": "series final provisional healed outage incomplete faulty failed missing not_listed doubtful "
    "rows_not_listed rows_healed rows_outage rows_archive_defect rows_unexplained rows_unpublished rows_unconfirmed "
    "rows_suspended rows_quiet",
    "plan": "series days files bytes requests gap_requests minutes disk records listed",
    "report": "series first last available degraded pending missing explained gaps gaps_unexplained replaced compared "
    "differing unexplained",
    "export csv exported": "series first last days rows files gaps gaps_unexplained version",
    "remove BTCUSDT --data --dry-run": "series leaves_universe days first last bytes gone_days gone trouble",
    "import cache": "import path layout series state rows final provisional known compared differing only_cache "
    "only_lake example reason notes",
    "universe show": "series market data_type symbol interval first last",
    "verify --check-only": "kind series first last days archive reason",
    "verify --local": "kind series first last days archive reason",
    "reconcile": "series first last days candles differing explained unexplained",
    "quarantine list": "name series day kind reason refused_at bytes sha256 published_sha256 accepted_by accepted_at "
    "accepted_reason",
    "doctor": "check state text remedy",
}
"""The keys of each command. Scripts read them: adding one is a feature, changing one breaks them."""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command over a lake in which every list has a line: today is 2026-03-06."""
    run = shell(world, monkeypatch, UNIVERSE, retries="0")
    monkeypatch.chdir(world.root)
    world.sandbox.faults.add(
        ReplacedArchive(series=str(HOURS), days=[WEEK[2]], at=utc("2026-03-06T00:00:00"), short_by=0)
    )
    world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1h-2026-02-03"))
    world.ingest(HOURS, WEEK)
    (world.root / "cache").mkdir()
    for name in ("BTC_USDT-1h.feather", "of another tool"):
        (world.root / "cache" / name).write_bytes(b"not a cache")
    world.ingest(MINUTES, WEEK[:1])
    world.at("2026-03-06T12:00:00")
    return run


def rows_of(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("command", KEYS)
def test_json_is_an_array_of_flat_objects(world: World, market_data: MarketData, command: str) -> None:
    if "--local" in command:
        path = world.layout.file(HOURS, WEEK[0])
        path.write_bytes(path.read_bytes()[:-9] + b"other" + path.read_bytes()[-4:])
    plain = market_data(*command.split(), *(["--check-only"] if "--local" in command else []))
    asked = market_data(*command.split(), "--json")
    rows = rows_of(asked.stdout)
    assert rows
    assert asked.exit_code == plain.exit_code
    assert all(" ".join(row) == KEYS[command] for row in rows)
    for row in rows:
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in row)
        for name in {"first", "last"} & set(row):
            assert row[name] is None or str(date.fromisoformat(row[name])) == row[name]
        if "refused_at" in row:
            assert datetime.fromisoformat(row["refused_at"]).utcoffset() is not None


@pytest.mark.parametrize("command", ["verify", "verify --local", "reconcile", "quarantine list", "status", "coverage"])
def test_json_of_an_empty_lake_is_an_array(world: World, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    universe = UNIVERSE if command == "reconcile" else "collect: []\n"
    result = shell(world, monkeypatch, universe)(*command.split(), "--json")
    assert (result.exit_code, rows_of(result.stdout)) == (0, [])


def test_json_names_damaged_archives_and_files(world: World, market_data: MarketData) -> None:
    (replaced,) = rows_of(market_data("verify", "--check-only", "--json").stdout)
    assert replaced == {
        "kind": "replaced",
        "series": str(HOURS),
        "first": "2026-02-04",
        "last": "2026-02-04",
        "days": 1,
        "archive": "BTCUSDT-1h-2026-02-04.zip",
        "reason": None,
    }
    (refused,) = rows_of(market_data("quarantine", "list", "--json").stdout)
    assert (refused["day"], refused["kind"], refused["accepted_by"]) == ("2026-02-03", "checksum", None)
    hours = {row["series"]: row for row in rows_of(market_data("coverage", "--json").stdout)}[str(HOURS)]
    assert (hours["final"], hours["failed"]) == (6, 1)


def test_json_with_a_mistake_prints_nothing_on_stdout(market_data: MarketData) -> None:
    result = market_data("coverage", "DOGEUSDT", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no symbol 'DOGEUSDT'" in result.stderr


def test_notes_go_to_stderr_with_json(world: World, market_data: MarketData, tmp_path: Path) -> None:
    result = market_data("coverage", "--json", "--html", str(tmp_path / "page.html"))
    assert rows_of(result.stdout)
    assert "page.html shows 2 calendars" in result.stderr


def test_commands_page_names_every_command_with_json() -> None:
    def commands(group: click.Group, *above: str) -> dict[str, click.Command]:
        found: dict[str, click.Command] = {}
        for name, one in group.commands.items():
            path = (*above, name)
            found |= commands(one, *path) if isinstance(one, click.Group) else {" ".join(path): one}
        return found

    with_json = {name for name, one in commands(main).items() if any("--json" in p.opts for p in one.params)}
    assert with_json == first_cells(DOCS / "reference" / "commands.md", after="## JSON")
    assert with_json == {known for known in with_json if any(name.startswith(known) for name in KEYS)} | {
        "sql",
        "retain",
    }


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=3),
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.floats(),
                st.text(),
                st.dates(),
                st.datetimes(),
                st.decimals(),
            ),
        ),
        max_size=4,
    )
)
def test_any_row_is_valid_json(rows: list[dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(click, "echo", lambda text, nl=True: said.append(text))
        print_json(rows)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads("".join(said), parse_constant=refuse)
    assert [list(row) for row in found] == [list(row) for row in rows]
    for row, read in zip(rows, found, strict=True):
        for name, value in row.items():
            if isinstance(value, date):
                assert read[name] == value.isoformat()
            elif isinstance(value, str | int):
                assert read[name] == value
