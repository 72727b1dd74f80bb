// What there is, by the identity that decides who can use it.

import { h, List, show, Some, time } from './dom.js';
import { empty, nodeLink } from './fleet.js';
import { bytes, count, counted, plain, short } from './text.js';

// Holders that are named.
const NAMED = 24;

function holderList(fleet, holders) {
  const names = holders.slice(0, NAMED).map((id) => h('li', null, nodeLink(id, fleet.nodeName(id))));
  const left = holders.length - names.length;
  return h('ul', { class: 'where' }, names, left > 0 ? h('li', null, `and ${count(left)} more`) : null);
}

function artifactItem(fleet, { id, subject, count: all, bytes: size, signer, at, holders, partial }) {
  return h('li', { class: 'artifact' },
    h('p', null, subject ? [plain(subject), ' '] : null, h('code', null, plain(id, 100)), ' ', h('b', null, bytes(size)), ' signed by ', h('code', { title: plain(signer) }, short(signer) || 'nobody known'), ' ', time(at)),
    h('p', null, holders.length ? `On ${counted(holders.length, 'node')}${all > holders.length + partial.length ? ` and more, ${count(all)} in all` : ''}:` : 'No node has all of it. An origin may.'),
    holders.length ? holderList(fleet, holders) : null,
    partial.length ? [h('p', null, `Partly on ${counted(partial.length, 'node')}:`), holderList(fleet, partial)] : null);
}

function identityItem(fleet, identity) {
  const { digest, family, facts, artifacts, holders } = identity;
  return h('li', null, h('details', null,
    h('summary', null, h('b', null, plain(family, 60) || 'unknown family'), ' ', h('code', { title: plain(digest) }, short(digest)),
      h('span', { class: 'sizes' }, `${counted(artifacts.length, 'artifact')}, ${bytes(identity.bytes)}, ${counted(holders, 'holder')}`)),
    h('p', { class: 'hint' }, 'Identity ', h('code', null, plain(digest))),
    facts.length ? h('dl', { class: 'facts' }, facts.map(([name, value]) => h('div', null, h('dt', null, plain(name, 80)), h('dd', null, plain(value)))))
      : h('p', { class: 'hint' }, 'What facts are behind this identity is not known here.'),
    h('ul', { class: 'artifacts' }, artifacts.map((artifact) => artifactItem(fleet, artifact)))));
}

export function artifactsView(root, fleet, wanted = '') {
  const search = h('input', { type: 'search', id: 'search', autocomplete: 'off', spellcheck: 'false', value: wanted });
  const summary = h('p', { class: 'hint', role: 'status' });
  const items = h('ul', { class: 'identities' });
  const list = new List(items, (identity) => identity.digest, (identity) => identityItem(fleet, identity));
  const some = new Some(50, () => update(null));
  const nothing = empty(h('p', null, 'Nothing is published.'),
    h('p', null, 'An engine publishes what it compiled when it was started by ', h('code', null, 'warmd exec'), '; a directory is published by ', h('code', null, 'warmd publish'), '.'));
  const found = h('div', null, h('p', { class: 'search' }, h('label', { for: 'search' }, 'Find by family, fact, digest or signer'), search), summary, items, some.element);
  root.append(h('h1', null, 'Artifacts'), found, nothing);
  search.addEventListener('input', () => update(null));

  function update(keys) {
    if (keys !== null && ![...keys].some((key) => key.startsWith('identity/'))) return;
    const all = [...fleet.identities.values()];
    const words = search.value.toLowerCase().split(/\s+/);
    const matching = all.filter((identity) => words.every((word) => identity.words.includes(word)));
    matching.sort((a, b) => (a.family < b.family ? -1 : a.family > b.family ? 1 : a.digest < b.digest ? -1 : 1));
    list.update(some.of(matching));
    show(summary, `${counted(matching.length, 'identity', 'identities')} of ${count(all.length)}`);
    found.hidden = all.length === 0;
    nothing.hidden = all.length > 0;
  }

  return { title: 'Artifacts', update };
}
