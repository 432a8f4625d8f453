"""Dagster definitions: partitions become days, and results of days become events.

Assets, checks, events, jobs, schedules, the IO manager, resources and Dagster's home belong here.
Fetching, checking, computing and writing a day do not: they run without Dagster.
"""
