"""What the pipeline costs, measured beside simpler ways on the same machine in the same run: ``make bench``.

What belongs here: the data that is measured on (``data.py``, ``lakes.py``), how a thing is measured (``measure.py``,
``processes.py``), the rows of the table (``ingestion.py``, ``backfilling.py``, ``growing.py``, ``reading.py``,
``asking.py``, ``reconciling.py``, ``verifying.py``), what they are compared with (``baselines.py``, ``tools.py``) and
how they are shown (``report.py``). What does not: whether what is measured is right, which the tests say.
"""

from market_data_pipeline.processes import keep_memory

keep_memory()  # as in the processes of the pipeline; what is measured beside it has it, too
