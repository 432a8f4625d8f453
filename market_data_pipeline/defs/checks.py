"""The checks of a series' days: what each is called, and what it says when it passes, warns or fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.lineage import source_of
from market_data_pipeline.series import SeriesKey

if TYPE_CHECKING:
    from market_data_pipeline.findings import CheckName

RECONCILIATION = "reconciliation"

CHECK_DESCRIPTIONS: Mapping[CheckName, str] = {
    "integrity": "The day is what the exchange published and makes sense: checksum, schema, times inside the day, in "
    "order and unique, prices and volumes possible. Bytes that cannot be trusted are not taken into the lake; rows "
    "that only look wrong are kept as published. The reason stands in the metadata.",
    "gaps": "Why rows are missing inside the day, or flat: each range has a verdict, its evidence in the metadata. "
    "`outage`, `suspended`, `quiet`, `not_listed` and `healed` (filled in from REST) pass; `unpublished` (not known "
    "yet) warns; `archive_defect` and `unexplained` fail.",
}


def check_specs(asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks of a partitioned series, evaluated for each day."""
    return [
        dg.AssetCheckSpec(name, asset=asset_key, description=description, partitions_def=partitions_def)
        for name, description in CHECK_DESCRIPTIONS.items()
    ]


def reconciliation_spec(
    key: SeriesKey, asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetCheckSpec:
    """The check of a klines series whose source is collected, too; evaluated for each day."""
    return dg.AssetCheckSpec(
        RECONCILIATION,
        asset=asset_key,
        partitions_def=partitions_def,
        description=(
            f"Each candle is what `{source_of(key)}` makes of it: prices and the number of trades exactly, volumes "
            "within 1e-9. Where both may differ without a fault the reason is given, with ids; candles that differ "
            f"for no known reason fail. Evaluated by the job `{RECONCILIATION}` when both sides are held."
        ),
    )
