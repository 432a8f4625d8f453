"""A data folder of an earlier release opens, syncs and verifies without a download, and every day stays what it was.

The folder has days with each kind of finding. ``releases/README.md`` says how it was made, and what to do if a change
of the sandbox makes its archives look replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from market_data_pipeline import MarketData
from market_data_pipeline.defs.keys import asset_key_of, renamed
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import quarantine
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox import GeneratedSymbol, Sandbox
from market_data_pipeline.sandbox.faults import fault_from_json
from market_data_pipeline_tests.support.shell import MarketData as Command
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, agg_trades, klines

RELEASE = Path(__file__).parents[1] / "releases" / "0.1.0"

FAULT, FAULT_TRADES = klines("FAULTUSDT", "1h"), agg_trades("FAULTUSDT")
ONE, TWO = klines("ONEUSDT", "1h", "um"), klines("TWOUSDT", "1h", "um")
ONLY, ONLY_TRADES = klines("ONLYUSD_PERP", "1h", "cm"), agg_trades("ONLYUSD_PERP", "cm")

COLUMNS = {
    (ONLY, "2026-03-02"): ("no_other_series", False),
    (ONLY, "2026-03-03"): ("no_other_series", False),
    (ONLY, "2026-03-04"): ("market_not_compared", False),
    (ONLY_TRADES, "2026-03-05"): ("weight_spent", True),
    (FAULT_TRADES, "2026-02-25"): ("", True),
    (FAULT_TRADES, "2026-03-03"): ("", True),
    (FAULT, "2026-02-24"): ("traded", True),
    (FAULT, "2026-02-25"): ("", True),
    (FAULT, "2026-03-04"): ("provisional", True),
    (klines("GONEUSDT", "1m"), "2026-03-01"): ("no_other_series", False),
    (klines("GONEUSDT", "1m"), "2026-03-02"): ("no_other_series", False),
    (klines("SMALLUSDT", "1h"), "2026-02-20"): ("no_other_series", False),
    (ONE, "2026-02-27"): ("", True),
    (TWO, "2026-02-27"): ("", True),
    (TWO, "2026-02-28"): ("traded", True),
}
"""The columns ``bases`` and ``retry`` of each day that has anything in them."""

PLACE = ("exchange", "market", "data_type", "symbol", "interval", "day")
SETTLED = ("final", "outage", "healed")


@dataclass(frozen=True)
class Folder:
    """The data folder of the release.

    Attributes:
        world: The sandbox that the folder was filled from, at the moment at which it was left.
        run: Today's command ``market-data``.
        said: What the release read in the folder, and what its next commands requested and changed.
    """

    world: World
    run: Command
    said: Mapping[str, Any]

    @property
    def root(self) -> Path:
        return self.world.layout.root

    def sql(self, query: str) -> Any:
        result = self.run("sql", "--json", query)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def days(self) -> list[dict[str, Any]]:
        """Return what each day is, in the columns that the release had."""
        named = ", ".join(f'"{name}"' for name in self.said["days"][0])
        return list(self.sql(f"SELECT {named} FROM quality.coverage ORDER BY ALL"))

    def runs(self) -> int:
        """Return the number of runs that Dagster has on record."""
        with closing(sqlite3.connect(self.root / "dagster" / "history" / "runs.db")) as database:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])

    def settled(self) -> set[str]:
        """Return the zips of days that were final and complete, such as ``spot BTCUSDT-1h-2026-03-01.zip``."""
        return {
            f"{one['market']} {one['symbol']}-{one['interval'] or one['data_type']}-{one['day']}.zip"
            for one in self.said["days"]
            if one["outcome"] == "held" and one["state"] in SETTLED
        }

    def zips_requested(self) -> set[str]:
        """Return the zips that were requested since the last ``forget``, by the same names."""
        paths = (path.replace("/futures/", "/").split("/") for path in self.world.asked(".zip"))
        return {f"{market} {name}" for _, _, market, *_, name in paths}

    def does_the_same(self, command: str, *arguments: str, exit_code: int = 0) -> None:
        """Run a command, and check that it requests no more than the release did and leaves each day the same."""
        self.world.forget()
        before, then = self.runs(), self.said[command]
        assert self.run(*arguments).exit_code == exit_code
        requested = Counter(
            " ".join(filter(None, (one.path, one.query.get("symbol"), one.query.get("interval"))))
            for one in self.world.sandbox.requests
        )
        assert requested - Counter(then["requests"]) == Counter()
        assert self.runs() - before <= then["runs"]
        assert differences(then["days"], self.days()) == []


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Return the days that differ: their names, what they were, and what they are."""
    old, new = ({"/".join(str(one[name]) for name in PLACE): one for one in days} for days in (before, after))
    return [(day, old.get(day), new.get(day)) for day in sorted({*old, *new}) if old.get(day) != new.get(day)]


def symbol_of(told: Mapping[str, Any]) -> GeneratedSymbol:
    times = {name: time.fromisoformat(told[name]) for name in ("opens", "closes") if name in told}
    breaks = tuple(map(tuple, told.get("breaks", ())))
    return GeneratedSymbol(**{**told, **times, "market": Market(told["market"]), "breaks": breaks})


def unpack(archive: Path, to: Path) -> None:
    """Unpack files with their times to the nanosecond, because ledgers know files by them. A float would round them."""
    with tarfile.open(archive) as packed:
        packed.extractall(to, filter="data")
        for member in packed:
            seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
            ns = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
            os.utime(to / member.name, ns=(ns, ns))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """Unpack the folder, and start its sandbox."""
    scene = yaml.safe_load(RELEASE.with_name("0.1.0.yaml").read_text())
    with Sandbox(symbols=map(symbol_of, scene["symbols"])) as sandbox:
        for fault in scene["faults"]:
            sandbox.faults.add(fault_from_json(fault))
        world = World(tmp_path, sandbox, monkeypatch)
        world.at(scene["now"].isoformat())
        run = shell(world, monkeypatch, scene["universe"], scene["lock"], retries="0")
        unpack(RELEASE.with_name("0.1.0.tar.xz"), tmp_path)
        yield Folder(world, run, json.loads((tmp_path / "said.json").read_text()))


def ledgers(root: Path) -> dict[str, Path]:
    """Return the ledgers of a data folder, by series."""
    folder = root / "ledger"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.parquet"))}


def test_folder_reads_as_it_did(folder: Folder) -> None:
    """Rows, days, findings and status are the same, and reading writes no ledger."""
    before = {series: path.read_bytes() for series, path in ledgers(folder.root).items()}
    for view, content in folder.said["views"].items():
        named = ", ".join(f'"{name}"' for name in content["columns"])
        rows = folder.run("sql", "--csv", f"SELECT {named} FROM {view} ORDER BY ALL").stdout
        assert rows.count("\n") - 1 == content["rows"]
        assert hashlib.sha256(rows.encode()).hexdigest() == content["sha256"], view
    assert differences(folder.said["days"], folder.days()) == []
    named = ", ".join(folder.said["findings"][0])
    assert folder.sql(f"SELECT DISTINCT {named} FROM quality.findings ORDER BY ALL") == folder.said["findings"]
    status = json.loads(folder.run("status", "--json").stdout)
    assert [{name: now[name] for name in then} for then, now in zip(folder.said["status"], status, strict=True)] == (
        folder.said["status"]
    )
    assert {series: path.read_bytes() for series, path in ledgers(folder.root).items()} == before


def test_client_reads_closed_months_and_names_gaps(folder: Folder) -> None:
    market = MarketData(folder.root)
    assert market.klines("SMALLUSDT", "1h", "2026-02-01", "2026-03-01", on_gap="raise").arrow().num_rows == 28 * 24
    with pytest.warns(UserWarning, match="unexplained"):
        market.agg_trades("FAULTUSDT", "2026-02-24", "2026-02-25").arrow()
    gaps = market.gaps("FAULTUSDT", "2026-02-24", "2026-03-05", market="spot", explained=False).arrow()
    assert set(gaps["verdict"].to_pylist()) == {"archive_defect", "unexplained", "unpublished"}


Records = tuple[list[tuple[str, str | None]], list[tuple[str, str, str]]]
"""Days of assets, and days of their checks, by the names that version 0.1 gave them."""


def records_of_version_0_1(root: Path) -> Records:
    """Return what was on record when the release left the folder."""
    with closing(sqlite3.connect(root / "dagster" / "history" / "runs" / "index.db")) as index:
        days = index.execute(
            "SELECT DISTINCT asset_key, partition FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        ).fetchall()
        checks = index.execute(
            "SELECT DISTINCT asset_key, check_name, partition FROM asset_check_executions"
        ).fetchall()
    return days, checks


def records_are_under_the_current_keys(folder: Folder, records: Records) -> None:
    """Every materialization and check result of version 0.1 is there."""
    days, checks = records
    with open_instance(folder.world.layout) as instance:
        shown = {(key, day) for key in instance.all_asset_keys() for day in instance.get_materialized_partitions(key)}
        assert shown >= {(present(name), day) for name, day in days if day is not None}
        assert {renamed(key.path) for key in instance.all_asset_keys()} == {None}
        history = instance.event_log_storage.get_asset_check_execution_history
        for name, check, day in checks:
            executions = history(dg.AssetCheckKey(present(name), check), limit=100)
            assert day in {one.partition for one in executions}, (name, check, day)
        assert instance.get_materialized_partitions(asset_key_of(klines("SMALLUSDT", "1h"))) == {
            f"2026-02-{day:02}" for day in range(1, 29)
        }


def present(name: str) -> dg.AssetKey:
    """Return the present key of an asset in the tables of version 0.1."""
    key = renamed(json.loads(name))
    assert key is not None
    return key


def test_ledgers_have_the_new_columns(folder: Folder) -> None:
    rows = {
        (series, str(day)): row
        for series, path in ledgers(folder.root).items()
        for day, row in Ledger.read(path).rows.items()
    }
    assert len(rows) == len(folder.said["days"])
    told = {place: (row.bases, row.retry) for place, row in rows.items() if row.bases or row.retry}
    assert told == {(str(key), day): columns for (key, day), columns in COLUMNS.items()}
    (beyond,) = rows["binance/um/aggTrades/FAULTUSDT", "2026-03-02"].findings_list()
    assert beyond.rest is not None
    assert (beyond.rest.answered, beyond.rest.beyond_reach) == (False, True)


def test_commands_request_no_more_than_the_release_did(folder: Folder) -> None:
    """Settled days cost no request, open ones are retried after their pause, and each day ends as it did.

    Sync writes the records under the current keys, without a run or a download for it.
    """
    records = records_of_version_0_1(folder.root)
    folder.does_the_same("verify_local", "verify", "--local")
    folder.does_the_same("verify", "verify")
    folder.does_the_same("sync", "sync", exit_code=1)  # two archives are refused again
    assert folder.zips_requested().isdisjoint(folder.settled())
    records_are_under_the_current_keys(folder, records)
    folder.world.at("2026-03-05T14:00:30")
    folder.does_the_same("sync_later", "sync", exit_code=1)
    # Sync wrote this ledger, with the new columns.
    table = pq.read_table(ledgers(folder.root)[str(FAULT)])
    told = zip(table["day"].to_pylist(), table["bases"].to_pylist(), table["retry"].to_pylist(), strict=True)
    assert {str(day): columns for day, *columns in told if any(columns)} == {
        "2026-02-24": ["traded", True],
        "2026-03-04": ["provisional", True],
    }


def test_lost_ledgers_come_back_from_footers(folder: Folder) -> None:
    """Footers bring back the verdicts, and no settled day is downloaded.

    Only the ledger had the time of the last attempt. Without it, the two unconfirmed days are retried at once.
    """
    shutil.rmtree(folder.root / "ledger")
    folder.world.forget()
    folder.run("sync")
    assert folder.zips_requested().isdisjoint(folder.settled())
    then, now = (
        {"/".join(str(one[name]) for name in PLACE): (one["state"], one["verdicts"]) for one in days}
        for days in (folder.said["sync"]["days"], folder.days())
    )
    retried_at_once = {f"{ONE}/2026-02-27": ("outage", "suspended"), f"{TWO}/2026-02-27": ("outage", "suspended+quiet")}
    assert {day: now[day] for day in now if now[day] != then[day]} == retried_at_once


def test_quarantine_knows_both_hashes_and_who_accepted(folder: Folder) -> None:
    refused = {str(entry.day): entry for entry in quarantine.entries(folder.world.layout) if entry.key == FAULT}
    assert [entry.accepted is not None for _, entry in sorted(refused.items())] == [True, False]
    for entry in refused.values():
        assert entry.published_sha256 is not None
        assert f"says {entry.published_sha256}" in entry.reason
