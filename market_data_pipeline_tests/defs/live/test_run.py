"""The live feed in Dagster: observations of its status, and the check of its rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline import clock
from market_data_pipeline.defs.live.definitions import build_live_assets, build_live_checks, build_live_sensor
from market_data_pipeline.lake.feed_status import write_status
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_eviction import LiveComparison, comparisons_file
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.support.world import utc

MARKETS = (Market.SPOT, Market.UM)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(clock, "now", lambda: utc("2026-03-01T12:00:30"))
    return Settings(dir=tmp_path, _env_file=None)  # type: ignore[call-arg]  # pydantic's own


def write(settings: Settings, updated_at: str) -> None:
    series = {
        "binance/spot/klines/BTCUSDT/1m": {"lateness_seconds": 31.5, "open_gaps": 0},
        "binance/spot/klines/ETHUSDT/1m": {"lateness_seconds": 91.5, "open_gaps": 1},
    }
    status = {
        "updated_at": updated_at,
        "markets": {"spot": {"connections": 1, "reconnects": 2, "messages": 99, "seconds_without_data": 0.5}},
        "series": series,
    }
    write_status(Layout(settings.root), status)


def compare(settings: Settings, *found: LiveComparison) -> None:
    path = comparisons_file(Layout(settings.root))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in found))


def look(settings: Settings, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    sensor = build_live_sensor(MARKETS, settings)
    result = sensor(dg.build_sensor_context(cursor=cursor))
    assert isinstance(result, (dg.SensorResult, dg.SkipReason))
    return result


def test_a_running_feed_is_observed(settings: Settings) -> None:
    write(settings, "2026-03-01T12:00:29.000Z")
    result = look(settings)
    assert isinstance(result, dg.SensorResult)
    (event,) = result.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert event.asset_key.to_user_string() == "binance/spot/spot_live"
    values = {name: value.value for name, value in event.metadata.items()}
    assert (values["series"], values["open gaps"], values["greatest lateness (s)"]) == (2, 1, 91.5)
    assert (values["latest series"], values["reconnects"]) == ("binance/spot/klines/ETHUSDT/1m", 2)


@pytest.mark.parametrize("updated_at", [None, "2026-03-01T11:00:00.000Z", "nonsense"])
def test_a_feed_that_does_not_run_is_no_observation(settings: Settings, updated_at: str | None) -> None:
    if updated_at is not None:
        write(settings, updated_at)
    result = look(settings, cursor="0")
    assert isinstance(result, dg.SkipReason)
    assert "market-data live" in str(result.skip_message)


EQUAL = LiveComparison("binance/spot/klines/BTCUSDT/1m", "2026-02-27", 1440, 0, 0, True)
OTHER = LiveComparison("binance/spot/klines/BTCUSDT/1m", "2026-02-28", 1440, 3, 0, True)


def test_new_comparisons_evaluate_the_check_once(settings: Settings) -> None:
    compare(settings, EQUAL, OTHER)
    result = look(settings)
    assert isinstance(result, dg.SensorResult)
    (event,) = result.asset_events
    assert isinstance(event, dg.AssetCheckEvaluation)
    assert (event.check_name, event.passed) == ("live_equals_archive", False)
    assert event.metadata["changed"].value == 3
    assert isinstance(look(settings, cursor=result.cursor), dg.SkipReason)


def test_the_check_says_what_the_archive_changed(settings: Settings) -> None:
    assets, checks = build_live_assets(MARKETS), build_live_checks(MARKETS, settings)
    definitions = dg.Definitions(assets=assets, asset_checks=checks)
    dg.Definitions.validate_loadable(definitions)
    spot: Any = checks[0]
    assert spot().passed
    compare(settings, EQUAL, OTHER)
    result = spot()
    assert not result.passed
    assert "2026-02-28 of binance/spot/klines/BTCUSDT/1m: 3 rows changed" in result.description


def test_sensor_looks_seldom_until_a_feed_ran(settings: Settings) -> None:
    assert build_live_sensor(MARKETS, settings).minimum_interval_seconds == 600
    write(settings, "2026-03-01T12:00:29.000Z")
    assert build_live_sensor(MARKETS, settings).minimum_interval_seconds == 60
