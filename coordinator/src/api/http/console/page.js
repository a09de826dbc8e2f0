// What all views share: elements of the page, numbers for people, and what screen readers are told.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children. Texts become text, and nothing becomes markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(key, value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (number) => whole.format(number);

/** Bytes with three digits or so. */
export function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  for (; number >= 999.5 && unit < units.length - 1; unit++) number /= 1000;
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)} ${units[unit]}`;
}

/** What a cache holds, and what a full one would, where that is more. */
export function held(kv) {
  const more = kv.full_cache_bytes > kv.held_bytes ? ` of ${bytes(kv.full_cache_bytes)}` : "";
  return `cache ${bytes(kv.held_bytes)}${more}`;
}

/** Seconds with two digits or so. */
export function seconds(number) {
  if (!Number.isFinite(number)) return "–";
  if (number < 1) return `${(number * 1000).toPrecision(2) / 1} ms`;
  if (number < 100) return `${number.toPrecision(2) / 1} s`;
  return `${Math.round(number / 60)} min`;
}

export const percent = (share) =>
  `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

/** Seconds since 1970, as a time of day or a date. */
export function moment(since) {
  const date = new Date(since * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString() : date.toLocaleDateString();
}

/** Tells screen readers something. */
export function say(text) {
  const line = $("said");
  // The same words again would not be read.
  line.textContent = line.textContent === text ? `${text}\u00a0` : text;
}

/** Shows a message, or hides the place where it stood. */
export function show(place, message) {
  place.hidden = !message;
  place.textContent = message ?? "";
}

/** Calls at most once for each frame that is painted. */
export function framed(draw) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      draw();
    });
  };
}

/** Budgets that a slider has. */
export const BUDGETS = [
  64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
];

/** Sets a slider of budgets up; `changed` hears of every move. */
export function budgetSlider(slider, output, changed) {
  const update = () => {
    const budget = BUDGETS[slider.value];
    const text = `${count(budget)} entries per KV head`;
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    changed?.(budget);
  };
  slider.addEventListener("input", update);
  return {
    get value() {
      return BUDGETS[slider.value];
    },
    set value(budget) {
      const found = BUDGETS.findIndex((one) => one >= budget);
      slider.value = found < 0 ? BUDGETS.length - 1 : found;
      update();
    },
  };
}
