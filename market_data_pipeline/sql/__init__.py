"""The lake as SQL: views and macros over its files, and their publication in ``catalog.duckdb``."""
