"""Formats: every one has the same rows, and a client gets what it accepts."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS = "/api/v1/market/candles/BTCUSDT/1h"
SPAN = {"start_time": "2024-01-01", "end_time": "2024-01-03"}
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


def table_of(body: bytes, media: str) -> pa.Table:
    if media == ARROW:
        return pa.ipc.open_stream(body).read_all()
    if media == PARQUET:
        return pq.read_table(io.BytesIO(body))
    return pyarrow.csv.read_csv(io.BytesIO(body))


def plain(table: pa.Table) -> dict[str, list[Any]]:
    """Return the rows with times as microseconds and numbers as floats, as CSV has no types."""
    found = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        found[name] = column.cast(pa.float64()).to_pylist()
    return found


@pytest.mark.parametrize("media", [ARROW, PARQUET, "text/csv"])
def test_every_format_has_the_rows_of_json(client: TestClient, media: str) -> None:
    as_json = client.get(HOURS, params=SPAN).json()
    answer = client.get(HOURS, params=SPAN, headers={"Accept": media})
    assert answer.headers["content-type"].partition(";")[0] == media
    found = plain(table_of(answer.content, media))
    assert found == {name: [float(value) for value in values] for name, values in as_json["columns"].items()}
    assert answer.headers["x-content-version"] == as_json["version"]


@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_binary_formats_have_the_facts_in_their_schema(client: TestClient, media: str) -> None:
    as_json = client.get(HOURS, params=SPAN).json()
    schema = table_of(client.get(HOURS, params=SPAN, headers={"Accept": media}).content, media).schema
    facts = json.loads(schema.metadata[b"market_data"])
    del as_json["columns"]
    assert facts == as_json
    assert schema.field("open_time").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("text/csv;q=0.5, application/vnd.apache.arrow.stream", ARROW),
        ("application/json;q=0, */*", ARROW),
        ("text/*", "text/csv"),
        ("application/json;q=x, text/csv;q=0.1", "text/csv"),
    ],
)
def test_format_is_what_the_client_accepts_most(client: TestClient, accept: str | None, media: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert client.get(HOURS, params=SPAN, headers=headers).headers["content-type"].partition(";")[0] == media


def test_format_in_the_query_goes_before_the_header(client: TestClient) -> None:
    answer = client.get(HOURS, params={**SPAN, "format": "csv"}, headers={"Accept": ARROW})
    assert answer.headers["content-type"].startswith("text/csv")


def test_unknown_format_is_not_acceptable(client: TestClient) -> None:
    answer = client.get(HOURS, params=SPAN, headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert ARROW in answer.json()["detail"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_json_is_compressed_as_accepted(client: TestClient, coding: str) -> None:
    plain_answer = client.get(HOURS, params=SPAN, headers={"Accept-Encoding": "identity"})
    with client.stream("GET", HOURS, params=SPAN, headers={"Accept-Encoding": coding}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["etag"] != plain_answer.headers["etag"]
    size = len(plain_answer.content)
    body = gzip.decompress(raw) if coding == "gzip" else pa.Codec("zstd").decompress(raw, size, asbytes=True)
    assert body == plain_answer.content


def test_small_and_binary_answers_are_not_compressed(client: TestClient) -> None:
    small = client.get(HOURS, params={**SPAN, "limit": 1, "columns": "open"}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers
    binary = client.get(HOURS, params=SPAN, headers={"Accept-Encoding": "gzip", "Accept": ARROW})
    assert "content-encoding" not in binary.headers


def test_columns_of_choice_have_the_time_first(client: TestClient) -> None:
    answer = client.get(HOURS, params={**SPAN, "columns": "close,open"})
    assert list(answer.json()["columns"]) == ["open_time", "close", "open"]
    with_symbol = client.get(HOURS, params={**SPAN, "columns": "symbol,close"}).json()
    assert set(with_symbol["columns"]["symbol"]) == {"BTCUSDT"}


def test_every_data_type_has_a_route(client: TestClient, lake: SmallLake) -> None:
    kinds = {
        "trades": "spot",
        "metrics": "um",
        "book-depth": "um",
        "book-ticker": "um",
        "liquidation-snapshot": "um",
        "funding-rate": "um",
    }
    for name, market in kinds.items():
        data_type = name.split("-")[0] + "".join(part.title() for part in name.split("-")[1:])
        lake.put(series("ETHUSDT", market=market, data_type=data_type), days_from("2024-01-01", 2))
        for form in ("json", "csv", "arrow", "parquet"):
            answer = client.get(f"/api/v1/market/{name}/ETHUSDT", params={"start_time": "2024-01-01", "format": form})
            assert answer.status_code == 200, answer.text
        assert answer.headers["x-content-version"]
    for name in ("mark-price-klines", "index-price-klines", "premium-index-klines"):
        data_type = name.split("-")[0] + "".join(part.title() for part in name.split("-")[1:])
        lake.put(series("ETHUSDT", "1h", "um", data_type), days_from("2024-01-01", 2))
        answer = client.get(f"/api/v1/market/{name}/ETHUSDT/1h", params={"start_time": "2024-01-01"})
        assert answer.status_code == 200, answer.text
