"""Dagster's home, event log, web server, records and tables. Code of a topic does not belong here."""
