// The sessions of whoever's key it is.

import { explain, get, post, remove } from "./api.js";
import { $, bytes, count, element, moment, say, show } from "./page.js";

/** Sessions of a page of the list. */
const PAGE = 100;

let next = null;

async function act(id, name, action) {
  try {
    await action();
    say(`${name}: ${id}`);
    await reload();
  } catch (error) {
    show($("sessions-error"), explain(error));
  }
}

function button(label, id, action) {
  const onclick = () => act(id, label, action);
  const attributes = { type: "button", class: "quiet", "aria-label": `${label} ${id}`, onclick };
  return element("button", attributes, label);
}

function row(session) {
  const id = session.session_id;
  const path = `v1/sessions/${encodeURIComponent(id)}`;
  const move = session.state === "suspended" ? "Resume" : "Suspend";
  const cell = (text) => element("td", { class: "n" }, text);
  const gone = () =>
    confirm(`Delete the session ${id}? Its log cannot be brought back.`) ? remove(path) : undefined;
  return element(
    "tr",
    {},
    element("td", {}, element("code", {}, id)),
    element("td", {}, session.state),
    cell(count(session.tokens)),
    cell(count(session.messages)),
    cell(session.kv?.budget ? count(session.kv.budget) : session.kv?.policy ?? "–"),
    cell(bytes(session.record_bytes)),
    element("td", {}, moment(session.used)),
    element("td", {}, moment(session.expires)),
    element(
      "td",
      {},
      element(
        "div",
        { class: "row" },
        button(move, id, () => post(`${path}/${move.toLowerCase()}`, {})),
        button("Delete", id, gone),
      ),
    ),
  );
}

async function page(after) {
  const found = await get(`v1/sessions?limit=${PAGE}${after ? `&after=${after}` : ""}`);
  next = found.has_more ? found.last_id : null;
  $("more").hidden = !next;
  return found.data.map(row);
}

async function reload() {
  try {
    $("sessions").replaceChildren(...(await page(null)));
    $("no-sessions").hidden = $("sessions").children.length > 0;
    show($("sessions-error"));
  } catch (error) {
    show($("sessions-error"), explain(error));
  }
}

export function showSessions(shown) {
  if (shown) reload();
}

export function startSessions() {
  $("reload").addEventListener("click", reload);
  $("more").addEventListener("click", async () => {
    try {
      $("sessions").append(...(await page(next)));
    } catch (error) {
      show($("sessions-error"), explain(error));
    }
  });
}
