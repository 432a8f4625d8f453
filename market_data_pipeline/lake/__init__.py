"""The lake: paths, atomic files, provenance, ledgers and the catalog of views."""
