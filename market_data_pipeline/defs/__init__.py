"""All of Dagster: turns partitions into days and outcomes into events.

What belongs here: assets, checks, events, jobs, schedules, the IO manager, resources, and Dagster's own home.
What does not: fetching, checking, computing or writing a day; that lies below and runs without Dagster.
"""
