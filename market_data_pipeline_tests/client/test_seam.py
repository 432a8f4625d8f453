"""Reads over lake, live rows and REST while rows move between them: no gap, no double, no changed final row.

``SEAM_READS=100000`` reads as often. Without it, a few hundred reads take some seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline_tests.support.live_world import LiveWorld

READS = int(os.environ.get("SEAM_READS", "100"))

pytestmark = pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")


def test_reads_have_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends, REST, archives, eviction and compaction happen between the looks of one read, in any order."""
    world = LiveWorld(tmp_path, seed=READS)
    world.append()
    with world.in_between(monkeypatch, 0.04):
        for _ in range(READS):
            world.read_and_check()
    world.close()
    assert world.final >= 1
    assert world.steps > READS / 10


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), share=st.sampled_from([0.02, 0.2]))
def test_any_order_of_events_has_no_seam(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, seed: int, share: float
) -> None:
    world = LiveWorld(tmp_path_factory.mktemp("seam"), seed)
    world.append()
    for _ in range(40):
        world.step()
    with world.in_between(monkeypatch, share):
        for _ in range(8):
            world.read_and_check()
    world.close()
    assert world.steps >= 40
