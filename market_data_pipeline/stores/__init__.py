"""Stores of rows behind one interface: the lake (``parquet.py``), PostgreSQL for a team (``postgres.py``), and both.

``base.py`` has the interface and its rules, ``rows.py`` the decisions. Only ``postgres.py`` imports the driver of the
database. Downloading and verifying rows do not belong here.
"""
