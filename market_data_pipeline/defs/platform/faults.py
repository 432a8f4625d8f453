"""Errors of a run's step as one sentence, without a retry. The sentences belong to ``model.faults``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from market_data_pipeline.model import faults


@contextmanager
def failing_in_words() -> Iterator[None]:
    """Fail the step with one sentence instead of a traceback, if the fault is foreseeable.

    Raises:
        dagster.Failure: Replaces a `MarketDataError` or a fault of the machine. It is not retried. Stored days stay,
            and the next run continues from there.
    """
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:
        text = faults.sentence(error)
        if text is None:
            raise
        raise dg.Failure(description=text, allow_retries=False) from error
