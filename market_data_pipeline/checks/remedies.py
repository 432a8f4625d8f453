"""The remedy of each rule of a check, for the CLI and the documentation. A test compares both.

The rules themselves do not belong here (``integrity.py``, ``verdicts.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

_AS_PUBLISHED = (
    "the rows are stored as Binance published them. Look at them (`FROM quality.findings`), leave the day out with "
    "`final_only=True`, or wait until `market-data verify` finds a corrected archive"
)

_OF_VALUES = (
    "finite",
    "negative",
    "negative_count",
    "price_range",
    "taker",
    "positive",
    "trade_ids",
    "funding_interval",
)

INTEGRITY: Mapping[str, str] = {
    **dict.fromkeys(_OF_VALUES, _AS_PUBLISHED),
    "spacing": "do not use the day; `market-data verify` fetches another archive when Binance publishes one",
    "overlap": "nothing: add up volumes there with care",
    "off_grid": "nothing: the next `sync` or `backfill` repairs days that an older version filled twice",
    "close_time": "nothing: Binance cuts candles short at outages",
    "time_order": "nothing: rows are ordered by id, and Binance's times may go back by some milliseconds",
    "zero_open_interest": _AS_PUBLISHED,
    **dict.fromkeys(("bands", "cumulative", "frozen", "side", "overfilled", "crossed", "option_type"), _AS_PUBLISHED),
    "blank": "nothing: queries see NULL, and aggregates leave it out",
    "relabelled": "nothing: all days have labels of one meaning; the finding names the source",
    "order": "nothing: the rows were sorted",
    "duplicates": "nothing: equal rows were stored once",
    "checksum_missing": "nothing: the day stays provisional, and the checksum is requested again",
    "checksum_accepted": "nothing: `market-data quarantine show NAME` prints who accepted the file, and why",
    "flat_filled": "nothing: REST's candles, which have trades, were stored in place of flat ones",
    "flat_confirmed": "nothing: REST has no trade there either",
    "flat_refused": "nothing: REST no longer knows the symbol, so the archive's candles stay",
    "disagreement": "nothing: the archive's rows are stored; the finding shows both values",
    "became_final": "nothing: the archive replaced the provisional rows; the finding shows what differs",
    "replaced": "nothing: another archive was published; the finding shows what differs",
    "across_midnight": "if it fails, deduplicate the two days on `agg_trade_id`; else nothing",
    "source": "sync the source's days, or leave the day out with `final_only=True`; the mark goes when the source is "
    "complete and the derived day is computed again",
}
"""Rules of the integrity check."""

GAPS: Mapping[str, str] = {
    "archive_defect": "the `repair` schedule or `market-data sync` retries REST with backoff",
    "unexplained": "look at the evidence: `market-data sql \"FROM quality.gaps WHERE verdict = 'unexplained'\"`",
    "unpublished": "the `repair` schedule or `market-data sync` retries REST with backoff",
    "unconfirmed": "the `repair` schedule or `market-data sync` retries REST with backoff",
}
"""Verdicts of the gaps check that do not pass."""

FAILURES: Mapping[str, str] = {
    "checksum": "`market-data quarantine retry --all`, later; the older file stays",
    "malformed": "`market-data quarantine show NAME` prints what is in the refused archive; the older file stays",
    "conflict": "`market-data quarantine show NAME` prints what is in the refused archive; the older file stays",
    "unproven": "nothing: the older file, whose checksum matched, stays",
}
"""Kinds of failure of an archive that should replace a stored day."""

REMEDIES: Mapping[str, str] = {**INTEGRITY, **GAPS, **FAILURES}
