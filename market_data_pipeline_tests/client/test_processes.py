"""``MarketData`` in forked and spawned processes, pickled and copied."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import select
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

COUNT = "SELECT count(*) AS n FROM binance_spot.klines"
PATIENCE = 60
FORKS = sized(2, 20)
"""While other threads query."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = SmallLake(tmp_path_factory.mktemp("processes") / "data")
    lake.put(series("BTCUSDT", "1h"), days_from("2024-01-01", 10))
    return lake.root


@pytest.fixture(scope="module")
def market(root: Path) -> MarketData:
    """One that has answered in every way, so that its connections are open and Arrow's threads run."""
    market = MarketData(root)
    assert [ask(market) for ask in ASKED] == [240, 240, 240, 240]
    return market


def candles(market: MarketData) -> Any:
    return market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-11")


ASKED: tuple[Callable[[MarketData], int], ...] = (
    lambda market: market.sql(COUNT).df()["n"].item(),
    lambda market: market.sql(COUNT).relation().fetchall()[0][0],
    lambda market: len(candles(market).df()),
    lambda market: candles(market).relation().count("*").fetchall()[0][0],
)


def first_answer(market: MarketData) -> int:
    return ASKED[0](market)


def forked(ask: Callable[[], object]) -> str:
    """What a forked child answers; it fails the test if the child hangs."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: there are threads
        child = os.fork()
    if child == 0:
        try:
            said = repr(ask())
        except BaseException as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        os.write(write, said[:1000].encode())
        os._exit(0)
    os.close(write)
    answered, _, _ = select.select([read], [], [], PATIENCE)
    if not answered:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = os.read(read, 1000).decode()
    os.close(read)
    assert answered, "The child hangs."
    return said


@pytest.mark.parametrize("ask", ASKED)
def test_forked_child_has_connections_of_its_own(market: MarketData, ask: Callable[[MarketData], int]) -> None:
    assert forked(lambda: ask(market)) == "240"
    assert ask(market) == 240


def test_forked_child_of_a_forked_child_answers(market: MarketData) -> None:
    assert forked(lambda: (ASKED[0](market), forked(lambda: ASKED[0](market)))) == "(240, '240')"


@pytest.mark.parametrize("of_views", [True, False])
def test_relation_of_the_parent_raises_at_once_in_a_child(market: MarketData, of_views: bool) -> None:
    relation = market.sql(COUNT).relation() if of_views else candles(market).relation()
    assert forked(relation.fetchall).startswith("ConnectionException: ")
    assert relation.fetchall()


def test_fork_while_other_threads_query(market: MarketData) -> None:
    over = threading.Event()

    def query() -> None:
        while not over.is_set():
            ASKED[0](market)
            ASKED[2](market)

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(query) for _ in range(2)]
        try:
            answers = [forked(lambda: [ask(market) for ask in ASKED]) for _ in range(FORKS)]
        finally:
            over.set()
        for one in waiting:
            one.result()
    assert answers == ["[240, 240, 240, 240]"] * FORKS


@pytest.mark.slow
def test_forked_child_that_ends_as_python_does_ends_well(market: MarketData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            assert set(pool.map(first_answer, [market] * 4)) == {240}


@pytest.mark.slow
def test_spawned_processes_take_it(market: MarketData) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(first_answer, market).result() == 240


def test_pickle_includes_folder_and_settings(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", "mine.yaml")
    monkeypatch.setenv("MARKET_DATA_SQL_SECONDS", "77")
    pickled = pickle.dumps(MarketData("data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARKET_DATA_UNIVERSE")
    market = pickle.loads(pickled)
    assert ASKED[0](market) == 240
    assert market._settings.universe == root.parent / "mine.yaml"
    assert market._views._limits.seconds == 77


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_answer_alike(market: MarketData, again: Callable[[Any], Any]) -> None:
    assert [ask(again(market)) for ask in ASKED] == [240] * 4
    for result in (candles(market), market.sql(COUNT)):
        assert again(result).arrow().equals(result.arrow())


def test_pickled_result_includes_its_rows(market: MarketData) -> None:
    result = candles(market)
    version = result.version
    assert pickle.loads(pickle.dumps(result)).version == version
