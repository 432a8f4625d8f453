"""Calendars of coverage: what each day is, that every day is drawn once where it belongs, and that it can be told."""

from __future__ import annotations

import base64
import re
from datetime import date, timedelta
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.coverage.calendar import (
    LOOKS,
    MOST_BYTES,
    Run,
    SeriesCalendar,
    calendar_markdown,
    calendar_of,
    calendar_svg,
    shapes,
    strips_of,
    week_of,
)
from market_data_pipeline.model.states import DayState
from market_data_pipeline_tests.support.small_lake import days_from, series

KEY = series("BTCUSDT", "1h")
FIRST = date(2024, 1, 1)
TODAY = date(2024, 1, 8)
FINAL, FAILED, MISSING, NOT_LISTED = DayState.FINAL, DayState.FAILED, DayState.MISSING, DayState.NOT_LISTED


def calendar(symbol: str, first: date, states: list[DayState]) -> SeriesCalendar:
    """A series' calendar, a day after another."""
    days = days_from(first.isoformat(), len(states))
    known = dict(zip(days, states, strict=True))
    return calendar_of(series(symbol, "1h"), known)


# --- what each day is ----------------------------------------------------------------------------------------------


def test_equal_days_form_one_run_and_empty_days_none() -> None:
    """Days with nothing to store are in no run."""
    first, second, third, fourth, fifth = days_from("2024-01-01", 5)
    found = calendar_of(KEY, {fifth: MISSING, first: FINAL, second: FINAL, third: FAILED, fourth: DayState.EMPTY})
    assert found.runs == (Run(FINAL, first, second), Run(FAILED, third, third), Run(MISSING, fifth, fifth))
    assert found.counts() == {FINAL: 2, FAILED: 1, MISSING: 1}
    assert found.days_incomplete == 2


# --- where it is drawn ---------------------------------------------------------------------------------------------


def squares(path: str, cell: int, top: int) -> set[tuple[int, int]]:
    """Week and weekday of every square that path data covers; none may be covered twice."""
    found: list[tuple[int, int]] = []
    for x, y, width, height in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\3z", path):
        week, weekday = int(x) // cell, (int(y) - top) // cell
        found += [(week + n, weekday + m) for n in range(int(width) // cell) for m in range(int(height) // cell)]
    assert len(found) == len(set(found))
    return set(found)


@given(
    states=st.lists(st.sampled_from([FINAL, FAILED, MISSING]), min_size=1, max_size=900),
    first=st.dates(date(2017, 8, 17), date(2026, 1, 1)),
    years=st.sampled_from([0, 1, 2, 4]),
)
def test_every_day_is_drawn_once_in_its_week(states: list[DayState], first: date, years: int) -> None:
    one = calendar("BTCUSDT", first, states)
    days = dict(zip(days_from(first.isoformat(), len(states)), states, strict=True))
    drawn: dict[date, DayState] = {}
    for strip in strips_of(min(days), max(days), years):
        monday = strip.first - timedelta(days=strip.first.weekday())
        for state, path in shapes(one.runs, strip, 5, 40):
            for week, weekday in squares(path, 5, 40):
                day = monday + timedelta(weeks=week, days=weekday)
                assert day not in drawn
                assert week == week_of(day, strip.first) < strip.weeks
                drawn[day] = state
    assert drawn == days


@pytest.mark.parametrize("first", [date(2023, 12, 31), date(2024, 1, 1), date(2024, 1, 30), date(2024, 11, 28)])
@pytest.mark.parametrize("length", [1, 40, 300, 430, 800, 3000])
def test_names_of_months_and_years_have_room(first: date, length: int) -> None:
    for years in (0, 1, 2, 4):
        strips = strips_of(first, first + timedelta(days=length - 1), years)
        for strip in strips:
            columns = [week for week, _ in strip.ticks]
            assert columns
            assert all(after - before >= 4 for before, after in pairwise(columns))
        named = [text for strip in strips for _, text in strip.ticks]
        assert len(set(named)) == len(named) or length <= 430  # a year's months come again


# --- the picture ---------------------------------------------------------------------------------------------------


def many(number: int, length: int = 2400, every: int = 97) -> list[SeriesCalendar]:
    return [
        calendar(
            f"S{n:03d}USDT", date(2019, 1, 1), [FAILED if day % every == n % every else FINAL for day in range(length)]
        )
        for n in range(number)
    ]


@pytest.mark.parametrize(("number", "length"), [(1, 1), (1, 2400), (3, 100), (30, 2400)])
def test_picture_is_complete_and_describes_itself(number: int, length: int) -> None:
    root = ET.fromstring(calendar_svg(many(number, length)))
    name = "{http://www.w3.org/2000/svg}"
    title = root.find(f"{name}title")
    assert title is not None
    assert title.text is not None
    assert title.text.startswith(f"Calendar of {number} series, a square for each day: ")
    texts = [text.text for text in root.iter(f"{name}text")]
    assert {LOOKS[FAILED].label} <= set(texts)
    assert sum("klines" in (text or "") for text in texts) == number
    # All that is drawn lies inside.
    height, width = int(root.get("height", 0)), int(root.get("width", 0))
    for path in root.iter(f"{name}path"):
        if path.get("fill") in {look.light for look in LOOKS.values()}:
            for x, y, w, h in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)", path.get("d", "")):
                assert int(x) + int(w) <= width
                assert int(y) + int(h) <= height


def test_few_series_have_larger_squares_than_many() -> None:
    def cell(svg: str) -> int:
        found = re.search(r'<pattern id="g" width="(\d+)"', svg)
        assert found is not None
        return int(found[1])

    sizes = [cell(calendar_svg(many(number))) for number in (1, 3, 6, 40)]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (12, 2)


def test_metadata_is_a_picture_and_never_longer_than_allowed() -> None:
    for number in (1, 20, 500):
        text = calendar_markdown(many(number, 600, 41))
        assert len(text) <= MOST_BYTES
        shown = re.match(r"!\[Calendar of (\d+) series.*?\]\(data:image/svg\+xml;base64,(.*?)\)", text)
        assert shown is not None
        ET.fromstring(base64.b64decode(shown[2]))
        left_out = number - int(shown[1])
        assert (f"{left_out} series are not in the picture" in text) is (left_out > 0)


def test_series_with_most_missing_days_come_first() -> None:
    """Series without days are left out."""
    lacks = calendar("ZECUSDT", FIRST, [MISSING] * 3)
    text = calendar_markdown([*many(2, 10, 11), lacks, SeriesCalendar(KEY, ())])
    svg = base64.b64decode(text.partition("base64,")[2][:-1]).decode()
    assert re.findall(r">spot/klines/(\w+)/", svg) == ["ZECUSDT", "S000USDT", "S001USDT"]
    assert calendar_markdown([SeriesCalendar(KEY, ())]) == "No day is stored or collected yet."


# --- colours -------------------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), whole.
EYES = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanope": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, eye: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A colour as an eye sees it, in CIE L*a*b*."""
    srgb = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(eye @ linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("background", ["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
def test_states_are_distinct_to_the_colour_blind(background: str, eye: str) -> None:
    seen = {state: lab(getattr(look, background), EYES[eye]) for state, look in LOOKS.items()}
    for one, other in combinations(LOOKS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, f"{one} and {other}"
