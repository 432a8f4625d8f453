"""Door for Dagster: ``workspace.yaml`` files and code locations name this module. The code is in ``defs``."""

from market_data_pipeline.defs.definitions import defs as defs
