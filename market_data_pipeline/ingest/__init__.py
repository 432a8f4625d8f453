"""Ingest days of one series into the lake. Dagster does not belong here.

For each day: bytes or JSON → verified Arrow table with its origin → findings → one Parquet file, atomically → ledger.
Threads fetch days ahead within a memory budget, and results come in order. A past day comes from its daily or monthly
archive. REST fills in missing rows and serves days without an archive.
"""
