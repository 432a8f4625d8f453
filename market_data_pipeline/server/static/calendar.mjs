// The calendar of a series: a square for each day, a choice of days by pointer and keyboard.

const SVG = 'http://www.w3.org/2000/svg'
const DAY = 86_400_000
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']
const TOP = 1.6

const drawn = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  if (text != null) element.textContent = text
  return element
}

const number = day => Date.parse(`${day}T00:00:00Z`) / DAY
const textOf = day => new Date(day * DAY).toISOString().slice(0, 10)
const weekday = day => (day + 3) % 7  // 1970-01-01 was a Thursday

export class Calendar {
  /** @param onDay Called with a day as text, its state and its note. @param onOpen Called with a day to show. */
  constructor(container, { onDay, onOpen }) {
    this.container = container
    this.onDay = onDay
    this.onOpen = onOpen
    container.addEventListener('pointermove', event => this.#point(event))
    container.addEventListener('click', event => { if (this.#point(event)) this.#open() })
    container.addEventListener('keydown', event => this.#key(event))
  }

  draw(document) {
    this.runs = document.runs.map(([first, last, state]) => ({ first: number(first), last: number(last), state }))
    this.notes = document.notes
    this.chosen = null
    this.years = new Map()
    this.container.replaceChildren(...document.years.map(one => this.#year(one)))
    this.container.dataset.years = document.years.length
  }

  #year({ year, weeks, paths }) {
    const figure = window.document.createElement('figure')
    const title = window.document.createElement('figcaption')
    title.textContent = year
    const svg = drawn('svg', { viewBox: `0 ${-TOP} ${weeks} ${7 + TOP}`, 'aria-hidden': 'true', 'data-year': year })
    const origin = number(`${year}-01-01`)
    const week = day => Math.floor((day + weekday(origin) - origin) / 7)
    MONTHS.forEach((name, n) => {
      const first = number(`${year}-${String(n + 1).padStart(2, '0')}-01`)
      svg.append(drawn('text', { x: week(first) + (weekday(first) > 3 && n ? 1 : 0), y: -0.5 }, name))
    })
    for (const [state, path] of Object.entries(paths)) svg.append(drawn('path', { class: `day-${state}`, d: path }))
    const grid = []
    for (let x = 0; x <= weeks; x += 1) grid.push(`M${x} 0v7`)
    for (let y = 0; y <= 7; y += 1) grid.push(`M0 ${y}h${weeks}`)
    svg.append(drawn('path', { class: 'grid', d: grid.join('') }))
    const mark = drawn('rect', { class: 'mark', width: 1, height: 1, visibility: 'hidden' })
    svg.append(mark)
    figure.append(title, svg)
    this.years.set(year, { svg, mark, origin, weeks, week })
    return figure
  }

  #point(event) {
    const svg = event.target.closest?.('svg')
    if (!svg) return false
    const { origin, weeks } = this.years.get(Number(svg.dataset.year))
    const box = svg.getBoundingClientRect(), cell = box.width / weeks
    const column = Math.floor((event.clientX - box.left) / cell), row = Math.floor((event.clientY - box.top) / cell - TOP)
    if (row < 0 || row > 6) return false
    const day = origin - weekday(origin) + 7 * column + row
    return this.#choose(day)
  }

  #choose(day) {
    const run = this.runs.find(one => one.first <= day && day <= one.last)
    if (!run) return false
    if (day === this.chosen) return true
    const text = textOf(day), year = this.years.get(Number(text.slice(0, 4)))
    for (const { mark } of this.years.values()) mark.setAttribute('visibility', 'hidden')
    year.mark.setAttribute('x', year.week(day))
    year.mark.setAttribute('y', weekday(day))
    year.mark.setAttribute('visibility', 'visible')
    this.chosen = day
    this.onDay(text, run.state, this.notes[text] ?? '')
    return true
  }

  #open() { if (this.chosen != null) this.onOpen(textOf(this.chosen)) }

  #key(event) {
    const shift = { ArrowLeft: -7, ArrowRight: 7, ArrowUp: -1, ArrowDown: 1 }[event.key]
    if (!this.runs?.length || !(shift || event.key === 'Enter')) return
    event.preventDefault()
    if (!shift) return this.#open()
    const newest = this.runs.at(-1).last
    if (this.chosen == null) this.#choose(newest)
    else this.#choose(Math.max(this.runs[0].first, Math.min(newest, this.chosen + shift)))
  }
}
