// Draws candles, their volume, and shaded ranges with lightweight-charts. Loading belongs to candles.mjs.

import { CandlestickSeries, HistogramSeries, createChart } from './vendor/lightweight-charts.mjs'
import { compact, decimals, digitsOf, moment } from './format.mjs'

const NEAR_EDGE = 40
const FIRST_BARS = 140

const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

/** Shades ranges behind a series. Missing ones are hatched, so that they differ without colour, too. */
class Bands {
  constructor() { this.spans = [] }

  attached({ chart, requestUpdate }) {
    this.scale = chart.timeScale()
    this.update = requestUpdate
  }

  set(spans) {
    this.spans = spans
    this.update?.()
  }

  paneViews() { return [{ zOrder: () => 'bottom', renderer: () => this }] }

  draw(target) {
    target.useBitmapCoordinateSpace(({ context, bitmapSize, horizontalPixelRatio: ratio }) => {
      const half = this.scale.options().barSpacing / 2
      for (const { first, last, kind, label } of this.spans) {
        const left = this.scale.logicalToCoordinate(first), right = this.scale.logicalToCoordinate(last)
        if (left == null || right == null) continue
        const x = Math.round((left - half) * ratio)
        const width = Math.max(2 * ratio, Math.round((right + half) * ratio) - x)
        if (x > bitmapSize.width || x + width < 0) continue
        context.save()
        context.beginPath()
        context.rect(x, 0, width, bitmapSize.height)
        context.clip()
        context.fillStyle = color(`band-${kind}`)
        context.fillRect(x, 0, width, bitmapSize.height)
        if (kind === 'missing') hatch(context, x, width, bitmapSize.height, ratio)
        if (label) name(context, label, Math.max(x, 0), Math.min(x + width, bitmapSize.width), ratio)
        context.restore()
      }
    })
  }
}

function hatch(context, x, width, height, ratio) {
  const gap = 8 * ratio
  context.strokeStyle = color('band-line')
  context.lineWidth = ratio
  context.beginPath()
  const begin = Math.floor((x - height) / gap) * gap
  for (let at = begin; at < x + width; at += gap) {
    context.moveTo(at, height)
    context.lineTo(at + height, 0)
  }
  context.stroke()
}

function name(context, text, left, right, ratio) {
  context.font = `${11 * ratio}px system-ui, sans-serif`
  if (context.measureText(text).width + 10 * ratio > right - left) return
  context.fillStyle = color('faint')
  context.fillText(text, left + 5 * ratio, 15 * ratio)
}

export class CandleChart {
  /**
   * @param container Element that the chart fills.
   * @param onEdge Called with 'older' or 'newer' when the view is near the end of what is loaded.
   * @param onReadout Called with a candle, or null for no candle.
   */
  constructor(container, { onEdge, onReadout }) {
    this.container = container
    this.onEdge = onEdge
    this.onReadout = onReadout
    this.rows = []
    this.chart = createChart(container, { autoSize: true, ...this.#look() })
    this.prices = this.chart.addSeries(CandlestickSeries, { borderVisible: false, priceLineStyle: 3 })
    this.volume = this.chart.addSeries(HistogramSeries, { priceLineVisible: false, lastValueVisible: false }, 1)
    this.volume.priceScale().applyOptions({ scaleMargins: { top: 0.2, bottom: 0 } })
    this.bands = [new Bands(), new Bands()]
    this.prices.attachPrimitive(this.bands[0])
    this.volume.attachPrimitive(this.bands[1])
    this.chart.panes()[0].setStretchFactor(4)
    this.chart.panes()[1]?.setStretchFactor(1)
    this.chart.timeScale().subscribeVisibleLogicalRangeChange(range => {
      if (!range || !this.rows.length) return
      if (this.pointed == null) this.#read(null)
      this.checkEdges()
    })
    this.chart.subscribeCrosshairMove(({ time }) => {
      this.pointed = time
      this.#read(time)
    })
    this.#restyle()
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#restyle())
    container.addEventListener('keydown', event => this.#key(event))
  }

  /** Draw candles. The view stays where it is, or begins at the newest candles. */
  draw(candles, { fresh = false, at = null } = {}) {
    const scale = this.chart.timeScale(), before = scale.getVisibleLogicalRange(), oldest = this.rows[0]?.time
    const rows = this.rows = candles.series()
    const digits = digitsOf(rows.filter(row => row.open != null).slice(-500).flatMap(row => [row.open, row.close, row.high, row.low]))
    const step = candles.step
    this.step = step
    this.candles = candles
    this.format = decimals(digits)
    this.prices.applyOptions({ priceFormat: { type: 'custom', minMove: 10 ** -digits, formatter: this.format } })
    this.volume.applyOptions({ priceFormat: { type: 'custom', minMove: 1e-8, formatter: compact } })
    this.chart.applyOptions({ timeScale: { timeVisible: step < 86400, secondsVisible: step < 60 } })
    this.prices.setData(rows)
    this.hasVolume = rows.some(row => row.volume != null)
    const up = color('volume-up'), down = color('volume-down')
    this.volume.setData(!this.hasVolume ? [] : rows.map(row => row.volume == null ? { time: row.time }
      : { time: row.time, value: row.volume, color: row.close >= row.open ? up : down }))
    const spans = this.#indexed(candles.bands())
    this.bands[0].set(spans)
    this.bands[1].set(spans.map(span => ({ ...span, label: '' })))
    if (at != null) this.#center(at)
    else if (fresh || !before) this.newest()
    else if (oldest != null) {
      const shift = rows.findIndex(row => row.time === oldest)
      if (shift > 0) scale.setVisibleLogicalRange({ from: before.from + shift, to: before.to + shift })
    }
    this.container.dataset.candles = rows.filter(row => row.open != null).length
    this.#read(null)
  }

  clear() {
    this.rows = []
    this.prices.setData([])
    this.volume.setData([])
    for (const bands of this.bands) bands.set([])
    this.container.dataset.candles = 0
    this.onReadout(null)
  }

  /** Report that the view is near an end of what is loaded. */
  checkEdges() {
    const range = this.chart.timeScale().getVisibleLogicalRange()
    if (!range || !this.rows.length) return
    if (range.from < NEAR_EDGE) this.onEdge('older')
    if (range.to > this.rows.length - NEAR_EDGE) this.onEdge('newer')
  }

  /** Move the view by a share of its width. Negative is older. */
  move(share) {
    const scale = this.chart.timeScale(), range = scale.getVisibleLogicalRange()
    if (!range) return
    const shift = share * (range.to - range.from)
    scale.setVisibleLogicalRange({ from: range.from + shift, to: range.to + shift })
  }

  /** Make the view so many times wider, around its right end. */
  zoom(factor) {
    const scale = this.chart.timeScale(), range = scale.getVisibleLogicalRange()
    if (range) scale.setVisibleLogicalRange({ from: range.to - Math.max(5, (range.to - range.from) * factor), to: range.to })
  }

  newest() {
    const number = Math.min(this.rows.length, Math.max(40, Math.min(FIRST_BARS, this.container.clientWidth / 7)))
    this.chart.timeScale().setVisibleLogicalRange({ from: this.rows.length - number, to: this.rows.length + 2 })
  }

  #center(moment) {
    const found = this.rows.findIndex(row => row.time >= moment)
    const middle = found < 0 ? this.rows.length : found, half = Math.min(FIRST_BARS, this.container.clientWidth / 7) / 2
    this.chart.timeScale().setVisibleLogicalRange({ from: middle - half, to: middle + half })
  }

  #indexed(spans) {
    const times = this.rows.map(row => row.time)
    const reach = n => Math.max(this.step, (times[n + 1] ?? times[n] + this.step) - times[n])
    return spans.flatMap(span => {
      let first = lowest(times, span.from)
      if (first > 0 && times[first - 1] + Math.min(reach(first - 1), this.step) > span.from) first -= 1
      const last = lowest(times, span.to) - 1
      return first <= last ? [{ first, last, kind: span.kind, label: span.kind }] : []
    })
  }

  #read(time) {
    let row = time == null ? null : this.rows[lowest(this.rows.map(one => one.time), time)]
    if (time == null) {
      const range = this.chart.timeScale().getVisibleLogicalRange()
      const last = Math.min(this.rows.length - 1, Math.floor(range?.to ?? Infinity))
      for (let n = last; n >= 0 && !row; n -= 1) if (this.rows[n].open != null) row = this.rows[n]
    }
    this.onReadout(row ? { ...row, format: this.format, state: this.candles.stateAt(row.time) } : null)
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const share = event.shiftKey ? 0.9 : 0.1
    const act = {
      ArrowLeft: () => this.move(-share),
      ArrowRight: () => this.move(share),
      '+': () => this.zoom(0.7),
      '=': () => this.zoom(0.7),
      '-': () => this.zoom(1.4),
      Home: () => this.chart.timeScale().setVisibleLogicalRange({ from: 0, to: FIRST_BARS }),
      End: () => this.container.dispatchEvent(new CustomEvent('newest')),
    }[event.key]
    if (!act) return
    event.preventDefault()
    act()
  }

  #look() {
    return {
      layout: { attributionLogo: false },
      localization: { locale: 'en-GB', dateFormat: 'yyyy-MM-dd', timeFormatter: time => `${moment(time, { time: !(this.step >= 86400), precise: this.step < 60 })} UTC` },
      handleScale: { mouseWheel: false },
      handleScroll: { vertTouchDrag: false },
      rightPriceScale: { borderVisible: false, minimumWidth: 64 },
      timeScale: { borderVisible: false, minBarSpacing: 0.5, rightOffset: 2 },
      crosshair: { mode: 0 },
    }
  }

  #restyle() {
    const grid = { color: color('grid') }
    this.chart.applyOptions({
      layout: {
        attributionLogo: false, fontSize: 11, fontFamily: 'system-ui, sans-serif', textColor: color('faint'),
        background: { type: 'solid', color: 'transparent' },
        panes: { separatorColor: color('line'), separatorHoverColor: color('line') },
      },
      grid: { vertLines: grid, horzLines: grid },
      crosshair: { vertLine: { color: color('faint'), labelBackgroundColor: color('label') }, horzLine: { color: color('faint'), labelBackgroundColor: color('label') } },
    })
    const up = color('up'), down = color('down')
    this.prices.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down })
    if (this.candles) this.draw(this.candles)
  }
}

/** Return the place of the first number that is not less. */
function lowest(numbers, least) {
  let from = 0, to = numbers.length
  while (from < to) {
    const middle = (from + to) >> 1
    if (numbers[middle] < least) from = middle + 1
    else to = middle
  }
  return from
}
