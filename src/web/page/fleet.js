// The fleet: problems first, then what it saved, then where every node is.

import { h, List, show, Some, Table, time } from './dom.js';
import { once, problemsOf } from './model.js';
import { bytes, count, counted, percent, plain, rate, span, words as phrase } from './text.js';

export const nodeLink = (id, name) => h('a', { href: `#/node/${encodeURIComponent(id)}` }, plain(name, 60));

export const stateMark = (state) => h('span', { class: `mark ${state}` }, state);

export const outcomeMark = (outcome) => h('span', { class: `mark ${outcome}` }, outcome);

export const empty = (...children) => h('div', { class: 'empty' }, children);

const sum = (items, value) => items.reduce((all, item) => all + value(item), 0);

const compare = new Intl.Collator('en', { numeric: true }).compare;

export const byName = (a, b) => compare(a.name, b.name) || compare(a.id, b.id);

const place = (node) => [node.region, node.zone, node.rack].filter(Boolean).map((part) => plain(part, 40)).join(' / ');

// Problems of one kind are one thing to do, on however many nodes.

function grouped(nodes) {
  const groups = new Map();
  for (const node of nodes) {
    for (const problem of problemsOf(node)) {
      const key = `${problem.kind}\n${problem.wayOut}`;
      const group = groups.get(key) ?? { key, problem, found: [], texts: new Set() };
      group.found.push({ node, text: problem.text });
      group.texts.add(problem.text);
      groups.set(key, group);
    }
  }
  return [...groups.values()].sort((a, b) => b.found.length - a.found.length || compare(a.key, b.key));
}

// Nodes that are named for one problem.
const NAMED = 200;

function problemGroup({ problem, found, texts }) {
  const same = texts.size === 1;
  const items = found.slice(0, NAMED).map(({ node, text }) => h('li', null, nodeLink(node.id, node.name), same ? null : `: ${plain(text)}`));
  const title = h('span', null, h('b', null, phrase(problem.kind, 60) || 'problem'),
    ` on ${counted(found.length, 'node')}`);
  return h('li', { class: 'problem' },
    h('p', { class: 'mark trouble' }, title),
    same ? h('p', null, plain(problem.text)) : null,
    problem.wayOut ? h('p', { class: 'way' }, plain(problem.wayOut, 600)) : null,
    found.length > 4
      ? h('details', null, h('summary', null, `Which ${count(found.length)} nodes`), h('ul', null, items))
      : h('ul', { class: 'where' }, items));
}

// The map.

const label = once((node) => {
  const problems = problemsOf(node).length;
  return `${plain(node.name, 60)}: ${node.state}${problems ? `, ${counted(problems, 'problem')}` : ''}`;
});

function cell(node) {
  const trouble = node.state !== 'stale' && problemsOf(node).length > 0;
  return h('li', null, h('a', {
    class: `cell mark ${trouble ? 'trouble' : node.state}`, href: `#/node/${encodeURIComponent(node.id)}`,
    title: label(node), 'aria-label': label(node), tabindex: '-1',
  }));
}

/** A zone with its racks, or a rack with its nodes: made once, filled again and again. */
class Group {
  element;
  groups = new Map();
  #heading = h('span');
  #list;

  constructor(key, name, heading, container, render) {
    this.key = key;
    this.name = name;
    this.element = h('div', { class: `${container.className}-group` }, h(heading, null, plain(name, 90), ' ', this.#heading), container);
    this.#list = new List(container, (item) => item.key ?? item.id, render);
  }

  fill(items, nodes) {
    this.#list.update(items);
    const counts = Object.entries(Object.groupBy(nodes, (node) => node.state)).map(([state, of]) => `${of.length} ${state}`);
    show(this.#heading, counts.join(', '));
  }
}

class Places {
  element = h('div', { class: 'map', role: 'group', 'aria-label': 'Nodes by place. Arrow keys move from node to node.' });
  #zones = new Map();
  #list = new List(this.element, (zone) => zone.key, (zone) => zone.element);

  constructor() {
    this.element.addEventListener('keydown', (event) => this.#move(event));
    this.element.addEventListener('focusin', (event) => this.#stop(event.target));
  }

  update(nodes) {
    const zones = [];
    const byZone = Map.groupBy(nodes, (node) => `${node.region}\n${node.zone}`);
    for (const [key, within] of [...byZone].sort(([a], [b]) => compare(a, b))) {
      const { region, zone } = within[0];
      const name = [region, zone].filter(Boolean).join(' / ') || 'No zone said';
      if (!this.#zones.has(key)) {
        this.#zones.set(key, new Group(key, name, 'h3', h('div', { class: 'zone' }), (rack) => rack.element));
      }
      zones.push(this.#fill(this.#zones.get(key), within));
    }
    this.#list.update(zones);
    if (!this.element.querySelector('a[tabindex="0"]')) this.element.querySelector('a')?.setAttribute('tabindex', '0');
  }

  #fill(zone, nodes) {
    const racks = [...Map.groupBy(nodes, (node) => node.rack)].sort(([a], [b]) => compare(a, b)).map(([name, within]) => {
      if (!zone.groups.has(name)) {
        const title = name ? `Rack ${name}` : 'No rack said';
        zone.groups.set(name, new Group(`rack ${name}`, title, 'h4', h('ul', { class: 'rack' }), cell));
      }
      const rack = zone.groups.get(name);
      rack.fill(within.sort(byName), within);
      return rack;
    });
    zone.fill(racks, nodes);
    return zone;
  }

  /** One stop for Tab in all of it. */
  #stop(target) {
    if (!target.matches('a')) return;
    this.element.querySelectorAll('a[tabindex="0"]').forEach((other) => other.setAttribute('tabindex', '-1'));
    target.setAttribute('tabindex', '0');
  }

  #move(event) {
    const cells = [...this.element.querySelectorAll('a')];
    const at = cells.indexOf(document.activeElement);
    const to = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: cells.length - 1,
    }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    cells[to]?.focus();
  }
}

const LEGEND = ['ready', 'draining', 'stale', 'trouble'];

// What it was good for.

function tile(name, value, more) {
  return h('div', null, h('dt', null, name), h('dd', null, h('b', null, value), more ? h('span', null, more) : null));
}

function totals(nodes, identities) {
  const starts = nodes.flatMap((node) => node.starts);
  const warm = starts.filter((start) => start.outcome === 'warm').length;
  const moving = nodes.flatMap((node) => node.transfers);
  const ready = nodes.filter((node) => node.state === 'ready').length;
  const artifacts = sum(identities, (identity) => identity.artifacts.length);
  return [
    tile('Nodes ready', `${count(ready)} of ${count(nodes.length)}`, percent(ready, nodes.length)),
    tile('Warm starts', `${count(warm)} of ${count(starts.length)}`, 'of the last starts that nodes tell'),
    tile('Time saved', span(sum(starts, (start) => start.saved ?? 0)), 'in these starts'),
    tile('From peers', bytes(sum(nodes, (node) => node.received)), `${bytes(sum(nodes, (node) => node.sent))} given`),
    tile('Moving now', counted(moving.length, 'transfer'), rate(sum(moving, (transfer) => transfer.rate ?? 0))),
    tile('Artifacts', count(artifacts), `of ${counted(identities.length, 'identity', 'identities')}`),
  ];
}

// Every node in words.

const rank = once((node) => (problemsOf(node).length ? 0 : node.state === 'ready' ? 2 : 1));

const words = once((node) =>
  [node.name, node.id, node.region, node.zone, node.rack, node.state, node.version, node.endpoint].join('\n').toLowerCase());

const COLUMNS = [
  ['Node', (node) => nodeLink(node.id, node.name)],
  ['State', (node) => stateMark(node.state)],
  ['Problems', (node) => count(problemsOf(node).length), 'number'],
  ['Place', place],
  ['Last start', (node) => (node.starts[0] ? [outcomeMark(node.starts[0].outcome), ' ', time(node.starts[0].at)] : '\u2013')],
  ['From peers', (node) => bytes(node.received), 'number'],
  ['Store', (node) => (node.disk ? node.disk.limit === null ? bytes(node.disk.used) : `${bytes(node.disk.used)} of ${bytes(node.disk.limit)}` : '\u2013'), 'number'],
];

export function fleetView(root, fleet) {
  const problems = h('section', { 'aria-labelledby': 'problems' });
  const tiles = h('dl', { class: 'tiles' });
  const places = new Places();
  const table = new Table('Those with problems first', COLUMNS, (node) => node.id);
  const search = h('input', { type: 'search', id: 'search', autocomplete: 'off', spellcheck: 'false' });
  const none = h('p', { class: 'hint' });
  const some = new Some(50, () => list());
  const rest = h('div', null,
    h('section', { 'aria-labelledby': 'map' }, h('h2', { id: 'map' }, 'Map'),
      h('p', { class: 'legend' }, LEGEND.map((state) => h('span', { class: `mark ${state}` }, state === 'trouble' ? 'has problems' : state))),
      places.element),
    h('section', { 'aria-labelledby': 'nodes' }, h('h2', { id: 'nodes' }, 'Nodes'),
      h('p', { class: 'search' }, h('label', { for: 'search' }, 'Find a node by name, place, state or version'), search),
      none, table.element, some.element));
  const nothing = empty(
    h('p', null, 'No node has reported yet.'),
    h('p', null, 'Start an agent that knows this server: ', h('code', null, 'warmd agent --metadata HOST:PORT')));
  root.append(h('h1', null, 'Fleet'), problems, tiles, rest, nothing);
  search.addEventListener('input', () => list());

  function list() {
    const wanted = search.value.trim().toLowerCase();
    const found = [...fleet.nodes.values()].filter((node) => words(node).includes(wanted));
    found.sort((a, b) => rank(a) - rank(b) || byName(a, b));
    table.update(some.of(found));
    show(none, found.length ? '' : 'No node is like that.');
    none.hidden = found.length > 0;
  }

  function update(keys) {
    const nodes = [...fleet.nodes.values()];
    rest.hidden = tiles.hidden = nodes.length === 0;
    nothing.hidden = nodes.length > 0;
    show(tiles, totals(nodes, [...fleet.identities.values()]));
    if (keys !== null && ![...keys].some((key) => key.startsWith('node/'))) return;
    const groups = grouped(nodes);
    show(problems, h('h2', { id: 'problems' }, 'Problems'), groups.length
      ? h('ul', { class: 'problems' }, groups.map(problemGroup))
      : h('p', { class: 'mark ready' }, h('span', null, nodes.length ? 'No node reports a problem.' : 'None: there is no node to have one.')));
    places.update(nodes);
    list();
  }

  return { title: 'Fleet', update };
}
