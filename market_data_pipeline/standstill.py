"""Flat candles of a market: judged, asked of REST where they may be the archive's fault, and judged again.

What belongs here: that all of it happens together, once for each day. What does not: the verdicts (``judging.py``),
what REST's answer makes of a day (``ingest``), and telling Dagster.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from datetime import date

import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.findings import Verdict
from market_data_pipeline.ingest import Sources, ingest
from market_data_pipeline.judging import Judged, judge_flat_candles
from market_data_pipeline.lake.files import SeriesBusyError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.needs import needs
from market_data_pipeline.outcomes import DayOutcome
from market_data_pipeline.series import Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

logger = logging.getLogger(__name__)


_MOST_DAYS = 5_000
"""Days of series that are asked for at a time; of more, the others stay due. A day takes up to three requests."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """What came of it.

    Attributes:
        judged: What the verdicts are now.
        stored: Days that were stored anew with what REST answered.
    """

    judged: Judged
    stored: tuple[DayOutcome, ...] = ()


def judge_with_rest(
    layout: Layout,
    market: Market,
    settings: Settings,
    universe: Universe,
) -> Standstill:
    """Judge the flat candles of a market, after REST was asked for those that the whole market shares.

    REST is asked once for each of them. Where it does not answer, they stay ``unconfirmed``, and are asked for again
    after the pauses of ``quality.repair``.

    Args:
        layout: Where the lake lies.
        market: The market.
        settings: How to ask.
        universe: When symbols were listed. Series that it does not collect are not asked for.

    Raises:
        StorageError: a ledger cannot be written.
    """
    judged = judge_flat_candles(layout, market)
    stored: list[DayOutcome] = []
    due = _unconfirmed(layout, market, universe)
    if due:
        at_once = settings.model_copy(update={"lock_wait_seconds": 0})
        with closing(Sources(settings)) as sources:
            for key, days in due.items():
                listing = universe.listing(key)
                try:
                    results = ingest(key, days, layout=layout, sources=sources, settings=at_once, listing=listing)
                    stored += (result for result in results if isinstance(result, DayOutcome))
                except SeriesBusyError:
                    logger.info("%s is being written by another run; its flat candles are asked for the next time", key)
        judged = judged.then(judge_flat_candles(layout, market))
    return Standstill(judged, tuple(stored))


def _unconfirmed(layout: Layout, market: Market, universe: Universe) -> dict[SeriesKey, list[date]]:
    """Days whose flat candles REST has to confirm, and that are due; so many that it does not take hours."""
    left = _MOST_DAYS
    found: dict[SeriesKey, list[date]] = {}
    now, unconfirmed = clock.now(), pc.match_substring(pc.field("verdicts"), Verdict.UNCONFIRMED)
    for key in universe.series():
        if key.market is market and key.interval is not None:
            rows = Ledger.read(layout.ledger(key), unconfirmed).rows.values()
            due = sorted(row.day for row in rows if Verdict.UNCONFIRMED in row.verdicts and needs(row, now).is_due)
            if days := due[: max(0, left)]:
                found[key] = days
                left -= len(days)
    return found
