"""Write ``0.1.0.tar.xz``: a data folder of release 0.1.0, and what that release reads in it.

This script runs with the code of release 0.1.0 (commit 2641d5e), and only that must be able to import it. mypy and
pytest skip it. Check that commit out, and run::

    PYTHONPATH=path/to/checkout python make_0_1_0.py 0.1.0.tar.xz
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from market_data_pipeline import clock
from market_data_pipeline.cli import main
from market_data_pipeline.defs.definitions import build_definitions, ignore_notices
from market_data_pipeline.defs.in_process import materialize_days
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Fault, GeneratedSymbol, OtherBody, Sandbox, Status
from market_data_pipeline.sandbox.faults import fault_from_json
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe

SCENE = Path(__file__).with_name("0.1.0.yaml")

COLUMNS = (
    "exchange", "market", "data_type", "symbol", "interval", "day", "state", "outcome", "final", "rows", "source",
    "checksum", "integrity", "gaps", "verdicts", "missing", "quiet", "failure", "attempts", "first_key", "last_key",
    "content_sha256", "replaced_by",
)  # fmt: skip
"""Columns of ``quality.coverage`` that say what a day is. Texts for people are not among them."""

VIEWS = (
    "binance_spot.klines", "binance_spot.agg_trades", "binance_spot.trade_profile", "binance_um.klines",
    "binance_um.agg_trades", "binance_um.trade_profile", "binance_cm.klines", "binance_cm.agg_trades",
)  # fmt: skip

FINDINGS = "SELECT DISTINCT check_name, rule, severity, count, message, evidence FROM quality.findings ORDER BY ALL"

NOT_KEPT = (".lock", ".db-shm", ".db-wal", ".db-journal")


class Desk:
    """A data folder, the sandbox that it is filled from, and one clock for both."""

    def __init__(self, root: Path, sandbox: Sandbox) -> None:
        self.root, self.sandbox = root, sandbox
        self._moment = datetime.now(UTC)
        clock.now = lambda: self._moment

    def at(self, moment: datetime) -> None:
        self._moment = moment.replace(tzinfo=UTC)
        self.sandbox.set_time(self._moment)

    def use(self, root: Path) -> None:
        """Work in another data folder from now on."""
        self.root = root
        own = {
            "DIR": root,
            "UNIVERSE": root / "universe.yaml",
            "BUDGET_DIR": root.parent / "budget",
            "RETRIES": 0,
            "RETRY_BACKOFF_SECONDS": 0.01,
        }
        os.environ.update({f"MARKET_DATA_{name}": str(value) for name, value in own.items()})
        os.environ.update(self.sandbox.settings_env())
        os.environ["LOGNAME"] = "somebody"
        os.environ.pop("DAGSTER_HOME", None)

    def run(self, *arguments: str, **settings: object) -> str:
        """Run ``market-data``; return what it prints on standard output."""
        named = {f"MARKET_DATA_{name.upper()}": str(value) for name, value in settings.items()}
        result = CliRunner().invoke(main, arguments, env=named)
        print(f"$ market-data {' '.join(arguments)[:120]} -> {result.exit_code}")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if arguments[0] != "sql" or result.exit_code:
            print(result.stderr)
        return result.stdout

    def backfill(self, market: str, symbol: str, kind: str, first: str, last: str = "", **settings: object) -> None:
        self.run(
            "backfill", "--market", market, "--symbol", symbol, "--data-type", kind, "--from", first, "--through",
            last or first, **settings,
        )  # fmt: skip

    @contextmanager
    def while_in_force(self, *faults: Fault) -> Iterator[None]:
        for fault in faults:
            self.sandbox.faults.add(fault)
        yield
        for fault in faults:
            self.sandbox.faults.remove(fault)


def make(to: Path) -> None:
    scene = yaml.safe_load(SCENE.read_text())
    with tempfile.TemporaryDirectory() as folder, Sandbox(symbols=map(symbol_of, scene["symbols"])) as sandbox:
        desk = Desk(Path(folder), sandbox)
        desk.use(Path(folder) / "data")
        desk.root.mkdir()
        (desk.root / "universe.lock.yaml").write_text(scene["lock"])
        for fault in scene["faults"]:
            sandbox.faults.add(fault_from_json(fault))
        fill(desk, scene["universe"], scene["now"])
        made = desk.root
        tidy(made)
        pack(made, what_it_says(desk, scene["now"]), to)


def symbol_of(told: dict[str, Any]) -> GeneratedSymbol:
    told = {**told, "market": Market(told["market"])}
    times = {name: time.fromisoformat(told[name]) for name in ("opens", "closes") if name in told}
    return GeneratedSymbol(**{**told, **times, "breaks": tuple(map(tuple, told.get("breaks", ())))})


def fill(desk: Desk, universe: str, now: datetime) -> None:
    """Fetch days so that they get every kind of finding that faults of the sandbox can cause."""
    off = Status(path="/api/v3/", status=451)
    collect = desk.root / "universe.yaml"

    # Days whose archive is not published yet, or is replaced later.
    collect.write_text(universe.split("  # Added at the end.")[0])
    desk.at(datetime(2026, 2, 28, 12, 0, 30, tzinfo=UTC))
    desk.backfill("spot", "FAULTUSDT", "klines", "2026-02-28")
    desk.at(datetime(2026, 3, 3, 12, 0, 30, tzinfo=UTC))
    desk.backfill("spot", "FAULTUSDT", "aggTrades", "2026-02-28")

    # Days that need REST to refuse, or to be off.
    desk.at(now)
    for kind in ("aggTrades", "klines"):
        with desk.while_in_force(trades_of_another_day(desk)):
            desk.backfill("spot", "FAULTUSDT", kind, "2026-02-24")
        with desk.while_in_force(off):
            desk.backfill("spot", "FAULTUSDT", kind, "2026-02-25")
        with desk.while_in_force(not_known("/api/v3/", "FAULTUSDT")):
            desk.backfill("spot", "FAULTUSDT", kind, "2026-02-26")
    desk.backfill("spot", "FAULTUSDT", "aggTrades", "2026-02-27")
    desk.run("verify", "--symbol", "FAULTUSDT", "--data-type", "aggTrades")
    desk.backfill("spot", "FAULTUSDT", "aggTrades", "2026-03-01", "2026-03-02")
    desk.backfill("spot", "FAULTUSDT", "aggTrades", "2026-03-03", rest_trades_weight=4)
    desk.backfill("spot", "FAULTUSDT", "klines", "2026-02-27", "2026-03-04")
    refused = json.loads(desk.run("quarantine", "list", "--json"))
    accepted = next(one["sha256"] for one in refused if one["day"] == "2026-03-01")
    desk.run("quarantine", "accept", accepted, "--yes", "--reason", "compared with the trades")
    with desk.while_in_force(not_known("/api/v3/", "GONEUSDT")):
        desk.backfill("spot", "GONEUSDT", "klines", "2026-03-01", "2026-03-02")
    desk.run("backfill", "--market", "um", "--from", "2026-02-26", "--through", "2026-02-26")
    with desk.while_in_force(Status(path="/fapi/", status=451)):
        desk.run("backfill", "--market", "um", "--from", "2026-02-27", "--through", "2026-02-27")
    with desk.while_in_force(not_known("/fapi/", "TWOUSDT")):
        desk.run("backfill", "--market", "um", "--from", "2026-02-28", "--through", "2026-02-28")

    # All other days.
    desk.run("sync")
    desk.run("reconcile", "--symbol", "GONEUSDT")
    desk.at(datetime.now(UTC) + timedelta(hours=2))  # files and runs of Dagster have the machine's time
    desk.run("compact", "--symbol", "SMALLUSDT", "--grace", "0")
    desk.run("compact", "--symbol", "SMALLUSDT", "--grace", "0")
    desk.run("prune", "--runs-older-than", "1h")

    # Days as a run leaves them if no other follows: not compared with the market, or cut short.
    desk.at(now)
    collect.write_text(universe)
    desk.backfill("cm", "ONLYUSD_PERP", "klines", "2026-03-02", "2026-03-03")
    run_of_dagster(SeriesKey(EXCHANGE, Market.CM, DataType.KLINES, "ONLYUSD_PERP", "1h"), date(2026, 3, 4))
    desk.backfill("cm", "ONLYUSD_PERP", "aggTrades", "2026-03-05", rest_trades_weight=20)
    desk.run("status")


def not_known(path: str, symbol: str) -> OtherBody:
    """Return a fault: REST no longer knows a symbol."""
    body = '{"code": -1121, "msg": "Invalid symbol."}'
    return OtherBody(path=path, query=f"symbol={symbol}", body=body, status=400, media_type="application/json")


def trades_of_another_day(desk: Desk) -> OtherBody:
    """Return a fault: REST has trades that the archive does not have, with times of the day before."""
    url = f"{desk.sandbox.url}/api/v3/aggTrades?symbol=FAULTUSDT&"
    start, end = (int(datetime(2026, 2, 24, 22, at, tzinfo=UTC).timestamp() * 1000) for at in (0, 20))

    def ask(query: str) -> list[dict[str, Any]]:
        asked = urllib.request.Request(url + query, headers={"X-MBX-TIME-UNIT": "MICROSECOND"})
        with urllib.request.urlopen(asked) as answer:
            rows: list[dict[str, Any]] = json.load(answer)
        return rows

    ids = {row["a"] for row in ask(f"startTime={start * 1000}&endTime={end * 1000 - 1}")}
    rows = [
        {**row, "T": row["T"] - clock.US_PER_DAY} if row["a"] in ids else row
        for row in ask(f"fromId={min(ids)}&limit=1000")
    ]
    query = f"symbol=FAULTUSDT.*fromId={min(ids)}(&|$)|fromId={min(ids)}&.*symbol=FAULTUSDT"
    return OtherBody(path="/api/v3/aggTrades", query=query, body=json.dumps(rows), media_type="application/json")


def run_of_dagster(key: SeriesKey, day: date) -> None:
    """Fetch a day as a run from Dagster's UI does, which does not compare the market afterwards."""
    settings = load_settings()
    with open_instance(Layout(settings.root)) as instance, warnings.catch_warnings():
        ignore_notices()
        definitions = build_definitions(settings, load_universe(settings.universe))
        assert materialize_days(instance, definitions, [key], day, day, log_level="CRITICAL").success


def tidy(root: Path) -> None:
    """Remove locks and empty pages of databases."""
    for path in root.rglob("*.db"):
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in root.rglob("*"):
        if path.is_file() and path.name.endswith(NOT_KEPT):
            path.unlink()


def what_it_says(desk: Desk, now: datetime) -> dict[str, Any]:
    """Return what the release reads in the folder, and what its next commands do in a copy of it."""
    shutil.copytree(desk.root, desk.root.with_name("copy"))
    desk.use(desk.root.with_name("copy"))
    said: dict[str, Any] = {
        "views": {view: content(desk, view) for view in VIEWS},
        "days": days(desk),
        "status": json.loads(desk.run("status", "--json")),
        "findings": json.loads(desk.run("sql", "--json", FINDINGS)),
    }
    for name, moment, command in (
        ("verify_local", now, ["verify", "--local"]),
        ("verify", now, ["verify"]),
        ("sync", now, ["sync"]),
        ("sync_later", now + timedelta(hours=2), ["sync"]),
    ):
        desk.at(moment)
        desk.sandbox.clear_requests()
        before = runs(desk.root)
        desk.run(*command)
        asked = Counter(
            " ".join(filter(None, (one.path, one.query.get("symbol"), one.query.get("interval"))))
            for one in desk.sandbox.requests
        )
        said[name] = {"requests": dict(sorted(asked.items())), "runs": runs(desk.root) - before, "days": days(desk)}
    return said


def days(desk: Desk) -> list[dict[str, Any]]:
    named = ", ".join(f'"{name}"' for name in COLUMNS)
    found: list[dict[str, Any]] = json.loads(
        desk.run("sql", "--json", f"SELECT {named} FROM quality.coverage ORDER BY ALL")
    )
    return found


def runs(root: Path) -> int:
    """Return the number of runs that Dagster has on record."""
    with closing(sqlite3.connect(root / "dagster" / "history" / "runs.db")) as database:
        (number,) = database.execute("SELECT count(*) FROM runs").fetchone()
        return int(number)


def content(desk: Desk, view: str) -> dict[str, Any]:
    """Return the columns of a view, the number of its rows, and the SHA-256 of all rows as CSV."""
    columns = desk.run("sql", "--csv", f"FROM {view} LIMIT 0").strip().split(",")
    named = ", ".join(f'"{name}"' for name in columns)
    rows = desk.run("sql", "--csv", f"SELECT {named} FROM {view} ORDER BY ALL")
    return {"columns": columns, "rows": rows.count("\n") - 1, "sha256": hashlib.sha256(rows.encode()).hexdigest()}


def pack(root: Path, said: dict[str, Any], to: Path) -> None:
    """Pack the folder. Times of files are kept to the nanosecond, because ledgers know files by them."""
    root.with_name("said.json").write_text(json.dumps(said, ensure_ascii=False))
    with tarfile.open(to, "w:xz", format=tarfile.PAX_FORMAT, preset=9 | lzma.PRESET_EXTREME) as archive:
        archive.add(root.with_name("said.json"), "said.json")
        for path in sorted(root.rglob("*"), key=lambda path: (path.suffix, path)):
            if path.is_file():
                info = archive.gettarinfo(path, f"data/{path.relative_to(root)}")
                ns = path.stat().st_mtime_ns
                info.pax_headers = {"mtime": f"{ns // 10**9}.{ns % 10**9:09d}"}
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                with path.open("rb") as file:
                    archive.addfile(info, file)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
