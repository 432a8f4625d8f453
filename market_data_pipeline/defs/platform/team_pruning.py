"""Prune Dagster's records in PostgreSQL, by the rules of ``pruning.py``. Autovacuum frees the space."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from sqlalchemy.engine import Connection

from market_data_pipeline.defs.platform.team_storage import TeamEventLogStorage

_FINISHED = ", ".join(f"'{status.value}'" for status in FINISHED_STATUSES)

_CHOOSE = f"""
CREATE TEMP TABLE old ON COMMIT DROP AS SELECT run_id FROM runs
    WHERE status IN ({_FINISHED})
    AND coalesce(end_time, extract(epoch FROM update_timestamp AT TIME ZONE 'UTC')) < :before
    AND coalesce(backfill_id, '') NOT IN
        (SELECT key FROM bulk_actions WHERE status IN ('REQUESTED', 'CANCELING', 'FAILING'));
CREATE TEMP TABLE stays (id bigint PRIMARY KEY) ON COMMIT DROP;
INSERT INTO stays SELECT max(id) FROM event_logs
    WHERE dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION') AND asset_key IS NOT NULL
    GROUP BY asset_key, dagster_event_type, partition ON CONFLICT DO NOTHING;
-- The newest attempt: the UI shows a partition as failed if it was planned and not materialized since.
INSERT INTO stays SELECT max(id) FROM event_logs
    WHERE dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED')
    AND asset_key IS NOT NULL GROUP BY asset_key, partition ON CONFLICT DO NOTHING;
CREATE TEMP TABLE results (id bigint PRIMARY KEY) ON COMMIT DROP;
INSERT INTO results SELECT max(id) FROM asset_check_executions
    WHERE execution_status IN ('SUCCEEDED', 'FAILED') GROUP BY asset_key, check_name, partition;
INSERT INTO results SELECT max(id) FROM asset_check_executions
    GROUP BY asset_key, check_name, partition ON CONFLICT DO NOTHING;
CREATE TEMP TABLE named ON COMMIT DROP AS
    SELECT run_id FROM event_logs JOIN stays USING (id) JOIN old USING (run_id)
    UNION SELECT run_id FROM asset_check_executions JOIN results USING (id) JOIN old USING (run_id)
    UNION SELECT last_run_id FROM asset_keys JOIN old ON run_id = last_run_id
"""  # noqa: S608 - Dagster's own words

_OF_OLD = "run_id IN (SELECT run_id FROM old)"
_GOES = f"{_OF_OLD} AND id NOT IN (SELECT id FROM stays)"  # noqa: S608
_SUPERSEDED = f"{_OF_OLD} AND id NOT IN (SELECT id FROM results)"  # noqa: S608
_OLD_TICKS = """
timestamp < :moment AND status <> 'STARTED'
AND id NOT IN (SELECT max(id) FROM job_ticks GROUP BY job_origin_id, selector_id)
"""
_UNNAMED = f"{_OF_OLD} AND run_id NOT IN (SELECT run_id FROM named)"  # noqa: S608

_DROP = (
    f"DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM event_logs WHERE {_GOES})",  # noqa: S608
    f"DELETE FROM asset_check_executions WHERE {_SUPERSEDED}",  # noqa: S608
    f"DELETE FROM event_logs WHERE {_GOES}",  # noqa: S608
    f"DELETE FROM run_tags WHERE {_UNNAMED}",  # noqa: S608
    f"DELETE FROM runs WHERE {_UNNAMED}",  # noqa: S608
    f"DELETE FROM job_ticks WHERE {_OLD_TICKS}",  # noqa: S608
    # Runs that were closed as dead leave their lock's row, so that a host that wakes up is refused.
    "DELETE FROM market_data.locks WHERE starts_with(name, 'run/') AND taken_at < now() - interval '7 days'",
)


def prune_team(
    storage: TeamEventLogStorage, before: datetime, *, dry_run: bool
) -> tuple[tuple[int, int, int, int, int], int, int]:
    """Drop runs that ended before a time, with their logs and superseded results, in one transaction.

    Returns:
        The numbers of runs dropped, runs retained, events, evaluations and ticks; bytes of the database before and
        after.
    """
    given = {"before": before.timestamp(), "moment": before.astimezone(UTC).replace(tzinfo=None)}
    with storage.index_transaction() as connection:
        size = _number(connection, "SELECT pg_database_size(current_database())")
        connection.execute(sa.text(_CHOOSE), given)
        kept = _number(connection, "SELECT count(*) FROM named")
        dropped = (
            _number(connection, "SELECT count(*) FROM old") - kept,
            kept,
            _number(connection, f"SELECT count(*) FROM event_logs WHERE {_GOES}"),  # noqa: S608
            _number(connection, f"SELECT count(*) FROM asset_check_executions WHERE {_SUPERSEDED}"),  # noqa: S608
            _number(connection, f"SELECT count(*) FROM job_ticks WHERE {_OLD_TICKS}", **given),  # noqa: S608
        )
        if not dry_run:
            for statement in _DROP:
                connection.execute(sa.text(statement), given)
    with storage.index_connection() as connection:
        return dropped, size, _number(connection, "SELECT pg_database_size(current_database())")


def _number(connection: Connection, statement: str, **given: Any) -> int:
    return int(connection.execute(sa.text(statement), given).scalar_one())
