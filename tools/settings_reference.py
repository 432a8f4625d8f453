"""The settings as a Markdown table and as ``.env.example``, both from ``Settings``.

``python -m tools.settings_reference`` writes ``.env.example``. A test fails if the file is not up to date.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from market_data_pipeline.settings import PREFIX, Settings

ENV_EXAMPLE = Path(__file__).parents[1] / ".env.example"

GROUPS = {
    "dir": "Data",
    "vision_url": "Where Binance is (`market-data sandbox` prints these lines for its own address)",
    "weight_share": "Binance's request limits",
    "max_partitions_per_run": "Work and its limits",
    "ui_hosts": "Dagster's UI and schedules",
    "iceberg_catalog": "Iceberg tables (`market-data publish`)",
    "sql_memory_mb": "Limits of a SQL query",
    "api_keys": "The server (`market-data serve`)",
    "postgres": "Several hosts (`docs/guides/scaling.md`)",
    "profile_level": "Derived data",
}
"""The first setting of each group, and the group's name."""

_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def groups() -> Iterator[tuple[str, list[tuple[str, FieldInfo]]]]:
    """Yield the name of each group and its settings, in the order of the class."""
    found: list[tuple[str, list[tuple[str, FieldInfo]]]] = []
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            found.append((GROUPS[name], []))
        found[-1][1].append((name, field))
    yield from found


def as_markdown() -> str:
    """Return a table for each group: name, default, meaning and allowed values."""
    parts = []
    for group, settings in groups():
        rows = [f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_meaning(field)} |" for name, field in settings]
        parts.append("\n".join([f"## {group}\n", "| setting | default | meaning |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def as_env_example() -> str:
    """Return the text of ``.env.example``: each setting commented out, with its default."""
    lines = [
        "# Settings of market_data_pipeline with their defaults. Copy this file to .env and change what you need.",
        "# Variables of the environment take precedence over .env.",
    ]
    for group, settings in groups():
        lines += ["", f"# --- {group} ---".replace("`", "")]
        for name, field in settings:
            lines += textwrap.wrap(
                _meaning(field).replace("`", ""),
                118,
                initial_indent="# ",
                subsequent_indent="# ",
                break_on_hyphens=False,
            )
            lines.append(f"# {PREFIX}{name.upper()}={'' if field.default is None else field.default}")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    return f"`{field.default}`" if field.default not in (None, "") else ""


def _meaning(field: FieldInfo) -> str:
    limits = [(_LIMITS[name], getattr(one, name)) for one in field.metadata for name in _LIMITS if hasattr(one, name)]
    limits = [(word, limit) for word, limit in limits if (word, limit) != ("at least", 0)]
    words = " and ".join(f"{word} {_number(limit)}" for word, limit in limits)
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        words = "one of " + ", ".join(f"`{choice}`" for choice in choices)
    text = (field.description or "").rstrip(".")
    return f"{text}. Allowed: {words}." if words else f"{text}."


def _number(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


if __name__ == "__main__":
    ENV_EXAMPLE.write_text(as_env_example(), "utf-8")
