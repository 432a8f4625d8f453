"""Real tools of other projects, each in an environment of its own, because they are heavy and need other packages.

``make test-clients`` creates ``.venv-clients-TOOL`` from ``requirements-TOOL.txt`` of this folder, and runs the tests
with the marker ``clients``. To add a tool, add that file, a script, and a test that calls :func:`run_client`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROJECT_ROOT = HERE.parents[1]


def python_of(tool: str) -> Path:
    """Return the interpreter of a tool. Skips the test if the tool is not installed."""
    environment = PROJECT_ROOT / f".venv-clients-{tool}"
    if not (environment / ".installed").exists():
        pytest.skip(f"{tool} is not installed; `make test-clients` installs it and runs this test")
    return environment / "bin" / "python"


def run_client(tool: str, script: str, *arguments: str, seconds: float = 300) -> Any:
    """Run a script of this folder with the interpreter of a tool. Return the JSON of its last line on stdout.

    Skips the test if the tool is not installed.
    """
    python = python_of(tool)
    command = [str(python), "-I", str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
