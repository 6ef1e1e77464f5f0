// The controls beside the picture. Each change goes through set(), which redraws in the browser.

const slider = (label, key, state, set, [low, high, step], show, now = state[key]) => {
  const output = make("output", {}, show(now));
  const input = make("input", { type: "range", min: low, max: high, step, value: now, "aria-label": label, "data-key": key });
  input.addEventListener("input", () => {
    output.textContent = show(Number(input.value));
    set({ [key]: Number(input.value) }, "light");
  });
  input.addEventListener("change", () => set({}));
  return make("label", { class: "pi-slider" }, make("span", {}, label), input, output);
};

const checkbox = (label, key, state, set, title, disabled = false) => {
  const input = make("input", { type: "checkbox", "data-key": key, disabled });
  input.checked = state[key] && !disabled;
  input.addEventListener("change", () => set({ [key]: input.checked }));
  return make("label", { class: "pi-check", title }, input, make("span", {}, label));
};

const group = (title, ...children) => explained(title, null, ...children);
// means: what a pointer is told that rests on the title.
const explained = (title, means, ...children) => make("div", { class: "pi-group" },
  make("div", { class: "pi-group-title", title: means }, title), ...children);

const tokenChips = (attention, state, set) => {
  const chips = [
    { value: WHOLE_MAX, text: "any word", title: "Maximum over the words of the query" },
    { value: WHOLE_MEAN, text: "whole query", title: "Mean over the query" },
    ...attention.tokens.map((token) => ({
      value: token.index,
      text: token.role === "score" ? "answer ▸" : token.text,
      title: token.role === "score" ? "The last position, where the model answers yes or no: its state becomes the score" : "Mean over the pieces of this word",
    })),
  ];
  const choose = (token) => {
    set({ token, head: null });
    selection.set({ token }, element);
  };
  return segmented("Query word", chips, state.token, choose, "pi-chips");
};

const layerChips = (attention, state, set) => {
  const chips = [
    { value: BAND_MEAN, text: "mean" },
    ...attention.layers.map((layer) => ({ value: layer, text: String(layer) })),
  ];
  const choose = (layer) => {
    set({ layer, head: headIn(attention, layer, state.head) });
    selection.set({ layer }, element);
  };
  return segmented("Band layer", chips, state.layer, choose, "pi-chips");
};

const appearance = (page, state, set) => {
  const coloured = state.mode !== "pruned" || state.colour;
  if (!coloured) return null;
  const panel = make("details", { class: "pi-details" },
    // Not the panel's own "toggle": it comes later, when another panel may stand here.
    make("summary", { onclick: () => { state.appearance = !panel.open; } }, "Appearance"),
    slider("Opacity", "opacity", state, set, [0.1, 1, 0.05], (v) => percent(v)),
    slider("Colour the top", "share", state, set, [0.02, 1, 0.02], (v) => percent(v)),
    slider("Gamma", "gamma", state, set, [1, 4, 0.25], (v) => v.toFixed(2), gammaOf(state)),
    checkbox("Stretch to this map", "stretch", state, set, "Its own minimum and maximum: not comparable with other maps"),
    checkbox("Smooth", "smooth", state, set, "Interpolated between cells: finer than what the model read"),
    checkbox("Cividis instead of viridis", "cividis", state, set, "For amounts; signed maps keep blue to orange"));
  panel.open = state.appearance;
  return panel;
};

const controlsFor = (page, state, set) => {
  const parts = [];
  if (state.mode === "pruned") {
    parts.push(checkbox("Control masks beside it", "controls", state, set, "Uniform and random keep at the same budget", !page.keep.controls.length));
    parts.push(checkbox("Colour by importance", "colour", state, set, "What the pruner went by", !page.keep.importance));
  } else {
    parts.push(group("Show", segmented("Layout", [
      { value: "overlay", text: "Overlay" }, { value: "beside", text: "2-up" }, { value: "map", text: "Map" },
    ], state.layout, (layout) => set({ layout }))));
  }
  if (state.mode === "attention") {
    const a = page.attention;
    parts.unshift(
      group("From", tokenChips(a, state, set)),
      explained("Layer of the band", "The layers in which the query reads the page", layerChips(a, state, set)),
      headGallery(page, state, set),
      checkbox("Minus neutral queries", "contrast", state, set,
        "What content-free queries get on this page is taken off: " + a.neutral_queries.join(" · ")),
      make("p", { class: "pi-small-print" }, "Takes off what queries without content get: " + a.neutral_queries.slice(0, 3).join(" · ")),
      checkbox(a.n_sinks ? "Leave out sinks" : "Leave out sinks (none here)", "hideSinks", state, set, "Cells that take outlying attention whatever the query", !a.n_sinks));
  }
  parts.push(checkbox("Row and column means", "margins", state, set, "Along the edges: shows whether a map merely favours a place"));
  return [...parts, appearance(page, state, set)];
};
