// What moves now, and from whom.

import { h, List, show } from './dom.js';
import { byName, empty, nodeLink } from './fleet.js';
import { once } from './model.js';
import { bytes, counted, percent, plain, rate, short, span } from './text.js';

export const transfersOf = once((node) =>
  node.transfers.map((transfer, n) => ({ node, transfer, key: `${node.id} ${transfer.artifact} ${n}` })));

const bar = (name, value, max) => h('progress', { 'aria-label': name, value: Math.min(value, max), max: Math.max(max, 1) });

export function transferItem(fleet, { node, transfer }) {
  const { artifact, family, done, total, holders } = transfer;
  const left = [percent(done, total), rate(transfer.rate), transfer.eta === null ? null : `${span(transfer.eta)} left`];
  return h('li', { class: 'transfer' },
    h('h3', null, nodeLink(node.id, node.name), ' pulls ', plain(family, 40) || 'an artifact', ' ', h('code', { title: plain(artifact) }, short(artifact))),
    bar(`Progress of ${plain(node.name, 60)}`, done, total),
    h('p', null, h('b', null, `${bytes(done)} of ${bytes(total)}`), ' ', left.filter(Boolean).join(' \u00b7 ')),
    holders.length === 0 ? h('p', { class: 'hint' }, 'No holder has sent anything yet.') : h('ul', { class: 'holders' },
      holders.map(({ node: id, bytes: sent }) => h('li', null, nodeLink(id, fleet.nodeName(id)),
        bar(`Share of ${plain(fleet.nodeName(id), 60)}`, sent, total), h('span', null, bytes(sent))))));
}

export function transfersView(root, fleet) {
  const summary = h('p', { class: 'hint' });
  const items = h('ul', { class: 'transfers' });
  const list = new List(items, (item) => item.key, (item) => transferItem(fleet, item));
  const nothing = empty(h('p', null, 'Nothing moves now.'),
    h('p', null, 'Transfers are here while a node pulls: when an engine starts through ', h('code', null, 'warmd exec'), ', or by ', h('code', null, 'warmd warm'), '.'));
  root.append(h('h1', null, 'Transfers'), summary, items, nothing);

  function update() {
    const moving = [...fleet.nodes.values()].sort(byName).flatMap(transfersOf);
    list.update(moving);
    const together = moving.reduce((all, { transfer }) => all + (transfer.rate ?? 0), 0);
    show(summary, moving.length ? `${counted(moving.length, 'transfer')}, ${rate(together)} together` : '');
    nothing.hidden = moving.length > 0;
  }

  return { title: 'Transfers', update };
}
