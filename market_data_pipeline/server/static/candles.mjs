// The candles of one series that are loaded so far, and what is known about them. No drawing.

import { get } from './api.mjs'
import { isoOf, seconds, stepOf } from './format.mjs'

const PAGE = 500
const NEWEST = 120
const MOST_SLOTS = 100

export class Candles {
  /** @param choice market, data_type, path, symbol and interval. */
  constructor(choice) {
    this.choice = choice
    this.step = stepOf(choice.interval)
    this.abort = new AbortController()
    this.clear()
  }

  clear() {
    this.rows = new Map()
    this.missing = []
    this.states = []
    this.from = this.until = null
    this.atOldest = false
    this.atNewest = false
  }

  close() { this.abort.abort() }

  /** Load the newest page; if candles are loaded already, its newest part alone. Return true if something changed. */
  async newest() {
    const page = await this.#get({ limit: this.rows.size ? NEWEST : PAGE })
    const version = [page.version, page.start, page.states.at(-1)?.as_of].join()  // an open candle has no version
    if (version === this.version) return false
    if (this.rows.size && !this.#touches(page)) this.clear()
    this.#replace(page)
    this.atNewest = true
    this.version = version
    return true
  }

  /** Load the page before the oldest candle. */
  async older() {
    if (this.atOldest || this.from == null) return false
    const page = await this.#get({ end_time: isoOf(this.from), limit: PAGE })
    this.atOldest = !page.columns.open_time.length
    if (!this.atOldest) this.#replace(page)
    return !this.atOldest
  }

  /** Load the page after the newest candle. */
  async newer() {
    if (this.atNewest || this.until == null) return false
    const page = await this.#get({ start_time: isoOf(this.until), limit: PAGE })
    this.atNewest = page.next_page_token == null
    this.#replace(page)
    return true
  }

  /** Load candles around a moment instead of the loaded ones. */
  async around(moment) {
    const end = moment + PAGE / 2 * this.step
    const page = end * 1000 >= Date.now() ? await this.#get({ limit: PAGE }) : await this.#get({ end_time: isoOf(end), limit: PAGE })
    this.clear()
    this.version = undefined
    this.#replace(page)
    this.atNewest = page.end == null
    if (!this.rows.size || this.from > moment) {
      const after = await this.#get({ start_time: isoOf(moment), limit: PAGE })
      if (this.rows.size && seconds(after.end ?? page.start) < this.from) this.clear()
      this.#replace(after)
      this.atNewest ||= after.next_page_token == null
    }
  }

  /** Take a candle of the stream. Return false if it does not follow the loaded ones. */
  take(row) {
    const from = row.open_time / 1e6, to = from + this.step
    if (!this.atNewest || from < this.from || from > this.until) return false
    this.rows.set(from, { time: from, open: row.open, high: row.high, low: row.low, close: row.close, volume: row.volume })
    this.missing = outside(this.missing, from, to)
    this.states = joined(outside(this.states, from, to), [{ from: isoOf(from), to: isoOf(to), state: row.state, source: 'live' }], 'state')
    this.until = Math.max(this.until, to)
    return true
  }

  /** Return the rows and the empty slots of missing ranges, oldest first. Long ranges have fewer slots than candles. */
  series() {
    const rows = [...this.rows.values()].sort((a, b) => a.time - b.time)
    if (!rows.length) return rows
    const slots = new Map()
    for (const span of this.missing) {
      const from = Math.max(span.from, this.from ?? span.from)
      const first = rows[0].time + Math.ceil((from - rows[0].time) / this.step) * this.step
      const number = Math.floor((span.to - first) / this.step)
      const stride = Math.max(1, Math.ceil(number / MOST_SLOTS)) * this.step
      for (let time = first; time + this.step <= span.to; time += stride) {
        if (!this.rows.has(time)) slots.set(time, { time })
      }
    }
    return slots.size ? [...rows, ...slots.values()].sort((a, b) => a.time - b.time) : rows
  }

  /** Return the state of a candle: missing, final, provisional, live or forming. */
  stateAt(time) {
    const end = time + this.step
    if (this.missing.some(span => span.from < end && span.to > time)) return this.rows.has(time) ? 'incomplete' : 'missing'
    return this.states.find(span => span.from <= time && span.to > time)?.state ?? ''
  }

  /** Return the ranges to shade, with a kind of missing, provisional or live. */
  bands() {
    const marked = this.states.filter(span => span.state !== 'final')
    return [...marked.map(span => ({ ...span, kind: span.source === 'live' ? 'live' : 'provisional' })),
      ...this.missing.map(span => ({ ...span, kind: 'missing' }))]
  }

  #get(parameters) {
    const { path, symbol, interval, market, data_type } = this.choice
    const columns = ['open', 'high', 'low', 'close', ...(data_type === 'klines' ? ['volume'] : [])].join(',')
    const address = `/api/v1/market/${[path, symbol, interval].map(encodeURIComponent).join('/')}`
    return get(address, { market, columns, include_forming: true, ...parameters }, this.abort.signal)
  }

  #touches(page) { return this.until == null || !page.start || seconds(page.start) <= this.until }

  #replace(page) {
    const { open_time: times, open, high, low, close, volume } = page.columns
    const from = seconds(page.start)
    const last = times.length ? times[times.length - 1] / 1e6 + this.step : from
    const until = Math.max(last, page.end ? seconds(page.end) : last)
    const isNewest = page.end == null
    for (const time of this.rows.keys()) if (time >= from && (time < until || isNewest)) this.rows.delete(time)
    times.forEach((time, n) => {
      this.rows.set(time / 1e6, { time: time / 1e6, open: open[n], high: high[n], low: low[n], close: close[n], volume: volume?.[n] })
    })
    const end = isNewest ? Infinity : until
    this.missing = joined(outside(this.missing, from, end), page.missing, 'reason')
    this.states = joined(outside(this.states, from, end), page.states, 'state')
    this.from = this.from == null ? from : Math.min(this.from, from)
    this.until = this.until == null ? until : Math.max(this.until, until)
  }
}

/** Return the parts of spans that are not between two moments. */
function outside(spans, from, until) {
  return spans.flatMap(span => [
    ...(span.from < from ? [{ ...span, to: Math.min(span.to, from) }] : []),
    ...(span.to > until ? [{ ...span, from: Math.max(span.from, until) }] : []),
  ])
}

/** Return known spans and those of a page in order. Touching spans with the same text are one. */
function joined(known, found, text) {
  const spans = [...known, ...found.map(span => ({ ...span, from: seconds(span.from), to: seconds(span.to) }))]
  spans.sort((a, b) => a.from - b.from)
  const all = []
  for (const span of spans) {
    const before = all.at(-1)
    if (before && before.to >= span.from && before[text] === span[text] && before.source === span.source) {
      before.to = Math.max(before.to, span.to)
    } else all.push(span)
  }
  return all
}
