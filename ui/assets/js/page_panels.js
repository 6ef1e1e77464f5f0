// Which pictures stand side by side in each mode; all of them share one zoom and one cursor.

const MODES = [
  { value: "pruned", text: "Kept tokens" },
  { value: "attention", text: "Attention" },
  { value: "occlusion", text: "Occlusion" },
];
const PRUNERS = {
  embedder: "the embedder’s choice", uniform: "uniform control", random: "random control", none: "every token",
};

const panelsFor = (page, state, map, painted) => {
  const used = { mask: page.keep.mask, map, painted, paint: "overlay" };
  if (state.mode === "pruned") {
    const share = percent(page.keep.n_kept / page.n);
    used.caption = (page.again ? "Encoded again: " : "Used for this score: ") + (PRUNERS[page.keep.pruner] || page.keep.pruner) + ", " +
      page.keep.n_kept + " of " + page.n + " kept (" + share + ")";
    used.painted = state.colour && map.coloured ? painted : null;
    const controls = state.controls ? page.keep.controls : [];
    return [used, ...controls.map((control) => ({
      mask: control.mask, map, painted: null, paint: "overlay", small: true,
      caption: (PRUNERS[control.name] || control.name) + ", same budget",
    }))];
  }
  const title = map.title + (map.subject ? ": " + map.subject : "");
  if (state.layout === "beside") {
    return [{ ...used, paint: "page", painted: null, caption: "The page" }, { ...used, caption: title }];
  }
  return [{ ...used, paint: state.layout === "map" ? "map" : "overlay", caption: title }];
};

const describe = (page, state, map) => {
  const kept = page.keep.n_kept + " of " + page.n + " visual tokens kept";
  const what = { pruned: "kept and pruned tokens", attention: map.subject && "attention of " + map.subject, occlusion: "change of the logit when blocks are hidden" };
  return page.label + ", " + page.rows + " rows by " + page.cols + " columns of tokens, " + kept + "; " +
    what[state.mode] + ". Arrow keys move the cell cursor, Enter locks it.";
};

const isFaint = ({ own, scale }, state) => !state.stretch &&
  Math.max(...own.map(Math.abs)) < 0.05 * Math.max(Math.abs(scale.low), Math.abs(scale.high));

// The facts under the picture, each a sentence.
const factsFor = (page, state, map) => {
  const facts = [];
  if (state.mode === "pruned") {
    facts.push("Pruning is decided once per page, before any query: hatched cells were never read.");
    if (page.keep.controls.length) {
      facts.push("The controls keep as many cells without looking at the page. To see what the choice is worth, press All three at this ratio, below.");
    } else {
      facts.push("Pruning is off: every token is kept.");
    }
  } else if (state.mode === "attention") {
    // Of the maximum over words no share can be taken: what is told there is that of the mean.
    const share = state.token === WHOLE_MAX ? "Of the whole query’s attention, " + percent(map.mass) : percent(map.mass) + " of this attention";
    facts.push(share + " went to the page; the rest to instruction and query." +
      (isFaint(map, state) ? " Its values are small beside the scale that all layers and words share, so little shows: Stretch to this map, under Appearance, brings out its pattern." : "") +
      (map.mass < 0.05 ? " That is little: do not read much into the pattern." : ""));
    if (state.token === REST.token && state.layer === REST.layer(page)) {
      facts.push("Layer " + state.layer + " is shown first because a word of the query stands out most there.");
    }
    if (page.attention.n_sinks) {
      facts.push((page.attention.n_sinks === 1 ? "1 sink cell (dashed) takes " : page.attention.n_sinks + " sink cells (dashed) take ") + percent(map.mass > 0 ? map.onSinks / map.mass : 0) +
        " of the page’s share for this query in " + (state.layer === BAND_MEAN ? "the mean of the band" : "layer " + state.layer) + (state.hideSinks ? "; left out of colours and scale." : "."));
    }
    if (page.attention.left_out) facts.push(page.attention.left_out + " later words count in the whole query but have no map of their own here.");
  } else {
    if (page.occlusion.stopped) facts.push(page.occlusion.stopped);
    facts.push(page.occlusion.verdict);
  }
  return facts;
};
