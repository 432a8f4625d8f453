"""Door for ``dagster.yaml`` files of version 0.1, which name this module. The code is in ``defs/platform``."""

from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage as KeptConnectionEventLogStorage
