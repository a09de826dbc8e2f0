// The service: its group, its queue, and how fast it is.

import { explain, look, text } from "./api.js";
import { quantile, samples, sum } from "./figures.js";
import { $, bytes, count, element, percent, seconds, show } from "./page.js";

/** Milliseconds from one look to the next. */
const PAUSE = 2000;
/** Looks that a chart shows: two minutes. */
const LOOKS = 60;
/** Looks that a chart is wide, at least. */
const LEAST = 15;

const LATENCIES = [
  ["To the first token", "palimpsest_time_to_first_token_seconds"],
  ["Between two tokens", "palimpsest_inter_token_seconds"],
  ["In the queue", "palimpsest_queue_seconds"],
  ["Reading", "palimpsest_prefill_seconds"],
  ["Answering", "palimpsest_decode_seconds"],
];

let timer = 0;
/** Times that the view was shown or hidden. */
let shows = 0;
let last = null;
const looks = [];

/** Readiness in words, and whether it is good. */
export const STATES = {
  ready: ["ready", "good"],
  starting: ["starting", ""],
  lost: ["the group is lost", "bad"],
  draining: ["shutting down", ""],
  ended: ["ended", "bad"],
};

function tile(title, value, under) {
  return element(
    "div",
    { class: "card tile" },
    element("h2", {}, title),
    element("p", { class: "value" }, value),
    element("p", { class: "under" }, under),
  );
}

const svg = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

/** Two lines over the last looks, from the oldest to the newest. */
function chart(place, lines) {
  const most = Math.max(1, ...lines.flatMap((line) => line.values)) * 1.08;
  const label = lines.map((line) => `${line.name}: ${line.now}`).join("; ");
  const drawing = svg("svg", {
    class: "chart", viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img",
    "aria-label": `${label}, now. Two minutes are drawn at most.`,
  });
  drawing.append(svg("line", { class: "base", x1: 0, y1: 99.5, x2: 300, y2: 99.5 }));
  for (const { kind, values } of lines) {
    // A page that was just opened has little to show, and shows it wider.
    const wide = Math.max(LEAST, values.length) - 1;
    const x = (i) => 300 - ((values.length - 1 - i) * 300) / wide;
    const y = (value) => 99 - (96 * value) / most;
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
    drawing.append(svg("polyline", { class: kind, points: points.join(" ") }));
  }
  const names = lines.map((line) =>
    element("span", { class: line.kind }, `${line.name} `, element("b", {}, line.now)),
  );
  place.replaceChildren(drawing, element("p", { class: "legend" }, ...names));
}

const row = (head, ...cells) =>
  element(
    "tr",
    {},
    element("td", {}, head),
    ...cells.map((cell) => element("td", { class: "n" }, cell)),
  );

/** Takes what one look found: rates are of the time since the last one. */
function remember(all) {
  const now = performance.now();
  const read =
    sum(all, "palimpsest_prompt_tokens_total") - sum(all, "palimpsest_cached_prompt_tokens_total");
  const made = sum(all, "palimpsest_generated_tokens_total");
  const apart = last ? (now - last.now) / 1000 : 0;
  // A server that was started anew counts from nothing.
  const rate = (value, before) => (apart ? Math.max(0, value - before) / apart : 0);
  looks.push({
    read: rate(read, last?.read), made: rate(made, last?.made),
    running: sum(all, "palimpsest_requests_running"),
    queued: sum(all, "palimpsest_requests_queued"),
  });
  if (looks.length > LOOKS) looks.shift();
  last = { now, read, made };
}

function drawTiles(group, all) {
  const at = looks.at(-1);
  const [reserved, capacity] = [
    sum(all, "palimpsest_kv_reserved_bytes"),
    sum(all, "palimpsest_kv_capacity_bytes"),
  ];
  const [known, read] = [
    sum(all, "palimpsest_cached_prompt_tokens_total"),
    sum(all, "palimpsest_prompt_tokens_total"),
  ];
  const [first, gap] = [LATENCIES[0], LATENCIES[1]].map(([, name]) => quantile(all, name, 0.5));
  const [epoch, steps] = [sum(all, "palimpsest_group_epoch"), sum(all, "palimpsest_steps_total")];
  const part = (of, all) => percent(of / Math.max(1, all));
  const state = STATES[group.readiness]?.[0] ?? group.readiness;
  const tiles = [
    ["Group", state, `epoch ${count(epoch)}, ${count(steps)} steps`],
    ["Running", count(at.running), `of ${count(group.max_running)} at once`],
    ["Queue", count(at.queued), `of ${count(group.max_queued)} places`],
    ["First token", seconds(first), "median of all requests"],
    ["Next token", seconds(gap), "median of all tokens"],
    ["Cache", part(reserved, capacity), `${bytes(reserved)} of ${bytes(capacity)} reserved`],
    ["Read once", part(known, read), `${count(known)} tokens known`],
  ];
  $("tiles").replaceChildren(...tiles.map((texts) => tile(...texts)));
}

function drawTables(group, all) {
  $("group-text").textContent =
    `${group.model} (${group.architecture}, ${count(group.parameters / 1e6)} M parameters) on ` +
    `${group.ranks.length} ${group.ranks.length === 1 ? "rank" : "ranks"}; a boundary every ` +
    `${group.stride} tokens; Palimpsest ${group.version}`;
  const ranks = group.ranks.map((rank) =>
    element("tr", {}, element("td", {}, count(rank.rank)), element("td", {}, rank.device),
      element("td", { class: "n" }, bytes(rank.page_bytes + rank.latent_bytes)),
      element("td", { class: "n" }, bytes(rank.snapshot_bytes))),
  );
  $("ranks").replaceChildren(...ranks);
  $("latency").replaceChildren(
    ...LATENCIES.map(([title, name]) =>
      row(title, seconds(quantile(all, name, 0.5)), seconds(quantile(all, name, 0.95)),
        count(sum(all, `${name}_count`))),
    ),
  );
  const outcomes = all
    .filter((one) => one.name === "palimpsest_requests_total")
    .sort((one, other) => other.value - one.value)
    .map((one) => row(one.labels.outcome, count(one.value)));
  $("outcomes").replaceChildren(...(outcomes.length ? outcomes : [row("none yet", "0")]));
}

async function refresh() {
  try {
    const [group, figures] = await Promise.all([look("v1/group"), text("metrics")]);
    const all = samples(figures);
    remember(all);
    drawTiles(group, all);
    drawTables(group, all);
    const line = (name, kind, field) => ({
      name, kind, values: looks.map((one) => one[field]), now: count(looks.at(-1)[field]),
    });
    chart($("chart-tokens"), [line("read", "one", "read"), line("written", "two", "made")]);
    const waiting = line("waiting", "two", "queued");
    chart($("chart-requests"), [line("running", "one", "running"), waiting]);
    show($("service-error"));
  } catch (error) {
    show($("service-error"), explain(error));
  }
}

/** Looks again and again while the view is shown and somebody may see it. */
export function showService(shown) {
  clearTimeout(timer);
  const mine = ++shows;
  if (!shown) return;
  const next = async () => {
    if (!document.hidden) await refresh();
    // A look that was under way when the view changed is the last of its kind.
    if (mine === shows) timer = setTimeout(next, PAUSE);
  };
  next();
}
