"""Maintenance across series: sweeps, scrubs, compaction and due days. Dagster does not belong here."""
