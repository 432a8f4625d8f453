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
    """Yield the rule of every integrity finding in the package, and those that the integrity check yields."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            rule = _rule_in(node)
            if isinstance(rule, ast.Constant):
                yield str(rule.value)
            elif isinstance(rule, ast.Name) and rule.id.isupper():
                yield getattr(findings, rule.id)


def _rule_in(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 4:
        rule, severity = node.value.elts[:2]
        return rule if isinstance(severity, ast.Name) and severity.id in Severity.__members__ else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and node.func.id == "integrity_finding":
        return node.args[0]
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    return given.get("rule") if "check" in given and ast.unparse(given["check"]) == "'integrity'" else None


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
