"""The MCP server as the official client sees it: in memory for details, over stdio for the whole."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult

from market_data_pipeline import MarketData
from market_data_pipeline.cli import main
from market_data_pipeline.errors import QueryLimitError
from market_data_pipeline.mcp_server.answers import AnswerLimits, ToolAnswer, cut
from market_data_pipeline.mcp_server.server import mcp_server
from market_data_pipeline.model.findings import Finding, Range, Severity, Verdict
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS, TRADES = series("BTCUSDT", "1h"), series("BTCUSDT")
OUTAGE_US = 1_704_160_800_000_000
"""2024-01-02T02:00."""
TOOLS = ["series", "coverage", "condition", "gaps", "universe", "candles", "sql", "cite"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """Spot: four days of 1h with an outage on the second, none on the fourth, and a provisional one. um: two of 1d."""
    lake = SmallLake(tmp_path_factory.mktemp("mcp") / "data")
    first, second, third, _, fifth = days_from("2024-01-01", 5)
    outage = Finding(
        check="gaps",
        rule=Verdict.OUTAGE,
        severity=Severity.INFO,
        count=1,
        message="1 candle is missing.",
        ranges=(Range(first=OUTAGE_US, last=OUTAGE_US, count=1),),
        evidence="REST has no candle either",
    )
    lake.put(HOURS, [first, third])
    lake.put(HOURS, [second], findings=(outage,))
    lake.put(HOURS, [fifth], final=False)
    lake.put(TRADES, [first])
    lake.put(series("ETHUSDT", "1d", "um"), [first, second], version=1)
    (lake.root / "universe.yaml").write_text(
        "collect: [{market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2024-01-01}}]\n"
    )
    return lake


def session(lake: SmallLake, use: Callable[[Client], Awaitable[Any]], **limits: Any) -> Any:
    """Return what a function makes of a client of a server in memory."""

    async def run() -> Any:
        with mcp_server(lake.root, AnswerLimits(**limits)) as server:
            async with Client(server) as client:
                return await use(client)

    return anyio.run(run)


def call(lake: SmallLake, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the structured content of an answer."""
    result = session(lake, lambda client: client.call_tool(tool, arguments))
    assert not result.is_error, result.content[0].text
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def error_of(result: CallToolResult) -> str:
    """Return the words of an error."""
    assert result.is_error
    text = getattr(result.content[0], "text", "")
    assert "Traceback" not in text
    return str(text)


@pytest.mark.slow
def test_official_client_calls_every_tool_over_stdio(lake: SmallLake, tmp_path: Path) -> None:
    """One session: each tool, a query that would read too much, and a query that never ends. The server lives on."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "market_data_pipeline.cli", "mcp", "--max-files", "3"],
        env={**os.environ, "MARKET_DATA_DIR": str(lake.root)},
        cwd=tmp_path,
    )
    arguments: dict[str, dict[str, Any]] = {
        "universe": {"as_of": "2024-01-03", "market": "um", "lookback": "2 days"},
        "candles": {"symbol": "BTCUSDT", "interval": "1h", "start": "2024-01-01", "end": "2024-01-02"},
        "sql": {"query": "SELECT count(*) AS n FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01', '2024-01-02')"},
        "cite": {"symbols": ["BTCUSDT"], "interval": "1h", "start": "2024-01-01", "end": "2024-01-02"},
    }

    async def use() -> tuple[list[str], dict[str, CallToolResult], CallToolResult, CallToolResult]:
        async with Client(server) as client:
            tools = await client.list_tools()
            answers = {name: await client.call_tool(name, arguments.get(name, {})) for name in TOOLS}
            too_much = await client.call_tool("sql", {"query": "SELECT max(high) FROM binance_spot.klines, range(2)"})
            after = await client.call_tool("series", {})
            return [tool.name for tool in tools.tools], answers, too_much, after

    names, answers, too_much, after = anyio.run(use)
    assert names == TOOLS
    for name, answer in answers.items():
        assert not answer.is_error, (name, answer.content)
        ToolAnswer.model_validate(answer.structured_content)
    rows = {name: answer.structured_content["rows"] for name, answer in answers.items() if answer.structured_content}
    assert [row["symbol"] for row in rows["series"]] == ["BTCUSDT", "BTCUSDT", "ETHUSDT"]
    assert rows["sql"] == [{"n": 24}]
    assert len(rows["candles"]) == 24
    assert [row["symbol"] for row in rows["universe"]] == ["ETHUSDT"]
    said = error_of(too_much)
    assert "would read about" in said
    assert "was not run" in said
    assert "binance_spot.candles('BTCUSDT', '1h'" in said
    assert not after.is_error


def test_tools_are_read_only_and_describe_their_answers(lake: SmallLake) -> None:
    tools = session(lake, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == TOOLS
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert tool.description
        assert {"rows", "units", "missing", "truncated", "version"} <= set(tool.output_schema["properties"])
        described = [one for one in tool.input_schema["properties"].values() if one.get("description")]
        assert len(described) == len(tool.input_schema["properties"])


def test_candles_have_utc_times_units_and_a_version(lake: SmallLake) -> None:
    found = call(lake, "candles", symbol="BTCUSDT", interval="1h", start="2024-01-01", end="2024-01-02")
    assert found["rows"][0]["open_time"] == "2024-01-01T00:00:00Z"
    assert found["units"]["close"] == "quote asset per base asset"
    assert found["units"]["open_time"] == "UTC"
    assert found["version"] == MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").version
    assert (found["truncated"], found["rest"], found["missing"]) == (False, None, [])


def test_candles_say_what_is_missing_and_what_may_change(lake: SmallLake) -> None:
    found = call(lake, "candles", symbol="BTCUSDT", interval="1h", start="2024-01-01", end="2024-01-06")
    absent = {(one["reason"], one["first"], one["explained"]) for one in found["missing"]}
    assert ("missing", "2024-01-04", False) in absent
    assert ("outage", "2024-01-02T02:00:00Z", True) in absent
    assert [(one["first"], one["last"]) for one in found["provisional"]] == [("2024-01-05", "2024-01-05")]
    assert found["days"]["final"] == 2


def test_gap_before_the_start_of_a_range_is_left_out(lake: SmallLake) -> None:
    asked = {"symbol": "BTCUSDT", "interval": "1h", "end": "2024-01-03"}
    around = call(lake, "candles", **asked, start="2024-01-02T01:00")
    assert [one["reason"] for one in around["missing"]] == ["outage"]
    assert call(lake, "candles", **asked, start="2024-01-02T03:00")["missing"] == []


def test_truncated_candles_name_the_next_start(lake: SmallLake) -> None:
    arguments = {"symbol": "BTCUSDT", "interval": "1h", "end": "2024-01-02"}
    first = call(lake, "candles", **arguments, start="2024-01-01", limit=20)
    assert first["truncated"]
    assert first["rest"] == "Call again with start=2024-01-01T20:00:00Z."
    second = call(lake, "candles", **arguments, start="2024-01-01T20:00:00Z", limit=20)
    assert [len(first["rows"]), len(second["rows"]), second["truncated"]] == [20, 4, False]


def test_composed_candles_are_refused_if_they_read_too_much(lake: SmallLake) -> None:
    arguments = {"symbol": "BTCUSDT", "interval": "3h", "start": "2024-01-01", "end": "2024-01-04"}
    assert len(call(lake, "candles", **arguments)["rows"]) == 24
    result = session(lake, lambda client: client.call_tool("candles", arguments), scan_rows=70)
    assert "about 3 files with 72 rows" in (said := error_of(result))
    assert "shorter range" in said


def test_coverage_and_condition_count_the_same_days(lake: SmallLake) -> None:
    asked = {"symbols": ["BTCUSDT"], "interval": "1h", "start": "2024-01-01", "end": "2024-01-06"}
    [counts] = call(lake, "coverage", **asked)["rows"]
    assert (counts["available"], counts["explained"], counts["missing"], counts["pending"]) == (2, 1, 1, 1)
    ranges = call(lake, "condition", **asked)
    assert [(one["first"], one["reason"]) for one in ranges["rows"]] == [
        ("2024-01-01", "final"),
        ("2024-01-02", "outage"),
        ("2024-01-03", "final"),
        ("2024-01-04", "never_fetched"),
        ("2024-01-05", "provisional"),
    ]
    assert [one["reason"] for one in ranges["missing"]] == ["outage", "never_fetched"]


def test_gaps_inside_days_come_with_the_days_that_lack(lake: SmallLake) -> None:
    found = call(lake, "gaps", symbols=["BTCUSDT"], interval="1h")
    [gap] = found["rows"]
    assert (gap["verdict"], gap["first"], gap["explained"]) == ("outage", "2024-01-02T02:00:00Z", True)
    assert "2024-01-04" in [one["first"] for one in found["missing"]]


def test_cite_reproduces_the_version(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call(lake, "cite", symbols=["BTCUSDT"], interval="1h", start="2024-01-01", end="2024-01-03")
    assert [row["day"] for row in found["rows"]] == ["2024-01-01", "2024-01-02"]
    assert [row["source"] for row in found["rows"]] == ["archive_daily"] * 2
    assert found["version"] in found["citation"]
    monkeypatch.setenv("MARKET_DATA_DIR", str(lake.root))
    code, expression = found["reproduce"].splitlines()
    names: dict[str, Any] = {}
    exec(code, names)
    assert eval(expression, names) == found["version"]


def test_cite_works_for_data_without_an_interval(lake: SmallLake) -> None:
    asked = {"symbols": ["BTCUSDT"], "data_type": "aggTrades", "start": "2024-01-01", "end": "2024-01-02"}
    assert call(lake, "cite", **asked)["version"]
    assert "have no interval" in error_of(
        session(lake, lambda client: client.call_tool("cite", {**asked, "interval": "1h"}))
    )


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("candles", {"symbol": "BTCUSD", "interval": "1h", "start": "2024-01-01"}, "Did you mean BTCUSDT?"),
        ("candles", {"symbol": "BTCUSDT", "interval": "1x", "start": "2024-01-01"}, "no kline interval '1x'"),
        ("candles", {"symbol": "BTCUSDT", "interval": "1h", "start": "soon"}, "is not a date"),
        ("candles", {"symbol": "BTCUSDT", "interval": "1h", "start": "2024-01-02", "end": "2024-01-01"}, "is after"),
        ("candles", {"symbol": "BTCUSDT", "interval": "1h", "start": "2024-01-01", "from": 1}, "no argument from"),
        ("candles", {"symbol": "BTCUSDT", "interval": "1h", "start": "2024-01-01", "limit": 0}, "1 to 5,000 rows"),
        ("candles", {"symbol": "../x", "interval": "1h", "start": "2024-01-01"}, "cannot be a symbol"),
        ("candles", {"interval": "1h"}, "symbol"),
        ("coverage", {"symbols": ["BTCUSDX"]}, "Did you mean BTCUSDT?"),
        ("series", {"market": "moon"}, "no market 'moon'"),
        ("condition", {"data_type": "candles"}, "no data type 'candles'"),
        ("gaps", {"symbols": ["NOPE"]}, "NOPE"),
        ("universe", {"as_of": "2019-01-01", "market": "um"}, "2024-01-01"),
        ("cite", {"symbols": [], "interval": "1h", "start": "2024-01-01", "end": "2024-01-02"}, "no symbol"),
    ],
)
def test_bad_arguments_are_errors_in_words(lake: SmallLake, tool: str, arguments: dict[str, Any], said: str) -> None:
    assert said in error_of(session(lake, lambda client: client.call_tool(tool, arguments)))


def test_range_of_all_time_is_answered(lake: SmallLake) -> None:
    asked = {"symbol": "BTCUSDT", "interval": "1h", "start": "0001-01-01", "end": "9999-12-31", "limit": 1}
    found = call(lake, "candles", **asked)
    assert found["rows"][0]["open_time"] == "2024-01-01T00:00:00Z"
    assert found["missing_total"] >= len(found["missing"]) > 0


@pytest.mark.slow
def test_hostile_sql_is_an_error_and_the_server_lives_on(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one session, because each server starts a process for SQL."""
    monkeypatch.setenv("MARKET_DATA_SQL_MEMORY_MB", "64")
    refused = {
        "CREATE TABLE t (a INT)": "One query is answered at a time",
        "SELECT 1; DROP VIEW binance_spot.klines": "One query is answered at a time",
        "COPY (SELECT 1) TO 'x.csv'": "One query is answered at a time",
        "SELECT * FROM read_text('/etc/passwd')": "may read the files of the views",
        "SELECT * FROM nothing": "nothing",
        "SELEC 1": "SELEC",
        "SELECT max(high) FROM binance_spot.klines": "was not run",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t": "second",
        "SELECT repeat('x', 2000000)": "One row has more than",
    }

    async def use(client: Client) -> dict[str, CallToolResult]:
        answers = {query: await client.call_tool("sql", {"query": query}) for query in refused}
        answers["good"] = await client.call_tool("sql", {"query": "VALUES (1), (2), (3) -- three", "limit": 2})
        answers["explained"] = await client.call_tool("sql", {"query": "EXPLAIN SELECT 1;"})
        return answers

    answers = session(lake, use, scan_files=3, seconds=2)
    for query, said in refused.items():
        assert said in error_of(answers[query]), query
    good = answers["good"].structured_content
    assert [list(row.values()) for row in good["rows"]] == [[1], [2]]
    assert good["truncated"]
    assert "LIMIT and OFFSET" in good["rest"]
    assert not answers["explained"].is_error


@pytest.mark.slow
def test_query_that_kills_its_process_leaves_the_server(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB looks at its limits between two pieces of work. One function of one row takes GB without a look."""
    monkeypatch.setenv("MARKET_DATA_SQL_MEMORY_MB", "64")
    greedy = "SELECT length(repeat('x', 3000000000))"

    async def use(client: Client) -> tuple[CallToolResult, CallToolResult]:
        return await client.call_tool("sql", {"query": greedy}), await client.call_tool("sql", {"query": "SELECT 1"})

    killed, after = session(lake, use)
    assert "memory" in error_of(killed)
    assert not after.is_error


@pytest.mark.slow
def test_sql_says_what_is_missing_in_the_series_it_names(lake: SmallLake) -> None:
    query = "SELECT count(*) AS n, max(open_time) AS last FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')"
    found = call(lake, "sql", query=query)
    assert found["rows"] == [{"n": 96, "last": "2024-01-05T23:00:00Z"}]
    assert {one["series"] for one in found["missing"]} == {"binance/spot/klines/BTCUSDT_1h"}
    assert "never_fetched" in [one["reason"] for one in found["missing"]]


def test_web_pages_and_other_hosts_are_refused_over_http(lake: SmallLake) -> None:
    """Before any tool: a page in a browser must not read the data, and neither must a name that leads to loopback."""
    from starlette.testclient import TestClient

    from market_data_pipeline.mcp_server.server import security

    with mcp_server(lake.root, AnswerLimits()) as server:
        app = server.streamable_http_app(stateless_http=True, transport_security=security(8765))
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        with TestClient(app, base_url="http://127.0.0.1:8765") as http:
            accepts = {"Accept": "application/json, text/event-stream"}
            assert http.post("/mcp", json=body, headers={**accepts, "Host": "evil.example"}).status_code == 421
            page = {**accepts, "Origin": "http://localhost:3000"}
            assert http.post("/mcp", json=body, headers=page).status_code == 403
            assert http.post("/mcp", json=body, headers=accepts).status_code not in (403, 421)


def test_port_in_use_is_a_sentence(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(lake.root))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(main, ["mcp", "--http", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "Another program uses the port" in result.output


def test_missing_extra_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["market_data_pipeline.cli.mcp"], "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["mcp"])
    assert result.exit_code == 2
    assert 'pip install "market-data-pipeline[mcp]"' in result.output


@given(st.lists(st.integers(0, 10**6), max_size=20), st.integers(1, 20), st.integers(1, 300))
def test_cut_keeps_the_first_rows_that_fit(numbers: list[int], limit: int, characters: int) -> None:
    rows = [{"n": number} for number in numbers]
    try:
        kept, more = cut(iter(rows), limit, characters)
    except QueryLimitError:
        assert len(str(rows[0])) > characters
        return
    assert kept == rows[: len(kept)]
    assert len(kept) <= limit
    assert more == (len(kept) < len(rows))
