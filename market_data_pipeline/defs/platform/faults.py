"""How a step of a run fails for a fault of the machine: with words, and without a retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from market_data_pipeline.model import faults


@contextmanager
def failing_in_words() -> Iterator[None]:
    """Fail the step with one sentence, instead of a traceback, for a foreseeable fault.

    Raises:
        dagster.Failure: in the place of a `MarketDataError` or a fault of the machine. It is not retried: what was
            stored stays, and another run goes on from there.
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
