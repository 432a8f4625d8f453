"""The checks of a series' days: what each is called, and what it says when it passes, warns or fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from market_data_pipeline.model.findings import CheckName


CHECK_DESCRIPTIONS: Mapping[CheckName, str] = {
    "integrity": "The day is what the exchange published and makes sense: checksum, schema, times inside the day, in "
    "order and unique, prices and volumes possible. Bytes that cannot be trusted are not taken into the lake; rows "
    "that only look wrong are kept as published. The reason stands in the metadata.",
    "gaps": "Why rows are missing inside the day, or flat: each range has a verdict, its evidence in the metadata. "
    "`outage`, `suspended`, `quiet`, `not_listed` and `healed` (filled in from REST) pass; `unpublished` (not known "
    "yet) warns; `archive_defect` and `unexplained` fail.",
}


def specs_of_checks(asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks of a partitioned series, evaluated for each day."""
    return [
        dg.AssetCheckSpec(name, asset=asset_key, description=description, partitions_def=partitions_def)
        for name, description in CHECK_DESCRIPTIONS.items()
    ]
