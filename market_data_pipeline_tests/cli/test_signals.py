"""Ctrl-C and SIGTERM: every command ends with the exit code that a shell gives a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from market_data_pipeline.cli import main

INTERRUPTED = """\
import os, signal, sys, threading
from market_data_pipeline import sandbox, settings
from market_data_pipeline.cli import main

def interrupt(*arguments, **options):
    os.kill(os.getpid(), signal.{signal})
    threading.Event().wait(60)

settings.Settings.__init__ = sandbox.Sandbox.__init__ = interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        main(line.split(), prog_name="market-data")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), line, end="", flush=True)
"""
"""Run each command of stdin in a process of its own. A signal comes when it reads its settings, or starts a sandbox."""


def commands(group: click.Group, *above: str) -> list[str]:
    """Return each command, with a word for every argument and option that it needs."""
    found: list[str] = []
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            found += commands(one, *above, name)
        else:
            needed = [
                next(iter(p.type.choices)) if isinstance(p.type, click.Choice) else p.name or ""
                for p in one.params
                if isinstance(p, click.Argument) and p.required
            ]
            needed += [
                word
                for p in one.params
                if isinstance(p, click.Option) and p.required
                for word in (p.opts[0], "postgresql://localhost/market")
            ]
            found.append(" ".join([*above, name, *needed, *(["--all"] if name == "retry" else [])]))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_every_command_with_its_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    lines = commands(main)
    assert len(lines) > 15
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(signal=number.name)],
        input="".join(f"{line}\n" for line in lines),
        env=os.environ | {"MARKET_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert ended.stdout.splitlines() == [f"{128 + number} {line}" for line in lines], ended.stderr
    assert "Traceback" not in ended.stderr
