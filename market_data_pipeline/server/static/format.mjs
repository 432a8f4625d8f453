// Numbers, times and names as text. Pure.

const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 })

/** Return a whole number with thousands separators. */
export const count = number => number == null ? '–' : whole.format(number)

/** Return a share as percent. */
export const percent = share => share == null ? 'none yet' : `${(100 * share).toFixed(share === 1 || share === 0 ? 0 : 1)} %`

/** Return a function that formats numbers with so many decimals. */
export function decimals(digits) {
  const format = new Intl.NumberFormat('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })
  return number => format.format(number)
}

/** Return the most decimals among numbers, at most 8. */
export function digitsOf(numbers) {
  let most = 0
  for (const number of numbers) {
    const text = String(number)
    const small = text.indexOf('e-')
    const dot = text.indexOf('.')
    most = Math.max(most, small >= 0 ? 8 : dot < 0 ? 0 : text.length - dot - 1)
  }
  return Math.min(most, 8)
}

/** Return a volume in few characters. */
export const compact = new Intl.NumberFormat('en-US', { notation: 'compact', maximumSignificantDigits: 4 }).format

/** Return seconds since 1970 as text in UTC: the day, with the time unless it is midnight and not needed. */
export function moment(seconds, { time = true, precise = false } = {}) {
  const text = new Date(1000 * seconds).toISOString()
  return time ? `${text.slice(0, 10)} ${text.slice(11, precise ? 19 : 16)}` : text.slice(0, 10)
}

/** Return an ISO moment as seconds since 1970. */
export const seconds = iso => Date.parse(iso) / 1000

/** Return seconds since 1970 as ISO text. */
export const isoOf = moment => new Date(1000 * moment).toISOString().replace('.000Z', 'Z')

/** Return a duration as one number and its unit. */
export function age(duration) {
  if (duration < 0) return 'now'
  for (const [unit, size, least] of [['d', 86400, 2], ['h', 3600, 2], ['min', 60, 2]]) {
    if (duration >= least * size) return `${count(Math.floor(duration / size))} ${unit}`
  }
  return `${Math.floor(duration)} s`
}

const UNITS = { s: 1, m: 60, h: 3600, d: 86400, w: 604800, mo: 2629800 }

/** Return the length of an interval in seconds, 0 if the text is none. Months have no fixed length: it is the mean. */
export function stepOf(interval) {
  const [, number, unit] = /^([1-9]\d{0,4})(s|m|h|d|w|mo)$/.exec(interval) ?? []
  return number ? Number(number) * UNITS[unit] : 0
}

/** Return the name of a series in one line. */
export const named = one => [one.symbol, one.interval, one.data_type === 'klines' ? null : one.data_type, one.market]
  .filter(Boolean).join(' ')

/** Return the name of a series in the URL. */
export const addressed = one => [one.market, one.data_type, one.symbol, one.interval].filter(Boolean).join('/')
