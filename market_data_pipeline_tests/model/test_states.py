"""The one word for a day: the same in Python and in SQL."""

from __future__ import annotations

from itertools import combinations

import duckdb
import pytest

from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.states import state_of
from market_data_pipeline.sql.views import STATE_SQL


@pytest.mark.parametrize(
    ("outcome", "final", "verdicts", "state"),
    [
        (HELD, True, "", "final"),
        (HELD, True, "quiet+not_listed", "final"),
        (HELD, True, "healed+quiet", "healed"),
        (HELD, True, "healed+outage", "outage"),
        (HELD, True, "suspended", "outage"),
        (HELD, False, "outage", "provisional"),
        (HELD, False, "unpublished", "provisional"),
        (HELD, True, "unpublished+outage", "incomplete"),
        (HELD, True, "healed+archive_defect", "incomplete"),
        (HELD, False, "unexplained", "incomplete"),
        (FAILED, False, "", "failed"),
        (EMPTY, False, "", "empty"),
        (NOT_LISTED, True, "", "not_listed"),
    ],
)
def test_a_day_has_the_state_that_matters_most(outcome: str, final: bool, verdicts: str, state: str) -> None:
    assert state_of(outcome, final, verdicts) == state


def test_sql_and_python_agree_on_every_possible_day() -> None:
    verdicts = ["+".join(some) for size in range(4) for some in combinations(Verdict, size)]
    with duckdb.connect() as connection:
        for outcome in (HELD, FAILED, EMPTY, NOT_LISTED):
            for final in (True, False):
                for integrity in (None, "info", "warn", "error"):
                    rows = connection.execute(
                        f"SELECT verdicts, {STATE_SQL} FROM (SELECT ? AS outcome, CAST(? AS BOOLEAN) AS final, "
                        "CAST(? AS VARCHAR) AS integrity, unnest(?) AS verdicts)",
                        [outcome, final, integrity, verdicts],
                    ).fetchall()
                    assert dict(rows) == {each: state_of(outcome, final, each, integrity).value for each in verdicts}
                    assert len(rows) == len(verdicts)
