"""Render the page of ``market-data coverage --html``: a calendar of each series, in one self-contained file.

Runs of days in the same state are one shape, so that a page of hundreds of series opens at once. A short script shows
the day under the mouse. Everything else works without the script. Reading the lake does not belong here.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from html import escape
from typing import Any

from market_data_pipeline.coverage.calendar import (
    MEANING,
    ON_DARK,
    ON_LIGHT,
    SHOWN_STATES,
    Run,
    SeriesCalendar,
    Strip,
    in_words,
    shapes,
    strips_of,
)
from market_data_pipeline.model.states import DayState

_CELL, _YEARS, _TICKS = 8, 2, 16
_LISTED = (DayState.INCOMPLETE, DayState.FAULTY, DayState.FAILED, DayState.MISSING, DayState.OUTAGE, DayState.HEALED)
_MOST_LISTED = 50


def coverage_page(calendars: Sequence[SeriesCalendar], root: str, made_at: datetime) -> str:
    """Render the page as HTML, with a light and a dark colour scheme.

    Args:
        calendars: Calendars of the series, in the order of the page.
        root: Folder of the lake.
        made_at: Time shown on the page (UTC).
    """
    days: Counter[DayState] = Counter()
    for one in calendars:
        days += one.counts()
    legend = "".join(f'<li><i class="{state}"></i>{MEANING[state]}</li>' for state in SHOWN_STATES)
    series = "".join(_section(number, one) for number, one in enumerate(calendars))
    data = {
        "cell": _CELL,
        "meaning": [MEANING[state] for state in SHOWN_STATES],
        "series": [_data(one) for one in calendars],
    }
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Coverage</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{_style()}</style></head><body><header><h1>Coverage</h1>'
        f"<p>{escape(root)}, at {made_at:%Y-%m-%d %H:%M} UTC. {len(calendars):,} series: {in_words(days) or 'no day'}."
        f'</p><ul class="legend" aria-label="Legend">{legend}</ul><form><label>Series <input id="name" type="search" '
        'placeholder="BTCUSDT 1m" autocomplete="off"></label><label><input id="incomplete" type="checkbox"> only '
        'series with missing or faulty days</label> <output id="shown"></output></form></header>'
        f'<svg width="0" height="0" aria-hidden="true"><defs><pattern id="grid" width="{_CELL}" height="{_CELL}" '
        f'patternUnits="userSpaceOnUse"><path d="M0 {_CELL}H{_CELL}V0"/></pattern></defs></svg><main>{series}</main>'
        '<div id="tip" role="tooltip" hidden></div>'
        f'<script id="data" type="application/json">{_json(data)}</script>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot close its ``<script>`` element."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", r"\u003c")


def _section(number: int, one: SeriesCalendar) -> str:
    name = escape(one.key.short)
    verdicts = ", ".join(f"{rows:,} {verdict}" for verdict, rows in one.verdicts.items())
    gaps = f" Rows by verdict: {escape(verdicts)}." if verdicts else ""
    if not one.runs:
        return f'<section data-name="{name}"><h2>{name}</h2><p>No day is stored or collected yet.</p></section>'
    return (
        f'<section data-name="{name}"{"" if one.days_incomplete else " data-whole"}><h2>{name}</h2>'
        f"<p>{one.runs[0].first} to {one.runs[-1].last}: {in_words(one.counts())}.{gaps}</p>"
        f"{_picture(number, one, name)}{_details(one)}</section>"
    )


def _picture(number: int, one: SeriesCalendar, name: str) -> str:
    strips = _strips(one)
    width, height = max(strip.weeks for strip in strips) * _CELL, len(strips) * (_TICKS + 7 * _CELL)
    paths: dict[DayState, list[str]] = {}
    ticks: list[str] = []
    for n, strip in enumerate(strips):
        top = _top(n)
        ticks += [f'<text x="{week * _CELL}" y="{top - 4}">{text}</text>' for week, text in strip.ticks]
        for state, drawn in shapes(one.runs, strip, _CELL, top):
            paths.setdefault(state, []).append(drawn)
    filled = "".join(f'<path class="{state}" d="{"".join(parts)}"/>' for state, parts in paths.items())
    return (
        f'<div class="calendar"><svg data-series="{number}" role="img" aria-label="Calendar of {name}" '
        f'width="{width}" height="{height}">{filled}<rect class="grid" width="{width}" height="{height}"/>'
        f"{''.join(ticks)}</svg></div>"
    )


def _strips(one: SeriesCalendar) -> list[Strip]:
    return strips_of(one.runs[0].first, one.runs[-1].last, _YEARS)


def _top(strip: int) -> int:
    """Return the top of a row's Mondays in pixels, aligned with the lines of the grid."""
    return strip * (_TICKS + 7 * _CELL) + _TICKS


def _details(one: SeriesCalendar) -> str:
    """List the newest days with a note as text, for readers who cannot see the calendar."""
    lines = list(_lines(one))
    if not lines:
        return ""
    more = f"<li>and {len(lines) - _MOST_LISTED:,} more</li>" if len(lines) > _MOST_LISTED else ""
    items = "".join(f"<li>{line}</li>" for line in lines[:_MOST_LISTED])
    return f"<details><summary>As text ({len(lines):,})</summary><ul>{items}{more}</ul></details>"


def _lines(one: SeriesCalendar) -> Iterator[str]:
    days = sorted(one.notes)
    for run in reversed(one.runs):
        noted = days[bisect_left(days, run.first) : bisect_right(days, run.last)]
        if not noted and run.state in _LISTED:
            yield f"{_when(run)}: {MEANING[run.state]}"
        for day in reversed(noted):
            yield f"{day}: {MEANING[run.state]}. {escape(one.notes[day])}"


def _when(run: Run) -> str:
    return str(run.first) if run.first == run.last else f"{run.first} to {run.last}"


def _data(one: SeriesCalendar) -> Mapping[str, Any]:
    """Return the data for the script, with days as numbers since 1970."""
    states = list(SHOWN_STATES)
    return {
        "runs": [[_number(run.first), _number(run.last), states.index(run.state)] for run in one.runs],
        "strips": [[_number(strip.first), _top(n)] for n, strip in enumerate(_strips(one))] if one.runs else [],
        "notes": {_number(day): note for day, note in one.notes.items()},
    }


def _number(day: date) -> int:
    return day.toordinal() - date(1970, 1, 1).toordinal()


def _style() -> str:
    light, dark = (
        "".join(f"--{state}:{colour};" for state, colour in colours.items()) for colours in (ON_LIGHT, ON_DARK)
    )
    fills = "".join(f".{state}{{fill:var(--{state});background:var(--{state})}}" for state in SHOWN_STATES)
    return (
        f":root{{--ground:#fff;--text:#1f2328;--faint:#59636e;--line:#d1d9e0;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{--ground:#16191d;--text:#e6e6e6;--faint:#9da5ae;--line:#3a4048;"
        f"{dark}}}}}{_CSS}{fills}"
    )


_CSS = """
body { margin: 0 auto; max-width: 960px; padding: 16px; background: var(--ground); color: var(--text);
  font: 14px/1.5 system-ui, sans-serif }
h1 { font-size: 22px; margin: 0 }
h2 { font-size: 15px; margin: 20px 0 0 }
p { margin: 2px 0 6px; color: var(--faint) }
section { content-visibility: auto; contain-intrinsic-size: auto 300px }
section[hidden] { display: none }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0 }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; vertical-align: -1px }
form { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; padding: 8px 0;
  border-bottom: 1px solid var(--line) }
input[type=search] { font: inherit; padding: 2px 6px }
.calendar { overflow-x: auto; padding-right: 24px }
svg { display: block; overflow: visible }
svg text { font-size: 10px; fill: var(--faint) }
#grid path { fill: none; stroke: var(--ground); stroke-width: 2 }
.grid { fill: url(#grid) }
details { color: var(--faint); margin-top: 6px }
details ul { margin: 4px 0; padding-left: 20px }
#tip { position: fixed; max-width: 420px; padding: 4px 8px; background: var(--text); color: var(--ground);
  border-radius: 4px; font-size: 12px; pointer-events: none; z-index: 1 }
"""

_SCRIPT = """
const {cell, meaning, series} = JSON.parse(document.getElementById('data').textContent)
const tip = document.getElementById('tip'), main = document.querySelector('main')
const named = document.getElementById('name'), incomplete = document.getElementById('incomplete')

main.addEventListener('mousemove', event => {
  const picture = event.target.closest('svg[data-series]')
  tip.hidden = true
  if (!picture) return
  const box = picture.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top
  const one = series[picture.dataset.series]
  const strip = one.strips.find(([, top]) => y >= top && y < top + 7 * cell)
  if (!strip) return
  const [first, top] = strip
  const monday = first - (first + 3) % 7  // 1970-01-01 was a Thursday
  const day = monday + 7 * Math.floor(x / cell) + Math.floor((y - top) / cell)
  const run = one.runs.find(([from, through]) => from <= day && day <= through)
  if (!run || day < first) return
  const note = one.notes[day] ? '. ' + one.notes[day] : ''
  tip.textContent = new Date(day * 864e5).toISOString().slice(0, 10) + ': ' + meaning[run[2]] + note
  tip.hidden = false
  tip.style.left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8) + 'px'
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + 'px'
})
main.addEventListener('mouseleave', () => { tip.hidden = true })

function choose() {
  const words = named.value.toLowerCase().split(/\\s+/)
  const sections = [...document.querySelectorAll('section')]
  for (const section of sections) {
    const name = section.dataset.name.toLowerCase()
    section.hidden = !words.every(word => name.includes(word)) || (incomplete.checked && 'whole' in section.dataset)
  }
  const shown = sections.filter(section => !section.hidden).length
  document.getElementById('shown').textContent = shown < sections.length ? `${shown} of ${sections.length} shown` : ''
}
named.addEventListener('input', choose)
incomplete.addEventListener('change', choose)
document.querySelector('form').addEventListener('submit', event => event.preventDefault())
"""
