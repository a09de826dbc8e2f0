// How much memory a cache takes, beside one that keeps every token.

import { $, bytes, count, percent } from "./page.js";

export class MemoryBars {
  /** Begins a text of `tokens` tokens, each of which takes `perToken` bytes of a full cache. */
  begin(tokens, perToken) {
    this.tokens = tokens;
    this.most = Math.max(1, tokens * perToken);
    this.from = 0;
    this.began = null;
    $("figures").hidden = false;
    this.set($("bar-held"), $("held"), 0);
    this.set($("bar-full"), $("full"), 0);
    $("fact-read").textContent = `0 of ${count(tokens)}`;
    for (const fact of ["fact-held", "fact-share", "fact-speed"]) $(fact).textContent = "–";
  }

  set(bar, value, size) {
    bar.style.width = `${Math.min(100, (100 * size) / this.most)}%`;
    value.textContent = size ? bytes(size) : "–";
  }

  /** Takes what a map says of the sequence, at a time in milliseconds. */
  update(map, kept, now) {
    this.set($("bar-held"), $("held"), map.held_bytes);
    this.set($("bar-full"), $("full"), map.full_cache_bytes);
    const read = Math.min(map.tokens, this.tokens);
    $("fact-read").textContent =
      read < this.tokens ? `${count(read)} of ${count(this.tokens)}` : count(read);
    $("fact-held").textContent = count(map.held_slots);
    $("fact-share").textContent = percent(kept);
    if (this.began === null) {
      this.began = now;
      this.from = read;
    } else if (read > this.from && read < this.tokens) {
      const rate = (1000 * (read - this.from)) / (now - this.began);
      $("fact-speed").textContent = `${count(rate)}/s`;
    }
  }
}
