"""Read a published table with an engine: rows and the sum of a column per symbol, as JSON.

Arguments: the engine, the folder of the tables, the namespace, the table and the column.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

ENGINE, FOLDER, NAMESPACE, TABLE, COLUMN = sys.argv[1:]
PLACE = Path(FOLDER) / NAMESPACE / TABLE
QUERY = f"SELECT symbol, count(*) AS number, sum({COLUMN}) AS total FROM {{}} GROUP BY symbol"
logging.disable(logging.WARNING)


def newest():
    version = (PLACE / "metadata" / "version-hint.text").read_text()
    return str(PLACE / "metadata" / f"v{version}.metadata.json")


def loaded():
    from pyiceberg.catalog import load_catalog

    catalog = load_catalog("market_data", type="sql", uri=f"sqlite:///{FOLDER}/catalog.db")
    return catalog.load_table((NAMESPACE, TABLE))


def with_pyiceberg():
    table = loaded().scan(selected_fields=("symbol", COLUMN)).to_arrow().unify_dictionaries()
    sums = table.group_by("symbol").aggregate([(COLUMN, "count"), (COLUMN, "sum")])
    return sums.select(["symbol", f"{COLUMN}_count", f"{COLUMN}_sum"]).to_pylist()


def with_duckdb():
    import duckdb
    import duckdb_extension_avro
    import duckdb_extension_iceberg

    connection = duckdb.connect()
    for module in (duckdb_extension_avro, duckdb_extension_iceberg):
        [file] = Path(module.__file__).parent.rglob("*.duckdb_extension")
        connection.load_extension(str(file))
    return connection.sql(QUERY.format(f"iceberg_scan('{PLACE}')")).arrow().read_all().to_pylist()


def with_polars():
    import polars as pl

    rows = pl.scan_iceberg(newest()).group_by("symbol").agg(pl.len(), pl.col(COLUMN).sum()).collect()
    return rows.to_dicts()


def with_daft():
    import daft

    rows = daft.read_iceberg(loaded()).groupby("symbol")
    return rows.agg(daft.col("symbol").count().alias("number"), daft.col(COLUMN).sum().alias("total")).to_pylist()


def with_clickhouse():
    import chdb

    os.chdir("/")  # chdb reads below the current folder only
    answer = chdb.query(QUERY.format(f"icebergLocal('{PLACE}')"), "JSONCompactEachRow")
    return [dict(enumerate(json.loads(line))) for line in str(answer).splitlines()]


def with_spark():
    import snowpark_connect_deps_iceberg as jars
    from pyspark.sql import SparkSession

    [jar] = Path(jars.__file__).parent.rglob("iceberg-spark-runtime-3.5_2.12-*.jar")
    builder = SparkSession.builder.master("local[1]").config("spark.jars", str(jar)).config("spark.ui.enabled", "false")
    catalog = {"": "org.apache.iceberg.spark.SparkCatalog", ".type": "hadoop", ".warehouse": FOLDER}
    for name, value in catalog.items():
        builder = builder.config(f"spark.sql.catalog.lake{name}", value)
    spark = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    return [row.asDict() for row in spark.sql(QUERY.format(f"lake.{NAMESPACE}.{TABLE}")).collect()]


def with_sail():
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer()
    server.start()
    spark = SparkSession.builder.remote(f"sc://127.0.0.1:{server.listening_address[1]}").getOrCreate()
    spark.read.format("iceberg").load(f"file://{PLACE}").createOrReplaceTempView("published")
    return [row.asDict() for row in spark.sql(QUERY.format("published")).collect()]


try:
    rows = globals()[f"with_{ENGINE}"]()
except ModuleNotFoundError as error:
    print(json.dumps({"missing": error.name}))
else:
    found = {symbol: [int(number), float(total)] for symbol, number, total in (one.values() for one in rows)}
    print(json.dumps({"found": found}))
