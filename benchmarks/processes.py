"""Processes: fresh ones for what is measured, so that what one has imported or cached is not another's gain."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from benchmarks import AS_A_NOTEBOOK
from market_data_pipeline.lake.arrow_memory import PURGE_DELAY

P = ParamSpec("P")
T = TypeVar("T")

FRESH = multiprocessing.get_context("spawn")
"""Processes that inherit nothing."""


@dataclass
class _Kept:
    """What is started once, while :func:`sharing_processes`."""

    pool: ProcessPoolExecutor
    until_end: ExitStack
    started: dict[Hashable, Any] = field(default_factory=dict)


_kept: _Kept | None = None


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process."""
    if _kept is not None:
        return _kept.pool.submit(_frozen, partial(function, *args, **kwargs)).result()
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _frozen(function: Callable[[], T]) -> T:
    """Call a function with all that others have left exempt from garbage collection.

    Each measurement begins with a collection, which would look through all that was ever imported.
    """
    gc.freeze()
    return function()


@contextmanager
def as_a_notebook() -> Iterator[None]:
    """Start processes in which Arrow gives back to the system what it frees, as it does by itself."""
    usual = dict(os.environ)
    os.environ.pop(PURGE_DELAY, None)
    os.environ[AS_A_NOTEBOOK] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(usual)


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """Return a pool with a process for each core, for work that is not measured."""
    if _kept is not None:
        yield _kept.pool
        return
    with ProcessPoolExecutor(mp_context=FRESH) as pool:
        yield pool


@contextmanager
def started(name: Hashable, start: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Something that runs in a process of its own, such as a server."""
    if _kept is None:
        with start() as running:
            yield running
        return
    if name not in _kept.started:
        _kept.started[name] = _kept.until_end.enter_context(start())
    yield _kept.started[name]


@contextmanager
def sharing_processes() -> Iterator[None]:
    """Do everything in one process, and start servers once: quick, since imports are done once, and no measurement."""
    global _kept
    with ExitStack() as until_end:
        _kept = _Kept(until_end.enter_context(ProcessPoolExecutor(1, mp_context=FRESH)), until_end)
        try:
            yield
        finally:
            _kept = None
