"""Reconciliation: compare klines with klines rebuilt from trades or finer klines. No Dagster."""
