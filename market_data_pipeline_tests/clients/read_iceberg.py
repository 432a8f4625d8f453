"""Read published tables with an engine: rows and the sum of a column per symbol, as JSON.

Arguments: the engine, the folder of the tables, then for each table ``namespace.table.column``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

ENGINE, FOLDER, *WANTED = sys.argv[1:]
logging.disable(logging.WARNING)


class Wanted:
    """A table and the column to sum."""

    def __init__(self, text):
        self.namespace, self.table, self.column = text.split(".")
        self.place = Path(FOLDER) / self.namespace / self.table

    def query(self, source):
        return f"SELECT symbol, count(*) AS number, sum({self.column}) AS total FROM {source} GROUP BY symbol"

    def newest(self):
        version = (self.place / "metadata" / "version-hint.text").read_text()
        return str(self.place / "metadata" / f"v{version}.metadata.json")

    def loaded(self):
        from pyiceberg.catalog import load_catalog

        catalog = load_catalog("market_data", type="sql", uri=f"sqlite:///{FOLDER}/catalog.db")
        return catalog.load_table((self.namespace, self.table))


def with_pyiceberg():
    def read(one):
        table = one.loaded().scan(selected_fields=("symbol", one.column)).to_arrow().unify_dictionaries()
        sums = table.group_by("symbol").aggregate([(one.column, "count"), (one.column, "sum")])
        return sums.select(["symbol", f"{one.column}_count", f"{one.column}_sum"]).to_pylist()

    return read


def with_duckdb():
    import duckdb
    import duckdb_extension_avro
    import duckdb_extension_iceberg

    connection = duckdb.connect()
    for module in (duckdb_extension_avro, duckdb_extension_iceberg):
        [file] = Path(module.__file__).parent.rglob("*.duckdb_extension")
        connection.load_extension(str(file))
    return lambda one: connection.sql(one.query(f"iceberg_scan('{one.place}')")).arrow().read_all().to_pylist()


def with_polars():
    import polars as pl

    def read(one):
        rows = pl.scan_iceberg(one.newest()).group_by("symbol")
        return rows.agg(pl.len(), pl.col(one.column).sum()).collect().to_dicts()

    return read


def with_daft():
    import daft

    def read(one):
        rows = daft.read_iceberg(one.loaded()).groupby("symbol")
        number, total = daft.col(one.column).count(), daft.col(one.column).sum()
        return rows.agg(number.alias("number"), total.alias("total")).to_pylist()

    return read


def with_clickhouse():
    import chdb

    os.chdir("/")  # chdb reads below the current folder only

    def read(one):
        answer = chdb.query(one.query(f"icebergLocal('{one.place}')"), "JSONCompactEachRow")
        return [dict(enumerate(json.loads(line))) for line in str(answer).splitlines()]

    return read


def with_spark():
    import snowpark_connect_deps_iceberg as jars
    from pyspark.sql import SparkSession

    [jar] = Path(jars.__file__).parent.rglob("iceberg-spark-runtime-3.5_2.12-*.jar")
    options = {
        "spark.jars": str(jar),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
        "spark.sql.catalog.lake.warehouse": FOLDER,
    }
    builder = SparkSession.builder.master("local[1]")
    for name, value in options.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    return lambda one: _rows(spark, one.query(f"lake.{one.namespace}.{one.table}"))


def with_sail():
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer()
    server.start()
    spark = SparkSession.builder.remote(f"sc://127.0.0.1:{server.listening_address[1]}").getOrCreate()

    def read(one):
        spark.read.format("iceberg").load(f"file://{one.place}").createOrReplaceTempView(one.table)
        return _rows(spark, one.query(one.table))

    read.server = server  # it ends with its last reference
    return read


def _rows(spark, query):
    return [row.asDict() for row in spark.sql(query).collect()]


def totals(rows):
    return {symbol: [int(number), float(total)] for symbol, number, total in (one.values() for one in rows)}


try:
    read = globals()[f"with_{ENGINE}"]()
    print(json.dumps({"found": {text: totals(read(Wanted(text))) for text in WANTED}}))
except ModuleNotFoundError as error:
    print(json.dumps({"missing": error.name}))
