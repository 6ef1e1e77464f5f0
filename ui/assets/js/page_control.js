// The control of the occlusion map: what hiding the cells that a ranking puts first did to the
// logit, beside as many random ones, all on one line each.

const controlStrip = (occlusion) => {
  const rows = [...Object.entries(occlusion.top).map(([name, delta]) => ({ name, delta })),
    ...(occlusion.random.length ? [{ name: "random cells, n = " + occlusion.random.length, delta: mean(occlusion.random), random: true }] : [])];
  const all = [0, ...occlusion.random, ...rows.map((row) => row.delta)];
  const low = Math.min(...all), span = Math.max(...all) - low || 1;
  const at = (value) => "left:" + (100 * (value - low)) / span + "%";
  // The numbers at both ends, and 0 where there is room for it between them.
  const isRoom = (value) => (value - low) / span > 0.2 && (value - low) / span < 0.8;
  const ticks = [low, ...(isRoom(0) ? [0] : []), low + span];
  const axis = make("tr", { class: "pi-axis" }, make("th", { scope: "row" }, "Δ logit"),
    make("td", {}, make("span", { class: "pi-strip" }, ...ticks.map((value) => make("b", { style: at(value) }, signedNumber(value))))), make("td"));
  const body = rows.map(({ name, delta, random }) => make("tr", {},
    make("th", { scope: "row" }, name),
    make("td", {}, make("span", { class: "pi-strip" },
      make("i", { class: "pi-zero", style: at(0) }),
      ...occlusion.random.map((value) => make("i", { class: "pi-draw", style: at(value) })),
      random ? null : make("i", { class: "pi-top", style: at(delta) }))),
    make("td", { class: "num" }, signedNumber(delta))));
  const saved = () => save("occlusion-control.csv", new Blob([csvText([["hidden cells", "logit change"],
    ...Object.entries(occlusion.top), ...occlusion.random.map((delta) => ["random", delta])])], { type: "text/csv" }));
  return make("div", {}, make("table", { class: "mrr-table pi-control" },
    make("caption", {}, "Δ logit when the " + occlusion.n_top + " cells ranked first are hidden (◆), by ranking, over random draws (○)"),
    make("tbody", {}, ...body), make("tfoot", {}, axis)),
    make("p", { class: "pi-small-print" }, "Each row hides the cells that one ranking puts first. A ◆ far left of the ○ found what the score rests on; a ◆ among them found no more than chance does. " +
      "The pruner’s importance was fixed before any query, so it need not find this query’s words; the map’s own ranking is chosen on the measure itself, block by block, and so proves nothing by itself."),
    make("div", { class: "pi-files" }, make("button", { type: "button", onclick: saved }, "Save this table")));
};
