// A conversation.

import { events, explain } from "./api.js";
import { $, budgetSlider, count, element, held, say, show } from "./page.js";

let budget = null;
let running = null;
let name = "";
/** What was said, as the API takes it. */
let messages = [];

function turn(role, text) {
  $("no-turns").hidden = true;
  const words = element("p", { class: "prose" }, text);
  const who = role === "user" ? "You" : "The model";
  const made = element(
    "div",
    { class: role === "user" ? "turn mine" : "turn" },
    element("span", { class: "unseen" }, `${who}: `),
    words,
  );
  $("turns").append(made);
  $("turns").scrollTop = $("turns").scrollHeight;
  return { made, words };
}

function isBusy(busy) {
  $("send").hidden = busy;
  $("chat-stop").hidden = !busy;
  $("forget").disabled = busy;
}

function note(made, usage, finish) {
  const known = usage.prompt_tokens_details.cached_tokens;
  const speed = (usage.completion_tokens - 1) / usage.timing.decode_seconds;
  const parts = [
    `${count(usage.prompt_tokens - known)} tokens read, ${count(known)} known`,
    `${count(usage.completion_tokens)} answered` +
      (Number.isFinite(speed) && speed > 0 ? ` at ${count(speed)}/s` : ""),
    held(usage.kv),
    finish === "length" ? "cut at the limit of tokens" : "",
    ...usage.kv.warnings,
  ];
  made.append(element("p", { class: "note" }, parts.filter(Boolean).join(" · ")));
}

/** Adds what came to the conversation; the text follows what is new where its end is seen. */
function add(answer, delta) {
  const box = $("turns");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  if (delta.reasoning_content) {
    answer.thought ??= answer.made.insertBefore(
      element("div", { class: "thought" }),
      answer.words,
    );
    answer.thought.append(delta.reasoning_content);
  }
  if (delta.content) {
    answer.words.append(delta.content);
    answer.text += delta.content;
  }
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

async function ask(text) {
  const stop = new AbortController();
  running = stop;
  isBusy(true);
  show($("chat-error"));
  const mine = turn("user", text);
  messages.push({ role: "user", content: text });
  const answer = { ...turn("assistant", ""), text: "" };
  answer.words.classList.add("busy");
  const system = $("system").value.trim();
  const asked = {
    model: name, kv_budget: budget.value, max_tokens: Number($("chat-most").value),
    temperature: Number($("chat-warmth").value), stream_options: { include_usage: true },
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
  };
  try {
    let finish = null;
    for await (const event of events("v1/chat/completions", asked, stop.signal)) {
      const choice = event.choices[0];
      finish = choice?.finish_reason ?? finish;
      add(answer, choice?.delta ?? {});
      if (event.usage) note(answer.made, event.usage, finish);
    }
    messages.push({ role: "assistant", content: answer.text });
    say(`The model: ${answer.text}`);
  } catch (error) {
    if (stop.signal.aborted && answer.text) {
      messages.push({ role: "assistant", content: answer.text });
      answer.made.append(element("p", { class: "note" }, "stopped"));
      say("Stopped.");
    } else {
      // The conversation is as it was, and the question can be sent again.
      messages.pop();
      mine.made.remove();
      answer.made.remove();
      $("message").value ||= text;
      if (!stop.signal.aborted) show($("chat-error"), explain(error));
    }
  } finally {
    answer.words.classList.remove("busy");
    running = null;
    isBusy(false);
    $("message").focus();
  }
}

/** The box of a message is as high as its text. */
function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function send() {
  const text = $("message").value.trim();
  if (!text || running) return;
  $("message").value = "";
  grow();
  ask(text);
}

export function showModel(group) {
  name = group.model;
}

export function startChat() {
  budget = budgetSlider($("chat-budget"), $("chat-budget-value"));
  budget.value = 1024;
  $("say").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("message").addEventListener("input", grow);
  $("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("chat-stop").addEventListener("click", () => running?.abort());
  $("forget").addEventListener("click", () => {
    messages = [];
    for (const made of $("turns").querySelectorAll(".turn")) made.remove();
    $("no-turns").hidden = false;
    show($("chat-error"));
    $("message").focus();
    say("A new conversation.");
  });
}
