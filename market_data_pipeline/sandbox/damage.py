"""Pure functions that apply data faults to rows, lines and zips. The definitions of the faults do not belong here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from random import Random

from market_data_pipeline.model.series import DataType
from market_data_pipeline.sandbox.faults import (
    Damage,
    DamagedArchive,
    DayFault,
    ReplacedArchive,
    ScrambledArchive,
)
from market_data_pipeline.sandbox.forms import FORMS
from market_data_pipeline.sandbox.generator import DAY_US
from market_data_pipeline.sandbox.rows import TextRows
from market_data_pipeline.sandbox.zips import make_zip


def without_rows(rows: TextRows, start: int, end: int) -> TextRows:
    """Drop the rows timed from ``start`` to ``end`` (exclusive). Both are microseconds since 1970 (UTC)."""
    column = FORMS[rows.data_type].times[0]
    return replace(rows, rows=[row for row in rows.rows if not start <= int(row[column]) < end])


def with_changed_rows(rows: TextRows, start: int, end: int, column: str) -> TextRows:
    """Add 1 to a number of each row from ``start`` to ``end`` (exclusive, microseconds since 1970).

    Return the rows unchanged if their data type has no such column.
    """
    form = FORMS[rows.data_type]
    names = form.header.split(",")
    if column not in names:
        return rows
    at, time = names.index(column), form.times[0]
    changed = [_changed(row, at) if start <= int(row[time]) < end else row for row in rows.rows]
    return replace(rows, rows=changed)


def with_shifted_rows(rows: TextRows, start: int, end: int, shift: int) -> TextRows:
    """Shift klines from ``start`` to ``end`` (exclusive) later by ``shift``. All three are in microseconds."""
    opened, closed = 0, 6
    shifted = [
        [str(int(value) + shift) if at in (opened, closed) else value for at, value in enumerate(row)]
        if start <= int(row[opened]) < end
        else row
        for row in rows.rows
    ]
    return replace(rows, rows=shifted)


def with_repeated(rows: TextRows, before: list[str], midnight: int | None) -> TextRows:
    """Prepend an aggTrade of the previous day. It takes the time of ``midnight``, or stays as it is with None."""
    column = FORMS[rows.data_type].times[0]
    own = before[column] if midnight is None else str(midnight)
    return replace(rows, rows=[[*before[:column], own, *before[column + 1 :]], *rows.rows])


def outage_in_text(rows: TextRows, start: int, end: int, span: int, *, flat: bool) -> TextRows:
    """Remove all trading from ``start`` to ``end``. Klines that lie wholly inside become flat or missing.

    Args:
        rows: the rows of one day.
        start: in microseconds since 1970 (UTC), inclusive.
        end: in microseconds since 1970 (UTC), exclusive.
        span: length of a kline in microseconds. 0 for aggTrades, which are dropped.
        flat: write flat klines at the previous price instead of dropping them.
    """
    if rows.data_type is not DataType.KLINES or not flat:
        return without_rows(rows, start, end - max(span - 1, 0))
    out: list[list[str]] = []
    for row in rows.rows:
        if start <= int(row[0]) and int(row[0]) + span <= end:
            price = out[-1][4] if out else row[1]
            nought = [_nought(value) for value in (row[5], row[7], row[9], row[10])]
            out.append([row[0], *[price] * 4, nought[0], row[6], nought[1], "0", nought[2], nought[3], "0"])
        else:
            out.append(row)
    return TextRows(rows.data_type, out)


def _nought(number: str) -> str:
    return "".join("." if letter == "." else "0" for letter in number[number.find(".") - 1 :]) if "." in number else "0"


def edit_lines(data_type: DataType, text: bytes, faults: Iterable[DayFault], now: datetime) -> bytes:
    """Apply the faults of a day to the lines of its CSV, which has no header."""
    rows = [line.split(",") for line in text.decode().splitlines()]
    for fault in faults:
        if isinstance(fault, DamagedArchive):
            rows = _damaged(data_type, rows, fault.damage)
        elif isinstance(fault, ReplacedArchive):
            rows = _replaced(data_type, rows, fault, later=fault.at <= now)
        elif isinstance(fault, ScrambledArchive):
            rows = scrambled(data_type, rows, fault)
    return "".join(",".join(row) + "\n" for row in rows).encode()


def _replaced(data_type: DataType, rows: list[list[str]], fault: ReplacedArchive, *, later: bool) -> list[list[str]]:
    if fault.short_by:
        return rows if later else rows[: -fault.short_by]
    return [*rows[:-1], _changed(rows[-1], FORMS[data_type].amount)] if later and rows else rows


def _changed(row: list[str], column: int) -> list[str]:
    """Return the row with 1 added to one number."""
    whole, point, decimals = row[column].partition(".")
    return [*row[:column], f"{int(whole) + 1}{point}{decimals}", *row[column + 1 :]]


def _damaged(data_type: DataType, rows: list[list[str]], damage: Damage) -> list[list[str]]:
    middle = len(rows) // 2
    times = FORMS[data_type].times
    match damage:
        case Damage.EXTRA_COLUMN:
            return [[*row, "0"] for row in rows]
        case Damage.EXPONENT_TIMES:
            return [[f"{float(v):.5E}" if at in times else v for at, v in enumerate(row)] for row in rows]
        case Damage.OTHER_DAY:
            return [[_next_day(v) if at in times else v for at, v in enumerate(row)] for row in rows]
        case Damage.DISORDER:
            return [*rows[: max(middle - 1, 0)], *reversed(rows[max(middle - 1, 0) : middle + 1]), *rows[middle + 1 :]]
        case Damage.INTERLEAVED:
            turns = zip(rows[:middle], rows[middle : 2 * middle], strict=True)
            return [*(row for pair in turns for row in pair), *rows[2 * middle :]]
        case Damage.DUPLICATES:
            return [*rows[: middle + 1], *rows[middle:]]
        case Damage.CONFLICTING_DUPLICATES:
            return [*rows[:middle], _changed(rows[middle], FORMS[data_type].value), *rows[middle:]]
        case _:
            return rows


def scrambled(data_type: DataType, rows: list[list[str]], fault: ScrambledArchive) -> list[list[str]]:
    """Drop, repeat and reorder some rows of a day. At least two rows stay if the day has two or more."""
    random = Random(fault.seed)  # noqa: S311 - not for cryptography
    if fault.drop and len(rows) > 2:
        rows = _with_holes(rows, random, keep=0 if fault.drop_ends else 1)
    if fault.conflict and rows:
        row = random.choice(rows)
        rows = _insert(rows, _changed(row, FORMS[data_type].value), random)
    if fault.repeat and rows:
        for row in random.choices(rows, k=random.randint(0, 5)):
            rows = _insert(rows, row, random)
    return _out_of_order(rows, random) if fault.shuffle else rows


def _with_holes(rows: list[list[str]], random: Random, keep: int) -> list[list[str]]:
    inner = range(keep, len(rows) - keep)
    left = max(min(len(rows) * 9 // 10, len(rows) - 2), 0)
    gone: set[int] = set()
    for _ in range(random.randint(0, 3)):
        if not inner or left <= len(gone):
            break
        # Holes of one row are as likely as longer ones, because the two fail in different ways.
        size = min(random.choice((1, random.randint(1, 20), random.randint(1, len(inner)))), left - len(gone))
        start = random.choice(inner)
        gone.update(range(start, min(start + size, inner.stop)))
    return [row for at, row in enumerate(rows) if at not in gone]


def _insert(rows: list[list[str]], row: list[str], random: Random) -> list[list[str]]:
    at = random.randint(0, len(rows))
    return [*rows[:at], row, *rows[at:]]


def _out_of_order(rows: list[list[str]], random: Random) -> list[list[str]]:
    if random.random() < 0.1:
        return random.sample(rows, len(rows))
    rows = list(rows)
    for _ in range(random.randint(0, 3)):
        start = random.randint(0, max(len(rows) - 1, 0))
        run = rows[start : start + random.randint(2, 50)]
        rows[start : start + len(run)] = random.sample(run, len(run))
    return rows


def _next_day(number: str) -> str:
    return str(int(number) + (DAY_US if len(number) == 16 else DAY_US // 1_000))


def damaged_zip(stem: str, text: bytes, damages: set[Damage]) -> bytes:
    """Make the zip of an archive and apply the damage that concerns the zip itself, not its lines."""
    if Damage.NOT_A_ZIP in damages:
        return b"<html><body>This is not the file that you are looking for.</body></html>" * 20
    name = f"{stem}.csv"
    if Damage.OTHER_SYMBOL in damages:
        name = f"OTHER{name}"
    if Damage.NESTED_FOLDER in damages:
        name = f"{stem}/{name}"
    extra = [(f"copy-of-{stem}.csv", text)] if Damage.TWO_FILES in damages else []
    return make_zip([(name, text), *extra])
