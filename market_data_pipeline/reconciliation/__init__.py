"""Reconciliation: are klines what their trades, or finer klines, make of them?"""
