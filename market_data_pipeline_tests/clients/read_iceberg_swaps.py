"""Read a table's folder with DuckDB again and again, until a file exists.

Arguments: the folder of the table, and the file. Prints what was seen of rows, and of versions of 2024-01-02, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb
import duckdb_extension_avro
import duckdb_extension_iceberg

PLACE, STOP = sys.argv[1], Path(sys.argv[2])
QUERY = f"""
    SELECT count(*), count(DISTINCT volume) FILTER (open_time::DATE = DATE '2024-01-02')
    FROM iceberg_scan('{PLACE}')
"""
connection = duckdb.connect()
for module in (duckdb_extension_avro, duckdb_extension_iceberg):
    [file] = Path(module.__file__).parent.rglob("*.duckdb_extension")
    connection.load_extension(str(file))
seen, reads = set(), 0
while not STOP.exists():
    seen.add(connection.sql(QUERY).fetchone())
    reads += 1
print(json.dumps({"seen": sorted(seen), "reads": reads}))
