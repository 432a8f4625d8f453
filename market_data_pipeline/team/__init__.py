"""Hosts that share a lake: their locks and their REST budget in PostgreSQL (``MARKET_DATA_POSTGRES``).

Dagster's records in PostgreSQL belong to ``defs/platform``, rows for analysts to ``stores``.
"""
