# ruff: noqa: INP001
"""Make Dagster's daemon look for work every two seconds instead of 30. Python imports this file at start."""

from __future__ import annotations

from dagster._daemon import controller

controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
