// Requests to the server of this page, and to no other.

const KEY = 'market-data-key'

/** An answer that is no success, in words. Status 0 means that there was no answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail)
    this.status = status
  }
}

/** Remember an API key until the tab is closed. */
export const setKey = key => sessionStorage.setItem(KEY, key)

/** Return the JSON document at a path. Parameters without a value are left out. */
export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value != null))
  const key = sessionStorage.getItem(KEY)
  const headers = { Accept: 'application/json', ...(key ? { Authorization: `Bearer ${key}` } : {}) }
  let answer
  try {
    answer = await fetch(`${path}${query.size ? `?${query}` : ''}`, { headers, signal, cache: 'no-cache' })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Problem(0, 'The server does not answer. The page tries again every few seconds.')
  }
  const document = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Problem(answer.status, document.detail ?? `The server answered ${answer.status}.`)
  return document
}
