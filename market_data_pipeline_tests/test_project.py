"""The files around the package agree with each other: version, changelog, Python versions, make targets."""

from __future__ import annotations

import re
import subprocess
import tomllib

import yaml

import market_data_pipeline
from market_data_pipeline_tests.support.documents import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))


def test_changelog_begins_with_the_version_of_the_package() -> None:
    versions = re.findall(r"^## \[(\S+)\] – ", (PROJECT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == market_data_pipeline.__version__


def test_workflow_tests_each_python_that_the_classifiers_name() -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    named = [found[1] for one in PYPROJECT["project"]["classifiers"] if (found := re.search(r":: (3\.\d+)$", one))]
    assert workflow["jobs"]["ci"]["strategy"]["matrix"]["python"] == named
    assert PYPROJECT["project"]["requires-python"] == f">={named[0]}"


def test_make_help_lists_every_target() -> None:
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    shown = subprocess.run(["make", "-s", "help"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^make ([\w-]+) ", shown, re.MULTILINE) == targets
    assert re.search(r"^\.DEFAULT_GOAL := install$", makefile, re.MULTILINE)
