"""Names and descriptions of the checks of a series' days. Evaluating them does not belong here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from market_data_pipeline.model.findings import CheckName


_CHECK_DESCRIPTIONS: Mapping[CheckName, str] = {
    "integrity": "The day is as the exchange published it, and its rows are plausible.\n\nVerifies checksum, schema, "
    "order and uniqueness of times inside the day, and the range of prices and volumes. Files that cannot be verified "
    "are not stored. Rows that only look wrong are stored as published. The metadata has the reason.",
    "gaps": "Every gap and every run of flat candles in the day has a verdict.\n\n`outage`, `suspended`, `quiet`, "
    "`not_listed` and `healed` (gap-filled from REST) pass. `unpublished` (not known yet) warns. `archive_defect` and "
    "`unexplained` fail. The metadata has the evidence for each range.",
}


def specs_of_checks(asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """Return the checks of a partitioned series. Each day has its own evaluations."""
    return [
        dg.AssetCheckSpec(name, asset=asset_key, description=description, partitions_def=partitions_def)
        for name, description in _CHECK_DESCRIPTIONS.items()
    ]
