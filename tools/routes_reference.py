"""The routes of the server as Markdown, from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings


def as_markdown() -> str:
    """Return a table of routes for each group, and a table of the parameters of all."""
    document = build_app(load_settings(dir=Path("data"))).openapi()
    return "\n".join([*_routes(document), *_parameters(document)])


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    group = None
    for path, method, operation in _operations(document):
        if operation["tags"][0] != group:
            group = operation["tags"][0]
            yield from ("", f"## {group}", "", "| route | meaning |", "|---|---|")
        yield f"| `{method} {path}` | {operation['summary']} |"


def _parameters(document: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Parameters", "", "| parameter | in | meaning |", "|---|---|---|")
    seen = set[tuple[str, str]]()
    for _, _, operation in _operations(document):
        for one in operation.get("parameters", ()):
            text = one.get("description", "")
            if (one["name"], text) not in seen:
                seen.add((one["name"], text))
                yield f"| `{one['name']}` | {one['in']} | {text} |"
    yield ""
