"""What the pipeline costs, measured beside simpler ways on the same machine in the same run: ``make bench``.

What belongs here: the data that is measured on (``data.py``, ``lakes.py``), how a thing is measured (``measure.py``,
``processes.py``), the rows of the table (``ingestion.py``, ``backfills.py``, ``growth.py``, ``client.py``,
``sql.py``, ``reconciliation.py``, ``verification.py``), what they are compared with (``baselines.py``,
``tools.py``) and how they are shown (``report.py``). What does not: whether what is measured is right, which the tests
say.
"""

import os

from market_data_pipeline.lake.arrow_memory import reuse_memory

AS_A_NOTEBOOK = "BENCHMARK_AS_A_NOTEBOOK"
"""Is set in the environment of processes that are no part of the pipeline, but ask it."""

if AS_A_NOTEBOOK not in os.environ:
    reuse_memory()  # as in the processes of the pipeline; what is measured beside it has it, too
