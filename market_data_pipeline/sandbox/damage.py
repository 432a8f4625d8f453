"""How faults of data change rows, lines and zips: pure functions."""

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
from market_data_pipeline.sandbox.generator import DAY_US
from market_data_pipeline.sandbox.rows import AGG_TRADES_HEADER, KLINES_HEADER, TIME_COLUMNS, TextRows
from market_data_pipeline.sandbox.zips import make_zip

_QUANTITY = {DataType.KLINES: 5, DataType.AGG_TRADES: 2}
_CLOSE_OR_PRICE = {DataType.KLINES: 4, DataType.AGG_TRADES: 1}


def without_rows(rows: TextRows, start: int, end: int) -> TextRows:
    """Rows whose time does not lie from ``start`` to ``end`` (exclusive; microseconds since 1970)."""
    column = TIME_COLUMNS[rows.data_type][0]
    return TextRows(rows.data_type, [row for row in rows.rows if not start <= int(row[column]) < end])


def with_changed_rows(rows: TextRows, start: int, end: int, column: str) -> TextRows:
    """Rows of which those from ``start`` to ``end`` (exclusive) have a number that is larger by 1.

    Rows whose data type has no such column stay as they are.
    """
    names = (KLINES_HEADER if rows.data_type is DataType.KLINES else AGG_TRADES_HEADER).split(",")
    if column not in names:
        return rows
    at, time = names.index(column), TIME_COLUMNS[rows.data_type][0]
    changed = [_changed(row, at) if start <= int(row[time]) < end else row for row in rows.rows]
    return replace(rows, rows=changed)


def with_shifted_rows(rows: TextRows, start: int, end: int, shift: int) -> TextRows:
    """Klines of which those from ``start`` to ``end`` (exclusive) begin and end later by ``shift`` (microseconds)."""
    opened, closed = 0, 6
    shifted = [
        [str(int(value) + shift) if at in (opened, closed) else value for at, value in enumerate(row)]
        if start <= int(row[opened]) < end
        else row
        for row in rows.rows
    ]
    return replace(rows, rows=shifted)


def with_repeated(rows: TextRows, before: list[str], midnight: int | None) -> TextRows:
    """Rows of aggTrades after one of the day before, which has the time of midnight where that is given."""
    column = TIME_COLUMNS[rows.data_type][0]
    own = before[column] if midnight is None else str(midnight)
    return replace(rows, rows=[[*before[:column], own, *before[column + 1 :]], *rows.rows])


def outage_in_text(rows: TextRows, start: int, end: int, span: int, *, flat: bool) -> TextRows:
    """Rows with nothing traded from ``start`` to ``end``: klines that lie wholly in it are flat or missing.

    Args:
        rows: a day.
        start: beginning, in microseconds since 1970.
        end: end, exclusive.
        span: length of a kline in microseconds; 0 for aggTrades, which are left out.
        flat: whether klines are flat, at the price before, rather than missing.
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
    """The lines of one day's CSV (without header) as the faults of that day change them."""
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
    return [*rows[:-1], _changed(rows[-1], _QUANTITY[data_type])] if later and rows else rows


def _changed(row: list[str], column: int) -> list[str]:
    """A row with one number made larger by 1."""
    whole, point, decimals = row[column].partition(".")
    return [*row[:column], f"{int(whole) + 1}{point}{decimals}", *row[column + 1 :]]


def _damaged(data_type: DataType, rows: list[list[str]], damage: Damage) -> list[list[str]]:
    middle = len(rows) // 2
    times = TIME_COLUMNS[data_type]
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
            return [*rows[:middle], _changed(rows[middle], _CLOSE_OR_PRICE[data_type]), *rows[middle:]]
        case _:
            return rows


def scrambled(data_type: DataType, rows: list[list[str]], fault: ScrambledArchive) -> list[list[str]]:
    """A day's rows, some of them dropped, repeated and out of order; at least two stay where there were as many."""
    random = Random(fault.seed)  # noqa: S311 - nothing is secret here
    if fault.drop and len(rows) > 2:
        rows = _with_holes(rows, random, keep=0 if fault.drop_ends else 1)
    if fault.conflict and rows:
        row = random.choice(rows)
        rows = _put(rows, _changed(row, _CLOSE_OR_PRICE[data_type]), random)
    if fault.repeat and rows:
        for row in random.choices(rows, k=random.randint(0, 5)):
            rows = _put(rows, row, random)
    return _out_of_order(rows, random) if fault.shuffle else rows


def _with_holes(rows: list[list[str]], random: Random, keep: int) -> list[list[str]]:
    inner = range(keep, len(rows) - keep)
    left = max(min(len(rows) * 9 // 10, len(rows) - 2), 0)
    gone: set[int] = set()
    for _ in range(random.randint(0, 3)):
        if not inner or left <= len(gone):
            break
        # Holes of one row are as likely as long ones: both have their own ways of going wrong.
        size = min(random.choice((1, random.randint(1, 20), random.randint(1, len(inner)))), left - len(gone))
        start = random.choice(inner)
        gone.update(range(start, min(start + size, inner.stop)))
    return [row for at, row in enumerate(rows) if at not in gone]


def _put(rows: list[list[str]], row: list[str], random: Random) -> list[list[str]]:
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
    """The zip of an archive some of whose damage may lie in the zip itself rather than in its lines."""
    if Damage.NOT_A_ZIP in damages:
        return b"<html><body>This is not the file that you are looking for.</body></html>" * 20
    name = f"{stem}.csv"
    if Damage.OTHER_SYMBOL in damages:
        name = f"OTHER{name}"
    if Damage.NESTED_FOLDER in damages:
        name = f"{stem}/{name}"
    extra = [(f"copy-of-{stem}.csv", text)] if Damage.TWO_FILES in damages else []
    return make_zip([(name, text), *extra])
