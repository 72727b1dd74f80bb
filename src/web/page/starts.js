// How engines started, what that saved, and why something was missing.

import { h, show, Some, Table, time } from './dom.js';
import { empty, nodeLink, outcomeMark } from './fleet.js';
import { once } from './model.js';
import { count, counted, plain, span, words } from './text.js';

const startsOf = once((node) => {
  const seen = new Map();
  return node.starts.map((start) => {
    const n = (seen.get(start.at) ?? 0) + 1;
    seen.set(start.at, n);
    return { node, start, key: `${node.id} ${start.at} ${n}` };
  });
});

function familyItem(family) {
  const { offered, installed, used, recompiled, saved, reason } = family;
  const facts = [
    `${counted(offered, 'artifact')} offered`,
    `${counted(installed, 'entry', 'entries')} installed`,
    used === null ? null : `${count(used)} used`,
    recompiled ? `${count(recompiled)} made anew` : null,
    saved ? `${span(saved)} saved` : null,
  ];
  return h('li', null, h('b', null, plain(family.family, 60) || 'a family'), ' ', facts.filter(Boolean).join(', '),
    reason ? h('span', { class: 'reason' }, words(reason)) : null);
}

const COLUMNS = [
  ['When', ({ start }) => time(start.at)],
  ['Node', ({ node }) => nodeLink(node.id, node.name)],
  ['Start', ({ start }) => [outcomeMark(start.outcome), start.end === 'crashed' ? ', crashed' : null]],
  ['Ready after', ({ start }) => span(start.ready), 'number'],
  ['Saved', ({ start }) => span(start.saved), 'number'],
  ['Families', ({ start }) => h('ul', { class: 'families' }, start.families.map(familyItem))],
];

export const startsTable = (caption, columns = COLUMNS) => new Table(caption, columns, (item) => item.key);

/** Without the node, for a page that is about one. */
export const ofOneNode = COLUMNS.filter(([name]) => name !== 'Node');

export { startsOf };

export function missesOf(nodes) {
  const reasons = new Map();
  for (const { reason, count: n } of nodes.flatMap((node) => node.misses)) reasons.set(reason, (reasons.get(reason) ?? 0) + n);
  return [...reasons].map(([reason, n]) => ({ reason, n })).sort((a, b) => b.n - a.n || (a.reason < b.reason ? -1 : 1));
}

export function missesTable() {
  const table = new Table('Why caches were missed, since the agents started', [
    ['Reason', ({ reason }) => words(reason, 120) || 'not said'],
    ['Times', ({ n }) => count(n), 'number'],
    ['Share', ({ n, most }) => h('progress', { value: n, max: Math.max(most, 1), 'aria-label': 'of the most frequent' })],
  ], (item) => item.reason);
  return {
    element: table.element,
    update(nodes) {
      const misses = missesOf(nodes);
      table.update(misses.slice(0, 30).map((miss) => ({ ...miss, most: misses[0].n })));
    },
  };
}

export function startsView(root, fleet) {
  const summary = h('p', { class: 'hint' });
  const misses = missesTable();
  const table = startsTable('Starts, the latest first');
  const some = new Some(50, () => update());
  const nothing = empty(h('p', null, 'No start of an engine is known.'),
    h('p', null, 'Start one through warmd: ', h('code', null, 'warmd exec -- vllm serve MODEL'), '. Its agent tells how it went.'));
  root.append(h('h1', null, 'Starts'), summary, misses.element, table.element, some.element, nothing);

  function update() {
    const nodes = [...fleet.nodes.values()];
    const starts = nodes.flatMap(startsOf).sort((a, b) => (b.start.at ?? 0) - (a.start.at ?? 0));
    const of = (outcome) => count(starts.filter(({ start }) => start.outcome === outcome).length);
    const saved = starts.reduce((all, { start }) => all + (start.saved ?? 0), 0);
    show(summary, starts.length ? `${of('warm')} warm, ${of('partly')} partly, ${of('cold')} cold; ${span(saved)} saved` : '');
    misses.update(nodes);
    table.update(some.of(starts));
    nothing.hidden = starts.length > 0;
  }

  return { title: 'Starts', update };
}
