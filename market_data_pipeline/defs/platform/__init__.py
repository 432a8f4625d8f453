"""Dagster as this project runs it: its home, event log, web server, records and tables. Imports no topic."""
