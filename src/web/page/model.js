// The documents as they are shown. Any key may be missing, null or of another type: here it gets a form that has all of
// them, and nowhere else is asked again.

const text = (value) => (typeof value === 'string' ? value : '');
const number = (value) => (Number.isFinite(value) ? value : null);
const amount = (value) => Math.max(0, number(value) ?? 0);
const object = (value) => (value !== null && typeof value === 'object' && !Array.isArray(value) ? value : {});
const list = (value, read) => (Array.isArray(value) ? value.map((item) => read(object(item))) : []);
const ids = (value) => (Array.isArray(value) ? value.filter((item) => typeof item === 'string') : []);
const some = (value, read) => (value === null || typeof value !== 'object' ? null : read(object(value)));

const STATES = ['initializing', 'ready', 'draining', 'stale'];
const OUTCOMES = ['warm', 'partly', 'cold'];

function family(doc) {
  return {
    family: text(doc.family), offered: amount(doc.offered), installed: amount(doc.installed), used: number(doc.used),
    recompiled: number(doc.recompiled), saved: number(doc.saved_s), reason: text(doc.reason),
  };
}

function start(doc) {
  return {
    at: number(doc.at), outcome: OUTCOMES.includes(doc.outcome) ? doc.outcome : 'unknown', ready: number(doc.ready_s),
    saved: number(doc.saved_s), end: text(doc.end), families: list(doc.families, family),
  };
}

function transfer(doc) {
  const total = amount(doc.total);
  return {
    artifact: text(doc.artifact), family: text(doc.family), done: Math.min(amount(doc.done), total), total,
    rate: number(doc.rate), eta: number(doc.eta_s),
    holders: list(doc.holders, (holder) => ({ node: text(holder.node), bytes: amount(holder.bytes) })),
  };
}

function gpu(doc) {
  const memory = some(doc.memory, ({ used, total }) => ({ used: amount(used), total: amount(total) }));
  return { index: number(doc.index), name: text(doc.name), used: number(doc.utilization), memory };
}

function node(id, doc) {
  const [totals, network] = [object(doc.totals), object(doc.network)];
  const misses = Object.entries(object(totals.misses)).map(([reason, count]) => ({ reason, count: amount(count) }));
  return {
    id, name: text(doc.name) || id.slice(0, 12), endpoint: text(doc.endpoint),
    region: text(doc.region), zone: text(doc.zone), rack: text(doc.rack),
    state: STATES.includes(doc.state) ? doc.state : 'unknown',
    seen: number(doc.seen_at), version: text(doc.version), started: number(doc.started_at),
    discovery: text(doc.discovery), carrier: text(doc.carrier),
    engine: some(doc.engine, (engine) => ({ state: text(engine.state), adapters: number(engine.adapters) })),
    disk: some(doc.disk, (disk) => ({ used: amount(disk.used), limit: number(disk.limit), free: number(disk.free) })),
    received: amount(totals.received), sent: amount(totals.sent), hits: amount(totals.hits), misses,
    skew: number(doc.skew_ms), mtu: number(network.mtu),
    policy: some(doc.policy, (policy) => ({ version: number(policy.version), expires: number(policy.expires_at) })),
    starts: list(doc.starts, start).sort((a, b) => (b.at ?? 0) - (a.at ?? 0)),
    transfers: list(doc.transfers, transfer), gpus: list(doc.gpus, gpu),
    problems: list(doc.problems, (p) => ({ kind: text(p.kind), text: text(p.text), wayOut: text(p.way_out) })),
  };
}

function identity(digest, doc) {
  const artifacts = list(doc.artifacts, (artifact) => ({
    id: text(artifact.id), subject: text(artifact.subject), count: number(artifact.holder_count), bytes: number(artifact.bytes), signer: text(artifact.signer), at: number(artifact.at),
    holders: ids(artifact.holders), partial: ids(artifact.partial),
  }));
  const facts = Object.entries(object(doc.facts)).map(([name, value]) => [name, text(value) || JSON.stringify(value)]);
  const holders = new Set(artifacts.flatMap((artifact) => artifact.holders));
  const words = [digest, doc.family, ...facts.flat(), ...artifacts.flatMap((a) => [a.id, a.signer, a.subject])];
  return {
    digest, family: text(doc.family), facts, artifacts, holders: holders.size,
    bytes: artifacts.reduce((sum, artifact) => sum + (artifact.bytes ?? 0), 0),
    words: words.filter((word) => typeof word === 'string').join('\n').toLowerCase(),
  };
}

function server(doc) {
  return {
    name: text(doc.name), version: text(doc.version), cluster: text(doc.cluster), backend: text(doc.backend),
    epoch: number(doc.epoch) ?? text(doc.epoch), started: number(doc.started_at),
  };
}

/** A value that is computed once for each object. */
export function once(compute) {
  const known = new WeakMap();
  return (object) => {
    if (!known.has(object)) known.set(object, compute(object));
    return known.get(object);
  };
}

/** What a node itself says, and what its silence says. */
export const problemsOf = once((node) => {
  if (node.state !== 'stale') return node.problems;
  const wayOut = 'See whether its agent runs and reaches the metadata server. If the node is gone, it is forgotten by itself.';
  return [{ kind: 'stale', text: 'Its lease has run out: it does not renew.', wayOut }, ...node.problems];
});

/** All that is known, by id. Items are never changed, only replaced. */
export class Fleet {
  nodes = new Map();
  identities = new Map();
  server = server({});
  loaded = false;

  /** Returns the keys that changed; null if that may be all of them. */
  apply({ reset, more, set, del }) {
    if (reset) {
      this.nodes.clear();
      this.identities.clear();
      this.server = server({});
    }
    for (const [key, doc] of Object.entries(object(set))) this.#put(key, object(doc));
    for (const key of ids(del)) this.#table(key)?.delete(key.slice(key.indexOf('/') + 1));
    this.loaded = !more;
    return reset ? null : [...Object.keys(object(set)), ...ids(del)];
  }

  #table(key) {
    if (key.startsWith('node/')) return this.nodes;
    return key.startsWith('identity/') ? this.identities : null;
  }

  #put(key, doc) {
    const id = key.slice(key.indexOf('/') + 1);
    const table = this.#table(key);
    if (key === 'server') this.server = server(doc);
    else table?.set(id, table === this.nodes ? node(id, doc) : identity(id, doc));
  }

  nodeName(id) {
    return this.nodes.get(id)?.name ?? id;
  }
}
