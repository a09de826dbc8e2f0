// What the page asks of its server. Addresses are relative, so that a proxy may put the server
// below a folder.

import { askForKey, key } from "./key.js";

/** A refusal, in the server's words. */
export class Refused extends Error {
  constructor(status, said, id) {
    super(said.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.code = said.code ?? "";
    this.id = id;
  }

  /** With the names by which an operator finds it. */
  get whole() {
    const names = [this.code, this.id && `request ${this.id}`].filter(Boolean).join(", ");
    return names ? `${this.message} (${names})` : this.message;
  }
}

/** What went wrong, for people. */
export function explain(error) {
  if (error instanceof Refused) return error.whole;
  if (error instanceof TypeError) return "The server cannot be reached.";
  return error.message;
}

function request(method, body, signal) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  return {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
  };
}

async function refusal(response) {
  const said = await response.json().catch(() => ({}));
  return new Refused(response.status, said.error ?? {}, response.headers.get("x-request-id"));
}

/** Sends a request. Where the server asks for a key, so does this. */
async function send(method, path, body, signal) {
  for (;;) {
    const response = await fetch(path, request(method, body, signal));
    if (response.ok) return response;
    const refused = await refusal(response);
    const why = key() ? "The server does not take this key." : "The server asks for a key.";
    if (refused.status !== 401 || !(await askForKey(why))) throw refused;
  }
}

/** The same as `get`, of what nobody waits for: it opens no dialog. */
export async function look(path) {
  const response = await fetch(path, request("GET"));
  if (!response.ok) throw await refusal(response);
  return response.json();
}

export const get = async (path) => (await send("GET", path)).json();
export const post = async (path, body, signal) =>
  (await send("POST", path, body, signal)).json();
export const remove = async (path) => (await send("DELETE", path)).json();

/** A text that needs no key. */
export async function text(path) {
  const response = await fetch(path, { cache: "no-store", credentials: "omit" });
  if (!response.ok) throw await refusal(response);
  return response.text();
}

/** The objects of an answer that comes as events. To stop, abort the signal. */
export async function* events(path, body, signal) {
  const response = await send("POST", path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      // Comments keep the connection open and say nothing.
      if (!part.startsWith("data: ")) continue;
      const data = part.slice(6);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Refused(200, object.error, null);
      yield object;
    }
  }
}

/** The bytes of a base64 text. */
export function decode(base64) {
  const binary = atob(base64);
  const found = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
  return found;
}
