"""ServerJobs: work that takes longer than a request. Each is a ``market-data`` command in a process of its own.

A command runs Dagster where it fetches days, so every day is on record. The server itself never imports Dagster.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum

import orjson

from market_data_pipeline import clock
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import PREFIX, Settings

_KEPT = 200
"""Most jobs that are remembered."""

_MOST_QUEUED = 16
_AT_ONCE = 1
"""Commands that fetch wait for each other: they share the request limit and the disk."""

_TAIL_BYTES = 16_384
_RESULT_BYTES = 4_000_000
_END_SECONDS = 20.0
_AGAIN_SECONDS = 60.0
"""Seconds after a job for which the same fetch is not begun again by a request for rows."""


class JobStatus(StrEnum):
    """Stages of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass
class ServerJob:
    """A command and what came of it.

    Attributes:
        kind: What the job does, e.g. ``bootstrap``.
        arguments: Arguments of ``market-data``.
        errors: Last lines of its error output.
        result: Its output, if that is JSON.
    """

    id: str
    kind: str
    arguments: tuple[str, ...]
    status: JobStatus = JobStatus.QUEUED
    created: datetime = field(default_factory=clock.now)
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    errors: str = ""
    result: object = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def document(self) -> dict[str, object]:
        """Return the job as JSON has it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "command": " ".join(("market-data", *self.arguments)),
            "status": self.status,
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "exit_code": self.exit_code,
            "errors": self.errors,
            "result": self.result,
        }


class ServerJobs:
    """Runs jobs one after the other, and remembers the last ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[str, ServerJob] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes: set[asyncio.subprocess.Process] = set()

    def get(self, identity: str) -> ServerJob | None:
        """Return a job; None if it is not known."""
        return self._jobs.get(identity)

    def of_kind(self, kind: str) -> list[ServerJob]:
        """Return the jobs of a kind, the newest first."""
        return [job for job in reversed(self._jobs.values()) if job.kind == kind]

    @property
    def queued(self) -> int:
        """Return the number of jobs that have not ended."""
        return sum(not job.done.is_set() for job in self._jobs.values())

    def start(self, kind: str, arguments: Sequence[str]) -> ServerJob | None:
        """Begin a job. The same command is not begun twice: the one that has not ended is returned.

        Returns:
            The job, or None if too many wait.
        """
        wanted = tuple(arguments)
        for job in self._jobs.values():
            if job.arguments == wanted and not job.done.is_set():
                return job
        if self.queued >= _MOST_QUEUED:
            return None
        job = ServerJob(secrets.token_hex(8), kind, wanted)
        self._jobs[job.id] = job
        self._forget()
        task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def fetch(self, key: SeriesKey, first: date, last: date) -> ServerJob | None:
        """Fetch days of a series for a request for rows.

        Returns:
            The job; one that ended less than a minute ago is not repeated. None if too many wait.
        """
        arguments = fetch_arguments(key, first, last)
        for job in reversed(self._jobs.values()):
            recent = job.ended is not None and (clock.now() - job.ended).total_seconds() < _AGAIN_SECONDS
            if job.arguments == arguments and (recent or job.ended is None):
                return job
        return self.start("fetch", arguments)

    async def close(self) -> None:
        """Stop all jobs. Days that are finished stay stored."""
        for task in self._tasks:
            task.cancel()
        for process in list(self._processes):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in list(self._processes):
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: ServerJob) -> None:
        try:
            async with self._turn:
                job.status, job.started = JobStatus.RUNNING, clock.now()
                job.exit_code, out, job.errors = await self._command(job.arguments)
            with suppress(orjson.JSONDecodeError):
                job.result = orjson.loads(out) if out else None
            job.status = JobStatus.SUCCEEDED if job.exit_code == 0 else JobStatus.FAILED
        except OSError as error:
            job.status, job.errors = JobStatus.FAILED, f"The command cannot be started: {error}."
        finally:
            if job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
                job.status, job.errors = JobStatus.FAILED, job.errors or "The server was stopped."
            job.ended = clock.now()
            job.done.set()

    async def _command(self, arguments: Sequence[str]) -> tuple[int, bytes, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "market_data_pipeline.cli",
            *arguments,
            env=os.environ | environment_of(self._settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._processes.add(process)
        try:
            assert process.stdout is not None  # noqa: S101 - both are pipes
            assert process.stderr is not None  # noqa: S101
            out, errors = await asyncio.gather(
                _last_bytes(process.stdout, _RESULT_BYTES), _last_bytes(process.stderr, _TAIL_BYTES)
            )
            code = await process.wait()
        finally:
            if process.returncode is not None:
                self._processes.discard(process)
        return code, out, errors.decode(errors="replace")

    def _forget(self) -> None:
        for identity in [identity for identity, job in self._jobs.items() if job.done.is_set()]:
            if len(self._jobs) <= _KEPT:
                return
            del self._jobs[identity]


async def _last_bytes(stream: asyncio.StreamReader, most: int) -> bytes:
    kept: deque[bytes] = deque()
    size = 0
    while part := await stream.read(65_536):
        kept.append(part)
        size += len(part)
        while size - len(kept[0]) > most:
            size -= len(kept.popleft())
    return b"".join(kept)[-most:]


def fetch_arguments(key: SeriesKey, first: date, last: date) -> tuple[str, ...]:
    """Return the arguments of ``market-data`` that fetch days of a series."""
    kind = [] if key.data_type is DataType.KLINES else ["--data-type", key.data_type.value]
    interval = [] if key.interval is None else ["--interval", key.interval]
    days = ["--from", str(first), "--through", str(last), "--yes"]
    return ("backfill", "--market", key.market.value, *kind, "--symbol", key.symbol, *interval, *days)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process the same settings."""
    chosen = {name: getattr(settings, name) for name in settings.model_fields_set}
    chosen |= {"dir": settings.root, "universe": settings.universe.expanduser().absolute()}
    return {PREFIX + name.upper(): "" if value is None else str(value) for name, value in chosen.items()}
