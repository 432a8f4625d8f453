"""An interrupt ends a run at any moment, and what was stored stays; whoever waits for long says for what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.errors import SeriesBusyError
from market_data_pipeline.ingest.memory import MemoryBudget
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import storage
from market_data_pipeline.model import waits as waits_module
from market_data_pipeline.model.waits import Stop, StoppedError
from market_data_pipeline.sandbox import Delay, SlowBody, Status
from market_data_pipeline.settings import PREFIX
from market_data_pipeline.sources.rate_limit import WeightBudget
from market_data_pipeline_tests.support.world import World, days, klines

KEY = klines("BTCUSDT", "1h")
SETTLED = days("2026-02-10", "2026-02-12")


def spend(world: World) -> AbstractContextManager[None]:
    host = world.settings.spot_url.removeprefix("http://")
    budget = WeightBudget(host, 6000, 0.5, world.root / "budget")
    budget.acquire(3000)
    budget.close()
    return nullcontext()


def pause(world: World) -> AbstractContextManager[None]:
    world.sandbox.faults.add(Status(path="/api/v3/klines", status=429, retry_after=100))
    return nullcontext()


def slow_body(world: World) -> AbstractContextManager[None]:
    world.sandbox.faults.add(SlowBody(path=r"2026-03-04\.zip$", seconds=300))
    return nullcontext()


def slow_headers(world: World) -> AbstractContextManager[None]:
    world.sandbox.faults.add(Delay(path=r"2026-03-04\.zip$", latency=300))
    return nullcontext()


def archive_pause(world: World) -> AbstractContextManager[None]:
    world.sandbox.faults.add(Status(path=r"2026-03-04\.zip$", status=429, retry_after=40))
    return nullcontext()


def backoff(world: World) -> AbstractContextManager[None]:
    world.set(retry_backoff_seconds=30.0)
    world.sandbox.faults.add(Status(path=r"2026-03-04\.zip$", status=503))
    return nullcontext()


@contextmanager
def locked(world: World) -> Iterator[None]:
    world.set(lock_wait_seconds=300)
    with storage.only_writer(world.layout.lock(KEY), 0, str(KEY)):
        yield


def waits(world: World, about: str) -> bool:
    """Return True once the run cannot go on by itself."""
    return about == "lock" or any(about in request.path for request in world.sandbox.requests)


@pytest.mark.parametrize(
    ("hold_up", "about"),
    [(spend, "2026-03-04"), (pause, "/api/v3/"), (slow_body, "2026-03-04"), (slow_headers, "-03-02"),
     (archive_pause, "2026-03-04"), (backoff, "2026-03-04"), (locked, "lock")],
)  # fmt: skip
def test_a_stop_ends_a_run_and_what_was_stored_stays(
    world: World, hold_up: Callable[[World], AbstractContextManager[None]], about: str
) -> None:
    world.ingest(KEY, SETTLED)
    world.forget()
    ended: list[BaseException] = []
    stored = threading.Event()

    def run(sources: Sources) -> None:
        try:
            wanted = [*SETTLED, *days("2026-03-01", "2026-03-05")]
            for result in ingest(KEY, wanted, layout=world.layout, sources=sources, settings=world.settings):
                if result.day == date(2026, 3, 1):
                    stored.set()
        except BaseException as error:  # noqa: BLE001 - looked at below
            ended.append(error)

    with hold_up(world), Sources(world.settings) as sources:
        thread = threading.Thread(target=run, args=(sources,), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not (waits(world, about) and (about == "lock" or stored.is_set())) and time.monotonic() < until:
            time.sleep(0.01)
        sources.stop.set()
        thread.join(120)
        assert not thread.is_alive()
    assert [type(error) for error in ended] == [StoppedError]
    held = world.ledger(KEY).rows
    assert all(held[day].is_stored_final for day in SETTLED)
    assert about == "lock" or held[date(2026, 3, 1)].is_stored_final, "what the run had brought is in the ledger"
    assert all(row.failure is None for row in held.values())
    world.sandbox.faults.clear()
    assert date(2026, 3, 4) in {
        result.day for result in world.ingest(KEY, [date(2026, 3, 4)]) if result.row.is_stored_final
    }


def test_an_interrupt_stops_the_threads_of_a_run(world: World) -> None:
    """As Ctrl-C in a notebook does: an exception in the thread that takes the results."""
    world.sandbox.faults.add(Delay(path=r"2026-03-0[34]\.zip$", latency=300))
    with Sources(world.settings) as sources:
        results = ingest(KEY, days("2026-03-01", "2026-03-04"), layout=world.layout, sources=sources,
                         settings=world.settings)  # fmt: skip
        assert next(results).row.is_stored_final
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        assert time.monotonic() - began < 60
    assert world.ledger(KEY).rows[date(2026, 3, 1)].is_stored_final


def test_wait_for_memory_is_logged_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits_module, "SAY_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(waits_module, "_said", {})
    stop = Stop()
    budget = MemoryBudget(100 << 20, stop)
    waiting = threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    ended: list[BaseException] = []

    def take() -> None:
        try:
            with budget.reservation() as memory:
                memory.take(60 << 20)
        except StoppedError as error:
            ended.append(error)

    with waits_module.reporting(say), budget.reservation() as first:
        first.take(80 << 20)
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert waiting.wait(120)
        stop.set()
        thread.join(120)
    assert len(ended) == 1
    assert said == ["Waiting for 60 MB of memory: days in progress use 80 of 100 MB (MARKET_DATA_MEMORY_MB)."]


def test_a_wait_for_a_lock_names_the_process_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waits_module, "SAY_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(waits_module, "_said", {})
    lock = tmp_path / "series.lock"
    with (
        storage.only_writer(lock, 0, "the series"),
        pytest.raises(SeriesBusyError, match=rf"another run \(process {os.getpid()}\)"),
        storage.only_writer(lock, 1, "the series"),
    ):
        pass
    (line,) = caplog.messages
    assert line.startswith(f"Waiting for process {os.getpid()}, which writes the series, for up to ")


@pytest.mark.parametrize("content", ["", "soon", "9" * 400, "\x00"])
def test_a_lock_file_with_something_else_in_it_is_a_lock(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "series.lock"
    lock.write_text(content)
    with storage.only_writer(lock, 0, "the series"):
        lock.write_text(content)
        with pytest.raises(SeriesBusyError, match="written by another run"), storage.only_writer(lock, 0, "the series"):
            pass


UNIVERSE = "collect:\n  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2026-02-10}}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "waits_at", "background"),
    [("sync", signal.SIGTERM, "/klines", False), ("verify", signal.SIGINT, "/", False),
     ("backfill", signal.SIGTERM, ".zip", True)],
)  # fmt: skip
def test_a_signal_ends_a_command_in_seconds(
    world: World, command: str, number: signal.Signals, waits_at: str, background: bool
) -> None:
    """By the process's own clock it takes a moment; the bound is docker's ten seconds, and some for a busy machine."""
    (world.root / "universe.yaml").write_text(UNIVERSE)
    world.sandbox.set_time(None)
    where = "" if waits_at == "/" else waits_at.replace(".", r"\.")
    if command == "verify":
        world.ingest(KEY, SETTLED)
    world.forget()
    world.sandbox.faults.add(SlowBody(path=where, seconds=300))
    settings = {
        "DIR": str(world.root),
        "UNIVERSE": str(world.root / "universe.yaml"),
        "BUDGET_DIR": str(world.root / "budget"),
    }
    environment = os.environ | world.sandbox.settings_env() | {f"{PREFIX}{name}": at for name, at in settings.items()}
    arguments = [command, "--yes"] if command != "verify" else [command]
    ignoring = "trap '' INT; " if background else ""
    process = subprocess.Popen(
        # A script's background job ignores SIGINT, and Dagster gives SIGTERM the handler of SIGINT.
        [
            "/bin/sh",
            "-c",
            ignoring + 'exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "market_data_pipeline.cli",
            *arguments,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if world.asked(waits_at):
                break
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
