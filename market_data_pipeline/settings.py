"""Environment, or a ``.env`` file, to :class:`Settings`. Every setting has the prefix ``MARKET_DATA_``."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from market_data_pipeline.errors import UsageError
from market_data_pipeline.series import Market

PREFIX = "MARKET_DATA_"


class Settings(BaseSettings):
    """What a user can set; ``.env.example`` shows the same list. Without settings the real Binance is asked."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    dir: Path = Field(Path("data"), description="The root: lake, ledgers, catalog and Dagster's own files.")
    universe: Path = Field(Path("universe.yaml"), description="What to collect.")

    vision_url: str = Field("https://data.binance.vision", description="The archive.")
    vision_listing_url: str = Field(
        "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision", description="The archive's listing (S3)."
    )
    spot_url: str = Field(
        "https://data-api.binance.vision",
        description="REST of spot; this host answers where api.binance.com is blocked.",
    )
    um_url: str = Field("https://fapi.binance.com", description="REST of USDⓈ-margined futures.")
    cm_url: str = Field("https://dapi.binance.com", description="REST of coin-margined futures.")

    weight_share: float = Field(
        0.5, gt=0, le=1, description="Share of Binance's REST limit to use: bots often sit behind the same address."
    )
    budget_dir: Path | None = Field(
        None,
        description="Where processes share the REST budget; by default a private folder in the user's cache.",
    )
    rest_trades_weight: int = Field(
        4000,
        ge=0,
        description="Most REST weight that one run spends on aggTrades, by market; the rest waits for the archive.",
    )
    rest_pause_seconds: float = Field(
        120,
        ge=0,
        description="Longest pause that a REST host may ask for (429, Retry-After) before it is off for the run.",
    )

    max_partitions_per_run: int = Field(366, ge=2, description="Most days in one Dagster run of a backfill.")
    download_threads: int = Field(
        8, ge=1, le=64, description="Downloads from a host at the same time; twice as many days are in work."
    )
    memory_mb: int = Field(512, ge=64, description="What days that are being worked on may take together, in MB.")
    quarantine_mb: int = Field(
        2000, ge=1, description="How much refused files may take in quarantine, in MB; one series at most half of it."
    )
    retries: int = Field(5, ge=0, description="How often a passing fault (5xx, a cut body) is tried again.")
    retry_backoff_seconds: float = Field(0.5, ge=0, description="First pause between attempts; it doubles each time.")
    timeout_seconds: float = Field(
        60, gt=0, description="Seconds for one HTTP answer; a zip may take longer at 16 kB/s."
    )
    max_zip_mb: int = Field(
        256,
        ge=1,
        description="Biggest zip to download, in MB; the biggest daily files have 120.",
    )
    lock_wait_seconds: float = Field(
        600, ge=0, description="How long to wait for another run that writes the same series."
    )

    ui_hosts: str = Field(
        "", description="Names under which the UI is reached, separated by commas, beside those of this machine."
    )
    daily_hour: int = Field(10, ge=0, le=23, description="UTC hour of the daily schedule; archives appear 03:00-09:00.")
    hourly_minute: int = Field(5, ge=1, le=59, description="Minute of the hourly schedule for today.")
    recent_days: int = Field(14, ge=1, description="How far back the daily schedule looks for days that are not final.")
    archive_minutes: int = Field(
        30, ge=1, le=1440, description="How often the sensor looks whether archives were published, in minutes."
    )
    verify_every: Literal["day", "week", "month"] = Field(
        "week", description="How often the schedule of verify looks whether archives were replaced."
    )
    provisional_days: int = Field(
        10, ge=1, description="After how many days a day that is still provisional is reported; archives stall for 9."
    )
    compact_grace_minutes: int = Field(
        60, ge=0, description="How long the files of days stay after their month was put into one file."
    )
    keep_runs_days: int = Field(
        90, ge=1, description="How long the schedule of prune keeps runs and their logs in Dagster's records."
    )
    sql_memory_mb: int = Field(2048, ge=64, description="Memory in MB that one query in SQL may take.")
    sql_disk_mb: int = Field(
        10000, ge=0, description="MB below the root that a query may take for what does not fit into its memory."
    )
    sql_seconds: float = Field(300, ge=0, description="How many seconds a query in SQL may take; 0 means no limit.")
    profile_level: float = Field(
        0, ge=0, description="Size of a price level in tradeProfile; 0 takes 0.01 % of the price."
    )

    @field_validator("vision_url", "vision_listing_url", "spot_url", "um_url", "cm_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not a URL: it must start with http:// or https://")
        try:
            parts = urlsplit(url)
            names_host = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
        except ValueError:
            names_host = False
        if not names_host:
            raise ValueError(f"{url!r} is not a URL: it must name a host, and perhaps a port")
        return url.rstrip("/")

    @cached_property
    def root(self) -> Path:
        """The root folder, absolute."""
        try:
            return self.dir.expanduser().absolute()
        except RuntimeError as error:
            raise UsageError(f"{PREFIX}DIR is {self.dir}, and there is no such home folder. Name it whole.") from error

    @property
    def ui_host_names(self) -> list[str]:
        """The names in ``ui_hosts``."""
        return [name.strip() for name in self.ui_hosts.split(",") if name.strip()]

    def rest_url(self, market: Market) -> str:
        """Base URL of a market's REST host."""
        return {Market.SPOT: self.spot_url, Market.UM: self.um_url, Market.CM: self.cm_url}[market]


def load_settings(**overrides: object) -> Settings:
    """Read the environment and ``.env``; keyword arguments win.

    Raises:
        UsageError: a setting is not what it may be; the text names it and the reason.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic converts and checks each
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The file .env in this folder cannot be read: {error}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise UsageError(f"A setting in the environment or in .env is wrong. {wrong}") from None
