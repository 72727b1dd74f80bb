// Elements: made, and changed only where they differ, so that focus, scrolling and what is unfolded stay.

import { ago } from './text.js';

/** An element. `props` are attributes; text becomes text, never markup. What is null, false or undefined is left out. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A time as the distance from now. `fresh` keeps it so. */
export function time(at) {
  const when = new Date(at ?? NaN);
  if (at === null || Number.isNaN(when.getTime())) return h('span', null, '\u2013');
  return h('time', { datetime: when.toISOString(), title: when.toLocaleString() }, ago(at));
}

export function fresh(root) {
  for (const element of root.querySelectorAll('time')) {
    const text = ago(Date.parse(element.dateTime));
    if (element.textContent !== text) element.textContent = text;
  }
}

// What people change themselves.
const THEIRS = new Set(['open', 'tabindex']);

function morphAttributes(from, to) {
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !THEIRS.has(name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value && !THEIRS.has(name)) from.setAttribute(name, value);
  }
}

/** Makes `from`, which is shown, like `to`. Returns what is shown then. */
export function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to);
    return to;
  }
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return from;
  }
  morphAttributes(from, to);
  const [old, wanted] = [[...from.childNodes], [...to.childNodes]];
  wanted.forEach((child, n) => (n < old.length ? morph(old[n], child) : from.append(child)));
  old.slice(wanted.length).forEach((child) => child.remove());
  return from;
}

/** Shows `children` in `parent`. */
export function show(parent, ...children) {
  morph(parent, h(parent.tagName, Object.fromEntries([...parent.attributes].map((a) => [a.name, a.value])), ...children));
}

/** Children of `parent`, one for each item. Only items that are other objects than before are rendered again. */
export class List {
  #parent;
  #key;
  #render;
  #rows = new Map();

  constructor(parent, key, render) {
    this.#parent = parent;
    this.#key = key;
    this.#render = render;
  }

  update(items) {
    const focused = document.activeElement;
    const rows = new Map();
    let at = this.#parent.firstChild;
    for (const item of items) {
      const key = this.#key(item);
      const row = this.#rows.get(key) ?? { item, element: this.#render(item) };
      if (row.item !== item) {
        row.element = morph(row.element, this.#render(item));
        row.item = item;
      }
      rows.set(key, row);
      this.#rows.delete(key);
      if (row.element === at) at = at.nextSibling;
      else this.#parent.insertBefore(row.element, at);
    }
    for (const { element } of this.#rows.values()) element.remove();
    this.#rows = rows;
    // Moving an element takes its focus away.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  }
}

/** A table whose rows are a `List`. `columns` are [heading, render], and a class. */
export class Table {
  element;
  #list;

  constructor(caption, columns, key) {
    const body = h('tbody');
    const headings = columns.map(([name, , kind]) => h('th', { scope: 'col', class: kind }, name));
    this.element = h('table', { class: 'cards' }, h('caption', null, caption), h('thead', null, h('tr', null, headings)), body);
    this.#list = new List(body, key, (item) =>
      h('tr', null, columns.map(([name, render, kind], n) =>
        h(n ? 'td' : 'th', { scope: n ? null : 'row', 'data-label': name, class: kind }, render(item)))));
  }

  update(items) {
    this.#list.update(items);
    this.element.hidden = items.length === 0;
  }
}

/** The first of many items, and a button for more. */
export class Some {
  element = h('p', { class: 'more' });
  #step;
  #shown;
  #again;

  constructor(step, again) {
    this.#step = this.#shown = step;
    this.#again = again;
    this.element.addEventListener('click', (event) => {
      if (event.target.tagName !== 'BUTTON') return;
      this.#shown += this.#step;
      this.#again();
    });
  }

  of(items) {
    const left = items.length - this.#shown;
    show(this.element, left > 0 ? h('button', { type: 'button' }, `Show ${Math.min(left, this.#step)} of ${left} more`) : null);
    this.element.hidden = left <= 0;
    return items.slice(0, this.#shown);
  }
}
