"""Names of coins over time: the list of the package, and what a wrong entry is told."""

from __future__ import annotations

from datetime import date

import pytest

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import Market
from market_data_pipeline.universe.aliases import known_aliases, parse_aliases

GOOD = "market: spot, symbols: [AUSDT], from: 2022-05-31, source: https://example.org"
RENAMED = "market: spot, symbols: {AUSDT: BUSDT}, ratio: 1, source: https://example.org"


def test_known_aliases_have_reused_and_renamed_symbols() -> None:
    known = known_aliases()
    assert known.reused[Market.SPOT, "LUNAUSDT"] == (date(2022, 5, 31),)
    assert known.reused[Market.UM, "LITUSDT"] == (date(2025, 12, 23),)
    assert known.predecessors[Market.SPOT, "XNOUSDT"].symbol == "NANOUSDT"
    assert known.predecessors[Market.SPOT, "BTTCUSDT"].ratio == 1000
    assert (Market.SPOT, "USDCUSDT") not in known.reused  # the same coin came back


def test_several_days_of_one_symbol_are_in_order() -> None:
    again = GOOD.replace("2022", "2021")
    found = parse_aliases(f"reused: [{{{GOOD}}}, {{{again}}}]", "a.yaml")
    assert found.reused == {(Market.SPOT, "AUSDT"): (date(2021, 5, 31), date(2022, 5, 31))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"reused: [{{{GOOD.replace(', source: https://example.org', '')}}}]", "entry 1 of `reused:`.*needs exactly"),
        (f"reused: [{{{GOOD.replace('https://', '')}}}]", "`source:` must be a link"),
        (f"reused: [{{{GOOD.replace('spot', 'swap')}}}]", "'swap' is no market. Allowed: spot, um, cm"),
        (f"reused: [{{{GOOD.replace('2022-05-31', 'May')}}}]", "`from:` must be a day"),
        (f"reused: [{{{GOOD.replace('[AUSDT]', 'AUSDT')}}}]", r"must be a list such as \[LUNAUSDT\]"),
        (f"continued: [{{{RENAMED.replace('ratio: 1', 'ratio: 0')}}}]", "must be a number above 0"),
        (f"continued: [{{{RENAMED.replace('BUSDT', 'B/USDT')}}}]", "'B/USDT' cannot be a symbol"),
        ("reused: {a: b}", "`reused:` must be a list of entries"),
        ("reused: [", "this is not YAML"),
    ],
)
def test_wrong_entry_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_aliases(text, "a.yaml")
