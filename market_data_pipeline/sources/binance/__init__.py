"""Binance's archive and REST API. Other exchanges do not belong here."""
