"""Binance's archive and REST API."""
