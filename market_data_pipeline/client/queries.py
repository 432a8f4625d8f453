"""Decide which SQL texts are queries: SELECT, and EXPLAIN of SELECT.

DuckDB parses the text, and the decision is made on what it parsed. What a query may reach and how long it may take is
not decided here, but by the connection it runs in (``client/session.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from market_data_pipeline.errors import UsageError

if TYPE_CHECKING:
    import duckdb

_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
"""Kinds of nodes in DuckDB's syntax tree that only read. Others, such as ``COPY_QUERY_NODE`` in a WITH, write."""

_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_dependencies",
        "duckdb_extensions",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_memory",
        "duckdb_optimizers",
        "duckdb_schemas",
        "duckdb_sequences",
        "duckdb_settings",
        "duckdb_tables",
        "duckdb_temporary_files",
        "duckdb_types",
        "duckdb_variables",
        "duckdb_views",
        "generate_series",
        "glob",
        "histogram",
        "histogram_values",
        "icu_calendar_names",
        "json_each",
        "json_tree",
        "parquet_bloom_probe",
        "parquet_file_metadata",
        "parquet_full_metadata",
        "parquet_kv_metadata",
        "parquet_metadata",
        "parquet_scan",
        "parquet_schema",
        "pg_timezone_names",
        "pragma_collations",
        "pragma_database_size",
        "pragma_metadata_info",
        "pragma_platform",
        "pragma_show",
        "pragma_storage_info",
        "pragma_table_info",
        "pragma_user_agent",
        "pragma_version",
        "query_table",
        "range",
        "read_blob",
        "read_csv",
        "read_csv_auto",
        "read_json",
        "read_json_auto",
        "read_json_objects",
        "read_json_objects_auto",
        "read_ndjson",
        "read_ndjson_auto",
        "read_ndjson_objects",
        "read_parquet",
        "read_text",
        "repeat",
        "repeat_row",
        "sniff_csv",
        "summary",
        "test_all_types",
        "unnest",
    }
)
"""DuckDB's table functions that only read. Left out are those that change settings, write, or run another text."""

_OWN_SCHEMAS = ("binance_", "quality", "universe")

_WRITING_WORDS = frozenset({"copy", "insert", "update", "delete", "merge", "truncate"})


def check_query(parser: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse a text that is not one SELECT or one EXPLAIN of a SELECT.

    FROM, VALUES, WITH, PIVOT, DESCRIBE, SHOW and SUMMARIZE are SELECTs to DuckDB.

    Args:
        parser: A connection that is idle. Nothing of the text runs in it.
        text: SQL.

    Raises:
        UsageError: the text is something else.
        duckdb.Error: DuckDB cannot parse it.
    """
    statements = parser.extract_statements(text)
    kinds = [_kind(statement) for statement in statements]
    if len(kinds) != 1:
        raise _refused(" and ".join(kinds) or "nothing")
    (statement,) = statements
    query = statement.query  # with plain spaces where the text has other ones
    inner = _explained(parser, query)
    if inner is None:
        _check_select(parser, kinds[0], query)
        return
    within = parser.extract_statements(inner)
    if len(within) != 1:
        raise _refused("EXPLAIN of several statements")
    _check_select(parser, _kind(within[0]), inner, "EXPLAIN of ")


def _kind(statement: duckdb.Statement) -> str:
    return statement.type.name


def _refused(what: str) -> UsageError:
    return UsageError(
        f"One query is answered at a time (SELECT, FROM, …, or EXPLAIN of one), and nothing else: not {what}. "
        "`market-data sql --unrestricted` runs any SQL."
    )


def _check_select(parser: duckdb.DuckDBPyConnection, kind: str, query: str, prefix: str = "") -> None:
    if kind not in ("SELECT", "MULTI") or not _stands_in_parentheses(parser, query):
        raise _refused(prefix + ("a statement that is not a query" if kind == "MULTI" else kind))
    (told,) = parser.execute("SELECT json_serialize_sql(?)", [query]).fetchone() or ("{}",)
    try:
        tree = json.loads(told)
    except RecursionError:
        raise UsageError("The query is nested too deeply.") from None
    if "statements" in tree:
        _check_tree(tree["statements"])
    else:  # a PIVOT that looks its columns up is two statements to DuckDB, which has no tree for them
        _check_words(parser, query)


def _stands_in_parentheses(parser: duckdb.DuckDBPyConnection, query: str) -> bool:
    """Return True if the text can be a subquery, which only a query can."""
    import duckdb

    try:
        return len(parser.extract_statements(f"FROM (\n{_without_end(query)}\n)")) == 1
    except duckdb.Error:
        return False


def _without_end(query: str) -> str:
    text = query.encode()
    for offset, word in reversed(_words(query)):
        if word != ";":
            break
        text = text[:offset]
    return text.decode()


def _words(text: str) -> list[tuple[int, str]]:
    """Return DuckDB's tokens without comments: offset in UTF-8, and text without what follows it."""
    import duckdb

    encoded = text.encode()
    tokens = duckdb.tokenize(text)
    ends = [offset for offset, _ in tokens[1:]] + [len(encoded)]
    return [
        (offset, encoded[offset:end].decode(errors="replace").strip())
        for (offset, kind), end in zip(tokens, ends, strict=True)
        if kind != duckdb.token_type.comment
    ]


def _explained(parser: duckdb.DuckDBPyConnection, query: str) -> str | None:
    """Return the statement that an EXPLAIN explains; None if the text is no EXPLAIN."""
    words = _words(query)
    if not words or words[0][1].upper() != "EXPLAIN":
        return None
    after = 2 if len(words) > 1 and words[1][1].upper() == "ANALYZE" else 1
    for begin in dict.fromkeys((after, _after_parentheses(words, after))):
        if begin < len(words):
            inner = query.encode()[words[begin][0] :].decode()
            if _parses(parser, inner):
                return inner
    raise _refused("this EXPLAIN")


def _after_parentheses(words: list[tuple[int, str]], begin: int) -> int:
    """Return the index of the word after the options in parentheses, if there are any."""
    depth = 0
    for n, (_, word) in enumerate(words[begin:], begin):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth <= 0:
            return n + 1 if n > begin else begin
    return begin


def _parses(parser: duckdb.DuckDBPyConnection, text: str) -> bool:
    import duckdb

    try:
        return bool(parser.extract_statements(text))
    except duckdb.Error:
        return False


def _check_tree(tree: Any) -> None:
    for node in _dicts(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise _refused(kind.removesuffix("_NODE").removesuffix("_QUERY") + " within a query")
        if kind == "TABLE_FUNCTION":
            function = node.get("function") or {}
            name, schema = (str(function.get(part, "")).casefold() for part in ("function_name", "schema"))
            if name not in _TABLE_FUNCTIONS and not schema.startswith(_OWN_SCHEMAS):
                raise _no_function(name)


def _no_function(name: str) -> UsageError:
    return UsageError(
        f"A query cannot use a table function {name}. There are those of DuckDB that only read, and candles and "
        "trades in the schemas binance_spot, binance_um and binance_cm."
    )


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check_words(parser: duckdb.DuckDBPyConnection, query: str) -> None:
    """Refuse a query by its words, where there is no tree: stricter, as a column may have the name of a function."""
    known = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE starts_with(function_type, 'table')"
    functions = {name for (name,) in parser.execute(known).fetchall()}
    words = [word.strip('"').casefold() for _, word in _words(query)]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in _WRITING_WORDS:
            raise _refused(f"{word.upper()} within a query")
        if following == "(" and word in functions - _TABLE_FUNCTIONS:
            raise _no_function(word)
