// The page's arrays, decoded once, and the one map that mode, layer and token select from them.

const decodePage = (value) => {
  const n = value.rows * value.cols;
  const expect = (array, count, name) => {
    if (array.length !== count) {
      throw new Error("Nothing is drawn: " + name + " holds " + array.length + " numbers, the " +
        value.rows + " × " + value.cols + " grid needs " + count + ".");
    }
    return array;
  };
  const mask = (text, name) => expect(bytesOf(text), n, name);
  const page = { ...value, n, keep: { ...value.keep, mask: mask(value.keep.mask, "the kept mask") } };
  if (value.keep.importance) {
    page.keep.importance = expect(float16(value.keep.importance), n, "the importance");
  }
  page.keep.controls = value.keep.controls.map((c) => ({ ...c, mask: mask(c.mask, "a control mask") }));
  if (value.attention) {
    const { layers, tokens, maps, neutral, sinks, heads } = value.attention;
    const ofHeads = layers.length * heads.shown[0].length * value.keep.n_kept;
    page.attention = {
      ...value.attention,
      n_maps: tokens.length + 2,
      maps: expect(float16(maps), layers.length * (tokens.length + 2) * n, "the attention"),
      neutral: expect(float16(neutral), layers.length * 2 * n, "the neutral attention"),
      sinks: mask(sinks, "the sink mask"),
      heads: {
        ...heads,
        maps: expect(float16(heads.maps), ofHeads, "the heads' attention"),
        neutral: expect(float16(heads.neutral), ofHeads, "the heads' neutral attention"),
      },
    };
  }
  if (value.occlusion) {
    page.occlusion = {
      ...value.occlusion,
      delta: expect(float16(value.occlusion.delta), n, "the occlusion map"),
      measured: mask(value.occlusion.measured, "the measured mask"),
    };
  }
  return page;
};

const WHOLE_MEAN = "mean", WHOLE_MAX = "max", BAND_MEAN = "mean";
// Where nothing was chosen: any word, in the layer where words stand out most. Means over words and
// layers are pale on a scale that all maps share.
const REST = { token: WHOLE_MAX, layer: (page) => page.attention?.focus ?? BAND_MEAN };

const paletteOf = (state, map) => (map.scale.signed ? "diverging" : state.cividis ? "cividis" : "viridis");

// Position of the chosen token among the maps of a layer: 0 mean, 1 maximum, then single tokens.
const mapIndex = (attention, token) => {
  if (token === WHOLE_MAX) return 1;
  const at = attention.tokens.findIndex((t) => t.index === token);
  return at < 0 ? 0 : at + 2;
};

const tokenName = (attention, token) => {
  if (token === WHOLE_MEAN) return "the whole query (mean)";
  if (token === WHOLE_MAX) return "any word of the query (maximum)";
  const found = attention.tokens.find((t) => t.index === token);
  if (!found) return "the whole query (mean)";
  return found.role === "score" ? "the scoring position" : "“" + found.text + "”";
};

// {values, scale, hidden, title, ...}: hidden cells carry no value (pruned, or a sink left out).
const currentMap = (page, state) => {
  const attention = state.head == null ? attentionMap : headMap;
  const build = { pruned: importanceMap, attention, occlusion: occlusionMap }[state.mode];
  const map = build(page, state);
  map.hidden ||= new Uint8Array(page.n);
  const shown = [...map.values.keys()].filter((i) => !map.hidden[i]);
  map.sorted = Float32Array.from(shown, (i) => map.values[i]).sort();
  map.own = [map.sorted[0], map.sorted[map.sorted.length - 1]];
  map.sortedSize = map.scale.signed ? map.sorted.map(Math.abs).sort() : map.sorted;
  if (state.stretch && map.sorted.length) {
    const [low, high] = map.own;
    map.scale = map.scale.signed
      ? { ...map.scale, low: -Math.max(-low, high), high: Math.max(-low, high) }
      : { ...map.scale, low, high };
  }
  return map;
};

const importanceMap = (page) => {
  const { importance, range } = page.keep;
  return {
    values: importance || Float32Array.from(page.keep.mask),
    scale: { low: range?.[0] ?? 0, high: range?.[1] ?? 1, signed: false },
    coloured: Boolean(importance),
    what: importance ? "importance" : "kept",
    over: "all cells of the page",
    title: "What the reranker read of this page",
  };
};

// What every attention map says of itself. limitOf(name): one of the payload's scales.
const attentionScale = (page, state, limitOf) => {
  const a = page.attention;
  const plain = state.hideSinks && a.n_sinks > 0 ? "_without_sinks" : "";
  const limit = limitOf((state.contrast ? "contrast_limit" : "limit") + plain);
  return {
    hidden: page.keep.mask.map((kept, i) => (!kept || (state.hideSinks && a.sinks[i]) ? 1 : 0)),
    coloured: true, contrast: state.contrast,
    scale: { low: state.contrast ? -limit : 0, high: limit, signed: state.contrast },
    what: state.contrast ? "attention − neutral" : "attention",
    ends: state.contrast ? ["less than neutral queries", "more than neutral queries"] : null,
    title: (page.again ? "Encoded again at " + percent(page.keep.ratio) + ", not as it was ranked. " : "") +
      "Where the query’s attention went (weights, not causes)",
  };
};

const headMap = (page, state) => {
  const { layers, heads, sinks } = page.attention;
  const row = layers.indexOf(state.layer), slot = heads.shown[row].indexOf(state.head);
  let at = (row * heads.shown[row].length + slot) * page.keep.n_kept;
  let onSinks = 0;
  const values = new Float32Array(page.n);
  for (let i = 0; i < page.n; i++) {
    if (!page.keep.mask[i]) continue;
    if (sinks[i]) onSinks += heads.maps[at];
    values[i] = heads.maps[at] - (state.contrast ? heads.neutral[at] : 0);
    at++;
  }
  return {
    ...attentionScale(page, state, (name) => heads[name][row]),
    values, onSinks, mass: heads.mass[row][slot],
    over: "the heads of this layer",
    subject: "the whole query (mean) in head " + state.head + " of layer " + state.layer,
  };
};

const attentionMap = (page, state) => {
  const a = page.attention;
  const index = mapIndex(a, state.token);
  const scoring = index >= 2 && a.tokens[index - 2].role === "score";
  const rows = state.layer === BAND_MEAN ? a.layers.keys() : [a.layers.indexOf(state.layer)];
  const chosen = [...rows];
  const values = new Float32Array(page.n);
  let mass = 0;
  for (const row of chosen) {
    mass += a.mass[row][index] / chosen.length;
    const from = (row * a.n_maps + index) * page.n;
    const neutralFrom = (row * 2 + (scoring ? 1 : 0)) * page.n;
    for (let i = 0; i < page.n; i++) {
      const base = state.contrast ? a.neutral[neutralFrom + i] : 0;
      values[i] += (a.maps[from + i] - base) / chosen.length;
    }
  }
  let onSinks = 0;
  // Of the maximum over words no share can be taken: the sinks' share is that of the mean.
  const row = index === 1 ? 0 : index;
  for (let i = 0; i < page.n; i++) {
    if (a.sinks[i]) for (const l of chosen) onSinks += a.maps[(l * a.n_maps + row) * page.n + i] / chosen.length;
  }
  return {
    ...attentionScale(page, state, (name) => a[name]),
    values, mass, onSinks,
    over: "all layers and words of this query",
    subject: tokenName(a, state.token) + " in " +
      (state.layer === BAND_MEAN ? "the mean of the band" : "layer " + state.layer),
  };
};

const occlusionMap = (page) => {
  const { delta, limit, measured } = page.occlusion;
  return {
    values: delta,
    hidden: page.keep.mask.map((kept, i) => (kept && measured[i] ? 0 : 1)),
    scale: { low: -limit, high: limit, signed: true, flip: true },
    coloured: true,
    what: "Δ logit",
    over: "all blocks of this page",
    ends: ["hiding it raises the logit", "hiding it lowers the logit"],
    title: "Measured effect of hiding each block of " + page.occlusion.block + " × " + page.occlusion.block + " cells",
  };
};

// Share of the shown cells whose value is at most this one.
const percentile = (map, value) => {
  let low = 0, high = map.sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (map.sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return map.sorted.length ? low / map.sorted.length : 0;
};

// The size under which a cell is left uncoloured, from the share of cells to colour.
const cutoff = (map, share) => {
  const n = map.sortedSize.length;
  return share >= 1 || !n ? -Infinity : map.sortedSize[Math.min(n - 1, Math.floor((1 - share) * n))];
};

const cellState = (page, state, i) => {
  if (!page.keep.mask[i]) return "pruned: not read";
  if (state.mode === "occlusion" && !page.occlusion.measured[i]) return "kept, not measured";
  return state.mode === "attention" && page.attention.sinks[i] ? "kept, a sink" : "kept";
};
