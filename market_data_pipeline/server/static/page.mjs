// The page: what is chosen, what is loaded when, and the tables. Text reaches the page as text, never as HTML.

import { Problem, events, get, setKey } from './api.mjs'
import { Calendar } from './calendar.mjs'
import { CandleChart } from './chart.mjs'
import { Candles } from './candles.mjs'
import { addressed, age, compact, count, moment, named, percent, seconds, stepOf } from './format.mjs'

const POLL = 5_000
const HEALTH = 30_000
const MOST_ROWS = 100
const INTERVALS = ['1s', '1m', '3m', '5m', '15m', '30m', '1h', '2h', '4h', '6h', '8h', '12h', '1d', '3d', '1w', '1mo']
const KINDS = { klines: 'last price', markPriceKlines: 'mark price', indexPriceKlines: 'index price', premiumIndexKlines: 'premium' }
const MARKETS = { spot: 'spot', um: 'USD-M futures', cm: 'COIN-M futures', option: 'options' }
const STATES = { live: 'live', current: 'current', behind: 'behind', ended: 'ended', empty: 'no rows' }
const LABELS = {
  final: 'final', provisional: 'provisional', healed: 'healed from REST', outage: 'outage inside', incomplete: 'incomplete',
  faulty: 'faulty', failed: 'failed', missing: 'missing', not_listed: 'not listed',
}
const SOURCES = { hot: 'window of live rows', lake: 'lake', exchange: 'exchange' }

const $ = id => document.getElementById(id)

/** Return an element with children. Strings become text. */
function el(name, properties = {}, ...children) {
  const { data = {}, ...others } = properties
  const element = Object.assign(document.createElement(name), others)
  Object.assign(element.dataset, data)
  element.append(...children)
  return element
}

let series = []
let health = null
let candles = null
let calendarOf = null
let loading = false
let hasStreams = false
let streams = []

const chart = new CandleChart($('chart'), { onEdge: direction => extend(direction), onReadout: readout })
const calendar = new Calendar($('calendar'), {
  onDay: (day, state, note) => { $('day').textContent = `${day}: ${LABELS[state] ?? state}${note ? `. ${note}` : ''}` },
  onOpen: day => showDay(day),
})

// --- what is chosen ----------------------------------------------------------------------------------------------

const isChartable = one => one.data_type in KINDS && one.interval != null

/** Return the choices in the URL. */
function chosenInUrl() {
  const hash = new URLSearchParams(location.hash.slice(1))
  const parts = name => (hash.get(name) ?? '').split('/')
  const [market, data_type, symbol, interval] = parts('candles')
  return { candles: { market, data_type, symbol, interval }, calendar: hash.get('calendar') }
}

function address(candlesChoice, calendarChoice) {
  const hash = new URLSearchParams({ candles: addressed(candlesChoice), calendar: calendarChoice })
  return `#${hash.toString().replaceAll('%2F', '/')}`
}

function remember(candlesChoice, calendarChoice) {
  const hash = address(candlesChoice, calendarChoice)
  if (location.hash !== hash) history.replaceState(null, '', hash)
}

/** Return the candles to show: those of the URL as far as they exist, else spot before futures, and about an hour. */
function chosenCandles(wanted) {
  const all = series.filter(isChartable)
  const best = (name, among, first) => among.some(one => one[name] === wanted[name]) ? wanted[name] : first(among)
  if (!all.length) return null
  const market = best('market', all, among => among[0].market)
  const inMarket = all.filter(one => one.market === market)
  const symbol = best('symbol', inMarket, among => (among.find(one => one.data_type === 'klines') ?? among[0]).symbol)
  const ofSymbol = inMarket.filter(one => one.symbol === symbol)
  const data_type = best('data_type', ofSymbol, among => among.some(one => one.data_type === 'klines') ? 'klines' : among[0].data_type)
  const same = ofSymbol.filter(one => one.data_type === data_type).sort((a, b) => stepOf(a.interval) - stepOf(b.interval))
  const interval = stepOf(wanted.interval ?? '') ? wanted.interval : stepOf(same[0].interval) <= 3600 ? '1h' : same[0].interval
  return { market, data_type, symbol, interval, path: same[0].path, shortest: same[0].interval }
}

function fill(select, values, value) {
  const options = values.map(([id, text]) => el('option', { value: id }, text))
  const same = select.options.length === options.length && options.every((one, n) => one.value === select.options[n].value && one.text === select.options[n].text)
  if (!same) select.replaceChildren(...options)
  select.value = value
}

function fillPickers(choice) {
  const all = series.filter(isChartable), distinct = values => [...new Set(values)]
  fill($('market'), distinct(all.map(one => one.market)).map(one => [one, MARKETS[one] ?? one]), choice.market)
  const inMarket = all.filter(one => one.market === choice.market)
  fill($('symbol'), distinct(inMarket.map(one => one.symbol)).sort().map(one => [one, one]), choice.symbol)
  const kinds = distinct(inMarket.filter(one => one.symbol === choice.symbol).map(one => one.data_type))
  fill($('kind'), kinds.map(one => [one, KINDS[one]]), choice.data_type)
  $('kind-label').hidden = kinds.length < 2
  const least = stepOf(choice.shortest)
  const offered = INTERVALS.filter(one => stepOf(one) >= least && stepOf(one) % least < 1 || one === '1mo')
  if (!offered.includes(choice.interval)) offered.push(choice.interval)
  offered.sort((a, b) => stepOf(a) - stepOf(b))
  fill($('interval'), [...offered.map(one => [one, one]), ['other', 'other…']], choice.interval)
}

function picked() {
  const other = $('interval').value === 'other'
  $('other-label').hidden = !other
  if (other) return $('other').focus()
  choose({ market: $('market').value, data_type: $('kind').value, symbol: $('symbol').value, interval: $('interval').value })
}

/** Show candles, and the calendar of the series that they come from. */
async function choose(wanted, { at = null, calendarName = null } = {}) {
  const choice = chosenCandles(wanted)
  if (!choice) return noCandles()
  fillPickers(choice)
  const name = calendarName ?? calendarNameOf(choice)
  remember(choice, name)
  await Promise.all([showCandles(choice, at), showCalendar(name)])
}

/** Return the name of the stored series that candles come from: their own, or the longest that divides them. */
function calendarNameOf(choice) {
  const same = series.filter(one => one.market === choice.market && one.symbol === choice.symbol && one.data_type === choice.data_type)
  const dividing = same.filter(one => stepOf(choice.interval) % stepOf(one.interval) < 1)
  dividing.sort((a, b) => stepOf(b.interval) - stepOf(a.interval))
  return addressed(dividing.find(one => one.interval === choice.interval) ?? dividing[0] ?? same[0])
}

function noCandles() {
  problem($('chart-problem'), series.length ? 'No candles are stored. `market-data add BTCUSDT 1h` adds some.'
    : 'Nothing is stored yet. `market-data add BTCUSDT 1h` adds a series.')
  if (series.length) showCalendar(addressed(series[0]))
}

// --- candles -------------------------------------------------------------------------------------------------------

async function showCandles(choice, at = null) {
  const before = candles
  if (before && addressed(before.choice) === addressed(choice) && at == null) return
  before?.close()
  const mine = candles = new Candles(choice)
  $('candles-title').textContent = `${choice.symbol} ${choice.interval}`
  $('chart').setAttribute('aria-label', `Candle chart of ${choice.symbol}, ${choice.interval}, ${MARKETS[choice.market]}`)
  chart.clear()
  await attempt($('chart-problem'), async () => {
    await (at == null ? mine.newest() : mine.around(at))
    if (mine !== candles) return
    chart.draw(mine, { fresh: true, at })
    noted(mine)
    follow()
  })
}

async function extend(direction) {
  const mine = candles
  if (loading || !mine) return
  loading = true
  let more = false
  try {
    await attempt($('chart-problem'), async () => {
      more = await mine[direction]() && mine === candles
      if (!more) return
      chart.draw(mine)
      noted(mine)
    })
  } finally {
    loading = false
    if (more) requestAnimationFrame(() => chart.checkEdges())
  }
}

async function showNewest() {
  if (!candles) return
  if (candles.atNewest) return chart.newest()
  const { choice } = candles
  candles.close()
  candles = null
  await showCandles(choice)
}

function showDay(day) {
  const one = series.find(some => addressed(some) === calendarOf)
  const wanted = one && isChartable(one) ? { ...one, interval: candles?.choice.symbol === one.symbol ? candles.choice.interval : one.interval } : candles?.choice
  if (wanted) choose(wanted, { at: seconds(`${day}T00:00:00Z`), calendarName: calendarOf })
  $('chart').focus()
  $('candles-title').scrollIntoView({ block: 'start' })
}

/** List the missing ranges of the loaded candles, newest first. */
function noted(mine) {
  const spans = [...mine.missing].reverse()
  $('missing-details').hidden = !spans.length
  $('missing-summary').textContent = `${count(spans.length)} missing ${spans.length === 1 ? 'range' : 'ranges'} in the loaded candles`
  $('missing-list').replaceChildren(...spans.slice(0, MOST_ROWS).map(span => el('li', {},
    el('button', { type: 'button', className: 'link', onclick: () => chart.draw(mine, { at: span.from }) }, `${moment(span.from)} to ${moment(span.to)}`),
    ` ${span.reason}`)))
}

function readout(row) {
  const target = $('readout')
  if (!row) return target.replaceChildren('No candle.')
  const pair = (label, value) => [el('span', { className: 'label' }, label), el('span', { className: 'value' }, value)]
  const when = moment(row.time, { time: candles.step < 86400, precise: candles.step < 60 })
  if (row.open == null) return target.replaceChildren(el('span', { className: 'when' }, when), ' missing')
  target.replaceChildren(
    el('span', { className: 'when' }, when),
    ...[['O', row.open], ['H', row.high], ['L', row.low], ['C', row.close]].map(([label, value]) => el('span', {}, ...pair(label, row.format(value)))),
    ...(row.volume == null ? [] : [el('span', {}, ...pair('Vol', compact(row.volume)))]),
    el('span', { className: `state ${row.state}` }, row.state),
  )
}

// --- streams -------------------------------------------------------------------------------------------------------

/** Follow the candles that are shown, and how far each series reaches, while the page is visible. */
function follow() {
  const one = candles?.atNewest ? series.find(some => addressed(some) === addressed(candles.choice)) : null
  const wanted = new Map()
  if (hasStreams && !document.hidden) {
    wanted.set(freshness, ['/api/v1/system/series/stream', {}])
    if (one?.live) {
      const path = [one.path, one.symbol, one.interval].map(encodeURIComponent).join('/')
      wanted.set(candles, [`/api/v1/market/stream/${path}`, { market: one.market }])
    }
  }
  streams = streams.filter(stream => wanted.has(stream.of) || stream.abort.abort())
  for (const [of, [path, parameters]] of wanted) {
    if (!streams.some(stream => stream.of === of)) listen(of, path, parameters)
  }
}

/** Take the events of a stream until it ends. Then look at the server, which begins it again. */
async function listen(of, path, parameters) {
  const mine = { of, abort: new AbortController() }
  streams.push(mine)
  try {
    for await (const { name, data } of events(path, parameters, mine.abort.signal)) {
      if (name === 'series') freshness(data)
      if (name === 'candle' && of === candles && !loading) {
        if (!of.take(data)) break
        chart.draw(of)
      }
    }
  } catch (error) {
    if (error.name !== 'AbortError' && !(error instanceof Problem)) throw error
  }
  if (mine.abort.signal.aborted) return
  mine.abort.abort()
  streams = streams.filter(stream => stream !== mine)
  later(POLL)
}

/** Take the newest moments of series. */
function freshness({ as_of: asOf, until }) {
  for (const one of series) {
    const moment = until[addressed(one)]
    if (moment) Object.assign(one, { until: moment, state: 'live', days_behind: 0 })
  }
  showUpdated(seconds(asOf))
}

function showUpdated(asOf) {
  $('updated').textContent = `Updated ${moment(asOf, { precise: true })} UTC`
  showSeries(asOf)
}

// --- calendar -------------------------------------------------------------------------------------------------------

async function showCalendar(name) {
  if (name === calendarOf) return
  calendarOf = name
  const [market, data_type, symbol, interval] = name.split('/')
  fill($('calendar-series'), series.map(one => [addressed(one), named(one)]), name)
  await attempt($('calendar-problem'), async () => {
    const found = await get('/api/v1/system/calendar', { market, data_type, symbol, interval })
    if (name !== calendarOf) return
    calendar.draw(found)
    $('calendar').setAttribute('aria-label', `Calendar of ${named(found)}`)
    $('day').textContent = ''
    $('legend').replaceChildren(...Object.keys(LABELS).filter(state => found.counts[state]).map(state =>
      el('li', {}, el('i', { className: `day-${state}` }), `${LABELS[state]} `, el('b', {}, count(found.counts[state])))))
    const more = found.attention_days - found.attention.length
    $('attention').replaceChildren(
      ...found.attention.map(one => el('li', {},
        el('button', { type: 'button', className: 'link', onclick: () => showDay(one.from) }, days(one)),
        ` ${LABELS[one.state] ?? one.state}${one.note ? `. ${one.note}` : ''}`)),
      ...(more > 0 ? [el('li', {}, `and ${count(more)} more`)] : []),
      ...(found.attention.length ? [] : [el('li', {}, found.years.length ? 'None. Every day is complete.' : 'No day is stored or collected yet.')]))
  })
}

const days = one => one.from === one.to ? one.from : `${one.from} to ${one.to}`

// --- tables ---------------------------------------------------------------------------------------------------------

const cell = (label, content, className = '') => el('td', { className, data: { label } }, content)

function link(one) {
  const wanted = isChartable(one) ? one : candles?.choice ?? one
  const [symbol, ...others] = named(one).split(' ')
  return el('a', { href: address(wanted, addressed(one)) }, symbol, el('span', {}, ` ${others.join(' ')}`))
}

function showSeries(asOf) {
  const words = $('filter').value.toLowerCase().split(/\s+/)
  const facts = new Map((health?.series ?? []).map(one => [addressed(one), one]))
  const order = ['behind', 'empty', 'live', 'current', 'ended']
  const shown = series.filter(one => words.every(word => named(one).toLowerCase().includes(word)))
    .sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state))
  const focused = document.activeElement?.closest?.('#series tbody') ? document.activeElement.getAttribute('href') : null
  $('series').tBodies[0].replaceChildren(...shown.slice(0, MOST_ROWS).map(one => {
    const known = facts.get(addressed(one))
    const late = one.state === 'behind' ? ` ${count(one.days_behind)} d` : ''
    return el('tr', {},
      el('th', { scope: 'row' }, link(one)),
      cell('State', el('span', { className: `state ${one.state}` }, `${STATES[one.state]}${late}${one.collected ? '' : ', not collected'}`)),
      cell('Rows until', one.until ? moment(seconds(one.until)) : '–', 'when'),
      cell('Age', one.until ? age(asOf - seconds(one.until)) : '–', 'number'),
      cell('Since', one.first ?? '–', 'when'),
      ...[['Final days', known?.final], ['Provisional', known?.provisional], ['Missing', known && known.missing + known.failed], ['Gap rows', known?.gap_rows]]
        .map(([label, value], n) => cell(label, count(value), `number${n === 2 && value ? ' marked' : ''}`)))
  }))
  if (focused) [...document.querySelectorAll('#series tbody a')].find(one => one.getAttribute('href') === focused)?.focus()
  const more = shown.length - MOST_ROWS
  $('series-more').textContent = !shown.length ? 'No series matches.' : more > 0 ? `and ${count(more)} more: use the filter` : ''
}

function showHealth() {
  const { totals } = health
  $('tile-final').textContent = count(totals.final)
  $('tile-provisional').textContent = count(totals.provisional)
  const open = health.series.flatMap(one => one.open.map(gap => ({ ...gap, one })))
  open.sort((a, b) => b.to.localeCompare(a.to))
  const length = gap => Math.round((Date.parse(gap.to) - Date.parse(gap.from)) / 86_400_000) + 1
  const more = health.series.reduce((sum, one) => sum + one.open_more, 0) + Math.max(0, open.length - MOST_ROWS)
  $('tile-open').textContent = count(open.reduce((sum, gap) => sum + length(gap), 0)) + (more ? '+' : '')
  $('gaps').tBodies[0].replaceChildren(...open.slice(0, MOST_ROWS).map(gap => el('tr', {},
    el('th', { scope: 'row', className: 'when' }, days(gap)),
    cell('Series', link(gap.one)),
    cell('Number', count(length(gap)), 'number'),
    cell('State', el('span', {}, el('i', { className: `day-${gap.state}` }), LABELS[gap.state] ?? gap.state)),
    cell('Reason', gap.note || 'Never fetched. `market-data sync` fetches it.', 'long'))))
  $('gaps-more').textContent = !open.length ? 'None. Every collected day is stored and explained.'
    : more ? `and ${count(more)} more: \`market-data coverage\` has all` : ''
  for (const note of health.notes) problem($('problem'), note)
}

function showRequests(stats) {
  const answers = stats.encoded.hits + stats.encoded.misses
  const rates = { requests: stats.hit_rate.requests, rows: stats.hit_rate.rows, answers: answers ? stats.encoded.hits / answers : null }
  for (const [name, rate] of Object.entries(rates)) {
    $(`rate-${name}`).textContent = percent(rate)
    $(`meter-${name}`).value = rate ?? 0
  }
  $('tile-rate').textContent = percent(stats.hit_rate.rows)
  $('sources').tBodies[0].replaceChildren(...Object.entries(SOURCES).map(([source, label]) => el('tr', {},
    el('th', { scope: 'row' }, label), cell('Requests', count(stats.requests[source]), 'number'), cell('Rows', count(stats.rows[source]), 'number'))))
  const megabytes = bytes => (bytes / 1e6).toFixed(1)
  $('cache-size').textContent = `The cache has ${count(stats.encoded.answers)} ${stats.encoded.answers === 1 ? 'answer' : 'answers'}: ${megabytes(stats.encoded.bytes)} of ${megabytes(stats.encoded.most_bytes)} MB.`
}

// --- errors, and the rhythm --------------------------------------------------------------------------------------------

function problem(target, text) {
  target.hidden = !text
  if (target.textContent !== text) target.textContent = text
}

/** Run work, and show its error in words in a place. Return true if it succeeded. */
async function attempt(target, work) {
  try {
    await work()
    problem(target, '')
    return true
  } catch (error) {
    if (error.name === 'AbortError') return false
    if (!(error instanceof Problem)) {
      problem(target, 'The page failed. Reload it.')
      throw error
    }
    if (error.status === 401) $('key-form').hidden = false
    problem(target, error.message)
    return false
  }
}

let healthAt = -Infinity
let next = null
let polling = false

async function refresh() {
  const first = !series.length
  const found = await get('/api/v1/system/series')
  series = found.series
  $('key-form').hidden = true
  const asOf = seconds(found.as_of)
  $('tile-series').textContent = count(series.length)
  showUpdated(asOf)
  $('live').hidden = false
  $('live').textContent = found.live ? 'live' : 'no live feed'
  $('live').className = found.live ? 'chip on' : 'chip'
  if (first) {
    const wanted = chosenInUrl()
    const known = series.some(one => addressed(one) === wanted.calendar)
    await choose(wanted.candles, { calendarName: known ? wanted.calendar : null })
  } else if (candles?.atNewest && !loading) {
    const mine = candles
    await attempt($('chart-problem'), async () => {
      if (await mine.newest() && mine === candles) {
        chart.draw(mine)
        noted(mine)
      }
    })
  }
  hasStreams = found.streams
  follow()
  showRequests(await get('/api/v1/system/cache-stats'))
  if (performance.now() - healthAt > HEALTH) {
    health = await get('/api/v1/system/data-health')
    healthAt = performance.now()
    showHealth()
    showSeries(asOf)
  }
}

async function poll() {
  if (polling) return
  polling = true
  if (document.hidden) follow()
  else {
    const done = await attempt($('problem'), refresh)
    document.documentElement.dataset.loaded = done ? 'yes' : 'no'
  }
  polling = false
  later(streams.length ? HEALTH : POLL)
}

function later(pause) {
  clearTimeout(next)
  next = setTimeout(poll, pause)
}

for (const id of ['market', 'symbol', 'kind', 'interval']) $(id).addEventListener('change', picked)
$('other').addEventListener('change', () => {
  const interval = $('other').value.trim()
  if (!stepOf(interval)) return problem($('chart-problem'), `There is no interval ${interval}. Write a number and s, m, h, d, w or mo, such as 7m.`)
  $('other-label').hidden = true
  choose({ market: $('market').value, data_type: $('kind').value, symbol: $('symbol').value, interval })
})
$('pickers').addEventListener('submit', event => event.preventDefault())
$('filter').addEventListener('input', () => showSeries(Date.now() / 1000))
$('calendar-series').addEventListener('change', event => {
  if (candles) remember(candles.choice, event.target.value)
  showCalendar(event.target.value)
})
$('older').addEventListener('click', () => chart.move(-0.5))
$('newer').addEventListener('click', () => chart.move(0.5))
$('closer').addEventListener('click', () => chart.zoom(0.6))
$('wider').addEventListener('click', () => chart.zoom(1.6))
$('newest').addEventListener('click', showNewest)
$('chart').addEventListener('newest', showNewest)
$('key-form').addEventListener('submit', event => {
  event.preventDefault()
  setKey($('key').value)
  attempt($('problem'), refresh)
})
document.addEventListener('visibilitychange', poll)
addEventListener('hashchange', () => {
  if (!location.hash.includes('candles=')) return  // a link inside the page
  const wanted = chosenInUrl()
  choose(wanted.candles, { calendarName: wanted.calendar })
})
poll()
