// The frame around the views: where one is, how the stream is, what is told to those who listen.

import { fresh, h, show } from './dom.js';
import { Fleet, problemsOf } from './model.js';
import { follow } from './stream.js';
import { count, counted, plain, setClock } from './text.js';
import { fleetView } from './fleet.js';
import { nodeView } from './node.js';
import { artifactsView } from './artifacts.js';
import { transfersView } from './transfers.js';
import { startsView } from './starts.js';

const VIEWS = new Map([
  ['', fleetView], ['node', nodeView], ['artifacts', artifactsView], ['transfers', transfersView], ['starts', startsView],
]);
const THEMES = ['system', 'light', 'dark'];
// Between two things that are read aloud.
const SPEECH = 10000;
const TICK = 10000;

const byId = (id) => document.getElementById(id);
const fleet = new Fleet();
let view = null;

// Where one is.

function route() {
  if (location.hash !== '' && !location.hash.startsWith('#/')) return;
  const [name = '', ...rest] = location.hash.slice(2).split('/');
  let args = [];
  try {
    args = rest.map(decodeURIComponent);
  } catch {
    // Nothing that this page links to.
  }
  const main = byId('main');
  const isFirst = view === null;
  main.replaceChildren();
  view = (VIEWS.get(name) ?? fleetView)(main, fleet, ...args);
  document.title = `${view.title} \u2013 warmd`;
  for (const link of document.querySelectorAll('nav a')) {
    const isHere = link.hash === `#/${name === 'node' ? '' : name}`;
    if (isHere) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (fleet.loaded) view.update(null);
  else changed = null;
  if (!isFirst) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

// What changed, drawn once a frame.

let changed = new Set();
let isDrawing = false;

function frame(data) {
  setClock(data.now);
  const keys = fleet.apply(data);
  if (keys === null) changed = null;
  else keys.forEach((key) => changed?.add(key));
  if (!fleet.loaded || isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(draw);
}

function draw() {
  isDrawing = false;
  const keys = changed;
  changed = new Set();
  view.update(keys);
  about();
  tell();
  // For those who measure; only the last one is kept.
  performance.clearMarks('drawn');
  performance.mark('drawn');
}

function about() {
  const { name, version, cluster, backend, epoch } = fleet.server;
  const parts = [version && `warmd ${version}`, name, cluster && `cluster ${cluster}`, backend, epoch && `epoch ${epoch}`];
  show(byId('about'), parts.filter(Boolean).map((part) => plain(part)).join(' \u00b7 '));
}

let told = '';
let toldAt = -SPEECH;
let telling = 0;

/** What matters, to those who do not see it: seldom, and only what is new. */
function tell() {
  clearTimeout(telling);
  const nodes = [...fleet.nodes.values()];
  const ready = nodes.filter((node) => node.state === 'ready').length;
  const problems = nodes.filter((node) => problemsOf(node).length > 0).length;
  const text = `${count(ready)} of ${counted(nodes.length, 'node')} ready, ${count(problems)} with problems.`;
  if (text === told) return;
  const wait = toldAt + SPEECH - performance.now();
  if (wait > 0) {
    telling = setTimeout(tell, wait);
    return;
  }
  [told, toldAt] = [text, performance.now()];
  byId('told').textContent = text;
}

// How the stream is.

const KINDS = { opening: 'Connecting', live: 'Live', lost: 'Not connected' };
let lostAt = null;
let counting = 0;

function state({ kind, until, why, session }) {
  clearInterval(counting);
  const link = byId('link');
  link.dataset.kind = kind;
  show(link, h('span', null, KINDS[kind]));
  if (kind === 'live') {
    lostAt = null;
    byId('lost').hidden = true;
    byId('logout').hidden = !session;
  }
  if (kind === 'lost') {
    lostAt ??= new Date();
    show(byId('lost'), `The stream is lost since ${lostAt.toLocaleTimeString()}: ${plain(why)}. What you see is from then.`);
    byId('lost').hidden = false;
    const next = () => show(link, h('span', null, `Next try in ${Math.max(1, Math.ceil((until - Date.now()) / 1000))} s`));
    next();
    counting = setInterval(next, 1000);
  }
}

// Light and dark.

function theme() {
  return document.documentElement.dataset.theme ?? THEMES[0];
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === THEMES[0]) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === THEMES[0]) localStorage.removeItem('theme');
    else localStorage.setItem('theme', next);
  } catch {
    // It holds until the page is left.
  }
  nameTheme();
}

const nameTheme = () => show(byId('theme'), h('span', null, 'Theme: '), theme());

nameTheme();
byId('theme').addEventListener('click', nextTheme);
addEventListener('hashchange', route);
setInterval(() => fresh(document), TICK);
route();
follow({ frame, state });
