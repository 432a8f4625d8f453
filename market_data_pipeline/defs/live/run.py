"""Read the feed's status and its comparisons with the archive, as events of Dagster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from market_data_pipeline import clock
from market_data_pipeline.defs.keys import LIVE_EQUALS_ARCHIVE, live_key_of
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.feed_status import read_status, status_file
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_eviction import LiveComparison, comparisons_file, read_comparisons
from market_data_pipeline.model.series import EXCHANGE, Market
from market_data_pipeline.settings import Settings

_YOUNG_NS = 86_400 * 10**9
_ALIVE = timedelta(seconds=60)
"""Age of the status beyond which the feed does not run. It writes one each second."""


def observe(cursor: str | None, markets: Sequence[Market], settings: Settings) -> dg.SensorResult | dg.SkipReason:
    """Return an observation of each market that the feed follows, and checks if days were compared since.

    Without a feed, a look takes the times of two files.

    Args:
        cursor: Size of the file of comparisons at the last look.
    """
    layout = Layout(settings.root)
    found = storage.head(comparisons_file(layout))
    now = str(found.bytes if found else 0)
    status = read_status(layout) if _may_be_alive(layout) else None
    events: list[Any] = []
    if status is not None and _is_alive(status):
        followed = [market for market in markets if market.value in status.get("markets", {})]
        events += [_observation(market, status) for market in followed]
    if (cursor or "0") != now:
        compared = read_comparisons(layout)
        events += [_evaluation(market, compared) for market in markets if _of(market, compared)]
    if not events:
        return dg.SkipReason(
            f"The live feed does not run: {status_file(layout)} is not new. Start it with `market-data live`."
        )
    return dg.SensorResult(asset_events=events, cursor=now)


def check_result(market: Market, settings: Settings) -> dg.AssetCheckResult:
    """Return the result of ``live_equals_archive``."""
    found = _of(market, read_comparisons(Layout(settings.root)))
    return dg.AssetCheckResult(
        passed=_is_equal(found),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_metadata(found),
        description=_description(found),
    )


def _evaluation(market: Market, compared: Sequence[LiveComparison]) -> dg.AssetCheckEvaluation:
    found = _of(market, compared)
    return dg.AssetCheckEvaluation(
        check_name=LIVE_EQUALS_ARCHIVE,
        asset_key=live_key_of(market),
        passed=_is_equal(found),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_metadata(found),
        description=_description(found),
    )


def _may_be_alive(layout: Layout) -> bool:
    """Return True if the status file is young. The clock of files is not that of the project, so a day is young."""
    written = storage.modified_ns(status_file(layout))
    return written is not None and abs(time.time_ns() - written) < _YOUNG_NS


def _is_alive(status: dict[str, Any]) -> bool:
    try:
        updated = datetime.fromisoformat(str(status["updated_at"]))
    except (KeyError, ValueError):
        return False
    return abs(clock.now() - updated) < _ALIVE


def _observation(market: Market, status: dict[str, Any]) -> dg.AssetObservation:
    connections = status["markets"][market.value]
    series = {n: s for n, s in status.get("series", {}).items() if n.startswith(f"{EXCHANGE}/{market}/")}
    latest: dict[str, Any] = {}
    late = max(series.items(), key=lambda item: item[1].get("lateness_seconds") or 0.0, default=("", latest))
    facts = ("connections", "seconds_without_data", "reconnects", "messages", "unreadable", "rest_requests", "proven")
    metadata: dict[str, Any] = {
        "series": len(series),
        "open gaps": sum(one.get("open_gaps", 0) for one in series.values()),
        "greatest lateness (s)": late[1].get("lateness_seconds") or 0.0,
        "latest series": late[0],
        **{name.replace("_", " "): connections.get(name, 0) for name in facts},
    }
    return dg.AssetObservation(live_key_of(market), metadata=metadata)


def _of(market: Market, compared: Sequence[LiveComparison]) -> list[LiveComparison]:
    return [one for one in compared if one.series.startswith(f"{EXCHANGE}/{market}/")]


def _is_equal(found: Sequence[LiveComparison]) -> bool:
    return not any(one.changed or one.missing for one in found)


def _metadata(found: Sequence[LiveComparison]) -> dict[str, Any]:
    return {
        "days": len(found),
        "live rows": sum(one.rows for one in found),
        "changed": sum(one.changed for one in found),
        "missing in the archive": sum(one.missing for one in found),
    }


def _description(found: Sequence[LiveComparison]) -> str:
    if not found:
        return "No live day has been compared with the archive yet."
    other = [one for one in found if one.changed or one.missing]
    if not other:
        return f"All live rows of {len(found)} series-days equal the archive's."
    first = other[-1]
    return (
        f"The archive differs on {len(other)} of {len(found)} series-days, the last {first.day} of {first.series}: "
        f"{first.changed} rows changed, {first.missing} missing. The archive's rows are stored."
    )
