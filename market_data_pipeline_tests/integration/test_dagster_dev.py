"""The real Dagster, with webserver, daemon and run processes: a backfill as somebody clicks it in the UI."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from subprocess import Popen
from typing import Any

import dagster as dg
import duckdb
import psutil
import pytest
import requests

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import Delay, Sandbox, WrongChecksum
from market_data_pipeline_tests.support import processes
from market_data_pipeline_tests.support.processes import Desk, until
from market_data_pipeline_tests.support.world import days, klines, symbols_with

pytestmark = pytest.mark.slow

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m], from: 2024-01-01}
    aggTrades: {from: 2024-01-01}
"""
TWO_STARTS = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m], from: 2024-01-03}
  - market: spot
    symbols: [ETHUSDT]
    klines: {intervals: [1m], from: listing}
  - market: spot
    symbols: [SOLUSDT]
    klines: {intervals: [1m], from: 2024-02-01}
"""
BTC, ETH, SOL = (klines(f"{name}USDT", "1m") for name in ("BTC", "ETH", "SOL"))
MONTH = days("2024-01-18", "2024-02-05")  # no whole month, so that each day has an archive of its own
BAD = {date(2024, 1, 20), date(2024, 2, 3)}
GOOD = set(MONTH) - BAD
CHECKS = ("integrity", "gaps", "reconciliation")

PAUSE = 1.0
"""Seconds between two looks at what goes on: each look is work for the webserver, beside the runs."""

LAUNCH = """
mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
BACKFILL = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status numPartitions error { message } runs { status } } } }
"""
ASSET = """
query($path: [String!]!) { assetNodes(assetKeys: [{path: $path}]) {
  partitionStats { numMaterialized numFailed numMaterializing }
  assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } }
  assetChecksOrError { ... on AssetChecks { checks { name partitionStatuses {
    ... on AssetCheckTimePartitionStatuses { ranges { startKey endKey status } } } } } } } }
"""
EVALUATION = """
query($path: [String!]!, $check: String!, $day: String!) {
  assetCheckExecutions(assetKey: {path: $path}, checkName: $check, partition: $day, limit: 1) {
    status evaluation { success description targetMaterialization { storageId } } } }
"""
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
  __typename ... on PythonError { message }
  ... on RepositoryLocation { repositories { schedules { name scheduleState { status } } jobs { name }
    assetNodes { assetKey { path } } } } } } } } }
"""
DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"


@pytest.fixture(autouse=True)
def _quick_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).with_name("quick_daemon")))


@dataclass(frozen=True)
class Ui:
    """Dagster's UI, asked as its pages ask."""

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        answer = requests.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=120).json()
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/server_info", timeout=5).ok
        except requests.ConnectionError:
            return False

    def backfill(self, wanted: Sequence[date], *keys: SeriesKey) -> str:
        """Start a backfill of days as the UI's button does; return its id."""
        names = [day.isoformat() for day in wanted]
        return self.launch(partitionNames=names, assetSelection=[{"path": path(key)} for key in keys])

    def launch(self, **asked: Any) -> str:
        """Start a backfill of a selection; return its id."""
        launched = self.ask(LAUNCH, p={"fromFailure": False, "tags": [], **asked})["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def state(self, backfill: str) -> dict[str, Any]:
        """A backfill's state, with its runs."""
        found: dict[str, Any] = self.ask(BACKFILL, id=backfill)["partitionBackfillOrError"]
        assert found["error"] is None, found
        return found

    def runs_are_over(self, backfill: str) -> bool:
        runs = [run["status"] for run in self.state(backfill)["runs"]]
        return bool(runs) and all(status in ("SUCCESS", "FAILURE", "CANCELED") for status in runs)

    def is_over(self, backfill: str) -> bool:
        return self.state(backfill)["status"] not in ("REQUESTED", "FAILING", "CANCELING")

    def numbers(self, key: SeriesKey) -> dict[str, int]:
        """How many partitions of an asset are in which state, as on its page."""
        numbers: dict[str, int] = self._asset(key)["partitionStats"]
        return numbers

    def partitions(self, key: SeriesKey) -> dict[str, set[date]]:
        """Days of an asset by the state that its page shows."""
        return by_status(self._asset(key)["assetPartitionStatuses"]["ranges"])

    def checks(self, key: SeriesKey) -> dict[str, dict[str, set[date]]]:
        """Days by the state of each check, as the asset's page shows them."""
        checks = self._asset(key)["assetChecksOrError"]["checks"]
        return {check["name"]: by_status(check["partitionStatuses"]["ranges"]) for check in checks}

    def evaluation(self, key: SeriesKey, check: str, day: date) -> dict[str, Any]:
        """The newest evaluation of a check for one day."""
        (execution,) = self.ask(EVALUATION, path=path(key), check=check, day=day.isoformat())["assetCheckExecutions"]
        found: dict[str, Any] = execution["evaluation"]
        return found

    def _asset(self, key: SeriesKey) -> dict[str, Any]:
        (asset,) = self.ask(ASSET, path=path(key))["assetNodes"]
        found: dict[str, Any] = asset
        return found


def path(key: SeriesKey) -> list[str]:
    return list(asset_key_of(key).path)


def by_status(ranges: Sequence[dict[str, str]]) -> dict[str, set[date]]:
    found: dict[str, set[date]] = {}
    for one in ranges:
        found.setdefault(one["status"], set()).update(days(one["startKey"], one["endKey"]))
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def zips(sandbox: Sandbox) -> set[str]:
    """Names of the archives that were asked for."""
    return {request.path.rsplit("/", 1)[-1] for request in sandbox.requests if request.path.endswith(".zip")}


def test_backfill_from_ui_fails_bad_days_and_a_second_fixes_them(tmp_path: Path) -> None:
    """In the end the UI is killed, and nothing of it goes on. A start of it takes 20 s of the processor."""
    with Sandbox(symbols=symbols_with(2_000)) as sandbox:
        desk = Desk(tmp_path / "data", sandbox, UNIVERSE)
        for day in BAD:
            sandbox.faults.add(WrongChecksum(path=rf"BTCUSDT-1m-{day}\.zip"))
        port = free_port()
        with desk.market_data("ui", "--port", str(port)) as process:
            ui = Ui(f"http://127.0.0.1:{port}")
            until(lambda: process.poll() is not None or ui.is_up(), "Dagster's webserver", 900, PAUSE)
            assert process.poll() is None
            first = ui.backfill(MONTH, BTC, ETH)

            the_pages_answer(ui)
            the_code_location_has_loaded(ui)

            until(lambda: ui.runs_are_over(first), "the first backfill's runs", 900, PAUSE)
            some_days_failed(ui)
            assert not any(desk.layout.file(BTC, day).exists() for day in BAD)
            assert desk.days_held([BTC, ETH]) == {BTC: GOOD, ETH: set(MONTH)}
            the_fault_is_on_record(ui)

            sandbox.faults.clear()
            sandbox.clear_requests()
            second = ui.backfill(sorted(BAD), BTC)
            until(lambda: ui.is_over(first) and ui.is_over(second), "both backfills", 900, PAUSE)

            assert ui.state(first)["status"] == "COMPLETED_FAILED"
            assert ui.state(second)["status"] == "COMPLETED_SUCCESS"
            assert zips(sandbox) == {f"BTCUSDT-1m-{day}.zip" for day in BAD}
            assert len(sandbox.requests) == 4  # each zip and its CHECKSUM, and nothing else
            all_days_are_good(ui)
            klines_are_compared_with_their_trades_day_by_day(desk, ui)
            assert {parquet.read_table(desk.layout.file(BTC, day)).num_rows for day in MONTH} == {1440}
            any_sql_tool_finds_the_rows(desk)
            the_daemons_are_well(ui)
            nothing_goes_on_after(signal.SIGKILL, process, ui, desk, BTC)
        assert "PreviewWarning" not in desk.output()
        assert "BetaWarning" not in desk.output()


def test_backfill_over_two_starts_completes_both(tmp_path: Path) -> None:
    """The UI's dialog takes all partitions of such assets. A request with days of each asset takes just those.

    In the end the UI is stopped, and so is all that it has started.
    """
    with Sandbox(symbols=symbols_with(2_000)) as sandbox:
        desk = Desk(tmp_path / "data", sandbox, TWO_STARTS)
        (desk.root / "universe.lock.yaml").write_text(
            "spot:\n  BTCUSDT: [{from: 2017-08-17, until: 2024-01-10}]\n"
            "  ETHUSDT: [{from: 2024-01-07, until: 2024-01-10}]\n"
            "  SOLUSDT: [{from: 2020-08-11, until: null}]\n"
        )
        port = free_port()
        with desk.market_data("ui", "--port", str(port)) as process:
            ui = Ui(f"http://127.0.0.1:{port}")
            until(lambda: process.poll() is not None or ui.is_up(), "Dagster's webserver", 900, PAUSE)
            some = ui.launch(
                partitionsByAssets=[
                    {"assetKey": {"path": path(key)}, "partitions": {"ranges": [{"start": first, "end": "2024-01-08"}]}}
                    for key, first in ((BTC, "2024-01-05"), (ETH, "2024-01-07"))
                ]
            )
            until(lambda: ui.is_over(some), "the backfill of some days", 900, PAUSE)
            assert ui.state(some)["status"] == "COMPLETED_SUCCESS"
            assert desk.days_held([BTC, ETH]) == {
                BTC: set(days("2024-01-05", "2024-01-08")),
                ETH: set(days("2024-01-07", "2024-01-08")),
            }
            everything = ui.launch(assetSelection=[{"path": path(key)} for key in (BTC, ETH)], allPartitions=True)
            until(lambda: ui.is_over(everything), "the backfill of all days", 900, PAUSE)
            assert ui.state(everything)["status"] == "COMPLETED_SUCCESS"
            listed = {BTC: set(days("2024-01-03", "2024-01-10")), ETH: set(days("2024-01-07", "2024-01-10"))}
            assert desk.days_held([BTC, ETH]) == listed
            for key in (BTC, ETH):
                assert ui.partitions(key) == {"MATERIALIZED": listed[key]}  # nothing is missing
            assert zips(sandbox) == {f"{key.symbol}-1m-{day}.zip" for key, some in listed.items() for day in some}
            nothing_goes_on_after(signal.SIGTERM, process, ui, desk, SOL)


def nothing_goes_on_after(number: signal.Signals, process: Popen[bytes], ui: Ui, desk: Desk, key: SeriesKey) -> None:
    """End the UI while a run waits for a download: by themselves servers, daemon and runs outlive it."""
    if not Path("/proc/self/environ").exists():
        return  # it needs /proc to know its processes
    desk.sandbox.faults.add(Delay(latency=600, path=r"2024-02-15\.zip"))
    before = len(desk.days_held([key])[key])
    ui.backfill(days("2024-02-10", "2024-02-19"), key)
    until(lambda: len(desk.days_held([key])[key]) == before + 9, "a run that waits for its last day", 900)

    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5  # code server and its server, web server, daemon, and the run
    process.send_signal(number)
    process.wait()
    until(lambda: not any(map(is_alive, family)), "the end of the others", 900)
    with open_instance(desk.layout) as instance:
        assert [run.status for run in instance.get_runs(limit=1)] == [dg.DagsterRunStatus.FAILURE]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def the_pages_answer(ui: Ui) -> None:
    for page in ("/", "/assets", "/asset-groups", "/overview/backfills", "/automation"):
        answer = requests.get(f"{ui.url}{page}", timeout=120)
        assert (answer.status_code, '<div id="root"' in answer.text) == (200, True), page


def the_code_location_has_loaded(ui: Ui) -> None:
    (entry,) = ui.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
    location = entry["locationOrLoadError"]
    assert (entry["loadStatus"], location["__typename"]) == ("LOADED", "RepositoryLocation"), location
    (repository,) = location["repositories"]
    states = {schedule["name"]: schedule["scheduleState"]["status"] for schedule in repository["schedules"]}
    assert states == {
        "daily": "STOPPED", "hourly": "STOPPED", "trade_profiles_daily": "STOPPED", "repair": "STOPPED",
        "verify": "STOPPED", "compact": "STOPPED", "coverage_daily": "RUNNING", "reconciliation_daily": "RUNNING",
        "prune": "RUNNING", "exchange_info_daily": "STOPPED", "iceberg_hourly": "STOPPED",
    }  # fmt: skip
    shown = {"/".join(asset["assetKey"]["path"]) for asset in repository["assetNodes"]}
    assert shown == {
        "binance/spot/klines/BTCUSDT_1m", "binance/spot/klines/ETHUSDT_1m",
        "binance/spot/aggTrades/BTCUSDT_aggTrades", "binance/spot/aggTrades/ETHUSDT_aggTrades",
        "binance/spot/tradeProfile/BTCUSDT_tradeProfile", "binance/spot/tradeProfile/ETHUSDT_tradeProfile",
        "binance/spot/spot_coverage", "binance/spot/spot_exchange_info", "binance/spot/spot_live",
        "binance/spot/spot_iceberg",
    }  # fmt: skip


def some_days_failed(ui: Ui) -> None:
    assert ui.numbers(BTC) == {"numMaterialized": len(GOOD), "numFailed": 2, "numMaterializing": 0}
    assert ui.partitions(BTC) == {"MATERIALIZED": GOOD, "FAILED": BAD}
    # Of the gaps of a day that never came nothing is known: planned, and not done.
    assert ui.checks(BTC) == {
        "integrity": {"SUCCEEDED": GOOD, "FAILED": BAD},
        "gaps": {"SUCCEEDED": GOOD, "EXECUTION_FAILED": BAD},
        "reconciliation": {"SUCCEEDED": GOOD, "EXECUTION_FAILED": BAD},
    }
    assert ui.numbers(ETH) == {"numMaterialized": len(MONTH), "numFailed": 0, "numMaterializing": 0}
    assert ui.checks(ETH) == {name: {"SUCCEEDED": set(MONTH)} for name in CHECKS}


def the_fault_is_on_record(ui: Ui) -> None:
    for day in BAD:
        evaluation = ui.evaluation(BTC, "integrity", day)
        assert not evaluation["success"]
        assert f"BTCUSDT-1m-{day}.zip does not match its published checksum" in evaluation["description"]
    good = ui.evaluation(BTC, "integrity", min(GOOD))
    assert good["success"]
    assert good["targetMaterialization"] is not None


def all_days_are_good(ui: Ui) -> None:
    for key in (BTC, ETH):
        assert ui.numbers(key) == {"numMaterialized": len(MONTH), "numFailed": 0, "numMaterializing": 0}
        assert ui.checks(key) == {name: {"SUCCEEDED": set(MONTH)} for name in CHECKS}


def klines_are_compared_with_their_trades_day_by_day(desk: Desk, ui: Ui) -> None:
    assert "Not compared yet" in ui.evaluation(BTC, "reconciliation", MONTH[0])["description"]
    day = str(MONTH[0])
    desk.run("backfill", "--data-type", "aggTrades", "--symbol", "BTCUSDT", "--from", day, "--through", day)
    desk.run("reconcile")
    compared = ui.evaluation(BTC, "reconciliation", MONTH[0])
    text = "All 1,440 candles equal the candles rebuilt from binance/spot/aggTrades/BTCUSDT"
    assert compared["description"].startswith(text)
    assert compared["targetMaterialization"] is not None
    assert ui.checks(BTC)["reconciliation"] == {"SUCCEEDED": set(MONTH)}
    assert "Not compared yet" in ui.evaluation(BTC, "reconciliation", MONTH[1])["description"]


def any_sql_tool_finds_the_rows(desk: Desk) -> None:
    query = "SELECT symbol, count(*) FROM binance_spot.klines GROUP BY symbol ORDER BY symbol"
    with duckdb.connect(str(desk.layout.catalog), read_only=True) as connection:
        assert connection.execute(query).fetchall() == [("BTCUSDT", len(MONTH) * 1440), ("ETHUSDT", len(MONTH) * 1440)]


def the_daemons_are_well(ui: Ui) -> None:
    statuses = ui.ask(DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    assert [status["daemonType"] for status in statuses if status["required"] and not status["healthy"]] == []
