// The map of a text: every token shaded by how much of it is kept. It is drawn twice, as cells of a
// canvas and as the text itself.

import { element } from "./page.js";

/** Shades of the text: nothing, and eight from little to all. */
const SHADES = 8;
const CLASSES = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"];
/** The shade of a share of 0 to 255: what is held at all is never shown as nothing. */
const shadeOf = Uint8Array.from({ length: 256 }, (_, share) => Math.ceil((share * SHADES) / 255));
/** A token that was not read yet. */
const UNREAD = 255;
/** Tokens of a block, about: blocks that are not on the screen are neither styled nor painted. */
const BLOCK = 192;
/** Elements that a text has at most: tokens of a longer one share them. */
const MOST_SPANS = 40000;
/** Height of the canvas at most, in pixels of the page. */
const HEIGHT = 184;

/** Three numbers of a colour as the page's style has it. */
function colour(name) {
  const probe = element("span");
  document.body.append(probe);
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return found;
}

export class RetentionMap {
  /** Of pieces of text, one for each token, in a canvas and an element. */
  constructor(canvas, text) {
    this.canvas = canvas;
    this.text = text;
    this.pieces = [];
    this.shares = new Uint8Array();
    this.spans = [];
    this.shown = new Uint8Array();
    this.perSpan = 1;
    this.cells = document.createElement("canvas");
  }

  /** Begins a text of which nothing was read. */
  begin(pieces) {
    this.pieces = pieces;
    this.shares = new Uint8Array();
    this.perSpan = Math.max(1, Math.ceil(pieces.length / MOST_SPANS));
    this.spans = [];
    const blocks = [];
    let block = [];
    for (let at = 0; at < pieces.length; at += this.perSpan) {
      const span = document.createElement("span");
      const text = pieces.slice(at, at + this.perSpan).join("");
      span.textContent = text;
      this.spans.push(span);
      block.push(span);
      // A block ends where a line does, so that it changes nothing of the text.
      if (block.length >= BLOCK && text.endsWith("\n")) {
        blocks.push(element("div", {}, ...block));
        block = [];
      }
    }
    if (block.length) blocks.push(element("div", {}, ...block));
    this.shown = new Uint8Array(this.spans.length).fill(UNREAD);
    this.text.replaceChildren(...blocks);
    this.text.scrollTop = 0;
    this.recolour();
  }

  /** Takes the shares of the tokens so far, and draws them. */
  update(shares) {
    this.shares = shares;
    this.draw();
  }

  draw() {
    this.drawText();
    this.drawCells();
  }

  /** Elements change only where their shade does. */
  drawText() {
    const { shares, spans, shown, perSpan } = this;
    const read = Math.min(shares.length, this.pieces.length);
    for (let i = 0; i < spans.length; i++) {
      const from = i * perSpan;
      let shade = UNREAD;
      if (from < read) {
        const to = Math.min(from + perSpan, read);
        let sum = 0;
        for (let at = from; at < to; at++) sum += shares[at];
        shade = shadeOf[Math.ceil(sum / (to - from))];
      }
      if (shade === shown[i]) continue;
      shown[i] = shade;
      spans[i].className = shade === UNREAD ? "" : CLASSES[shade];
    }
  }

  /** Colours of the canvas, which follow the scheme of the system. */
  recolour() {
    const [none, all] = [colour("--cell"), colour("--shade")];
    this.palette = new Uint32Array(256);
    const bytes = new Uint8ClampedArray(this.palette.buffer);
    for (let share = 0; share < 256; share++) {
      // Few heads of many are to be seen as well.
      const part = (share / 255) ** 0.75;
      for (let c = 0; c < 3; c++) bytes[4 * share + c] = none[c] + (all[c] - none[c]) * part;
      bytes[4 * share + 3] = 255;
    }
    this.gap = `rgb(${colour("--card").join()})`;
    this.draw();
  }

  /** One cell for each token, as large as the place allows. */
  layout() {
    const width = Math.max(1, this.canvas.parentElement.clientWidth - 28);
    const tokens = Math.max(1, this.pieces.length);
    let cell = 12;
    while (cell > 1 && Math.ceil(tokens / Math.floor(width / cell)) * cell > HEIGHT) cell--;
    this.columns = Math.floor(width / cell);
    this.rows = Math.ceil(tokens / this.columns);
    this.cell = cell;
  }

  drawCells() {
    this.layout();
    const { columns, rows, cell, canvas, cells, shares } = this;
    const ratio = Math.max(1, Math.round(window.devicePixelRatio || 1));
    const [width, height] = [columns * cell, rows * cell];
    const image = new ImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const read = Math.min(shares.length, this.pieces.length);
    for (let at = 0; at < read; at++) pixels[at] = this.palette[shares[at]];
    // What was not read is there, and is fainter than what was forgotten.
    const unread = (this.palette[0] & 0xffffff) | 0x59000000;
    pixels.fill(unread, read, this.pieces.length);
    cells.width = columns;
    cells.height = rows;
    cells.getContext("2d").putImageData(image, 0, 0);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const paint = canvas.getContext("2d");
    paint.imageSmoothingEnabled = false;
    paint.drawImage(cells, 0, 0, canvas.width, canvas.height);
    if (cell < 4) return;
    paint.fillStyle = this.gap;
    for (let x = 1; x < columns; x++) paint.fillRect(x * cell * ratio, 0, ratio, canvas.height);
    for (let y = 1; y < rows; y++) paint.fillRect(0, y * cell * ratio, canvas.width, ratio);
  }

  /** The token under a point of the canvas; -1: none. */
  at(x, y) {
    const token = Math.floor(y / this.cell) * this.columns + Math.floor(x / this.cell);
    return x >= 0 && y >= 0 && x < this.columns * this.cell && token < this.pieces.length
      ? token
      : -1;
  }

  /** The first token of an element of the text; -1: it has none. */
  of(span) {
    const found = this.spans.indexOf(span);
    return found < 0 ? -1 : found * this.perSpan;
  }

  /** Brings a token to where it is seen. */
  reveal(token) {
    const span = this.spans[Math.floor(token / this.perSpan)];
    if (!span) return undefined;
    // Twice: only a block that is near the screen has its true height.
    for (let i = 0; i < 2; i++) {
      const [box, at] = [this.text, span].map((one) => one.getBoundingClientRect());
      this.text.scrollTop += at.top - box.top - box.height / 2;
    }
    return span;
  }

  /** What is kept of a token, in words. */
  describe(token) {
    const piece = JSON.stringify(this.pieces[token] ?? "");
    const share = this.shares[token];
    if (share === undefined) return `${token}: ${piece}, not read yet`;
    const kept = share === 255 ? "all KV heads" : share === 0 ? "no KV head" : null;
    return `${token}: ${piece}, kept by ${kept ?? `${Math.round(share / 2.55)} % of the KV heads`}`;
  }

  /** The share of all entries that are kept. */
  get kept() {
    let sum = 0;
    for (const share of this.shares) sum += share;
    return this.shares.length ? sum / (255 * this.shares.length) : 1;
  }
}
