"""A day's rows into its file of the lake, with what the checks found of them; and out of it again, to go on from.

What belongs here: which of two files of a day is the better one, and what is said of a day. What does not: where rows
come from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import date

from market_data_pipeline import clock
from market_data_pipeline.findings import HISTORY, Finding
from market_data_pipeline.ingest.dayrows import DayRows
from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import HELD, LedgerRow, row_from_provenance
from market_data_pipeline.lake.provenance import Provenance, content_sha256
from market_data_pipeline.outcomes import Action, DayOutcome
from market_data_pipeline.quality.gaps import flat_candles, missing_candles, missing_ids
from market_data_pipeline.quality.integrity import check_integrity
from market_data_pipeline.quality.rows import ints
from market_data_pipeline.quality.verdicts import CUT, TradeRecord, judge_candles, judge_trades
from market_data_pipeline.series import DataType, Listing, SeriesKey
from market_data_pipeline.specs import spec_of


@dataclass(frozen=True, slots=True)
class Shelf:
    """The files of one series in the lake, written by whoever holds its lock.

    Attributes:
        key: The series.
        layout: Where the lake lies.
        listing: When the symbol was listed.
    """

    key: SeriesKey
    layout: Layout
    listing: Listing

    def rows(self, day: date) -> DayRows | None:
        """The rows of a day that is held; None where its file is damaged."""
        path = self.layout.file(self.key, day)
        try:
            record, table = files.read_provenance(path), files.read_table(path)
        except DamagedFileError:
            return None
        known_until = clock.day_start_us(day) + clock.US_PER_DAY if record.final else clock.to_us(record.fetched_at)
        return DayRows(
            table=table,
            parts=record.parts,
            final=record.final,
            known_until_us=known_until,
            findings=tuple(finding for finding in record.findings if finding.rule in HISTORY),
            cut=any(finding.evidence == CUT for finding in record.findings),
        )

    def store(self, day: date, known: LedgerRow | None, rows: DayRows, started: float) -> DayOutcome:
        """Check a day's rows and write them, unless the file that is held is the better one.

        Args:
            day: The UTC day.
            known: The day in the ledger.
            rows: Its rows.
            started: When work on the day began, by :func:`time.perf_counter`.

        Raises:
            StorageError: the disk refuses.
        """
        path = self.layout.file(self.key, day)
        # A file that the ledger does not count as held was found to be damaged: its footer proves nothing.
        held = self._record_on_disk(day) if known is not None and known.outcome == HELD else None
        record = self._record(day, rows)
        attempts = (known.attempts if known else 0) + 1
        if held is not None and _keep(held, record):
            stat = files.stat(path)
            if stat is not None:
                row = row_from_provenance(held, stat, attempts=attempts)
                row = replace(row, asked_at=clock.naive_utc(clock.now()))
                return DayOutcome(self.key, day, row, Action.HELD, time.perf_counter() - started, rows.downloaded)
        spec = spec_of(self.key)
        stat = files.write_table(path, rows.table, record, delta=spec.delta, dictionary=spec.dictionary)
        row = row_from_provenance(record, stat, attempts=attempts)
        return DayOutcome(self.key, day, row, rows.action, time.perf_counter() - started, rows.downloaded)

    def _record_on_disk(self, day: date) -> Provenance | None:
        try:
            return files.read_provenance(self.layout.file(self.key, day))
        except DamagedFileError:
            return None

    def _record(self, day: date, rows: DayRows) -> Provenance:
        keys = ints(rows.table, spec_of(self.key).key)
        findings = (
            *rows.findings,
            *check_integrity(self.key, rows.table),
            *self._gaps(day, rows),
        )
        return Provenance(
            series=str(self.key),
            day=day,
            parts=rows.parts,
            final=rows.final,
            fetched_at=max(part.fetched_at for part in rows.parts),
            rows=rows.table.num_rows,
            first_key=int(keys[0]),
            last_key=int(keys[-1]),
            content_sha256=content_sha256(rows.table),
            findings=findings,
        )

    def _gaps(self, day: date, rows: DayRows) -> list[Finding]:
        healed = rows.healed(spec_of(self.key))
        if self.key.interval is None:
            missing = [*rows.before, *missing_ids(rows.table)]
            return judge_trades(missing, healed, final=rows.final, asked=rows.asked, cut=rows.cut)
        lacking = missing_candles(self.key, rows.table, day, rows.known_until_us, self.listing)
        trades = self._trades_held(day) if len(lacking.lacking) and rows.final else None
        flat = flat_candles(rows.table)
        return judge_candles(self.key, lacking, healed, flat, final=rows.final, asked=rows.asked, trades=trades)

    def _trades_held(self, day: date) -> TradeRecord | None:
        """The symbol's aggTrades of a day as witnesses, where the lake has them."""
        path = self.layout.file(replace(self.key, data_type=DataType.AGG_TRADES, interval=None), day)
        if not path.exists():
            return None
        try:
            table = files.read_table(path, ["agg_trade_id", "transact_time"])
        except DamagedFileError:
            return None
        return TradeRecord(ints(table, "agg_trade_id"), ints(table, "transact_time"))


def _keep(held: Provenance, new: Provenance) -> bool:
    """Whether the file that is held is the better one: final before provisional, and never fewer rows unproven."""
    if held.final and not new.final:
        return True
    same_source = [(part.sha256, part.etag) for part in held.parts] == [(part.sha256, part.etag) for part in new.parts]
    if held.final == new.final and held.content_sha256 == new.content_sha256 and held.findings == new.findings:
        return same_source or not new.final
    return new.rows < held.rows and not new.final
