"""Checks of a day: pure functions with Arrow tables in and findings out.

Input and output do not belong here.
"""
