"""The OpenAPI document: what it describes is what the server does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.series import Market
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.market import path_name
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.server.conftest import KEY
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The document of a server over a small lake."""
    root: Path = tmp_path_factory.mktemp("openapi") / "data"
    SmallLake(root).put(series("BTCUSDT", "1h"), days_from("2024-01-01", 3))
    app = build_app(load_settings(dir=root), keys=[KEY], hosts=["testserver"])
    return schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("document")

# A range whose start is after its end is valid for the document, which has no word for it. And a text that is no time
# is a text.
EXCLUDED: list[Any] = [positive_data_acceptance]


@schema.exclude(path_regex="^/api/v1/(admin|sql)").parametrize()
@settings(
    max_examples=sized(4, 8),
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case: schemathesis.Case[Any]) -> None:
    answer = case.call_and_validate(excluded_checks=EXCLUDED)
    assert answer.status_code < 500


@schema.include(path_regex="^/api/v1/(admin|sql)").parametrize()
@settings(max_examples=sized(2, 5), derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_routes_with_a_key_refuse_without(case: schemathesis.Case[Any]) -> None:
    answer = case.call()
    assert answer.status_code in (401, 404, 422)


def test_every_data_type_of_the_table_has_a_route(tmp_path: Path) -> None:
    with TestClient(build_app(load_settings(dir=tmp_path)), base_url="http://localhost") as client:
        paths = client.get("/openapi.json").json()["paths"]
    for market in Market:
        for data_type in data_types_of(market):
            end = "/{symbol}/{interval}" if data_type.has_interval else "/{symbol}"
            assert f"/api/v1/market/{path_name(data_type)}{end}" in paths


def test_document_names_the_routes_that_need_a_key(tmp_path: Path) -> None:
    with TestClient(build_app(load_settings(dir=tmp_path)), base_url="http://localhost") as client:
        found = client.get("/openapi.json").json()
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert found["security"] == [{}, {"key": []}]
    assert found["paths"]["/api/v1/sql"]["post"]["security"] == [{"key": []}]
    assert "security" not in found["paths"]["/health"]["get"]
