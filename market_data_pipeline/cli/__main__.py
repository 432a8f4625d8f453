"""``python -m market_data_pipeline.cli`` is the command ``market-data``."""

from market_data_pipeline.cli import main

main(prog_name="market-data")
