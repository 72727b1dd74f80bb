// Values as text. Whatever comes from outside goes through `plain` and stays text.

const MOST = 300;

// What is not seen, or changes how its neighbours are read: controls, marks of direction, joiners, tags, lone surrogates.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\u034f\u115f\u1160\u3164\uffa0]/gu;

const STACKED = /(\p{M}{3})\p{M}+/gu;

const code = (c) => `\u27e8${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}\u27e9`;

/** `value` as a short line of visible characters. */
export function plain(value, most = MOST) {
  if (typeof value !== 'string') return Number.isFinite(value) || typeof value === 'boolean' ? String(value) : '';
  const cut = value.length > most ? `${value.slice(0, most)}\u2026` : value;
  return cut.replace(/[\t\n\r]+/g, ' ').replace(HIDDEN, code).replace(STACKED, '$1');
}

/** The first digits of an id. */
export const short = (id) => plain(id, 12);

/** A word of a closed list, such as `no-holder`, as words; a sentence as it is. */
export const words = (value, most) => plain(/^[\w-]+$/.test(value) ? value.replace(/[_-]/g, ' ') : value, most);

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

const few = (n) => (n < 10 ? n.toFixed(1).replace(/\.0$/, '') : Math.round(n).toString());

export function bytes(n) {
  if (n === null) return '\u2013';
  let unit = 0;
  while (n >= 1000 && unit < UNITS.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit ? few(n) : Math.round(n)} ${UNITS[unit]}`;
}

export const rate = (n) => (n === null ? '\u2013' : `${bytes(n)}/s`);

export const count = (n) => (n === null ? '\u2013' : n.toLocaleString('en'));

export const counted = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const SPANS = [[86400, 'd', 3600, 'h'], [3600, 'h', 60, 'min'], [60, 'min', 1, 's']];

/** Seconds, in at most two units. */
export function span(seconds) {
  if (seconds === null) return '\u2013';
  if (seconds < 0) return `\u2212${span(-seconds)}`;
  if (seconds > 0 && seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${few(seconds)} s`;
  const whole = Math.round(seconds);
  const [large, name, small, part] = SPANS.find(([size]) => whole >= size) ?? SPANS[2];
  const rest = Math.floor((whole % large) / small);
  return rest ? `${Math.floor(whole / large)} ${name} ${rest} ${part}` : `${Math.floor(whole / large)} ${name}`;
}

export const percent = (part, all) => (all > 0 ? `${Math.floor((100 * part) / all)} %` : '\u2013');

// The server's clock minus ours: what is told is seen by its clock.
let skew = 0;

export function setClock(server) {
  skew = server - Date.now();
}

export const now = () => Date.now() + skew;

/** Milliseconds since 1970 as the distance from now, in one unit. */
export function ago(at) {
  const seconds = Math.round((now() - at) / 1000);
  if (Math.abs(seconds) < 5) return 'now';
  const distance = span(Math.abs(seconds)).split(' ', 2).join(' ');
  return seconds > 0 ? `${distance} ago` : `in ${distance}`;
}
