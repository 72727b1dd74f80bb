// The stream of documents. `EventSource` would hide why there is none, and when to try again.

const FIRST = 1000;
const LONGEST = 30000;
// The server breaks its silence every 15 s.
const SILENCE = 40000;

/** Calls `event(id, data)` for each event of the text that `feed` gets in pieces. */
export function parser(event) {
  let rest = '';
  return function feed(piece) {
    rest += piece;
    for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
      const fields = Object.fromEntries(rest.slice(0, end).split('\n').map((line) => {
        const colon = line.indexOf(': ');
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      rest = rest.slice(end + 2);
      if (fields.data) event(fields.id, JSON.parse(fields.data));
    }
  };
}

/** Follows the stream for ever. `on` has `frame(data)` and `state({ kind, until, why, session })`. */
export async function follow(on) {
  let [last, wait] = ['', FIRST];
  for (;;) {
    let why = 'the stream ended';
    try {
      await once((id, data) => {
        [last, wait] = [id ?? last, FIRST];
        on.frame(data);
      }, last, on);
    } catch (error) {
      if (error.login) return;
      why = error.name === 'AbortError' ? 'the server says nothing' : error.message;
    }
    // Not all at once, after a server was away.
    const pause = wait * (0.5 + Math.random());
    on.state({ kind: 'lost', until: Date.now() + pause, why });
    await waited(pause);
    wait = Math.min(2 * wait, LONGEST);
  }
}

async function once(event, last, on) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE);
  try {
    on.state({ kind: 'opening' });
    const headers = last ? { 'Last-Event-ID': last } : {};
    const response = await fetch('events', { headers, cache: 'no-store', signal: silence.signal });
    if (response.status === 401) {
      location.replace('login');
      throw Object.assign(new Error('log in again'), { login: true });
    }
    if (!response.ok) throw new Error((await response.text()).trim().slice(0, 200));
    on.state({ kind: 'live', session: response.headers.has('warmd-session') });
    const reader = response.body.getReader();
    const feed = parser(event);
    const decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE);
      feed(decoder.decode(part.value, { stream: true }));
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

/** Until the pause is over, or there is a reason to try at once. */
function waited(pause) {
  return new Promise((done) => {
    const over = () => {
      clearTimeout(timer);
      removeEventListener('online', over);
      document.removeEventListener('visibilitychange', over);
      done();
    };
    const timer = setTimeout(over, pause);
    addEventListener('online', over);
    document.addEventListener('visibilitychange', over);
  });
}
