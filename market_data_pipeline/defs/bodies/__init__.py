"""What assets, ops, ticks, resources and the IO manager do when they are called; ``defs`` says only what there is.

A code location loads ``defs`` and calls nothing of it, so modules of this package are imported by the functions that
begin a run, a tick or a load, when they begin: with them come Arrow, DuckDB, HTTP, and most of the project.
"""
