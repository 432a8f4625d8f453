"""The life of a day as a diagram and tables, from ``TRANSITIONS`` and ``KINDS``. A test compares it with ``after``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from market_data_pipeline.model.day import TRANSITIONS, Event, Stage
from market_data_pipeline.model.needs import KINDS, NeedKind

_DRAWN = {
    "not_stored": (Stage.EMPTY, Stage.OUTAGE, Stage.NOT_LISTED, Stage.RETRY, Stage.ABSENT, Stage.REFUSED),
    "provisional": (Stage.PROVISIONAL, Stage.PROVISIONAL_RETRY, Stage.PROVISIONAL_REFUSED),
    "final": (Stage.FINAL, Stage.FINAL_RETRY, Stage.FINAL_REFUSED),
}
"""Stages that the diagram draws as one box."""

_BOX = {stage: box for box, stages in _DRAWN.items() for stage in stages}


def as_markdown() -> str:
    """Return the diagram, the stages with what each needs, and the transitions."""
    return "\n".join([*_diagram(), "", *_stages(), "", *_transitions(), ""])


def _diagram() -> Iterator[str]:
    arrows: dict[tuple[str, str], list[str]] = {}
    for stage, events in TRANSITIONS.items():
        for event, targets in events.items():
            for target in sorted(targets):
                names = arrows.setdefault((_drawn(stage), _drawn(target)), [])
                if event.__name__ not in names:
                    names.append(event.__name__)
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {Stage.NEW}"
    yield from (f"    {box}: {', '.join(stages)}" for box, stages in _DRAWN.items())
    yield from (f"    {one} --> {other}: {', '.join(names)}" for (one, other), names in arrows.items() if one != other)
    yield "```"


def _drawn(stage: Stage) -> str:
    return _BOX.get(stage, stage.value)


def _stages() -> Iterator[str]:
    texts, kinds = _texts(Stage), _texts(NeedKind)
    yield "| stage | meaning | needs |"
    yield "|---|---|---|"
    for stage in Stage:
        yield f"| `{stage}` | {texts[stage.name]} | {kinds[KINDS[stage].name]} |"


def _transitions() -> Iterator[str]:
    alike: dict[int, list[Stage]] = {}
    for stage, events in TRANSITIONS.items():
        alike.setdefault(id(events), []).append(stage)
    yield "| stage before | event | stage after |"
    yield "|---|---|---|"
    for stages in alike.values():
        before = ", ".join(f"`{stage}`" for stage in stages)
        for event, targets in TRANSITIONS[stages[0]].items():
            to = ", ".join(f"`{one}`" for one in Stage if one in targets)
            yield f"| {before} | `{event.__name__}`: {_first_line(event)} | {to} |"


def _first_line(event: type[Event]) -> str:
    return (inspect.getdoc(event) or "").split("\n", 1)[0]


def _texts(enum: type[StrEnum]) -> dict[str, str]:
    """Return the docstring of each member, which Python does not keep."""
    [body] = [node.body for node in ast.parse(inspect.getsource(enum)).body if isinstance(node, ast.ClassDef)]
    found = {}
    for member, text in pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(member.targets[0])] = " ".join(str(text.value.value).split())
    return found
