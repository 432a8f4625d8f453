"""``market-data live``: follow the streams of the universe's series."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside
from market_data_pipeline.cli.signals import end_now
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe


@click.command()
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="Speed of the clock of a sandbox (`market-data sandbox --speed`). Binance has 1.",
)
def live(speed: float) -> None:
    """Follow the live streams of the universe.

    Stores each closed candle and each trade within a moment, as live rows below MARKET_DATA_DIR/live. REST answers for
    candles that are late. The state of each series is in live/status.json. One feed runs per data folder, here or in
    `market-data serve --live`. Needs the extra `live`: pip install "market-data-pipeline[live]".
    """
    try:
        from market_data_pipeline.live.feed import Feed, run_feed
    except ModuleNotFoundError as error:
        raise UsageError(
            f'The live feed needs the package {error.name}: pip install "market-data-pipeline[live]".'
        ) from error
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings()
    keys = current_series(settings)
    show_followed(Feed(settings, keys, speed).series, settings)
    end_now(128 + run_feed(settings, keys, speed))


def current_series(settings: Settings) -> list[SeriesKey]:
    """Return the series of the universe that are collected today."""
    universe = load_universe(settings.universe)
    return [key for key in universe.series() if universe.end(key) >= clock.today()]


def show_followed(followed: Sequence[SeriesKey], settings: Settings) -> None:
    """Print the series that a feed follows."""
    counts = Counter(f"{key.market} {key.data_type}" for key in followed)
    shown = ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
    aside().print(f"Following {len(followed)} series ({shown}). Their state is in {settings.root}/live/status.json.")
