// The page inspector: holds the state, draws on every change, and answers pointer and keyboard.
// All of it happens here; nothing goes to the server.

const root = element.querySelector(".pi");
const preferences = {
  layout: "overlay", opacity: 0.75, gamma: null, share: 1, stretch: false, smooth: false,
  cividis: false, contrast: true, hideSinks: true, controls: true, colour: false, margins: false, appearance: false,
};
let wanted = null; // the mode last asked for, also while this page lacks its map
let shown = {}; // what the last value was about, also while a sentence stands in its place
let page = null, map = null, colours = null, parts = null, queued = null;
let state = { ...preferences, mode: null, layer: null, token: null, head: null, cursor: null, locked: null };
let view = { zoom: 1, x: 0, y: 0 };

const set = (change, weight) => {
  Object.assign(state, change);
  if (!page) return;
  refresh();
  // A light change comes from a slider: the controls stay, or the drag would end.
  if (weight !== "light") {
    buildSide();
    buildStage();
  }
  updateFacts();
  redraw();
};

const refresh = () => {
  map = currentMap(page, state);
  colours = lookupTable(paletteOf(state, map), map.scale.flip);
};

// --- building the page ---------------------------------------------------------------------

const showSentence = (sentence, isError) => {
  page = null;
  root.replaceChildren(make("p", { class: isError ? "mrr-empty pi-error" : "mrr-empty", role: isError ? "alert" : "status" }, sentence));
};

const LATE_MS = 8000;

// The page as it is, where its maps will stand, so that nothing moves when they come.
const showPicture = ({ image, label, width, height, sentence, late }) => {
  page = null;
  const waiting = make("p", { class: "pi-waiting", role: "status" }, sentence);
  if (late) setTimeout(() => waiting.append(" " + late), LATE_MS);
  root.replaceChildren(
    make("div", { class: "pi-head" }, waiting),
    make("div", { class: "pi-body" },
      make("div", { class: "pi-main" }, make("div", { class: "pi-stage" }, make("figure", { class: "pi-panel" },
        make("img", { src: image, alt: label, style: "aspect-ratio:" + width + "/" + height + ";--pi-aspect:" + width / height })))),
      make("div", { class: "pi-side" })));
};

const buildFrame = () => {
  const tableOpen = Boolean(parts?.table.open);
  parts = {
    modes: make("div"), stage: make("div", { class: "pi-stage" }), side: make("div", { class: "pi-side" }),
    legend: make("div", { class: "pi-legend" }), facts: make("div", { class: "pi-facts" }),
    tip: make("div", { class: "pi-tip", hidden: true }), live: make("div", { class: "pi-live", "aria-live": "polite" }),
    table: make("details", { class: "pi-details", open: tableOpen }, make("summary", {}, "Cells as a table")),
  };
  const zoom = make("div", { class: "pi-zoom", role: "group", "aria-label": "Zoom" },
    ...[["+", "Zoom in", () => zoomAt(1.5)], ["−", "Zoom out", () => zoomAt(1 / 1.5)], ["Fit", "Fit the page", fit],
      ...(document.fullscreenEnabled ? [[fullScreenIcon(), "Full screen", fullScreen]] : [])].map(
      ([text, label, act]) => make("button", { type: "button", "aria-label": label, title: label, onclick: act }, text)));
  const files = make("div", { class: "pi-files" },
    make("button", { type: "button", onclick: savePicture }, "Save PNG"),
    make("button", { type: "button", onclick: () => save(fileName("csv"), new Blob([csvOf(page, state, map)], { type: "text/csv" })) }, "Save CSV"),
    make("span", { class: "pi-help" }, "Arrows move the cell, Enter locks it, + − 0 zoom; Ctrl + wheel or pinch zooms, drag pans."));
  parts.table.addEventListener("toggle", updateTable);
  root.replaceChildren(
    make("div", { class: "pi-head" }, parts.modes, zoom),
    make("div", { class: "pi-body" },
      make("div", { class: "pi-main" }, parts.stage, parts.legend, parts.facts),
      parts.side),
    parts.table, files, parts.tip, parts.live);
};

// Drawn, as few fonts have a sign for it.
const fullScreenIcon = () => {
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const corners = document.createElementNS("http://www.w3.org/2000/svg", "path");
  icon.setAttribute("viewBox", "0 0 16 16");
  icon.setAttribute("class", "pi-icon");
  icon.setAttribute("aria-hidden", "true");
  corners.setAttribute("d", "M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4");
  icon.append(corners);
  return icon;
};

const fullScreen = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen());

const buildModes = () => {
  const absent = { attention: !page.attention, occlusion: !page.occlusion };
  const choose = (mode) => {
    if (absent[mode]) {  // occlusion costs passes of the model: the button that runs them shows how far they are
      document.getElementById("occlude")?.click();
      document.getElementById("occlude")?.scrollIntoView({ block: "nearest" });
      return buildModes();
    }
    wanted = mode;
    set({ mode });
    buildModes();
  };
  keepFocus(parts.modes, () => parts.modes.replaceChildren(segmented("Map", MODES.map((mode) => ({
    ...mode, disabled: mode.value === "attention" && absent.attention,
    text: mode.value === "occlusion" && absent.occlusion ? "Measure occlusion" : mode.text,
  })), state.mode, choose)));
};

const buildSide = () => keepFocus(parts.side, () =>
  parts.side.replaceChildren(...controlsFor(page, state, set).filter(Boolean)));

const buildStage = () => {
  const panels = panelsFor(page, state, map, null);
  parts.stage.dataset.panels = panels.length;
  parts.stage.dataset.mode = state.mode;
  parts.canvases = panels.map((panel) => canvasFor(panel));
  parts.stage.replaceChildren(...parts.canvases.map((canvas, i) => make("figure",
    { class: panels[i].small ? "pi-panel pi-small" : "pi-panel" }, canvas, make("figcaption", {}, panels[i].caption))));
  watchSize.disconnect();
  parts.canvases.forEach((canvas) => watchSize.observe(canvas));
};

const canvasFor = (panel) => {
  const canvas = make("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": "token map",
    "aria-label": (panel.small ? panel.caption + ". " : "") + describe(page, state, map),
    style: "aspect-ratio:" + page.width + "/" + page.height + ";--pi-aspect:" + page.width / page.height,
    onpointerdown: (event) => press(event, canvas), onpointermove: (event) => move(event, canvas),
    onpointerup: (event) => release(event, canvas), onpointercancel: () => pointers.clear(),
    onpointerleave: () => { if (!pointers.size) point(null); },
    ondblclick: (event) => zoomAt(2, fraction(event, canvas)),
    onkeydown: key, onblur: () => point(null),
  });
  canvas.addEventListener("wheel", (event) => {
    // The page keeps scrolling unless the wheel is meant: with Ctrl or a pinch, or once zoomed in.
    if (!event.ctrlKey && !event.metaKey && view.zoom === 1) return;
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 300), fraction(event, canvas));
  }, { passive: false });
  return canvas;
};

// --- drawing -------------------------------------------------------------------------------

// Once a frame at most; where only the cursor moved, the picture under it is not drawn again.
const redraw = (what = "all") => {
  const waiting = queued;
  queued = queued === "all" ? "all" : what;
  if (!waiting) requestAnimationFrame(draw);
};

const draw = () => {
  const what = queued;
  queued = null;
  if (!page) return;
  if (what === "cursor") return parts.canvases.forEach((canvas) => drawCursor(canvas, page, state, view));
  const painted = map.coloured ? paintMap(page, map, state, colours, isOpaque()) : null;
  panelsFor(page, state, map, painted).forEach((panel, i) => {
    if (parts.canvases[i]) drawPanel(parts.canvases[i], page, panel, state, view);
  });
};
const watchSize = new ResizeObserver(() => redraw());

// A map by itself has nothing beneath it that should show.
const isOpaque = () => state.layout === "map" && state.mode !== "pruned";

const isColoured = () => map.coloured && (state.mode !== "pruned" || state.colour);

const updateFacts = () => {
  parts.canvases.forEach((canvas) => { canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y"; });
  parts.facts.replaceChildren(...factsFor(page, state, map).map((fact) => make("p", {}, fact)),
    state.mode === "occlusion" ? controlStrip(page.occlusion) : "");
  updateLegend();
  updateTable();
  if (state.locked != null) showTip(state.locked);
};

const updateLegend = () => {
  if (!isColoured()) return parts.legend.replaceChildren();
  const canvas = make("canvas", { "aria-hidden": "true" });
  drawLegend(canvas, map, state, colours, isOpaque());
  const [left, right] = endsOf();
  parts.legend.replaceChildren(
    make("div", { class: "pi-scale" }, make("span", {}, left), canvas, make("span", {}, right)),
    map.ends ? make("div", { class: "pi-ends" }, make("span", {}, "◂\u00a0" + map.ends[0]), make("span", {}, map.ends[1] + "\u00a0▸")) : "",
    make("div", { class: "pi-range" },
      state.stretch ? make("strong", { class: "pi-badge" }, STRETCHED) : sharedScale(), ownRange(),
      state.smooth ? make("strong", { class: "pi-badge" }, SMOOTHED) : ""));
};

const STRETCHED = "Stretched to this map: do not compare", SMOOTHED = "Smoothed: cells are the true resolution";
const sayValue = (value) => (map.scale.signed ? signedNumber : number)(value);
const sharedScale = () => map.what + ", scale shared by " + map.over;
const ownRange = () => " · this map: " + sayValue(map.own[0]) + " to " + sayValue(map.own[1]);
const rangeWords = () => (state.stretch ? STRETCHED : sharedScale()) + ownRange() + (state.smooth ? " · " + SMOOTHED : "");

// The numbers at the left and the right end of the scale.
const endsOf = () => (map.scale.flip ? [map.scale.high, map.scale.low] : [map.scale.low, map.scale.high]).map(sayValue);

const updateTable = () => {
  const old = parts.table.querySelector("table");
  if (old) old.remove();
  if (parts.table.open) parts.table.append(tableOf(page, state, map));
};

// --- cells ---------------------------------------------------------------------------------

// Where on the page's frame an event happened, from 0 to 1; more where it was on the bars.
const fraction = (event, canvas) => {
  const box = canvas.getBoundingClientRect();
  const frame = frameOf(state, box.width, box.height);
  return { x: (event.clientX - box.left) / frame.width, y: (event.clientY - box.top) / frame.height, frame };
};

const cellAt = ({ x, y }) => {
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
  const u = view.x + x / view.zoom, v = view.y + y / view.zoom;
  return Math.floor(v * page.rows) * page.cols + Math.floor(u * page.cols);
};

const cellLines = (i, mask) => {
  const row = Math.floor(i / page.cols) + 1, column = (i % page.cols) + 1;
  const value = map.scale.signed ? signedNumber(map.values[i]) : number(map.values[i]);
  const known = !map.hidden[i] && (state.mode !== "pruned" || page.keep.importance);
  const kept = mask[i] === page.keep.mask[i] ? cellState(page, state, i) : mask[i] ? "kept here" : "pruned here";
  return ["row " + row + ", column " + column,
    known ? map.what + " " + value + " · percentile " + percent(percentile(map, map.values[i])) : null, kept].filter(Boolean);
};

const showTip = (i, canvas = parts.canvases[0], loud = false) => {
  const mask = panelsFor(page, state, map, null)[parts.canvases.indexOf(canvas)]?.mask || page.keep.mask;
  const lines = cellLines(i, mask);
  parts.tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
  parts.tip.hidden = false;
  parts.tip.dataset.locked = state.locked === i;
  if (loud) parts.live.textContent = lines.join(", ");
  const box = canvas.getBoundingClientRect(), around = root.getBoundingClientRect();
  const frame = frameOf(state, box.width, box.height);
  const across = (((i % page.cols) + 1) / page.cols - view.x) * view.zoom;
  const down = ((Math.floor(i / page.cols) + 1) / page.rows - view.y) * view.zoom;
  const left = box.left - around.left + across * frame.width + 6;
  const room = around.width - parts.tip.offsetWidth - 4;
  parts.tip.style.left = Math.max(0, left > room ? left - parts.tip.offsetWidth - 12 - (frame.width * view.zoom) / page.cols : left) + "px";
  parts.tip.style.top = box.top - around.top + Math.min(1, Math.max(0, down)) * frame.height + 4 + "px";
};

const point = (cell, canvas, loud) => {
  state.cursor = cell;
  const shown = state.locked ?? cell;
  if (shown == null) parts.tip.hidden = true;
  else showTip(shown, canvas, loud);
  redraw("cursor");
};

const lock = (cell, canvas) => {
  state.locked = state.locked === cell ? null : cell;
  point(cell, canvas, true);
};

// --- files, values from the server, selection from the other views ---------------------------

const fileName = (ending) => page.label.replace(/[^\w.-]+/g, "-").slice(0, 60) + "-" + state.mode + "." + ending;

// The map, not the page beside it and not the controls, at a size that does not depend on the screen.
const savePicture = async () => {
  const painted = map.coloured ? paintMap(page, map, state, colours, isOpaque()) : null;
  const panel = panelsFor(page, state, map, painted).filter(({ small }) => !small).pop();
  const height = Math.round((SHEET.width * page.height) / page.width);
  const picture = paintPanel(page, panel, state, view, SHEET.width, height, SHEET.ratio);
  drawMarks(picture.getContext("2d"), page, { ...state, cursor: null }, view, frameOf(state, SHEET.width, height));
  const words = [page.label, "Query: “" + page.query + "”", panel.caption];
  if (isColoured()) words.push(rangeWords());
  save(fileName("png"), await pictureOf(picture, isColoured() ? scaleOf() : null, words));
};

// The colour bar and what stands at its two ends.
const scaleOf = () => {
  const [left, right] = endsOf();
  const [less, more] = map.ends || ["", "more " + map.what];
  return { bar: parts.legend.querySelector("canvas"), left: less ? left + " · ◂ " + less : left, right: more + " ▸ · " + right };
};

const applySelection = ({ layer, token }) => {
  const change = {};
  const isLayer = layer === BAND_MEAN || page.attention?.layers.includes(layer);
  if (layer !== undefined) change.layer = isLayer ? layer : REST.layer(page);
  const isToken = [WHOLE_MAX, WHOLE_MEAN].includes(token) || page.attention?.tokens.some((t) => t.index === token);
  if (token !== undefined) change.token = isToken ? token : REST.token;
  const head = (change.token ?? state.token) === WHOLE_MEAN ? state.head : null;
  change.head = page.attention ? headIn(page.attention, change.layer ?? state.layer, head) : null;
  return change;
};

const startMode = () => [wanted, "attention", "pruned"].find((mode) => mode === "pruned" || (mode && page[mode]));

const show = (value) => {
  if (value?.kind === "picture") return showPicture(value);
  if (!value || value.kind !== "page") return showSentence(value?.sentence || "Select a page.", value?.kind === "error");
  const samePage = shown.page_id === value.page_id, sameQuery = shown.query === value.query;
  // A word is one of this query's; a layer, or all words, mean the same to every query.
  const chosen = selection.get();
  const isWord = typeof chosen.token === "number";
  const shared = shown.query && !sameQuery && isWord ? { ...chosen, token: null } : chosen;
  try {
    page = decodePage(value);
  } catch (error) {
    return showSentence(error.message, true);
  }
  shown = { page_id: value.page_id, query: value.query };
  if (!samePage) {
    view = { zoom: 1, x: 0, y: 0 };
    Object.assign(state, { cursor: null, locked: null });
  }
  const { layer = null, token = null } = samePage && sameQuery ? state : shared;
  Object.assign(state, applySelection({ layer, token }));
  if (value.mode) wanted = value.mode;
  state.mode = startMode();
  buildFrame();
  buildModes();
  set({});
  const image = new Image();
  const target = page;
  image.onload = () => {
    Object.assign(target, { picture: image, grey: greyCopy(image) });
    if (page === target) redraw();
  };
  image.onerror = () => { if (page === target) showSentence("The page image could not be decoded. Select the page again.", true); };
  image.src = page.image;
};

selection.follow(element, (change) => {
  if (!page?.attention) return;
  wanted = "attention";
  set({ ...applySelection(change), mode: "attention" });
  buildModes();
});
watch("value", () => show(props.value));
show(props.value);
