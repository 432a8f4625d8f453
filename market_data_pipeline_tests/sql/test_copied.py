"""A data folder that was copied or moved: its catalog answers from its own folder, or says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.sql.publish import publish_catalog, refresh_catalog
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS = series("BTCUSDT", "1h")
COUNT = "SELECT count(*) FROM {}binance_spot.klines"
QUERIES = (
    COUNT,
    "SELECT count(*) FROM {}binance_spot.candles('BTCUSDT', '1h', '2024-01-02')",
    "SELECT count(*) FROM {}binance_spot.klines WHERE symbol = 'NOSUCH'",
    "SELECT count(*) FROM {}quality.coverage",
    "SELECT count(*) FROM {}quality.findings",
)
WHAT_TO_DO = "market-data.status"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A published lake of five days."""
    lake = SmallLake(tmp_path / "original")
    lake.put(HOURS, days_from("2024-01-01", 5))
    publish_catalog(lake.layout)
    return lake.root


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, which stays as and where it is."""
    lake = SmallLake(tmp_path_factory.mktemp("kept") / "original")
    lake.put(HOURS, days_from("2024-01-01", 5))
    publish_catalog(lake.layout)
    return lake.root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it, of which a day was removed."""
    shutil.copytree(original, tmp_path / "copy")
    Layout(tmp_path / "copy").file(HOURS, date(2024, 1, 1)).unlink()
    return tmp_path / "copy"


def ask(catalog: Path, query: str = COUNT) -> Any:
    with duckdb.connect(catalog, read_only=True) as connection:
        return connection.execute(query.format("")).fetchone()


def attached(query: str, **catalogs: Path) -> Any:
    with duckdb.connect() as connection:
        for name, root in catalogs.items():
            connection.execute(f"ATTACH '{root}/catalog.duckdb' AS {name} (READ_ONLY)")
        return connection.execute(query).fetchone()


def test_catalog_of_a_copy_does_not_answer_for_the_original(original: Path, copy: Path) -> None:
    for query in QUERIES:
        assert ask(original / "catalog.duckdb", query) is not None
        with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
            ask(copy / "catalog.duckdb", query)
        with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
            attached(query.format("copied."), copied=copy)
    publish_catalog(Layout(copy))
    for query in QUERIES:
        assert ask(copy / "catalog.duckdb", query) is not None
    assert ask(copy / "catalog.duckdb") == (96,)


def test_catalog_of_a_moved_folder_explains_the_remedy(original: Path) -> None:
    moved = original.rename(original.with_name("moved"))
    for query in QUERIES:
        with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
            ask(moved / "catalog.duckdb", query)
    SmallLake(original).put(HOURS, days_from("2024-01-01", 1))  # another lake takes its place
    for query in QUERIES:
        with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
            ask(moved / "catalog.duckdb", query)


@pytest.mark.parametrize("arguments", [("status",), ("coverage",), ("sql", "SELECT 1")], ids=" ".join)
def test_commands_update_the_catalog_of_a_copy(
    copy: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(copy))
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(copy / "universe.yaml"))
    (copy / "universe.yaml").write_text(
        "collect:\n  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2024-01-01}}\n"
    )
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert ask(copy / "catalog.duckdb") == (96,)


def test_folder_without_catalog_or_unwritable_is_left_alone(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_catalog(Layout(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("The disk is read-only.")

    monkeypatch.setattr(storage, "put", refuse)
    refresh_catalog(Layout(copy))
    with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
        ask(copy / "catalog.duckdb")


def through_a_link(original: Path) -> Path:
    link = original.with_name("link")
    link.symlink_to(original)
    return link / "catalog.duckdb"


def below_a_linked_parent(original: Path) -> Path:
    link = original.parent / "parent"
    link.symlink_to(original.parent)
    return link / "original" / "catalog.duckdb"


def with_another_name(original: Path) -> Path:
    return Path(shutil.copyfile(original / "catalog.duckdb", original / "mine.duckdb"))


def by_a_winding_path(original: Path) -> Path:
    return Path(f"{original}/../original/./catalog.duckdb")


WAYS = [through_a_link, below_a_linked_parent, with_another_name, by_a_winding_path]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_catalog_answers_whatever_way_leads_to_it(kept: Path, way: Callable[[Path], Path]) -> None:
    assert ask(way(kept)) == (120,)


def test_catalog_answers_from_any_working_directory(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept)
    assert ask(Path("catalog.duckdb")) == (120,)
    monkeypatch.chdir(kept.parent)
    assert ask(Path("original/catalog.duckdb")) == (120,)
    assert attached(COUNT.format("x."), x=Path("original")) == (120,)


def test_catalog_of_a_linked_data_folder_answers(original: Path) -> None:
    """``MARKET_DATA_DIR`` is a link itself."""
    link = original.with_name("link")
    link.symlink_to(original)
    publish_catalog(Layout(link))
    assert ask(link / "catalog.duckdb") == ask(original / "catalog.duckdb") == (120,)


def test_catalog_copied_alone_explains_the_remedy(kept: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copyfile(kept / "catalog.duckdb", tmp_path / "alone.duckdb"))
    with pytest.raises(duckdb.Error, match=r"open .*original/catalog\.duckdb"):
        ask(alone)


def test_catalogs_attached_together_answer_each_for_itself(original: Path, copy: Path) -> None:
    with pytest.raises(duckdb.Error, match=WHAT_TO_DO):
        attached(COUNT.format("b."), a=original, b=copy)
    publish_catalog(Layout(copy))
    both = f"SELECT ({COUNT.format('a.')}), ({COUNT.format('b.')})"
    assert attached(both, a=original, b=copy) == (120, 96)
    assert attached(both, b=copy, a=original) == (120, 96)
    with duckdb.connect(original / "catalog.duckdb", read_only=True) as connection:
        connection.execute(f"ATTACH '{copy}/catalog.duckdb' AS b (READ_ONLY)")
        assert connection.execute(COUNT.format("b.")).fetchone() == (96,)
        assert connection.execute(COUNT.format("")).fetchone() == (120,)
