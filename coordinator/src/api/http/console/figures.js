// Prometheus' text as numbers.

const number = (text) => (text === "+Inf" ? Infinity : Number(text));

/** All samples of a text: `{name, labels, value}`. */
export function samples(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const parts = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    found.push({ name: parts[1], labels, value: number(parts[3]) });
  }
  return found;
}

/** The sum of all samples of a name. */
export function sum(all, name) {
  return all.reduce((sum, one) => (one.name === name ? sum + one.value : sum), 0);
}

/**
 * The time within which `share` of what a histogram has measured stayed, in seconds. Within a
 * bucket what was measured is taken to be spread evenly, as Prometheus does.
 */
export function quantile(all, name, share) {
  const buckets = all
    .filter((one) => one.name === `${name}_bucket`)
    .map(({ labels, value }) => ({ to: number(labels.le), n: value }))
    .sort((one, other) => one.to - other.to);
  const total = buckets.at(-1)?.n ?? 0;
  if (!total) return NaN;
  const wanted = share * total;
  const at = buckets.findIndex((bucket) => bucket.n >= wanted);
  const before = buckets[at - 1] ?? { to: 0, n: 0 };
  if (buckets[at].to === Infinity) return before.to;
  const part = (wanted - before.n) / Math.max(1, buckets[at].n - before.n);
  return before.to + (buckets[at].to - before.to) * part;
}
