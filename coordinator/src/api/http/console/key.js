// The API key: entered in the page, kept for this tab, and never taken from an address.

import { $, say, show } from "./page.js";

const NAME = "palimpsest-key";

let answered = null;

/** The key, or nothing. */
export const key = () => sessionStorage.getItem(NAME) ?? "";

/** Takes everything from the address that is not the name of a view, and says so. */
export function cleanAddress(views) {
  const wanted = location.hash.slice(1);
  const isKnown = wanted === "" || views.includes(wanted);
  if (!location.search && isKnown) return;
  history.replaceState(null, "", location.pathname);
  if (wanted === "main") return;
  show(
    $("notice"),
    "Something was in the address of this page. It was not used, and it was removed: addresses " +
      "stand in histories and logs. If it was an API key, make a new one, and enter that by " +
      "“API key” above.",
  );
}

/** Asks for a key, for a reason if there is one. True once there is another one. */
export function askForKey(why) {
  show($("key-why"), why);
  const dialog = $("key-dialog");
  $("key").value = key();
  if (!dialog.open) dialog.showModal();
  $("key").focus();
  answered?.(false);
  return new Promise((resolve) => {
    answered = resolve;
  });
}

function close(changed) {
  $("key-dialog").close();
  answered?.(changed);
  answered = null;
}

export function startKeys(changed) {
  $("open-key").addEventListener("click", async () => {
    if (await askForKey()) changed();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = $("key").value.trim();
    if (given) sessionStorage.setItem(NAME, given);
    else sessionStorage.removeItem(NAME);
    $("key").value = "";
    say(given ? "The key is used from now on." : "There is no key now.");
    close(true);
  });
  $("key-forget").addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    $("key").value = "";
    say("The key is forgotten.");
    close(true);
  });
  $("key-cancel").addEventListener("click", () => close(false));
  $("key-dialog").addEventListener("cancel", () => close(false));
}
