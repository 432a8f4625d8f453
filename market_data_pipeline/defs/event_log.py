"""Old import path of the event log, for ``dagster.yaml`` files of version 0.1. No code belongs here."""

from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage as KeptConnectionEventLogStorage
