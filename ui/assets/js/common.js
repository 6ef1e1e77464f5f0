// Shared by every view: decoding, numbers, elements, and the one selection of the page.

// Elements are built from text nodes only, so that no user string is ever read as HTML.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
};

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

const halfToFloat = (bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
};

const float16 = (base64) => {
  const bytes = bytesOf(base64);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) values[i] = halfToFloat(bytes[2 * i] | (bytes[2 * i + 1] << 8));
  return values;
};

// Three significant digits, a true minus, and a power of ten only where it is shorter.
const number = (value) => {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
  return text.replaceAll("-", "−").replace("e+", "e");
};
const signedNumber = (value) => (value > 0 ? "+" : "") + number(value);
const percent = (share) => (share * 100).toFixed(share < 0.1 ? 1 : 0) + "%";
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The selection {layer, token} that all views of the page share; null means none chosen. The last
// one is kept, so that a view in a tab that is opened later starts from it.
const selection = {
  get: () => window.mrrSelection || {},
  set: (change, source) => {
    window.mrrSelection = { ...selection.get(), ...change };
    window.dispatchEvent(new CustomEvent("mrr:select", { detail: { change, source } }));
  },
  follow: (element, callback) => {
    const listener = ({ detail }) => {
      if (!element.isConnected) window.removeEventListener("mrr:select", listener);
      else if (detail.source !== element) callback(detail.change);
    };
    window.addEventListener("mrr:select", listener);
  },
};

// Rebuild controls without losing the keyboard's place among them.
const keepFocus = (container, rebuild) => {
  const active = container.contains(document.activeElement) ? document.activeElement : null;
  const group = active?.closest("[role=radiogroup]")?.getAttribute("aria-label");
  const { key, value } = active?.dataset || {};
  rebuild();
  const kept = [...container.querySelectorAll("[data-key], [role=radiogroup] [data-value]")].find((control) =>
    key ? control.dataset.key === key
      : group && control.dataset.value === value && control.closest("[role=radiogroup]").getAttribute("aria-label") === group);
  kept?.focus();
};

// A row of buttons of which one is pressed; arrow keys move between them.
const segmented = (label, options, current, choose, className = "mrr-seg") => {
  const group = make("div", { class: className, role: "radiogroup", "aria-label": label });
  options.forEach((option) => {
    const pressed = option.value === current;
    group.append(make("button", {
      type: "button", role: "radio", "aria-checked": String(pressed), disabled: option.disabled,
      tabindex: pressed ? "0" : "-1", title: option.title, "data-value": String(option.value),
      class: option.class, onclick: () => choose(option.value),
    }, option.text));
  });
  if (!group.querySelector("[tabindex='0']")) group.querySelector("button")?.setAttribute("tabindex", "0");
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...group.querySelectorAll("button:not(:disabled)")];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
  return group;
};

// A file for the user's disk, made in the browser.
const save = (name, blob) => {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
};

// Rows of numbers and words as CSV; what a spreadsheet would run is made text.
const csvText = (rows) => rows.map((row) => row.map((cell) => {
  const text = typeof cell === "string" && /^[=+\-@\t\r]/.test(cell) ? "'" + cell : String(cell);
  return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}).join(",")).join("\n") + "\n";
