// One node: what is wrong with it, what it does, how its engine started.

import { h, List, show, time } from './dom.js';
import { empty, stateMark } from './fleet.js';
import { problemsOf } from './model.js';
import { missesTable, ofOneNode, startsOf, startsTable } from './starts.js';
import { bytes, count, plain, short, span, words } from './text.js';
import { transferItem, transfersOf } from './transfers.js';

const said = (value) => plain(value) || '\u2013';

const bar = (label, used, total) => [
  h('progress', { value: Math.min(used, total), max: Math.max(total, 1), 'aria-label': label }),
  ` ${bytes(used)} of ${bytes(total)}`];

const store = ({ used, limit, free }) =>
  [limit === null ? bytes(used) : bar('Store in use', used, limit), `, ${bytes(free)} free on disk`];

const gpu = ({ name, used, memory }) =>
  [said(name), used === null ? null : `, ${count(used)} % used`, memory && bar('Memory in use', memory.used, memory.total)];

function facts(node) {
  const { engine, disk, policy } = node;
  const adapters = engine?.adapters ? `, ${count(engine.adapters)} adapters` : '';
  return [
    ['Seen', time(node.seen)], ['Up since', time(node.started)], ['Version', said(node.version)],
    ['Engine', engine ? said(engine.state) + adapters : 'none'],
    ['Place', said([node.region, node.zone, node.rack].filter(Boolean).join(' / '))],
    ['Endpoint', said(node.endpoint)], ['Discovery', said(node.discovery)], ['Carrier', said(node.carrier)],
    ['Clock', node.skew === null ? '\u2013' : `${span(node.skew / 1000)} ahead`], ['Path MTU', count(node.mtu)],
    ['Store', disk ? store(disk) : '\u2013'],
    ...node.gpus.map((one) => [`GPU ${count(one.index)}`, gpu(one)]),
    ['Policy', policy ? [`version ${count(policy.version)}, expires `, time(policy.expires)] : 'none'],
    ['From peers', bytes(node.received)], ['Given to peers', bytes(node.sent)], ['Hits', count(node.hits)],
    ['Time saved', span(node.starts.reduce((all, start) => all + (start.saved ?? 0), 0))],
    ['Id', h('code', null, plain(node.id))],
  ];
}

function held(fleet, id) {
  const identities = [...fleet.identities.values()];
  const all = identities.filter(({ artifacts }) => artifacts.some(({ holders }) => holders.includes(id)));
  const links = all.slice(0, 30).map(({ digest, family }) =>
    h('li', null, h('a', { href: `#/artifacts/${encodeURIComponent(digest)}` }, plain(family, 40), ' ', short(digest))));
  return [h('h2', { id: 'held' }, 'Artifacts'), all.length
    ? [h('p', { class: 'hint' }, `It has all of something for ${count(all.length)} identities.`), h('ul', { class: 'where' }, links)]
    : h('p', { class: 'hint' }, 'It holds no artifact as a whole.')];
}

const problemItem = (problem) => h('li', { class: 'problem' },
  h('p', { class: 'mark trouble' }, h('b', null, words(problem.kind, 60) || 'problem')),
  h('p', null, plain(problem.text)), problem.wayOut ? h('p', { class: 'way' }, plain(problem.wayOut, 600)) : null);

export function nodeView(root, fleet, id = '') {
  const title = h('h1');
  const problems = h('ul', { class: 'problems' });
  const about = h('dl', { class: 'facts' });
  const items = h('ul', { class: 'transfers' });
  const transfers = new List(items, (item) => item.key, (item) => transferItem(fleet, item));
  const still = h('p', { class: 'hint' }, 'It pulls nothing now.');
  const starts = startsTable('Starts, the latest first', ofOneNode);
  const cold = h('p', { class: 'hint' }, 'No start of an engine is known of it.');
  const misses = missesTable();
  const artifacts = h('section', { 'aria-labelledby': 'held' });
  const known = h('div', null, problems, about, h('h2', null, 'Transfers'), still, items,
    cold, starts.element, misses.element, artifacts);
  const gone = empty(h('p', null, 'There is no node of this id: ', h('code', null, plain(id))),
    h('p', null, 'It may be gone. ', h('a', { href: '#/' }, 'All nodes')));
  root.append(title, known, gone);
  let last = null;

  function update(keys) {
    const node = fleet.nodes.get(id);
    known.hidden = !node;
    gone.hidden = Boolean(node);
    if (!node) {
      show(title, 'Node');
      return;
    }
    if (keys === null || [...keys].some((key) => key.startsWith('identity/'))) show(artifacts, held(fleet, id));
    if (node === last) return;
    last = node;
    show(title, plain(node.name, 80), ' ', stateMark(node.state));
    show(problems, problemsOf(node).map(problemItem));
    show(about, facts(node).map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))));
    transfers.update(transfersOf(node));
    still.hidden = node.transfers.length > 0;
    starts.update(startsOf(node));
    cold.hidden = node.starts.length > 0;
    misses.update([node]);
  }

  return { title: `Node ${short(fleet.nodeName(id))}`, update };
}
