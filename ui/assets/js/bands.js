// Layer by layer, how the query's attention splits over instruction, page and query. A click (or
// Enter) on a layer tells the server, and shows its map in the inspector at once.

const root = element.querySelector(".bands");
const SEGMENTS = ["instruction", "page", "query"];
let data = null, state = { token: null, layer: null };

const median = (sorted) => {
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

// Shares of one layer for the chosen word, or the mean over the query: [segment][head].
const headsOf = (layer) => {
  const rows = tokenOf(state.token)?.rows ?? data.query;
  const at = (head, row, segment) => data.mass[((layer * data.heads + head) * data.n_tokens + row) * 3 + segment];
  return SEGMENTS.map((_, segment) => Array.from({ length: data.heads }, (_, head) =>
    rows.reduce((sum, row) => sum + at(head, row, segment), 0) / rows.length));
};
const tokenOf = (index) => data.tokens.find((token) => token.index === index);
const inBand = (layer) => layer >= data.band[0] && layer < data.band[1];
const place = (layer) => (inBand(layer) ? "band" : layer < data.band[0] ? "before the band" : "after the band");

const rowLabel = (layer, shares) => "Layer " + layer + ", " + place(layer) + ": " + (inBand(layer)
  ? SEGMENTS.map((name, i) => name + " " + percent(shares[i])).join(", ")
  : "instruction and page 0 by construction");

const spreadText = (layer, heads) => SEGMENTS.map((name, i) => {
  if (!inBand(layer) && i < 2) return name + ": 0 by construction";
  const sorted = [...heads[i]].sort((a, b) => a - b);
  return name + ": " + percent(mean(heads[i])) + " mean · heads " + percent(sorted[0]) + " to " +
    percent(sorted[sorted.length - 1]) + ", median " + percent(median(sorted));
});

// A dot a head, where the page's part of the bar would end for it alone: odd heads stand out.
const headDots = (from, heads) => make("span", { class: "bands-dots", "aria-hidden": "true" },
  ...heads.map((share) => make("i", { style: "left:" + (100 * Math.min(1, from + share)).toFixed(2) + "%" })));

const layerRow = (layer) => {
  const heads = headsOf(layer), shares = heads.map(mean), band = inBand(layer);
  const bars = SEGMENTS.map((name, i) => make("span", {
    class: "bands-part bands-" + name, style: "width:" + (100 * shares[i]).toFixed(3) + "%",
  }, shares[i] >= 0.12 ? percent(shares[i]) : null));
  const row = make("button", {
    type: "button", class: "bands-row" + (band ? " bands-in" : " bands-out"), "data-layer": layer,
    "aria-label": rowLabel(layer, shares), "aria-pressed": String(state.layer === layer), "aria-disabled": String(!band),
    tabindex: layer === (state.layer ?? data.band[0]) ? "0" : "-1",
    onclick: () => choose(layer), onpointerenter: () => explain(layer), onfocus: () => explain(layer),
  },
  make("span", { class: "bands-number" }, String(layer)),
  make("span", { class: "bands-bar" }, ...(band ? bars : [make("span", { class: "bands-zero" }, "instruction and page: 0 by construction")]),
    band ? headDots(shares[0], heads[1]) : null));
  return row;
};

const explain = (layer) => {
  const lines = spreadText(layer, headsOf(layer));
  root.querySelector(".bands-detail").replaceChildren(make("strong", {}, "Layer " + layer + " (" + place(layer) + ")"),
    ...lines.map((line, i) => make("span", { class: "bands-key" }, make("i", { class: "bands-" + SEGMENTS[i] }), line)));
};

const choose = (layer) => {
  if (!inBand(layer)) return explain(layer);
  state.layer = layer;
  build();
  root.querySelector("[data-layer='" + layer + "']").focus();
  selection.set({ layer }, element);
  trigger("layer_click", { layer });
};

const moveFocus = (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const rows = [...root.querySelectorAll(".bands-row")];
  rows[Math.min(rows.length - 1, Math.max(0, rows.indexOf(document.activeElement) + step))].focus();
};

const table = () => {
  const rows = Array.from({ length: data.layers }, (_, layer) => {
    const shares = headsOf(layer).map(mean);
    const cells = SEGMENTS.map((_, i) => (inBand(layer) || i === 2 ? percent(shares[i]) : "0 by construction"));
    return make("tr", {}, make("th", { scope: "row" }, String(layer)), make("td", {}, place(layer)), ...cells.map((cell) => make("td", {}, cell)));
  });
  return make("details", { class: "pi-details" }, make("summary", {}, "Layers as a table"),
    make("table", { class: "mrr-table" },
      make("thead", {}, make("tr", {}, ...["Layer", "Where", "Instruction", "Page", "Query"].map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...rows)));
};

// Every head's shares, for the whole query and each word.
const saveShares = () => {
  const chosen = state.token;
  const rows = [["word", "layer", "head", ...SEGMENTS]];
  for (const token of [{ index: null, text: "whole query" }, ...data.tokens]) {
    state.token = token.index;
    for (let layer = 0; layer < data.layers; layer++) {
      const shares = headsOf(layer);
      for (let head = 0; head < data.heads; head++) rows.push([token.text, layer, head, ...shares.map((of) => of[head])]);
    }
  }
  state.token = chosen;
  save("attention-by-layer.csv", new Blob([csvText(rows)], { type: "text/csv" }));
};

const tokens = () => segmented("Query word", [
  { value: null, text: "whole query" },
  ...data.tokens.map((token) => ({ value: token.index, text: token.text })),
], state.token, (token) => {
  state.token = token;
  build();
  selection.set({ token: token ?? "mean" }, element);
}, "pi-chips");

const build = () => keepFocus(root, () => {
  const open = root.querySelector("details")?.open;
  const rows = make("div", { class: "bands-rows", role: "group", "aria-label": "Layers, first to last", onkeydown: moveFocus },
    ...Array.from({ length: data.layers }, (_, layer) => layerRow(layer)));
  const detail = make("div", { class: "bands-detail", "aria-live": "polite" }, "Point at a layer for the spread over its " + data.heads + " heads. Press one of the band for its map on the page.");
  root.replaceChildren(
    make("div", { class: "bands-keys" }, ...SEGMENTS.map((name) => make("span", { class: "bands-key" }, make("i", { class: "bands-" + name }), name)),
      make("span", { class: "bands-key" }, make("i", { class: "bands-dot" }), "end of the page’s part for one head")),
    make("p", { class: "pi-small-print" }, "Outside the band the query may not look at instruction or page at all: those shares are 0 by construction. That is why only the band’s K/V is stored."),
    tokens(), rows, detail, table(),
    make("div", { class: "pi-files" }, make("button", { type: "button", onclick: saveShares }, "Save CSV")));
  root.querySelector("details").open = Boolean(open);
  if (state.layer != null) explain(state.layer);
});

const show = (value) => {
  if (!value || value.kind !== "bands") {
    data = null;
    root.replaceChildren(make("p", { class: "mrr-empty", role: "status" }, value?.sentence || "Trace a page to see its layers."));
    return;
  }
  data = { ...value, mass: float16(value.mass) };
  follow(selection.get());
};

const follow = ({ layer, token }) => {
  if (!data) return;
  if (layer !== undefined) state.layer = layer != null && inBand(layer) ? layer : null;
  if (token !== undefined) state.token = token;
  if (!tokenOf(state.token)) state.token = null; // any word, too, is shown as the mean over all
  build();
};

selection.follow(element, follow);
watch("value", () => show(props.value));
show(props.value);
