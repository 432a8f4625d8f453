"""Snapshots of exchangeInfo: recorded answers, and the asset from exchange to SQL."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.errors import RestAnswerError
from market_data_pipeline.universe import Universe, parse_universe
from market_data_pipeline.universe.exchange_info import snapshot_of
from market_data_pipeline_tests.support.world import World

AT = datetime(2026, 3, 5, 12, tzinfo=UTC)
RECORDED = "rest/thrasher-corp__gocryptotrader/http.json"


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("/fapi/v1/exchangeInfo", {"tick_size": 0.1, "step_size": 0.001, "min_notional": 100, "contract_size": None}),
        ("/dapi/v1/exchangeInfo", {"tick_size": 0.1, "step_size": 1, "min_notional": None, "contract_size": 100}),
    ],
)
def test_recorded_answers_of_futures_are_read(realdata: Path, path: str, first: dict[str, Any]) -> None:
    answer = json.loads((realdata / RECORDED).read_text())["routes"][path]["GET"][0]["data"]
    table = snapshot_of(answer, AT)
    rows = {row["symbol"]: row for row in table.to_pylist()}
    assert len(rows) == len(answer["symbols"])
    row = rows[answer["symbols"][0]["symbol"]]
    assert {name: row[name] for name in first} == first
    assert (row["status"], row["contract_type"], row["delivery_date"]) == ("TRADING", "PERPETUAL", None)
    assert row["onboard_date"] in (date(2019, 9, 25), date(2020, 8, 10))


def test_recorded_answer_of_spot_is_read(realdata: Path) -> None:
    answer = json.loads((realdata / RECORDED).read_text())["routes"]["/api/v3/exchangeInfo"]["GET"][0]["data"]
    table = snapshot_of(answer, AT)
    (row,) = [row for row in table.to_pylist() if row["symbol"] == "ETHBTC"]
    assert (row["tick_size"], row["step_size"], row["quote_asset"]) == (0.00001, 0.0001, "BTC")
    assert json.loads(row["filters"])[0]["filterType"] == "PRICE_FILTER"


@pytest.mark.parametrize("answer", [{}, {"symbols": []}, {"symbols": [{"symbol": "BTCUSDT"}]}, []])
def test_answer_of_another_form_is_refused(answer: object) -> None:
    with pytest.raises(RestAnswerError, match="exchangeInfo"):
        snapshot_of(answer, AT)


def test_snapshots_of_days_are_rows_in_sql(world: World) -> None:
    klines = "klines: {intervals: [1d], from: 2026-03-01}"
    text = f"""collect:
      - {{market: [spot, um], symbols: BTCUSDT, {klines}}}
      - {{market: cm, symbols: BTCUSD_PERP, {klines}}}
    """
    collected = Universe(parse_universe(text), {})
    definitions = build_definitions(world.settings, collected)
    for at in ("2026-03-05T00:10", "2026-03-05T23:00", "2026-03-06T00:10"):
        world.at(at)
        with dg.instance_for_test() as instance:
            assert definitions.resolve_job_def("exchange_info").execute_in_process(instance=instance).success
    found = MarketData(world.settings.root).sql(
        "SELECT market, CAST(day AS VARCHAR) AS day, status, onboard_date IS NOT NULL AS dated "
        "FROM universe.exchange_info WHERE base_asset = 'BTC' AND tick_size > 0 AND step_size > 0 ORDER BY ALL"
    )
    assert {tuple(row.values()) for row in found.arrow().to_pylist()} == {
        (market, day, "TRADING", market != "spot")
        for market in ("cm", "spot", "um")
        for day in ("2026-03-05", "2026-03-06")
    }
