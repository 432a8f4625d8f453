"""Formats of rows: JSON columns, Arrow, Parquet and CSV. Choosing one by ``Accept``, and compressing.

Every function is pure: a table and its facts in, bytes out.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from market_data_pipeline.server.problems import ProblemError, ProblemKind

COMPRESS_FROM = 1000
"""Bytes from which an answer is compressed."""


class Format(StrEnum):
    """Formats by their short name, as in ``?format=``."""

    JSON = "json"
    ARROW = "arrow"
    PARQUET = "parquet"
    CSV = "csv"


MEDIA_TYPES: Mapping[Format, str] = {
    Format.JSON: "application/json",
    Format.ARROW: "application/vnd.apache.arrow.stream",
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.CSV: "text/csv; charset=utf-8",
}

_BY_TYPE = {media.partition(";")[0]: form for form, media in MEDIA_TYPES.items()}
_COMPRESSED_INSIDE = frozenset({Format.ARROW, Format.PARQUET})


@dataclass(frozen=True, slots=True)
class Encoding:
    """A format and the coding of its bytes: ``identity``, ``gzip`` or ``zstd``."""

    format: Format
    coding: str = "identity"


def encoding_of(accept: str | None, accept_encoding: str | None, named: str | None) -> Encoding:
    """Choose the format and the coding of an answer.

    Args:
        accept: Header ``Accept``. None, ``*/*`` and pages for people mean JSON.
        accept_encoding: Header ``Accept-Encoding``.
        named: Name of the format in the query. It goes before ``Accept``.

    Raises:
        ProblemError: No format is acceptable.
    """
    form = _named(named) if named is not None else _accepted(accept)
    coding = "identity" if form in _COMPRESSED_INSIDE else _coding(accept_encoding)
    return Encoding(form, coding)


def _named(name: str) -> Format:
    try:
        return Format(name)
    except ValueError:
        raise ProblemError(
            ProblemKind.INVALID, f"There is no format {name[:40]!r}. There are: {', '.join(Format)}."
        ) from None


def _accepted(accept: str | None) -> Format:
    if not accept:
        return Format.JSON
    weights = _weights(accept)
    best: tuple[float, int] | None = None
    chosen = Format.JSON
    for rank, (media, form) in enumerate(_BY_TYPE.items()):
        exact = weights.get(media, weights.get(f"{media.partition('/')[0]}/*", weights.get("*/*", 0.0)))
        if exact > 0 and (best is None or (exact, -rank) > best):
            best, chosen = (exact, -rank), form
    if best is None:
        raise ProblemError(ProblemKind.UNACCEPTABLE, f"Accept names no known format. There are: {', '.join(_BY_TYPE)}.")
    return chosen


def _coding(accept_encoding: str | None) -> str:
    weights = _weights(accept_encoding or "")
    usable = [name for name in ("gzip", "zstd") if weights.get(name, 0) > 0]
    return max(usable, key=lambda name: weights[name], default="identity")


def _weights(header: str) -> dict[str, float]:
    """Return the items of a header with their weights from 0 to 1."""
    found: dict[str, float] = {}
    for item in header.split(","):
        name, *parameters = (part.strip().casefold() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if name:
            found[name] = min(1.0, max(0.0, weight)) if weight == weight else 0.0
    return found


def encode_rows(rows: pa.Table, facts: Mapping[str, Any], form: Format) -> bytes:
    """Return the bytes of rows and of what is known about them.

    JSON has the facts as members. Arrow and Parquet have them in the schema's metadata, below ``market_data``. CSV has
    rows only.

    Args:
        rows: The rows, with zone-aware times.
        facts: Members of the JSON document in addition to ``columns``.
    """
    match form:
        case Format.JSON:
            return orjson.dumps({**facts, "columns": columns_of(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
        case Format.CSV:
            return _csv(rows)
        case Format.ARROW:
            return _arrow(rows.replace_schema_metadata({"market_data": orjson.dumps(facts)}))
        case Format.PARQUET:
            return _parquet(rows.replace_schema_metadata({"market_data": orjson.dumps(facts)}))


def compressed(body: bytes, coding: str) -> bytes:
    """Return bytes in a coding."""
    if coding == "gzip":
        return gzip.compress(body, 1, mtime=0)
    if coding == "zstd":
        return bytes(pa.Codec("zstd", 1).compress(body, asbytes=True))
    return body


def columns_of(rows: pa.Table) -> dict[str, Any]:
    """Return the columns as JSON has them: times are integers in microseconds since 1970, days are text."""
    return {name: _values(rows[name]) for name in rows.column_names}


def _values(column: pa.ChunkedArray[Any]) -> Any:
    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_date(kind):
        return [None if day is None else day.isoformat() for day in column.to_pylist()]
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return column.to_pylist()
    if column.null_count:
        return column.to_pylist()
    found = column.to_numpy()
    return found if found.flags.c_contiguous else found.copy()


def _csv(rows: pa.Table) -> bytes:
    plain = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in _sequence(rows)]
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(plain, names=rows.column_names), sink)
    return sink.getvalue()


def _sequence(rows: pa.Table) -> Sequence[pa.ChunkedArray[Any]]:
    return rows.columns


def _arrow(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return sink.getvalue().to_pybytes()


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=1)
    return sink.getvalue().to_pybytes()
