"""Each rule that a check can report has its remedy, in the code and in the documentation in the same words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import market_data_pipeline
from market_data_pipeline.checks.remedies import FAILURES, GAPS, INTEGRITY
from market_data_pipeline.model import findings
from market_data_pipeline.model.day import REFUSED
from market_data_pipeline.model.findings import HISTORY, VERDICT_SEVERITY, Severity
from market_data_pipeline_tests.support.documents import DOCS

PACKAGE = Path(market_data_pipeline.__file__).parent
PAGE = (DOCS / "reference" / "checks.md").read_text("utf-8")


def rules_in_code() -> Iterator[str]:
    """Yield the rule of every ``Finding(check="integrity", …)`` and of every ``report(…)`` in the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            of_integrity = ast.unparse(given["check"]) == "'integrity'" if "check" in given else False
            rule = given.get("rule") if of_integrity else None
            if isinstance(node.func, ast.Name) and node.func.id == "report":
                rule = node.args[0]
            if isinstance(rule, ast.Constant):
                yield str(rule.value)
            elif isinstance(rule, ast.Name) and rule.id.isupper():
                yield getattr(findings, rule.id)


def test_every_integrity_rule_has_a_remedy() -> None:
    assert {*rules_in_code(), *HISTORY} == set(INTEGRITY)


def test_every_rule_is_documented_with_its_remedy() -> None:
    table = PAGE.partition("## Rules of `integrity`")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| `")]
    told = {rule: row[-1].removesuffix(" |") for row in cells for rule in re.findall(r"`(\w+)`", row[0])}
    assert told == INTEGRITY


def test_gaps_and_refusals_that_do_not_pass_have_a_remedy() -> None:
    assert set(GAPS) == {verdict for verdict, severity in VERDICT_SEVERITY.items() if severity is not Severity.INFO}
    assert set(FAILURES) == REFUSED
