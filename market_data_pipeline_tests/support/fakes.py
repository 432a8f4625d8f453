"""An ``ingest`` without sources: it writes small days into a real lake, and fails where a test says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.in_process import materialize_days
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import NOT_LISTED, DayRecord, Failed, after, record_of
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome, DayResult, OnResult
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe, parse_universe

FETCHED_AT = datetime(2024, 3, 1, tzinfo=UTC)
KLINES = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1h")
OTHER = SeriesKey("binance", Market.SPOT, DataType.KLINES, "ETHUSDT", "1h")
TRADES = SeriesKey("binance", Market.SPOT, DataType.AGG_TRADES, "BTCUSDT")
PROFILE = SeriesKey("binance", Market.SPOT, DataType.TRADE_PROFILE, "BTCUSDT")

UNIVERSE = """
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1h], from: 2024-01-01}
  - market: spot
    symbols: BTCUSDT
    aggTrades: {from: 2024-01-01}
  - market: cm
    symbols: BTCUSD_PERP
    klines: {intervals: [1m], from: 2024-01-05}
"""


def universe_of(text: str = UNIVERSE, listings: dict[tuple[Market, str], ListingSpans] | None = None) -> Universe:
    return Universe(parse_universe(text), listings or {})


def day(number: int) -> date:
    """A day of January 2024."""
    return date(2024, 1, number)


def kline_rows(key: SeriesKey, when: date) -> pa.Table:
    start = datetime(when.year, when.month, when.day)  # noqa: DTZ001  # the lake's times have no zone
    hours = [start + timedelta(hours=n) for n in range(24)]
    prices = [100.0 + when.day + n for n in range(24)]
    columns: dict[str, list[Any]] = {
        "symbol": [key.symbol] * 24,
        "interval": [key.interval] * 24,
        "open_time": hours,
        "open": prices,
        "high": [price + 1 for price in prices],
        "low": [price - 1 for price in prices],
        "close": [price + 0.5 for price in prices],
        "volume": [1.0] * 24,
        "close_time": [hour + timedelta(hours=1, microseconds=-1) for hour in hours],
        "quote_volume": prices,
        "count": [1] * 24,
        "taker_buy_volume": [0.5] * 24,
        "taker_buy_quote_volume": prices,
    }
    schema = lake_schema(key.market, key.data_type)
    names = {"quote_volume": "base_volume", "taker_buy_quote_volume": "taker_buy_base_volume"}
    if key.market is Market.CM:
        columns = {names.get(name, name): values for name, values in columns.items()}
    return pa.table(columns, schema=schema)


def trade_rows(key: SeriesKey, when: date) -> pa.Table:
    start = datetime(when.year, when.month, when.day)  # noqa: DTZ001  # the lake's times have no zone
    first = when.day * 10
    return pa.table(
        {
            "symbol": [key.symbol] * 10,
            "agg_trade_id": list(range(first, first + 10)),
            "price": [100.0 + n for n in range(10)],
            "quantity": [1.0] * 10,
            "first_trade_id": list(range(first, first + 10)),
            "last_trade_id": list(range(first, first + 10)),
            "transact_time": [start + timedelta(hours=n) for n in range(10)],
            "is_buyer_maker": [n % 2 == 0 for n in range(10)],
            "is_best_match": [True] * 10,
        },
        schema=lake_schema(key.market, key.data_type),
    )


def hold(
    layout: Layout, key: SeriesKey, when: date, *, final: bool = True, findings: tuple[Finding, ...] = ()
) -> DayRecord:
    """Write a day as ``ingest`` would."""
    table = (kline_rows if key.data_type is DataType.KLINES else trade_rows)(key, when)
    keys = table.column("open_time" if key.interval else "agg_trade_id").cast(pa.int64()).to_pylist()
    part = Part(
        source=Source.ARCHIVE_DAILY if final else Source.REST,
        url=f"https://archive.example/{key}/{when}.zip",
        first_row=0,
        rows=table.num_rows,
        fetched_at=FETCHED_AT,
        sha256="ab" * 32 if final else None,
        checksum=ChecksumStatus.VERIFIED if final else None,
    )
    record = Provenance(
        series=str(key),
        day=when,
        parts=(part,),
        final=final,
        fetched_at=FETCHED_AT,
        rows=table.num_rows,
        first_key=keys[0],
        last_key=keys[-1],
        content_sha256=content_sha256(table),
        findings=findings,
    )
    stat = parquet.write_table(layout.file(key, when), table, record)
    row = record_of(record, stat)
    put(layout, key, row)
    return row


def put(layout: Layout, key: SeriesKey, row: DayRecord) -> None:
    """Set a row of a series' ledger."""
    ledger = Ledger.read(layout.ledger(key))
    ledger.put(row)
    ledger.write(layout.ledger(key))


@dataclass
class FakeIngest:
    """Stands in for ``ingest.run.ingest``.

    Attributes:
        bad: Days that fail, with kind and reason.
        findings: What checks find on a day.
        provisional: Days that come from REST.
        fetched: The days that were not held before, in the order in which they were asked for.
    """

    bad: dict[tuple[SeriesKey, date], tuple[str, str]] = field(default_factory=dict)
    findings: dict[tuple[SeriesKey, date], tuple[Finding, ...]] = field(default_factory=dict)
    provisional: set[date] = field(default_factory=set)
    fetched: list[tuple[SeriesKey, date]] = field(default_factory=list)

    def __call__(
        self,
        key: SeriesKey,
        days: Sequence[date],
        *,
        layout: Layout,
        sources: Sources,
        settings: Settings,
        listing: ListingSpans | None = None,
    ) -> Iterator[DayResult]:
        for when in days:
            yield self._bring(key, when, layout, listing or ListingSpans())

    def _bring(self, key: SeriesKey, when: date, layout: Layout, listing: ListingSpans) -> DayResult:
        known = Ledger.read(layout.ledger(key)).get(when)
        if not listing.covers(when):
            row = DayRecord(day=when, outcome=NOT_LISTED, final=True)
            put(layout, key, row)
            return DayOutcome(key, when, row, Action.NOT_LISTED)
        if (key, when) in self.bad:
            kind, reason = self.bad[key, when]
            row = after(known, when, Failed(kind, reason, FETCHED_AT))
            put(layout, key, row)
            self.fetched.append((key, when))
            return DayFailure(key, when, kind, reason, row, 0.1, 0)
        if known is not None and known.is_stored_final:
            return DayOutcome(key, when, known, Action.HELD)
        self.fetched.append((key, when))
        row = hold(layout, key, when, final=when not in self.provisional, findings=self.findings.get((key, when), ()))
        return DayOutcome(key, when, row, Action.FETCHED, 0.1, 1000)


OPENED: list[dg.DagsterInstance] = []
"""Instances that the fixture ``_instances_are_closed`` closes after each test: one that is left warns, in any test."""


class Project:
    """The definitions of a small universe over a folder, with a fake ``ingest`` and an ephemeral instance."""

    def __init__(
        self, root: Path, universe: Universe | None = None, on_result: OnResult | None = None, **settings: Any
    ) -> None:
        self.settings = Settings(dir=root, _env_file=None, **settings)  # type: ignore[call-arg]  # pydantic's own
        self.layout = Layout(self.settings.root)
        self.universe = universe or universe_of()
        self.ingest = FakeIngest()
        self.seen: list[DayResult] = []
        self.definitions = build_definitions(
            self.settings, self.universe, ingest_days=self.ingest, on_result=on_result or self.seen.append
        )
        self.instance = dg.DagsterInstance.ephemeral()
        OPENED.append(self.instance)

    def schedules(self) -> list[dg.ScheduleDefinition]:
        """All schedules."""
        return list(self.definitions.get_repository_def().schedule_defs)

    def run(self, first: int, last: int, *keys: SeriesKey) -> dg.ExecuteInProcessResult:
        """One run over a range of days of January 2024."""
        return materialize_days(self.instance, self.definitions, keys or [KLINES], day(first), day(last))

    def run_one_partition(self, number: int, key: SeriesKey = KLINES) -> dg.ExecuteInProcessResult:
        """One run of one partition, as a click on it starts."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            partition_key=str(day(number)),
            asset_selection=[asset_key_of(key)],
            raise_on_error=False,
        )

    def status(self, key: SeriesKey = KLINES) -> dict[str, set[int]]:
        """Days of January 2024 by what the UI shows of their partition: MATERIALIZED, FAILED."""
        definition = self.definitions.resolve_assets_def(asset_key_of(key)).partitions_def
        assert definition is not None
        names = [name for name in definition.get_partition_keys() if name.startswith("2024-01")]
        states = self.instance.get_status_by_partition(asset_key_of(key), names, definition) or {}
        return _days_by({name: state.value for name, state in states.items() if state is not None})

    def missing(self, key: SeriesKey = KLINES) -> list[str]:
        """Partitions that the UI shows as missing."""
        definition = self.definitions.resolve_assets_def(asset_key_of(key)).partitions_def
        assert definition is not None
        materialized = self.instance.get_materialized_partitions(asset_key_of(key))
        return [name for name in definition.get_partition_keys() if name not in materialized]

    def checks(self, name: str, key: SeriesKey = KLINES) -> dict[str, set[int]]:
        """Days of January 2024 by what the UI shows of a check: SUCCEEDED, FAILED, EXECUTION_FAILED."""
        check = dg.AssetCheckKey(asset_key_of(key), name)
        definition = self.definitions.resolve_assets_def(asset_key_of(key)).partitions_def
        state = self.instance.event_log_storage.get_asset_check_state([(check, definition)])[check]
        shown = {}
        for status, subset in state.subsets.items():
            for partition in subset.subset_value.get_partition_keys():
                shown[partition] = status.value
        return _days_by(shown)

    def evaluation(self, name: str, number: int, key: SeriesKey = KLINES) -> Any:
        """The newest evaluation of a check on a day of January 2024."""
        check = dg.AssetCheckKey(asset_key_of(key), name)
        records = self.instance.event_log_storage.get_asset_check_execution_history(check, limit=1000)
        for record in records:
            if record.event is not None and record.partition == str(day(number)):
                event = record.event.dagster_event
                assert event is not None
                if event.event_type_value == "ASSET_CHECK_EVALUATION":
                    return event.asset_check_evaluation_data
        raise AssertionError(f"no evaluation of {name} on {day(number)}")

    def materializations(self, key: SeriesKey = KLINES) -> dict[int, list[dg.AssetMaterialization]]:
        """Materializations by day of January 2024, newest first."""
        records = self.instance.fetch_materializations(asset_key_of(key), limit=1000).records
        found: dict[int, list[dg.AssetMaterialization]] = {}
        for record in records:
            assert record.asset_materialization is not None
            number = date.fromisoformat(record.partition_key or "").day
            found.setdefault(number, []).append(record.asset_materialization)
        return found


def _days_by(shown: dict[str, str]) -> dict[str, set[int]]:
    grouped: dict[str, set[int]] = {}
    for partition, status in shown.items():
        grouped.setdefault(status, set()).add(date.fromisoformat(partition).day)
    return grouped
