"""Binance's own paths, answered from the lake: a drop-in for clients of the exchange.

Parameters, codes and forms are those of ``model/binance_dialect.py``.
"""
