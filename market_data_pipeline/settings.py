"""Read :class:`Settings` from the environment or a ``.env`` file. Every setting has the prefix ``MARKET_DATA_``.

Facts about Binance that no user changes do not belong here (``model/datasets.py``).
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.places import is_object, place_of, register
from market_data_pipeline.model.series import Market

PREFIX = "MARKET_DATA_"


class Settings(BaseSettings):
    """All settings. ``.env.example`` has the same list. The defaults use the real Binance."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    dir: Path = Field(
        Path("data"),
        description="The data folder: lake, ledgers, catalog and Dagster's records. Or `s3://bucket/prefix`: then the "
        "records are in `MARKET_DATA_LOCAL_DIR`.",
    )
    local_dir: Path = Field(
        Path("data"),
        description="If the lake is in a bucket, the folder for what stays on this machine: Dagster's records, live "
        "rows, locks and scratch.",
    )
    universe: Path = Field(Path("universe.yaml"), description="The file that lists the series to collect.")

    vision_url: str = Field("https://data.binance.vision", description="The archive.")
    vision_listing_url: str = Field(
        "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision", description="The archive's listing (S3)."
    )
    spot_url: str = Field(
        "https://data-api.binance.vision",
        description="REST for spot. The default host serves public data where `api.binance.com` is blocked.",
    )
    um_url: str = Field("https://fapi.binance.com", description="REST for USDⓈ-margined futures.")
    cm_url: str = Field("https://dapi.binance.com", description="REST for coin-margined futures.")

    spot_stream_url: str = Field(
        "wss://data-stream.binance.vision", description="WebSocket streams of spot, for the live feed."
    )
    um_stream_url: str = Field(
        "wss://fstream.binance.com/market", description="WebSocket streams of USDⓈ-margined futures."
    )
    cm_stream_url: str = Field("wss://dstream.binance.com", description="WebSocket streams of coin-margined futures.")

    weight_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of Binance's request limit to use, by all of your processes on this machine together. "
        "If several users collect from one address, their shares should add up to less than 1.",
    )
    budget_dir: Path | None = Field(
        None,
        description="Folder in which your processes share the request limit. It must belong to you alone and be no "
        "link. Default: `market-data-pipeline` in your cache (`XDG_CACHE_HOME` or `~/.cache`); without a home folder, "
        "in `XDG_RUNTIME_DIR` or the temporary folder.",
    )
    rest_trades_weight: int = Field(
        4000,
        ge=0,
        description="Request weight that one run may spend on aggTrades, per market. Other days wait for the archive.",
    )
    rest_pause_seconds: float = Field(
        120,
        ge=0,
        description="Longest pause in seconds that a REST host may request (429, Retry-After). If it requests more, "
        "the run does without this host.",
    )

    max_partitions_per_run: int = Field(366, ge=2, description="Days in one Dagster run of a backfill.")
    download_threads: int = Field(
        8, ge=1, le=64, description="Simultaneous downloads per host. Twice as many days are in progress."
    )
    memory_mb: int = Field(512, ge=64, description="Memory in MB for all days in progress together.")
    quarantine_mb: int = Field(
        2000, ge=1, description="Size limit in MB for quarantine. One series gets at most half of it."
    )
    retries: int = Field(5, ge=0, description="Retries after a temporary failure (5xx, a truncated body).")
    retry_backoff_seconds: float = Field(
        0.5, ge=0, description="Pause in seconds before the first retry. It doubles with each retry."
    )
    timeout_seconds: float = Field(
        60,
        gt=0,
        description="Time limit in seconds for one HTTP answer. A zip may take longer at 16 kB/s or more. All retries "
        "of an answer together take less than twice this time without progress.",
    )
    max_zip_mb: int = Field(
        256,
        ge=1,
        description="Size limit in MB for a zip. The biggest daily files of Binance have 120 MB.",
    )
    lock_wait_seconds: float = Field(
        600, ge=0, description="Time in seconds to wait for another run that writes the same series."
    )

    ui_hosts: str = Field(
        "",
        description="Names of proxies in front of Dagster's UI, `name` or `name:port`, separated by commas. "
        "Names of this machine need no entry.",
    )
    daily_hour: int = Field(
        10,
        ge=0,
        le=23,
        description="UTC hour of the schedule `daily`. The archive publishes the previous day between 03:00 and 09:00.",
    )
    hourly_minute: int = Field(5, ge=1, le=59, description="Minute of the schedule `hourly`, which fetches today.")
    recent_days: int = Field(
        14, ge=1, description="Days that the schedule `daily` looks back for days that are not final."
    )
    archive_minutes: int = Field(
        30, ge=1, le=1440, description="Minutes between two looks of the sensor `archive_published`."
    )
    verify_every: Literal["day", "week", "month"] = Field(
        "week", description="Interval of the schedule `verify`, which looks for replaced archives."
    )
    provisional_days: int = Field(
        10,
        ge=1,
        description="Days after which a provisional day is reported. Publication has stalled for 9 days before.",
    )
    compact_grace_minutes: int = Field(
        60, ge=0, description="Minutes before the files of days are removed, once their month is one file."
    )
    keep_runs_days: int = Field(
        90,
        ge=1,
        description="Days after which the schedule `prune` removes runs and their logs from Dagster's records.",
    )
    iceberg_catalog: str = Field(
        "",
        description="Catalog of the Iceberg tables: a URL of SQLAlchemy such as "
        "`postgresql+psycopg://user@host/database`, or the `https://` address of a REST catalog. Default: SQLite in "
        "the data folder.",
    )
    iceberg_keep_hours: float = Field(
        72,
        gt=0,
        description="Hours for which old snapshots of the Iceberg tables stay readable. Their files are deleted later.",
    )
    sql_memory_mb: int = Field(2048, ge=64, description="Memory in MB for one query.")
    sql_disk_mb: int = Field(
        10000, ge=0, description="Disk space in MB, below the data folder, for a query that exceeds its memory."
    )
    sql_seconds: float = Field(300, ge=0, description="Time limit in seconds for one query. 0 means no limit.")
    api_keys: str = Field(
        "",
        description="API keys of `market-data serve`, separated by commas, at least 16 characters each. Without any, "
        "admin routes and SQL are off, and the server listens on loopback only.",
    )
    serve_cache_strategy: Literal["cache_only", "auto"] = Field(
        "cache_only",
        description="Default of the parameter `cache_strategy`: read the lake alone, or fetch missing days of series "
        "in the universe.",
    )
    serve_cache_mb: int = Field(32, ge=0, description="Memory in MB for the server's cache of answers.")
    serve_hosts: str = Field(
        "",
        description="Names under which clients reach the server, `name` or `name:port`, separated by commas. Loopback "
        "needs no entry.",
    )
    serve_origins: str = Field(
        "",
        description="Origins of web pages that may read from the server (CORS), such as `https://example.org`, "
        "separated by commas.",
    )
    hot_store: str = Field(
        "",
        description="postgresql://user@host:port/database with hot rows whose old days `market-data retain` and the "
        "schedule `retain` remove. PGPASSWORD or ~/.pgpass has the password.",
    )
    hot_store_keep_days: int = Field(
        0,
        ge=0,
        description="Days that stay in PostgreSQL. Older ones are removed if the lake has them: final, and with each "
        "row. 0 removes nothing.",
    )
    postgres: str = Field(
        "",
        description="PostgreSQL for Dagster's records, locks and the REST budget, shared by all hosts of a team: "
        "`postgresql://user@host/database`. Without it, they are files in the data folder.",
    )
    broker: str = Field(
        "",
        description="Broker of the workers, such as `redis://host:6379/0`. Runs then start on any host with a "
        "`market-data worker`. It needs `MARKET_DATA_POSTGRES`.",
    )
    concurrent_runs: int = Field(
        4,
        ge=1,
        description="Runs in progress at once, on all workers together. Set it to the number of their slots.",
    )
    rest_address: str = Field(
        "",
        description="Name of the public address from which this host sends requests. Hosts with the same name share "
        "the request limit in PostgreSQL.",
    )
    profile_level: float = Field(
        0, ge=0, description="Height of a price level in tradeProfile. 0 means 0.01 % of the price."
    )

    @field_validator("dir", mode="before")
    @classmethod
    def _as_path(cls, place: object) -> object:
        if not is_object(place):
            return place
        if len(place_of(str(place)).parts) < 2:
            raise ValueError(f"{place} has no bucket: write s3://bucket/prefix")
        return str(place)

    @field_validator("api_keys")
    @classmethod
    def _long_keys(cls, keys: str) -> str:
        if any(len(key) < 16 for key in _listed(keys)):
            raise ValueError("a key has fewer than 16 characters, so it can be guessed")
        return keys

    @field_validator("postgres")
    @classmethod
    def _postgres_url(cls, url: str) -> str:
        if url and not re.match(r"postgres(ql)?://\S*$", url):
            raise ValueError("it is not a URL of PostgreSQL: it must start with postgresql://")
        return url

    @field_validator("broker")
    @classmethod
    def _broker_url(cls, url: str, info: ValidationInfo) -> str:
        if url and not re.match(r"[a-z+]+://\S+$", url):
            raise ValueError("it is not a URL of a broker, such as redis://host:6379/0")
        if url and not info.data.get("postgres"):
            raise ValueError(f"workers need {PREFIX}POSTGRES, too: they share records and locks")
        return url

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
            raise ValueError(f"{url!r} is not a URL: it must have a host, and may have a port")
        return url.rstrip("/")

    @field_validator("spot_stream_url", "um_stream_url", "cm_stream_url")
    @classmethod
    def _stream_url(cls, url: str) -> str:
        if not re.match(r"wss?://[^\s/:]+(:\d+)?(/|$)", url):
            raise ValueError(f"{url!r} is not the URL of streams: it must start with ws:// or wss://, and have a host")
        return url.rstrip("/")

    @cached_property
    def root(self) -> Path:
        """Return the absolute path of the data folder."""
        if is_object(self.dir):
            root = place_of(str(self.dir))
            register(root, self.local_dir.expanduser().absolute())
            return root
        try:
            return self.dir.expanduser().absolute()
        except RuntimeError as error:
            raise UsageError(
                f"{PREFIX}DIR is {self.dir}, and there is no such home folder. Use an absolute path."
            ) from error

    @property
    def ui_host_names(self) -> list[str]:
        """Return the names in ``ui_hosts``."""
        return _listed(self.ui_hosts)

    @property
    def serve_host_names(self) -> list[str]:
        """Return the names in ``serve_hosts``."""
        return _listed(self.serve_hosts)

    @property
    def serve_origin_names(self) -> list[str]:
        """Return the origins in ``serve_origins``."""
        return _listed(self.serve_origins)

    @property
    def api_key_list(self) -> list[str]:
        """Return the keys in ``api_keys``."""
        return _listed(self.api_keys)

    def rest_url(self, market: Market) -> str:
        """Return the base URL of a market's REST host."""
        return {Market.SPOT: self.spot_url, Market.UM: self.um_url, Market.CM: self.cm_url}[market]

    def stream_url(self, market: Market) -> str:
        """Return the base URL of a market's WebSocket streams, without ``/ws`` or ``/stream``. Empty if it has none."""
        urls = {Market.SPOT: self.spot_stream_url, Market.UM: self.um_stream_url, Market.CM: self.cm_stream_url}
        return urls.get(market, "")


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def load_settings(**overrides: object) -> Settings:
    """Read the environment and ``.env``. Keyword arguments take precedence.

    Raises:
        UsageError: A setting is invalid. The message names the setting and the reason.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic converts and checks each
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the file .env in this folder: {error}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise UsageError(f"A setting in the environment or in .env is invalid. {wrong}") from None


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
