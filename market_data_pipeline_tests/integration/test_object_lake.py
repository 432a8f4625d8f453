"""A lake in SeaweedFS: commands work as on disk, also when requests fail and processes are killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from market_data_pipeline import MarketData as Client
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.day_records import is_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.lake.storage import bucket as bucket_module
from market_data_pipeline.lake.storage.objects import forget_connections, objects_of
from market_data_pipeline.model.places import place_of, register
from market_data_pipeline.settings import PREFIX
from market_data_pipeline_tests.support.bucket import Proxy, rclone, seaweed, use
from market_data_pipeline_tests.support.processes import PYTHON
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series
from market_data_pipeline_tests.support.world import World, days, klines

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("buckets")]

BTC = klines("BTCUSDT", "1h")
WANTED = days("2026-01-01", "2026-03-04")
COUNT = "SELECT count(*) AS n FROM binance_spot.klines"
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"
KILLED = """
import os, signal, sys
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.storage.bucket import Bucket
from market_data_pipeline.model.places import place_of, register
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series
root = place_of(sys.argv[1]); register(root, __import__("pathlib").Path(sys.argv[2]))
left, put = int(sys.argv[3]), Bucket.put
def die(self, name, data, **condition):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(self, name, data, **condition)
Bucket.put = die
lake, key = SmallLake(root), series("BTCUSDT", "1d")
with storage.only_writer(lake.layout.lock(key), 5, "BTC"):
    lake.put(key, days_from("2024-01-01", 8))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture
def proxy(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv(f"{PREFIX}LOCAL_DIR", str(tmp_path / "local"))
    with Proxy(store) as proxy:
        use(monkeypatch, proxy.url)
        yield proxy
    forget_connections()


@pytest.fixture
def lake(proxy: Proxy, tmp_path: Path) -> SmallLake:
    root = place_of(f"s3://lake/{tmp_path.name}")
    register(root, tmp_path / "local")
    return SmallLake(root)


@pytest.fixture
def market_data(world: World, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    root = f"s3://lake/{tmp_path.name}"
    run = shell(world, monkeypatch, UNIVERSE, LOCK, dir=root, local_dir=str(tmp_path / "local"))
    world.set(dir=Path(root), local_dir=tmp_path / "local")
    world.layout = Layout(world.settings.root)
    return run


def test_commands_work_on_a_lake_in_a_bucket(
    market_data: MarketData, world: World, proxy: Proxy, tmp_path: Path
) -> None:
    """Days are fetched, read, verified, closed and copied to a folder. Requests are few."""
    assert {type(one).__name__ for one in world.ingest(BTC, WANTED)} == {"DayOutcome"}
    days_put = [name for name in proxy.requests if name == "PUT"]
    assert days_put
    others = sum(proxy.requests.values()) - len(WANTED)
    assert others <= 15, proxy.requests
    rows = market_data("sql", COUNT).stdout
    assert "1512" in rows
    assert "63 files of 1 series" in market_data("verify", "--local").output
    assert market_data("compact").exit_code == 0
    assert len(day_files(world.layout, BTC)) == len(WANTED)
    assert market_data("sql", COUNT).stdout == rows

    with_bucket = Client(str(world.layout.root))
    proxy.requests.clear()
    assert with_bucket.klines("BTCUSDT", "1h", "2026-03-02", "2026-03-03").df().shape[0] == 24
    # The folders of days and of months, the ledger and the file. Listings are cached for two seconds.
    assert sum(proxy.requests.values()) <= 4, proxy.requests

    assert "copied to" in market_data("copy", str(tmp_path / "copy")).output
    again = market_data("copy", str(tmp_path / "copy"))
    assert "0 files with 0 bytes" in again.output
    on_disk = Client(tmp_path / "copy").klines("BTCUSDT", "1h", "2026-01-01", "2026-03-05").arrow()
    assert on_disk == with_bucket.klines("BTCUSDT", "1h", "2026-01-01", "2026-03-05").arrow()
    assert is_as_on_disk(Layout(tmp_path / "copy"), BTC)


@pytest.mark.parametrize("fault", ["cut", "silent", "503"])
def test_failed_requests_are_repeated(lake: SmallLake, proxy: Proxy, fault: str) -> None:
    """Every fifth request fails once: before it is done, after it, or by an answer that asks for a pause."""
    count, key, wanted = 0, series("BTCUSDT", "1d"), days_from("2024-01-01", 12)

    def every_fifth(method: str, path: str) -> str | None:
        nonlocal count
        count += 1
        return fault if count % 5 == 0 else None

    proxy.fault = every_fifth
    with storage.only_writer(lake.layout.lock(key), 5, "BTC"):
        lake.put(key, wanted)
    proxy.fault = lambda method, path: None
    assert list(day_files(lake.layout, key)) == wanted
    assert is_as_on_disk(lake.layout, key)
    names = [one.name for page in objects_of(lake.root).bucket.pages(lake.root.name + "/lake") for one in page]  # type: ignore[arg-type]
    assert len(names) == len(wanted)


@pytest.mark.parametrize("puts", [2, 5, 9, 10])
def test_killed_writer_loses_and_doubles_nothing(lake: SmallLake, tmp_path: Path, puts: int) -> None:
    """It is killed before it takes its token, at days, and before the ledger. The next writer finds what it stored."""
    key, wanted = series("BTCUSDT", "1d"), days_from("2024-01-01", 8)
    storage.put(lake.root / "quality" / "begun.json", b"{}")  # the store is checked
    command = [PYTHON, "-c", KILLED, str(lake.root), str(tmp_path / "local"), str(puts)]
    killed = subprocess.run(command, check=False, timeout=120, cwd=Path(__file__).parents[2], env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    objects_of(lake.root)._folders.clear()  # type: ignore[arg-type]
    assert len(day_files(lake.layout, key)) == max(0, puts - 2)
    with storage.only_writer(lake.layout.lock(key), 5, "BTC"):
        lake.put(key, wanted)
    assert list(day_files(lake.layout, key)) == wanted
    assert is_as_on_disk(lake.layout, key)


def test_store_without_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = place_of("s3://lake/a")
    register(root, tmp_path / "local")
    with rclone(tmp_path / "rclone") as url:
        use(monkeypatch, url)
        with pytest.raises(StorageError, match="ignores If-None-Match and If-Match, so two writers would overwrite"):
            SmallLake(root).put(series("BTCUSDT", "1d"), days_from("2024-01-01", 1))
    forget_connections()


@pytest.mark.parametrize(
    ("fault", "keys", "words"),
    [
        ("", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses the keys. Check AWS_ACCESS_KEY_ID"),
        ("", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer. Check AWS_ENDPOINT_URL"),
        ("skew", {}, "the clock of this machine differs from the store's"),
        ("region", {}, "is in another region. Set AWS_REGION"),
        ("503", {}, "refuses so many requests"),
        ("cut", {}, "does not answer"),
    ],
    ids=["keys", "address", "skew", "region", "busy", "cut"],
)
def test_lasting_faults_are_told_in_words(
    lake: SmallLake, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fault: str, keys: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(bucket_module, "_RETRIES", 1)
    use(monkeypatch, keys.pop("AWS_ENDPOINT_URL", proxy.url), **keys)
    proxy.fault = lambda method, path: fault or None
    with pytest.raises(StorageError) as told:
        lake.put(series("BTCUSDT", "1d"), days_from("2024-01-01", 1))
    assert words in str(told.value)


def test_readers_see_each_day_once_while_a_writer_replaces_it(lake: SmallLake) -> None:
    key, [day] = series("BTCUSDT", "1h"), days_from("2024-01-01", 1)
    lake.put(key, [day])
    client = Client(str(lake.root))
    for version in range(1, 6):
        with storage.only_writer(lake.layout.lock(key), 5, "BTC"):
            lake.put(key, [day], version=version)
        rows = client.klines("BTCUSDT", "1h", day, day + (day_after := days_from("2024-01-01", 2)[1] - day)).arrow()
        assert day_after.days == 1
        assert rows["volume"].to_pylist() == day_table(key, day, version)["volume"].to_pylist()
