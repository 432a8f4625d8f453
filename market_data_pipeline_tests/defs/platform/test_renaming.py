"""Records of version 0.1 get the present keys: whole assets, once, with whatever ran in between."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform import renaming
from market_data_pipeline.defs.platform.home import open_instance, prepare_home
from market_data_pipeline.defs.platform.packing import pack
from market_data_pipeline.defs.platform.renaming import rename_assets
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline_tests.support.fakes import KLINES, OTHER, TRADES, Project

OLD = dg.AssetKey(["binance", "spot", "klines", "BTCUSDT", "1h"])
OLD_OTHER = dg.AssetKey(["binance", "spot", "klines", "ETHUSDT", "1h"])
OLD_TRADES = dg.AssetKey(["binance", "spot", "aggTrades", "BTCUSDT"])
OLD_PROFILE = dg.AssetKey(["binance", "spot", "tradeProfile", "BTCUSDT"])
MINE = dg.AssetKey(["mine", "of", "another", "project"])


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def record(instance: dg.DagsterInstance, key: dg.AssetKey, *days: str, tags: dict[str, str] | None = None) -> None:
    """Record days as version 0.1 did: a materialization and a check of each."""
    for day in days:
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day, tags=tags))
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=key, check_name="gaps", passed=True, partition=day)
        )


def checked(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str | None]:
    history = instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(key, "gaps"), limit=100)
    assert all(one.event.dagster_event.asset_check_evaluation_data.asset_key == key for one in history)  # type: ignore[union-attr]
    return {one.partition for one in history}


def recorded(layout: Layout) -> dg.DagsterInstance:
    """Open records as version 0.1 left them."""
    instance = dg.DagsterInstance.from_config(str(prepare_home(layout)))
    record(instance, OLD, "2024-01-01", "2024-01-02")
    record(instance, OLD_OTHER, "2024-01-03")
    record(instance, MINE, "2024-01-04")
    return instance


def test_events_and_checks_move_to_the_present_key(layout: Layout) -> None:
    with recorded(layout) as instance:
        assert rename_assets(instance) == 2
        assert set(instance.all_asset_keys()) == {asset_key_of(KLINES), asset_key_of(OTHER), MINE}
        assert instance.get_materialized_partitions(asset_key_of(KLINES)) == {"2024-01-01", "2024-01-02"}
        assert checked(instance, asset_key_of(KLINES)) == {"2024-01-01", "2024-01-02"}
        newest = instance.get_latest_materialization_event(asset_key_of(OTHER))
        assert newest is not None
        assert newest.asset_materialization is not None
        assert newest.asset_materialization.asset_key == asset_key_of(OTHER)
        assert instance.get_materialized_partitions(MINE) == {"2024-01-04"}
        assert rename_assets(instance) == 0


def test_sources_of_a_profile_are_renamed(layout: Layout) -> None:
    """Otherwise Dagster would show each profile as out of date, with a source that is gone."""
    with recorded(layout) as instance:
        record(instance, OLD_TRADES, "2024-01-01", tags={"dagster/data_version": "a"})
        tags = {
            "dagster/data_version": "b",
            f"dagster/input_data_version/{OLD_TRADES.to_user_string()}": "a",
            f"dagster/input_event_pointer/{OLD_TRADES.to_user_string()}": "7",
        }
        record(instance, OLD_PROFILE, "2024-01-01", tags=tags)
        rename_assets(instance)
        newest = instance.get_latest_materialization_event(asset_key_of(profile_of(TRADES)))
        assert newest is not None
        assert newest.asset_materialization is not None
        source = asset_key_of(TRADES).to_user_string()
        assert newest.asset_materialization.tags == {
            "dagster/data_version": "b",
            f"dagster/input_data_version/{source}": "a",
            f"dagster/input_event_pointer/{source}": "7",
        }


def test_records_of_both_keys_are_merged(layout: Layout) -> None:
    """A process of the new version may have run before, and one of the old version after."""
    with recorded(layout) as instance:
        record(instance, asset_key_of(KLINES), "2024-01-02", "2024-01-05")
        rename_assets(instance)
        record(instance, OLD, "2024-01-06")
        rename_assets(instance)
        days = {"2024-01-01", "2024-01-02", "2024-01-05", "2024-01-06"}
        assert instance.get_materialized_partitions(asset_key_of(KLINES)) == days
        assert checked(instance, asset_key_of(KLINES)) == days
        newest = instance.get_latest_materialization_event(asset_key_of(KLINES))
        assert newest is not None
        assert newest.asset_materialization is not None
        assert newest.asset_materialization.partition == "2024-01-06"
        assert not instance.has_asset_key(OLD)


def test_killed_call_leaves_whole_assets(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []

    def dies(text: str) -> bytes:
        packed.append(text)
        if len(packed) == 8:  # within the second asset
            raise KeyboardInterrupt
        return pack(text)

    with recorded(layout) as instance:
        monkeypatch.setattr(renaming, "pack", dies)
        with pytest.raises(KeyboardInterrupt):
            rename_assets(instance)
        assert {OLD, OLD_OTHER} & set(instance.all_asset_keys())
        for old, new, days in (
            (OLD, asset_key_of(KLINES), {"2024-01-01", "2024-01-02"}),
            (OLD_OTHER, asset_key_of(OTHER), {"2024-01-03"}),
        ):
            assert [
                instance.get_materialized_partitions(key) == checked(instance, key) == days for key in (old, new)
            ].count(True) == 1
        monkeypatch.setattr(renaming, "pack", pack)
        rename_assets(instance)
        assert instance.get_materialized_partitions(asset_key_of(OTHER)) == {"2024-01-03"}


def test_stock_event_log_is_renamed(layout: Layout) -> None:
    """Its JSON is not packed."""
    (layout.dagster_home).mkdir(parents=True)
    (layout.dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        record(instance, OLD, "2024-01-01")
        assert rename_assets(instance) == 1
        assert instance.get_materialized_partitions(asset_key_of(KLINES)) == {"2024-01-01"}
        assert checked(instance, asset_key_of(KLINES)) == {"2024-01-01"}


def test_call_stops_at_its_time_limit(layout: Layout) -> None:
    with recorded(layout) as instance:
        assert rename_assets(instance, seconds=-1) == 0
        assert instance.has_asset_key(OLD)


def test_opening_the_records_renames(layout: Layout) -> None:
    recorded(layout).dispose()
    with open_instance(layout) as instance:
        assert instance.get_materialized_partitions(asset_key_of(KLINES)) == {"2024-01-01", "2024-01-02"}


@pytest.mark.parametrize("by", ["repair", "prune"])
def test_daemon_renames(tmp_path: Path, by: str) -> None:
    """A daemon that no command of ours started has a schedule for it."""
    project = Project(tmp_path)
    with recorded(project.layout) as instance:
        if by == "prune":
            assert project.definitions.resolve_job_def("prune").execute_in_process(instance=instance).success
        else:
            with dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=datetime(2024, 1, 10, 11, 45, tzinfo=UTC),
                repository_def=project.definitions.get_repository_def(),
            ) as context:
                project.definitions.resolve_schedule_def("repair").evaluate_tick(context)
        assert instance.get_materialized_partitions(asset_key_of(KLINES)) == {"2024-01-01", "2024-01-02"}


def test_records_in_memory_need_nothing() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert rename_assets(instance) == 0
