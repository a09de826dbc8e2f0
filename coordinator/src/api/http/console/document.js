// A document and a question: how much is kept of every token, as it is read, and the answer.

import { decode, events, explain, post, text } from "./api.js";
import { RetentionMap } from "./map.js";
import { MemoryBars } from "./memory.js";
import {
  $, budgetSlider, bytes, count, element, framed, held, percent, say, seconds, show,
} from "./page.js";

const EXAMPLE = {
  question: "When was the WIPO copyright treaty adopted?",
  prefix: "The WIPO copyright treaty was adopted on",
  budget: 1536,
};

const map = new RetentionMap($("map"), $("tokens"));
const bars = new MemoryBars();
let model = null;
let budget = null;
let running = null;
/** The token that arrow keys are at. */
let here = -1;
/** The reader has scrolled the text, which then does not follow what is read. */
let isScrolled = false;

/** The map of the example, for tests of the time that it takes to draw one. */
export const drawn = map;

function costs(entries) {
  if (!model) return;
  const held = (entries + model.stride) * model.kv_bytes_per_token;
  $("budget-cost").textContent =
    `At most ${bytes(held)} of cache, however long the text is. A full cache takes ` +
    `${bytes(model.kv_bytes_per_token)} for every token.`;
  label();
}

function label() {
  const again = map.pieces.length > 0 && !$("tokens").hidden;
  $("read").textContent = again ? "Read again and answer" : "Read and answer";
}

/** The contract that the form asks for. */
function contract() {
  const [policy, memory] = [$("policy").value, $("memory").value];
  // A cache of everything has no other setting.
  if (policy === "full") return { kv_policy: policy };
  const asked = { kv_budget: budget.value };
  if (policy) asked.kv_policy = policy;
  if (memory) asked.latent_memory = memory;
  return asked;
}

function body() {
  const asked = [$("text").value, $("question").value.trim()].filter(Boolean).join("\n\n");
  const request = { messages: [{ role: "user", content: asked }] };
  if ($("prefix").value) request.answer_prefix = $("prefix").value;
  return request;
}

function isBusy(busy) {
  $("stop").disabled = !busy;
  $("read").disabled = busy;
  $("edit").disabled = busy;
  $("answer").classList.toggle("busy", busy);
  $("view-document").setAttribute("aria-busy", busy);
}

/** Shows the text as tokens, or as what can be edited. */
function showTokens(shown) {
  $("tokens").hidden = !shown;
  $("text").hidden = shown;
  $("edit").hidden = !shown;
  $("weave").hidden = !shown;
  $("at").textContent = "";
  here = -1;
  label();
}

/** Takes a map of the stream. */
function take(found) {
  const shares = decode(found.shares);
  // Tokens of the answer are not part of the text.
  map.shares = shares.subarray(0, map.pieces.length);
  bars.update(found, map.kept, performance.now());
  draw();
}

const draw = framed(() => {
  map.draw();
  const read = map.shares.length;
  if (running && !isScrolled && read < map.pieces.length) map.reveal(Math.max(0, read - 1));
  $("map").setAttribute(
    "aria-label",
    `${count(read)} of ${count(map.pieces.length)} tokens were read; ` +
      `${percent(map.kept)} of their entries are kept`,
  );
});

function ended(usage) {
  if (!usage) return;
  const { kv, timing } = usage;
  const known = usage.prompt_tokens_details.cached_tokens;
  const parts = [
    `${count(usage.prompt_tokens - known)} tokens read in ${seconds(timing.prefill_seconds)}`,
    known ? `${count(known)} known from before` : "",
    `${count(usage.completion_tokens)} answered`,
    held(kv),
    ...kv.warnings,
  ];
  $("answer-note").textContent = parts.filter(Boolean).join(" · ");
  say(`The answer is complete: ${$("answer").textContent}`);
}

/** Reads the text, shows what is kept meanwhile, and then the answer. */
async function read() {
  const stop = new AbortController();
  running = stop;
  isScrolled = false;
  isBusy(true);
  show($("document-error"));
  $("answer-card").hidden = false;
  const prefix = $("prefix").value;
  $("answer").replaceChildren(element("span", { class: "given" }, prefix));
  $("answer-note").textContent = "";
  try {
    const request = body();
    const found = await post("tokenize", request, stop.signal);
    // The canvas has a size when it is shown.
    showTokens(true);
    map.begin(found.token_strs);
    bars.begin(found.count, model.kv_bytes_per_token);
    draw();
    say(`Reading ${count(found.count)} tokens.`);
    if (innerWidth < 992) $("figures").scrollIntoView();
    const asked = {
      ...request, ...contract(), model: model.model, max_tokens: Number($("most").value),
      temperature: Number($("warmth").value), retention_map: true,
      stream_options: { include_usage: true },
    };
    if ($("anew").checked) asked.cache_salt = crypto.getRandomValues(new Uint32Array(4)).join("-");
    for await (const event of events("v1/chat/completions", asked, stop.signal)) {
      if (event.retention_map) take(event.retention_map);
      const words = event.choices[0]?.delta?.content;
      if (words) $("answer").append(words);
      if (event.usage) ended(event.usage);
    }
  } catch (error) {
    if (stop.signal.aborted) {
      $("answer-note").textContent = "Stopped.";
      say("Stopped.");
    } else show($("document-error"), explain(error));
  } finally {
    running = null;
    isBusy(false);
    label();
  }
}

async function example() {
  try {
    $("text").value = await text("console/example.txt");
    $("question").value = EXAMPLE.question;
    $("prefix").value = EXAMPLE.prefix;
    budget.value = EXAMPLE.budget;
    showTokens(false);
  } catch (error) {
    show($("document-error"), explain(error));
  }
}

/** Says what is kept of a token. */
function tell(token) {
  $("at").textContent = token < 0 ? "" : map.describe(token);
}

function follow(event) {
  const far = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 16, ArrowUp: -16 }[event.key];
  if (!far || !map.pieces.length) return;
  event.preventDefault();
  isScrolled = true;
  map.text.querySelector(".here")?.classList.remove("here");
  here = Math.min(Math.max(0, here < 0 ? 0 : here + far), map.pieces.length - 1);
  map.reveal(here)?.classList.add("here");
  tell(here);
}

function startMap() {
  const tokens = $("tokens");
  tokens.addEventListener("pointerover", (event) => tell(map.of(event.target)));
  tokens.addEventListener("pointerleave", () => tell(here));
  tokens.addEventListener("keydown", follow);
  for (const kind of ["wheel", "pointerdown", "touchmove"]) {
    tokens.addEventListener(kind, () => (isScrolled = true), { passive: true });
  }
  const point = (event) => {
    const box = $("map").getBoundingClientRect();
    return map.at(event.clientX - box.left, event.clientY - box.top);
  };
  $("map").addEventListener("pointermove", (event) => tell(point(event)));
  $("map").addEventListener("pointerleave", () => tell(here));
  $("map").addEventListener("click", (event) => {
    const token = point(event);
    if (token < 0) return;
    isScrolled = true;
    map.reveal(token);
  });
  const redraw = framed(() => map.pieces.length && !$("weave").hidden && map.draw());
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.recolour());
}

/** Fills the form with what the model offers. */
export function showModel(group, found) {
  const isNew = model?.model !== group.model;
  model = group;
  if (!isNew) return;
  for (const [select, names] of [["policy", found.policies], ["memory", found.memories]]) {
    const options = names.map((name) => element("option", { value: name }, name));
    $(select).replaceChildren(element("option", { value: "" }, "the server's"), ...options);
  }
  budget.value = found.default_kv.budget || 1024;
}

export function startDocument() {
  budget = budgetSlider($("budget"), $("budget-value"), costs);
  budget.value = 1024;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    if (!$("text").value.trim()) {
      const what = "There is no text to read: paste one, open a file, or take the example.";
      show($("document-error"), what);
      return;
    }
    if (model) read();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("edit").addEventListener("click", () => {
    showTokens(false);
    $("text").focus();
  });
  $("example").addEventListener("click", () => running || example());
  $("file").addEventListener("change", async () => {
    const [file] = $("file").files;
    $("file").value = "";
    if (!file || running) return;
    $("text").value = await file.text();
    showTokens(false);
  });
  startMap();
}
