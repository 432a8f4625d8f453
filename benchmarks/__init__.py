"""What the pipeline costs, measured beside simpler ways on the same machine in the same run: ``make bench``.

What belongs here: the data that is measured on (``data.py``), how a thing is measured (``measure.py``), the rows of
the table (``ingestion.py``, ``backfilling.py``, ``reading.py``), what they are compared with (``baselines.py``) and how
they are shown (``report.py``). What does not: whether what is measured is right, which the tests say.
"""
