"""The lake over HTTP: rows of every data type, the state of the lake, jobs, and SQL behind a key.

The extra ``server`` installs what this room needs. Rows leave as bytes, never through response models.
Reading rows does not belong here (``client/pages.py``), nor does fetching them from the exchange (``jobs.py`` starts
``market-data`` for that).
"""
