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
  const answer = await request(path, parameters, 'application/json', signal)
  return answer.json()
}

/**
 * Yield the server-sent events at a path, as name and data, until the connection ends.
 *
 * A fetch, because EventSource sends no API key.
 */
export async function* events(path, parameters, signal) {
  const answer = await request(path, parameters, 'text/event-stream', signal)
  let text = ''
  for await (const part of parts(answer.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (text + part).split('\n\n')
    text = blocks.pop()
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split('\n').map(line => line.split(/: (.*)/s, 2)))
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data) }
    }
  }
}

async function* parts(stream) {
  const reader = stream.getReader()
  const read = () => reader.read().catch(error => {
    throw error.name === 'AbortError' ? error : new Problem(0, 'The connection to the server ended.')
  })
  for (let one = await read(); !one.done; one = await read()) yield one.value
}

async function request(path, parameters, accept, signal) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value != null))
  const key = sessionStorage.getItem(KEY)
  const headers = { Accept: accept, ...(key ? { Authorization: `Bearer ${key}` } : {}) }
  let answer
  try {
    answer = await fetch(`${path}${query.size ? `?${query}` : ''}`, { headers, signal, cache: 'no-cache' })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Problem(0, 'The server does not answer. The page tries again every few seconds.')
  }
  if (answer.ok) return answer
  const document = await answer.json().catch(() => ({}))
  throw new Problem(answer.status, document.detail ?? `The server answered ${answer.status}.`)
}
