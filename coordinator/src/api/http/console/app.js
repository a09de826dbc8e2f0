// The page: its views, and what it knows of the server.

import { explain, get, look } from "./api.js";
import { showModel as showChatModel, startChat } from "./chat.js";
import { showModel, startDocument } from "./document.js";
import { cleanAddress, startKeys } from "./key.js";
import { $ } from "./page.js";
import { STATES, showService } from "./service.js";
import { showSessions, startSessions } from "./sessions.js";

const VIEWS = ["document", "chat", "service", "sessions"];
/** Milliseconds between two looks at whether the server serves. */
const PAUSE = 10000;

/** Shows the view that the address names, and moves the focus to it if the reader chose it. */
function route(event) {
  cleanAddress(VIEWS);
  const wanted = location.hash.slice(1) || VIEWS[0];
  for (const view of VIEWS) {
    $(`view-${view}`).hidden = view !== wanted;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showService(wanted === "service");
  showSessions(wanted === "sessions");
  const title = $(`${wanted}-title`);
  document.title = `${title.textContent} – Palimpsest console`;
  if (event) title.focus();
}

function lamp(name, text, kind) {
  $("model").textContent = name;
  $("state").textContent = text;
  $("lamp").className = `lamp ${kind}`;
}

/** What the server serves. Who asks in the background opens no dialog. */
async function connect(ask = get) {
  try {
    const group = await ask("v1/group");
    const found = (await ask("v1/models")).data[0];
    showChatModel(group);
    showModel(group, found);
    // The lamp comes last: it says that the forms are filled and can be changed.
    const [words, kind] = STATES[group.readiness] ?? [group.readiness, ""];
    lamp(group.model, words, kind);
  } catch (error) {
    lamp("", explain(error), "bad");
  }
}

/** Whether it still serves, which needs no key. */
async function watch() {
  if (document.hidden) return;
  const found = await fetch("readyz", { cache: "no-store" }).catch(() => null);
  const isGood = $("lamp").classList.contains("good");
  if (found?.ok !== isGood) await connect(look);
}

startKeys(() => {
  connect();
  route();
});
startDocument();
startChat();
startSessions();
addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
route();
connect();
setInterval(watch, PAUSE);
