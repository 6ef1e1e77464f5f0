// The same numbers without a picture: a table of the top cells, and files to take away.

const TABLE_ROWS = 20;

const ranked = (map) => {
  const shown = [...map.values.keys()].filter((i) => !map.hidden[i]);
  const size = map.scale.signed ? (i) => Math.abs(map.values[i]) : (i) => map.values[i];
  return shown.sort((a, b) => size(b) - size(a));
};

const tableOf = (page, state, map) => {
  const rows = ranked(map).slice(0, TABLE_ROWS).map((i, rank) => make("tr", {},
    ...[rank + 1, Math.floor(i / page.cols) + 1, (i % page.cols) + 1, map.scale.signed ? signedNumber(map.values[i]) : number(map.values[i]),
      percent(percentile(map, map.values[i])), cellState(page, state, i)].map((cell) => make("td", {}, String(cell)))));
  const heads = ["#", "Row", "Column", map.what, "Percentile", "State"].map((text) => make("th", { scope: "col" }, text));
  return make("table", { class: "mrr-table" },
    make("caption", {}, "The " + rows.length + " cells with the largest " + map.what),
    make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
};

const csvOf = (page, state, map) => {
  const lines = ["row,column,value,percentile,state"];
  for (let i = 0; i < page.n; i++) {
    const value = map.hidden[i] ? "" : map.values[i];
    const share = map.hidden[i] ? "" : percentile(map, map.values[i]).toFixed(4);
    lines.push([Math.floor(i / page.cols) + 1, (i % page.cols) + 1, value, share, cellState(page, state, i)].join(","));
  }
  return lines.join("\n") + "\n";
};
