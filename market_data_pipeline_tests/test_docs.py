"""The documentation is complete: each setting, command, check, rule, verdict, state and failure is on its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from market_data_pipeline.cli import main
from market_data_pipeline.errors import SourceError
from market_data_pipeline.model.day import Stage
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Severity, Verdict
from market_data_pipeline.model.states import CONDITION_RULES, DayState
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline_tests.support.documents import DOCS, PROJECT, first_cells
from tools import lifecycle_reference
from tools.settings_reference import ENV_EXAMPLE, as_env_example, as_markdown

CHECKS = DOCS / "reference" / "checks.md"
VERDICTS = DOCS / "concepts" / "verdicts.md"
PAGES = sorted(DOCS.rglob("*.md"))
ROOT_PAGES = sorted(PROJECT.glob("*.md"))


def commands(group: click.Group) -> list[click.Command]:
    """Return the commands of a group and of the groups in it."""
    below = [
        one for command in group.commands.values() if isinstance(command, click.Group) for one in commands(command)
    ]
    return [*group.commands.values(), *below]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_description_and_a_group() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    shown = re.findall(rf"^\| `{PREFIX}(\w+)` \|", as_markdown(), re.MULTILINE)
    assert shown == [name.upper() for name in Settings.model_fields]
    assert "<!-- settings -->" in (DOCS / "reference" / "settings.md").read_text("utf-8").splitlines()


def test_env_example_is_what_the_settings_generate() -> None:
    """After a change of the settings, run ``python -m tools.settings_reference``."""
    assert ENV_EXAMPLE.read_text("utf-8") == as_env_example()


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: str(page.relative_to(PROJECT)))
def test_settings_and_commands_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    named = set(re.findall(rf"{PREFIX}([A-Z][A-Z_]*[A-Z])\b", text)) - {"COMPLETE"}
    assert named <= {name.upper() for name in Settings.model_fields}
    called = set(re.findall(r"(?:`|bin/|^)market-data ([a-z]+)", text, re.MULTILINE))
    assert called <= set(main.commands)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", commands(main), ids=lambda command: str(command.name))
def test_every_command_and_option_has_a_help_text(command: click.Command) -> None:
    assert command.help
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []


def test_page_of_commands_is_generated_from_the_command_line() -> None:
    page = (DOCS / "reference" / "commands.md").read_text("utf-8")
    assert "::: mkdocs-click" in page
    assert ":list_subcommands: true" in page


# --- checks -----------------------------------------------------------------------------------------------------------


def test_every_verdict_is_documented_with_its_effect() -> None:
    effects = {Severity.INFO: "passes", Severity.WARN: "warns", Severity.ERROR: "fails"}
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", VERDICTS.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == {verdict: effects[severity] for verdict, severity in VERDICT_SEVERITY.items()}


def test_every_verdict_that_does_not_pass_has_a_remedy() -> None:
    passing = {verdict for verdict, severity in VERDICT_SEVERITY.items() if severity is Severity.INFO}
    assert first_cells(CHECKS, after="## `gaps`") == set(Verdict) - passing


def test_every_kind_of_failure_is_documented() -> None:
    kinds = {one.kind for one in SourceError.__subclasses__()}
    assert first_cells(CHECKS, after="## `integrity` fails without a stored day") == kinds


def test_every_state_of_a_day_is_documented() -> None:
    assert first_cells(DOCS / "concepts" / "day-lifecycle.md") == set(DayState)


def test_every_reason_of_a_condition_is_documented() -> None:
    text = (DOCS / "concepts" / "day-lifecycle.md").read_text("utf-8")
    lines = re.findall(r"^- \*\*(\w+)\*\*: ((?:.+\n)(?:  .+\n)*)", text[text.index("## Conditions") :], re.MULTILINE)
    named = {(condition, word) for condition, line in lines for word in re.findall(r"`(\w+)`", line)}
    assert named == {(rule.condition, rule.reason) for rule in CONDITION_RULES}


def test_every_check_is_documented() -> None:
    snapshot: dict[str, Any] = json.loads(
        Path(__file__).with_name("defs").joinpath("definitions_snapshot.json").read_text()
    )
    names = {check for asset in snapshot["assets"].values() for check in asset["checks"]}
    assert names
    assert [name for name in names if f"`{name}`" not in CHECKS.read_text("utf-8")] == []


# --- README and quickstart --------------------------------------------------------------------------------------------


def test_readme_fits_a_hundred_and_twenty_lines() -> None:
    assert len((PROJECT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda page: page.name)
def test_links_of_the_root_lead_to_files(page: Path) -> None:
    """mkdocs checks the links of the pages below ``docs/``."""
    links = re.findall(r"\]\((?!https?:|#|\.\./\.\./actions)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (PROJECT / link).exists()] == []


def test_every_picture_is_small_and_shown() -> None:
    shown = "".join(page.read_text("utf-8") for page in [*PAGES, *ROOT_PAGES])
    pictures = list((DOCS / "images").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if f"images/{picture.name})" not in shown] == []
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []


# --- the life of a day ------------------------------------------------------------------------------------------------


def test_lifecycle_page_has_every_stage_event_and_need() -> None:
    assert "<!-- lifecycle -->" in (DOCS / "concepts" / "day-lifecycle.md").read_text("utf-8").splitlines()
    text = lifecycle_reference.as_markdown()
    assert all(f"| `{stage}` |" in text for stage in Stage)
    assert all(f"--> {box}:" in text for box in ("not_stored", "provisional", "final", "replaced", "published"))
    assert "Rows were written." in text
    assert "Another archive, or another checksum, than the refused one." in text
